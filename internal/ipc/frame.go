package ipc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits and constants of the frame format; see the package comment.
const (
	headerSize   = 12
	frameVersion = 1
	maxFiles     = 4
	maxName      = 128
	maxRequest   = 1 << 20  // default payload limit of the direction client to server
	maxReply     = 16 << 20 // payload limit of the direction server to client
	window       = 32       // items of a stream that may be under way
	firstRead    = 4 << 10  // memory reserved before any byte of a payload has arrived
)

type frameType uint8

const (
	frameCall    frameType = 1
	frameOpen    frameType = 2
	frameCancel  frameType = 3
	frameCredit  frameType = 4
	frameResult  frameType = 16
	frameFailure frameType = 17
	frameItem    frameType = 18
	frameEnd     frameType = 19
)

// errProtocol tells that the peer broke the rules; the connection is over.
var errProtocol = errors.New("protocol violation")

// header is a decoded frame header. A header from [parseHeader] keeps the rules of the package comment.
type header struct {
	length  int
	typ     frameType
	files   int
	nameLen int
	id      uint32
}

// direction says which frames a side reads.
type direction struct {
	fromServer bool
	limit      int // largest payload
}

// parseHeader decodes and checks a header. Everything is decided here, before memory is reserved for the payload.
func (d direction) parseHeader(b [headerSize]byte) (header, error) {
	length := binary.BigEndian.Uint32(b[0:])
	h := header{typ: frameType(b[5]), files: int(b[6]), nameLen: int(b[7]), id: binary.BigEndian.Uint32(b[8:])}
	if b[4] != frameVersion {
		return header{}, fmt.Errorf("%w: frame version %d", errProtocol, b[4])
	}
	if uint64(length) > uint64(d.limit) {
		return header{}, fmt.Errorf("%w: payload of %d bytes, the limit is %d", errProtocol, length, d.limit)
	}
	h.length = int(length)
	named, filed, empty := false, false, false
	switch {
	case !d.fromServer && (h.typ == frameCall || h.typ == frameOpen):
		named, filed = true, true
	case !d.fromServer && h.typ == frameCancel, d.fromServer && h.typ == frameEnd:
		empty = true
	case !d.fromServer && h.typ == frameCredit:
		if h.length != 4 {
			return header{}, fmt.Errorf("%w: credit of %d bytes", errProtocol, h.length)
		}
	case d.fromServer && h.typ == frameItem:
		filed = true
	case d.fromServer && (h.typ == frameResult || h.typ == frameFailure):
	default:
		return header{}, fmt.Errorf("%w: frame type %d", errProtocol, h.typ)
	}
	switch {
	case h.id == 0:
		return header{}, fmt.Errorf("%w: call id 0", errProtocol)
	case named != (h.nameLen > 0), h.nameLen > maxName, h.nameLen > h.length:
		return header{}, fmt.Errorf("%w: name of %d bytes", errProtocol, h.nameLen)
	case h.files > maxFiles, h.files > 0 && !filed:
		return header{}, fmt.Errorf("%w: %d descriptors", errProtocol, h.files)
	case empty && h.length > 0:
		return header{}, fmt.Errorf("%w: payload where none belongs", errProtocol)
	}
	return h, nil
}

// encodeFrame makes a whole frame. A nil doc makes an empty payload. The limit is that of the direction.
func encodeFrame(h header, name string, doc any, limit int) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, headerSize))
	b.WriteString(name)
	switch d := doc.(type) {
	case nil:
	case rawPayload:
		b.Write(d)
	default:
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(doc); err != nil {
			return nil, fmt.Errorf("encode frame: %w", err)
		}
	}
	frame := b.Bytes()
	if len(frame)-headerSize > limit {
		return nil, fmt.Errorf("encode frame: %d bytes are more than the limit of %d: %w", len(frame)-headerSize, limit, errTooLong)
	}
	binary.BigEndian.PutUint32(frame[0:], uint32(len(frame)-headerSize))
	frame[4], frame[5], frame[6], frame[7] = frameVersion, byte(h.typ), byte(h.files), byte(len(name))
	binary.BigEndian.PutUint32(frame[8:], h.id)
	return frame, nil
}

// errTooLong tells that a document does not fit in a frame.
var errTooLong = errors.New("the document is too long")

// rawPayload is a payload that is not JSON.
type rawPayload []byte

// msgReader is the reading half of [net.UnixConn].
type msgReader interface {
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
}

// frameReader reads frames and collects the descriptors that came with them. The owner of the reader must take or
// close what is in fds after each call, errors included.
type frameReader struct {
	src msgReader
	dir direction
	fds []int // received and not yet taken
	oob [64]byte
}

// oobSpace is the space for exactly maxFiles descriptors: with more, the kernel drops them and sets MSG_CTRUNC.
var oobSpace = unix.CmsgSpace(maxFiles * 4)

// header waits for a header. begun is called when its first byte has arrived.
func (r *frameReader) header(begun func()) (header, error) {
	var b [headerSize]byte
	for n := 0; n < headerSize; {
		m, err := r.read(b[n:])
		if n == 0 && m > 0 {
			begun()
		}
		n += m
		if err != nil {
			if errors.Is(err, io.EOF) && n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return header{}, err
		}
	}
	h, err := r.dir.parseHeader(b)
	if err != nil {
		return header{}, err
	}
	if len(r.fds) != h.files {
		return header{}, fmt.Errorf("%w: %d descriptors declared, %d received", errProtocol, h.files, len(r.fds))
	}
	return h, nil
}

// payload reads the payload of h. Memory grows with the bytes that have arrived, at most twofold.
func (r *frameReader) payload(h header) ([]byte, error) {
	buf := make([]byte, 0, min(h.length, firstRead))
	for len(buf) < h.length {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(h.length, 2*cap(buf)))
			copy(grown, buf)
			buf = grown
		}
		n, err := r.readNoFiles(buf[len(buf):cap(buf)], h)
		buf = buf[:len(buf)+n]
		if err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// skip reads the payload of h and forgets it.
func (r *frameReader) skip(h header) error {
	var scratch [firstRead]byte
	for left := h.length; left > 0; {
		n, err := r.readNoFiles(scratch[:min(left, len(scratch))], h)
		left -= n
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *frameReader) readNoFiles(b []byte, h header) (int, error) {
	n, err := r.read(b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && len(r.fds) != h.files {
		err = fmt.Errorf("%w: descriptors inside a payload", errProtocol)
	}
	return n, err
}

// read is one recvmsg(2). The net package sets MSG_CMSG_CLOEXEC, so received descriptors never reach a child.
func (r *frameReader) read(b []byte) (int, error) {
	n, oobn, flags, _, err := r.src.ReadMsgUnix(b, r.oob[:oobSpace])
	if oobn > 0 {
		fds, perr := parseRights(r.oob[:oobn])
		r.fds = append(r.fds, fds...)
		if err == nil {
			err = perr
		}
	}
	if err != nil {
		return max(n, 0), err
	}
	// Truncation means surplus descriptors, or that we are out of descriptors. What has arrived is incomplete.
	if flags&unix.MSG_CTRUNC != 0 {
		return n, fmt.Errorf("%w: descriptors were truncated", errProtocol)
	}
	if len(r.fds) > maxFiles {
		return n, fmt.Errorf("%w: more than %d descriptors", errProtocol, maxFiles)
	}
	return n, nil
}

// take gives the collected descriptors to the caller.
func (r *frameReader) take() []int {
	fds := r.fds
	r.fds = nil
	return fds
}

func parseRights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var all []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return all, fmt.Errorf("parse control message: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

// wire is a connection with a writing side that several goroutines share.
type wire struct {
	c            *net.UnixConn
	writeTimeout time.Duration

	// mu is held during a write so that frames do not mix. That is I/O under a lock, bounded by writeTimeout; waiting
	// for it is the bounded send queue of the connection.
	mu     sync.Mutex
	broken error // set once a frame may have been written in part
}

// write sends one frame. The files stay the caller's. first, if not nil, runs when it is this frame's turn.
func (w *wire) write(frame []byte, files []*os.File, first func()) error {
	return withDescriptors(files, make([]int, 0, maxFiles), func(fds []int) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if first != nil {
			first()
		}
		if w.broken != nil {
			return w.broken
		}
		if err := w.writeLocked(frame, fds); err != nil {
			// The peer cannot find the next frame after a part of one.
			w.broken = fmt.Errorf("write frame: %w", err)
			w.c.Close() //nolint:errcheck // the write error is the one that matters
			return w.broken
		}
		return nil
	})
}

func (w *wire) writeLocked(frame []byte, fds []int) error {
	if err := w.c.SetWriteDeadline(time.Now().Add(w.writeTimeout)); err != nil {
		return err
	}
	if len(fds) == 0 {
		_, err := w.c.Write(frame)
		return err
	}
	// sendmsg on a stream may take a part only. The descriptors go with the first byte, the rest follows plainly.
	n, _, err := w.c.WriteMsgUnix(frame, unix.UnixRights(fds...), nil)
	if err == nil && n < len(frame) {
		_, err = w.c.Write(frame[n:])
	}
	return err
}
