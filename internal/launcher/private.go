package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// privateDir is a directory that only the service account may enter. All access goes through its descriptor and
// follows no links, so that nobody who could once write to it, or to its parent, can lead the server elsewhere.
type privateDir struct {
	path string
	fd   int
}

var errNotPrivate = errors.New("not private to the service account")

// openPrivateDir makes the directory if it is missing (0700) and refuses one that is a link, has another owner or is
// open to others.
func openPrivateDir(path string) (*privateDir, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("directory %s: path must be absolute", path)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
		err = fmt.Errorf("fstat: %w", err)
	case int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("%w: it belongs to uid %d", errNotPrivate, st.Uid)
	case st.Mode&0o077 != 0:
		err = fmt.Errorf("%w: its mode is %04o, 0700 is needed", errNotPrivate, st.Mode&0o7777)
	}
	if err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("directory %s: %w", path, err)
	}
	return &privateDir{path: path, fd: fd}, nil
}

func (d *privateDir) close() { unix.Close(d.fd) } //nolint:errcheck // nothing was written

// open opens a regular file of ours in the directory. O_NONBLOCK keeps a FIFO that somebody left from blocking us.
func (d *privateDir) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("%w: no regular file", errNotPrivate)
	case int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0:
		err = fmt.Errorf("%w: owner %d, mode %04o", errNotPrivate, st.Uid, st.Mode&0o7777)
	case st.Nlink > 1: // a hard link to a file elsewhere; 0 is a file that has just been rotated away
		err = fmt.Errorf("%w: it has %d names", errNotPrivate, st.Nlink)
	}
	if err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, &os.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(d.path, name)), nil
}

// replace writes a file so that readers see the old or the new content, also after a crash of the server. It is not
// synced: what it describes does not survive a crash of the machine either.
func (d *privateDir) replace(name string, data []byte) error {
	tmp := name + ".new"
	// A left-over from a crash, or something planted: remove the name, whatever it is.
	if err := unix.Unlinkat(d.fd, tmp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", filepath.Join(d.path, tmp), err)
	}
	f, err := d.open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(d.path, tmp), err)
	}
	if err := unix.Renameat(d.fd, tmp, d.fd, name); err != nil {
		return fmt.Errorf("rename %s: %w", filepath.Join(d.path, tmp), err)
	}
	return nil
}

// read gives the content of a file of at most limit bytes.
func (d *privateDir) read(name string, limit int64) ([]byte, error) {
	f, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", f.Name(), limit)
	}
	return data, nil
}

func (d *privateDir) remove(name string) error {
	if err := unix.Unlinkat(d.fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", filepath.Join(d.path, name), err)
	}
	return nil
}

func (d *privateDir) rename(from, to string) error {
	if err := unix.Renameat(d.fd, from, d.fd, to); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("rename %s: %w", filepath.Join(d.path, from), err)
	}
	return nil
}

// names lists the files whose name ends in suffix.
func (d *privateDir) names(suffix string) ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
