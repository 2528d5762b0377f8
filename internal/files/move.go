package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// place is a checked path with its drive.
type place struct {
	ref  drives.Ref
	path drives.Path
}

// changeable checks a drive of a request in which something is to be changed, and a path in it.
func (s *Service) changeable(st *state, d *providerapi.Drive, id string) (place, error) {
	ref, err := s.drive(st, d)
	if err != nil {
		return place{}, err
	}
	if err := ref.RequireEdit(); err != nil {
		return place{}, err
	}
	p, err := ref.Path(id)
	return place{ref: ref, path: p}, err
}

// Move renames files and folders, within a drive or from one to another on the same file system (contract 10 section
// 6.2). All items are tried; the error is as with [Service.CreateFolders].
func (s *Service) Move(ctx context.Context, items []providerapi.MoveFile) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return eachItem(len(items), func(i int) error { return s.move(ctx, &items[i]) })
}

func (s *Service) move(ctx context.Context, item *providerapi.MoveFile) error {
	st := s.state.Load()
	from, err := s.changeable(st, &item.ResolvedOldCollection, item.OldID)
	if err != nil {
		return err
	}
	to, err := s.changeable(st, &item.ResolvedNewCollection, item.NewID)
	if err != nil {
		return err
	}
	policy, err := checkPolicy(item.ConflictPolicy)
	if err != nil {
		return err
	}
	if from.path.IsRoot() || to.path.IsRoot() {
		return failure.New(failure.Invalid, "A drive cannot be moved or replaced")
	}
	if !sameWallet(&item.ResolvedOldCollection, &item.ResolvedNewCollection) {
		if err := s.writable(ctx, &item.ResolvedNewCollection); err != nil {
			return err
		}
	}
	_, err = runBoth(ctx, s.gate, from.ref.Base(), to.ref.Base(), func() (struct{}, error) {
		return struct{}{}, s.movePlace(from, to, policy)
	})
	return s.refuse(ctx, err, changing)
}

// sameWallet tells whether two drives take from the same allocation: a move between them adds nothing.
func sameWallet(a, b *providerapi.Drive) bool {
	return a.Owner.Workspace() == b.Owner.Workspace() && a.Specification.Product.Category == b.Specification.Product.Category
}

// movePlace moves an entry. Both parents are opened first, as the policy for links says; from then on single names
// in open directories are all that is used, so that nobody can turn the move elsewhere (see the package drives).
func (s *Service) movePlace(from, to place, policy providerapi.ConflictPolicy) error {
	source, name, closeSource, err := from.openParent()
	if err != nil {
		return err
	}
	defer closeSource()
	target, newName, closeTarget, err := to.openParent()
	if _, isRoot := errors.AsType[*drives.RootError](err); !isRoot && errors.Is(err, unix.ENOENT) {
		return failure.Wrap(err, failure.NotFound, "The target folder does not exist")
	}
	if err != nil {
		return err
	}
	defer closeTarget()

	key := recentKey{from.path.UCloud(), to.path.UCloud()}
	node, err := source.Node(name)
	if errors.Is(err, unix.ENOENT) && s.movedBefore(key, target) {
		return nil
	}
	if err != nil {
		return err
	}
	if same, err := sameFolder(source, target); err != nil || (same && name == newName) {
		return err
	}
	if err := notIntoItself(node, target); err != nil {
		return err
	}
	final, err := renameBy(policy, node, source, name, target, newName)
	if errors.Is(err, unix.EXDEV) {
		return failure.Wrap(err, failure.Invalid,
			"This cannot be moved to another storage system. Copy it there, and delete it here afterwards.")
	}
	if err != nil {
		return err
	}
	s.recent.add(key, node, final)
	return nil
}

// openParent opens the drive and the folder of the place.
func (p place) openParent() (dir *drives.Dir, name string, closeAll func(), err error) {
	root, err := p.ref.Open()
	if err != nil {
		return nil, "", nil, err
	}
	local, err := root.At(p.path)
	if err == nil {
		if dir, name, err = local.OpenParent(); err == nil {
			return dir, name, func() { dir.Close(); root.Close() }, nil
		}
	}
	root.Close()
	return nil, "", nil, err
}

// movedBefore tells whether the same move has been done a moment ago, and what it moved is still there.
func (s *Service) movedBefore(key recentKey, target *drives.Dir) bool {
	before, ok := s.recent.get(key)
	if !ok {
		return false
	}
	now, err := target.Node(before.name)
	return err == nil && now.Same(before.node)
}

func sameFolder(a, b *drives.Dir) (bool, error) {
	x, err := a.Self()
	if err != nil {
		return false, err
	}
	y, err := b.Self()
	return x.Same(y), err
}

// notIntoItself refuses to put a folder below itself. It asks for identities rather than comparing paths, which links
// and nested drives make differ.
func notIntoItself(node drives.Node, target *drives.Dir) error {
	if node.Kind != drives.NodeDirectory {
		return nil
	}
	inside, err := target.Inside(node)
	if err != nil {
		return err
	}
	if inside {
		return failure.New(failure.Invalid, "A folder cannot be put into itself")
	}
	return nil
}

// renameBy renames as the conflict policy says, and gives the name that the entry has got.
func renameBy(
	policy providerapi.ConflictPolicy, node drives.Node, source *drives.Dir, name string, target *drives.Dir, newName string,
) (final string, err error) {
	if policy == providerapi.ConflictReplace {
		return newName, replace(node, source, name, target, newName)
	}
	final = newName
	for n := 1; ; n++ {
		err := drives.RenameNew(source, name, target, final)
		switch {
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY):
			return final, err
		case policy == providerapi.ConflictReject:
			return "", exists(target.Path().Join(newName))
		case policy == providerapi.ConflictMergeRename && n == 1 && node.Kind == drives.NodeDirectory:
			if there, err := target.Node(newName); err == nil && there.Kind == drives.NodeDirectory {
				return "", failure.New(failure.Conflict,
					"A folder named %s already exists, and folders cannot be merged by moving", drives.Escape(newName))
			}
		case n > maxCandidates:
			return "", failure.New(failure.Invalid, "There are too many files with this name")
		}
		final = candidate(newName, n)
	}
}

// replace is the policy REPLACE: a file takes the place of a file, and a folder that of an empty folder.
func replace(node drives.Node, source *drives.Dir, name string, target *drives.Dir, newName string) error {
	there, err := target.Node(newName)
	shown := drives.Escape(newName)
	switch {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return err
	case there.Same(node) && node.Kind != drives.NodeDirectory && node.Links > 1:
		// rename(2) does nothing for two names of one inode and reports success. Removing the old name instead could
		// remove the only one, where the file system takes both for the same name.
		return failure.New(failure.Conflict, "%s is the same file already", shown)
	case there.Kind == drives.NodeDirectory && node.Kind != drives.NodeDirectory:
		return failure.New(failure.Conflict, "A folder named %s already exists", shown)
	case there.Kind != drives.NodeDirectory && node.Kind == drives.NodeDirectory:
		return failure.New(failure.Conflict, "A file named %s already exists", shown)
	}
	switch err := drives.Rename(source, name, target, newName); {
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return failure.Wrap(err, failure.Conflict, "The folder %s is not empty", shown)
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR): // changed since it was looked at
		return exists(target.Path().Join(newName))
	default:
		return err
	}
}
