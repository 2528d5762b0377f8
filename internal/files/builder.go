package files

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

// heapLimit is the size up to which an index lives on the heap. Larger ones are mapped (see mapBytes).
const heapLimit = 256 << 10

// The boundaries of the buckets are chosen from a sample: one record in sampleEvery at first, fewer when the sample has
// become larger than maxSample.
const (
	sampleEvery = 16
	maxSample   = 4096
)

// allowance says how much memory a builder may use. Both methods are safe for concurrent use.
type allowance interface {
	// take asks for n more bytes. It may refuse, unless the caller must have them.
	take(n int64, must bool) bool
	// give returns n bytes.
	give(n int64)
}

// builder collects the records of an index. If they do not fit into the memory allowed, it keeps the section of the sort
// order that comes next in the listing and drops the rest: a later scan will find them. Memory stays flat, and a page
// after the section costs another pass.
type builder struct {
	mem     allowance
	most    int // most entries that addKeyed accepts; 0 is no bound
	limit   int // most bytes for the arena and the order together
	granted int64

	// mu guards the fields below: batches of entries are added by several goroutines.
	mu      sync.Mutex
	arena   arena
	mapped  []byte // the memory behind the arena if it is not on the heap
	count   int
	seen    int // entries offered by addKeyed
	sample  []uint32
	every   int     // a record in so many is sampled
	listing section // near is where the listing goes on; far is set once something had to be dropped
	dropped bool    // records that are not after near are dropped
}

// newBuilder makes a builder for the listing that continues after the mark (nil: begins). limit bounds its memory.
func newBuilder(keyed bool, after *mark, descending bool, mem allowance, limit int) *builder {
	return &builder{
		mem: mem, limit: limit, every: sampleEvery,
		arena:   arena{keyed: keyed},
		listing: section{near: after, descending: descending},
	}
}

// addLocked adds a record.
func (b *builder) addLocked(name []byte, kind drives.EntryType, key int64) error {
	if len(name) > drives.MaxName {
		return nil // some file systems have longer names; Core's paths do not
	}
	if b.dropped && !b.wanted(name, key) {
		return nil
	}
	if shrunk, err := b.room(b.arena.size(len(name))); err != nil {
		return err
	} else if shrunk && !b.wanted(name, key) {
		return nil
	}
	b.sampleRecord(uint32(len(b.arena.data))) //nolint:gosec // limit is below 1 GiB
	b.arena.append(name, kind, key)
	b.count++
	return nil
}

// sampleRecord considers the record about to be added for the sample.
func (b *builder) sampleRecord(rec uint32) {
	if b.count%b.every != 0 {
		return
	}
	if len(b.sample) == maxSample {
		b.every *= 2
		for i := range maxSample / 2 {
			b.sample[i] = b.sample[2*i]
		}
		b.sample = b.sample[:maxSample/2]
		if b.count%b.every != 0 {
			return
		}
	}
	b.sample = append(b.sample, rec)
}

// wanted tells whether a record belongs to the section that is kept.
func (b *builder) wanted(name []byte, key int64) bool {
	compare := func(m *mark) int {
		if c := compareInt(key, m.key); c != 0 {
			return c
		}
		return compareNames(name, m.name)
	}
	desc := b.listing.descending
	if m := b.listing.near; m != nil && !isAfter(compare(m), desc) {
		return false
	}
	return b.listing.far == nil || !isAfter(compare(b.listing.far), desc)
}

// room makes sure that a record of n bytes fits. It reports whether the section to be kept has become smaller for that.
func (b *builder) room(n int) (shrunk bool, err error) {
	const step = 1 << 20
	for {
		need := int64(len(b.arena.data) + n + 4*(b.count+1))
		switch {
		case need <= heapLimit && b.mapped == nil:
			return false, nil // small ones are not counted: they are gone with the request
		case need > int64(b.limit):
		case need <= b.granted || b.mem.take(step, false):
			if need > b.granted {
				b.granted += step
			}
			if b.mapped == nil {
				return shrunk, b.moveOut()
			}
			return shrunk, nil
		}
		if b.mapped == nil {
			// The least that a builder gets, so that every listing advances.
			b.granted += step
			b.mem.take(step, true)
			if err := b.moveOut(); err != nil {
				return shrunk, err
			}
			continue
		}
		b.shrink()
		shrunk = true
	}
}

// moveOut moves the arena from the heap to mapped memory. All of the limit is reserved as address space, but only what
// is written to occupies memory.
func (b *builder) moveOut() error {
	mapped, _, err := mapBytes(b.limit)
	if err != nil {
		return fmt.Errorf("map memory for an index: %w", err)
	}
	b.mapped = mapped
	b.arena.data = append(mapped[:0], b.arena.data...)
	return nil
}

// shrink drops the farther half of what was collected, and what lies before the listing's mark.
func (b *builder) shrink() {
	if !b.dropped && b.listing.near != nil {
		b.dropped = true
		before := b.count
		b.compact()
		if b.count < before*3/4 {
			return
		}
	}
	b.dropped = true
	sign := 1
	if b.listing.descending {
		sign = -1
	}
	slices.SortFunc(b.sample, func(x, y uint32) int { return sign * b.arena.compare(x, y) })
	b.listing.far = b.arena.mark(b.sample[len(b.sample)/2])
	b.compact()
}

// compact removes the records that are not wanted and takes a new sample.
func (b *builder) compact() {
	a := &b.arena
	out := uint32(0)
	b.count, b.sample = 0, b.sample[:0]
	end := uint32(len(a.data)) //nolint:gosec // limit is below 1 GiB
	for rec := uint32(0); rec < end; {
		next := a.next(rec)
		if b.wanted(a.name(rec), a.key(rec)) {
			b.sampleRecord(out)
			copy(a.data[out:], a.data[rec:next])
			out += next - rec
			b.count++
		}
		rec = next
	}
	a.data = a.data[:out]
}

// finish makes the index. The builder must not be used afterwards.
func (b *builder) finish() (*index, error) {
	x := &index{arena: b.arena}
	if b.dropped {
		x.section = b.listing
	}
	if b.mapped == nil {
		x.order = make([]uint32, 0, b.count)
		return x, x.distribute(b.count, b.sample)
	}
	// The part of the reservation that was never written to occupies nothing, but counts against address space limits.
	size := (len(b.arena.data) + 4095) &^ 4095
	if shrunk, err := unix.Mremap(b.mapped, max(size, 4096), 0); err == nil {
		b.mapped = shrunk
		x.data = shrunk[:len(b.arena.data):len(b.arena.data)]
	}
	arenaMem, granted, mem := b.mapped, b.granted, b.mem
	b.mapped, b.granted = nil, 0
	orderMem, freeOrder, err := mapBytes(4 * max(b.count, 1))
	if err != nil {
		_ = unix.Munmap(arenaMem)
		mem.give(granted)
		return nil, fmt.Errorf("map memory for an index: %w", err)
	}
	// Page aligned, so that it can hold numbers of four bytes.
	x.order = unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(orderMem))), len(orderMem)/4)[:0]
	x.unmap = func() {
		_ = unix.Munmap(arenaMem) // fails only for memory that is not mapped
		freeOrder()
		mem.give(granted)
	}
	if err := x.distribute(b.count, b.sample); err != nil {
		x.unmap()
		return nil, fmt.Errorf("map memory for an index: %w", err)
	}
	return x, nil
}

// discard gives back the memory of a builder that will not be finished.
func (b *builder) discard() {
	if b.mapped != nil {
		_ = unix.Munmap(b.mapped)
	}
	b.mem.give(b.granted)
	b.mapped, b.granted = nil, 0
}
