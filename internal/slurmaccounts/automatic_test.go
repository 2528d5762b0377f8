package slurmaccounts

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// world is a service with accounting Automatic.
type world struct {
	*Service
	t      *testing.T
	db     *store.Store
	slurm  *fakeCluster
	people *people
}

func automatic() Management {
	return Management{Type: Automatic, CreateUsers: true, Cleanup: true, WhenLocked: LockMaxSubmit}
}

func newWorld(t *testing.T, m Management) *world {
	t.Helper()
	w := &world{t: t, db: storetest.SQLite(t), slurm: &fakeCluster{fail: map[string]error{}}, people: somePeople()}
	for user, a := range w.people.users {
		w.connect(user, a.UID, a.Name)
	}
	w.restart(m)
	return w
}

// restart makes a service as a new process would.
func (w *world) restart(m Management) {
	w.t.Helper()
	w.Service = newService(w.t, Options{Store: w.db, Cluster: w.slurm, Accounts: w.people, Settings: Settings{
		Mapping: patterns("u_#{localUsername}_#{productCategory}", "p_#{localGroupName}_#{productCategory}"), Management: m,
	}})
}

// look does what Run does when it starts.
func (w *world) look() {
	w.t.Helper()
	if err := w.addEveryone(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.Pass(w.t.Context())
}

func (w *world) connect(user ident.UCloudUser, uid ident.UID, name string) {
	w.t.Helper()
	update(w.t, w.db, func(tx *store.Tx) error {
		return tx.InsertMapping(store.Mapping{
			User: user, UID: uid, LocalName: name, State: store.MappingActive, Method: "test", By: "test", CreatedAt: time.Now(), UpdatedAt: time.Now(),
		})
	})
}

// disconnect ends a mapping.
func (w *world) disconnect(user ident.UCloudUser) {
	w.t.Helper()
	update(w.t, w.db, func(tx *store.Tx) error {
		m, err := tx.MappingByUser(user)
		m.State = store.MappingExpired
		if err != nil {
			return err
		}
		return tx.UpdateMapping(m)
	})
	delete(w.people.users, user)
	w.Changed(reef, ident.Owner{User: user})
}

// allocate does what an event about a wallet does.
func (w *world) allocate(owner ident.Owner, category string, change func(*store.Wallet)) {
	w.t.Helper()
	wallet := store.Wallet{Owner: owner, Category: category, CombinedQuota: 1000, LastUpdate: time.Now()}
	if change != nil {
		change(&wallet)
	}
	update(w.t, w.db, func(tx *store.Tx) error {
		_, err := tx.PutWallet(wallet)
		return err
	})
	w.Changed(owner)
}

func (w *world) members(members ...string) {
	w.t.Helper()
	project(w.t, w.db, reef.Project, nil, members...)
	w.Changed(reef)
}

func (w *world) work(account string) store.SlurmWork {
	w.t.Helper()
	var out store.SlurmWork
	err := w.db.View(w.t.Context(), func(tx *store.Tx) (err error) { out, err = tx.SlurmWork("account/" + account); return err })
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// due makes failed work due now.
func (w *world) due(account string) {
	w.t.Helper()
	work := w.work(account)
	work.NextAt = time.Now().Add(-time.Second)
	update(w.t, w.db, func(tx *store.Tx) error { return tx.PutSlurmWork(work) })
}

// TestAutomatic: the life of an account, and that nothing is written twice.
func TestAutomatic(t *testing.T) {
	t.Parallel()
	m := automatic()
	m.Parent = "hpc"
	w := newWorld(t, m)
	w.members("Alice#1", "Bob#2", "Eve#3")
	w.allocate(reef, "gpu", nil)
	w.Pass(t.Context())
	w.slurm.expect(t,
		"create p_reef_models_gpu parent=hpc qos=[high] org=ucloud-hpc",
		"add p_reef_models_gpu [Bob02 alice01] default=false",
		"change p_reef_models_gpu billing=60000 fairshare=41")
	for range 2 { // the same event, and a look at everything
		w.Changed(reef)
		w.look()
	}
	w.slurm.expect(t)
	if got := w.work("p_reef_models_gpu"); got.Minutes != 60000 || got.Attempts != 0 || got.AppliedAt.IsZero() {
		t.Errorf("%+v", got)
	}

	w.allocate(reef, "gpu", func(x *store.Wallet) { x.CombinedQuota, x.RetiredUsage, x.Locked = 2000, 10, true })
	w.Pass(t.Context())
	w.slurm.expect(t, "change p_reef_models_gpu maxsubmit=0 billing=120600 fairshare=83")
	w.allocate(reef, "gpu", func(x *store.Wallet) { x.CombinedQuota, x.RetiredUsage = 2000, 10 })
	w.Pass(t.Context())
	w.slurm.expect(t, "change p_reef_models_gpu maxsubmit=-1")

	w.members("Alice#1", "Eve#3")
	w.Pass(t.Context())
	w.slurm.expect(t, "remove p_reef_models_gpu [Bob02]")
	w.people.users["Eve#3"] = driveplan.Account{Name: "eve03", UID: 1003}
	w.connect("Eve#3", 1003, "eve03")
	w.Changed(reef)
	w.Pass(t.Context())
	w.slurm.expect(t, "add p_reef_models_gpu [eve03] default=false")
	w.disconnect("Eve#3")
	w.Pass(t.Context())
	w.slurm.expect(t, "remove p_reef_models_gpu [eve03]")

	// What somebody has changed in Slurm comes back, and nothing else of the account is written.
	st := w.slurm.accounts["p_reef_models_gpu"]
	st.Billing, st.QoS = 5, []string{"other"}
	delete(st.Users, "alice01")
	w.slurm.accounts["p_reef_models_gpu"] = st
	w.look()
	w.slurm.expect(t, "add p_reef_models_gpu [alice01] default=false", "change p_reef_models_gpu billing=120600 qos+=high")
}

// TestPersonal: a user's own workspace has the user as its member, who is made known to Slurm by it.
func TestPersonal(t *testing.T) {
	t.Parallel()
	m := automatic()
	m.SetDefaultAccount = true
	w := newWorld(t, m)
	w.allocate(alice, "cpu", func(x *store.Wallet) { x.CombinedQuota = 100 })
	w.allocate(alice, "disk", nil)
	w.allocate(bob, "cpu", func(x *store.Wallet) { x.IsAllocator = true })
	w.Pass(t.Context())
	w.slurm.expect(t, "create u_alice01_cpu parent= qos=[] org=ucloud-hpc", "add u_alice01_cpu [alice01] default=true",
		"change u_alice01_cpu billing=100")
}

// TestLocks: each kind of lock, and that a lock of an administrator stays.
func TestLocks(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind         string
		lock, unlock []string
	}{
		{LockMaxJobs, []string{"change u_alice01_cpu maxjobs=0"}, []string{"change u_alice01_cpu maxjobs=-1"}},
		{LockMaxSubmit, []string{"change u_alice01_cpu maxsubmit=0"}, []string{"change u_alice01_cpu maxsubmit=-1"}},
		{LockNone, nil, nil},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			t.Parallel()
			m := automatic()
			m.WhenLocked = tc.kind
			w := newWorld(t, m)
			w.allocate(alice, "cpu", nil)
			w.Pass(t.Context())
			w.slurm.took()
			w.allocate(alice, "cpu", func(x *store.Wallet) { x.Locked = true })
			w.Pass(t.Context())
			w.slurm.expect(t, tc.lock...)
			w.restart(m)
			w.allocate(alice, "cpu", nil)
			w.Pass(t.Context())
			w.slurm.expect(t, tc.unlock...)

			st := w.slurm.accounts["u_alice01_cpu"]
			st.MaxJobs, st.MaxSubmit = 0, 0
			w.slurm.accounts["u_alice01_cpu"] = st
			w.look()
			w.slurm.expect(t)
		})
	}
}

// TestForeign: what somebody else has made is left alone, accounts and members alike.
func TestForeign(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	theirs := State{Organization: "physics", MaxJobs: None, MaxSubmit: None, Billing: 7, Fairshare: 3, Users: map[string]bool{"alice01": true, "Bob02": true, "carol": true}}
	w.slurm.accounts = map[string]State{"p_reef_models_cpu": theirs}
	w.members("Alice#1")
	w.allocate(reef, "cpu", nil)
	w.look()
	w.slurm.expect(t)
	if got := w.work("p_reef_models_cpu"); !got.NextAt.IsZero() || !strings.Contains(got.LastError, "was not made by this module") {
		t.Errorf("%+v", got)
	}
	if st, err := w.Status(t.Context()); err != nil || st.Parked != 1 {
		t.Errorf("%+v %v", st, err)
	}
	if err := w.Adopt(t.Context(), "nobodys"); err == nil {
		t.Error("an account of nobody was handed over")
	}
	if err := w.Adopt(t.Context(), "p_reef_models_cpu"); err != nil {
		t.Fatal(err)
	}
	w.Pass(t.Context())
	w.slurm.expect(t, "change p_reef_models_cpu billing=1000 fairshare=1")
	w.members("Bob#2") // Alice has left, and was put there by others; Bob is there already
	w.Pass(t.Context())
	w.slurm.expect(t)
	if users := w.slurm.accounts["p_reef_models_cpu"].Users; len(users) != 3 {
		t.Error(users)
	}
}

// TestStubborn: while Slurm refuses, nothing is lost and it is asked ever more seldom; then it is done.
func TestStubborn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.members("Alice#1", "Bob#2")
	w.allocate(reef, "cpu", nil)
	w.slurm.fail["change"] = errors.New("database is away")
	w.Pass(t.Context())
	first := w.work("p_reef_models_cpu")
	if first.Attempts != 1 || !strings.Contains(first.LastError, "database is away") || !first.NextAt.After(time.Now()) {
		t.Fatalf("%+v", first)
	}
	w.look() // not before its time
	if again := w.work("p_reef_models_cpu"); again.Attempts != 1 {
		t.Errorf("%+v", again)
	}
	w.due("p_reef_models_cpu")
	w.look()
	second := w.work("p_reef_models_cpu")
	if second.Attempts != 2 || time.Until(second.NextAt) < 15*time.Second {
		t.Errorf("%+v", second)
	}
	w.slurm.fail = map[string]error{"remove": errors.New("jobs are active")}
	w.due("p_reef_models_cpu")
	w.look()
	w.slurm.took()
	w.members("Alice#1")
	w.Pass(t.Context())
	if got := w.work("p_reef_models_cpu"); got.Attempts != 1 {
		t.Errorf("%+v", got)
	}
	w.slurm.fail = nil
	w.due("p_reef_models_cpu")
	w.look()
	w.slurm.expect(t, "remove p_reef_models_cpu [Bob02]")
	w.slurm.fail = map[string]error{"read": errors.New("no answer")}
	w.allocate(reef, "cpu", func(x *store.Wallet) { x.Locked = true })
	w.Pass(t.Context())
	w.slurm.expect(t)
}

// TestBusyMember: a member who has left and still has jobs does not keep the account from being locked.
func TestBusyMember(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.members("Alice#1", "Bob#2")
	w.allocate(reef, "cpu", nil)
	w.Pass(t.Context())
	w.slurm.took()
	w.slurm.fail = map[string]error{"remove": errors.New("jobs are active")}
	w.members("Alice#1")
	w.allocate(reef, "cpu", func(x *store.Wallet) { x.Locked = true })
	w.Pass(t.Context())
	w.slurm.expect(t, "change p_reef_models_cpu maxsubmit=0")
	if got := w.work("p_reef_models_cpu"); got.Attempts != 1 || !got.Locked || !strings.Contains(got.LastError, "jobs are active") {
		t.Errorf("%+v", got)
	}
	w.slurm.fail = nil
	w.allocate(reef, "cpu", nil)
	w.Pass(t.Context())
	w.slurm.expect(t, "remove p_reef_models_cpu [Bob02]", "change p_reef_models_cpu maxsubmit=-1")
}

// TestVerify: a command that claims success and has done nothing is found out.
func TestVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.allocate(alice, "cpu", nil)
	w.slurm.after = func(entry string) {
		if strings.HasPrefix(entry, "change") {
			st := w.slurm.accounts["u_alice01_cpu"]
			st.Billing = 3
			w.slurm.accounts["u_alice01_cpu"] = st
		}
	}
	w.Pass(t.Context())
	if got := w.work("u_alice01_cpu"); got.Attempts != 1 || !strings.Contains(got.LastError, "not have the change") {
		t.Errorf("%+v", got)
	}
}

// TestCrash: the process ends after each change of Slurm, before anything is noted. The next one finishes, does nothing
// twice, and knows what is its own.
func TestCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.members("Alice#1", "Bob#2")
	w.allocate(reef, "cpu", func(x *store.Wallet) { x.Locked = true })
	for range 10 {
		ctx, crash := context.WithCancel(t.Context())
		w.slurm.after = func(string) { crash() }
		w.addEveryone(ctx) //nolint:errcheck // it has not crashed yet
		w.Pass(ctx)
		crash()
		w.restart(automatic())
	}
	w.slurm.after = nil
	w.look()
	w.slurm.expect(t, "create p_reef_models_cpu parent= qos=[] org=ucloud-hpc", "add p_reef_models_cpu [Bob02 alice01] default=false",
		"change p_reef_models_cpu maxsubmit=0 billing=1000")
	w.members("Alice#1")
	w.allocate(reef, "cpu", nil)
	w.Pass(t.Context())
	w.slurm.expect(t, "remove p_reef_models_cpu [Bob02]", "change p_reef_models_cpu maxsubmit=-1")
}

// TestMembersWhoAreHardToFind: a name service that has lost an account does not throw its user out.
func TestMembersWhoAreHardToFind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.members("Alice#1", "Bob#2")
	w.allocate(reef, "cpu", nil)
	w.Pass(t.Context())
	w.slurm.took()
	delete(w.people.users, "Bob#2")
	w.look()
	w.slurm.expect(t)
}

// TestOrphan: an account that belongs to nobody after an evaluation takes no more jobs, and nothing else of it changes.
func TestOrphan(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	w.allocate(alice, "cpu", nil)
	w.Pass(t.Context())
	w.slurm.took()
	if err := w.SetSettings(Settings{Categories: categories, Mapping: patterns("n_#{localUsername}", "p"), Management: automatic()}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Reevaluate(t.Context(), alice, "cpu", false); err != nil {
		t.Fatal(err)
	}
	w.look()
	w.slurm.expect(t, "create n_alice01 parent= qos=[] org=ucloud-hpc", "add n_alice01 [alice01] default=false",
		"change n_alice01 billing=1000", "change u_alice01_cpu maxsubmit=0")
	w.look()
	w.slurm.expect(t)
}

// TestLimits: conversion to minutes and to shares (contract 22 section 7.1, contract 30 section 4).
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		category Category
		wallet   store.Wallet
		minutes  int64
		locked   bool
	}{
		{Category{Period: 1}, store.Wallet{CombinedQuota: 50, RetiredUsage: 5}, 55, false},
		{Category{Period: 60}, store.Wallet{CombinedQuota: 50, Locked: true}, 3000, true},
		{Category{Period: 1440}, store.Wallet{CombinedQuota: 50}, 72000, false},
		{Category{Period: 1440}, store.Wallet{CombinedQuota: math.MaxInt64}, math.MaxInt64, false},
		{Category{Period: 60, Money: true}, store.Wallet{CombinedQuota: 50, Locked: true}, None, true},
		{Category{Period: 60, FreeToUse: true}, store.Wallet{Locked: true}, None, false},
		{Category{Period: 60}, store.Wallet{}, 0, true},
		{Category{Period: 60}, store.Wallet{CombinedQuota: 50, IsAllocator: true}, 0, true},
	} {
		p := part{category: tc.category, wallet: &tc.wallet}
		if p.minutes() != tc.minutes || p.locked() != tc.locked {
			t.Errorf("%+v %+v: %d, %v", tc.category, tc.wallet, p.minutes(), p.locked())
		}
	}
	for limit, want := range map[int64]int64{0: 1, 1439: 1, 2880: 2, math.MaxInt64: 1_000_000_000} {
		if got := shares(limit); got != want {
			t.Errorf("%d minutes are %d shares", limit, got)
		}
	}
	shared := &goal{parts: []part{
		{Category{Period: 1}, &store.Wallet{CombinedQuota: 5}}, {Category{Period: 60}, &store.Wallet{CombinedQuota: 1, Locked: true}},
	}}
	if shared.limit() != 65 || shared.locked() {
		t.Error("an account of two categories:", shared.limit(), shared.locked())
	}
}

// TestEverybody: with many workspaces Slurm is asked once for all.
func TestEverybody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	for i := range readAll + 5 {
		id := ident.ProjectID("many" + string(rune('a'+i)))
		w.people.groups[id] = driveplan.Group{Name: "g" + string(rune('a'+i)), GID: ident.GID(5000 + i)}
		project(t, w.db, id, func(*providerapi.Project) {}, "Alice#1")
		w.allocate(ident.Owner{Project: id}, "cpu", nil)
	}
	w.look()
	if n := len(w.slurm.took()); n != 3*(readAll+5) {
		t.Error(n, "changes")
	}
	w.look()
	w.slurm.expect(t)
}

// TestFirstJob: the first job for a product that is free to use waits until its account has been made.
func TestFirstJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t, automatic())
	free := []Category{{Name: "free", Partition: "normal", Period: 1, Unit: "Cpu", FreeToUse: true}}
	if err := w.SetSettings(Settings{Categories: free, Mapping: patterns("u_#{localUsername}", "p"), Management: automatic()}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Account(t.Context(), alice, "Alice#1", "free", ""); err == nil || !strings.Contains(failure.Why(err), "is being made") {
		t.Error(got, err) // nobody works
	}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _ = w.Run(ctx) })
	defer work.Wait()
	defer stop()
	until := time.Now().Add(time.Minute)
	got, err := w.Account(t.Context(), alice, "Alice#1", "free", "")
	for err != nil && time.Now().Before(until) { // a busy machine
		got, err = w.Account(t.Context(), alice, "Alice#1", "free", "")
	}
	if err != nil || got != "u_alice01" {
		t.Error(got, err)
	}
	w.slurm.expect(t, "create u_alice01 parent= qos=[] org=ucloud-hpc", "add u_alice01 [alice01] default=false")
}
