package driveplan

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// checkDirectory tells whether path is a directory that is reached from root without a symbolic link. root itself is the
// operator's and may be a link. The error wraps [fs.ErrNotExist] if something on the way is not there.
//
// O_PATH needs search permission on the directories above only, so closed home directories can be checked (open(2)).
func checkDirectory(root, path string) error {
	fd, err := retryEINTR(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
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
				return fmt.Errorf("%s: %q is a symbolic link or no directory", path, name)
			}
			return fmt.Errorf("open %s: %q: %w", path, name, err)
		}
		fd = next
	}
	return unix.Close(fd)
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
