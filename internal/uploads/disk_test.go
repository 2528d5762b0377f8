package uploads

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

// smallDisk mounts a file system of a size.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	testkit.Require(t, testkit.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		testkit.Require(t, testkit.Requirement{Name: "mounting", Missing: func() error { return err }})
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDisk fills the disk at every stage: the failure is seen, the old file is intact, and nothing is left.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const size = 1 << 19
	for _, tc := range []struct {
		name    string
		options string
		kind    string
		do      func(c *script)
	}{
		{"large file", "size=1m", folder, func(c *script) {
			c.binary(listing(listed{0, 4 * size, someTime, "old"}))
			c.expect(num(opOK, 0))
			for range 4 {
				c.binary(chunk(0, strings.Repeat("x", size)))
			}
		}},
		{"large file, replaced", "size=1m", kindFile, func(c *script) {
			c.binary(listing(listed{0, 4 * size, someTime, ""}))
			c.expect(num(opOK, 0))
			for range 4 {
				c.binary(chunk(0, strings.Repeat("x", size)))
			}
		}},
		{"small files", "size=1m", folder, func(c *script) {
			var files []listed
			for i := range 60 {
				files = append(files, listed{int32(i), 60_000, someTime, "f" + string(rune('A'+i))})
			}
			c.binary(listing(files...))
			for range 60 {
				op, v, ok := c.next()
				if !ok {
					return
				}
				if op == opOK {
					c.binary(chunk(v, strings.Repeat("x", 60_000)))
				}
			}
		}},
		{"creation of a file", "size=1m,nr_inodes=4", folder, func(c *script) {
			c.binary(listing(listed{0, 1, someTime, "a"}, listed{1, 1, someTime, "b"}, listed{2, 1, someTime, "c"}))
			c.expect(num(opOK, 0), num(opOK, 1), num(opOK, 2))
			for i := range int32(3) {
				c.binary(chunk(i, "x"))
			}
		}},
		{"creation of an empty file", "size=1m,nr_inodes=3", folder, func(c *script) {
			c.binary(listing(listed{0, 0, someTime, "a"}, listed{1, 0, someTime, "b"}))
		}},
		{"creation of a folder", "size=1m,nr_inodes=3", folder, func(c *script) {
			c.binary(listing(listed{0, 0, someTime, "d/e/a"}))
		}},
		{"in the middle of other files", "size=1m", folder, func(c *script) {
			c.binary(listing(listed{0, 300_000, someTime, "half"}, listed{1, 4 * size, someTime, "big"}, listed{2, 100, someTime, "waits"}))
			c.expect(num(opOK, 0), num(opOK, 1), num(opOK, 2))
			c.binary(chunk(0, strings.Repeat("x", 100_000)))
			for range 4 {
				c.binary(chunk(1, strings.Repeat("x", size)))
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, noSync := range []bool{true, false} {
				dir := smallDisk(t, tc.options)
				w := newWorld(t, dir, func(o *Options) { o.Settings.NoSync = noSync })
				write(t, filepath.Join(dir, "old"), "old")
				path, policy := "", rename
				if tc.kind == kindFile {
					path, policy = "/old", replace
				}
				c := w.dial(w.session(path, tc.kind, policy))
				tc.do(c)
				c.expectClose(websocket.StatusInternalError)
				if ce := c.err.Error(); !strings.Contains(ce, "There is no space left on the storage") {
					t.Errorf("the client is told %s", ce)
				}
				w.settle()
				for name, content := range tree(t, dir) {
					switch {
					case name == "old" && content != "old":
						t.Errorf("the old file has %d bytes", len(content))
					case strings.Contains(name, "ucloud-upload"), name == "big", name == "half", name == "waits":
						t.Errorf("%s is left", name)
					case name != "old" && content != "/" && len(content) != 60_000 && len(content) > 1:
						t.Errorf("%s is there with %d bytes", name, len(content))
					}
				}
				r := <-w.reports
				if !r.Fatal || r.Count == 0 || len(r.Files) == 0 || !strings.HasPrefix(r.Files[0], "/5123/") || !strings.Contains(r.Title(), "failed: There is no space left on the storage") {
					t.Errorf("%+v: %s", r, r.Title())
				}
				// With room again, the same session goes on.
				if err := unix.Mount("", dir, "tmpfs", unix.MS_REMOUNT, "size=20m,nr_inodes=1000"); err != nil {
					t.Fatal(err)
				}
				if tc.kind == folder {
					if got := w.put(w.session(path, tc.kind, policy), "after", "x", someTime); got != opOK {
						t.Errorf("answer %d", got)
					}
				}
			}
		})
	}
}

// TestFullDiskInChunks: here the browser is told at once.
func TestFullDiskInChunks(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "size=1m")
	w := newWorld(t, dir, nil)
	write(t, filepath.Join(dir, "f"), "old")
	s := w.session("/f", kindFile, replace, "CHUNKED")
	data := strings.Repeat("x", 700_000)
	if status, body := w.text(s, 0, 1_400_000, data); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := w.text(s, 700_000, 1_400_000, data); status != 400 || !strings.Contains(body, "no space left") {
		t.Errorf("%d %s", status, body)
	}
	if got := tree(t, dir); len(got) != 1 || got["f"] != "old" {
		t.Errorf("%d entries", len(got))
	}
}
