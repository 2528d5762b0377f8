package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// coreMemory is how long an address from which Core has called is exempt from the limit of connections.
const coreMemory = 15 * time.Minute

// connections counts the client connections, in all and by address. Core is exempt from the limit by address: a
// connection on which a verified Core token was seen is not counted, and neither are new ones from its address for a
// while, since a connection has to be accepted before its first request can be seen (contract 00 point 9.17).
type connections struct {
	settings func() *Settings
	refused  func(limit string, ip netip.Addr) // counts and logs refusals
	rates    *buckets[netip.Addr]              // new connections
	start    time.Time

	mu    sync.Mutex
	open  map[*trackedConn]struct{}
	byIP  map[netip.Addr]int       // by [source]
	core  map[netip.Addr]time.Time // when Core was seen last, by [source] like the limits it is exempt from
	empty chan struct{}            // closed when no connection is open; made by wait
}

func newConnections(settings func() *Settings) *connections {
	return &connections{
		settings: settings, refused: func(string, netip.Addr) {}, rates: newBuckets[netip.Addr](maxBuckets), start: time.Now(),
		open: make(map[*trackedConn]struct{}), byIP: make(map[netip.Addr]int), core: make(map[netip.Addr]time.Time),
	}
}

// trackedConn is one client connection.
type trackedConn struct {
	net.Conn
	all     *connections
	ip      netip.Addr  // invalid for Unix sockets
	counted bool        // in byIP; guarded by connections.mu
	core    atomic.Bool // a verified Core token was seen
	active  atomic.Int64
	once    sync.Once
	// coreSeen is when its address was noted as Core's, in nanoseconds since connections.start.
	coreSeen atomic.Int64

	abuse
}

// Close implements [net.Conn].
func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.stopTimer()
		c.all.remove(c)
	})
	return err
}

// CloseWrite lets net/http finish a connection whose client is still sending without a reset.
func (c *trackedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// sawCore exempts the connection and its address from the limits for unknown clients. Core may use one connection for
// days, so its address has to be noted again now and then.
func (c *trackedConn) sawCore(now time.Time) {
	a := c.all
	at := int64(now.Sub(a.start))
	if c.core.Swap(true) && at-c.coreSeen.Load() < int64(coreMemory/10) {
		return
	}
	c.coreSeen.Store(at)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uncountLocked(c)
	if c.ip.IsValid() {
		for from, seen := range a.core { // few: the addresses of Core's processes
			if now.Sub(seen) > coreMemory {
				delete(a.core, from)
			}
		}
		a.core[source(c.ip)] = now
	}
}

// add registers a connection, or names the limit that its address is over.
func (a *connections) add(nc net.Conn, now time.Time) (c *trackedConn, limit string) {
	c = &trackedConn{Conn: nc, all: a, ip: addrOf(nc.RemoteAddr())}
	c.abuse.init(now)
	s := a.settings()
	a.mu.Lock()
	defer a.mu.Unlock()
	c.trusted = !c.ip.IsValid() || containsAddr(s.TrustedProxies, c.ip)
	if from := source(c.ip); !c.trusted && now.Sub(a.core[from]) > coreMemory {
		if _, ok := a.rates.take(from, s.Limits.connectionRate(), now); !ok {
			return nil, limitConnections
		}
		if limit := s.Limits.MaxConnectionsPerIP; limit > 0 {
			if a.byIP[from] >= limit {
				return nil, limitConcurrent
			}
			a.byIP[from]++
			c.counted = true
		}
	}
	a.open[c] = struct{}{}
	return c, ""
}

func (a *connections) remove(c *trackedConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uncountLocked(c)
	delete(a.open, c)
	if len(a.open) == 0 && a.empty != nil {
		close(a.empty)
		a.empty = nil
	}
}

func (a *connections) uncountLocked(c *trackedConn) {
	if !c.counted {
		return
	}
	c.counted = false
	from := source(c.ip)
	if a.byIP[from]--; a.byIP[from] <= 0 {
		delete(a.byIP, from)
	}
}

func (a *connections) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.open)
}

// wait returns when no client connection is open any more, or with an error when ctx ends.
func (a *connections) wait(ctx context.Context) error {
	a.mu.Lock()
	if len(a.open) == 0 {
		a.mu.Unlock()
		return nil
	}
	if a.empty == nil {
		a.empty = make(chan struct{})
	}
	empty := a.empty
	a.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// listener wraps the connections of a listener.
type listener struct {
	net.Listener
	all *connections
}

// Accept implements [net.Listener]. Connections over the limit are closed at once: an answer would cost a read.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, limit := l.all.add(nc, time.Now())
		if limit == "" {
			return c, nil
		}
		l.all.refused(limit, addrOf(nc.RemoteAddr()))
		nc.Close()
	}
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
