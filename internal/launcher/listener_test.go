package launcher

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

func self() ident.UID { return ident.UID(os.Getuid()) }

// freePort finds a port that can be bound now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test
	return l.Addr().(*net.TCPAddr).Port
}

func listening(t *testing.T) *listener {
	t.Helper()
	l, err := listen(freePort(t))
	for errors.Is(err, unix.EADDRINUSE) { // somebody was faster
		l, err = listen(freePort(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close(true) })
	return l
}

func fileOf(t *testing.T, l *listener) *os.File {
	t.Helper()
	f, err := l.file()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) //nolint:errcheck // a test
	return f
}

func TestListenerIsNotShared(t *testing.T) {
	t.Parallel()
	l := listening(t)
	if v, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || v != 0 {
		t.Fatalf("SO_REUSEPORT = %d, %v", v, err)
	}
	if _, err := listen(l.port); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("a second listener on the port: %v", err)
	}
	sa, err := unix.Getsockname(l.fd)
	if err != nil {
		t.Fatal(err)
	}
	if a := sa.(*unix.SockaddrInet4).Addr; a != [4]byte{127, 0, 0, 1} {
		t.Fatalf("bound to %v", a)
	}
	if flags, err := unix.FcntlInt(uintptr(l.fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Fatal("the descriptor would be inherited")
	}
}

func TestListenerQueued(t *testing.T) {
	t.Parallel()
	l := listening(t)
	if l.queued() {
		t.Fatal("queued without a connection")
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test
	if !l.queued() {
		t.Fatal("the waiting connection is not seen")
	}
}

// TestResumeRefusesForeignListeners hands back all kinds of descriptors but the right one.
//
//attack:actor compromised instance
//attack:does Hands back another socket than the listener it was given, to receive requests at a port of its choice.
//attack:control A listener that comes back must be the socket that the server made.
//attack:remove internal/launcher/listener.go: case st.Ino != inode: => case false:
//attack:actor compromised instance
//attack:does Hands back a socket that the user has made.
//attack:control The kernel says who made a socket, and it must be the service account.
//attack:remove internal/launcher/listener.go: case ident.UID(st.Uid) != service: => case false:
func TestResumeRefusesForeignListeners(t *testing.T) {
	t.Parallel()
	good := listening(t)
	other := listening(t)
	if l, err := takeBack(fileOf(t, good), self(), good.port, good.inode); err != nil {
		t.Fatalf("the right one is refused: %v", err)
	} else {
		l.close(false)
	}
	notListening := func() *os.File {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "socket")
	}()
	plain, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	inode := func(f *os.File) uint64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	dead := listening(t)
	deadFile := fileOf(t, dead)
	if err := unix.Shutdown(dead.fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		file    *os.File
		service ident.UID
		port    int
		inode   uint64
	}{
		{"made by another uid", fileOf(t, good), self() + 1, good.port, good.inode},
		{"another socket of ours", fileOf(t, other), self(), other.port, good.inode},
		{"another port", fileOf(t, good), self(), other.port, good.inode},
		{"not listening", notListening, self(), good.port, inode(notListening)},
		{"shut down", deadFile, self(), dead.port, dead.inode},
		{"no socket", plain, self(), good.port, inode(plain)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if l, err := takeBack(tc.file, tc.service, tc.port, tc.inode); err == nil {
				l.close(false)
				t.Fatal("it was taken")
			} else if !errors.Is(err, errNotOurs) {
				t.Fatal(err)
			}
		})
	}
}

func TestReviveAfterShutdown(t *testing.T) {
	t.Parallel()
	l := listening(t)
	f := fileOf(t, l)
	if err := unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := l.revive(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
	if err != nil {
		t.Fatal(err)
	}
	c.Close() //nolint:errcheck // a test
	// If somebody else has taken the port meanwhile, it must fail.
	if err := unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	squatter, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", l.port))
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close() //nolint:errcheck // a test
	if err := l.revive(); err == nil {
		t.Fatal("two listeners on one port")
	}
}

//attack:actor local user
//attack:does Waits for a port that another user's instance had, to receive what is meant for it.
//attack:control A port is never given to another uid while the server lives.
//attack:remove internal/launcher/ports.go: if owner, given := p.owner[port]; given && owner != uid { => if owner, given := p.owner[port]; given && owner == ^uid {
func TestPortsStayWithTheirUID(t *testing.T) {
	t.Parallel()
	// A quiet stretch of ports below the ephemeral range.
	p, err := newPorts(19000, 19019)
	if err != nil {
		t.Fatal(err)
	}
	take := func(uid ident.UID) int {
		l, err := p.take(uid)
		if err != nil {
			return 0
		}
		l.close(true)
		return l.port
	}
	owner := map[int]ident.UID{}
	last := 0
	for i := range 40 {
		uid := ident.UID(2000 + i%4)
		port := take(uid)
		if port == 0 {
			t.Fatalf("no port for uid %d in round %d", uid, i)
		}
		if o, ok := owner[port]; ok && o != uid {
			t.Fatalf("port %d was uid %d's and is given to uid %d", port, o, uid)
		}
		if i < 10 && port <= last { // the first half of the range goes up only
			t.Fatalf("port %d after %d", port, last)
		}
		owner[port], last = uid, port
	}
	// Others still find ports in the other half; when all are somebody's, there are none, rather than a shared one.
	free := 0
	for uid := ident.UID(3000); uid < 3100 && take(uid) != 0; uid++ {
		free++
	}
	if free == 0 || free+len(owner) != 20 {
		t.Fatalf("%d ports were left for others, %d are taken", free, len(owner))
	}
	if take(2000) == 0 {
		t.Fatal("a user does not get the own port back")
	}
}

func TestPortsAfterAdoption(t *testing.T) {
	t.Parallel()
	p, err := newPorts(19100, 19119)
	if err != nil {
		t.Fatal(err)
	}
	p.adopt(19105, 2000)
	l, err := p.take(3000)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close(true)
	if l.port <= 19105 {
		t.Fatalf("port %d", l.port)
	}
}
