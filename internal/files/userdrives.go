package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// DrivePlace is where drives are that users make in a workspace: in a folder of a drive that the provider has made.
type DrivePlace struct {
	Why    string            // not empty: there is no such place, for this reason
	Parent providerapi.Drive // without permissions
	Folder string            // its name in Parent
}

// KnowDrive notes a drive that Core has sent for another reason than a file call, so that calls that name it by id
// alone find it. A drive that is not one of this provider's is left out.
func (s *Service) KnowDrive(d *providerapi.Drive) {
	_, _ = s.drive(s.state.Load(), d)
}

// CreateDrives makes drives for their users, where the configuration allows it, and gives the provider's ids of them
// (contract 12 section 2). A drive is a folder named by its title and by Core's id: the id makes the folder the drive's
// own for ever, so that no two drives can have the same provider generated id, which Core does not survive (contract 00
// section 9.9), and a repeated call finds the folder that the first one has made. When one of several drives cannot be
// made, none is.
func (s *Service) CreateDrives(ctx context.Context, items []providerapi.Drive) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	seen := map[ident.DriveID]bool{}
	for i := range items {
		if !isDecimal(items[i].ID) || seen[items[i].ID] {
			return nil, failure.New(failure.Invalid, "The request names no drive, or one of them twice")
		}
		seen[items[i].ID] = true
	}
	var ids []string
	var undo []func()
	for i := range items {
		id, remove, err := s.createDrive(ctx, &items[i])
		if err != nil {
			for _, remove := range undo {
				remove()
			}
			return nil, err
		}
		ids = append(ids, id)
		undo = append(undo, remove)
	}
	return ids, nil
}

func isDecimal(id ident.DriveID) bool {
	return id != "" && len(id) < 20 && strings.Trim(string(id), "0123456789") == ""
}

// place asks where the drives of the workspace of d are. An answer without a place is an error.
func (s *Service) place(ctx context.Context, d *providerapi.Drive) (DrivePlace, error) {
	if d.Specification.Product.Provider != s.o.Provider {
		return DrivePlace{}, failure.New(failure.Invalid, "This drive belongs to another provider")
	}
	if s.o.DrivePlace == nil {
		return DrivePlace{}, failure.New(failure.Invalid, "Drives are made by the provider alone")
	}
	p, err := s.o.DrivePlace(ctx, d.Owner.Workspace(), d.Specification.Product.Category)
	switch {
	case err != nil:
		return p, err
	case p.Why != "":
		return p, failure.New(failure.Invalid, "%s", p.Why)
	case p.Parent.Owner.Workspace() != d.Owner.Workspace() || drives.CheckName(p.Folder) != nil:
		return p, failure.New(failure.Invalid, "Drives cannot be made in this workspace")
	}
	return p, nil
}

// prefix is what the provider generated ids of the drives in the place begin with; the name of the folder follows.
func (p *DrivePlace) prefix(provider string) (string, error) {
	base, err := drives.ParseID(provider, p.Parent.ProviderGeneratedID)
	if err != nil {
		return "", err
	}
	reference := p.Parent.Owner.Workspace().Reference()
	if !utf8.ValidString(base) || strings.ContainsAny(base+reference, "\n") {
		return "", failure.New(failure.Invalid, "Drives cannot be made in a folder with this name")
	}
	return provider + "-" + reference + "\n" + strings.TrimSuffix(base, "/") + "/" + p.Folder + "/", nil
}

func (s *Service) createDrive(ctx context.Context, d *providerapi.Drive) (id string, remove func(), err error) {
	p, err := s.place(ctx, d)
	if err != nil {
		return "", nil, err
	}
	prefix, err := p.prefix(s.o.Provider)
	if err != nil {
		return "", nil, err
	}
	if err := s.writable(ctx, d); err != nil {
		return "", nil, err
	}
	ref, err := s.drive(s.state.Load(), &p.Parent)
	if err != nil {
		return "", nil, err
	}
	name := driveFolder(d.Specification.Title, d.ID)
	made, err := run(ctx, s.gate, ref.Base(), func() (madeFolder, error) { return makeDriveFolder(ref, p.Folder, name) }, madeFolder.undo)
	if err != nil {
		return "", nil, s.refuse(ctx, err, changing)
	}
	known := *d
	known.ProviderGeneratedID = prefix + made.name
	s.KnowDrive(&known)
	return known.ProviderGeneratedID, func() {
		_, _ = run(ctx, s.gate, ref.Base(), func() (struct{}, error) { made.undo(); return struct{}{}, nil }, nil)
	}, nil
}

// driveFolder is the name of the folder of a drive: the title without what has a meaning or cannot be seen, and the id.
func driveFolder(title string, id ident.DriveID) string {
	stem := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '/' || r == utf8.RuneError || !unicode.IsGraphic(r) {
			return '_'
		}
		return r
	}, title))
	if stem == "" {
		stem = "drive"
	}
	if stem[0] == '.' { // not hidden
		stem = "_" + stem[1:]
	}
	const number = len("(9999)") // see drives.Numbered
	for len(stem)+1+len(id)+number > drives.MaxName {
		_, size := utf8.DecodeLastRuneInString(stem)
		stem = stem[:len(stem)-size]
	}
	return stem + "-" + string(id)
}

// madeFolder is a folder that has been made, or was there from an earlier try.
type madeFolder struct {
	ref    drives.Ref
	folder string
	name   string
	fresh  bool
}

// undo removes the folder if it is new and still empty.
func (m madeFolder) undo() {
	if !m.fresh {
		return
	}
	_ = inFolder(m.ref, m.folder, false, func(dir *drives.Dir) error { return dir.Remove(m.name, true) })
}

// inFolder works in the folder of a drive that holds the users' drives. It is a real folder, never a link.
func inFolder(ref drives.Ref, folder string, create bool, work func(*drives.Dir) error) error {
	root, err := ref.Open()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a descriptor without content
	p, err := ref.Path("/" + string(ref.ID()))
	if err != nil {
		return err
	}
	local, err := root.At(p)
	if err != nil {
		return err
	}
	top, err := local.OpenPathDir()
	if err != nil {
		return err
	}
	defer top.Close()
	if create {
		if err := top.Mkdir(folder, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	dir, err := top.OpenChild(folder)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return failure.Wrap(err, failure.Invalid, "Drives cannot be made here: something else in this workspace is named %s", drives.Escape(folder))
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return work(dir)
}

// makeDriveFolder makes the folder of a drive. What is there already is taken if it belongs to this user and is a folder:
// the name contains the id of the drive, so that it comes from an earlier try. Otherwise the next free name is used
// (contract 10 section 8).
func makeDriveFolder(ref drives.Ref, folder, name string) (madeFolder, error) {
	m := madeFolder{ref: ref, folder: folder}
	err := inFolder(ref, folder, true, func(dir *drives.Dir) error {
		for n := range drives.MaxNumbered + 1 {
			m.name = name
			if n > 0 {
				m.name = drives.Numbered(name, n)
			}
			err := dir.Mkdir(m.name, dirMode)
			if m.fresh = err == nil; m.fresh || !errors.Is(err, unix.EEXIST) {
				return err
			}
			info, err := dir.Stat(m.name)
			if err == nil && info.Kind == drives.Directory && info.Link == drives.NoLink && int(info.UID) == os.Geteuid() {
				return nil
			}
		}
		return fmt.Errorf("all names for the drive are taken: %w", unix.EEXIST)
	})
	return m, err
}

// DeleteDrives moves the folders of drives that users have made into the trash of the drives that they are in, so that
// nothing is lost. It refuses all others: Core lets everybody with write access ask for it (contract 12 section 2). A
// folder that does not exist any more is fine. All items are tried; the error is as with [Service.CreateFolders].
func (s *Service) DeleteDrives(ctx context.Context, items []providerapi.Drive) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error { return s.deleteDrive(ctx, &items[i]) })
}

func (s *Service) deleteDrive(ctx context.Context, d *providerapi.Drive) error {
	p, name, err := s.userDrive(ctx, d)
	if err != nil {
		return err
	}
	if !d.May(providerapi.PermissionEdit) {
		return failure.New(failure.Forbidden, "You may not change anything in this drive")
	}
	p.Parent.Permissions = &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{providerapi.PermissionEdit}}
	err = s.trash(ctx, &providerapi.FileInDrive{
		ID: "/" + string(p.Parent.ID) + "/" + drives.Escape(p.Folder+"/"+name), ResolvedCollection: p.Parent,
	})
	if _, root := errors.AsType[*drives.RootError](err); errors.Is(err, unix.ENOENT) && !root {
		return nil // gone, and the drive that it was in is there
	}
	return err
}

// userDrive tells where the folder of a drive is that a user has made. Drives of the provider are refused.
func (s *Service) userDrive(ctx context.Context, d *providerapi.Drive) (p DrivePlace, name string, err error) {
	if p, err = s.place(ctx, d); err != nil {
		return p, "", err
	}
	prefix, err := p.prefix(s.o.Provider)
	if err != nil {
		return p, "", err
	}
	name, ok := strings.CutPrefix(d.ProviderGeneratedID, prefix)
	if !ok || drives.CheckName(name) != nil {
		return p, "", failure.New(failure.Invalid, "This drive was made by the provider. It cannot be renamed or deleted by users.")
	}
	return p, name, nil
}

// RenameDrives agrees to new titles of drives that users have made. Their folders keep their names: the ids by which Core
// knows the drives contain them, and cannot change. All items are tried; the error is as with [Service.CreateFolders].
func (s *Service) RenameDrives(ctx context.Context, items []providerapi.RenameDrive) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return failure.EachItem(len(items), func(i int) error {
		if strings.TrimSpace(items[i].NewTitle) == "" || strings.Contains(items[i].NewTitle, "\n") {
			return failure.New(failure.Invalid, "A drive needs a title of one line")
		}
		if s.o.FindDrive == nil {
			return failure.New(failure.NotFound, "This drive is not known here")
		}
		d, err := s.o.FindDrive(ctx, items[i].ID) // with its owner, which requests before did not need
		if err != nil {
			return err
		}
		if d.ID != items[i].ID {
			return failure.New(failure.NotFound, "This drive is not known here")
		}
		_, _, err = s.userDrive(ctx, &d)
		return err
	})
}
