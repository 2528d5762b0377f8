package slurmaccounts_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/computeusage"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/slurmaccounts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/slurmkit"
	"ucloud-im/internal/testkit/storetest"
)

// patience is for a busy machine; a test that passes does not wait.
const patience = 2 * time.Minute

func until(t *testing.T, what string, cond func() (bool, error)) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ok, err := cond()
		if ok {
			return
		}
		if err != nil {
			last = err
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s: %v", what, last)
		}
	}
}

// site is who members are on this machine.
type site struct {
	members map[ident.UCloudUser]driveplan.Account
	group   string
}

func (s *site) LocalAccount(_ context.Context, u ident.UCloudUser) (driveplan.Account, bool, error) {
	a, ok := s.members[u]
	return a, ok, nil
}

func (s *site) ProjectGroup(context.Context, ident.ProjectID) (driveplan.Group, bool, error) {
	return driveplan.Group{Name: s.group, GID: 5000}, true, nil
}

// core keeps totals.
type core struct{ totals map[string]int64 }

func (c *core) ReportUsage(_ context.Context, items []providerapi.UsageItem) ([]bool, error) {
	for _, i := range items {
		c.totals[i.CategoryIDV2.Name] = i.Usage
	}
	return slices.Repeat([]bool{true}, len(items)), nil
}

// TestSlurm: with the real Slurm, from the allocation to the account with its limits, from a job to the ledger, a lock
// that stops new jobs and no old ones, and a member who leaves.
func TestSlurm(t *testing.T) {
	t.Parallel()
	cluster := slurmkit.Start(t)
	users := accounts.New(t, "sa")
	first, second := users.User(t), users.User(t)
	account := cluster.AccountName(t)
	client := slurm.New(slurm.Options{Binaries: cluster.Binaries(t)})
	db := storetest.SQLite(t)
	people := &site{group: account, members: map[ident.UCloudUser]driveplan.Account{
		"First#1": {Name: first.Name, UID: first.UID}, "Second#2": {Name: second.Name, UID: second.UID},
	}}
	project := ident.ProjectID("5b1c0a7e")
	owner := ident.Owner{Project: project}
	ctx := t.Context()
	update := func(f func(tx *store.Tx) error) {
		t.Helper()
		if err := db.Update(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	for user, a := range people.members {
		update(func(tx *store.Tx) error {
			return tx.InsertMapping(store.Mapping{User: user, UID: a.UID, LocalName: a.Name, State: store.MappingActive, Method: "test", By: "test", CreatedAt: time.Now(), UpdatedAt: time.Now()})
		})
	}
	service, err := slurmaccounts.New(slurmaccounts.Options{
		Provider: "hpc", Store: db, Accounts: people, Cluster: &slurmaccounts.Slurm{Client: client},
		Settings: slurmaccounts.Settings{
			Categories: []slurmaccounts.Category{{Name: "cpu", Partition: "normal", QoS: "normal", Period: 60, Unit: "Cpu"}},
			Mapping:    slurmaccounts.Mapping{Projects: func(v driveplan.Vars) (string, error) { return v[driveplan.VarLocalGroupName], nil }},
			Management: slurmaccounts.Management{
				Type: slurmaccounts.Automatic, CreateUsers: true, SetDefaultAccount: true, Cleanup: true, WhenLocked: slurmaccounts.LockMaxSubmit,
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	members := func(names ...ident.UCloudUser) {
		t.Helper()
		doc := providerapi.Project{ID: project}
		for _, n := range names {
			doc.Status.Members = append(doc.Status.Members, providerapi.ProjectMember{Username: n, Role: "USER"})
		}
		update(func(tx *store.Tx) error {
			_, _, err := tx.PutProject(store.Project{ID: project, ModifiedAt: time.Now(), Document: doc})
			return err
		})
	}
	allocate := func(quota int64, locked bool) {
		t.Helper()
		update(func(tx *store.Tx) error {
			_, err := tx.PutWallet(store.Wallet{Owner: owner, Category: "cpu", CombinedQuota: quota, Locked: locked, LastUpdate: time.Now()})
			return err
		})
	}
	look := func() {
		t.Helper()
		service.Changed(owner)
		service.Pass(ctx)
		st, err := service.Status(ctx)
		if err != nil || st.Failing+st.Parked > 0 {
			t.Fatalf("%+v %v", st, err)
		}
	}
	association := func(user string) (a slurm.Association, ok bool) {
		t.Helper()
		all, err := client.Associations(ctx, slurm.AssociationQuery{Accounts: []string{account}})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(a slurm.Association) bool { return a.User == user })
		if i < 0 {
			return a, false
		}
		return all[i], true
	}

	members("First#1", "Second#2")
	allocate(100, false)
	look()
	if a, ok := association(""); !ok || a.GrpTRESMins["billing"] != 6000 || a.Fairshare != 4 || a.MaxSubmitJobs != nil || !slices.Contains(a.QoS, "normal") {
		t.Fatalf("%v %+v", ok, a)
	}
	for _, u := range []string{first.Name, second.Name} {
		if _, ok := association(u); !ok {
			t.Fatal(u, "is no member")
		}
		cluster.WaitAssociation(t, account, u)
	}
	if got, err := service.Account(ctx, owner, "First#1", "cpu", ""); err != nil || got != account {
		t.Fatal(got, err)
	}

	// A short job, and one that runs on.
	short := cluster.Submit(t, first.Name, "exit 0", "--account="+account, "--partition=normal", "--ntasks=2", "--mem=10M")
	long := cluster.Submit(t, first.Name, "sleep 600", "--account="+account, "--partition=normal", "--ntasks=1", "--mem=10M")
	cluster.WaitState(t, short, "COMPLETED")
	cluster.WaitState(t, long, "RUNNING")

	allocate(100, true)
	look()
	if a, _ := association(""); a.MaxSubmitJobs == nil || *a.MaxSubmitJobs != 0 {
		t.Fatalf("not locked: %+v", a)
	}
	until(t, "a refusal", func() (bool, error) { // slurmctld hears of it a moment later
		id, err := cluster.TrySubmit(t, first.Name, "exit 0", "--account="+account, "--partition=normal", "--hold", "--mem=10M")
		if err == nil {
			cluster.Run(t, "scancel", id)
			return false, nil
		}
		return strings.Contains(err.Error(), "policy") || strings.Contains(err.Error(), "limit"), err
	})
	if state := cluster.State(long); state != "RUNNING" {
		t.Error("the lock has ended a job that ran:", state)
	}
	cluster.Run(t, "scancel", long)
	cluster.WaitState(t, long, "CANCELLED")

	// The ledger equals sacct, as soon as slurmdbd has heard of the ends.
	told := &core{totals: map[string]int64{}}
	source := computeusage.Slurm{Client: client}
	charges, err := computeusage.New(computeusage.Options{
		Provider: "hpc", Store: db, Core: told, Source: source,
		Settings: computeusage.Settings{Enabled: true, Categories: []computeusage.Category{{Name: "cpu", Partition: "normal", QoS: "normal", Period: 1, Unit: "Cpu"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the ledger", func() (bool, error) {
		runs, err := source.Runs(ctx, time.Now().Add(-24*time.Hour), []string{account})
		if err != nil {
			return false, err
		}
		var sum int64
		ended := 0
		for _, r := range runs {
			sum += r.Billing * r.Seconds
			if !r.End.IsZero() && (r.ID == short || r.ID == long) {
				ended++
			}
		}
		if ended < 2 || sum == 0 {
			return false, errors.New("slurmdbd has not heard of the ends")
		}
		if err := charges.Round(ctx); err != nil {
			return false, err
		}
		var u store.ComputeUsage
		if err := db.View(ctx, func(tx *store.Tx) (err error) { u, err = tx.ComputeUsage(owner, "cpu"); return err }); err != nil {
			return false, err
		}
		if got := u.Minutes*60 + u.Rest; got != sum {
			t.Logf("the ledger has %d, sacct %d", got, sum)
			return false, nil
		}
		return told.totals["cpu"] == sum/60, nil
	})

	allocate(200, false)
	members("First#1")
	look()
	if a, _ := association(""); a.MaxSubmitJobs != nil || a.GrpTRESMins["billing"] != 12000 {
		t.Errorf("not unlocked: %+v", a)
	}
	if _, ok := association(second.Name); ok {
		t.Error("a member who has left has the account still")
	}
	if _, ok := association(first.Name); !ok {
		t.Error("a member who stays has lost the account")
	}
	look() // nothing is left to do
}
