package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// Delete removes files and empty folders for good (contract 10 section 7.3). A link is removed itself, never its target.
// The items name their drive by id only. All items are tried; the error is as with [Service.CreateFolders].
func (s *Service) Delete(ctx context.Context, items []providerapi.DeleteFile) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return eachItem(len(items), func(i int) error { return s.deleteItem(ctx, &items[i]) })
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
	_, err = run(ctx, s.gate, p.ref.Base(), func() (struct{}, error) { return struct{}{}, deletePlace(p) }, nil)
	return s.refuse(ctx, err, changing)
}

// deletePlace removes an entry. If a file has become a folder since it was looked at, or the other way round, the kernel
// refuses.
func deletePlace(p place) error {
	dir, name, closeAll, err := p.openParent()
	if err != nil {
		return err
	}
	defer closeAll()
	node, err := dir.Node(name)
	if err != nil {
		return err
	}
	folder := node.Kind == drives.NodeDirectory
	err = dir.Remove(name, folder)
	if folder && (errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)) {
		return failure.Wrap(err, failure.Conflict, "The folder is not empty")
	}
	return err
}
