package ipc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// DialOptions configure [Dial].
type DialOptions struct {
	// ServerUID tells whether a server of this uid may be talked to. Nil accepts root and the owner of the directory
	// that holds the socket, which is right where the path is known to be good. An instance, which read the path from
	// its standard input, must require the uid in SUDO_UID (contract 02 point 9.24).
	ServerUID func(ident.UID) bool
	// Timeout bounds connecting; 0 means 5 s.
	Timeout time.Duration
}

// Dial connects to the server's socket and checks who listens there before a byte is sent (contract 04 section 7.13).
// The error is Unavailable if nobody listens, Forbidden if the wrong account does.
func Dial(ctx context.Context, path string, o DialOptions) (*Client, error) {
	if !filepath.IsAbs(path) { // also keeps out abstract names, which anybody may bind
		return nil, fmt.Errorf("dial ipc socket %q: the path is not absolute", path)
	}
	set(&o.Timeout, 5*time.Second)
	if o.ServerUID == nil {
		owner, err := directoryOwner(path)
		if err != nil {
			return nil, unreachable(path, err)
		}
		o.ServerUID = func(uid ident.UID) bool { return uid == 0 || uid == owner }
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	conn, err := dialRetry(ctx, path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	peer, err := peerOf(conn, overflowUID())
	if err == nil && !o.ServerUID(peer.uid) {
		err = fmt.Errorf("uid %d", peer.uid)
	}
	if err != nil {
		conn.Close() //nolint:errcheck // nothing was written
		return nil, failure.Wrap(fmt.Errorf("dial ipc socket %s: %w", path, err), failure.Forbidden,
			"The service's socket belongs to the wrong account")
	}
	return newClient(conn, peer), nil
}

func unreachable(path string, err error) error {
	return failure.Wrap(fmt.Errorf("dial ipc socket %s: %w", path, err), failure.Unavailable, "The service cannot be reached")
}

// dialRetry connects. Where TCP waits, connect(2) on a non-blocking Unix socket gives EAGAIN while the backlog is full.
func dialRetry(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func directoryOwner(path string) (ident.UID, error) {
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("the directory's owner is unknown")
	}
	return ident.UID(st.Uid), nil
}
