package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"ucloud-im/internal/store"
)

var errCut = errors.New("the process ended in the middle of the attempt")

// resume deals with guarded attempts that the end of the last process cut short.
func (b *Outbox) resume(ctx context.Context) error {
	return b.store.Update(ctx, func(tx *store.Tx) error {
		cut, err := tx.OutboxBegun()
		if err != nil {
			return err
		}
		for _, e := range cut {
			k := b.kinds[e.Kind]
			o := merge(k.cut)
			o.suspect = o.suspect || !k.guarded // no longer registered so: the careful answer
			o.err = errCut
			e = b.putBack(e, o)
			b.log.WarnContext(ctx, "a delivery was cut short", "id", e.ID, "kind", e.Kind, "key", e.Key, "state", e.State, "next", e.NextAt)
			if err := tx.OutboxRetry(e.ID, e.NextAt, e.LastError, e.State); err != nil {
				return err
			}
		}
		return nil
	})
}

// attempt makes one attempt and stores its outcome.
func (b *Outbox) attempt(ctx context.Context, e store.OutboxEntry) {
	k, ok := b.kinds[e.Kind]
	if !ok {
		k.deliver = func(context.Context, store.OutboxEntry) (Result, error) {
			return Result{}, RetryAfter(errors.New("this program does not know the kind"), b.o.Backoff.Max)
		}
	}
	if k.guarded {
		err := b.store.Update(ctx, func(tx *store.Tx) error { return tx.OutboxBegin(e.ID) })
		if err != nil { // gone, or the database is away: nothing was attempted
			if !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
				b.log.ErrorContext(ctx, "a delivery cannot be noted", "id", e.ID, "kind", e.Kind, "error", err)
				b.sleep(ctx, b.pause(0))
			}
			return
		}
	}
	start := b.o.Now()
	res, err := call(ctx, k.deliver, e)
	o := merge(err)
	marked := o.suspect || o.permanent || o.hasAfter
	if err != nil && !marked && ctx.Err() != nil {
		// We are being stopped, which says nothing about the entry. It stays as it is and is the first at the next
		// start; a guarded one stays noted as begun.
		return
	}
	outcome := b.conclude(ctx, e, res, o)
	b.o.Observe(e.Kind, outcome, b.o.Now().Sub(start))
}

// call runs the function. A panic is a bug in it; the outcome is unknown then, and the entry must not be repeated in a
// loop.
func call(ctx context.Context, d Deliver, e store.OutboxEntry) (res Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			res, err = Result{}, Suspect(&panicError{value: v, stack: debug.Stack()})
		}
	}()
	return d(ctx, e)
}

// conclude stores the outcome, again and again until the database takes it: meanwhile the key stays busy, so that this
// process does not deliver twice. Only the end of ctx gives up, and then not before one attempt with time of its own.
func (b *Outbox) conclude(ctx context.Context, e store.OutboxEntry, res Result, o outcomeError) Outcome {
	for try := 0; ; try++ {
		outcome, err := b.record(ctx, e, res, o, try)
		if err == nil {
			return outcome
		}
		b.log.ErrorContext(ctx, "the outcome of a delivery cannot be stored", "id", e.ID, "kind", e.Kind, "key", e.Key, "error", err)
		if ctx.Err() != nil {
			return outcome
		}
		b.sleep(ctx, b.pause(try))
	}
}

// recordTimeout bounds the storing of an outcome while the process is being stopped.
const recordTimeout = 10 * time.Second

// completeTries is how often the Complete of a guarded kind is tried again before the entry becomes suspect. Other kinds
// are delivered again instead.
const completeTries = 4

// record makes one transaction out of an outcome.
func (b *Outbox) record(ctx context.Context, e store.OutboxEntry, res Result, o outcomeError, try int) (Outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	switch {
	case o.err == nil:
		refused, err := b.remove(ctx, e, res)
		guarded := b.kinds[e.Kind].guarded
		if refused == nil || guarded && try < completeTries {
			return Delivered, err
		}
		return b.keep(ctx, e, nil, outcomeError{err: fmt.Errorf("complete delivery: %w", refused), suspect: guarded})
	case o.permanent:
		b.log.ErrorContext(ctx, "a delivery is given up", b.attrs(e, o.err)...)
		refused, err := b.remove(ctx, e, res)
		if refused == nil {
			return Dropped, err
		}
		return b.keep(ctx, e, nil, outcomeError{err: fmt.Errorf("give up delivery: %w", refused)})
	}
	return b.keep(ctx, e, res.Kept, o)
}

// remove ends an entry. refused is the error of Complete itself, with which the database has nothing to do.
func (b *Outbox) remove(ctx context.Context, e store.OutboxEntry, res Result) (refused, err error) {
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		refused = nil
		if res.Complete != nil {
			if refused = res.Complete(tx); refused != nil {
				return refused
			}
		}
		if err := tx.OutboxDone(e.ID); !errors.Is(err, store.ErrNotFound) { // an operator may have dropped it
			return err
		}
		return nil
	})
	return refused, err
}

// keep puts an entry back. also is what the kind wants stored with it; if that fails the entry is put back without.
func (b *Outbox) keep(ctx context.Context, e store.OutboxEntry, also func(*store.Tx, store.OutboxEntry) error, o outcomeError) (Outcome, error) {
	kept := b.putBack(e, o)
	b.logKept(ctx, e, kept, o.err)
	outcome := Retried
	if o.suspect {
		outcome = Suspected
	}
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		err := tx.OutboxRetry(e.ID, kept.NextAt, kept.LastError, kept.State)
		if errors.Is(err, store.ErrNotFound) {
			return nil // dropped meanwhile
		}
		if err != nil || also == nil {
			return err
		}
		return also(tx, kept)
	})
	if err != nil && also != nil {
		b.log.ErrorContext(ctx, "what a failed delivery wanted to store is lost", b.attrs(e, err)...)
		return b.keep(ctx, e, nil, o)
	}
	return outcome, err
}

// putBack is the entry after a failed attempt. Suspicion stays until an operator or a success ends it.
func (b *Outbox) putBack(e store.OutboxEntry, o outcomeError) store.OutboxEntry {
	second := e.State == store.OutboxSuspect
	switch {
	case o.suspect && (second || !o.hasAfter):
		e.State, e.NextAt = store.OutboxSuspect, time.Time{}
	case o.suspect:
		e.State, e.NextAt = store.OutboxSuspect, b.o.Now().Add(o.after)
	case o.hasAfter:
		e.NextAt = b.o.Now().Add(o.after)
	default:
		e.NextAt = b.o.Now().Add(b.pause(e.Attempts))
	}
	e.Attempts++
	e.Begun = false
	e.LastError = o.err.Error()
	return e
}

func (b *Outbox) attrs(e store.OutboxEntry, err error) []any {
	return []any{"id", e.ID, "kind", e.Kind, "key", e.Key, "attempts", e.Attempts + 1, "error", err}
}

// logKept says what happens with an entry that was not delivered. While Core is away every entry fails again and again:
// only the first failures and then ever fewer are worth a line.
func (b *Outbox) logKept(ctx context.Context, e, kept store.OutboxEntry, err error) {
	level := slog.LevelDebug
	switch n := e.Attempts + 1; {
	case kept.State == store.OutboxSuspect && kept.NextAt.IsZero():
		level = slog.LevelError // somebody must look
	case n&(n-1) == 0:
		level = slog.LevelWarn
	}
	attrs := append(b.attrs(e, err), "state", kept.State, "next", kept.NextAt)
	if p, ok := errors.AsType[*panicError](err); ok {
		attrs = append(attrs, "stack", string(p.stack))
	}
	b.log.Log(ctx, level, "a delivery failed", attrs...)
}
