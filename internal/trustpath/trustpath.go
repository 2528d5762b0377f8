// Package trustpath walks to files that decide what the service does, such as programs that it runs or the file that says who
// has which account, and refuses those that somebody else could change.
//
// That is decided by all directories on the way as well: who may rename one replaces what is below it. Links are followed one by
// one, and what they lead to is held to the same rules, from the root (contract 40 section 2, type exec; contract 42 SEC-S1).
// The file that was found stays open, so that what was checked is what is used (TestProgramRules in package scripts, TestFileOfOthers in package usermap/static).
package trustpath

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds a walk, as in the kernel (path_resolution(7)).
const maxLinks = 40

// Rules say whom we trust.
type Rules struct {
	Account int // beside root
	// Temporary allows directories that everybody may write to if they are sticky, such as /tmp: there nobody can
	// replace what belongs to others. For development only.
	Temporary bool
	// Link allows that the file itself is a link, to a file that is held to the same rules.
	Link bool
}

// Untrusted is the error for what somebody else could change.
type Untrusted struct {
	Path string // without links
	Why  string // in words, to go behind the path
}

func (e *Untrusted) Error() string { return e.Path + " " + e.Why }

// File is a regular file that has passed. It stays open until it is closed.
type File struct {
	FD   int    // O_PATH
	Path string // without links
	Stat unix.Stat_t
}

// Close closes the file.
func (f *File) Close() { unix.Close(f.FD) }

// Proc is a name under which the very file can be opened, whatever has become of its own.
func (f *File) Proc() string { return fmt.Sprintf("/proc/self/fd/%d", f.FD) }

// Open walks to a regular file and checks it and everything on the way. The error says in words what is wrong, and is
// [Untrusted] for what somebody else could change.
func (r Rules) Open(path string) (*File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", path)
	}
	at, rest, links := "/", parts(path), 0
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	defer func() {
		if fd >= 0 {
			unix.Close(fd)
		}
	}()
	for {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		if why := r.Why(&st); why != "" {
			return nil, &Untrusted{at, why}
		}
		if len(rest) == 0 {
			return nil, fmt.Errorf("%s is a directory and not a regular file", path)
		}
		name := rest[0]
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(at, name), err)
		}
		unix.Close(fd)
		fd = next
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(at, name), err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			at, rest = filepath.Join(at, name), rest[1:]
		case unix.S_IFLNK:
			if len(rest) == 1 && !r.Link {
				return nil, fmt.Errorf("%s is a symbolic link", filepath.Join(at, name))
			}
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%s has too many symlinks", path)
			}
			if why := r.Why(&st); why != "" {
				return nil, &Untrusted{filepath.Join(at, name), why}
			}
			target, err := readlink(fd)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(at, name), err)
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(at, target)
			}
			// From the top again: what the link names is checked like everything else.
			top, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open /: %w", err)
			}
			unix.Close(fd)
			fd, at, rest = top, "/", append(parts(target), rest[1:]...)
		case unix.S_IFREG:
			if len(rest) > 1 {
				return nil, fmt.Errorf("%s is not a directory", filepath.Join(at, name))
			}
			if why := r.Why(&st); why != "" {
				return nil, &Untrusted{filepath.Join(at, name), why}
			}
			f := &File{FD: fd, Path: filepath.Join(at, name), Stat: st}
			fd = -1
			return f, nil
		default:
			return nil, fmt.Errorf("%s is not a regular file", filepath.Join(at, name))
		}
	}
}

func parts(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' })
}

// Why tells in words why somebody else could change a file, directory or link; empty means nobody can.
func (r Rules) Why(st *unix.Stat_t) string {
	if st.Uid != 0 && int(st.Uid) != r.Account {
		return fmt.Sprintf("belongs to uid %d, who is neither root nor the service account", st.Uid)
	}
	kind := st.Mode & unix.S_IFMT
	sticky := r.Temporary && kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
	if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky {
		return ""
	}
	// Access lists are covered: their mask stands in the bits of the group (acl(5)).
	return fmt.Sprintf("has mode %04o: others may write to it", st.Mode&0o7777)
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	if n == 0 || n == len(buf) {
		return "", errors.New("strange symbolic link")
	}
	return string(buf[:n]), nil
}
