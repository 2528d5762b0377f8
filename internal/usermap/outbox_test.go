package usermap

import (
	"context"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/outbox"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
)

// runOutbox runs the real outbox until the returned function is called.
func (w *world) runOutbox(t *testing.T) (stop func()) {
	t.Helper()
	b := outbox.New(w.store, outbox.Options{Now: w.clock.Now, Rand: func() float64 { return 0 }})
	w.s.Register(b)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func TestWithTheRealOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := w.runOutbox(t)
	w.link(t, alice, "alice")
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	if err := w.s.WaitActive(ctx, alice); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(ctx, alice, nil, false, "test", false); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "Core forgets the connection", func() bool { return !w.core.isConnected(alice) })
	stop()
}

// TestRealOutboxAfterAKill is what a process finds that was killed in the middle of an approval: it must wait.
func TestRealOutboxAfterAKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	var id int64
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		all, err := tx.OutboxAll()
		if err != nil {
			return err
		}
		id = all[0].ID
		return tx.OutboxBegin(id)
	}); err != nil {
		t.Fatal(err)
	}
	w.restart(t)
	stop := w.runOutbox(t)
	var e store.OutboxEntry
	testkit.Eventually(t, "the outbox notices the attempt", func() bool {
		if err := w.store.View(t.Context(), func(tx *store.Tx) (err error) {
			e, err = tx.OutboxEntry(id)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return !e.Begun
	})
	stop()
	if wait := e.NextAt.Sub(w.clock.Now()); wait < noAnswerWait || len(w.core.calls) != 0 {
		t.Fatalf("the pair is repeated in %v, calls %q", wait, w.core.calls)
	}
	w.clock.Add(noAnswerWait + time.Second)
	w.runOutbox(t)
	testkit.Eventually(t, "the mapping is active", func() bool { return w.state(t, alice) == store.MappingActive })
}
