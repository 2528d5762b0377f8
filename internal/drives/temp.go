package drives

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Temps makes drafts without a name where the file system can (O_TMPFILE): whatever happens to the process, nothing of
// them remains. It remembers when a file system could not, and then makes drafts with a name; [Temps.Tidy] finds those
// again. It is safe for concurrent use.
type Temps struct {
	Owner uint32 // a number that the owner of the drafts has over restarts, and nobody else at the same time

	named atomic.Bool
}

// New makes an empty draft in the directory, like [Dir.NewDraft].
func (t *Temps) New(d *Dir, target string, mode uint32) (*Draft, error) {
	if err := CheckName(target); err != nil {
		return nil, err
	}
	if t.named.Load() {
		return t.newNamed(d, target, mode)
	}
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, mode)
	})
	if err == nil {
		return &Draft{dir: d, fd: fd, unnamed: true, temps: t}, nil
	}
	// EISDIR and ENOENT come from kernels and file systems that do not know the flag.
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		t.named.Store(true)
		return t.newNamed(d, target, mode)
	}
	return nil, err
}

func (t *Temps) newNamed(d *Dir, target string, mode uint32) (*Draft, error) {
	for {
		f, err := d.openDraft(t.Hidden(target), unix.O_CREAT|unix.O_EXCL, mode)
		if !errors.Is(err, unix.EEXIST) {
			return f, err
		}
	}
}

// Hidden is the name of a draft for a target, for what is not made by New.
func (t *Temps) Hidden(target string) string {
	return draftName(target, t.prefix()+draftDigitsOf()[8:])
}

func (t *Temps) prefix() string { return fmt.Sprintf("%08x", t.Owner) }

// Tidy removes from a directory the drafts, files and links, that the same owner has left there. No others of its drafts
// may be in use there.
func (t *Temps) Tidy(d *Dir) error {
	c, err := d.Clone()
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 16<<10)
	for {
		batch, err := c.ReadBatch(buf)
		if err != nil || batch.Empty() {
			return err
		}
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			name := string(e.Name)
			if !IsDraft(name) || !strings.HasPrefix(name[len(name)-draftDigits:], t.prefix()) {
				continue
			}
			n, err := c.Node(name)
			if err == nil && n.Owner == uint32(os.Geteuid()) && n.Kind != NodeDirectory {
				err = c.Remove(name, false)
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
}

// link gives an unnamed draft a name that nothing has.
func (f *Draft) link(name string) error {
	_, err := retry(func() (struct{}, error) {
		return struct{}{}, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.fd), f.dir.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
	return err
}

// nameFor gives an unnamed draft a hidden name, so that it can be renamed.
func (f *Draft) nameFor(target string) error {
	for {
		hidden := f.temps.Hidden(target)
		err := f.link(hidden)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			f.name, f.unnamed = hidden, false
		}
		return err
	}
}

func draftDigitsOf() string {
	var raw [draftDigits / 2]byte
	rand.Read(raw[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return hex.EncodeToString(raw[:])
}

// SyncAll flushes the whole file system that the directory is on, which costs less than flushing many files one by one.
// The directory must be open for reading, and have been so since before the changes that are to be flushed: then the
// error tells of any that could not be written (syncfs(2)).
func (d *Dir) SyncAll() error {
	_, err := retry(func() (struct{}, error) { return struct{}{}, unix.Syncfs(d.fd) })
	return err
}

// OpenSub opens a directory entry for reading, for walks over trees of any depth: it must not be a link, and the result
// does not know its path. The node describes what was opened.
func (d *Dir) OpenSub(name string) (*Dir, Node, error) {
	if err := CheckName(name); err != nil {
		return nil, Node{}, err
	}
	return d.openSub(name)
}

func (d *Dir) openSub(name string) (*Dir, Node, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, Node{}, err
	}
	child := &Dir{root: d.root, fd: fd}
	node, err := child.Self()
	if err != nil {
		child.Close()
		return nil, Node{}, err
	}
	return child, node, nil
}

// Above opens the directory that this one lies in, for a walk that has come down from there and has closed it meanwhile.
// It must be the directory want, or the error is ENOENT: the one here has been moved elsewhere.
func (d *Dir) Above(want Node) (*Dir, error) {
	up, got, err := d.openSub("..")
	if err != nil {
		return nil, err
	}
	if !got.Same(want) {
		up.Close()
		return nil, unix.ENOENT
	}
	return up, nil
}
