package uploads

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"ucloud-im/internal/drives"
)

// The opcodes of the protocol (contract 11 section 2.1).
const (
	opOK        = 0 // to the client: send the file
	opChunk     = 2 // from the client: data of a file, up to the end of the message
	opSkip      = 3 // both: the file will not be sent
	opListing   = 4 // from the client: files, up to the end of the message
	opCompleted = 5 // to the client: how many files need no more attention
	opClose     = 6 // from the client: the transfer is over
)

const (
	// maxMessage is the longest WebSocket message; the web client sends chunks of 16,000,005 bytes.
	maxMessage = 32 << 20
	// maxListingPath is the longest path of a listed file in bytes.
	maxListingPath = 4096
	// entryHeader is the fixed part of a listing entry.
	entryHeader = 4 + 8 + 8 + 4
)

// errFrame is a message that does not follow the protocol. The connection ends.
var errFrame = errors.New("the message does not follow the protocol")

// message reads one WebSocket message in pieces, so that no message needs to fit into memory.
type message struct {
	src  io.Reader
	buf  []byte // what has been read and not yet taken is buf[r:w]
	r, w int
	end  bool  // src has nothing more
	err  error // src has failed; nothing of the message counts any more
}

func newMessage() *message { return &message{buf: make([]byte, 64<<10)} }

// reset starts a new message.
func (m *message) reset(src io.Reader) { m.src, m.r, m.w, m.end, m.err = src, 0, 0, false, nil }

// next reads from src. Bytes that come with an error are not to be looked at: when a connection breaks off, the WebSocket
// library gives what has arrived as it was on the wire, masked, and any byte of that may look like a command.
func (m *message) next(p []byte) (n int, err error) {
	if m.err != nil {
		return 0, m.err
	}
	n, err = m.src.Read(p)
	if errors.Is(err, io.EOF) {
		m.end = true
		return n, nil
	}
	if err != nil {
		m.r, m.w, m.err = 0, 0, err
		return 0, err
	}
	return n, nil
}

// fill makes at least n bytes available, n being at most the size of the buffer. io.EOF: the message has ended before
// the first of them; a message that ends between is errFrame.
func (m *message) fill(n int) error {
	if m.err != nil {
		return m.err
	}
	if m.w-m.r >= n {
		return nil
	}
	copy(m.buf, m.buf[m.r:m.w])
	m.r, m.w = 0, m.w-m.r
	for m.w < n && !m.end {
		k, err := m.next(m.buf[m.w:])
		if err != nil {
			return err
		}
		m.w += k
	}
	switch {
	case m.w >= n:
		return nil
	case m.w == 0:
		return io.EOF
	}
	return fmt.Errorf("%w: it ends too early", errFrame)
}

// take gives the next n bytes. They are valid until the next call.
func (m *message) take(n int) ([]byte, error) {
	if err := m.fill(n); err != nil {
		return nil, err
	}
	p := m.buf[m.r : m.r+n]
	m.r += n
	return p, nil
}

// must is take where the message may not end.
func (m *message) must(n int) ([]byte, error) {
	p, err := m.take(n)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends too early", errFrame)
	}
	return p, err
}

// read fills p as far as the message goes. io.EOF comes with the first call that has nothing left.
func (m *message) read(p []byte) (n int, err error) {
	n = copy(p, m.buf[m.r:m.w])
	m.r += n
	for n < len(p) && !m.end {
		k, err := m.next(p[n:])
		if err != nil {
			return n, err
		}
		n += k
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// discard skips the rest of the message.
func (m *message) discard() error {
	for {
		m.r, m.w = 0, 0
		if m.end {
			return nil
		}
		if _, err := m.next(m.buf); err != nil {
			return err
		}
	}
}

// skip drops n bytes.
func (m *message) skip(n int64) error {
	for n > 0 {
		k := int(min(n, int64(len(m.buf))))
		if _, err := m.must(k); err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// entry is one listed file.
type entry struct {
	id       uint32
	size     int64 // bytes
	modified int64 // Unix ms
	path     string
	// long: the path exceeds maxListingPath, and is not kept.
	long bool
}

// readEntry reads the next entry of a listing; io.EOF at its end. The path points into the buffer's memory and is valid
// until the next call.
func (m *message) readEntry() (e entry, path []byte, err error) {
	h, err := m.take(entryHeader)
	if err != nil {
		return entry{}, nil, err
	}
	e = entry{
		id:       binary.BigEndian.Uint32(h),
		size:     int64(binary.BigEndian.Uint64(h[4:])),  //nolint:gosec // two's complement on the wire
		modified: int64(binary.BigEndian.Uint64(h[12:])), //nolint:gosec // likewise
	}
	n := binary.BigEndian.Uint32(h[20:])
	switch {
	case int64(n) > maxMessage:
		return entry{}, nil, fmt.Errorf("%w: a path of %d bytes", errFrame, n)
	case n > maxListingPath:
		e.long = true
		return e, nil, m.skip(int64(n))
	case n == 0:
		return e, nil, nil
	}
	path, err = m.must(int(n))
	return e, path, err
}

// errPath is a listed path that cannot be used. Only its file fails.
var errPath = errors.New("the path is not allowed")

// splitListed checks the path of a listed file and splits it into the directory and the name. The path comes from a
// browser, or from another provider: nothing in it may lead anywhere but down (contract 11, security). No component may
// be empty, "." or "..", so that no path is absolute either; see [drives.CheckName].
func splitListed(path string) (dir, name string, err error) {
	if len(path) > maxListingPath {
		return "", "", errPath
	}
	for part := range strings.SplitSeq(path, "/") {
		if err := drives.CheckName(part); err != nil {
			return "", "", err
		}
	}
	i := strings.LastIndexByte(path, '/')
	name = path[i+1:]
	if drives.IsDraft(name) {
		return "", "", errPath // such files are ours, and are removed when they are old
	}
	return path[:max(i, 0)], name, nil
}
