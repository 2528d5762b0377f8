package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// Delete removes files and folders for good (contract 10 section 7.3). A link is removed itself, never its target. A
// folder with something in it is removed by a background task; Delete returns when that is stored.
// The items name their drive by id only. All items are tried; the error is as with [Service.CreateFolders].
func (s *Service) Delete(ctx context.Context, items []providerapi.DeleteFile) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.deleteItem(ctx, &items[i]) })
}

func (s *Service) deleteItem(ctx context.Context, item *providerapi.DeleteFile) error {
	drive, err := s.driveByID(ctx, item.Specification.Collection, item.Permissions)
	if err != nil {
		return err
	}
	p, err := s.changeable(s.state.Load(), drive, item.ID)
	if err != nil {
		return err
	}
	if p.path.IsRoot() {
		return failure.New(failure.Invalid, "A drive cannot be deleted like a file")
	}
	left, err := run(ctx, s.gate, p.ref.Base(), func() (drives.Node, error) { return deletePlace(p) }, nil)
	if errors.Is(err, errFull) {
		return s.submit(ctx, kindDelete, "Deleting "+shortName(p.path), "trash", removal{
			Drive: drive.ID, Base: drive.ProviderGeneratedID, Path: p.path.UCloud(), Dev: left.Dev, Ino: left.Ino,
		})
	}
	return s.refuse(ctx, err, changing)
}

// errFull tells that a folder is not empty.
var errFull = errors.New("folder is not empty")

// deletePlace removes an entry. A folder that is not empty is given back with errFull. If a file has become a folder since it was looked at, or the other way round, the kernel
// refuses.
func deletePlace(p place) (drives.Node, error) {
	dir, name, closeAll, err := p.openParent()
	if err != nil {
		return drives.Node{}, err
	}
	defer closeAll()
	node, err := dir.Node(name)
	if err != nil {
		return node, err
	}
	folder := node.Kind == drives.NodeDirectory
	err = dir.Remove(name, folder)
	if folder && (errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)) {
		return node, errFull
	}
	return node, err
}

// EmptyTrash removes what is in the trash of a drive, by a background task (contract 10 section 7.2). Anything that is
// not the trash of its drive is refused. What comes into the trash later stays. All items are tried; the error is as with
// [Service.CreateFolders].
func (s *Service) EmptyTrash(ctx context.Context, items []providerapi.FileInDrive) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.emptyTrash(ctx, &items[i]) })
}

func (s *Service) emptyTrash(ctx context.Context, item *providerapi.FileInDrive) error {
	st := s.state.Load()
	p, err := s.changeable(st, &item.ResolvedCollection, item.ID)
	if err != nil {
		return err
	}
	if p.path.IsRoot() {
		return errNotTrash
	}
	params, err := run(ctx, s.gate, p.ref.Base(), func() (removal, error) { return lookAtTrash(st, p) }, nil)
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	params.Drive, params.Base = item.ResolvedCollection.ID, item.ResolvedCollection.ProviderGeneratedID
	return s.submit(ctx, kindEmptyTrash, "Emptying trash", "trash", params)
}

var errNotTrash = failure.New(failure.Invalid, "This is not the trash of the drive")

// lookAtTrash makes sure that p is the trash and notes when it was looked at, by the clock of the file system.
func lookAtTrash(st *state, p place) (removal, error) {
	root, err := p.ref.Open()
	if err != nil {
		return removal{}, err
	}
	defer root.Close()
	local, err := root.At(p.path)
	if err != nil {
		return removal{}, err
	}
	dir, name, err := local.OpenParent()
	if err != nil {
		return removal{}, err
	}
	defer dir.Close()
	node, err := dir.Node(name)
	if err != nil {
		return removal{}, err
	}
	trash, err := openTrash(root, p.path, st.Unmanaged, false)
	if errors.Is(err, unix.ENOENT) {
		return removal{}, errNotTrash
	}
	if err != nil {
		return removal{}, err
	}
	defer trash.Close()
	self, err := trash.Self()
	if err != nil {
		return removal{}, err
	}
	if !node.Same(self) {
		return removal{}, errNotTrash
	}
	until, err := trash.Touch()
	return removal{Path: p.path.UCloud(), Dev: node.Dev, Ino: node.Ino, Until: until.Nano()}, err
}
