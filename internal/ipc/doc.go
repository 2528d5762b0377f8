// Package ipc is the protocol on the one Unix socket that connects the server role with instances, the gateway and the
// operator commands (design D4): typed calls and streams, the caller's identity from the kernel, and descriptors that
// travel with a message.
//
// # Trust
//
// Any program of any local user may connect and send any bytes (contract 04 section 7.1). The package believes only
// what the kernel says at accept: SO_PEERCRED, kept as a [Peer], whose fields nobody else can set. From it the
// [Authorizer] derives a [Grant] anew for each call, so that a removed mapping ends access at once. A call must name
// its [Access] class; [Server.Serve] refuses to start when one does not.
//
// SO_PEERCRED names the process that called connect(2). A process may hand its connection to another one; whoever
// speaks over it speaks with the authority of the first. That is the first one's own doing.
//
// A client trusts a server whose peer uid passes [DialOptions].ServerUID, and checks that before it sends a byte.
//
// # Frames
//
// Both directions carry frames: a header of 12 bytes, then the payload. Numbers are big-endian.
//
//	offset  size  field
//	0       4     length of the payload in bytes, without the header
//	4       1     version, 1
//	5       1     type, see below
//	6       1     number of descriptors attached to the frame, 0 to 4
//	7       1     length of the call's name, which the payload starts with; 0 but in call and open
//	8       4     id of the call, chosen by the client, not 0, not in use
//
//	type        from    payload
//	1  call     client  name, then the request as JSON; answered by result or failure
//	2  open     client  name, then the request as JSON; answered by items, then end or failure
//	3  cancel   client  none: the handler's context ends; it still answers, the client ignores that
//	4  credit   client  4 bytes: how many items of the stream the client has consumed
//	16 result   server  the answer as JSON; the call is over
//	17 failure  server  {"kind","why","code"}; the call is over
//	18 item     server  one item of a stream as JSON
//	19 end      server  none; the stream is over
//
// Descriptors are attached (SCM_RIGHTS) to the header. Each side reads exactly up to the end of a frame, so that
// descriptors cannot slip from one frame to the next: the kernel never merges data across a message with descriptors.
//
// # Life cycle
//
// A connection carries many calls at a time. A client may have 32 unconsumed items per stream under way; after that
// the server's send blocks until credit arrives (back-pressure without a buffer that grows). The end of the
// connection ends the context of all its handlers and closes [Request.Closed]; the other way round [Client.Done] is
// closed. The end of Serve's context does the same for all connections, and gives handlers the chance to answer.
//
// A connection costs one goroutine for reading and one for each running handler. Neither pins an OS thread: all
// reading and writing goes through the run-time's poller, because the descriptor is never duplicated or switched to
// blocking mode (contract 04 section 7.7). TestIdleConnectionsAreCheap proves it.
//
// # What a hostile peer can do, and cannot
//
//   - Connections: a number per uid and in total; beyond that a new connection is closed at once. A refused connection
//     leaves the others alone, and one whose credentials cannot be read does not end the service.
//   - Rate: requests per second and uid, weighted by size. Beyond that a call fails with TooMany and the connection is
//     read more slowly. Cancel and credit frames have a rate of their own.
//   - Size: a length above the limit ends the connection before memory is reserved, and memory grows only with the
//     bytes that have really arrived.
//   - Time: a frame that has begun must be complete within [ServerOptions].FrameTimeout; a peer that does not read its
//     answers loses the connection after WriteTimeout; a connection without a running call ends after IdleTimeout.
//   - Calls: a number per connection. Answers wait in the handlers' goroutines, which count, so that queues are bounded.
//   - Descriptors: refused unless the call declares them ([Call].Files). Undeclared, surplus or truncated ones are
//     closed and end the connection. Only sockets, pipes and pidfds are accepted from a client: close(2) of a file on
//     a user's own FUSE mount can block for ever, and with it a thread. Such files are closed on a goroutine of their
//     own, and their sender gets no new connection while several of them hang.
//   - Namespaces: a peer whose uid does not exist here shows as the overflow uid and is refused (contract 04
//     section 7.12).
//
// A hostile peer can use up its own allowance, and thereby hinder other programs of the same user.
package ipc
