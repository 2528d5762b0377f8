package ipc

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s.sock")
	var l *net.UnixListener
	for range 2 { // the second time over the socket that the first one leaves behind
		var err error
		if l, err = Listen(path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o666 {
			t.Fatalf("got %v, %v", info, err)
		}
		c, err := Dial(t.Context(), path, DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("closing removes the socket, which may be a successor's: %v", err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 { // the socket and the lock
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

// TestListenRefuses tries the tricks of contract 04 section 7.13. Whatever stands under the name must be left as it is.
//
//attack:actor local user
//attack:does Plants something under the socket's name, in a directory that others can write to.
//attack:control The socket is made only in a directory that nobody else can change.
//attack:remove internal/ipc/listen.go: case st.Mode&0o022 != 0: => case false:
func TestListenRefuses(t *testing.T) {
	t.Parallel()
	stale := func(t *testing.T, path string) {
		t.Helper()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		prep func(t *testing.T, dir, path string)
		want error
		root bool
	}{
		{"live server", func(t *testing.T, _, path string) {
			l, err := Listen(path)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, ErrInUse, false},
		{"live server with a full backlog", func(t *testing.T, _, path string) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
			must(t, unix.Listen(fd, 0))
			fillBacklog(t, path)
		}, ErrInUse, false},
		{"server that is starting", func(t *testing.T, dir, _ string) {
			f, err := os.OpenFile(filepath.Join(dir, ".s.sock.lock"), os.O_CREATE|os.O_RDWR, 0o600)
			must(t, err)
			t.Cleanup(func() { f.Close() })
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		}, ErrInUse, false},
		{"regular file", func(t *testing.T, _, path string) { must(t, os.WriteFile(path, []byte("precious"), 0o600)) }, ErrUnsafe, false},
		{"directory", func(t *testing.T, _, path string) { must(t, os.Mkdir(path, 0o700)) }, ErrUnsafe, false},
		{"named pipe", func(t *testing.T, _, path string) { must(t, unix.Mkfifo(path, 0o600)) }, ErrUnsafe, false},
		{"symbolic link to a stale socket", func(t *testing.T, dir, path string) {
			stale(t, filepath.Join(dir, "other"))
			must(t, os.Symlink("other", path))
		}, ErrUnsafe, false},
		{"dangling symbolic link", func(t *testing.T, _, path string) { must(t, os.Symlink("nowhere", path)) }, ErrUnsafe, false},
		{"second hard link", func(t *testing.T, dir, path string) {
			stale(t, path)
			must(t, os.Link(path, filepath.Join(dir, "other")))
		}, ErrUnsafe, false},
		{"stale socket of another account", func(t *testing.T, _, path string) {
			stale(t, path)
			must(t, os.Chown(path, 61_060, 61_060))
		}, ErrUnsafe, true},
		{"lock file is a symbolic link", func(t *testing.T, dir, _ string) {
			must(t, os.Symlink("victim", filepath.Join(dir, ".s.sock.lock")))
		}, unix.ELOOP, false},
		{"directory writable by the group", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o775)) }, ErrUnsafe, false},
		{"directory writable by all, sticky", func(t *testing.T, dir, _ string) {
			must(t, os.Chmod(dir, 0o777|os.ModeSticky))
		}, ErrUnsafe, false},
		{"directory of another account", func(t *testing.T, dir, _ string) { must(t, os.Chown(dir, 61_060, 61_060)) }, ErrUnsafe, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.root {
				requireRoot(t)
			}
			dir := shortDir(t)
			path := filepath.Join(dir, "s.sock")
			tc.prep(t, dir, path)
			before := listing(t, dir)
			l, err := Listen(path)
			if err == nil {
				l.Close()
			}
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if after := strings.Replace(listing(t, dir), lockLine(t, dir), "", 1); after != strings.Replace(before, lockLine(t, dir), "", 1) {
				t.Fatalf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}

// listing tells what is in a directory, by inode.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		b.WriteString(e.Name() + " " + e.Type().String() + " " + ident.UID(st.Ino).String() + "\n")
	}
	return b.String()
}

// lockLine is the line of the lock file in the listing, which Listen may add.
func lockLine(t *testing.T, dir string) string {
	t.Helper()
	for line := range strings.Lines(listing(t, dir)) {
		if strings.HasPrefix(line, ".s.sock.lock -") {
			return line
		}
	}
	return "\x00"
}

func fillBacklog(t *testing.T, path string) {
	t.Helper()
	for range 100 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); errors.Is(err, unix.EAGAIN) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the backlog does not fill")
}

func TestListenPaths(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "s.sock", "./s.sock", "/", "@abstract", dir + "/../x", dir + "//s.sock", dir + "/no/s.sock", dir + "/link/s.sock"} {
		if l, err := Listen(path); err == nil {
			l.Close()
			t.Errorf("%q was accepted", path)
		}
	}
	// The temporary name is longer than the name itself, and must not make the address too long.
	long := dir + "/" + strings.Repeat("n", 107-len(dir)-1)
	l, err := Listen(long)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestListenRace starts many servers at once: at most one may believe that it has the name, and that one must have it.
func TestListenRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s.sock")
	for range 20 {
		var mu sync.Mutex
		var won []*net.UnixListener
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				l, err := Listen(path)
				if err == nil {
					mu.Lock()
					won = append(won, l)
					mu.Unlock()
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d servers have the name", len(won))
		}
		won[0].Close()
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for _, path := range []string{dir + "/none", dir + "/no/such"} {
		if c, err := Dial(t.Context(), path, DialOptions{}); !failure.Is(err, failure.Unavailable) {
			t.Errorf("%s: got %v, %v", path, c, err)
		}
	}
	for _, path := range []string{"", "s.sock", "@abstract"} {
		if c, err := Dial(t.Context(), path, DialOptions{ServerUID: func(ident.UID) bool { return true }}); err == nil {
			c.Close()
			t.Errorf("%q was dialled", path)
		}
	}
}

// TestDialWaitsForBacklog: a burst of clients is served late, not refused.
func TestDialWaitsForBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	fillBacklog(t, path)
	if c, err := Dial(t.Context(), path, DialOptions{Timeout: 50 * time.Millisecond}); !failure.Is(err, failure.Unavailable) {
		t.Fatalf("got %v, %v", c, err)
	}
	done := make(chan error, 1)
	go func() {
		c, err := Dial(t.Context(), path, DialOptions{Timeout: patience})
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	for range 2 {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(conn)
	}
	if err := receive(t, "the connection", done); err != nil {
		t.Fatal(err)
	}
}
