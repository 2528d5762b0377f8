// Package uploadclient sends files over the upload protocol V2 (contract 11 section 2): for transfers to other
// providers, and for tests.
//
// A [Conn] is one connection. Any number of them may be open on a session; ids are given out by a counter that they may
// share. The peer is another organisation's server: what it sends is bounded and checked, and it can do no more than be
// slow, refuse files, or claim to have stored what it has not.
package uploadclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// The opcodes (contract 11 section 2.1).
const (
	opOK        = 0
	opChunk     = 2
	opSkip      = 3
	opListing   = 4
	opCompleted = 5
	opClose     = 6

	// Of the checked protocol.
	opResume   = 7
	opHash     = 8
	opRejected = 9
	opStored   = 10
	opAbort    = 11
)

const (
	minChunk     = 16 << 10
	maxChunk     = 4 << 20
	growBelow    = 250 * time.Millisecond // a write that takes less makes the next chunk larger
	flushAfter   = 50 * time.Millisecond  // how long a listing waits for more files
	listingBytes = 64 << 10
	maxAnswer    = 1 << 20
)

// File is a file to be sent.
type File struct {
	Path     string // below the session's folder; empty for a single file
	Size     int64
	Modified time.Time
	// Open opens it when the peer wants it. If the result is a [Checker], it is asked before the last of the data goes out.
	Open func() (io.ReadCloser, error)
}

// Checker is a source that can tell whether it is still what was listed. An error has the peer drop the file.
type Checker interface{ Check() error }

// Options of a connection. Zero values mean the defaults given.
type Options struct {
	HTTP   *http.Client // for the handshake; nil: the default client
	Header http.Header  // further headers of the handshake

	NextID   func() int32  // ids of files; must be unique on the connection. nil: counting from 0
	Ahead    int           // files that may be listed and not completed (5000)
	Bytes    int64         // size of files that may be listed and not sent, beside one (no bound)
	Parallel int           // files that are read at a time (4)
	Chunk    int           // fixed size of chunks in bytes; 0: from 16 KiB to 4 MiB, as fast as the peer takes them
	Write    time.Duration // deadline of a write (30 s)
	Read     time.Duration // how long the peer may be silent (120 s)
	Ping     time.Duration // interval of keep-alives (15 s)
	Checked  bool          // the session speaks the checked protocol: hashes, and large files that go on where they were
	Stall    time.Duration // how long nothing may go on although there is something to do (10 min)

	// Event is told what becomes of a file, one call at a time.
	Event func(f *File, e Event)
	// Progress is told of bytes that have been sent, from several goroutines.
	Progress func(bytes int)
}

// Event is what happened to a file.
type Event uint8

// The events. That a file was stored is only known by the number of completed files.
const (
	Wanted     Event = iota + 1 // the peer wants it
	Skipped                     // the peer has it, or cannot store it
	Unreadable                  // it could not be read, or was not as long as listed
	Sent                        // all of it has been sent
)

// Result sums up what was sent.
type Result struct {
	Listed     int64
	Skipped    int64 // by the peer
	Unreadable int64
	Sent       int64
	Completed  int64 // as the peer says
	Rejected   int64 // did not arrive as they were sent (checked protocol)
	Bytes      int64
}

var (
	// ErrClosed tells that the peer has closed the connection before everything was completed.
	ErrClosed = errors.New("the peer has closed the upload")
	// ErrProtocol tells that the peer has sent something that makes no sense.
	ErrProtocol = errors.New("the peer does not follow the protocol")
	// ErrStalled tells that the peer lives, and nothing goes on.
	ErrStalled = errors.New("the peer does not go on")
)

// RefusedError tells that the peer has answered the handshake with a status.
type RefusedError struct {
	Status int
	Err    error
}

// Error implements error. It does not show the endpoint, which holds a token.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("connect to upload: the peer answered %d", e.Status)
}

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Conn is a connection to an upload session.
type Conn struct {
	o  Options
	ws *websocket.Conn

	ctx    context.Context // the life of the connection
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup

	want   chan *File // files that are to be sent
	change chan struct{}

	bytes atomic.Int64
	moved atomic.Int64 // when something went on last, Unix ns

	mu    sync.Mutex // guards the fields below
	ahead int64      // size of the files in files
	files map[int32]*state
	busy  int // senders at work
	res   Result
	ids   map[*File]int32
}

type state struct {
	file    *File
	from    int64         // where to begin
	stored  int64         // what the peer has
	moved   chan struct{} // holds one element: stored has changed
	wanted  bool
	skipped bool
}

// Dial connects. The context bounds the handshake only.
func Dial(ctx context.Context, endpoint string, o Options) (*Conn, error) {
	if o.NextID == nil {
		var n atomic.Int32
		o.NextID = func() int32 { return n.Add(1) - 1 }
	}
	if o.Ahead <= 0 {
		o.Ahead = 5000
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Write <= 0 {
		o.Write = 30 * time.Second
	}
	if o.Read <= 0 {
		o.Read = 2 * time.Minute
	}
	if o.Ping <= 0 {
		o.Ping = 15 * time.Second
	}
	if o.Stall <= 0 {
		o.Stall = 10 * time.Minute
	}
	ws, res, err := websocket.Dial(ctx, endpoint, &websocket.DialOptions{
		HTTPClient: o.HTTP, HTTPHeader: o.Header, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			text, _ := io.ReadAll(io.LimitReader(res.Body, 512)) // as far as it is there
			return nil, &RefusedError{res.StatusCode, fmt.Errorf("%q: %w", text, err)}
		}
		return nil, fmt.Errorf("connect to upload: %w", err)
	}
	ws.SetReadLimit(maxAnswer)
	c := &Conn{
		o: o, ws: ws, want: make(chan *File, o.Ahead), change: make(chan struct{}, 1),
		files: map[int32]*state{}, ids: map[*File]int32{},
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.tasks.Go(c.read)
	c.tasks.Go(c.ping)
	for range o.Parallel {
		c.tasks.Go(c.sender)
	}
	return c, nil
}

// Send lists files and sends those that the peer wants. It returns when the peer says that all are completed. An error
// of the sequence ends it.
func (c *Conn) Send(ctx context.Context, files iter.Seq2[*File, error]) (Result, error) {
	stop := context.AfterFunc(ctx, func() { c.cancel(context.Cause(ctx)) })
	defer stop()
	listing := append(make([]byte, 0, listingBytes), opListing)
	flush := func() error {
		if len(listing) == 1 {
			return nil
		}
		err := c.write(listing)
		listing = listing[:1]
		return err
	}
	for f, err := range files {
		if err != nil {
			return c.Result(), err
		}
		if len(listing)+24+len(f.Path) > listingBytes {
			if err := flush(); err != nil {
				return c.Result(), err
			}
		}
		if !c.room() {
			if err := flush(); err != nil {
				return c.Result(), err
			}
			if err := c.await(c.room); err != nil {
				return c.Result(), err
			}
		}
		listing = c.list(listing, f)
	}
	if err := flush(); err != nil {
		return c.Result(), err
	}
	err := c.await(func() bool { return c.outstanding() == 0 && c.idle() })
	return c.Result(), err
}

// list appends a file to a listing and notes it.
func (c *Conn) list(b []byte, f *File) []byte {
	id := c.o.NextID()
	c.mu.Lock()
	c.files[id] = &state{file: f, moved: make(chan struct{}, 1)}
	c.ids[f] = id
	c.res.Listed++
	c.ahead += f.Size
	c.mu.Unlock()
	b = binary.BigEndian.AppendUint32(b, uint32(id))                     //nolint:gosec // two's complement
	b = binary.BigEndian.AppendUint64(b, uint64(f.Size))                 //nolint:gosec // likewise
	b = binary.BigEndian.AppendUint64(b, uint64(f.Modified.UnixMilli())) //nolint:gosec // likewise
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Path)))            //nolint:gosec // a path
	return append(b, f.Path...)
}

// Result is what has happened so far.
func (c *Conn) Result() Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.res
	r.Bytes = c.bytes.Load()
	return r
}

func (c *Conn) outstanding() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.res.Listed - c.res.Completed
}

// idle tells whether no file is being sent; the peer may have completed one before we have noticed that we sent it.
func (c *Conn) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy == 0
}

func (c *Conn) working(n int) {
	c.mu.Lock()
	c.busy += n
	c.mu.Unlock()
	c.changed()
}

func (c *Conn) changed() {
	select {
	case c.change <- struct{}{}:
	default:
	}
}

// await waits until the peer's answers make cond true.
func (c *Conn) await(cond func() bool) error {
	for !cond() {
		select {
		case <-c.change:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	return nil
}

// finishWait is how long the peer has to close the connection after it was told that the transfer is over.
const finishWait = 25 * time.Second

// ErrUnsure tells that the connection was lost before the peer could say that it has understood.
var ErrUnsure = errors.New("the peer did not say that it has ended the transfer")

// Finish tells the peer that the transfer is over, so that it forgets the session, and waits until it closes the
// connection. Use a fresh connection for it. [ErrUnsure]: the peer may or may not have heard it.
func (c *Conn) Finish() error { return c.finish(opClose, finishWait) }

// Cancel tells the peer that the transfer is cancelled (checked protocol), and waits for so long until it has understood.
func (c *Conn) Cancel(wait time.Duration) error { return c.finish(opAbort, wait) }

func (c *Conn) finish(op byte, wait time.Duration) error {
	err := c.write([]byte{op})
	if err == nil {
		t := time.NewTimer(wait)
		select {
		case <-c.ctx.Done():
		case <-t.C:
		}
		t.Stop()
		switch cause := context.Cause(c.ctx); websocket.CloseStatus(cause) {
		case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		case -1:
			if cause != nil {
				err = fmt.Errorf("%w: %w", ErrUnsure, cause)
			}
		default:
			err = cause
		}
	}
	if closing := c.Close(); err == nil && c.ctx.Err() == nil {
		err = closing
	}
	return err
}

// Close closes the connection. Files that are not completed are dropped by the peer.
func (c *Conn) Close() error {
	err := c.ws.Close(websocket.StatusNormalClosure, "")
	c.cancel(ErrClosed)
	c.tasks.Wait()
	if websocket.CloseStatus(err) >= 0 {
		err = nil // the peer was faster
	}
	return err
}

// Abort cuts the connection.
func (c *Conn) Abort() {
	c.cancel(ErrClosed)
	c.ws.CloseNow() //nolint:errcheck // it is to end
	c.tasks.Wait()
}

func (c *Conn) write(msg []byte) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.Write)
	defer cancel()
	if err := c.ws.Write(ctx, websocket.MessageBinary, msg); err != nil {
		if cause := context.Cause(c.ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// ping keeps the connection alive in the way that other implementations know (contract 11 section 2.5).
func (c *Conn) ping() {
	tick := time.NewTicker(c.o.Ping)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ctx, cancel := context.WithTimeout(c.ctx, c.o.Write)
			err := c.ws.Write(ctx, websocket.MessageText, []byte("ping"))
			cancel()
			if err != nil {
				c.cancel(fmt.Errorf("send: %w", err))
				return
			}
		case <-c.ctx.Done():
			return
		}
	}
}
