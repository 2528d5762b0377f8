package jobrunner

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// pathFinder translates UCloud paths of one request. A drive must be one that the server knows as the user's, and what is
// named must be there and be reachable with the user's rights.
type pathFinder struct {
	r      *Runner
	set    *drives.Set
	drives map[ident.DriveID]*providerapi.Drive
}

func (r *Runner) newPathFinder() *pathFinder {
	return &pathFinder{r: r, set: drives.New(r.o.Provider, r.o.Follow()), drives: map[ident.DriveID]*providerapi.Drive{}}
}

// local is a [jobrender.Paths].
func (f *pathFinder) local(ctx context.Context, ucloud string) (string, error) {
	_, local, err := f.find(ctx, ucloud)
	return local, err
}

// find gives what is known about a path, and where it is.
func (f *pathFinder) find(ctx context.Context, ucloud string) (drives.Info, string, error) {
	first, _, _ := strings.Cut(strings.TrimLeft(ucloud, "/"), "/")
	if !strings.HasPrefix(ucloud, "/") || first == "" || first == "." || first == ".." {
		return drives.Info{}, "", failure.New(failure.Invalid, "It is not a path in a drive")
	}
	d := f.drives[ident.DriveID(first)]
	if d == nil {
		found, err := f.r.o.FindDrive(ctx, ident.DriveID(first))
		if failure.Is(err, failure.NotFound) {
			return drives.Info{}, "", failure.Wrap(err, failure.Invalid, "The drive of %s is not yours, or is not at this provider", ucloud)
		}
		if err != nil {
			return drives.Info{}, "", err
		}
		d = &found
		f.drives[ident.DriveID(first)] = d
	}
	ref, err := f.set.Drive(d)
	if err != nil {
		return drives.Info{}, "", err
	}
	p, err := ref.Path(ucloud)
	if err != nil {
		return drives.Info{}, "", err
	}
	info, err := look(ref, p)
	if err != nil {
		return drives.Info{}, "", explain(err, ucloud)
	}
	local, err := localPath(ref, p)
	return info, local, err
}

func look(ref drives.Ref, p drives.Path) (drives.Info, error) {
	root, err := ref.Open()
	if err != nil {
		return drives.Info{}, err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	local, err := root.At(p)
	if err != nil {
		return drives.Info{}, err
	}
	info, err := local.Stat()
	switch {
	case err != nil:
		return info, err
	case info.Link == drives.Outside:
		return info, drives.ErrOutside
	case info.Link == drives.Dangling:
		return info, unix.ENOENT
	}
	return info, nil
}

// localPath joins what the kernel has just resolved, for a program that runs with the same rights.
func localPath(ref drives.Ref, p drives.Path) (string, error) {
	rel, ok := drives.Unescape(strings.TrimPrefix(p.UCloud(), "/"+string(ref.ID())))
	if !ok {
		return "", fmt.Errorf("the path %q does not come back", p.UCloud())
	}
	return path.Join(ref.Base(), rel), nil
}

// explain is for the user, who knows the UCloud path. Errors that are none of theirs keep their cause only.
func explain(err error, ucloud string) error {
	kind, why := failure.Invalid, "%s cannot be used"
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		why = "%s does not exist"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		why = "You may not use %s"
	case errors.Is(err, drives.ErrOutside):
		why = "%s is a link that leaves the drive"
	}
	return failure.Wrap(err, kind, why, ucloud)
}

// directory is the local path of a directory that the user can enter.
func (f *pathFinder) directory(ctx context.Context, ucloud string) (string, error) {
	info, local, err := f.find(ctx, ucloud)
	if err != nil {
		return "", err
	}
	if info.Kind != drives.Directory {
		return "", failure.New(failure.Invalid, "%s is not a folder", ucloud)
	}
	if err := unix.Access(local, unix.X_OK); err != nil {
		return "", explain(err, ucloud)
	}
	return local, nil
}
