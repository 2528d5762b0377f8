package ipc

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse tells that a live server answers on the socket already.
var ErrInUse = errors.New("a server answers on the socket already")

// ErrUnsafe tells that somebody else could interfere with the socket, or has.
var ErrUnsafe = errors.New("the place of the socket is not safe")

// Listen creates the socket at path, mode 0666 so that all users can connect, and listens. The directory must exist,
// belong to the own uid or root, and be writable by nobody else; other users need search permission on it to connect.
// A socket that a dead server of the same account left behind is replaced. Anything else under the name is left alone
// and an error: another account's file, a symbolic link, a file with a second hard link, a live server ([ErrInUse]).
//
// The socket is bound under a temporary name and renamed when it is ready, so that there is no moment at which a
// client meets a socket with the wrong mode or none at all. All steps work relative to a descriptor of the directory
// that has been checked. Closing the listener does not remove the socket: by then the name may be a successor's.
//
// Nothing here protects against root, or against other processes of the own account.
func Listen(path string) (*net.UnixListener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on ipc socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (_ *net.UnixListener, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return nil, errors.New("the path is not absolute and clean")
	}
	dirPath, base := filepath.Split(path)
	dir, err := openSafeDirectory(filepath.Clean(dirPath))
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written through it
	lock, err := lockName(dir, base)
	if err != nil {
		return nil, err
	}
	defer unix.Close(lock) //nolint:errcheck // closing is unlocking
	if err := checkOccupant(dir, base); err != nil {
		return nil, err
	}

	temp := ".ipc-" + rand.Text()[:10]
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: inDirectory(dir, temp)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			unix.Unlinkat(dir, temp, 0) //nolint:errcheck // our own, and best effort
			l.Close()                   //nolint:errcheck // as above
		}
	}()
	if err := unix.Fchmodat(dir, temp, 0o666, 0); err != nil {
		return nil, fmt.Errorf("set mode: %w", err)
	}
	if err := unix.Renameat(dir, temp, dir, base); err != nil {
		return nil, fmt.Errorf("rename: %w", err)
	}
	return l, nil
}

// inDirectory is a short path that leads into the open directory whatever happens to the directory's own path. Being
// short matters: a socket address has room for 107 bytes (unix(7)).
func inDirectory(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// openSafeDirectory opens the directory, which must not be a symbolic link itself, and checks who can change it.
func openSafeDirectory(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory: %w", err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
		err = fmt.Errorf("check directory: %w", err)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		err = fmt.Errorf("%w: the directory belongs to uid %d", ErrUnsafe, st.Uid)
	case st.Mode&0o022 != 0:
		err = fmt.Errorf("%w: the directory is writable by others (mode %04o)", ErrUnsafe, st.Mode&0o7777)
	}
	if err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written through it
		return -1, err
	}
	return fd, nil
}

// lockName keeps two servers that start in the same moment from replacing each other's socket. The lock is a file of
// mode 0600 and not the directory: everybody could lock that.
func lockName(dir int, base string) (int, error) {
	fd, err := unix.Openat(dir, "."+base+".lock", unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return -1, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written through it
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: another server is starting", ErrInUse)
		}
		return -1, fmt.Errorf("lock: %w", err)
	}
	return fd, nil
}

// checkOccupant gives nil if the name is free or holds a dead socket of ours.
func checkOccupant(dir int, base string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at the old socket: %w", err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%w: something that is not a socket has its name", ErrUnsafe)
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("%w: a socket of uid %d has its name", ErrUnsafe, st.Uid)
	case st.Nlink != 1:
		return fmt.Errorf("%w: the old socket has %d names", ErrUnsafe, st.Nlink)
	}
	// A full backlog (EAGAIN) is a sign of life too: only a refusal proves that nobody listens.
	conn, err := net.DialTimeout("unix", inDirectory(dir, base), time.Second)
	if err == nil {
		conn.Close() //nolint:errcheck // nothing was written
		return ErrInUse
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return nil
}
