package jobs

import (
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestLifeOfAJob(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db)
		var changes []providerapi.JobState
		w.OnChange(func(c Change) { changes = append(changes, c.State) })
		id := w.submit("11")
		if h := w.core.history("11"); h != "[]" {
			t.Errorf("told before Core was asked whose it is: %s", h)
		}
		w.tellCore()
		submitted := `"Submitted to Slurm as job ` + id + `" "folder /7/ucloud-jobs/11"`
		w.expect("11", "["+submitted+"]")
		w.look()
		w.slurm.run(id, "c1", "c2")
		w.look()
		w.look()
		w.tellCore()
		w.expect("11", "["+submitted+` "RUNNING: Started on c1, c2"]`)
		if r := w.row("11", adaID); strings.Join(r.Nodes, " ") != "c1 c2" || r.State != providerapi.JobRunning {
			t.Errorf("%+v", r)
		}
		w.restart()
		w.pass(time.Hour)
		w.slurm.finish(id, providerapi.JobSuccess, "COMPLETED", "The job has finished")
		w.look()
		w.restart()
		w.look()
		w.tellCore()
		w.restart()
		w.tellCore()
		w.expect("11", "["+submitted+` "RUNNING: Started on c1, c2" "SUCCESS: The job has finished"]`)
		if len(changes) < 2 || changes[len(changes)-1] != providerapi.JobRunning {
			t.Errorf("listeners heard %v", changes)
		}
		if r := w.row("11", adaID); r.CoreKnown != 2 || r.Open() {
			t.Errorf("%+v", r)
		}
	})
}

func TestStates(t *testing.T) {
	t.Parallel()
	for word, tc := range map[string]struct {
		state providerapi.JobState
		text  string
	}{
		"FAILED":        {providerapi.JobFailure, "exit code 3"},
		"OUT_OF_MEMORY": {providerapi.JobFailure, "no memory"},
		"TIMEOUT":       {providerapi.JobExpired, "all of its time"},
		"CANCELLED":     {providerapi.JobSuccess, "The job was cancelled"},
		"NODE_FAIL":     {providerapi.JobFailure, "a node"},
	} {
		w := sqlite(t)
		id := w.submit("11")
		w.slurm.run(id, "c1")
		w.look()
		w.slurm.finish(id, tc.state, word, tc.text)
		w.look()
		w.tellCore()
		if got := w.core.state("11"); got != tc.state || !strings.Contains(w.core.history("11"), tc.text) {
			t.Errorf("%s became %s: %s", word, got, w.core.history("11"))
		}
	}
}

// A job that is put back into the queue waits again, and runs again.
func TestRequeue(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.job(id, func(o *Observation) {
		o.State, o.Word, o.Message, o.Nodes, o.Started = providerapi.JobInQueue, "PENDING", "The job waits in the queue", nil, time.Time{}
	})
	w.look()
	if n := w.row("11", adaID).Nodes; len(n) != 0 {
		t.Errorf("a job that waits has nodes %v", n)
	}
	w.slurm.run(id, "c3")
	w.look()
	w.tellCore()
	if h := w.core.history("11"); !strings.Contains(h, `"RUNNING: Started on c1" "IN_QUEUE: The job waits in the queue" "RUNNING: Started on c3"`) {
		t.Error(h)
	}
}

// While squeue is silent nothing ends, also if accounting calls it ended: it may have been put back into the queue.
func TestControllerAway(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.set(func(f *fakeSlurm) { f.queueErr = errTest })
	w.slurm.finish(id, providerapi.JobFailure, "NODE_FAIL", "a node")
	for range 50 {
		w.pass(time.Hour)
		if err := w.m.round(t.Context()); err == nil {
			t.Fatal("a failed round is called good")
		}
	}
	if r := w.row("11", adaID); r.State != providerapi.JobRunning || !r.MissingSince.IsZero() {
		t.Errorf("%+v", r)
	}
	w.slurm.run(id, "c2")
	w.slurm.set(func(f *fakeSlurm) { f.queueErr = nil })
	w.look()
	if r := w.row("11", adaID); r.State != providerapi.JobRunning {
		t.Errorf("%+v", r)
	}
}

// While sacct is silent, what squeue says counts, and what it does not say does not.
func TestAccountingAway(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id, other := w.submit("11"), w.submit("12")
	w.slurm.set(func(f *fakeSlurm) { f.histErr, f.lookErr = errTest, errTest; f.forgotten[other] = true })
	w.slurm.run(id, "c1")
	for range 50 {
		w.pass(time.Hour)
		_ = w.m.round(t.Context())
	}
	if r := w.row("11", adaID); r.State != providerapi.JobRunning {
		t.Errorf("%+v", r)
	}
	if r := w.row("12", adaID); r.State != providerapi.JobInQueue || r.MissingRounds != 0 {
		t.Errorf("%+v", r)
	}
}

// What has ended long before the server is back is found in accounting.
func TestEndedWhileTheServerWasAway(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.finish(id, providerapi.JobExpired, "TIMEOUT", "all of its time")
	w.pass(24 * time.Hour)
	w.restart()
	w.look()
	w.tellCore()
	if w.core.state("11") != providerapi.JobExpired {
		t.Error(w.core.history("11"))
	}
}

// A job that Slurm has forgotten is asked for by its id, and called ended only after minutes.
func TestForgottenJob(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.set(func(f *fakeSlurm) { f.forgotten[id], f.purged[id] = true, true })
	began := w.clock()
	for w.clock().Sub(began) < givenUp {
		w.pass(time.Minute)
		w.look()
		if w.row("11", adaID).State.Final() && w.clock().Sub(began) < givenUp {
			t.Fatalf("called ended after %s", w.clock().Sub(began))
		}
	}
	w.pass(2 * time.Minute)
	w.look()
	if r := w.row("11", adaID); r.State != providerapi.JobSuccess || w.slurm.lookups == 0 {
		t.Errorf("%+v", r)
	}

	// One that is back meanwhile has not ended.
	again := w.submit("12")
	w.slurm.run(again, "c1")
	w.look()
	w.slurm.set(func(f *fakeSlurm) { f.forgotten[again], f.purged[again] = true, true })
	for range 5 {
		w.pass(time.Minute)
		w.look()
	}
	w.slurm.set(func(f *fakeSlurm) { f.forgotten[again], f.purged[again] = false, false })
	w.look()
	if r := w.row("12", adaID); r.State != providerapi.JobRunning || !r.MissingSince.IsZero() || r.MissingRounds != 0 {
		t.Errorf("%+v", r)
	}
}

// A job in a partition that is not looked at any more is in neither listing, and goes on all the same.
func TestMovedJob(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.set(func(f *fakeSlurm) { f.moved = map[string]bool{id: true} })
	for range 40 {
		w.pass(time.Minute)
		w.look()
	}
	if r := w.row("11", adaID); r.State != providerapi.JobRunning {
		t.Fatalf("called ended: %+v", r)
	}
	w.slurm.finish(id, providerapi.JobFailure, "FAILED", "The job has failed")
	for range 10 {
		w.pass(time.Minute)
		w.look()
	}
	if r := w.row("11", adaID); r.State != providerapi.JobFailure {
		t.Errorf("%+v", r)
	}
}

// When most jobs vanish at once, it is Slurm that has a problem.
func TestMassDisappearance(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	for _, id := range strings.Fields("11 12 13 14 15 16 17 18 19 20 21 22") {
		slurmID := w.submit(id)
		w.slurm.run(slurmID, "c1")
		w.slurm.set(func(f *fakeSlurm) { f.forgotten[slurmID], f.purged[slurmID] = true, true })
	}
	w.pass(settling)
	for range 30 {
		w.pass(time.Minute)
		w.look()
	}
	if r := w.row("11", adaID); r.State.Final() {
		t.Errorf("%+v", r)
	}
	for range 60 {
		w.pass(time.Minute)
		w.look()
	}
	if r := w.row("11", adaID); !r.State.Final() {
		t.Errorf("%+v", r)
	}
}

// Why a job waits is told when there is something new, and not after each round or start.
func TestHints(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.tellCore()
	planned := day.Add(3 * time.Hour)
	w.slurm.job(id, func(o *Observation) { o.Reason, o.Planned = "others come first", planned })
	count := func() int {
		w.flush()
		return strings.Count(w.core.history("11"), "Waiting: ")
	}
	w.look()
	if n := count(); n != 0 {
		t.Errorf("told at once: %s", w.core.history("11"))
	}
	for range 20 {
		w.pass(time.Minute)
		w.look()
	}
	if n := count(); n != 1 || !strings.Contains(w.core.history("11"), "Waiting: others come first. Slurm expects to start it around 15:00 UTC on 1 March") {
		t.Errorf("%d times: %s", n, w.core.history("11"))
	}
	w.restart()
	for range 20 {
		w.pass(time.Minute)
		w.look()
	}
	if n := count(); n != 1 {
		t.Errorf("after a restart: %s", w.core.history("11"))
	}
	w.slurm.job(id, func(o *Observation) { o.Planned = planned.Add(2 * time.Hour) })
	w.look()
	w.slurm.job(id, func(o *Observation) { o.Reason = "nodes are missing" })
	w.look()
	if n := count(); n > 2 {
		t.Errorf("too often: %s", w.core.history("11"))
	}
	w.pass(nextHint)
	w.look()
	if n := count(); n < 2 || n > 3 {
		t.Errorf("%d times: %s", n, w.core.history("11"))
	}
}

// An operator has changed the time limit in Slurm.
func TestLimitChangedInSlurm(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.look()
	w.slurm.job(id, func(o *Observation) { o.Limit = 90*time.Minute + time.Second })
	w.look()
	w.look()
	w.tellCore()
	if h := w.core.history("11"); strings.Count(h, "time ") != 1 || !strings.Contains(h, "time 5460000") {
		t.Error(h)
	}
}

func TestArrays(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	task := func(task string, state providerapi.JobState, node string) {
		w.slurm.set(func(f *fakeSlurm) {
			o := *f.jobs[0]
			o.Task, o.State, o.Word, o.Message = task, state, string(state), "task"
			if node != "" {
				o.Nodes, o.Started = []string{node}, w.clock()
			}
			if state.Final() {
				o.Ended = w.clock()
			}
			for _, old := range f.jobs[1:] {
				if old.Task == task {
					*old = o
					return
				}
			}
			f.jobs = append(f.jobs, &o)
		})
	}
	w.slurm.set(func(f *fakeSlurm) { f.jobs[0].Task = "1-3" })
	w.look()
	task("1", providerapi.JobRunning, "c1")
	w.look()
	if r := w.row("11", adaID); r.State != providerapi.JobRunning || len(r.Nodes) != 1 {
		t.Errorf("%+v", r)
	}
	task("1", providerapi.JobFailure, "c1")
	w.look()
	if r := w.row("11", adaID); r.State.Final() {
		t.Errorf("ended with its first task: %+v", r)
	}
	w.slurm.set(func(f *fakeSlurm) { f.jobs[0].ID = "1" }) // the tasks that wait together are no more
	task("2", providerapi.JobSuccess, "c1")
	task("3", providerapi.JobRunning, "c2")
	w.slurm.set(func(f *fakeSlurm) {
		for _, o := range f.jobs[1:] {
			o.ID = id
		}
	})
	w.pass(time.Hour) // squeue forgets the first two
	w.look()
	task("3", providerapi.JobSuccess, "c2")
	w.slurm.set(func(f *fakeSlurm) { f.jobs[len(f.jobs)-1].ID = id })
	w.look()
	w.tellCore()
	if w.core.state("11") != providerapi.JobFailure || !strings.Contains(w.core.history("11"), "1 of 3 tasks: task") {
		t.Errorf("%s", w.core.history("11"))
	}
}

func TestHeterogeneousJob(t *testing.T) {
	t.Parallel()
	v := together([]Observation{
		{ID: "7", Het: 1, State: providerapi.JobRunning, Nodes: []string{"b"}, Word: "RUNNING"},
		{ID: "7", State: providerapi.JobRunning, Nodes: []string{"a"}, Word: "RUNNING"},
	}, nil)["7"]
	if o, ok := v.whole(); !ok || strings.Join(o.Nodes, "") != "ab" || o.Het != 0 {
		t.Errorf("%+v %v", o, ok)
	}
	v = together([]Observation{{ID: "7", Het: 1, State: providerapi.JobRunning}, {ID: "7", Het: 2, State: providerapi.JobSuccess}}, nil)["7"]
	if o, ok := v.whole(); ok {
		t.Errorf("without its leader: %+v", o)
	}
}

// A state that is not in the table changes nothing, and does not make the job missing.
func TestUnknownState(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.run(id, "c1")
	w.look()
	w.slurm.job(id, func(o *Observation) { o.State, o.Word = "", "NEW_STATE" })
	for range 20 {
		w.pass(time.Minute)
		w.look()
	}
	if r := w.row("11", adaID); r.State != providerapi.JobRunning || r.MissingRounds != 0 {
		t.Errorf("%+v", r)
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	w.slurm.finish(id, providerapi.JobSuccess, "COMPLETED", "done")
	w.look()
	w.tellCore()
	w.pass(w.set.Keep - time.Hour)
	w.look()
	if w.row("11", adaID).ID == "" {
		t.Error("forgotten early")
	}
	w.pass(3 * time.Hour)
	w.look()
	if r := w.row("11", adaID); r.ID != "" {
		t.Errorf("kept for ever: %+v", r)
	}
}

// An end is told with its details: accounting has them a moment later. It is not waited for long.
func TestDetailsOfTheEnd(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id, other := w.submit("11"), w.submit("12")
	for _, i := range []string{id, other} {
		w.slurm.finish(i, providerapi.JobFailure, "FAILED", "The job has failed")
		w.slurm.job(i, func(o *Observation) { o.Vague = true })
	}
	w.look()
	if w.row("11", adaID).State.Final() {
		t.Error("told without details at once")
	}
	w.slurm.job(id, func(o *Observation) { o.Vague, o.Message = false, "exit code 3" })
	w.pass(detailsAfter)
	w.look()
	w.tellCore()
	if a, b := w.core.history("11"), w.core.history("12"); !strings.Contains(a, "exit code 3") || !strings.Contains(b, "FAILURE: The job has failed") {
		t.Errorf("%s %s", a, b)
	}
}
