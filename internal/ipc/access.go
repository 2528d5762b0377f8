package ipc

import (
	"context"
	"fmt"
	"os"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Access is the least a caller must be to make a call. The zero value is invalid, so that a call that forgets to say
// who may make it stops the server from starting.
type Access uint8

// The access classes. What makes a uid a member of one is the [Authorizer]'s business. Operators may do what viewers
// may, root what operators may. The service class is not implied by root: it hands out keys that no operator needs.
const (
	AccessAnyone   Access = iota + 1 // any local uid of our user namespace, mapped or not
	AccessMapped                     // a uid with an active mapping to a UCloud user
	AccessViewer                     // may look at everything
	AccessOperator                   // may change things
	AccessService                    // the service account: the gateway and our own tools
	AccessRoot                       // uid 0
)

// String names the class, for logs.
func (a Access) String() string {
	switch a {
	case AccessAnyone:
		return "anyone"
	case AccessMapped:
		return "mapped"
	case AccessViewer:
		return "viewer"
	case AccessOperator:
		return "operator"
	case AccessService:
		return "service"
	case AccessRoot:
		return "root"
	}
	return fmt.Sprintf("invalid (%d)", uint8(a))
}

func (a Access) valid() bool { return a >= AccessAnyone && a <= AccessRoot }

// allow gives nil if the grant reaches the class. Anything unknown is refused.
func (a Access) allow(g Grant) error {
	switch {
	case a == AccessAnyone,
		a == AccessMapped && g.Mapped,
		a == AccessViewer && (g.Viewer || g.Operator || g.Root),
		a == AccessOperator && (g.Operator || g.Root),
		a == AccessService && g.Service,
		a == AccessRoot && g.Root:
		return nil
	case a == AccessMapped:
		return failure.New(failure.Forbidden, "Your account is not connected to a UCloud user")
	case a == AccessViewer || a == AccessOperator:
		return failure.New(failure.Forbidden, "Only an operator may do this")
	case a == AccessRoot:
		return failure.New(failure.Forbidden, "Only root may do this")
	}
	return failure.New(failure.Forbidden, "You may not do this")
}

// Grant is what the authorizer says about a uid. The zero value grants nothing but [AccessAnyone].
type Grant struct {
	User     ident.UCloudUser // the mapped user; empty if there is none
	Mapped   bool
	Viewer   bool
	Operator bool
	Root     bool
	Service  bool
}

// Authorizer tells what a peer may do. It is asked for every call, so it sees a mapping that was removed a moment ago,
// and runs under the call's context. An error refuses the call, whatever its class, with the error's failure kind.
type Authorizer func(ctx context.Context, p Peer) (Grant, error)

// Call names a request that has exactly one answer, and says who may make it.
type Call[Req, Resp any] struct {
	Name   string
	Access Access
	// Files is how many descriptors a request may carry, at most 4. With 0 a request that carries one is refused, so
	// that a handler that does not expect descriptors cannot leak them.
	Files int
}

// Stream names a request that is answered by any number of items, and says who may open it.
type Stream[Req, Item any] struct {
	Name   string
	Access Access
	Files  int // as [Call].Files; items may always carry descriptors
}

// Request is what a handler knows about its caller besides the document. It is valid while the handler runs.
type Request struct {
	Peer  Peer
	Grant Grant
	// Files are the descriptors that came with the request, not more than the call declares, possibly fewer. The
	// handler owns them and must close them. They come from an untrusted process: check what they are (fstat,
	// getsockopt) before using them, and remember that the sender may hold a duplicate.
	Files []*os.File

	conn *serverConn
}

// Closed is closed when the connection of the caller has ended. The handler's context ends then too; Closed also
// outlives the handler.
func (r *Request) Closed() <-chan struct{} { return r.conn.closed }

// PIDFD opens a pidfd of the process that made the connection, race-free where the kernel can (SO_PEERPIDFD, Linux
// 6.5); before that by process id, where the id may have been reused if the process has ended meanwhile. It works
// across uids. The caller closes the file.
func (r *Request) PIDFD() (*os.File, error) { return peerPIDFD(r.conn.wire.c, r.Peer) }
