package computeusage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

var (
	alice = ident.Owner{User: "Alice#1"}
	reef  = ident.Owner{Project: "5b1c0a7e"}
	dawn  = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
)

// core keeps what it is told as Core does: absolute values without scope.
type core struct {
	totals map[string]int64
	calls  int
	// before and after fail a call: before it is recorded, or after.
	before, after func() error
}

func totalKey(o ident.Owner, category string) string { return o.Reference() + "/" + category }

func (c *core) ReportUsage(_ context.Context, items []providerapi.UsageItem) ([]bool, error) {
	c.calls++
	if c.before != nil {
		if err := c.before(); err != nil {
			return nil, err
		}
	}
	for _, i := range items {
		if i.IsDeltaCharge || i.Description.Scope != nil || i.CategoryIDV2.Provider != "hpc" {
			return nil, fmt.Errorf("core was told %+v", i)
		}
		o := ident.Owner{User: i.Owner.Username, Project: i.Owner.ProjectID}
		c.totals[totalKey(o, i.CategoryIDV2.Name)] = i.Usage
	}
	if c.after != nil {
		if err := c.after(); err != nil {
			return nil, err
		}
	}
	return slices.Repeat([]bool{true}, len(items)), nil
}

// cluster is a Slurm with a clock of its own. slurmdbd hears of starts and ends a little later, or, while it is away,
// when it is back; slurmctld hears of the ends of jobs only while it is there.
type cluster struct {
	now       time.Time
	runs      []*simRun
	ctld, dbd bool
	failing   func() error // of commands
	asked     []time.Time  // begins of windows
}

type simRun struct {
	Run
	dueEnd       time.Time // when it ends
	ended        bool      // slurmctld has heard of the end
	begun, ready bool      // slurmdbd has heard of the start, and of the end
}

func newCluster() *cluster { return &cluster{now: dawn, ctld: true, dbd: true} }

// submit starts a run.
func (c *cluster) submit(id, account, partition string, billing int64, d time.Duration) *simRun {
	r := &simRun{
		Run:    Run{ID: id, Start: c.now, Account: account, Partition: partition, QoS: "normal", Billing: billing, Nodes: 1, CPU: billing},
		dueEnd: c.now.Add(d),
	}
	c.runs = append(c.runs, r)
	return r
}

// pass lets time pass and events arrive.
func (c *cluster) pass(d time.Duration) {
	c.now = c.now.Add(d)
	for _, r := range c.runs {
		if c.ctld && !r.ended && !r.dueEnd.After(c.now) {
			r.ended = true
		}
	}
}

// flush has slurmdbd hear of at most n things that have happened.
func (c *cluster) flush(n int) {
	for _, r := range c.runs {
		if !c.dbd || n <= 0 {
			return
		}
		if !r.begun {
			r.begun = true
			n--
		}
		if r.ended && !r.ready {
			r.ready = true
			n--
		}
	}
}

func (c *cluster) Live(context.Context) (map[string]time.Time, error) {
	if err := c.fail(); err != nil || !c.ctld {
		return nil, errors.Join(err, errors.New("slurmctld is away"))
	}
	live := map[string]time.Time{}
	for _, r := range c.runs {
		if !r.ended {
			live[r.ID] = r.Start
		}
	}
	return live, nil
}

func (c *cluster) fail() error {
	if c.failing == nil {
		return nil
	}
	return c.failing()
}

// row is what sacct prints about a run.
func (c *cluster) row(r *simRun) Run {
	out := r.Run
	if r.ready {
		out.End = r.dueEnd
		out.Seconds = int64(r.dueEnd.Sub(r.Start) / time.Second)
	} else {
		out.Seconds = int64(c.now.Sub(r.Start) / time.Second)
	}
	return out
}

func (c *cluster) list(match func(Run) bool) ([]Run, error) {
	if err := c.fail(); err != nil || !c.dbd {
		return nil, errors.Join(err, errors.New("slurmdbd is away"))
	}
	var out []Run
	for _, r := range c.runs {
		if row := c.row(r); r.begun && match(row) {
			out = append(out, row)
		}
	}
	return out, nil
}

func (c *cluster) Runs(_ context.Context, since time.Time, accounts []string) ([]Run, error) {
	if accounts == nil {
		c.asked = append(c.asked, since)
	}
	return c.list(func(r Run) bool {
		return (accounts == nil || slices.Contains(accounts, r.Account)) && (r.End.IsZero() || !r.End.Before(since))
	})
}

func (c *cluster) RunsOf(_ context.Context, ids []string) ([]Run, error) {
	return c.list(func(r Run) bool { return slices.Contains(ids, r.ID) })
}

// world is a service, what it asks and what it tells.
type world struct {
	*Service
	t     *testing.T
	db    *store.Store
	slurm *cluster
	core  *core
	set   Settings
}

func testSettings() Settings {
	return Settings{Enabled: true, Categories: []Category{
		{Name: "cpu", Partition: "normal", Period: 1, Unit: UnitCPU},
		{Name: "cpu-high", Partition: "normal", QoS: "high", Period: 60, Unit: UnitCPU},
		{Name: "gpu", Partition: "gpu", Period: 60, Unit: UnitGPU},
		{Name: "free", Partition: "free", Period: 1, Unit: UnitCPU, FreeToUse: true},
	}}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, db: storetest.SQLite(t), slurm: newCluster(), core: &core{totals: map[string]int64{}}, set: testSettings()}
	w.restart()
	return w
}

// restart makes a service as a new process would.
func (w *world) restart() {
	w.t.Helper()
	s, err := New(Options{
		Provider: "hpc", Store: w.db, Core: w.core, Source: w.slurm, Settings: w.set, Now: func() time.Time { return w.slurm.now },
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Service = s
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.db.Update(context.Background(), f); err != nil {
		w.t.Fatal(err)
	}
}

// account gives a workspace an account that is managed.
func (w *world) account(owner ident.Owner, category, name string) {
	w.t.Helper()
	w.update(func(tx *store.Tx) error {
		return errors.Join(tx.PutSlurmAccount(store.SlurmAccount{Owner: owner, Category: category, Account: name, CreatedAt: w.slurm.now}),
			tx.SetSlurmManaged(name, false, w.slurm.now))
	})
}

func (w *world) round() {
	w.t.Helper()
	if err := w.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// settle ends everything that happens, and counts it.
func (w *world) settle() {
	w.t.Helper()
	w.slurm.ctld, w.slurm.dbd, w.slurm.failing = true, true, nil
	w.core.before, w.core.after = nil, nil
	w.slurm.pass(24 * time.Hour)
	w.slurm.flush(len(w.slurm.runs) * 2)
	w.step = func(string) error { return nil }
	w.round()
}

// used is a line of the ledger in units times seconds.
func (w *world) used(owner ident.Owner, category string) int64 {
	w.t.Helper()
	var u store.ComputeUsage
	err := w.db.View(w.t.Context(), func(tx *store.Tx) (err error) {
		u, err = tx.ComputeUsage(owner, category)
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return u.Minutes*60 + u.Rest
}

func (w *world) told(owner ident.Owner, category string) int64 {
	return w.core.totals[totalKey(owner, category)]
}

// expect compares the ledger and what Core was told.
func (w *world) expect(owner ident.Owner, category string, unitSeconds, units int64) {
	w.t.Helper()
	if got := w.used(owner, category); got != unitSeconds {
		w.t.Errorf("%s in %s: the ledger has %d, not %d", owner.Reference(), category, got, unitSeconds)
	}
	if got := w.told(owner, category); got != units {
		w.t.Errorf("%s in %s: Core was told %d, not %d", owner.Reference(), category, got, units)
	}
}

// sacct is the sum over all rows of sacct, in billing seconds.
func (w *world) sacct(match func(Run) bool) (sum int64) {
	w.t.Helper()
	rows, err := w.slurm.Runs(w.t.Context(), time.Unix(0, 0), []string{"a_cpu", "p_all", "p_gpu"})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rows {
		if match(r) {
			sum += r.Billing * r.Seconds
		}
	}
	return sum
}

// traffic has jobs come for a while.
func traffic(rnd *rand.Rand, c *cluster, n int) {
	for range n {
		id := strconv.Itoa(1000 + len(c.runs))
		account := []string{"a_cpu", "p_all", "p_all", "others"}[rnd.IntN(4)]
		partition := []string{"normal", "gpu"}[rnd.IntN(2)]
		if account == "a_cpu" {
			partition = "normal"
		}
		r := c.submit(id, account, partition, 1+rnd.Int64N(64), time.Duration(rnd.IntN(5*3600))*time.Second)
		if rnd.IntN(4) == 0 {
			r.QoS = "high"
		}
	}
}

// requeue ends a run and begins the next one of the same job.
func (c *cluster) requeue(r *simRun) {
	if r.ended || !c.ctld || !c.now.After(r.Start) {
		return
	}
	r.dueEnd, r.ended = c.now, true
	again := *r
	again.Start, again.dueEnd, again.ended, again.begun, again.ready = c.now.Add(time.Second), c.now.Add(time.Hour), false, false, false
	c.runs = append(c.runs, &again)
}
