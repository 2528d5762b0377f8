package usage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// meter measures what it is told to, and takes its time.
type meter struct {
	t     *testing.T
	batch int
	takes time.Duration

	mu      sync.Mutex
	fail    error
	value   int64
	running map[string]bool
	most    int
	times   map[string][]time.Time
}

func newMeter(t *testing.T, batch int, takes time.Duration) *meter {
	return &meter{t: t, batch: batch, takes: takes, running: map[string]bool{}, times: map[string][]time.Time{}, value: 1}
}

func (m *meter) Batch() int { return m.batch }

func (m *meter) Measure(ctx context.Context, drives []store.Drive) (map[string]Measurement, error) {
	m.mu.Lock()
	if len(drives) > m.batch {
		m.t.Errorf("%d drives at once", len(drives))
	}
	for _, d := range drives {
		if m.running[d.ProviderGeneratedID] {
			m.t.Errorf("%q is measured twice at a time", d.ProviderGeneratedID)
		}
		m.running[d.ProviderGeneratedID] = true
		m.times[d.ProviderGeneratedID] = append(m.times[d.ProviderGeneratedID], time.Now())
	}
	m.most = max(m.most, len(m.running))
	m.mu.Unlock()
	select {
	case <-time.After(m.takes):
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]Measurement{}
	for _, d := range drives {
		delete(m.running, d.ProviderGeneratedID)
		out[d.ProviderGeneratedID] = Measurement{Bytes: m.value, Method: "test"}
	}
	if m.fail != nil {
		return nil, m.fail
	}
	return out, ctx.Err()
}

func (m *meter) set(value int64, fail error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.value, m.fail = value, fail
}

// during runs the service for a while.
func during(t *testing.T, s *Service, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// reporting runs the half of the service that reports: it looks at the database far less often than measuring does.
func reporting(t *testing.T, s *Service, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.reportLoop(ctx)
}

// TestSchedule: each drive once per interval, spread, never more at once than allowed, also across restarts.
func TestSchedule(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		const n = 40
		update(t, db, func(tx *store.Tx) error {
			for i := range n {
				d := drive(ident.Owner{User: ident.UCloudUser(fmt.Sprint("u", i))}, "disk", "home", i)
				if err := tx.PutDrive(d); err != nil {
					return err
				}
			}
			waiting := drive(alice, "disk", "home", 1)
			waiting.State = store.DriveDesired
			return errors.Join(tx.PutDrive(waiting), tx.PutDrive(drive(alice, "none", "home", 1)))
		})
		m, core := newMeter(t, 1, 10*time.Second), newCore(t)
		categories := []Category{{Name: "disk", UnitBytes: 1, Measure: m, Interval: 15 * time.Minute, Parallel: 4}, {Name: "none", UnitBytes: 1}}
		for range 4 { // restarts
			during(t, newService(t, db, core, categories...), 30*time.Minute)
		}
		if m.most != 4 || len(m.times) != n {
			t.Errorf("%d at once, %d drives", m.most, len(m.times))
		}
		for id, at := range m.times {
			rounds := 1
			for i := 1; i < len(at); i++ {
				gap := at[i].Sub(at[i-1])
				if gap <= 20*time.Second {
					continue // a restart has cut it off, and it was begun anew
				}
				rounds++
				if gap > 17*time.Minute || gap < 12*time.Minute {
					t.Errorf("%q: %v between two measurements", id, gap)
				}
			}
			if rounds < 7 || rounds > 10 { // two hours
				t.Errorf("%q was measured in %d rounds: %v", id, rounds, at)
			}
		}
		if len(core.totals) != n {
			t.Errorf("%d scopes at Core", len(core.totals))
		}
	})
}

// TestShortInterval: intervals below the life of a plan are kept, also where all drives are due at once.
func TestShortInterval(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		update(t, db, func(tx *store.Tx) error {
			return errors.Join(tx.PutDrive(drive(alice, "disk", "home", 1)), tx.PutDrive(drive(alice, "disk", "work", 2)))
		})
		m := newMeter(t, 1, 10*time.Millisecond)
		during(t, newService(t, db, newCore(t), Category{Name: "disk", UnitBytes: 1, Measure: m, Interval: 10 * time.Second, Parallel: 4}), 5*time.Minute)
		for id, at := range m.times {
			if len(at) < 20 {
				t.Errorf("%q was measured %d times in five minutes", id, len(at))
			}
		}
		if len(m.times) != 2 {
			t.Errorf("%d drives were measured", len(m.times))
		}
	})
}

// TestManyDrives: thousands of drives are measured within the interval and reported in full batches, once.
func TestManyDrives(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		update(t, db, func(tx *store.Tx) error {
			for i := range n {
				if err := tx.PutDrive(drive(ident.Owner{User: ident.UCloudUser(fmt.Sprint("u", i))}, "disk", "home", i)); err != nil {
					return err
				}
			}
			return nil
		})
		m, core := newMeter(t, 60, 30*time.Second), newCore(t)
		s := newService(t, db, core, Category{Name: "disk", UnitBytes: 1, Measure: m, Parallel: 2})
		during(t, s, 5*time.Minute)
		if len(m.times) != n || m.most != 120 || len(core.totals) != n {
			t.Errorf("%d drives were measured, %d at once, %d are at Core", len(m.times), m.most, len(core.totals))
		}
		if calls := core.take(); len(calls) < 2 || len(calls) > 4 {
			t.Errorf("%d reports", len(calls))
		}
		during(t, s, 20*time.Minute) // after a restart: measured again when it is time, and nothing new to say
		if calls := core.take(); len(calls) != 0 {
			t.Errorf("%d reports of what Core knows", len(calls))
		}
		for id, at := range m.times {
			if len(at) != 2 {
				t.Fatalf("%q was measured %d times", id, len(at))
			}
		}
	})
}

// TestDailyRefresh: what does not change is sent once a day, what changes within seconds.
func TestDailyRefresh(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		d := drive(alice, "disk", "home", 1)
		update(t, db, func(tx *store.Tx) error { return tx.PutDrive(d) })
		m, core := newMeter(t, 1, time.Second), newCore(t)
		s := newService(t, db, core, Category{Name: "disk", UnitBytes: 1, Measure: m})
		during(t, s, 2*time.Minute)
		reporting(t, s, 46*time.Hour)
		if calls := core.take(); len(calls) < 2 || len(calls) > 3 {
			t.Errorf("%d reports in two days", len(calls))
		}
		m.set(5, nil)
		during(t, s, 20*time.Minute) // the last measurement is two days old
		if calls := core.take(); len(calls) != 1 || calls[0][0].Usage != 5 {
			t.Errorf("%+v", calls)
		}
		// Failures keep the value.
		m.set(0, errors.New("away"))
		during(t, s, 2*time.Hour)
		if calls := core.take(); len(calls) != 0 {
			t.Errorf("%+v", calls)
		}
		st, err := s.Status(t.Context())
		if err != nil || st.Missing != 1 || st.Measured != 1 || st.Error != "away" {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

// TestCoreIsAway: reports are repeated, ever more slowly, until Core is back; nothing is lost.
func TestCoreIsAway(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		update(t, db, func(tx *store.Tx) error { return put(tx, drive(alice, "disk", "home", 1), 7e9) })
		core := newCore(t)
		for range 1000 {
			core.behave = append(core.behave, func(int) (int, error) { return 0, coreapi.ErrNotSent })
		}
		s := newService(t, db, core)
		reporting(t, s, 24*time.Hour)
		if n := len(core.take()); n < 140 || n > 320 { // 5 s to 10 min with jitter
			t.Errorf("%d attempts in a day", n)
		}
		core.behave = nil
		reporting(t, s, 11*time.Minute)
		if core.totals[source{alice, "hpc-disk-home"}] != 7 {
			t.Errorf("%v", core.totals)
		}
	})
}

// TestRefusedOwnersAreTriedAgain: Core may come to know them.
func TestRefusedOwnersAreTriedAgain(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		update(t, db, func(tx *store.Tx) error { return put(tx, drive(alice, "disk", "home", 1), 7e9) })
		core := newCore(t)
		core.unknown[alice] = true
		s := newService(t, db, core)
		reporting(t, s, 48*time.Hour)
		if n := len(core.take()); n < 8 || n > 16 {
			t.Errorf("%d attempts in two days", n)
		}
		core.unknown[alice] = false
		reporting(t, s, 7*time.Hour)
		if core.totals[source{alice, "hpc-disk-home"}] != 7 {
			t.Errorf("%v", core.totals)
		}
		// The owner goes, and Core does not know it any more: forgotten after some attempts.
		core.unknown[alice] = true
		update(t, db, func(tx *store.Tx) error { return tx.DeleteDrive(drive(alice, "disk", "home", 1).ProviderGeneratedID) })
		reporting(t, s, 72*time.Hour)
		core.take()
		reporting(t, s, 72*time.Hour)
		if calls := core.take(); len(calls) != 0 {
			t.Errorf("%d more attempts", len(calls))
		}
	})
}

func TestBatches(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		update(t, db, func(tx *store.Tx) error {
			for i := range 25 {
				if err := tx.PutDrive(drive(alice, "disk", "home", i)); err != nil {
					return err
				}
			}
			return nil
		})
		m := newMeter(t, 10, time.Second)
		s := newService(t, db, newCore(t), Category{Name: "disk", UnitBytes: 1, Measure: m, Parallel: 1})
		during(t, s, time.Minute)
		if len(m.times) != 25 || m.most != 10 {
			t.Errorf("%d drives, %d at once", len(m.times), m.most)
		}
	})
}

// TestNewDrivesAreNoticed at once when somebody says so, and soon otherwise.
func TestNewDrivesAreNoticed(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(t, 1, 0)
		s := newService(t, db, newCore(t), Category{Name: "disk", UnitBytes: 1, Measure: m})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		for i, wait := range []time.Duration{2 * time.Second, planLife + time.Second} {
			time.Sleep(30 * time.Second)
			d := drive(alice, "disk", "home", i)
			update(t, db, func(tx *store.Tx) error { return tx.PutDrive(d) })
			if i == 0 {
				s.Changed()
			}
			time.Sleep(wait)
			m.mu.Lock()
			if len(m.times[d.ProviderGeneratedID]) != 1 {
				t.Errorf("drive %d was not measured within %v", i, wait)
			}
			m.mu.Unlock()
		}
		cancel()
		<-done
	})
}
