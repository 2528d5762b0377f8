package usage

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usage/scan"
)

// callers decides who the next connection is.
type callers struct {
	mu    sync.Mutex
	grant ipc.Grant
}

func (c *callers) become(u ident.UCloudUser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grant = ipc.Grant{Mapped: true, User: u}
}

// serve runs an IPC server with the service's calls.
func serve(t *testing.T, s *Service) (*ipc.Client, *callers) {
	t.Helper()
	who := &callers{}
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		who.mu.Lock()
		defer who.mu.Unlock()
		return who.grant, nil
	}})
	s.Register(srv)
	path := filepath.Join(testkit.PrivateDir(t), "s")
	listener, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	c, err := ipc.Dial(t.Context(), path, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, who
}

func member(tx *store.Tx, p ident.ProjectID, users ...ident.UCloudUser) error {
	doc := providerapi.Project{ID: p}
	for _, u := range users {
		doc.Status.Members = append(doc.Status.Members, providerapi.ProjectMember{Username: u})
	}
	_, _, err := tx.PutProject(store.Project{ID: p, ModifiedAt: time.Now(), Document: doc})
	return err
}

// TestWhoMayAskAboutLocks: the caller's own wallets, and those of projects the caller belongs to.
func TestWhoMayAskAboutLocks(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		s := newService(t, db, newCore(t), Category{Name: "disk", UnitBytes: 1}, Category{Name: "free", FreeToUse: true})
		update(t, db, func(tx *store.Tx) error {
			for owner, locked := range map[ident.Owner]bool{alice: true, reef: false} {
				if _, err := tx.PutWallet(store.Wallet{Owner: owner, Category: "disk", CombinedQuota: 5, Locked: locked, LastUpdate: time.Now()}); err != nil {
					return err
				}
			}
			return member(tx, reef.Project, alice.User)
		})
		c, who := serve(t, s)
		for _, tc := range []struct {
			user  ident.UCloudUser
			q     ipcapi.LockQuery
			want  ipcapi.LockReply
			error failure.Kind
		}{
			{alice.User, ipcapi.LockQuery{Category: "disk"}, ipcapi.LockReply{Locked: true, Known: true}, 0},
			{alice.User, ipcapi.LockQuery{Category: "disk", Project: reef.Project}, ipcapi.LockReply{Known: true}, 0},
			{alice.User, ipcapi.LockQuery{Category: "unknown"}, ipcapi.LockReply{Locked: true}, 0},
			{alice.User, ipcapi.LockQuery{Category: "free"}, ipcapi.LockReply{Known: true}, 0},
			{"Mary#1", ipcapi.LockQuery{Category: "disk"}, ipcapi.LockReply{Locked: true}, 0},
			{"Mary#1", ipcapi.LockQuery{Category: "disk", Project: reef.Project}, ipcapi.LockReply{}, failure.Forbidden},
		} {
			who.become(tc.user)
			got, err := ipc.Invoke(t.Context(), c, ipcapi.UsageLocked, tc.q)
			if got != tc.want || (tc.error == 0) != (err == nil) || (err != nil && failure.KindOf(err) != tc.error) {
				t.Errorf("%s %+v: %+v, %v", tc.user, tc.q, got, err)
			}
		}
	})
}

// scanWorld has Alice's home and a project's directory, neither of which the server can measure.
func scanWorld(t *testing.T) (s *Service, db *store.Store, home, work store.Drive) {
	t.Helper()
	db = storetest.SQLite(t)
	s = newService(t, db, newCore(t), Category{Name: "disk", UnitBytes: 1000, Measure: StatFS{}, Scan: true, ScanRate: 1 << 30}, Category{Name: "noscan", UnitBytes: 1, Measure: StatFS{}})
	dir := t.TempDir()
	home, work = drive(alice, "disk", "home", 1), drive(reef, "disk", "work", 1)
	home.Path, work.Path = filepath.Join(dir, "home"), filepath.Join(dir, "work")
	other := drive(alice, "noscan", "x", 1)
	other.Path = home.Path
	for _, p := range []string{home.Path, work.Path} {
		if err := os.Mkdir(p, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p, "f"), make([]byte, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	update(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.PutDrive(home), tx.PutDrive(work), tx.PutDrive(other), member(tx, reef.Project, alice.User, "Bob#1"))
	})
	for _, d := range []store.Drive{home, work, other} { // as the schedule does
		c := s.categories[d.Category]
		s.running[d.Category]++
		s.measure(t.Context(), c, []store.Drive{d})
	}
	return s, db, home, work
}

// TestInstancesScan what the server cannot measure, end to end with the real scan.
func TestInstancesScan(t *testing.T) {
	t.Parallel()
	s, db, home, work := scanWorld(t)
	c, who := serve(t, s)
	who.become(alice.User)
	agent := &scan.Agent{Server: func() (*ipc.Client, error) { return c, nil }}
	if n := agent.Once(t.Context()); n != 2 {
		t.Fatalf("%d scans", n)
	}
	for _, d := range []store.Drive{home, work} {
		if err := db.View(t.Context(), func(tx *store.Tx) error {
			u, err := tx.DriveUsage(d.ProviderGeneratedID)
			if u.Bytes < 100_000 || u.Files != 1 || u.Method != MethodScan || u.Misses != 0 || time.Since(u.MeasuredAt) > time.Hour {
				t.Errorf("%+v", u)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if n := agent.Once(t.Context()); n != 0 { // not again today
		t.Errorf("%d scans", n)
	}
	if err := s.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestScansBelongToOneInstance: who was given a scan may speak of it, nobody else, and nobody is given a directory of a
// workspace they do not belong to.
func TestScansBelongToOneInstance(t *testing.T) {
	t.Parallel()
	s, db, home, work := scanWorld(t)
	c, who := serve(t, s)
	ask := func(u ident.UCloudUser) ipcapi.UsageJob {
		t.Helper()
		who.become(u)
		job, err := ipc.Invoke(t.Context(), c, ipcapi.UsageWork, ipcapi.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		return job
	}
	say := func(p ipcapi.UsageProgress) ipcapi.UsageVerdict {
		t.Helper()
		v, err := ipc.Invoke(t.Context(), c, ipcapi.UsageScanned, p)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if job := ask("Mary#1"); job.Drive != "" || job.RetryMs == 0 {
		t.Errorf("a stranger was given %+v", job)
	}
	job := ask("Bob#1")
	if job.Drive != work.ProviderGeneratedID || job.Path != work.Path || job.Rate != 1<<30 {
		t.Fatalf("%+v", job)
	}
	halfway := []byte(`{"totals":{"bytes":5},"frames":[{"name":"","dev":1,"ino":2,"cursor":3}]}`)
	if v := say(ipcapi.UsageProgress{Drive: work.ProviderGeneratedID, State: halfway}); !v.Continue {
		t.Error("the scan is not wanted any more")
	}
	// Of drives that were not handed out nothing is believed.
	done := []byte(`{"totals":{"bytes":1},"done":true}`)
	for _, id := range []string{home.ProviderGeneratedID, "unknown"} {
		if v := say(ipcapi.UsageProgress{Drive: id, State: done}); v.Continue {
			t.Error("continue")
		}
	}
	// The scan of another account, while that one is at it.
	lease := func(uid ident.UID, until time.Time) {
		update(t, db, func(tx *store.Tx) error {
			return tx.PutUsageScan(store.UsageScan{ProviderGeneratedID: work.ProviderGeneratedID, State: halfway, UID: uid, LeaseUntil: until})
		})
	}
	lease(3_900_000_099, time.Now().Add(time.Minute))
	if v := say(ipcapi.UsageProgress{Drive: work.ProviderGeneratedID, State: done}); v.Continue {
		t.Error("continue")
	}
	if job := ask("Bob#1"); job.Drive != "" {
		t.Errorf("given twice: %+v", job)
	}
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.DriveUsages()
		if len(all) != 0 {
			t.Errorf("believed: %+v", all)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	lease(3_900_000_099, time.Now().Add(-time.Second)) // it has gone
	if job := ask("Bob#1"); job.Drive != work.ProviderGeneratedID || string(job.State) != string(halfway) {
		t.Errorf("does not go on: %+v", job)
	}
	say(ipcapi.UsageProgress{Drive: work.ProviderGeneratedID, State: []byte("{}"), Error: "no such file"})
	if job := ask("Bob#1"); job.Drive != "" {
		t.Errorf("tried again at once: %+v", job)
	}
	for name, p := range map[string]ipcapi.UsageProgress{
		"negative": {Drive: work.ProviderGeneratedID, State: []byte(`{"totals":{"bytes":-1},"done":true}`)},
		"no JSON":  {Drive: work.ProviderGeneratedID, State: []byte("x")},
		"long":     {Drive: work.ProviderGeneratedID, State: []byte(strings.Repeat(" ", ipcapi.MaxScanState+1))},
	} {
		if _, err := ipc.Invoke(t.Context(), c, ipcapi.UsageScanned, p); !failure.Is(err, failure.Invalid) && !failure.Is(err, failure.TooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestScanGoesOn: an instance that ends in the middle of a scan leaves behind where it was, and the next one goes on.
func TestScanGoesOn(t *testing.T) {
	t.Parallel()
	s, db, home, _ := scanWorld(t)
	for i := range 1500 {
		if err := os.WriteFile(filepath.Join(home.Path, strings.Repeat("n", i%200)+strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetCategories([]Category{{Name: "disk", UnitBytes: 1000, Measure: StatFS{}, Scan: true, ScanRate: 1000}}); err != nil {
		t.Fatal(err)
	}
	s.measure(t.Context(), s.categories["disk"], []store.Drive{home})
	c, who := serve(t, s)
	who.become(alice.User)
	agent := &scan.Agent{Server: func() (*ipc.Client, error) { return c, nil }}
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond) // 1,500 entries take longer at this rate
	defer cancel()
	if n := agent.Once(ctx); n != 0 {
		t.Fatalf("%d scans within %v", n, 700*time.Millisecond)
	}
	var saved store.UsageScan
	if err := db.View(t.Context(), func(tx *store.Tx) (err error) { saved, err = tx.UsageScan(home.ProviderGeneratedID); return err }); err != nil {
		t.Fatal(err)
	}
	state, err := scan.Decode(saved.State)
	if err != nil || state.Done || state.Totals.Files == 0 || state.Totals.Files > 1400 {
		t.Fatalf("%+v, %v", state, err)
	}
	if n := agent.Once(t.Context()); n != 1 {
		t.Fatalf("%d scans", n)
	}
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		u, err := tx.DriveUsage(home.ProviderGeneratedID)
		if u.Files != 1501 {
			t.Errorf("%+v", u)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
