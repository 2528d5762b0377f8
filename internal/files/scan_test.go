package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// largeDirectory makes n files that are sorted in another order than they were made in. They are links to three files
// of different sizes, since making inodes takes most of the time.
func largeDirectory(t tester, base string, n int) (sorted []string) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("Entry %06d", i*7919%n)
		sorted = append(sorted, name)
		if i < 3 {
			check(t, os.WriteFile(filepath.Join(base, name), make([]byte, i), 0o600))
			continue
		}
		check(t, os.Link(filepath.Join(base, sorted[i%3]), filepath.Join(base, name)))
	}
	slices.SortFunc(sorted, modelCompare)
	return sorted
}

// age makes a directory look as if it had not changed for a while.
func age(t tester, base string) {
	t.Helper()
	at := time.Now().Add(-time.Hour)
	check(t, os.Chtimes(base, at, at))
}

// later is a clock that is ahead, so that directories just made are old.
func later() time.Time { return time.Now().Add(time.Hour) }

func TestIndexIsSharedAndRenewed(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	sorted := largeDirectory(t, base, 6000)
	var scans atomic.Int32
	s := newService(t, func(o *Options) { o.Now = later })
	s.slow = func(n int) {
		if n == 1 {
			scans.Add(1)
		}
	}
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			if got, _ := browseAll(t, s, browseRequest(base, "", nil), nil); !slices.Equal(got, sorted) {
				t.Errorf("listed %d entries", len(got))
			}
		})
	}
	clients.Wait()
	if n := scans.Load(); n != 1 {
		t.Errorf("%d scans for 8 clients", n)
	}
	// A change begins new listings anew; those under way go on from what they have.
	first := must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
	touch(t, base, "!first of all")
	if got := names(must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)); got[0] != "!first of all" {
		t.Errorf("a new listing begins with %q", got[0])
	}
	before := scans.Load()
	req := browseRequest(base, "", func(p *providerapi.BrowseParams) { p.Next = first.Next })
	if got := names(must(s.Browse(context.Background(), req))(t)); got[0] != sorted[250] || scans.Load() != before {
		t.Errorf("the old listing goes on with %q after %d scans", got[0], scans.Load()-before)
	}
}

// TestFreshDirectoryIsNotTrusted: two changes within one tick of the file system's clock look like one.
func TestFreshDirectoryIsNotTrusted(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	largeDirectory(t, base, 5000)
	s := newService(t, nil)
	for i := range 20 {
		want := fmt.Sprintf("!%02d", 99-i)
		touch(t, base, want)
		if got := names(must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)); got[0] != want {
			t.Fatalf("after making %s the listing begins with %s", want, got[0])
		}
	}
}

func TestIdleIndexesAreDropped(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	largeDirectory(t, base, 16_000)
	s := newService(t, func(o *Options) { o.IndexIdle = 50 * time.Millisecond })
	must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
	testkit.Eventually(t, "the index to be dropped", func() bool {
		s.cache.mu.Lock()
		defer s.cache.mu.Unlock()
		return len(s.cache.entries) == 0 && s.cache.used == 0
	})
}

// TestIndexMemoryIsBounded lists many large directories at the same time.
func TestIndexMemoryIsBounded(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	const dirs, limit = 6, 3 << 20
	want := make([][]string, dirs)
	for i := range dirs {
		sub := filepath.Join(base, fmt.Sprint(i))
		check(t, os.Mkdir(sub, 0o700))
		want[i] = largeDirectory(t, sub, 16_000)
	}
	s := newService(t, func(o *Options) { o.IndexBytes = limit; o.Now = later; o.ScanWait = time.Minute })
	var most int64
	var clients sync.WaitGroup
	for i := range dirs {
		clients.Go(func() {
			got, _ := browseAll(t, s, browseRequest(base, fmt.Sprint(i), func(p *providerapi.BrowseParams) { p.ItemsPerPage = 1000 }), func(int) {
				s.cache.mu.Lock()
				defer s.cache.mu.Unlock()
				most = max(most, s.cache.used)
			})
			if !slices.Equal(got, want[i]) {
				t.Errorf("directory %d: %d entries", i, len(got))
			}
		})
	}
	clients.Wait()
	// Each builder may have its least beyond the limit.
	if most > limit+dirs<<20 {
		t.Errorf("%d bytes were used", most)
	}
}

// TestSlowScanBeginsUnsorted: when sorting takes longer than a client waits, the first page comes in the order of the
// directory and the others sorted, and still nothing is lost or shown twice.
func TestSlowScanBeginsUnsorted(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*providerapi.BrowseParams){
		"ascending":  func(*providerapi.BrowseParams) {},
		"descending": func(p *providerapi.BrowseParams) { p.SortDirection = ptr(providerapi.SortDescending) },
		"by size":    func(p *providerapi.BrowseParams) { p.SortBy = ptr(providerapi.SortBySize) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := t.TempDir()
			sorted := largeDirectory(t, base, 20_000)
			if name == "descending" {
				slices.Reverse(sorted)
			}
			s := newService(t, func(o *Options) { o.ScanWait = 3 * time.Second; o.Now = later })
			held := make(chan struct{})
			s.slow = func(n int) {
				if n > 1 {
					<-held
				}
			}
			var once sync.Once
			defer once.Do(func() { close(held) })
			req := browseRequest(base, "", func(p *providerapi.BrowseParams) { p.ItemsPerPage = 1000; change(p) })
			first := must(s.Browse(context.Background(), req))(t)
			if len(first.Items) == 0 || len(first.Items) > maxShown || first.Next == nil {
				t.Fatalf("%d items, next %v", len(first.Items), first.Next)
			}
			// As long as the scan stands still, the listing cannot go on; that is said, rather than looping for ever.
			req.Browse.Next = first.Next
			if _, err := s.Browse(context.Background(), req); !failure.Is(err, failure.NotFound) {
				t.Fatalf("while the scan stands still: %v", err)
			}
			once.Do(func() { close(held) })
			rest, _ := browseAll(t, s, req, nil)
			shown := names(first)
			want := slices.DeleteFunc(slices.Clone(sorted), func(n string) bool { return slices.Contains(shown, n) })
			if len(shown)+len(want) != len(sorted) || !slices.Equal(rest, want) {
				t.Fatalf("%d entries at first, then %d of %d", len(shown), len(rest), len(want))
			}
		})
	}
}

// TestScanThatAdvancesGivesEmptyPages: a listing under way is told to come back, with the same token.
func TestScanThatAdvancesGivesEmptyPages(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	sorted := largeDirectory(t, base, 20_000)
	s := newService(t, func(o *Options) { o.ScanWait = 3 * time.Second; o.Now = later })
	req := browseRequest(base, "", nil)
	req.Browse.Next = ptr((&pageToken{after: &mark{name: []byte(sorted[99])}}).encode()) // of an instance that is gone
	step := make(chan struct{})
	s.slow = func(int) { <-step }
	go func() { // ends with the send: the scan waits for it
		time.Sleep(500 * time.Millisecond)
		step <- struct{}{}
	}()
	page := must(s.Browse(context.Background(), req))(t)
	if len(page.Items) != 0 || page.Next == nil || *page.Next != *req.Browse.Next {
		t.Fatalf("%d items, next %v", len(page.Items), page.Next)
	}
	close(step)
	if got, _ := browseAll(t, s, req, nil); !slices.Equal(got, sorted[100:]) {
		t.Fatalf("got %d entries", len(got))
	}
}

// TestPositionWhileScanning: the same for a listing that begins at a position, which must not begin with a page in the
// order of the directory.
func TestPositionWhileScanning(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	sorted := largeDirectory(t, base, 20_000)
	s := newService(t, func(o *Options) { o.ScanWait = 3 * time.Second; o.Now = later })
	req := browseRequest(base, "", func(p *providerapi.BrowseParams) { p.Next = ptr("100") })
	step := make(chan struct{})
	s.slow = func(int) { <-step }
	go func() { // ends with the send: the scan waits for it
		time.Sleep(500 * time.Millisecond)
		step <- struct{}{}
	}()
	page := must(s.Browse(context.Background(), req))(t)
	if len(page.Items) != 0 || page.Next == nil {
		t.Fatalf("%d items, next %v", len(page.Items), page.Next)
	}
	close(step)
	req.Browse.Next = page.Next
	if got, _ := browseAll(t, s, req, nil); !slices.Equal(got, sorted[100:]) {
		t.Fatalf("got %d entries", len(got))
	}
}

// TestTooManyToSort: beyond maxBrowseEntries a listing by size is one by path. One that has begun by size stays so.
func TestTooManyToSort(t *testing.T) {
	t.Parallel()
	for _, n := range []int{30, 6000} {
		base := t.TempDir()
		sorted := largeDirectory(t, base, n)
		bySize := func(p *providerapi.BrowseParams) { p.SortBy, p.ItemsPerPage = ptr(providerapi.SortBySize), 1000 }
		s := newService(t, func(o *Options) { o.Settings.MaxBrowseEntries = n - 1; o.Now = later })
		for range 2 {
			if got, _ := browseAll(t, s, browseRequest(base, "", bySize), nil); !slices.Equal(got, sorted) {
				t.Errorf("%d entries: not sorted by path", n)
			}
		}
		s.SetSettings(Settings{MaxBrowseEntries: n})
		age(t, base) // another version of the directory
		small := func(p *providerapi.BrowseParams) { bySize(p); p.ItemsPerPage = 25 }
		req := browseRequest(base, "", small)
		changed := false
		got, _ := browseAll(t, s, req, func(int) {
			if !changed {
				s.SetSettings(Settings{MaxBrowseEntries: n / 2})
				age(t, base)
				changed = true
			}
		})
		if len(got) != n || slices.Equal(got, sorted) {
			t.Errorf("%d entries: %d in the order by size", n, len(got))
		}
	}
}

// TestHungFileSystem fills the slots of a drive with operations that do not return.
func TestHungFileSystem(t *testing.T) {
	t.Parallel()
	s := newService(t, func(o *Options) { o.MaxBlocked = 3; o.Timeout = 50 * time.Millisecond })
	s.gate.patience = 10 * time.Millisecond
	hang := make(chan struct{})
	var discarded atomic.Int32
	try := func(drive string, work func() (int, error)) error {
		ctx, cancel := context.WithTimeout(context.Background(), s.o.Timeout)
		defer cancel()
		_, err := run(ctx, s.gate, drive, work, func(int) { discarded.Add(1) })
		return err
	}
	blocked := func() (int, error) { <-hang; return 1, nil }
	for i := range 5 {
		start := time.Now()
		if err := try("/dead", blocked); !failure.Is(err, failure.NotFound) {
			t.Fatalf("operation %d: %v", i, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("operation %d took %v", i, took)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := run(ctx, s.gate, "/alive", func() (int, error) { return 1, nil }, nil); err != nil {
		t.Errorf("another drive: %v", err)
	}
	soon, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := s.Close(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close while operations hang: %v", err)
	}
	close(hang)
	testkit.Eventually(t, "the slots to be free again", func() bool {
		s.gate.mu.Lock()
		defer s.gate.mu.Unlock()
		return len(s.gate.lanes) == 0
	})
	if n := discarded.Load(); n != 3 {
		t.Errorf("%d late results were discarded", n)
	}
}

func TestPanicOfAnOperationIsAnError(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := run(ctx, s.gate, "/x", func() (int, error) { panic("bug") }, nil)
	if got := failure.KindOf(s.refuse(ctx, err, reading)); got != failure.Internal {
		t.Fatalf("%v, kind %v", err, got)
	}
}

// TestWhichIndexServes is the table behind [cache.serves].
func TestWhichIndexServes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := newCache(1<<20, time.Minute, func() time.Time { return now })
	quiet := drives.Version{Dev: 1, Ino: 2, Mtime: now.Add(-time.Hour), Ctime: now.Add(-time.Hour)}
	busy := quiet
	busy.Mtime = now.Add(-time.Second)
	if racy(quiet, now) || !racy(busy, now) {
		t.Fatal("racy is wrong")
	}
	begun := func(process uint32, serial uint64) *pageToken {
		return &pageToken{generation: generation{process, serial}}
	}
	for name, tc := range map[string]struct {
		x    *index
		q    *query
		want bool
	}{
		"unchanged":                             {x: &index{version: quiet}, want: true},
		"changed":                               {x: &index{version: busy}},
		"changed within the clock's tick":       {x: &index{version: quiet, racy: true}},
		"begun with it":                         {x: &index{version: busy, racy: true}, q: &query{token: begun(1, 5)}, want: true},
		"begun before it":                       {x: &index{version: busy}, q: &query{token: begun(1, 4)}, want: true},
		"begun after it":                        {x: &index{version: busy}, q: &query{token: begun(1, 6)}},
		"begun after it, unchanged":             {x: &index{version: quiet}, q: &query{token: begun(1, 6)}, want: true},
		"begun in another process":              {x: &index{version: busy}, q: &query{token: begun(2, 1)}},
		"begun with it, long ago":               {x: &index{version: busy, scannedAt: now.Add(-maxIndexAge)}, q: &query{token: begun(1, 5)}},
		"by size, fresh":                        {x: &index{version: quiet}, q: &query{order: bySize}, want: true},
		"by size, old":                          {x: &index{version: quiet, scannedAt: now.Add(-maxStatAge - time.Second)}, q: &query{order: bySize}},
		"by size, old, begun":                   {x: &index{version: quiet, scannedAt: now.Add(-maxStatAge - time.Second)}, q: &query{order: bySize, token: begun(1, 5)}, want: true},
		"too many, at the beginning":            {x: &index{version: quiet, tooMany: true}, q: &query{order: bySize}, want: true},
		"too many, for one that has begun":      {x: &index{version: quiet, tooMany: true}, q: &query{order: bySize, token: begun(1, 5)}},
		"another section":                       {x: &index{version: quiet, section: section{far: &mark{name: []byte("m")}}}, q: &query{after: &mark{name: []byte("n")}}},
		"the section's end":                     {x: &index{version: quiet, section: section{far: &mark{name: []byte("m")}}}, q: &query{after: &mark{name: []byte("m")}}},
		"inside the section":                    {x: &index{version: quiet, section: section{far: &mark{name: []byte("m")}}}, q: &query{after: &mark{name: []byte("a")}}, want: true},
		"inside, in the other direction":        {x: &index{version: quiet, section: section{far: &mark{name: []byte("m")}}}, q: &query{after: &mark{name: []byte("a")}, descending: true}},
		"before the section":                    {x: &index{version: quiet, section: section{near: &mark{name: []byte("m")}}}, q: &query{after: &mark{name: []byte("a")}}},
		"at the beginning, section in mid-list": {x: &index{version: quiet, section: section{near: &mark{name: []byte("m")}}}},
	} {
		tc.x.generation = generation{1, 5}
		if tc.q == nil {
			tc.q = &query{}
		}
		if tc.x.scannedAt.IsZero() {
			tc.x.scannedAt = now
		}
		if got := c.serves(tc.x, tc.q, quiet); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
