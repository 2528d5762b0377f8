package files

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// copier copies trees. It goes by open directories and single names on both sides, and never follows a link: whatever is
// exchanged meanwhile, it reads nothing outside of the source and makes nothing outside of the target.
//
// One goroutine walks; a few others copy the files it meets. A file gets its name when it is complete, so that an
// interruption leaves whole files; those are left out when the task is taken up again. A folder is closed to others and
// marked ([drives.Building]) until everything directly in it is there; then it gets its mode and times.
//
// When it moves, each entry is renamed if it can be, and copied if it lies on another file system. What was copied is
// removed by a mover afterwards.
type copier struct {
	*tally
	policy  providerapi.ConflictPolicy
	resumed bool
	merging bool        // into folders that were there before; they keep their modes
	into    drives.Node // the folder that the copy is made in
	moving  bool
	flush   bool // each file: the file system cannot flush them all at once
	jobs    chan fileJob
	walk    tree[*pair]
	temps   drives.Temps
	goesOn  atomic.Bool // after this attempt
}

// pair is a folder of the source with the one that is made of it.
type pair struct {
	from, to *drives.Dir // nil while the walk has closed them
	node     drives.Node // of the source
	toNode   drives.Node
	ours     bool // it was made by this task
	where    string

	mu    sync.Mutex // guards the fields below
	idle  *sync.Cond
	files int  // under way
	left  bool // the walk is through
	torn  bool // not everything is there
}

// tear notes that not everything will be there.
func (p *pair) tear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.torn = true
}

// fileJob is a file to be copied.
type fileJob struct {
	in   *pair
	name string
}

// copyWorkers is how many files are copied at a time, remoteWorkers the same on network file systems, where each call is
// a round trip.
const (
	copyWorkers   = 4
	remoteWorkers = 12
)

func newCopier(j job, params copyParams) *copier {
	did := "copied"
	if params.Move {
		did = "moved"
	}
	c := &copier{
		temps: drives.Temps{Owner: uint32(j.ID())}, //nolint:gosec // any number will do, as long as it stays the same

		tally:   newTally(j, did),
		policy:  params.Policy,
		resumed: j.Attempt() > 1,
		merging: params.Merge,
		moving:  params.Move,
		into:    drives.Node{Dev: params.To.Dev, Ino: params.To.Ino},
	}
	c.walk.suspend, c.walk.restore = c.suspend, c.restore
	return c
}

// tree copies the folder that the task is about, into one that exists. The error is the end of the task; failures are
// counted.
func (c *copier) tree(ctx context.Context, source *drives.Dir, name string, target *drives.Dir, newName string, want drives.Node) error {
	from, node, err := source.OpenSub(name)
	if err == nil && !node.Same(want) {
		from.Close()
		err = unix.ENOENT
	}
	if err != nil {
		c.fail(drives.Escape(name), err)
		return nil
	}
	to, toNode, err := target.OpenSub(newName)
	if err == nil && !toNode.Same(c.into) {
		to.Close()
		err = unix.ENOENT
	}
	if err != nil {
		from.Close()
		c.fail(drives.Escape(newName), err)
		return nil
	}
	c.flush = c.flush || c.moving && to.Remote()
	workers := copyWorkers
	if from.Remote() || to.Remote() {
		workers = remoteWorkers
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var group sync.WaitGroup
	c.jobs = make(chan fileJob, 4*workers)
	for range workers {
		group.Go(func() { c.work(ctx, stop) })
	}
	// What the mode tells is where an earlier attempt has stopped.
	ours := !c.merging && (!c.resumed || toNode.Building())
	if c.resumed {
		c.tidy(to)
	}
	p := newPair(from, to, node, toNode, ours, drives.Escape(name))
	c.walk.push(&level[*pair]{name: name, node: node, dir: from, own: p})
	err = c.folders(ctx)
	c.stopped(err)
	for _, l := range c.walk.levels { // it was stopped
		if l.dir != nil {
			l.own.tear()
			c.leave(l.own)
		}
	}
	c.walk.levels = nil
	close(c.jobs)
	group.Wait()
	if cause := context.Cause(ctx); cause != nil && err == nil {
		err = cause
	}
	return err
}

func newPair(from, to *drives.Dir, node, toNode drives.Node, ours bool, where string) *pair {
	p := &pair{from: from, to: to, node: node, toNode: toNode, ours: ours, where: where}
	p.idle = sync.NewCond(&p.mu)
	return p
}

// folders walks through the tree.
func (c *copier) folders(ctx context.Context) error {
	for !c.walk.empty() {
		if err := c.job.Checkpoint(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := c.walk.last().own
		e, ok, err := c.walk.entry()
		if err != nil {
			c.fail(c.walk.path(""), err)
			p.tear()
		}
		full := c.isFull()
		if full {
			p.tear()
		}
		if err != nil || !ok || full {
			where := c.walk.path("")
			l, err := c.walk.pop()
			c.leave(l.own)
			if err != nil {
				c.fail(where, failure.Wrap(err, failure.Conflict, "The folder above was moved elsewhere meanwhile"))
				return nil
			}
			continue
		}
		name := string(e.Name)
		if drives.IsDraft(name) && !c.moving {
			continue // it belongs to an upload under way
		}
		if err := c.entry(ctx, p, name, e.Type); err != nil {
			return err
		}
	}
	return nil
}

// entry copies or moves an entry of the folder that the walk is in.
func (c *copier) entry(ctx context.Context, p *pair, name string, kind drives.EntryType) error {
	if c.moving && p.node.Dev == p.toNode.Dev {
		if done := c.rename(p, name); done {
			return nil
		}
	}
	if drives.IsDraft(name) {
		return nil
	}
	if kind == drives.EntryUnknown {
		node, err := p.from.Node(name)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			c.fail(c.walk.path(name), err)
			return nil
		case node.Kind == drives.NodeDirectory:
			kind = drives.EntryDirectory
		}
	}
	if kind == drives.EntryDirectory {
		c.subfolder(p, name)
		return nil
	}
	p.mu.Lock()
	p.files++
	p.mu.Unlock()
	select {
	case c.jobs <- fileJob{in: p, name: name}:
		return nil
	case <-ctx.Done():
		c.fileDone(p, false)
		return context.Cause(ctx)
	}
}

// rename moves an entry in one piece. It reports false if the entry is to be merged, or lies on another file system.
func (c *copier) rename(p *pair, name string) (done bool) {
	for n := 0; n <= drives.MaxNumbered; n++ {
		free := drives.Numbered(name, n)
		err := drives.RenameNew(p.from, name, p.to, free)
		switch {
		case errors.Is(err, unix.EXDEV):
			return false
		case errors.Is(err, unix.ENOENT):
			return true
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
			if n > 0 {
				continue
			}
			node, err := p.from.Node(name)
			there, errThere := p.to.Node(free)
			if err == nil && errThere == nil && node.Kind == drives.NodeDirectory && there.Kind == drives.NodeDirectory {
				return false
			}
		case err != nil:
			c.fail(c.walk.path(name), err)
			return true
		default:
			c.add(1, 0)
			return true
		}
	}
	c.fail(c.walk.path(name), errNoFreeName)
	return true
}

var errNoFreeName = failure.New(failure.Invalid, "There are too many files with this name")

// subfolder goes into a folder, with an existing one as its target where folders are merged.
func (c *copier) subfolder(p *pair, name string) {
	where := c.walk.path(name)
	from, node, err := p.from.OpenSub(name)
	if errors.Is(err, unix.ENOENT) {
		return
	}
	if err != nil {
		c.fail(where, err)
		return
	}
	if node.Same(c.into) {
		from.Close()
		c.fail(where, failure.New(failure.Invalid, "A folder cannot be put into itself"))
		return
	}
	to, toNode, ours, err := c.makeFolder(p, name)
	if err != nil {
		from.Close()
		c.fail(where, err)
		return
	}
	c.walk.push(&level[*pair]{name: name, node: node, dir: from, own: newPair(from, to, node, toNode, ours, where)})
}

// makeFolder makes the target of a folder, or opens one that may be used.
func (c *copier) makeFolder(p *pair, name string) (to *drives.Dir, node drives.Node, ours bool, err error) {
	for n := 0; n <= drives.MaxNumbered; n++ {
		free := drives.Numbered(name, n)
		err := p.to.Mkdir(free, drives.Building)
		made := err == nil
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, node, false, err
		}
		if !made && !c.merging && !c.resumed {
			// Somebody else has made it in the folder that is being filled.
			if c.policy == providerapi.ConflictReject {
				return nil, node, false, unix.EEXIST
			}
			continue
		}
		to, node, err = p.to.OpenSub(free)
		switch {
		case err == nil:
			if !made && c.resumed {
				c.tidy(to)
			}
			return to, node, made || (c.resumed && node.Building()), nil
		case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
			return nil, node, false, err
		case c.policy == providerapi.ConflictReplace || c.policy == providerapi.ConflictReject:
			return nil, node, false, unix.EEXIST // a file that stays
		}
	}
	return nil, node, false, errNoFreeName
}

// tidy removes what an attempt that was killed may have left in a folder of the target. What cannot be removed stays
// hidden.
func (c *copier) tidy(to *drives.Dir) {
	_ = c.temps.Tidy(to)
}

// suspend closes a folder of the target too, when the walk does so with that of the source.
func (c *copier) suspend(l *level[*pair]) {
	p := l.own
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.files > 0 {
		p.idle.Wait()
	}
	p.to.Close()
	p.from, p.to = nil, nil
}

func (c *copier) restore(l, below *level[*pair]) error {
	to, err := below.own.to.Above(l.own.toNode)
	if err != nil {
		l.own.from = nil
		l.dir.Close()
		l.dir = nil
		return err
	}
	l.own.from, l.own.to = l.dir, to
	return nil
}

// leave is called when the walk is through with a folder.
func (c *copier) leave(p *pair) {
	p.mu.Lock()
	p.left = true
	last := p.files == 0
	p.mu.Unlock()
	if last {
		c.finish(p)
	}
}

// fileDone is called when a file of a folder is.
func (c *copier) fileDone(p *pair, whole bool) {
	p.mu.Lock()
	p.files--
	p.torn = p.torn || !whole
	if p.files == 0 {
		p.idle.Broadcast()
	}
	last := p.left && p.files == 0
	p.mu.Unlock()
	if last {
		c.finish(p)
	}
}

// stopped notes whether the task will go on at some time, which is so unless its user has cancelled it.
func (c *copier) stopped(err error) {
	if err != nil && !errors.Is(err, tasks.ErrCancelled) {
		c.goesOn.Store(true)
	}
}

// finish gives a folder its attributes and closes it. One in which the task will go on keeps its mark; see
// [drives.Building].
func (c *copier) finish(p *pair) {
	defer p.from.Close()
	defer p.to.Close()
	if p.torn && c.goesOn.Load() || !p.ours {
		return
	}
	err := p.to.KeepAttributes(p.from)
	if err == nil {
		err = p.to.Keep(p.node)
	}
	if err != nil {
		c.fail(p.where, err)
	}
}

// work copies files until there are no more.
func (c *copier) work(ctx context.Context, stop context.CancelCauseFunc) {
	var buf drives.CopyBuffer
	for j := range c.jobs {
		if ctx.Err() != nil || c.isFull() {
			c.stopped(context.Cause(ctx))
			c.fileDone(j.in, false)
			continue
		}
		err := c.job.Checkpoint(ctx)
		if err == nil {
			flush := c.flush || c.moving && j.in.toNode.Dev != c.into.Dev
			_, err = c.file(ctx, j.in.from, j.name, j.in.to, j.name, j.in.where, flush, &buf)
		}
		c.stopped(err)
		c.fileDone(j.in, err == nil)
		if err != nil {
			stop(err)
		}
	}
}

// settle has everything written to the disk: what is reported as done has to be there after a power failure. It does not
// wait for that when the task is to end. all was opened before anything was written, to know of all errors; it is closed.
func (c *copier) settle(ctx context.Context, all *drives.Dir, where string) error {
	done := make(chan error, 1)
	go func() { // ends when the disk has answered
		defer all.Close()
		done <- all.SyncAll()
	}()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				c.fail(where, err)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if err := c.job.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
}
