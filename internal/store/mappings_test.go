package store_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func mapping(user ident.UCloudUser, uid ident.UID) store.Mapping {
	return store.Mapping{
		User: user, UID: uid, LocalName: fmt.Sprintf("u%d", uid), State: store.MappingPending, Method: "ticket",
		CreatedAt: day, UpdatedAt: day, By: "root",
	}
}

func TestMappingRoundTrip(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		m := mapping("Zoë#1 \"';", 4294967294)
		update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(m) })
		byUser := func(tx *store.Tx) (store.Mapping, error) { return tx.MappingByUser(m.User) }
		if d := cmp.Diff(m, get(t, s, byUser)); d != "" {
			t.Error(d)
		}
		changed := m
		changed.LocalName, changed.State, changed.Method, changed.By = "x", store.MappingActive, "oidc", "x"
		changed.UpdatedAt, changed.ApprovedAt, changed.ExpiresAt, changed.LastSeenAt = day.Add(1e9), ptr(day), ptr(day.Add(2e9)), ptr(day.Add(3e9))
		update(t, s, func(tx *store.Tx) error {
			c := changed
			c.CreatedAt = day.Add(time.Hour) // does not count
			return tx.UpdateMapping(c)
		})
		if d := cmp.Diff(changed, get(t, s, byUser)); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(changed, get(t, s, func(tx *store.Tx) (store.Mapping, error) { return tx.MappingByUID(m.UID) })); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]store.Mapping{changed}, get(t, s, (*store.Tx).Mappings)); d != "" {
			t.Error(d)
		}
	})
}

// One uid belongs to one UCloud user and back (design D6), while a mapping of either lives. Many at once change nothing
// about that, and neither do two processes.
func TestMappingsAreUnique(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		stores := []*store.Store{storetest.Open(t, o), storetest.Open(t, o)}
		var ok atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				m := mapping("A#1", ident.UID(1000+i)) // same user
				if i%2 == 1 {
					m = mapping(ident.UCloudUser(fmt.Sprint("B#", i)), 1000) // same uid as the first
				}
				err := stores[i/2%2].Update(t.Context(), func(tx *store.Tx) error { return tx.InsertMapping(m) })
				switch {
				case err == nil:
					ok.Add(1)
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		users, uids := map[ident.UCloudUser]bool{}, map[ident.UID]bool{}
		all := get(t, stores[0], (*store.Tx).Mappings)
		for _, m := range all {
			if users[m.User] || uids[m.UID] {
				t.Errorf("twice: %+v", all)
			}
			users[m.User], uids[m.UID] = true, true
		}
		if int(ok.Load()) != len(all) || len(all) == 0 {
			t.Errorf("%d succeeded, %d are stored", ok.Load(), len(all))
		}
	})
}

func TestMappingConflicts(t *testing.T) {
	t.Parallel()
	for _, state := range []store.MappingState{store.MappingPending, store.MappingApproved, store.MappingActive, store.MappingExpired} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			storetest.Stores(t, func(t *testing.T, s *store.Store) {
				first := mapping("A#1", 1000)
				first.State = state
				update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(first) })
				insert := func(m store.Mapping) error {
					return s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertMapping(m) })
				}
				for _, m := range []store.Mapping{mapping("A#1", 1001), mapping("B#2", 1000), mapping("A#1", 1000)} {
					if err := insert(m); !errors.Is(err, store.ErrConflict) {
						t.Errorf("%s/%d: %v", m.User, m.UID, err)
					}
				}
				if err := insert(mapping("a#1", 1001)); err != nil { // names are compared byte by byte
					t.Error(err)
				}
				// A change of uid is refused, free or not.
				for _, uid := range []ident.UID{1001, 1002} {
					err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.UpdateMapping(mapping("A#1", uid)) })
					if !errors.Is(err, store.ErrConflict) {
						t.Errorf("change to uid %d: %v", uid, err)
					}
				}
			})
		})
	}
}

func TestMappingNeverToRoot(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for _, uid := range []ident.UID{0, 4294967295} {
			if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertMapping(mapping("A#1", uid)) }); err == nil {
				t.Errorf("uid %d is stored", uid)
			}
		}
		m := mapping("A#1", 1000)
		m.State = "wild"
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertMapping(m) }); err == nil {
			t.Error("an unknown state is stored")
		}
	})
}

func TestMappingRemoval(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		remove := func(purge bool) error {
			return s.Update(t.Context(), func(tx *store.Tx) error { return tx.RemoveMapping("A#1", purge, day.Add(time.Hour)) })
		}
		insert := func(uid ident.UID) {
			update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(mapping("A#1", uid)) })
		}
		if err := errors.Join(remove(false), remove(true)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("nothing to remove: %v", err)
		}
		insert(1000)
		if err := remove(false); err != nil {
			t.Fatal(err)
		}
		for _, f := range []func(tx *store.Tx) (store.Mapping, error){
			func(tx *store.Tx) (store.Mapping, error) { return tx.MappingByUser("A#1") },
			func(tx *store.Tx) (store.Mapping, error) { return tx.MappingByUID(1000) },
		} {
			if err := query(t, s, f); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("found after removal: %v", err)
			}
		}
		gone := s.Update(t.Context(), func(tx *store.Tx) error { return tx.UpdateMapping(mapping("A#1", 1000)) })
		if !errors.Is(gone, store.ErrNotFound) {
			t.Errorf("update after removal: %v", gone)
		}
		insert(1001) // both are free again
		update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(mapping("B#2", 1000)) })
		history := get(t, s, (*store.Tx).MappingHistory)
		if len(history) != 3 || history[0].State != store.MappingRemoved || history[0].UID != 1000 || !history[0].UpdatedAt.Equal(day.Add(time.Hour)) {
			t.Errorf("%+v", history)
		}
		if err := remove(true); err != nil {
			t.Fatal(err)
		}
		if history := get(t, s, (*store.Tx).MappingHistory); len(history) != 1 || history[0].User != "B#2" {
			t.Errorf("after the purge: %+v", history)
		}
		for _, f := range []func(tx *store.Tx) error{
			func(tx *store.Tx) error {
				m := mapping("C#3", 7)
				m.State = store.MappingRemoved
				return tx.InsertMapping(m)
			},
			func(tx *store.Tx) error {
				m := mapping("B#2", 1000)
				m.State = store.MappingRemoved
				return tx.UpdateMapping(m)
			},
		} {
			if err := s.Update(t.Context(), f); err == nil {
				t.Error("removed by the back door")
			}
		}
	})
}

func TestTouchMapping(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		update(t, s, func(tx *store.Tx) error { return tx.InsertMapping(mapping("A#1", 1000)) })
		for _, step := range []struct{ at, want time.Duration }{{2, 2}, {1, 2}, {3, 3}} {
			update(t, s, func(tx *store.Tx) error {
				return errors.Join(tx.TouchMapping("A#1", day.Add(step.at*time.Second)), tx.TouchMapping("nobody", day))
			})
			m := get(t, s, func(tx *store.Tx) (store.Mapping, error) { return tx.MappingByUser("A#1") })
			if m.LastSeenAt == nil || !m.LastSeenAt.Equal(day.Add(step.want*time.Second)) {
				t.Errorf("after %d: %v", step.at, m.LastSeenAt)
			}
		}
	})
}

func ticketOf(n byte, user ident.UCloudUser, at time.Time) store.Ticket {
	return store.Ticket{Hash: [32]byte{n, 31: n}, User: user, CreatedAt: at, ExpiresAt: at.Add(time.Hour), State: store.TicketOpen}
}

func TestTicketSupersedes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		limit int
		want  []store.TicketState // of four tickets of the same moment and one of another user
	}{
		{0, []store.TicketState{"superseded", "superseded", "superseded", "open", "open"}},
		{1, []store.TicketState{"superseded", "superseded", "superseded", "open", "open"}},
		{9, []store.TicketState{"open", "open", "open", "open", "open"}},
	} {
		t.Run(fmt.Sprint(tc.limit), func(t *testing.T) {
			t.Parallel()
			storetest.Stores(t, func(t *testing.T, s *store.Store) {
				update(t, s, func(tx *store.Tx) error { return tx.InsertTicket(ticketOf(9, "B#2", day), tc.limit) })
				for n := range byte(4) {
					update(t, s, func(tx *store.Tx) error { return tx.InsertTicket(ticketOf(n, "A#1", day), tc.limit) })
				}
				for i, n := range []byte{0, 1, 2, 3, 9} {
					got := get(t, s, func(tx *store.Tx) (store.Ticket, error) { return tx.TicketByHash([32]byte{n, 31: n}) })
					if got.State != tc.want[i] {
						t.Errorf("ticket %d is %s, want %s", n, got.State, tc.want[i])
					}
				}
			})
		})
	}
	t.Run("two, the newest stay", func(t *testing.T) {
		t.Parallel()
		storetest.Stores(t, func(t *testing.T, s *store.Store) {
			for n := range byte(4) {
				update(t, s, func(tx *store.Tx) error {
					return tx.InsertTicket(ticketOf(n, "A#1", day.Add(time.Duration(n)*time.Second)), 2)
				})
			}
			for i, tk := range get(t, s, (*store.Tx).Tickets) {
				if (tk.State == store.TicketOpen) != (i >= 2) {
					t.Errorf("ticket %d is %s", i, tk.State)
				}
			}
		})
	})
}

func TestTicketLifeCycle(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		a, b, c := ticketOf(1, "A#1", day), ticketOf(2, "B#2", day), ticketOf(3, "C#3", day.Add(time.Minute))
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.InsertTicket(a, 1), tx.InsertTicket(b, 1), tx.InsertTicket(c, 1))
		})
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertTicket(a, 1) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("same hash: %v", err)
		}
		if d := cmp.Diff(a, get(t, s, func(tx *store.Tx) (store.Ticket, error) { return tx.TicketByHash(a.Hash) })); d != "" {
			t.Error(d)
		}
		closeTicket := func(k store.Ticket, state store.TicketState, at time.Time) error {
			return s.Update(t.Context(), func(tx *store.Tx) error {
				return tx.CloseTicket(k.Hash, state, ptr(ident.UID(1000)), "root", "why\x00", at)
			})
		}
		if err := closeTicket(store.Ticket{}, store.TicketUsed, day); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("unknown: %v", err)
		}
		if err := closeTicket(a, store.TicketOpen, day); err == nil {
			t.Error("closed as open")
		}
		if err := closeTicket(a, store.TicketUsed, a.ExpiresAt); !errors.Is(err, store.ErrConflict) {
			t.Errorf("used at its end: %v", err)
		}
		if err := closeTicket(b, store.TicketRejected, b.ExpiresAt.Add(time.Hour)); err != nil {
			t.Errorf("rejected after its end: %v", err)
		}
		if err := closeTicket(a, store.TicketUsed, a.ExpiresAt.Add(-time.Millisecond)); err != nil {
			t.Error(err)
		}
		if err := closeTicket(a, store.TicketUsed, day); !errors.Is(err, store.ErrConflict) {
			t.Errorf("used twice: %v", err)
		}
		want := a
		want.State, want.UID, want.By, want.Message, want.ClosedAt = store.TicketUsed, ptr(ident.UID(1000)), "root", "why", ptr(a.ExpiresAt.Add(-time.Millisecond))
		if d := cmp.Diff(want, get(t, s, func(tx *store.Tx) (store.Ticket, error) { return tx.TicketByHash(a.Hash) })); d != "" {
			t.Error(d)
		}
		for _, step := range []struct {
			now  time.Time
			want int
		}{{c.ExpiresAt.Add(-time.Millisecond), 0}, {c.ExpiresAt, 1}, {c.ExpiresAt, 0}} {
			var n int
			update(t, s, func(tx *store.Tx) (err error) { n, err = tx.ExpireTickets(step.now); return err })
			if n != step.want {
				t.Errorf("at %v: %d expired", step.now, n)
			}
		}
		var n int
		update(t, s, func(tx *store.Tx) (err error) { n, err = tx.PurgeTickets(c.ExpiresAt); return err })
		if n != 1 || len(get(t, s, (*store.Tx).Tickets)) != 2 { // a; b was closed an hour later, c just then
			t.Errorf("%d purged", n)
		}
	})
}

// Of many that complete a ticket at once, one succeeds.
func TestTicketIsUsedOnce(t *testing.T) {
	t.Parallel()
	storetest.Options(t, func(t *testing.T, o store.Options) {
		stores := []*store.Store{storetest.Open(t, o), storetest.Open(t, o)}
		k := ticketOf(1, "A#1", day)
		update(t, stores[0], func(tx *store.Tx) error { return tx.InsertTicket(k, 1) })
		var ok atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				err := stores[i%2].Update(t.Context(), func(tx *store.Tx) error {
					return tx.CloseTicket(k.Hash, store.TicketUsed, ptr(ident.UID(i+1)), "", "", day)
				})
				if err == nil {
					ok.Add(1)
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if ok.Load() != 1 {
			t.Errorf("%d of 8 succeeded", ok.Load())
		}
	})
}
