package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"ucloud-im/internal/failure"
)

// refusalPause is how long a connection is not read after one of its requests exceeded the rate.
const refusalPause = 100 * time.Millisecond

// serverConn is one connection at the server.
type serverConn struct {
	s        *Server
	wire     wire
	peer     Peer
	account  *account
	maxCalls int
	ctx      context.Context // the life of the connection
	closed   chan struct{}
	handlers sync.WaitGroup

	mu      sync.Mutex
	calls   map[uint32]*activeCall
	inFrame bool // the reader is inside a frame; the read deadline is that of the frame
	ended   bool // the reader has ended; deadlines do not matter any more
}

// activeCall is a call whose handler runs.
type activeCall struct {
	id     uint32
	stream bool
	cancel context.CancelFunc

	mu     sync.Mutex
	credit int
	wake   chan struct{} // capacity 1: credit has arrived
}

// serveConn reads the connection until it ends, then waits for its handlers.
func (s *Server) serveConn(serve context.Context, c *net.UnixConn, a *account, p Peer) {
	defer s.quota.release(a)
	ctx, cancel := context.WithCancel(serve)
	sc := &serverConn{
		s: s, wire: wire{c: c, writeTimeout: s.o.WriteTimeout}, peer: p, account: a, maxCalls: s.o.MaxCallsPerConn,
		ctx: ctx, closed: make(chan struct{}), calls: map[uint32]*activeCall{},
	}
	if a.exempt {
		sc.maxCalls *= 64
	}
	// A deadline in the past wakes the reader when the server stops.
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the connection may be closed
	err := sc.read()
	stop()
	sc.mu.Lock()
	sc.ended = true
	sc.mu.Unlock()
	if serve.Err() == nil {
		// The connection broke or the peer left: handlers cannot answer any more, their writes fail at once.
		c.Close() //nolint:errcheck // nobody to tell
		if errors.Is(err, errProtocol) {
			a.complain.Do(func() { s.log.Warn("connection dropped", "uid", p.uid, "error", err) })
		} else if !errors.Is(err, io.EOF) {
			s.log.Debug("connection ended", "uid", p.uid, "error", err)
		}
	}
	cancel()
	close(sc.closed)
	sc.handlers.Wait()
	c.Close() //nolint:errcheck // may be closed
}

// read is the reader goroutine's loop.
func (c *serverConn) read() error {
	r := frameReader{src: c.wire.c, dir: direction{limit: c.s.o.MaxRequestBytes}}
	defer func() { c.s.discard(c.account, r.take()) }()
	for {
		c.awaitFrame()
		if err := c.ctx.Err(); err != nil { // also orders us after the deadline that a stopping server sets
			return err
		}
		h, err := r.header(c.enterFrame)
		if err != nil {
			return err
		}
		if h.typ == frameCall || h.typ == frameOpen {
			err = c.request(&r, h)
		} else {
			err = c.control(&r, h)
		}
		if err != nil {
			return err
		}
	}
}

// awaitFrame sets the deadline for the beginning of the next frame: none while a call runs.
func (c *serverConn) awaitFrame() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFrame = false
	c.armLocked()
}

func (c *serverConn) enterFrame() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFrame = true
	c.armLocked()
}

// armLocked sets the read deadline that fits the state.
func (c *serverConn) armLocked() {
	var deadline time.Time
	switch {
	case c.ended || c.ctx.Err() != nil:
		return // a stopping server has set a deadline of its own
	case c.inFrame:
		deadline = time.Now().Add(c.s.o.FrameTimeout)
	case len(c.calls) == 0:
		deadline = time.Now().Add(c.s.o.IdleTimeout)
	}
	c.wire.c.SetReadDeadline(deadline) //nolint:errcheck // fails only if closed, which the reader notices
	if c.ctx.Err() != nil {
		c.wire.c.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // as above; the server stopped between the two lines
	}
}

// control handles cancel and credit frames. Those for calls that have ended are late, not wrong.
func (c *serverConn) control(r *frameReader, h header) error {
	payload, err := r.payload(h)
	if err != nil {
		return err
	}
	if !c.account.allowControl(time.Now()) {
		c.pause()
	}
	c.mu.Lock()
	call := c.calls[h.id]
	c.mu.Unlock()
	if call == nil {
		return nil
	}
	if h.typ == frameCancel {
		call.cancel()
		return nil
	}
	return call.addCredit(binary.BigEndian.Uint32(payload))
}

// pause stops reading for a moment, so that a flood costs its sender more than us.
func (c *serverConn) pause() {
	t := time.NewTimer(refusalPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// request reads a call and starts its handler, or refuses it. The cheap checks come first.
func (c *serverConn) request(r *frameReader, h header) error {
	c.mu.Lock()
	_, inUse := c.calls[h.id]
	running := len(c.calls)
	c.mu.Unlock()
	if inUse {
		return fmt.Errorf("%w: call id %d is in use", errProtocol, h.id)
	}
	if !c.account.allowRequest(time.Now(), h.length) {
		c.account.complain.Do(func() { c.s.log.Warn("requests come too fast", "uid", c.peer.uid) })
		c.pause()
		if err := r.skip(h); err != nil {
			return err
		}
		c.s.discard(c.account, r.take())
		return c.refuse(h.id, failure.New(failure.TooMany, "Too many requests, try again in a moment"))
	}
	payload, err := r.payload(h)
	if err != nil {
		return err
	}
	fds, taken := r.take(), false
	defer func() {
		if !taken {
			c.s.discard(c.account, fds)
		}
	}()
	name, payload := string(payload[:h.nameLen]), payload[h.nameLen:]
	e := c.s.entries[name]
	switch {
	case running >= c.maxCalls:
		return c.refuse(h.id, failure.New(failure.TooMany, "Too many calls at a time on one connection"))
	case e == nil || e.stream != (h.typ == frameOpen):
		return c.refuse(h.id, failure.New(failure.NotFound, "The service does not know this call"))
	case len(fds) > e.files:
		return c.refuse(h.id, failure.New(failure.Invalid, "The call takes no more than %d descriptors", e.files))
	}
	if err := checkFiles(fds); err != nil {
		return c.refuse(h.id, failure.Wrap(err, failure.Invalid, "A descriptor is of the wrong kind"))
	}
	ctx, cancel := context.WithCancel(c.ctx)
	call := &activeCall{id: h.id, stream: e.stream, cancel: cancel, credit: window, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	c.calls[h.id] = call
	c.mu.Unlock()
	taken = true
	c.handlers.Go(func() { c.handle(ctx, call, name, e, payload, fds) })
	return nil
}

// refuse answers a call for which there is no handler. It runs on the reader: a peer that does not read its answers is
// not read either.
func (c *serverConn) refuse(id uint32, err error) error {
	return c.wire.write(failureFrame(id, err), nil, nil)
}

// handle runs one call and answers it.
func (c *serverConn) handle(ctx context.Context, call *activeCall, name string, e *entry, payload []byte, fds []int) {
	defer call.cancel()
	result, err := c.run(ctx, call, name, e, payload, fds)
	if err != nil && c.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = failure.Wrap(err, failure.Unavailable, "The service is stopping")
	}
	var frame []byte
	if err == nil && e.stream {
		frame, err = encodeFrame(header{typ: frameEnd, id: call.id}, "", nil, maxReply)
	} else if err == nil {
		frame, err = encodeFrame(header{typ: frameResult, id: call.id}, "", result, maxReply)
	}
	if err != nil {
		c.logFailure(ctx, name, err)
		frame = failureFrame(call.id, err)
	}
	// The call leaves the table when its answer is about to be written: later, and a client that has its answer could
	// still be told that too many calls run; earlier, and a peer that never reads could have any number of handlers
	// waiting to write.
	call.cancel()
	c.wire.write(frame, nil, func() { c.forget(call) }) //nolint:errcheck // the peer has gone, the reader notices
}

// run authorises and decodes the call and runs its handler. A panic of the handler becomes an error.
func (c *serverConn) run(ctx context.Context, call *activeCall, name string, e *entry, payload []byte, fds []int) (result any, err error) {
	owned := false // by the handler
	defer func() {
		if v := recover(); v != nil {
			c.s.log.Error("handler panicked", "uid", c.peer.uid, "call", name, "error", v, "stack", string(debug.Stack()))
			result, err = nil, errPanic
		}
		if !owned {
			c.s.discard(c.account, fds)
		}
	}()
	grant, err := c.s.o.Authorize(ctx, c.peer)
	if err != nil {
		return nil, fmt.Errorf("authorize: %w", err)
	}
	if err := e.access.allow(grant); err != nil {
		return nil, err
	}
	invoke, err := e.decode(payload)
	if err != nil {
		return nil, err
	}
	owned = true
	req := &Request{Peer: c.peer, Grant: grant, Files: newFiles(fds), conn: c}
	return invoke(ctx, req, func(item any, files []*os.File) error { return c.send(ctx, call, item, files) })
}

// errPanic stands for a panic that has been logged already.
var errPanic = errors.New("the handler panicked")

func (c *serverConn) logFailure(ctx context.Context, name string, err error) {
	switch {
	case errors.Is(err, errPanic), ctx.Err() != nil: // logged; or nobody waits for the answer any more
	case failure.KindOf(err) == failure.Internal:
		c.s.log.Error("call failed", "uid", c.peer.uid, "call", name, "error", err)
	default:
		c.s.log.Debug("call refused", "uid", c.peer.uid, "call", name, "error", err)
	}
}

// forget takes a call out of the table; the last one starts the idle time.
func (c *serverConn) forget(call *activeCall) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, call.id)
	if len(c.calls) == 0 && !c.inFrame {
		c.armLocked()
	}
}

// send pushes one item, when the client has room for it.
func (c *serverConn) send(ctx context.Context, call *activeCall, item any, files []*os.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("send item: %d descriptors, at most %d are possible", len(files), maxFiles)
	}
	frame, err := encodeFrame(header{typ: frameItem, id: call.id, files: len(files)}, "", item, maxReply)
	if err != nil {
		return err
	}
	if err := call.takeCredit(ctx); err != nil {
		return err
	}
	return c.wire.write(frame, files, nil)
}

func (a *activeCall) takeCredit(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		a.mu.Lock()
		ok := a.credit > 0
		if ok {
			a.credit--
		}
		left := a.credit
		a.mu.Unlock()
		if left > 0 {
			a.signal() // pass it on: another goroutine may wait
		}
		if ok {
			return nil
		}
		select {
		case <-a.wake:
		case <-ctx.Done():
		}
	}
}

func (a *activeCall) addCredit(n uint32) error {
	a.mu.Lock()
	ok := a.stream && n > 0 && uint64(a.credit)+uint64(n) <= window
	if ok {
		a.credit += int(n)
	}
	a.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: credit of %d for call %d", errProtocol, n, a.id)
	}
	a.signal()
	return nil
}

func (a *activeCall) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// wireFailure is how an error crosses: what may be shown, and nothing of the cause.
type wireFailure struct {
	Kind int    `json:"kind"` // as HTTP status, so that the numbering does not depend on the version
	Why  string `json:"why"`
	Code string `json:"code,omitempty"`
}

// failureFrame encodes err for the client.
func failureFrame(id uint32, err error) []byte {
	body := wireFailure{Kind: failure.KindOf(err).Status(), Why: failure.Why(err)}
	if e, ok := errors.AsType[*failure.Error](err); ok {
		body.Code = e.Code
	}
	if errors.Is(err, errTooLong) {
		body.Why = "The answer is too long"
	}
	frame, err := encodeFrame(header{typ: frameFailure, id: id}, "", body, maxReply)
	if err != nil { // a sentence of 16 MiB
		body = wireFailure{Kind: failure.Internal.Status(), Why: "An internal error occurred"}
		frame, _ = encodeFrame(header{typ: frameFailure, id: id}, "", body, maxReply)
	}
	return frame
}
