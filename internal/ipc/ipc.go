// Package ipc is the protocol on the Unix socket between the server role and everything else on the machine: typed
// calls and streams, identity from the kernel, descriptor passing.
package ipc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"time"

	"ucloud-im/internal/ident"
)

// Access is the least a caller must be. The zero value is invalid.
type Access uint8

// The access classes.
const (
	AccessAnyone Access = iota + 1
	AccessMapped
	AccessViewer
	AccessOperator
	AccessService
	AccessRoot
)

// Call names a request with one answer.
type Call[Req, Resp any] struct {
	Name   string
	Access Access
	Files  int // how many descriptors a request may carry
}

// Stream names a request with many answers.
type Stream[Req, Item any] struct {
	Name   string
	Access Access
	Files  int // how many descriptors a request may carry
}

// Peer is the process at the other end, as the kernel reports it.
type Peer struct {
	uid ident.UID
	gid ident.GID
	pid int32
}

// UID is the effective user id.
func (p Peer) UID() ident.UID { return p.uid }

// GID is the effective group id.
func (p Peer) GID() ident.GID { return p.gid }

// PID is the process id, 0 if not visible.
func (p Peer) PID() int32 { return p.pid }

// Grant is what the authorizer says about a peer.
type Grant struct {
	User                                    ident.UCloudUser
	Mapped, Viewer, Operator, Root, Service bool
}

// Authorizer tells who a peer is.
type Authorizer func(ctx context.Context, p Peer) (Grant, error)

// Request is what a handler knows about its caller.
type Request struct {
	Peer   Peer
	Grant  Grant
	Files  []*os.File
	closed <-chan struct{}
}

// Closed is closed when the connection has ended.
func (r *Request) Closed() <-chan struct{} { return r.closed }

// ServerOptions configure a Server.
type ServerOptions struct {
	Authorize         Authorizer
	Log               *slog.Logger
	MaxRequestBytes   int
	MaxConns          int
	MaxConnsPerUID    int
	RequestsPerSecond int
	IdleTimeout       time.Duration
	ExemptUID         func(ident.UID) bool
}

// Server answers calls.
type Server struct{}

var errStub = errors.New("not yet")

// NewServer makes a server.
func NewServer(o ServerOptions) *Server { return &Server{} }

// Handle registers a call.
func Handle[Req, Resp any](s *Server, c Call[Req, Resp], h func(ctx context.Context, r *Request, req Req) (Resp, error)) {
}

// HandleStream registers a stream.
func HandleStream[Req, Item any](s *Server, c Stream[Req, Item], h func(ctx context.Context, r *Request, req Req, send func(Item, ...*os.File) error) error) {
}

// Serve accepts connections.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error { return errStub }

// Listen creates the socket.
func Listen(path string) (*net.UnixListener, error) { return nil, errStub }

// DialOptions configure Dial.
type DialOptions struct {
	ServerUID func(ident.UID) bool
	Timeout   time.Duration
}

// Client is one connection.
type Client struct{}

// Dial connects.
func Dial(ctx context.Context, path string, o DialOptions) (*Client, error) { return nil, errStub }

// Close ends the connection.
func (c *Client) Close() error { return errStub }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return nil }

// Peer is the server.
func (c *Client) Peer() Peer { return Peer{} }

// Invoke makes a call.
func Invoke[Req, Resp any](ctx context.Context, c *Client, call Call[Req, Resp], req Req, files ...*os.File) (Resp, error) {
	var zero Resp
	return zero, errStub
}

// Open opens a stream.
func Open[Req, Item any](ctx context.Context, c *Client, s Stream[Req, Item], req Req, files ...*os.File) (*Receiver[Item], error) {
	return nil, errStub
}

// Receiver is the client's end of a stream.
type Receiver[Item any] struct{}

// Next waits for an item.
func (r *Receiver[Item]) Next(ctx context.Context) (Item, []*os.File, error) {
	var zero Item
	return zero, nil, errStub
}

// Close ends the stream.
func (r *Receiver[Item]) Close() {}
