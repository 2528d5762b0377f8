package gateway

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// # HTTP/2
//
// What net/http does by itself (Go 1.26; http2abuse_test.go asks it): it runs at most MaxConcurrentStreams handlers at a time
// and ends a connection whose reset requests pile up (rapid reset), or which sends CONTINUATION frames, or PING and SETTINGS
// frames that it does not take the answers of, without end; it bounds the decoded header and the table of HPACK; and it
// closes connections that neither send nor answer a ping. What it lets pass is work that is never more than was sent:
// requests that are begun and taken back at any rate, and frames that carry nothing at any rate. These have a budget here,
// which a connection that Core uses does not have.

const (
	// freeOverhead and overheadPerSecond are what a client may send beside its requests: pings, settings, windows.
	// And the bodies that may be here before anybody reads them: while an instance is woken, or in the moment before Core's
	// token is looked at.
	freeOverhead      = 256<<10 + receiveWindow
	overheadPerSecond = 4 << 10
	receiveWindow     = 1 << 20
	// resetsPerSecond come back into the budget of taken back requests.
	resetsPerSecond = 10
	// endAfter is how long a connection that is over a limit may stay, so that the refusal can be read.
	endAfter = 2 * time.Second
)

var errAbuse = errors.New("the client sends frames without a purpose")

// abuse is what one connection has used of its budgets.
type abuse struct {
	trusted bool // a proxy that works for many clients, or a Unix socket
	began   time.Time
	known   atomic.Bool  // the protocol is known
	http2   atomic.Bool  // it is HTTP/2
	came    atomic.Int64 // bytes, as they came over the network
	allowed atomic.Int64

	mu     sync.Mutex
	resets float64   // guarded by mu
	since  time.Time // of resets
	timer  *time.Timer
	over   bool // closed, or to be closed
}

func (a *abuse) init(now time.Time) {
	a.began, a.since = now, now
	a.allowed.Store(freeOverhead)
}

// allow lets the client send as many bytes more.
func (a *abuse) allow(n int64) { a.allowed.Add(n) }

// Read implements [net.Conn].
func (c *trackedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.http2.Load() && c.came.Add(int64(n)) > c.allowed.Load()+int64(time.Since(c.began).Seconds()*overheadPerSecond) && !c.core.Load() && !c.trusted {
		if c.condemn() {
			c.all.refused(limitFrames, c.ip)
		}
		c.Close() //nolint:errcheck // it is to end
		return 0, errAbuse
	}
	return n, err
}

// reset counts a request that the client has taken back before its answer.
func (c *trackedConn) reset(now time.Time, l *Limits) {
	if c.core.Load() || c.trusted {
		return
	}
	c.mu.Lock()
	c.resets = max(0, c.resets-now.Sub(c.since).Seconds()*resetsPerSecond) + 1
	c.since = now
	over := c.resets > float64(l.Resets)
	c.mu.Unlock()
	if over && c.condemn() {
		c.all.refused(limitResets, c.ip)
		c.Close() //nolint:errcheck // it is to end
	}
}

// condemn tells whether this is the first time that the connection is given up.
func (c *trackedConn) condemn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.over
	c.over = true
	return first
}

// endSoon closes the connection after a moment in which the answer can be read.
func (c *trackedConn) endSoon() {
	if !c.condemn() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(endAfter, func() { c.Close() }) //nolint:errcheck // it is to end
}

func (a *abuse) stopTimer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.timer != nil {
		a.timer.Stop()
	}
}

// noteProtocol is called by net/http when a connection has sent something.
func noteProtocol(c net.Conn, state http.ConnState) {
	t, ok := c.(*tls.Conn)
	if !ok || state != http.StateActive {
		return // without TLS there is no HTTP/2
	}
	if tc, ok := t.NetConn().(*trackedConn); ok && tc.known.CompareAndSwap(false, true) {
		tc.http2.Store(t.ConnectionState().NegotiatedProtocol == "h2")
	}
}
