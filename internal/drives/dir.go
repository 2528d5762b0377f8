package drives

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is an open directory of a drive. Its methods take single names, which cannot lead out of an open directory.
// Methods may be called concurrently, except that [Dir.ReadBatch] and [Dir.Seek] share one position.
type Dir struct {
	root     *Root
	path     Path
	fd       int
	ownsRoot bool
	close    sync.Once
}

// ErrName tells that a text is not a single name.
var ErrName = errors.New("not a file name")

// CheckName tells whether the bytes can be the name of one entry.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%w: %q", ErrName, name)
	case len(name) > MaxName:
		return fmt.Errorf("%w: %w", ErrName, unix.ENAMETOOLONG)
	}
	return nil
}

// Close closes the descriptor. Closing twice is harmless.
func (d *Dir) Close() {
	d.close.Do(func() {
		unix.Close(d.fd)
		if d.ownsRoot {
			d.root.Close()
		}
	})
}

// Path is where the directory was opened.
func (d *Dir) Path() Path { return d.path }

// Clone opens the same directory again, with a position and a life of its own.
func (d *Dir) Clone() (*Dir, error) {
	root, err := d.root.duplicate()
	if err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open directory again: %w", err)
	}
	return &Dir{root: root, path: d.path, fd: fd, ownsRoot: true}, nil
}

// Version tells whether a directory may have changed. Two equal versions of the same directory mean that no entry came,
// went or was renamed in between, apart from changes within the clock's tick (see Changed).
type Version struct {
	Dev, Ino     uint64
	Mtime, Ctime time.Time
}

// Identify gives the version of the directory.
func (d *Dir) Identify() (Version, error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return Version{}, fmt.Errorf("stat directory: %w", err)
	}
	return Version{
		Dev: st.Dev, Ino: st.Ino,
		Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
	}, nil
}

// Stat describes an entry, in the terms of [Local.Stat].
func (d *Dir) Stat(name string) (Info, error) {
	info, link, err := statx(d.fd, name)
	if err != nil || !link {
		return info, err
	}
	return d.root.target(d.path.Join(name).rel, info), nil
}

// Readable asks the kernel whether the user may read the entry; access lists count.
func (d *Dir) Readable(name string) bool {
	return unix.Faccessat(d.fd, name, unix.R_OK, 0) == nil
}

// Mkdir makes a directory. The process's umask and the directory's setgid bit apply.
func (d *Dir) Mkdir(name string, mode uint32) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for {
		if err := unix.Mkdirat(d.fd, name, mode); err != unix.EINTR {
			return err
		}
	}
}

// OpenChild opens a directory entry that must not be a link, such as one just made. The result can be used like that of
// [Local.OpenPathDir].
func (d *Dir) OpenChild(name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return &Dir{root: d.root, path: d.path.Join(name), fd: fd}, nil
}

// Remote tells whether the directory lies on a network or user space file system, where every call may be a round trip
// and many at a time are faster than few (numbers from statfs(2) and the Linux sources).
func (d *Dir) Remote() bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return false
	}
	const (
		lustre = 0x0BD00BD0
		gpfs   = 0x47504653
		ceph   = 0x00C36400
		beegfs = 0x19830326
		orange = 0x20030528
	)
	switch uint32(st.Type) { //nolint:gosec // the field's sign depends on the architecture, the value fits
	case unix.NFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.AFS_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.V9FS_MAGIC, lustre, gpfs, ceph, beegfs, orange:
		return true
	}
	return false
}
