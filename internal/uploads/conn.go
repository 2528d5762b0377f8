package uploads

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/websock"
)

const (
	// pieceBytes is how much of a large file is handed over at a time.
	pieceBytes = 256 << 10
	// smallBytes is up to which size a file is collected in memory and written in one go, so that it holds no
	// descriptor while its data is on the way.
	smallBytes = 64 << 10
	// maxWorkers is how many goroutines of one connection use the file system at a time.
	maxWorkers = 8
	// decideBatch is how many files one worker decides about before it looks for other work.
	decideBatch = 8
	// outLimit is how many bytes of answers may wait before no more files are decided about. It is also the size of a
	// message, and a multiple of the size of OK and SKIP.
	outLimit = 60_000
	answer   = 5
)

// conn is one connection of protocol V2.
//
// A listed file is in c.pending (or c.head) until it is admitted, which reserves what it may occupy; then a worker
// decides about it; if it is wanted it is in c.files until it is completed. c.ids says the same with two bits for each
// id. Everything that may block is done by workers, without the lock; they take work with nextLocked. Locks are taken in
// the order conn.mu, Service.mu; nothing shared is given back while conn.mu is held, because others are woken by it.
type conn struct {
	s     *Service
	st    *state
	ses   *session
	ws    *websock.Conn
	log   *slog.Logger
	root  *drives.Root
	path  drives.Path
	heard *atomic.Int64 // when the last byte came, Unix ns

	parent *drives.Dir // of the session's path; nil if that is the drive
	name   string      // in parent
	prefix int         // length of the longer one of the session's paths, here and at UCloud

	folderMu sync.Mutex  // guards folder
	folder   *drives.Dir // the session's path as a folder, once it was needed

	msg     *message    // of the reader
	blocked atomic.Bool // the reader waits for memory
	within  atomic.Bool // the reader is in the middle of a message
	wake    chan struct{}
	ended   chan struct{}  // closed with cause set
	tasks   sync.WaitGroup // all goroutines of the connection, except the reader and the next one
	closing sync.WaitGroup // tells the client about the end

	mu        sync.Mutex // guards the fields below
	idle      sync.Cond  // told when a worker ends
	ids       idTable
	pending   queue
	head      *entry // taken from pending, and not admitted
	stuck     bool   // head could not be admitted; cleared when something becomes free
	files     map[uint32]*file
	ready     []*file // have work
	unsynced  []*file // renamed, and their directories are not flushed
	syncing   bool
	workers   int
	held      int64 // data in memory
	smallHeld int64 // part of held that is promised to small files
	small     int   // small files in flight
	large     int   // large files in flight
	listed    int64
	completed int64
	calm      time.Time           // since when everything listed is completed
	out       []byte              // OK and SKIP for the client
	extra     []byte              // further answers, of the checked protocol
	acked     int64               // completed, as the client knows it
	draining  bool                // nothing new is begun
	over      bool                // nothing may run any more
	cause     *ending             // why it ends; nil while it goes on
	blamed    int64               // files that are reported and not completed
	swept     map[string]struct{} // directories that the janitor was told of
}

// ending is why a connection ends, and what the client is told.
type ending struct {
	code   websocket.StatusCode
	reason string
	err    error
	fatal  bool // nothing more can be stored in this session, because of reason, which is a sentence for the user
}

func (e *ending) Error() string {
	if e.err != nil {
		return e.reason + ": " + e.err.Error()
	}
	return e.reason
}

// run serves the connection until it ends. It returns when nothing of it is left.
func (c *conn) run() {
	c.idle.L = &c.mu
	c.calm = time.Now()
	// Not the life of the service: what is being written when that ends must not cut the connection.
	ctx, cancel := context.WithCancel(context.Background())
	c.s.mu.Lock()
	c.s.conns[c] = struct{}{}
	c.s.mu.Unlock()
	stop := context.AfterFunc(c.s.life, func() {
		c.end(&ending{code: websocket.StatusGoingAway, reason: "the service ends"})
	})
	c.tasks.Go(func() { c.write(ctx) })
	c.tasks.Go(func() { c.watch(ctx) })

	err := c.read()
	if e := endingOf(err); e != nil {
		c.end(e)
	}
	stop()
	c.finishWhole()
	c.closing.Wait() // nobody can begin it any more
	cancel()
	c.ws.CloseNow() //nolint:errcheck // it may be closed
	c.tasks.Wait()

	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	c.blameRest(err)
	c.drop()
	c.mu.Lock()
	cause, listed, completed := c.cause, c.listed, c.completed
	c.mu.Unlock()
	why := "closed by the client"
	if cause != nil {
		why = cause.Error()
	} else if websocket.CloseStatus(err) < 0 {
		why = "lost"
	}
	c.log.Debug("upload connection ended", "why", why, "listed", listed, "completed", completed)
}

// endingOf is what the client is told about an error of the reader, nil if there is nobody to tell.
func endingOf(err error) *ending {
	var e *ending
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errFrame):
		return &ending{code: websocket.StatusProtocolError, reason: "protocol error", err: err}
	case errors.Is(err, errTooMany), errors.Is(err, errScattered):
		return &ending{code: websocket.StatusPolicyViolation, reason: "too many files are listed", err: err}
	case browserlink.StorageBroken(err):
		return &ending{code: websocket.StatusInternalError, reason: "internal error", err: err}
	}
	return nil
}

// end ends the connection: the client is told why, and what is incomplete is dropped. The first reason counts.
func (c *conn) end(e *ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil || c.over {
		return
	}
	c.cause = e
	c.draining = true
	close(c.ended)
	c.closing.Go(func() { c.ws.Close(e.code, e.reason) }) //nolint:errcheck // bounded by itself, and nobody else to tell
}

// finishWhole waits until the files that have arrived completely are stored. Nothing new is begun.
func (c *conn) finishWhole() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	for c.workers > 0 || c.hasWorkLocked() {
		c.startLocked()
		c.idle.Wait()
	}
	c.over = true
}

// drop gives everything back. No worker runs any more.
func (c *conn) drop() {
	for _, f := range c.files {
		c.discard(f)
	}
	c.mu.Lock()
	files := c.files
	c.files = nil
	c.pending.close()
	c.ids.close()
	c.mu.Unlock()
	for _, f := range files {
		c.free(f, f.mail)
	}
	if c.folder != nil {
		c.folder.Close()
	}
	if c.parent != nil {
		c.parent.Close()
	}
	c.root.Close() //nolint:errcheck // a descriptor without content
}

// read takes messages until the connection ends.
func (c *conn) read() error {
	c.msg = newMessage()
	for {
		// Reading has no deadline of its own: the watch ends a connection that is silent.
		kind, r, err := c.ws.Reader(context.Background())
		if err != nil {
			return err
		}
		c.msg.reset(r)
		c.within.Store(true)
		if kind == websocket.MessageText {
			err = c.text()
		} else {
			err = c.binary()
		}
		if err == nil {
			err = c.msg.discard() // the end of the message must have been read
		}
		if err != nil {
			return err
		}
		c.within.Store(false)
		select {
		case <-c.ended:
			return net.ErrClosed
		default:
		}
	}
}

// text answers the keep-alive of other providers; no other text is known (contract 11 section 2.5).
func (c *conn) text() error {
	if c.isPing() {
		return c.pong()
	}
	return &ending{code: websocket.StatusUnsupportedData, reason: "text is not expected"}
}

func (c *conn) isPing() bool {
	if err := c.msg.fill(4); err != nil || string(c.msg.buf[c.msg.r:c.msg.w]) != "ping" {
		return false
	}
	return errors.Is(c.msg.fill(5), errFrame) // nothing behind it
}

func (c *conn) pong() error {
	ctx, cancel := context.WithTimeout(context.Background(), c.s.o.WriteTimeout)
	defer cancel()
	return c.ws.Write(ctx, websocket.MessageText, []byte("pong"))
}

// binary takes the commands of one message (contract 11 section 2.1).
func (c *conn) binary() error {
	if c.isPing() {
		return c.pong()
	}
	for {
		op, err := c.msg.take(1)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch op[0] {
		case opChunk:
			id, err := c.id()
			if err != nil {
				return err
			}
			return c.chunk(id)
		case opSkip:
			id, err := c.id()
			if err == nil {
				err = c.skipped(id)
			}
			if err != nil {
				return err
			}
		case opListing:
			return c.listing()
		case opClose:
			return c.transferOver(c.s.o.Closed)
		case opAbort:
			if !c.ses.Checked {
				return fmt.Errorf("%w: opcode %d", errFrame, op[0])
			}
			return c.transferOver(c.s.o.Aborted)
		case opHash:
			if !c.ses.Checked {
				return fmt.Errorf("%w: opcode %d", errFrame, op[0])
			}
			id, err := c.id()
			if err == nil {
				err = c.hashCame(id)
			}
			if err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: opcode %d", errFrame, op[0])
		}
	}
}

func (c *conn) id() (uint32, error) {
	p, err := c.msg.must(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(p), nil
}

// listing notes the files of a message.
func (c *conn) listing() error {
	defer c.kick()
	for n := 1; ; n++ {
		if n%256 == 0 {
			c.kick() // the rest of the message may take its time
		}
		e, path, err := c.msg.readEntry()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.list(e, path); err != nil {
			return err
		}
	}
}

func (c *conn) list(e entry, path []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.ids.get(e.id); s == idInUse || s == idSkipped {
		return fmt.Errorf("%w: file id %d is listed twice", errFrame, e.id)
	}
	if c.listed-c.completed >= int64(c.s.o.MaxListed) {
		return errTooMany
	}
	if err := c.ids.set(e.id, idInUse); err != nil {
		return err
	}
	// Now and then this writes to a temporary file, with the lock held: the order of the queue is worth more than the
	// moment.
	if err := c.pending.push(e, path); err != nil {
		return err
	}
	c.listed++
	c.ses.moved.listed.Add(1)
	return nil
}

// skipped is a file that the client cannot send. What has arrived of it is dropped.
func (c *conn) skipped(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[id]; f != nil {
		if !f.whole {
			f.drop = true
			c.readyLocked(f)
		}
		return nil
	}
	switch c.ids.get(id) {
	case idInUse:
		return c.ids.set(id, idSkipped)
	case idUnknown:
		return fmt.Errorf("%w: file id %d is not known", errFrame, id)
	}
	return nil
}

// transferOver is the end of a transfer by another provider: the session is not needed any more. Until that is stored
// the other provider is not told so, and tries again.
func (c *conn) transferOver(tell func(context.Context, Info) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	if tell != nil {
		if err := tell(ctx, c.ses.info()); err != nil {
			return &ending{code: websocket.StatusTryAgainLater, reason: "try again later", err: err}
		}
	}
	if err := c.s.o.Sessions.Close(ctx, c.ses.purpose(), c.ses.token); err != nil {
		return &ending{code: websocket.StatusTryAgainLater, reason: "try again later", err: err}
	}
	c.s.mu.Lock()
	c.ses.over = true
	c.s.mu.Unlock()
	return &ending{code: websocket.StatusNormalClosure, reason: "done"}
}

// kick starts a worker if there is something to do.
func (c *conn) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stuck = false
	c.startLocked()
}

func (c *conn) startLocked() {
	if !c.over && c.workers < maxWorkers && c.hasWorkLocked() && c.s.takeWorker() {
		c.workers++
		c.tasks.Go(c.worker)
	}
}

// worker does what there is to do, and ends.
func (c *conn) worker() {
	defer c.s.giveWorker()
	for {
		c.mu.Lock()
		job := c.nextLocked()
		if job == nil {
			c.workers--
			c.idle.Broadcast()
			c.mu.Unlock()
			return
		}
		c.startLocked() // one more, if there is more
		c.mu.Unlock()
		job()
	}
}

func (c *conn) hasWorkLocked() bool {
	return len(c.ready) > 0 || len(c.unsynced) > 0 && !c.syncing ||
		!c.draining && !c.stuck && len(c.out) < outLimit && (c.head != nil || c.pending.len() > 0)
}

// nextLocked gives the next piece of work, nil if there is none. Directories come first: one worker flushes while the
// others fill the next batch.
func (c *conn) nextLocked() func() {
	if len(c.unsynced) > 0 && !c.syncing {
		batch := c.unsynced
		c.unsynced, c.syncing = nil, true
		return func() { c.syncDirs(batch) }
	}
	if len(c.ready) > 0 {
		f := c.ready[0]
		c.ready[0] = nil
		if c.ready = c.ready[1:]; len(c.ready) == 0 {
			c.ready = nil
		}
		return func() { c.step(f) }
	}
	if batch := c.admitLocked(); len(batch) > 0 {
		return func() {
			for _, e := range batch {
				c.decide(e)
			}
		}
	}
	return nil
}

// admitLocked takes files that there is room for out of the queue.
func (c *conn) admitLocked() (batch []entry) {
	for len(batch) < decideBatch && !c.draining && len(c.out)+answer*len(batch) < outLimit {
		if c.head == nil {
			e, ok, err := c.pending.pop()
			if err != nil {
				c.draining = true
				c.tasks.Go(func() { c.end(&ending{code: websocket.StatusInternalError, reason: "internal error", err: err}) })
				break
			}
			if !ok {
				break
			}
			c.head = &e
		}
		if c.ids.get(c.head.id) == idSkipped {
			c.completeLocked(c.head.id)
			c.head = nil
			continue
		}
		if !c.reserveLocked(c.head.size) {
			c.stuck = true
			break
		}
		batch = append(batch, *c.head)
		c.head = nil
	}
	return batch
}

// reserveLocked takes what a file may occupy until it is completed.
func (c *conn) reserveLocked(size int64) bool {
	if isSmall(size) {
		n := max(size, 0)
		o := &c.s.o
		if c.small >= o.SmallFiles || c.smallHeld+n > o.ConnBytes/4 || !c.s.reserve(n, true) {
			return false
		}
		c.small++
		c.smallHeld += n
		return true
	}
	if c.large >= c.s.o.ConnFiles || !c.s.takeFile() {
		return false
	}
	c.large++
	return true
}

func isSmall(size int64) bool { return size <= smallBytes }

// unreserve gives back what reserveLocked took. The lock must not be held.
func (c *conn) unreserve(size int64) {
	small := isSmall(size)
	c.mu.Lock()
	c.stuck = false
	if small {
		c.small--
		c.smallHeld -= max(size, 0)
	} else {
		c.large--
	}
	c.mu.Unlock()
	if small {
		c.s.unreserve(max(size, 0), true)
	} else {
		c.s.giveFile()
	}
}

// completeLocked counts a file: it needs no more attention.
func (c *conn) completeLocked(id uint32) {
	_ = c.ids.set(id, idFinished) // the page is there
	c.completed++
	if c.completed == c.listed {
		c.calm = time.Now()
	}
	c.signal()
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) readyLocked(f *file) {
	if !f.queued {
		f.queued = true
		c.ready = append(c.ready, f)
		c.startLocked()
	}
}

// fatal ends everything because nothing can be stored any more. The file counts as failed; it is not acknowledged.
func (c *conn) fatal(rel string, err error) {
	err = browserlink.Refuse(err)
	c.ses.fail(rel, err, true)
	c.mu.Lock()
	c.blamed++
	c.mu.Unlock()
	c.end(&ending{websocket.StatusInternalError, failure.Why(err), err, true})
}
