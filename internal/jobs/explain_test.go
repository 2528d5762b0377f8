package jobs

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// TestExplain: for each thing that can be the matter with a job, operators are told that it is.
func TestExplain(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.set.RegisterOutside = false
	explain := func(q ipcapi.JobQuestion) (ipcapi.JobExplanation, error) { return w.Explain(t.Context(), q) }
	check := func(what, id string, jobs int, slurm string, notes ...string) {
		t.Helper()
		x, err := explain(ipcapi.JobQuestion{ID: id})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		state := ""
		if x.Slurm != nil {
			state = x.Slurm.State
		}
		if len(x.Jobs) != jobs || state != slurm {
			t.Errorf("%s: %d jobs, in Slurm %q", what, len(x.Jobs), state)
		}
		all := strings.Join(x.Notes, "\n")
		for _, n := range notes {
			if !strings.Contains(all, n) {
				t.Errorf("%s: no %q in\n%s", what, n, all)
			}
		}
	}

	waits := w.submit("11")
	w.slurm.job(waits, func(o *Observation) {
		o.Reason, o.Planned = "its account has used up its limit", day.Add(2*time.Hour)
	})
	check("waits", "11", 1, "PENDING", "has not confirmed job 11", "updates of job 11 wait", "lets it wait: its account has used up", "start it at 20")
	w.slurm.job(waits, func(o *Observation) { o.Reason = "" })
	w.slurm.finish(waits, providerapi.JobFailure, "FAILED", "The job has failed with exit code 3")
	w.look()
	check("failed", waits, 1, "FAILED", "FAILED is FAILURE at UCloud: The job has failed with exit code 3", "Job 11 has ended as FAILURE", "Nothing leads out")

	lost := w.submit("12")
	w.slurm.set(func(f *fakeSlurm) { f.forgotten[lost], f.purged[lost] = true, true })
	w.pass(2 * time.Minute)
	w.look()
	check("vanished", "12", 1, "", "Slurm has not spoken of job 12 since")

	if _, err := w.own("13"); err != nil {
		t.Fatal(err)
	}
	check("begun", "13", 1, "", "Job 13: leave to submit was given until")
	if err := w.Refused(t.Context(), ada, adaID, ipcapi.JobRefusal{Job: "13", Attempt: w.row("13", adaID).Attempt, Message: "too many nodes"}); err != nil {
		t.Fatal(err)
	}
	check("refused", "13", 1, "", "Job 13 was not submitted: too many nodes")

	stolen := w.submit("14")
	w.slurm.job(stolen, func(o *Observation) { o.User = bobName })
	check("somebody else's", "14", 1, "PENDING", "is claimed by account", "says that it is bob's")

	hand := func(change func(o *Observation)) string {
		id := w.slurm.sbatch(adaName, "u_Ada", "")
		w.slurm.job(id, change)
		return id
	}
	for what, tc := range map[string]struct {
		change func(o *Observation)
		note   string
	}{
		"not connected":    {func(o *Observation) { o.User = eveN }, "the account eve is not connected"},
		"other partition":  {func(o *Observation) { o.Partition = "debug" }, `no category of machines has the partition "debug"`},
		"nobody's account": {func(o *Observation) { o.Account = "root" }, `"root" is not that of a workspace`},
		"another's":        {func(o *Observation) { o.User = bobName }, "is that of " + string(ada)},
		"ended":            {func(o *Observation) { o.State = providerapi.JobSuccess; o.Word = "COMPLETED" }, "it has ended"},
		"not configured":   {func(*Observation) {}, `has no "externalJobs: register"`},
		"unknown state":    {func(o *Observation) { o.State = ""; o.Word = "WEIRD" }, "says WEIRD, which has no meaning here"},
		"odd mark":         {func(o *Observation) { o.Comment = "ucloud:" + provider + ":99" }, "bears the mark of job 99 of UCloud"},
	} {
		id := hand(tc.change)
		x, err := explain(ipcapi.JobQuestion{ID: id, Slurm: true})
		if err != nil || len(x.Jobs) != 0 || x.Slurm == nil || !strings.Contains(strings.Join(x.Notes, "\n"), tc.note) {
			t.Errorf("%s: %+v, %v", what, x, err)
		}
	}
	w.set.RegisterOutside = true
	id := hand(func(*Observation) {})
	check("outside", id, 0, "PENDING", "job of "+string(ada)+" in the workspace", "The next look at Slurm registers it")

	for _, q := range []ipcapi.JobQuestion{{ID: "4711"}, {ID: "11", Slurm: true}, {ID: "x y"}, {ID: ""}, {ID: waits + "_1"}} {
		if _, err := explain(q); !failure.Is(err, failure.NotFound) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	w.slurm.set(func(f *fakeSlurm) { f.lookErr = errors.New("slurmdbd is away") })
	check("without Slurm", "11", 1, "", "Slurm could not be asked")
}

// TestRegisterByHand: an operator registers one job whatever the configuration says, and only such a job as could be
// registered by itself; a dry run and a second time change nothing.
func TestRegisterByHand(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.set.RegisterOutside = false
	register := func(id string, dry bool) (string, error) { return w.RegisterByHand(t.Context(), id, dry) }
	id := w.slurm.sbatch(adaName, "u_Ada", "")
	w.look()
	if status, err := register(id, true); status != ipcapi.ResultOK || err != nil || w.core.registered != 0 {
		t.Errorf("dry run: %s %v, %d registered", status, err, w.core.registered)
	}
	for _, want := range []string{ipcapi.ResultOK, ipcapi.ResultSkipped} {
		if status, err := register(id, false); status != want || err != nil || w.core.registered != 1 {
			t.Errorf("%s %v, %d registered", status, err, w.core.registered)
		}
	}
	if r := w.row("9001", adaID); !r.Outside || r.EngineID != id || r.Owner != (ident.Owner{User: ada}) {
		t.Errorf("%+v", r)
	}
	w.slurm.run(id, "c1")
	w.look()
	if r := w.row("9001", adaID); r.State != providerapi.JobRunning || r.Submission != store.JobSubmitted {
		t.Errorf("it is not followed: %+v", r)
	}
	foreign := w.slurm.sbatch(bobName, "u_Ada", "")
	ended := w.slurm.sbatch(adaName, "u_Ada", "")
	w.slurm.finish(ended, providerapi.JobSuccess, "COMPLETED", "done")
	g, err := w.own("21")
	if err != nil {
		t.Fatal(err)
	}
	begun := w.slurm.sbatch(adaName, g.Account, g.Comment)
	for id, kind := range map[string]failure.Kind{
		foreign: failure.Invalid, ended: failure.Invalid, begun: failure.Conflict, "4711": failure.NotFound, "9001x": failure.NotFound,
	} {
		if _, err := register(id, false); !failure.Is(err, kind) || w.core.registered != 1 {
			t.Errorf("%s: %v, %d registered", id, err, w.core.registered)
		}
	}
}
