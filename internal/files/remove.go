package files

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
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
	t, r := newRemover(j, dir)
	if err := r.clear(ctx, dir); err != nil {
		return err
	}
	if t.failed == 0 {
		if err := parent.Remove(name, true); err != nil && !errors.Is(err, unix.ENOENT) {
			t.fail(dir.Path(), err)
		} else {
			t.add()
		}
	}
	return s.conclude(ctx, t)
}

// runEmptyTrash removes what was in the trash when the task was made.
func (s *Service) runEmptyTrash(ctx context.Context, j job) error {
	params, _, trash, _, closeAll, err := s.openRemoval(j)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	defer closeAll()
	t, r := newRemover(j, trash)
	err = r.each(ctx, trash, func(name string, node drives.Node) error {
		if node.Changed.Nano() > params.Until {
			return nil
		}
		return r.remove(ctx, trash, name, node)
	})
	if err != nil {
		return err
	}
	return s.conclude(ctx, t)
}

// remover removes trees. It goes by open directories and single names, so whatever is exchanged meanwhile, nothing
// outside the tree is touched; links are removed themselves.
type remover struct {
	*tally
	dev   uint64      // other file systems that are mounted in the tree are left alone
	top   *drives.Dir // of the tree under way
	depth int
	moved bool // something has been moved to the top
}

func newRemover(j job, dir *drives.Dir) (*tally, *remover) {
	t := &tally{job: j, what: "files removed", begin: time.Now()}
	r := &remover{tally: t}
	if self, err := dir.Self(); err == nil {
		r.dev = self.Dev
	}
	return t, r
}

// maxOpenDepth is how deep a tree is followed with one open directory per level. Deeper folders are moved to the top of
// the tree, which is to be removed anyhow, and come after: any depth takes a bounded number of descriptors.
const maxOpenDepth = 100

// clear removes everything in a folder. The error is the end of the task; failures are counted.
func (r *remover) clear(ctx context.Context, dir *drives.Dir) error {
	top := r.top == nil
	if top {
		r.top = dir
		defer func() { r.top = nil }()
	}
	r.depth++
	defer func() { r.depth-- }()
	for {
		r.moved = r.moved && !top
		err := r.each(ctx, dir, func(name string, node drives.Node) error { return r.remove(ctx, dir, name, node) })
		if err != nil || !top || !r.moved {
			return err
		}
	}
}

// remove removes an entry, with everything in it.
func (r *remover) remove(ctx context.Context, dir *drives.Dir, name string, node drives.Node) error {
	p := dir.Path().Join(name)
	folder := node.Kind == drives.NodeDirectory
	var unread error // a folder that cannot be read may be empty all the same
	if folder {
		switch {
		case node.Dev != r.dev:
			r.fail(p, unix.EBUSY)
			return nil
		case r.depth >= maxOpenDepth:
			err := drives.RenameNew(dir, name, r.top, fmt.Sprintf(".ucloud-removed-%016x", rand.Uint64()))
			if r.moved = r.moved || err == nil; err != nil && !errors.Is(err, unix.ENOENT) {
				r.fail(p, err)
			}
			return nil
		}
		child, err := dir.OpenChildDir(name, node)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err == nil {
			failed := r.failed
			err = r.clear(ctx, child)
			child.Close()
			if err != nil || r.failed > failed {
				return err
			}
		}
		unread = err
	}
	switch err := dir.Remove(name, folder); {
	case err == nil:
		r.add()
	case !errors.Is(err, unix.ENOENT):
		r.fail(p, cmp.Or(unread, err))
	}
	return nil
}

// each calls do for the entries of a folder. Entries may go while it reads.
func (r *remover) each(ctx context.Context, dir *drives.Dir, do func(name string, node drives.Node) error) error {
	buf := make([]byte, 16<<10)
	if err := dir.Seek(0); err != nil {
		r.fail(dir.Path(), err)
		return nil
	}
	for {
		batch, err := dir.ReadBatch(buf)
		if err != nil {
			r.fail(dir.Path(), err)
			return nil
		}
		if batch.Empty() {
			return nil
		}
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			if err := r.job.Checkpoint(ctx); err != nil {
				return err
			}
			name := string(e.Name)
			node, err := dir.Node(name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				r.fail(dir.Path().Join(name), err)
				continue
			}
			if err := do(name, node); err != nil {
				return err
			}
		}
	}
}
