package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// searchIn makes a service that knows one drive.
func searchIn(t testing.TB, base string, change func(*Options)) *Service {
	t.Helper()
	return newService(t, func(o *Options) {
		o.FindDrive = func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
			if id != "5012" {
				return providerapi.Drive{}, failure.New(failure.NotFound, "unknown drive")
			}
			return testDrive(base), nil
		}
		if change != nil {
			change(o)
		}
	})
}

func searchFor(query, folder string, change func(*providerapi.FileFlags)) *providerapi.FilesSearch {
	req := &providerapi.FilesSearch{Query: query, CurrentFolder: &folder}
	if change != nil {
		change(&req.Flags)
	}
	return req
}

// collect runs a search to its end and gives the paths below the drive, sorted.
func collect(t testing.TB, s *Service, req *providerapi.FilesSearch) []string {
	t.Helper()
	var ids []string
	err := s.Search(context.Background(), req, func(files []providerapi.File) error {
		for _, f := range files {
			ids = append(ids, strings.TrimPrefix(f.ID, "/5012/"))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("search: %v", err)
	}
	slices.Sort(ids)
	return ids
}

func TestSearchFinds(t *testing.T) {
	t.Parallel()
	base, outside := t.TempDir(), t.TempDir()
	for _, dir := range []string{"Reports/2024/deep", ".hidden/sub", ".snapshot/report", "a/.zfs/report", "a/.snapshots", "node_modules/report", "Trash", "empty"} {
		check(t, os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	touch(t, base, "report.txt", "REPORT.TXT2", "my report.csv", ".report", "other", "Straße", "STRASSE", "ΟΔΥΣΣΕΎΣ", "οδυσσεύς", "K-kelvin", "İstanbul",
		"bad\xffname", "bad\U0010FEFFname", "e\u0301", "é", "new\nline", `qu"ote`, "snapshot")
	touch(t, base, "Reports/2024/deep/Report", "Reports/2024/deep/x.txt", ".hidden/sub/report", ".snapshot/report/report", "a/.zfs/report/report",
		"node_modules/report/report", "node_modules/x")
	touch(t, outside, "report outside")
	for to, name := range map[string]string{outside: "report-out", "Reports": "report-in", "nowhere": "report-dangling"} {
		check(t, os.Symlink(to, filepath.Join(base, name)))
	}
	check(t, unix.Mkfifo(filepath.Join(base, "report.fifo"), 0o600))
	s := searchIn(t, base, func(o *Options) { o.Settings.SearchExclude = []string{"node_modules"} })
	hide := func(f *providerapi.FileFlags) { f.FilterHiddenFiles = ptr(true) }
	for _, tc := range []struct {
		name, query, folder string
		flags               func(*providerapi.FileFlags)
		want                []string
	}{
		{"everything that contains it", "rEpOrT", "/5012", nil, []string{
			".hidden/sub/report", ".report", "REPORT.TXT2", "Reports", "Reports/2024/deep/Report", "my report.csv", "report-dangling", "report-in", "report-out", "report.fifo", "report.txt",
		}},
		{"hidden ones left out", "report", "/5012", hide, []string{
			"REPORT.TXT2", "Reports", "Reports/2024/deep/Report", "my report.csv", "report-dangling", "report-in", "report-out", "report.fifo", "report.txt",
		}},
		{"by extension", "report", "/5012", func(f *providerapi.FileFlags) { f.FilterByFileExtension = ptr("TXT") }, []string{"report.txt"}},
		{"by extension with a dot", "e", "/5012", func(f *providerapi.FileFlags) { f.FilterByFileExtension = ptr(".csv") }, []string{"my report.csv"}},
		{"below a folder, and itself", "report", "/5012/Reports/", nil, []string{"Reports", "Reports/2024/deep/Report"}},
		{"the folder through a link", "report", "/5012/report-in", nil, []string{"report-in", "report-in/2024/deep/Report"}},
		{"inside what is hidden", "report", "/5012/.hidden", hide, []string{".hidden/sub/report"}},
		{"a file", "report", "/5012/report.txt", nil, []string{"report.txt"}},
		{"another file", "report", "/5012/other", nil, nil},
		{"a fifo", "report", "/5012/report.fifo", nil, []string{"report.fifo"}},
		{"a link that leaves", "report", "/5012/report-out", nil, []string{"report-out"}},
		{"beyond a link that leaves", "report", "/5012/report-out/report outside", nil, nil},
		{"missing", "report", "/5012/none/at/all", nil, nil},
		{"a part is a file", "report", "/5012/other/x", nil, nil},
		{"unknown drive", "report", "/5013", nil, nil},
		{"not a drive", "report", "/x/y", nil, nil},
		{"excluded, but itself", "node", "/5012", nil, []string{"node_modules"}},
		{"begins in an excluded one", "x", "/5012/node_modules", nil, []string{"node_modules/x"}},
		{"snapshots never", "snapshots", "/5012", nil, nil},
		{"a file that is called like one", "snapshot", "/5012", nil, []string{"snapshot"}},
		{"sharp s", "straß", "/5012", nil, []string{"Straße"}},
		{"ascii", "strass", "/5012", nil, []string{"STRASSE"}},
		{"sigmas", "οδυσσεύσ", "/5012", nil, []string{"ΟΔΥΣΣΕΎΣ", "οδυσσεύς"}},
		{"kelvin", "k-KELVIN", "/5012", nil, []string{"K-kelvin"}},
		{"dotted i", "istan", "/5012", nil, []string{"İstanbul"}},
		{"not UTF-8", drives.Escape("d\xffn"), "/5012", nil, []string{drives.Escape("bad\xffname")}},
		{"what looks like an escape", drives.Escape("d\U0010FEFFn"), "/5012", nil, []string{drives.Escape("bad\U0010FEFFname")}},
		{"both", "BAD", "/5012", nil, []string{drives.Escape("bad\U0010FEFFname"), drives.Escape("bad\xffname")}},
		{"no normalisation", "é", "/5012", nil, []string{"é"}},
		{"line feed", "w\nL", "/5012", nil, []string{"new\nline"}},
		{"quote", `u"o`, "/5012", nil, []string{`qu"ote`}},
		{"too long", strings.Repeat("x", 5000), "/5012", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			slices.Sort(tc.want)
			if got := collect(t, s, searchFor(tc.query, tc.folder, tc.flags)); !slices.Equal(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// TestSearchDescribesLikeBrowse: the same entry looks the same in both.
func TestSearchDescribesLikeBrowse(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s := searchIn(t, base, nil)
	listed := map[string]providerapi.File{}
	for _, f := range must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t).Items {
		f.Status.AccessedAt = 0
		listed[f.ID] = f
	}
	found := 0
	check(t, s.Search(context.Background(), searchFor("t", "/5012", nil), func(files []providerapi.File) error {
		for _, f := range files {
			f.Status.AccessedAt = 0
			want, ok := listed[f.ID]
			if !ok {
				continue // deeper
			}
			found++
			if orZero(f.Status.SizeInBytes) != orZero(want.Status.SizeInBytes) {
				t.Errorf("%s has %v bytes, want %v", f.ID, f.Status.SizeInBytes, want.Status.SizeInBytes)
			}
			f.Status.SizeInBytes, want.Status.SizeInBytes = nil, nil
			if fmt.Sprintf("%+v", f) != fmt.Sprintf("%+v", want) {
				t.Errorf("search: %+v\nbrowse: %+v", f, want)
			}
		}
		return nil
	}))
	if found < 2 {
		t.Errorf("%d entries were compared", found)
	}
}

func TestSearchRefuses(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := searchIn(t, base, nil)
	for name, req := range map[string]*providerapi.FilesSearch{
		"no folder":    {Query: "x"},
		"empty folder": searchFor("x", "", nil),
		"no query":     searchFor("", "/5012", nil),
		"other drive":  searchFor("x", "/5012/../5013/x", nil),
		"climbs":       searchFor("x", "/5012/..", nil),
		"nul":          searchFor("x", "/5012/a\x00b", nil),
		"long name":    searchFor("x", "/5012/"+strings.Repeat("n", 256), nil),
		"long path":    searchFor("x", "/5012/"+strings.Repeat("n/", 2100), nil),
	} {
		err := s.Search(context.Background(), req, func([]providerapi.File) error { t.Errorf("%s: results", name); return nil })
		if !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSearchEveryEntryOnce: a tree that is wide, deep and full of folders, with all limits of the walk reached.
func TestSearchEveryEntryOnce(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	want := 0
	for i := range stackHigh + 500 {
		dir := filepath.Join(base, fmt.Sprintf("hit-%05d", i))
		check(t, os.Mkdir(dir, 0o700))
		want++
		if i%10 == 0 {
			for j := range 3 {
				check(t, os.Mkdir(filepath.Join(dir, fmt.Sprintf("hit-%d", j)), 0o700))
				want++
			}
		}
	}
	// Deeper than a path may be: what is beyond is not found, and nothing breaks.
	deep := must(unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
	name := strings.Repeat("d", 100)
	length := len("/5012")
	for range 60 {
		check(t, unix.Mkdirat(deep, name, 0o700))
		check(t, unix.Mkdirat(deep, "hit", 0o700))
		if length+len("/hit") <= drives.MaxPath-1 {
			want++
		}
		next := must(unix.Openat(deep, name, unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
		unix.Close(deep)
		deep = next
		length += len(name) + 1
	}
	unix.Close(deep)
	t.Cleanup(func() { removeDeep(base) })

	s := searchIn(t, base, func(o *Options) { o.Settings.SearchMaxResults = 1 << 20 })
	got := collect(t, s, searchFor("HIT", "/5012", nil))
	if n := len(slices.Compact(slices.Clone(got))); n != len(got) || n != want {
		t.Errorf("%d entries, %d different ones, want %d", len(got), n, want)
	}
	for _, id := range got {
		if len(id)+len("/5012/") > drives.MaxPath {
			t.Errorf("a path of %d bytes", len(id))
		}
	}
}

// removeDeep removes a tree whose paths are too long for os.RemoveAll of the test framework.
func removeDeep(base string) {
	for range 100 {
		if os.RemoveAll(base) == nil {
			return
		}
	}
}

// TestSearchStays: not into other file systems, and not round in circles.
func TestSearchStays(t *testing.T) {
	testkit.Require(t, testkit.Root)
	base := t.TempDir()
	for _, dir := range []string{"far", "loop", "a/up", "side", "b/x", "c/d/e/f"} {
		check(t, os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	touch(t, base, "b/x/hit", "hit", "c/d/hit")
	mount := func(what, where, kind string, flags uintptr) {
		t.Helper()
		testkit.Mount(t, what, filepath.Join(base, where), kind, flags, "")
	}
	mount("tmpfs", "far", "tmpfs", 0)
	touch(t, base, "far/hit")
	mount(base, "loop", "", unix.MS_BIND|unix.MS_REC)
	mount(base, "a/up", "", unix.MS_BIND)
	mount(filepath.Join(base, "b"), "side", "", unix.MS_BIND)
	mount(filepath.Join(base, "c", "d"), "c/d/e/f", "", unix.MS_BIND)
	s := searchIn(t, base, nil)
	want := []string{"b/x/hit", "c/d/hit", "hit", "side/x/hit"}
	if got := collect(t, s, searchFor("hit", "/5012", nil)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// From below, the mount leads to what is above.
	if got := collect(t, s, searchFor("hit", "/5012/a", nil)); len(got) != 0 {
		t.Errorf("in a: %q", got)
	}
	// The user may begin on the other side.
	if got, want := collect(t, s, searchFor("hit", "/5012/far", nil)), []string{"far/hit"}; !slices.Equal(got, want) {
		t.Errorf("on the other file system: %q", got)
	}
}

// TestSearchNeverLeavesTheDrive: somebody exchanges folders for links to the outside all the time.
func TestSearchNeverLeavesTheDrive(t *testing.T) {
	t.Parallel()
	const rounds, searched = 10_000, 3_000
	base, outside := t.TempDir(), t.TempDir()
	check(t, os.MkdirAll(filepath.Join(outside, "x", "y"), 0o755))
	touch(t, outside, "needle secret", "x/needle secret", "x/y/needle secret")
	for i := range 4 {
		check(t, os.MkdirAll(filepath.Join(base, fmt.Sprintf("d%d/x/y", i)), 0o755))
		touch(t, base, fmt.Sprintf("d%d/x/y/needle", i), fmt.Sprintf("d%d/x/needle", i))
		check(t, os.Symlink(outside, filepath.Join(base, fmt.Sprintf("l%d", i))))
		check(t, os.Symlink("../../"+filepath.Base(outside)+"/x", filepath.Join(base, fmt.Sprintf("m%d", i))))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var swaps atomic.Int64
	var wg sync.WaitGroup
	// By descriptors, so that what is outside is never brought in.
	top := must(unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
	defer unix.Close(top)
	var folders [4]int
	for i := range folders {
		folders[i] = must(unix.Open(filepath.Join(base, fmt.Sprintf("d%d", i)), unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
		defer unix.Close(folders[i])
	}
	exchange := func(a int, aName string, b int, bName string) {
		if unix.Renameat2(a, aName, b, bName, unix.RENAME_EXCHANGE) == nil {
			swaps.Add(1)
		}
	}
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			d := i % 4
			exchange(top, fmt.Sprintf("d%d", d), top, fmt.Sprintf("l%d", d))
			exchange(folders[d], "x", top, fmt.Sprintf("m%d", d))
			runtime.Gosched()
		}
	})
	s := searchIn(t, base, nil)
	found, wrong := 0, 0
	for i := 0; i < searched || swaps.Load() < rounds; i++ {
		err := s.Search(t.Context(), searchFor("needle", "/5012", nil), func(files []providerapi.File) error {
			for _, f := range files {
				found++
				if strings.Contains(f.ID, "secret") {
					if wrong++; wrong < 5 {
						t.Errorf("found %s", f.ID)
					}
				}
			}
			return nil
		})
		check(t, err)
	}
	cancel()
	wg.Wait()
	if found < searched {
		t.Errorf("%d results prove little", found)
	}
}

func TestSearchEnds(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for i := range 30 {
		dir := fmt.Sprintf("hit%02d", i)
		check(t, os.Mkdir(filepath.Join(base, dir), 0o700))
		for j := range 30 {
			touch(t, base, fmt.Sprintf("%s/hit%02d", dir, j))
		}
	}
	const all = 30 + 30*30
	req := searchFor("hit", "/5012", nil)

	t.Run("at most so many", func(t *testing.T) {
		t.Parallel()
		for _, most := range []int{1, 7, 250, 251, all - 1, all, all + 1} {
			s := searchIn(t, base, func(o *Options) { o.Settings.SearchMaxResults = most })
			if got := collect(t, s, req); len(got) != min(most, all) {
				t.Errorf("%d results of at most %d", len(got), most)
			}
		}
	})
	t.Run("bounded batches", func(t *testing.T) {
		t.Parallel()
		total, batches := 0, 0
		check(t, searchIn(t, base, nil).Search(t.Context(), req, func(f []providerapi.File) error {
			if len(f) == 0 || len(f) > searchBatch {
				t.Errorf("a batch of %d", len(f))
			}
			total += len(f)
			batches++
			time.Sleep(5 * time.Millisecond) // a slow receiver
			return nil
		}))
		if total != all || batches > 12 {
			t.Errorf("%d results in %d batches", total, batches)
		}
	})
	t.Run("time is up", func(t *testing.T) {
		t.Parallel()
		s := searchIn(t, base, func(o *Options) { o.Settings.SearchTimeout = 50 * time.Millisecond })
		begin := time.Now()
		check(t, s.Search(t.Context(), req, func([]providerapi.File) error { time.Sleep(60 * time.Millisecond); return nil }))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("the receiver is gone", func(t *testing.T) {
		t.Parallel()
		gone := errors.New("gone")
		calls := 0
		err := searchIn(t, base, nil).Search(t.Context(), req, func([]providerapi.File) error { calls++; return gone })
		if !errors.Is(err, gone) || calls != 1 {
			t.Errorf("%v after %d batches", err, calls)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := searchIn(t, base, nil).Search(ctx, req, func([]providerapi.File) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("the service ends", func(t *testing.T) {
		t.Parallel()
		s := searchIn(t, base, nil)
		err := s.Search(t.Context(), req, func([]providerapi.File) error {
			s.end()
			time.Sleep(50 * time.Millisecond) // the search hears of it by another goroutine
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("two at a time", func(t *testing.T) {
		t.Parallel()
		s := searchIn(t, base, nil)
		begun := make([]chan struct{}, 3)
		ends := make([]chan error, 3)
		release := make(chan struct{})
		for i := range 3 {
			begun[i], ends[i] = make(chan struct{}), make(chan error, 1)
			go func() {
				var once sync.Once
				ends[i] <- s.Search(context.Background(), req, func([]providerapi.File) error {
					once.Do(func() { close(begun[i]) })
					<-release
					return nil
				})
			}()
			<-begun[i]
		}
		close(release)
		for i, want := range []error{ErrSearchReplaced, nil, nil} {
			if err := <-ends[i]; !errors.Is(err, want) || (want == nil && err != nil) {
				t.Errorf("search %d: %v", i, err)
			}
		}
		if len(s.searches.running) != 0 {
			t.Errorf("%d searches are still counted", len(s.searches.running))
		}
		if got := collect(t, s, req); len(got) != all {
			t.Errorf("the next one found %d", len(got))
		}
	})
	t.Run("settings change", func(t *testing.T) {
		t.Parallel()
		s := searchIn(t, base, nil)
		s.SetSettings(Settings{SearchMaxResults: 3, SearchExclude: []string{"hit00"}})
		if got := collect(t, s, req); len(got) != 3 {
			t.Errorf("%d results", len(got))
		}
	})
}

// TestSearchOfAHungDrive: all slots of a drive are taken by calls that do not return. The search says so, soon.
func TestSearchOfAHungDrive(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := searchIn(t, base, func(o *Options) { o.MaxBlocked = 1; o.Timeout = 200 * time.Millisecond })
	leave := must(s.gate.enter(t.Context(), base))(t)
	err := s.Search(t.Context(), searchFor("x", "/5012", nil), func([]providerapi.File) error { return nil })
	if err == nil || !strings.Contains(failure.Why(err), "does not answer") {
		t.Errorf("%v", err)
	}
	leave()
	if err := s.Search(t.Context(), searchFor("x", "/5012", nil), func([]providerapi.File) error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestSearchMemory: nothing grows with the number of entries.
func TestSearchMemory(t *testing.T) {
	base := t.TempDir()
	for i := range 50 {
		dir := filepath.Join(base, fmt.Sprintf("dir%03d", i))
		check(t, os.Mkdir(dir, 0o700))
		fd := must(unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
		for j := range 100 {
			check(t, unix.Mknodat(fd, fmt.Sprintf("some file with a name %05d", j), unix.S_IFREG|0o600, 0))
		}
		unix.Close(fd)
	}
	s := searchIn(t, base, nil)
	collect(t, s, searchFor("nothing", "/5012", nil))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	collect(t, s, searchFor("nothing", "/5012", nil))
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 200<<10 {
		t.Errorf("%d bytes for 5,000 entries that do not match", n)
	}
}

// TestSearchedDriveIsRemembered: the server is asked once.
func TestSearchedDriveIsRemembered(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	touch(t, base, "x")
	asked := 0
	s := newService(t, func(o *Options) {
		o.FindDrive = func(context.Context, ident.DriveID) (providerapi.Drive, error) { asked++; return testDrive(base), nil }
	})
	for range 3 {
		if got := collect(t, s, searchFor("x", "//5012/./", nil)); !slices.Equal(got, []string{"x"}) {
			t.Errorf("%q", got)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// TestSearchFoldsLikeTheDefinition compares the quick comparison with a plain one.
func TestSearchFoldsLikeTheDefinition(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ query, name string }{
		{"a", "A"},
		{"A", "bab"},
		{"ss", "ß"},
		{"ß", "ẞ"},
		{"k", "\u212a"},
		{"\u212a", "k"},
		{"ſ", "S"},
		{"s", "ſ"},
		{"\xff", "\xff"},
		{"", "x"},
		{"ǆ", "Ǆ"},
		{"ǅ", "ǆ"},
		{"Ⱥ", "ⱥ"},
		{strings.Repeat("Ⱥ", 127), strings.Repeat("ⱥ", 85)},
		{"x", strings.Repeat("\xff", 255) + "x"},
	} {
		m := newMatcher(tc.query)
		plain := func(s string) string { return strings.Map(foldCase, s) }
		want := strings.Contains(plain(drives.Escape(tc.name)), plain(tc.query))
		if len(tc.name) <= drives.MaxName {
			if got := m.matches([]byte(tc.name)); got != want {
				t.Errorf("%q in %q: %v, want %v", tc.query, tc.name, got, want)
			}
		}
	}
}
