package files

import (
	"context"
	"sync"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/providerapi"
)

// Names of folders directly in a drive that the web client treats specially (contract 10 section 3.2).
const (
	trashName = "Trash"
	jobsName  = "Jobs"
)

// describe is the form in which Core sees an entry of a drive, or the drive itself.
func (st *state) describe(root *drives.Root, p drives.Path, info drives.Info) providerapi.File {
	top := p.Depth() == 1
	if p.Name() == trashName && !p.IsRoot() && info.Kind == drives.Directory {
		top = st.holdsTrash(root, p.Parent())
	}
	return st.describeAs(p.UCloud(), top, p.Name(), info, new(int64))
}

// describeAs is describe for callers who have the id already; top tells that the entry lies directly in the drive, or for
// a folder named Trash that its folder holds the trash, and size is where the size will be kept.
func (st *state) describeAs(id string, top bool, name string, info drives.Info, size *int64) providerapi.File {
	f := providerapi.File{
		ID:        id,
		CreatedAt: providerapi.Millis(info.ModifiedMs), // there is no creation time; Core ignores the value
		Status: providerapi.FileStatus{
			Type:       providerapi.TypeFile,
			ModifiedAt: providerapi.Millis(info.ModifiedMs),
			AccessedAt: providerapi.Millis(info.AccessedMs),
			UnixMode:   int(info.Mode & 0o777),
			UnixOwner:  info.UID,
			UnixGroup:  info.GID,
		},
	}
	if info.Kind == drives.Directory {
		f.Status.Type = providerapi.TypeDirectory
		if top && info.Link == drives.NoLink {
			f.Status.Icon = st.icon(name)
		}
	} else {
		*size = info.Size
		f.Status.SizeInBytes = size
	}
	return f
}

// holdsTrash tells whether the trash of what lies in a folder is in that folder: the drive itself, or, where one drive is a
// whole file system, the topmost folder that the user can change (contract 10 sections 3.2 and 7.6).
func (st *state) holdsTrash(root *drives.Root, folder drives.Path) bool {
	if !st.Unmanaged {
		return folder.IsRoot()
	}
	dir, err := trashParent(root, folder.Join(trashName), true)
	if err != nil {
		return false
	}
	defer dir.Close()
	return dir.Path() == folder
}

func (st *state) icon(name string) string {
	switch name {
	case trashName:
		return providerapi.IconTrash
	case jobsName, st.JobFolder:
		return providerapi.IconJobs
	}
	return ""
}

// describeByType is the description of an entry when the client wants no property that needs a look at the inode.
func (st *state) describeByType(id string, top bool, name string, kind drives.EntryType) providerapi.File {
	f := providerapi.File{ID: id, CreatedAt: providerapi.UnsetMillis, Status: providerapi.FileStatus{
		Type: providerapi.TypeFile, ModifiedAt: providerapi.UnsetMillis, AccessedAt: providerapi.UnsetMillis,
	}}
	if kind == drives.EntryDirectory {
		f.Status.Type = providerapi.TypeDirectory
		if top {
			f.Status.Icon = st.icon(name)
		}
	}
	return f
}

// describer describes entries of a directory while they are still being collected: looking at inodes takes most of the
// time of a page, and other goroutines can begin with it at once.
type describer struct {
	state   *state
	query   *query
	dir     *drives.Dir
	ctx     context.Context // of the request; the describer lives no longer
	prefix  string          // of all paths
	top     bool
	trash   func() bool // the folder holds the trash
	workers int

	slots  []headEntry        // room for all that are expected; the goroutines read it
	taken  int                // of the slots
	files  []providerapi.File // the same positions
	sizes  []int64            // one allocation for all optional sizes
	handed int                // slots handed to the goroutines so far
	spans  chan [2]int        // from, to; never blocks
	wait   sync.WaitGroup
}

// Entries are handed over in spans. Starting goroutines pays off for more than a screenful.
const (
	spanEntries  = 32
	aloneEntries = 64
)

// newDescriber makes a describer for at most n entries. finish must be called.
func (s *Service) newDescriber(ctx context.Context, q *query, dir *drives.Dir, n int) *describer {
	parent := dir.Path()
	return &describer{
		state: q.state, query: q, dir: dir, ctx: ctx, prefix: parent.UCloud() + "/", top: parent.IsRoot(),
		trash: sync.OnceValue(func() bool {
			root, err := q.ref.Open()
			if err != nil {
				return false
			}
			defer root.Close()
			return q.state.holdsTrash(root, parent)
		}),
		workers: s.statWorkers(dir),
		slots:   make([]headEntry, n), files: make([]providerapi.File, n), sizes: make([]int64, n),
		spans: make(chan [2]int, n/spanEntries+2),
	}
}

// add takes an entry. There must not be more than were expected.
func (d *describer) add(e headEntry) {
	d.slots[d.taken] = e
	d.taken++
	if len(d.slots) <= aloneEntries || d.taken-d.handed < spanEntries {
		return
	}
	if d.handed == 0 {
		for range d.workers - 1 {
			d.wait.Go(d.work)
		}
	}
	d.hand()
}

// hand makes the entries that have come since available to the goroutines.
func (d *describer) hand() {
	d.spans <- [2]int{d.handed, d.taken}
	d.handed = d.taken
}

// work describes spans until there are no more.
func (d *describer) work() {
	for span := range d.spans {
		for i := span[0]; i < span[1] && d.ctx.Err() == nil; i++ {
			d.describe(i)
		}
	}
}

func (d *describer) describe(i int) {
	e := &d.slots[i]
	id := e.id
	if escaped := drives.Escape(e.name); id == "" || escaped != e.name {
		id = d.prefix + escaped
	}
	top := d.top
	if e.name == trashName {
		top = d.trash()
	}
	if !d.query.wantStat && e.kind != drives.EntryUnknown {
		d.files[i] = d.state.describeByType(id, top, e.name, e.kind)
		return
	}
	if info, err := d.dir.Stat(e.name); err == nil {
		d.files[i] = d.state.describeAs(id, top, e.name, info, &d.sizes[i])
	}
}

// finish describes what is left and gives all descriptions in the order of the entries. Entries that have vanished since
// they were read, and those that cannot be looked at, are left out.
func (d *describer) finish() ([]providerapi.File, error) {
	d.hand()
	close(d.spans)
	d.work()
	d.wait.Wait()
	if err := d.ctx.Err(); err != nil {
		return nil, err
	}
	kept := d.files[:0]
	for i, e := range d.slots[:d.taken] {
		if f := &d.files[i]; f.ID != "" && (!d.query.readableOnly || d.dir.Readable(e.name)) {
			kept = append(kept, *f)
		}
	}
	return kept, nil
}
