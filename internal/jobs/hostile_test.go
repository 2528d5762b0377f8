package jobs

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// To everybody but its user, and the members of its project once Core has confirmed it, a job does not exist.
func TestForeignJobsDoNotExist(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.submit("11")
	ours := w.submitFor("12", ident.Owner{Project: climate})
	none := func(user ident.UCloudUser, uid ident.UID, id string) {
		t.Helper()
		if r, err := w.Visible(t.Context(), user, uid, id); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s sees %+v %v", user, r, err)
		}
		if err := w.End(t.Context(), user, uid, id); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s ends it: %v", user, err)
		}
		if err := w.Extend(t.Context(), user, uid, ipcapi.JobExtension{ID: id, AddMs: 60000}); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s extends it: %v", user, err)
		}
		if _, err := w.Submitted(t.Context(), user, uid, ipcapi.JobSubmission{Job: id, Attempt: 1, EngineID: "1"}); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s reports it submitted: %v", user, err)
		}
		if err := w.Refused(t.Context(), user, uid, ipcapi.JobRefusal{Job: id, Attempt: 1}); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s reports it refused: %v", user, err)
		}
		_, err := w.Local(t.Context(), user, uid, ipcapi.JobLocalReport{Jobs: []ipcapi.LocalJob{{ID: id, EngineID: "1", State: providerapi.JobSuccess}}})
		if err != nil { // it is told to end what nobody knows
			t.Errorf("%s reports its state: %v", user, err)
		}
	}
	none(bob, bobID, "11")
	none(eve, eveID, "11")
	none(eve, eveID, "12")
	none(bob, bobID, "12") // Core has not been asked yet
	none(ada, adaID, "13") // there is none
	none(eve, adaID, "11") // the account is another user's now
	w.tellCore()
	w.look()
	none(eve, eveID, "12")
	r, err := w.Visible(t.Context(), bob, bobID, "12")
	if err != nil || r.Own || r.EngineID != ours || r.UID != adaID {
		t.Errorf("a member sees %+v %v", r, err)
	}
	if r, err := w.Visible(t.Context(), ada, adaID, "12"); err != nil || !r.Own {
		t.Errorf("its user sees %+v %v", r, err)
	}
	if w.row("11", adaID).Ending || w.row("12", adaID).Ending || w.row("12", adaID).State != providerapi.JobInQueue {
		t.Error("a stranger has changed something")
	}
}

// A member may end jobs of others only as an administrator of the project. They are ended here, by the service account.
func TestWhoMayEnd(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submitFor("12", ident.Owner{Project: climate})
	w.tellCore()
	w.look()
	w.core.create("13", bob, ident.Owner{Project: climate})
	g, err := w.Begin(t.Context(), bob, bobID, w.beginning("13", bob, ident.Owner{Project: climate}))
	if err != nil {
		t.Fatal(err)
	}
	bobs := w.slurm.sbatch(bobName, g.Account, g.Comment)
	if _, err := w.Submitted(t.Context(), bob, bobID, ipcapi.JobSubmission{Job: "13", Attempt: 1, EngineID: bobs, Folder: "/f"}); err != nil {
		t.Fatal(err)
	}
	w.pass(3 * time.Second)
	w.tellCore()
	if err := w.End(t.Context(), ada, adaID, "13"); !failure.Is(err, failure.Forbidden) {
		t.Errorf("an ordinary member ends another's job: %v", err)
	}
	if err := w.Extend(t.Context(), ada, adaID, ipcapi.JobExtension{ID: "13", AddMs: 60000}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("an ordinary member extends another's job: %v", err)
	}
	if err := w.End(t.Context(), bob, bobID, "12"); err != nil {
		t.Errorf("the PI: %v", err)
	}
	if strings.Join(w.slurm.cancelled, " ") != id {
		t.Errorf("cancelled: %v", w.slurm.cancelled)
	}
	w.look()
	w.tellCore()
	if w.core.state("12") != providerapi.JobSuccess || !strings.Contains(w.core.history("12"), "The job was cancelled") {
		t.Error(w.core.history("12"))
	}
	// Ending what has ended, or twice, is no error.
	for range 2 {
		if err := w.End(t.Context(), bob, bobID, "12"); err != nil {
			t.Error(err)
		}
	}
}

// Somebody claims the id of another's job before that job is submitted: the claim neither keeps the job from being submitted
// nor is anything said about it.
func TestForgedJobID(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	g, err := w.Begin(t.Context(), eve, eveID, w.beginning("11", eve, ident.Owner{User: eve}))
	if err != nil {
		t.Fatal(err) // Core cannot be asked yet
	}
	forged := w.slurm.sbatch(eveN, g.Account, g.Comment)
	if _, err := w.Submitted(t.Context(), eve, eveID, ipcapi.JobSubmission{Job: "11", Attempt: 1, EngineID: forged, Folder: "/evil"}); err != nil {
		t.Fatal(err)
	}
	w.slurm.finish(forged, providerapi.JobFailure, "FAILED", "forged")
	id := w.submit("11")
	w.look()
	w.slurm.run(id, "c1")
	w.look()
	w.tellCore()
	if h := w.core.history("11"); strings.Contains(h, "forged") || strings.Contains(h, forged) || !strings.Contains(h, "RUNNING") {
		t.Error(h)
	}
	if r := w.row("11", eveID); r.Submission != store.JobLost {
		t.Errorf("the claim is kept: %+v", r)
	}
	if r, err := w.Visible(t.Context(), ada, adaID, "11"); err != nil || r.EngineID != id {
		t.Errorf("%+v %v", r, err)
	}
}

// Nothing is said about a job that is another's at Core, whoever was first.
func TestCoreDecidesWhoseJobItIs(t *testing.T) {
	t.Parallel()
	for name, owner := range map[string]ident.Owner{"another user": {User: bob}, "another workspace": {Project: climate}} {
		w := sqlite(t)
		user := bob
		if owner.IsProject() {
			user = ada
		}
		w.submit("11")
		w.core.create("11", user, owner)
		w.tellCore()
		if w.core.history("11") != "[]" || w.row("11", adaID).Submission != store.JobLost {
			t.Errorf("%s: %s %+v", name, w.core.history("11"), w.row("11", adaID))
		}
	}
}

// Somebody claims that a job runs under the id that another's job has in Slurm.
func TestForeignEngineID(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	victim := w.submit("11")
	w.slurm.run(victim, "c1")
	w.core.create("66", eve, ident.Owner{User: eve})
	g, err := w.Begin(t.Context(), eve, eveID, w.beginning("66", eve, ident.Owner{User: eve}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Submitted(t.Context(), eve, eveID, ipcapi.JobSubmission{Job: "66", Attempt: g.Attempt, EngineID: victim, Folder: "/f"}); err != nil {
		t.Fatal(err)
	}
	w.pass(3 * time.Second)
	w.tellCore()
	w.look()
	if r := w.row("66", eveID); len(r.Nodes) > 0 || r.State != providerapi.JobInQueue || !r.SeenAt.IsZero() {
		t.Errorf("taken over: %+v", r)
	}
	if r := w.row("11", adaID); r.State != providerapi.JobRunning || len(r.Nodes) != 1 {
		t.Errorf("%+v", r)
	}
	if err := w.Extend(t.Context(), eve, eveID, ipcapi.JobExtension{ID: "66", AddMs: 60000}); err == nil {
		t.Error("the time of another's job is extended")
	}
	// Neither an operator nor the end at Core cancels the other's job.
	j := w.row("66", eveID)
	if _, err := w.Cancel(t.Context(), &j, "", false); err != nil {
		t.Error(err)
	}
	w.core.set(func(c *fakeCore) { delete(c.jobs, "66") })
	for range 10 {
		w.pass(2 * time.Minute)
		w.tellCore()
	}
	if len(w.slurm.cancelled) > 0 {
		t.Errorf("cancelled %v", w.slurm.cancelled)
	}
}

// Somebody's own job bears the mark of another's submission.
//
//attack:actor malicious job
//attack:does Submits a job by hand with the comment of another user's job.
//attack:control A job belongs to the uid that Slurm names, whatever its comment says.
//attack:remove internal/jobs/monitor.go: if name == "" || !what.of(name) || v.matched[id] { => if name == "" || v.matched[id] {
func TestForgedComment(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	g, err := w.own("11")
	if err != nil {
		t.Fatal(err)
	}
	w.slurm.sbatch(eveN, "u_Eve", g.Comment)
	w.look()
	if r := w.row("11", adaID); r.Submission != store.JobBegun || r.EngineID != "" {
		t.Errorf("adopted another's job: %+v", r)
	}
	id := w.slurm.sbatch(adaName, g.Account, g.Comment)
	w.look()
	if r := w.row("11", adaID); r.Submission != store.JobSubmitted || r.EngineID != id {
		t.Errorf("%+v", r)
	}
}

// A program that invents jobs cannot keep Core from being asked about those of others.
func TestInventedJobs(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.update(func(tx *store.Tx) error {
		for i := range maxUnconfirmed {
			n := strconv.Itoa(i)
			if _, err := tx.InsertJob(store.Job{
				ID: "x" + n, UID: adaID, CreatedBy: ada, Owner: ident.Owner{User: ada}, Engine: ipcapi.EngineSlurm, Submission: store.JobSubmitted,
				EngineID: "8" + n, State: providerapi.JobInQueue, CreatedAt: w.clock(), SubmittedAt: w.clock(),
			}); err != nil {
				return err
			}
		}
		return nil
	})
	w.core.create("11", ada, ident.Owner{User: ada})
	if _, err := w.own("11"); !failure.Is(err, failure.TooMany) {
		t.Errorf("another one: %v", err)
	}
	w.update(func(tx *store.Tx) error { // Core has confirmed one
		j, err := tx.JobOf("x1", adaID)
		if err != nil {
			return err
		}
		j.CoreKnown = 1
		return tx.UpdateJob(j)
	})
	if _, err := w.own("11"); err != nil {
		t.Error(err)
	}
}
