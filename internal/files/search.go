package files

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const (
	// maxSearches is how many searches of a user run at a time. One more ends the oldest: the user has nearly always
	// typed something else, and nobody looks at the old results.
	maxSearches = 2
	// searchPause is the least time between two batches that are not full.
	searchPause = 100 * time.Millisecond
	// Bounds of a batch.
	searchBatch      = 250
	searchBatchBytes = 128 << 10 // of paths; what else is known of a file takes some 300 bytes
	// maxSearchReaders is how many directories a search reads at a time on a network file system. It must leave slots of
	// the drive to others.
	maxSearchReaders = 6
	// searchLinger is how long the end of a search waits for its readers, which may be in the kernel.
	searchLinger = time.Second
)

var (
	// ErrSearchReplaced ends a search when its user begins too many others.
	ErrSearchReplaced = errors.New("the user has begun another search")
	errSearchTooLong  = errors.New("the search takes too long")
)

// Search finds the files and folders below a folder, and the folder itself, whose names contain a text, whatever the case
// of its letters (contract 13 section 3.1). send is called for what has been found meanwhile, at most every 100 ms unless
// there is more than fits into one batch; it may block, and then the search waits.
//
// The search is over when Search returns nil: everything has been looked at, or files.searchMaxResults or
// files.searchTimeout ended it. What cannot be read is left out, and a folder that does not exist gives no results. Links
// are found and not followed, and other file systems below the drive are not entered. Folders that flags.filterHiddenFiles
// hides are not entered either. The error is that of the context or of send, [ErrSearchReplaced], or why the request is
// wrong.
func (s *Service) Search(ctx context.Context, req *providerapi.FilesSearch, send func([]providerapi.File) error) error {
	st := s.state.Load()
	q, err := parseSearch(st, req)
	if err != nil {
		return err
	}
	ctx, leave := s.searches.enter(ctx)
	defer leave()
	stopped := context.AfterFunc(s.life, leave) // the service ends
	defer stopped()

	ref, p, err := s.searchPlace(ctx, st, *req.CurrentFolder)
	if failure.Is(err, failure.NotFound) {
		s.log.Debug("nothing to search", "folder", *req.CurrentFolder, "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, st.searchTimeout(), errSearchTooLong)
	defer cancel()
	w, err := s.openSearch(ctx, ref, p, q)
	if err != nil {
		if nothingThere(err) {
			s.log.Debug("nothing to search", "folder", *req.CurrentFolder, "error", s.refuse(ctx, err, reading))
			return nil
		}
		return s.refuse(ctx, err, reading)
	}
	return s.follow(ctx, w, send)
}

// nothingThere tells whether a folder cannot be searched because it does not exist, or not for this user.
func nothingThere(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES, unix.EPERM, unix.ESTALE, unix.ENAMETOOLONG, drives.ErrOutside} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (st *state) searchTimeout() time.Duration {
	if st.SearchTimeout <= 0 {
		return 5 * time.Minute
	}
	return st.SearchTimeout
}

func (st *state) searchMax() int {
	if st.SearchMaxResults <= 0 {
		return 10_000
	}
	return st.SearchMaxResults
}

// searchQuery is a checked request.
type searchQuery struct {
	names   matcher
	filters query // hideHidden and extension
	exclude map[string]bool
	state   *state
}

func parseSearch(st *state, req *providerapi.FilesSearch) (*searchQuery, error) {
	switch {
	case req.CurrentFolder == nil || *req.CurrentFolder == "":
		return nil, failure.New(failure.Invalid, "The search names no folder")
	case req.Query == "":
		return nil, failure.New(failure.Invalid, "The search is for nothing")
	}
	q := &searchQuery{names: newMatcher(req.Query), state: st, exclude: map[string]bool{}}
	q.filters = query{hideHidden: orZero(req.Flags.FilterHiddenFiles), extension: extensionOf(req.Flags.FilterByFileExtension)}
	for _, name := range st.SearchExclude {
		q.exclude[name] = true
	}
	return q, nil
}

// snapshots are directories in which some file systems show every file again, as it was at other times. They are never
// entered.
func isSnapshots(name string) bool {
	return name == ".snapshot" || name == ".snapshots" || name == ".zfs"
}

// searchPlace finds the drive that the path of a search lies in. Core has checked that the user may read it.
func (s *Service) searchPlace(ctx context.Context, st *state, folder string) (drives.Ref, drives.Path, error) {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	// The first name, by the rules of drives.Ref.Path, which refuses a path that leads to another drive.
	first := ""
	for part := range strings.SplitSeq(folder, "/") {
		if part != "" && part != "." {
			first = part
			break
		}
	}
	drive, err := s.driveByID(ctx, ident.DriveID(first), nil)
	if err != nil {
		return drives.Ref{}, drives.Path{}, err
	}
	ref, err := st.set.Drive(drive)
	if err != nil {
		return ref, drives.Path{}, err
	}
	p, err := ref.Path(folder)
	return ref, p, err
}

// openSearch opens the folder and starts the readers.
func (s *Service) openSearch(ctx context.Context, ref drives.Ref, p drives.Path, q *searchQuery) (*search, error) {
	opening, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	w, err := run(opening, s.gate, ref.Base(), func() (*search, error) { return newSearch(ref, p, q) }, (*search).close)
	if err != nil {
		return nil, err
	}
	readers := 1
	if w.dir != nil {
		readers = min(s.statWorkers(w.dir), maxSearchReaders)
	}
	var slots []func()
	for range readers {
		leave, err := s.gate.enter(ctx, ref.Base())
		if err != nil && len(slots) == 0 {
			w.close()
			return nil, err
		}
		if err != nil {
			break // fewer will do
		}
		slots = append(slots, leave)
	}
	w.readers = len(slots)
	for _, leave := range slots {
		go func() { // counted by gate.wait; ends with the context, when the kernel returns
			defer leave()
			w.read(ctx)
		}()
	}
	return w, nil
}

// follow passes on what the readers find.
func (s *Service) follow(ctx context.Context, w *search, send func([]providerapi.File) error) error {
	ctx, cancel := context.WithCancel(ctx)
	unwatch := context.AfterFunc(ctx, w.stop)
	defer func() {
		why := context.Cause(ctx)
		unwatch()
		cancel()
		w.stop()
		// A reader that has something to say must not wait for ever.
		linger := time.NewTimer(searchLinger)
		defer linger.Stop()
		for waiting := true; waiting; {
			select {
			case <-w.found:
			case <-w.done:
				waiting = false
			case <-linger.C:
				s.log.Warn("file system does not answer", "drive", w.base)
				waiting = false
			}
		}
		s.log.Debug("search ended", "drive", w.base, "directories", w.directories.Load(), "unreadable", w.unreadable.Load(), "why", why)
	}()
	b := batcher{send: send, left: w.query.state.searchMax(), timer: time.NewTimer(time.Hour)}
	defer b.timer.Stop()
	for {
		select {
		case f := <-w.found:
			if enough, err := b.add(f); enough || err != nil {
				return err
			}
		case <-b.timer.C:
			if err := b.flush(); err != nil {
				return err
			}
		case <-w.done:
			if ctx.Err() != nil { // that is why they have ended
				return b.cut(ctx)
			}
			for len(w.found) > 0 {
				if enough, err := b.add(<-w.found); enough || err != nil {
					return err
				}
			}
			return b.flush()
		case <-ctx.Done():
			return b.cut(ctx)
		}
	}
}

// cut is the end of a search whose context has ended. When its time is up, what has been found is the result.
func (b *batcher) cut(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, errSearchTooLong) {
		return cause
	}
	return b.flush()
}

// batcher collects results.
type batcher struct {
	send  func([]providerapi.File) error
	left  int // results that may still come
	batch []providerapi.File
	bytes int
	last  time.Time // of the last batch
	timer *time.Timer
}

// add takes a result and sends what there is if it is time to. It tells whether no more are wanted; then all have been
// sent.
func (b *batcher) add(f providerapi.File) (enough bool, err error) {
	b.batch = append(b.batch, f)
	b.bytes += len(f.ID)
	b.left--
	wait := searchPause - time.Since(b.last)
	if b.left <= 0 || len(b.batch) == searchBatch || b.bytes >= searchBatchBytes || wait <= 0 {
		return b.left <= 0, b.flush()
	}
	if len(b.batch) == 1 {
		b.timer.Reset(wait)
	}
	return false, nil
}

func (b *batcher) flush() error {
	if len(b.batch) == 0 {
		return nil
	}
	batch := b.batch
	b.batch, b.bytes, b.last = nil, 0, time.Now()
	return b.send(batch)
}

// searches are the searches under way.
type searches struct {
	mu      sync.Mutex // guards running
	running []context.CancelCauseFunc
	ids     []uint64
	next    uint64
}

// enter makes room for a search, ending the oldest if there are too many. leave may be called more than once.
func (r *searches) enter(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.running) == maxSearches {
		r.running[0](ErrSearchReplaced)
		r.running, r.ids = r.running[1:], r.ids[1:]
	}
	id := r.next
	r.next++
	r.running, r.ids = append(r.running, cancel), append(r.ids, id)
	return ctx, func() {
		cancel(context.Canceled)
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, other := range r.ids {
			if other == id {
				r.running = append(r.running[:i:i], r.running[i+1:]...)
				r.ids = append(r.ids[:i:i], r.ids[i+1:]...)
				return
			}
		}
	}
}

// newSearch opens the folder, and looks at it itself.
func newSearch(ref drives.Ref, p drives.Path, q *searchQuery) (*search, error) {
	root, err := ref.Open()
	if err != nil {
		return nil, err
	}
	w := &search{base: ref.Base(), query: q, root: root, found: make(chan providerapi.File, searchBatch), done: make(chan struct{})}
	w.news.L = &w.mu
	info, err := w.open(p)
	if err != nil {
		w.close()
		return nil, fmt.Errorf("open the folder of a search: %w", err)
	}
	if name := []byte(p.Name()); len(name) > 0 && q.filters.matches(name) && q.names.matches(name) {
		w.found <- q.state.describe(root, p, info) // it has room
	}
	return w, nil
}

// open opens the folder for the readers, if it is one.
func (w *search) open(p drives.Path) (drives.Info, error) {
	local, err := w.root.At(p)
	if err != nil {
		return drives.Info{}, err
	}
	info, err := local.Stat()
	if err != nil || info.Kind != drives.Directory {
		return info, err
	}
	dir, err := local.OpenDir()
	if _, drive := errors.AsType[*drives.RootError](err); errors.Is(err, unix.EACCES) && !drive {
		return info, nil // it may be found itself, and what is in it is left out
	}
	if err != nil {
		return info, err
	}
	w.dir = dir
	if w.start, err = dir.Step(""); err != nil {
		return info, err
	}
	w.room = drives.MaxPath - p.Len() - 1
	w.stack = []todo{{node: &node{ino: w.start.Ino}}}
	return info, nil
}
