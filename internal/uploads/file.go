package uploads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// fileMode is the mode of new files before the umask (contract 10 section 9).
const (
	fileMode = 0o660
	dirMode  = 0o770
)

var (
	errSurplus = failure.New(failure.Invalid, "The client sent more data than it had announced")
	errSize    = failure.New(failure.Invalid, "The client announced a size that is not possible")
)

// file is a file in flight: the client has been told to send it.
type file struct {
	entry
	plan plan

	// Of the reader.
	received int64
	buf      []byte // of a small file

	// Guarded by conn.mu.
	mail   []piece // of a large file, in order
	queued bool    // is in conn.ready, or a worker has it
	whole  bool    // everything has been received
	drop   bool    // is not wanted any more, because of why, or of the client if that is nil
	why    error
	done   bool // is completed

	// Of the worker that has it.
	target target
	draft  *drives.Draft
	begun  int64 // bytes that the kernel was asked to write out
	check  checking
	failed bool // it could not be stored
}

// piece is data of a large file.
type piece struct {
	buf *[pieceBytes]byte
	n   int
	off int64
}

// chunk takes the rest of the message as data of a file.
func (c *conn) chunk(id uint32) error {
	c.mu.Lock()
	f, state := c.files[id], c.ids.get(id)
	c.mu.Unlock()
	switch {
	case f != nil && isSmall(f.size):
		return c.smallChunk(f)
	case f != nil:
		return c.largeChunk(f)
	case state == idFinished || state == idSkipped:
		return c.msg.discard() // late; the file is over
	}
	// The empty chunk of an empty file may come very late (contract 11 section 2.3 point 3).
	if err := c.msg.fill(1); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("%w: data of file id %d, which was not asked for", errFrame, id)
}

// smallChunk collects a small file.
func (c *conn) smallChunk(f *file) error {
	if f.received < f.size && f.buf == nil {
		f.buf = make([]byte, f.size) // reserved when the file was admitted
	}
	// Once everything has been received the buffer is the worker's.
	for f.received < f.size {
		n, err := c.msg.read(f.buf[f.received:])
		f.received += int64(n)
		c.ses.moved.bytes.Add(int64(n))
		if errors.Is(err, io.EOF) {
			return nil // more will come
		}
		if err != nil {
			return err
		}
	}
	if err := c.surplus(f); err != nil {
		return err
	}
	if c.ses.Checked {
		return nil // the hash comes
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.whole {
		f.whole = true
		c.readyLocked(f)
	}
	return nil
}

// surplus looks whether the message has more data than the file may have. Such a file is dropped and failed, unless it
// is complete already; the data is of no use either way.
func (c *conn) surplus(f *file) error {
	err := c.msg.fill(1)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	if !f.whole {
		f.whole, f.drop, f.why = true, true, errSurplus
		c.readyLocked(f)
	}
	c.mu.Unlock()
	return c.msg.discard()
}

// largeChunk hands the data over in pieces.
func (c *conn) largeChunk(f *file) error {
	for {
		if err := c.msg.fill(1); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		room := f.size - f.received
		if room == 0 {
			return c.surplus(f)
		}
		buf, err := c.takePiece()
		if err != nil {
			return err
		}
		n, err := c.msg.read(buf[:min(pieceBytes, room)])
		p := piece{buf, n, f.received}
		f.received += int64(n)
		c.ses.moved.bytes.Add(int64(n))
		last := false
		if f.received == f.size && err == nil {
			// What follows decides whether the file is whole or has too much.
			err = c.msg.fill(1)
			if last = errors.Is(err, io.EOF); last {
				err = nil
			}
		}
		if !c.deliver(f, p, last) {
			c.givePieces([]piece{p})
			if err == nil {
				err = c.msg.discard() // the file is over
			}
			return err
		}
		if err != nil {
			return err
		}
	}
}

// deliver gives data to the worker of a file. It reports false if the file is over.
func (c *conn) deliver(f *file, p piece, last bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.done || f.drop {
		return false
	}
	f.mail = append(f.mail, p)
	f.whole = last && !c.ses.Checked
	c.readyLocked(f)
	return true
}

// takePiece waits until there is memory for a piece. Until then nothing is read; the workers go on, and give memory back
// whatever the client does.
func (c *conn) takePiece() (*[pieceBytes]byte, error) {
	for {
		room := c.s.room()
		c.mu.Lock()
		ok := c.held+pieceBytes <= max(c.s.o.ConnBytes, pieceBytes) && c.s.reserve(pieceBytes, false)
		if ok {
			c.held += pieceBytes
		}
		c.mu.Unlock()
		if ok {
			c.blocked.Store(false)
			return c.s.newPiece(), nil
		}
		c.blocked.Store(true)
		select {
		case <-room:
		case <-c.ended:
			return nil, c.cause
		}
	}
}

func (c *conn) givePieces(mail []piece) {
	if len(mail) == 0 {
		return
	}
	n := int64(len(mail)) * pieceBytes
	for _, p := range mail {
		c.s.oldPiece(p.buf)
	}
	c.mu.Lock()
	c.held -= n
	c.mu.Unlock()
	c.s.unreserve(n, false)
}

// decide tells the client whether a file is wanted.
func (c *conn) decide(e entry) {
	p, err := c.examine(&e)
	if err != nil && browserlink.StorageBroken(err) {
		c.unreserve(e.size)
		c.fatal(e.path, err)
		return
	}
	if err != nil {
		c.ses.fail(e.path, browserlink.Refuse(err), false)
	}
	wanted := err == nil && !p.skip
	f := &file{entry: e, plan: p}
	if wanted && c.ses.Checked {
		if err := c.resume(f); err != nil {
			wanted = false
			c.discard(f)
			c.ses.fail(e.path, browserlink.Refuse(err), false)
		}
	}
	if err == nil && p.skip {
		c.ses.there(e.path)
	}
	c.mu.Lock()
	switch {
	case c.ids.get(e.id) == idSkipped: // meanwhile, by the client
		if wanted {
			defer c.discard(f)
		}
		wanted = false
		c.completeLocked(e.id)
	case !wanted:
		c.answerLocked(opSkip, e.id)
		c.completeLocked(e.id)
	default:
		c.files[e.id] = f
		if f.check.from > 0 {
			c.tellLocked(opResume, e.id, f.check.from)
		} else {
			c.answerLocked(opOK, e.id)
		}
		if e.size == 0 && !c.ses.Checked {
			f.whole = true
			c.readyLocked(f)
		}
	}
	c.mu.Unlock()
	if !wanted {
		c.unreserve(e.size)
	}
}

// step does what there is to do for a file.
func (c *conn) step(f *file) {
	for {
		c.mu.Lock()
		mail, whole := f.mail, f.whole
		f.mail = nil
		drop := f.drop
		if !drop && !whole && c.cause != nil {
			// It will not be completed. It stays queued, so that nobody takes it up again before the connection drops it.
			c.mu.Unlock()
			c.givePieces(mail)
			return
		}
		if !drop && len(mail) == 0 && !whole {
			f.queued = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()

		if drop {
			c.discard(f)
			if f.why != nil {
				c.ses.fail(f.path, f.why, false)
			}
			c.finish(f, mail)
			return
		}
		err := c.writePieces(f, mail)
		c.givePieces(mail)
		if err == nil && whole {
			err = c.publish(f)
		}
		if err != nil {
			f.failed = true
			c.discard(f)
			if errors.Is(err, errDamaged) {
				c.mu.Lock()
				c.tellLocked(opRejected, f.id, 0)
				c.mu.Unlock()
			}
			if browserlink.StorageBroken(err) {
				c.fatal(f.path, err) // and it stays unacknowledged
				c.forget(f)
				return
			}
			c.ses.fail(f.path, browserlink.Refuse(err), false)
			c.finish(f, nil)
			return
		}
		if whole {
			c.stored(f)
			return
		}
	}
}

// begin makes the draft.
func (c *conn) begin(f *file) (err error) {
	if f.draft != nil {
		return nil
	}
	if f.target, err = c.locate(&f.entry); err != nil {
		return err
	}
	f.draft, err = c.s.temps.New(f.target.dir, f.target.name, fileMode)
	return err
}

// writeBehind is how much of a file is written before the kernel is asked to begin with it.
const writeBehind = 8 << 20

func (c *conn) writePieces(f *file, mail []piece) error {
	if len(mail) == 0 {
		return nil
	}
	if err := c.begin(f); err != nil {
		return err
	}
	end := int64(0)
	for _, p := range mail {
		if _, err := f.draft.WriteAt(p.buf[:p.n], p.off); err != nil {
			return err
		}
		end = p.off + int64(p.n)
	}
	if c.ses.Checked {
		h, err := f.hashed()
		if err != nil {
			return err
		}
		for _, p := range mail {
			h.Write(p.buf[:p.n])
		}
		c.mu.Lock()
		c.tellLocked(opStored, f.id, end)
		c.mu.Unlock()
	}
	if !c.st.NoSync && end-f.begun >= writeBehind {
		f.draft.StartWriting(f.begun, end-f.begun)
		f.begun = end
	}
	return nil
}

// publish completes the draft and gives it its name.
func (c *conn) publish(f *file) error {
	if err := c.begin(f); err != nil {
		return err
	}
	if c.ses.Checked {
		if err := f.verify(); err != nil {
			return err
		}
	}
	if isSmall(f.size) && f.size > 0 {
		if _, err := f.draft.WriteAt(f.buf, 0); err != nil {
			return err
		}
	}
	if err := c.s.complete(c.ses, c.st, f.draft, f.target, &f.entry, f.plan); err != nil {
		return err
	}
	_ = f.draft.Close() // Finish has told what there was to tell
	return nil
}

// stored is a file that has its name. It is completed when that is on the disk.
func (c *conn) stored(f *file) {
	c.remember(f.target)
	c.settled(f)
	c.ses.moved.stored.Add(1)
	c.ses.there(f.path)
	if c.st.NoSync {
		c.release(f)
		c.finish(f, nil)
		return
	}
	c.mu.Lock()
	c.unsynced = append(c.unsynced, f)
	c.startLocked()
	c.mu.Unlock()
}

// syncDirs flushes the directories of files, each once, and completes the files.
func (c *conn) syncDirs(batch []*file) {
	results := map[string]error{}
	for _, f := range batch {
		err, known := results[f.target.rel]
		if !known {
			err = f.target.dir.Sync()
			results[f.target.rel] = err
		}
		c.release(f)
		switch {
		case err == nil:
			c.finish(f, nil)
		case browserlink.StorageBroken(err):
			c.fatal(f.path, err)
			c.forget(f)
		default:
			c.ses.fail(f.path, browserlink.Refuse(err), false)
			c.finish(f, nil)
		}
	}
	c.mu.Lock()
	c.syncing = false
	c.startLocked()
	c.mu.Unlock()
}

// discard removes what has been written of a file.
func (c *conn) discard(f *file) {
	if !c.keep(f) && f.draft != nil {
		f.draft.Discard()
		f.draft = nil
	}
	c.release(f)
}

// release closes the directory.
func (c *conn) release(f *file) {
	if f.target.own {
		f.target.dir.Close()
		f.target.own = false
	}
}

// finish counts a file and gives back what it occupied.
func (c *conn) finish(f *file, mail []piece) {
	c.mu.Lock()
	f.done = true
	mail = append(mail, f.mail...)
	f.mail = nil
	delete(c.files, f.id)
	c.completeLocked(f.id)
	c.mu.Unlock()
	c.free(f, mail)
	if c.ses.Kind == kindFile && c.ses.Protocol != protocolChunked {
		c.s.markDone(c.ses)
	}
}

// forget is finish without counting.
func (c *conn) forget(f *file) {
	c.mu.Lock()
	f.done = true
	mail := f.mail
	f.mail = nil
	delete(c.files, f.id)
	c.mu.Unlock()
	c.free(f, mail)
}

func (c *conn) free(f *file, mail []piece) {
	c.givePieces(mail)
	c.unreserve(f.size)
}

// complete sets the attributes of a draft, flushes it and gives it its name, as the session's policy says. On an error
// the draft is as it was.
func (s *Service) complete(ses *session, st *state, d *drives.Draft, t target, e *entry, p plan) error {
	if p.replaces {
		// Who saves a script from an editor wants to run it again. Where this fails the new file is merely less open.
		_ = d.SetMode(p.mode)
	}
	when, usable := modified(e.modified, s.now())
	if usable {
		if err := d.SetTimes(when); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	noted := ses.renames() && ses.Kind == kindFile
	var inode uint64
	if noted {
		var err error
		if inode, err = d.Inode(); err != nil {
			return err
		}
	}
	if !st.NoSync {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	if err := d.Finish(); err != nil {
		return err
	}
	if noted {
		// A client that has lost a connection may send the file over a second one while the first one is about to store it.
		ses.naming.Lock()
		defer ses.naming.Unlock()
		if known, err := findStored(ses, t, e, s.now()); err != nil || known {
			if known {
				d.Discard()
			}
			return err
		}
		// Noted before it happens: after a kill in between, the inode has no name, and the client sends the file again.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), noteTimeout)
		s.save(ctx, ses, note{Inode: inode, Size: e.size, Modified: e.modified, Done: true})
		cancel()
	}
	if err := name(ses, d, t, e, s.now()); err != nil {
		return err
	}
	if !usable {
		ses.noteUndated(e.path, e.size)
	}
	return nil
}

// noteTimeout bounds a call to the server that holds up a file.
const noteTimeout = 5 * time.Second

// name renames the draft (contract 11 section 2.4). Where files are renamed, one that looks the same and came first, such
// as over a connection that was cut meanwhile, is the file.
func name(ses *session, d *drives.Draft, t target, e *entry, now time.Time) error {
	switch {
	case ses.renames():
		for n := range drives.MaxNumbered + 1 {
			candidate := drives.Numbered(t.name, n)
			err := d.Publish(candidate)
			if !errors.Is(err, unix.EEXIST) {
				return err
			}
			if ses.Policy != providerapi.ConflictMergeRename {
				continue
			}
			if old, err := t.dir.Target(candidate); err == nil && ses.same(old, e, now) {
				d.Discard()
				return nil
			}
		}
		return failure.New(failure.Invalid, "There are too many files with this name")
	case ses.rejects():
		return d.Publish(t.name)
	}
	return d.Replace(t.name)
}
