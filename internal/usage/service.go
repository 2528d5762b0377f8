package usage

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Core is what the service asks of UCloud/Core; [coreapi.Client] is the implementation.
type Core interface {
	ReportUsage(ctx context.Context, items []providerapi.UsageItem) ([]bool, error)
}

// Category is a storage product.
type Category struct {
	Name      string
	FreeToUse bool // nothing is reported, and nothing is ever locked
	// UnitBytes is what one unit of the product is in bytes; 0 for a product that counts money: it is not reported.
	UnitBytes int64
	// Measure measures its drives. Nil: nothing is measured and nothing reported.
	Measure  Measurer
	Interval time.Duration // between two measurements of a drive; 0 means 15 min
	Timeout  time.Duration // of one; 0 means 10 min
	Parallel int           // measurements at once; 0 means 4
	// Scan lets instances scan what Measure cannot measure, at most once per ScanInterval (0 means a day), ScanRate
	// entries per second (0: the default of package scan).
	Scan         bool
	ScanInterval time.Duration
	ScanRate     int
	// Roots are the directories below which the drives of each locator lie. A user's quota on a file system says nothing
	// about one drive if there are others on it.
	Roots map[string][]string
}

// Options configure a [Service]. Provider, Store and Core are required.
type Options struct {
	Provider   string
	Categories []Category // all storage products
	Store      *store.Store
	Core       Core
	// Retry is the pause after a report that failed. Zero values mean 5 s, growing to 10 min.
	Retry coreapi.Backoff
	Log   *slog.Logger // nil discards
}

// Service measures and reports. [Service.Run] does the work; the other methods may be called at any time.
type Service struct {
	o     Options
	log   *slog.Logger
	wake  chan struct{} // holds one element: measure
	dirty chan struct{} // holds one element: report
	// reporter sends what is due.
	reporter *Reporter

	mu         sync.Mutex // guards what follows
	categories map[string]Category
	changed    bool                 // drives or categories are other than planned
	busy       map[string]bool      // drives that are being measured
	running    map[string]int       // measurements by category
	needScan   map[string]time.Time // drives that take a scan, and when that was found out
	clashes    map[string]bool      // scopes that two sources would share; logged once
}

// New makes a service. It does no I/O.
func New(o Options) (*Service, error) {
	if o.Provider == "" || o.Store == nil || o.Core == nil {
		return nil, errors.New("usage: provider id, store and Core are required")
	}
	if o.Retry.Initial <= 0 {
		o.Retry.Initial = 5 * time.Second
	}
	if o.Retry.Max <= 0 {
		o.Retry.Max = 10 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		o: o, log: o.Log.With("part", "usage"), wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		busy: map[string]bool{}, running: map[string]int{}, needScan: map[string]time.Time{}, clashes: map[string]bool{},
	}
	s.reporter = &Reporter{Provider: o.Provider, Store: o.Store, Core: o.Core, Put: (*store.Tx).PutUsageReport, Log: s.log}
	return s, s.SetCategories(o.Categories)
}

// SetCategories replaces the categories, for a reload.
func (s *Service) SetCategories(all []Category) error {
	byName := map[string]Category{}
	for _, c := range all {
		if c.Name == "" || c.UnitBytes < 0 {
			return errors.New("usage: a category needs a name, and no negative unit")
		}
		if c.Interval <= 0 {
			c.Interval = 15 * time.Minute
		}
		if c.Timeout <= 0 {
			c.Timeout = 10 * time.Minute
		}
		if c.Parallel <= 0 {
			c.Parallel = 4
		}
		if c.ScanInterval <= 0 {
			c.ScanInterval = 24 * time.Hour
		}
		if c.Measure != nil && c.UnitBytes == 0 && !c.FreeToUse {
			s.log.Warn("usage of a product that counts money is measured and not reported", "category", c.Name)
		}
		byName[c.Name] = c
	}
	s.mu.Lock()
	s.categories, s.needScan = byName, map[string]time.Time{}
	s.mu.Unlock()
	s.Changed()
	return nil
}

// Changed tells that there may be new drives. It never blocks.
func (s *Service) Changed() {
	s.mu.Lock()
	s.changed = true
	s.mu.Unlock()
	signal(s.wake)
	signal(s.dirty)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run measures and reports until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.measureLoop(ctx) })
	wg.Go(func() { s.reportLoop(ctx) })
	wg.Wait()
	return ctx.Err()
}

const (
	// planLife is how long a plan holds: as late may a new drive be noticed that nobody has told us about.
	planLife = time.Minute
	// planPause is the least time between two plans, each of which reads all drives; planHaste if something changed.
	planPause = 5 * time.Second
	planHaste = time.Second
)

// plan says which drives are due.
type plan struct {
	due  map[string][]store.Drive // by category, longest waiting first
	made time.Time
	till time.Time // when to make another one
}

func (s *Service) measureLoop(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	p := plan{}
	for {
		s.mu.Lock()
		if soon := p.made.Add(planHaste); s.changed && soon.Before(p.till) {
			p.till = soon
		}
		replan := !time.Now().Before(p.till)
		s.changed = s.changed && !replan
		s.mu.Unlock()
		if replan {
			var err error
			if p, err = s.plan(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("drives cannot be listed", "error", err)
			}
		}
		s.dispatch(ctx, &p, &running)
		timer := time.NewTimer(time.Until(p.till))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// plan reads what there is to measure.
func (s *Service) plan(ctx context.Context) (plan, error) {
	now := time.Now()
	p := plan{due: map[string][]store.Drive{}, made: now, till: now.Add(planLife)}
	// What is being measured now may be done when the database has been read, and the outcome not be in what was read.
	s.mu.Lock()
	busy := maps.Clone(s.busy)
	s.mu.Unlock()
	var drives []store.Drive
	var usages []store.DriveUsage
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if drives, err = tx.Drives(); err == nil {
			usages, err = tx.DriveUsages()
		}
		return err
	})
	if err != nil {
		return p, err
	}
	tried := make(map[string]time.Time, len(usages))
	for _, u := range usages {
		tried[u.ProviderGeneratedID] = u.TriedAt
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	least := now.Add(planPause)
	look := func(at time.Time) {
		if at.Before(least) {
			at = least
		}
		if at.Before(p.till) {
			p.till = at
		}
	}
	at := map[string]time.Time{}
	there := make(map[string]bool, len(drives))
	for _, d := range drives {
		id := d.ProviderGeneratedID
		there[id] = true
		c, ok := s.categories[d.Category]
		if !ok || c.Measure == nil || !measurable(d.State) {
			continue
		}
		if s.busy[id] || busy[id] {
			look(now.Add(c.Interval))
			continue
		}
		last := tried[id]
		if looked := s.needScan[id]; looked.After(last) {
			last = looked
		}
		due := now
		if !last.IsZero() {
			// A little earlier for each drive, so that those which were measured at once spread over time.
			due = last.Add(c.Interval - spread(id, c.Interval/8))
		}
		if due.After(now) {
			look(due)
			continue
		}
		look(now.Add(c.Interval)) // then it is due again
		at[id] = last
		p.due[d.Category] = append(p.due[d.Category], d)
	}
	for _, list := range p.due {
		slices.SortStableFunc(list, func(a, b store.Drive) int {
			return at[a.ProviderGeneratedID].Compare(at[b.ProviderGeneratedID])
		})
	}
	for id := range s.needScan {
		if !there[id] {
			delete(s.needScan, id)
		}
	}
	return p, nil
}

// measurable tells whether there is something to measure in a drive of this state.
func measurable(state store.DriveState) bool {
	return state != store.DriveDesired && state != store.DriveFailed
}

// spread is a part of d that depends on the text alone.
func spread(text string, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))                // never fails
	return time.Duration(h.Sum64() % uint64(d)) //nolint:gosec // below d
}

// dispatch starts as many measurements as there is room for.
func (s *Service) dispatch(ctx context.Context, p *plan, running *sync.WaitGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, list := range p.due {
		c, ok := s.categories[name]
		for ok && len(list) > 0 && s.running[name] < c.Parallel {
			n := min(len(list), max(c.Measure.Batch(), 1))
			batch := list[:n]
			list = list[n:]
			for _, d := range batch {
				s.busy[d.ProviderGeneratedID] = true
			}
			s.running[name]++
			running.Go(func() { s.measure(ctx, c, batch) })
		}
		p.due[name] = list
	}
}

// timeoutSlack is what a measurement gets beyond its time limit.
const timeoutSlack = 30 * time.Second

// measure measures some drives and stores the outcome.
func (s *Service) measure(ctx context.Context, c Category, batch []store.Drive) {
	defer func() {
		s.mu.Lock()
		for _, d := range batch {
			delete(s.busy, d.ProviderGeneratedID)
		}
		s.running[c.Name]--
		s.mu.Unlock()
		signal(s.wake)
	}()
	// A measurer with a time limit of its own, as scripts have, tells better what happened.
	timed, cancel := context.WithTimeout(ctx, c.Timeout+timeoutSlack)
	got, err := c.Measure.Measure(timed, batch)
	cancel()
	if ctx.Err() != nil {
		return // says nothing about the drives
	}
	if errors.Is(err, ErrNeedsScan) {
		s.mu.Lock()
		for _, d := range batch {
			s.needScan[d.ProviderGeneratedID] = time.Now()
		}
		s.mu.Unlock()
		return
	}
	if err == nil && len(got) < len(batch) {
		err = errors.New("it was not measured")
	}
	var missed []store.DriveUsage
	storeErr := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		missed = missed[:0]
		for _, d := range batch {
			m, ok := got[d.ProviderGeneratedID]
			u, err := note(tx, d.ProviderGeneratedID, m, ok && m.Bytes >= 0 && m.Files >= 0, err)
			if err != nil {
				return err
			}
			if u.Misses > 0 {
				missed = append(missed, u)
			}
		}
		return nil
	})
	if storeErr != nil && ctx.Err() == nil {
		s.log.Error("measurements are lost", "category", c.Name, "error", storeErr)
		return
	}
	for _, u := range missed {
		if u.Misses == warnAfter {
			s.log.Warn("a drive cannot be measured; its last usage stays reported", "drive", u.ProviderGeneratedID, "misses", u.Misses, "error", u.LastError)
		}
	}
	signal(s.dirty)
}

// warnAfter is how many failures in a row are worth a warning (contract 42 section B.8).
const warnAfter = 3

// note stores a measurement, or that there was none and why.
func note(tx *store.Tx, id string, m Measurement, ok bool, why error) (store.DriveUsage, error) {
	u, err := tx.DriveUsage(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return u, err
	}
	u.ProviderGeneratedID, u.TriedAt = id, time.Now()
	if ok {
		u.Bytes, u.Files, u.Method, u.MeasuredAt, u.Misses, u.LastError = m.Bytes, m.Files, m.Method, m.At, 0, ""
		if m.At.IsZero() {
			u.MeasuredAt = u.TriedAt
		}
	} else {
		u.Misses++
		u.LastError = "the measurement is not possible"
		if why != nil {
			u.LastError = why.Error()
		}
	}
	return u, tx.PutDriveUsage(u)
}

// Status says how measuring and reporting go.
type Status struct {
	Measured, Missing int    // drives with a value; drives that failed three times or more
	Reported, Refused int    // scopes that Core knows; scopes that Core refuses
	Error             string // of one of the failures
}

// Status counts.
func (s *Service) Status(ctx context.Context) (st Status, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		st = Status{}
		usages, err := tx.DriveUsages()
		if err != nil {
			return err
		}
		for _, u := range usages {
			if !u.MeasuredAt.IsZero() {
				st.Measured++
			}
			if u.Misses >= warnAfter {
				st.Missing++
				st.Error = u.LastError
			}
		}
		reports, err := tx.UsageReports()
		for _, r := range reports {
			if !r.ReportedAt.IsZero() {
				st.Reported++
			}
			if r.Refusals > 0 {
				st.Refused++
				st.Error = r.LastError
			}
		}
		return err
	})
	return st, err
}
