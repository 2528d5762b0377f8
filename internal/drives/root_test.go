package drives

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// variants are the ways in which a kernel lets us resolve paths.
var variants = map[string]bool{"openat2": true, "component walk": false}

// openRoot opens a drive; with = false acts as if the kernel had no openat2.
func openRoot(t testing.TB, base string, follow Follow, with bool) (*Root, Ref) {
	t.Helper()
	set := New("hpc", follow)
	if with && !set.openat2 {
		t.Skip("this kernel has no openat2")
	}
	set.openat2 = with
	ref, err := set.Drive(drive("1", "hpc-x\n"+base))
	if err != nil {
		t.Fatal(err)
	}
	root, err := ref.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, ref
}

func at(t testing.TB, root *Root, ref Ref, rel string) Local {
	t.Helper()
	p, err := ref.Path("/1/" + rel)
	if err != nil {
		t.Fatal(err)
	}
	local, err := root.At(p)
	if err != nil {
		t.Fatal(err)
	}
	return local
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
	ok(t, os.WriteFile(path, []byte(text), 0o644))
}

// linkTree makes a drive full of links, reached through a link itself, and something outside.
func linkTree(t *testing.T) (base string) {
	t.Helper()
	tmp := t.TempDir()
	real := filepath.Join(tmp, "real", "drive")
	base = filepath.Join(tmp, "alias", "drive")
	write(t, filepath.Join(real, "dir", "file"), "inside")
	write(t, filepath.Join(real, "dir", "deep", "er", "file"), "inside")
	write(t, filepath.Join(tmp, "outside", "secret"), "SECRET")
	write(t, filepath.Join(tmp, "real", "drive2", "secret"), "SECRET")
	ok(t, os.Symlink(filepath.Join(tmp, "real"), filepath.Join(tmp, "alias")))
	for name, target := range map[string]string{
		"rel-file":          "dir/file",
		"rel-dir":           "dir",
		"rel-up":            "dir/../dir/file",
		"abs-file":          filepath.Join(base, "dir", "file"),
		"abs-dir":           filepath.Join(base, "dir"),
		"abs-real":          filepath.Join(real, "dir", "file"),
		"abs-root":          base,
		"out-and-back":      "../drive/dir/file",
		"far-out-and-back":  "../../alias/drive/dir/deep",
		"chain":             "abs-dir/deep/../file",
		"chain-of-abs":      filepath.Join(base, "abs-real"),
		"through-outside":   filepath.Join(tmp, "outside", "back"),
		"out-abs":           filepath.Join(tmp, "outside", "secret"),
		"out-rel":           "../../outside/secret",
		"out-dir":           filepath.Join(tmp, "outside"),
		"out-sibling":       filepath.Join(tmp, "real", "drive2", "secret"),
		"out-parent":        "..",
		"out-root":          "/",
		"out-proc":          "/proc/self/root",
		"dangling":          "missing",
		"dangling-abs":      filepath.Join(base, "missing"),
		"dangling-out":      filepath.Join(tmp, "outside", "missing"),
		"loop":              "loop",
		"loop-a":            "loop-b",
		"loop-b":            "loop-a",
		"dir/up-to-root":    "..",
		"dir/deep/up-twice": "../..",
	} {
		ok(t, os.Symlink(target, filepath.Join(real, name)))
	}
	ok(t, os.Symlink(filepath.Join(real, "dir", "file"), filepath.Join(tmp, "outside", "back")))
	return base
}

//attack:actor local user
//attack:does Plants a link in a shared project that leads out of the drive.
//attack:control Links are followed only within the drive.
//attack:remove internal/drives/root.go: if !ok {\n\t\treturn -1, ErrOutside\n\t} => _ = ok
func TestLinksUnderDrivePolicy(t *testing.T) {
	t.Parallel()
	base := linkTree(t)
	for variant, with := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			root, ref := openRoot(t, base, FollowDrive, with)
			for _, tc := range []struct {
				rel  string
				kind Kind
				link Link
			}{
				{"", Directory, NoLink},
				{"dir", Directory, NoLink},
				{"dir/file", Regular, NoLink},
				{"rel-file", Regular, Followed},
				{"rel-dir", Directory, Followed},
				{"rel-up", Regular, Followed},
				{"abs-file", Regular, Followed},
				{"abs-dir", Directory, Followed},
				{"abs-real", Regular, Followed},
				{"abs-root", Directory, Followed},
				{"out-and-back", Regular, Followed},
				{"far-out-and-back", Directory, Followed},
				{"chain", Regular, Followed},
				{"chain-of-abs", Regular, Followed},
				{"through-outside", Regular, Followed},
				{"dir/up-to-root", Directory, Followed},
				{"dir/deep/up-twice", Directory, Followed},
				{"rel-dir/file", Regular, NoLink},
				{"abs-dir/deep/er/file", Regular, NoLink},
				{"abs-root/abs-dir/file", Regular, NoLink},
				{"abs-root/abs-root/rel-file", Regular, Followed},
				{"out-abs", Special, Outside},
				{"out-rel", Special, Outside},
				{"out-dir", Special, Outside},
				{"out-sibling", Special, Outside},
				{"out-parent", Special, Outside},
				{"out-root", Special, Outside},
				{"out-proc", Special, Outside},
				{"dangling", Special, Dangling},
				{"dangling-abs", Special, Dangling},
				{"dangling-out", Special, Dangling},
				{"loop", Special, Dangling},
				{"loop-a", Special, Dangling},
				{"abs-root/out-abs", Special, Outside},
			} {
				info, err := at(t, root, ref, tc.rel).Stat()
				if err != nil {
					t.Errorf("%s: %v", tc.rel, err)
					continue
				}
				// A magic link is refused by openat2 and followed, and found outside, without it.
				if tc.rel == "out-proc" && info.Link == Dangling {
					continue
				}
				if info.Kind != tc.kind || info.Link != tc.link {
					t.Errorf("%s: kind %d link %d, want %d %d", tc.rel, info.Kind, info.Link, tc.kind, tc.link)
				}
			}
			for _, rel := range []string{"out-dir/secret", "out-parent/drive2/secret", "out-root/etc/passwd", "abs-root/out-dir/secret"} {
				if _, err := at(t, root, ref, rel).Stat(); !errors.Is(err, ErrOutside) {
					t.Errorf("%s: %v", rel, err)
				}
			}
			for _, rel := range []string{"out-abs", "out-rel", "out-sibling"} {
				if f, _, err := at(t, root, ref, rel).OpenRegular(); !errors.Is(err, ErrOutside) {
					t.Errorf("open %s: %v, %v", rel, f, err)
				}
			}
			for _, rel := range []string{"out-dir", "out-parent", "out-root"} {
				if d, err := at(t, root, ref, rel).OpenDir(); !errors.Is(err, ErrOutside) {
					t.Errorf("list %s: %v, %v", rel, d, err)
				}
			}
			for _, rel := range []string{"abs-file", "chain-of-abs", "rel-dir/file", "through-outside"} {
				if got := readAll(t, at(t, root, ref, rel)); got != "inside" {
					t.Errorf("%s: read %q", rel, got)
				}
			}
			if _, err := at(t, root, ref, "dir/missing").Stat(); !errors.Is(err, unix.ENOENT) {
				t.Errorf("missing: %v", err)
			}
			if _, err := at(t, root, ref, "dir/file/x").Stat(); !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("below a file: %v", err)
			}
		})
	}
}

func readAll(t testing.TB, l Local) string {
	t.Helper()
	f, _, err := l.OpenRegular()
	ok(t, err)
	defer f.Close()
	text, err := io.ReadAll(f)
	ok(t, err)
	return string(text)
}

func TestLinksUnderAlwaysPolicy(t *testing.T) {
	t.Parallel()
	base := linkTree(t)
	for variant, with := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			root, ref := openRoot(t, base, FollowAlways, with)
			for rel, want := range map[string]string{
				"dir/file": "inside", "abs-file": "inside", "out-abs": "SECRET", "out-rel": "SECRET", "out-dir/secret": "SECRET",
			} {
				if got := readAll(t, at(t, root, ref, rel)); got != want {
					t.Errorf("%s: read %q", rel, got)
				}
			}
			if info, err := at(t, root, ref, "out-dir").Stat(); err != nil || info.Kind != Directory || info.Link != Followed {
				t.Errorf("out-dir: %+v, %v", info, err)
			}
			if info, err := at(t, root, ref, "dangling").Stat(); err != nil || info.Link != Dangling {
				t.Errorf("dangling: %+v, %v", info, err)
			}
		})
	}
}

// TestSpecialFilesDoNotBlock: a FIFO without a writer blocks whoever opens it for reading.
func TestSpecialFilesDoNotBlock(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	ok(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o644))
	ok(t, unix.Mknod(filepath.Join(base, "socket"), unix.S_IFSOCK|0o644, 0))
	ok(t, os.Symlink("fifo", filepath.Join(base, "link")))
	ok(t, os.Symlink("/dev/zero", filepath.Join(base, "zero")))

	for variant, with := range variants {
		done := make(chan string, 1)
		go func() {
			root, ref := openRoot(t, base, FollowAlways, with)
			for _, name := range []string{"fifo", "socket", "link", "zero"} {
				local := at(t, root, ref, name)
				if _, _, err := local.OpenRegular(); !errors.Is(err, ErrNotRegular) {
					t.Errorf("%s: open %s: %v", variant, name, err)
				}
				if _, err := local.OpenDir(); !errors.Is(err, unix.ENOTDIR) {
					t.Errorf("%s: list %s: %v", variant, name, err)
				}
				if info, err := local.Stat(); err != nil || info.Kind != Special || info.Size != 0 {
					t.Errorf("%s: stat %s: %+v, %v", variant, name, info, err)
				}
			}
			done <- "ok"
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatal("blocked")
		}
	}
}

// TestSwapRaceNeverLeavesTheDrive exchanges a directory for a link to the outside, and back, while files below it are
// being opened. Whoever resolves a checked string again sooner or later reads the secret.
//
//attack:actor local user
//attack:does Exchanges directories of a shared project for links to somebody else's files while they are being used.
//attack:control Paths are resolved by the kernel beneath an open directory, never checked and then opened.
//attack:remove internal/drives/root.go: return openat2(r.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS) => return openat2(r.fd, rel, flags, 0)
func TestSwapRaceNeverLeavesTheDrive(t *testing.T) {
	t.Parallel()
	rounds := 10_000
	if testing.Short() {
		rounds = 500
	}
	for variant, with := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			tmp := t.TempDir()
			base, outside := filepath.Join(tmp, "drive"), filepath.Join(tmp, "outside")
			write(t, filepath.Join(base, "d", "file"), "inside")
			write(t, filepath.Join(outside, "file"), "SECRET")
			write(t, filepath.Join(outside, "only-outside"), "SECRET")
			// The exchange is atomic: at every moment "d" is either the directory or one of the links.
			ok(t, os.Symlink(outside, filepath.Join(base, "absolute")))
			ok(t, os.Symlink("../outside", filepath.Join(base, "relative")))

			root, ref := openRoot(t, base, FollowDrive, with)
			stop := make(chan struct{})
			var swaps sync.WaitGroup
			swaps.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					with := filepath.Join(base, [2]string{"absolute", "relative"}[i/2%2])
					if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(base, "d"), unix.AT_FDCWD, with, unix.RENAME_EXCHANGE); err != nil {
						t.Errorf("exchange: %v", err)
						return
					}
				}
			})
			reads, refusals := 0, 0
			for range rounds {
				local := at(t, root, ref, "d/file")
				f, _, err := local.OpenRegular()
				if err == nil {
					text, err := io.ReadAll(f)
					f.Close()
					if err != nil || string(text) != "inside" {
						t.Fatalf("read %q, %v", text, err)
					}
					reads++
				} else {
					refusals++
				}
				if dir, err := at(t, root, ref, "d").OpenDir(); err == nil {
					batch, err := dir.ReadBatch(make([]byte, MinBatch))
					ok(t, err)
					for e, more := batch.Next(); more; e, more = batch.Next() {
						if string(e.Name) == "only-outside" {
							t.Fatal("listed the outside")
						}
					}
					dir.Close()
				}
				if dir, name, err := at(t, root, ref, "d/new").OpenParent(); err == nil {
					// What is made now must be in the drive, wherever "d" points by now.
					_ = dir.Mkdir(name, 0o700)
					dir.Close()
				}
				if _, err := at(t, root, ref, "d/only-outside").Stat(); err == nil {
					t.Fatal("saw the outside")
				}
			}
			close(stop)
			swaps.Wait()
			if _, err := os.Lstat(filepath.Join(outside, "new")); err == nil {
				t.Fatal("made a directory outside")
			}
			if reads == 0 || refusals == 0 {
				t.Errorf("%d reads and %d refusals: the race was not exercised", reads, refusals)
			}
		})
	}
}

func TestRootErrors(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	write(t, filepath.Join(tmp, "file"), "")
	set := New("hpc", FollowDrive)
	for name, base := range map[string]string{"missing": filepath.Join(tmp, "missing"), "file": filepath.Join(tmp, "file")} {
		ref, err := set.Drive(drive("1", "hpc-x\n"+base))
		ok(t, err)
		_, err = ref.Open()
		if re, isRoot := errors.AsType[*RootError](err); !isRoot || re.Denied() {
			t.Errorf("%s: %v", name, err)
		}
	}
	root, _ := openRoot(t, tmp, FollowDrive, true)
	if _, err := root.At(Path{drive: "2", rel: "file"}); err == nil {
		t.Error("a path of another drive was accepted")
	}
}

func TestDirNamesAreSingle(t *testing.T) {
	t.Parallel()
	root, ref := openRoot(t, t.TempDir(), FollowDrive, true)
	dir, err := at(t, root, ref, "").OpenPathDir()
	ok(t, err)
	defer dir.Close()
	for _, bad := range []string{"", ".", "..", "a/b", "/a", "a\x00", strings.Repeat("x", 256)} {
		if err := dir.Mkdir(bad, 0o700); !errors.Is(err, ErrName) {
			t.Errorf("Mkdir(%q): %v", bad, err)
		}
		if _, err := dir.OpenChild(bad); !errors.Is(err, ErrName) {
			t.Errorf("OpenChild(%q): %v", bad, err)
		}
	}
	if _, _, err := at(t, root, ref, "").OpenParent(); err == nil {
		t.Error("the drive has a parent")
	}
}

// TestDirectoryOrder pages through a directory in its own order while entries come and go.
func TestDirectoryOrder(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	const stable = 2000
	for i := range stable {
		write(t, filepath.Join(base, fmt.Sprintf("stable-%d", i)), "")
		write(t, filepath.Join(base, fmt.Sprintf("gone-%d", i)), "")
	}
	root, ref := openRoot(t, base, FollowDrive, true)
	seen := map[string]int{}
	var cursor Cursor
	for more, page := true, 0; more; page++ {
		// Every page has a descriptor of its own, as after a restart.
		dir, err := at(t, root, ref, "").OpenDir()
		ok(t, err)
		cursor, more, err = dir.Page(cursor, 100, func(e Entry) error {
			seen[string(e.Name)]++
			if e.Type != EntryRegular && e.Type != EntryUnknown {
				t.Errorf("%s has type %d", e.Name, e.Type)
			}
			return nil
		})
		ok(t, err)
		dir.Close()
		if page > 200 {
			t.Fatal("the listing does not end")
		}
		for i := range 20 {
			os.Remove(filepath.Join(base, fmt.Sprintf("gone-%d", page*20+i)))
			write(t, filepath.Join(base, fmt.Sprintf("new-%d-%d", page, i)), "")
		}
	}
	for i := range stable {
		if n := seen[fmt.Sprintf("stable-%d", i)]; n != 1 {
			t.Fatalf("stable-%d was seen %d times", i, n)
		}
	}
	for name, n := range seen {
		if n != 1 {
			t.Fatalf("%s was seen %d times", name, n)
		}
	}
}

// TestTortureNamesOnDisk goes from a name on disk to JSON and back to the file.
func TestTortureNamesOnDisk(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	made := map[string]bool{}
	for _, name := range tortureNames {
		if CheckName(name) == nil {
			if err := os.WriteFile(filepath.Join(base, name), []byte(name), 0o600); err != nil {
				t.Logf("this file system does not take %q: %v", name, err)
				continue
			}
			made[name] = true
		}
	}
	root, ref := openRoot(t, base, FollowDrive, true)
	dir, err := at(t, root, ref, "").OpenDir()
	ok(t, err)
	defer dir.Close()
	found := 0
	_, _, err = dir.Page(0, 10_000, func(e Entry) error {
		found++
		name := string(e.Name)
		p, err := ref.Path(dir.Path().Join(name).UCloud())
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		local, err := root.At(p)
		if err != nil {
			return err
		}
		if got := readAll(t, local); got != name {
			t.Errorf("%q leads to the file %q", name, got)
		}
		return nil
	})
	ok(t, err)
	if found != len(made) {
		t.Errorf("found %d of %d", found, len(made))
	}
}
