package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// ServerOptions configure a [Server].
type ServerOptions struct {
	// Authorize tells what a peer may do. Required.
	Authorize Authorizer
	// Log gets one line per refusal (rate-limited per uid) and per internal error. Nil discards.
	Log *slog.Logger
	// MaxRequestBytes is the largest payload of a request, name included. 0 means 1 MiB.
	MaxRequestBytes int
	// MaxConns bounds the connections of all uids that are not exempt. 0 means 8192.
	MaxConns int
	// MaxConnsPerUID bounds the connections of one uid. 0 means 32.
	MaxConnsPerUID int
	// MaxCallsPerConn bounds the running handlers of one connection. 0 means 64; exempt uids get 64 times as many.
	MaxCallsPerConn int
	// RequestsPerSecond is the rate for one uid. A request counts once, and once more per 16 KiB; a connection counts
	// as a request. One second's worth may come at once. 0 means 200.
	RequestsPerSecond int
	// IdleTimeout ends a connection on which no call runs. 0 means one minute.
	IdleTimeout time.Duration
	// FrameTimeout is how long a frame may take to arrive once it has begun. 0 means 10 s.
	FrameTimeout time.Duration
	// WriteTimeout is how long a peer may take to accept a frame. 0 means 10 s.
	WriteTimeout time.Duration
	// ExemptUID names uids without limits on connections and rate: the service account, whose gateway works for
	// everybody. Nil exempts nobody. It is asked once per uid.
	ExemptUID func(ident.UID) bool
}

// Server answers calls. Register them with [Handle] and [HandleStream], then call [Server.Serve].
type Server struct {
	o     ServerOptions
	log   *slog.Logger
	quota *quota
	// overflow is read once: it does not change while the system runs in practice.
	overflow ident.UID
	// creds reads the credentials of a connection, closeFD closes a descriptor; tests replace them.
	creds   func(*net.UnixConn) (Peer, error)
	closeFD func(fd int) error

	mu       sync.Mutex
	serving  bool // entries may not change any more, and are read without the lock
	entries  map[string]*entry
	problems []error // found while registering
}

// entry is a registered call.
type entry struct {
	access Access
	stream bool
	files  int
	// decode reads the request document and gives what is to be run. Splitting it from the run makes clear who owns
	// received descriptors: the server until decode has succeeded, then the handler.
	decode func(payload []byte) (invocation, error)
}

type invocation func(ctx context.Context, r *Request, send sender) (result any, err error)

type sender func(item any, files []*os.File) error

// NewServer makes a server. It does nothing until [Server.Serve].
func NewServer(o ServerOptions) *Server {
	set(&o.MaxRequestBytes, maxRequest)
	set(&o.MaxConns, 8192)
	set(&o.MaxConnsPerUID, 32)
	set(&o.MaxCallsPerConn, 64)
	set(&o.RequestsPerSecond, 200)
	set(&o.IdleTimeout, time.Minute)
	set(&o.FrameTimeout, 10*time.Second)
	set(&o.WriteTimeout, 10*time.Second)
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		o: o, log: log.With("part", "ipc"), overflow: overflowUID(), closeFD: unix.Close, entries: map[string]*entry{},
		quota: &quota{
			maxConns: o.MaxConns, maxPerUID: o.MaxConnsPerUID,
			perSecond: o.RequestsPerSecond,
			// The largest request must be affordable at all.
			burst:  max(o.RequestsPerSecond, 1+o.MaxRequestBytes/requestUnit),
			exempt: o.ExemptUID, now: time.Now, byUID: map[ident.UID]*account{}, sweepAt: sweepFloor,
		},
	}
	s.creds = func(c *net.UnixConn) (Peer, error) { return peerOf(c, s.overflow) }
	return s
}

func set[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Handle registers the handler of a call. The context of h ends when the client cancels, when its connection ends and
// when the server stops. The error of h crosses to the client as failure kind, sentence and code; its cause does not.
// Problems with the registration are reported by [Server.Serve].
func Handle[Req, Resp any](s *Server, c Call[Req, Resp], h func(ctx context.Context, r *Request, req Req) (Resp, error)) {
	s.register(c.Name, &entry{access: c.Access, files: c.Files, decode: func(payload []byte) (invocation, error) {
		req, err := decodeDoc[Req](payload)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, r *Request, _ sender) (any, error) { return h(ctx, r, req) }, nil
	}})
}

// HandleStream registers the handler of a stream, which is as that of a call, but answers by send. The stream ends
// when h returns. send blocks while 32 items are unconsumed, and fails when the handler's context has ended or the
// connection is broken. It may be called by several goroutines, but not after h has returned; files stay the
// handler's, which may close them once send has returned.
func HandleStream[Req, Item any](s *Server, c Stream[Req, Item], h func(ctx context.Context, r *Request, req Req, send func(Item, ...*os.File) error) error) {
	s.register(c.Name, &entry{access: c.Access, files: c.Files, stream: true, decode: func(payload []byte) (invocation, error) {
		req, err := decodeDoc[Req](payload)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, r *Request, send sender) (any, error) {
			return nil, h(ctx, r, req, func(item Item, files ...*os.File) error { return send(item, files) })
		}, nil
	}})
}

// decodeDoc tolerates unknown fields: an instance of another version may be at the other end (contract 04 section
// 7.17).
func decodeDoc[T any](payload []byte) (T, error) {
	var doc T
	if err := json.Unmarshal(payload, &doc); err != nil {
		return doc, failure.Wrap(err, failure.Invalid, "The request could not be read")
	}
	return doc, nil
}

// nameRule is compiled when something is registered: it takes a millisecond that instances, which link this, do not need.
var nameRule = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,127}$`) })

func (s *Server) register(name string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving {
		panic("ipc: call " + name + " registered after Serve")
	}
	if !nameRule().MatchString(name) {
		s.problems = append(s.problems, fmt.Errorf("call %q: not a name for a call", name))
	}
	if !e.access.valid() {
		s.problems = append(s.problems, fmt.Errorf("call %s: it does not say who may make it", name))
	}
	if e.files < 0 || e.files > maxFiles {
		s.problems = append(s.problems, fmt.Errorf("call %s: %d descriptors, at most %d are possible", name, e.files, maxFiles))
	}
	if _, twice := s.entries[name]; twice {
		s.problems = append(s.problems, fmt.Errorf("call %s: registered twice", name))
	}
	s.entries[name] = e
}

// start checks what has been registered and forbids more.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = true
	problems := s.problems
	if s.o.Authorize == nil {
		problems = append(problems, errors.New("no authorizer"))
	}
	if len(problems) > 0 {
		return fmt.Errorf("serve ipc: %w", errors.Join(problems...))
	}
	return nil
}

// Serve accepts connections until ctx ends or the listener breaks. It closes the listener, and returns after all
// handlers have ended; handlers must obey their context. The error is nil if ctx ended. It refuses to start if
// something is wrong with the registered calls: one without an access class, or two of the same name.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	if err := s.start(); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // closing wakes Accept, that is its purpose
	defer stop()
	defer l.Close() //nolint:errcheck // as above

	var wait time.Duration
	for {
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
			wait = 0
			if a, p, ok := s.admit(c); ok {
				conns.Go(func() { s.serveConn(ctx, c, a, p) })
			}
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept ipc connection: %w", err)
		default:
			// Out of descriptors or memory, or the peer has gone: that passes. Connections wait in the backlog.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log.Error("cannot accept a connection", "error", err, "retry", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// admit asks the kernel who has connected and counts the connection. A problem closes this connection and nothing
// else (contract 04 section 7.8).
func (s *Server) admit(c *net.UnixConn) (*account, Peer, bool) {
	p, err := s.creds(c)
	if err != nil {
		s.log.Warn("connection refused", "error", err)
		c.Close() //nolint:errcheck // nothing was written
		return nil, Peer{}, false
	}
	a, err := s.quota.admit(p.uid)
	if err != nil {
		a.complain.Do(func() { s.log.Warn("connection refused", "uid", p.uid, "error", err) })
		c.Close() //nolint:errcheck // nothing was written
		return nil, Peer{}, false
	}
	return a, p, true
}
