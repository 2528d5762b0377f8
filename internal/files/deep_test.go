package files

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
)

// descend makes folders, or enters them, one below the other, and calls do with the descriptor of the last.
func descend(t *testing.T, top, name string, depth int, make bool, do func(fd int)) {
	t.Helper()
	fd, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	for i := range depth {
		if make {
			check(t, unix.Mkdirat(fd, name, 0o750))
		}
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatalf("at depth %d: %v", i, err)
		}
		fd = next
	}
	do(fd)
	unix.Close(fd)
}

// TestDeepTrees: copying, moving and removing go to any depth, with few descriptors and little memory.
func TestDeepTrees(t *testing.T) { // not parallel, as it counts descriptors
	for _, tc := range []struct {
		name  string
		depth int
		all   bool
	}{{"d", 10_000, false}, {strings.Repeat("long", 50), 1000, true}} {
		t.Run(fmt.Sprint(tc.depth), func(t *testing.T) {
			tmp := t.TempDir()
			mountSmall(t, tmp, "size=1g") // a disk would be waited for
			base, _ := furnishIn(t, tmp)
			mountSmall(t, filepath.Join(base, "far"), "size=1g")
			bottom := func(fd int) {
				f, err := unix.Openat(fd, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
				check(t, err)
				defer unix.Close(f)
				var buf [10]byte
				if n, err := unix.Read(f, buf[:]); err != nil || string(buf[:n]) != "bottom" {
					t.Errorf("at the bottom is %q, %v", buf[:n], err)
				}
				var st unix.Stat_t
				if check(t, unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH)); st.Mode&0o7777 != 0o750 {
					t.Errorf("at the bottom is mode %o", st.Mode)
				}
			}
			check(t, os.Mkdir(filepath.Join(base, "tree"), 0o750))
			descend(t, filepath.Join(base, "tree"), tc.name, tc.depth, true, func(fd int) {
				f, err := unix.Openat(fd, "file", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
				check(t, err)
				must(unix.Write(f, []byte("bottom")))(t)
				unix.Close(f)
			})
			s, work := newWorking(t, base)
			open := func() int { return len(must(os.ReadDir("/proc/self/fd"))(t)) }
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			files, most, memory := open(), 0, uint64(0)
			work.check = func(steps int) error {
				if steps%500 == 0 {
					runtime.ReadMemStats(&after)
					most, memory = max(most, open()), max(memory, after.HeapInuse)
				}
				return nil
			}
			for _, step := range []struct {
				what string
				do   func() error
				left string
			}{
				{"copy", func() error { return copyOne(s, base, "tree", "dir/copy", providerapi.ConflictReject) }, "dir/copy"},
				{"move to another file system", func() error { return moveOne(s, moveItem(base, "dir/copy", "far/copy", "REJECT")) }, "far/copy"},
				{"trash from there", func() error { return trashOne(s, base, "far/copy") }, "Trash/copy"},
				{"merge", func() error { return moveOne(s, moveItem(base, "tree", "Trash/copy", "MERGE_RENAME")) }, "Trash/copy"},
				{"copy again", func() error { return copyOne(s, base, "Trash/copy", "tree", providerapi.ConflictReject) }, "tree"},
				{"empty the trash", func() error { return emptyOne(s, base, "Trash") }, "tree"},
			} {
				if !tc.all && step.what != "copy" && step.what != "merge" {
					continue
				}
				if !tc.all && step.what == "merge" {
					step.do = func() error { return moveOne(s, moveItem(base, "tree", "dir/copy", "MERGE_RENAME")) }
					step.left = "dir/copy"
				}
				work.failed = nil
				if err := step.do(); err != nil || work.failed != nil {
					t.Fatalf("%s: %v, %v", step.what, err, work.failed)
				}
				descend(t, filepath.Join(base, step.left), tc.name, tc.depth, false, bottom)
			}
			if !tc.all {
				check(t, os.Rename(filepath.Join(base, "dir", "copy"), filepath.Join(base, "tree")))
			}
			check(t, deleteOne(s, "tree"))
			if work.failed != nil || content(base, "tree") != "" || (tc.all && len(must(os.ReadDir(filepath.Join(base, "Trash")))(t)) != 0) || content(base, "far/copy") != "" {
				t.Errorf("not everything was removed: %v", work.failed)
			}
			if most == 0 || most-files > 4*openLevels {
				t.Errorf("%d descriptors were open, beside %d", most-files, files)
			}
			if grown := int64(memory) - int64(before.HeapInuse); grown > 48<<20 {
				t.Errorf("memory has grown by %d MiB", grown>>20)
			}
		})
	}
}
