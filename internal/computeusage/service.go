package computeusage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usage"
)

const (
	// overlap is how far the short window reaches beyond the last success.
	overlap = time.Hour
	// fullEvery is how often the long window is looked at.
	fullEvery = time.Hour
	// keep is for how much longer than the long window runs are kept.
	keep = 48 * time.Hour
	// refresh is when a value that has not changed is sent to Core again.
	refresh = 24 * time.Hour
	// longestPause is the longest pause after failures.
	longestPause = 10 * time.Minute
)

// Settings are what a reload of the configuration may change.
type Settings struct {
	Categories []Category
	// Enabled tells whether usage is counted at all.
	Enabled  bool
	Poll     time.Duration // 0 means a minute
	Lookback time.Duration // the long window; 0 means 7 days
	// Totals, if there is one, is asked instead of Slurm: a script of the site. It gets the accounts that are known.
	Totals func(ctx context.Context, accounts []string) ([]Total, error)
}

// Total is what a script says that an account has used since the beginning. Category is needed for accounts with several.
type Total struct {
	Account, Category string
	Minutes           int64
}

// Options configure a [Service]. Provider, Store and Core are required, and Source unless a script tells the totals.
type Options struct {
	Provider string
	Store    *store.Store
	Core     usage.Core
	Source   Source
	Settings Settings
	// Retry is the pause after a report that failed. Zero values mean 5 s, growing to 10 min.
	Retry coreapi.Backoff
	Log   *slog.Logger     // nil discards
	Now   func() time.Time // nil: the real clock
}

// Service counts and reports. [Service.Run] does the work; the other methods may be called at any time.
type Service struct {
	o        Options
	log      *slog.Logger
	reporter *usage.Reporter
	wake     chan struct{}           // holds one element: look now
	step     func(name string) error // tests end a round here, as a crash would

	counting sync.Mutex // one round at a time
	fullAt   time.Time  // the last success with the long window; zero: none since the start or a failure

	mu       sync.Mutex // guards what follows
	settings *Settings  // replaced as a whole
	state    Status
	told     map[string]bool // accounts and partitions whose runs belong to nobody; logged once
}

// Status says how counting and reporting go.
type Status struct {
	Enabled   bool
	Lines     int       // of the ledger
	Reported  int       // of them Core knows
	Refused   int       // of them Core refuses
	Unmatched int       // runs in the last long window that belong to no category
	CountedAt time.Time // the last success
	Failures  int       // since then
	Error     string    // of the last failure, or of a refusal
	Took      time.Duration
}

// New makes a service. It does no I/O.
func New(o Options) (*Service, error) {
	if o.Provider == "" || o.Store == nil || o.Core == nil {
		return nil, errors.New("usage of machines: provider id, store and Core are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Retry.Initial <= 0 {
		o.Retry.Initial = 5 * time.Second
	}
	if o.Retry.Max <= 0 {
		o.Retry.Max = longestPause
	}
	s := &Service{
		o: o, log: o.Log.With("part", "usage of machines"), wake: make(chan struct{}, 1), told: map[string]bool{},
		step: func(string) error { return nil },
	}
	s.reporter = &usage.Reporter{
		Provider: o.Provider, Store: o.Store, Core: o.Core, Put: (*store.Tx).PutComputeReport, Now: o.Now, Log: s.log,
	}
	return s, s.SetSettings(o.Settings)
}

// SetSettings replaces the settings, for a reload.
func (s *Service) SetSettings(set Settings) error {
	if set.Enabled && set.Totals == nil && s.o.Source == nil {
		return errors.New("usage of machines: neither Slurm nor a script tells it")
	}
	for _, c := range set.Categories {
		if c.Name == "" || c.Period <= 0 {
			return errors.New("usage of machines: a category needs a name and a period")
		}
	}
	if set.Poll <= 0 {
		set.Poll = time.Minute
	}
	if set.Lookback <= 0 {
		set.Lookback = 7 * 24 * time.Hour
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings, s.state.Enabled = &set, set.Enabled
	s.signal()
	return nil
}

func (s *Service) current() *Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

func (s *Service) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run counts and reports until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	failures := 0
	for {
		set := s.current()
		begin := s.o.Now()
		err := s.Round(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		took := s.o.Now().Sub(begin)
		// A slow Slurm is asked less often.
		pause := max(set.Poll, 5*took)
		if err != nil {
			failures++
			pause = max(pause, s.o.Retry.Delay(failures))
			s.log.Warn("usage of machines is not up to date", "error", err, "failures", failures, "next", pause)
		} else {
			failures = 0
		}
		timer := time.NewTimer(min(pause, max(longestPause, set.Poll)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-s.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// Round counts and reports once. What was counted before is reported even if counting fails.
func (s *Service) Round(ctx context.Context) error {
	s.counting.Lock()
	defer s.counting.Unlock()
	set := s.current()
	if !set.Enabled {
		return nil
	}
	begin := s.o.Now()
	err := s.count(ctx, set)
	s.mu.Lock()
	if err == nil {
		s.state.CountedAt, s.state.Failures, s.state.Error = s.o.Now(), 0, ""
	} else if ctx.Err() == nil {
		s.state.Failures++
		s.state.Error = err.Error()
	}
	s.state.Took = s.o.Now().Sub(begin)
	s.mu.Unlock()
	return errors.Join(err, s.report(ctx, set))
}

// Status counts.
func (s *Service) Status(ctx context.Context) (Status, error) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	var lines []store.ComputeUsage
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { lines, err = tx.ComputeUsages(); return err })
	for _, l := range lines {
		st.Lines++
		if !l.Report.ReportedAt.IsZero() {
			st.Reported++
		}
		if l.Report.Refusals > 0 {
			st.Refused++
			if st.Error == "" {
				st.Error = l.Report.LastError
			}
		}
	}
	return st, err
}

// entry is a workspace and category that an account belongs to.
type entry struct {
	owner    ident.Owner
	category string
}
