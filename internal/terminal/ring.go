package terminal

import "bytes"

const (
	// scrollback is how much output a holder keeps.
	scrollback = 256 << 10
	// ringBytes has room for a piece that arrives before the first of it has been taken.
	ringBytes = scrollback + 2*readBytes
)

// ring keeps the last bytes of a stream. Offsets count from its beginning.
type ring struct {
	buf     [ringBytes]byte
	written int64
}

func (r *ring) add(p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[r.written%ringBytes:], p)
		r.written += int64(n)
		p = p[n:]
	}
}

// from copies what begins at offset pos, which must not be older than what is kept.
func (r *ring) from(pos int64, p []byte) int {
	n := 0
	for n < len(p) && pos < r.written {
		at := pos % ringBytes
		m := copy(p[n:min(len(p), n+int(min(r.written-pos, ringBytes-at)))], r.buf[at:])
		n += m
		pos += int64(m)
	}
	return n
}

// lineLook is how far the replay may move to begin with a line.
const lineLook = 4 << 10

// replay is where somebody begins who comes back: with everything, or with the first line that is whole.
func (r *ring) replay() int64 {
	if r.written <= scrollback {
		return 0
	}
	start := r.written - scrollback
	var p [lineLook]byte
	n := r.from(start, p[:])
	if i := bytes.IndexByte(p[:n], '\n'); i >= 0 {
		return start + int64(i) + 1
	}
	for i := 0; i < min(n, 3) && p[i]&0xc0 == 0x80; i++ { // the rest of a UTF-8 sequence
		start++
	}
	return start
}
