package files

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/drives"
)

const (
	inlineBatch = 32 << 10  // buffer for directories that are read within the request
	scanBatch   = 128 << 10 // buffer of each reader of a large one
)

// errUnwanted ends a scan that nobody has waited for in the cache's idle time.
var errUnwanted = errors.New("nobody waits for the scan any more")

// errTooMany ends a scan for an order that is bounded to fewer entries.
var errTooMany = errors.New("more entries than may be sorted this way")

// scan reads a whole directory into an index, in the background. All requests that need the same index wait for it.
type scan struct {
	key       dirKey
	version   drives.Version // of the directory before the scan
	listing   section        // what the scan was started for
	gen       generation
	startedAt time.Time
	racy      bool
	most      int         // see query.mostSorted
	dir       *drives.Dir // owned by the scan

	batches atomic.Int64 // read so far
	waiters int          // guarded by cache.mu; each will have one use of the result
	wanted  time.Time    // guarded by cache.mu; when the last waiter gave up

	done   chan struct{} // closed at the end; afterwards result and err are set
	result *cached
	err    error

	headOnce  sync.Once
	headReady chan struct{} // closed when head is set
	head      []headEntry   // the first entries in directory order
}

// headEntry is an entry on its way to a page.
type headEntry struct {
	name string
	kind drives.EntryType
	id   string // the path without escapes, of which name is the end; "" if it is still to be made
}

// fill reads the directory to its end with a number of goroutines. Reading is done by one at a time; looking at the
// entries and adding them happens beside it. progress is called for each batch, numbered from 1.
func (b *builder) fill(ctx context.Context, dir *drives.Dir, by order, workers int, progress func(int, drives.Batch) error) error {
	var (
		reading sync.Mutex // held while reading a batch
		end     bool       // guarded by reading
		total   int        // guarded by reading
	)
	work := func(ctx context.Context) error {
		buf := make([]byte, scanBatch)
		var names []headEntry
		var keys []int64
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			reading.Lock()
			if end {
				reading.Unlock()
				return nil
			}
			batch, err := dir.ReadBatch(buf)
			if end = err != nil || batch.Empty(); end {
				reading.Unlock()
				return err
			}
			total++
			n := total
			reading.Unlock()
			if err := progress(n, batch); err != nil {
				return err
			}
			if by == byPath {
				if err := b.addBatch(batch); err != nil {
					return err
				}
				continue
			}
			names, keys = names[:0], keys[:0]
			for e, ok := batch.Next(); ok; e, ok = batch.Next() {
				if key, ok := sortKey(dir, string(e.Name), by); ok {
					names = append(names, headEntry{name: string(e.Name), kind: e.Type})
					keys = append(keys, key)
				}
			}
			if err := b.addKeyed(names, keys); err != nil {
				return err
			}
		}
	}
	return parallel(ctx, workers, work)
}

// addBatch adds all entries of a batch.
func (b *builder) addBatch(batch drives.Batch) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for e, ok := batch.Next(); ok; e, ok = batch.Next() {
		if err := b.addLocked(e.Name, e.Type, 0); err != nil {
			return err
		}
	}
	return nil
}

// addKeyed adds entries with their keys. More than the builder's most in all give errTooMany.
func (b *builder) addKeyed(entries []headEntry, keys []int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen += len(entries)
	if b.most > 0 && b.seen > b.most {
		return errTooMany
	}
	for i, e := range entries {
		if err := b.addLocked([]byte(e.name), e.kind, keys[i]); err != nil {
			return err
		}
	}
	return nil
}

// sortKey is what an entry is sorted by: the size in bytes or the time in milliseconds that its description shows.
// Entries that cannot be described are left out, as in listings.
func sortKey(dir *drives.Dir, name string, by order) (int64, bool) {
	info, err := dir.Stat(name)
	if err != nil {
		return 0, false
	}
	if by == bySize {
		return info.Size, true
	}
	return info.ModifiedMs, true
}

// parallel runs work n times, once of them in the calling goroutine, and waits for all. The first error ends the others.
func parallel(ctx context.Context, n int, work func(context.Context) error) error {
	if n <= 1 {
		return work(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	one := func() {
		if err := work(ctx); err != nil {
			cancel(err)
		}
	}
	var wg sync.WaitGroup
	for range n - 1 {
		wg.Go(one)
	}
	one()
	wg.Wait()
	return context.Cause(ctx)
}

// headNames copies the first entries of the first batch, for an unsorted first page.
func headNames(batch drives.Batch) []headEntry {
	var head []headEntry
	for e, ok := batch.Next(); ok && len(head) < 8*maxShown; e, ok = batch.Next() {
		head = append(head, headEntry{name: string(e.Name), kind: e.Type})
	}
	return head
}

// start joins the scan under way for the directory if it will serve the query, or starts one with a clone of dir. The
// caller must call leave when it has no more use for the scan and its result.
func (s *Service) start(ctx context.Context, drive string, dir *drives.Dir, q *query, version drives.Version) (*scan, error) {
	key := dirKey{version.Dev, version.Ino, q.order}
	if sc := s.cache.join(key, q, version); sc != nil {
		return sc, nil
	}
	// A scan takes a slot like every operation and keeps it while the file system hangs.
	leave, err := s.gate.enter(ctx, drive)
	if err != nil {
		return nil, err
	}
	own, err := dir.Clone()
	if err != nil {
		leave()
		return nil, err
	}
	now := s.now()
	sc := &scan{
		key: key, version: version, gen: s.nextGeneration(), startedAt: now, dir: own,
		listing: section{near: q.after, descending: q.descending},
		racy:    racy(version, now),
		most:    q.mostSorted(),
		waiters: 1,
		done:    make(chan struct{}), headReady: make(chan struct{}),
	}
	if other := s.cache.register(key, sc, q, version); other != nil {
		own.Close()
		leave()
		return other, nil
	}
	go func() { // counted by gate.wait; ends when Close cancels s.life, or nobody wants the result
		defer leave()
		s.scan(sc)
	}()
	return sc, nil
}

// join adds a waiter to the scan under way, if there is one that will serve the query.
func (c *cache) join(key dirKey, q *query, version drives.Version) *scan {
	c.mu.Lock()
	defer c.mu.Unlock()
	sc := c.scans[key]
	if sc == nil || !sc.serves(q, version) {
		return nil
	}
	sc.waiters++
	return sc
}

// register makes the scan the one that others join, unless somebody else was faster: then that one is joined, running or
// done. An older scan that is of no use here goes on for those who wait for it.
func (c *cache) register(key dirKey, sc *scan, q *query, version drives.Version) *scan {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.scans[key]; other != nil && other.serves(q, version) {
		other.waiters++
		return other
	}
	if e := c.entries[key]; e != nil && c.serves(e.index, q, version) {
		e.users++
		done := &scan{key: key, result: e, done: make(chan struct{})}
		close(done.done)
		return done
	}
	c.scans[key] = sc
	return nil
}

// stillWanted ends a scan that nobody waits for. One that has been given up just now goes on: the client will ask again.
func (c *cache) stillWanted(sc *scan) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sc.waiters == 0 && c.now().Sub(sc.wanted) > c.idle {
		return errUnwanted
	}
	return nil
}

// leave ends the caller's interest in a scan: its use of the result, or its waiting if there is none yet.
func (c *cache) leave(sc *scan) {
	c.mu.Lock()
	result := sc.result
	if result == nil {
		sc.waiters--
		sc.wanted = c.now()
	}
	c.mu.Unlock()
	if result != nil {
		result.release()
	}
}

// serves tells whether the result of a running scan will be right for the query: it has to be about the directory as it
// is, and begin where the query goes on, in case that not everything fits.
func (sc *scan) serves(q *query, version drives.Version) bool {
	near := sc.listing.near
	same := (near == nil && q.after == nil) ||
		(near != nil && q.after != nil && compareMarks(near, q.after) == 0)
	current := sc.version == version && !sc.racy
	continues := q.token != nil && q.token.generation.process == sc.gen.process && q.token.generation.serial <= sc.gen.serial
	return (current || continues) && same && (sc.most == 0 || q.token == nil) && sc.listing.descending == q.descending
}

// racy tells whether a directory has changed so shortly before the time that the next change may leave no trace.
func racy(v drives.Version, now time.Time) bool {
	return now.Sub(v.Mtime) < racySlack || now.Sub(v.Ctime) < racySlack
}

// scan does the work of sc and publishes the result.
func (s *Service) scan(sc *scan) {
	defer sc.dir.Close()
	x, err := s.scanIndex(sc)
	s.cache.finish(sc, x, err)
	sc.headOnce.Do(func() { close(sc.headReady) })
	close(sc.done)
	if took := s.now().Sub(sc.startedAt); took > time.Second || err != nil {
		s.log.Debug("directory scanned", "batches", sc.batches.Load(), "took", took, "error", err)
	}
}

func (s *Service) scanIndex(sc *scan) (*index, error) {
	b := newBuilder(sc.key.order != byPath, sc.listing.near, sc.listing.descending, s.cache, s.indexLimit())
	workers := 2
	if sc.key.order != byPath {
		workers = s.statWorkers(sc.dir)
	}
	b.most = sc.most
	err := b.fill(s.life, sc.dir, sc.key.order, workers, func(n int, batch drives.Batch) error {
		if n == 1 {
			sc.headOnce.Do(func() {
				sc.head = headNames(batch)
				close(sc.headReady)
			})
		}
		sc.batches.Add(1)
		if s.slow != nil {
			s.slow(n)
		}
		return s.cache.stillWanted(sc)
	})
	if errors.Is(err, errTooMany) {
		b.discard()
		return s.stamp(&index{tooMany: true}, sc), nil
	}
	if err != nil {
		b.discard()
		return nil, err
	}
	x, err := b.finish()
	if err != nil {
		return nil, err
	}
	return s.stamp(x, sc), nil
}

// stamp says what an index shows and since when.
func (s *Service) stamp(x *index, sc *scan) *index {
	x.generation, x.version, x.scannedAt, x.racy = sc.gen, sc.version, sc.startedAt, sc.racy
	return x
}
