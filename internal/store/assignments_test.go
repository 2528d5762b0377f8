package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestAssignments(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		now := time.UnixMilli(1_760_000_000_000).UTC()
		first := store.Assignment{User: "b#1", State: store.AssignmentLooking, CreatedAt: now, UpdatedAt: now}
		second := store.Assignment{User: "a#1", State: store.AssignmentLooking, CreatedAt: now.Add(time.Second), UpdatedAt: now}
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			if _, err := tx.Assignment("b#1"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("unknown: %v", err)
			}
			err := errors.Join(tx.PutAssignment(second), tx.PutAssignment(first))
			looking, err2 := tx.AssignmentsLooking()
			if diff := cmp.Diff([]store.Assignment{first, second}, looking); diff != "" {
				t.Error(diff)
			}
			first.State, first.UID, first.LocalName = store.AssignmentFound, 4294967294, "bea"
			second.State, second.Message = store.AssignmentFailed, "no"
			second.UpdatedAt = now.Add(time.Hour)
			err3 := errors.Join(tx.PutAssignment(second), tx.PutAssignment(first))
			got, err4 := tx.Assignment("b#1")
			if diff := cmp.Diff(first, got); diff != "" {
				t.Error(diff)
			}
			looking, err5 := tx.AssignmentsLooking()
			if len(looking) != 0 {
				t.Errorf("still looking: %v", looking)
			}
			err6 := tx.PurgeAssignments(now.Add(time.Second))
			_, gone := tx.Assignment("b#1")
			_, kept := tx.Assignment("a#1")
			if !errors.Is(gone, store.ErrNotFound) || kept != nil {
				t.Errorf("purged: %v, kept: %v", gone, kept)
			}
			return errors.Join(err, err2, err3, err4, err5, err6)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestScriptQueue(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		now := time.UnixMilli(1_760_000_000_000).UTC()
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			heads := func() (ids []int64) {
				all, err := tx.QueuedHeads("h", 10)
				if err != nil {
					t.Error(err)
				}
				for _, c := range all {
					ids = append(ids, c.ID)
				}
				return ids
			}
			expect := func(what string, want ...int64) {
				t.Helper()
				if diff := cmp.Diff(want, heads()); diff != "" {
					t.Errorf("%s: %s", what, diff)
				}
			}
			err := errors.Join(
				tx.QueueCall("h", "a", []byte("1"), now), tx.QueueCall("h", "a", nil, now), tx.QueueCall("h", "b", nil, now), tx.QueueCall("other", "a", nil, now))
			expect("one of each key", 1, 3)
			err = errors.Join(err, tx.RetryCall(1, now.Add(time.Minute), "x"))
			expect("a failed one keeps its place", 3, 1)
			err = errors.Join(err, tx.RetryCall(1, time.Time{}, "broken"))
			expect("a parked one holds up its key", 3)
			failing, parked, last, err2 := tx.QueuedCalls()
			if failing != 0 || parked != 1 || last != "broken" {
				t.Errorf("%d failing, %d parked, %q", failing, parked, last)
			}
			err = errors.Join(err, err2, tx.ReleaseCalls(now.Add(time.Second)))
			expect("released", 3, 1)
			all, err3 := tx.QueuedHeads("h", 10)
			want := store.QueuedCall{ID: 1, Hook: "h", Key: "a", Payload: []byte("1"), Attempts: 2, NextAt: now.Add(time.Second), CreatedAt: now, LastError: "broken"}
			if diff := cmp.Diff(want, all[1]); diff != "" {
				t.Error(diff)
			}
			err = errors.Join(err, err3, tx.CallDone(1))
			expect("done", 2, 3)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
