package files

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

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

// Move moves files and folders, within a drive or from one to another (contract 10 section 6.2). Most moves are done when
// it returns. What lies on another file system, and folders that are to be merged, are moved by background tasks. All
// items are tried; the error is as with [Service.CreateFolders].
func (s *Service) Move(ctx context.Context, items []providerapi.MoveFile) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.move(ctx, &items[i]) })
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
	params, err := runBoth(ctx, s.gate, from.ref.Base(), to.ref.Base(), func() (*copyParams, error) {
		return s.movePlace(from, to, policy)
	}, func(left *copyParams) { s.drop(left, to) })
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	if params == nil {
		return nil
	}
	params.From.Base, params.To.Base = item.ResolvedOldCollection.ProviderGeneratedID, item.ResolvedNewCollection.ProviderGeneratedID
	title := fmt.Sprintf("Moving %s to %s", shortName(from.path), to.path.Parent().UCloud())
	return s.submitMove(ctx, title, "copy", *params, from, to)
}

// submitMove stores a task that moves. While it is under way the same move is not begun again.
func (s *Service) submitMove(ctx context.Context, title, icon string, params copyParams, from, to place) error {
	params.From.Drive, params.To.Drive = from.ref.ID(), to.ref.ID()
	err := s.submitCopy(ctx, kindMove, title, icon, params, to)
	if err != nil {
		s.moves.end(params)
	}
	return err
}

// drop is for a move that was prepared when nobody waited for it any more.
func (s *Service) drop(params *copyParams, to place) {
	if params != nil {
		s.moves.end(*params)
		params.undo(to)
	}
}

// sameWallet tells whether two drives take from the same allocation: a move between them adds nothing.
func sameWallet(a, b *providerapi.Drive) bool {
	return a.Owner.Workspace() == b.Owner.Workspace() && a.Specification.Product.Category == b.Specification.Product.Category
}

// movePlace moves an entry. Both parents are opened first, as the policy for links says; from then on single names
// in open directories are all that is used, so that nobody can turn the move elsewhere (see the package drives).
// If it takes a task, it gives what that is about.
func (s *Service) movePlace(from, to place, policy providerapi.ConflictPolicy) (*copyParams, error) {
	source, name, closeSource, err := from.openParent()
	if err != nil {
		return nil, err
	}
	defer closeSource()
	target, newName, closeTarget, err := to.openParent()
	if _, isRoot := errors.AsType[*drives.RootError](err); !isRoot && errors.Is(err, unix.ENOENT) {
		return nil, failure.Wrap(err, failure.NotFound, "The target folder does not exist")
	}
	if err != nil {
		return nil, err
	}
	defer closeTarget()

	key := recentKey{from.path.UCloud(), to.path.UCloud()}
	node, err := source.Node(name)
	if errors.Is(err, unix.ENOENT) && s.movedBefore(key, target) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if same, err := sameFolder(source, target); err != nil || (same && name == newName) {
		return nil, err
	}
	if err := notIntoItself(node, target); err != nil {
		return nil, err
	}
	final, err := renameBy(policy, node, source, name, target, newName)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, errMerge) {
		return s.prepareMove(from, to, policy, node, source, target, newName)
	}
	if err != nil {
		return nil, err
	}
	s.recent.add(key, node, final)
	return nil, nil
}

// prepareMove is for moves that take a task. What would make it fail in the end is found out before it begins.
func (s *Service) prepareMove(
	from, to place, policy providerapi.ConflictPolicy, node drives.Node, source, target *drives.Dir, newName string,
) (*copyParams, error) {
	if s.o.Tasks == nil {
		return nil, errNoTasks
	}
	params := copyParams{From: copyPlace{Path: from.path.UCloud(), Dev: node.Dev, Ino: node.Ino}, To: copyPlace{Path: to.path.UCloud()}}
	if !s.moves.begin(params, s.now()) {
		return nil, nil // the call was repeated
	}
	var made copyParams
	err := source.Changeable()
	if err == nil {
		made, err = prepareIn(node, target, newName, policy, true)
	}
	if err != nil {
		s.moves.end(params)
		if errors.Is(err, errSameFile) { // of which both names are on different mounts
			return nil, failure.New(failure.Conflict, "%s is the same file already", drives.Escape(newName))
		}
		return nil, err
	}
	made.From.Path, made.To.Path = params.From.Path, params.To.Path
	return &made, nil
}

// moves knows the moves that are tasks, from their submission to their end. Core delivers calls more than once. A task that
// has not begun is believed in for a short time only: its user may have cancelled it while it waited for its turn.
type moves struct {
	mu    sync.Mutex // guards the field below
	since map[movesKey]time.Time
}

type movesKey struct {
	from, to string
	dev, ino uint64
}

// moveBelief is longer than Core repeats a call and people click twice.
const moveBelief = 10 * time.Second

func keyOf(p copyParams) movesKey { return movesKey{p.From.Path, p.To.Path, p.From.Dev, p.From.Ino} }

// begin notes a move, and tells whether it was not there already.
func (m *moves) begin(p copyParams, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, at := range m.since {
		if !at.IsZero() && now.Sub(at) > moveBelief {
			delete(m.since, key)
		}
	}
	if _, there := m.since[keyOf(p)]; there {
		return false
	}
	if m.since == nil {
		m.since = map[movesKey]time.Time{}
	}
	m.since[keyOf(p)] = now
	return true
}

// runs notes that the task is under way.
func (m *moves) runs(p copyParams) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since == nil {
		m.since = map[movesKey]time.Time{}
	}
	m.since[keyOf(p)] = time.Time{}
}

func (m *moves) end(p copyParams) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.since, keyOf(p))
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
	for n := 0; n <= drives.MaxNumbered; n++ {
		final = drives.Numbered(newName, n)
		err := drives.RenameNew(source, name, target, final)
		switch {
		case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY):
			return final, err
		case policy == providerapi.ConflictReject:
			return "", exists(target.Path().Join(newName))
		case policy == providerapi.ConflictMergeRename && n == 0 && node.Kind == drives.NodeDirectory:
			there, err := target.Node(newName)
			if err == nil && there.Kind == drives.NodeDirectory && !there.Same(node) {
				return "", errMerge
			}
		}
	}
	return "", errNoFreeName
}

// errMerge tells that two folders are to be merged.
var errMerge = errors.New("both are folders")

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
