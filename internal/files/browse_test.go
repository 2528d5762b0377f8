package files

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// names are the last components of a page.
func names(page providerapi.Page[providerapi.File]) []string {
	out := make([]string, len(page.Items))
	for i, f := range page.Items {
		out[i] = filepath.Base(f.ID)
	}
	return out
}

// browseAll lists everything and gives the names in order. between is called after each page.
func browseAll(t tester, s *Service, req *providerapi.FilesBrowse, between func(page int)) (out []string, pages int) {
	t.Helper()
	for {
		page, err := s.Browse(context.Background(), req)
		if err != nil {
			t.Fatalf("page %d: %v", pages, err)
		}
		if len(page.Items) > page.ItemsPerPage {
			t.Fatalf("%d items on a page of %d", len(page.Items), page.ItemsPerPage)
		}
		out = append(out, names(page)...)
		if pages++; pages > 100_000 {
			t.Fatal("the listing does not end")
		}
		if page.Next == nil {
			return out, pages
		}
		if between != nil {
			between(pages)
		}
		req.Browse.Next = page.Next
	}
}

func TestBrowseDescribes(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.MkdirAll(filepath.Join(base, "Trash", "Jobs"), 0o750))
	check(t, os.Mkdir(filepath.Join(base, "Jobs"), 0o750))
	check(t, os.Mkdir(filepath.Join(base, "UCloud Jobs"), 0o750))
	check(t, os.Symlink("Trash", filepath.Join(base, "bin")))
	check(t, os.Symlink("/etc", filepath.Join(base, "etc")))
	check(t, os.Symlink("nowhere", filepath.Join(base, "dangling")))
	check(t, os.WriteFile(filepath.Join(base, "b\xff.txt"), []byte("12345"), 0o640))
	check(t, os.Chmod(filepath.Join(base, "b\xff.txt"), 0o4640))
	check(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o600))
	when := time.UnixMilli(1_700_000_000_123)
	check(t, os.Chtimes(filepath.Join(base, "b\xff.txt"), when.Add(time.Hour), when))
	check(t, os.Chtimes(filepath.Join(base, "Trash"), time.UnixMilli(-1500), time.UnixMilli(-1500)))

	s := newService(t, func(o *Options) { o.Settings.JobFolder = "UCloud Jobs" })
	page := must(s.Browse(context.Background(), browseRequest(base, "", nil)))(t)
	byName := map[string]providerapi.File{}
	for _, f := range page.Items {
		byName[strings.TrimPrefix(f.ID, "/5012/")] = f
	}
	if got, want := slices.Sorted(maps.Keys(byName)), []string{
		"Jobs", "Trash", "UCloud Jobs", "bin", "b\U0010FEFF.txt", "dangling", "etc", "fifo",
	}; !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	if page.ItemsPerPage != 250 || page.Next != nil {
		t.Errorf("page: %d, %v", page.ItemsPerPage, page.Next)
	}
	f := byName["b\U0010FEFF.txt"]
	if st := f.Status; st.Type != providerapi.TypeFile || *st.SizeInBytes != 5 || st.ModifiedAt != 1_700_000_000_123 ||
		st.AccessedAt != 1_700_003_600_123 || st.UnixMode != 0o640 || int(st.UnixOwner) != os.Getuid() || st.Icon != "" {
		t.Errorf("file: %+v", st)
	}
	for name, icon := range map[string]string{
		"Trash": providerapi.IconTrash, "Jobs": providerapi.IconJobs, "UCloud Jobs": providerapi.IconJobs, "bin": "",
	} {
		if st := byName[name].Status; st.Type != providerapi.TypeDirectory || st.Icon != icon || st.SizeInBytes != nil {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if got := byName["Trash"].Status.ModifiedAt; got != -1500 {
		t.Errorf("time before 1970: %d", got)
	}
	for _, name := range []string{"etc", "dangling", "fifo"} {
		if st := byName[name].Status; st.Type != providerapi.TypeFile || st.SizeInBytes == nil || *st.SizeInBytes != 0 {
			t.Errorf("%s: %+v", name, st)
		}
	}

	// Deeper down the names mean nothing.
	page = must(s.Browse(context.Background(), browseRequest(base, "Trash", nil)))(t)
	if len(page.Items) != 1 || page.Items[0].ID != "/5012/Trash/Jobs" || page.Items[0].Status.Icon != "" {
		t.Errorf("below: %+v", page.Items)
	}
	// The same through a link inside the drive, under the path that was asked for.
	page = must(s.Browse(context.Background(), browseRequest(base, "bin/../bin//", nil)))(t)
	if len(page.Items) != 1 || page.Items[0].ID != "/5012/bin/Jobs" {
		t.Errorf("through a link: %+v", page.Items)
	}
}

func TestBrowseErrors(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	touch(t, base, "file")
	check(t, os.Symlink("/", filepath.Join(base, "out")))
	check(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o600))
	s := newService(t, nil)
	for name, tc := range map[string]struct {
		rel    string
		change func(*providerapi.FilesBrowse)
		want   failure.Kind
	}{
		"missing":           {rel: "missing", want: failure.NotFound},
		"file":              {rel: "file", want: failure.NotFound},
		"fifo":              {rel: "fifo", want: failure.NotFound},
		"below a file":      {rel: "file/x", want: failure.NotFound},
		"link to outside":   {rel: "out", want: failure.Forbidden},
		"through a link":    {rel: "out/etc", want: failure.Forbidden},
		"no path":           {change: func(r *providerapi.FilesBrowse) { r.Browse.Flags.Path = nil }, want: failure.Invalid},
		"other drive":       {change: func(r *providerapi.FilesBrowse) { r.Browse.Flags.Path = ptr("/7") }, want: failure.Invalid},
		"other provider":    {change: func(r *providerapi.FilesBrowse) { r.ResolvedCollection.Specification.Product.Provider = "x" }, want: failure.Invalid},
		"unknown order":     {change: func(r *providerapi.FilesBrowse) { r.Browse.SortBy = ptr("COLOUR") }, want: failure.Invalid},
		"unknown direction": {change: func(r *providerapi.FilesBrowse) { r.Browse.SortDirection = ptr("up") }, want: failure.Invalid},
		"bad token":         {change: func(r *providerapi.FilesBrowse) { r.Browse.Next = ptr("250x") }, want: failure.Invalid},
		"twenty digits":     {change: func(r *providerapi.FilesBrowse) { r.Browse.Next = ptr("00000000000000000050") }, want: failure.Invalid},
		"negative position": {change: func(r *providerapi.FilesBrowse) { r.Browse.Next = ptr("-50") }, want: failure.Invalid},
		"token of another order": {change: func(r *providerapi.FilesBrowse) {
			r.Browse.Next = ptr((&pageToken{order: bySize, asked: bySize}).encode())
		}, want: failure.Invalid},
		"no such base": {change: func(r *providerapi.FilesBrowse) {
			r.ResolvedCollection.ProviderGeneratedID = "hpc-x\n" + base + "/nowhere"
		}, want: failure.NotFound},
	} {
		req := browseRequest(base, tc.rel, nil)
		if tc.change != nil {
			tc.change(req)
		}
		if page, err := s.Browse(context.Background(), req); !failure.Is(err, tc.want) {
			t.Errorf("%s: %v, %v", name, page.Items, err)
		} else if strings.Contains(failure.Why(err), base) {
			t.Errorf("%s: the answer shows a local path: %s", name, failure.Why(err))
		}
	}
}

func TestPageSizeIsClamped(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for i := range 1100 {
		touch(t, base, fmt.Sprint(i))
	}
	s := newService(t, nil)
	for asked, want := range map[int]int{-5: 50, 0: 50, 1: 1, 50: 50, 1000: 1000, 1001: 1000, 1 << 40: 1000} {
		page := must(s.Browse(context.Background(), browseRequest(base, "", func(p *providerapi.BrowseParams) { p.ItemsPerPage = asked })))(t)
		if page.ItemsPerPage != want || len(page.Items) != want || page.Next == nil {
			t.Errorf("%d: %d items, itemsPerPage %d", asked, len(page.Items), page.ItemsPerPage)
		}
	}
	// A page that ends exactly with the last entry has no successor.
	got, pages := browseAll(t, s, browseRequest(base, "", func(p *providerapi.BrowseParams) { p.ItemsPerPage = 100 }), nil)
	if len(got) != 1100 || pages != 11 {
		t.Errorf("%d entries on %d pages", len(got), pages)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	touch(t, base, "a.txt", ".hidden.txt", "B.TXT", "c.png", "txt", ".txt", "d.tar.gz", "e.", "f")
	s := newService(t, nil)
	for name, tc := range map[string]struct {
		hidden bool
		ext    string
		want   string
	}{
		"all":              {want: ".hidden.txt .txt a.txt B.TXT c.png d.tar.gz e. f txt"},
		"no hidden files":  {hidden: true, want: "a.txt B.TXT c.png d.tar.gz e. f txt"},
		"extension":        {ext: "txt", want: ".hidden.txt a.txt B.TXT"},
		"with dot":         {ext: ".TXT", hidden: true, want: "a.txt B.TXT"},
		"double extension": {ext: "tar.gz", want: "d.tar.gz"},
		"none":             {ext: "zip", want: ""},
	} {
		page := must(s.Browse(context.Background(), browseRequest(base, "", func(p *providerapi.BrowseParams) {
			p.Flags.FilterHiddenFiles, p.Flags.FilterByFileExtension = &tc.hidden, &tc.ext
		})))(t)
		if got := strings.Join(names(page), " "); got != tc.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestNoLookAtInodes: a client that wants neither sizes nor times nor owners gets the types alone.
func TestNoLookAtInodes(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	check(t, os.WriteFile(filepath.Join(base, "file"), []byte("x"), 0o600))
	check(t, os.Mkdir(filepath.Join(base, "Trash"), 0o700))
	check(t, os.Symlink("Trash", filepath.Join(base, "link")))
	s := newService(t, nil)
	page := must(s.Browse(context.Background(), browseRequest(base, "", func(p *providerapi.BrowseParams) {
		p.Flags.IncludeSizes, p.Flags.IncludeTimestamps, p.Flags.IncludeUnixInfo = nil, nil, ptr(false)
	})))(t)
	if got := names(page); !slices.Equal(got, []string{"file", "link", "Trash"}) {
		t.Fatalf("got %q", got)
	}
	if st := page.Items[0].Status; st.Type != providerapi.TypeFile || st.SizeInBytes != nil || st.ModifiedAt != providerapi.UnsetMillis {
		t.Errorf("file: %+v", st)
	}
	if st := page.Items[1].Status; st.Type != providerapi.TypeDirectory {
		t.Errorf("link: %+v", st)
	}
	if st := page.Items[2].Status; st.Type != providerapi.TypeDirectory || st.Icon != providerapi.IconTrash {
		t.Errorf("trash: %+v", st)
	}
}

func TestSortOrders(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for name, size := range map[string]int{"b": 3, "A": 10, "c": 3, "D": 0} {
		check(t, os.WriteFile(filepath.Join(base, name), make([]byte, size), 0o600))
		at := time.UnixMilli(int64(1_700_000_000_000 - 1000*size))
		check(t, os.Chtimes(filepath.Join(base, name), at, at))
	}
	s := newService(t, nil)
	for _, tc := range []struct{ by, direction, want string }{
		{"", "", "A b c D"},
		{"PATH", "ascending", "A b c D"},
		{"PATH", "descending", "D c b A"},
		{"SIZE", "", "D b c A"},
		{"SIZE", "descending", "A c b D"},
		{"MODIFIED_AT", "ascending", "A b c D"},
		{"MODIFIED_AT", "descending", "D c b A"},
	} {
		for _, size := range []int{1, 2, 3, 50} {
			got, _ := browseAll(t, s, browseRequest(base, "", func(p *providerapi.BrowseParams) {
				p.SortBy, p.SortDirection, p.ItemsPerPage = &tc.by, &tc.direction, size
			}), nil)
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%s %s by %d: %q", tc.by, tc.direction, size, got)
			}
		}
	}
}

// TestPagingWhileEntriesComeAndGo is the promise of the page token: whatever happens in the directory, to the cache or
// to the instance, an entry that is there all the time is listed exactly once, and in its place.
func TestPagingWhileEntriesComeAndGo(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		base := must(os.MkdirTemp("", "files-paging-"))(t)
		defer os.RemoveAll(base)
		all := rapid.SliceOfNDistinct(fileName(), 1, 60, rapid.ID).Draw(t, "names")
		stable := all[:rapid.IntRange(0, len(all)).Draw(t, "stable")]
		moving := all[len(stable):]
		by := rapid.SampledFrom([]string{"PATH", "SIZE", "MODIFIED_AT"}).Draw(t, "by")
		sizes := map[string]int{}
		for _, n := range all {
			sizes[n] = rapid.IntRange(0, 3).Draw(t, "size")
			check(t, os.WriteFile(filepath.Join(base, n), make([]byte, sizes[n]), 0o600))
			at := time.Unix(int64(1_700_000_000+sizes[n]), 0)
			check(t, os.Chtimes(filepath.Join(base, n), at, at))
		}
		descending := rapid.Bool().Draw(t, "descending")
		newOne := func() *Service { return New(quietOptions()) }
		s := newOne()
		defer func() { _ = s.Close(context.Background()) }()
		req := browseRequest(base, "", func(p *providerapi.BrowseParams) {
			p.ItemsPerPage, p.SortBy = rapid.IntRange(1, 20).Draw(t, "page"), &by
			if descending {
				p.SortDirection = ptr(providerapi.SortDescending)
			}
		})
		got, _ := browseAll(t, s, req, func(int) {
			for _, n := range moving {
				switch rapid.IntRange(0, 4).Draw(t, "what") {
				case 0:
					_ = os.Remove(filepath.Join(base, n))
				case 1:
					_ = os.WriteFile(filepath.Join(base, n), make([]byte, 2), 0o600)
				case 2:
					_ = os.Rename(filepath.Join(base, n), filepath.Join(base, moving[0]))
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				_ = s.Close(context.Background())
				s = newOne()
			}
		})
		var kept []string
		for _, text := range got {
			name := unescape(t, text)
			if slices.Contains(stable, name) {
				kept = append(kept, name)
			}
		}
		want := slices.Clone(stable)
		slices.SortFunc(want, func(a, b string) int {
			if by != "PATH" && sizes[a] != sizes[b] {
				return sizes[a] - sizes[b]
			}
			return modelCompare(a, b)
		})
		if descending {
			slices.Reverse(want)
		}
		if !slices.Equal(kept, want) {
			t.Fatalf("listed %q\n  want %q", kept, want)
		}
	})
}

// TestPositionsAreTokens: a client that began its listing at a provider whose tokens are positions goes on here.
func TestPositionsAreTokens(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	var want []string
	for i := range 120 {
		want = append(want, fmt.Sprintf("f%03d", i))
	}
	touch(t, base, want...)
	touch(t, base, ".hidden")
	s := newService(t, nil)
	for _, tc := range []struct {
		next, direction string
		from            int
	}{
		{"50", "", 50},
		{"0", "", 0},
		{"119", "", 119},
		{"120", "", 120},
		{"9999999999999999999", "", 120},
		{"50", providerapi.SortDescending, 50},
	} {
		got, pages := browseAll(t, s, browseRequest(base, "", func(p *providerapi.BrowseParams) {
			p.ItemsPerPage, p.Next, p.SortDirection, p.Flags.FilterHiddenFiles = 50, &tc.next, &tc.direction, ptr(true)
		}), nil)
		all := slices.Clone(want)
		if tc.direction != "" {
			slices.Reverse(all)
		}
		if !slices.Equal(got, all[tc.from:]) || pages != max(1, (120-tc.from+49)/50) {
			t.Errorf("%s %s: %d pages, %q", tc.next, tc.direction, pages, got)
		}
	}
}

// TestPositionInALargeDirectory: the entries to leave out may be more than the memory for an index holds.
func TestPositionInALargeDirectory(t *testing.T) {
	t.Parallel()
	const all, skip = 6_000, 4_500
	base := t.TempDir()
	for i := range all {
		touch(t, base, fmt.Sprintf("%05d-%s", i, strings.Repeat("x", 100)))
	}
	for name, change := range map[string]func(*Options){
		"enough memory": func(*Options) {},
		"little memory": func(o *Options) { o.IndexBytes = 1 << 18 },
	} {
		s := newService(t, change)
		got, _ := browseAll(t, s, browseRequest(base, "", func(p *providerapi.BrowseParams) {
			p.ItemsPerPage, p.Next = 500, ptr(fmt.Sprint(skip))
		}), nil)
		if len(got) != all-skip || !strings.HasPrefix(got[0], "04500-") || !strings.HasPrefix(got[len(got)-1], "05999-") || !slices.IsSorted(got) {
			t.Errorf("%s: %d entries, from %.6q to %.6q", name, len(got), got[0], got[len(got)-1])
		}
	}
}

// TestLargeDirectoryWhileEntriesComeAndGo does the same with directories that need an index, by several clients at a
// time, with little memory in one half of the cases.
func TestLargeDirectoryWhileEntriesComeAndGo(t *testing.T) {
	t.Parallel()
	const stable, moving = 8_000, 1_000
	base := t.TempDir()
	for i := range stable {
		touch(t, base, fmt.Sprintf("Stable-with-a-long-name-that-takes-memory-%05d", i))
	}
	for i := range moving {
		touch(t, base, fmt.Sprintf("moving-%05d", i))
	}
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		random := rand.New(rand.NewPCG(3, 4))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			for range 20 {
				name := filepath.Join(base, fmt.Sprintf("moving-%05d", random.IntN(moving)))
				if os.Remove(name) != nil {
					_ = os.WriteFile(name, nil, 0o600)
				}
			}
		}
	})
	var clients sync.WaitGroup
	for client := range 4 {
		clients.Go(func() {
			s := newService(t, func(o *Options) {
				o.ScanWait = time.Minute
				if client >= 2 {
					o.IndexBytes = 1 << 19 // everything would take a little more
				}
			})
			got, _ := browseAll(t, s, browseRequest(base, "", func(p *providerapi.BrowseParams) {
				p.ItemsPerPage = 1000
				if client%2 == 1 {
					p.SortDirection = ptr(providerapi.SortDescending)
				}
			}), nil)
			seen := map[string]int{}
			for _, n := range got {
				if seen[n]++; seen[n] > 1 {
					t.Errorf("client %d: %s was listed twice", client, n)
				}
			}
			for i := range stable {
				if n := fmt.Sprintf("Stable-with-a-long-name-that-takes-memory-%05d", i); seen[n] != 1 {
					t.Errorf("client %d: %s was listed %d times", client, n, seen[n])
					break
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	changes.Wait()
}
