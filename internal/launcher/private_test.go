package launcher

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

const strangerUID = 54321

// TestPlantedDirectories: somebody was faster and made the directory, or put a link there.
//
//attack:actor local user
//attack:does Prepares the directory in which the service keeps the keys of routes.
//attack:control A private directory must belong to the service and be closed to all others.
//attack:remove internal/launcher/private.go: case st.Mode&0o077 != 0: => case false:
func TestPlantedDirectories(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root) // to make files of others
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	if err := os.Mkdir(victim, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"a link":               func(p string) error { return os.Symlink(victim, p) },
		"another owner":        func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, strangerUID, 0)) },
		"writable by others":   func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o777)) },
		"readable by a group":  func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o750)) },
		"a file":               func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"a link to nowhere":    func(p string) error { return os.Symlink(base+"/nowhere", p) },
		"below a missing path": func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
			if err := plant(path); err != nil {
				t.Fatal(err)
			}
			if name == "below a missing path" {
				path = filepath.Join(path, "x")
			}
			if d, err := openPrivateDir(path); err == nil {
				d.close()
				t.Fatal("the directory is used")
			}
		})
	}
	if entries, _ := os.ReadDir(victim); len(entries) != 0 {
		t.Fatal("something was written behind the link")
	}
}

// TestPlantedFiles: names in the directory are taken by something else. It could only have been put there while the
// directory was open to others; nothing may be written through it even so.
//
//attack:actor local user
//attack:does Plants a link in a directory of the service, so that it writes over another file.
//attack:control Files of the service are opened without following links, and must be its own.
//attack:remove internal/launcher/private.go: flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK => flags|unix.O_CLOEXEC|unix.O_NONBLOCK
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	base := t.TempDir()
	target := filepath.Join(base, "target")
	if err := os.WriteFile(target, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	plants := map[string]func(path string) error{
		"link":      func(p string) error { return os.Symlink(target, p) },
		"hard link": func(p string) error { return os.Link(target, p) },
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"stranger":  func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chown(p, strangerUID, 0)) },
		"open":      func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o666)) },
	}
	for name, plant := range plants {
		t.Run("log/"+name, func(t *testing.T) {
			d, err := openPrivateDir(filepath.Join(base, "log-"+name))
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			path := filepath.Join(d.path, "1000.log")
			if err := plant(path); err != nil {
				t.Fatal(err)
			}
			u := newUserLog(d, 1000, quiet())
			done := make(chan struct{})
			go func() { u.add([]byte("secret line\n"), time.Now()); close(done) }()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("writing blocks")
			}
			if data, err := os.ReadFile(target); err != nil || string(data) != "untouched" {
				t.Fatalf("written to %q, %v", data, err)
			}
			if !u.failed {
				t.Fatal("the file was used")
			}
			if u.tail(100) != "secret line\n" {
				t.Fatal("the line is not even in memory")
			}
		})
		t.Run("record/"+name, func(t *testing.T) {
			d, err := openPrivateDir(filepath.Join(base, "rec-"+name))
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			// Both the final and the temporary name are taken.
			for _, n := range []string{"1000.json", "1000.json.new"} {
				if err := plant(filepath.Join(d.path, n)); err != nil {
					t.Fatal(err)
				}
			}
			err = d.replace("1000.json", []byte("key"))
			if data, rerr := os.ReadFile(target); rerr != nil || string(data) != "untouched" {
				t.Fatalf("written to %q, %v", data, rerr)
			}
			if name == "directory" {
				if err == nil {
					t.Fatal("a directory was replaced")
				}
				return
			}
			if err != nil {
				t.Fatal(err) // renaming over the plant is safe
			}
			got, err := d.read("1000.json", 100)
			if err != nil || string(got) != "key" {
				t.Fatalf("%q, %v", got, err)
			}
		})
		t.Run("read/"+name, func(t *testing.T) {
			d, err := openPrivateDir(filepath.Join(base, "read-"+name))
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			if err := plant(filepath.Join(d.path, "1000.json")); err != nil {
				t.Fatal(err)
			}
			if got, err := d.read("1000.json", 100); err == nil {
				t.Fatalf("read %q", got)
			}
		})
	}
}

//attack:actor compromised instance
//attack:does Fills the disk by writing to its log.
//attack:control What an instance may add to its log is limited in rate, and the log is rotated.
//attack:remove internal/launcher/logs.go: if !u.limit.AllowN(now, len(p)) { => if false {
func TestUserLog(t *testing.T) {
	t.Parallel()
	d, err := openPrivateDir(t.TempDir() + "/users")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	u := newUserLog(d, 1000, quiet())
	now := time.Now()
	line := strings.Repeat("x", 999) + "\n"

	t.Run("the end stays in memory", func(t *testing.T) {
		for range 100 {
			u.add([]byte(line), now)
		}
		u.add([]byte("the last line\n"), now)
		if got := u.tail(20); !strings.HasSuffix(got, "the last line\n") {
			t.Fatalf("%q", got)
		}
		if got := len(u.tail(1 << 20)); got != ringBytes {
			t.Fatalf("%d bytes are kept", got)
		}
		mark := u.mark()
		u.add([]byte("new"), now)
		if got := u.since(mark, 100); got != "new" {
			t.Fatalf("since: %q", got)
		}
	})
	t.Run("a flood is cut", func(t *testing.T) {
		for range 2000 { // 2 MB in one moment
			u.add([]byte(line), now)
		}
		if n := logSize(t, d); n > logBurst+10_000 {
			t.Fatalf("%d bytes were written", n)
		}
		u.add([]byte("later\n"), now.Add(time.Minute))
		data, err := d.read("1000.log", 1<<20)
		if err != nil || !strings.Contains(string(data), "bytes were dropped here") || !strings.HasSuffix(string(data), "later\n") {
			t.Fatalf("%v, ...%q", err, data[max(0, len(data)-200):])
		}
	})
	t.Run("files rotate", func(t *testing.T) {
		for i := range 2 * logFileBytes / len(line) * 4 {
			now = now.Add(20 * time.Millisecond)
			u.add([]byte(line), now.Add(time.Duration(i)*time.Second))
		}
		entries, err := os.ReadDir(d.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || info.Size() > logFileBytes+10_000 || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", e.Name(), info.Size(), info.Mode())
			}
		}
		if len(entries) < 2 || len(entries) > logFilesKept+1 {
			t.Errorf("%d files", len(entries))
		}
	})
}

func logSize(t *testing.T, d *privateDir) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(d.path, "1000.log"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
