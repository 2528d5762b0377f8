package drives

import (
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied between two looks at whether to go on.
const copyStep = 4 << 20

// smallCopy is how long a file may be that is read and written in one piece. For those two calls cost less than having
// the kernel copy.
const smallCopy = 128 << 10

// CopyBuffer is memory for [Draft.CopyFrom], for one copy at a time. The zero value is ready.
type CopyBuffer struct{ mem []byte }

func (b *CopyBuffer) of(n int) []byte {
	if cap(b.mem) < n {
		b.mem = make([]byte, n)
	}
	return b.mem[:n]
}

// CopyFrom fills the draft with the content of a file as far as node tells its size. It shares the blocks where the
// file system can, lets the kernel copy where it can, and leaves holes as holes. goOn is called for every few megabytes
// with the bytes since the last call; its error ends the copying. io.ErrUnexpectedEOF tells that the file has become
// shorter.
func (f *Draft) CopyFrom(src *os.File, node Node, buf *CopyBuffer, goOn func(n int64) error) error {
	size := node.Size
	if size == 0 {
		return nil
	}
	from := int(src.Fd())
	// A clone takes the whole file, which may have grown since.
	if unix.IoctlFileClone(f.fd, from) == nil {
		if now, err := f.Size(); err != nil || now < size {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		if err := f.Truncate(size); err != nil {
			return err
		}
		return goOn(size)
	}
	c := copying{draft: f, from: from, src: src, goOn: goOn, buf: buf}
	if dense := node.Blocks*512 >= size; dense || size <= MinBatch {
		c.plain = size <= smallCopy
		return c.part(0, size)
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(from, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // nothing but a hole
			data = size
		case errors.Is(err, unix.EINVAL): // the file system does not know where its holes are
			data = off
		case err != nil:
			return err
		}
		if data >= size {
			break
		}
		hole, err := unix.Seek(from, data, unix.SEEK_HOLE)
		if err != nil || hole <= data {
			hole = size
		}
		if err := c.part(data, min(hole, size)); err != nil {
			return err
		}
		off = hole
	}
	if now, err := src.Stat(); err != nil || now.Size() < size {
		return errors.Join(io.ErrUnexpectedEOF, err)
	}
	return f.Truncate(size)
}

// copying is the state of one copy.
type copying struct {
	draft *Draft
	from  int
	src   *os.File
	goOn  func(int64) error
	buf   *CopyBuffer
	plain bool // not by the kernel
}

// part copies the bytes from one offset to another.
func (c *copying) part(off, end int64) error {
	for off < end {
		n, err := c.step(off, min(end-off, copyStep))
		if err != nil {
			return err
		}
		off += int64(n)
		if err := c.goOn(int64(n)); err != nil {
			return err
		}
	}
	return nil
}

func (c *copying) step(off, most int64) (int, error) {
	if !c.plain {
		in, out := off, off
		n, err := retry(func() (int, error) { return unix.CopyFileRange(c.from, &in, c.draft.fd, &out, int(most), 0) })
		switch {
		case err == nil && n > 0:
			return n, nil
		case err == nil, // some file systems say so instead of refusing
			errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTSUP):
			c.plain = true
		default:
			return 0, err
		}
	}
	piece := c.buf.of(int(min(most, 1<<20)))
	n, err := c.src.ReadAt(piece, off)
	if n == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return c.draft.WriteAt(piece[:n], off)
}

// KeepAttributes gives the draft the extended attributes of a file that are its user's own (user.*). Where the new file
// system has none they are left out, as by other tools.
func (f *Draft) KeepAttributes(src *os.File) error { return keepAttributes(int(src.Fd()), f.fd) }

// KeepAttributes is [Draft.KeepAttributes] for directories. Both must be open for reading.
func (d *Dir) KeepAttributes(src *Dir) error { return keepAttributes(src.fd, d.fd) }

func keepAttributes(from, to int) error {
	size, err := unix.Flistxattr(from, nil)
	if err != nil || size == 0 {
		return nil // no attributes, or none that can be known
	}
	names := make([]byte, size+1024)
	size, err = unix.Flistxattr(from, names)
	if err != nil {
		return nil //nolint:nilerr // somebody is changing them
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(from, name, value)
		if err != nil {
			continue
		}
		switch err := unix.Fsetxattr(to, name, value[:n], 0); {
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
		case err != nil:
			return err
		}
	}
	return nil
}

// Finish hands the content over to the file system. Some tell about a lack of space only now; what it gives is no
// promise that the content is on the disk ([Draft.Sync]).
func (f *Draft) Finish() error {
	if !f.unnamed {
		return f.Close()
	}
	// An unnamed file must stay open until it has a name. Closing a duplicate has the same effect on network file systems.
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Keep gives the draft the permission bits and the times of a node.
func (f *Draft) Keep(n Node) error {
	if err := f.SetMode(n.Mode); err != nil {
		return err
	}
	return utimens(f.fd, [2]unix.Timespec{n.Accessed, n.Modified})
}

// Keep gives the directory the permission bits, with the sticky one, and the times of a node. The setgid bit is left as
// it is: it says which group new files have here. The directory must be open for reading.
func (d *Dir) Keep(n Node) error {
	self, err := d.Self()
	if err != nil {
		return err
	}
	if err := unix.Fchmod(d.fd, n.Mode&0o1777|self.Mode&0o6000); err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, ".", []unix.Timespec{n.Accessed, n.Modified}, 0)
}

// ReadLink gives the text of a symbolic link.
func (d *Dir) ReadLink(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	buf := make([]byte, MaxPath+1)
	n, err := retry(func() (int, error) { return unix.Readlinkat(d.fd, name, buf) })
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// Symlink makes a symbolic link if nothing has the name. The text is not looked at: what it leads to is decided when
// somebody follows it.
func (d *Dir) Symlink(text, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	_, err := retry(func() (struct{}, error) { return struct{}{}, unix.Symlinkat(text, d.fd, name) })
	return err
}

// KeepLinkTime gives an entry, which may be a symbolic link, the times of a node.
func (d *Dir) KeepLinkTime(name string, n Node) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{n.Accessed, n.Modified}, unix.AT_SYMLINK_NOFOLLOW)
}

// Building is the mode of a directory that is being filled: nobody else can enter it, and it can be told from every
// other after an interruption ([Node.Building]).
const Building = 0o1700

// Building tells whether the node is a directory that this account was filling.
func (n Node) Building() bool {
	return n.Kind == NodeDirectory && n.Mode&0o5777 == Building && n.Owner == uint32(os.Geteuid())
}

// NodeOf describes an open file.
func NodeOf(f *os.File) (Node, error) { return nodeAt(int(f.Fd()), "") }
