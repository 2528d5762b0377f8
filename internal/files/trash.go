package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// Trash moves files and folders to the trash of their drive: Trash/<name> in the drive, with another name if that is
// taken (contract 10 section 7). The drive, the trash and what is in it already are refused. All items are tried; the
// error is as with [Service.CreateFolders].
func (s *Service) Trash(ctx context.Context, items []providerapi.FileInDrive) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.trash(ctx, &items[i]) })
}

func (s *Service) trash(ctx context.Context, item *providerapi.FileInDrive) error {
	st := s.state.Load()
	p, err := s.changeable(st, &item.ResolvedCollection, item.ID)
	if err != nil {
		return err
	}
	if p.path.IsRoot() {
		return failure.New(failure.Invalid, "A drive cannot be moved to the trash")
	}
	params, err := run(ctx, s.gate, p.ref.Base(), func() (*copyParams, error) { return s.trashPlace(st, p) },
		func(left *copyParams) {
			if left != nil {
				s.moves.end(*left)
			}
		})
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	if params == nil {
		return nil
	}
	params.From.Base, params.To.Base = item.ResolvedCollection.ProviderGeneratedID, item.ResolvedCollection.ProviderGeneratedID
	to, err := p.ref.Path(params.To.Path)
	if err != nil {
		return err
	}
	return s.submitMove(ctx, "Moving "+shortName(p.path)+" to the trash", "trash", *params, p, place{ref: p.ref, path: to})
}

// trashPlace moves an entry to the trash. If the trash is on another file system, it gives what a task has to do.
func (s *Service) trashPlace(st *state, p place) (*copyParams, error) {
	root, err := p.ref.Open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	local, err := root.At(p.path)
	if err != nil {
		return nil, err
	}
	source, name, err := local.OpenParent()
	if err != nil {
		return nil, err
	}
	defer source.Close()

	key := recentKey{from: p.path.UCloud()} // the empty target is the trash
	node, err := source.Node(name)
	_, repeated := s.recent.get(key)
	if err != nil && (!repeated || !errors.Is(err, unix.ENOENT)) {
		return nil, err
	}
	trash, openErr := openTrash(root, p.path, st.Unmanaged, true)
	if openErr != nil {
		return nil, openErr
	}
	defer trash.Close()
	if err != nil {
		if s.movedBefore(key, trash) {
			return nil, nil
		}
		return nil, err
	}
	if err := notTrash(node, source, trash); err != nil {
		return nil, err
	}
	if err := notIntoItself(node, trash); err != nil {
		return nil, err
	}
	if name == originsName { // which is taken, as a rule
		if err := trash.Mkdir(originsName, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
	}
	final, err := renameBy(providerapi.ConflictRename, node, source, name, trash, name)
	if errors.Is(err, unix.EXDEV) {
		to := place{ref: p.ref, path: trash.Path().Join(name)}
		params, err := s.prepareMove(p, to, providerapi.ConflictRename, node, source, trash, name)
		if params != nil {
			params.Trash = true
		}
		return params, err
	}
	if err != nil {
		return nil, err
	}
	s.recent.add(key, node, final)
	s.noteOrigin(trash, final, p.path.UCloud())
	return nil, nil
}

// notTrash refuses the trash itself, and what is in it. Both are asked for by identity: links give them other paths.
func notTrash(node drives.Node, source, trash *drives.Dir) error {
	self, err := trash.Self()
	if err != nil {
		return err
	}
	if node.Same(self) {
		return failure.New(failure.Invalid, "The trash cannot be moved to the trash. Empty it instead.")
	}
	inside, err := source.Inside(self)
	if err != nil {
		return err
	}
	if inside {
		return failure.New(failure.Invalid, "This is in the trash already")
	}
	return nil
}

// openTrash opens the trash for the things at p, and makes it if it is missing and make is set. It is a real folder directly in the
// drive, never a link, as only such a one is shown as the trash. Where one drive is a whole file system, it is in the
// topmost folder above p that the user can change (contract 10 section 7.6).
func openTrash(root *drives.Root, p drives.Path, unmanaged, make bool) (*drives.Dir, error) {
	parent, err := trashParent(root, p, unmanaged)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	trash, err := parent.OpenChild(trashName)
	if make && errors.Is(err, unix.ENOENT) {
		if err := parent.Mkdir(trashName, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		trash, err = parent.OpenChild(trashName)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, failure.Wrap(err, failure.Invalid, "There is no trash: something else in this drive is named %s", trashName)
	}
	return trash, err
}

// trashParent opens the folder that the trash is in.
func trashParent(root *drives.Root, p drives.Path, unmanaged bool) (*drives.Dir, error) {
	above := []drives.Path{} // from p's folder up to the drive
	for above = append(above, p.Parent()); !above[len(above)-1].IsRoot(); {
		above = append(above, above[len(above)-1].Parent())
	}
	for i := len(above) - 1; i >= 0; i-- {
		local, err := root.At(above[i])
		if err != nil {
			return nil, err
		}
		dir, err := local.OpenPathDir()
		if err != nil {
			return nil, err
		}
		if !unmanaged || dir.Changeable() == nil {
			return dir, nil
		}
		dir.Close()
	}
	return nil, failure.New(failure.Invalid, "There is no folder above this one in which you could have a trash")
}
