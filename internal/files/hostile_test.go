package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// hostileRounds is how many operations meet somebody who exchanges folders. FILES_HOSTILE_ROUNDS says another number.
func hostileRounds(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("FILES_HOSTILE_ROUNDS"))
	if err != nil {
		return 10_000
	}
	t.Logf("%d rounds", n)
	return n
}

// swapping exchanges folders in the drive for links to the outside and back until the test calls stop. exchange does so
// once.
func swapping(t *testing.T, base, outside string, dirs ...string) (exchange func(i int), stop func()) {
	t.Helper()
	links(base, outside)
	exchange = func(i int) {
		dir := filepath.Join(base, dirs[i/2%len(dirs)])
		with := filepath.Join(base, [2]string{"absolute", "relative"}[i/2/len(dirs)%2])
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, with, unix.RENAME_EXCHANGE)
		if errors.Is(err, unix.EXDEV) {
			_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, filepath.Join(base, "far", "absolute"), unix.RENAME_EXCHANGE)
		}
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			if i%3 == 0 {
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond) // so that operations get somewhere
			}
			exchange(i)
		}
	})
	return exchange, func() { close(end); wg.Wait() }
}

// links makes the links to the outside, again where they have been removed or exchanged.
func links(base, outside string) {
	for name, to := range map[string]string{"absolute": outside, "relative": "../outside", "far/absolute": outside} {
		_ = os.RemoveAll(filepath.Join(base, name))
		_ = os.Symlink(to, filepath.Join(base, name))
	}
}

// TestSwapRaces: whoever exchanges folders for links to the outside, while files and folders are moved, copied, merged,
// trashed and removed there, never gets a byte from outside into the drive, nor anything changed outside.
//
//attack:actor local user
//attack:does Exchanges folders for links while somebody deletes or copies a tree of a shared project.
//attack:control Trees are walked by descriptors.
//attack:remove internal/drives/walk.go: fd, err = openat2(d.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS) => fd, err = openat2(d.fd, rel, flags, 0)
//attack:remove internal/drives/temp.go: unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK => unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK
//attack:remove internal/drives/change.go: unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK => unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK
func TestSwapRaces(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	mountSmall(t, tmp, "size=100m") // so that it is about the calls, not about a disk
	base, outside := furnishIn(t, tmp)
	mountSmall(t, filepath.Join(base, "far"), "size=100m")
	const secret = "SECRET"
	for _, d := range []string{"sub/deep", "d"} {
		check(t, os.MkdirAll(filepath.Join(outside, d), 0o770))
	}
	for _, f := range []string{"f", "secret", "a.txt", "sub/deep/kept", "sub/f", "d/f"} {
		check(t, os.WriteFile(filepath.Join(outside, f), []byte(secret), 0o640))
	}
	want := snapshot(t, outside)
	s, work := newWorking(t, base)
	ctx := context.Background()

	move := func(from, to string, policy providerapi.ConflictPolicy) func() error {
		return func() error { return moveOne(s, moveItem(base, from, to, policy)) }
	}
	copying := func(from, to string, policy providerapi.ConflictPolicy) func() error {
		return func() error { return copyOne(s, base, from, to, policy) }
	}
	ops := []struct {
		name string
		do   func() error
	}{
		{"move in", move("a.txt", "d/a.txt", "REPLACE")},
		{"move out", move("d/a.txt", "a.txt", "REJECT")},
		{"move what is outside", move("d/secret", "stolen", "RENAME")},
		{"move a tree in", move("tree/sub", "d/sub", "RENAME")},
		{"merge", move("x", "d", "MERGE_RENAME")},
		{"move what is outside far", move("d/secret", "far/stolen", "RENAME")},
		{"move in far", move("x/sub", "far/d/sub", "MERGE_RENAME")},
		{"move a tree far", move("tree", "far/tree", "RENAME")},
		{"move a tree back", move("far/tree", "tree", "RENAME")},
		{"copy", copying("d", "new", "REPLACE")},
		{"copy what is outside", copying("d/secret", "stolen", "REPLACE")},
		{"copy in", copying("full", "d/full", "REPLACE")},
		{"copy a tree", copying("tree", "new/tree", "MERGE_RENAME")},
		{"copy a tree far", copying("tree", "far/new", "REPLACE")},
		{"copy a tree into one", copying("x", "tree", "MERGE_RENAME")},
		{"make", func() error {
			return s.CreateFolders(ctx, []providerapi.CreateFolder{folder(base, "d/made/deep", "REPLACE")})
		}},
		{"trash what is outside", func() error { return trashOne(s, base, "d/secret") }},
		{"trash from there", func() error { return trashOne(s, base, "d/a.txt") }},
		{"trash a tree", func() error { return trashOne(s, base, "tree") }},
		{"trash from far", func() error { return trashOne(s, base, "far/tree") }},
		{"empty the trash", func() error { return emptyOne(s, base, "Trash") }},
		{"delete what is outside", func() error { return deleteOne(s, "d/sub") }},
		{"delete a tree", func() error { return deleteOne(s, "new") }},
	}
	exchange, stop := swapping(t, base, outside, "d", "tree/d", "far/d", "x/d", "Trash/tree/d", "new/tree/d", "far/tree/d")
	// Between reading a folder and looking at what is in it is where it hurts most.
	work.check = func(int) error {
		if rand.IntN(8) == 0 {
			exchange(rand.IntN(1000))
		}
		return nil
	}
	done, refused := make([]int, len(ops)), 0
	for i := range hostileRounds(t) {
		k := i % len(ops)
		if k == 0 { // what earlier operations have taken away
			links(base, outside)
			for _, name := range []string{"new", "stolen", "tree(1)", "tree(2)", "far/stolen", "far/new", "far/tree(1)", "d(1)", "Trash/.ucloud-origin"} {
				check(t, os.RemoveAll(filepath.Join(base, name)))
			}
			for _, d := range []string{"d", "far/d", "tree/d/sub", "tree/sub/deep", "x/d", "x/sub"} {
				_ = os.MkdirAll(filepath.Join(base, d), 0o770) // it may be a link at the moment
			}
			for j := range 5 { // so that there is something between a folder and the reading of its name
				for _, d := range []string{"tree", "x"} {
					writeInside(base, fmt.Sprint(d, "/", j))
				}
			}
			for _, f := range []string{"a.txt", "tree/f", "tree/d/f", "x/d/f", "x/a.txt"} {
				writeInside(base, f)
			}
		}
		work.failed = nil
		err := ops[k].do()
		switch {
		case err == nil && work.failed == nil:
			done[k]++
		case failure.Is(err, failure.Internal), failure.Is(work.failed, failure.Internal):
			t.Errorf("%s: %v, %v", ops[k].name, err, work.failed)
		default:
			refused++
		}
		work.specs, work.jobs = nil, nil
	}
	stop()
	if got := snapshot(t, outside); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("outside has become %v", got)
	}
	check(t, filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if text, _ := os.ReadFile(path); string(text) == secret {
				t.Errorf("%s came from outside", path)
			}
		}
		return err
	}))
	for k, n := range done {
		if n == 0 {
			t.Logf("%s never succeeded", ops[k].name)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused: the race was not exercised")
	}
	t.Logf("%d refusals, successes %v", refused, done)
}

// writeInside writes a file in the drive without following a link.
func writeInside(base, rel string) {
	fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	f, err := unix.Openat2(fd, rel, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_CLOEXEC, Mode: 0o640, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return
	}
	_, _ = unix.Write(f, []byte("inside"))
	unix.Close(f)
}
