package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/tasks"
)

// TestCopyKeeps what users expect, beside what TestCopyTree looks at: their own attributes, the times of links and the
// sticky bit. What could give rights away does not come along, and names of one file become files.
func TestCopyKeeps(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	tree := filepath.Join(base, "tree")
	check(t, os.MkdirAll(filepath.Join(tree, "shared"), 0o770))
	check(t, os.Chmod(filepath.Join(tree, "shared"), 0o777|os.ModeSticky|os.ModeSetgid))
	check(t, os.WriteFile(filepath.Join(tree, "run"), []byte("run"), 0o700))
	check(t, os.Chmod(filepath.Join(tree, "run"), 0o711|os.ModeSetuid|os.ModeSetgid))
	check(t, os.Link(filepath.Join(tree, "run"), filepath.Join(tree, "again")))
	check(t, os.Symlink("run", filepath.Join(tree, "link")))
	at := []unix.Timespec{{Sec: 1_400_000_000, Nsec: 7}, {Sec: 1_400_000_001, Nsec: 9}}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(tree, "link"), at, unix.AT_SYMLINK_NOFOLLOW))
	attributes := true
	for _, p := range []string{"run", "shared"} {
		if err := unix.Setxattr(filepath.Join(tree, p), "user.note", []byte("of "+p), 0); err != nil {
			t.Logf("the file system has no attributes: %v", err)
			attributes = false
		}
	}
	s, work := newWorking(t, base)
	check(t, copyOne(s, base, "tree", "copy", "REJECT"))
	if work.failed != nil {
		t.Fatal(work.failed)
	}
	stat := func(p string) (st unix.Stat_t) {
		check(t, unix.Lstat(filepath.Join(base, "copy", p), &st))
		return st
	}
	if st := stat("run"); st.Mode&0o7777 != 0o711 || st.Nlink != 1 || st.Ino == stat("again").Ino {
		t.Errorf("file: %+v", st)
	}
	if st := stat("shared"); st.Mode&0o3777 != 0o1777 {
		t.Errorf("folder: mode %o", st.Mode)
	}
	if st := stat("link"); st.Mtim != at[1] {
		t.Errorf("link: time %v", st.Mtim)
	}
	for _, p := range []string{"run", "shared"} {
		var value [100]byte
		n, err := unix.Getxattr(filepath.Join(base, "copy", p), "user.note", value[:])
		if attributes && (err != nil || string(value[:n]) != "of "+p) {
			t.Errorf("%s: attribute %q, %v", p, value[:max(n, 0)], err)
		}
	}
}

// TestKilledCopy: on a file system that knows only files with names, what a killed process has left of a copy goes with
// the next attempt; what belongs to others stays.
func TestKilledCopy(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s, work := newWorking(t, base)
	work.keep = true
	check(t, copyOne(s, base, "full", "new", "REJECT"))
	check(t, copyOne(s, base, "a.txt", "dir/a.txt", "REJECT"))
	check(t, os.Mkdir(filepath.Join(base, "new", "sub"), 0o1700))
	check(t, os.Chmod(filepath.Join(base, "new", "sub"), 0o700|os.ModeSticky))
	left := func(dir string, task int64) string {
		return filepath.Join(base, dir, fmt.Sprintf(".f.ucloud-upload-%08x01234567", task))
	}
	for _, p := range []string{left("new", 1), left("new/sub", 1), left("dir", 2), left("new", 3), left("dir", 1)} {
		check(t, os.WriteFile(p, []byte("half"), 0o600))
	}
	for i, j := range work.jobs {
		j.attempt = 2
		check(t, work.run(t.Context(), i))
	}
	found := hidden(t, base)
	if len(found) != 2 || !strings.Contains(strings.Join(found, " "), left("new", 3)) || !strings.Contains(strings.Join(found, " "), left("dir", 1)) {
		t.Errorf("left are %q", found)
	}
	if st := must(os.Stat(filepath.Join(base, "new", "sub")))(t); st.Mode().Perm() != must(os.Stat(filepath.Join(base, "full", "sub")))(t).Mode().Perm() || st.Mode()&os.ModeSticky != 0 {
		t.Errorf("the folder that was being filled has mode %v", st.Mode())
	}
	if content(base, "new/f") != "full/f" || content(base, "dir/a.txt") != "a.txt" {
		t.Error("not everything was copied")
	}
}

// TestPauseDuringCopy is about the promise that a file under way stops at the next few megabytes.
func TestPauseDuringCopy(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	f := must(os.Create(filepath.Join(base, "big")))(t)
	for i := range 64 {
		must(f.WriteAt([]byte(strings.Repeat("x", 1<<20)), int64(i)<<20))(t)
	}
	check(t, f.Close())
	s, work := newWorking(t, base)
	steps := 0
	work.check = func(n int) error { steps = n; return nil }
	begin := time.Now()
	check(t, copyOne(s, base, "big", "copy", "REJECT"))
	if work.failed != nil || steps < 10 {
		t.Errorf("it looked %d times in %v, %v", steps, time.Since(begin), work.failed)
	}
}

// TestEndedCopy: a folder in which no more will come has its mode, and one that will be filled is marked.
func TestEndedCopy(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{tasks.ErrCancelled, tasks.ErrInterrupted} {
		base, _ := furnish(t)
		for i := range 50 {
			check(t, os.WriteFile(filepath.Join(base, "full", "sub", fmt.Sprint(i)), []byte("x"), 0o600))
		}
		s, work := newWorking(t, base)
		work.check = func(steps int) error {
			if steps > 30 {
				return cause
			}
			return nil
		}
		check(t, copyOne(s, base, "full", "new", "REJECT"))
		if !errors.Is(work.failed, cause) {
			t.Fatal(work.failed)
		}
		st, err := os.Stat(filepath.Join(base, "new", "sub"))
		if err != nil {
			t.Fatal(err)
		}
		if marked := st.Mode()&os.ModeSticky != 0; marked != (cause == tasks.ErrInterrupted) {
			t.Errorf("%v: mode %v", cause, st.Mode())
		}
		if cause == tasks.ErrCancelled && !strings.HasPrefix(work.jobs[0].summary, "Cancelled. ") {
			t.Errorf("summary %q", work.jobs[0].summary)
		}
	}
}
