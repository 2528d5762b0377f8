package websession

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ada   = ident.UCloudUser("Ada#1")
	bo    = ident.UCloudUser("Bo#2")  // in ada's project
	eve   = ident.UCloudUser("Eve#3") // a stranger
	adaID = ident.UID(20001)
	boID  = ident.UID(20002)
	eveID = ident.UID(20003)
)

// fakeJobs is what is known of jobs, with who may see them.
type fakeJobs struct {
	mu     sync.Mutex
	jobs   map[string][]ipcapi.JobRecord // claims by id
	shared map[string][]ident.UCloudUser // who else may see the first claim
	broken error
}

func (f *fakeJobs) Visible(_ context.Context, user ident.UCloudUser, _ ident.UID, id string) (ipcapi.JobRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return ipcapi.JobRecord{}, f.broken
	}
	for _, j := range f.jobs[id] {
		if j.CreatedBy == user {
			return j, nil
		}
	}
	for _, u := range f.shared[id] {
		if u == user {
			return f.jobs[id][0], nil
		}
	}
	return ipcapi.JobRecord{}, failure.New(failure.NotFound, "no such job")
}

// world is a service behind a real socket, with a client of it.
type world struct {
	t       *testing.T
	store   *store.Store
	jobs    *fakeJobs
	s       *Service
	client  *ipc.Client
	user    atomic.Pointer[ident.UCloudUser]
	mapped  sync.Map // users who are connected
	later   atomic.Int64
	set     atomic.Pointer[Settings]
	stop    func()
	updates *ipc.Receiver[ipcapi.WebUpdate]
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.later.Load())) }

func newWorld(t *testing.T, s *store.Store) *world {
	t.Helper()
	w := &world{t: t, store: s, jobs: &fakeJobs{jobs: map[string][]ipcapi.JobRecord{}, shared: map[string][]ident.UCloudUser{}}}
	w.configure(func(set *Settings) {
		*set = Settings{
			Web: true, VNC: true, Prefix: "app-", Suffix: ".apps.example.org", PortMin: 20000, PortMax: 29999, Scheme: "https", Port: ":8443",
			PublicURL: "https://birch.example.org:8443", OwnHosts: []string{"birch.example.org", "app-7-0.apps.example.org"},
		}
	})
	for user, uid := range map[ident.UCloudUser]ident.UID{ada: adaID, bo: boID, eve: eveID} {
		w.mapped.Store(user, uid)
	}
	w.be(ada)
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start makes the service and runs it, as a start of the server does.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	tokens := onetime.New(w.store, onetime.Options{Now: w.now})
	var err error
	w.s, err = New(Options{
		Provider: "birch", Store: w.store, Tokens: tokens, Jobs: w.jobs, Log: log, Now: w.now, SessionLife: time.Hour,
		Settings: func() Settings { return *w.set.Load() }, MaxSessions: 4,
		Account: func(user ident.UCloudUser) (ident.UID, bool) {
			uid, ok := w.mapped.Load(user)
			if !ok {
				return 0, false
			}
			return uid.(ident.UID), true
		},
		Address: func(_ context.Context, node string) (string, error) { return "addr-of-" + node, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	srv := ipc.NewServer(ipc.ServerOptions{Log: log, RequestsPerSecond: 1_000_000, Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{User: *w.user.Load(), Mapped: true, Service: true}, nil
	}})
	w.s.Register(srv)
	dir, err := os.MkdirTemp("", "imt-web")
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := ipc.Listen(filepath.Join(dir, "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx, l) }) //nolint:errcheck // seen by its effect
	wg.Go(func() { w.s.Run(ctx) })      //nolint:errcheck // always nil
	w.client, err = ipc.Dial(ctx, filepath.Join(dir, "s"), ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		w.t.Fatal(err)
	}
	client := w.client
	w.stop = sync.OnceFunc(func() {
		client.Close() //nolint:errcheck // a test
		cancel()
		wg.Wait()
		os.RemoveAll(dir)
	})
	if w.updates, err = ipc.Open(ctx, w.client, ipcapi.GatewayWeb, ipcapi.GatewayHello{Protocol: ipcapi.Protocol}); err != nil {
		w.t.Fatal(err)
	}
}

// configure changes the settings.
func (w *world) configure(change func(*Settings)) {
	var set Settings
	if now := w.set.Load(); now != nil {
		set = *now
	}
	change(&set)
	w.set.Store(&set)
}

func (w *world) be(u ident.UCloudUser) { w.user.Store(&u) }

// job is a running web application of ada's in a project with bo.
func (w *world) job(id string, change func(*ipcapi.JobRecord)) {
	w.t.Helper()
	j := ipcapi.JobRecord{
		ID: id, CreatedBy: ada, UID: adaID, Engine: ipcapi.EngineSlurm, State: providerapi.JobRunning, Confirmed: true, ApplicationType: "WEB",
		Replicas: 2, Nodes: []string{"c1", "c2"}, Port: 23000, StartedAt: time.Now(),
	}
	if change != nil {
		change(&j)
	}
	w.jobs.mu.Lock()
	defer w.jobs.mu.Unlock()
	w.jobs.jobs[id] = []ipcapi.JobRecord{j}
	w.jobs.shared[id] = []ident.UCloudUser{bo}
}

func (w *world) open(o ipcapi.WebOpening) (string, error) {
	r, err := ipc.Invoke(w.t.Context(), w.client, ipcapi.WebOpen, o)
	return r.URL, err
}

// mustOpen opens as a user and gives the parts of the link.
func (w *world) mustOpen(u ident.UCloudUser, o ipcapi.WebOpening) (host, token string) {
	w.t.Helper()
	w.be(u)
	link, err := w.open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	parsed, err := url.Parse(link)
	if err != nil {
		w.t.Fatal(err)
	}
	return parsed.Hostname(), parsed.Query().Get("token")
}

func (w *world) exchange(kind, host, token string) (ipcapi.WebExchanged, error) {
	hash := sha256.Sum256([]byte(token))
	return ipc.Invoke(w.t.Context(), w.client, ipcapi.GatewayWebExchange, ipcapi.WebExchange{Kind: kind, Host: host, Hash: hash[:]})
}

func (w *world) mustExchange(kind, host, token string) ipcapi.WebExchanged {
	w.t.Helper()
	got, err := w.exchange(kind, host, token)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// until reads updates until one satisfies, and gives what a gateway knows then.
func (w *world) until(what string, ok func(map[string]ipcapi.WebRoute) bool, table map[string]ipcapi.WebRoute) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	for !ok(table) {
		u, _, err := w.updates.Next(ctx)
		if err != nil {
			w.t.Fatalf("%s: %v; the gateway knows %v", what, err, table)
		}
		if u.Full {
			clear(table)
		}
		for _, r := range u.Put {
			table[r.ID] = r
		}
		for _, r := range u.Remove {
			delete(table, r.ID)
		}
	}
}

func web(job string) ipcapi.WebOpening { return ipcapi.WebOpening{Job: job, Kind: "WEB"} }

func TestLife(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s)
		w.job("512", nil)
		link, err := w.open(ipcapi.WebOpening{Job: "512", Rank: 1, Kind: "WEB", Port: 23000})
		if err != nil || !strings.HasPrefix(link, "https://app-512-1.apps.example.org:8443/ucloud/birch/authorize-app?token=") {
			t.Fatal(link, err)
		}
		host, token := w.mustOpen(ada, ipcapi.WebOpening{Job: "512", Rank: 1, Kind: "WEB"})
		_, second := w.mustOpen(bo, ipcapi.WebOpening{Job: "512", Rank: 1, Kind: "WEB"})
		if token == second || strings.HasSuffix(link, token) || len(token) < 43 {
			t.Error("the links are not all different")
		}
		got := w.mustExchange("WEB", host, token)
		if got.Value == token || len(got.Value) < 43 || time.Until(got.ExpiresAt) > time.Hour || time.Until(got.ExpiresAt) < 50*time.Minute {
			t.Errorf("%+v", got)
		}
		r := got.Route
		hash := sha256.Sum256([]byte(got.Value))
		if r.Host != host || r.Address != "addr-of-c2" || r.Port != 23000 || r.UID != adaID || r.Cookie != "ucloud-compute-session-512-1" ||
			len(r.Grants) != 1 || string(r.Grants[0].Hash) != string(hash[:]) {
			t.Errorf("%+v", r)
		}
		if _, err := w.exchange("WEB", host, token); !failure.Is(err, failure.NotFound) {
			t.Errorf("a token was used twice: %v", err)
		}
		if got := w.mustExchange("WEB", host, second); len(got.Route.Grants) != 2 {
			t.Errorf("%+v", got.Route)
		}
		table := map[string]ipcapi.WebRoute{}
		w.until("the sessions", func(m map[string]ipcapi.WebRoute) bool { return len(m) == 1 && len(m[r.ID].Grants) == 2 }, table)

		// A restart of the server changes nothing for browsers.
		w.stop()
		w.start()
		t.Cleanup(func() { w.stop() })
		u, _, err := w.updates.Next(t.Context())
		if err != nil || !u.Full || len(u.Put) != 1 || len(u.Put[0].Grants) != 2 || u.Put[0].Host != host || u.Put[0].Version <= r.Version {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

func TestDesktop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.job("512", func(j *ipcapi.JobRecord) { j.ApplicationType = "VNC" })
	link, err := w.open(ipcapi.WebOpening{Job: "512", Kind: "VNC"})
	token, ok := strings.CutPrefix(link, "https://birch.example.org:8443/ucloud/birch/vnc?token=")
	if err != nil || !ok {
		t.Fatal(link, err)
	}
	if _, err := w.exchange("WEB", "app-512-0.apps.example.org", token); err == nil {
		t.Error("a token for a desktop opened a web application")
	}
	got := w.mustExchange("VNC", "", token)
	if got.Route.Host != "" || got.Route.Cookie != "" || got.Route.Kind != "VNC" || got.Route.Address != "addr-of-c1" {
		t.Errorf("%+v", got.Route)
	}
	w.job("512", func(j *ipcapi.JobRecord) { j.ApplicationType, j.State = "VNC", providerapi.JobInQueue })
	if _, err := w.open(ipcapi.WebOpening{Job: "512", Kind: "VNC"}); !failure.Is(err, failure.Conflict) {
		t.Errorf("a desktop in the queue: %v", err)
	}
}

// TestHostile: what an instance may not get, whatever it asks for.
//
//attack:actor local user
//attack:does Asks for the web interface of a job that belongs to a workspace of others.
//attack:control Jobs of other workspaces do not exist for a user.
//attack:remove internal/websession/open.go: rec, err := s.o.Jobs.Visible(ctx, r.Grant.User, r.Peer.UID(), req.Job)\n\tif err != nil { => rec, err := s.o.Jobs.Visible(ctx, "ada#1", r.Peer.UID(), req.Job)\n\tif err != nil {
//attack:actor compromised instance
//attack:does Asks for a link to a port of its choice on the node of the job.
//attack:control The port of an interface is the one that the server gave to the job.
//attack:remove internal/websession/open.go: if req.Port != 0 && req.Port != port { => if req.Port != 0 {\n\t\tport = req.Port\n\t}\n\tif req.Port < 0 {
func TestHostile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	targets := []ipcapi.JobTarget{
		{Type: "WEB", Target: "Board", Port: 24000},
		{Rank: 1, Type: "WEB", Target: "Other", Port: 24001},
		{Type: "VNC", Target: "Desk", Port: 24002},
		{Type: "WEB", Target: "SSH", Port: 22},
		{Type: "WEB", Target: "Instances", Port: 42000},
	}
	w.job("512", func(j *ipcapi.JobRecord) { j.Targets = targets })
	w.job("7", nil)
	w.job("600", func(j *ipcapi.JobRecord) { j.State = providerapi.JobSuccess })
	w.job("601", func(j *ipcapi.JobRecord) { j.Port = 0 })
	for name, tc := range map[string]struct {
		user ident.UCloudUser
		open ipcapi.WebOpening
		want failure.Kind
	}{
		"somebody else's job":           {eve, web("512"), failure.NotFound},
		"no such job":                   {ada, web("513"), failure.NotFound},
		"a path for a job":              {ada, web("512/../513"), failure.NotFound},
		"a host for a job":              {ada, web("birch.example.org"), failure.NotFound},
		"a rank too many":               {ada, ipcapi.WebOpening{Job: "512", Rank: 2, Kind: "WEB"}, failure.Invalid},
		"a negative rank":               {ada, ipcapi.WebOpening{Job: "512", Rank: -1, Kind: "WEB"}, failure.Invalid},
		"another port":                  {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Port: 23001}, failure.Forbidden},
		"the port of a target":          {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Port: 24000}, failure.Forbidden},
		"another kind":                  {ada, ipcapi.WebOpening{Job: "512", Kind: "VNC"}, failure.NotFound},
		"a kind that is none":           {ada, ipcapi.WebOpening{Job: "512", Kind: "SHELL"}, failure.Invalid},
		"a target that is not declared": {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "Nope", Port: 25000}, failure.NotFound},
		"a target of another rank":      {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "Other"}, failure.NotFound},
		"a target of another kind":      {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "Desk"}, failure.NotFound},
		"a target below the range":      {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "SSH"}, failure.Forbidden},
		"a target above the range":      {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "Instances"}, failure.Forbidden},
		"the provider's own host name":  {ada, web("7"), failure.Internal},
		"a job that has ended":          {ada, web("600"), failure.Conflict},
		"a job without a port":          {ada, ipcapi.WebOpening{Job: "601", Kind: "WEB", Port: 23000}, failure.NotFound},
		"a long target":                 {ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: strings.Repeat("x", 300)}, failure.NotFound},
	} {
		w.be(tc.user)
		if link, err := w.open(tc.open); !failure.Is(err, tc.want) {
			t.Errorf("%s: %q, %v", name, link, err)
		}
	}
	// Another user's token, on another host.
	w.job("513", func(j *ipcapi.JobRecord) { j.CreatedBy, j.UID = eve, eveID })
	host, token := w.mustOpen(ada, web("512"))
	other, mine := w.mustOpen(eve, web("513"))
	if _, err := w.exchange("WEB", other, token); !failure.Is(err, failure.NotFound) {
		t.Errorf("a token was used on another host: %v", err)
	}
	if _, err := w.exchange("WEB", host, mine); !failure.Is(err, failure.NotFound) {
		t.Errorf("a token opened another host: %v", err)
	}
	if _, err := w.exchange("VNC", "", token); !failure.Is(err, failure.NotFound) {
		t.Errorf("a token for a web application opened a desktop: %v", err)
	}
	w.later.Store(int64(3 * time.Minute))
	if _, err := w.exchange("WEB", host, token); !failure.Is(err, failure.NotFound) {
		t.Errorf("an old token: %v", err)
	}
	w.configure(func(set *Settings) { set.Web, set.VNC = false, false })
	for _, kind := range []string{"WEB", "VNC"} {
		if _, err := w.open(ipcapi.WebOpening{Job: "513", Kind: kind}); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s although it is switched off: %v", kind, err)
		}
	}
}

// TestForgedJob: an account claims the job of another one. Core has not confirmed it, so it gets no host name.
//
//attack:actor compromised instance
//attack:does Describes a job that is not its own, to open its interface.
//attack:control What an interface leads to comes from the server's record of the job.
//attack:remove internal/websession/open.go: case !rec.Confirmed: => case false:
func TestForgedJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.job("512", nil)
	forged := ipcapi.JobRecord{
		ID: "512", CreatedBy: eve, UID: eveID, Engine: "slurm", State: providerapi.JobRunning, ApplicationType: "WEB", Replicas: 1, Nodes: []string{"c9"}, Port: 23999,
	}
	w.jobs.mu.Lock()
	w.jobs.jobs["512"] = append(w.jobs.jobs["512"], forged)
	w.jobs.mu.Unlock()
	w.be(eve)
	if link, err := w.open(web("512")); !failure.Is(err, failure.Conflict) {
		t.Errorf("%q, %v", link, err)
	}
	host, token := w.mustOpen(ada, web("512"))
	if got := w.mustExchange("WEB", host, token); got.Route.UID != adaID || got.Route.Address != "addr-of-c1" {
		t.Errorf("%+v", got.Route)
	}
	// Even if both were confirmed, the name is the first one's.
	w.jobs.mu.Lock()
	w.jobs.jobs["512"][1].Confirmed = true
	w.jobs.mu.Unlock()
	w.be(eve)
	if link, err := w.open(web("512")); !failure.Is(err, failure.Conflict) {
		t.Errorf("two interfaces at %s: %q, %v", host, link, err)
	}
}

// TestNeighbours: the port of a job of another account on the same node of the cluster.
//
//attack:actor malicious job
//attack:does Declares the port that a job of another account was given on the same node.
//attack:control A port on a node leads only to the job that had it first, and what the provider gave comes before what jobs declare.
//attack:remove internal/websession/place.go: if err := s.checkNeighbours(ctx, rec, w, node, port); err != nil { => if err := s.checkNeighbours(ctx, rec, w, node, port); errors.Is(err, context.Canceled) {
func TestNeighbours(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		victim  func(*store.Job)
		mine    func(*ipcapi.JobRecord)
		refused bool
	}{
		"declared, and granted to another": {func(j *store.Job) { j.Port = 24000 }, nil, true},
		"on another node":                  {func(j *store.Job) { j.Port, j.Nodes = 24000, []string{"c7"} }, nil, false},
		"declared by another one before":   {func(j *store.Job) { j.Targets = []store.JobTarget{{Type: "WEB", Target: "x", Port: 24000}} }, nil, true},
		"of the same account":              {func(j *store.Job) { j.Port, j.UID = 24000, adaID }, nil, false},
		"another port":                     {func(j *store.Job) { j.Port = 24001 }, nil, false},
		"of a job that has ended": {func(j *store.Job) {
			j.Port, j.State, j.EndedAt = 24000, providerapi.JobSuccess, time.Now()
		}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, storetest.SQLite(t))
			now := time.Now()
			victim := store.Job{
				ID: "900", UID: eveID, CreatedBy: eve, Owner: ident.Owner{User: eve}, Engine: "slurm", Submission: store.JobSubmitted, EngineID: "44",
				State: providerapi.JobRunning, Nodes: []string{"c1"}, CreatedAt: now, StartedAt: now.Add(-time.Hour), Replicas: 1,
			}
			tc.victim(&victim)
			if err := w.store.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.InsertJob(victim); return err }); err != nil {
				t.Fatal(err)
			}
			w.job("512", func(j *ipcapi.JobRecord) { j.Targets = []ipcapi.JobTarget{{Type: "WEB", Target: "Board", Port: 24000}} })
			host, token := w.mustOpen(ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "Board"})
			if got := w.mustExchange("WEB", host, token); (got.Route.Address == "") != tc.refused {
				t.Errorf("%+v", got.Route)
			}
		})
	}
}

// TestWithdrawn: everything that ends a session.
//
//attack:actor local user
//attack:does Goes on using the interface of a job after leaving its project.
//attack:control Sessions are looked at again when memberships change, and end.
//attack:remove internal/websession/service.go: return !ok, err => return !ok && err != nil, err
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	setup := func(t *testing.T) (w *world, id string, table map[string]ipcapi.WebRoute, spare string) {
		w = newWorld(t, storetest.SQLite(t))
		w.job("512", nil)
		host, token := w.mustOpen(ada, web("512"))
		id = w.mustExchange("WEB", host, token).Route.ID
		_, token = w.mustOpen(bo, web("512"))
		w.mustExchange("WEB", host, token)
		_, spare = w.mustOpen(bo, web("512"))
		table = map[string]ipcapi.WebRoute{}
		w.until("two sessions", func(m map[string]ipcapi.WebRoute) bool { return len(m[id].Grants) == 2 }, table)
		return w, id, table, spare
	}
	for _, state := range []providerapi.JobState{providerapi.JobSuccess, providerapi.JobFailure, providerapi.JobExpired} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			w, id, table, spare := setup(t)
			w.job("512", func(j *ipcapi.JobRecord) { j.State = state })
			w.s.JobChanged("512")
			w.until("the end", func(m map[string]ipcapi.WebRoute) bool { _, ok := m[id]; return !ok }, table)
			w.job("512", nil) // not even if it came back
			if _, err := w.exchange("WEB", "app-512-0.apps.example.org", spare); !failure.Is(err, failure.NotFound) {
				t.Errorf("a link of a job that has ended: %v", err)
			}
		})
	}
	t.Run("the job is gone", func(t *testing.T) {
		t.Parallel()
		w, id, table, _ := setup(t)
		w.jobs.mu.Lock()
		delete(w.jobs.jobs, "512")
		delete(w.jobs.shared, "512")
		w.jobs.mu.Unlock()
		w.s.JobChanged("512")
		w.until("the end", func(m map[string]ipcapi.WebRoute) bool { _, ok := m[id]; return !ok }, table)
	})
	t.Run("the user is disconnected", func(t *testing.T) {
		t.Parallel()
		w, id, table, spare := setup(t)
		w.mapped.Delete(bo)
		if err := w.s.UserLost(t.Context(), bo); err != nil {
			t.Fatal(err)
		}
		w.until("one session", func(m map[string]ipcapi.WebRoute) bool { return len(m[id].Grants) == 1 }, table)
		if _, err := w.exchange("WEB", "app-512-0.apps.example.org", spare); !failure.Is(err, failure.NotFound) {
			t.Errorf("a link of a user who is gone: %v", err)
		}
	})
	t.Run("the user leaves the project", func(t *testing.T) {
		t.Parallel()
		w, id, table, spare := setup(t)
		w.jobs.mu.Lock()
		w.jobs.shared["512"] = nil
		w.jobs.mu.Unlock()
		if err := w.s.UsersChanged(t.Context(), ada, bo); err != nil {
			t.Fatal(err)
		}
		w.until("one session", func(m map[string]ipcapi.WebRoute) bool { return len(m[id].Grants) == 1 }, table)
		if _, err := w.exchange("WEB", "app-512-0.apps.example.org", spare); !failure.Is(err, failure.NotFound) {
			t.Errorf("a link of a user who has left: %v", err)
		}
	})
	t.Run("the time is over", func(t *testing.T) {
		t.Parallel()
		w, id, table, _ := setup(t)
		w.later.Store(int64(2 * time.Hour))
		w.s.sweep(t.Context())
		w.until("no session", func(m map[string]ipcapi.WebRoute) bool { return len(m[id].Grants) == 0 }, table)
	})
	t.Run("not when the jobs cannot be read", func(t *testing.T) {
		t.Parallel()
		w, id, _, _ := setup(t)
		w.jobs.mu.Lock()
		w.jobs.broken = errors.New("away")
		w.jobs.mu.Unlock()
		w.s.sweep(t.Context())
		if r, ok := w.s.hub.route(id); !ok || len(r.Grants) != 2 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("it follows the job", func(t *testing.T) {
		t.Parallel()
		w, id, table, _ := setup(t)
		for _, state := range []providerapi.JobState{providerapi.JobInQueue, providerapi.JobSuspended} {
			w.job("512", func(j *ipcapi.JobRecord) { j.State, j.Nodes = state, nil })
			w.s.JobChanged("512")
			w.until("no place", func(m map[string]ipcapi.WebRoute) bool { return m[id].Address == "" && len(m[id].Grants) == 2 }, table)
			w.job("512", func(j *ipcapi.JobRecord) { j.Nodes = []string{"c9", "c1"} })
			w.s.JobChanged("512")
			w.until("another place", func(m map[string]ipcapi.WebRoute) bool {
				return m[id].Address == "addr-of-c9" && len(m[id].Grants) == 2
			}, table)
		}
	})
}

func TestLocalEngine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.job("512", func(j *ipcapi.JobRecord) { j.Engine, j.Nodes, j.Replicas = ipcapi.EngineLocal, nil, 1 })
	host, token := w.mustOpen(ada, web("512"))
	if r := w.mustExchange("WEB", host, token).Route; r.Address != "127.0.0.1" || r.UID != adaID {
		t.Errorf("%+v", r)
	}
}

//attack:actor internet
//attack:does Opens any number of sessions of one interface.
//attack:control An interface has a bounded number of sessions; the oldest ends.
//attack:remove internal/websession/open.go: for len(live) >= s.o.MaxSessions { => for len(live) > 1<<20 {
func TestManySessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.job("512", nil)
	var last ipcapi.WebExchanged
	for range 6 {
		host, token := w.mustOpen(ada, web("512"))
		last = w.mustExchange("WEB", host, token)
		w.later.Add(int64(time.Millisecond))
	}
	hash := sha256.Sum256([]byte(last.Value))
	if n := len(last.Route.Grants); n != 4 || string(last.Route.Grants[0].Hash) != string(hash[:]) {
		t.Errorf("%d sessions", n)
	}
}

func TestHostNames(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"": "app-512-0.apps.example.org", "Dashboard": "app-512-0-dashboard.apps.example.org", "My Plots 2": "app-512-0-my-plots-2.apps.example.org",
		"Målestation_Ærø": "app-512-0-malestationaero.apps.example.org", "-a-": "app-512-0-a.apps.example.org", "a.b/../c": "app-512-0-abc.apps.example.org",
		"日本": "app-512-0-" + digest("日本") + ".apps.example.org",
	} {
		if got := hostOf("app-", ".apps.example.org", &store.WebInterface{Job: "512", Target: target}, false); got != want {
			t.Errorf("%q: %s, want %s", target, got, want)
		}
	}
	long := hostOf("app-", "-apps.example.org", &store.WebInterface{Job: "512", Target: strings.Repeat("long ", 40)}, false)
	if label, _, _ := strings.Cut(long, "."); len(label) > 63 || strings.Contains(label, "--") {
		t.Error(long)
	}
	w := newWorld(t, storetest.SQLite(t))
	w.job("512", func(j *ipcapi.JobRecord) {
		j.Targets = []ipcapi.JobTarget{{Type: "WEB", Target: "A b", Port: 24000}, {Type: "WEB", Target: "a-b", Port: 24001}}
	})
	one, _ := w.mustOpen(ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "A b"})
	two, token := w.mustOpen(ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "a-b"})
	if one == two {
		t.Errorf("two interfaces at %s", one)
	}
	if got := w.mustExchange("WEB", two, token); got.Route.Port != 24001 {
		t.Errorf("%+v", got)
	}
	if again, _ := w.mustOpen(ada, ipcapi.WebOpening{Job: "512", Kind: "WEB", Target: "a-b"}); again != two {
		t.Errorf("%s became %s", two, again)
	}
}

// TestMessages: a large table comes in pieces of which only the last says that it is complete.
func TestMessages(t *testing.T) {
	t.Parallel()
	var u ipcapi.WebUpdate
	for i := range 250 {
		u.Put = append(u.Put, ipcapi.WebRoute{ID: fmt.Sprint(i)})
	}
	u.Full = true
	var sizes []int
	err := sendChunks(u, func(u ipcapi.WebUpdate, _ ...*os.File) error {
		sizes = append(sizes, len(u.Put))
		if u.More != (len(sizes) < 3) || !u.Full {
			t.Errorf("piece %d: %+v", len(sizes), u.More)
		}
		return nil
	})
	if err != nil || fmt.Sprint(sizes) != "[100 100 50]" {
		t.Error(sizes, err)
	}
}
