package uploadclient

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"time"
)

const (
	// window is how much of a file may be on the way, that is, how much is sent again when the connection is lost.
	window = 4 << 20
	// maxCheckedChunk leaves room for more than one chunk in the window.
	maxCheckedChunk = 1 << 20
)

// errUnreadable tells that a file cannot be sent as it was listed.
var errUnreadable = errors.New("the file cannot be read")

// sendChecked sends a file in the checked protocol: the data from where the peer wants it, then the SHA-256 of the whole.
func (c *Conn) sendChecked(f *File, id int32, st *state, r io.Reader, buf []byte, size int) ([]byte, int, error) {
	h := sha256.New()
	size = min(size, maxCheckedChunk)
	if cap(buf) < 5+maxCheckedChunk && f.Size > int64(size) || cap(buf) < 5+size {
		buf = make([]byte, 5+max(size, min(maxCheckedChunk, int(min(f.Size, maxCheckedChunk)))))
	}
	buf = buf[:cap(buf)]
	c.mu.Lock()
	from := st.from
	c.mu.Unlock()
	for off := int64(0); off < from; { // it is there, and counts for the hash
		n := min(from-off, int64(len(buf)))
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return buf, size, errUnreadable
		}
		h.Write(buf[:n])
		if off += n; c.ctx.Err() != nil {
			return buf, size, context.Cause(c.ctx)
		}
	}
	for off := from; off < f.Size; {
		n := min(f.Size-off, int64(size), int64(len(buf)-5))
		unwanted, err := c.mayReach(st, off+n)
		if unwanted || err != nil {
			return buf, size, err
		}
		buf[0] = opChunk
		binary.BigEndian.PutUint32(buf[1:], uint32(id)) //nolint:gosec // two's complement
		if _, err := io.ReadFull(r, buf[5:5+n]); err != nil {
			return buf, size, errUnreadable
		}
		h.Write(buf[5 : 5+n])
		began := time.Now()
		if err := c.write(buf[:5+n]); err != nil {
			return buf, size, err
		}
		off += n
		c.bytes.Add(n)
		c.went()
		if c.o.Progress != nil {
			c.o.Progress(int(n))
		}
		if c.o.Chunk <= 0 && n == int64(size) && size < maxCheckedChunk && time.Since(began) < growBelow {
			size *= 2
		}
	}
	if n, _ := r.Read(buf[:1]); n > 0 {
		return buf, size, errUnreadable // it has become longer
	}
	if check, ok := r.(Checker); ok && check.Check() != nil {
		return buf, size, errUnreadable
	}
	msg := binary.BigEndian.AppendUint32([]byte{opHash}, uint32(id)) //nolint:gosec // two's complement
	return buf, size, c.write(h.Sum(msg))
}

// mayReach waits until a file may be sent up to an offset.
func (c *Conn) mayReach(st *state, end int64) (unwanted bool, err error) {
	for {
		c.mu.Lock()
		ok, unwanted := end-st.stored <= window, st.skipped
		c.mu.Unlock()
		if ok || unwanted {
			return unwanted, nil
		}
		select {
		case <-st.moved:
		case <-c.ctx.Done():
			return false, context.Cause(c.ctx)
		}
	}
}
