package files

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

// The trash notes where its entries come from: a file in the hidden folder Trash/.ucloud-origin for each, with the name
// of the entry, in the form that desktops use for the same purpose (.trashinfo of the freedesktop.org trash
// specification). It is for people: nothing here ever opens what such a file says. See docs/decisions.
const originsName = ".ucloud-origin"

// origin is the content of such a file.
type origin struct {
	path  string // of UCloud
	at    time.Time
	inode uint64 // of the entry that it is about
}

func (o origin) text() string {
	return fmt.Sprintf("[Trash Info]\nPath=%s\nDeletionDate=%s\nInode=%d\n",
		(&url.URL{Path: o.path}).EscapedPath(), o.at.Format("2006-01-02T15:04:05"), o.inode)
}

// noteOrigin notes where an entry of the trash comes from. The entry is in the trash already, so a failure to do so is
// told in the log only.
func (s *Service) noteOrigin(trash *drives.Dir, name, path string) {
	if err := writeOrigin(trash, name, origin{path: path, at: s.now()}); err != nil {
		s.log.Warn("the origin of something in the trash was not noted", "path", path, "error", err)
	}
}

func writeOrigin(trash *drives.Dir, name string, o origin) error {
	node, err := trash.Node(name)
	if err != nil {
		return err
	}
	o.inode = node.Ino
	if err := trash.Mkdir(originsName, dirMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	dir, err := trash.OpenChild(originsName) // never a link
	if err != nil {
		return err
	}
	defer dir.Close()
	draft, err := dir.NewDraft(name, 0o660)
	if err != nil {
		return err
	}
	defer draft.Discard()
	if _, err := draft.WriteAt([]byte(o.text()), 0); err != nil {
		return err
	}
	if err := draft.Close(); err != nil {
		return err
	}
	return draft.Replace(name)
}

// notedBy tells whether an entry of the trash was noted there by a time, which is one of the file system's clock. The time
// of a folder alone does not tell: it changes with its content, of which an interrupted task has removed a part.
func notedBy(trash *drives.Dir, name string, entry drives.Node, until int64) bool {
	dir, err := trash.OpenChild(originsName) // never a link
	if err != nil {
		return false
	}
	defer dir.Close()
	note, err := dir.Node(name)
	if err != nil || note.Kind != drives.NodeRegular || note.Changed.Nano() > until {
		return false
	}
	f, err := dir.OpenFile(name)
	if err != nil {
		return false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxOrigin))
	if err != nil {
		return false
	}
	_, inode, _ := strings.Cut(string(data), "\nInode=")
	n, err := strconv.ParseUint(strings.TrimSpace(inode), 10, 64)
	return err == nil && n == entry.Ino
}

// maxOrigin is more than any note has: each of the bytes of a path may take three.
const maxOrigin = 3*drives.MaxPath + 1024

// dropOrigins removes the notes about what is not in the trash any more, and their folder with the last of them. What
// cannot be read or removed stays; it is in nobody's way.
func dropOrigins(trash *drives.Dir, goOn func() error) error {
	dir, _, err := trash.OpenSub(originsName)
	if err != nil {
		return nil //nolint:nilerr // there is none, or something else has the name
	}
	defer dir.Close()
	buf := make([]byte, readBuffer)
	for {
		batch, err := dir.ReadBatch(buf)
		if err != nil || batch.Empty() {
			_ = trash.Remove(originsName, true) // only if it is empty
			return nil                          //nolint:nilerr // as above
		}
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			if err := goOn(); err != nil {
				return err
			}
			name := string(e.Name)
			if drives.IsDraft(name) {
				_, _ = dir.RemoveOldDraft(name, time.Now().Add(-time.Hour))
			} else if _, err := trash.Node(name); errors.Is(err, unix.ENOENT) {
				_ = dir.Remove(name, false)
			}
		}
	}
}
