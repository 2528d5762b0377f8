// Package outbox delivers to UCloud/Core what must reach it (design D8; contract 05 sections C6 and D6): durably, in
// order, and again until it has worked.
//
// An entry is written by [store.Tx.Enqueue] in the transaction that stores the fact it reports. A kind of entry has a
// [Deliver] function that makes the call. What the call brought is stored in the transaction that removes the entry.
//
// # What is guaranteed
//
//   - An entry is delivered at least once. It leaves the database only after its delivery succeeded, was given up as
//     [Permanent], or an operator dropped it (TestNothingIsLostByKill).
//   - Entries of one key are delivered one after the other in the order in which they were committed; a later one waits
//     for the earlier, also while that one waits for an operator. Keys are independent of each other.
//   - An entry is never attempted twice at the same time by one process. That there is only one process is for the
//     server to make sure: [store.Options.Exclusive].
//   - No tick: the dispatcher sleeps until something is enqueued or the next entry is due.
//
// # What is not
//
// A process that is killed between the call and the commit makes the same call again when it starts. So a Deliver
// function must be harmless when repeated, or ask first. Kinds for which a blind repetition may do harm are registered
// with [Outbox.RegisterGuarded]: the attempt is noted before it begins, and an attempt that a kill cut short is treated
// as if it had ended in an error of the kind's choice.
package outbox

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"ucloud-im/internal/store"
)

// Deliver makes one attempt. It should end soon after ctx is done. A plain error means that a repetition is harmless;
// see [Suspect], [RetryAfter] and [Permanent]. It is never called twice at a time for one key.
type Deliver func(ctx context.Context, e store.OutboxEntry) (Result, error)

// Result is what an attempt wants done with the database. All parts are optional.
type Result struct {
	// Complete runs in the transaction that removes the entry: after success, and after a [Permanent] error. It may run
	// more than once (see [store.Store.Update]), when the connection to PostgreSQL breaks even after it was committed.
	// When it fails, nothing is removed and the attempt counts as failed. What must follow the commit, such as waking
	// somebody, goes to [store.Tx.AfterCommit].
	Complete func(tx *store.Tx) error
	// Kept runs instead in the transaction that puts the entry back after any other error; e is the entry as it will be
	// stored. Its failure is logged, and the entry put back without it.
	Kept func(tx *store.Tx, e store.OutboxEntry) error
}

// Outcome is what became of an attempt, for metrics.
type Outcome string

// The outcomes.
const (
	Delivered Outcome = "delivered"
	Retried   Outcome = "retried"
	Suspected Outcome = "suspect"
	Dropped   Outcome = "dropped"
)

// Backoff says how long to wait after a plain error: a random time between zero and Initial doubled with each failure,
// at most Max.
type Backoff struct {
	Initial time.Duration // 0 means 1 s
	Max     time.Duration // 0 means 60 s
}

// Options are optional parts of an [Outbox].
type Options struct {
	Log      *slog.Logger
	Now      func() time.Time
	Rand     func() float64 // in [0, 1), for the jitter
	Backoff  Backoff
	Parallel int // attempts at a time, over all keys; 0 means 8

	// Observe is told about every attempt. It must not block.
	Observe func(kind string, outcome Outcome, took time.Duration)
}

// Outbox is the dispatcher. Make it with [New], register the kinds, then call [Outbox.Run].
type Outbox struct {
	store *store.Store
	o     Options
	log   *slog.Logger
	kinds map[string]kind
	kick  chan struct{} // holds one element: look again
	once  sync.Once     // Run
}

type kind struct {
	deliver Deliver
	guarded bool
	cut     error // what an attempt that a kill cut short ended in; guarded only
}

// New makes a dispatcher for the outbox in s. It is woken by each commit that enqueues something.
func New(s *store.Store, o Options) *Outbox {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Backoff.Initial <= 0 {
		o.Backoff.Initial = time.Second
	}
	if o.Backoff.Max <= 0 {
		o.Backoff.Max = time.Minute
	}
	if o.Parallel <= 0 {
		o.Parallel = 8
	}
	if o.Observe == nil {
		o.Observe = func(string, Outcome, time.Duration) {}
	}
	b := &Outbox{
		store: s, o: o, log: o.Log.With("part", "outbox"), kinds: make(map[string]kind),
		kick: make(chan struct{}, 1),
	}
	s.OnEnqueue(b.Kick)
	return b
}

// Register says how entries of a kind are delivered. All kinds must be registered before Run; registering one twice is
// a bug and panics.
func (b *Outbox) Register(name string, d Deliver) { b.register(name, kind{deliver: d}) }

// RegisterGuarded is Register for a kind whose blind repetition may do harm. Each attempt is noted in the database
// before it begins, at the price of one more commit. When the process ends in the middle of an attempt, the next start
// treats the attempt as if it had returned cut, for example Suspect(RetryAfter(err, 20*time.Second)).
func (b *Outbox) RegisterGuarded(name string, d Deliver, cut error) {
	b.register(name, kind{deliver: d, guarded: true, cut: cut})
}

func (b *Outbox) register(name string, k kind) {
	if _, ok := b.kinds[name]; ok {
		panic("outbox: kind " + name + " is registered twice")
	}
	b.kinds[name] = k
}

// Kick has the dispatcher look for work. It never blocks.
func (b *Outbox) Kick() {
	select {
	case b.kick <- struct{}{}:
	default: // a look is pending already, and it begins after this
	}
}

// Run delivers until ctx is done and all attempts have ended, and then returns nil. It can be called once. A database
// that does not answer is logged and tried again.
func (b *Outbox) Run(ctx context.Context) error {
	ran := true
	b.once.Do(func() { ran = false })
	if ran {
		return errors.New("outbox: Run was called before")
	}
	var wg sync.WaitGroup
	defer wg.Wait()

	busy := make(map[string]bool)            // keys under way
	ended := make(chan string, b.o.Parallel) // keys whose attempt is over; never blocks the sender
	resumed, failures := false, 0
	for {
		var wake <-chan time.Time
		next, err := time.Time{}, error(nil)
		if !resumed {
			err = b.resume(ctx)
			resumed = err == nil
		}
		if err == nil {
			next, err = b.startDue(ctx, busy, func(e store.OutboxEntry) {
				wg.Go(func() {
					b.attempt(ctx, e)
					ended <- e.Key
				})
			})
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			b.log.ErrorContext(ctx, "the outbox cannot be read", "error", err)
			wake = time.After(b.pause(failures))
			failures++
		case !next.IsZero():
			failures = 0
			wake = time.After(next.Sub(b.o.Now()))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.kick:
		case <-wake:
		case key := <-ended:
			delete(busy, key)
		}
	}
}

// startDue starts attempts for entries that are due, as far as there is room, and marks their keys as busy. The time is
// that of the next entry that is not due yet; zero if there is none or there is no room anyway.
func (b *Outbox) startDue(ctx context.Context, busy map[string]bool, start func(store.OutboxEntry)) (next time.Time, err error) {
	if len(busy) >= b.o.Parallel {
		return time.Time{}, nil // the end of an attempt wakes us
	}
	now := b.o.Now()
	var due []store.OutboxEntry
	err = b.store.View(ctx, func(tx *store.Tx) (err error) {
		// Those under way are due as well: with that many more, room is filled.
		if due, err = tx.OutboxHeads(now, b.o.Parallel+len(busy)); err != nil {
			return err
		}
		next, _, err = tx.OutboxNextDue(now)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	for _, e := range due {
		if len(busy) >= b.o.Parallel {
			return time.Time{}, nil
		}
		if !busy[e.Key] {
			busy[e.Key] = true
			start(e)
		}
	}
	return next, nil
}

// pause is the back-off after so many failures before: exponential with full jitter, so that many entries that failed
// together do not come back together.
func (b *Outbox) pause(failures int) time.Duration {
	d := b.o.Backoff.Max
	if failures < 32 { // no overflow
		d = min(d, b.o.Backoff.Initial<<failures)
	}
	return time.Duration(b.o.Rand() * float64(d))
}

func (b *Outbox) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Release has an entry tried again now, whatever its state, with a clean record. It is an operator's decision.
func (b *Outbox) Release(ctx context.Context, id int64) error {
	return b.store.Update(ctx, func(tx *store.Tx) error { return tx.OutboxRelease(id, b.o.Now()) })
}

// Drop removes an entry for good. An attempt that is under way is not stopped. It is an operator's decision.
func (b *Outbox) Drop(ctx context.Context, id int64) error {
	err := b.store.Update(ctx, func(tx *store.Tx) error { return tx.OutboxDrop(id) })
	b.Kick()
	return err
}
