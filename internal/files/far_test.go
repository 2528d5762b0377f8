package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// furnishFar is furnish with a second file system in the drive, at "far". It has all that "full" and some files have.
func furnishFar(t *testing.T, options string) (base, outside string) {
	t.Helper()
	base, outside = furnish(t)
	far := filepath.Join(base, "far")
	mountSmall(t, far, options)
	for _, d := range []string{"full/sub", "dir"} {
		check(t, os.MkdirAll(filepath.Join(far, d), 0o770))
	}
	for _, f := range []string{"a.txt", "full/f", "full/g"} {
		check(t, os.WriteFile(filepath.Join(far, f), []byte("far "+f), 0o660))
	}
	return base, outside
}

// TestMoveToAnotherFileSystem: a background task copies, flushes and removes; all policies hold.
func TestMoveToAnotherFileSystem(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, from, to string
		policy         providerapi.ConflictPolicy
		want           failure.Kind      // of the call; 0: success
		changed        map[string]string // where something else is afterwards; "" for nothing
	}{
		{name: "file", from: "a.txt", to: "far/new", policy: "REJECT", changed: map[string]string{"a.txt": "", "far/new": "a.txt"}},
		{name: "file rejected", from: "a.txt", to: "far/a.txt", policy: "REJECT", want: failure.Conflict},
		{name: "file renamed", from: "a.txt", to: "far/a.txt", policy: "RENAME", changed: map[string]string{"a.txt": "", "far/a(1).txt": "a.txt"}},
		{name: "file replaces", from: "a.txt", to: "far/a.txt", policy: "REPLACE", changed: map[string]string{"a.txt": "", "far/a.txt": "a.txt"}},
		{name: "file merged", from: "a.txt", to: "far/a.txt", policy: "MERGE_RENAME", changed: map[string]string{"a.txt": "", "far/a(1).txt": "a.txt"}},
		{name: "file back", from: "far/a.txt", to: "dir/x", policy: "REJECT", changed: map[string]string{"far/a.txt": "", "dir/x": "far a.txt"}},
		{name: "file on a folder", from: "a.txt", to: "far/dir", policy: "REPLACE", want: failure.Conflict},
		{name: "link", from: "out", to: "far/out", policy: "REJECT", changed: map[string]string{"out": "", "far/out": "link:../outside"}},
		{name: "link renamed", from: "out", to: "far/dir", policy: "RENAME", changed: map[string]string{"out": "", "far/dir(1)": "link:../outside"}},
		{name: "fifo", from: "fifo", to: "far/fifo", policy: "REJECT", want: failure.Invalid},
		{name: "folder", from: "full", to: "far/new", policy: "REJECT", changed: map[string]string{
			"full": "", "full/f": "", "full/sub": "", "far/new": "dir", "far/new/f": "full/f", "far/new/sub": "dir",
		}},
		{name: "folder rejected", from: "full", to: "far/full", policy: "REJECT", want: failure.Conflict},
		{name: "folder renamed", from: "full", to: "far/full", policy: "RENAME", changed: map[string]string{
			"full": "", "full/f": "", "full/sub": "", "far/full(1)": "dir", "far/full(1)/f": "full/f", "far/full(1)/sub": "dir",
		}},
		{name: "folder replaces an empty one", from: "full", to: "far/dir", policy: "REPLACE", changed: map[string]string{
			"full": "", "full/f": "", "full/sub": "", "far/dir/f": "full/f", "far/dir/sub": "dir",
		}},
		{name: "folder replaces a full one", from: "full", to: "far/full", policy: "REPLACE", want: failure.Conflict},
		{name: "folder replaces a file", from: "full", to: "far/a.txt", policy: "REPLACE", want: failure.Conflict},
		{name: "folder merged", from: "full", to: "far/full", policy: "MERGE_RENAME", changed: map[string]string{
			"full": "", "full/f": "", "full/sub": "", "far/full/f(1)": "full/f",
		}},
		{name: "folder on a file, merged", from: "dir", to: "far/a.txt", policy: "MERGE_RENAME", changed: map[string]string{
			"dir": "", "far/a(1).txt": "dir",
		}},
		{name: "no target folder", from: "a.txt", to: "far/none/x", policy: "REJECT", want: failure.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			base, outside := furnishFar(t, "size=1m")
			s, work := newWorking(t, base)
			want := walkDisk(t, base)
			before, _ := os.Lstat(filepath.Join(base, tc.from))
			err := moveOne(s, moveItem(base, tc.from, tc.to, tc.policy))
			if (tc.want == 0) != (err == nil) || (err != nil && !failure.Is(err, tc.want)) {
				t.Fatalf("got %v", err)
			}
			if tc.want != 0 && len(work.specs) != 0 || tc.want == 0 && (len(work.specs) != 1 || work.failed != nil) {
				t.Fatalf("%d tasks, %v", len(work.specs), work.failed)
			}
			for p, text := range tc.changed {
				if want[p] = text; text == "" {
					delete(want, p)
				}
			}
			if d := cmp.Diff(want, walkDisk(t, base)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			for p, text := range tc.changed {
				if now, err := os.Lstat(filepath.Join(base, p)); err == nil && text != "" && before.Mode().IsRegular() {
					if now.Mode() != before.Mode() || !now.ModTime().Equal(before.ModTime()) {
						t.Errorf("%s has mode %v and time %v", p, now.Mode(), now.ModTime())
					}
				}
			}
			if left := must(os.ReadDir(outside))(t); len(left) != 1 {
				t.Error("something was made outside")
			}
			if found := hidden(t, base); len(found) > 0 {
				t.Errorf("left behind: %q", found)
			}
		})
	}
}

// TestMoveTree moves a tree of all kinds of things away and back.
func TestMoveTree(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=100m")
	valuable(t, filepath.Join(base, "tree"))
	s, work := newWorking(t, base)
	want := snapshot(t, filepath.Join(base, "tree"))
	for _, way := range [][2]string{{"tree", "far/tree"}, {"far/tree", "dir/tree"}} {
		check(t, moveOne(s, moveItem(base, way[0], way[1], "RENAME")))
		if work.failed != nil {
			t.Fatal(work.failed)
		}
		if d := cmp.Diff(want, snapshot(t, filepath.Join(base, way[1]))); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		if content(base, way[0]) != "" {
			t.Errorf("%s is still there", way[0])
		}
	}
	if got := work.jobs[0].summary; got != fmt.Sprintf("%d files moved", len(want)-3) {
		t.Errorf("summary %q", got)
	}
	if spec := work.specs[0]; spec.Kind != kindMove || spec.Title != "Moving tree to /5012/far" || !spec.CanCancel || !spec.CanPause {
		t.Errorf("task: %+v", spec)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(base, "dir", "tree", "d"), 0o770) })
}

// TestMoveGoesOn: whenever a move is interrupted, nothing is lost, and the next attempt completes it.
func TestMoveGoesOn(t *testing.T) {
	t.Parallel()
	for _, stop := range []int{0, 1, 5, 20, 60, 80, 110, 115, 118, 121, 125, 150, 165} {
		t.Run(fmt.Sprint(stop), func(t *testing.T) {
			t.Parallel()
			base, _ := furnishFar(t, "size=100m")
			valuable(t, filepath.Join(base, "tree"))
			want := snapshot(t, filepath.Join(base, "tree"))
			s, work := newWorking(t, base)
			work.check = func(steps int) error {
				if steps > stop {
					return tasks.ErrInterrupted
				}
				return nil
			}
			item := moveItem(base, "tree", "far/tree", "REJECT")
			check(t, moveOne(s, item))
			if !errors.Is(work.failed, tasks.ErrInterrupted) {
				t.Fatalf("%v after %d steps", work.failed, work.jobs[0].steps)
			}
			// Everything is in one place at least, and whole.
			here := map[string]string{}
			if content(base, "tree") == "dir" {
				here = snapshot(t, filepath.Join(base, "tree"))
			}
			there := snapshot(t, filepath.Join(base, "far", "tree"))
			for p, what := range want {
				if !strings.HasPrefix(what, "d") && here[p] != what && there[p] != what {
					t.Errorf("%q is lost", p)
				}
			}
			j := work.jobs[0]
			for j.attempt = 2; ; j.attempt++ { // each attempt gets a little further
				j.steps, j.check = 0, func(steps int) error {
					if steps > 40*int(j.attempt) {
						return tasks.ErrInterrupted
					}
					return nil
				}
				err := work.run(context.Background(), 0)
				if err == nil {
					break
				}
				if !errors.Is(err, tasks.ErrInterrupted) {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(want, snapshot(t, filepath.Join(base, "far", "tree"))); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if content(base, "tree") != "" {
				t.Error("the source is still there")
			}
			if found := hidden(t, base); len(found) > 0 {
				t.Errorf("left behind: %q", found)
			}
		})
	}
}

// TestMoveThatFails keeps all of the source and names what is in the way.
func TestMoveThatFails(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=1m")
	check(t, unix.Mkfifo(filepath.Join(base, "full", "sub", "fifo"), 0o600))
	s, work := newWorking(t, base)
	before := snapshot(t, filepath.Join(base, "full"))
	check(t, moveOne(s, moveItem(base, "full", "far/new", "REJECT")))
	if got := failure.Why(work.failed); got != "1 of 2 files failed: this is not a regular file (full/sub/fifo). The originals were kept" {
		t.Errorf("got %q", got)
	}
	if d := cmp.Diff(before, snapshot(t, filepath.Join(base, "full"))); d != "" {
		t.Errorf("the source has changed:\n%s", d)
	}
	check(t, os.WriteFile(filepath.Join(base, "big"), bytes.Repeat([]byte("x"), 2<<20), 0o600))
	check(t, moveOne(s, moveItem(base, "big", "far/a.txt", "REPLACE")))
	if got := failure.Why(work.failed); !strings.Contains(got, "no space left on the storage (big)") {
		t.Errorf("got %q", got)
	}
	if content(base, "far/a.txt") != "far a.txt" || len(content(base, "big")) != 2<<20 {
		t.Error("the old file or the source is gone")
	}
	if found := hidden(t, base); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
}

// TestMoveOfWhatChanges: what is changed after it was copied is not removed, nor what has come.
func TestMoveOfWhatChanges(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=10m")
	for i := range 20 {
		check(t, os.WriteFile(filepath.Join(base, "full", fmt.Sprint(i)), []byte("x"), 0o600))
	}
	s, work := newWorking(t, base)
	changed := false
	work.check = func(int) error {
		if made, _ := os.ReadDir(filepath.Join(base, "far", "new")); changed || len(made) < 22 {
			return nil
		}
		changed = true // all have been copied
		check(t, os.WriteFile(filepath.Join(base, "full", "late"), []byte("late"), 0o600))
		check(t, os.WriteFile(filepath.Join(base, "full", "f"), []byte("changed meanwhile"), 0o600))
		return nil
	}
	check(t, moveOne(s, moveItem(base, "full", "far/new", "REJECT")))
	if got := failure.Why(work.failed); !changed || !strings.HasPrefix(got, "All was copied, but of the originals 2 could not be removed: it was changed while it was moved") {
		t.Errorf("got %q", got)
	}
	left := map[string]string{"f": "changed meanwhile", "late": "late"}
	if d := cmp.Diff(left, walkDisk(t, filepath.Join(base, "full"))); d != "" {
		t.Errorf("left in the source, -want +got:\n%s", d)
	}
	if content(base, "far/new/f") != "full/f" || content(base, "far/new/late") != "" {
		t.Error("the copy is something else")
	}
}

// TestRepeatedMoveToAnotherFileSystem: while the task is under way, the same call does nothing.
func TestRepeatedMoveToAnotherFileSystem(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=10m")
	s, work := newWorking(t, base)
	work.keep = true
	for range 3 {
		check(t, moveOne(s, moveItem(base, "full", "far/full", "RENAME")))
	}
	if len(work.specs) != 1 {
		t.Fatalf("%d tasks", len(work.specs))
	}
	check(t, work.run(context.Background(), 0))
	if content(base, "far/full(1)/f") != "full/f" || content(base, "far/full(2)") != "" {
		t.Error("it was not moved once")
	}
	if err := moveOne(s, moveItem(base, "full", "far/full", "RENAME")); !failure.Is(err, failure.NotFound) {
		t.Errorf("afterwards: %v", err)
	}
	// A task that was cancelled before it began is not believed in for long.
	check(t, moveOne(s, moveItem(base, "b.txt", "far/b.txt", "RENAME")))
	now := time.Now()
	s.now = func() time.Time { return now.Add(moveBelief + time.Second) }
	check(t, moveOne(s, moveItem(base, "b.txt", "far/b.txt", "RENAME")))
	if len(work.specs) != 3 {
		t.Errorf("%d tasks", len(work.specs))
	}
	// After a failure the user may try again.
	work.specs, work.jobs = nil, nil
	check(t, os.WriteFile(filepath.Join(base, "big"), bytes.Repeat([]byte("x"), 20<<20), 0o600))
	for range 2 {
		check(t, moveOne(s, moveItem(base, "big", "far/big", "RENAME")))
		if work.run(context.Background(), len(work.specs)-1) == nil {
			t.Error("20 MB fit into 10")
		}
	}
	if len(work.specs) != 2 {
		t.Errorf("%d tasks", len(work.specs))
	}
}

// TestTrashFromAnotherFileSystem: what cannot be renamed into the trash is moved there by a task.
func TestTrashFromAnotherFileSystem(t *testing.T) {
	t.Parallel()
	base, _ := furnishFar(t, "size=10m")
	s, work := newWorking(t, base)
	check(t, trashOne(s, base, "far/full"))
	check(t, trashOne(s, base, "far/a.txt"))
	if len(work.specs) != 2 || work.failed != nil {
		t.Fatalf("%d tasks, %v", len(work.specs), work.failed)
	}
	if content(base, "Trash/full/g") != "far full/g" || content(base, "far/full") != "" || content(base, "Trash/a.txt") != "far a.txt" {
		t.Error("it was not moved")
	}
	for name, path := range map[string]string{"full": "/5012/far/full", "a.txt": "/5012/far/a.txt"} {
		if got := content(base, "Trash/.ucloud-origin/"+name); !strings.Contains(got, "Path="+path+"\n") {
			t.Errorf("%s: origin %q", name, got)
		}
	}
	if spec := work.specs[0]; spec.Title != "Moving full to the trash" || spec.Icon != "trash" {
		t.Errorf("task: %+v", spec)
	}
}

// TestMergeByMove merges folders on one file system by renaming; nothing is copied.
func TestMergeByMove(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	for _, d := range []string{"x/sub/deep", "x/f", "y/sub"} {
		check(t, os.MkdirAll(filepath.Join(base, d), 0o770))
	}
	for _, f := range []string{"x/a", "x/sub/a", "x/sub/deep/a", "x/.old.ucloud-upload-0123456789abcdef", "y/a", "y/sub/a", "y/f"} {
		check(t, os.WriteFile(filepath.Join(base, f), []byte(f), 0o600))
	}
	inode := must(os.Stat(filepath.Join(base, "x/sub/deep/a")))(t)
	s, work := newWorking(t, base)
	check(t, moveOne(s, moveItem(base, "x", "y", "MERGE_RENAME")))
	if len(work.specs) != 1 || work.failed != nil {
		t.Fatalf("%d tasks, %v", len(work.specs), work.failed)
	}
	for p, want := range map[string]string{
		"x": "", "y/a": "y/a", "y/a(1)": "x/a", "y/sub/a": "y/sub/a", "y/sub/a(1)": "x/sub/a", "y/sub/deep/a": "x/sub/deep/a",
		"y/f": "y/f", "y/f(1)": "dir",
	} {
		if got := content(base, p); got != want {
			t.Errorf("%s is %q", p, got)
		}
	}
	if now := must(os.Stat(filepath.Join(base, "y/sub/deep/a")))(t); !os.SameFile(inode, now) {
		t.Error("it was copied")
	}
}

// TestProgressIsTrue: the percentage comes when everything has been counted, and grows.
func TestProgressIsTrue(t *testing.T) {
	t.Parallel()
	j := &fakeJob{}
	c := newTally(j, "copied")
	at := c.begin.Add(2 * time.Second)
	if p := c.progress(at); p.Percent != -1 || p.Body != "0 files" {
		t.Errorf("%+v", p)
	}
	c.add(3, 3000)
	c.find(amount{10, 5000}, false)
	if p := c.progress(at); p.Percent != -1 || p.Body != "3.00 kB/5.00 kB | 3 / 10 files" || p.Text != "1.50 kB/s | 1.50 files/s" {
		t.Errorf("%+v", p)
	}
	c.find(amount{20, 9000}, true)
	before := c.progress(at).Percent
	c.add(10, 3000)
	if p := c.progress(at); before <= 0 || p.Percent <= before || p.Percent >= 100 {
		t.Errorf("%v, %v", before, p.Percent)
	}
	c.add(20, 300_000) // more than was there at first
	if p := c.progress(at); p.Percent != 100 || p.Body != "306.00 kB/306.00 kB | 33 / 33 files" {
		t.Errorf("%+v", p)
	}
	empty := newTally(j, "copied")
	empty.find(amount{}, true)
	if p := empty.progress(at); p.Percent != -1 {
		t.Errorf("nothing at all is %v %%", p.Percent)
	}
}

// TestFailuresAreNamed: the end of a task says how many things failed and why, within the limits of the contract.
func TestFailuresAreNamed(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	j := &fakeJob{}
	c := newTally(j, "copied")
	c.add(309, 0)
	c.fail("data/x.bin", unix.EDQUOT)
	c.fail("data/"+strings.Repeat("y", 300), unix.EACCES)
	c.fail("data/z\n", unix.EIO)
	c.full = false
	err := s.conclude(context.Background(), c, "")
	if got := failure.Why(err); got != "3 of 312 files failed: the storage quota is used up (data/x.bin)" || !failure.Is(err, failure.PaymentRequired) {
		t.Errorf("%q, %v", got, err)
	}
	if got := j.last.Body; !strings.HasPrefix(got, "data/x.bin: the storage quota is used up; data/yyy") || !strings.HasSuffix(got, "data/z\n: the storage reported an error") {
		t.Errorf("body %q", got)
	}
	if passes := newTally(j, "copied"); fmt.Sprintf("%T", tasks.Transient(err)) == fmt.Sprintf("%T", err) {
		t.Error("what does not pass is tried again")
	} else {
		passes.fail("a", unix.ESTALE)
		passes.fail("b", unix.ETIMEDOUT)
		err := s.conclude(context.Background(), passes, "")
		if fmt.Sprintf("%T", tasks.Transient(err)) != fmt.Sprintf("%T", err) || failure.Why(err) != "2 of 2 files failed: the file has been removed meanwhile (a)" {
			t.Errorf("what passes is not tried again: %v", err)
		}
	}
	for range 1000 {
		c.fail(strings.Repeat("ü", 300), unix.EACCES)
	}
	err = s.conclude(context.Background(), c, "The originals were kept")
	if got := failure.Why(err); len([]rune(got)) > 200 || !strings.HasPrefix(got, "1003 of 1312 files failed") {
		t.Errorf("%q", got)
	}
	if got := j.last.Body; len([]rune(got)) > 1000 || !strings.Contains(got, "more") {
		t.Errorf("body of %d characters: %q", len(got), got)
	}
}
