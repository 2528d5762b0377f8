package ipc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// defaultOverflowUID is what the kernel shows for a uid that has no mapping in our user namespace, unless
// /proc/sys/kernel/overflowuid says otherwise (user_namespaces(7)).
const defaultOverflowUID ident.UID = 65534

// soPeerPIDFD is SO_PEERPIDFD (Linux 6.5, asm-generic/socket.h).
const soPeerPIDFD = 77

// Peer is the process at the other end of a connection, as the kernel reported it when the connection was made
// (SO_PEERCRED, unix(7)). Only this package makes one, so a Peer in a signature is proof that the kernel was asked.
type Peer struct {
	uid    ident.UID
	gid    ident.GID
	pid    int32
	groups []ident.GID
}

// UID is the effective user id.
func (p Peer) UID() ident.UID { return p.uid }

// GID is the effective group id.
func (p Peer) GID() ident.GID { return p.gid }

// PID is the process id, 0 if the process is in a pid namespace that we cannot see. The process may have ended and the
// id may have been reused: do not signal it, see [Request.PIDFD].
func (p Peer) PID() int32 { return p.pid }

// InGroup tells whether the process had the group, as effective or supplementary group, when it connected
// (SO_PEERGROUPS). A login that is older than a change of membership still shows the old groups.
func (p Peer) InGroup(g ident.GID) bool { return p.gid == g || slices.Contains(p.groups, g) }

// errForeignNamespace tells that the peer's uid does not exist in our user namespace.
var errForeignNamespace = errors.New("the peer is in another user namespace")

// peerOf reads the credentials from the connection's own descriptor. It must not go through File(): that duplicates the
// descriptor and switches the open file description to blocking mode, after which each connection holds an OS thread
// and deadlines do nothing.
func peerOf(c *net.UnixConn, overflow ident.UID) (Peer, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var p Peer
	var operr error
	err = rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			operr = err
			return
		}
		// The kernel's ids are unsigned; so are ours. (uid_t)-1 is "no credentials", on sockets that are not connected.
		p = Peer{uid: ident.UID(cred.Uid), gid: ident.GID(cred.Gid), pid: cred.Pid}
		p.groups = peerGroups(int(fd))
	})
	if err == nil {
		err = operr
	}
	if err != nil {
		return Peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if p.uid == overflow || p.uid == defaultOverflowUID || p.uid == ^ident.UID(0) {
		return Peer{}, fmt.Errorf("uid %d: %w", p.uid, errForeignNamespace)
	}
	return p, nil
}

// peerGroups reads SO_PEERGROUPS (Linux 4.13). Failure means "no groups", which grants nothing.
func peerGroups(fd int) []ident.GID {
	buf := make([]ident.GID, 64)
	for range 2 {
		size := uint32(len(buf)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return slices.Clone(buf[:size/4])
		case errno == unix.ERANGE && size <= 65536*4: // NGROUPS_MAX; the kernel has told the size that it needs
			buf = make([]ident.GID, size/4)
		default:
			return nil
		}
	}
	return nil
}

func peerPIDFD(c *net.UnixConn, p Peer) (*os.File, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open pidfd of peer: %w", err)
	}
	var fd int
	var operr error
	err = rc.Control(func(s uintptr) {
		fd, operr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, soPeerPIDFD)
		if errors.Is(operr, unix.ENOPROTOOPT) && p.pid > 0 {
			fd, operr = unix.PidfdOpen(int(p.pid), 0)
		}
	})
	if err == nil {
		err = operr
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of peer: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil // close-on-exec by definition of pidfds
}

// overflowUID is the uid the kernel shows for peers from other user namespaces.
func overflowUID() ident.UID {
	raw, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return defaultOverflowUID
	}
	uid, err := ident.ParseUID(strings.TrimSpace(string(raw)))
	if err != nil {
		return defaultOverflowUID
	}
	return uid
}

// errAttach tells that a file cannot be sent because it is closed or none.
var errAttach = errors.New("attach descriptor")

// withDescriptors runs do while the descriptors of files are held open, without switching them to blocking mode.
func withDescriptors(files []*os.File, fds []int, do func(fds []int) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	rc, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("%w: %w", errAttach, err)
	}
	var inner error
	err = rc.Control(func(fd uintptr) { inner = withDescriptors(files[1:], append(fds, int(fd)), do) })
	if err != nil {
		return fmt.Errorf("%w: %w", errAttach, err)
	}
	return inner
}
