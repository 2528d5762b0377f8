package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestOutboxRoundTrip(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		var id int64
		before := time.Now().Truncate(time.Millisecond)
		update(t, s, func(tx *store.Tx) (err error) { id, err = tx.Enqueue("k", "a", []byte{0, 0xff}, day); return err })
		e := get(t, s, func(tx *store.Tx) (store.OutboxEntry, error) { return tx.OutboxEntry(id) })
		if e.CreatedAt.Before(before) {
			t.Errorf("created %v", e.CreatedAt)
		}
		want := store.OutboxEntry{ID: 1, Kind: "k", Key: "a", Payload: []byte{0, 0xff}, State: "queued", NextAt: day, CreatedAt: e.CreatedAt}
		if d := cmp.Diff(want, e); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return tx.OutboxBegin(id) })
		if begun := get(t, s, (*store.Tx).OutboxBegun); len(begun) != 1 || !begun[0].Begun {
			t.Errorf("%+v", begun)
		}
		update(t, s, func(tx *store.Tx) error { return tx.OutboxRetry(id, time.Time{}, "away", store.OutboxSuspect) })
		want.State, want.NextAt, want.Attempts, want.LastError = store.OutboxSuspect, time.Time{}, 1, "away"
		if d := cmp.Diff([]store.OutboxEntry{want}, get(t, s, (*store.Tx).OutboxAll)); d != "" {
			t.Error(d)
		}
		if counts := get(t, s, (*store.Tx).OutboxCounts); counts[store.OutboxSuspect] != 1 || len(counts) != 1 {
			t.Errorf("%v", counts)
		}
		update(t, s, func(tx *store.Tx) error { return tx.OutboxRelease(id, day) })
		want.State, want.NextAt, want.Attempts = store.OutboxQueued, day, 0
		if d := cmp.Diff([]store.OutboxEntry{want}, get(t, s, (*store.Tx).OutboxAll)); d != "" {
			t.Error(d)
		}
		for name, f := range map[string]func(tx *store.Tx) error{
			"done":    func(tx *store.Tx) error { return tx.OutboxDone(99) },
			"drop":    func(tx *store.Tx) error { return tx.OutboxDrop(99) },
			"retry":   func(tx *store.Tx) error { return tx.OutboxRetry(99, day, "", store.OutboxQueued) },
			"begin":   func(tx *store.Tx) error { return tx.OutboxBegin(99) },
			"release": func(tx *store.Tx) error { return tx.OutboxRelease(99, day) },
		} {
			if err := s.Update(t.Context(), f); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s of an unknown entry: %v", name, err)
			}
		}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.Enqueue("k", "a", nil, time.Time{}); return err }); err == nil {
			t.Error("an entry without a time is accepted")
		}
	})
}

// An id that was used is not used again, not even when the outbox is empty: a late "done" must not hit another entry.
func TestOutboxIDsAreNotReused(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for want := int64(1); want <= 3; want++ {
			update(t, s, func(tx *store.Tx) error {
				id, err := tx.Enqueue("k", "a", nil, day)
				if id != want {
					t.Errorf("id %d, want %d", id, want)
				}
				return errors.Join(err, tx.OutboxDone(id))
			})
		}
	})
}

// Against a model: any sequence of changes, and after each the entries that may go and the next time are right.
func TestPropertyOutboxOrder(t *testing.T) {
	t.Parallel()
	type entry struct {
		id   int64
		key  string
		next time.Time // zero: parked
	}
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		rapid.Check(t, func(rt *rapid.T) {
			var model []entry
			apply := func(fn func(tx *store.Tx) error) {
				if err := s.Update(t.Context(), fn); err != nil {
					rt.Fatal(err)
				}
			}
			apply(func(tx *store.Tx) error { // from the run before
				all, err := tx.OutboxAll()
				for _, e := range all {
					err = errors.Join(err, tx.OutboxDone(e.ID))
				}
				return err
			})
			at := func(label string) time.Time {
				return day.Add(time.Duration(rapid.IntRange(0, 5).Draw(rt, label)) * time.Minute)
			}
			pick := func() int {
				if len(model) == 0 {
					rt.Skip()
				}
				return rapid.IntRange(0, len(model)-1).Draw(rt, "entry")
			}
			rt.Repeat(map[string]func(*rapid.T){
				"enqueue": func(rt *rapid.T) {
					e := entry{key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key"), next: at("due")}
					apply(func(tx *store.Tx) (err error) { e.id, err = tx.Enqueue("k", e.key, nil, e.next); return err })
					model = append(model, e)
				},
				"done": func(*rapid.T) {
					i := pick()
					apply(func(tx *store.Tx) error { return tx.OutboxDone(model[i].id) })
					model = slices.Delete(model, i, i+1)
				},
				"retry": func(rt *rapid.T) {
					i := pick()
					model[i].next = at("again")
					apply(func(tx *store.Tx) error {
						return tx.OutboxRetry(model[i].id, model[i].next, "", rapid.SampledFrom([]store.OutboxState{store.OutboxQueued, store.OutboxSuspect}).Draw(rt, "state"))
					})
				},
				"park": func(*rapid.T) {
					i := pick()
					model[i].next = time.Time{}
					apply(func(tx *store.Tx) error { return tx.OutboxRetry(model[i].id, time.Time{}, "", store.OutboxSuspect) })
				},
				"": func(rt *rapid.T) {
					now := at("now")
					var want []entry
					var nextDue time.Time
					seen := map[string]bool{}
					for _, e := range model {
						first := !seen[e.key]
						seen[e.key] = true
						switch {
						case !first || e.next.IsZero():
						case !e.next.After(now):
							want = append(want, e)
						case nextDue.IsZero() || e.next.Before(nextDue):
							nextDue = e.next
						}
					}
					slices.SortStableFunc(want, func(a, b entry) int { return a.next.Compare(b.next) })
					limit := rapid.IntRange(1, 4).Draw(rt, "limit")
					want = want[:min(limit, len(want))]
					if err := s.View(t.Context(), func(tx *store.Tx) error {
						heads, err := tx.OutboxHeads(now, limit)
						if err != nil {
							return err
						}
						due, ok, err := tx.OutboxNextDue(now)
						if !due.Equal(nextDue) || ok == nextDue.IsZero() {
							rt.Errorf("next due %v, %v, want %v", due, ok, nextDue)
						}
						var got []entry
						for _, h := range heads {
							got = append(got, entry{h.ID, h.Key, h.NextAt})
						}
						if fmt.Sprint(got) != fmt.Sprint(want) {
							rt.Errorf("heads %v, want %v", got, want)
						}
						return err
					}); err != nil {
						rt.Fatal(err)
					}
				},
			})
			if findings, err := s.Check(t.Context()); err != nil || len(findings) > 0 {
				rt.Fatal(findings, err)
			}
		})
	})
}
