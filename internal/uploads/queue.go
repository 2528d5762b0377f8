package uploads

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

const (
	segmentBytes = 64 << 10
	// memorySegments is how much of a queue stays in memory: 8 MiB hold about 100,000 files with usual paths.
	memorySegments = 128
	// maxSpill bounds the file that takes the rest.
	maxSpill = 2 << 30
)

// errTooMany is a listing that is too long to be kept.
var errTooMany = errors.New("too many files are listed")

// queue holds files that are listed and not decided about, first in, first out. Records are stored one after the other
// in segments, about 28 bytes and the path each; what does not fit into memory goes to an unnamed temporary file. So a
// client may list everything it has without waiting, and its listings need never be held up, which would hold up the data
// of other files behind them (contract 11, correctness).
type queue struct {
	dir    string                  // for the temporary file
	charge func(bytes int64) error // accounts for memory; negative gives back

	head  []byte   // being read, at pos
	pos   int      //
	mem   [][]byte // then these
	spill *os.File // then the segments in here
	sizes []int32  // of the segments in spill that have not been read
	rd    int64    // where the first of them starts
	wr    int64    // where the next one goes
	tail  []byte   // then this one, being filled
	spare []byte   // an empty segment
	n     int
	held  int64 // bytes charged
}

func (q *queue) len() int { return q.n }

func (q *queue) segment() ([]byte, error) {
	if s := q.spare; s != nil {
		q.spare = nil
		return s[:0], nil
	}
	if err := q.charge(segmentBytes); err != nil {
		return nil, err
	}
	q.held += segmentBytes
	return make([]byte, 0, segmentBytes), nil
}

func (q *queue) release(s []byte) {
	if q.spare == nil && cap(s) == segmentBytes {
		q.spare = s[:0]
		return
	}
	q.held -= segmentBytes
	_ = q.charge(-segmentBytes)
}

// push appends a file.
func (q *queue) push(e entry, path []byte) error {
	need := entryHeader + len(path)
	if len(q.tail)+need > segmentBytes {
		if err := q.flush(); err != nil {
			return err
		}
	}
	if q.tail == nil {
		var err error
		if q.tail, err = q.segment(); err != nil {
			return err
		}
	}
	n := uint32(len(path)) //nolint:gosec // at most maxListingPath
	if e.long {
		n = maxListingPath + 1
	}
	b := binary.BigEndian.AppendUint32(q.tail, e.id)
	b = binary.BigEndian.AppendUint64(b, uint64(e.size))     //nolint:gosec // two's complement
	b = binary.BigEndian.AppendUint64(b, uint64(e.modified)) //nolint:gosec // likewise
	b = binary.BigEndian.AppendUint32(b, n)
	q.tail = append(b, path...)
	q.n++
	return nil
}

// flush puts the full tail where it is to wait.
func (q *queue) flush() error {
	if q.tail == nil {
		return nil
	}
	if len(q.sizes) == 0 && len(q.mem) < memorySegments {
		q.mem = append(q.mem, q.tail)
		q.tail = nil
		return nil
	}
	if q.wr+int64(len(q.tail)) > maxSpill {
		return errTooMany
	}
	if q.spill == nil {
		f, err := os.CreateTemp(q.dir, "ucloud-listing-*")
		if err != nil {
			return fmt.Errorf("make room for a listing: %w", err)
		}
		if err := os.Remove(f.Name()); err != nil {
			f.Close() //nolint:errcheck // the first error counts
			return fmt.Errorf("make room for a listing: %w", err)
		}
		q.spill = f
	}
	if _, err := q.spill.WriteAt(q.tail, q.wr); err != nil {
		return fmt.Errorf("store a listing: %w", err)
	}
	q.wr += int64(len(q.tail))
	q.sizes = append(q.sizes, int32(len(q.tail))) //nolint:gosec // at most segmentBytes
	q.tail = q.tail[:0]
	return nil
}

// pop removes the first file; false if there is none.
func (q *queue) pop() (e entry, ok bool, err error) {
	if q.n == 0 {
		return entry{}, false, nil
	}
	if q.pos == len(q.head) {
		if err := q.advance(); err != nil {
			return entry{}, false, err
		}
	}
	h := q.head[q.pos:]
	n := int(binary.BigEndian.Uint32(h[20:]))
	e = entry{
		id:       binary.BigEndian.Uint32(h),
		size:     int64(binary.BigEndian.Uint64(h[4:])),  //nolint:gosec // two's complement
		modified: int64(binary.BigEndian.Uint64(h[12:])), //nolint:gosec // likewise
	}
	if n > maxListingPath {
		e.long, n = true, 0
	}
	e.path = string(h[entryHeader : entryHeader+n])
	q.pos += entryHeader + n
	q.n--
	return e, true, nil
}

// advance makes the next segment the head.
func (q *queue) advance() error {
	if q.head != nil {
		q.release(q.head)
		q.head = nil
	}
	q.pos = 0
	switch {
	case len(q.mem) > 0:
		q.head, q.mem[0] = q.mem[0], nil
		q.mem = q.mem[1:]
	case len(q.sizes) > 0:
		s, err := q.segment()
		if err != nil {
			return err
		}
		s = s[:q.sizes[0]]
		if _, err := q.spill.ReadAt(s, q.rd); err != nil {
			return fmt.Errorf("read a listing: %w", err)
		}
		q.head = s
		q.rd += int64(len(s))
		if q.sizes = q.sizes[1:]; len(q.sizes) == 0 {
			q.rd, q.wr, q.sizes = 0, 0, nil
			if err := q.spill.Truncate(0); err != nil {
				return fmt.Errorf("store a listing: %w", err)
			}
		}
	default:
		q.head, q.tail = q.tail, nil
	}
	return nil
}

// close forgets everything.
func (q *queue) close() {
	if q.spill != nil {
		q.spill.Close() //nolint:errcheck // its content is not wanted
	}
	_ = q.charge(-q.held)
	*q = queue{dir: q.dir, charge: q.charge}
}
