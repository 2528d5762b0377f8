package outbox

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		crashChild(path)
		return
	}
	goleak.VerifyTestMain(m)
}

var errAway = errors.New("core is away")

// rig is a dispatcher over a database, and what its kinds were asked to deliver.
type rig struct {
	t     *testing.T
	store *store.Store
	box   *Outbox

	mu    sync.Mutex // guards the fields below
	calls []attemptNote
	looks int // of the dispatcher at its clock
}

// attemptNote is one attempt.
type attemptNote struct {
	payload string
	at      time.Time
	state   store.OutboxState
}

// newRig makes a dispatcher with a jitter that always takes the whole back-off.
func newRig(t *testing.T, s *store.Store) *rig {
	r := &rig{t: t, store: s}
	r.box = New(s, Options{Rand: func() float64 { return 1 }, Parallel: 4, Now: func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.looks++
		return time.Now()
	}})
	return r
}

// note records an attempt.
func (r *rig) note(e store.OutboxEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, attemptNote{string(e.Payload), time.Now(), e.State})
}

// kind registers a kind that answers with the errors in order and then with success.
func (r *rig) kind(name string, answers ...error) {
	var n atomic.Int32
	r.box.Register(name, func(_ context.Context, e store.OutboxEntry) (Result, error) {
		r.note(e)
		if i := int(n.Add(1)); i <= len(answers) {
			return Result{}, answers[i-1]
		}
		return Result{}, nil
	})
}

func (r *rig) enqueue(kind, key, payload string) int64 {
	r.t.Helper()
	var id int64
	if err := r.store.Update(r.t.Context(), func(tx *store.Tx) (err error) {
		id, err = tx.Enqueue(kind, key, []byte(payload), time.Now())
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return id
}

// run starts the dispatcher; the returned function stops it and waits for its end.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.box.Run(ctx) }()
	return func() {
		r.t.Helper()
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
}

func (r *rig) entries() (all []store.OutboxEntry) {
	r.t.Helper()
	if err := r.store.View(r.t.Context(), func(tx *store.Tx) (err error) { all, err = tx.OutboxAll(); return err }); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// offsets are the times of the attempts, relative to start.
func (r *rig) offsets(start time.Time) (all []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		all = append(all, c.at.Sub(start))
	}
	return all
}

func (r *rig) payloads() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		all = append(all, c.payload)
	}
	return all
}

// bubble runs f with a fake clock and a new SQLite database.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newRig(t, storetest.SQLite(t))) })
}
