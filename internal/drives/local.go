package drives

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// Local is a place in an open drive. It may or may not exist.
type Local struct {
	root *Root
	path Path
}

// Path is the checked path of the place.
func (l Local) Path() Path { return l.path }

// Kind is what the protocol can tell about an entry.
type Kind uint8

// The kinds. Everything that is neither is Special: devices, FIFOs, sockets, and links that are not followed.
const (
	Special Kind = iota
	Regular
	Directory
)

// Link tells how an entry is a symbolic link.
type Link uint8

// The states of a link. Info describes the target of a followed link, and the link itself otherwise.
const (
	NoLink Link = iota
	Followed
	Dangling
	Outside
)

// Info is what is known about an entry.
type Info struct {
	Kind       Kind
	Link       Link
	Mode       uint16 // permission bits, st_mode & 07777
	Size       int64  // bytes; zero unless Kind is Regular
	ModifiedMs int64  // Unix time in milliseconds
	AccessedMs int64
	UID        ident.UID
	GID        ident.GID
	Dev, Ino   uint64
}

// statMask is what Info needs. Birth time is left out: some network file systems need an extra round trip for it.
const statMask = unix.STATX_BASIC_STATS

// statx describes the entry name of the directory dir, or dir itself if name is empty. A final link is not followed and
// automounts are not triggered.
//
// It makes the system call itself because unix.Statx takes 280 bytes from the heap for each call, a sixth of the time of
// a listing.
func statx(dir int, name string) (Info, bool, error) {
	var (
		st   unix.Statx_t
		path [MaxName + 1]byte
	)
	if len(name) > MaxName {
		return Info{}, false, unix.ENAMETOOLONG
	}
	copy(path[:], name)
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	for {
		// Both pointers are converted in the argument list, which keeps what they point to in place (package unsafe,
		// pattern 4).
		_, _, errno := syscall.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(&path)), uintptr(flags),
			statMask, uintptr(unsafe.Pointer(&st)), 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return Info{}, false, errno
		}
		break
	}
	info := Info{
		Mode:       st.Mode & 0o7777,
		ModifiedMs: millis(st.Mtime),
		AccessedMs: millis(st.Atime),
		UID:        ident.UID(st.Uid),
		GID:        ident.GID(st.Gid),
		Dev:        unix.Mkdev(st.Dev_major, st.Dev_minor),
		Ino:        st.Ino,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		info.Kind = Directory
	case unix.S_IFREG:
		info.Kind, info.Size = Regular, int64(st.Size) //nolint:gosec // the kernel's loff_t is signed
	}
	return info, st.Mode&unix.S_IFMT == unix.S_IFLNK, nil
}

func millis(t unix.StatxTimestamp) int64 { return t.Sec*1000 + int64(t.Nsec)/1e6 }

// Stat describes the place. A link is described as its target where the policy follows it.
func (l Local) Stat() (Info, error) {
	fd, err := l.root.open(l.path.rel, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return Info{}, l.root.explain(err)
	}
	defer unix.Close(fd)
	info, link, err := statx(fd, "")
	if err != nil || !link {
		return info, err
	}
	return l.root.target(l.path.rel, info), nil
}

// target describes the target of the link at rel, or the link, given as info, if it is not followed.
func (r *Root) target(rel string, info Info) Info {
	info.Kind, info.Link = Special, Dangling
	fd, err := r.open(rel, unix.O_PATH)
	if errors.Is(err, ErrOutside) {
		info.Link = Outside
	}
	if err != nil {
		return info
	}
	defer unix.Close(fd)
	to, link, err := statx(fd, "")
	if err != nil || link {
		return info
	}
	to.Link = Followed
	return to
}

// OpenDir opens the place as a directory for reading.
func (l Local) OpenDir() (*Dir, error) {
	// O_NONBLOCK costs nothing and makes sure that nothing else than a directory can block either.
	fd, err := l.root.open(l.path.rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, l.root.explain(err)
	}
	return &Dir{root: l.root, path: l.path, fd: fd}, nil
}

// OpenParent opens the directory that holds the place, for working on the entry named by the second result. Reading
// permission is not needed. The drive itself has no parent to work in.
func (l Local) OpenParent() (*Dir, string, error) {
	if l.path.IsRoot() {
		return nil, "", fmt.Errorf("parent of the drive: %w", unix.EINVAL)
	}
	dir, err := l.root.openPathDir(l.path.Parent())
	return dir, l.path.Name(), err
}

// openPathDir opens a directory with O_PATH: entries can be reached and made, but not listed.
func (r *Root) openPathDir(p Path) (*Dir, error) {
	fd, err := r.open(p.rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, r.explain(err)
	}
	return &Dir{root: r, path: p, fd: fd}, nil
}

// OpenPathDir opens the place as a directory in which entries can be reached and made. It needs no reading permission,
// and the result cannot be listed.
func (l Local) OpenPathDir() (*Dir, error) { return l.root.openPathDir(l.path) }

// OpenRegular opens a regular file for reading. Everything else gives [ErrNotRegular] without having been opened:
// opening a FIFO blocks, and opening a device can have effects.
func (l Local) OpenRegular() (*os.File, Info, error) {
	probe, err := l.root.open(l.path.rel, unix.O_PATH)
	if err != nil {
		return nil, Info{}, l.root.explain(err)
	}
	defer unix.Close(probe)
	info, _, err := statx(probe, "")
	if err != nil {
		return nil, Info{}, err
	}
	if info.Kind != Regular {
		return nil, Info{}, ErrNotRegular
	}
	// The descriptor is opened again through /proc, so that it is the very file that was looked at, whatever its name
	// means by now.
	fd, err := retry(func() (int, error) {
		return unix.Open(fmt.Sprintf("/proc/self/fd/%d", probe),
			unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, Info{}, err
	}
	return os.NewFile(uintptr(fd), l.path.Name()), info, nil
}

// OpenWorkDir opens the place as a directory for a program to work in, and gives its path on this machine. The path is for
// showing; what is entered is the descriptor.
func (l Local) OpenWorkDir() (*os.File, string, error) {
	fd, err := l.root.open(l.path.rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", l.root.explain(err)
	}
	path, err := realPath(fd)
	if err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), path), path, nil
}
