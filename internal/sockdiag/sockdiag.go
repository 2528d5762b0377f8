// Package sockdiag asks the kernel which uid owns a TCP socket on this machine (sock_diag(7)). An instance uses it to
// refuse connections that do not come from the gateway before it reads a byte of them (design D1).
//
// Trust: the answer comes from the kernel. Any uid may ask about any socket. What it says is who created the socket; a
// process may have passed it on since. Both ends must be in the same network namespace.
//
// The caller must compare for equality with the one uid that it expects. A socket that no process holds any more has
// no owner: that is [ErrGone], never uid 0, which a naive reading of the kernel's answer would give (TestClosedPeer).
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

var (
	// ErrNotFound tells that there is no such connection on this machine.
	ErrNotFound = errors.New("no such connection")
	// ErrGone tells that the connection exists but no process holds it: it was closed, or not yet accepted.
	ErrGone = errors.New("no process holds the connection")
)

// Sizes and numbers of sock_diag(7), linux/inet_diag.h and linux/netlink.h.
const (
	netlinkSockDiag  = 4  // NETLINK_SOCK_DIAG
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	sockIDSize       = 48 // struct inet_diag_sockid
	requestSize      = unix.NLMSG_HDRLEN + 8 + sockIDSize
	answerSize       = 4 + sockIDSize + 5*4 // struct inet_diag_msg
	allStates        = ^uint32(0)
	receiveTimeout   = time.Second
	maxStrayMessages = 64
	offsetOfUID      = 4 + sockIDSize + 3*4
	offsetOfInode    = offsetOfUID + 4
)

// Client is a netlink socket for any number of lookups, by any number of goroutines, one at a time: a lookup takes
// about two microseconds.
type Client struct {
	mu  sync.Mutex
	fd  int // -1 when closed
	seq uint32
	buf [8192]byte
}

// NewClient opens the socket. Reads give up after a second, so that a lost answer cannot hold a thread for ever.
func NewClient() (*Client, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag socket: %w", err)
	}
	tv := unix.NsecToTimeval(receiveTimeout.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			unix.Close(fd) //nolint:errcheck // nothing was written
			return nil, fmt.Errorf("set up sock_diag socket: %w", err)
		}
	}
	return &Client{fd: fd}, nil
}

// Close closes the socket. Lookups fail from then on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return net.ErrClosed
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// PeerUID is the owner of the other end of an accepted connection over loopback.
func (c *Client) PeerUID(conn *net.TCPConn) (ident.UID, error) {
	local, ok1 := conn.LocalAddr().(*net.TCPAddr)
	remote, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return 0, errors.New("look up owner of peer: not a TCP connection")
	}
	// The peer's socket sees the addresses the other way round.
	return c.Lookup(remote.AddrPort(), local.AddrPort())
}

// Lookup is the owner of the TCP socket with exactly these addresses, as that socket sees them: local is its own.
func (c *Client) Lookup(local, remote netip.AddrPort) (ident.UID, error) {
	uid, err := c.lookup(unmap(local), unmap(remote))
	if err != nil {
		return 0, fmt.Errorf("look up owner of connection %s to %s: %w", local, remote, err)
	}
	return uid, nil
}

// unmap turns IPv4 inside IPv6, as dual-stack listeners report it, into IPv4.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (c *Client) lookup(local, remote netip.AddrPort) (ident.UID, error) {
	if !local.IsValid() || !remote.IsValid() || local.Addr().Is4() != remote.Addr().Is4() {
		return 0, errors.New("the addresses do not belong together")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return 0, net.ErrClosed
	}
	c.seq++
	req := request(c.seq, local, remote)
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := retry(func() error { return unix.Sendto(c.fd, req[:], 0, kernel) }); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	// An answer to an earlier lookup that timed out may come first.
	for range maxStrayMessages {
		var n int
		var from unix.Sockaddr
		err := retry(func() (err error) {
			n, from, err = unix.Recvfrom(c.fd, c.buf[:], 0)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue // not from the kernel
		}
		uid, mine, err := parseAnswer(c.buf[:n], c.seq, local, remote)
		if mine {
			return uid, err
		}
	}
	return 0, errors.New("no answer among the messages of the kernel")
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// request is a netlink message that asks for one socket. With a full address and without NLM_F_DUMP the kernel looks
// into its hash table instead of walking through all sockets.
func request(seq uint32, local, remote netip.AddrPort) [requestSize]byte {
	var b [requestSize]byte
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], requestSize)
	ne.PutUint16(b[4:], sockDiagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], seq)
	r := b[unix.NLMSG_HDRLEN:] // struct inet_diag_req_v2
	r[0], r[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		r[0] = unix.AF_INET
	}
	ne.PutUint32(r[4:], allStates)
	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	// INET_DIAG_NOCOOKIE: any incarnation of the connection.
	ne.PutUint32(id[40:], ^uint32(0))
	ne.PutUint32(id[44:], ^uint32(0))
	return b
}

// parseAnswer reads a datagram from the kernel. mine is false if it answers another request.
func parseAnswer(b []byte, seq uint32, local, remote netip.AddrPort) (uid ident.UID, mine bool, err error) {
	ne := binary.NativeEndian
	if len(b) < unix.NLMSG_HDRLEN || ne.Uint32(b[8:]) != seq {
		return 0, false, nil
	}
	typ := ne.Uint16(b[4:])
	body := b[unix.NLMSG_HDRLEN:min(len(b), max(int(ne.Uint32(b[0:])), unix.NLMSG_HDRLEN))]
	if typ == unix.NLMSG_ERROR {
		if len(body) < 4 {
			return 0, true, errors.New("the kernel's error is too short")
		}
		errno := unix.Errno(-int32(ne.Uint32(body)))
		if errno == unix.ENOENT {
			return 0, true, ErrNotFound
		}
		return 0, true, fmt.Errorf("the kernel refuses: %w", errno)
	}
	if typ != sockDiagByFamily || len(body) < answerSize {
		return 0, true, fmt.Errorf("unexpected answer of type %d with %d bytes", typ, len(body))
	}
	// If there is no such connection the kernel falls back to a listener on the port, whose owner says nothing about
	// the peer. So the answer must carry the addresses that were asked for.
	gotLocal, gotRemote, ok := addresses(body)
	if !ok || gotLocal != local || gotRemote != remote {
		return 0, true, ErrNotFound
	}
	if ne.Uint32(body[offsetOfInode:]) == 0 {
		return 0, true, ErrGone
	}
	return ident.UID(ne.Uint32(body[offsetOfUID:])), true, nil
}

// addresses reads the socket's own and its remote address from a struct inet_diag_msg. The socket may be IPv6 although
// IPv4 was asked for, when it is a dual-stack one.
func addresses(body []byte) (local, remote netip.AddrPort, ok bool) {
	id := body[4 : 4+sockIDSize]
	var src, dst netip.Addr
	switch body[0] {
	case unix.AF_INET:
		src = netip.AddrFrom4([4]byte(id[4:8]))
		dst = netip.AddrFrom4([4]byte(id[20:24]))
	case unix.AF_INET6:
		src = netip.AddrFrom16([16]byte(id[4:20])).Unmap()
		dst = netip.AddrFrom16([16]byte(id[20:36])).Unmap()
	default:
		return netip.AddrPort{}, netip.AddrPort{}, false
	}
	local = netip.AddrPortFrom(src, binary.BigEndian.Uint16(id[0:]))
	remote = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(id[2:]))
	return local, remote, true
}
