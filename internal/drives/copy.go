package drives

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied between two looks at whether to go on.
const copyStep = 8 << 20

// CopyFrom fills the draft with the first size bytes of a file. It shares the blocks where the file system can, lets the
// kernel copy where it can, and leaves holes as holes. goOn is called for every few megabytes with the bytes since the
// last call; its error ends the copying. io.ErrUnexpectedEOF tells that the file has become shorter.
func (f *Draft) CopyFrom(src *os.File, size int64, goOn func(n int64) error) error {
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
	c := copying{draft: f, from: from, src: src, goOn: goOn}
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
	buf   []byte // not nil: the kernel cannot do it
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
	if c.buf == nil {
		in, out := off, off
		n, err := retry(func() (int, error) { return unix.CopyFileRange(c.from, &in, c.draft.fd, &out, int(most), 0) })
		switch {
		case err == nil && n > 0:
			return n, nil
		case err == nil, // some file systems say so instead of refusing
			errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTSUP):
			c.buf = make([]byte, 1<<20)
		default:
			return 0, err
		}
	}
	n, err := c.src.ReadAt(c.buf[:min(most, int64(len(c.buf)))], off)
	if n == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return c.draft.WriteAt(c.buf[:n], off)
}

// Keep gives the draft the permission bits and the times of a node.
func (f *Draft) Keep(n Node) error {
	if err := f.SetMode(n.Mode); err != nil {
		return err
	}
	return utimens(f.fd, [2]unix.Timespec{n.Accessed, n.Modified})
}

// Keep gives the directory the permission bits, the sticky bit and the times of a node. The setgid bit is left as it is:
// it says which group new files have here. The directory must be open for reading.
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

// NodeOf describes an open file.
func NodeOf(f *os.File) (Node, error) { return nodeAt(int(f.Fd()), "") }
