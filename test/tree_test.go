//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit/webclient"
)

// oddNames are names that something between a browser and a disk gets wrong now and then.
var oddNames = []string{
	"plain", "with space", " leading", "trailing ", " ", "   ", "-rf", "--", "-", "...", "..x", "x..", ".hidden", "~", "~root",
	"new\nline", "\n", "carriage\rreturn", "tab\tname", "bell\a", "\x01\x02\x1b[31m\x7f", "nul is the only one that cannot be: \x1f",
	`quote"`, "single'", "back`tick", `back\slash`, `..\..\etc`, `C:\x`, `\`, "%2e", "%2e%2e%2fetc", "%00", "%", "a%20b", "$(id)", "; touch pwned", "a&b=c", "a?b#c", "*", "[x]", "{a,b}",
	"a+b", "a:b", "a|b", "<img src=x onerror=alert(1)>", "comma,semi;", "null", "true", "0", "1e9",
	"caf\u00e9", "cafe\u0301", "Case", "case", "CASE", "\u0130stanbul", "\u017fharp", "stra\u00dfe", "STRASSE", "\U0001F468\u200D\U0001F469\u200D\U0001F467 \U0001F600", "\u202Etxt.exe", "\u2028", "\u00a0", "\ufeffbom", "\ufffd",
	"\xff\xfe", "latin\xe9", "\x80", "cut\xf0\x9f\x98", "\xed\xa0\x80 surrogate", "\xc0\xae\xc0\xae", "\xf4\x90\x80\x80", "mixed\xff\U0001F600\xfe",
	"\U0010FE80", "\U0010FEFF", "a\U0010FEC3\U0010FEA9", "\U0010FE7F", "\U0010FF00",
	"x", "x(1)", "x(1)(1)", "x(9999)", "x.txt", "x(1).txt", "Trash", "Jobs", "trash",
	".a.ucloud-upload-0123456789abcdeg", ".ucloud-upload-0123456789abcdef", "a.ucloud-upload-0123456789abcdef",
	strings.Repeat("y", 255), strings.Repeat("\u00e9", 127) + "z", strings.Repeat("\xff", 255), strings.Repeat("n\n", 127), "." + strings.Repeat("h", 254), strings.Repeat("\U0001F600", 63),
}

// workshop makes trees by descriptors, so that no path is too long for it.
type workshop struct {
	t   *testing.T
	dir int
}

func openWorkshop(t *testing.T, dir string) *workshop {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &workshop{t, fd}
}

func (s *workshop) must(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("make %q: %v", what, err)
	}
}

// folder makes a folder, does the rest in it, and then gives it mode and time, which the rest would change.
func (s *workshop) folder(name string, mode uint32, content func(s *workshop)) {
	s.t.Helper()
	s.must(name, unix.Mkdirat(s.dir, name, 0o700))
	fd, err := unix.Openat(s.dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	s.must(name, err)
	defer unix.Close(fd)
	if content != nil {
		content(&workshop{s.t, fd})
	}
	s.must(name, unix.Fchmod(fd, mode))
	s.times(name)
}

func (s *workshop) file(name string, mode uint32, content string) {
	s.t.Helper()
	fd, err := unix.Openat(s.dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	s.must(name, err)
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	_, err = f.WriteString(content)
	s.must(name, err)
	s.must(name, f.Chmod(os.FileMode(mode)))
	s.times(name)
}

func (s *workshop) link(name, target string) {
	s.t.Helper()
	s.must(name, unix.Symlinkat(target, s.dir, name))
}

// times gives an entry times that depend on its name, with nanoseconds.
func (s *workshop) times(name string) {
	s.t.Helper()
	sum := sha256.Sum256([]byte(name))
	at := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(sum[0])<<40 + time.Duration(sum[1])<<32 + time.Duration(sum[2])<<16 + time.Duration(sum[3]))
	s.settime(name, at)
}

func (s *workshop) settime(name string, at time.Time) {
	s.t.Helper()
	spec, err := unix.TimeToTimespec(at)
	s.must(name, err)
	s.must(name, unix.UtimesNanoAt(s.dir, name, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW))
}

// deepName is one level of a tree whose paths are longer than the kernel takes in one call.
var deepName = strings.Repeat("deep\xffer ", 25)

const deepLevels = 30

// torture makes everything that can be copied and must come back as it was.
func (s *workshop) torture(outside string) {
	s.folder("names", 0o755, func(s *workshop) {
		for _, name := range oddNames {
			s.file(name, 0o640, "content of "+name)
		}
	})
	s.folder("folders", 0o750, func(s *workshop) {
		for _, name := range oddNames {
			s.folder(name, 0o700, func(s *workshop) { s.file(name, 0o600, "in "+name) })
		}
	})
	var deeper func(level int) func(s *workshop)
	deeper = func(level int) func(s *workshop) {
		return func(s *workshop) {
			s.file("level", 0o644, fmt.Sprint(level))
			if level < deepLevels {
				s.folder(deepName, 0o711, deeper(level+1))
			}
		}
	}
	s.folder("deep", 0o755, deeper(1))
	s.folder("empty", 0o755, func(s *workshop) { s.folder("empty too", 0o700, nil) })
	s.folder("modes", 0o755, func(s *workshop) {
		for _, mode := range []uint32{0o400, 0o444, 0o600, 0o640, 0o664, 0o666, 0o700, 0o755, 0o777} {
			s.file(fmt.Sprintf("file %o", mode), mode, "x")
		}
		for _, mode := range []uint32{0o500, 0o555, 0o700, 0o711, 0o750, 0o775, 0o777, 0o1777} {
			s.folder(fmt.Sprintf("folder %o", mode), mode, func(s *workshop) { s.file("in it", 0o600, "x") })
		}
	})
	s.folder("times", 0o755, func(s *workshop) {
		for name, at := range map[string]time.Time{
			"epoch": time.Unix(0, 0), "one": time.Unix(0, 1), "before": time.Unix(-3600, 999), "last": time.Unix(1<<31-1, 999_999_999),
			"after 2038": time.Date(2100, 2, 28, 23, 59, 59, 123_456_789, time.UTC),
		} {
			s.file(name, 0o644, name)
			s.settime(name, at)
		}
	})
	s.folder("sizes", 0o755, func(s *workshop) {
		for _, n := range []int{0, 1, 4095, 4096, 4097, 65536, 65537, 1 << 20, 3<<20 + 1} {
			s.file(fmt.Sprint(n), 0o644, string(pattern(n)))
		}
	})
	s.sparse("sparse", 64<<20, map[int64]string{0: "begin", 20<<20 + 5: "middle"})
	s.sparse("only a hole", 32<<20, nil)
	s.folder("links", 0o755, func(s *workshop) {
		s.link("to a file", "../names/plain")
		s.link("to a folder", "../names")
		s.link("dangling", "no such\nfile\xff")
		s.link("loop", "loop")
		s.link("up", "../../../../../..")
		s.link("out", outside)
		s.link("absolute", "/etc/passwd")
		s.link("longest", strings.Repeat("l/", 2000))
		s.file("hard one", 0o644, "two names")
		s.must("hard two", unix.Linkat(s.dir, "hard one", s.dir, "hard two", 0))
	})
	s.folder("attributes", 0o755, func(s *workshop) {
		s.file("with attribute", 0o644, "x")
		s.must("an attribute", unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d/with attribute", s.dir), "user.note", []byte("kept"), 0))
	})
}

func (s *workshop) sparse(name string, size int64, data map[int64]string) {
	s.t.Helper()
	fd, err := unix.Openat(s.dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	s.must(name, err)
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for off, text := range data {
		_, err := f.WriteAt([]byte(text), off)
		s.must(name, err)
	}
	s.must(name, f.Truncate(size))
	s.times(name)
}

// pattern is content in which every displacement shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(n)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

// node is what a tree holds under a name.
type node struct {
	kind     string
	mode     uint32
	size     int64
	modified int64 // ns
	content  string
	blocks   int64
	inode    uint64
	uid, gid uint32
}

// snapshot reads all of a tree. The key of the top is "".
func snapshot(t *testing.T, top string) map[string]node {
	t.Helper()
	all := map[string]node{}
	walkTree(t, top, func(dir int, name, rel string, st *unix.Stat_t) {
		n := node{mode: st.Mode & 0o7777, modified: st.Mtim.Nano(), inode: st.Ino, uid: st.Uid, gid: st.Gid, blocks: st.Blocks}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			n.kind = "folder"
		case unix.S_IFLNK:
			n.kind = "link"
			buf := make([]byte, 8192)
			size, err := unix.Readlinkat(dir, name, buf)
			if err != nil {
				t.Fatalf("read the link %q: %v", rel, err)
			}
			// The time of a link and its mode mean nothing.
			n.content, n.modified, n.mode = string(buf[:size]), 0, 0
		case unix.S_IFREG:
			n.kind, n.size = "file", st.Size
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
			if err != nil {
				t.Fatalf("read %q: %v", rel, err)
			}
			f := os.NewFile(uintptr(fd), name)
			h := sha256.New()
			_, err = io.Copy(h, f)
			f.Close()
			if err != nil {
				t.Fatalf("read %q: %v", rel, err)
			}
			n.content = hex.EncodeToString(h.Sum(nil))
		default:
			n.kind = fmt.Sprintf("special %o", st.Mode&unix.S_IFMT)
		}
		all[rel] = n
	})
	return all
}

// same demands that two trees hold the same in every respect that users can see.
func same(t *testing.T, what string, want, got map[string]node) {
	t.Helper()
	wrong := 0
	complain := func(format string, args ...any) {
		t.Helper()
		if wrong++; wrong <= 20 {
			t.Errorf(what+": "+format, args...)
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(want)) {
		a, b, there := want[rel], node{}, false
		if b, there = got[rel]; !there {
			complain("%q is missing", rel)
			continue
		}
		if a.kind == "file" && b.kind == "file" && b.blocks > a.blocks+64 {
			complain("%q takes %d blocks instead of %d: holes were filled", rel, b.blocks, a.blocks)
		}
		a.blocks, a.inode, b.blocks, b.inode = 0, 0, 0, 0
		if a != b {
			complain("%q is %+v instead of %+v", rel, b, a)
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(got)) {
		if _, there := want[rel]; !there {
			complain("%q is too much", rel)
		}
	}
	if wrong > 20 {
		t.Errorf("%s: %d differences in all", what, wrong)
	}
}

// reachable tells whether a path in a drive can be named by a call: the kernel and the contract take 4,096 bytes.
func (d *desk) reachable(rel string) bool { return len(d.dir)+1+len(rel) < 4096 && len(rel) < 4000 }

// laptop gives the files of a folder as a browser lists them when the folder is dropped: no empty folders, no links.
func laptop(t *testing.T, top string) (files []webclient.File) {
	t.Helper()
	walkTree(t, top, func(_ int, _, rel string, st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT != unix.S_IFREG || len(top)+1+len(rel) >= 4096 {
			return
		}
		f, err := webclient.Disk(filepath.Join(top, rel), rel)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	})
	return files
}

// memoryFile is a file of a browser that exists nowhere else.
func memoryFile(path string, content []byte, at time.Time) webclient.File {
	return webclient.File{
		Path: path, Size: int64(len(content)), Modified: at.UnixMilli(),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}
