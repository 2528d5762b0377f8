package computeusage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// TestCounting: a job while it runs and when it has ended, in units and interval of its product.
func TestCounting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.account(reef, "gpu", "p_gpu")
	w.slurm.submit("7", "a_cpu", "normal", 4, 10*time.Minute)
	w.slurm.submit("8", "p_gpu", "gpu", 2, 90*time.Minute)
	w.slurm.submit("9", "others", "normal", 64, time.Hour)
	w.slurm.pass(90 * time.Second)
	w.slurm.flush(100)
	w.round()
	w.expect(alice, "cpu", 4*90, 6)
	w.expect(reef, "gpu", 2*90, 0)
	calls := w.core.calls
	w.round() // nothing has changed
	if w.core.calls != calls {
		t.Error("Core was told what it knows")
	}
	w.settle()
	w.expect(alice, "cpu", 4*600, 40)
	w.expect(reef, "gpu", 2*5400, 3)
	if w.used(ident.Owner{User: "others"}, "cpu") != 0 {
		t.Error("others were counted")
	}
	w.restart()
	w.round()
	w.expect(alice, "cpu", 4*600, 40)
}

// TestCategoriesOfOneAccount: partition and QoS keep them apart; what fits none is charged to nobody, and said.
func TestCategoriesOfOneAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []string{"cpu", "cpu-high", "gpu"} {
		w.account(reef, c, "p_all")
	}
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("1", "p_all", "normal", 1, time.Hour)
	w.slurm.submit("2", "p_all", "normal", 10, time.Hour).QoS = "high"
	w.slurm.submit("3", "p_all", "gpu", 100, time.Hour)
	w.slurm.submit("4", "p_all", "secret", 1000, time.Hour)
	w.slurm.submit("5", "a_cpu", "gpu", 7, time.Hour) // by hand: the account has one category only
	w.settle()
	w.expect(reef, "cpu", 3600, 60)
	w.expect(reef, "cpu-high", 36000, 10)
	w.expect(reef, "gpu", 360000, 100)
	w.expect(alice, "cpu", 7*3600, 420)
	if st, err := w.Status(t.Context()); err != nil || st.Unmatched != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestRequeue: each run of a job counts, and an earlier one does not count on for the next.
func TestRequeue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	r := w.slurm.submit("7", "a_cpu", "normal", 1, 10*time.Hour)
	w.slurm.flush(1)
	w.slurm.pass(100 * time.Second)
	w.slurm.requeue(r)
	w.slurm.pass(51 * time.Second) // slurmdbd has not heard of it
	w.round()
	if got := w.used(alice, "cpu"); got != 0 {
		t.Error("a run counted that has ended:", got)
	}
	w.slurm.flush(100)
	w.round()
	w.expect(alice, "cpu", 100+50, 2)
	w.settle()
	w.expect(alice, "cpu", 100+3600-1, (100+3600-1)/60)
}

// TestControllerAway: slurmdbd calls jobs running that ended long ago; they do not count on.
func TestControllerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("7", "a_cpu", "normal", 1, 10*time.Minute)
	w.slurm.submit("8", "a_cpu", "normal", 1, 10*time.Minute)
	w.slurm.pass(time.Minute)
	w.slurm.flush(100)
	w.round()
	w.expect(alice, "cpu", 120, 2)
	w.slurm.ctld = false
	for range 30 {
		w.slurm.pass(time.Minute)
		if err := w.Round(t.Context()); err == nil || !strings.Contains(err.Error(), "slurmctld") {
			t.Fatal("the outage was not noticed:", err)
		}
		w.expect(alice, "cpu", 120, 2)
	}
	w.settle()
	w.expect(alice, "cpu", 1200, 20)
}

// TestDatabaseAway: while sacct fails nothing changes, and what happened meanwhile is found later, whenever it arrives.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("7", "a_cpu", "normal", 1, 3*time.Hour)
	w.slurm.pass(time.Minute)
	w.slurm.flush(100)
	w.round()
	w.expect(alice, "cpu", 60, 1)
	w.slurm.dbd = false
	for i := range 5 { // jobs that slurmdbd hears of at last, hours late
		w.slurm.submit(fmt.Sprint(20+i), "a_cpu", "normal", 1, 10*time.Minute)
		w.slurm.pass(time.Hour)
		if err := w.Round(t.Context()); err == nil {
			t.Fatal("the outage was not noticed")
		}
		w.expect(alice, "cpu", 60, 1)
	}
	w.slurm.dbd = true
	w.round() // it is back, and has heard of nothing yet
	w.slurm.pass(30 * time.Minute)
	w.slurm.flush(4)
	w.round()
	w.slurm.pass(90 * time.Minute)
	w.slurm.flush(100)
	w.round()
	w.expect(alice, "cpu", 3*3600+5*600, 180+50)
}

// TestReset: a slurmdbd that has forgotten everything takes nothing back, and numbers of jobs that begin anew are other jobs.
func TestReset(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("1", "a_cpu", "normal", 1, time.Hour)
	w.settle()
	w.expect(alice, "cpu", 3600, 60)
	w.slurm.runs = nil
	w.settle()
	w.expect(alice, "cpu", 3600, 60)
	w.slurm.submit("1", "a_cpu", "normal", 1, time.Hour)
	w.settle()
	w.expect(alice, "cpu", 7200, 120)
}

// TestFolded: runs that ended before all windows are counted once, whatever sacct tells of them, however often and with
// whatever windows.
func TestFolded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("1", "a_cpu", "normal", 1, time.Hour)
	w.settle()
	for range 20 {
		w.slurm.pass(24 * time.Hour)
		w.round()
	}
	kept := func() (n int) {
		if err := w.db.View(t.Context(), func(tx *store.Tx) error {
			all, err := tx.ComputeRuns()
			n = len(all)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if kept() != 0 {
		t.Error("old runs stay in the database")
	}
	w.set.Lookback = 365 * 24 * time.Hour
	w.restart()
	w.round()
	w.expect(alice, "cpu", 3600, 60)
}

// TestHistory: what an account used before it was known counts, once.
func TestHistory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.slurm.submit("1", "a_cpu", "normal", 1, time.Hour)
	w.slurm.pass(60 * 24 * time.Hour)
	w.slurm.flush(100)
	w.account(reef, "cpu", "p_all")
	w.round()
	w.account(alice, "cpu", "a_cpu")
	w.round()
	w.round()
	w.expect(alice, "cpu", 3600, 60)
}

// TestUnmanaged: what others use of an account that was not handed over is not charged.
func TestUnmanaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.update(func(tx *store.Tx) error {
		return tx.PutSlurmAccount(store.SlurmAccount{Owner: alice, Category: "cpu", Account: "a_cpu", CreatedAt: w.slurm.now})
	})
	w.slurm.submit("1", "a_cpu", "normal", 1, time.Hour)
	w.settle()
	w.expect(alice, "cpu", 0, 0)
}

// TestAccountMoves: what a workspace has used stays when it gets another account, and who gets the old one begins with what
// is new.
func TestAccountMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("1", "a_cpu", "normal", 1, 2*time.Hour)
	w.slurm.pass(time.Hour)
	w.slurm.flush(100)
	w.round()
	w.account(alice, "cpu", "a_new")
	w.account(reef, "cpu", "a_cpu")
	w.slurm.submit("2", "a_cpu", "normal", 1, time.Hour)
	w.slurm.submit("3", "a_new", "normal", 1, time.Hour)
	w.settle()
	w.expect(alice, "cpu", 3*3600, 180)
	w.expect(reef, "cpu", 3600, 60)
}

// TestReports: retired usage is subtracted in the product's unit; a product that is free to use is not reported.
func TestReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(reef, "gpu", "p_gpu")
	w.account(alice, "free", "a_cpu")
	w.update(func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: reef, Category: "gpu", CombinedQuota: 50, RetiredUsage: 3, LastUpdate: dawn})
		return err
	})
	w.slurm.submit("1", "p_gpu", "gpu", 2, 2*time.Hour)
	w.slurm.submit("2", "a_cpu", "free", 2, 2*time.Hour)
	w.settle()
	w.expect(reef, "gpu", 4*3600, 1)
	if _, ok := w.core.totals[totalKey(alice, "free")]; ok {
		t.Error("a product that is free to use was reported")
	}
	if len(w.core.totals) != 1 {
		t.Error(w.core.totals)
	}
}

// TestMoney: time times the price of the machine that holds what the job has.
func TestMoney(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	slices := []Slice{{CPU: 16, MemoryGB: 64, Price: 1_000_000}, {CPU: 64, MemoryGB: 256, Price: 3_500_000}}
	w.set.Categories = []Category{{Name: "cpu", Partition: "normal", Period: 60, Slices: slices}}
	w.restart()
	w.account(alice, "cpu", "a_cpu")
	w.slurm.submit("1", "a_cpu", "normal", 16, 90*time.Minute)
	w.slurm.pass(time.Minute)
	w.slurm.flush(10)
	w.round()
	w.set.Categories = []Category{{Name: "cpu", Partition: "normal", Period: 60, Slices: []Slice{{CPU: 64, MemoryGB: 256, Price: 9_000_000}}}}
	w.restart()
	w.settle() // the price has changed meanwhile
	w.expect(alice, "cpu", 5400*1_000_000, 1_500_000)
	for _, tc := range []struct {
		run  Run
		want int64
	}{
		{Run{CPU: 1, Nodes: 1}, 1_000_000},
		{Run{CPU: 32, Nodes: 2, MemoryMB: 128 << 10}, 2_000_000},
		{Run{CPU: 16, Nodes: 1, MemoryMB: 65 << 10}, 3_500_000},
		{Run{CPU: 65, Nodes: 1}, 7_000_000},
	} {
		if got := rate(&Category{Slices: slices}, &tc.run); got != tc.want {
			t.Errorf("%+v costs %d, not %d", tc.run, got, tc.want)
		}
	}
}

// TestWithoutBilling: a Slurm that computes no billing is counted by the unit of the product.
func TestWithoutBilling(t *testing.T) {
	t.Parallel()
	r := Run{Billing: -1, CPU: 8, GPU: 2, MemoryMB: 16 << 10}
	for unit, want := range map[string]int64{UnitCPU: 8, UnitGPU: 2, UnitMemory: 16} {
		if got := rate(&Category{Unit: unit}, &r); got != want {
			t.Errorf("%s: %d", unit, got)
		}
	}
}

// TestTotals: totals of the site's script; one that falls, is of nobody or not clear, changes nothing.
func TestTotals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	answer := []Total{{Account: "a_cpu", Minutes: 90}, {Account: "p_all", Category: "gpu", Minutes: 130}, {Account: "p_all", Minutes: 7}, {Account: "x", Minutes: 1}}
	var fail error
	var asked []string
	w.set.Totals = func(_ context.Context, accounts []string) ([]Total, error) {
		asked = accounts
		return answer, fail
	}
	w.restart()
	w.update(func(tx *store.Tx) error {
		for _, a := range []store.SlurmAccount{{Owner: alice, Category: "cpu", Account: "a_cpu"}, {Owner: reef, Category: "cpu", Account: "p_all"}, {Owner: reef, Category: "gpu", Account: "p_all"}} {
			if err := tx.PutSlurmAccount(a); err != nil {
				return err
			}
		}
		return nil
	})
	w.round()
	w.expect(alice, "cpu", 90*60, 90)
	w.expect(reef, "gpu", 130*60, 2)
	w.expect(reef, "cpu", 0, 0)
	if st, err := w.Status(t.Context()); err != nil || st.Unmatched != 2 || !slices.Equal(asked, []string{"a_cpu", "p_all"}) {
		t.Errorf("%+v %v %v", st, err, asked)
	}
	answer = []Total{{Account: "a_cpu", Minutes: 3}}
	w.round()
	w.expect(alice, "cpu", 90*60, 90)
	fail = errors.New("script failed")
	if err := w.Round(t.Context()); err == nil {
		t.Error("the failure was not noticed")
	}
	w.expect(alice, "cpu", 90*60, 90)
}

// TestWindows: the short window reaches beyond the last success, the long one is used at the start, hourly and after failures.
func TestWindows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.account(alice, "cpu", "a_cpu")
	last := func() time.Duration { return w.slurm.now.Sub(w.slurm.asked[len(w.slurm.asked)-1]) }
	w.round()
	if d := last(); d != 7*24*time.Hour {
		t.Error("first window:", d)
	}
	w.slurm.pass(time.Minute)
	w.round()
	if d := last(); d != overlap+time.Minute {
		t.Error("next window:", d)
	}
	w.slurm.dbd = false
	_ = w.Round(t.Context())
	w.slurm.dbd = true
	w.round()
	if d := last(); d != 7*24*time.Hour {
		t.Error("window after a failure:", d)
	}
	w.slurm.pass(time.Hour)
	w.round()
	if d := last(); d != 7*24*time.Hour {
		t.Error("window after an hour:", d)
	}
	w.slurm.pass(30 * 24 * time.Hour)
	w.round()
	if d := last(); d != 30*24*time.Hour+overlap {
		t.Error("window after a long outage of ours:", d)
	}
}

// TestDay replays a day with jobs of all kinds, requeues, and outages of slurmctld, slurmdbd and Core, restarts of ours and
// commands that fail. At no time more is charged than was used, and in the end the ledger equals sacct.
func TestDay(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t)
			w.account(alice, "cpu", "a_cpu")
			for _, c := range []string{"cpu", "cpu-high", "gpu"} {
				w.account(reef, c, "p_all")
			}
			away := errors.New("away")
			sometimes := func(n int) func() error {
				return func() error {
					if rnd.IntN(n) == 0 {
						return away
					}
					return nil
				}
			}
			w.slurm.failing, w.core.before, w.core.after = sometimes(10), sometimes(10), sometimes(10)
			for range 24 * 4 {
				traffic(rnd, w.slurm, rnd.IntN(6))
				if rnd.IntN(4) == 0 && len(w.slurm.runs) > 0 {
					w.slurm.requeue(w.slurm.runs[rnd.IntN(len(w.slurm.runs))])
				}
				if rnd.IntN(10) == 0 {
					w.slurm.ctld = !w.slurm.ctld
				}
				if rnd.IntN(10) == 0 {
					w.slurm.dbd = !w.slurm.dbd
				}
				w.slurm.pass(time.Duration(rnd.IntN(1800)) * time.Second)
				w.slurm.flush(rnd.IntN(12))
				if rnd.IntN(10) == 0 {
					w.restart()
				}
				_ = w.Round(t.Context()) // may fail
				var most int64
				for _, r := range w.slurm.runs {
					if r.Account == "a_cpu" {
						end := r.dueEnd
						if end.After(w.slurm.now) {
							end = w.slurm.now
						}
						most += r.Billing * int64(end.Sub(r.Start)/time.Second)
					}
				}
				if got := w.used(alice, "cpu"); got > most {
					t.Fatalf("%d charged, %d used", got, most)
				}
			}
			w.settle()
			w.compare()
		})
	}
}

// compare compares the ledger and Core's totals with sacct.
func (w *world) compare() {
	w.t.Helper()
	for _, x := range []struct {
		owner    ident.Owner
		category string
		period   int64
		match    func(Run) bool
	}{
		{alice, "cpu", 1, func(r Run) bool { return r.Account == "a_cpu" }},
		{reef, "cpu", 1, func(r Run) bool { return r.Account == "p_all" && r.Partition == "normal" && r.QoS != "high" }},
		{reef, "cpu-high", 60, func(r Run) bool { return r.Account == "p_all" && r.Partition == "normal" && r.QoS == "high" }},
		{reef, "gpu", 60, func(r Run) bool { return r.Account == "p_all" && r.Partition == "gpu" }},
	} {
		sum := w.sacct(x.match)
		if sum == 0 {
			w.t.Errorf("%s in %s used nothing: the test says nothing", x.owner.Reference(), x.category)
		}
		w.expect(x.owner, x.category, sum, sum/60/x.period)
	}
}

// TestCrashes ends the process between every two steps of counting and reporting, and after Core has recorded a report and
// before we know. Nothing is charged twice and nothing is lost.
func TestCrashes(t *testing.T) {
	t.Parallel()
	crash := errors.New("crash")
	seen := map[string]int{}
	for n := 0; ; n++ {
		w := newWorld(t) // with a database of its own: what a crash leaves behind is looked at
		w.account(alice, "cpu", "a_cpu")
		for _, c := range []string{"cpu", "cpu-high", "gpu"} {
			w.account(reef, c, "p_all")
		}
		rnd := rand.New(rand.NewPCG(7, 7))
		crashed := false
		countdown := n
		step := func(name string) error {
			seen[name]++
			if countdown--; countdown == -1 {
				crashed = true
				return crash
			}
			return nil
		}
		arm := func() {
			w.step = step
			put := w.reporter.Put
			w.reporter.Put = func(tx *store.Tx, r store.UsageReport) error {
				if r.ReportedAt.IsZero() {
					if err := step("note a report"); err != nil {
						return err
					}
				} else if err := step("confirm a report"); err != nil {
					return err
				}
				return put(tx, r)
			}
		}
		w.core.before = func() error { return step("before Core") }
		w.core.after = func() error { return step("after Core") }
		for range 2 {
			traffic(rnd, w.slurm, 12)
			w.slurm.requeue(w.slurm.runs[0])
			w.slurm.pass(40 * time.Minute)
			w.slurm.flush(30)
			w.restart()
			arm()
			_ = w.Round(t.Context())
			if crashed { // the next process
				w.restart()
				arm()
			}
		}
		w.restart()
		w.settle()
		w.compare()
		if !crashed {
			break // n is beyond the last step
		}
	}
	for _, name := range []string{
		"asked slurmctld", "asked slurmdbd", "before a chunk", "after a chunk", "asked history", "before the cursor", "before the report",
		"note a report", "before Core", "after Core", "confirm a report",
	} {
		if seen[name] == 0 {
			t.Errorf("never ended at: %s", name)
		}
	}
}
