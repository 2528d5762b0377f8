package files

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// dirMode is the mode of new folders before the umask (contract 10 section 9).
const dirMode = 0o770

// CreateFolders makes folders, with missing parents. All items are tried. The error is that of the first item that
// failed, and says how many did if there are several items (contract 10 section 1.3).
func (s *Service) CreateFolders(ctx context.Context, items []providerapi.CreateFolder) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.createFolder(ctx, &items[i]) })
}

func (s *Service) createFolder(ctx context.Context, item *providerapi.CreateFolder) error {
	st := s.state.Load()
	ref, err := s.drive(st, &item.ResolvedCollection)
	if err != nil {
		return err
	}
	if err := ref.RequireEdit(); err != nil {
		return err
	}
	p, err := ref.Path(item.ID)
	if err != nil {
		return err
	}
	policy, err := checkPolicy(item.ConflictPolicy)
	if err != nil {
		return err
	}
	if err := s.writable(ctx, &item.ResolvedCollection); err != nil {
		return err
	}
	_, err = run(ctx, s.gate, ref.Base(), func() (struct{}, error) {
		return struct{}{}, makeFolder(ref, p, policy)
	}, nil)
	return s.refuse(ctx, err, changing)
}

// checkPolicy refuses unknown conflict policies. An absent one is the one that changes nothing that exists.
func checkPolicy(p providerapi.ConflictPolicy) (providerapi.ConflictPolicy, error) {
	switch p {
	case "":
		return providerapi.ConflictReject, nil
	case providerapi.ConflictRename, providerapi.ConflictReject, providerapi.ConflictReplace, providerapi.ConflictMergeRename:
		return p, nil
	}
	return "", failure.New(failure.Invalid, "The conflict policy is unknown")
}

func makeFolder(ref drives.Ref, p drives.Path, policy providerapi.ConflictPolicy) error {
	root, err := ref.Open()
	if err != nil {
		return err
	}
	defer root.Close()
	if p.IsRoot() {
		switch policy {
		case providerapi.ConflictReplace, providerapi.ConflictMergeRename:
			return nil
		case providerapi.ConflictRename:
			return failure.New(failure.Invalid, "A drive cannot be made here")
		}
		return exists(p)
	}
	parent, err := makeParents(root, p.Parent())
	if err != nil {
		return err
	}
	defer parent.Close()

	for n := 0; n <= drives.MaxNumbered; n++ {
		name := drives.Numbered(p.Name(), n)
		// The kernel decides whether the name is free: no other request can take it in between.
		err := parent.Mkdir(name, dirMode)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		switch policy {
		case providerapi.ConflictRename:
			continue
		case providerapi.ConflictReject:
			return exists(p)
		}
		info, err := parent.Stat(name)
		if err != nil {
			return err
		}
		if info.Kind != drives.Directory {
			return exists(p)
		}
		return nil
	}
	return errNoFreeName
}

func exists(p drives.Path) error {
	return failure.New(failure.Conflict, "A file or folder named %s already exists", drives.Escape(p.Name()))
}

// makeParents opens a directory, making what is missing of it. A directory that somebody else makes at the same time is
// as good as one of our own.
func makeParents(root *drives.Root, p drives.Path) (*drives.Dir, error) {
	local, err := root.At(p)
	if err != nil {
		return nil, err
	}
	dir, err := local.OpenPathDir()
	if !errors.Is(err, unix.ENOENT) || p.IsRoot() {
		return dir, err
	}
	parent, err := makeParents(root, p.Parent())
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	switch err := parent.Mkdir(p.Name(), dirMode); {
	case errors.Is(err, unix.EEXIST):
		// Made meanwhile, or a dangling link, which stays an error.
		return local.OpenPathDir()
	case err != nil:
		return nil, err
	}
	return parent.OpenChild(p.Name())
}
