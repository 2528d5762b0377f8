package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
)

// copyParams is what a task that copies or moves is about. The folder that takes the copy has been made already, so that
// a task that is taken up again goes on in it.
type copyParams struct {
	From, To copyPlace
	Policy   providerapi.ConflictPolicy `json:"policy"`
	Merge    bool                       `json:"merge"`           // into a folder that was there before
	Name     string                     `json:"name"`            // of the target, escaped; the one that was free
	Move     bool                       `json:"move,omitempty"`  // the source is removed in the end
	Trash    bool                       `json:"trash,omitempty"` // the target is in the trash, which notes origins
}

// copyPlace is a path and what was there when the task was made; Ino is 0 for a file that is still to be made.
type copyPlace struct {
	Drive    ident.DriveID `json:"drive"`
	Base     string        `json:"base"` // providerGeneratedId
	Path     string        `json:"path"`
	Dev, Ino uint64
}

// Copy copies files and folders, each by a background task (contract 10 section 6.3). What is wrong with a request is
// said at once, and a folder gets its name before Copy returns. All items are tried; the error is as with
// [Service.CreateFolders].
func (s *Service) Copy(ctx context.Context, items []providerapi.MoveFile) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.copy(ctx, &items[i]) })
}

func (s *Service) copy(ctx context.Context, item *providerapi.MoveFile) error {
	st := s.state.Load()
	if !item.ResolvedOldCollection.May(providerapi.PermissionRead) {
		return failure.New(failure.Forbidden, "You may not read this drive")
	}
	ref, err := s.drive(st, &item.ResolvedOldCollection)
	if err != nil {
		return err
	}
	path, err := ref.Path(item.OldID)
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
	if path.IsRoot() || to.path.IsRoot() {
		return failure.New(failure.Invalid, "A drive cannot be copied or replaced")
	}
	if err := s.writable(ctx, &item.ResolvedNewCollection); err != nil {
		return err
	}
	if s.o.Tasks == nil {
		return errNoTasks
	}
	from := place{ref: ref, path: path}
	params, err := runBoth(ctx, s.gate, from.ref.Base(), to.ref.Base(), func() (copyParams, error) {
		return prepareCopy(from, to, policy)
	}, func(left copyParams) { left.undo(to) })
	if errors.Is(err, errSameFile) {
		return nil
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	params.From.Drive, params.From.Base = ref.ID(), item.ResolvedOldCollection.ProviderGeneratedID
	params.To.Drive, params.To.Base = to.ref.ID(), item.ResolvedNewCollection.ProviderGeneratedID
	title := fmt.Sprintf("Copying %s to %s", shortName(path), to.path.Parent().UCloud())
	return s.submitCopy(ctx, kindCopy, title, "copy", params, to)
}

// submitCopy stores a task that copies or moves. If that is not possible, the folder that was made for it is removed.
func (s *Service) submitCopy(ctx context.Context, kind, title, icon string, params copyParams, to place) error {
	err := s.submit(ctx, kind, shorten(title, 180), icon, params)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = run(ctx, s.gate, to.ref.Base(), func() (struct{}, error) { // the first error counts
		params.undo(to)
		return struct{}{}, nil
	}, nil)
	return err
}

// undo removes the folder that was made for a task, which is still empty.
func (params *copyParams) undo(to place) {
	if params.Merge || params.To.Ino == 0 {
		return
	}
	dir, _, closeAll, err := to.openParent()
	if err != nil {
		return
	}
	defer closeAll()
	if name, ok := drives.Unescape(params.Name); ok {
		_ = dir.Remove(name, true) // what was made since stays
	}
}

// errSameFile tells that a file is to be replaced by itself.
var errSameFile = errors.New("source and target are the same file")

// prepareCopy makes sure that the copy can begin. A folder that is to be copied gets its target here.
func prepareCopy(from, to place, policy providerapi.ConflictPolicy) (copyParams, error) {
	source, name, closeSource, err := from.openParent()
	if err != nil {
		return copyParams{}, err
	}
	defer closeSource()
	target, newName, closeTarget, err := to.openParent()
	if _, isRoot := errors.AsType[*drives.RootError](err); !isRoot && errors.Is(err, unix.ENOENT) {
		return copyParams{}, failure.Wrap(err, failure.NotFound, "The target folder does not exist")
	}
	if err != nil {
		return copyParams{}, err
	}
	defer closeTarget()
	node, err := source.Node(name)
	if err != nil {
		return copyParams{}, err
	}
	params, err := prepareIn(node, target, newName, policy, false)
	params.From.Path, params.To.Path = from.path.UCloud(), to.path.UCloud()
	return params, err
}

// prepareIn is the part of prepareCopy that is about the target.
func prepareIn(node drives.Node, target *drives.Dir, newName string, policy providerapi.ConflictPolicy, move bool) (copyParams, error) {
	params := copyParams{Policy: policy, Move: move, Name: drives.Escape(newName)}
	params.From.Dev, params.From.Ino = node.Dev, node.Ino
	if node.Kind == drives.NodeSpecial {
		return params, drives.ErrNotRegular
	}
	if err := notIntoItself(node, target); err != nil {
		return params, err
	}
	there, err := target.Node(newName)
	exist := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return params, err
	}
	folder := node.Kind == drives.NodeDirectory
	replace := policy == providerapi.ConflictReplace
	merges := exist && folder && there.Kind == drives.NodeDirectory &&
		(policy == providerapi.ConflictMergeRename || replace && !move)
	path := target.Path().Join(newName)
	switch {
	case exist && policy == providerapi.ConflictReject:
		return params, exists(path)
	case merges && there.Same(node):
		return params, failure.New(failure.Invalid, "A folder cannot be put into itself")
	case merges:
		params.To.Dev, params.To.Ino, params.Merge = there.Dev, there.Ino, true
		return params, nil
	case exist && replace && there.Same(node):
		return params, errSameFile
	case exist && replace && folder != (there.Kind == drives.NodeDirectory):
		return params, exists(path)
	case exist && replace && folder: // a move
		switch err := target.Remove(newName, true); {
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
			return params, failure.Wrap(err, failure.Conflict, "The folder %s is not empty", drives.Escape(newName))
		case err != nil && !errors.Is(err, unix.ENOENT):
			return params, err
		}
	case !folder:
		return params, nil // a file gets its name when it is complete
	}
	for n := 0; n <= drives.MaxNumbered; n++ {
		free := drives.Numbered(newName, n)
		err := target.Mkdir(free, drives.Building)
		if errors.Is(err, unix.EEXIST) && (policy == providerapi.ConflictReject || replace) {
			return params, exists(path)
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return params, err
		}
		made, err := target.Node(free)
		params.Name, params.To.Dev, params.To.Ino = drives.Escape(free), made.Dev, made.Ino
		if move && replace {
			params.Policy = providerapi.ConflictReject // what others put there is not to be replaced
		}
		return params, err
	}
	return params, errNoFreeName
}

// openCopyParent opens the parent of a place of a stored task.
func (s *Service) openCopyParent(p copyPlace) (dir *drives.Dir, name string, closeAll func(), err error) {
	// The permissions were there when the task was made.
	ref, err := s.state.Load().set.Drive(&providerapi.Drive{
		ID: p.Drive, ProviderGeneratedID: p.Base,
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{Provider: s.o.Provider}},
	})
	if err != nil {
		return nil, "", nil, err
	}
	path, err := ref.Path(p.Path)
	if err != nil {
		return nil, "", nil, err
	}
	return place{ref: ref, path: path}.openParent()
}

// runCopy is the task, of copies and of moves.
func (s *Service) runCopy(ctx context.Context, j job) error {
	var params copyParams
	if err := json.Unmarshal(j.Params(), &params); err != nil {
		return fmt.Errorf("decode task: %w", err)
	}
	if params.Move {
		s.moves.runs(params)
		defer s.moves.end(params)
	}
	newName, ok := drives.Unescape(params.Name)
	if !ok {
		return fmt.Errorf("decode task: name %q", params.Name)
	}
	source, name, closeSource, err := s.openCopyParent(params.From)
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	defer closeSource()
	target, _, closeTarget, err := s.openCopyParent(params.To)
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	defer closeTarget()
	c := newCopier(j, params)
	node, err := source.Node(name)
	if err == nil && !node.Same(drives.Node{Dev: params.From.Dev, Ino: params.From.Ino}) {
		err = unix.ENOENT // something else has the name now
	}
	if _, errThere := target.Node(newName); errors.Is(err, unix.ENOENT) && errThere == nil && params.Move && c.resumed {
		j.Summary("Moved") // the attempt before has come to the end, and could not say so
		return nil
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	counting, stop := context.WithCancel(ctx)
	var count sync.WaitGroup
	if node.Kind == drives.NodeDirectory {
		if !params.Move || node.Dev != c.into.Dev { // what is renamed cannot be counted beside that
			count.Go(func() { c.discover(counting, source, name, node) })
		}
		err = s.copyFolder(ctx, c, source, name, node, target, newName)
	} else {
		newName, err = c.single(ctx, source, name, node, target, newName)
	}
	stop()
	count.Wait()
	note := ""
	if err == nil && params.Move && c.failedSoFar() == 0 {
		m := newMover(c.tally)
		if node.Kind == drives.NodeDirectory {
			err = m.tree(ctx, source, name, target, newName, node, c.into)
		} else {
			err = m.single(source, name, node, target, newName)
		}
	} else if params.Move {
		note = "The originals were kept"
	}
	if params.Trash && c.failedSoFar() == 0 && err == nil {
		s.noteOrigin(target, newName, params.From.Path)
	}
	if errors.Is(err, tasks.ErrCancelled) {
		c.cancelled()
	}
	if err != nil {
		return err
	}
	return s.conclude(ctx, c.tally, note)
}

// copyFolder copies a folder and has it written to the disk.
func (s *Service) copyFolder(
	ctx context.Context, c *copier, source *drives.Dir, name string, node drives.Node, target *drives.Dir, newName string,
) error {
	all, _, err := target.OpenSub(newName)
	if err != nil {
		c.fail(drives.Escape(newName), err)
		return nil
	}
	if err := c.tree(ctx, source, name, target, newName, node); err != nil {
		all.Close()
		return err
	}
	return c.settle(ctx, all, drives.Escape(name))
}
