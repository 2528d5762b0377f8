package usage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

const (
	// settle collects measurements that come one after the other into one report.
	settle = 15 * time.Second
	// reportEvery is how often is looked for what is due by time alone.
	reportEvery = 10 * time.Minute
	// purgeEvery is how often traces of drives are removed that are not there any more.
	purgeEvery = time.Hour
	// refresh is when a value that has not changed is sent again; each scope a little earlier, up to refreshSpread.
	refresh       = 24 * time.Hour
	refreshSpread = 3 * time.Hour
	// forgetAfter is after how many refusals a scope that is gone is forgotten: Core does not know its owner any more.
	forgetAfter = 5
)

// source is what Core keeps one total for (contract 30 section 3: by owner and scope, whatever the category).
type source struct {
	owner ident.Owner
	scope string
}

// amount is what a source should be.
type amount struct {
	category string
	locator  string // or the drive's id
	bytes    int64
	partial  bool // a drive of it was never measured
}

func (s *Service) reportLoop(ctx context.Context) {
	failures := 0
	var purged time.Time
	for {
		if time.Since(purged) >= purgeEvery {
			purged = time.Now()
			if err := s.o.Store.Update(ctx, (*store.Tx).PurgeStorage); err != nil && ctx.Err() == nil {
				s.log.Error("traces of drives that are gone stay", "error", err)
			}
		}
		pause := reportEvery
		if err := s.Report(ctx); err != nil && ctx.Err() == nil {
			failures++
			pause = s.o.Retry.Delay(failures)
			s.log.Warn("usage is not reported", "error", err, "failures", failures, "next", pause)
		} else {
			failures = 0
		}
		timer := time.NewTimer(pause)
		dirty := s.dirty
		if failures > 0 {
			dirty = nil // new values do not make Core better
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-dirty:
			timer.Stop()
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		case <-timer.C:
		}
	}
}

// Report sends what Core does not know yet, once.
func (s *Service) Report(ctx context.Context) error {
	var drives []store.Drive
	var usages []store.DriveUsage
	var reports []store.UsageReport
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if drives, err = tx.Drives(); err != nil {
			return err
		}
		if usages, err = tx.DriveUsages(); err != nil {
			return err
		}
		reports, err = tx.UsageReports()
		return err
	})
	if err != nil {
		return fmt.Errorf("read usage: %w", err)
	}
	due, gone := s.due(drives, usages, reports, time.Now())
	if len(gone) > 0 {
		if err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
			for _, r := range gone {
				if err := tx.DeleteUsageReport(r.Owner, r.Scope); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return fmt.Errorf("forget usage: %w", err)
		}
	}
	return s.reporter.Send(ctx, due)
}

// due finds what is to be reported, and reports that can be forgotten: their scope is gone and Core has been told zero.
// The items are the reports as they will be stored when Core has confirmed them.
func (s *Service) due(drives []store.Drive, usages []store.DriveUsage, reports []store.UsageReport, now time.Time) (due, gone []store.UsageReport) {
	measured := make(map[string]store.DriveUsage, len(usages))
	for _, u := range usages {
		measured[u.ProviderGeneratedID] = u
	}
	wanted := map[source]*amount{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range drives {
		c, ok := s.categories[d.Category]
		if !ok || c.Measure == nil || c.UnitBytes <= 0 || c.FreeToUse || !measurable(d.State) {
			continue
		}
		part := d.Locator
		if part == "" {
			part = string(d.ID) // made by a user
		}
		if part == "" {
			continue
		}
		key := source{d.Owner, s.o.Provider + "-" + d.Category + "-" + part}
		a := wanted[key]
		if a == nil {
			a = &amount{category: d.Category, locator: part}
			wanted[key] = a
		}
		if a.category != d.Category || a.locator != part {
			if !s.clashes[key.scope] {
				s.clashes[key.scope] = true
				s.log.Error("two locators have the same scope at Core; only one of them is reported: rename a locator", "scope", key.scope,
					"locator", a.category+"/"+a.locator, "other", d.Category+"/"+part)
			}
			continue
		}
		u := measured[d.ProviderGeneratedID]
		a.partial = a.partial || u.MeasuredAt.IsZero()
		a.bytes = add(a.bytes, u.Bytes)
	}
	for _, r := range reports {
		key := source{r.Owner, r.Scope}
		a := wanted[key]
		delete(wanted, key)
		switch {
		case a != nil && !a.partial:
			units, err := Units(a.bytes, s.categories[a.category].UnitBytes)
			if err != nil {
				continue // cannot happen: both were checked
			}
			old := now.Sub(r.ReportedAt) >= refresh-spread(r.Scope+r.Owner.Reference(), refreshSpread)
			if changed := units != r.Units || a.category != r.Category; (changed || old) && !now.Before(r.NextAt) {
				r.Units, r.Category = units, a.category
				due = append(due, r)
			}
		case a != nil: // incomplete: what Core knows stays
		case r.Units == 0 && !r.ReportedAt.IsZero(), r.Refusals >= forgetAfter:
			gone = append(gone, r)
		case !now.Before(r.NextAt):
			r.Units = 0
			due = append(due, r)
		}
	}
	for key, a := range wanted {
		if units, err := Units(a.bytes, s.categories[a.category].UnitBytes); err == nil && !a.partial {
			due = append(due, store.UsageReport{Owner: key.owner, Scope: key.scope, Category: a.category, Units: units})
		}
	}
	// The same order every time, so that a batch that fails can be recognised in Core's log.
	slices.SortFunc(due, func(a, b store.UsageReport) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), cmp.Compare(a.Owner.Reference(), b.Owner.Reference()), cmp.Compare(a.Scope, b.Scope))
	})
	return due, gone
}
