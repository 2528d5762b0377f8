package drives

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ucloud-im/internal/providerapi"
)

// openBase opens a directory as a drive. With walk the kernel's openat2 is not used.
func openBase(t *testing.T, base string, walk bool) *Dir {
	t.Helper()
	set := New("p", FollowAlways) // the policy must not matter for what is tested here
	if walk {
		set.openat2 = false
	}
	d := providerapi.Drive{ID: "1", ProviderGeneratedID: "p-x\n" + base}
	d.Specification.Product.Provider = "p"
	ref, err := set.Drive(&d)
	if err != nil {
		t.Fatal(err)
	}
	root, err := ref.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	p, err := ref.Path("/1")
	if err != nil {
		t.Fatal(err)
	}
	local, err := root.At(p)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := local.OpenPathDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Close)
	return dir
}

func TestBeneath(t *testing.T) {
	t.Parallel()
	for _, walk := range []bool{false, true} {
		base := t.TempDir()
		outside := t.TempDir()
		os.MkdirAll(filepath.Join(base, "a/b"), 0o777)
		os.WriteFile(filepath.Join(base, "file"), nil, 0o600)
		os.Symlink(outside, filepath.Join(base, "abs"))
		os.Symlink("..", filepath.Join(base, "up"))
		os.Symlink("../..", filepath.Join(base, "a/upup"))
		os.Symlink("a", filepath.Join(base, "inside"))
		os.Symlink("nowhere", filepath.Join(base, "dangling"))
		os.Symlink("/proc/self/root", filepath.Join(base, "magic"))
		dir := openBase(t, base, walk)
		for rel, ok := range map[string]bool{
			"a": true, "a/b": true, "inside": !walk, "inside/b": !walk, "new": true, "a/new/x/y": true,
			"abs": false, "abs/x": false, "up": false, "up/x": false, "a/upup": false, "a/upup/x": false, "dangling": false, "dangling/x": false,
			"file": false, "file/x": false, "magic": false, "magic/tmp": false,
		} {
			sub, err := dir.MakeBeneath(rel, 0o770)
			if ok != (err == nil) {
				t.Errorf("walk %v, %q: %v", walk, rel, err)
			}
			if err == nil {
				if sub.Path().UCloud() != "/1/"+rel {
					t.Errorf("path %s", sub.Path().UCloud())
				}
				sub.Close()
			}
		}
		if _, err := dir.Beneath("abs"); !walk && !errors.Is(err, ErrOutside) {
			t.Errorf("a link that leaves: %v", err)
		}
		if _, err := dir.Beneath("missing"); !errors.Is(err, unix.ENOENT) {
			t.Errorf("missing: %v", err)
		}
		if left, _ := os.ReadDir(outside); len(left) != 0 {
			t.Errorf("outside: %v", left)
		}
	}
}

func TestDraft(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := openBase(t, base, false)
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(base, name))
		if err != nil {
			return err.Error()
		}
		return string(raw)
	}
	make_ := func(content string) *Draft {
		t.Helper()
		d, err := dir.NewDraft("name", 0o660)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt([]byte(content), 0); err != nil {
			t.Fatal(err)
		}
		return d
	}
	when := time.UnixMilli(1_700_000_000_123)
	one := make_("one")
	if !IsDraft(one.Name()) || read("name") == "one" {
		t.Errorf("name %s", one.Name())
	}
	if err := errors.Join(one.SetTimes(when), one.SetMode(0o640), one.Sync(), one.Close(), one.Publish("name"), dir.Sync()); err != nil {
		t.Fatal(err)
	}
	info, err := dir.Target("name")
	if err != nil || !info.Regular || info.Size != 3 || info.Mode != 0o640 || !info.Modified.Equal(when) || read("name") != "one" {
		t.Errorf("%+v, %v", info, err)
	}
	one.Discard() // is not a draft any more
	if read("name") != "one" {
		t.Error("discarded after it had its name")
	}
	two := make_("two")
	if err := two.Publish("name"); !errors.Is(err, unix.EEXIST) || read("name") != "one" {
		t.Errorf("%v", err)
	}
	if err := two.Replace("name"); err != nil || read("name") != "two" {
		t.Errorf("%v", err)
	}
	two.Close()
	three := make_("three")
	os.Mkdir(filepath.Join(base, "dir"), 0o777)
	for _, bad := range []string{"dir", "", "..", "a/b", "x\x00", strings.Repeat("n", 256)} {
		if err := three.Replace(bad); err == nil {
			t.Errorf("replaced %q", bad)
		}
		if err := three.Publish(bad); err == nil {
			t.Errorf("published as %q", bad)
		}
	}
	three.Discard()
	three.Discard()
	if left, _ := os.ReadDir(base); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
	// A long name is cut, between two characters.
	long, err := dir.NewDraft(strings.Repeat("é", 127), 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Discard()
	if len(long.Name()) > MaxName || !IsDraft(long.Name()) || strings.ContainsRune(long.Name(), '\uFFFD') {
		t.Errorf("%q", long.Name())
	}
}

// TestPublishWithout: file systems that lack one or the other system call.
func TestPublishWithout(t *testing.T) {
	t.Parallel()
	unknown := func(int, string, string) (bool, error) { return false, unix.EINVAL }
	for name, steps := range map[string][]publishStep{
		"rename": {unknown, publishByLink}, "links": {unknown, unknown, publishByReservation},
	} {
		base := t.TempDir()
		dir := openBase(t, base, false)
		for _, f := range []string{"draft", "taken"} {
			os.WriteFile(filepath.Join(base, f), []byte(f), 0o600)
		}
		if err := renameNew(dir.fd, "draft", "taken", steps); !errors.Is(err, unix.EEXIST) {
			t.Errorf("without %s: %v", name, err)
		}
		if err := renameNew(dir.fd, "draft", "free", steps); err != nil {
			t.Errorf("without %s: %v", name, err)
		}
		raw, _ := os.ReadFile(filepath.Join(base, "free"))
		left, _ := os.ReadDir(base)
		taken, _ := os.ReadFile(filepath.Join(base, "taken"))
		if string(raw) != "draft" || string(taken) != "taken" || len(left) != 2 {
			t.Errorf("without %s: %q, %q, %v", name, raw, taken, left)
		}
	}
	if err := renameNew(-1, "a", "b", []publishStep{unknown}); !errors.Is(err, unix.ENOTSUP) {
		t.Error(err)
	}
}

// TestKeptDraft: somebody else's file, link or FIFO of that name is not written to.
func TestKeptDraft(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := openBase(t, base, false)
	const digits = "0123456789abcdef"
	for range 2 {
		d, err := dir.KeptDraft("f", digits, 0o660)
		if err != nil {
			t.Fatal(err)
		}
		size, err := d.Size()
		if _, werr := d.WriteAt([]byte("x"), size); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
		d.Close()
	}
	path := filepath.Join(base, draftName("f", digits))
	if info, err := os.Stat(path); err != nil || info.Size() != 2 {
		t.Error(info, err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret"), 0o600)
	for name, plant := range map[string]func() error{
		"link":      func() error { return os.Symlink(secret, path) },
		"hard link": func() error { return os.Link(secret, path) },
		"fifo":      func() error { return unix.Mkfifo(path, 0o600) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
	} {
		os.Remove(path)
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		if d, err := dir.KeptDraft("f", digits, 0o660); err == nil {
			t.Errorf("%s: opened", name)
			d.Close()
		}
	}
	os.Remove(path)
	for _, bad := range []string{"", "0123456789ABCDEF", "0123456789abcde/", "../0123456789ab"} {
		if _, err := dir.KeptDraft("f", bad, 0o660); err == nil {
			t.Errorf("digits %q", bad)
		}
	}
}

func TestOpenFile(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	dir := openBase(t, base, false)
	os.WriteFile(filepath.Join(base, "file"), []byte("x"), 0o600)
	os.Symlink("file", filepath.Join(base, "link"))
	os.Mkdir(filepath.Join(base, "dir"), 0o700)
	unix.Mkfifo(filepath.Join(base, "fifo"), 0o600)
	f, err := dir.OpenFile("file")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, name := range []string{"link", "dir", "fifo"} {
		if _, err := dir.OpenFile(name); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := dir.OpenFile("../x"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
}

func TestIsDraft(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		".f.ucloud-upload-0123456789abcdef": true, "..ucloud-upload-0123456789abcdef": true, ".ucloud-upload-0123456789abcdef": false,
		"f.ucloud-upload-0123456789abcdef": false, ".f.ucloud-upload-0123456789abcdeg": false, ".f.ucloud-upload-0123456789abcdef0": false, "": false, ".": false,
	} {
		if got := IsDraft(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestNumbered(t *testing.T) {
	t.Parallel()
	x := strings.Repeat
	for _, tc := range []struct {
		name string
		n    int
		want string
	}{
		{"a.txt", 0, "a.txt"},
		{"name.ext", 1, "name(1).ext"},
		{"name", 12, "name(12)"},
		{"a", 9999, "a(9999)"},
		{".bashrc", 1, ".bashrc(1)"},
		{"a.tar.gz", 1, "a.tar(1).gz"},
		{"v1.2", 1, "v1(1).2"},
		{"a.", 1, "a(1)."},
		{".a.b", 3, ".a(3).b"},
		{x("x", 255), 1, x("x", 252) + "(1)"},
		{x("x", 251) + ".txt", 9999, x("x", 245) + "(9999).txt"},
		{x("ä", 127), 1, x("ä", 126) + "(1)"},
		{"a" + x("ä", 127), 1, "a" + x("ä", 125) + "(1)"},
		{x("\xff", 255), 1, x("\xff", 252) + "(1)"},
		{"a." + x("x", 253), 1, "a." + x("x", 250) + "(1)"},
	} {
		if got := Numbered(tc.name, tc.n); got != tc.want || len(got) > MaxName {
			t.Errorf("%q %d: %q", tc.name, tc.n, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := string(rapid.SliceOfN(rapid.Byte(), 1, 60).Draw(t, "name")) +
			x(rapid.SampledFrom([]string{"x", "ä", ".", "\xff"}).Draw(t, "fill"), rapid.IntRange(0, 200).Draw(t, "times"))
		if CheckName(name) != nil {
			return
		}
		n := rapid.IntRange(1, MaxNumbered).Draw(t, "n")
		got := Numbered(name, n)
		if CheckName(got) != nil || got == name || (utf8.ValidString(name) && !utf8.ValidString(got)) {
			t.Fatalf("Numbered(%q, %d) = %q", name, n, got)
		}
		if Numbered(name, n%MaxNumbered+1) == got {
			t.Fatalf("Numbered(%q, %d) does not depend on the number", name, n)
		}
	})
}
