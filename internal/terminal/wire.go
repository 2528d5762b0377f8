package terminal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// The protocol between instance and holder: frames of a kind, a length of four bytes, and that many bytes. It is spoken
// between two versions of the program after an upgrade, so kinds are only added.
const (
	// To the holder.
	kindQuery  = '?' // answered with kindState
	kindAttach = 'a' // a size; answered with kindTaken or kindBusy
	kindInput  = 'i'
	kindResize = 'r' // a size
	kindKill   = 'k'
	// From the holder.
	kindState = 's' // a state as JSON
	kindTaken = 'o' // output follows, beginning with what is kept
	kindBusy  = 'b'
	kindData  = 'd'
	kindEnd   = 'e' // the shell has ended
)

const (
	headBytes = 5
	// maxFrame bounds a frame. What is longer is sent in parts.
	maxFrame = 32 << 10
)

// state is what a holder tells about itself.
type state struct {
	Key      string `json:"key"` // which job and rank, or which folder
	Attached bool   `json:"attached"`
	Started  int64  `json:"started"` // Unix ms
	Left     int64  `json:"left"`    // since when nobody is attached, Unix ms
}

var errFrame = errors.New("not a frame of a terminal")

// readFrame reads a frame into buf, which has room for maxFrame bytes.
func readFrame(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, errFrame
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, err
	}
	return head[0], buf[:n], nil
}

// appendFrame appends a frame.
func appendFrame(b []byte, kind byte, payload []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload))) //nolint:gosec // at most maxFrame
	return append(b, payload...)
}

// size is that of a terminal.
type size struct{ cols, rows uint16 }

func (s size) append(b []byte) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, s.cols), s.rows)
}

func parseSize(p []byte) (size, error) {
	if len(p) != 4 {
		return size{}, errFrame
	}
	return sizeOf(int(binary.BigEndian.Uint16(p)), int(binary.BigEndian.Uint16(p[2:]))), nil
}

// maxCells bounds a terminal in each direction; some programs allocate that much.
const maxCells = 1000

// sizeOf is a size that programs can work with. Browsers send zeros before they have laid out the page.
func sizeOf(cols, rows int) size {
	if cols <= 0 || rows <= 0 {
		return size{80, 24}
	}
	return size{uint16(min(cols, maxCells)), uint16(min(rows, maxCells))}
}

// peerUID is the account of the other end of a Unix socket, at the time when it connected or began to listen.
func peerUID(c *net.UnixConn) (uid uint32, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var inner error
	if err := rc.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, fmt.Errorf("ask who is at the other end: %w", inner)
	}
	return cred.Uid, nil
}
