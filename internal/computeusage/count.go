package computeusage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// Where the database remembers how far it has counted. settingFolded is the time before which runs that ended are in the
// ledger for good: one from before it is never taken again.
const (
	settingCursor = "compute.usage.cursor"
	settingFolded = "compute.usage.folded"
)

// chunk is how many runs one transaction takes in.
const chunk = 1000

// askAtOnce is how many jobs are asked for by number in one round.
const askAtOnce = 500

// book is what the database holds at the begin of a round.
type book struct {
	accounts map[string][]entry
	filled   map[string]bool
	open     []store.ComputeRun
	cursor   time.Time
	folded   time.Time
}

func readTime(tx *store.Tx, name string) (time.Time, error) {
	text, err := tx.Setting(name)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", name, err)
	}
	return time.UnixMilli(ms), nil
}

func writeTime(tx *store.Tx, name string, t time.Time) error {
	return tx.SetSetting(name, strconv.FormatInt(t.UnixMilli(), 10))
}

// read gives the book. scripted: also accounts that are not managed here count.
func (s *Service) read(ctx context.Context, scripted bool) (b book, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		b = book{accounts: map[string][]entry{}}
		managed, err := tx.SlurmManaged()
		if err != nil {
			return err
		}
		all, err := tx.SlurmAccounts()
		if err != nil {
			return err
		}
		for _, a := range all {
			if scripted || managed[a.Account] {
				b.accounts[a.Account] = append(b.accounts[a.Account], entry{a.Owner, a.Category})
			}
		}
		if b.filled, err = tx.ComputeFilled(); err != nil {
			return err
		}
		if b.open, err = tx.OpenComputeRuns(); err != nil {
			return err
		}
		if b.cursor, err = readTime(tx, settingCursor); err != nil {
			return err
		}
		b.folded, err = readTime(tx, settingFolded)
		return err
	})
	return b, err
}

// count brings the ledger up to date.
func (s *Service) count(ctx context.Context, set *Settings) error {
	if set.Totals != nil {
		return s.countTotals(ctx, set)
	}
	b, err := s.read(ctx, false)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	if len(b.accounts) == 0 && len(b.open) == 0 {
		return nil
	}
	now := s.o.Now()
	full := s.fullAt.IsZero() || now.Sub(s.fullAt) >= fullEvery || now.Before(s.fullAt)
	s.fullAt = zeroIf(full, s.fullAt)
	if err := s.countRuns(ctx, set, &b, now, full); err != nil {
		s.fullAt = time.Time{} // whatever was missed is looked for in the long window
		return err
	}
	if full {
		s.fullAt = now
	}
	return nil
}

func zeroIf(zero bool, t time.Time) time.Time {
	if zero {
		return time.Time{}
	}
	return t
}

func (s *Service) countRuns(ctx context.Context, set *Settings, b *book, now time.Time, full bool) error {
	// slurmctld first: a job that ends in between is not live then and has its end in the answer of sacct, or counts
	// on in the next round.
	live, err := s.o.Source.Live(ctx)
	if err != nil {
		// What has ended is taken in all the same; what runs does not count on.
		live = nil
		err = fmt.Errorf("slurmctld does not tell what runs: %w", err)
	}
	if stop := s.step("asked slurmctld"); stop != nil {
		return stop
	}
	since := b.cursor.Add(-overlap)
	if full || b.cursor.IsZero() || now.Before(b.cursor) {
		since = earlier(now.Add(-set.Lookback), since, !b.cursor.IsZero())
	}
	runs, runsErr := s.o.Source.Runs(ctx, since, nil)
	if runsErr != nil {
		return errors.Join(fmt.Errorf("accounting does not tell what was used: %w", runsErr), err)
	}
	if stop := s.step("asked slurmdbd"); stop != nil {
		return stop
	}
	t := &taking{s: s, set: set, b: b, live: live, now: now, unmatched: map[string]bool{}}
	if stop := t.take(ctx, runs); stop != nil {
		return stop
	}
	more, moreErr := s.askMore(ctx, b, runs)
	if moreErr != nil {
		return errors.Join(moreErr, err)
	}
	if stop := t.take(ctx, more); stop != nil {
		return stop
	}
	if stop := s.fill(ctx, t); stop != nil {
		return errors.Join(stop, err)
	}
	if full {
		s.mu.Lock()
		s.state.Unmatched = len(t.unmatched)
		s.mu.Unlock()
	}
	if stop := s.step("before the cursor"); stop != nil {
		return stop
	}
	return errors.Join(err, s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if err := writeTime(tx, settingCursor, now); err != nil {
			return err
		}
		if !full || err != nil {
			return nil
		}
		horizon := now.Add(-set.Lookback - keep)
		if !horizon.After(b.folded) {
			return nil
		}
		if err := tx.ForgetComputeRuns(horizon); err != nil {
			return err
		}
		return writeTime(tx, settingFolded, horizon)
	}))
}

// earlier is the earlier of two times if the second counts.
func earlier(a, b time.Time, second bool) time.Time {
	if second && b.Before(a) {
		return b
	}
	return a
}

// askMore asks for runs that we call open and that were not in the answer: they may have ended before the window.
func (s *Service) askMore(ctx context.Context, b *book, runs []Run) ([]Run, error) {
	seen := make(map[string]bool, len(runs))
	for i := range runs {
		seen[runs[i].key()] = true
	}
	var ids []string
	for _, r := range b.open {
		if !seen[r.Key] {
			id, _, _ := cutKey(r.Key)
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	ids = ids[:min(len(ids), askAtOnce)]
	more, err := s.o.Source.RunsOf(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("accounting does not tell about jobs: %w", err)
	}
	return more, nil
}

func cutKey(key string) (id, start string, ok bool) {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] == '@' {
			return key[:i], key[i+1:], true
		}
	}
	return key, "", false
}

// fill counts the whole history of accounts that are new here. It may be cut short: what was taken in is known by then.
func (s *Service) fill(ctx context.Context, t *taking) error {
	var fresh []string
	for a := range t.b.accounts {
		if !t.b.filled[a] {
			fresh = append(fresh, a)
		}
	}
	slices.Sort(fresh)
	for part := range slices.Chunk(fresh, 100) {
		runs, err := s.o.Source.Runs(ctx, time.Unix(0, 0), part)
		if err != nil {
			return fmt.Errorf("accounting does not tell the history of accounts: %w", err)
		}
		if stop := s.step("asked history"); stop != nil {
			return stop
		}
		if err := t.take(ctx, runs); err != nil {
			return err
		}
		err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
			for _, a := range part {
				if err := tx.SetComputeFilled(a, t.now); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("note counted accounts: %w", err)
		}
	}
	return nil
}

// taking takes runs into the ledger.
type taking struct {
	s         *Service
	set       *Settings
	b         *book
	live      map[string]time.Time // nil: not known
	now       time.Time
	unmatched map[string]bool // runs that belong to no category
}

func (t *taking) take(ctx context.Context, runs []Run) error {
	for part := range slices.Chunk(runs, chunk) {
		if stop := t.s.step("before a chunk"); stop != nil {
			return stop
		}
		err := t.s.o.Store.Update(ctx, func(tx *store.Tx) error {
			moved := map[entry]int64{} // units times seconds
			for i := range part {
				fits, err := t.one(tx, &part[i], moved)
				if err != nil {
					return err
				}
				if !fits {
					t.unmatched[part[i].key()] = true
				}
			}
			for e, delta := range moved {
				if err := t.move(tx, e, delta); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("take usage into the ledger: %w", err)
		}
		if stop := t.s.step("after a chunk"); stop != nil {
			return stop
		}
	}
	return nil
}

// one takes in a run. fits is false for one that belongs to no category of its account.
func (t *taking) one(tx *store.Tx, r *Run, moved map[entry]int64) (fits bool, err error) {
	if r.Start.IsZero() || r.ID == "" || r.Seconds < 0 {
		return true, nil // has not begun
	}
	entries, known := t.b.accounts[r.Account]
	old, err := tx.ComputeRun(r.key())
	fresh := errors.Is(err, store.ErrNotFound)
	if err != nil && !fresh {
		return false, err
	}
	if fresh {
		if !known {
			return true, nil // somebody else's
		}
		if t.b.filled[r.Account] && !r.End.IsZero() && r.End.Before(t.b.folded) {
			return true, nil // is in the ledger
		}
		e, ok := t.belongs(entries, r)
		if !ok {
			return false, nil
		}
		old = store.ComputeRun{Key: r.key(), Account: r.Account, Owner: e.owner, Category: e.category}
	}
	next := old
	if c := t.category(old.Category); c != nil {
		next.Rate = rate(c, r)
		if c.Slices != nil && old.Rate > 0 {
			next.Rate = old.Rate // a price that changes later is for later runs
		}
	}
	switch {
	case !r.End.IsZero():
		next.Seconds, next.EndedAt = r.Seconds, r.End
	case !t.runs(r):
		if fresh {
			return true, nil
		}
		next = old // perhaps it ended long ago
	default:
		next.Seconds, next.EndedAt = max(old.Seconds, r.Seconds), time.Time{}
	}
	if next == old && !fresh {
		return true, nil
	}
	delta, err := difference(old, next)
	if err != nil {
		return true, err
	}
	moved[entry{next.Owner, next.Category}] += delta
	return true, tx.PutComputeRun(next)
}

// runs tells whether slurmctld has this run. Earlier runs of a job that was requeued have ended, even where slurmdbd does
// not know yet.
func (t *taking) runs(r *Run) bool {
	start, ok := t.live[r.ID]
	return ok && !r.Start.Before(start)
}

// maxUnitSeconds bounds one run, so that sums of a transaction cannot overflow.
const maxUnitSeconds = 1 << 52

func difference(old, next store.ComputeRun) (int64, error) {
	if next.Seconds > 0 && next.Rate > maxUnitSeconds/next.Seconds {
		return 0, fmt.Errorf("run %s: %d units for %d seconds cannot be", next.Key, next.Rate, next.Seconds)
	}
	return next.Rate*next.Seconds - old.Rate*old.Seconds, nil
}

// belongs finds whom a run is charged to.
func (t *taking) belongs(entries []entry, r *Run) (entry, bool) {
	if c := match(t.set.Categories, r); c != nil {
		for _, e := range entries {
			if e.category == c.Name {
				return e, true
			}
		}
	}
	if len(entries) == 1 {
		return entries[0], true
	}
	t.s.tell(r)
	return entry{}, false
}

// tell logs once that runs belong to no category.
func (s *Service) tell(r *Run) {
	key := r.Account + "/" + r.Partition + "/" + r.QoS
	s.mu.Lock()
	seen := s.told[key]
	s.told[key] = true
	s.mu.Unlock()
	if !seen {
		s.log.Warn("an account with several categories is used in a partition of none of them; this is charged to nobody",
			"account", r.Account, "partition", r.Partition, "qos", r.QoS, "job", r.ID)
	}
}

func (t *taking) category(name string) *Category {
	i := slices.IndexFunc(t.set.Categories, func(c Category) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &t.set.Categories[i]
}

// move changes a line of the ledger by units times seconds.
func (t *taking) move(tx *store.Tx, e entry, delta int64) error {
	u, err := tx.ComputeUsage(e.owner, e.category)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	minutes, rest := u.Minutes+delta/60, u.Rest+delta%60
	if rest < 0 {
		minutes, rest = minutes-1, rest+60
	}
	minutes, rest = minutes+rest/60, rest%60
	if minutes < 0 {
		minutes, rest = 0, 0 // cannot happen: every part was added before
	}
	return tx.CountCompute(e.owner, e.category, minutes, rest, t.now)
}

// countTotals asks the site's script.
func (s *Service) countTotals(ctx context.Context, set *Settings) error {
	b, err := s.read(ctx, true)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	if len(b.accounts) == 0 {
		return nil
	}
	names := make([]string, 0, len(b.accounts))
	for a := range b.accounts {
		names = append(names, a)
	}
	slices.Sort(names)
	totals, err := set.Totals(ctx, names)
	if err != nil {
		return fmt.Errorf("the site's script does not tell what was used: %w", err)
	}
	now := s.o.Now()
	ignored := 0
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		ignored = 0
		for _, total := range totals {
			e, ok := ofTotal(b.accounts[total.Account], total.Category)
			if !ok || total.Minutes < 0 {
				ignored++
				continue
			}
			u, err := tx.ComputeUsage(e.owner, e.category)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if total.Minutes < u.Minutes {
				s.log.Warn("the total that the site's script tells has fallen; the old one stays", "account", total.Account,
					"category", e.category, "minutes", total.Minutes, "before", u.Minutes)
				continue
			}
			if err := tx.CountCompute(e.owner, e.category, total.Minutes, 0, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("take usage into the ledger: %w", err)
	}
	s.mu.Lock()
	s.state.Unmatched = ignored
	s.mu.Unlock()
	return nil
}

func ofTotal(entries []entry, category string) (entry, bool) {
	if category == "" && len(entries) == 1 {
		return entries[0], true
	}
	for _, e := range entries {
		if e.category == category && category != "" {
			return e, true
		}
	}
	return entry{}, false
}

// Used is what a workspace has used in a category, in units times minutes; for those who show it.
func (s *Service) Used(ctx context.Context, owner ident.Owner, category string) (minutes int64, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		u, err := tx.ComputeUsage(owner, category)
		minutes = u.Minutes
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	return minutes, err
}
