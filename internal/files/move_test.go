package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

func moveItem(base, from, to string, policy providerapi.ConflictPolicy) providerapi.MoveFile {
	return providerapi.MoveFile{
		ResolvedOldCollection: testDrive(base), ResolvedNewCollection: testDrive(base),
		OldID: "/5012/" + from, NewID: "/5012/" + to, ConflictPolicy: policy,
	}
}

func moveOne(s *Service, item providerapi.MoveFile) error {
	return s.Move(context.Background(), []providerapi.MoveFile{item})
}

// content is what a path has: the text of a file, "dir", "link:target", or "" for nothing.
func content(base, rel string) string {
	path := filepath.Join(base, rel)
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return ""
	case st.IsDir():
		return "dir"
	case st.Mode()&os.ModeSymlink != 0:
		to, _ := os.Readlink(path)
		return "link:" + to
	case !st.Mode().IsRegular():
		return "special"
	}
	text, _ := os.ReadFile(path)
	return string(text)
}

// furnish makes a drive with something of every kind, beside a folder that is no part of it.
func furnish(t *testing.T) (base, outside string) {
	t.Helper()
	return furnishIn(t, memoryDir(t))
}

// memoryDir is a directory on no disk, so that tests need not wait for one; see TestCopyTree for the other case.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "files-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

func furnishIn(t *testing.T, tmp string) (base, outside string) {
	t.Helper()
	base, outside = filepath.Join(tmp, "drive"), filepath.Join(tmp, "outside")
	for _, d := range []string{"dir", "full/sub", "other", "Trash"} {
		check(t, os.MkdirAll(filepath.Join(base, d), 0o770))
	}
	check(t, os.Mkdir(outside, 0o770))
	for _, f := range []string{"a.txt", "b.txt", "full/f", "Trash/old"} {
		check(t, os.WriteFile(filepath.Join(base, f), []byte(f), 0o660))
	}
	check(t, os.WriteFile(filepath.Join(outside, "f"), []byte("outside"), 0o660))
	check(t, os.Symlink("full", filepath.Join(base, "in")))
	check(t, os.Symlink("../outside", filepath.Join(base, "out")))
	check(t, os.Symlink("missing", filepath.Join(base, "dangling")))
	check(t, os.Symlink(".", filepath.Join(base, "self")))
	check(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o600))
	check(t, os.Link(filepath.Join(base, "b.txt"), filepath.Join(base, "b2.txt")))
	check(t, os.WriteFile(filepath.Join(base, "x\xff"), []byte("escaped"), 0o600))
	return base, outside
}

func TestMove(t *testing.T) {
	t.Parallel()
	const (
		rename  = providerapi.ConflictRename
		reject  = providerapi.ConflictReject
		replace = providerapi.ConflictReplace
		merge   = providerapi.ConflictMergeRename
	)
	for _, tc := range []struct {
		name     string
		from, to string
		policy   providerapi.ConflictPolicy
		want     failure.Kind // 0: success
		final    string       // where the entry is afterwards; "" is where it was
	}{
		{name: "rename", from: "a.txt", to: "c.txt", policy: reject, final: "c.txt"},
		{name: "no policy", from: "a.txt", to: "c.txt", final: "c.txt"},
		{name: "into a folder", from: "a.txt", to: "dir/a.txt", policy: rename, final: "dir/a.txt"},
		{name: "a folder", from: "full", to: "dir/full", policy: rename, final: "dir/full"},
		{name: "a link itself", from: "out", to: "dir/out", policy: reject, final: "dir/out"},
		{name: "a link to a folder itself", from: "in", to: "dir/in", policy: reject, final: "dir/in"},
		{name: "a dangling link", from: "dangling", to: "d", policy: reject, final: "d"},
		{name: "a fifo", from: "fifo", to: "f", policy: reject, final: "f"},
		{name: "through a link inside", from: "in/f", to: "self/c", policy: reject, final: "c"},
		{name: "escaped", from: "x\U0010FEFF", to: "y\U0010FE80", policy: reject, final: "y\x80"},
		{name: "same place", from: "a.txt", to: "a.txt", policy: rename},
		{name: "same place, rejected", from: "a.txt", to: ".//a.txt", policy: reject},
		{name: "same place through a link", from: "full/f", to: "in/f", policy: rename},
		{name: "same place missing", from: "none", to: "none", policy: reject, want: failure.NotFound},
		{name: "exists, rejected", from: "a.txt", to: "b.txt", policy: reject, want: failure.Conflict},
		{name: "exists, no policy", from: "a.txt", to: "b.txt", want: failure.Conflict},
		{name: "exists, renamed", from: "a.txt", to: "b.txt", policy: rename, final: "b(1).txt"},
		{name: "exists, merged", from: "a.txt", to: "b.txt", policy: merge, final: "b(1).txt"},
		{name: "exists, replaced", from: "a.txt", to: "b.txt", policy: replace, final: "b.txt"},
		{name: "replaces nothing", from: "a.txt", to: "c.txt", policy: replace, final: "c.txt"},
		{name: "replaces a link, not its target", from: "a.txt", to: "out", policy: replace, final: "out"},
		{name: "replaces an empty folder", from: "full", to: "dir", policy: replace, final: "dir"},
		{name: "replaces a full folder", from: "dir", to: "full", policy: replace, want: failure.Conflict},
		{name: "file replaces a folder", from: "a.txt", to: "dir", policy: replace, want: failure.Conflict},
		{name: "folder replaces a file", from: "dir", to: "a.txt", policy: replace, want: failure.Conflict},
		{name: "replaces itself", from: "b.txt", to: "b2.txt", policy: replace, want: failure.Conflict},
		{name: "folder on a folder, renamed", from: "dir", to: "full", policy: rename, final: "full(1)"},
		{name: "folder on a file, merged", from: "dir", to: "a.txt", policy: merge, final: "a(1).txt"},
		{name: "folder to a new name, merged", from: "dir", to: "new", policy: merge, final: "new"},
		{name: "taken by a dangling link", from: "a.txt", to: "dangling", policy: reject, want: failure.Conflict},
		{name: "into itself", from: "full", to: "full/full", policy: rename, want: failure.Invalid},
		{name: "into itself, replacing", from: "full", to: "full/x", policy: replace, want: failure.Invalid},
		{name: "deep into itself", from: "full", to: "full/sub/x", policy: reject, want: failure.Invalid},
		{name: "into itself through a link", from: "full", to: "in/sub/x", policy: reject, want: failure.Invalid},
		{name: "missing", from: "none", to: "c", policy: reject, want: failure.NotFound},
		{name: "missing folder", from: "none/a", to: "c", policy: reject, want: failure.NotFound},
		{name: "no target folder", from: "a.txt", to: "none/a", policy: reject, want: failure.NotFound},
		{name: "target folder is a file", from: "a.txt", to: "b.txt/a", policy: reject, want: failure.NotFound},
		{name: "to outside", from: "a.txt", to: "out/a", policy: reject, want: failure.Forbidden},
		{name: "from outside", from: "out/f", to: "f", policy: reject, want: failure.Forbidden},
		{name: "the drive", from: "", to: "dir/x", policy: reject, want: failure.Invalid},
		{name: "to the drive", from: "a.txt", to: "", policy: replace, want: failure.Invalid},
		{name: "climbs", from: "a.txt", to: "../x", policy: reject, want: failure.Invalid},
		{name: "name too long", from: "a.txt", to: strings.Repeat("x", 256), policy: reject, want: failure.Invalid},
		{name: "unknown policy", from: "a.txt", to: "c", policy: "OVERWRITE", want: failure.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			base, outside := furnish(t)
			source := strings.ReplaceAll(tc.from, "\U0010FEFF", "\xff")
			source = strings.Replace(source, "in/", "full/", 1)
			before, _ := os.Lstat(filepath.Join(base, source))
			s := newService(t, nil)
			item := moveItem(base, tc.from, tc.to, tc.policy)
			err := moveOne(s, item)
			if (tc.want == 0) != (err == nil) || (err != nil && !failure.Is(err, tc.want)) {
				t.Fatalf("got %v", err)
			}
			if before == nil {
				return
			}
			final := tc.final
			if final == "" {
				final = source
			}
			now, err := os.Lstat(filepath.Join(base, final))
			if err != nil || !os.SameFile(before, now) {
				t.Fatalf("it is not at %s: %v", final, err)
			}
			if final != source {
				if _, err := os.Lstat(filepath.Join(base, source)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("it is where it was as well: %v", err)
				}
				// Core may deliver the call again.
				if err := moveOne(s, item); err != nil {
					t.Errorf("repeated: %v", err)
				}
			}
			if got := content(outside, "f"); got != "outside" {
				t.Errorf("outside has become %q", got)
			}
			if tc.policy != replace && content(base, "b.txt") != "b.txt" {
				t.Error("b.txt was replaced")
			}
		})
	}
}

func TestMoveNeedsEditPermission(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	s := newService(t, nil)
	for i := range 2 {
		item := moveItem(base, "a.txt", "c.txt", providerapi.ConflictReject)
		if readOnly := testDrive(base, providerapi.PermissionRead); i == 0 {
			item.ResolvedOldCollection = readOnly
		} else {
			item.ResolvedNewCollection = readOnly
		}
		if err := moveOne(s, item); !failure.Is(err, failure.Forbidden) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if content(base, "a.txt") != "a.txt" {
		t.Error("the file was moved")
	}
}

func TestMoveBetweenDrives(t *testing.T) {
	t.Parallel()
	one, _ := furnish(t)
	two, _ := furnish(t)
	s := newService(t, nil)
	other := testDrive(two)
	other.ID = "77"
	item := providerapi.MoveFile{
		ResolvedOldCollection: testDrive(one), ResolvedNewCollection: other,
		OldID: "/5012/full", NewID: "/77/dir/x", ConflictPolicy: providerapi.ConflictReject,
	}
	check(t, moveOne(s, item))
	if got := content(two, "dir/x/f"); got != "full/f" || content(one, "full") != "" {
		t.Errorf("moved: %q", got)
	}
	// The path must belong to the drive it comes with.
	item.OldID = "/77/a.txt"
	if err := moveOne(s, item); !failure.Is(err, failure.Invalid) {
		t.Errorf("a path of another drive: %v", err)
	}
	// Two drives of which one lies in the other: the folder's own inside is another drive's root.
	inner := testDrive(filepath.Join(one, "other"))
	inner.ID = "78"
	item = providerapi.MoveFile{
		ResolvedOldCollection: testDrive(one), ResolvedNewCollection: inner,
		OldID: "/5012/other", NewID: "/78/x", ConflictPolicy: providerapi.ConflictRename,
	}
	if err := moveOne(s, item); !failure.Is(err, failure.Invalid) {
		t.Errorf("into itself by way of another drive: %v", err)
	}
}

// TestRepeatedMove: only the very inode that was moved makes a repetition a success, and only for a while.
func TestRepeatedMove(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	now := time.Now()
	s := newService(t, func(o *Options) { o.Now = func() time.Time { return now } })
	item := moveItem(base, "a.txt", "b.txt", providerapi.ConflictRename)
	check(t, moveOne(s, item))
	check(t, moveOne(s, item))
	if content(base, "b(1).txt") != "a.txt" || content(base, "b(2).txt") != "" {
		t.Fatal("the repetition moved something")
	}
	// Another call with the same source is none.
	if err := moveOne(s, moveItem(base, "a.txt", "c.txt", providerapi.ConflictRename)); !failure.Is(err, failure.NotFound) {
		t.Errorf("another target: %v", err)
	}
	// A new source makes it a new call.
	check(t, os.WriteFile(filepath.Join(base, "a.txt"), []byte("new"), 0o600))
	check(t, moveOne(s, item))
	if content(base, "b(2).txt") != "new" {
		t.Error("the new file was not moved")
	}
	// What was moved is something else by now.
	check(t, os.Rename(filepath.Join(base, "b(1).txt"), filepath.Join(base, "b(2).txt")))
	if err := moveOne(s, item); !failure.Is(err, failure.NotFound) {
		t.Errorf("replaced meanwhile: %v", err)
	}
	item = moveItem(base, "full", "dir/full", providerapi.ConflictReject)
	check(t, moveOne(s, item))
	check(t, moveOne(s, item))
	now = now.Add(recentLife)
	if err := moveOne(s, item); !failure.Is(err, failure.NotFound) {
		t.Errorf("much later: %v", err)
	}
	for i := range 3 * recentMoves {
		s.recent.add(recentKey{from: fmt.Sprint(i)}, s.recent.moves[recentKey{}].node, "x")
		if len(s.recent.moves) > recentMoves || len(s.recent.order) > recentMoves {
			t.Fatalf("%d moves are remembered", len(s.recent.moves))
		}
	}
}

// TestMovesToOneName: of many simultaneous moves to one name each gets a name of its own, or all but one are refused.
func TestMovesToOneName(t *testing.T) {
	t.Parallel()
	for _, policy := range []providerapi.ConflictPolicy{providerapi.ConflictRename, providerapi.ConflictReject} {
		base := t.TempDir()
		s := newService(t, nil)
		const n = 40
		for i := range n {
			check(t, os.WriteFile(filepath.Join(base, fmt.Sprint(i)), []byte(fmt.Sprint(i)), 0o600))
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		done := 0
		for i := range n {
			wg.Go(func() {
				err := moveOne(s, moveItem(base, fmt.Sprint(i), "x.y", policy))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done++
				} else if policy == providerapi.ConflictRename || !failure.Is(err, failure.Conflict) {
					t.Errorf("%s: %v", policy, err)
				}
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, e := range must(os.ReadDir(base))(t) {
			seen[content(base, e.Name())] = true
		}
		if want := map[providerapi.ConflictPolicy]int{"RENAME": n, "REJECT": 1}[policy]; done != want || len(seen) != n {
			t.Errorf("%s: %d moves succeeded, %d of %d files are left", policy, done, len(seen), n)
		}
	}
}
