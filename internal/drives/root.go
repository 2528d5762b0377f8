package drives

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// Follow is the policy for symbolic links (contract 10 section 10, configuration files.followSymlinks).
type Follow uint8

const (
	// FollowDrive follows a link if its target lies in the same drive, however it is written down: relative, absolute,
	// or on a way that leaves the drive and comes back.
	FollowDrive Follow = iota
	// FollowAlways follows every link. POSIX permissions still protect the data of others.
	FollowAlways
)

// ParseFollow reads the configuration value "drive" or "always". Empty means drive.
func ParseFollow(s string) (Follow, error) {
	switch s {
	case "", "drive":
		return FollowDrive, nil
	case "always":
		return FollowAlways, nil
	}
	return 0, fmt.Errorf("%q is neither \"drive\" nor \"always\"", s)
}

var (
	// ErrOutside tells that a symbolic link leaves the drive.
	ErrOutside = errors.New("link leaves the drive")
	// ErrNotRegular tells that something is a directory, a device, a FIFO or a socket where a file is needed.
	ErrNotRegular = errors.New("not a regular file")
)

// RootError tells that the base directory of a drive cannot be entered, as opposed to something below it.
type RootError struct {
	Base string
	Err  error
}

// Error is for the log; it names a local path.
func (e *RootError) Error() string { return "open drive " + e.Base + ": " + e.Err.Error() }

// Unwrap gives the cause, usually an errno.
func (e *RootError) Unwrap() error { return e.Err }

// Denied tells whether permissions are the reason. That is how an instance notices that it runs with the supplementary
// groups of before its user was added to a project.
func (e *RootError) Denied() bool {
	return errors.Is(e.Err, unix.EACCES) || errors.Is(e.Err, unix.EPERM)
}

// Set makes handles on the drives of one provider.
type Set struct {
	provider string
	follow   Follow
	openat2  bool // the kernel has openat2(2), Linux 5.6
}

// New makes a Set. It finds out what the kernel can do, which is one system call.
func New(provider string, follow Follow) *Set {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == nil {
		unix.Close(fd)
	}
	return &Set{provider: provider, follow: follow, openat2: err == nil}
}

// Root is an open drive. All access below goes through its descriptor. It is made per request and is safe for
// concurrent use until it is closed.
type Root struct {
	set  *Set
	fd   int // O_PATH
	id   ident.DriveID
	base string
}

// Open opens the base directory of the drive. Links in the base path itself are followed: the operator chose it. The
// error is a [*RootError].
func (r Ref) Open() (*Root, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(r.base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &RootError{Base: r.base, Err: err}
	}
	return &Root{set: r.set, fd: fd, id: r.id, base: r.base}, nil
}

// Close releases the descriptor. Directories opened from the root stay usable for everything but links.
func (r *Root) Close() error { return unix.Close(r.fd) }

// At is the place p of this drive. The path must come from a [Ref] of the same drive.
func (r *Root) At(p Path) (Local, error) {
	if p.drive != r.id {
		return Local{}, fmt.Errorf("path of drive %s used with drive %s", p.drive, r.id)
	}
	return Local{root: r, path: p}, nil
}

// explain turns a refused access into a [*RootError] if the drive itself is what the user may not enter.
func (r *Root) explain(err error) error {
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	fd, probe := unix.Openat(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if probe == nil {
		unix.Close(fd)
		// Reading is not enough: without search permission nothing below can be reached.
		probe = unix.Faccessat(r.fd, ".", unix.X_OK, 0)
	}
	if errors.Is(probe, unix.EACCES) {
		return &RootError{Base: r.base, Err: err}
	}
	return err
}

// duplicate gives a root of its own life.
func (r *Root) duplicate() (*Root, error) {
	fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate drive descriptor: %w", err)
	}
	dup := *r
	dup.fd = fd
	return &dup, nil
}

// open resolves rel below the root, following links as the policy says. rel is clean; "" is the root itself. With
// O_NOFOLLOW the last component is not followed.
func (r *Root) open(rel string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC
	if rel == "" {
		rel = "."
	}
	if r.set.follow == FollowAlways {
		return r.openAnywhere(rel, flags)
	}
	if !r.set.openat2 {
		fd, err := openWalk(r.fd, rel, flags)
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			// A link, or really not a directory: resolving again tells which.
			return r.openThroughLinks(rel, flags)
		}
		return fd, err
	}
	fd, err := openat2(r.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, unix.EXDEV) {
		return r.openThroughLinks(rel, flags)
	}
	return fd, err
}

// openThroughLinks is for links that RESOLVE_BENEATH refuses although their target may lie in the drive: absolute ones,
// and relative ones whose way leads through the outside.
//
// The target is opened with O_PATH, which gives no access to it, just to ask the kernel for its real path. If that lies
// below the real path of the root, it is opened again from the root without following any link. Whoever exchanges
// something meanwhile can only make the second step fail or find another file of the same drive.
func (r *Root) openThroughLinks(rel string, flags int) (int, error) {
	probe, err := r.openAnywhere(rel, unix.O_PATH|unix.O_CLOEXEC|flags&unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	defer unix.Close(probe)
	target, err := realPath(probe)
	if err != nil {
		return -1, err
	}
	base, err := realPath(r.fd)
	if err != nil {
		return -1, err
	}
	if target == base {
		return r.openNoLinks(".", flags)
	}
	below, ok := strings.CutPrefix(target, strings.TrimSuffix(base, "/")+"/")
	if !ok {
		return -1, ErrOutside
	}
	return r.openNoLinks(below, flags)
}

// openAnywhere follows every link, except the magic ones of /proc where the kernel can be told so.
func (r *Root) openAnywhere(rel string, flags int) (int, error) {
	if r.set.openat2 {
		return openat2(r.fd, rel, flags, unix.RESOLVE_NO_MAGICLINKS)
	}
	return retry(func() (int, error) { return unix.Openat(r.fd, rel, flags, 0) })
}

// openNoLinks follows no link at all and stays below the root.
func (r *Root) openNoLinks(rel string, flags int) (int, error) {
	if r.set.openat2 {
		return openat2(r.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	}
	return openWalk(r.fd, rel, flags)
}

// openat2 calls openat2(2). EAGAIN tells that a concurrent rename made the kernel unsure about a "..".
func openat2(dir int, rel string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags), Resolve: resolve}
	const attempts = 64
	for i := 0; ; i++ {
		fd, err := unix.Openat2(dir, rel, &how)
		if (err == unix.EAGAIN || err == unix.EINTR) && i < attempts {
			continue
		}
		return fd, err
	}
}

// openWalk is openNoLinks for kernels without openat2: component by component, none of which may be a link.
func openWalk(dir int, rel string, flags int) (int, error) {
	current := dir
	defer func() {
		if current != dir {
			unix.Close(current)
		}
	}()
	for {
		name, rest, more := strings.Cut(rel, "/")
		if !more {
			break
		}
		next, err := retry(func() (int, error) {
			return unix.Openat(current, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return -1, err
		}
		if current != dir {
			unix.Close(current)
		}
		current, rel = next, rest
	}
	fd, err := retry(func() (int, error) { return unix.Openat(current, rel, flags|unix.O_NOFOLLOW, 0) })
	if err != nil || flags&unix.O_PATH == 0 || flags&unix.O_NOFOLLOW != 0 {
		return fd, err
	}
	// O_PATH|O_NOFOLLOW opens the link itself, which the caller did not ask for.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		unix.Close(fd)
		return -1, unix.ELOOP
	}
	return fd, nil
}

// realPath asks the kernel where a descriptor is (proc(5), /proc/self/fd).
func realPath(fd int) (string, error) {
	buf := make([]byte, MaxPath)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), buf)
	if err != nil {
		return "", fmt.Errorf("read path of descriptor: %w", err)
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// retry repeats a call that a signal interrupted.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}
