package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

func copyOne(s *Service, base, from, to string, policy providerapi.ConflictPolicy) error {
	return s.Copy(context.Background(), []providerapi.MoveFile{moveItem(base, from, to, policy)})
}

// snapshot is everything about a tree that a copy preserves.
func snapshot(t tester, top string) map[string]string {
	out := map[string]string{}
	check(t, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, path)
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		what := content(top, rel)
		if st.Mode()&os.ModeSymlink == 0 {
			what = fmt.Sprintf("%v %v %s", st.Mode(), st.ModTime().UnixNano(), what)
		}
		out[rel] = what
		return nil
	}))
	return out
}

func hidden(t *testing.T, base string) (found []string) {
	t.Helper()
	check(t, filepath.WalkDir(base, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, ".ucloud-") {
			found = append(found, path)
		}
		return err
	}))
	return found
}

// valuable makes a tree with modes, times, links, a sparse file and names of all kinds.
func valuable(t *testing.T, top string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(top, "d", "e\xff\n"), 0o770))
	for i := range 50 {
		p := filepath.Join(top, "d", fmt.Sprintf("f %d", i))
		check(t, os.WriteFile(p, bytes.Repeat([]byte{byte(i)}, i*1000), 0o600))
		check(t, os.Chmod(p, fs.FileMode(0o400+i%8)))
		at := time.Unix(1_500_000_000+int64(i), int64(i)*1001)
		check(t, os.Chtimes(p, at, at))
	}
	check(t, os.WriteFile(filepath.Join(top, "d", "e\xff\n", "x\x80"), []byte("x"), 0o640))
	check(t, os.Symlink("/etc/passwd", filepath.Join(top, "d", "out")))
	check(t, os.Symlink("f 1", filepath.Join(top, "d", "link")))
	check(t, os.Symlink("gone", filepath.Join(top, "d", "dangling")))
	f := must(os.Create(filepath.Join(top, "sparse")))(t)
	must(f.WriteAt([]byte("middle"), 10<<20))(t)
	check(t, f.Truncate(30<<20))
	check(t, f.Close())
	check(t, os.Chmod(filepath.Join(top, "d"), 0o550))
	at := time.Unix(1_400_000_000, 5)
	check(t, os.Chtimes(filepath.Join(top, "d"), at, at))
	check(t, os.Chtimes(top, at, at))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(top, "d"), 0o770) })
}

func TestCopyTree(t *testing.T) {
	t.Parallel()
	base, _ := furnishIn(t, t.TempDir())
	valuable(t, filepath.Join(base, "tree"))
	s, work := newWorking(t, base)
	want := snapshot(t, filepath.Join(base, "tree"))
	for i, policy := range []providerapi.ConflictPolicy{"REJECT", "RENAME", "REPLACE", "MERGE_RENAME"} {
		to := filepath.Join("dir", fmt.Sprint(i))
		check(t, copyOne(s, base, "tree", to, policy))
		if work.failed != nil {
			t.Fatalf("%s: %v", policy, work.failed)
		}
		if d := cmp.Diff(want, snapshot(t, filepath.Join(base, to))); d != "" {
			t.Errorf("%s: -want +got:\n%s", policy, d)
		}
		var st unix.Stat_t
		check(t, unix.Stat(filepath.Join(base, to, "sparse"), &st))
		if st.Blocks*512 > 4<<20 {
			t.Errorf("%s: the sparse file takes %d bytes", policy, st.Blocks*512)
		}
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(base, to, "d"), 0o770) })
	}
	if d := cmp.Diff(want, snapshot(t, filepath.Join(base, "tree"))); d != "" {
		t.Errorf("the source has changed:\n%s", d)
	}
	if found := hidden(t, base); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
	folders := 3 // tree, d, and the one in it
	if got := work.jobs[0].summary; got != fmt.Sprintf("%d files copied", len(want)-folders) {
		t.Errorf("summary %q", got)
	}
	if spec := work.specs[0]; spec.Title != "Copying tree to /5012/dir" || spec.Icon != "copy" || !spec.CanCancel || !spec.CanPause {
		t.Errorf("task: %+v", spec)
	}
	// In its own folder a copy gets another name.
	check(t, copyOne(s, base, "tree", "tree", "RENAME"))
	if d := cmp.Diff(want, snapshot(t, filepath.Join(base, "tree(1)"))); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(base, "tree(1)", "d"), 0o770) })
}

func TestCopyPolicies(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, from, to string
		policy         providerapi.ConflictPolicy
		want           failure.Kind // of the call; 0: success
		fails          bool         // the task
		changed        map[string]string
	}{
		{name: "file", from: "a.txt", to: "c", policy: "REJECT", changed: map[string]string{"c": "a.txt"}},
		{name: "file renamed", from: "a.txt", to: "b.txt", policy: "RENAME", changed: map[string]string{"b(1).txt": "a.txt"}},
		{name: "file on itself", from: "a.txt", to: "a.txt", policy: "RENAME", changed: map[string]string{"a(1).txt": "a.txt"}},
		{name: "file merged", from: "a.txt", to: "b.txt", policy: "MERGE_RENAME", changed: map[string]string{"b(1).txt": "a.txt"}},
		{name: "file replaces", from: "a.txt", to: "b.txt", policy: "REPLACE", changed: map[string]string{"b.txt": "a.txt"}},
		{name: "file replaces itself", from: "a.txt", to: "a.txt", policy: "REPLACE"},
		{name: "file replaces a link", from: "a.txt", to: "out", policy: "REPLACE", changed: map[string]string{"out": "a.txt"}},
		{name: "link", from: "out", to: "new", policy: "REJECT", changed: map[string]string{"new": "link:../outside"}},
		{name: "link renamed", from: "out", to: "in", policy: "RENAME", changed: map[string]string{"in(1)": "link:../outside"}},
		{name: "link replaces", from: "dangling", to: "in", policy: "REPLACE", changed: map[string]string{"in": "link:missing"}},
		{name: "through a link", from: "in/f", to: "self/c", policy: "REJECT", changed: map[string]string{"c": "full/f"}},
		{name: "rejected", from: "a.txt", to: "b.txt", policy: "REJECT", want: failure.Conflict},
		{name: "folder rejected", from: "full", to: "dir", policy: "REJECT", want: failure.Conflict},
		{name: "folder renamed", from: "full", to: "dir", policy: "RENAME", changed: map[string]string{"dir(1)": "dir", "dir(1)/f": "full/f", "dir(1)/sub": "dir"}},
		{name: "folder merged", from: "Trash", to: "full", policy: "MERGE_RENAME", changed: map[string]string{"full/old": "Trash/old"}},
		{name: "folder merged, name taken", from: "clash", to: "full", policy: "MERGE_RENAME", changed: map[string]string{"full/f(1)": "dir", "full/sub(1)": "clash", "full/f(1)/x": "x"}},
		{name: "folder replaces, name taken", from: "clash", to: "full", policy: "REPLACE", fails: true},
		{name: "folder replaces a file", from: "dir", to: "a.txt", policy: "REPLACE", want: failure.Conflict},
		{name: "file replaces a folder", from: "a.txt", to: "dir", policy: "REPLACE", want: failure.Conflict},
		{name: "folder on a file, merged", from: "dir", to: "a.txt", policy: "MERGE_RENAME", changed: map[string]string{"a(1).txt": "dir"}},
		{name: "into itself", from: "full", to: "full/x", policy: "RENAME", want: failure.Invalid},
		{name: "into itself through a link", from: "full", to: "in/sub/x", policy: "RENAME", want: failure.Invalid},
		{name: "on itself, replacing", from: "full", to: "self/full", policy: "REPLACE", want: failure.Invalid},
		{name: "on itself, merging", from: "full", to: "full", policy: "MERGE_RENAME", want: failure.Invalid},
		{name: "fifo", from: "fifo", to: "c", policy: "REJECT", want: failure.Invalid},
		{name: "missing", from: "none", to: "c", policy: "REJECT", want: failure.NotFound},
		{name: "no target folder", from: "a.txt", to: "none/c", policy: "REJECT", want: failure.NotFound},
		{name: "from outside", from: "out/f", to: "c", policy: "REJECT", want: failure.Forbidden},
		{name: "to outside", from: "a.txt", to: "out/c", policy: "REJECT", want: failure.Forbidden},
		{name: "the drive", from: "", to: "c", policy: "REJECT", want: failure.Invalid},
		{name: "to the drive", from: "dir", to: "", policy: "REPLACE", want: failure.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			base, outside := furnish(t)
			check(t, os.MkdirAll(filepath.Join(base, "clash", "f"), 0o770))
			check(t, os.WriteFile(filepath.Join(base, "clash", "f", "x"), []byte("x"), 0o600))
			check(t, os.WriteFile(filepath.Join(base, "clash", "sub"), []byte("clash"), 0o600))
			s, work := newWorking(t, base)
			want := walkDisk(t, base)
			err := copyOne(s, base, tc.from, tc.to, tc.policy)
			if (tc.want == 0) != (err == nil) || (err != nil && !failure.Is(err, tc.want)) {
				t.Fatalf("got %v", err)
			}
			if (work.failed != nil) != tc.fails {
				t.Fatalf("the task: %v", work.failed)
			}
			for p, text := range tc.changed {
				want[p] = text
			}
			if d := cmp.Diff(want, walkDisk(t, base)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if left := must(os.ReadDir(outside))(t); len(left) != 1 {
				t.Error("something was made outside")
			}
		})
	}
}

func TestCopyNeedsPermissions(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s, work := newWorking(t, base)
	item := moveItem(base, "a.txt", "c", "REJECT")
	item.ResolvedNewCollection = testDrive(base, providerapi.PermissionRead)
	if err := s.Copy(context.Background(), []providerapi.MoveFile{item}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("target read only: %v", err)
	}
	item = moveItem(base, "a.txt", "c", "REJECT")
	item.ResolvedOldCollection = testDrive(base, "NONE")
	if err := s.Copy(context.Background(), []providerapi.MoveFile{item}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("source not readable: %v", err)
	}
	if len(work.specs) != 0 {
		t.Error("there is a task")
	}
	if err := copyOne(newService(t, nil), base, "full", "new", "REJECT"); !failure.Is(err, failure.Invalid) || content(base, "new") != "" {
		t.Errorf("without tasks: %v", err)
	}
}

// TestCopyTellsWhatIsMissing: what cannot be copied is counted and named, and the rest is copied.
func TestCopyTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	check(t, unix.Mkfifo(filepath.Join(base, "full", "sub", "fifo"), 0o600))
	s, work := newWorking(t, base)
	check(t, copyOne(s, base, "full", "new", "REJECT"))
	if got := failure.Why(work.failed); got != "1 of 2 files failed: this is not a regular file (full/sub/fifo)" {
		t.Errorf("got %q", got)
	}
	if content(base, "new/f") != "full/f" || content(base, "new/sub") != "dir" {
		t.Error("the rest was not copied")
	}
}

// TestCopyGoesOn: an attempt that was interrupted leaves whole files, and the next one adds what is missing.
func TestCopyGoesOn(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	valuable(t, filepath.Join(base, "tree"))
	want := snapshot(t, filepath.Join(base, "tree"))
	s, work := newWorking(t, base)
	for i, stop := range []int{1, 5, 20, 40, 55} {
		work.check = func(steps int) error {
			if steps > stop {
				return tasks.ErrInterrupted
			}
			return nil
		}
		to := filepath.Join("dir", fmt.Sprint(i))
		check(t, copyOne(s, base, "tree", to, "RENAME"))
		if !errors.Is(work.failed, tasks.ErrInterrupted) {
			t.Fatalf("%d: %v", stop, work.failed)
		}
		got := snapshot(t, filepath.Join(base, to))
		for p, what := range got {
			if !strings.HasPrefix(what, "d") && what != want[p] {
				t.Errorf("%d: %q is not whole", stop, p)
			}
		}
		last := work.jobs[len(work.jobs)-1]
		last.check, last.attempt = nil, 2
		check(t, work.run(context.Background(), len(work.jobs)-1))
		if d := cmp.Diff(want, snapshot(t, filepath.Join(base, to))); d != "" {
			t.Errorf("%d: -want +got:\n%s", stop, d)
		}
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(base, to, "d"), 0o770) })
	}
	if found := hidden(t, base); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
	// A single file that was copied already is not copied again.
	work.check = nil
	check(t, copyOne(s, base, "a.txt", "a.txt", "RENAME"))
	work.jobs[len(work.jobs)-1].attempt = 2
	check(t, work.run(context.Background(), len(work.jobs)-1))
	if content(base, "a(1).txt") != "a.txt" || content(base, "a(2).txt") != "" {
		t.Error("the file was copied again")
	}
}

// TestCopyToAFullDisk ends in a failure, and leaves the old file and no debris.
func TestCopyToAFullDisk(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	far := filepath.Join(base, "far")
	mountSmall(t, far, "size=1m")
	check(t, os.MkdirAll(filepath.Join(base, "big"), 0o770))
	for i := range 20 {
		check(t, os.WriteFile(filepath.Join(base, "big", fmt.Sprint(i)), bytes.Repeat([]byte("x"), 200<<10), 0o600))
	}
	check(t, os.WriteFile(filepath.Join(base, "big", "huge"), bytes.Repeat([]byte("x"), 2<<20), 0o600))
	check(t, os.WriteFile(filepath.Join(far, "old"), []byte("old"), 0o600))
	s, work := newWorking(t, base)
	check(t, copyOne(s, base, "big/huge", "far/old", "REPLACE"))
	if !failure.Is(work.failed, failure.Invalid) || !strings.Contains(failure.Why(work.failed), "no space left") || content(far, "old") != "old" {
		t.Errorf("replace: %v, %q", work.failed, content(far, "old"))
	}
	check(t, copyOne(s, base, "big", "far/big", "REJECT"))
	if !strings.Contains(failure.Why(work.failed), "no space left") {
		t.Errorf("folder: %v", work.failed)
	}
	for _, e := range must(os.ReadDir(filepath.Join(far, "big")))(t) {
		if st := must(e.Info())(t); st.Size() != 200<<10 {
			t.Errorf("%s has %d bytes", e.Name(), st.Size())
		}
	}
	if found := hidden(t, base); len(found) > 0 {
		t.Errorf("left behind: %q", found)
	}
	// It was another file system, with a plain copy of the content.
	check(t, os.RemoveAll(filepath.Join(far, "big")))
	check(t, copyOne(s, base, "full", "far/full", "REJECT"))
	if work.failed != nil || content(far, "full/f") != "full/f" {
		t.Errorf("small folder: %v", work.failed)
	}
}
