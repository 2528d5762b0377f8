// Package gift asks UCloud/Core to grant new users what the configuration gives everybody for nothing
// (services.fileSystems.*.driveLocators.*.freeQuota; contract 12 section 5, contract 30 section 6).
//
// The grant comes back as an ordinary event about a wallet, and everything else follows from that. A grant is not
// idempotent at Core, so what was asked for is noted in the transaction that queues the request, for each user and product,
// and an attempt whose outcome is unknown waits for an operator.
//
// The Core of today declares the call and has no handler for it: it answers 404. That is noted as well, and asked again
// when the user connects the next time and not with each start.
package gift

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// KindGift is the kind of our entries in the outbox.
const KindGift = "user.gift"

const (
	// closedPause is how long to wait until Core has accepted the product and named the user.
	closedPause = time.Minute
	// refusedPause is how often a request that Core refuses is repeated.
	refusedPause = time.Hour
)

// What is noted about a user and a product, in the settings of the database.
const (
	noteQueued     = "queued"
	noteGiven      = "given"
	noteNotOffered = "not offered" // Core has no such call
)

// Core is what this package asks of UCloud/Core; [coreapi.Client] is the implementation.
type Core interface {
	RegisterGift(ctx context.Context, g providerapi.ProviderGift) error
}

// Category is a storage product with a free quota.
type Category struct {
	Name  string
	Units int64 // what each user gets; nothing is asked for if it is not positive
	Again bool  // with every connection anew, and not once for all
}

// Options configure [Gifts]. All but Log are required.
type Options struct {
	Provider   string
	Categories []Category
	Store      *store.Store
	Core       Core
	Declared   func(category string) bool // whether Core has accepted the product
	Outbox     interface {
		RegisterGuarded(name string, d outbox.Deliver, cut error)
	}
	Log *slog.Logger // nil discards
}

// Gifts asks for gifts. Its methods may be called at any time.
type Gifts struct {
	o   Options
	log *slog.Logger

	mu         sync.Mutex // guards what follows
	categories []Category
}

// New registers the kind of delivery. It does no I/O.
func New(o Options) (*Gifts, error) {
	if o.Provider == "" || o.Store == nil || o.Core == nil || o.Declared == nil || o.Outbox == nil {
		return nil, errors.New("gifts: provider id, store, Core, products and outbox are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gifts{o: o, log: o.Log.With("part", "gifts"), categories: o.Categories}
	o.Outbox.RegisterGuarded(KindGift, g.deliver, outbox.Suspect(errors.New("the process ended while Core was asked for a gift")))
	return g, nil
}

// SetCategories replaces the categories, for a reload.
func (g *Gifts) SetCategories(c []Category) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.categories = c
}

func (g *Gifts) all() []Category {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.categories
}

// Connected asks for the gifts of a user whose connection has just become active.
func (g *Gifts) Connected(ctx context.Context, user ident.UCloudUser) error {
	return g.queue(ctx, user, true)
}

// Repair asks for gifts of connected users that were never asked for: the process may have ended directly after they
// connected, and products may be new.
func (g *Gifts) Repair(ctx context.Context, users []ident.UCloudUser) error {
	for _, u := range users {
		if err := g.queue(ctx, u, false); err != nil {
			return err
		}
	}
	return nil
}

func (g *Gifts) queue(ctx context.Context, user ident.UCloudUser, connects bool) error {
	categories := g.all()
	due := func(tx *store.Tx) (due []Category, err error) {
		for _, c := range categories {
			if c.Units <= 0 {
				continue
			}
			note, err := tx.Setting(noteKey(user, c.Name))
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, err
			}
			if note == "" || connects && (note == noteNotOffered || c.Again && note != noteQueued) {
				due = append(due, c)
			}
		}
		return due, nil
	}
	// Most users have what there is: that takes no transaction that writes.
	var open []Category
	if err := g.o.Store.View(ctx, func(tx *store.Tx) (err error) { open, err = due(tx); return err }); err != nil || len(open) == 0 {
		return err
	}
	return g.o.Store.Update(ctx, func(tx *store.Tx) error {
		open, err := due(tx)
		if err != nil {
			return err
		}
		for _, c := range open {
			raw, err := json.Marshal(payload{User: user, Category: c.Name, Units: c.Units})
			if err != nil {
				return err
			}
			if err := tx.SetSetting(noteKey(user, c.Name), noteQueued); err != nil {
				return err
			}
			if _, err := tx.Enqueue(KindGift, outboxKey(user, c.Name), raw, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

// payload is what stands in the outbox.
type payload struct {
	User     ident.UCloudUser `json:"user"`
	Category string           `json:"category"`
	Units    int64            `json:"units"`
}

func noteKey(user ident.UCloudUser, category string) string {
	return "gift/" + category + "/" + string(user)
}

// outboxKey makes users and products independent of one another.
func outboxKey(user ident.UCloudUser, category string) string {
	sum := sha256.Sum256([]byte(noteKey(user, category)))
	return "gift/" + hex.EncodeToString(sum[:16])
}

// deliver asks once.
func (g *Gifts) deliver(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	var p payload
	if err := json.Unmarshal(e.Payload, &p); err != nil || p.User == "" || p.Category == "" || p.Units <= 0 {
		return outbox.Result{}, outbox.Permanent(errors.Join(errors.New("the gift cannot be read"), err))
	}
	var seen bool
	if err := g.o.Store.View(ctx, func(tx *store.Tx) (err error) { seen, err = tx.UserSeen(p.User); return err }); err != nil {
		return outbox.Result{}, err
	}
	if !seen || !g.o.Declared(p.Category) {
		return outbox.Result{}, outbox.RetryAfter(errors.New("core does not know the user or the product yet"), closedPause)
	}
	err := g.o.Core.RegisterGift(ctx, providerapi.ProviderGift{
		OwnerUsername: p.User, Category: providerapi.CategoryReference{Name: p.Category, Provider: g.o.Provider}, Quota: p.Units,
	})
	note := func(text string) outbox.Result {
		return outbox.Result{Complete: func(tx *store.Tx) error { return tx.SetSetting(noteKey(p.User, p.Category), text) }}
	}
	switch status := coreapi.Status(err); {
	case err == nil:
		g.log.Info("a user was given the free quota", "user", p.User, "category", p.Category, "units", p.Units)
		return note(noteGiven), nil
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		g.log.Info("this UCloud grants no free quota: let an allocator set up a gift there", "user", p.User, "category", p.Category, "units", p.Units)
		return note(noteNotOffered), nil
	case coreapi.Unanswered(err):
		return outbox.Result{}, outbox.Suspect(fmt.Errorf("ask for a gift: %w", err))
	case status >= 400 && status < 500:
		return outbox.Result{}, outbox.RetryAfter(err, refusedPause)
	}
	return outbox.Result{}, err
}
