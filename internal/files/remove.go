package files

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// removal is what a task that removes is about. The inode makes sure that a task that is taken up again, or had to wait,
// removes what the user meant, and not what has that name by then.
type removal struct {
	Drive    ident.DriveID `json:"drive"`
	Base     string        `json:"base"` // providerGeneratedId
	Path     string        `json:"path"`
	Dev, Ino uint64
	Until    int64 `json:"until,omitempty"` // what has come into the trash later stays; file system time in ns
}

// openRemoval gives the parent of what is to be removed, its name and the open folder itself.
func (s *Service) openRemoval(j job) (r removal, parent, dir *drives.Dir, name string, closeAll func(), err error) {
	if err := json.Unmarshal(j.Params(), &r); err != nil {
		return r, nil, nil, "", nil, fmt.Errorf("decode task: %w", err)
	}
	// The edit permission was there when the task was made.
	ref, err := s.state.Load().set.Drive(&providerapi.Drive{
		ID: r.Drive, ProviderGeneratedID: r.Base,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: s.o.Provider}},
	})
	if err != nil {
		return r, nil, nil, "", nil, err
	}
	p, err := ref.Path(r.Path)
	if err != nil {
		return r, nil, nil, "", nil, err
	}
	parent, name, closeParent, err := place{ref: ref, path: p}.openParent()
	if err != nil {
		return r, nil, nil, "", nil, err
	}
	dir, err = parent.OpenChildDir(name, drives.Node{Dev: r.Dev, Ino: r.Ino})
	if err != nil {
		closeParent()
		return r, nil, nil, "", nil, err
	}
	return r, parent, dir, name, func() { dir.Close(); closeParent() }, nil
}

// runDelete removes a folder with everything in it.
func (s *Service) runDelete(ctx context.Context, j job) error {
	_, parent, dir, name, closeAll, err := s.openRemoval(j)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone: by an earlier attempt, or by somebody else
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	defer closeAll()
	r := &remover{tally: newTally(j, "removed")}
	err = r.all(ctx, dir, name, nil)
	if err == nil && r.failedSoFar() == 0 {
		if err := parent.Remove(name, true); err != nil && !errors.Is(err, unix.ENOENT) {
			r.fail(drives.Escape(name), err)
		}
	}
	return s.concludeRemoval(ctx, r, err)
}

// runEmptyTrash removes what was in the trash when the task was made.
func (s *Service) runEmptyTrash(ctx context.Context, j job) error {
	params, _, trash, name, closeAll, err := s.openRemoval(j)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	defer closeAll()
	r := &remover{tally: newTally(j, "removed")}
	err = r.all(ctx, trash, name, func(name string, node drives.Node) bool {
		return name != originsName && (node.Changed.Nano() <= params.Until || node.Kind == drives.NodeDirectory && notedBy(trash, name, node, params.Until))
	})
	if err == nil {
		err = dropOrigins(trash, func() error { return j.Checkpoint(ctx) })
	}
	return s.concludeRemoval(ctx, r, err)
}

func (s *Service) concludeRemoval(ctx context.Context, r *remover, err error) error {
	if errors.Is(err, tasks.ErrCancelled) {
		r.cancelled()
	}
	if err != nil {
		return err
	}
	return s.conclude(ctx, r.tally, "")
}

// remover removes trees. It goes by open directories and single names, so whatever is exchanged meanwhile, nothing
// outside the tree is touched; links are removed themselves, and other file systems that are mounted in the tree are left
// alone.
type remover struct {
	*tally
	dev  uint64
	walk tree[*leftover]
}

// leftover is what is known about a folder that is being emptied.
type leftover struct {
	failed bool // something in it cannot be removed
}

// all removes everything in a folder that only, if set, agrees to; below that, everything. The error is the end of the
// task; failures are counted.
func (r *remover) all(ctx context.Context, dir *drives.Dir, name string, only func(name string, node drives.Node) bool) error {
	top, err := dir.Clone()
	if err != nil {
		r.fail(drives.Escape(name), err)
		return nil
	}
	node, err := top.Self()
	if err != nil {
		top.Close()
		r.fail(drives.Escape(name), err)
		return nil
	}
	r.dev = node.Dev
	defer r.walk.close()
	r.walk.push(&level[*leftover]{name: name, node: node, dir: top, own: &leftover{}})
	for !r.walk.empty() {
		if err := r.job.Checkpoint(ctx); err != nil {
			return err
		}
		e, ok, err := r.walk.entry()
		if err != nil {
			r.stays("", err)
		}
		if err == nil && ok {
			first := only
			if len(r.walk.levels) > 1 {
				first = nil
			}
			r.entry(string(e.Name), e.Type, first)
			continue
		}
		l, err := r.walk.pop()
		l.dir.Close()
		switch {
		case err != nil:
			r.fail(drives.Escape(l.name), failure.Wrap(err, failure.Conflict, "The folder above was moved elsewhere meanwhile"))
			return nil
		case r.walk.empty():
		case l.own.failed:
			r.walk.last().own.failed = true
		default:
			if err := r.walk.last().dir.Remove(l.name, true); err != nil && !errors.Is(err, unix.ENOENT) {
				r.stays(l.name, err)
			}
		}
	}
	return nil
}

// stays counts something that cannot be removed.
func (r *remover) stays(name string, err error) {
	r.fail(r.walk.path(name), err)
	r.walk.last().own.failed = true
}

// entry removes an entry that is no folder, and goes into one that is.
func (r *remover) entry(name string, kind drives.EntryType, only func(name string, node drives.Node) bool) {
	dir := r.walk.last().dir
	folder := kind == drives.EntryDirectory
	if only != nil || (kind == drives.EntryUnknown) {
		node, err := dir.Node(name)
		switch {
		case errors.Is(err, unix.ENOENT):
			return
		case err != nil:
			r.stays(name, err)
			return
		case only != nil && !only(name, node):
			return
		}
		folder = node.Kind == drives.NodeDirectory
	}
	var unread error // a folder that cannot be read may be empty all the same
	if folder {
		sub, node, err := dir.OpenSub(name)
		switch {
		case err == nil && node.Dev != r.dev:
			sub.Close()
			r.stays(name, unix.EBUSY)
			return
		case err == nil:
			r.walk.push(&level[*leftover]{name: name, node: node, dir: sub, own: &leftover{}})
			return
		case errors.Is(err, unix.ENOENT):
			return
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // exchanged meanwhile
			folder = false
		default:
			unread = err
		}
	}
	switch err := dir.Remove(name, folder); {
	case err == nil && !folder:
		r.add(1, 0)
	case err != nil && !errors.Is(err, unix.ENOENT):
		r.stays(name, cmp.Or(unread, err))
	}
}
