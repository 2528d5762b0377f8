package driveplan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// parallel is how many owners are evaluated at a time: scripts of the site may take long.
const parallel = 4

// Products is the gate for product names; [products.Declarer] is the implementation.
type Products interface {
	Declared(category string) bool
	Reference(category string) (providerapi.ProductReference, bool)
}

// Core is what the planner asks of UCloud/Core; [coreapi.Client] is the implementation. Errors are those of package
// coreapi.
type Core interface {
	RegisterDrive(ctx context.Context, d providerapi.RegisterDrive) (ident.DriveID, error)
	FindDrive(ctx context.Context, providerGeneratedID string) (providerapi.Drive, bool, error)
	FindDriveByBrowsing(ctx context.Context, providerGeneratedID string) (providerapi.Drive, bool, error)
}

// Outbox is the part of [outbox.Outbox] that the planner uses.
type Outbox interface {
	RegisterGuarded(name string, d outbox.Deliver, cut error)
}

// Options configure a [Planner].
type Options struct {
	Provider   string     // our provider id
	Categories []Category // services.fileSystems, in the order of the file
	Store      *store.Store
	Core       Core
	Products   Products
	Accounts   Accounts
	Outbox     Outbox
	// Retry is the pause before an owner is looked at again who waits for a directory or whose evaluation failed.
	// Zero values mean 5 s, growing to 5 min.
	Retry coreapi.Backoff
	// Registered is told about each drive that Core has given an id, after the commit. It must not block. Nil: nobody.
	Registered func(owner ident.Owner, id ident.DriveID)
	Log        *slog.Logger // nil discards
}

// Planner turns allocations into registered drives. [Planner.Run] does the work; the other methods may be called at any
// time.
type Planner struct {
	o    Options
	log  *slog.Logger
	wake chan struct{} // holds one element: due has changed

	// fault, if set, is asked before each step that stores something; its error ends the evaluation there. Tests use it
	// in place of a crash.
	fault func(step string) error

	mu         sync.Mutex // guards what follows
	categories []Category
	everyone   bool                          // all owners are due
	due        map[ident.Owner]*attempt      // owners to look at
	busy       map[ident.Owner]chan struct{} // closed when the evaluation under way has ended
}

// attempt is the schedule of one owner.
type attempt struct {
	at       time.Time
	failures int
}

// New makes a planner and registers its kind of delivery with the outbox. It does no I/O.
func New(o Options) (*Planner, error) {
	if o.Provider == "" || o.Store == nil || o.Core == nil || o.Products == nil || o.Accounts == nil || o.Outbox == nil {
		return nil, errors.New("drive planner: provider id, store, Core, products, accounts and outbox are required")
	}
	if err := checkCategories(o.Categories); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Retry.Initial <= 0 {
		o.Retry.Initial = 5 * time.Second
	}
	if o.Retry.Max <= 0 {
		o.Retry.Max = 5 * time.Minute
	}
	p := &Planner{
		o: o, log: o.Log.With("part", "drives"), wake: make(chan struct{}, 1), categories: o.Categories, everyone: true,
		due: map[ident.Owner]*attempt{}, busy: map[ident.Owner]chan struct{}{},
	}
	o.Outbox.RegisterGuarded(KindRegister, p.deliver, outbox.RetryAfter(errInterrupted, unansweredPause))
	return p, nil
}

// SetCategories replaces the locators, for a reload, and has everybody looked at.
func (p *Planner) SetCategories(c []Category) error {
	if err := checkCategories(c); err != nil {
		return err
	}
	p.mu.Lock()
	p.categories = c
	p.mu.Unlock()
	p.ChangedAll()
	return nil
}

// Changed has owners looked at soon: their wallets, mapping or group changed. It never blocks.
func (p *Planner) Changed(owners ...ident.Owner) {
	p.mu.Lock()
	for _, o := range owners {
		if o.Valid() {
			p.due[o] = &attempt{}
		}
	}
	p.mu.Unlock()
	p.signal()
}

// ChangedAll has all owners looked at soon: a category became usable, or the configuration changed. It never blocks.
func (p *Planner) ChangedAll() {
	p.mu.Lock()
	p.everyone = true
	p.mu.Unlock()
	p.signal()
}

func (p *Planner) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// lookAtAll is how often everybody is looked at without a reason that we know: groups and accounts are renamed, and
// scripts change their minds.
const lookAtAll = 6 * time.Hour

// Run looks at everybody once and then at whoever is due, until ctx ends.
func (p *Planner) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, parallel)
	failures := 0
	looked := time.Now()
	for {
		pause := time.Hour
		p.mu.Lock()
		everyone := p.everyone || time.Since(looked) >= lookAtAll
		p.everyone = false
		p.mu.Unlock()
		if everyone {
			looked = time.Now()
			if err := p.addEveryone(ctx); err != nil && ctx.Err() == nil {
				failures++
				pause = p.o.Retry.Delay(failures)
				p.log.Error("owners of drives cannot be listed", "error", err)
				p.mu.Lock()
				p.everyone = true
				p.mu.Unlock()
			} else {
				failures = 0
			}
		}
		for {
			owner, a, next := p.takeDue()
			if a == nil {
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
				p.look(ctx, owner, a)
			})
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// addEveryone makes the owners of all wallets due.
func (p *Planner) addEveryone(ctx context.Context) error {
	var wallets []store.Wallet
	err := p.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		wallets, err = tx.Wallets()
		return err
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range wallets {
		p.due[w.Owner] = &attempt{}
	}
	return nil
}

// takeDue removes an owner whose time has come. Without one, next is how long that takes.
func (p *Planner) takeDue() (owner ident.Owner, a *attempt, next time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	next = time.Hour
	for o, a := range p.due {
		if wait := a.at.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		delete(p.due, o)
		return o, a, 0
	}
	return ident.Owner{}, nil, next
}

// look evaluates an owner and schedules the next look if something is left to wait for.
func (p *Planner) look(ctx context.Context, owner ident.Owner, a *attempt) {
	waiting, err := p.evaluate(ctx, owner)
	if ctx.Err() != nil || (!waiting && err == nil) {
		return
	}
	a.failures++
	pause := p.o.Retry.Delay(a.failures)
	a.at = time.Now().Add(pause)
	if err != nil && (a.failures == 1 || a.failures%20 == 0) {
		p.log.Warn("drives of an owner not complete", "owner", owner.Reference(), "error", err, "failures", a.failures)
	}
	p.mu.Lock()
	if p.due[owner] == nil { // else somebody wants an earlier look
		p.due[owner] = a
	}
	p.mu.Unlock()
	p.signal()
}

// Evaluate brings the drives of one owner as far as possible now. It waits for an evaluation of the same owner that is
// under way, so that there is one at a time per owner and category.
func (p *Planner) Evaluate(ctx context.Context, owner ident.Owner) error {
	_, err := p.evaluate(ctx, owner)
	return err
}

// EvaluateAll brings the drives of all owners as far as possible now, and returns the errors of all.
func (p *Planner) EvaluateAll(ctx context.Context) error {
	if err := p.addEveryone(ctx); err != nil {
		return err
	}
	var problems []error
	for {
		owner, a, _ := p.takeDue()
		if a == nil {
			return errors.Join(problems...)
		}
		if err := p.Evaluate(ctx, owner); err != nil {
			problems = append(problems, fmt.Errorf("drives of %s: %w", owner.Reference(), err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// lock waits for the turn of an owner and returns the function that ends it.
func (p *Planner) lock(ctx context.Context, owner ident.Owner) (func(), error) {
	for {
		p.mu.Lock()
		other := p.busy[owner]
		if other == nil {
			mine := make(chan struct{})
			p.busy[owner] = mine
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.busy, owner)
				p.mu.Unlock()
				close(mine)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
