package products

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// recheckEvery is how often Core's products are compared again when nothing changed here: Core may have been restored
// from a backup.
const recheckEvery = 24 * time.Hour

// Core is what the declarer calls; [coreapi.Client] is the implementation.
type Core interface {
	BrowseProducts(ctx context.Context) ([]providerapi.Product, error)
	DeclareProducts(ctx context.Context, products []providerapi.Product) error
}

// State is how a category stands at Core.
type State string

// The states.
const (
	Unknown  State = "unknown"  // not compared yet
	Declared State = "declared" // Core has it as we have it
	Differs  State = "differs"  // Core has it in another unit, frequency or price model: an operator must act
	Refused  State = "refused"  // Core does not accept it: an operator must act
)

// CategoryStatus is how one category stands, for operators.
type CategoryStatus struct {
	Category string
	State    State
	Usable   bool   // drives or jobs may be registered in it
	Problem  string // in words, empty if there is none
}

// DeclarerOptions configure a [Declarer].
type DeclarerOptions struct {
	Core  Core
	Store *store.Store
	Retry coreapi.Backoff // provider.core.retry
	// OnDeclared is called when a category has become usable, outside all locks. Nil: nobody is told.
	OnDeclared func(category string)
	Log        *slog.Logger // nil discards
}

// Declarer keeps Core's products as the catalogue has them.
type Declarer struct {
	o    DeclarerOptions
	log  *slog.Logger
	wake chan struct{} // holds one element: compare now

	mu      sync.Mutex // guards what follows
	catalog *Catalog
	status  map[string]*CategoryStatus
	lastErr error
}

// NewDeclarer makes a declarer. It does no I/O.
func NewDeclarer(c *Catalog, o DeclarerOptions) (*Declarer, error) {
	if c == nil || o.Core == nil || o.Store == nil {
		return nil, errors.New("products: catalogue, Core and store are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Declarer{
		o: o, log: o.Log.With("part", "products"), wake: make(chan struct{}, 1), catalog: c, status: map[string]*CategoryStatus{},
	}, nil
}

// Catalog is the present catalogue.
func (d *Declarer) Catalog() *Catalog {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.catalog
}

// SetCatalog replaces the catalogue, for a reload, and has it compared with Core.
func (d *Declarer) SetCatalog(c *Catalog) {
	d.mu.Lock()
	d.catalog = c
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Declared tells whether Core is known to have the category and its product, so that drives and jobs may be registered in it.
// Only categories of the catalogue count.
func (d *Declarer) Declared(category string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status[category]
	return d.catalog.has(category) && s != nil && s.Usable
}

// Reference is [Catalog.Reference] of the present catalogue.
func (d *Declarer) Reference(category string) (providerapi.ProductReference, bool) {
	return d.Catalog().Reference(category)
}

// Status tells how all categories of the catalogue stand, and the error of the last comparison if it failed.
func (d *Declarer) Status() ([]CategoryStatus, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []CategoryStatus
	for _, name := range d.catalog.Categories() {
		s := CategoryStatus{Category: name, State: Unknown}
		if have := d.status[name]; have != nil {
			s = *have
		}
		all = append(all, s)
	}
	return all, d.lastErr
}

// Load takes over what earlier processes achieved: a category that Core has accepted once cannot vanish there. It is
// called before anything asks [Declarer.Declared].
func (d *Declarer) Load(ctx context.Context) error {
	for _, category := range d.Catalog().Categories() {
		var stored string
		err := d.o.Store.View(ctx, func(tx *store.Tx) (err error) {
			stored, err = tx.Declared(category)
			return err
		})
		if errors.Is(err, store.ErrNotFound) || (err == nil && stored == "") {
			continue
		}
		if err != nil {
			return fmt.Errorf("read declared products: %w", err)
		}
		d.set(CategoryStatus{Category: category, State: Unknown, Usable: true})
	}
	return nil
}

// Run compares and declares until ctx ends: at once, after [Declarer.SetCatalog], daily, and after a failure with
// back-off.
func (d *Declarer) Run(ctx context.Context) error {
	failures := 0
	for {
		pause := recheckEvery
		err := d.reconcile(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			failures++
			pause = d.o.Retry.Delay(failures)
			d.log.Warn("products not declared", "error", err, "failures", failures, "pause", pause)
		} else {
			failures = 0
		}
		d.mu.Lock()
		d.lastErr = err
		d.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		case <-d.wake:
			timer.Stop()
		}
	}
}

// reconcile makes one comparison. A category that fails does not keep the others from being declared.
func (d *Declarer) reconcile(ctx context.Context) error {
	all, err := d.o.Core.BrowseProducts(ctx)
	if err != nil {
		return fmt.Errorf("browse products: %w", err)
	}
	catalog := d.Catalog()
	byCategory := map[string][]providerapi.Product{}
	for _, p := range all {
		if p.Category.Provider == catalog.provider {
			byCategory[p.Category.Name] = append(byCategory[p.Category.Name], p)
		}
	}
	var problems []error
	for _, category := range catalog.Categories() {
		if err := d.category(ctx, catalog.Products(category), byCategory[category]); err != nil {
			problems = append(problems, fmt.Errorf("category %s: %w", category, err))
		}
	}
	return errors.Join(problems...)
}

// category brings one category to Core. ours is never empty.
func (d *Declarer) category(ctx context.Context, ours, core []providerapi.Product) error {
	name, sum := ours[0].Category.Name, hash(ours)
	var stored string
	err := d.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		stored, err = tx.Declared(name)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if len(core) > 0 {
		if problems := conflicts(ours[0].Category, core[0].Category); len(problems) > 0 {
			// Core has the products, so they can be used; but their numbers mean something else than we think.
			d.set(CategoryStatus{
				Category: name, State: Differs, Usable: every(ours, core, has),
				Problem: strings.Join(problems, "; ") + "; a changed unit or interval needs a new product name",
			})
			return nil // nothing that a repetition would change
		}
	}
	complete := every(ours, core, has)
	if !complete {
		d.setUsable(name, false) // perhaps Core was restored from a backup
	}
	unchanged := every(ours, core, same) && core[0].Category == ours[0].Category
	if !unchanged || (stored != "" && stored != sum) {
		if err := d.o.Core.DeclareProducts(ctx, ours); err != nil {
			if s := coreapi.Status(err); s >= 400 && s < 500 {
				d.set(CategoryStatus{Category: name, State: Refused, Usable: complete, Problem: err.Error()})
			}
			return err
		}
		d.log.Info("products declared", "category", name)
	}
	if stored != sum {
		err := d.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.SetDeclared(name, sum, time.Now()) })
		if err != nil {
			return err // the same again next time; declaring is idempotent
		}
	}
	d.set(CategoryStatus{Category: name, State: Declared, Usable: true})
	return nil
}

// every tells whether each of ours has a partner in core by the same name for which ok holds.
func every(ours, core []providerapi.Product, ok func(ours, core providerapi.Product) bool) bool {
	for _, p := range ours {
		found := false
		for _, q := range core {
			found = found || (p.Name == q.Name && ok(p, q))
		}
		if !found {
			return false
		}
	}
	return true
}

// has is the weakest comparison: the name is there.
func has(_, _ providerapi.Product) bool { return true }

// set stores a status, and raises an alarm or tells about the new category if something changed.
func (d *Declarer) set(s CategoryStatus) {
	d.mu.Lock()
	before := d.status[s.Category]
	d.status[s.Category] = &s
	d.mu.Unlock()
	if s.Problem != "" && (before == nil || before.Problem != s.Problem) {
		d.log.Error("a product category needs an operator", "category", s.Category, "state", s.State, "problem", s.Problem)
	}
	if s.Usable && (before == nil || !before.Usable) && d.o.OnDeclared != nil {
		d.o.OnDeclared(s.Category)
	}
}

func (d *Declarer) setUsable(category string, usable bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.status[category]; s != nil {
		changed := *s
		changed.Usable = usable
		d.status[category] = &changed
	}
}
