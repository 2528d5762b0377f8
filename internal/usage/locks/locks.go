// Package locks tells an instance whether Core has locked the wallet that a drive belongs to, so that new data are
// refused with 402 (contract 30 section 4). Reading and deleting are never refused.
//
// The server knows; its answer is kept for a few seconds. While the server is away, the last answer counts: a restart of
// the server must not fail uploads. What was never known cannot be assumed either way: it is waited for as long as Core
// waits for us, and then the call is to be repeated.
package locks

import (
	"context"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

const (
	// fresh is how long an answer counts without a question.
	fresh = 5 * time.Second
	// stale is how long an answer counts while the server does not answer.
	stale   = 15 * time.Minute
	timeout = 3500 * time.Millisecond // Core gives up after 5 s
	pause   = 100 * time.Millisecond
	most    = 1000 // wallets; more than anybody has
)

// Locks remembers answers of the server. It is safe for concurrent use.
type Locks struct {
	ask func(ctx context.Context, q ipcapi.LockQuery) (ipcapi.LockReply, error)

	mu    sync.Mutex
	known map[ipcapi.LockQuery]answer
}

type answer struct {
	locked bool
	at     time.Time
}

// New makes a memory in front of the server. server gives the connection, as the instance's agent does.
func New(server func() (*ipc.Client, error)) *Locks {
	return &Locks{known: map[ipcapi.LockQuery]answer{}, ask: func(ctx context.Context, q ipcapi.LockQuery) (ipcapi.LockReply, error) {
		client, err := server()
		if err != nil {
			return ipcapi.LockReply{}, err
		}
		return ipc.Invoke(ctx, client, ipcapi.UsageLocked, q)
	}}
}

// Writable refuses with 402 if new data must not be written to drives of the owner in the category. The owner and the
// category are those of the drive that Core has sent.
func (l *Locks) Writable(ctx context.Context, owner ident.Owner, category string) error {
	q := ipcapi.LockQuery{Project: owner.Project, Category: category}
	locked, ok := l.recent(q, fresh)
	if !ok {
		asking, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		_, known := l.recent(q, stale)
		reply, err := l.ask(asking, q)
		for !known && err != nil && !failure.Is(err, failure.Forbidden) && sleep(asking, pause) {
			reply, err = l.ask(asking, q)
		}
		switch {
		case err == nil:
			l.keep(q, reply.Locked)
			locked = reply.Locked
		case failure.Is(err, failure.Forbidden):
			return failure.Wrap(err, failure.Forbidden, "You are not a member of the project that this drive belongs to")
		default:
			if locked, ok = l.recent(q, stale); !ok {
				return failure.Wrap(err, failure.Unavailable, "It is not known at the moment whether this drive may be written to. Try again.")
			}
		}
	}
	if locked {
		return failure.New(failure.PaymentRequired, "The storage allocation of this workspace is used up or has expired. You can still read, move and delete files.")
	}
	return nil
}

// sleep waits, and tells whether there is still time.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *Locks) recent(q ipcapi.LockQuery, age time.Duration) (locked, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.known[q]
	return a.locked, ok && time.Since(a.at) < age
}

func (l *Locks) keep(q ipcapi.LockQuery, locked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= most {
		clear(l.known)
	}
	l.known[q] = answer{locked: locked, at: time.Now()}
}
