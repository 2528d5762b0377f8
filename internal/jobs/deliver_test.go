package jobs

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// One job that Core does not know does not keep the others from being told about, in the same pass.
func TestBatchIsolation(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	for i := range 130 {
		w.submit("j" + strconv.Itoa(i))
	}
	if err := w.confirmSome(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 { // Core is asked for some at a time
		if err := w.confirmSome(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.core.set(func(c *fakeCore) { delete(c.jobs, "j7"); delete(c.jobs, "j99") })
	w.flush()
	for i := range 130 {
		id := "j" + strconv.Itoa(i)
		if h := w.core.history(id); i != 7 && i != 99 && strings.Count(h, "Submitted") != 1 {
			t.Errorf("%s: %s", id, h)
		}
	}
}

// What Core dislikes is dropped; the rest is told.
func TestPoison(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.submit("11")
	id := w.submit("12")
	if err := w.confirmSome(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.core.set(func(c *fakeCore) { c.dislike = "Submitted to Slurm as job " + id })
	w.flush()
	w.flush()
	if h := w.core.history("12"); !strings.Contains(h, "folder") || strings.Contains(h, "Submitted") {
		t.Error(h)
	}
	if h := w.core.history("11"); !strings.Contains(h, "folder") {
		t.Error(h)
	}
}

// Core is away, or takes an update and dies before it answers: nothing is lost, no state is told twice.
func TestCoreAway(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.tellCore()
	w.core.set(func(c *fakeCore) { c.err = &coreapi.StatusError{Status: 503} })
	w.slurm.run(id, "c1")
	w.look()
	if _, err := w.deliverSome(t.Context()); err == nil {
		t.Error("no error")
	}
	w.restart()
	w.core.set(func(c *fakeCore) { c.err, c.cut = nil, true })
	if _, err := w.deliverSome(t.Context()); err == nil {
		t.Error("no error")
	}
	w.restart()
	w.flush()
	w.slurm.finish(id, providerapi.JobSuccess, "COMPLETED", "done")
	w.look()
	w.core.set(func(c *fakeCore) { c.cut = true })
	_, _ = w.deliverSome(t.Context())
	w.restart()
	w.flush()
	w.expect("11", `["Submitted to Slurm as job `+id+`" "folder /7/ucloud-jobs/11" "RUNNING: Started on c1" "SUCCESS: done"]`)
}

// Core gave up before it had our answer, and has deleted its record: the job is cancelled, but not because of one answer.
func TestLostAtCore(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.core.set(func(c *fakeCore) { delete(c.jobs, "11") })
	w.tellCore()
	for range 4 {
		w.pass(time.Minute)
		w.tellCore()
		if len(w.slurm.cancelled) > 0 {
			t.Fatalf("cancelled after %s", w.clock().Sub(day))
		}
	}
	w.slurm.set(func(f *fakeSlurm) { f.cancelErr = errTest })
	w.pass(2 * time.Minute)
	w.tellCore()
	if r := w.row("11", adaID); r.Submission != store.JobSubmitted {
		t.Errorf("forgotten while it runs: %+v", r)
	}
	w.slurm.set(func(f *fakeSlurm) { f.cancelErr = nil })
	w.restart()
	w.pass(2 * time.Minute)
	w.tellCore()
	if r := w.row("11", adaID); r.Submission != store.JobLost || strings.Join(w.slurm.cancelled, " ") != id {
		t.Errorf("%+v, cancelled %v", r, w.slurm.cancelled)
	}
}

// Jobs that Core cannot answer about do not hold up the others.
func TestPoisonAtCore(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	for _, id := range []string{"11", "12", "13", "14", "15"} {
		w.submit(id)
	}
	w.core.set(func(c *fakeCore) { c.poison = map[string]bool{"11": true, "12": true, "13": true, "14": true} })
	for range 2 {
		w.pass(5 * time.Second)
		if err := w.confirmSome(t.Context()); err == nil {
			t.Error("no error")
		}
	}
	if r := w.row("15", adaID); r.CoreKnown == 0 {
		t.Errorf("not confirmed: %+v", r)
	}
	w.core.set(func(c *fakeCore) { c.poison = nil })
	w.pass(confirmFailed)
	w.tellCore()
	if r := w.row("11", adaID); r.CoreKnown == 0 || r.CoreMisses != 0 {
		t.Errorf("not confirmed: %+v", r)
	}
}

// An update that Core fails of does not keep those of other jobs from being told, and is told later.
func TestPoisonUpdate(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	first, second := w.submit("11"), w.submit("12")
	w.pass(confirmFirst)
	if err := w.confirmSome(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.core.set(func(c *fakeCore) { c.poison = map[string]bool{"11": true} })
	w.flush()
	w.expect("11", `[]`)
	w.expect("12", `["Submitted to Slurm as job `+second+`" "folder /7/ucloud-jobs/12"]`)
	w.core.set(func(c *fakeCore) { c.poison = nil })
	w.pass(putOff)
	w.tellCore()
	w.expect("11", `["Submitted to Slurm as job `+first+`" "folder /7/ucloud-jobs/11"]`)

	// If Core fails of everything, it is asked less, not for each job.
	w.slurm.run(first, "c1")
	w.slurm.run(second, "c1")
	for _, id := range []string{"13", "14", "15", "16", "17"} {
		w.submit(id)
	}
	w.pass(confirmFirst)
	w.look()
	if err := w.confirmSome(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.core.set(func(c *fakeCore) {
		c.err, c.calls = &coreapi.StatusError{Status: 500, Why: "Internal error"}, 0
	})
	if _, err := w.deliverSome(t.Context()); err == nil || w.core.calls != 1+deliverFailures {
		t.Errorf("%v after %d calls", err, w.core.calls)
	}
}

// Core does not answer, or has the job again: nothing is cancelled.
func TestNotLostAtCore(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.submit("11")
	w.core.set(func(c *fakeCore) { c.err = errTest })
	for range 20 {
		w.pass(time.Minute)
		if err := w.confirmSome(t.Context()); err == nil {
			t.Fatal("no error")
		}
	}
	w.core.set(func(c *fakeCore) { c.err = nil; delete(c.jobs, "11") })
	for range 2 {
		w.pass(time.Minute)
		w.tellCore()
	}
	w.core.create("11", ada, ident.Owner{User: ada})
	w.pass(time.Minute)
	w.tellCore()
	w.core.set(func(c *fakeCore) { delete(c.jobs, "11") })
	w.pass(time.Minute)
	w.tellCore()
	if r := w.row("11", adaID); r.Submission != store.JobSubmitted || len(w.slurm.cancelled) > 0 {
		t.Errorf("%+v, cancelled %v", r, w.slurm.cancelled)
	}
}

// A job that Core gave up after it had answered once is found out too.
func TestGivenUpLater(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.tellCore()
	w.core.set(func(c *fakeCore) { delete(c.jobs, "11") })
	for range 8 {
		w.pass(time.Minute)
		w.tellCore()
	}
	if strings.Join(w.slurm.cancelled, " ") != id {
		t.Errorf("cancelled %v, row %+v", w.slurm.cancelled, w.row("11", adaID))
	}
}

// Jobs that were submitted by hand are registered once, also if the answer of Core is lost, and followed to the end.
func TestOutsideJobs(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	hand := w.slurm.sbatch(adaName, "u_Ada", "my own comment")
	w.slurm.job(hand, func(o *Observation) { o.Name, o.CPUs, o.NodeCount = "a|b\n", 6, 1 })
	w.slurm.sbatch(eveN, "u_Ada", "")    // not connected
	w.slurm.sbatch(bobName, "u_Ada", "") // another's account
	w.slurm.sbatch(adaName, "root", "")  // nobody's account
	other := w.slurm.sbatch(adaName, "u_Ada", "")
	w.slurm.job(other, func(o *Observation) { o.Partition = "debug" })
	done := w.slurm.sbatch(adaName, "u_Ada", "")
	w.slurm.finish(done, providerapi.JobSuccess, "COMPLETED", "done")
	w.core.set(func(c *fakeCore) { c.cut = true })
	w.look() // Slurm has answered, whatever Core does
	w.look()
	if w.core.registered != 1 || w.row("9001", adaID).ID != "" {
		t.Error("Core is asked again at once")
	}
	w.restart()
	w.look()
	w.look()
	w.restart()
	w.look()
	if w.core.registered != 1 {
		t.Fatalf("%d were registered", w.core.registered)
	}
	r := w.row("9001", adaID)
	if !r.Outside || r.EngineID != hand || r.Product != "cpu-8" || r.Name != "a|b  (SlurmID: "+hand+")" || r.Folder != "" {
		t.Errorf("%+v", r)
	}
	w.slurm.run(hand, "c1")
	w.look()
	w.slurm.finish(hand, providerapi.JobFailure, "FAILED", "exit code 1")
	w.look()
	w.tellCore()
	w.expect("9001", `["RUNNING: Started on c1" "FAILURE: exit code 1"]`)
	w.set.RegisterOutside = false
	w.slurm.sbatch(adaName, "u_Ada", "")
	w.look()
	if w.core.registered != 1 {
		t.Error("registered against the configuration")
	}
}

// A job that was submitted by hand is shown on the machine that is what it has, if there is one, else on the smallest that
// has enough (contract 22 section 6.4).
func TestMachineOfOutsideJob(t *testing.T) {
	t.Parallel()
	var machines []Machine
	for _, m := range []ipcapi.JobMachine{
		{Name: "gpu", CPU: 4, MemoryGB: 16, GPU: 1}, {Name: "fat", CPU: 4, MemoryGB: 64}, {Name: "thin", CPU: 4, MemoryGB: 16}, {Name: "small", CPU: 1, MemoryGB: 4},
	} {
		machines = append(machines, Machine{JobMachine: m})
	}
	for _, c := range []struct {
		cpus, gpus, nodes int
		memoryMB          int64
		want              string
	}{
		{4, 0, 1, 16 << 10, "thin"},
		{4, 0, 1, 64 << 10, "fat"},
		{8, 0, 2, 32 << 10, "thin"},
		{2, 0, 1, 1 << 10, "thin"},
		{1, 0, 1, 0, "small"},
		{1, 0, 1, 5 << 10, "thin"},
		{1, 1, 1, 1 << 10, "gpu"},
		{4, 0, 1, 17 << 10, "fat"},
	} {
		o := Observation{CPUs: c.cpus, GPUs: c.gpus, MemoryMB: c.memoryMB}
		if got := smallest(machines, &o, c.nodes); got.Name != c.want {
			t.Errorf("%+v: %s", c, got.Name)
		}
	}
}

// The mark of a job that is being submitted keeps it from being registered as one from outside.
func TestAdoptionInsteadOfRegistration(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	g, err := w.own("11")
	if err != nil {
		t.Fatal(err)
	}
	id := w.slurm.sbatch(adaName, g.Account, g.Comment)
	w.look()
	w.look()
	if r := w.row("11", adaID); w.core.registered != 0 || r.EngineID != id || r.Submission != store.JobSubmitted {
		t.Errorf("%d registered, %+v", w.core.registered, r)
	}
	// The instance comes back with what it knows.
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "11", Attempt: g.Attempt, EngineID: id, Folder: "/f", OutputFolder: "/7/f"}); err != nil {
		t.Error(err)
	}
	w.pass(3 * time.Second)
	w.tellCore()
	w.expect("11", `["Submitted to Slurm as job `+id+`" "folder /7/f"]`)
}

func TestExtend(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	extend := func(add time.Duration) error {
		return w.Extend(t.Context(), ada, adaID, ipcapi.JobExtension{ID: "11", AddMs: add.Milliseconds()})
	}
	if err := extend(time.Hour); !failure.Is(err, failure.Conflict) {
		t.Errorf("before Slurm has said whose it is: %v", err)
	}
	w.look()
	for _, bad := range []time.Duration{0, -time.Hour, 10 * time.Hour, 100 * 365 * 24 * time.Hour} {
		if err := extend(bad); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := extend(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
	w.look()
	w.tellCore()
	if h := w.core.history("11"); strings.Count(h, "time ") != 1 || !strings.Contains(h, "time 10800000") {
		t.Error(h)
	}
	// The server dies between Slurm and Core.
	w.slurm.job(id, func(o *Observation) { o.Limit = 4 * time.Hour })
	w.restart()
	w.look()
	w.tellCore()
	if h := w.core.history("11"); !strings.Contains(h, "time 14400000") {
		t.Error(h)
	}
	w.set.TimeExtension = false
	if err := extend(time.Hour); !failure.Is(err, failure.Invalid) {
		t.Errorf("not offered: %v", err)
	}
}

// A user has ended a job, and the instance died before it came to scancel.
func TestEndingIsCarriedOut(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	if err := w.End(t.Context(), ada, adaID, "11"); err != nil {
		t.Fatal(err)
	}
	if len(w.slurm.cancelled) > 0 {
		t.Error("the instance does that for its user")
	}
	w.restart()
	w.look()
	if strings.Join(w.slurm.cancelled, " ") != id {
		t.Errorf("cancelled %v", w.slurm.cancelled)
	}
}

// One that takes its time to end is not cancelled in every round, but again after a while.
func TestEndingTakesTime(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	if err := w.End(t.Context(), ada, adaID, "11"); err != nil {
		t.Fatal(err)
	}
	w.slurm.set(func(f *fakeSlurm) { f.deaf = true })
	for range 5 {
		w.pass(5 * time.Second)
		w.look()
	}
	if w.slurm.cancels != 1 {
		t.Errorf("cancelled %d times", w.slurm.cancels)
	}
	w.pass(endAgain)
	w.look()
	if w.slurm.cancels != 2 {
		t.Errorf("cancelled %d times", w.slurm.cancels)
	}
}

// A scancel that hangs does not hold up the end of the server.
func TestEndingHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.slurm.run(w.submit("11"), "c1")
	if err := w.End(t.Context(), ada, adaID, "11"); err != nil {
		t.Fatal(err)
	}
	w.slurm.set(func(f *fakeSlurm) { f.hangs = true })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	_ = w.m.round(ctx)
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestOperators(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.tellCore()
	w.look()
	j := w.row("11", adaID)
	if status, err := w.Cancel(t.Context(), &j, "maintenance", true); status != ipcapi.ResultOK || err != nil || len(w.slurm.cancelled) > 0 {
		t.Errorf("a dry run: %s %v %v", status, err, w.slurm.cancelled)
	}
	if status, err := w.Cancel(t.Context(), &j, "maintenance\n", false); status != ipcapi.ResultOK || err != nil {
		t.Errorf("%s %v", status, err)
	}
	w.look()
	w.tellCore()
	if h := w.core.history("11"); !strings.Contains(h, "An operator of the provider has cancelled this job: maintenance") || w.core.state("11") != providerapi.JobSuccess {
		t.Error(h)
	}
	j = w.row("11", adaID)
	if status, err := w.Cancel(t.Context(), &j, "", false); status != ipcapi.ResultSkipped || err != nil {
		t.Errorf("what has ended: %s %v", status, err)
	}
	_ = id

	// Core was restored from a backup, and believes that the job runs.
	w.core.set(func(c *fakeCore) { c.jobs["11"].state = providerapi.JobRunning })
	if status, err := w.Resync(t.Context(), &j, false); status != ipcapi.ResultOK || err != nil {
		t.Errorf("%s %v", status, err)
	}
	w.pass(time.Minute)
	w.tellCore()
	if w.core.state("11") != providerapi.JobSuccess {
		t.Error(w.core.history("11"))
	}
}

// The local engine: only the instance sees its jobs.
func TestLocalEngine(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.slurmless()
	g, err := w.own("11")
	if err != nil || g.Engine != ipcapi.EngineLocal {
		t.Fatalf("%+v %v", g, err)
	}
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "11", Attempt: 1, EngineID: "l-1", Folder: "/f"}); err != nil {
		t.Fatal(err)
	}
	w.pass(3 * time.Second)
	report := func(all bool, list ...ipcapi.LocalJob) []string {
		t.Helper()
		reply, err := w.Local(t.Context(), ada, adaID, ipcapi.JobLocalReport{All: all, Jobs: list})
		if err != nil {
			t.Fatal(err)
		}
		return reply.End
	}
	running := ipcapi.LocalJob{ID: "11", EngineID: "l-1", State: providerapi.JobRunning, Started: day}
	for range 2 {
		if end := report(true, running, ipcapi.LocalJob{ID: "99", EngineID: "l-9", State: providerapi.JobRunning}); strings.Join(end, "") != "99" {
			t.Errorf("to be ended: %v", end)
		}
	}
	if err := w.End(t.Context(), ada, adaID, "11"); err != nil {
		t.Fatal(err)
	}
	if end := report(false, running); strings.Join(end, "") != "11" {
		t.Errorf("to be ended: %v", end)
	}
	report(false, ipcapi.LocalJob{ID: "11", EngineID: "l-1", State: providerapi.JobFailure, Message: "exit code 2"})
	report(false, running)
	w.tellCore()
	w.expect("11", `["Started on the machine of the provider, without a batch system" "RUNNING: The job is running" "FAILURE: exit code 2"]`)

	// One whose traces are gone has failed; one that never came to be is lost.
	if _, err := w.own("12"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "12", Attempt: 1, EngineID: "l-2", Folder: "/f"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.own("13"); err != nil {
		t.Fatal(err)
	}
	report(true)
	if w.row("12", adaID).State.Final() || w.row("13", adaID).Submission != store.JobBegun {
		t.Error("too early")
	}
	w.pass(leave + settling + time.Second)
	report(true)
	if w.row("12", adaID).State != providerapi.JobFailure || w.row("13", adaID).Submission != store.JobLost {
		t.Errorf("%+v %+v", w.row("12", adaID), w.row("13", adaID))
	}
}

// slurmless makes the world one without Slurm.
func (w *world) slurmless() {
	w.t.Helper()
	s, err := New(Options{
		Provider: provider, Store: w.db, Core: w.core, Accounts: w.acc, Users: w.names, Now: w.clock, Settings: func() Settings { return w.set },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Service = s
}

// The service runs by itself, and ends when it is told to.
func TestRun(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.set.Poll = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	id := w.submit("11")
	w.slurm.run(id, "c1")
	changed, stop := w.watcher("11")
	defer stop()
	for deadline := time.After(time.Minute); w.row("11", adaID).State != providerapi.JobRunning; {
		select {
		case <-changed:
		case <-time.After(time.Second): // the change may have been before the watcher was there
		case <-deadline:
			t.Fatal("the monitor does not look")
		}
	}
	cancel()
	<-done
	if h := w.Health(); h.Rounds == 0 || h.LastGood.IsZero() || h.Err != nil {
		t.Errorf("%+v", h)
	}
}
