package drives

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// NodeKind is what an entry itself is, as opposed to what a link leads to.
type NodeKind uint8

// The kinds of nodes. NodeSpecial is everything else: FIFOs, sockets, devices.
const (
	NodeSpecial NodeKind = iota
	NodeRegular
	NodeDirectory
	NodeLink
)

// Node describes an entry for changing it: links are described themselves, whatever the policy of the drive.
type Node struct {
	Kind               NodeKind
	Dev, Ino           uint64
	Links              uint64 // names of the inode
	Mode               uint32 // permission bits, st_mode & 07777
	Owner              uint32 // uid
	Size               int64  // bytes
	Blocks             int64  // of 512 bytes; fewer than Size says: the file is sparse
	Accessed, Modified unix.Timespec
	Changed            unix.Timespec // of the inode; a rename counts
}

// Same tells whether two nodes are the same inode.
func (n Node) Same(other Node) bool { return n.Dev == other.Dev && n.Ino == other.Ino }

// Node describes an entry.
func (d *Dir) Node(name string) (Node, error) {
	if err := CheckName(name); err != nil {
		return Node{}, err
	}
	return nodeAt(d.fd, name)
}

// Self describes the directory.
func (d *Dir) Self() (Node, error) { return nodeAt(d.fd, "") }

func nodeAt(fd int, name string) (Node, error) {
	var st unix.Stat_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if _, err := retry(func() (struct{}, error) { return struct{}{}, unix.Fstatat(fd, name, &st, flags) }); err != nil {
		return Node{}, err
	}
	n := Node{
		Dev: st.Dev, Ino: st.Ino, Links: uint64(st.Nlink), //nolint:unconvert // 32 bits on some architectures
		Mode: st.Mode & 0o7777, Owner: st.Uid, Size: st.Size, Blocks: st.Blocks, Accessed: st.Atim, Modified: st.Mtim, Changed: st.Ctim,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Kind = NodeRegular
	case unix.S_IFDIR:
		n.Kind = NodeDirectory
	case unix.S_IFLNK:
		n.Kind = NodeLink
	}
	return n, nil
}

// maxAncestors ends a walk upwards that somebody keeps moving deeper.
const maxAncestors = 1 << 16

// Inside tells whether the directory is the node or lies below it, by what the kernel says about its ancestors now. The
// walk leaves the drive, looking at nothing but identities. It ends at the root of the file system tree, or at a
// directory that the user cannot leave upwards: nothing that the user reaches from above lies there.
func (d *Dir) Inside(n Node) (bool, error) {
	fd := d.fd
	defer func() {
		if fd != d.fd {
			unix.Close(fd)
		}
	}()
	here, err := nodeAt(fd, "")
	for range maxAncestors {
		if err != nil {
			return false, err
		}
		if here.Same(n) {
			return true, nil
		}
		up, openErr := retry(func() (int, error) {
			return unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		})
		if errors.Is(openErr, unix.EACCES) {
			return false, nil
		}
		if openErr != nil {
			return false, fmt.Errorf("look at the folder above: %w", openErr)
		}
		if fd != d.fd {
			unix.Close(fd)
		}
		fd = up
		below := here
		if here, err = nodeAt(fd, ""); err == nil && here.Same(below) {
			return false, nil
		}
	}
	return false, unix.ELOOP
}

// Rename renames an entry, replacing what has the new name (rename(2)). The entry itself is moved, never the target of
// a link.
func Rename(from *Dir, name string, to *Dir, newName string) error {
	if err := errors.Join(CheckName(name), CheckName(newName)); err != nil {
		return err
	}
	_, err := retry(func() (struct{}, error) { return struct{}{}, unix.Renameat(from.fd, name, to.fd, newName) })
	return err
}

// RenameNew renames an entry if nothing has the new name; otherwise the error is EEXIST and nothing has changed. The
// kernel decides, so of two that want a name one gets it.
func RenameNew(from *Dir, name string, to *Dir, newName string) error {
	if err := errors.Join(CheckName(name), CheckName(newName)); err != nil {
		return err
	}
	return renameNewBy(from.fd, name, to.fd, newName, renameSteps)
}

// renameStep is one way to rename without replacing. It reports false if the file system does not know it.
type renameStep func(from int, name string, to int, newName string) (known bool, err error)

var renameSteps = []renameStep{renameByFlag, renameByLink, renameByReservation}

func renameNewBy(from int, name string, to int, newName string, steps []renameStep) error {
	for _, step := range steps {
		if known, err := step(from, name, to, newName); known {
			return err
		}
	}
	return unix.ENOTSUP
}

func renameByFlag(from int, name string, to int, newName string) (bool, error) {
	_, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.Renameat2(from, name, to, newName, unix.RENAME_NOREPLACE)
	})
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTSUP), err
}

// renameByLink is for everything but directories on file systems without RENAME_NOREPLACE, such as NFS: the entry has
// both names for a moment, never none.
func renameByLink(from int, name string, to int, newName string) (bool, error) {
	before, err := nodeAt(from, name)
	if err != nil {
		return true, err
	}
	if before.Kind == NodeDirectory {
		return false, nil
	}
	switch err := unix.Linkat(from, name, to, newName, 0); {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EMLINK):
		return false, nil
	case err != nil:
		return true, err
	}
	// Both names must be the same inode, or the old name is somebody else's by now.
	now, err := nodeAt(from, name)
	made, errMade := nodeAt(to, newName)
	if err != nil || errMade != nil || !now.Same(made) {
		return true, errors.Join(err, errMade)
	}
	if err := unix.Unlinkat(from, name, 0); err != nil {
		unix.Unlinkat(to, newName, 0) //nolint:errcheck // the first error counts
		return true, err
	}
	return true, nil
}

// renameByReservation takes the new name with something empty of the same kind, which is replaced at once.
func renameByReservation(from int, name string, to int, newName string) (bool, error) {
	before, err := nodeAt(from, name)
	if err != nil {
		return true, err
	}
	remove := 0
	if before.Kind == NodeDirectory {
		remove = unix.AT_REMOVEDIR
		err = unix.Mkdirat(to, newName, 0o700)
	} else {
		var fd int
		if fd, err = unix.Openat(to, newName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return true, err
	}
	if err := unix.Renameat(from, name, to, newName); err != nil {
		unix.Unlinkat(to, newName, remove) //nolint:errcheck // a folder that is not empty any more belongs to somebody
		if errors.Is(err, unix.ENOTEMPTY) {
			err = unix.EEXIST
		}
		return true, err
	}
	return true, nil
}

// Remove removes an entry that is no directory, or an empty directory. A link is removed itself.
func (d *Dir) Remove(name string, directory bool) error {
	if err := CheckName(name); err != nil {
		return err
	}
	flags := 0
	if directory {
		flags = unix.AT_REMOVEDIR
	}
	_, err := retry(func() (struct{}, error) { return struct{}{}, unix.Unlinkat(d.fd, name, flags) })
	return err
}

// OpenChildDir opens a directory entry for reading. It must not be a link; the device and the inode of the result are
// those of want, or the error is ENOENT: somebody has put something else in its place.
func (d *Dir) OpenChildDir(name string, want Node) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	child := &Dir{root: d.root, path: d.path.Join(name), fd: fd}
	if got, err := child.Self(); err != nil || !got.Same(want) {
		child.Close()
		return nil, errors.Join(unix.ENOENT, err)
	}
	return child, nil
}

// Touch sets the directory's times to now and gives the time of the change as the file system's own clock tells it, to
// compare with [Node.Changed]. Whoever may write to the directory may do that (utimensat(2)); setting only one of the
// times would be its owner's alone.
func (d *Dir) Touch() (unix.Timespec, error) {
	times := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := unix.UtimesNanoAt(d.fd, ".", times, 0); err != nil {
		return unix.Timespec{}, err
	}
	n, err := d.Self()
	return n.Changed, err
}
