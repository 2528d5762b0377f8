package usage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

// fakeCore keeps totals as Core does: by owner and scope.
type fakeCore struct {
	t       testing.TB
	schema  *apischema.Document
	mu      sync.Mutex
	totals  map[source]int64
	unknown map[ident.Owner]bool
	locked  map[ident.Owner]bool
	calls   [][]providerapi.UsageItem
	checked int // calls against the schema
	// behave is what happens to the next calls, one element each: after how many items the call ends, and how.
	behave []func(items int) (applied int, err error)
}

func newCore(t testing.TB) *fakeCore {
	return &fakeCore{t: t, schema: apischema.Core(t), totals: map[source]int64{}, unknown: map[ident.Owner]bool{}, locked: map[ident.Owner]bool{}}
}

func (c *fakeCore) ReportUsage(_ context.Context, items []providerapi.UsageItem) ([]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, items)
	// All of the first call is checked, and the beginning of the others: the items differ in their numbers only.
	checked := items
	if c.checked++; c.checked > 1 {
		checked = items[:min(len(items), 3)]
	}
	raw, err := json.Marshal(providerapi.BulkRequest[providerapi.UsageItem]{Items: checked})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.schema.CheckRequest("accounting.v2.reportUsage", raw); err != nil {
		c.t.Errorf("%v\n%.500s", err, raw)
	}
	if len(items) == 0 || len(items) > 500 {
		c.t.Errorf("%d items", len(items))
	}
	most := len(items)
	var outcome error
	if len(c.behave) > 0 {
		most, outcome = c.behave[0](len(items))
		c.behave = c.behave[1:]
	}
	var answers []bool
	for _, i := range items[:most] {
		owner := ident.Owner{User: i.Owner.Username, Project: i.Owner.ProjectID}
		if i.IsDeltaCharge || i.Usage < 0 || !owner.Valid() || i.CategoryIDV2.Provider != "hpc" {
			c.t.Errorf("%+v", i)
		}
		if c.unknown[owner] {
			return nil, &coreapi.StatusError{Status: 403, Why: "This user/project does not exist"}
		}
		c.totals[source{owner, *i.Description.Scope}] = i.Usage
		answers = append(answers, !c.locked[owner])
	}
	return answers, outcome
}

func (c *fakeCore) take() [][]providerapi.UsageItem {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.calls
	c.calls = nil
	return calls
}

// nothing measures nothing: the tests put measurements into the database themselves.
type nothing struct{}

func (nothing) Batch() int { return 1 }
func (nothing) Measure(context.Context, []store.Drive) (map[string]Measurement, error) {
	return nil, errors.New("not measured in this test")
}

func newService(t testing.TB, db *store.Store, core Core, categories ...Category) *Service {
	t.Helper()
	if categories == nil {
		categories = []Category{{Name: "disk", UnitBytes: 1e9, Measure: nothing{}}}
	}
	s, err := New(Options{Provider: "hpc", Categories: categories, Store: db, Core: core})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func update(t testing.TB, db *store.Store, f func(tx *store.Tx) error) {
	t.Helper()
	if err := db.Update(context.Background(), f); err != nil {
		t.Fatal(err)
	}
}

func drive(owner ident.Owner, category, locator string, n int) store.Drive {
	return store.Drive{
		ProviderGeneratedID: fmt.Sprintf("hpc-%s\n/%s/%s/%d", owner.Reference(), category, locator, n), Owner: owner, Category: category,
		Product: category, Locator: locator, Path: fmt.Sprintf("/%s/%s/%d", category, locator, n), State: store.DriveRegistered,
	}
}

func put(tx *store.Tx, d store.Drive, bytes int64) error {
	if err := tx.PutDrive(d); err != nil || bytes < 0 {
		return err
	}
	return tx.PutDriveUsage(store.DriveUsage{ProviderGeneratedID: d.ProviderGeneratedID, Bytes: bytes, MeasuredAt: time.Now(), TriedAt: time.Now()})
}

var alice, reef = ident.Owner{User: "Alice#1"}, ident.Owner{Project: "5b1c0a7e"}

// TestReports goes through what there is to report, on both engines.
func TestReports(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		core := newCore(t)
		s := newService(t, db, core, Category{Name: "disk", UnitBytes: 1e9, Measure: nothing{}}, Category{Name: "free", UnitBytes: 1, FreeToUse: true, Measure: nothing{}},
			Category{Name: "none", UnitBytes: 1}, Category{Name: "money", Measure: nothing{}})
		made := drive(alice, "disk", "", 1)
		made.ID = "5012"
		odd := drive(alice, "disk", "odd", 1)
		odd.State = store.DriveFailed
		report := func(want map[source]int64, changes int) {
			t.Helper()
			if err := s.Report(t.Context()); err != nil {
				t.Fatal(err)
			}
			items := 0
			for _, c := range core.take() {
				items += len(c)
			}
			if !maps.Equal(core.totals, want) || items != changes {
				t.Errorf("Core has %v, want %v; %d items, want %d", core.totals, want, items, changes)
			}
			s = newService(t, db, core, slices.Collect(maps.Values(s.categories))...) // a restart at any time
		}
		home, moved := drive(alice, "disk", "home", 1), drive(alice, "disk", "home", 2)
		update(t, db, func(tx *store.Tx) error {
			return errors.Join(put(tx, home, 1), put(tx, moved, -1), put(tx, drive(reef, "disk", "work", 1), 2e9), put(tx, drive(reef, "disk", "home", 1), 0),
				put(tx, made, 5), put(tx, odd, 9e9), put(tx, drive(alice, "free", "x", 1), 9), put(tx, drive(alice, "none", "x", 1), 9),
				put(tx, drive(alice, "money", "x", 1), 9), put(tx, drive(alice, "gone", "x", 1), 9))
		})
		want := map[source]int64{{reef, "hpc-disk-work"}: 2, {reef, "hpc-disk-home"}: 0, {alice, "hpc-disk-5012"}: 1}
		report(want, 3) // a drive of hpc-disk-home was never measured: nothing about it
		report(want, 0)
		update(t, db, func(tx *store.Tx) error { return put(tx, moved, 1e9) })
		want[source{alice, "hpc-disk-home"}] = 2 // a byte more than one unit, in two drives
		report(want, 1)
		update(t, db, func(tx *store.Tx) error { return put(tx, moved, 1e9-1) })
		want[source{alice, "hpc-disk-home"}] = 1
		report(want, 1)
		update(t, db, func(tx *store.Tx) error { return put(tx, moved, math.MaxInt64) }) // a total that does not fit
		want[source{alice, "hpc-disk-home"}] = math.MaxInt64/1_000_000_000 + 1
		report(want, 1)
		update(t, db, func(tx *store.Tx) error {
			return errors.Join(tx.DeleteDrive(home.ProviderGeneratedID), tx.DeleteDrive(moved.ProviderGeneratedID))
		})
		want[source{alice, "hpc-disk-home"}] = 0
		report(want, 1)
		report(want, 0)
		if err := db.View(t.Context(), func(tx *store.Tx) error {
			all, err := tx.UsageReports()
			if len(all) != 3 {
				t.Errorf("%+v", all)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		// A category that is not configured any more.
		s = newService(t, db, core, Category{Name: "free", FreeToUse: true})
		want[source{reef, "hpc-disk-work"}], want[source{alice, "hpc-disk-5012"}] = 0, 0
		report(want, 2)
	})
}

// TestBatchesAndUnknownOwners: 1,203 scopes in three calls, and a few owners whom Core does not know hold nobody up.
func TestBatchesAndUnknownOwners(t *testing.T) {
	t.Parallel()
	db, core := storetest.SQLite(t), newCore(t)
	s := newService(t, db, core)
	const n = 603
	owner := func(i int) ident.Owner { return ident.Owner{User: ident.UCloudUser(fmt.Sprintf("u%04d", i))} }
	update(t, db, func(tx *store.Tx) error {
		for i := range n {
			if err := put(tx, drive(owner(i), "disk", "home", i), int64(i)*1e9); err != nil {
				return err
			}
		}
		return nil
	})
	for _, i := range []int{0, 499, 500, 577, n - 1} {
		core.unknown[owner(i)] = true
	}
	if err := s.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		got, ok := core.totals[source{owner(i), "hpc-disk-home"}]
		if ok == core.unknown[owner(i)] || (ok && got != int64(i)) {
			t.Fatalf("%d: %d, %v", i, got, ok)
		}
	}
	if calls := core.take(); len(calls) > 3+5*20 {
		t.Errorf("%d calls", len(calls))
	}
	st, err := s.Status(t.Context())
	if err != nil || st.Refused != 5 || st.Reported != n-5 || !strings.Contains(st.Error, "does not exist") {
		t.Errorf("%+v, %v", st, err)
	}
	if err := s.Report(t.Context()); err != nil { // not again at once
		t.Fatal(err)
	}
	if calls := core.take(); len(calls) != 0 {
		t.Errorf("%d calls", len(calls))
	}
	// When everything is refused it is not about the owners.
	for i := range n {
		core.unknown[owner(i)] = true
	}
	update(t, db, func(tx *store.Tx) error {
		for i := range n {
			if err := put(tx, drive(owner(i), "disk", "home", i), int64(i+1)*1e9); err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.Report(t.Context()); !errors.Is(err, errNotTheItems) {
		t.Error(err)
	}
	if calls := core.take(); len(calls) > 100 {
		t.Errorf("%d calls", len(calls))
	}
}

// TestScopesOfTwoSources: names that run together must not make one total of two.
func TestScopesOfTwoSources(t *testing.T) {
	t.Parallel()
	db, core := storetest.SQLite(t), newCore(t)
	s := newService(t, db, core, Category{Name: "a", UnitBytes: 1, Measure: nothing{}}, Category{Name: "a-b", UnitBytes: 1, Measure: nothing{}})
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(put(tx, drive(alice, "a", "b-c", 1), 5), put(tx, drive(alice, "a-b", "c", 1), 7))
	})
	for range 3 {
		if err := s.Report(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := core.totals[source{alice, "hpc-a-b-c"}]; (got != 5 && got != 7) || len(core.take()) != 1 {
		t.Errorf("%d", got)
	}
}

func TestLockHints(t *testing.T) {
	t.Parallel()
	db, core := storetest.SQLite(t), newCore(t)
	s := newService(t, db, core)
	core.locked[alice] = true
	update(t, db, func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: alice, Category: "disk", CombinedQuota: 1, LastUpdate: time.Now()})
		return errors.Join(err, put(tx, drive(alice, "disk", "home", 1), 5e9))
	})
	if err := s.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		r, err := tx.UsageReport(alice, "hpc-disk-home")
		if !r.Locked {
			t.Error("the hint is not stored")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	// The word of the event stream is what counts (contract 30 section 8).
	if locked, known, err := s.Locked(t.Context(), alice, "disk"); locked || !known || err != nil {
		t.Errorf("%v, %v, %v", locked, known, err)
	}
}

// clearUsage removes all drives and what is known about them.
func clearUsage(t *testing.T, db *store.Store) {
	update(t, db, func(tx *store.Tx) error {
		drives, err := tx.Drives()
		for _, d := range drives {
			err = errors.Join(err, tx.DeleteDrive(d.ProviderGeneratedID))
		}
		reports, err2 := tx.UsageReports()
		for _, r := range reports {
			err2 = errors.Join(err2, tx.DeleteUsageReport(r.Owner, r.Scope))
		}
		return errors.Join(err, err2, tx.PurgeStorage())
	})
}

// TestCoreIsRightInTheEnd: random changes, restarts and failures of Core; after one quiet round Core has what is there.
func TestCoreIsRightInTheEnd(t *testing.T) {
	t.Parallel()
	ends := []func(n int) (int, error){
		func(int) (int, error) { return 0, coreapi.ErrNotSent },
		func(int) (int, error) { return 0, coreapi.ErrNoAnswer },
		func(n int) (int, error) { return n / 2, coreapi.ErrNoAnswer }, // cut in the middle
		func(n int) (int, error) { return n, coreapi.ErrNoAnswer },     // recorded, and nobody knows
		func(n int) (int, error) { return n / 2, &coreapi.StatusError{Status: 500} },
		func(n int) (int, error) { return n, nil },
	}
	db, schema := storetest.SQLite(t), apischema.Core(t)
	rapid.Check(t, func(rt *rapid.T) {
		clearUsage(t, db)
		core := newCore(t)
		core.schema = schema
		owners := []ident.Owner{alice, reef, {User: "b"}, {User: "unknown"}}
		core.unknown[owners[3]] = true
		type place struct {
			owner   int
			locator string
			n       int
		}
		there := map[place]int64{}
		s := newService(t, db, core)
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			p := place{rapid.IntRange(0, 3).Draw(rt, "owner"), rapid.SampledFrom([]string{"home", "work"}).Draw(rt, "locator"), rapid.IntRange(1, 2).Draw(rt, "n")}
			d := drive(owners[p.owner], "disk", p.locator, p.n)
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0, 1, 2:
				there[p] = rapid.Int64Range(0, 9e9).Draw(rt, "bytes")
				update(t, db, func(tx *store.Tx) error { return put(tx, d, there[p]) })
			case 3:
				if _, ok := there[p]; ok {
					delete(there, p)
					update(t, db, func(tx *store.Tx) error { return tx.DeleteDrive(d.ProviderGeneratedID) })
				}
			case 4:
				core.behave = append(core.behave, rapid.SampledFrom(ends).Draw(rt, "end"))
				_ = s.Report(t.Context())
			case 5:
				s = newService(t, db, core)
			}
		}
		core.behave = nil
		if err := s.Report(t.Context()); err != nil {
			rt.Fatal(err)
		}
		want := map[source]int64{}
		for p, bytes := range there {
			if p.owner != 3 {
				want[source{owners[p.owner], "hpc-disk-" + p.locator}] += bytes
			}
		}
		for k, got := range core.totals {
			units, _ := Units(want[k], 1e9)
			if got != units {
				rt.Fatalf("%v: Core has %d, there is %d", k, got, units)
			}
			delete(want, k)
		}
		if len(want) > 0 {
			rt.Fatalf("not reported: %v", want)
		}
		core.take()
		if err := s.Report(t.Context()); err != nil {
			rt.Fatal(err)
		}
		for _, c := range core.take() {
			rt.Fatalf("reported again: %+v", c)
		}
	})
}
