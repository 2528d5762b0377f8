package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// copyParams is what a task that copies is about. The folder that takes the copy has been made already, so that a task
// that is taken up again goes on in it.
type copyParams struct {
	From, To copyPlace
	Policy   providerapi.ConflictPolicy `json:"policy"`
	Merge    bool                       `json:"merge"` // into a folder that was there before
	Name     string                     `json:"name"`  // of the target, escaped; the one that was free
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
	return eachItem(len(items), func(i int) error { return s.copy(ctx, &items[i]) })
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
	})
	if errors.Is(err, errSameFile) {
		return nil
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	params.From.Drive, params.From.Base = ref.ID(), item.ResolvedOldCollection.ProviderGeneratedID
	params.To.Drive, params.To.Base = to.ref.ID(), item.ResolvedNewCollection.ProviderGeneratedID
	title := fmt.Sprintf("Copying %s to %s", shortName(path), to.path.Parent().UCloud())
	return s.submit(ctx, kindCopy, shorten(title, 180), "copy", params)
}

// errSameFile tells that a file is to be replaced by itself.
var errSameFile = errors.New("source and target are the same file")

// prepareCopy makes sure that the copy can begin. A folder that is to be copied gets its target here.
func prepareCopy(from, to place, policy providerapi.ConflictPolicy) (copyParams, error) {
	params := copyParams{Policy: policy, From: copyPlace{Path: from.path.UCloud()}, To: copyPlace{Path: to.path.UCloud()}}
	source, name, closeSource, err := from.openParent()
	if err != nil {
		return params, err
	}
	defer closeSource()
	target, newName, closeTarget, err := to.openParent()
	if _, isRoot := errors.AsType[*drives.RootError](err); !isRoot && errors.Is(err, unix.ENOENT) {
		return params, failure.Wrap(err, failure.NotFound, "The target folder does not exist")
	}
	if err != nil {
		return params, err
	}
	defer closeTarget()
	node, err := source.Node(name)
	if err != nil {
		return params, err
	}
	if node.Kind == drives.NodeSpecial {
		return params, drives.ErrNotRegular
	}
	if err := notIntoItself(node, target); err != nil {
		return params, err
	}
	params.From.Dev, params.From.Ino, params.Name = node.Dev, node.Ino, drives.Escape(newName)
	there, err := target.Node(newName)
	exist := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return params, err
	}
	folder := node.Kind == drives.NodeDirectory
	merges := policy == providerapi.ConflictReplace || policy == providerapi.ConflictMergeRename
	switch {
	case exist && policy == providerapi.ConflictReject:
		return params, exists(to.path)
	case exist && merges && folder && there.Same(node):
		return params, failure.New(failure.Invalid, "A folder cannot be put into itself")
	case exist && policy == providerapi.ConflictReplace && there.Same(node):
		return params, errSameFile
	case exist && policy == providerapi.ConflictReplace && folder != (there.Kind == drives.NodeDirectory):
		return params, exists(to.path)
	case exist && merges && folder && there.Kind == drives.NodeDirectory:
		params.To.Dev, params.To.Ino, params.Merge = there.Dev, there.Ino, true
		return params, nil
	case !folder:
		return params, nil // a file gets its name when it is complete
	}
	for n := 0; n <= maxCandidates; n++ {
		free := drives.Numbered(newName, n)
		err := target.Mkdir(free, 0o700)
		if errors.Is(err, unix.EEXIST) && policy == providerapi.ConflictReject {
			return params, exists(to.path)
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return params, err
		}
		made, err := target.Node(free)
		params.Name, params.To.Dev, params.To.Ino = drives.Escape(free), made.Dev, made.Ino
		return params, err
	}
	return params, failure.New(failure.Invalid, "There are too many files with this name")
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

// runCopy is the task.
func (s *Service) runCopy(ctx context.Context, j job) error {
	var params copyParams
	if err := json.Unmarshal(j.Params(), &params); err != nil {
		return fmt.Errorf("decode task: %w", err)
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
	node, err := source.Node(name)
	if err == nil && !node.Same(drives.Node{Dev: params.From.Dev, Ino: params.From.Ino}) {
		err = unix.ENOENT // something else has the name now
	}
	if err != nil {
		return s.refuse(ctx, err, changing)
	}
	c := newCopier(j, params)
	if node.Kind == drives.NodeDirectory {
		err = c.top(ctx, source, name, node, target, newName)
	} else {
		err = c.entry(ctx, source, name, node, target, newName)
	}
	if err != nil {
		return err
	}
	return s.conclude(ctx, c.tally)
}
