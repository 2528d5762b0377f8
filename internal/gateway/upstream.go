package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of one upstream.
const (
	maxIdleUpstream     = 64 // pooled connections of one upstream
	upstreamIdleTimeout = 45 * time.Second
	upstreamDialTimeout = time.Second
	// maxAnswerHead bounds the head of an answer in bytes. Without it an instance, which its user controls, could make
	// this process read headers until it has no memory left.
	maxAnswerHead = 256 << 10
	// retireTimeout bounds how long a write of a request head to a connection of an old generation may take.
	retireTimeout = 2 * time.Second
)

// errStale tells that the upstream was replaced before anything was sent to it.
var errStale = errors.New("the route has changed")

// upstream is one process behind the gateway: one generation of one route, or IM/Server. It pools connections, and it
// knows which of them have a request on the way out, so that [upstream.retire] can promise that no more will come.
type upstream struct {
	dial func(ctx context.Context) (net.Conn, error)
	// dialTimeout is for upstreams that are not on this machine; 0 means upstreamDialTimeout.
	dialTimeout time.Duration

	mu       sync.Mutex
	idle     []*upstreamConn            // most recently used last
	stale    bool                       // nothing new may be sent
	starting map[*upstreamConn]struct{} // connections on which a request head is being written
	settled  chan struct{}              // closed when stale and starting is empty; made by retire
}

// upstreamConn is one connection to an upstream, used by one request at a time.
type upstreamConn struct {
	net.Conn
	raw       syscall.RawConn
	br        *bufio.Reader
	bw        *bufio.Writer
	budget    int64 // bytes that may still be read
	read      bool  // something was read for the request under way
	wrote     atomic.Int64
	idleSince time.Time
}

func newUpstreamConn(nc net.Conn) (*upstreamConn, error) {
	c := &upstreamConn{Conn: nc, budget: math.MaxInt64}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("connection of type %T has no descriptor", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c.raw = raw
	c.br = bufio.NewReaderSize(c, 4<<10)
	c.bw = bufio.NewWriterSize(c, 4<<10)
	return c, nil
}

// Read reads within the budget.
func (c *upstreamConn) Read(p []byte) (int, error) {
	if c.budget <= 0 {
		return 0, errors.New("the head of the answer is too large")
	}
	if int64(len(p)) > c.budget {
		p = p[:c.budget]
	}
	n, err := c.Conn.Read(p)
	c.budget -= int64(n)
	if n > 0 {
		c.read = true
	}
	return n, err
}

// Write counts what the kernel has taken: once it is not zero, the other end may have read it.
func (c *upstreamConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.wrote.Add(int64(n))
	return n, err
}

// ReadFrom lets a body be copied with as few copies as the kernel allows.
func (c *upstreamConn) ReadFrom(r io.Reader) (int64, error) {
	var n int64
	var err error
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		n, err = rf.ReadFrom(r)
	} else {
		n, err = io.Copy(onlyWriter{c.Conn}, r)
	}
	c.wrote.Add(n)
	return n, err
}

type onlyWriter struct{ io.Writer }

// alive looks, without waiting, whether the other end has closed the connection or has sent something unasked. Either
// makes it useless: an answer to no request is an attempt to answer the next one.
func (c *upstreamConn) alive() bool {
	if c.br.Buffered() > 0 {
		return false
	}
	var errno error
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, errno = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && (errno == unix.EAGAIN || errno == unix.EWOULDBLOCK)
}

// get gives a pooled connection, or a new one. reused tells which.
func (u *upstream) get(ctx context.Context) (c *upstreamConn, reused bool, err error) {
	for {
		u.mu.Lock()
		if u.stale {
			u.mu.Unlock()
			return nil, false, errStale
		}
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			break
		}
		c, u.idle[n-1] = u.idle[n-1], nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if c.alive() {
			c.wrote.Store(0)
			c.read = false
			return c, true, nil
		}
		c.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, max(upstreamDialTimeout, u.dialTimeout))
	defer cancel()
	nc, err := u.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	c, err = newUpstreamConn(nc)
	if err != nil {
		nc.Close()
		return nil, false, err
	}
	return c, false, nil
}

// put returns a connection whose answer has been read completely.
func (u *upstream) put(c *upstreamConn) {
	c.idleSince = time.Now()
	u.mu.Lock()
	keep := !u.stale && len(u.idle) < maxIdleUpstream
	if keep {
		u.idle = append(u.idle, c)
	}
	u.mu.Unlock()
	if !keep {
		c.Close()
	}
}

// begin asks for permission to write the head of a request. After a nil error the caller must call finish when the head
// has been written, or when writing failed.
func (u *upstream) begin(c *upstreamConn) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stale {
		return errStale
	}
	if u.starting == nil {
		u.starting = make(map[*upstreamConn]struct{})
	}
	u.starting[c] = struct{}{}
	return nil
}

func (u *upstream) finish(c *upstreamConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.starting, c)
	if u.stale && len(u.starting) == 0 && u.settled != nil {
		close(u.settled)
		u.settled = nil
	}
}

// retire closes the idle connections and returns when no request can be written to this upstream any more. Requests
// that were written before are not disturbed; their connections are closed when they are done. A process that takes
// nothing from its socket cannot hold this up: after a while the connection is closed instead.
func (u *upstream) retire() {
	u.mu.Lock()
	idle := u.idle
	u.idle, u.stale = nil, true
	var settled chan struct{}
	if len(u.starting) > 0 {
		if u.settled == nil {
			u.settled = make(chan struct{})
		}
		settled = u.settled
	}
	u.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
	if settled == nil {
		return
	}
	timer := time.NewTimer(retireTimeout)
	defer timer.Stop()
	select {
	case <-settled:
		return
	case <-timer.C:
	}
	u.mu.Lock()
	for c := range u.starting {
		c.Close() // wakes the writer, which then calls finish
	}
	u.mu.Unlock()
	<-settled
}

// sweep closes connections that were idle for longer than the limit.
func (u *upstream) sweep(now time.Time) {
	u.mu.Lock()
	n := 0
	for n < len(u.idle) && now.Sub(u.idle[n].idleSince) > upstreamIdleTimeout {
		n++
	}
	var old []*upstreamConn
	if n > 0 {
		old = u.idle[:n:n]
		u.idle = append([]*upstreamConn(nil), u.idle[n:]...)
	}
	u.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}
