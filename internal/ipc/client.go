package ipc

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"ucloud-im/internal/failure"
)

const (
	clientWriteTimeout = 10 * time.Second
	clientFrameTimeout = 30 * time.Second
)

// ErrDisconnected is in the chain of errors of calls whose connection has ended before the answer came. Whether the
// server has done what was asked is unknown.
var ErrDisconnected = errors.New("the ipc connection has ended")

// ErrClosed is what [Receiver.Next] gives after [Receiver.Close].
var ErrClosed = errors.New("the stream was closed")

// Client is one connection to the server. Any number of goroutines may use it. It has one goroutine of its own, which
// only waits in the poller.
type Client struct {
	wire wire
	peer Peer
	done chan struct{}
	// background are the reader and the senders of cancel frames.
	background sync.WaitGroup

	mu      sync.Mutex
	lastID  uint32
	pending map[uint32]*pending // nil once the connection has ended
}

// pending is a call or stream that is not over.
type pending struct {
	stream bool
	// arrivals has room for all that the server may send, so the reader never blocks: one answer, or a window of
	// items and the end.
	arrivals chan arrival
}

// arrival is one frame for a call: err nil means payload is an answer or an item.
type arrival struct {
	payload []byte
	files   []*os.File
	err     error
}

func newClient(conn *net.UnixConn, peer Peer) *Client {
	c := &Client{
		wire: wire{c: conn, writeTimeout: clientWriteTimeout}, peer: peer,
		done: make(chan struct{}), pending: map[uint32]*pending{},
	}
	c.background.Go(c.read)
	return c
}

// Close ends the connection and with it all calls and streams. It returns when the client's goroutines have ended.
func (c *Client) Close() error {
	err := c.wire.c.Close()
	c.background.Wait()
	return err
}

// Done is closed when the connection has ended, from whichever side.
func (c *Client) Done() <-chan struct{} { return c.done }

// Peer is the server: the process that called listen(2) on the socket.
func (c *Client) Peer() Peer { return c.peer }

// read is the reader goroutine.
func (c *Client) read() {
	r := frameReader{src: c.wire.c, dir: direction{fromServer: true, limit: maxReply}}
	var err error
	for err == nil {
		err = c.readFrame(&r)
	}
	closeAll(newFiles(r.take()))
	c.wire.c.Close() //nolint:errcheck // may be closed
	if errors.Is(err, io.EOF) {
		err = ErrDisconnected
	} else {
		err = fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	lost := arrival{err: lostError(err)}
	c.mu.Lock()
	for _, p := range c.pending {
		p.arrivals <- lost // there is room, see pending
	}
	c.pending = nil
	c.mu.Unlock()
	close(c.done)
}

func lostError(cause error) error {
	return failure.Wrap(cause, failure.Unavailable, "The connection to the service was lost")
}

func (c *Client) readFrame(r *frameReader) error {
	if err := c.wire.c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	h, err := r.header(func() {
		c.wire.c.SetReadDeadline(time.Now().Add(clientFrameTimeout)) //nolint:errcheck // fails only if closed, read notices
	})
	if err != nil {
		return err
	}
	payload, err := r.payload(h)
	if err != nil {
		return err
	}
	a := arrival{payload: payload, files: newFiles(r.take())}
	switch h.typ {
	case frameFailure:
		a.err = decodeFailure(payload)
	case frameEnd:
		a.err = io.EOF
	}
	taken, err := c.deliver(h, a)
	if !taken {
		closeAll(a.files)
	}
	return err
}

// deliver hands an arrival to whom it belongs. Frames of calls that were given up are dropped.
func (c *Client) deliver(h header, a arrival) (taken bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[h.id]
	if p == nil {
		return false, nil
	}
	if h.typ != frameFailure && p.stream != (h.typ == frameItem || h.typ == frameEnd) {
		return false, fmt.Errorf("%w: frame type %d for call %d", errProtocol, h.typ, h.id)
	}
	if h.typ != frameItem {
		delete(c.pending, h.id)
	} else if len(p.arrivals) >= window {
		return false, fmt.Errorf("%w: more items than the window", errProtocol)
	}
	p.arrivals <- a // there is room, see pending
	return true, nil
}

func decodeFailure(payload []byte) error {
	var f wireFailure
	if err := json.Unmarshal(payload, &f); err != nil {
		return fmt.Errorf("decode failure: %w", err)
	}
	return &failure.Error{Kind: failure.KindOfStatus(f.Kind), Why: f.Why, Code: f.Code}
}

// start sends a call or open frame. The write is not interrupted by a context, but takes 10 s at most.
func (c *Client) start(ctx context.Context, typ frameType, name string, req any, files []*os.File) (uint32, *pending, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	if len(files) > maxFiles {
		return 0, nil, fmt.Errorf("%d descriptors, at most %d are possible", len(files), maxFiles)
	}
	p := &pending{arrivals: make(chan arrival, 1)}
	if typ == frameOpen {
		p.stream, p.arrivals = true, make(chan arrival, window+1)
	}
	id, err := c.add(p)
	if err != nil {
		return 0, nil, err
	}
	frame, err := encodeFrame(header{typ: typ, id: id, files: len(files)}, name, req, maxRequest)
	if err != nil {
		c.remove(id)
		if errors.Is(err, errTooLong) {
			return 0, nil, failure.Wrap(err, failure.TooLarge, "The request is too long")
		}
		return 0, nil, err
	}
	if err := c.wire.write(frame, files, nil); err != nil {
		c.remove(id)
		if errors.Is(err, errAttach) {
			return 0, nil, err
		}
		return 0, nil, lostError(fmt.Errorf("%w: %w", ErrDisconnected, err))
	}
	return id, p, nil
}

func (c *Client) add(p *pending) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return 0, lostError(ErrDisconnected)
	}
	for {
		c.lastID++
		if _, used := c.pending[c.lastID]; c.lastID != 0 && !used {
			c.pending[c.lastID] = p
			return c.lastID, nil
		}
	}
}

func (c *Client) remove(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// abandon gives a call up and lets the server know, without waiting for that.
func (c *Client) abandon(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.pending[id]; !open {
		return // over, or the connection is
	}
	delete(c.pending, id)
	// The reader still counts in background, because pending is not nil: Close waits for this goroutine too.
	c.background.Go(func() {
		frame, _ := encodeFrame(header{typ: frameCancel, id: id}, "", nil, maxRequest)
		c.wire.write(frame, nil, nil) //nolint:errcheck // the connection has ended, and with it the call
	})
}

// Invoke makes a call and waits for the answer. The files travel with the request and stay the caller's. Errors are
// the handler's [failure.Error] with kind, sentence and code; ctx's error when that ends first (the server is told to
// stop); an Unavailable error with [ErrDisconnected] in its chain if the connection ends first.
func Invoke[Req, Resp any](ctx context.Context, c *Client, call Call[Req, Resp], req Req, files ...*os.File) (Resp, error) {
	var resp Resp
	id, p, err := c.start(ctx, frameCall, call.Name, req, files)
	if err != nil {
		return resp, fmt.Errorf("call %s: %w", call.Name, err)
	}
	select {
	case a := <-p.arrivals:
		if a.err != nil {
			return resp, fmt.Errorf("call %s: %w", call.Name, a.err)
		}
		if err := json.Unmarshal(a.payload, &resp); err != nil {
			return resp, fmt.Errorf("call %s: decode answer: %w", call.Name, err)
		}
		return resp, nil
	case <-ctx.Done():
		c.abandon(id)
		return resp, fmt.Errorf("call %s: %w", call.Name, ctx.Err())
	}
}

// Open starts a stream. It does not wait for the server: a refusal is the error of the first [Receiver.Next]. The
// context covers the opening only; the stream lives until its end, [Receiver.Close] or the end of the connection. The
// files stay the caller's.
func Open[Req, Item any](ctx context.Context, c *Client, s Stream[Req, Item], req Req, files ...*os.File) (*Receiver[Item], error) {
	id, p, err := c.start(ctx, frameOpen, s.Name, req, files)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Name, err)
	}
	return &Receiver[Item]{c: c, id: id, name: s.Name, p: p, closed: make(chan struct{})}, nil
}

// Receiver is the client's end of a stream. Next is for one goroutine at a time; Close may be called by another one.
// A receiver that is not read until its error must be closed.
type Receiver[Item any] struct {
	c    *Client
	id   uint32
	name string
	p    *pending

	consumed int   // items since the last credit; Next only
	final    error // the stream is over; Next only

	closeOnce sync.Once
	closed    chan struct{}
}

// Next waits for an item and the descriptors that came with it, which are then the caller's to close. It gives
// [io.EOF] at the regular end, the handler's [failure.Error] otherwise, and from then on the same error again. When ctx
// ends first the stream goes on: Next may be called again.
func (r *Receiver[Item]) Next(ctx context.Context) (Item, []*os.File, error) {
	var item Item
	if r.final != nil {
		return item, nil, r.final
	}
	var a arrival
	select {
	case <-r.closed:
		return item, nil, ErrClosed
	default:
	}
	select {
	case a = <-r.p.arrivals:
	case <-r.closed:
		return item, nil, ErrClosed
	case <-ctx.Done():
		return item, nil, ctx.Err()
	}
	if errors.Is(a.err, io.EOF) {
		r.final = io.EOF // bare, as readers expect it
		return item, nil, r.final
	}
	if a.err != nil {
		r.final = fmt.Errorf("stream %s: %w", r.name, a.err)
		return item, nil, r.final
	}
	r.acknowledge()
	if err := json.Unmarshal(a.payload, &item); err != nil {
		closeAll(a.files)
		r.Close()
		r.final = fmt.Errorf("stream %s: decode item: %w", r.name, err)
		return item, nil, r.final
	}
	return item, a.files, nil
}

// acknowledge lets the server send more, in portions so that credit frames are few.
func (r *Receiver[Item]) acknowledge() {
	r.consumed++
	if r.consumed < window/2 {
		return
	}
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(r.consumed))
	r.consumed = 0
	frame, _ := encodeFrame(header{typ: frameCredit, id: r.id}, "", rawPayload(n[:]), maxRequest)
	r.c.wire.write(frame, nil, nil) //nolint:errcheck // the connection has ended, and the next Next says so
}

// Close ends the stream: the handler's context is cancelled, items that have arrived are dropped. It does not wait.
func (r *Receiver[Item]) Close() {
	r.closeOnce.Do(func() {
		close(r.closed)
		r.c.abandon(r.id)
		for {
			select {
			case a := <-r.p.arrivals:
				closeAll(a.files)
			default:
				return
			}
		}
	})
}
