package localuser

import (
	"bytes"
	"context"
	"sync"

	"ucloud-im/internal/ident"
)

const (
	batchProcesses = 2  // getent processes for uids at a time
	batchKeys      = 64 // uids that one process is asked for
)

// batch looks uids up. While as many processes run as allowed, further uids wait and are then asked for together:
// when a hundred users come in the same moment, a few processes do instead of a hundred.
type batch struct {
	getent func(ctx context.Context, uids []string) ([]byte, error) // errNoRecord if some are missing; output counts

	mu      sync.Mutex // guards the fields below
	running int
	waiting []waiter
}

type waiter struct {
	uid    ident.UID
	answer chan<- passwdAnswer // capacity 1
}

type passwdAnswer struct {
	account Account
	err     error
}

// lookup waits for the answer. It is not cut short by a context: callers share answers, see [lookup].
func (b *batch) lookup(ctx context.Context, uid ident.UID) (Account, error) {
	ch := make(chan passwdAnswer, 1)
	b.mu.Lock()
	b.waiting = append(b.waiting, waiter{uid, ch})
	work := b.running < batchProcesses
	if work {
		b.running++
	}
	b.mu.Unlock()
	if work {
		b.work(ctx)
	}
	a := <-ch
	return a.account, a.err
}

// work asks for what waits until nothing does. One of those who wait does it for all.
func (b *batch) work(ctx context.Context) {
	for {
		b.mu.Lock()
		if len(b.waiting) == 0 {
			b.running--
			b.mu.Unlock()
			return
		}
		n := min(len(b.waiting), batchKeys)
		part := b.waiting[:n:n]
		b.waiting = b.waiting[n:]
		b.mu.Unlock()
		b.ask(ctx, part)
	}
}

func (b *batch) ask(ctx context.Context, part []waiter) {
	keys := make([]string, len(part))
	for i, w := range part {
		keys[i] = w.uid.String()
	}
	out, err := b.getent(ctx, keys)
	if err != nil && len(out) == 0 {
		for _, w := range part {
			w.answer <- passwdAnswer{err: err}
		}
		return
	}
	found := map[ident.UID]passwdAnswer{}
	for line := range bytes.Lines(out) {
		a, err := parsePasswd(line)
		if err != nil {
			// Whose line it was is not known: nobody of this part gets an answer from what may be mixed up.
			for _, w := range part {
				w.answer <- passwdAnswer{err: err}
			}
			return
		}
		found[a.UID] = passwdAnswer{account: a}
	}
	for _, w := range part {
		a, ok := found[w.uid]
		if !ok {
			a.err = errNoRecord
		}
		w.answer <- a
	}
}
