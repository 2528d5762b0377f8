package files

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
)

// mover removes a tree that has been copied, for a move to another file system. It walks through both trees, and an
// entry goes only if its copy is there: what has been changed or has come since it was copied stays, and is told.
type mover struct {
	*tally
	walk tree[*pair]
}

func newMover(t *tally) *mover {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removing = true
	return &mover{tally: t}
}

var errChanged = failure.New(failure.Conflict, "It was changed while it was moved, and is still where it was")

// tree removes the folder name, of which newName is the copy, with everything in it.
func (m *mover) tree(ctx context.Context, source *drives.Dir, name string, target *drives.Dir, newName string, want, made drives.Node) error {
	from, node, err := source.OpenSub(name)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed by an earlier attempt
	}
	if err == nil && !node.Same(want) {
		from.Close()
		err = errChanged
	}
	if err != nil {
		m.fail(drives.Escape(name), err)
		return nil
	}
	to, toNode, err := target.OpenSub(newName)
	if err == nil && !toNode.Same(made) {
		to.Close()
		err = errChanged
	}
	if err != nil {
		from.Close()
		m.fail(drives.Escape(name), err)
		return nil
	}
	m.walk.suspend = func(l *level[*pair]) {
		l.own.to.Close()
		l.own.to = nil
	}
	m.walk.restore = func(l, below *level[*pair]) (err error) {
		l.own.from = l.dir
		l.own.to, err = below.own.to.Above(l.own.toNode)
		return err
	}
	defer func() {
		for _, l := range m.walk.levels {
			if l.dir != nil {
				l.dir.Close()
			}
			if l.own.to != nil {
				l.own.to.Close()
			}
		}
	}()
	m.walk.push(&level[*pair]{name: name, node: node, dir: from, own: newPair(from, to, node, toNode, false, "")})
	return m.folders(ctx, source)
}

func (m *mover) folders(ctx context.Context, source *drives.Dir) error {
	for !m.walk.empty() {
		if err := m.job.Checkpoint(ctx); err != nil {
			return err
		}
		here := m.walk.last()
		e, ok, err := m.walk.entry()
		if err != nil {
			m.fail(m.walk.path(""), err)
		}
		if err == nil && ok {
			m.entry(here.own, string(e.Name))
			continue
		}
		where := m.walk.path("")
		l, err := m.walk.pop()
		l.dir.Close()
		if l.own.to != nil {
			l.own.to.Close()
		}
		if err != nil {
			m.fail(where, err)
			return nil
		}
		parent := source
		if !m.walk.empty() {
			parent = m.walk.last().dir
		}
		switch err := parent.Remove(l.name, true); {
		case err == nil, errors.Is(err, unix.ENOENT):
		case (errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)) && m.failedSoFar() > 0:
			// What is in it has been told.
		default:
			m.fail(where, err)
		}
	}
	return nil
}

// entry removes an entry if its copy is there, or goes into it if it is a folder.
func (m *mover) entry(p *pair, name string) {
	node, err := p.from.Node(name)
	if errors.Is(err, unix.ENOENT) {
		return
	}
	switch {
	case err != nil:
	case drives.IsDraft(name):
		// Nobody waits for one that is older than a day.
		removed, errRemove := p.from.RemoveOldDraft(name, time.Now().Add(-24*time.Hour))
		if err = errRemove; err == nil && !removed {
			err = failure.New(failure.Conflict, "An upload to this folder is under way")
		}
	case node.Kind == drives.NodeDirectory:
		if err = m.enter(p, name); err == nil {
			return
		}
	default:
		if _, ok := copyOf(p.from, name, node, p.to, name); !ok {
			err = errChanged
			break
		}
		err = p.from.Remove(name, false)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		m.fail(m.walk.path(name), err)
	}
}

func (m *mover) enter(p *pair, name string) error {
	from, node, err := p.from.OpenSub(name)
	if err != nil {
		return err
	}
	for n := 0; n <= drives.MaxNumbered; n++ {
		to, toNode, err := p.to.OpenSub(drives.Numbered(name, n))
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			break
		}
		m.walk.push(&level[*pair]{name: name, node: node, dir: from, own: newPair(from, to, node, toNode, false, "")})
		return nil
	}
	from.Close()
	return errChanged
}

// copyOf finds the copy of an entry that is no folder, by what can be seen without reading it.
func copyOf(from *drives.Dir, name string, node drives.Node, to *drives.Dir, newName string) (final string, ok bool) {
	text := ""
	switch node.Kind {
	case drives.NodeRegular:
	case drives.NodeLink:
		var err error
		if text, err = from.ReadLink(name); err != nil {
			return "", false
		}
	default:
		return "", false
	}
	for n := 0; n <= drives.MaxNumbered; n++ {
		final = drives.Numbered(newName, n)
		there, err := to.Node(final)
		if err != nil {
			return "", false
		}
		if node.Kind == drives.NodeRegular && sameCopy(node, there) {
			return final, true
		}
		if node.Kind == drives.NodeLink && there.Kind == drives.NodeLink {
			if other, err := to.ReadLink(final); err == nil && other == text {
				return final, true
			}
		}
	}
	return "", false
}

// single removes something that is no folder.
func (m *mover) single(source *drives.Dir, name string, node drives.Node, target *drives.Dir, newName string) error {
	now, err := source.Node(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil && !now.Same(node) {
		err = errChanged
	}
	if err == nil {
		if _, ok := copyOf(source, name, now, target, newName); !ok {
			err = errChanged
		}
	}
	if err == nil {
		err = source.Remove(name, false)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		m.fail(drives.Escape(name), err)
	}
	return nil
}
