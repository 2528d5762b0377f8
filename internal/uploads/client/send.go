package uploadclient

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// sender sends wanted files, one after the other.
func (c *Conn) sender() {
	size := c.o.Chunk
	if size <= 0 {
		size = minChunk
	}
	var buf []byte
	for {
		select {
		case f := <-c.want:
			var err error
			c.working(1)
			buf, size, err = c.send(f, buf, size)
			c.working(-1)
			if err != nil {
				c.cancel(err)
				return
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// send sends one file. What cannot be read is skipped.
func (c *Conn) send(f *File, buf []byte, size int) ([]byte, int, error) {
	c.mu.Lock()
	id, ok := c.ids[f]
	var st *state
	if ok {
		st = c.files[id]
	}
	c.mu.Unlock()
	if st == nil {
		return buf, size, nil
	}
	end := func(e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if st.skipped {
			return
		}
		if e == Sent {
			c.res.Sent++
		} else {
			c.res.Unreadable++
		}
		c.forgetLocked(id, st)
		c.eventLocked(f, e)
	}
	skip := func() ([]byte, int, error) {
		msg := binary.BigEndian.AppendUint32([]byte{opSkip}, uint32(id)) //nolint:gosec // two's complement
		end(Unreadable)
		return buf, size, c.write(msg)
	}
	r, err := f.Open()
	if err != nil {
		return skip()
	}
	defer r.Close() //nolint:errcheck // only read
	if c.o.Checked {
		if buf, size, err = c.sendChecked(f, id, st, r, buf, size); errors.Is(err, errUnreadable) {
			return skip()
		}
		if err == nil {
			end(Sent)
		}
		return buf, size, err
	}
	for left := f.Size; ; {
		need := 5 + size
		if cap(buf) < need {
			buf = make([]byte, need)
		}
		buf = buf[:need]
		buf[0] = opChunk
		binary.BigEndian.PutUint32(buf[1:], uint32(id)) //nolint:gosec // two's complement
		n := int(min(left, int64(size)))
		if _, err := io.ReadFull(r, buf[5:5+n]); err != nil {
			return skip() // shorter than listed
		}
		left -= int64(n)
		if left == 0 && n < size {
			if k, _ := r.Read(buf[5+n : 6+n]); k > 0 {
				return skip() // longer than listed
			}
		}
		if check, ok := r.(Checker); ok && left == 0 && check.Check() != nil {
			return skip()
		}
		c.mu.Lock()
		unwanted := st.skipped
		c.mu.Unlock()
		if unwanted {
			return buf, size, nil // the peer could not store it
		}
		began := time.Now()
		if err := c.write(buf[:5+n]); err != nil {
			return buf, size, err
		}
		c.bytes.Add(int64(n))
		c.went()
		if c.o.Progress != nil {
			c.o.Progress(n)
		}
		if c.o.Chunk <= 0 && n == size && size < maxChunk && time.Since(began) < growBelow {
			size *= 2
		}
		if left == 0 {
			end(Sent)
			return buf, size, nil
		}
	}
}
