package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// inlineEntries is the size up to which a directory is read anew for every page. Above it an index is made in the
// background and kept.
const inlineEntries = 4096

// query is a checked browse request.
type query struct {
	ref        drives.Ref
	path       drives.Path
	state      *state
	order      order
	asked      order
	descending bool
	limit      int
	after      *mark
	token      *pageToken // nil for the beginning of a listing
	shown      map[uint64]bool
	skip       uint64 // entries to leave out first

	hideHidden   bool
	extension    string // with the dot, in lower case; "" is no filter
	wantStat     bool
	readableOnly bool
}

// Browse lists one page of a directory (contract 10 section 5.1).
func (s *Service) Browse(ctx context.Context, req *providerapi.FilesBrowse) (providerapi.Page[providerapi.File], error) {
	q, err := s.parseBrowse(req)
	if err != nil {
		return providerapi.Page[providerapi.File]{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	page, err := s.list(ctx, q)
	if err != nil {
		return page, s.refuse(ctx, err, reading)
	}
	page.ItemsPerPage = q.limit
	s.retire(&req.ResolvedCollection)
	return page, nil
}

func (s *Service) parseBrowse(req *providerapi.FilesBrowse) (*query, error) {
	st := s.state.Load()
	ref, err := s.drive(st, &req.ResolvedCollection)
	if err != nil {
		return nil, err
	}
	flags := &req.Browse.Flags
	p, err := ref.Path(orZero(flags.Path))
	if err != nil {
		return nil, err
	}
	q := &query{
		ref: ref, path: p, state: st, limit: clampPage(req.Browse.ItemsPerPage),
		hideHidden: orZero(flags.FilterHiddenFiles),
		wantStat:   orZero(flags.IncludeSizes) || orZero(flags.IncludeTimestamps) || orZero(flags.IncludeUnixInfo),
	}
	q.extension = extensionOf(flags.FilterByFileExtension)
	q.readableOnly = st.Unmanaged && q.hideHidden && p.IsRoot()
	sortBy, ok := orderNames[orZero(req.Browse.SortBy)]
	if !ok {
		return nil, failure.New(failure.Invalid, "Files cannot be sorted by this property")
	}
	q.order, q.asked = sortBy, sortBy
	switch orZero(req.Browse.SortDirection) {
	case "", providerapi.SortAscending:
	case providerapi.SortDescending:
		q.descending = true
	default:
		return nil, failure.New(failure.Invalid, "The sort direction is neither ascending nor descending")
	}
	next := orZero(req.Browse.Next)
	if skip, ok := parsePosition(next); ok {
		q.skip = skip
	} else if next != "" {
		t, err := parseToken(next)
		if err != nil {
			return nil, err
		}
		if t.asked != q.asked || t.descending != q.descending {
			return nil, failure.New(failure.Invalid, "The page token belongs to a listing in another order")
		}
		q.token, q.order, q.after, q.skip = t, t.order, t.after, t.skip
		if len(t.shown) > 0 {
			q.shown = make(map[uint64]bool, len(t.shown))
			for _, h := range t.shown {
				q.shown[h] = true
			}
		}
	}
	return q, nil
}

// extensionOf is the filter for an extension, with the dot and in lower case; "" is no filter.
func extensionOf(flag *string) string {
	if orZero(flag) == "" {
		return ""
	}
	return "." + string(bytes.ToLower(bytes.TrimPrefix([]byte(*flag), []byte("."))))
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// attempt is the outcome of one step of a listing: a page, or a scan that has to be waited for.
type attempt struct {
	page providerapi.Page[providerapi.File]
	scan *scan
}

// list gives the page. It waits for a scan without holding a slot of the drive.
func (s *Service) list(ctx context.Context, q *query) (providerapi.Page[providerapi.File], error) {
	begin := time.Now()
	drive := q.ref.Base()
	for {
		a, err := run(ctx, s.gate, drive, func() (attempt, error) { return s.tryPage(ctx, q) }, func(a attempt) {
			if a.scan != nil {
				s.cache.leave(a.scan)
			}
		})
		if err != nil || a.scan == nil {
			return a.page, err
		}
		wait := s.o.ScanWait
		if q.order != byPath {
			wait = wait * 2 / 3 // the rest is for sorting by path instead
		}
		deadline, cancel := context.WithDeadline(ctx, begin.Add(wait))
		page, again, err := s.await(ctx, deadline, q, a.scan)
		cancel()
		s.cache.leave(a.scan)
		if err != nil || !again {
			return page, err
		}
	}
}

// await waits for a scan until the deadline and makes the page from its result. If it takes too long, the listing goes on
// without. again tells that the query has been changed and must be tried anew.
func (s *Service) await(ctx, deadline context.Context, q *query, sc *scan) (page providerapi.Page[providerapi.File], again bool, err error) {
	before := sc.batches.Load()
	select {
	case <-sc.done:
	case <-deadline.Done():
		if err := ctx.Err(); err != nil {
			return page, false, errBusy(err)
		}
		return s.proceed(ctx, q, sc, before)
	}
	if sc.err != nil {
		return page, false, sc.err
	}
	if sc.result.tooMany {
		return page, true, s.sortByPathInstead(q)
	}
	if !sc.result.covers(q.after, q.descending) {
		return page, true, nil // a section that was made for another place
	}
	page, err = run(ctx, s.gate, q.ref.Base(), func() (providerapi.Page[providerapi.File], error) {
		dir, closeAll, err := open(q)
		if err != nil {
			return providerapi.Page[providerapi.File]{}, err
		}
		defer closeAll()
		return s.pageFrom(ctx, q, dir, sc.result.index)
	}, nil)
	return page, false, err
}

// open opens the directory of a query.
func open(q *query) (*drives.Dir, func(), error) {
	root, err := q.ref.Open()
	if err != nil {
		return nil, nil, err
	}
	local, err := root.At(q.path)
	if err == nil {
		var dir *drives.Dir
		if dir, err = local.OpenDir(); err == nil {
			return dir, func() { dir.Close(); root.Close() }, nil
		}
	}
	root.Close()
	return nil, nil, err
}

// tryPage makes the page from an index in the cache, or by reading a small directory. Otherwise it starts a scan.
func (s *Service) tryPage(ctx context.Context, q *query) (attempt, error) {
	dir, closeAll, err := open(q)
	if err != nil {
		return attempt{}, err
	}
	defer closeAll()
	version, err := dir.Identify()
	if err != nil {
		return attempt{}, err
	}
	if e := s.cache.get(dirKey{version.Dev, version.Ino, q.order}, q, version); e != nil {
		defer e.release()
		if !e.tooMany {
			page, err := s.pageFrom(ctx, q, dir, e.index)
			return attempt{page: page}, err
		}
		if err := s.sortByPathInstead(q); err != nil {
			return attempt{}, err
		}
	}
	x, err := s.readSmall(dir, q)
	if errors.Is(err, errTooMany) {
		if err = s.sortByPathInstead(q); err == nil {
			if err = dir.Seek(0); err == nil {
				x, err = s.readSmall(dir, q)
			}
		}
	}
	if err != nil {
		return attempt{}, err
	}
	if x != nil {
		x.generation = s.nextGeneration()
		page, err := s.pageFrom(ctx, q, dir, x)
		return attempt{page: page}, err
	}
	sc, err := s.start(ctx, q.ref.Base(), dir, q, version)
	return attempt{scan: sc}, err
}

// readSmall reads a directory of at most inlineEntries entries. It gives nil for a larger one, and errTooMany if it must
// not be sorted as the query wants.
func (s *Service) readSmall(dir *drives.Dir, q *query) (*index, error) {
	b := newBuilder(q.order != byPath, nil, false, s.cache, s.indexLimit())
	buf := make([]byte, inlineBatch)
	for {
		batch, err := dir.ReadBatch(buf)
		if err != nil {
			return nil, err
		}
		if batch.Empty() {
			return b.finish()
		}
		for e, ok := batch.Next(); ok; e, ok = batch.Next() {
			if most := q.mostSorted(); most > 0 && b.count == most {
				b.discard()
				return nil, errTooMany
			}
			var key int64
			if q.order != byPath {
				if key, ok = sortKey(dir, string(e.Name), q.order); !ok {
					continue
				}
			}
			if b.count == inlineEntries || b.mapped != nil {
				b.discard()
				return nil, nil //nolint:nilnil // nil is the documented answer for a large directory
			}
			if err := b.addLocked(e.Name, e.Type, key); err != nil {
				b.discard()
				return nil, err
			}
		}
	}
}

// mostSorted is the most entries that the listing may sort by what it is sorted by; 0 is no bound. A listing that has
// begun goes on in its order.
func (q *query) mostSorted() int {
	if q.order == byPath || q.token != nil {
		return 0
	}
	return q.state.MaxBrowseEntries
}

// sortByPathInstead turns a listing by size or time, at its beginning, into one by path.
func (s *Service) sortByPathInstead(q *query) error {
	if q.token != nil || q.order == byPath {
		return fmt.Errorf("order of a listing under way cannot change")
	}
	q.order = byPath
	return nil
}

// pageFrom makes a page from an index.
func (s *Service) pageFrom(ctx context.Context, q *query, dir *drives.Dir, x *index) (providerapi.Page[providerapi.File], error) {
	var page providerapi.Page[providerapi.File]
	after, skip := q.after, q.skip
	path := []byte(dir.Path().UCloud() + "/")
	prefix := len(path)
	for {
		// One more than fits tells whether there is another page. The marks are those of the last record taken and, if
		// the records end with the section of the index, of its end.
		room := q.limit - len(page.Items)
		d := s.newDescriber(ctx, q, dir, room)
		var last uint32
		more, full := false, false
		end := x.each(after, q.descending, func(rec uint32) bool {
			if name := x.name(rec); !q.matches(name) {
				return true
			} else if skip > 0 {
				skip--
				return true
			} else if d.taken == room {
				more, full = true, true
				return false
			} else {
				// One piece of memory for the path and the name in it.
				path = append(path[:prefix], name...)
				id := string(path)
				d.add(headEntry{name: id[prefix:], kind: x.kind(rec), id: id})
				last = rec
				return true
			}
		})
		switch {
		case full:
			after = x.mark(last)
		case !end:
			more, after = true, x.far
		}
		files, err := d.finish()
		if err != nil {
			return page, err
		}
		if page.Items == nil {
			page.Items = files
		} else {
			page.Items = append(page.Items, files...)
		}
		if !full || len(page.Items) == q.limit {
			if more {
				page.Next = q.nextToken(x.generation, after, nil, skip)
			}
			return page, nil
		}
	}
}

// matches applies the filters of a query to a name.
func (q *query) matches(name []byte) bool {
	if q.hideHidden && name[0] == '.' {
		return false
	}
	if q.extension != "" {
		if len(name) <= len(q.extension) {
			return false
		}
		if tail := name[len(name)-len(q.extension):]; !bytes.EqualFold(tail, []byte(q.extension)) {
			return false
		}
	}
	return q.shown == nil || !q.shown[nameHash(name)]
}

// nextToken makes the token for what comes after the mark. A listing keeps the generation it began with: every later
// index will do.
func (q *query) nextToken(g generation, after *mark, shown []uint64, skip uint64) *string {
	t := pageToken{
		order: q.order, asked: q.asked, descending: q.descending, generation: g, after: after, shown: shown, skip: skip,
	}
	if q.token != nil {
		if q.token.generation.process == g.process {
			t.generation = q.token.generation
		}
		t.shown = q.token.shown
	}
	text := t.encode()
	return &text
}

// proceed answers when a scan takes longer than a client waits (contract 10, scale).
//
// A new listing by size or time becomes one by path. A new listing by path begins with a page in the order of the
// directory; its entries are remembered in the token and left out of the sorted pages that follow. A listing under way
// gets an empty page with the same token, as long as the scan advances: a page may be short without being the last.
func (s *Service) proceed(ctx context.Context, q *query, sc *scan, before int64) (page providerapi.Page[providerapi.File], again bool, err error) {
	if q.token != nil || (q.skip > 0 && q.order == byPath) {
		if sc.batches.Load() == before {
			return page, false, errBusy(errors.New("the scan does not advance"))
		}
		page.Next = q.sameToken(sc.gen)
		return page, false, nil
	}
	if q.order != byPath {
		s.log.Info("sorting takes too long, sorting by path instead", "drive", q.ref.ID())
		return page, true, s.sortByPathInstead(q)
	}
	select {
	case <-sc.headReady:
	default:
		return page, false, errBusy(errors.New("the directory cannot be read"))
	}
	page, err = s.quickPage(ctx, q, sc)
	return page, false, err
}

// sameToken is the token for asking the same again.
func (q *query) sameToken(g generation) *string {
	if q.token == nil {
		return q.nextToken(g, nil, nil, q.skip) // began at a position: the page in the order of the directory is none of it
	}
	text := q.token.encode()
	return &text
}

// quickPage is the first page of a listing in the order of the directory.
func (s *Service) quickPage(ctx context.Context, q *query, sc *scan) (providerapi.Page[providerapi.File], error) {
	var entries []headEntry
	for _, e := range sc.head {
		if q.matches([]byte(e.name)) && len(entries) < min(q.limit, maxShown) {
			entries = append(entries, e)
		}
	}
	return run(ctx, s.gate, q.ref.Base(), func() (page providerapi.Page[providerapi.File], err error) {
		dir, closeAll, err := open(q)
		if err != nil {
			return page, err
		}
		defer closeAll()
		d := s.newDescriber(ctx, q, dir, len(entries))
		for _, e := range entries {
			d.add(e)
		}
		files, err := d.finish()
		if err != nil {
			return page, err
		}
		shown := make([]uint64, len(entries))
		for i, e := range entries {
			shown[i] = nameHash([]byte(e.name))
		}
		slices.Sort(shown)
		page.Items = files
		page.Next = q.nextToken(sc.gen, nil, shown, 0)
		return page, nil
	}, nil)
}
