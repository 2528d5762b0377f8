package drives

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Cursor is a position in the order in which the file system keeps a directory. It is opaque, 64 bits wide, and may be
// kept while entries come and go: reading on after it gives every entry that stayed exactly once. That was measured on
// ext4, xfs and tmpfs; it is not promised for network file systems. The zero Cursor is the beginning.
type Cursor int64

// Entry is one entry as getdents64(2) reports it.
type Entry struct {
	Name []byte    // points into the batch; valid until the next read into the same buffer
	Type EntryType // what the file system says without looking at the inode
	Next Cursor    // the position after this entry
}

// EntryType is the d_type of readdir(3), reduced to what decides about further calls.
type EntryType uint8

// The types. An Unknown entry needs [Dir.Stat] to know more: it is a link, or the file system does not tell.
const (
	EntryUnknown EntryType = iota
	EntryDirectory
	EntryRegular
	EntrySpecial
)

// MinBatch is the smallest buffer for [Dir.ReadBatch].
const MinBatch = 4096

// Batch is a buffer full of entries, as the kernel wrote it.
type Batch struct{ rest []byte }

// Offsets in struct linux_dirent64: d_ino 0, d_off 8, d_reclen 16, d_type 18, d_name 19.
const direntHeader = 19

// ReadBatch reads entries into buf, which should have tens of kilobytes. An empty batch is the end. On network file
// systems the size of the buffer decides about the size of the requests.
func (d *Dir) ReadBatch(buf []byte) (Batch, error) {
	n, err := retry(func() (int, error) { return unix.Getdents(d.fd, buf) })
	if errors.Is(err, unix.ENOENT) {
		return Batch{}, nil // the directory has been removed; it has no entries
	}
	if err != nil {
		return Batch{}, fmt.Errorf("read directory: %w", err)
	}
	return Batch{rest: buf[:n]}, nil
}

// Seek continues the reading at a position.
func (d *Dir) Seek(c Cursor) error {
	if _, err := unix.Seek(d.fd, int64(c), 0); err != nil {
		return fmt.Errorf("seek in directory: %w", err)
	}
	return nil
}

// Empty tells whether all entries have been taken.
func (b *Batch) Empty() bool { return len(b.rest) == 0 }

// Next takes the next entry, leaving out "." and "..".
func (b *Batch) Next() (Entry, bool) {
	for len(b.rest) > direntHeader {
		rec := b.rest
		size := int(binary.NativeEndian.Uint16(rec[16:]))
		if size <= direntHeader || size > len(rec) {
			break // cannot happen; a broken record must not become an endless loop
		}
		b.rest = rec[size:]
		name := rec[direntHeader:size]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if len(name) == 0 || string(name) == "." || string(name) == ".." {
			continue
		}
		return Entry{
			Name: name,
			Type: entryType(rec[18]),
			Next: Cursor(binary.NativeEndian.Uint64(rec[8:])), //nolint:gosec // an opaque 64 bit value
		}, true
	}
	b.rest = nil
	return Entry{}, false
}

func entryType(d byte) EntryType {
	switch d {
	case unix.DT_DIR:
		return EntryDirectory
	case unix.DT_REG:
		return EntryRegular
	case unix.DT_LNK, unix.DT_UNKNOWN:
		return EntryUnknown
	}
	return EntrySpecial
}

// Page reads up to n entries after a position and calls visit for each. It gives the position to go on from, and
// whether there is more. Walks over whole trees use it: it needs no memory, and the position can be kept.
func (d *Dir) Page(from Cursor, n int, visit func(Entry) error) (next Cursor, more bool, err error) {
	if err := d.Seek(from); err != nil {
		return from, false, err
	}
	// Room for about n entries, so that few are read in vain.
	buf := make([]byte, min(max(n*48, MinBatch), 64<<10))
	for next = from; n > 0; {
		batch, err := d.ReadBatch(buf)
		if err != nil {
			return next, false, err
		}
		if batch.Empty() {
			return next, false, nil
		}
		for n > 0 {
			e, ok := batch.Next()
			if !ok {
				break
			}
			if err := visit(e); err != nil {
				return next, false, err
			}
			next = e.Next
			n--
		}
	}
	return next, true, nil
}
