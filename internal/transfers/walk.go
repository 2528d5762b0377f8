package transfers

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

const (
	walkPage = 256 // entries that are read at a time
	walkOpen = 16  // folders that are open at a time; those above are opened again when the walk comes back
	// maxRel is the longest path below the folder, in bytes. Destinations take no longer ones (contract 11 section 7).
	maxRel = 4096
)

// source is what is sent: a folder, or a single file.
type source struct {
	root *drives.Root
	path drives.Path
	top  *drives.Dir // nil: a single file
	node drives.Node
}

// openSource opens what is to be sent.
func openSource(ref drives.Ref, p drives.Path) (*source, error) {
	root, err := ref.Open()
	if err != nil {
		return nil, err
	}
	s := &source{root: root, path: p}
	local, err := root.At(p)
	if err == nil {
		s.top, err = local.OpenDir()
	}
	switch {
	case err == nil:
		s.node, err = s.top.Self()
	case errors.Is(err, unix.ENOTDIR):
		var f *os.File
		if f, _, err = local.OpenRegular(); err == nil {
			s.node, err = drives.NodeOf(f)
			f.Close() //nolint:errcheck // only read
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *source) close() {
	if s.top != nil {
		s.top.Close()
	}
	s.root.Close() //nolint:errcheck // a descriptor without content
}

// open opens a file of the source. No link on the way leads out of the folder, and the file itself is none.
func (s *source) open(rel string) (*os.File, error) {
	if s.top == nil {
		local, err := s.root.At(s.path)
		if err != nil {
			return nil, err
		}
		f, _, err := local.OpenRegular()
		return f, err
	}
	dir, name := s.top, rel
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		sub, err := s.top.Beneath(rel[:i])
		if err != nil {
			return nil, err
		}
		defer sub.Close()
		dir, name = sub, rel[i+1:]
	}
	return dir.OpenFile(name)
}

// visitor is told what a walk finds. Paths are below the source, "" for a single file.
type visitor interface {
	// file is a regular file. An error ends the walk.
	file(rel string, n drives.Node) error
	// leftOut is a link or something special, which is not sent.
	leftOut(rel string, link bool)
	// problem is something that could not be looked at.
	problem(rel string, err error)
	// goOn is asked now and then. An error ends the walk.
	goOn() error
}

// level is a folder that the walk is in.
type level struct {
	dir    *drives.Dir // nil: closed meanwhile
	path   drives.Path
	rel    string
	node   drives.Node
	cursor drives.Cursor
	more   bool     // there may be further entries
	subs   []string // folders of the last page
}

// walk visits the source, depth first and a page of a folder at a time: what it needs does not grow with the tree. A
// file that comes or goes meanwhile may be visited or not; the others are visited once.
func (s *source) walk(v visitor) error {
	if s.top == nil {
		return v.file("", s.node)
	}
	w := walker{source: s, visitor: v}
	defer w.close()
	w.stack = append(w.stack, level{dir: s.top, path: s.path, node: s.node, more: true})
	for len(w.stack) > 0 {
		l := &w.stack[len(w.stack)-1]
		switch {
		case len(l.subs) > 0:
			name := l.subs[0]
			l.subs = l.subs[1:]
			w.descend(l, name)
		case l.more:
			if err := w.page(l); err != nil {
				return err
			}
		default:
			w.shut(l)
			w.stack = w.stack[:len(w.stack)-1]
		}
	}
	return nil
}

type walker struct {
	*source
	visitor
	stack []level
}

func (w *walker) close() {
	for i := range w.stack {
		w.shut(&w.stack[i])
	}
}

func (w *walker) shut(l *level) {
	if l.dir != nil && l.dir != w.top {
		l.dir.Close()
		l.dir = nil
	}
}

// reopen opens a folder again that was closed to save descriptors. If something else is there now, what was not visited
// of it is a problem.
func (w *walker) reopen(l *level) error {
	if l.dir != nil {
		return nil
	}
	local, err := w.root.At(l.path)
	if err != nil {
		return err
	}
	dir, err := local.OpenDir()
	if err != nil {
		return err
	}
	if n, err := dir.Self(); err != nil || !n.Same(l.node) {
		dir.Close()
		return errors.Join(unix.ENOENT, err)
	}
	l.dir = dir
	return nil
}

// page visits the next entries of a folder and notes the folders among them.
func (w *walker) page(l *level) error {
	if err := w.goOn(); err != nil {
		return err
	}
	var names []string
	err := w.reopen(l)
	if err == nil {
		l.cursor, l.more, err = l.dir.Page(l.cursor, walkPage, func(e drives.Entry) error {
			names = append(names, string(e.Name))
			return nil
		})
	}
	if err != nil {
		l.more = false
		w.problem(l.rel, err)
	}
	for _, name := range names {
		if err := w.entry(l, name); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(l *level, name string) error {
	if drives.IsDraft(name) {
		return nil // an upload that is not complete; its file comes with a later pass
	}
	rel := name
	if l.rel != "" {
		rel = l.rel + "/" + name
	}
	n, err := l.dir.Node(name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // removed meanwhile
	case err == nil && len(rel) > maxRel && n.Kind != drives.NodeLink && n.Kind != drives.NodeSpecial:
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		w.problem(rel, err)
		return nil
	}
	switch n.Kind {
	case drives.NodeRegular:
		return w.file(rel, n)
	case drives.NodeDirectory:
		l.subs = append(l.subs, name)
	default:
		w.leftOut(rel, n.Kind == drives.NodeLink)
	}
	return nil
}

func (w *walker) descend(l *level, name string) {
	rel := name
	if l.rel != "" {
		rel = l.rel + "/" + name
	}
	err := w.reopen(l)
	if err != nil {
		l.more, l.subs = false, nil
		w.problem(l.rel, err)
		return
	}
	n, err := l.dir.Node(name)
	var dir *drives.Dir
	if err == nil {
		dir, err = l.dir.OpenChildDir(name, n)
	}
	if errors.Is(err, unix.ENOENT) {
		return // removed or renamed meanwhile
	}
	if err != nil {
		w.problem(rel, err)
		return
	}
	if i := len(w.stack) - walkOpen; i >= 0 {
		w.shut(&w.stack[i])
	}
	w.stack = append(w.stack, level{dir: dir, path: l.path.Join(name), rel: rel, node: n, more: true})
}
