package computeusage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"ucloud-im/internal/store"
)

// report sends what Core does not know yet.
func (s *Service) report(ctx context.Context, set *Settings) error {
	if stop := s.step("before the report"); stop != nil {
		return stop
	}
	var due []store.UsageReport
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		due = nil
		lines, err := tx.ComputeUsages()
		if err != nil {
			return err
		}
		for _, u := range lines {
			r, ok, err := s.due(tx, set, u)
			if err != nil {
				return err
			}
			if ok {
				due = append(due, r)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	// The same order every time, so that a batch that fails can be recognised in Core's log.
	slices.SortFunc(due, func(a, b store.UsageReport) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), cmp.Compare(a.Owner.Reference(), b.Owner.Reference()))
	})
	return s.reporter.Send(ctx, due)
}

// due gives the report that Core needs about a line of the ledger, as it will be stored when Core has confirmed it.
func (s *Service) due(tx *store.Tx, set *Settings, u store.ComputeUsage) (r store.UsageReport, ok bool, err error) {
	i := slices.IndexFunc(set.Categories, func(c Category) bool { return c.Name == u.Category })
	if i < 0 || set.Categories[i].FreeToUse || u.Minutes == 0 {
		return r, false, nil // less than a minute, ever, was never reported
	}
	units := u.Minutes / set.Categories[i].Period
	w, err := tx.Wallet(u.Owner, u.Category)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return r, false, err
	}
	units = max(units-w.RetiredUsage, 0)
	r = u.Report
	now := s.o.Now()
	if now.Before(r.NextAt) || (units == r.Units && now.Sub(r.ReportedAt) < refresh) {
		return r, false, nil
	}
	r.Units = units
	return r, true, nil
}
