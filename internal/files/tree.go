package files

import (
	"strings"

	"ucloud-im/internal/drives"
)

// tree is the way of a walk from the top of a tree to the folder it is in. It goes down to any depth with a bounded
// number of descriptors: of the folders above, those in the middle are closed, and opened again from below, by identity,
// when the walk comes back to them. So a walk never enters a folder that it has not come to by way of the tree.
//
// T is what a walk keeps about each folder.
type tree[T any] struct {
	levels []*level[T]
	free   [][]byte

	// suspend and restore, if set, are called when the folder of a level is about to be closed for a while, and when it
	// has been opened again from the level below it.
	suspend func(l *level[T])
	restore func(l, below *level[T]) error
}

// level is one folder on the way.
type level[T any] struct {
	name  string
	node  drives.Node
	dir   *drives.Dir   // nil: closed for a while
	next  drives.Cursor // of the entry after the last that was taken
	batch drives.Batch
	buf   []byte
	own   T
}

// openLevels is how many folders on the way a walk keeps open.
const openLevels = 32

// readBuffer is the size of the buffer for the entries of a folder.
const readBuffer = 16 << 10

// push goes into a folder, which belongs to the tree from then on.
func (t *tree[T]) push(l *level[T]) {
	if n := len(t.levels) - openLevels; n >= 0 && t.levels[n].dir != nil {
		if above := t.levels[n]; n > 0 { // the top stays open
			if t.suspend != nil {
				t.suspend(above)
			}
			t.recycle(above)
			above.dir.Close()
			above.dir = nil
		}
	}
	t.levels = append(t.levels, l)
}

func (t *tree[T]) recycle(l *level[T]) {
	if l.buf != nil {
		t.free = append(t.free, l.buf)
	}
	l.buf, l.batch = nil, drives.Batch{}
}

func (t *tree[T]) empty() bool { return len(t.levels) == 0 }

func (t *tree[T]) last() *level[T] { return t.levels[len(t.levels)-1] }

// entry gives the next entry of the folder; its name is valid until the next call. ok is false at the end.
func (t *tree[T]) entry() (e drives.Entry, ok bool, err error) {
	l := t.last()
	for {
		if e, ok = l.batch.Next(); ok {
			l.next = e.Next
			return e, true, nil
		}
		if l.buf == nil {
			if n := len(t.free); n > 0 {
				l.buf, t.free = t.free[n-1], t.free[:n-1]
			} else {
				l.buf = make([]byte, readBuffer)
			}
			if err := l.dir.Seek(l.next); err != nil {
				return e, false, err
			}
		}
		if l.batch, err = l.dir.ReadBatch(l.buf); err != nil || l.batch.Empty() {
			return e, false, err
		}
	}
}

// pop leaves the folder, which belongs to the caller again. The error tells that the one above could not be opened
// again; the walk cannot go on then.
func (t *tree[T]) pop() (*level[T], error) {
	l := t.last()
	t.recycle(l)
	t.levels = t.levels[:len(t.levels)-1]
	if t.empty() || t.last().dir != nil {
		return l, nil
	}
	above := t.last()
	dir, err := l.dir.Above(above.node)
	if err != nil {
		return l, err
	}
	above.dir = dir
	if t.restore != nil {
		err = t.restore(above, l)
	}
	return l, err
}

// close closes what is open.
func (t *tree[T]) close() {
	for _, l := range t.levels {
		if l.dir != nil {
			l.dir.Close()
		}
	}
	t.levels = nil
}

// path is the way to an entry of the folder, or to the folder itself if name is empty, as people read it. Of a very long
// one the middle is left out.
func (t *tree[T]) path(name string) string {
	const most = 16
	parts := make([]string, 0, most+2)
	add := func(levels []*level[T]) {
		for _, l := range levels {
			parts = append(parts, drives.Escape(l.name))
		}
	}
	if n := len(t.levels); n <= most {
		add(t.levels)
	} else {
		add(t.levels[:most/2])
		parts = append(parts, "…")
		add(t.levels[n-most/2:])
	}
	if name != "" {
		parts = append(parts, drives.Escape(name))
	}
	return strings.Join(parts, "/")
}
