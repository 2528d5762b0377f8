package driveplan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// checkDirectory tells whether path is a directory that is reached from root without a symbolic link. root itself is the
// operator's and may be a link. The error wraps [fs.ErrNotExist] if something on the way is not there.
//
// O_PATH needs search permission on the directories above only, so closed home directories can be checked (open(2)).
func checkDirectory(root, path string) error {
	_, err := statDirectory(root, path)
	return err
}

// statDirectory is checkDirectory, and says whose the directory is.
func statDirectory(root, path string) (st unix.Stat_t, err error) {
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return st, fmt.Errorf("open %s: %w", root, err)
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
	for name := range strings.SplitSeq(rest, "/") {
		if name == "" { // path is root
			break
		}
		// With O_NOFOLLOW and O_DIRECTORY a symbolic link is ENOTDIR.
		next, err := retryEINTR(func() (int, error) {
			return unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		_ = unix.Close(fd)
		if err != nil {
			if errors.Is(err, unix.ENOTDIR) {
				return st, fmt.Errorf("%s: %q is a symbolic link or no directory", path, name)
			}
			return st, fmt.Errorf("open %s: %q: %w", path, name, err)
		}
		fd = next
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return st, errors.Join(fmt.Errorf("look at %s: %w", path, err), unix.Close(fd))
	}
	return st, unix.Close(fd)
}

// checkOwned makes sure that a directory is there and belongs to whom it must. A directory of somebody else under the
// right name would give its files to the wrong people, so it is not used.
func checkOwned(ctx context.Context, l located) error {
	st, err := statDirectory(l.root, l.drive.Path)
	if err != nil && !missing(err) {
		return err
	}
	owner, group, nameErr := l.locator.ownership(l.vars)
	if nameErr != nil {
		return nameErr
	}
	remedy := fmt.Sprintf("install -d -o %s -g %s -m %04o '%s'", owner, group, l.locator.Mode, strings.ReplaceAll(l.drive.Path, "'", `'\''`))
	if err != nil {
		return fmt.Errorf("nobody has made the directory yet; as root: %s: %w", remedy, fs.ErrNotExist)
	}
	uid, gid, err := l.locator.Owned(ctx, owner, group)
	if err != nil {
		return fmt.Errorf("whose the directory must be: %w", err)
	}
	// The group of a home and the owner of a project's directory are matters of taste.
	if l.drive.Owner.IsProject() && l.drive.Member == "" {
		if ident.GID(st.Gid) != gid {
			return fmt.Errorf("the directory has the group %d and must have %s (%d)", st.Gid, group, gid)
		}
	} else if ident.UID(st.Uid) != uid {
		return fmt.Errorf("the directory belongs to uid %d and must belong to %s (%d)", st.Uid, owner, uid)
	}
	return nil
}

func retryEINTR(f func() (int, error)) (int, error) {
	for {
		fd, err := f()
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// missing tells whether a directory may yet appear.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
