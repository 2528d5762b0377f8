package outbox

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestBackoffGrowsAndEnds(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.kind("k", slices.Repeat([]error{errAway}, 9)...)
		start := time.Now()
		r.enqueue("k", "a", "1")
		stop := r.run()
		time.Sleep(time.Hour)
		stop()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 243} // seconds: doubled, at most 60
		for i := range want {
			want[i] *= time.Second
		}
		if d := cmp.Diff(want, r.offsets(start)); d != "" {
			t.Error(d)
		}
		if left := r.entries(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

func TestJitterIsFull(t *testing.T) {
	t.Parallel()
	var r float64
	b := New(storetest.SQLite(t), Options{Rand: func() float64 { return r }})
	for _, tc := range []struct {
		rand     float64
		failures int
		want     time.Duration
	}{{0, 5, 0}, {0.5, 0, 500 * time.Millisecond}, {0.5, 3, 4 * time.Second}, {0.25, 1000, 15 * time.Second}} {
		r = tc.rand
		if got := b.pause(tc.failures); got != tc.want {
			t.Errorf("random %v after %d failures: %v, want %v", tc.rand, tc.failures, got, tc.want)
		}
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	const s = time.Second
	type step = time.Duration
	for name, tc := range map[string]struct {
		answers []error
		at      []step // attempts
		left    store.OutboxState
		parked  bool
	}{
		"success":                    {nil, []step{0}, "", false},
		"plain error":                {[]error{errAway}, []step{0, s}, "", false},
		"retry after":                {[]error{RetryAfter(errAway, 30*s), errAway}, []step{0, 30 * s, 32 * s}, "", false},
		"retry after, wrapped":       {[]error{fmt.Errorf("call: %w", RetryAfter(errAway, 30*s))}, []step{0, 30 * s}, "", false},
		"permanent":                  {[]error{Permanent(errAway)}, []step{0}, "", false},
		"suspect":                    {[]error{Suspect(errAway)}, []step{0}, store.OutboxSuspect, true},
		"suspect, then fine":         {[]error{Suspect(RetryAfter(errAway, 20*s))}, []step{0, 20 * s}, "", false},
		"suspect twice":              {slices.Repeat([]error{Suspect(RetryAfter(errAway, 20*s))}, 2), []step{0, 20 * s}, store.OutboxSuspect, true},
		"marks in the other order":   {[]error{RetryAfter(Suspect(errAway), 20*s)}, []step{0, 20 * s}, "", false},
		"suspect, then plain, fine":  {[]error{Suspect(RetryAfter(errAway, 20*s)), errAway}, []step{0, 20 * s, 22 * s}, "", false},
		"suspicion outlives a retry": {[]error{Suspect(RetryAfter(errAway, 20*s)), errAway, Suspect(RetryAfter(errAway, s))}, []step{0, 20 * s, 22 * s}, store.OutboxSuspect, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, r *rig) {
				r.kind("k", tc.answers...)
				start := time.Now()
				r.enqueue("k", "a", "1")
				stop := r.run()
				time.Sleep(time.Hour)
				stop()
				if d := cmp.Diff(tc.at, r.offsets(start)); d != "" {
					t.Error(d)
				}
				left := r.entries()
				if tc.left == "" {
					if len(left) != 0 {
						t.Errorf("left: %+v", left)
					}
					return
				}
				if len(left) != 1 || left[0].State != tc.left || left[0].NextAt.IsZero() != tc.parked || left[0].LastError != errAway.Error() {
					t.Errorf("left: %+v", left)
				}
			})
		})
	}
}

// A parked or waiting entry holds back its own key and no other, and an operator can let it go.
func TestOrderWithinAKey(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.kind("bad", Suspect(errAway))
		r.kind("good")
		bad := r.enqueue("bad", "a", "a1")
		r.enqueue("good", "a", "a2")
		r.enqueue("good", "b", "b1")
		r.enqueue("good", "a", "a3")
		stop := r.run()
		defer stop()
		time.Sleep(time.Hour)
		got := r.payloads()
		slices.Sort(got) // keys run in parallel
		if d := cmp.Diff([]string{"a1", "b1"}, got); d != "" {
			t.Fatal(d)
		}
		if err := r.box.Release(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(time.Millisecond)
		if d := cmp.Diff([]string{"a1", "a2", "a3"}, r.payloads()[2:]); d != "" {
			t.Error(d)
		}
	})
}

func TestDropLetsTheNextGo(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.kind("bad", Suspect(errAway))
		r.kind("good")
		bad := r.enqueue("bad", "a", "a1")
		r.enqueue("good", "a", "a2")
		stop := r.run()
		defer stop()
		time.Sleep(time.Hour)
		if err := r.box.Drop(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if d := cmp.Diff([]string{"a1", "a2"}, r.payloads()); d != "" {
			t.Error(d)
		}
	})
}

// The dispatcher neither polls nor needs a kick: an hour without anything due costs not one look at the clock, and a
// commit wakes it at once.
func TestNoTick(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.kind("bad", Suspect(errAway))
		r.kind("good")
		r.enqueue("bad", "a", "a1")
		stop := r.run()
		defer stop()
		time.Sleep(time.Minute)
		r.mu.Lock()
		before := r.looks
		r.mu.Unlock()
		time.Sleep(time.Hour)
		r.mu.Lock()
		after := r.looks
		r.mu.Unlock()
		if after != before {
			t.Errorf("%d looks in an idle hour", after-before)
		}
		start := time.Now()
		r.enqueue("good", "b", "b1")
		time.Sleep(time.Hour)
		if got := r.offsets(start); len(got) != 2 || got[1] != 0 {
			t.Errorf("attempts at %v", got)
		}
	})
}

func TestParallelAcrossKeysOneWithin(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		r := newRig(t, s) // Parallel is 4
		var now, done atomic.Int32
		var reached sync.Once
		inKey := map[string]*atomic.Int32{"a": {}, "b": {}, "c": {}, "d": {}, "e": {}, "f": {}}
		all := make(chan struct{}) // closed when four attempts run at the same time
		r.box.Register("k", func(ctx context.Context, e store.OutboxEntry) (Result, error) {
			if inKey[e.Key].Add(1) != 1 {
				t.Errorf("two attempts for key %s at a time", e.Key)
			}
			switch n := now.Add(1); {
			case n == 4:
				reached.Do(func() { close(all) })
			case n > 4:
				t.Errorf("%d attempts at a time", n)
			}
			select {
			case <-all:
			case <-time.After(testkit.Patience):
				t.Error("never four attempts at a time")
			}
			time.Sleep(5 * time.Millisecond) // long enough to be found together with too many others
			now.Add(-1)
			inKey[e.Key].Add(-1)
			done.Add(1)
			return Result{}, nil
		})
		for key := range inKey {
			for range 3 {
				r.enqueue("k", key, "")
			}
		}
		stop := r.run()
		testkit.Eventually(t, "everything is delivered", func() bool { return done.Load() == 18 && len(r.entries()) == 0 })
		stop()
	})
}

// Complete and the removal are one transaction, Kept and the putting back another.
func TestResultIsStoredWithTheOutcome(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		setting := func(key string) (v string) {
			_ = r.store.View(t.Context(), func(tx *store.Tx) error { v, _ = tx.Setting(key); return nil })
			return v
		}
		var n atomic.Int32
		var after atomic.Value
		after.Store("")
		r.box.Register("k", func(context.Context, store.OutboxEntry) (Result, error) {
			attempt := n.Add(1)
			res := Result{
				Complete: func(tx *store.Tx) error {
					tx.AfterCommit(func() { after.Store(setting("complete")) })
					if err := tx.SetSetting("complete", fmt.Sprint(attempt)); err != nil {
						return err
					}
					if attempt == 2 {
						return errAway // nothing of it may stay
					}
					return nil
				},
				Kept: func(tx *store.Tx, e store.OutboxEntry) error {
					return tx.SetSetting("kept", fmt.Sprint(attempt, " ", e.State, " ", e.Attempts))
				},
			}
			if attempt == 1 {
				return res, errAway
			}
			return res, nil
		})
		check := func(attempts int32, complete string, left int) {
			t.Helper()
			if n.Load() != attempts || setting("complete") != complete || len(r.entries()) != left || after.Load() != complete {
				t.Errorf("attempts %d, complete %q, after %q, entries %v", n.Load(), setting("complete"), after.Load(), r.entries())
			}
		}
		r.enqueue("k", "a", "")
		stop := r.run()
		defer stop()
		time.Sleep(500 * time.Millisecond)
		if got := setting("kept"); got != "1 queued 1" {
			t.Errorf("kept = %q", got)
		}
		time.Sleep(time.Second) // the second attempt, whose Complete fails
		check(2, "", 1)
		time.Sleep(time.Minute)
		check(3, "3", 0)
	})
}

func TestPanicParksTheEntry(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.box.Register("k", func(context.Context, store.OutboxEntry) (Result, error) { panic("boom") })
		r.kind("good")
		r.enqueue("k", "a", "")
		r.enqueue("good", "b", "b1")
		stop := r.run()
		time.Sleep(time.Hour)
		stop()
		left := r.entries()
		if len(left) != 1 || left[0].State != store.OutboxSuspect || left[0].Attempts != 1 || left[0].LastError != "panic: boom" {
			t.Errorf("%+v", left)
		}
	})
}

func TestUnknownKindWaits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.enqueue("from a newer program", "a", "")
		stop := r.run()
		time.Sleep(10*time.Minute + time.Second)
		stop()
		if left := r.entries(); len(left) != 1 || left[0].State != store.OutboxQueued || left[0].Attempts != 11 {
			t.Errorf("%+v", left)
		}
	})
}

// Being stopped is not held against an entry.
func TestStopIsNoFailure(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.box.Register("k", func(ctx context.Context, e store.OutboxEntry) (Result, error) {
			<-ctx.Done()
			return Result{}, ctx.Err()
		})
		r.box.Register("done", func(ctx context.Context, e store.OutboxEntry) (Result, error) {
			<-ctx.Done() // the answer arrives while we are being stopped
			return Result{}, nil
		})
		r.enqueue("k", "a", "")
		r.enqueue("done", "b", "")
		stop := r.run()
		synctest.Wait()
		time.Sleep(time.Second)
		stop()
		if left := r.entries(); len(left) != 1 || left[0].Kind != "k" || left[0].Attempts != 0 || left[0].LastError != "" {
			t.Errorf("%+v", left)
		}
	})
}

// An entry that is enqueued by a transaction that fails does not exist.
func TestRolledBackEntryIsNotDelivered(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, r *rig) {
		r.kind("k")
		stop := r.run()
		defer stop()
		err := r.store.Update(t.Context(), func(tx *store.Tx) error {
			if _, err := tx.Enqueue("k", "a", nil, time.Now()); err != nil {
				return err
			}
			return errAway
		})
		if err == nil {
			t.Fatal("no error")
		}
		time.Sleep(time.Hour)
		if got := r.payloads(); len(got) != 0 {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestRunOnce(t *testing.T) {
	t.Parallel()
	b := New(storetest.SQLite(t), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil {
		t.Errorf("first: %v", err)
	}
	if err := b.Run(ctx); err == nil {
		t.Error("a second Run is accepted")
	}
}
