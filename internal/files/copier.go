package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// copier copies trees. It goes by open directories and single names on both sides, and never follows a link: whatever is
// exchanged meanwhile, it reads nothing outside of the source and makes nothing outside of the target.
//
// Files are copied by a few goroutines at a time, one folder after the other. A file is written under a hidden name and
// gets its own when it is complete, so that an interruption leaves whole files; those are left out when the task is
// taken up again.
type copier struct {
	*tally
	policy  providerapi.ConflictPolicy
	resumed bool
	merging bool          // into folders that were there before; they keep their modes
	into    drives.Node   // the folder that the copy is made in
	slots   chan struct{} // one for each file at a time
	depth   int

	mu   sync.Mutex // guards the tally and the fields below
	full bool       // the storage is full: to go on makes no sense
}

const (
	copyWorkers  = 4
	maxCopyDepth = 200 // each level takes two descriptors
)

func newCopier(j job, params copyParams) *copier {
	return &copier{
		tally:   &tally{job: j, what: "files copied", begin: time.Now()},
		policy:  params.Policy,
		resumed: j.Attempt() > 1,
		merging: params.Merge,
		into:    drives.Node{Dev: params.To.Dev, Ino: params.To.Ino},
		slots:   make(chan struct{}, copyWorkers),
	}
}

// top copies the folder that the task is about, into one that exists.
func (c *copier) top(ctx context.Context, source *drives.Dir, name string, node drives.Node, target *drives.Dir, newName string) error {
	to, err := target.OpenChildDir(newName, c.into)
	if err != nil {
		c.failing(target.Path().Join(newName), err)
		return nil
	}
	defer to.Close()
	return c.folder(ctx, source, name, node, to, !c.merging)
}

func (c *copier) failing(p drives.Path, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(p, err)
	c.full = c.full || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func (c *copier) added() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add()
}

func (c *copier) copied(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += n
	c.tell()
}

func (c *copier) isFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.full
}

// folder copies what is in a folder into another one, and then, if that is ours, gives it the mode and the times. The
// error is the end of the task; failures are counted.
func (c *copier) folder(
	ctx context.Context, source *drives.Dir, name string, node drives.Node, to *drives.Dir, ours bool,
) error {
	from, err := source.OpenChildDir(name, node)
	if err != nil {
		c.failing(source.Path().Join(name), err)
		return nil
	}
	defer from.Close()
	c.depth++
	defer func() { c.depth-- }()
	if c.depth > maxCopyDepth {
		c.failing(from.Path(), failure.New(failure.Invalid, "The folder lies too deep"))
		return nil
	}
	var files sync.WaitGroup
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err = c.entries(ctx, stop, &files, from, to)
	files.Wait()
	if cause := context.Cause(ctx); cause != nil && err == nil {
		err = cause
	}
	if err != nil || c.isFull() {
		return err
	}
	if ours {
		err = to.Keep(node)
	}
	if err != nil {
		c.failing(from.Path(), err)
		return nil
	}
	c.added()
	return nil
}

func (c *copier) entries(ctx context.Context, stop context.CancelCauseFunc, files *sync.WaitGroup, from, to *drives.Dir) error {
	buf := make([]byte, 16<<10)
	for {
		batch, err := from.ReadBatch(buf)
		if err != nil {
			c.failing(from.Path(), err)
			return nil
		}
		if batch.Empty() {
			return nil
		}
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			if err := c.job.Checkpoint(ctx); err != nil {
				return err
			}
			if c.isFull() {
				return nil
			}
			name := string(e.Name)
			node, err := from.Node(name)
			switch {
			case errors.Is(err, unix.ENOENT) || drives.IsDraft(name):
			case err != nil:
				c.failing(from.Path().Join(name), err)
			case node.Kind == drives.NodeDirectory:
				if err := c.subfolder(ctx, from, name, node, to); err != nil {
					return err
				}
			default:
				c.slots <- struct{}{}
				files.Go(func() {
					defer func() { <-c.slots }()
					if err := c.entry(ctx, from, name, node, to, name); err != nil {
						stop(err)
					}
				})
			}
		}
	}
}

// subfolder copies a folder, into an existing one where folders are merged.
func (c *copier) subfolder(ctx context.Context, from *drives.Dir, name string, node drives.Node, to *drives.Dir) error {
	p := from.Path().Join(name)
	if node.Same(c.into) {
		c.failing(p, failure.New(failure.Invalid, "A folder cannot be put into itself"))
		return nil
	}
	for n := 0; n <= maxCandidates; n++ {
		free := drives.Numbered(name, n)
		err := to.Mkdir(free, 0o700)
		ours := err == nil || !c.merging
		if err != nil && !errors.Is(err, unix.EEXIST) {
			c.failing(p, err)
			return nil
		}
		made, err := to.Node(free)
		if err == nil && made.Kind != drives.NodeDirectory && c.policy != providerapi.ConflictReplace {
			continue // a file that stays
		}
		var sub *drives.Dir
		if err == nil {
			sub, err = to.OpenChildDir(free, made)
		}
		if err != nil {
			c.failing(p, err)
			return nil
		}
		defer sub.Close()
		return c.folder(ctx, from, name, node, sub, ours)
	}
	c.failing(p, failure.New(failure.Invalid, "There are too many files with this name"))
	return nil
}

// entry copies anything but a folder. The error is the end of the task.
func (c *copier) entry(ctx context.Context, from *drives.Dir, name string, node drives.Node, to *drives.Dir, newName string) error {
	var err error
	switch node.Kind {
	case drives.NodeRegular:
		err = c.file(ctx, from, name, node, to, newName)
	case drives.NodeLink:
		err = c.link(from, name, to, newName)
	default:
		err = drives.ErrNotRegular
	}
	if e, ok := errors.AsType[*stopError](err); ok {
		return e.cause
	}
	if err != nil {
		c.failing(from.Path().Join(name), err)
		return nil
	}
	c.added()
	return nil
}

// stopError is the end of the task, as opposed to the failure of a file.
type stopError struct{ cause error }

func (e *stopError) Error() string { return e.cause.Error() }

func (c *copier) file(ctx context.Context, from *drives.Dir, name string, node drives.Node, to *drives.Dir, newName string) error {
	if c.resumed && c.complete(node, to, newName) {
		return nil
	}
	src, err := from.OpenFile(name)
	if err != nil {
		return err
	}
	defer src.Close()
	if node, err = drives.NodeOf(src); err != nil { // of what is read
		return err
	}
	draft, err := to.NewDraft(newName, 0o600)
	if err != nil {
		return err
	}
	defer draft.Discard()
	err = draft.CopyFrom(src, node.Size, func(n int64) error {
		c.copied(n)
		if err := c.job.Checkpoint(ctx); err != nil {
			return &stopError{err}
		}
		return nil
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return failure.Wrap(err, failure.Conflict, "The file has changed while it was copied")
	}
	if err != nil {
		return err
	}
	if err := draft.Keep(node); err != nil {
		return err
	}
	if c.policy == providerapi.ConflictReplace {
		// What is replaced must not be gone before its successor is on the disk.
		if err := draft.Sync(); err != nil {
			return err
		}
	}
	if err := draft.Close(); err != nil { // network file systems tell about a lack of space now
		return err
	}
	if c.policy == providerapi.ConflictReplace {
		return draft.Replace(newName)
	}
	return c.free(newName, draft.Publish)
}

// free calls take with the name, and with its alternatives as long as they are taken.
func (c *copier) free(name string, take func(string) error) error {
	for n := 0; n <= maxCandidates; n++ {
		err := take(drives.Numbered(name, n))
		if !errors.Is(err, unix.EEXIST) || c.policy == providerapi.ConflictReject {
			return err
		}
	}
	return failure.New(failure.Invalid, "There are too many files with this name")
}

// complete tells whether an earlier attempt has copied the file, by size and time. Under another name it may stand only
// if names are chosen.
func (c *copier) complete(node drives.Node, to *drives.Dir, name string) bool {
	for n := 0; n <= maxCandidates; n++ {
		there, err := to.Node(drives.Numbered(name, n))
		if err != nil {
			return false
		}
		if there.Kind == drives.NodeRegular && !there.Same(node) && there.Size == node.Size && there.Modified == node.Modified {
			return true
		}
		if c.policy == providerapi.ConflictReplace || c.policy == providerapi.ConflictReject {
			return false
		}
	}
	return false
}

// link copies a symbolic link as it is.
func (c *copier) link(from *drives.Dir, name string, to *drives.Dir, newName string) error {
	text, err := from.ReadLink(name)
	if err != nil {
		return err
	}
	if there, err := to.ReadLink(newName); err == nil && there == text && (c.resumed || c.policy == providerapi.ConflictReplace) {
		return nil
	}
	if c.policy == providerapi.ConflictReplace {
		hidden := fmt.Sprintf(".ucloud-link-%016x", rand.Uint64())
		if err := to.Symlink(text, hidden); err != nil {
			return err
		}
		if err := drives.Rename(to, hidden, to, newName); err != nil {
			_ = to.Remove(hidden, false) // the first error counts
			return err
		}
		return nil
	}
	return c.free(newName, func(free string) error { return to.Symlink(text, free) })
}
