package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/trustpath"
)

// program is a file that has passed the rules for programs. It stays open until it is closed.
type program struct {
	fd   int    // O_PATH
	path string // without links
	hash string // SHA-256 of the content, hexadecimal; empty if we may not read it
	text bool   // it begins with "#!"
	stat unix.Stat_t
}

// maxHashed bounds what a look at the content may cost.
const maxHashed = 64 << 20

// openProgram walks to a program and checks it and everything on the way. The error says in words what is wrong.
func openProgram(rules trustpath.Rules, path string) (*program, error) {
	f, err := rules.Open(path)
	if err != nil {
		return nil, err
	}
	p := &program{fd: f.FD, path: f.Path, stat: f.Stat}
	if f.Stat.Mode&0o111 == 0 {
		p.close()
		return nil, fmt.Errorf("%s is not executable", p.path)
	}
	if err := p.read(f.Stat.Size); err != nil {
		p.close()
		return nil, fmt.Errorf("read %s: %w", p.path, err)
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
