package jobs

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/slurmkit"
	"ucloud-im/internal/testkit/storetest"
)

// site is a world with the real Slurm, real accounts and real time.
type site struct {
	*world
	cluster *slurmkit.Cluster
	account string
	ada     accounts.Account
	eve     accounts.Account
}

// oneAccount gives every workspace the same account.
type oneAccount string

func (a oneAccount) Account(context.Context, ident.Owner, ident.UCloudUser, string, string) (string, error) {
	return string(a), nil
}

func (a oneAccount) OwnerOf(_ context.Context, account, _ string) (ident.Owner, bool, error) {
	return ident.Owner{User: ada}, account == string(a), nil
}

// people are the two accounts of the site.
type people struct{ ada, eve accounts.Account }

func (p people) LocalName(uid ident.UID) (string, bool) {
	switch uid {
	case p.ada.UID:
		return p.ada.Name, true
	case p.eve.UID:
		return p.eve.Name, true
	}
	return "", false
}

func (p people) Mapped(name string) (ident.UCloudUser, ident.UID, bool) {
	return ada, p.ada.UID, name == p.ada.Name
}

func newSite(t *testing.T, tag string) *site {
	t.Helper()
	accounts.Require(t)
	slurmkit.Require(t)
	cluster := slurmkit.Start(t)
	a := accounts.New(t, tag)
	s := &site{cluster: cluster, ada: a.User(t), eve: a.User(t)}
	s.account = cluster.Account(t, s.ada.Name, s.eve.Name)
	s.world = newWorld(t, storetest.SQLite(t))
	states, err := slurm.NewStates(nil)
	if err != nil {
		t.Fatal(err)
	}
	who := people{s.ada, s.eve}
	service, err := New(Options{
		Provider: provider, Store: s.db, Core: s.core, Accounts: oneAccount(s.account), Users: who,
		Engine: Slurm{
			Client: slurm.New(slurm.Options{Binaries: cluster.Binaries(t), Timeout: 2 * time.Minute}), States: func() *slurm.States { return states },
			UID: func(name string) (ident.UID, bool) { _, uid, ok := who.Mapped(name); return uid, ok }, Log: slog.New(slog.DiscardHandler),
		},
		Settings: func() Settings { return s.set },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Service, s.m = service, &monitor{s: service, hints: map[int64]hint{}}
	return s
}

// await makes rounds until something is so.
func (s *site) await(what string, cond func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			var all []string
			for id := range s.core.jobs {
				all = append(all, id+" "+s.core.history(id))
			}
			s.t.Fatalf("waited for: %s; %s", what, strings.Join(all, "\n"))
		}
		if err := s.m.round(s.t.Context()); err != nil {
			s.t.Logf("a round: %v", err)
		}
		s.tellCore()
	}
}

// batch takes a job through a submission; stop: the server hears nothing of it.
func (s *site) batch(id, script string, lost bool, args ...string) string {
	s.t.Helper()
	s.core.create(id, ada, ident.Owner{User: ada})
	g, err := s.Begin(s.t.Context(), ada, s.ada.UID, s.beginning(id, ada, ident.Owner{User: ada}))
	if err != nil {
		s.t.Fatal(err)
	}
	engine := s.cluster.Submit(s.t, s.ada.Name, script, append([]string{"--account=" + g.Account, "--partition=" + g.Partition, "--comment=" + g.Comment, "--job-name=" + id, "--time=60"}, args...)...)
	if lost {
		return engine
	}
	if _, err := s.Submitted(s.t.Context(), ada, s.ada.UID, ipcapi.JobSubmission{Job: id, Attempt: g.Attempt, EngineID: engine, Folder: "/f/" + id}); err != nil {
		s.t.Fatal(err)
	}
	return engine
}

func (s *site) has(id string, state providerapi.JobState, words ...string) func() bool {
	return func() bool {
		h := s.core.history(id)
		for _, w := range words {
			if !strings.Contains(h, w) {
				return false
			}
		}
		return s.core.state(id) == state
	}
}

// TestRealSlurm: states as Slurm tells them arrive at Core, each once, whatever ended the job.
func TestRealSlurm(t *testing.T) {
	t.Parallel()
	s := newSite(t, "jsa")
	s.batch("ok", "exit 0", false)
	s.batch("fails", "exit 3", false)
	found := s.batch("found", "sleep 600", true)
	user := s.batch("user", "sleep 600", false)
	s.batch("operator", "sleep 600", false)
	again := s.batch("again", "sleep 600", false, "--requeue")
	s.batch("array", "exit $SLURM_ARRAY_TASK_ID", false, "--array=0-1")
	s.batch("waits", "exit 0", false, "--begin=now+1hour")
	hand := s.cluster.Submit(t, s.ada.Name, "sleep 600", "--account="+s.account, "--partition=normal", "--job-name=by|hand", "--time=60")

	s.await("success", s.has("ok", providerapi.JobSuccess))
	s.await("failure", s.has("fails", providerapi.JobFailure, "exit code 3"))
	s.await("array", s.has("array", providerapi.JobFailure, "1 of 2 tasks"))
	s.await("adoption by the comment", s.has("found", providerapi.JobRunning, "Submitted to Slurm as job "+found, "Started on n"))
	s.await("registration", func() bool {
		for i := range s.core.registered {
			j := s.row("900"+string(rune('1'+i)), s.ada.UID)
			if j.EngineID == hand && j.Outside && j.State == providerapi.JobRunning && strings.HasPrefix(j.Name, "by|hand (SlurmID: ") {
				return true
			}
		}
		return false
	})
	if s.core.registered != 1 {
		t.Errorf("%d jobs were registered", s.core.registered)
	}
	s.await("running", s.has("user", providerapi.JobRunning))
	s.await("running", s.has("operator", providerapi.JobRunning))
	s.await("running", s.has("again", providerapi.JobRunning))
	if j := s.row("user", s.ada.UID); len(j.Nodes) != 1 || j.StartedAt.IsZero() || j.Account != s.account || j.LimitMs != time.Hour.Milliseconds() {
		t.Errorf("%+v", j)
	}

	// What operators are told of them. The state of an array is that of its tasks.
	for id, want := range map[string]struct{ state, note string }{
		"fails": {"FAILED", "FAILED is FAILURE at UCloud"}, "array": {"FAILED", "1 of 2 tasks"}, "waits": {"PENDING", "lets it wait"},
		"user": {"RUNNING", "RUNNING is RUNNING at UCloud"}, hand: {"RUNNING", "was submitted outside UCloud"},
	} {
		s.await("explanation of "+id, func() bool {
			x, err := s.Explain(t.Context(), ipcapi.JobQuestion{ID: id})
			return err == nil && len(x.Jobs) == 1 && x.Slurm != nil && x.Slurm.State == want.state && strings.Contains(strings.Join(x.Notes, "\n"), want.note)
		})
	}
	// The user's own scancel, as the instance runs it.
	if err := s.End(t.Context(), ada, s.ada.UID, "user"); err != nil {
		t.Fatal(err)
	}
	if out, err := s.ada.Command("scancel", user).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	j := s.row("operator", s.ada.UID)
	if _, err := s.Cancel(t.Context(), &j, "test", false); err != nil {
		t.Fatal(err)
	}
	s.cluster.Run(t, "scontrol", "requeue", again)
	s.await("cancelled by the user", s.has("user", providerapi.JobSuccess, "The job was cancelled"))
	s.await("cancelled by an operator", s.has("operator", providerapi.JobSuccess, "An operator of the provider has cancelled this job: test", "The job was cancelled"))
	s.await("back in the queue", s.has("again", providerapi.JobInQueue, "RUNNING", "IN_QUEUE"))

	// More time, which reaches Slurm and Core.
	if err := s.Extend(t.Context(), ada, s.ada.UID, ipcapi.JobExtension{ID: "found", AddMs: (2 * time.Hour).Milliseconds()}); err != nil {
		t.Fatal(err)
	}
	s.await("more time", s.has("found", providerapi.JobRunning, "time 10800000"))
	if out, _ := s.cluster.Output("squeue", "-h", "-j", found, "-o", "%l"); strings.TrimSpace(out) != "3:00:00" {
		t.Errorf("Slurm gives it %q", out)
	}

	for _, id := range []string{"ok", "fails", "array", "user", "operator"} {
		final := 0
		for _, state := range s.core.jobs[id].states {
			if state.Final() {
				final++
			}
		}
		if final != 1 {
			t.Errorf("%s ended %d times: %s", id, final, s.core.history(id))
		}
	}
}

// TestForeignJobIsNotCancelled: the service account may cancel every job, and users name them.
func TestForeignJobIsNotCancelled(t *testing.T) {
	t.Parallel()
	s := newSite(t, "jsb")
	victim := s.batch("victim", "sleep 600", false)
	s.cluster.WaitState(t, victim, "RUNNING")
	ctx := t.Context()
	if err := s.o.Engine.Cancel(ctx, victim, s.eve.Name); err != nil {
		t.Error(err)
	}
	s.core.create("66", eve, ident.Owner{User: eve})
	g, err := s.Begin(ctx, eve, s.eve.UID, s.beginning("66", eve, ident.Owner{User: eve}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Submitted(ctx, eve, s.eve.UID, ipcapi.JobSubmission{Job: "66", Attempt: g.Attempt, EngineID: victim, Folder: "/f"}); err != nil {
		t.Fatal(err)
	}
	s.await("the real one", s.has("victim", providerapi.JobRunning))
	if j := s.row("66", s.eve.UID); len(j.Nodes) > 0 || j.State != providerapi.JobInQueue {
		t.Errorf("taken over: %+v", j)
	}
	if err := s.Extend(ctx, eve, s.eve.UID, ipcapi.JobExtension{ID: "66", AddMs: 60000}); !failure.Is(err, failure.Conflict) {
		t.Errorf("extended: %v", err)
	}
	j := s.row("66", s.eve.UID)
	if _, err := s.Cancel(ctx, &j, "", false); err != nil {
		t.Error(err)
	}
	if state := s.cluster.State(victim); state != "RUNNING" {
		t.Errorf("another's job is %s", state)
	}
	if err := s.o.Engine.Cancel(ctx, victim, s.ada.Name); err != nil {
		t.Error(err)
	}
	s.await("the end", s.has("victim", providerapi.JobSuccess))
	// What is not there needs no cancelling.
	if err := s.o.Engine.Cancel(ctx, "60000000", s.ada.Name); err != nil {
		t.Error(err)
	}
}
