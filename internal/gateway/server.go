package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
)

// connKey is the context key of the [trackedConn] of a request.
type connKey struct{}

// ServerOptions say how a [Server] listens.
type ServerOptions struct {
	// Listeners are served with TLS if TLS is not nil. The server closes them.
	Listeners []net.Listener
	TLS       *tls.Config
	// Redirect, if not nil, answers every request with a redirect to the same path at RedirectTo, such as
	// "https://slurm.example.org". The target never depends on the request's Host.
	Redirect   net.Listener
	RedirectTo string
}

// Server runs a [Gateway] on listeners. Its life is Run, then Drain from another goroutine, which makes Run return.
type Server struct {
	g        *Gateway
	o        ServerOptions
	main     *http.Server
	redirect *http.Server
	closing  sync.Once
	stopped  chan struct{} // closed by Drain, first thing
	started  atomic.Bool   // Run has been called
	served   chan struct{} // closed when Run accepts nothing any more
}

// NewServer prepares a server; it does not accept connections before [Server.Run].
func (g *Gateway) NewServer(o ServerOptions) (*Server, error) {
	s := &Server{g: g, o: o, stopped: make(chan struct{}), served: make(chan struct{})}
	s.main = g.httpServer(g)
	s.main.TLSConfig = o.TLS
	if o.Redirect != nil {
		to, err := url.Parse(o.RedirectTo)
		if err != nil || to.Scheme != "https" || to.Host == "" {
			return nil, fmt.Errorf("redirect target %q is not an https address", o.RedirectTo)
		}
		s.redirect = g.httpServer(redirector{to: to, g: g})
	}
	return s, nil
}

func (g *Gateway) httpServer(h http.Handler) *http.Server {
	l := g.settings.Load().Limits
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: l.HeaderTimeout,
		// No ReadTimeout and no WriteTimeout: they bound the whole request, however large. See stallGuard.
		IdleTimeout:                  l.IdleTimeout,
		MaxHeaderBytes:               l.MaxHeaderBytes,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is refused like every other target that is not a path
		HTTP2: &http.HTTP2Config{
			// One number for all connections; connections without Core's token are bounded by exchange.enterConn.
			MaxConcurrentStreams: max(l.MaxStreams, l.MaxCoreStreams),
			SendPingTimeout:      l.StallTimeout,
			PingTimeout:          min(15*time.Second, l.StallTimeout),
			WriteByteTimeout:     l.StallTimeout,
			// The budget of a connection counts on this.
			MaxReceiveBufferPerConnection: receiveWindow,
			MaxReceiveBufferPerStream:     receiveWindow,
		},
		ErrorLog:  slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // refused handshakes and the like: anybody can cause them
		ConnState: noteProtocol,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

// Run serves until [Server.Drain] is called, or a listener breaks.
func (s *Server) Run() error {
	s.started.Store(true)
	defer close(s.served)
	var wg sync.WaitGroup
	errs := make(chan error, len(s.o.Listeners)+1)
	serve := func(srv *http.Server, l net.Listener, secure bool) {
		tracked := &listener{Listener: l, all: s.g.conns}
		wg.Go(func() {
			var err error
			if secure {
				err = srv.ServeTLS(tracked, "", "")
			} else {
				err = srv.Serve(tracked)
			}
			select {
			case <-s.stopped: // closed by us
			default:
				errs <- fmt.Errorf("serve %s: %w", l.Addr(), err)
				s.closeListeners()
			}
		})
	}
	for _, l := range s.o.Listeners {
		serve(s.main, l, s.o.TLS != nil)
	}
	if s.redirect != nil {
		serve(s.redirect, s.o.Redirect, false)
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func (s *Server) closeListeners() {
	s.closing.Do(func() { close(s.stopped) })
	for _, l := range s.o.Listeners {
		l.Close()
	}
	if s.o.Redirect != nil {
		s.o.Redirect.Close()
	}
}

// Drain are the phases of leaving without failing a request (experiments section 7).
type Drain struct {
	// Grace is how long every answer tells its client to use another connection, while nothing is closed. Net/http's own
	// Shutdown closes idle connections at once, which races with requests that are under way.
	Grace time.Duration
	// Idle is how long, after that, connections that have been idle since may stay. A process that is being replaced can
	// be generous; one that is told to stop cannot.
	Idle time.Duration
	// Requests is how long requests may then take to end.
	Requests time.Duration
	// Upgrades is how long upgraded connections (uploads, terminals, logs) may stay after that.
	Upgrades time.Duration
}

// The two ways to leave.
var (
	// DrainReplaced is for a process whose listeners another one has taken over.
	DrainReplaced = Drain{Grace: 1500 * time.Millisecond, Idle: time.Minute, Requests: 5 * time.Minute, Upgrades: 24 * time.Hour}
	// DrainStopped is for a process that has been told to stop.
	DrainStopped = Drain{Grace: 1500 * time.Millisecond, Requests: 10 * time.Second}
)

// Drain stops accepting connections and returns when all have ended or the phases are over. When ctx ends, what is left
// is cut off.
func (s *Server) Drain(ctx context.Context, d Drain) {
	s.g.draining.Store(true)
	s.closeListeners()
	if s.started.Load() {
		<-s.served // a connection that was just accepted is counted from now on, and not cut off as one of nobody
	}
	defer s.g.cutAll()
	for _, phase := range [...]time.Duration{d.Grace, d.Idle} {
		if s.g.conns.waitFor(ctx, phase) == nil {
			return
		}
	}
	requests, cancel := context.WithTimeout(ctx, d.Requests)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range []*http.Server{s.main, s.redirect} {
		if srv != nil {
			wg.Go(func() {
				if srv.Shutdown(requests) != nil {
					s.g.log.Warn("requests cut off", "connections", s.g.conns.len())
					srv.Close()
				}
			})
		}
	}
	wg.Wait()
	if s.g.conns.waitFor(ctx, d.Upgrades) != nil {
		s.g.log.Info("upgraded connections closed", "connections", s.g.conns.len())
	}
}

// waitFor is wait with a limit.
func (a *connections) waitFor(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return a.wait(ctx)
}

// cutAll closes whatever is still open.
func (g *Gateway) cutAll() {
	for _, in := range *g.routes.routes.Load() {
		in.streams.closeAll()
	}
	if g.o.Web != nil {
		g.o.Web.cutAll()
	}
	g.conns.closeAll()
}

func (a *connections) closeAll() {
	a.mu.Lock()
	var open []*trackedConn
	for c := range a.open {
		open = append(open, c)
	}
	a.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// redirector sends clients from plain HTTP to HTTPS.
type redirector struct {
	to *url.URL
	g  *Gateway
}

func (d redirector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	path, err := cleanPath(raw)
	if err == nil && !hostAllowed(r.Host, d.g.settings.Load()) {
		err = failure.New(failure.NotFound, "This host is not served here")
	}
	if err != nil {
		failure.WriteHTTP(w, err)
		return
	}
	if d.g.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	u := url.URL{Scheme: d.to.Scheme, Host: d.to.Host, Path: path, RawQuery: r.URL.RawQuery}
	w.Header().Set("Location", u.String())
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(http.StatusPermanentRedirect) // keeps method and body
}
