package files

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/providerapi"
)

const (
	searchBuffer = 32 << 10 // of each reader
	// stackHigh is when a reader puts a directory with many folders aside before it has read all of it, so that folders
	// do not pile up; stackStep is after how many.
	stackHigh, stackStep = 4096, 64
)

// search is a walk over the tree below a folder by some readers. A reader takes a directory from the stack, reads it, and
// puts the folders in it on the stack.
//
// Directories are opened by their paths from the folder that the search began in, without following links, so that
// nothing outside can be reached however folders and links are exchanged meanwhile (TestSearchNeverLeavesTheDrive).
// Between directories nothing is held open, and the memory does not grow with the tree: see stackHigh.
type search struct {
	base  string // for logs
	query *searchQuery
	root  *drives.Root
	dir   *drives.Dir // the folder; nil if it is none, or cannot be read
	start drives.Step // of the folder
	room  int         // longest path from the folder that other calls would accept

	found       chan providerapi.File
	done        chan struct{} // closed when the last reader has ended
	directories atomic.Int64
	unreadable  atomic.Int64

	mu      sync.Mutex // guards the fields below
	news    sync.Cond  // told when there is work, or no more
	stack   []todo
	busy    int // readers that have a directory, and may bring work
	readers int // that have not ended
	stopped bool
}

// node is a directory of the tree. A path is kept as its names, so that siblings share what they have in common.
type node struct {
	parent *node // nil for the folder of the search
	name   string
	ino    uint64
	length int // of the path from the folder, with a slash at the end
}

// todo is a directory to be read from a position on.
type todo struct {
	node *node
	from drives.Cursor
}

// close gives the descriptors back.
func (w *search) close() {
	if w.dir != nil {
		w.dir.Close()
	}
	w.root.Close() //nolint:errcheck // a descriptor without content
}

// stop ends the readers at the next occasion.
func (w *search) stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	w.news.Broadcast()
}

// take gives the next directory; done must be called after it. It waits while other readers may bring work.
func (w *search) take() (t todo, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.stack) == 0 && w.busy > 0 && !w.stopped {
		w.news.Wait()
	}
	if w.stopped || len(w.stack) == 0 {
		return todo{}, false
	}
	w.busy++
	t = w.stack[len(w.stack)-1]
	w.stack[len(w.stack)-1] = todo{}
	w.stack = w.stack[:len(w.stack)-1]
	return t, true
}

// finished tells that a directory from take has been dealt with.
func (w *search) finished() {
	w.mu.Lock()
	w.busy--
	w.mu.Unlock()
	w.news.Broadcast()
}

// push puts work on the stack, the first on top.
func (w *search) push(work []todo) {
	if len(work) == 0 {
		return
	}
	w.mu.Lock()
	for i := len(work) - 1; i >= 0; i-- {
		w.stack = append(w.stack, work[i])
	}
	w.mu.Unlock()
	w.news.Broadcast()
}

// crowded tells whether there is so much work that no more should be looked for.
func (w *search) crowded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.stack) > stackHigh
}

// read is the life of a reader. The last one to end closes everything.
func (w *search) read(ctx context.Context) {
	defer func() {
		w.mu.Lock()
		w.readers--
		last := w.readers == 0
		w.mu.Unlock()
		if last {
			w.close()
			close(w.done)
		}
	}()
	r := reader{search: w, ctx: ctx, buf: make([]byte, searchBuffer)}
	for {
		t, ok := w.take()
		if !ok {
			return
		}
		r.directory(t)
		w.finished()
	}
}

// reader is what one goroutine of a search needs.
type reader struct {
	*search
	ctx  context.Context // of the search; the reader lives no longer
	buf  []byte
	path []byte
	work []todo
}

// directory reads a directory from a position on. What cannot be read is left out.
func (r *reader) directory(t todo) {
	r.path = t.node.append(r.path[:0])
	dir, err := r.dir.OpenBelow(string(r.path))
	if err != nil {
		r.unreadable.Add(1)
		return
	}
	defer dir.Close()
	// It may be another one than the one that was looked at: somebody may have renamed it, or mounted something.
	if here, err := dir.Step(""); err != nil || here.Dev != r.start.Dev {
		return
	}
	if t.from != 0 {
		if dir.Seek(t.from) != nil {
			return
		}
	} else {
		r.directories.Add(1)
	}
	for r.ctx.Err() == nil {
		batch, err := dir.ReadBatch(r.buf)
		if err != nil {
			r.unreadable.Add(1)
			return
		}
		if batch.Empty() {
			return
		}
		r.work = r.work[:0]
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			if !r.entry(dir, t.node, e) {
				return
			}
			if len(r.work) >= stackStep && r.crowded() {
				r.push(append(r.work, todo{node: t.node, from: e.Next}))
				return
			}
		}
		r.push(r.work)
	}
}

// entry looks at an entry of a directory. It reports false if the search has ended.
func (r *reader) entry(dir *drives.Dir, parent *node, e drives.Entry) bool {
	q := r.query
	if q.filters.hideHidden && e.Name[0] == '.' {
		return true
	}
	if parent.length+len(e.Name) > r.room {
		return true // no call would accept its path
	}
	if e.Type == drives.EntryDirectory || e.Type == drives.EntryUnknown {
		name := string(e.Name)
		if step, err := dir.Step(name); err == nil && step.Directory {
			if isSnapshots(name) {
				return true
			}
			if !q.exclude[name] && r.enters(parent, step) {
				r.work = append(r.work, todo{node: &node{parent: parent, name: name, ino: step.Ino, length: parent.length + len(name) + 1}})
			}
		}
		if e.Type == drives.EntryUnknown && r.ctx.Err() != nil {
			return false
		}
	}
	if !q.filters.matches(e.Name) || !q.names.matches(e.Name) {
		return true
	}
	info, err := dir.Stat(string(e.Name))
	if err != nil {
		return true // gone, or not accessible
	}
	select {
	case r.found <- q.state.describe(r.root, dir.Path().Join(string(e.Name)), info):
		return true
	case <-r.ctx.Done():
		return false
	}
}

// enters decides whether a search goes into a directory: not into other file systems, and not into a part of the tree
// that is mounted below itself.
func (r *reader) enters(parent *node, s drives.Step) bool {
	if s.Dev != r.start.Dev || s.Automount {
		return false
	}
	if !s.Mount {
		return true
	}
	for n := parent; n != nil; n = n.parent {
		if n.ino == s.Ino {
			return false
		}
	}
	above, err := r.dir.Inside(drives.Node{Dev: s.Dev, Ino: s.Ino})
	return err == nil && !above
}

// append appends the path from the folder of the search.
func (n *node) append(path []byte) []byte {
	if n.parent == nil {
		return path
	}
	path = n.parent.append(path)
	if len(path) > 0 {
		path = append(path, '/')
	}
	return append(path, n.name...)
}

// matcher finds a text in names, whatever the case of letters. Names are compared in the form that they have in JSON, in
// which the text came.
type matcher struct {
	text []byte // folded
	wide bool   // has characters beyond ASCII
}

func newMatcher(text string) matcher {
	var m matcher
	for _, r := range text {
		r = foldCase(r)
		m.wide = m.wide || r >= utf8.RuneSelf
		m.text = utf8.AppendRune(m.text, r)
	}
	return m
}

// foldCase makes letters equal that differ in case only, among them the two small sigmas, which lower-casing alone
// does not.
func foldCase(r rune) rune { return unicode.ToLower(unicode.ToUpper(r)) }

func (m *matcher) matches(name []byte) bool {
	var buf [4 * drives.MaxName]byte // an escaped byte takes four
	for i, c := range name {
		if c >= utf8.RuneSelf {
			folded := buf[:i]
			for i < len(name) {
				r, size := drives.FoldRune(name[i:], foldCase)
				folded = utf8.AppendRune(folded, r)
				i += size
			}
			return bytes.Contains(folded, m.text)
		}
		buf[i] = lowerASCII(c)
	}
	return !m.wide && bytes.Contains(buf[:len(name)], m.text)
}
