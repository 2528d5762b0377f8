// Package handover replaces a running process by another one without losing a connection: listening sockets are
// inherited by the successor, which says when it serves them, and only then does the old process stop accepting. The
// same sockets may come from systemd's socket activation. The gateway and IM/Server use it.
//
// # Protocol
//
// The successor finds the sockets at descriptor 3 and up, their number in UCLOUD_HANDOVER_FDS, and after them a pipe to
// which it writes one line when it is ready. From systemd they come by LISTEN_PID and LISTEN_FDS (sd_listen_fds(3)).
// Sockets are recognised by their address, never by their order, so a configuration that has changed gets the sockets
// that it still names, and the others are closed.
//
// # Trust
//
// The environment and the descriptors were set up by systemd or by our own predecessor, both of the same trust as this
// process; what they hold is nevertheless checked to be listening sockets. The variables are removed, and the descriptors
// marked close-on-exec, before anything else can inherit them (contract 02 point 9.13).
package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names of environment variables.
const (
	envCount       = "UCLOUD_HANDOVER_FDS" // ours: the number of sockets; the pipe follows them
	envSystemdPID  = "LISTEN_PID"
	envSystemdFDs  = "LISTEN_FDS"
	envSystemdName = "LISTEN_FDNAMES"
)

const firstFD = 3 // SD_LISTEN_FDS_START

// readyLine is what a successor writes to the pipe.
const readyLine = "ready\n"

// Sockets are the listening sockets that this process was given, and those it has opened.
type Sockets struct {
	mu    sync.Mutex
	given []net.Listener // not yet asked for
	ready *os.File       // nil if there is no predecessor that waits
}

// Inherit takes over the sockets that the environment tells of, if any. It must be called once, early, and before other
// goroutines read the environment.
func Inherit() (*Sockets, error) {
	count, pipe, err := inheritance(os.Getenv, os.Getpid())
	for _, name := range []string{envCount, envSystemdPID, envSystemdFDs, envSystemdName} {
		os.Unsetenv(name)
	}
	if err != nil {
		return nil, err
	}
	s := new(Sockets)
	for fd := firstFD; fd < firstFD+count; fd++ {
		unix.CloseOnExec(fd)
		l, err := listenerOf(fd)
		if err != nil {
			return nil, fmt.Errorf("take over descriptor %d: %w", fd, err)
		}
		s.given = append(s.given, l)
	}
	if pipe {
		fd := firstFD + count
		unix.CloseOnExec(fd)
		s.ready = os.NewFile(uintptr(fd), "ready")
	}
	return s, nil
}

// inheritance reads the variables.
func inheritance(getenv func(string) string, pid int) (count int, pipe bool, err error) {
	value := getenv(envCount)
	pipe = value != ""
	if !pipe {
		// LISTEN_PID guards against variables that were meant for a parent.
		if getenv(envSystemdPID) != strconv.Itoa(pid) {
			return 0, false, nil
		}
		value = getenv(envSystemdFDs)
	}
	count, err = strconv.Atoi(value)
	if err != nil || count < 0 || count > 64 {
		return 0, false, fmt.Errorf("environment names %q inherited sockets", value)
	}
	return count, pipe, nil
}

func listenerOf(fd int) (net.Listener, error) {
	accepting, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("not a socket: %w", err)
	}
	if accepting == 0 {
		return nil, errors.New("not a listening socket")
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // FileListener makes a duplicate
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	keepPath(l)
	return l, nil
}

// keepPath stops a Unix listener from removing its path when it is closed: the successor listens on the same one.
func keepPath(l net.Listener) {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
}

// Listen gives the socket that listens at an address: an inherited one if there is, else a new one. The address is
// "ip:port" or "unix:/path". A new Unix socket has mode 0600, and replaces one on which nobody answers; its directory
// must not be writable by others.
func (s *Sockets) Listen(ctx context.Context, address string) (net.Listener, error) {
	if l := s.take(address); l != nil {
		return l, nil
	}
	var lc net.ListenConfig
	path, isUnix := strings.CutPrefix(address, "unix:")
	if !isUnix {
		network := "tcp"
		if ap, err := netip.ParseAddrPort(address); err == nil && ap.Addr().Is4() {
			network = "tcp4" // else 0.0.0.0 would also mean all IPv6 addresses
		}
		l, err := lc.Listen(ctx, network, address)
		if err != nil {
			return nil, fmt.Errorf("listen at %s: %w", address, err)
		}
		return l, nil
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listen at %s: %w", address, err)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", address, err)
	}
	keepPath(l)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen at %s: %w", address, err)
	}
	return l, nil
}

// removeStale removes a Unix socket that nobody listens on.
func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket")
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
		return errors.New("another process listens there")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// take finds an inherited socket by its address.
func (s *Sockets) take(address string) net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range s.given {
		if sameAddress(l.Addr(), address) {
			s.given = append(s.given[:i], s.given[i+1:]...)
			return l
		}
	}
	return nil
}

// sameAddress compares the address of a socket with a configured one. All wildcard addresses are the same: systemd binds
// "[::]:80" for "80", which serves IPv4 as well.
func sameAddress(have net.Addr, want string) bool {
	switch a := have.(type) {
	case *net.UnixAddr:
		path, ok := strings.CutPrefix(want, "unix:")
		return ok && a.Name == path
	case *net.TCPAddr:
		w, err := netip.ParseAddrPort(want)
		if err != nil || int(w.Port()) != a.Port || a.Port == 0 {
			return false
		}
		h := a.AddrPort().Addr().Unmap()
		return h == w.Addr().Unmap() || h.IsUnspecified() && w.Addr().IsUnspecified()
	}
	return false
}

// CloseRest closes the inherited sockets that nobody has asked for and gives their addresses.
func (s *Sockets) CloseRest() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rest []string
	for _, l := range s.given {
		rest = append(rest, l.Addr().String())
		l.Close()
	}
	s.given = nil
	return rest
}

// Ready tells the predecessor, if there is one, that this process serves the sockets. It may be called more than once.
func (s *Sockets) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil {
		return nil
	}
	_, err := s.ready.WriteString(readyLine)
	if cerr := s.ready.Close(); err == nil {
		err = cerr
	}
	s.ready = nil
	if err != nil {
		return fmt.Errorf("tell the predecessor: %w", err)
	}
	return nil
}
