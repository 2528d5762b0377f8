package files

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

// A record in an arena is: length of the name (1 byte), type (1 byte), the name, and for indexes by size or time eight
// bytes with the key. A record is identified by its offset.
const (
	recordHeader = 2
	keySize      = 8
)

// arena is a sequence of records in one block of memory.
type arena struct {
	data  []byte
	keyed bool
}

func (a *arena) size(nameLen int) int {
	if a.keyed {
		return recordHeader + nameLen + keySize
	}
	return recordHeader + nameLen
}

func (a *arena) name(rec uint32) []byte {
	start := int(rec) + recordHeader
	return a.data[start : start+int(a.data[rec])]
}

func (a *arena) kind(rec uint32) drives.EntryType { return drives.EntryType(a.data[rec+1]) }

func (a *arena) key(rec uint32) int64 {
	if !a.keyed {
		return 0
	}
	end := int(rec) + recordHeader + int(a.data[rec])
	return int64(binary.NativeEndian.Uint64(a.data[end:])) //nolint:gosec // stored by append
}

// next is the record after rec, which is len(data) at the end.
func (a *arena) next(rec uint32) uint32 { return rec + uint32(a.size(int(a.data[rec]))) } //nolint:gosec // below 1 GiB

func (a *arena) append(name []byte, kind drives.EntryType, key int64) {
	a.data = append(a.data, byte(len(name)), byte(kind))
	a.data = append(a.data, name...)
	if a.keyed {
		a.data = binary.NativeEndian.AppendUint64(a.data, uint64(key)) //nolint:gosec // read back by key
	}
}

// compare is the order of two records: by key, then by name.
func (a *arena) compare(x, y uint32) int {
	if c := compareInt(a.key(x), a.key(y)); c != 0 {
		return c
	}
	return compareNames(a.name(x), a.name(y))
}

// compareMark is the order of a record and a mark.
func (a *arena) compareMark(rec uint32, m *mark) int {
	if c := compareInt(a.key(rec), m.key); c != 0 {
		return c
	}
	return compareNames(a.name(rec), m.name)
}

func (a *arena) mark(rec uint32) *mark { return &mark{key: a.key(rec), name: bytes.Clone(a.name(rec))} }

func compareInt(x, y int64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// index holds the names of a directory, or of a section of the sort order where all do not fit into the memory allowed,
// as they were when it was scanned.
//
// The records are distributed into buckets, every record of a bucket being before every record of the next one. A
// bucket is sorted when it is first needed: a page costs the sorting of a few thousand entries at most.
//
// An index made for one small request is used by that request alone. One in the cache is shared; its memory is mapped
// outside the heap and is given back when the last user has released it.
type index struct {
	arena
	generation generation
	version    drives.Version
	scannedAt  time.Time
	racy       bool // changed so shortly before the scan that a later change could go unnoticed
	section         // what part of the order the records are; all of it for most
	tooMany    bool // there are more entries than may be sorted this way; nothing else is set

	splits []uint32 // first records of all buckets but the first
	ends   []uint32 // ends of the buckets in order
	unmap  func()   // gives back the memory; nil for the heap

	// mu guards the contents of unsorted buckets and what follows. It is held while entries are collected for one page.
	mu      sync.Mutex
	order   []uint32 // records; sorted within the buckets marked so
	sorted  []bool
	prefix  keyer
	scratch []sortItem
}

// section is a part of the sort order: what comes after near, up to and including far, in one direction. A nil mark is
// the end of the order; the direction does not matter if both are nil.
type section struct {
	near, far  *mark
	descending bool
}

type sortItem struct {
	key uint64
	rec uint32
}

// bucketTarget is the number of entries per bucket aimed at, maxBuckets bounds their number: a bucket number has to fit
// into a byte, and the boundaries into the processor's cache.
const (
	bucketTarget = 256
	maxBuckets   = 256
)

// distribute makes the buckets, given the number of records and a sample of them.
func (x *index) distribute(count int, sample []uint32) error {
	buckets := min(max(count/bucketTarget, 1), maxBuckets)
	slices.SortFunc(sample, x.compare)
	for i := 1; i < buckets && len(sample) > 0; i++ {
		rec := sample[i*len(sample)/buckets]
		if n := len(x.splits); n == 0 || x.splits[n-1] != rec {
			x.splits = append(x.splits, rec)
		}
	}
	x.prefix = keyer{prefix: commonPrefix(func(yield func([]byte) bool) {
		for _, rec := range sample {
			if !yield(x.name(rec)) {
				return
			}
		}
	})}
	keys := make([]uint64, len(x.splits))
	for i, rec := range x.splits {
		keys[i] = x.condense(rec, x.prefix)
	}

	x.ends = make([]uint32, len(x.splits)+1)
	x.sorted = make([]bool, len(x.ends))
	if len(x.splits) == 0 {
		for rec := uint32(0); int(rec) < len(x.data); rec = x.next(rec) {
			x.order = append(x.order, rec)
		}
		x.ends[0] = uint32(len(x.order)) //nolint:gosec // below 2^30
		return nil
	}

	// Two passes in the order of the arena: which bucket, then where. The numbers are kept in between.
	numbers, free, err := scratchBytes(count)
	if err != nil {
		return err
	}
	defer free()
	i := 0
	for rec := uint32(0); int(rec) < len(x.data); rec = x.next(rec) {
		b := x.bucketOf(rec, keys)
		numbers[i] = byte(b)
		x.ends[b]++
		i++
	}
	starts := make([]uint32, len(x.ends))
	for b := 1; b < len(x.ends); b++ {
		x.ends[b] += x.ends[b-1]
		starts[b] = x.ends[b-1]
	}
	x.order = x.order[:count] // the capacity is there, see builder.finish
	i = 0
	for rec := uint32(0); int(rec) < len(x.data); rec = x.next(rec) {
		b := numbers[i]
		x.order[starts[b]] = rec
		starts[b]++
		i++
	}
	return nil
}

// condense is the sort key of a record as a number, as far as it goes.
func (x *index) condense(rec uint32, k keyer) uint64 {
	if x.keyed {
		return uint64(x.key(rec)) ^ 1<<63 //nolint:gosec // maps the order of int64 to that of uint64
	}
	return k.key(x.name(rec))
}

// bucketOf counts the boundaries that are not after the record.
func (x *index) bucketOf(rec uint32, keys []uint64) int {
	key := x.condense(rec, x.prefix)
	low, high := 0, len(keys)
	for low < high {
		mid := int(uint(low+high) / 2)
		before := keys[mid] < key
		if keys[mid] == key {
			before = x.compare(x.splits[mid], rec) <= 0
		}
		if before {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

// bucketLocked gives the sorted records of a bucket.
func (x *index) bucketLocked(b int) []uint32 {
	start := uint32(0)
	if b > 0 {
		start = x.ends[b-1]
	}
	recs := x.order[start:x.ends[b]]
	if x.sorted[b] {
		return recs
	}
	x.scratch = x.scratch[:0]
	for _, rec := range recs {
		x.scratch = append(x.scratch, sortItem{x.condense(rec, x.prefix), rec})
	}
	slices.SortFunc(x.scratch, func(p, q sortItem) int {
		switch {
		case p.key < q.key:
			return -1
		case p.key > q.key:
			return 1
		}
		return x.compare(p.rec, q.rec)
	})
	for i, item := range x.scratch {
		recs[i] = item.rec
	}
	x.sorted[b] = true
	return recs
}

// covers tells whether the section has what comes directly after the mark, or the beginning if it is nil.
func (s section) covers(after *mark, descending bool) bool {
	if s.near == nil && s.far == nil {
		return true
	}
	if s.descending != descending || (s.near != nil && after == nil) {
		return false
	}
	if s.near != nil && isAfter(compareMarks(s.near, after), descending) {
		return false
	}
	return s.far == nil || after == nil || isAfter(compareMarks(s.far, after), descending)
}

func compareMarks(a, b *mark) int {
	if c := compareInt(a.key, b.key); c != 0 {
		return c
	}
	return compareNames(a.name, b.name)
}

// each calls visit for the records after the mark in the direction of the listing until it returns false. It reports
// whether the end of the whole listing was reached. An entry that the file system has reported twice is visited once.
func (x *index) each(after *mark, descending bool, visit func(rec uint32) bool) (end bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	step, b := 1, 0
	if descending {
		step, b = -1, len(x.ends)-1
	}
	if after != nil {
		b, _ = slices.BinarySearchFunc(x.splits, after, func(rec uint32, m *mark) int {
			if x.compareMark(rec, m) <= 0 {
				return -1
			}
			return 1
		})
	}
	last, any := uint32(0), false
	for ; b >= 0 && b < len(x.ends); b += step {
		recs := x.bucketLocked(b)
		i := 0
		if descending {
			i = len(recs) - 1
		}
		if after != nil {
			// The first record that is after the mark, or not before it: the two directions share the search.
			i, _ = slices.BinarySearchFunc(recs, after, func(rec uint32, m *mark) int {
				if c := x.compareMark(rec, m); c < 0 || (c == 0 && !descending) {
					return -1
				}
				return 1
			})
			if descending {
				i--
			}
			after = nil // the buckets that follow are needed as a whole
		}
		for ; i >= 0 && i < len(recs); i += step {
			rec := recs[i]
			if any && x.compare(last, rec) == 0 {
				continue
			}
			last, any = rec, true
			if !visit(rec) {
				return false
			}
		}
	}
	return x.far == nil
}

// scratchBytes gives n bytes for a short time, from the heap if they are few.
func scratchBytes(n int) ([]byte, func(), error) {
	if n <= heapLimit {
		return make([]byte, n), func() {}, nil
	}
	return mapBytes(n)
}

// mapBytes gives n bytes of zeroed memory outside the heap, which the collector neither scans nor counts, and which
// goes back to the system at once when freed.
func mapBytes(n int) ([]byte, func(), error) {
	if n == 0 {
		return nil, func() {}, nil
	}
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	return b, func() { _ = unix.Munmap(b) }, nil // fails only for memory that is not mapped
}
