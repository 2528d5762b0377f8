package quota

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

const (
	// parallel is how many owners are looked at at a time. How many hooks run is up to them.
	parallel = 8
	// lookAgain is the pause after a look that failed for a reason of ours.
	lookAgain = 30 * time.Second
	// longest is how long the worker sleeps at most.
	longest = time.Hour
)

// Category is a storage product whose quotas a hook sets.
type Category struct {
	Name      string
	UnitBytes int64         // of one unit of quota
	Updated   *scripts.Hook // onQuotaUpdated
	Removed   *scripts.Hook // onDriveRemoved; nil: nobody is told
}

// Options configure a [Worker]. All but Applied and Log are required.
type Options struct {
	Store      *store.Store
	Categories []Category
	// Recommend says what the directory of a drive should be like; [driveplan.Planner.Recommend] is the implementation.
	Recommend func(ctx context.Context, d store.Drive) (driveplan.Recommendation, error)
	// Applied is told about owners whose drives are usable now, or not any more. It must not block.
	Applied func(owners ...ident.Owner)
	Log     *slog.Logger // nil discards
}

// Worker has quotas set. [Worker.Run] does the work; the other methods may be called at any time.
type Worker struct {
	o    Options
	log  *slog.Logger
	wake chan struct{} // holds one element: due has changed

	mu         sync.Mutex // guards what follows
	categories map[string]Category
	everyone   bool                      // all owners are due
	due        map[ident.Owner]time.Time // owners to look at, and when
	busy       map[ident.Owner]bool
	again      map[ident.Owner]bool // owners whose hooks run whatever was done before
	revived    map[string]bool      // drives that waited for an operator and were tried again since the last start or reload
}

// New makes a worker. It does no I/O.
func New(o Options) (*Worker, error) {
	if o.Store == nil || o.Recommend == nil {
		return nil, errors.New("quota worker: store and recommendations are required")
	}
	if o.Applied == nil {
		o.Applied = func(...ident.Owner) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		o: o, log: o.Log.With("part", "quotas"), wake: make(chan struct{}, 1), due: map[ident.Owner]time.Time{}, again: map[ident.Owner]bool{}, busy: map[ident.Owner]bool{},
	}
	return w, w.SetCategories(o.Categories)
}

// SetCategories replaces the categories, for a reload, and has everybody looked at, also those who wait for an operator.
func (w *Worker) SetCategories(all []Category) error {
	byName := map[string]Category{}
	for _, c := range all {
		if c.Name == "" || c.UnitBytes <= 0 || c.Updated == nil {
			return errors.New("quota worker: a category needs a name, a unit and a hook")
		}
		byName[c.Name] = c
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.categories, w.everyone, w.revived = byName, true, map[string]bool{}
	w.signal()
	return nil
}

// Changed has owners looked at soon: their wallets or drives changed. It never blocks.
func (w *Worker) Changed(owners ...ident.Owner) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range owners {
		if o.Valid() {
			w.due[o] = time.Time{}
		}
	}
	w.signal()
}

// Again is Changed, and has the hook called for each of their drives even if there is nothing new, or if it waits for an
// operator.
func (w *Worker) Again(owners ...ident.Owner) {
	w.mu.Lock()
	for _, o := range owners {
		if o.Valid() {
			w.again[o] = true
		}
	}
	w.mu.Unlock()
	w.Changed(owners...)
}

// ChangedAll has all owners looked at soon. It never blocks.
func (w *Worker) ChangedAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.everyone = true
	w.signal()
}

func (w *Worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run looks at everybody once and then at whoever is due, until ctx ends.
func (w *Worker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, parallel)
	for {
		pause := w.addEveryone(ctx)
		for {
			owner, next, ok := w.take()
			if !ok {
				pause = min(pause, next)
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case slots <- struct{}{}:
			}
			wg.Go(func() {
				defer func() { <-slots }()
				w.put(owner, w.look(ctx, owner))
			})
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-w.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// addEveryone makes all owners of drives due, if somebody wants that.
func (w *Worker) addEveryone(ctx context.Context) (pause time.Duration) {
	w.mu.Lock()
	wanted := w.everyone
	w.everyone = false
	w.mu.Unlock()
	if !wanted {
		return longest
	}
	var drives []store.Drive
	err := w.o.Store.View(ctx, func(tx *store.Tx) (err error) { drives, err = tx.Drives(); return err })
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			w.log.Error("owners of drives cannot be listed", "error", err)
		}
		w.everyone = true
		return lookAgain
	}
	for _, d := range drives {
		w.due[d.Owner] = time.Time{}
	}
	return longest
}

// take removes an owner whose time has come and whom nobody is looking at. Without one, next is how long that takes.
func (w *Worker) take() (owner ident.Owner, next time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	next = longest
	for o, at := range w.due {
		if w.busy[o] {
			continue // put wakes us
		}
		if wait := at.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		delete(w.due, o)
		w.busy[o] = true
		return o, 0, true
	}
	return ident.Owner{}, next, false
}

// put ends the look at an owner. The zero time means that nothing is left to do.
func (w *Worker) put(owner ident.Owner, again time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, owner)
	if _, sooner := w.due[owner]; !sooner && !again.IsZero() {
		w.due[owner] = again
	}
	w.signal()
}

// Ready tells whether the hook has made a drive usable, and otherwise why not; then it is also made due. It is for
// [driveplan.Locator].
func (w *Worker) Ready(ctx context.Context, d store.Drive) (why string, err error) {
	w.mu.Lock()
	_, ours := w.categories[d.Category]
	w.mu.Unlock()
	if !ours {
		return "", nil
	}
	var q store.DriveQuota
	err = w.o.Store.View(ctx, func(tx *store.Tx) error {
		q, err = tx.DriveQuota(d.ProviderGeneratedID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	switch {
	case err != nil:
		return "", err
	case !q.AppliedAt.IsZero() && !q.Removed && q.Bytes > 0:
		return "", nil
	}
	w.Changed(d.Owner)
	why = "its quota is not set yet"
	if q.LastError != "" {
		why += ": " + q.LastError
	}
	return why, nil
}

// Status says how many drives wait for their quota.
type Status struct {
	Failing int // tried and not done; tried again by itself
	Parked  int // wait for an operator
	Error   string
}

// Status counts drives whose quota is not what it should be. Error is the newest error.
func (w *Worker) Status(ctx context.Context) (s Status, err error) {
	var all []store.DriveQuota
	if err := w.o.Store.View(ctx, func(tx *store.Tx) (err error) { all, err = tx.DriveQuotas(); return err }); err != nil {
		return s, err
	}
	var newest time.Time
	for _, q := range all {
		switch {
		case q.Attempts == 0:
			continue
		case q.NextAt.IsZero():
			s.Parked++
		default:
			s.Failing++
		}
		if !q.Since.Before(newest) {
			newest, s.Error = q.Since, q.LastError
		}
	}
	return s, nil
}
