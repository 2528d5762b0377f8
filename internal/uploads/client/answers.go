package uploadclient

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/coder/websocket"
)

// read takes the peer's answers.
func (c *Conn) read() {
	for {
		ctx, cancel := context.WithTimeout(c.ctx, c.o.Read)
		kind, msg, err := c.ws.Read(ctx)
		cancel()
		if err != nil {
			c.cancel(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		if kind == websocket.MessageText {
			continue // pong
		}
		if err := c.answers(msg); err != nil {
			c.cancel(err)
			c.ws.CloseNow() //nolint:errcheck // the peer makes no sense
			return
		}
		c.changed()
	}
}

func (c *Conn) answers(msg []byte) error {
	for len(msg) > 0 {
		size := 5
		switch op := msg[0]; {
		case op == opOK, op == opSkip, op == opCompleted, op == opRejected && c.o.Checked:
		case (op == opResume || op == opStored) && c.o.Checked:
			size = 13
		default:
			return fmt.Errorf("%w: the peer sent an unknown answer %d", ErrProtocol, op)
		}
		if len(msg) < size {
			return fmt.Errorf("%w: the peer sent half an answer %d", ErrProtocol, msg[0])
		}
		v := int32(binary.BigEndian.Uint32(msg[1:])) //nolint:gosec // two's complement
		var offset int64
		if size == 13 {
			offset = int64(binary.BigEndian.Uint64(msg[5:])) //nolint:gosec // two's complement
		}
		if err := c.answer(msg[0], v, offset); err != nil {
			return err
		}
		msg = msg[size:]
	}
	return nil
}

func (c *Conn) answer(op byte, v int32, offset int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if op == opCompleted {
		if int64(v) > c.res.Listed || int64(v) < c.res.Completed {
			return fmt.Errorf("%w: the peer has completed %d of %d files", ErrProtocol, v, c.res.Listed)
		}
		if int64(v) > c.res.Completed {
			c.went()
		}
		c.res.Completed = int64(v)
		return nil
	}
	s := c.files[v]
	switch {
	case op == opRejected:
		c.res.Rejected++
		if c.res.Rejected > c.res.Sent {
			return fmt.Errorf("%w: the peer rejects more than was sent", ErrProtocol)
		}
		return nil
	case op == opStored && s != nil:
		if offset < s.stored || offset > s.file.Size {
			return fmt.Errorf("%w: the peer has stored %d bytes of %d", ErrProtocol, offset, s.file.Size)
		}
		s.stored = offset
		c.went()
		select {
		case s.moved <- struct{}{}:
		default:
		}
		return nil
	case op == opStored:
		return nil // of a file that was sent meanwhile
	case op == opResume && s != nil && (offset <= 0 || offset > s.file.Size):
		return fmt.Errorf("%w: the peer wants a file of %d bytes from %d", ErrProtocol, s.file.Size, offset)
	}
	if s == nil {
		if op == opSkip {
			return nil // of a file that we have given up or sent
		}
		return fmt.Errorf("%w: the peer wants a file that was not listed, %d", ErrProtocol, v)
	}
	c.went()
	if op == opSkip {
		s.skipped = true
		c.res.Skipped++
		c.forgetLocked(v, s)
		c.eventLocked(s.file, Skipped)
		return nil
	}
	if s.wanted {
		return fmt.Errorf("%w: the peer wants file %d twice", ErrProtocol, v)
	}
	s.wanted, s.from, s.stored = true, offset, offset
	c.eventLocked(s.file, Wanted)
	select {
	case c.want <- s.file:
		return nil
	default:
		return fmt.Errorf("%w: the peer wants more files than were listed", ErrProtocol)
	}
}

func (c *Conn) forgetLocked(id int32, s *state) {
	delete(c.files, id)
	delete(c.ids, s.file)
	c.ahead -= s.file.Size
}

func (c *Conn) eventLocked(f *File, e Event) {
	if c.o.Event != nil {
		c.o.Event(f, e)
	}
}
