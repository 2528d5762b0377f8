package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// server serves HTTP on the listener of the route and knows how much is under way.
type server struct {
	log     *slog.Logger
	http    *http.Server
	lis     *guard
	handler http.Handler
	file    *os.File // duplicate of the listener, to hand it back after the server was lost

	active   atomic.Int64  // requests and other work under way
	requests atomic.Uint64 // served so far
	lastEnd  atomic.Int64  // when active became 0, Unix ns
	stopping atomic.Bool   // refuse new requests
	draining atomic.Bool   // close connections after their answer

	wakeUp func() // work arrives after a quiet time, see idle.go
	rest   func() // active has become 0

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]struct{}
	calm  chan struct{} // closed and replaced when a connection ends or active becomes 0

	done     chan error    // result of Serve, once
	accepted chan struct{} // closed when nothing more is accepted and all that was is in conns
}

// peerLookup tells the uid of the other end of a connection; see package sockdiag.
type peerLookup interface {
	PeerUID(c *net.TCPConn) (ident.UID, error)
}

// guard accepts connections from one uid only.
type guard struct {
	net.Listener
	peers   peerLookup
	service ident.UID
	refused func(uid ident.UID, err error)
}

// Accept asks the kernel who owns the other end, before anything is read. The service's uid must be equal: a peer that
// has gone shows as uid 0, so that "service or root" would be no check.
func (g *guard) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			c.Close() //nolint:errcheck // not TCP, not ours
			continue
		}
		uid, err := g.peers.PeerUID(tcp)
		if err == nil && uid == g.service {
			return c, nil
		}
		tcp.SetLinger(0) //nolint:errcheck // a reset, so that nothing of the refusal lingers
		tcp.Close()      //nolint:errcheck // nothing was written
		g.refused(uid, err)
	}
}

func newServer(f *os.File, service ident.UID, peers peerLookup, h http.Handler, log *slog.Logger) (*server, error) {
	l, err := net.FileListener(f) // a duplicate
	if err != nil {
		return nil, fmt.Errorf("take listener: %w", err)
	}
	s := &server{
		log: log, handler: h, file: f, conns: map[net.Conn]struct{}{}, calm: make(chan struct{}), done: make(chan error, 1),
		accepted: make(chan struct{}),
		wakeUp:   func() {}, rest: func() {},
	}
	s.lastEnd.Store(time.Now().UnixNano())
	var once sync.Once
	s.lis = &guard{Listener: l, peers: peers, service: service, refused: func(uid ident.UID, err error) {
		// The first one is enough: whoever does this can do it a million times.
		once.Do(func() { log.Warn("connection refused, it is not from the service account", "peer", uid, "error", err) })
	}}
	s.http = &http.Server{
		Handler: s,
		// Connections are the gateway's, which closes them. Closing an idle one here could meet a request under way.
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ConnState:         s.connState,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

func (s *server) start() {
	go func() {
		s.done <- s.http.Serve(s.lis)
		close(s.accepted)
	}()
}

// ServeHTTP counts the request and passes it on. After a stop notice it is refused before anything is read, which is
// the one case in which 503 is right (contract 02 section 9.22).
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.begin()
	defer s.end()
	if s.stopping.Load() {
		w.Header().Set("Connection", "close")
		w.Header().Set(hoptoken.HeaderNotRead, "1")
		failure.WriteHTTP(w, failure.New(failure.Unavailable, "Your instance is ending, try again"))
		return
	}
	s.requests.Add(1)
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	s.handler.ServeHTTP(w, r)
}

// begin counts work that must not be cut off by idleness or draining.
func (s *server) begin() {
	if s.active.Add(1) == 1 {
		s.wakeUp()
	}
}

func (s *server) end() {
	s.lastEnd.Store(time.Now().UnixNano())
	if s.active.Add(-1) == 0 {
		s.signal()
		s.rest()
	}
}

func (s *server) signal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.calm)
	s.calm = make(chan struct{})
}

func (s *server) connState(c net.Conn, st http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st {
	case http.StateNew:
		s.conns[c] = struct{}{}
	case http.StateClosed, http.StateHijacked: // a hijacked one lives in its handler, which is counted as active
		delete(s.conns, c)
		close(s.calm)
		s.calm = make(chan struct{})
	}
}

// drainQuiet is how long a draining process waits for further requests on connections that are open. Gateways close
// them once they know that the route has changed; this is for gateways that are away.
const drainQuiet = 5 * time.Second

// drain accepts no new connections and returns when all requests have been answered and the connections are closed,
// or after the limit. What waits in the listener is for the next process.
func (s *server) drain(ctx context.Context, limit time.Duration) {
	s.draining.Store(true)
	s.lis.Close() //nolint:errcheck // our duplicate only
	<-s.accepted  // a connection may have been accepted and not been counted yet
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		s.mu.Lock()
		open, calm := len(s.conns), s.calm
		s.mu.Unlock()
		busy := s.active.Load() > 0
		if !busy && open == 0 {
			break
		}
		var quiet <-chan time.Time
		var timer *time.Timer
		if !busy {
			timer = time.NewTimer(drainQuiet)
			quiet = timer.C
		}
		expired := false
		select {
		case <-calm:
		case <-quiet:
			expired = true
		case <-ctx.Done():
			expired = true
		}
		if timer != nil {
			timer.Stop()
		}
		if expired {
			break
		}
	}
	s.close()
}

// stop refuses new requests and cuts what is under way after a moment.
func (s *server) stop() {
	s.stopping.Store(true)
	s.draining.Store(true)
	s.lis.Close() //nolint:errcheck // our duplicate only
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for s.active.Load() > 0 && ctx.Err() == nil {
		s.mu.Lock()
		calm := s.calm
		s.mu.Unlock()
		if s.active.Load() == 0 {
			break
		}
		select {
		case <-calm:
		case <-ctx.Done():
		}
	}
	s.close()
}

// stopGrace lets answers that are being written get out.
const stopGrace = 200 * time.Millisecond

func (s *server) close() {
	if err := s.http.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("closing connections", "error", err)
	}
}
