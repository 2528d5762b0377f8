// Package websock accepts the WebSockets of an instance: all of them, so that the bounds are in one place.
//
// # Trust
//
// The other end is a browser or a stranger until what it sends has been checked, and may then still be broken, slow or
// hostile. It decides what arrives and when.
//
// # Properties, and the tests that prove them
//
//   - A message is read up to a bound that the caller gives (TestReadLimit).
//   - A write ends: a peer that does not read loses its connection (TestWriteEnds).
//   - A closure ends: the library reads what the peer still sends without a limit of time, for instance a frame that was
//     announced with any length, so the connection is cut when the handshake has not come to its end (TestCloseEnds).
//   - A peer that has vanished is noticed, if the caller asks for it (TestKeepAliveEnds).
//   - What comes beside the messages is bounded: pings, frames without content (TestFramesWithoutContent).
//   - Frames that are not masked, compressed frames and frames with meanings that were not agreed on end the connection
//     (TestBadFrames).
//   - The end of the connection in the middle of a message is an error, and not the end of the message (TestCut).
package websock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
)

const (
	// DefaultWriteTimeout is how long the peer may take to accept a message.
	DefaultWriteTimeout = 30 * time.Second
	// closeTimeout is how long the peer may take to agree to the end.
	closeTimeout = 3 * time.Second
	// pongTimeout is how long the peer may take to answer a ping.
	pongTimeout = 20 * time.Second
)

// HeaderNoBearer tells Core not to repeat its token in messages (contract 21 section 3.2).
const HeaderNoBearer = "ucloud-no-bearer"

// Options configure a connection.
type Options struct {
	ReadLimit    int64                   // bytes of a message; required
	WriteTimeout time.Duration           // of [Conn.Send]; 0 means DefaultWriteTimeout
	Wrap         func(net.Conn) net.Conn // looks at what is read and written; nil: nobody does
	CloseTimeout time.Duration           // of [Conn.Close]; for tests
}

// Conn is a connection. Reading is for one goroutine at a time, everything else for any.
type Conn struct {
	*websocket.Conn
	raw   net.Conn
	whole *whole
	write time.Duration
	close time.Duration
}

// IsUpgrade tells whether the request asks for a WebSocket.
func IsUpgrade(r *http.Request) bool { return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") }

// ErrNotUpgrade is the answer to a request that does not.
func ErrNotUpgrade() error {
	return failure.New(failure.Invalid, "This address is for WebSockets")
}

// Accept upgrades the request. Who may connect, and from which page, must have been checked. When it fails the request
// has been answered.
func Accept(w http.ResponseWriter, r *http.Request, o Options) (*Conn, error) {
	if o.ReadLimit <= 0 {
		panic("websock: no bound for messages")
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
	if o.CloseTimeout <= 0 {
		o.CloseTimeout = closeTimeout
	}
	h := &hijacker{ResponseWriter: w, wrap: o.Wrap}
	ws, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the caller knows which pages may connect
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	c := &Conn{Conn: ws, raw: h.raw, whole: h.whole, write: o.WriteTimeout, close: o.CloseTimeout}
	c.SetReadLimit(o.ReadLimit)
	return c, nil
}

// SetReadLimit changes the bound of the messages to come.
func (c *Conn) SetReadLimit(n int64) {
	c.Conn.SetReadLimit(n)
	c.whole.limit.Store(n)
}

// Reader gives the next message.
func (c *Conn) Reader(ctx context.Context) (websocket.MessageType, io.Reader, error) {
	c.whole.came.Store(0)
	c.whole.begun.Store(time.Now().UnixNano())
	return c.Conn.Reader(ctx)
}

// Read gives the next message as a whole.
func (c *Conn) Read(ctx context.Context) (websocket.MessageType, []byte, error) {
	kind, r, err := c.Reader(ctx)
	if err != nil {
		return 0, nil, err
	}
	b, err := io.ReadAll(r)
	return kind, b, err
}

// Close tells the peer about the end, and why, and ends the connection. It takes a bounded time whatever the peer does.
func (c *Conn) Close(code websocket.StatusCode, reason string) error {
	cut := time.AfterFunc(c.close, func() { c.raw.Close() }) //nolint:errcheck // it is to end
	defer cut.Stop()
	return c.Conn.Close(code, reason)
}

// ErrText is a message that is not text.
var ErrText = errors.New("text is expected")

// ReadText gives the next message, which must be text.
func (c *Conn) ReadText(ctx context.Context) ([]byte, error) {
	kind, data, err := c.Read(ctx)
	if err == nil && kind != websocket.MessageText {
		err = ErrText
	}
	return data, err
}

// Send sends a text message. A peer that does not take it in time loses the connection. The end of ctx keeps a message
// from being begun and not from being finished: half of one would be the end of the connection.
func (c *Conn) Send(ctx context.Context, text []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.write)
	defer cancel()
	return c.Write(ctx, websocket.MessageText, text)
}

// KeepAlive pings the peer now and then, until ctx ends or the peer does not answer: then the connection is cut. Somebody
// must be reading.
func (c *Conn) KeepAlive(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		limit, cancel := context.WithTimeout(ctx, min(pongTimeout, interval))
		err := c.Ping(limit)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.CloseNow() //nolint:errcheck // it is to end
			return
		}
	}
}

// hijacker hands out the connection so that we can reach it later.
type hijacker struct {
	http.ResponseWriter
	wrap  func(net.Conn) net.Conn
	raw   net.Conn
	whole *whole
}

// Hijack implements [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, errors.Join(errors.New("take over the connection"), err)
	}
	h.whole = &whole{Conn: c}
	h.whole.begun.Store(time.Now().UnixNano())
	c = h.whole
	if h.wrap != nil {
		c = h.wrap(c)
	}
	h.raw = c
	return c, rw, nil
}

// whole turns the end of the connection into an error, since the library takes it for the end of a message: a peer that
// ends in the proper way says so first. And it bounds what comes for one message.
type whole struct {
	net.Conn
	limit atomic.Int64 // bytes of a message
	came  atomic.Int64 // bytes since the last message was begun
	begun atomic.Int64 // when that was, Unix ns
}

// freeOverhead is what may come beside the bytes of a message. A frame of one byte, the smallest that is of use, has seven
// in all. A connection without messages may be kept alive for ever.
const (
	freeOverhead      = 256 << 10
	overheadPerSecond = 64
)

var (
	// ErrCut is a connection that ends without a closing handshake.
	ErrCut = errors.New("the connection was cut")
	// ErrOverhead is a peer that sends frames without a purpose.
	ErrOverhead = errors.New("too much is sent beside the messages")
)

func (w *whole) tooMuch() bool {
	since := time.Since(time.Unix(0, w.begun.Load())).Seconds()
	return w.came.Load() > freeOverhead+7*w.limit.Load()+int64(since*overheadPerSecond)
}

// Read implements [net.Conn].
func (w *whole) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if w.came.Add(int64(n)) > freeOverhead+7*w.limit.Load() && w.tooMuch() {
		w.Conn.Close() //nolint:errcheck // it is to end
		return 0, ErrOverhead
	}
	if errors.Is(err, io.EOF) {
		err = ErrCut
	}
	return n, err
}
