//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
)

// crowd is the number of entries that nobody touches. `make bench` does the same with a million, without the others.
const crowd = 50_000

// maxInstanceMemory is what an instance may have in memory while it lists a directory, whatever its size (design,
// "Numbers to design for").
const maxInstanceMemory = 32 << 10 // KiB

// TestCrowd pages through a large directory in every order, while other entries come, go, grow and are renamed: each
// entry that is there all the time is shown exactly once and in its place, and the memory of the instance stays flat.
func TestCrowd(t *testing.T) {
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.running(ada)
	d := w.desk(ada)
	s := openWorkshop(t, d.dir)
	s.must("crowd", unix.Mkdirat(s.dir, "crowd", 0o755))
	dir, err := unix.Openat(s.dir, "crowd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	w.must(err)
	defer unix.Close(dir)
	create := func(name string, size int) {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		w.must(err)
		if size > 0 {
			w.must(unix.Ftruncate(fd, int64(size)))
		}
		w.must(unix.Close(fd))
	}
	type fixed struct {
		size int64
		ms   int64
	}
	stay := make(map[string]fixed, crowd)
	for i := range crowd {
		// Names in which upper and lower case, long and short, valid and invalid take turns.
		name := fmt.Sprintf("%s%05d%s", [...]string{"stay", "Stay", "s", "Ärger", "\xff"}[i%5], i*7919%crowd, strings.Repeat("x", i%40))
		n := fixed{size: int64(i * 31 % 1000), ms: 1_600_000_000_000 + int64(i*17%5000)*1000}
		create(name, int(n.size))
		at := unix.NsecToTimespec(n.ms * 1e6)
		w.must(unix.UtimesNanoAt(dir, name, []unix.Timespec{at, at}, 0))
		stay[d.id("crowd/"+name)] = n
	}
	for i := range crowd / 10 {
		create(fmt.Sprintf("%05d comes and goes", i), 0)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	changes := 0
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ; ; changes++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			old, fresh := fmt.Sprintf("%05d comes and goes", changes%(crowd/10)), fmt.Sprintf("zz%05d came", changes)
			switch changes % 3 {
			case 0:
				_ = unix.Unlinkat(dir, old, 0) // may be gone
			case 1:
				_ = unix.Renameat(dir, old, dir, fresh)
			case 2:
				create(old, changes%2000)
			}
		}
	})

	pid := w.instances()[ada.name].PID
	w.must(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)) // the peak begins anew (proc(5))
	for _, how := range []listing{
		{perPage: 250},
		{sort: providerapi.SortByPath, direction: providerapi.SortDescending, perPage: 250},
		{sort: providerapi.SortBySize, direction: providerapi.SortAscending, perPage: 250},
		{sort: providerapi.SortByModifiedAt, direction: providerapi.SortDescending, perPage: 250},
	} {
		shown := make(map[string]bool, crowd)
		var last *providerapi.File
		var next *string
		begun, first, pages := time.Now(), time.Duration(0), 0
		for more := true; more; more = next != nil {
			var page providerapi.Page[providerapi.File]
			if err := w.core.Call(ctx, ada.name, http.MethodPost, "/ucloud/"+provider+"/files/browse", d.browseBody("crowd", how, next), &page); err != nil {
				t.Fatalf("%+v, page %d: %v", how, pages+1, err)
			}
			if pages++; pages == 1 {
				first = time.Since(begun)
			}
			if len(page.Items) > how.perPage {
				t.Fatalf("%+v: a page of %d entries", how, len(page.Items))
			}
			for i := range page.Items {
				f := &page.Items[i]
				n, untouched := stay[f.ID]
				if !untouched {
					continue
				}
				if shown[f.ID] {
					t.Errorf("%+v shows %q twice", how, f.ID)
				}
				shown[f.ID] = true
				if *f.Status.SizeInBytes != n.size || int64(f.Status.ModifiedAt) != n.ms {
					t.Errorf("%+v: %q is described as %+v", how, f.ID, f.Status)
				}
				if last != nil && !inOrder(how, last, f) {
					t.Errorf("%+v shows %q after %q", how, f.ID, last.ID)
				}
				last = f
			}
			next = page.Next
		}
		if len(shown) != len(stay) {
			t.Errorf("%+v shows %d of %d untouched entries", how, len(shown), len(stay))
		}
		t.Logf("%+v: first page after %v, %d pages in %v", how, first.Round(time.Millisecond), pages, time.Since(begun).Round(time.Millisecond))
	}
	cancel()
	wg.Wait()
	peak := statusKiB(t, pid, "VmHWM")
	t.Logf("%d changes meanwhile; the instance had %d KiB at most", changes, peak)
	if peak > maxInstanceMemory {
		t.Errorf("the instance had %d KiB in memory", peak)
	}
	if now := w.instances()[ada.name].PID; now != pid {
		t.Error("the instance was replaced meanwhile")
	}
	if changes < 500 {
		t.Errorf("only %d changes", changes)
	}
}

// inOrder tells whether b may follow a (contract 10 section 5.1).
func inOrder(how listing, a, b *providerapi.File) bool {
	if how.direction == providerapi.SortDescending {
		a, b = b, a
	}
	var x, y int64
	switch how.sort {
	case providerapi.SortBySize:
		x, y = *a.Status.SizeInBytes, *b.Status.SizeInBytes
	case providerapi.SortByModifiedAt:
		x, y = int64(a.Status.ModifiedAt), int64(b.Status.ModifiedAt)
	}
	if x != y {
		return x < y
	}
	lower := func(f *providerapi.File) string { return strings.ToLower(path.Base(f.ID)) }
	return lower(a) <= lower(b)
}

// statusKiB reads a line of /proc/PID/status.
func statusKiB(t *testing.T, pid int, key string) (n int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(data), "\n"+key+":")
	if _, err := fmt.Sscan(rest, &n); err != nil || !found {
		t.Fatalf("no %s in the status of the process: %v", key, err)
	}
	return n
}
