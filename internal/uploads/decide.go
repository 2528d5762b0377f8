package uploads

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// renames tells whether a file that collides gets another name.
func (r *record) renames() bool {
	return r.Policy == providerapi.ConflictMergeRename || r.Policy == providerapi.ConflictRename && r.Kind == kindFile
}

// rejects tells whether existing files stay.
func (r *record) rejects() bool { return r.Policy == providerapi.ConflictReject }

// target is where a file is to be stored.
type target struct {
	dir  *drives.Dir
	own  bool   // dir is closed with the file
	rel  string // of dir below the session's folder; relParent for the one above it
	name string
}

// relParent stands for the directory that holds the session's path. No listed path can be equal to it.
const relParent = "/"

// locate opens the directory of a listed file, making what is missing of it. Only names of the listing are used, and
// they lead nowhere but down from the session's folder.
func (c *conn) locate(e *entry) (target, error) {
	if e.long {
		return target{}, unix.ENAMETOOLONG
	}
	if e.path == "" {
		if c.ses.Kind == kindFolder || c.parent == nil {
			return target{}, notAllowed(errPath)
		}
		return target{dir: c.parent, rel: relParent, name: c.name}, nil
	}
	if c.ses.Kind == kindFile {
		return target{}, notAllowed(errPath)
	}
	rel, name, err := splitListed(e.path)
	if err != nil {
		return target{}, notAllowed(err)
	}
	if c.prefix+1+len(e.path) >= drives.MaxPath {
		return target{}, unix.ENAMETOOLONG // it could be made, and then nobody could name it
	}
	folder, err := c.openFolder()
	if err != nil {
		return target{}, err
	}
	if rel == "" {
		return target{dir: folder, name: name}, nil
	}
	dir, err := folder.MakeBeneath(rel, dirMode)
	if err != nil {
		return target{}, err
	}
	return target{dir: dir, own: true, rel: rel, name: name}, nil
}

func notAllowed(err error) error {
	if errors.Is(err, errPath) {
		return failure.Wrap(err, failure.Invalid, "The path of the file is not allowed")
	}
	return err
}

// openFolder opens the folder of the session, and makes it if it is missing.
func (c *conn) openFolder() (*drives.Dir, error) {
	c.folderMu.Lock()
	defer c.folderMu.Unlock()
	if c.folder != nil {
		return c.folder, nil
	}
	local, err := c.root.At(c.path)
	if err != nil {
		return nil, err
	}
	dir, err := local.OpenPathDir()
	if errors.Is(err, unix.ENOENT) && c.parent != nil {
		if err = c.parent.Mkdir(c.name, dirMode); err == nil || errors.Is(err, unix.EEXIST) {
			dir, err = local.OpenPathDir()
		}
	}
	if err != nil {
		return nil, err
	}
	c.folder = dir
	return dir, nil
}

// plan is the decision about a listed file.
type plan struct {
	skip     bool   // it is not wanted
	replaces bool   // a file of the name is there, and goes away
	mode     uint32 // permission bits of that file
}

// examine decides about a listed file (contract 11 section 2.4).
func (c *conn) examine(e *entry) (plan, error) {
	if e.size < 0 {
		return plan{}, errSize
	}
	t, err := c.locate(e)
	if err != nil {
		return plan{}, err
	}
	if t.own {
		defer t.dir.Close()
	}
	p, err := examine(c.ses, t, e, c.s.now())
	if err != nil || p.skip {
		return p, err
	}
	// Asked now, because the protocol has no way to take back an OK.
	return p, t.dir.Changeable()
}

func examine(ses *session, t target, e *entry, now time.Time) (plan, error) {
	if ses.renames() {
		known, err := findStored(ses, t, e, now)
		return plan{skip: known}, err
	}
	old, err := t.dir.Target(t.name)
	if errors.Is(err, unix.ENOENT) {
		return plan{}, nil
	}
	if err != nil {
		return plan{}, err
	}
	same := ses.same(old, e, now)
	switch {
	case old.Directory:
		return plan{}, unix.EISDIR
	case ses.rejects() && ses.Kind == kindFile && !same:
		return plan{}, unix.EEXIST // the user has asked for this very file, and must hear of it
	case ses.rejects():
		return plan{skip: true}, nil
	case ses.Kind == kindFile: // REPLACE: saved twice within a moment, the second must win
		return plan{replaces: old.Regular, mode: old.Mode}, nil
	}
	return plan{skip: same, replaces: old.Regular, mode: old.Mode}, nil
}

// findStored looks for the file among those that have the name or a numbered form of it. With RENAME only a file that
// this session wrote counts; with MERGE_RENAME one that looks the same does, or the passes of a transfer would never end.
func findStored(ses *session, t target, e *entry, now time.Time) (bool, error) {
	ses.mu.Lock()
	n := ses.note
	ses.mu.Unlock()
	own := ses.Kind == kindFile && n.Inode != 0 && n.Size == e.size && n.Modified == e.modified
	if ses.Policy == providerapi.ConflictRename && !own {
		return false, nil
	}
	missing := 0
	for i := 0; i <= drives.MaxNumbered && missing < 2; i++ { // somebody may have removed one in between
		old, err := t.dir.Target(drives.Numbered(t.name, i))
		switch {
		case errors.Is(err, unix.ENOENT):
			missing++
		case err != nil:
			return false, err
		case own && old.Regular && old.Inode == n.Inode && old.Size == n.Size:
			return true, nil
		case ses.Policy == providerapi.ConflictMergeRename && ses.same(old, e, now):
			return true, nil
		}
	}
	return false, nil
}

// same tells whether what is there is the listed file already: same size and same time.
func (ses *session) same(old drives.Target, e *entry, now time.Time) bool {
	if !old.Regular || old.Size != e.size {
		return false
	}
	when, usable := modified(e.modified, now)
	if !usable {
		return ses.sawUndated(e.path, e.size)
	}
	return sameTime(old.Modified, when)
}

// sameTime compares the time of a file with the one that was set, which some file systems keep in seconds only, or in
// two seconds.
func sameTime(have, want time.Time) bool {
	d := have.Sub(want).Abs()
	if have.Nanosecond() != 0 {
		return d < 2*time.Millisecond
	}
	return d <= 2*time.Second
}

// modified gives the time of a listed file. Without a sensible one the present is used, and there is nothing to
// recognise the file by.
func modified(ms int64, now time.Time) (t time.Time, usable bool) {
	if ms <= 0 || ms > now.Add(24*time.Hour).UnixMilli() {
		return now, false
	}
	return time.UnixMilli(ms), true
}
