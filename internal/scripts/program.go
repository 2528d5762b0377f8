package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// program is a file that has passed the rules for programs. It stays open until it is closed.
type program struct {
	fd   int    // O_PATH
	path string // without links
	hash string // SHA-256 of the content, hexadecimal; empty if we may not read it
	text bool   // it begins with "#!"
}

// maxLinks and maxHashed bound what a walk and a look at the content may cost.
const (
	maxLinks  = 40 // as in the kernel, path_resolution(7)
	maxHashed = 64 << 20
)

// rules says whom we trust with programs.
type rules struct {
	account uint32 // beside root
	// temporary allows directories that everybody may write to if they are sticky, such as /tmp: there nobody can
	// replace what belongs to others. For development only.
	temporary bool
}

// open walks to the program and checks it and everything on the way (contract 40 section 2, type exec; contract 42
// SEC-S1). The error says in words what is wrong.
func (r rules) open(path string) (*program, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%q is not an absolute path", path)
	}
	at, rest, links := "/", parts(path), 0
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	defer func() { unix.Close(fd) }()
	for {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		if why := r.untrusted(&st); why != "" {
			return nil, fmt.Errorf("%s %s", at, why)
		}
		if len(rest) == 0 {
			return nil, fmt.Errorf("%s is a directory", path)
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
			if links++; links > maxLinks || len(rest) == 1 {
				return nil, fmt.Errorf("%s is a symbolic link", filepath.Join(at, name))
			}
			if why := r.untrusted(&st); why != "" {
				return nil, fmt.Errorf("%s %s", filepath.Join(at, name), why)
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
			return r.take(fd, filepath.Join(at, name), &st)
		default:
			return nil, fmt.Errorf("%s is not a regular file", filepath.Join(at, name))
		}
	}
}

func parts(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' })
}

// untrusted tells in words why somebody else could change a file, directory or link; empty means nobody can.
func (r rules) untrusted(st *unix.Stat_t) string {
	if st.Uid != 0 && st.Uid != r.account {
		return fmt.Sprintf("belongs to uid %d, who is neither root nor the account of the service", st.Uid)
	}
	kind := st.Mode & unix.S_IFMT
	sticky := r.temporary && kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
	if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky {
		return ""
	}
	// Access lists are covered: their mask stands in the bits of the group (acl(5)).
	return fmt.Sprintf("has mode %04o: others may write to it", st.Mode&0o7777)
}

// take makes a program of a checked regular file.
func (r rules) take(fd int, path string, st *unix.Stat_t) (*program, error) {
	if why := r.untrusted(st); why != "" {
		return nil, fmt.Errorf("%s %s", path, why)
	}
	if st.Mode&0o111 == 0 {
		return nil, fmt.Errorf("%s is not executable", path)
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("keep %s open: %w", path, err)
	}
	p := &program{fd: own, path: path}
	if err := p.read(st.Size); err != nil {
		p.close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return p, nil
}

// read looks at the content. A program that we may execute and not read is legal; it cannot have a "#!" line then,
// because its interpreter would have to read it.
func (p *program) read(size int64) error {
	f, err := os.Open(procPath(p.fd)) // the same file, whatever has become of its name
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var head [2]byte
	if n, err := f.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if n == 2 {
		p.text = string(head[:]) == "#!"
	}
	if size > maxHashed {
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxHashed)); err != nil {
		return err
	}
	p.hash = hex.EncodeToString(h.Sum(nil))
	return nil
}

// executable is what execve(2) gets in a child with the files; done is called after the start. A child has our
// descriptors under the same numbers until execve has succeeded, except those just above the highest of its files, which
// the run-time uses for itself: so ours is far above.
func (p *program) executable(files []*os.File) (path string, done func(), err error) {
	if p.text {
		return p.path, func() {}, nil
	}
	highest := p.fd
	for _, f := range files {
		highest = max(highest, int(f.Fd()))
	}
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, highest+64)
	if err != nil {
		return "", nil, fmt.Errorf("keep %s open: %w", p.path, err)
	}
	return procPath(fd), func() { unix.Close(fd) }, nil
}

func (p *program) close() { unix.Close(p.fd) }

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

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
