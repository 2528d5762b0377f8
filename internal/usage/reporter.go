package usage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// refusedFirst and refusedMost are the pauses after Core has refused an item.
	refusedFirst = 10 * time.Minute
	refusedMost  = 6 * time.Hour
	// givenUp is after how many refusals without a single success a round ends: then it is not about the items.
	givenUp = 10
)

// Reporter sends absolute values to Core and stores what Core has confirmed. It is for every kind of product.
type Reporter struct {
	Provider string
	Store    *store.Store
	Core     Core
	// Put stores a report: what Core was told, or that what it knows is open.
	Put func(tx *store.Tx, r store.UsageReport) error
	// Now is the clock; nil: the real one.
	Now func() time.Time
	Log *slog.Logger
}

func (p *Reporter) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// Send reports what is due. The items are the reports as they will be stored when Core has confirmed them; one without
// scope is the whole of its wallet (contract 30 section 3). Sending one again after an unknown outcome changes nothing.
func (p *Reporter) Send(ctx context.Context, due []store.UsageReport) error {
	round := &round{p: p}
	for batch := range slices.Chunk(due, coreapi.MaxUsageItems) {
		if err := p.doubt(ctx, batch); err != nil {
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
func (p *Reporter) doubt(ctx context.Context, items []store.UsageReport) error {
	err := p.Store.Update(ctx, func(tx *store.Tx) error {
		for _, r := range items {
			r.ReportedAt = time.Time{}
			if err := p.Put(tx, r); err != nil {
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

// round is one run over what is due.
type round struct {
	p        *Reporter
	accepted int
	refused  int
}

// errNotTheItems tells that Core refuses whatever we send.
var errNotTheItems = errors.New("core refuses all usage")

// send reports some items. A refusal is about one of them, and Core does not say about which: halves are sent until it
// is alone. Those before it are sent again, which changes nothing.
func (r *round) send(ctx context.Context, items []store.UsageReport) error {
	answers, err := r.p.Core.ReportUsage(ctx, r.p.wire(items))
	switch status := coreapi.Status(err); {
	case err == nil:
		r.accepted += len(items)
		return r.p.confirm(ctx, items, answers)
	case !refusal(status):
		return err
	case len(items) == 1:
		if r.refused++; r.refused >= givenUp && r.accepted == 0 {
			return fmt.Errorf("%w: %w", errNotTheItems, err)
		}
		return r.p.refuse(ctx, items[0], err)
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

func (p *Reporter) wire(items []store.UsageReport) []providerapi.UsageItem {
	out := make([]providerapi.UsageItem, len(items))
	for i, r := range items {
		out[i] = providerapi.UsageItem{
			Owner: providerapi.WalletOwnerOf(r.Owner), CategoryIDV2: providerapi.CategoryReference{Name: r.Category, Provider: p.Provider},
			Usage: r.Units,
		}
		if scope := r.Scope; scope != "" {
			out[i].Description.Scope = &scope
		}
	}
	return out
}

// confirm stores what Core has recorded.
func (p *Reporter) confirm(ctx context.Context, items []store.UsageReport, usable []bool) error {
	now := p.now()
	// Core knows it whatever happens to us now; a moment of its own keeps the next start from sending it again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := p.Store.Update(ctx, func(tx *store.Tx) error {
		for i, r := range items {
			r.ReportedAt, r.Locked, r.Refusals, r.NextAt, r.LastError = now, !usable[i], 0, time.Time{}, ""
			if err := p.Put(tx, r); err != nil {
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
			p.Log.Debug("Core hints at a lock", "owner", r.Owner.Reference(), "category", r.Category, "locked", locked)
		}
	}
	return nil
}

// refuse stores that Core refuses an item.
func (p *Reporter) refuse(ctx context.Context, r store.UsageReport, why error) error {
	pause := min(refusedFirst<<min(r.Refusals, 10), refusedMost)
	r.ReportedAt, r.NextAt, r.LastError = time.Time{}, p.now().Add(pause), why.Error()
	r.Refusals++
	err := p.Store.Update(ctx, func(tx *store.Tx) error { return p.Put(tx, r) })
	if err != nil {
		return fmt.Errorf("store a refusal: %w", err)
	}
	p.Log.Warn("Core refuses the usage of an owner", "owner", r.Owner.Reference(), "category", r.Category, "scope", r.Scope, "error", why)
	return nil
}
