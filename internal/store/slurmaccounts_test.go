package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestSlurmAccounts(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		alice, reef := ident.Owner{User: "Alice#1"}, ident.Owner{Project: "p"}
		put := func(o ident.Owner, category, account string) error {
			return s.Update(t.Context(), func(tx *store.Tx) error {
				return tx.PutSlurmAccount(store.SlurmAccount{Owner: o, Category: category, Account: account, CreatedAt: day})
			})
		}
		for _, err := range []error{put(alice, "cpu", "a"), put(alice, "gpu", "a"), put(reef, "cpu", "p_cpu"), put(reef, "cpu", "p_new")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := put(reef, "gpu", "a"); !errors.Is(err, store.ErrConflict) {
			t.Error("two workspaces have one account:", err)
		}
		owners := get(t, s, func(tx *store.Tx) ([]store.SlurmAccount, error) { return tx.SlurmAccountOwners("a") })
		want := []store.SlurmAccount{{Owner: alice, Category: "cpu", Account: "a", CreatedAt: day}, {Owner: alice, Category: "gpu", Account: "a", CreatedAt: day}}
		if d := cmp.Diff(want, owners); d != "" {
			t.Error(d)
		}
		if all := get(t, s, (*store.Tx).SlurmAccounts); len(all) != 3 {
			t.Error(all)
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteSlurmAccount(reef, "cpu") })
		if err := query(t, s, func(tx *store.Tx) (store.SlurmAccount, error) { return tx.SlurmAccount(reef, "cpu") }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}

		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.SetSlurmManaged("a", true, day), tx.SetSlurmManaged("a", false, day))
		})
		if m := get(t, s, (*store.Tx).SlurmManaged); !m["a"] || len(m) != 1 {
			t.Error(m)
		}
		member := store.SlurmMember{Account: "a", LocalName: "alice01", User: "Alice#1", UID: 4_000_000_001, Role: "PI"}
		update(t, s, func(tx *store.Tx) error { return errors.Join(tx.PutSlurmMember(member), tx.PutSlurmMember(member)) })
		if d := cmp.Diff([]store.SlurmMember{member}, get(t, s, func(tx *store.Tx) ([]store.SlurmMember, error) { return tx.SlurmMembers("a") })); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteSlurmMember("a", "alice01") })
		if left := get(t, s, func(tx *store.Tx) ([]store.SlurmMember, error) { return tx.SlurmMembers("a") }); len(left) != 0 {
			t.Error(left)
		}

		for _, next := range []time.Time{day.Add(time.Hour), {}} {
			work := store.SlurmWork{
				Key: "account/a", Account: "a", Applied: "x", Wanted: "y", Minutes: 1 << 50, Locked: true, AppliedAt: day, Attempts: 3,
				Since: day, NextAt: next, LastError: "no\x00",
			}
			update(t, s, func(tx *store.Tx) error { return tx.PutSlurmWork(work) })
			work.LastError = "no"
			if d := cmp.Diff(work, get(t, s, func(tx *store.Tx) (store.SlurmWork, error) { return tx.SlurmWork("account/a") })); d != "" {
				t.Error(d)
			}
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteSlurmWork("account/a") })
		if all := get(t, s, (*store.Tx).SlurmWorks); len(all) != 0 {
			t.Error(all)
		}
	})
}

func TestComputeUsage(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		alice := ident.Owner{User: "Alice#1"}
		open := store.ComputeRun{Key: "7@1", Account: "a", Owner: alice, Category: "cpu", Rate: 4, Seconds: 30}
		ended := store.ComputeRun{Key: "8@1", Account: "a", Owner: alice, Category: "cpu", Rate: 4, Seconds: 90, EndedAt: day}
		update(t, s, func(tx *store.Tx) error { return errors.Join(tx.PutComputeRun(open), tx.PutComputeRun(ended)) })
		if d := cmp.Diff([]store.ComputeRun{open}, get(t, s, (*store.Tx).OpenComputeRuns)); d != "" {
			t.Error(d)
		}
		// Whom a run was charged to never changes.
		moved := open
		moved.Owner, moved.Seconds = ident.Owner{User: "Bob#2"}, 60
		update(t, s, func(tx *store.Tx) error { return tx.PutComputeRun(moved) })
		open.Seconds = 60
		if d := cmp.Diff(open, get(t, s, func(tx *store.Tx) (store.ComputeRun, error) { return tx.ComputeRun("7@1") })); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return tx.ForgetComputeRuns(day.Add(time.Second)) })
		if d := cmp.Diff([]store.ComputeRun{open}, get(t, s, (*store.Tx).ComputeRuns)); d != "" {
			t.Error(d)
		}

		report := store.UsageReport{Owner: alice, Category: "cpu", Units: 5, ReportedAt: day, Locked: true, Refusals: 2, NextAt: day, LastError: "e"}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutComputeReport(report) }); !errors.Is(err, store.ErrNotFound) {
			t.Error("a report without usage:", err)
		}
		for _, minutes := range []int64{7, 9} { // counting leaves the report alone
			update(t, s, func(tx *store.Tx) error { return tx.CountCompute(alice, "cpu", minutes, 59, day) })
			if minutes == 7 {
				update(t, s, func(tx *store.Tx) error { return tx.PutComputeReport(report) })
			}
		}
		want := store.ComputeUsage{Owner: alice, Category: "cpu", Minutes: 9, Rest: 59, CountedAt: day, Report: report}
		if d := cmp.Diff([]store.ComputeUsage{want}, get(t, s, (*store.Tx).ComputeUsages)); d != "" {
			t.Error(d)
		}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.CountCompute(alice, "cpu", -1, 0, day) }); err == nil {
			t.Error("negative usage was stored")
		}
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.SetComputeFilled("a", day), tx.SetComputeFilled("a", day))
		})
		if m := get(t, s, (*store.Tx).ComputeFilled); !m["a"] {
			t.Error(m)
		}
	})
}
