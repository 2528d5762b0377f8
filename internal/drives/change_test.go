package drives

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// stepVariants are the ways in which a file system lets us rename without replacing.
var stepVariants = map[string][]renameStep{
	"flag":        renameSteps,
	"no flag":     {renameByLink, renameByReservation},
	"neither":     {renameByReservation},
	"link refuse": {func(int, string, int, string) (bool, error) { return false, nil }, renameByReservation},
}

// TestRenameNewNeverReplaces is true for each way: what has the name keeps it, and nothing is left behind.
func TestRenameNewNeverReplaces(t *testing.T) {
	t.Parallel()
	for variant, steps := range stepVariants {
		for _, kind := range []string{"file", "dir", "full", "link", "fifo"} {
			base := t.TempDir()
			write(t, filepath.Join(base, "file"), "file")
			ok(t, os.Mkdir(filepath.Join(base, "dir"), 0o700))
			write(t, filepath.Join(base, "full", "x"), "x")
			ok(t, os.Symlink("nowhere", filepath.Join(base, "link")))
			ok(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o600))
			write(t, filepath.Join(base, "taken"), "taken")
			write(t, filepath.Join(base, "takendir", "y"), "y")
			ok(t, os.Mkdir(filepath.Join(base, "empty"), 0o700))
			ok(t, os.Symlink("nowhere", filepath.Join(base, "takenlink")))
			fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY, 0)
			ok(t, err)
			before, err := nodeAt(fd, kind)
			ok(t, err)
			for _, to := range []string{"taken", "takendir", "takenlink", "empty", kind} {
				if err := renameNewBy(fd, kind, fd, to, steps); !errors.Is(err, unix.EEXIST) {
					t.Errorf("%s: %s to %s: %v", variant, kind, to, err)
				}
			}
			if now, err := nodeAt(fd, kind); err != nil || !now.Same(before) {
				t.Errorf("%s: %s has changed: %v", variant, kind, err)
			}
			if text, _ := os.ReadFile(filepath.Join(base, "taken")); string(text) != "taken" {
				t.Errorf("%s: %s replaced a file", variant, kind)
			}
			ok(t, renameNewBy(fd, kind, fd, "new", steps))
			if now, err := nodeAt(fd, "new"); err != nil || !now.Same(before) {
				t.Errorf("%s: %s is not under its new name: %v", variant, kind, err)
			}
			if _, err := nodeAt(fd, kind); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: %s has its old name too: %v", variant, kind, err)
			}
			if err := renameNewBy(fd, "missing", fd, "other", steps); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: a missing file: %v", variant, err)
			}
			if _, err := nodeAt(fd, "other"); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: a failure left something: %v", variant, err)
			}
			unix.Close(fd)
		}
		// Into itself.
		base := t.TempDir()
		ok(t, os.MkdirAll(filepath.Join(base, "d", "sub"), 0o700))
		fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY, 0)
		ok(t, err)
		below, err := unix.Open(filepath.Join(base, "d", "sub"), unix.O_PATH|unix.O_DIRECTORY, 0)
		ok(t, err)
		if err := renameNewBy(fd, "d", below, "d", steps); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: into itself: %v", variant, err)
		}
		if left, _ := os.ReadDir(filepath.Join(base, "d", "sub")); len(left) != 0 {
			t.Errorf("%s: into itself left %s", variant, left[0].Name())
		}
		unix.Close(fd)
		unix.Close(below)
	}
}

// TestOneOfManyGetsTheName: whatever the way, of many that want one name exactly one gets it.
func TestOneOfManyGetsTheName(t *testing.T) {
	t.Parallel()
	for variant, steps := range stepVariants {
		base := t.TempDir()
		const n = 30
		for i := range n {
			write(t, filepath.Join(base, "f"+strings.Repeat("x", i)), "x")
		}
		fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY, 0)
		ok(t, err)
		var wg sync.WaitGroup
		won := make(chan int, n)
		for i := range n {
			wg.Go(func() {
				err := renameNewBy(fd, "f"+strings.Repeat("x", i), fd, "target", steps)
				if err == nil {
					won <- i
				} else if !errors.Is(err, unix.EEXIST) {
					t.Errorf("%s: %v", variant, err)
				}
			})
		}
		wg.Wait()
		if left, _ := os.ReadDir(base); len(won) != 1 || len(left) != n {
			t.Errorf("%s: %d got the name, %d files are left", variant, len(won), len(left))
		}
		unix.Close(fd)
	}
}

func TestInside(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(base, "a", "b", "c"), 0o700))
	ok(t, os.Mkdir(filepath.Join(base, "ab"), 0o700))
	ok(t, os.Symlink("a/b", filepath.Join(base, "link")))
	root, ref := openRoot(t, base, FollowDrive, true)
	top, err := at(t, root, ref, "").OpenPathDir()
	ok(t, err)
	defer top.Close()
	a, err := top.Node("a")
	ok(t, err)
	for rel, want := range map[string]bool{"": false, "a": true, "a/b/c": true, "ab": false, "link": true, "link/c": true} {
		dir, err := at(t, root, ref, rel).OpenPathDir()
		ok(t, err)
		if got, err := dir.Inside(a); err != nil || got != want {
			t.Errorf("%q: %v, %v", rel, got, err)
		}
		dir.Close()
	}
}

func TestChangesTakeSingleNames(t *testing.T) {
	t.Parallel()
	root, ref := openRoot(t, t.TempDir(), FollowDrive, true)
	dir, err := at(t, root, ref, "").OpenPathDir()
	ok(t, err)
	defer dir.Close()
	for _, bad := range []string{"", ".", "..", "a/b", "/a", "a\x00", strings.Repeat("x", 256)} {
		_, nodeErr := dir.Node(bad)
		for call, err := range map[string]error{
			"Rename from": Rename(dir, bad, dir, "x"), "Rename to": Rename(dir, "x", dir, bad), "Node": nodeErr,
			"RenameNew from": RenameNew(dir, bad, dir, "x"), "RenameNew to": RenameNew(dir, "x", dir, bad),
			"Remove": dir.Remove(bad, false), "Rmdir": dir.Remove(bad, true),
		} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%s(%q): %v", call, bad, err)
			}
		}
	}
}
