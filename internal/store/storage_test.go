package store_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func sampleCall() store.ScriptCall {
	return store.ScriptCall{
		Invocation: "i1", Hook: "onQuotaUpdated", Path: "/opt/x", FileHash: "ab", Key: "drive/1", Owner: ident.Owner{User: "Alice#1"},
		UID: 4_000_000_001, Attempt: 3, StartedAt: day, Duration: 1500 * time.Millisecond, Result: "failed", Exit: ptr(7),
		Message: "m", Request: "{}", Stdout: "out\x00\xff", Stderr: "err", StdoutBytes: 1 << 40, StderrBytes: 3,
	}
}

func TestScriptCalls(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		var ids []int64
		for i := range 6 {
			c := sampleCall()
			c.StartedAt = day.Add(time.Duration(i) * time.Hour)
			if i%2 == 0 {
				c.Result, c.Exit, c.Hook, c.Signal, c.Owner = store.ScriptOK, nil, "driveLocator", "killed", ident.Owner{Project: "p"}
			}
			update(t, s, func(tx *store.Tx) error {
				id, err := tx.InsertScriptCall(c)
				if len(ids) == i {
					ids = append(ids, id)
				}
				return err
			})
		}
		want := sampleCall()
		want.ID, want.StartedAt, want.Stdout = ids[1], day.Add(time.Hour), "out\uFFFD"
		got := get(t, s, func(tx *store.Tx) (store.ScriptCall, error) { return tx.ScriptCall(ids[1]) })
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if err := query(t, s, func(tx *store.Tx) (store.ScriptCall, error) { return tx.ScriptCall(99) }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		for _, tc := range []struct {
			name   string
			filter store.ScriptFilter
			limit  int
			want   []int // positions in ids
		}{
			{"all, newest first", store.ScriptFilter{}, 10, []int{5, 4, 3, 2, 1, 0}},
			{"page", store.ScriptFilter{Before: ids[4]}, 2, []int{3, 2}},
			{"hook", store.ScriptFilter{Hook: "driveLocator"}, 10, []int{4, 2, 0}},
			{"failures", store.ScriptFilter{Failures: true}, 10, []int{5, 3, 1}},
			{"time", store.ScriptFilter{Since: day.Add(time.Hour), Until: day.Add(3 * time.Hour)}, 10, []int{2, 1}},
			{"hook with quotes", store.ScriptFilter{Hook: "' OR 1 = 1 --"}, 10, nil},
		} {
			got := get(t, s, func(tx *store.Tx) ([]store.ScriptCall, error) { return tx.ScriptCalls(tc.filter, tc.limit) })
			var found, want []int64
			for _, c := range got {
				found = append(found, c.ID)
				if c.Request+c.Stdout+c.Stderr != "" || c.StdoutBytes != 1<<40 {
					t.Errorf("%s: a list carries the texts: %+v", tc.name, c)
				}
			}
			for _, i := range tc.want {
				want = append(want, ids[i])
			}
			if d := cmp.Diff(want, found); d != "" {
				t.Errorf("%s: %s", tc.name, d)
			}
		}
		purge := func(before time.Time, keep int64, limit, want int) {
			t.Helper()
			var n int
			update(t, s, func(tx *store.Tx) (err error) { n, err = tx.PurgeScriptCalls(before, keep, limit); return err })
			if n != want {
				t.Errorf("%d removed, want %d", n, want)
			}
		}
		purge(day.Add(90*time.Minute), 100, 1, 1) // bounded
		purge(day.Add(90*time.Minute), 100, 10, 1)
		purge(day, 3, 10, 1) // the newest three stay
		if left := get(t, s, func(tx *store.Tx) ([]store.ScriptCall, error) { return tx.ScriptCalls(store.ScriptFilter{}, 10) }); len(left) != 3 {
			t.Errorf("%d left", len(left))
		}
	})
}

func TestDriveUsage(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		u := store.DriveUsage{
			ProviderGeneratedID: "p-A\n/home/a", Bytes: math.MaxInt64, Files: 7, Method: "scan", MeasuredAt: day, TriedAt: day.Add(time.Second),
			Misses: 2, LastError: "x\xff",
		}
		update(t, s, func(tx *store.Tx) error {
			return tx.PutDriveUsage(store.DriveUsage{ProviderGeneratedID: u.ProviderGeneratedID})
		})
		update(t, s, func(tx *store.Tx) error { return tx.PutDriveUsage(u) })
		u.LastError = "x\uFFFD"
		got := get(t, s, func(tx *store.Tx) (store.DriveUsage, error) { return tx.DriveUsage(u.ProviderGeneratedID) })
		if d := cmp.Diff(u, got); d != "" {
			t.Error(d)
		}
		if all := get(t, s, (*store.Tx).DriveUsages); len(all) != 1 {
			t.Errorf("%+v", all)
		}
		if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutDriveUsage(store.DriveUsage{Bytes: -1}) }); err == nil {
			t.Error("negative usage was stored")
		}
		// Traces of drives go with the drive.
		update(t, s, func(tx *store.Tx) error {
			if err := tx.PutDriveQuota(store.DriveQuota{ProviderGeneratedID: u.ProviderGeneratedID}); err != nil {
				return err
			}
			if err := tx.PutUsageScan(store.UsageScan{ProviderGeneratedID: u.ProviderGeneratedID}); err != nil {
				return err
			}
			return tx.PurgeStorage()
		})
		if all := get(t, s, (*store.Tx).DriveUsages); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		if all := get(t, s, (*store.Tx).DriveQuotas); len(all) != 0 {
			t.Errorf("%+v", all)
		}
	})
}

func TestUsageReports(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		r := store.UsageReport{
			Owner: ident.Owner{Project: "p"}, Scope: "prov-disk-home", Category: "disk", Units: 5, ReportedAt: day, Locked: true,
			Refusals: 2, NextAt: day.Add(time.Hour), LastError: "no",
		}
		other := r
		other.Owner = ident.Owner{User: "p"} // Core keys by owner, and so do we
		for _, r := range []store.UsageReport{{Owner: r.Owner, Scope: r.Scope}, r, other} {
			update(t, s, func(tx *store.Tx) error { return tx.PutUsageReport(r) })
		}
		got := map[bool]store.UsageReport{}
		for _, r := range get(t, s, (*store.Tx).UsageReports) {
			got[r.Owner.IsProject()] = r
		}
		if d := cmp.Diff(map[bool]store.UsageReport{true: r, false: other}, got); d != "" {
			t.Error(d)
		}
		one := get(t, s, func(tx *store.Tx) (store.UsageReport, error) { return tx.UsageReport(r.Owner, r.Scope) })
		if d := cmp.Diff(r, one); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteUsageReport(r.Owner, r.Scope) })
		if err := query(t, s, func(tx *store.Tx) (store.UsageReport, error) { return tx.UsageReport(r.Owner, r.Scope) }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		if left := get(t, s, (*store.Tx).UsageReports); len(left) != 1 || left[0].Owner.User != "p" {
			t.Errorf("%+v", left)
		}
		for _, bad := range []store.UsageReport{{Scope: "x"}, {Owner: r.Owner}, {Owner: r.Owner, Scope: "x", Units: -1}} {
			if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutUsageReport(bad) }); err == nil {
				t.Errorf("stored: %+v", bad)
			}
		}
	})
}

func TestDriveQuotasAndScans(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for _, q := range []store.DriveQuota{
			{ProviderGeneratedID: "a", Applied: "d1", Wanted: "d2", Bytes: 1 << 62, Locked: true, Removed: true, AppliedAt: day, Attempts: 4, Since: day, NextAt: day, LastError: "e"},
			{ProviderGeneratedID: "a"}, // also the way back to zero values
		} {
			update(t, s, func(tx *store.Tx) error { return tx.PutDriveQuota(q) })
			got := get(t, s, func(tx *store.Tx) (store.DriveQuota, error) { return tx.DriveQuota("a") })
			if d := cmp.Diff(q, got); d != "" {
				t.Error(d)
			}
		}
		u := store.UsageScan{ProviderGeneratedID: "a", State: []byte(strings.Repeat("\x00\xff", 40)), UID: 4_000_000_000, LeaseUntil: day, UpdatedAt: day}
		update(t, s, func(tx *store.Tx) error { return tx.PutUsageScan(u) })
		if d := cmp.Diff(u, get(t, s, func(tx *store.Tx) (store.UsageScan, error) { return tx.UsageScan("a") })); d != "" {
			t.Error(d)
		}
		update(t, s, func(tx *store.Tx) error { return tx.DeleteUsageScan("a") })
		update(t, s, func(tx *store.Tx) error { return tx.DeleteUsageScan("a") })
		if err := query(t, s, func(tx *store.Tx) (store.UsageScan, error) { return tx.UsageScan("a") }); !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	})
}
