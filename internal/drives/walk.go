package drives

import (
	"golang.org/x/sys/unix"
)

// Step is what has to be known about an entry before a walk over a tree goes into it.
type Step struct {
	Directory bool // a real one: links are not followed
	Dev, Ino  uint64
	// Mount tells that something is mounted here, which the kernel knows of since 5.8, and Automount that entering would
	// mount something.
	Mount, Automount bool
}

// Step looks at an entry, or at the directory itself if name is empty. Nothing is mounted by it, and a file system that
// can answer from memory does.
func (d *Dir) Step(name string) (Step, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	} else if err := CheckName(name); err != nil {
		return Step{}, err
	}
	var st unix.Statx_t
	if _, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.Statx(d.fd, name, flags, unix.STATX_TYPE|unix.STATX_INO, &st)
	}); err != nil {
		return Step{}, err
	}
	return Step{
		Directory: st.Mode&unix.S_IFMT == unix.S_IFDIR,
		Dev:       unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino,
		Mount:     st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Automount: st.Attributes&unix.STATX_ATTR_AUTOMOUNT != 0,
	}, nil
}

// OpenBelow opens a directory below this one for reading, by its path from here, which consists of names from the disk.
// No link is followed, and nothing outside of this directory can be reached, whatever is renamed meanwhile. An empty path
// opens this directory again.
func (d *Dir) OpenBelow(rel string) (*Dir, error) {
	path := d.path
	if rel == "" {
		rel = "."
	} else {
		path = path.Join(rel)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	var fd int
	var err error
	if d.root.set.openat2 {
		fd, err = openat2(d.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	} else {
		fd, err = openWalk(d.fd, rel, flags)
	}
	if err != nil {
		return nil, err
	}
	return &Dir{root: d.root, path: path, fd: fd}, nil
}

// Len is how long the path is in bytes on disk, with the drive's id in front: what [MaxPath] bounds.
func (p Path) Len() int {
	n := 1 + len(p.drive)
	if p.rel != "" {
		n += 1 + len(p.rel)
	}
	return n
}
