package usage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
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
	// refusedFirst and refusedMost are the pauses after Core has refused an item.
	refusedFirst = 10 * time.Minute
	refusedMost  = 6 * time.Hour
	// forgetAfter is after how many refusals a scope that is gone is forgotten: Core does not know its owner any more.
	forgetAfter = 5
	// givenUp is after how many refusals without a single success a round ends: then it is not about the items.
	givenUp = 10
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
	round := &round{s: s}
	for batch := range slices.Chunk(due, coreapi.MaxUsageItems) {
		if err := s.doubt(ctx, batch); err != nil {
			return err
		}
		if err := round.send(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// doubt notes that reports are on their way: what Core knows about their scopes is open until it has confirmed one.
// Without that, a value that Core has recorded and not confirmed would stay when the drive changes back or goes.
func (s *Service) doubt(ctx context.Context, items []store.UsageReport) error {
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, r := range items {
			r.ReportedAt = time.Time{}
			if err := tx.PutUsageReport(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note what is reported: %w", err)
	}
	return nil
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

// round is one run over what is due.
type round struct {
	s        *Service
	accepted int
	refused  int
}

// errNotTheItems tells that Core refuses whatever we send.
var errNotTheItems = errors.New("core refuses all usage")

// send reports some items. A refusal is about one of them, and Core does not say about which: halves are sent until it
// is alone. Those before it are sent again, which changes nothing.
func (r *round) send(ctx context.Context, items []store.UsageReport) error {
	answers, err := r.s.o.Core.ReportUsage(ctx, r.s.wire(items))
	switch status := coreapi.Status(err); {
	case err == nil:
		r.accepted += len(items)
		return r.s.confirm(ctx, items, answers)
	case !refusal(status):
		return err
	case len(items) == 1:
		if r.refused++; r.refused >= givenUp && r.accepted == 0 {
			return fmt.Errorf("%w: %w", errNotTheItems, err)
		}
		return r.s.refuse(ctx, items[0], err)
	}
	half := len(items) / 2
	if err := r.send(ctx, items[:half]); err != nil {
		return err
	}
	return r.send(ctx, items[half:])
}

// refusal tells whether a status can be about a single item.
func refusal(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusPaymentRequired, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

func (s *Service) wire(items []store.UsageReport) []providerapi.UsageItem {
	out := make([]providerapi.UsageItem, len(items))
	for i, r := range items {
		scope := r.Scope
		out[i] = providerapi.UsageItem{
			Owner: providerapi.WalletOwnerOf(r.Owner), CategoryIDV2: providerapi.CategoryReference{Name: r.Category, Provider: s.o.Provider},
			Usage: r.Units, Description: providerapi.UsageDescription{Scope: &scope},
		}
	}
	return out
}

// confirm stores what Core has recorded.
func (s *Service) confirm(ctx context.Context, items []store.UsageReport, usable []bool) error {
	now := time.Now()
	// Core knows it whatever happens to us now; a moment of its own keeps the next start from sending it again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for i, r := range items {
			r.ReportedAt, r.Locked, r.Refusals, r.NextAt, r.LastError = now, !usable[i], 0, time.Time{}, ""
			if err := tx.PutUsageReport(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store what was reported: %w", err)
	}
	for i, r := range items {
		if locked := !usable[i]; locked != r.Locked {
			s.log.Debug("Core hints at a lock", "owner", r.Owner.Reference(), "category", r.Category, "locked", locked)
		}
	}
	return nil
}

// refuse stores that Core refuses an item.
func (s *Service) refuse(ctx context.Context, r store.UsageReport, why error) error {
	pause := min(refusedFirst<<min(r.Refusals, 10), refusedMost)
	r.ReportedAt, r.NextAt, r.LastError = time.Time{}, time.Now().Add(pause), why.Error()
	r.Refusals++
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutUsageReport(r) })
	if err != nil {
		return fmt.Errorf("store a refusal: %w", err)
	}
	s.log.Warn("Core refuses the usage of an owner", "owner", r.Owner.Reference(), "category", r.Category, "scope", r.Scope, "error", why)
	return nil
}
