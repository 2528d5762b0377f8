package files

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
)

// gate bounds the file system operations of each drive and keeps requests from waiting for a file system that hangs.
//
// A call into a dead network file system cannot be interrupted: it holds a thread until the server comes back. So every
// operation runs in a goroutine of its own that a request can leave behind, and a drive has so many slots. When all are
// taken by operations that do not return, the drive refuses at once, and other drives go on. The refusal is a 404 with a
// text, since 503 would make Core repeat the call (contract 10, robustness).
type gate struct {
	slots    int
	patience time.Duration // how long to wait for a slot
	log      *slog.Logger

	// mu guards lanes and the users of each.
	mu    sync.Mutex
	lanes map[string]*lane
	wait  sync.WaitGroup // operations under way
}

type lane struct {
	slots chan struct{}
	users int // guarded by gate.mu
}

// errBusy is what a client sees while a file system hangs.
func errBusy(cause error) error {
	return failure.Wrap(cause, failure.NotFound, "The storage of this drive does not answer at the moment. Try again later.")
}

func newGate(slots int, patience time.Duration, log *slog.Logger) *gate {
	return &gate{slots: slots, patience: patience, log: log, lanes: make(map[string]*lane)}
}

// enter takes a slot of a drive. leave must be called exactly once, by whoever runs the operation.
func (g *gate) enter(ctx context.Context, drive string) (leave func(), err error) {
	g.mu.Lock()
	l := g.lanes[drive]
	if l == nil {
		l = &lane{slots: make(chan struct{}, g.slots)}
		g.lanes[drive] = l
	}
	l.users++
	g.mu.Unlock()

	drop := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(g.lanes, drive)
		}
	}
	select {
	case l.slots <- struct{}{}:
	default:
		timer := time.NewTimer(g.patience)
		defer timer.Stop()
		select {
		case l.slots <- struct{}{}:
		case <-timer.C:
			drop()
			return nil, errBusy(fmt.Errorf("all %d slots of the drive are taken", g.slots))
		case <-ctx.Done():
			drop()
			return nil, errBusy(ctx.Err())
		}
	}
	g.wait.Add(1)
	return func() {
		<-l.slots
		drop()
		g.wait.Done()
	}, nil
}

// run does an operation on a drive and waits for it until the context ends; contexts here always have a deadline. work
// must not touch variables of the caller, which may be gone when it returns. If nobody takes the value any more, it goes
// to discard, which may be nil.
func run[T any](ctx context.Context, g *gate, drive string, work func() (T, error), discard func(T)) (T, error) {
	leave, err := g.enter(ctx, drive)
	if err != nil {
		var zero T
		return zero, err
	}
	return runIn(ctx, g, drive, leave, work, discard)
}

// runBoth is run for an operation on two drives. It takes a slot of each, so that one that hangs uses up its own.
func runBoth[T any](ctx context.Context, g *gate, one, two string, work func() (T, error), discard func(T)) (T, error) {
	if one == two {
		return run(ctx, g, one, work, discard)
	}
	var zero T
	leaveOne, err := g.enter(ctx, one)
	if err != nil {
		return zero, err
	}
	leaveTwo, err := g.enter(ctx, two) // waits for a moment at most, so two such operations cannot block each other
	if err != nil {
		leaveOne()
		return zero, err
	}
	return runIn(ctx, g, one, func() { leaveOne(); leaveTwo() }, work, discard)
}

// runIn is run for a caller who has the slot already; leave is called when the operation has returned.
func runIn[T any](ctx context.Context, g *gate, drive string, leave func(), work func() (T, error), discard func(T)) (T, error) {
	var zero T
	type result struct {
		value T
		err   error
	}
	var settled atomic.Bool // set by whoever is first: the operation with its result, or the caller giving up
	done := make(chan result, 1)
	go func() { // counted by gate.wait; ends when the kernel returns
		defer leave()
		var r result
		defer func() {
			if p := recover(); p != nil {
				g.log.Error("panic in a file operation", "panic", p, "stack", string(debug.Stack()))
				r = result{err: fmt.Errorf("panic: %v", p)}
			}
			if settled.CompareAndSwap(false, true) {
				done <- r
			} else if r.err == nil && discard != nil {
				discard(r.value)
			}
		}()
		r.value, r.err = work()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		if !settled.CompareAndSwap(false, true) {
			r := <-done
			return r.value, r.err
		}
		g.log.Warn("file system does not answer", "drive", drive, "error", ctx.Err())
		return zero, errBusy(ctx.Err())
	}
}
