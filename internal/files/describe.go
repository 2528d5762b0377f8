package files

import (
	"context"
	"sync/atomic"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/providerapi"
)

// Names of folders directly in a drive that the web client treats specially (contract 10 section 3.2).
const (
	trashName = "Trash"
	jobsName  = "Jobs"
)

// describe is the form in which Core sees an entry.
func (st *state) describe(p drives.Path, info drives.Info) providerapi.File {
	return st.describeAs(p.UCloud(), p.Depth() == 1, p.Name(), info, new(int64))
}

// describeAs is describe for callers who have the id already; top tells that the entry lies directly in the drive, and
// size is where the size will be kept.
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

// describeAll describes entries of a directory, in their order. Entries that have vanished since they were read, and
// those that cannot be looked at, are left out.
func (s *Service) describeAll(ctx context.Context, st *state, dir *drives.Dir, q *query, entries []headEntry) ([]providerapi.File, error) {
	parent := dir.Path()
	prefix := parent.UCloud() + "/"
	top := parent.IsRoot()
	files := make([]providerapi.File, len(entries))
	sizes := make([]int64, len(entries)) // one allocation for all optional sizes
	one := func(i int) {
		e := entries[i]
		id := prefix + drives.Escape(e.name)
		if !q.wantStat && e.kind != drives.EntryUnknown {
			files[i] = st.describeByType(id, top, e.name, e.kind)
			return
		}
		if info, err := dir.Stat(e.name); err == nil {
			files[i] = st.describeAs(id, top, e.name, info, &sizes[i])
		}
	}
	// Starting goroutines pays off for more than a screenful.
	const alone = 64
	workers := 1
	if len(entries) > alone {
		workers = s.statWorkers(dir)
	}
	var next atomic.Int64
	err := parallel(ctx, workers, func(ctx context.Context) error {
		const chunk = 16
		for ctx.Err() == nil {
			start := int(next.Add(chunk)) - chunk
			if start >= len(entries) {
				return nil
			}
			for i := start; i < min(start+chunk, len(entries)); i++ {
				one(i)
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	kept := files[:0]
	for i, f := range files {
		if f.ID != "" && !(q.readableOnly && !dir.Readable(entries[i].name)) {
			kept = append(kept, f)
		}
	}
	return kept, nil
}
