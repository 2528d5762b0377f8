package downloads

import (
	"archive/zip"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/fileserver"
)

const (
	// zipPage is how many entries of a directory are read at a time.
	zipPage = 256
	// zipBuffer is how much is read from a file and given to the connection at a time.
	zipBuffer = 256 << 10
	// zipDepth bounds how deep folders are entered. Deeper paths cannot be named in UCloud.
	zipDepth = drives.MaxPath / 2
)

// sendZip sends a folder. The content is stored, not compressed: the network is usually faster than the processor that
// many users share, and research data is compressed already.
//
// There is no length and no way to continue. Everything that goes wrong breaks the connection off before the directory at
// the end of the archive, so that no program takes it for complete. Links and special files are left out; the archive's
// comment says how many.
func (s *Service) sendZip(w http.ResponseWriter, c *fileserver.Call, o *opened, name string) error {
	h := w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", disposition(name+".zip"))
	h.Set("Accept-Ranges", "none")
	if c.Method == http.MethodHead {
		return nil
	}
	out := bufio.NewWriterSize(w, zipBuffer)
	a := &archive{ctx: c.Context(), zip: zip.NewWriter(out), buf: make([]byte, zipBuffer)}
	err := a.folder(o.dir, zipName(cleanName(name)), 0)
	if err == nil {
		err = a.finish()
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		level := c.Log().Warn
		if c.Context().Err() != nil {
			level = c.Log().Debug // the browser has gone
		}
		level("the download of a folder was broken off", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// archive is a zip being made. It lives as long as its request.
type archive struct {
	ctx     context.Context
	zip     *zip.Writer
	buf     []byte
	links   int
	special int
}

// folder adds a directory and all that is in it. The descriptor decides what is read, so that it does not matter what its
// name means by now.
func (a *archive) folder(dir *drives.Dir, prefix string, depth int) error {
	if depth > zipDepth {
		return fmt.Errorf("folder: %w", unix.ENAMETOOLONG)
	}
	v, err := dir.Identify()
	if err != nil {
		return err
	}
	if err := a.addFolder(prefix, v.Mtime); err != nil {
		return err
	}
	names := make([]string, 0, zipPage)
	var at drives.Cursor
	for more := true; more; {
		names = names[:0]
		at, more, err = dir.Page(at, zipPage, func(e drives.Entry) error {
			names = append(names, string(e.Name))
			return nil
		})
		if err != nil {
			return fmt.Errorf("read folder: %w", err)
		}
		for _, name := range names {
			if err := a.entry(dir, name, prefix, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *archive) addFolder(prefix string, modified time.Time) error {
	_, err := a.zip.CreateHeader(&zip.FileHeader{Name: prefix + "/", Modified: modified, ExternalAttrs: 0o40755 << 16, CreatorVersion: creatorUnix})
	return err
}

// creatorUnix tells that the attributes are those of Unix (APPNOTE.TXT section 4.4.2).
const creatorUnix = 3 << 8

func (a *archive) entry(dir *drives.Dir, name, prefix string, depth int) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	target, err := dir.Target(name)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	full := prefix + "/" + zipName(drives.Escape(name))
	switch {
	case drives.IsDraft(name):
		return nil // not a file yet
	case target.Directory:
		return a.subfolder(dir, name, full, depth)
	case target.Regular:
		return a.file(dir, name, full)
	}
	// What is no directory and no file is a link or special.
	info, err := dir.Stat(name)
	if err == nil && info.Link != drives.NoLink {
		a.links++
	} else {
		a.special++
	}
	return nil
}

func (a *archive) subfolder(dir *drives.Dir, name, full string, depth int) error {
	child, err := dir.OpenChild(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	defer child.Close()
	list, err := child.Clone()
	if err != nil {
		return err
	}
	defer list.Close()
	return a.folder(list, full, depth+1)
}

func (a *archive) file(dir *drives.Dir, name, full string) error {
	f, err := dir.OpenFile(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open file: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat file: %w", err)
	}
	h := &zip.FileHeader{Name: full, Method: zip.Store, Modified: info.ModTime()}
	h.SetMode(info.Mode() & os.ModePerm)
	to, err := a.zip.CreateHeader(h)
	if err != nil {
		return err
	}
	// A file that grows ends where it ended when it was opened; one that shrinks is not what was asked for.
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{io.LimitReader(f, info.Size())}, a.buf)
	if err == nil && n < info.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("send file: %w", err)
	}
	return nil
}

// finish writes the directory of the archive.
func (a *archive) finish() error {
	if a.links+a.special > 0 {
		if err := a.zip.SetComment(fmt.Sprintf("Left out: %d symbolic links, %d special files", a.links, a.special)); err != nil {
			return err
		}
	}
	return a.zip.Close()
}

// zipName makes a name that programs on other systems do not take for a path: some treat a backslash as one of the two
// separators. It becomes the character of the same look that other tools use for it.
func zipName(name string) string { return strings.ReplaceAll(name, `\`, "＼") }
