package slurm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/slurmkit"
)

// The tests in this file are about the real Slurm.

// user submits jobs: an account that exists everywhere.
const user = "nobody"

func client(t *testing.T, c *slurmkit.Cluster) *slurm.Client {
	t.Helper()
	return slurm.New(slurm.Options{Binaries: c.Binaries(t), Timeout: 2 * time.Minute})
}

func parse(t *testing.T, id string) slurm.JobID {
	t.Helper()
	parsed, err := slurm.ParseJobID(id)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// queued is what squeue says about jobs, by the identifiers that it prints.
func queued(t *testing.T, client *slurm.Client, q slurm.QueueQuery) map[string]slurm.Job {
	t.Helper()
	all := map[string]slurm.Job{}
	err := client.Queue(t.Context(), q, func(j slurm.Job) error {
		if old, twice := all[j.ID.String()]; twice {
			t.Errorf("%s twice: %+v, %+v", j.ID, old, j)
		}
		all[j.ID.String()] = j
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// accounted waits until sacct says about a job what is asked for; slurmdbd learns it with a delay.
func accounted(t *testing.T, client *slurm.Client, id slurm.JobID, what string, is func(slurm.Job) bool) slurm.Job {
	t.Helper()
	var last slurm.Job
	testkit.Eventually(t, what+" in the accounting", func() bool {
		found := false
		err := client.Accounting(t.Context(), slurm.AccountingQuery{IDs: []slurm.JobID{id}}, func(j slurm.Job) error {
			if j.ID == id {
				last, found = j, found || is(j)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	})
	return last
}

// TestJob: a job from its script to its row in the accounting.
func TestJob(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, "root") // who runs this test, and so submits
	dir := t.TempDir()
	script := filepath.Join(dir, "job.sbatch")
	text := "#!/usr/bin/env -S bash --login\n#SBATCH --output=/dev/null --cpus-per-task=2 --mem=64 --time=10 --nodes=2\necho \"$LEAK$PWD\" >out\nexit 3\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	name, comment := "a|b\n730512|COMPLETED|äöü", "ucloud:hippo:"+account
	id, err := client.Submit(t.Context(), slurm.Submission{
		Script: script, Directory: dir, Env: []string{"HOME=/root", "LEAK=leaked"},
		Args: []string{"--account=" + account, "--job-name=" + name, "--comment=" + comment},
	})
	if err != nil {
		t.Fatal(err)
	}
	j := accounted(t, client, id, "exit code", func(j slurm.Job) bool {
		return j.State == "FAILED" && j.ExitCode == 3 && j.Name == name && j.Nodes != "" && j.Comment != ""
	})
	if j.User != "root" || j.Account != account || j.Partition != "normal" || j.QoS != "normal" || j.Comment != comment || j.WorkDir != dir || j.Cluster != slurmkit.Name ||
		j.Limit != 10*time.Minute || j.NodeCount != 2 || j.TRES["cpu"] != 4 || j.TRES["node"] != 2 || j.TRES["mem"] != 128<<20 || j.TRES["billing"] != 4 {
		t.Errorf("%+v", j)
	}
	if j.Submit.IsZero() || j.Start.Before(j.Submit) || j.End.Before(j.Start) || time.Since(j.End) > time.Hour || j.End.After(time.Now().Add(time.Minute)) {
		t.Errorf("times: %v %v %v", j.Submit, j.Start, j.End)
	}
	states, err := slurm.NewStates(nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := states.Of(j, slurm.Actors{}); !ok || m.State != providerapi.JobFailure || !strings.Contains(m.Sentence, "exit code 3") {
		t.Errorf("%+v, %v", m, ok)
	}
	if nodes, err := slurm.ExpandNodes(j.Nodes, 10); err != nil || len(nodes) == 0 {
		t.Error(nodes, err)
	}
	if out, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(out) != dir+"\n" {
		t.Errorf("the job saw %q, %v", out, err)
	}
}

// TestForgedRow: the name, comment and directory of a job cannot make a row about another one.
func TestForgedRow(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, user)
	victim := c.Submit(t, user, "sleep 600", "--account="+account, "--job-name=victim")
	forged := "x\n" + victim + "|COMPLETED|nobody|" + account + "|normal|normal|0:00|5:00|0|0|0|1|1|1|None|n1|/|victim|c|" + victim + "\n"
	id := c.Submit(t, user, "sleep 600", "--account="+account, "--job-name="+forged, "--comment="+forged)
	c.WaitState(t, victim, "RUNNING")
	c.WaitState(t, id, "RUNNING")
	all := queued(t, client, slurm.QueueQuery{IDs: []slurm.JobID{parse(t, victim), parse(t, id)}})
	if len(all) != 2 || all[victim].State != "RUNNING" || all[victim].Name != "victim" || all[id].Name != forged || all[id].Comment != forged {
		t.Errorf("%+v", all)
	}
	accounted(t, client, parse(t, id), "name", func(j slurm.Job) bool { return j.Name == forged })
	j := accounted(t, client, parse(t, victim), "running", func(j slurm.Job) bool { return j.State == "RUNNING" })
	if j.Name != "victim" {
		t.Errorf("%+v", j)
	}
}

// TestQueue: arrays, heterogeneous jobs, and jobs that wait for several reasons.
func TestQueue(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, user)
	array := c.Submit(t, user, "sleep 600", "--account="+account, "--array=1-20%2")
	down := c.Submit(t, user, "true", "--account="+account, "--partition=down", "--time=UNLIMITED")
	held := c.Submit(t, user, "true", "--account="+account, "--hold", "--time=1-01:00:00")
	ids := []slurm.JobID{parse(t, array), parse(t, down), parse(t, held)}
	c.WaitState(t, array+"_1", "RUNNING")
	c.WaitState(t, array+"_2", "RUNNING")
	all := queued(t, client, slurm.QueueQuery{IDs: ids})
	together := all[array+"_[3-20%2]"]
	if len(all) != 5 || together.State != "PENDING" || together.ArrayJob != parse(t, array).ID || together.ID.Leader() != parse(t, array) || all[array+"_2"].State != "RUNNING" {
		t.Errorf("%+v", all)
	}
	if j := all[down]; j.Reason != "PartitionDown" || !j.Unlimited || j.Partition != "down" || j.Nodes != "" || !j.Start.IsZero() {
		t.Errorf("%+v", j)
	}
	if j := all[held]; j.Reason != "JobHeldUser" || j.Limit != 25*time.Hour || j.Unlimited {
		t.Errorf("%+v", j)
	}
	// Restricted by partition, and by state.
	if all := queued(t, client, slurm.QueueQuery{IDs: ids, Partitions: []string{"down", "gpu"}}); len(all) != 1 || all[down].ID.ID == 0 {
		t.Errorf("%+v", all)
	}
	if all := queued(t, client, slurm.QueueQuery{IDs: ids, States: []string{"running"}}); len(all) != 2 {
		t.Errorf("%+v", all)
	}
	// Only the tasks that wait are cancelled.
	if err := client.Cancel(t.Context(), together.ID); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "cancellation", func() bool { return len(queued(t, client, slurm.QueueQuery{IDs: ids[:1]})) == 2 })
	if err := client.Cancel(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
	j := accounted(t, client, slurm.JobID{ID: ids[0].ID, Task: "1"}, "cancellation", func(j slurm.Job) bool { return j.State == "CANCELLED" && j.HasBy })
	if j.By != 0 || j.ArrayJob != ids[0].ID {
		t.Errorf("%+v", j)
	}
	// Nothing is left to cancel, and one job was never there.
	if err := client.Cancel(t.Context(), append(ids, slurm.JobID{ID: 60_000_000})...); err != nil {
		t.Error(err)
	}
	if all := queued(t, client, slurm.QueueQuery{IDs: []slurm.JobID{{ID: 60_000_000}}}); len(all) != 0 {
		t.Errorf("%+v", all)
	}
}

func TestHeterogeneous(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, user)
	out := c.Submit(t, user, "sleep 600", "--account="+account, "--cpus-per-task=1", ":", "--cpus-per-task=2")
	id := parse(t, out)
	c.WaitState(t, out, "RUNNING")
	all := queued(t, client, slurm.QueueQuery{IDs: []slurm.JobID{id}})
	if len(all) != 2 || all[out+"+0"].ID.Leader() != id || all[out+"+1"].ID.Leader() != id {
		t.Fatalf("%+v", all)
	}
	if err := client.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for het := range uint32(2) {
		accounted(t, client, slurm.JobID{ID: id.ID, Het: het, IsHet: true}, "end", func(j slurm.Job) bool { return j.State == "CANCELLED" })
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, user)
	id := parse(t, c.Submit(t, user, "sleep 600", "--account="+account, "--hold", "--time=5"))
	one := func() slurm.Job { return queued(t, client, slurm.QueueQuery{IDs: []slurm.JobID{id}})[id.String()] }
	ctx := t.Context()
	if err := client.SetTimeLimit(ctx, id, 10*time.Minute+time.Second); err != nil || one().Limit != 11*time.Minute {
		t.Error(one(), err)
	}
	if err := client.Release(ctx, id); err != nil {
		t.Fatal(err)
	}
	c.StartNow(t, id.String())
	if err := client.Suspend(ctx, id); err != nil || one().State != "SUSPENDED" {
		t.Error(one(), err)
	}
	if err := client.Resume(ctx, id); err != nil || one().State != "RUNNING" {
		t.Error(one(), err)
	}
	if err := client.Requeue(ctx, id); err != nil {
		t.Error(err)
	}
	c.WaitState(t, id.String(), "PENDING")
	if err := client.Hold(ctx, id); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "hold", func() bool { return strings.HasPrefix(one().Reason, "JobHeld") })
	// Both runs are in the accounting, the first as one that was put back.
	testkit.Eventually(t, "both runs", func() bool {
		requeued, pending := false, false
		err := client.Accounting(ctx, slurm.AccountingQuery{IDs: []slurm.JobID{id}, Duplicates: true}, func(j slurm.Job) error {
			requeued = requeued || j.Requeued && !j.End.IsZero()
			pending = pending || j.State == "PENDING"
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return requeued && pending
	})
	never := slurm.JobID{ID: 60_000_000}
	for name, err := range map[string]error{
		"limit": client.SetTimeLimit(ctx, never, time.Hour), "hold": client.Hold(ctx, never), "requeue": client.Requeue(ctx, never),
	} {
		if !errors.Is(err, slurm.ErrNoJob) || failure.KindOf(err) != failure.NotFound {
			t.Errorf("%s of a job that never was: %v", name, err)
		}
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c)
	ctx := t.Context()
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
	if v, err := client.Version(ctx); err != nil || len(strings.Split(v, ".")) != 3 {
		t.Error(v, err)
	}
	if name, err := client.ClusterName(ctx); err != nil || name != slurmkit.Name {
		t.Error(name, err)
	}
	partitions, err := client.Partitions(ctx)
	if err != nil || len(partitions) != 4 {
		t.Fatal(partitions, err)
	}
	by := map[string]slurm.Partition{}
	for _, p := range partitions {
		by[p.Name] = p
	}
	gpu := by["gpu"]
	if !by["normal"].Default || len(by["normal"].Nodes) != 3 || by["short"].MaxTime != time.Minute || by["down"].State != "DOWN" || by["normal"].AllowQoS != nil {
		t.Errorf("%+v", by)
	}
	if len(gpu.Nodes) != 2 || gpu.BillingWeights["GRES/gpu"] != "1.0" || gpu.Nodes[0].GRES["gpu:a100"] != 2 || gpu.Nodes[0].CPUs != 64 || gpu.Nodes[0].Memory != 256000<<20 ||
		!slices.Contains(gpu.Nodes[1].Features, "a100") {
		t.Errorf("%+v", gpu)
	}
	qos, err := client.QoS(ctx)
	if err != nil || !slices.Contains(qos, slurm.QoS{Name: "high", Priority: 100}) || !slices.ContainsFunc(qos, func(q slurm.QoS) bool { return q.Name == "normal" }) {
		t.Error(qos, err)
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := client(t, c).WithClusterName(slurmkit.Name)
	ctx := t.Context()
	parent := c.AccountName(t) // removed after the account below it
	name := c.AccountName(t)
	if all, err := client.Accounts(ctx, name, parent); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	err := client.CreateAccount(ctx, slurm.AccountSpec{Name: parent, Description: "a test"})
	for range 2 { // the second time nothing is left to do
		err = errors.Join(err,
			client.CreateAccount(ctx, slurm.AccountSpec{Name: name, Parent: parent, QoS: []string{"normal", "high"}, DefaultQoS: "high"}),
			client.AddUsers(ctx, name, "daemon", "bin"),
			client.ModifyAccount(ctx, name, slurm.Change{Key: "GrpTRESMins", Value: "billing=600"}, slurm.Change{Key: "MaxSubmitJobs", Value: "0"}, slurm.Change{Key: "Fairshare", Value: "7"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	find := func() (own slurm.Association, users []string) {
		t.Helper()
		all, err := client.Associations(ctx, slurm.AssociationQuery{Accounts: []string{name}})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if a.User == "" {
				own = a
			} else {
				users = append(users, a.User)
			}
		}
		slices.Sort(users)
		return own, users
	}
	own, users := find()
	if own.Parent != parent || own.Fairshare != 7 || own.GrpTRESMins["billing"] != 600 || own.MaxSubmitJobs == nil || *own.MaxSubmitJobs != 0 || own.MaxJobs != nil ||
		own.DefaultQoS != "high" || !slices.Contains(own.QoS, "normal") || own.Cluster != slurmkit.Name || !slices.Equal(users, []string{"bin", "daemon"}) {
		t.Errorf("%+v, %v", own, users)
	}
	for range 2 {
		if err := client.RemoveUsers(ctx, name, "bin"); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.ModifyAccount(ctx, name, slurm.Change{Key: "MaxSubmitJobs", Value: slurm.Limit(nil)}); err != nil {
		t.Fatal(err)
	}
	if own, users := find(); own.MaxSubmitJobs != nil || own.GrpTRESMins["billing"] != 600 || !slices.Equal(users, []string{"daemon"}) {
		t.Errorf("%+v, %v", own, users)
	}
	shares, err := client.Shares(ctx, name)
	if err != nil || !slices.ContainsFunc(shares, func(s slurm.Share) bool {
		return s.Account == name && s.User == "" && s.Shares == 7 && s.GrpTRESMins["billing"] == 600
	}) {
		t.Errorf("%+v, %v", shares, err)
	}
	// A job ties a user to the account.
	c.WaitAssociation(t, name, "daemon")
	id := c.Submit(t, "daemon", "sleep 600", "--account="+name)
	c.WaitState(t, id, "RUNNING")
	accounted(t, client, parse(t, id), "job", func(j slurm.Job) bool { return j.State == "RUNNING" && j.QoS == "high" })
	if err := client.RemoveUsers(ctx, name, "daemon"); !errors.Is(err, slurm.ErrBusy) {
		t.Error("a user with a running job: ", err)
	}
	nowhere := slurmkit.UniqueName("none")
	if err := client.AddUsers(ctx, nowhere, "daemon"); !errors.Is(err, slurm.ErrNoAccount) {
		t.Error(err)
	}
	if err := client.ModifyAccount(ctx, nowhere, slurm.Change{Key: "MaxJobs", Value: "1"}); !errors.Is(err, slurm.ErrNoAccount) {
		t.Error(err)
	}
}

// TestOutage: without slurmctld, and without slurmdbd, nothing is an answer, and a submission is not refused.
func TestOutage(t *testing.T) {
	c := slurmkit.Start(t)
	client := client(t, c)
	account := c.Account(t, "root")
	script := filepath.Join(t.TempDir(), "job.sbatch")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	none := func(j slurm.Job) error {
		t.Errorf("a job: %+v", j)
		return nil
	}
	c.Outage(t, func(o *slurmkit.Outage) {
		o.StopController()
		// All at once: each takes its time before it gives up.
		results := map[string]chan error{}
		for name, do := range map[string]func() error{
			"queue":   func() error { return client.Queue(ctx, slurm.QueueQuery{}, none) },
			"one job": func() error { return client.Queue(ctx, slurm.QueueQuery{IDs: []slurm.JobID{{ID: 1}}}, none) },
			"ping":    func() error { return client.Ping(ctx) },
			"submission": func() error {
				_, err := client.Submit(ctx, slurm.Submission{Script: script, Args: []string{"--account=" + account}})
				return err
			},
		} {
			result := make(chan error, 1)
			results[name] = result
			go func() { result <- do() }()
		}
		for name, result := range results {
			err := <-result
			if failure.KindOf(err) != failure.Unavailable {
				t.Errorf("%s without slurmctld: %v", name, err)
			}
			if name == "submission" && !errors.Is(err, slurm.ErrUnknownOutcome) {
				t.Errorf("a submission without slurmctld: %v", err)
			}
		}
		o.StopDatabase()
		err := client.Accounting(ctx, slurm.AccountingQuery{}, none)
		if !errors.Is(err, slurm.ErrUnavailable) {
			t.Errorf("accounting without slurmdbd: %v", err)
		}
		if all, err := client.Associations(ctx, slurm.AssociationQuery{}); !errors.Is(err, slurm.ErrUnavailable) {
			t.Errorf("associations without slurmdbd: %v, %v", all, err)
		}
		if err := client.AddUsers(ctx, account, "daemon"); !errors.Is(err, slurm.ErrUnavailable) {
			t.Errorf("a change without slurmdbd: %v", err)
		}
	})
	if err := client.Ping(ctx); err != nil {
		t.Error(err)
	}
}

// TestNodeAddress: nodes whose names nobody knows have an address all the same.
func TestNodeAddress(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	nodes := strings.Fields(c.Run(t, "sinfo", "--noheader", "--Node", "--format=%N"))
	if len(nodes) == 0 {
		t.Fatal("no nodes")
	}
	if address, err := client(t, c).NodeAddress(t.Context(), nodes[0]); err != nil || address != "127.0.0.1" {
		t.Errorf("%q, %v", address, err)
	}
	for _, name := range []string{"nothing-here", "", "--help", "a;b", "a,b"} {
		if address, err := client(t, c).NodeAddress(t.Context(), name); err == nil {
			t.Errorf("%q is at %q", name, address)
		}
	}
}
