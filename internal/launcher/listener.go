package launcher

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// backlog is how many connections may wait while no process accepts. The kernel cuts it to net.core.somaxconn.
const backlog = 4096

// listener is the server's own descriptor of a listening socket. It is a bare descriptor: an os.File or net.Listener
// would be registered with the runtime's poller, and the server would wake up for each connection to each instance.
type listener struct {
	port  int
	inode uint64 // of the socket, to recognise it when an instance hands it back

	mu sync.Mutex // guards fd
	fd int        // -1 when closed
}

var errListenerClosed = errors.New("listener is closed")

// listen binds 127.0.0.1:port and listens. SO_REUSEADDR lets it follow connections in TIME_WAIT. SO_REUSEPORT must
// stay off: with it, another process of our own uid could share the port. Whoever has the port already, on this or on
// the wildcard address, makes it fail with EADDRINUSE.
func listen(port int) (*listener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l, err := func() (*listener, error) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return nil, fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return nil, fmt.Errorf("bind 127.0.0.1:%d: %w", port, err)
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return nil, fmt.Errorf("listen on 127.0.0.1:%d: %w", port, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("fstat listener: %w", err)
		}
		return &listener{port: port, inode: st.Ino, fd: fd}, nil
	}()
	if err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, err
	}
	return l, nil
}

// file gives a duplicate for passing on. The caller closes it soon: while it is open it is in the poller.
func (l *listener) file() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return nil, errListenerClosed
	}
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate listener: %w", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// queued tells whether a connection waits to be accepted.
func (l *listener) queued() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return false
	}
	p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLIN != 0
}

// revive listens again if a holder of a duplicate has shut the socket down. It fails if somebody has taken the port
// meanwhile; the user's route is then broken by the user's own doing, and gets a new listener.
func (l *listener) revive() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return errListenerClosed
	}
	// A shut-down socket keeps its port only while it listens: check the address as well.
	if err := unix.Listen(l.fd, backlog); err != nil {
		return fmt.Errorf("listen again on port %d: %w", l.port, err)
	}
	return checkSocketAddress(l.fd, l.port)
}

// close gives the socket up. With shut, duplicates that a process may still hold stop listening too.
func (l *listener) close(shut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return
	}
	if shut {
		unix.Shutdown(l.fd, unix.SHUT_RDWR) //nolint:errcheck // the close below matters
	}
	unix.Close(l.fd) //nolint:errcheck // nothing was written
	l.fd = -1
}

// errNotOurs tells that a descriptor is not the listener it should be.
var errNotOurs = errors.New("not the listener of this route")

// takeBack checks a descriptor that an instance hands back after a restart of the server, and keeps a duplicate. The
// sender is the user's process, so that nothing about f is believed:
//   - the socket's inode belongs to its creator for good, fchown to another uid is refused by the kernel; so owner
//     equal to the service account means that a server of ours made it;
//   - SO_ACCEPTCONN shows that nobody has shut it down, after which the port would be free for others;
//   - address, port and inode are those on record for this uid.
func takeBack(f *os.File, service ident.UID, port int, inode uint64) (*listener, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take listener back: %w", err)
	}
	var l *listener
	var inner error
	err = rc.Control(func(raw uintptr) {
		fd := int(raw)
		if inner = checkListener(fd, service, port, inode); inner != nil {
			return
		}
		var kept int
		if kept, inner = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0); inner == nil {
			l = &listener{port: port, inode: inode, fd: kept}
		}
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return nil, fmt.Errorf("take listener back: %w", err)
	}
	return l, nil
}

func checkListener(fd int, service ident.UID, port int, inode uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%w: no socket", errNotOurs)
	case ident.UID(st.Uid) != service:
		return fmt.Errorf("%w: made by uid %d", errNotOurs, st.Uid)
	case st.Ino != inode:
		return fmt.Errorf("%w: another socket", errNotOurs)
	}
	accepting, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("getsockopt SO_ACCEPTCONN: %w", err)
	}
	if accepting != 1 {
		return fmt.Errorf("%w: it does not listen", errNotOurs)
	}
	return checkSocketAddress(fd, port)
}

func checkSocketAddress(fd, port int) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	in4, ok := sa.(*unix.SockaddrInet4)
	if !ok {
		return fmt.Errorf("%w: not IPv4", errNotOurs)
	}
	want := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
	if got := netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)); got != want {
		return fmt.Errorf("%w: bound to %s", errNotOurs, got)
	}
	return nil
}
