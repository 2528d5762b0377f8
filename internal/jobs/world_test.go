package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/slurmfake"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	slurmfake.RunIfFake()
	_ = flag.Set("rapid.checks", "12") // each has a database of its own; the command line has the last word
	goleak.VerifyTestMain(m)
}

const (
	ada, bob, eve          = ident.UCloudUser("Ada#1"), ident.UCloudUser("Bob#2"), ident.UCloudUser("Eve#3")
	adaID, bobID, eveID    = ident.UID(1001), ident.UID(1002), ident.UID(1003)
	climate                = ident.ProjectID("3f1c9a52-6d07-4e1b-a3c8-90b2f4d7e615")
	provider               = "hpc"
	category, product      = "cpu", "cpu-4"
	adaName, bobName, eveN = "ada", "bob", "eve"
)

var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fakeSlurm is a Slurm in memory.
type fakeSlurm struct {
	mu        sync.Mutex // guards the fields below
	now       func() time.Time
	next      int
	jobs      []*Observation
	forgotten map[string]bool // by slurmctld
	purged    map[string]bool // by slurmdbd too
	moved     map[string]bool // to a partition that is not looked at
	queueErr  error
	histErr   error
	lookErr   error
	cancelErr error
	hangs     bool // scancel does not return by itself
	deaf      bool // jobs do not end
	cancels   int
	cancelled []string
	lookups   int
	rounds    int
}

func (f *fakeSlurm) set(change func(f *fakeSlurm)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// sbatch submits a job.
func (f *fakeSlurm) sbatch(user, account, comment string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	id := strconv.Itoa(730000 + f.next)
	f.jobs = append(f.jobs, &Observation{
		ID: id, User: user, Account: account, Partition: "normal", Name: "j", Comment: comment, State: providerapi.JobInQueue,
		Word: "PENDING", Message: "The job waits in the queue", NodeCount: 1, CPUs: 4, Submitted: f.now(), Limit: time.Hour,
	})
	return id
}

func (f *fakeSlurm) job(id string, change func(o *Observation)) {
	f.set(func(f *fakeSlurm) {
		for _, o := range f.jobs {
			if o.ID == id {
				change(o)
			}
		}
	})
}

func (f *fakeSlurm) run(id string, nodes ...string) {
	f.job(id, func(o *Observation) {
		o.State, o.Word, o.Message, o.Nodes, o.Started = providerapi.JobRunning, "RUNNING", "The job is running", nodes, f.now()
	})
}

func (f *fakeSlurm) finish(id string, state providerapi.JobState, word, message string) {
	f.job(id, func(o *Observation) { o.State, o.Word, o.Message, o.Ended = state, word, message, f.now() })
}

func (f *fakeSlurm) Queue(context.Context) ([]Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rounds++
	return f.list(f.queueErr, func(o *Observation) bool {
		return !f.forgotten[o.ID] && !f.moved[o.ID] && (!o.State.Final() || f.now().Sub(o.Ended) < 5*time.Minute)
	})
}

func (f *fakeSlurm) list(err error, want func(o *Observation) bool) (all []Observation, _ error) {
	for _, o := range f.jobs {
		if want(o) {
			all = append(all, *o)
		}
	}
	if err != nil {
		return all[:len(all)/2], err // what came before it was cut
	}
	return all, nil
}

func (f *fakeSlurm) History(_ context.Context, since time.Time) ([]Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list(f.histErr, func(o *Observation) bool {
		return !f.purged[o.ID] && !f.moved[o.ID] && (!o.State.Final() || o.Ended.After(since))
	})
}

func (f *fakeSlurm) Lookup(_ context.Context, ids []string) ([]Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lookups++
	return f.list(f.lookErr, func(o *Observation) bool { return !f.purged[o.ID] && slices.Contains(ids, o.ID) })
}

func (f *fakeSlurm) Present(_ context.Context, ids []string) ([]Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list(f.queueErr, func(o *Observation) bool { return !f.forgotten[o.ID] && slices.Contains(ids, o.ID) })
}

func (f *fakeSlurm) Cancel(ctx context.Context, id, user string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancels++
	if f.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if f.deaf {
		return nil
	}
	if f.cancelErr != nil {
		return f.cancelErr
	}
	for _, o := range f.jobs {
		if o.ID == id && o.User == user && !o.State.Final() {
			o.State, o.Word, o.Message, o.Ended = providerapi.JobSuccess, "CANCELLED", "The job was cancelled by UCloud", f.now()
			f.cancelled = append(f.cancelled, id)
		}
	}
	return nil
}

func (f *fakeSlurm) SetTimeLimit(_ context.Context, id string, total time.Duration) error {
	f.job(id, func(o *Observation) { o.Limit = total })
	return nil
}

// coreJob is a job at Core.
type coreJob struct {
	owner   ident.Owner
	user    ident.UCloudUser
	product string
	state   providerapi.JobState
	history []string
	pgid    string
	states  []providerapi.JobState
}

// fakeCore applies updates as Core does: all ids are looked at first, and final is final.
type fakeCore struct {
	mu         sync.Mutex // guards the fields below
	jobs       map[string]*coreJob
	next       int
	err        error // of all calls
	cut        bool  // the next update is done, and its answer is lost
	dislike    string
	calls      int
	registered int
	poison     map[string]bool // jobs about which Core fails
}

func (c *fakeCore) set(change func(c *fakeCore)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *fakeCore) UpdateJobs(_ context.Context, items []providerapi.JobUpdateItem) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.err != nil {
		return c.err
	}
	for _, i := range items {
		if c.jobs[i.ID] == nil {
			return &coreapi.StatusError{Status: 404, Why: "Not found or permission denied (" + i.ID + ")"}
		}
		if c.poison[i.ID] {
			return &coreapi.StatusError{Status: 500, Why: "Internal error"}
		}
	}
	for _, i := range items {
		if c.dislike != "" && i.Update.Status != nil && *i.Update.Status == c.dislike {
			return &coreapi.StatusError{Status: 400, Why: "Bad"}
		}
		c.jobs[i.ID].apply(i.Update)
	}
	if c.cut {
		c.cut = false
		return fmt.Errorf("update: %w", coreapi.ErrNoAnswer)
	}
	return nil
}

func (j *coreJob) apply(u providerapi.JobUpdate) {
	if u.State != nil && j.state.Final() && !u.State.Final() {
		return
	}
	if u.ExpectedDifferentState != nil && *u.ExpectedDifferentState && u.State != nil && *u.State == j.state {
		return
	}
	text := ""
	if u.State != nil {
		text = string(*u.State) + ": "
		j.state = *u.State
		j.states = append(j.states, *u.State)
	}
	switch {
	case u.Status != nil:
		text += *u.Status
	case u.OutputFolder != nil:
		text += "folder " + *u.OutputFolder
	case u.NewTimeAllocation != nil:
		text += "time " + strconv.FormatInt(*u.NewTimeAllocation, 10)
	}
	j.history = append(j.history, text)
}

func (c *fakeCore) RetrieveJob(_ context.Context, id string) (providerapi.Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.err != nil {
		return providerapi.Job{}, c.err
	}
	if c.poison[id] {
		return providerapi.Job{}, &coreapi.StatusError{Status: 500, Why: "Internal error"}
	}
	j := c.jobs[id]
	if j == nil {
		return providerapi.Job{}, &coreapi.StatusError{Status: 403, Why: "Not found"}
	}
	return document(id, j.user, j.owner, j.product), nil
}

func (c *fakeCore) CheckExistence(_ context.Context, resources []coreapi.Resource) (out []bool, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	for _, r := range resources {
		out = append(out, c.jobs[r.ID] != nil)
	}
	return out, nil
}

func (c *fakeCore) RegisterJob(_ context.Context, r providerapi.RegisterJob) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", c.err
	}
	for _, j := range c.jobs {
		if j.pgid == r.ProviderGeneratedID {
			return "", &coreapi.StatusError{Status: 409, Why: "Already exists"}
		}
	}
	c.next++
	c.registered++
	id := strconv.Itoa(9000 + c.next)
	owner := ident.Owner{User: *r.CreatedBy}
	if r.Project != nil {
		owner = ident.Owner{Project: *r.Project}
	}
	c.jobs[id] = &coreJob{owner: owner, user: *r.CreatedBy, product: r.Spec.Product.ID, state: providerapi.JobInQueue, pgid: r.ProviderGeneratedID}
	if c.cut {
		c.cut = false
		return "", fmt.Errorf("register: %w", coreapi.ErrNoAnswer)
	}
	return id, nil
}

func (c *fakeCore) FindJob(_ context.Context, pgid string) (providerapi.Job, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, j := range c.jobs {
		if j.pgid == pgid {
			return providerapi.Job{ID: id}, true, nil
		}
	}
	return providerapi.Job{}, false, nil
}

// create is what Core does before it calls the provider.
func (c *fakeCore) create(id string, user ident.UCloudUser, owner ident.Owner) {
	c.set(func(c *fakeCore) {
		c.jobs[id] = &coreJob{owner: owner, user: user, product: product, state: providerapi.JobInQueue}
	})
}

func (c *fakeCore) history(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jobs[id] == nil {
		return "none"
	}
	return fmt.Sprintf("%q", c.jobs[id].history)
}

func (c *fakeCore) state(id string) providerapi.JobState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jobs[id].state
}

type names map[ident.UID]string

func (n names) LocalName(uid ident.UID) (string, bool) { name, ok := n[uid]; return name, ok }

func (names) Mapped(name string) (ident.UCloudUser, ident.UID, bool) {
	switch name {
	case adaName:
		return ada, adaID, true
	case bobName:
		return bob, bobID, true
	}
	return "", 0, false
}

// fakeAccounts: each workspace has one account.
type fakeAccounts struct{ err error }

func (a *fakeAccounts) Account(_ context.Context, owner ident.Owner, _ ident.UCloudUser, _, choice string) (string, error) {
	if choice != "" {
		return choice, a.err
	}
	return accountOf(owner), a.err
}

func accountOf(owner ident.Owner) string {
	if owner.IsProject() {
		return "p_climate"
	}
	return "u_" + string(owner.User[:3])
}

func (a *fakeAccounts) OwnerOf(_ context.Context, account, _ string) (ident.Owner, bool, error) {
	switch account {
	case "p_climate":
		return ident.Owner{Project: climate}, true, nil
	case "u_Ada":
		return ident.Owner{User: ada}, true, nil
	}
	return ident.Owner{}, false, nil
}

func document(id string, user ident.UCloudUser, owner ident.Owner, machine string) providerapi.Job {
	j := providerapi.Job{ID: id, Owner: providerapi.ResourceOwner{CreatedBy: user}}
	if owner.IsProject() {
		j.Owner.Project = &owner.Project
	}
	j.Specification.Product = providerapi.ProductReference{ID: machine, Category: category, Provider: provider}
	j.Specification.Application = providerapi.ApplicationReference{Name: "app", Version: "1"}
	j.Specification.Replicas = 1
	j.Specification.TimeAllocation = &providerapi.SimpleDuration{Hours: 1}
	return j
}

// world is a server with everything around it. Time stands still unless the test moves it; nothing runs by itself.
type world struct {
	*Service
	t     *testing.T
	db    *store.Store
	slurm *fakeSlurm
	core  *fakeCore
	acc   *fakeAccounts
	names names
	set   Settings
	m     *monitor

	mu  sync.Mutex
	now time.Time
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func newWorld(t *testing.T, db *store.Store) *world {
	t.Helper()
	w := &world{
		t: t, db: db, now: day, core: &fakeCore{jobs: map[string]*coreJob{}}, acc: &fakeAccounts{},
		names: names{adaID: adaName, bobID: bobName, eveID: eveN},
	}
	w.slurm = &fakeSlurm{now: w.clock, forgotten: map[string]bool{}, purged: map[string]bool{}}
	machine := Machine{
		JobMachine: ipcapi.JobMachine{Name: product, Category: category, CPU: 4, MemoryGB: 16}, Partition: "normal",
		MaxTime: 10 * time.Hour, MaxNodes: 8,
	}
	big := machine
	big.Name, big.CPU, big.MemoryGB = "cpu-8", 8, 32
	w.set = Settings{
		Machine: func(ref providerapi.ProductReference) (Machine, bool) {
			return machine, ref == providerapi.ProductReference{ID: product, Category: category, Provider: provider}
		},
		Category: func(partition, _ string) ([]Machine, bool) { return []Machine{machine, big}, partition == "normal" },
		Folder:   "ucloud-jobs", PortMin: 20000, PortMax: 20009, TimeExtension: true, Poll: 15 * time.Second, Lookback: 7 * 24 * time.Hour,
		RegisterOutside: true, Keep: 90 * 24 * time.Hour,
	}
	w.update(func(tx *store.Tx) error {
		p := providerapi.Project{ID: climate}
		p.Status.Members = []providerapi.ProjectMember{{Username: ada, Role: "USER"}, {Username: bob, Role: "PI"}}
		_, _, err := tx.PutProject(store.Project{ID: climate, ModifiedAt: day, Document: p})
		for _, o := range []ident.Owner{{User: ada}, {User: bob}, {User: eve}, {Project: climate}} {
			if err == nil {
				_, err = tx.PutWallet(store.Wallet{Owner: o, Category: category, CombinedQuota: 100, LastUpdate: day})
			}
		}
		return err
	})
	w.restart()
	return w
}

// restart is a crash of the server and the start of another: the database is all that is left.
func (w *world) restart() {
	w.t.Helper()
	s, err := New(Options{
		Provider: provider, Store: w.db, Core: w.core, Engine: w.slurm, Accounts: w.acc, Users: w.names, Now: w.clock,
		Settings: func() Settings { return w.set },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Service = s
	w.m = &monitor{s: s, hints: map[int64]hint{}}
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.db.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

// look makes one round of the monitor.
func (w *world) look() {
	w.t.Helper()
	if err := w.m.round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// tellCore asks Core about jobs and tells it everything that is due.
func (w *world) tellCore() {
	w.t.Helper()
	if err := w.confirmSome(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.flush()
}

func (w *world) flush() {
	w.t.Helper()
	for {
		more, err := w.deliverSome(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

func (w *world) beginning(id string, user ident.UCloudUser, owner ident.Owner) ipcapi.JobBeginning {
	raw, err := json.Marshal(document(id, user, owner, product))
	if err != nil {
		w.t.Fatal(err)
	}
	return ipcapi.JobBeginning{Job: raw}
}

// own begins a job of ada's own.
func (w *world) own(id string) (ipcapi.JobGrant, error) {
	w.core.create(id, ada, ident.Owner{User: ada})
	return w.Begin(w.t.Context(), ada, adaID, w.beginning(id, ada, ident.Owner{User: ada}))
}

// submit takes a job of ada's through a whole submission and gives its id in Slurm.
func (w *world) submit(id string) string {
	w.t.Helper()
	return w.submitFor(id, ident.Owner{User: ada})
}

func (w *world) submitFor(id string, owner ident.Owner) string {
	w.t.Helper()
	w.core.create(id, ada, owner)
	g, err := w.Begin(w.t.Context(), ada, adaID, w.beginning(id, ada, owner))
	if err != nil {
		w.t.Fatal(err)
	}
	slurmID := w.slurm.sbatch(adaName, g.Account, g.Comment)
	if _, err := w.Submitted(w.t.Context(), ada, adaID, ipcapi.JobSubmission{
		Job: id, Attempt: g.Attempt, EngineID: slurmID, Folder: "/home/ada/ucloud-jobs/" + id, OutputFolder: "/7/ucloud-jobs/" + id, TimeMs: time.Hour.Milliseconds(),
	}); err != nil {
		w.t.Fatal(err)
	}
	w.pass(3 * time.Second)
	return slurmID
}

func (w *world) row(id string, uid ident.UID) store.Job {
	w.t.Helper()
	var j store.Job
	if err := w.db.View(w.t.Context(), func(tx *store.Tx) (err error) { j, err = tx.JobOf(id, uid); return err }); err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return j
}

func (w *world) expect(id, history string) {
	w.t.Helper()
	if got := w.core.history(id); got != history {
		w.t.Errorf("Core's history of %s is\n%s, want\n%s", id, got, history)
	}
}

func sqlite(t *testing.T) *world { t.Helper(); return newWorld(t, storetest.SQLite(t)) }
