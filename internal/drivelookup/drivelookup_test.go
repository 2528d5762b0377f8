package drivelookup

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ada     = ident.UCloudUser("Ada#1815")
	grace   = ident.UCloudUser("Grace#1906")
	climate = ident.ProjectID("3f1c9a52-6d07-4e1b-a3c8-90b2f4d7e615")
)

// fakeCore is a Core with some drives.
type fakeCore struct {
	mu     sync.Mutex // guards the fields below
	drives map[ident.DriveID]providerapi.Drive
	err    error
	asked  int
	hold   chan struct{} // nil: answer at once
}

func (c *fakeCore) RetrieveDrive(ctx context.Context, id ident.DriveID) (providerapi.Drive, error) {
	c.mu.Lock()
	c.asked++
	hold, err := c.hold, c.err
	d, ok := c.drives[id]
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return providerapi.Drive{}, ctx.Err()
		}
	}
	if err != nil {
		return providerapi.Drive{}, err
	}
	if !ok {
		return providerapi.Drive{}, &coreapi.StatusError{Status: 403, Why: "Write permission is required"}
	}
	return d, nil
}

func (c *fakeCore) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func coreDrive(id ident.DriveID, owner ident.Owner, provider string) providerapi.Drive {
	d := providerapi.Drive{ID: id, ProviderGeneratedID: "hpc-" + owner.Reference() + "\n/d/" + string(id), Owner: providerapi.ResourceOwner{CreatedBy: owner.User}}
	if owner.IsProject() {
		d.Owner = providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &owner.Project}
	}
	d.Specification = providerapi.DriveSpecification{Title: "Drive " + string(id), Product: providerapi.ProductReference{ID: "st", Category: "st", Provider: provider}}
	return d
}

type world struct {
	*Service
	t    *testing.T
	core *fakeCore
	now  time.Time
}

func newWorld(t *testing.T, s *store.Store) *world {
	t.Helper()
	w := &world{t: t, now: time.Unix(1_800_000_000, 0), core: &fakeCore{drives: map[ident.DriveID]providerapi.Drive{
		"20": coreDrive("20", ident.Owner{User: ada}, "hpc"),
		"21": coreDrive("21", ident.Owner{Project: climate}, "hpc"),
		"22": coreDrive("22", ident.Owner{User: ada}, "other"),
		"23": coreDrive("23", ident.Owner{User: ident.SystemUser}, "hpc"),
		"24": coreDrive("24", ident.Owner{User: grace}, "hpc"),
	}}}
	w.Service = New(Options{
		Provider: "hpc", Store: s, Core: w.core, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now },
	})
	w.update(func(tx *store.Tx) error {
		for _, d := range []store.Drive{
			{ID: "10", Owner: ident.Owner{User: ada}}, {ID: "11", Owner: ident.Owner{User: grace}}, {ID: "12", Owner: ident.Owner{Project: climate}},
		} {
			d.ProviderGeneratedID, d.Category, d.Product, d.Title = "hpc-"+d.Owner.Reference()+"\n/d/"+string(d.ID), "st", "st", "Drive "+string(d.ID)
			d.State, d.UpdatedAt = store.DriveRegistered, w.now
			if err := tx.PutDrive(d); err != nil {
				return err
			}
		}
		return nil
	})
	w.members(ada)
	return w
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.o.Store.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

// members sets who is in the project.
func (w *world) members(users ...ident.UCloudUser) {
	w.t.Helper()
	doc := providerapi.Project{ID: climate}
	for _, u := range users {
		doc.Status.Members = append(doc.Status.Members, providerapi.ProjectMember{Username: u})
	}
	w.now = w.now.Add(time.Second)
	w.update(func(tx *store.Tx) error {
		_, _, err := tx.PutProject(store.Project{ID: climate, ModifiedAt: w.now, Document: doc})
		return err
	})
}

func (w *world) find(user ident.UCloudUser, id ident.DriveID) (ipcapi.FoundDrive, error) {
	return w.Find(w.t.Context(), user, 1000, id)
}

// TestWhoMayFind: the own workspace, and projects one is a member of now; on both databases.
func TestWhoMayFind(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s)
		unknown := failure.Why(func() error { _, err := w.find(ada, "99"); return err }())
		for _, tc := range []struct {
			user ident.UCloudUser
			id   ident.DriveID
			want bool
		}{
			{ada, "10", true},
			{ada, "11", false},
			{ada, "12", true},
			{grace, "11", true},
			{grace, "12", false},
			{grace, "10", false},
			{ada, "20", true},
			{ada, "21", true},
			{grace, "20", false},
			{grace, "21", false},
			{grace, "24", true},
			{ada, "24", false},
			{ada, "22", false},
			{ada, "23", false},
			{ident.SystemUser, "23", false},
			{"", "10", false},
			{ada, "99", false},
		} {
			d, err := w.find(tc.user, tc.id)
			switch {
			case tc.want && (err != nil || d.ID != tc.id || !strings.HasSuffix(d.ProviderGeneratedID, "\n/d/"+string(tc.id)) || d.Product != "st" || d.Category != "st" || d.Title != "Drive "+string(tc.id)):
				t.Errorf("%s asks for %s: %+v, %v", tc.user, tc.id, d, err)
			case !tc.want && (!failure.Is(err, failure.NotFound) || d != (ipcapi.FoundDrive{}) || failure.Why(err) != unknown):
				t.Errorf("%s asks for %s: %+v, %v", tc.user, tc.id, d, err)
			}
		}
		w.members(grace) // and Ada is not any more
		for _, id := range []ident.DriveID{"12", "21"} {
			if _, err := w.find(ada, id); !failure.Is(err, failure.NotFound) {
				t.Errorf("a former member gets %s: %v", id, err)
			}
			if _, err := w.find(grace, id); err != nil {
				t.Errorf("a new member does not get %s: %v", id, err)
			}
		}
	})
}

func TestOnlyPlausibleIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	for _, id := range []ident.DriveID{"", "0", "-1", "+1", "010", " 10", "10 ", "1e1", "x", "10/", "10\x00", "../10", "10?includeOthers=false", "99999999999999999999", "１０", ident.DriveID(strings.Repeat("1", 5000))} {
		if _, err := w.find(ada, id); !failure.Is(err, failure.Invalid) {
			t.Errorf("%.40q: %v", id, err)
		}
	}
	if n := w.core.count(); n != 0 {
		t.Errorf("Core was asked %d times", n)
	}
}

// TestCoreIsNotFlooded: answers are kept, and each account has so many questions.
func TestCoreIsNotFlooded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	for range 50 {
		_, _ = w.find(ada, "10") // ours: nobody is asked
		_, _ = w.find(ada, "20")
		_, _ = w.find(ada, "99")
	}
	if n := w.core.count(); n != 2 {
		t.Errorf("Core was asked %d times for two drives", n)
	}
	w.now = w.now.Add(keepMissing + 1)
	_, _ = w.find(ada, "99")
	_, _ = w.find(ada, "20")
	if n := w.core.count(); n != 3 {
		t.Errorf("after the life of a missing one, Core was asked %d times", n)
	}
	w.now = w.now.Add(keepFound + 1)
	_, _ = w.find(ada, "20")
	if n := w.core.count(); n != 4 {
		t.Errorf("after the life of a found one, Core was asked %d times", n)
	}

	before := w.core.count()
	refused := 0
	for i := range 100 {
		if _, err := w.find(ada, ident.DriveID("7"+strings.Repeat("0", i%18)+"1")); failure.Is(err, failure.TooMany) {
			refused++
		}
		if _, err := w.Find(t.Context(), ada, 1000, ident.DriveID(strings.Repeat("8", 1+i%18))); failure.Is(err, failure.TooMany) {
			refused++
		}
	}
	if n := w.core.count() - before; n > userBurst || refused == 0 {
		t.Errorf("one account asked Core %d times, and was refused %d times", n, refused)
	}
	if _, err := w.Find(t.Context(), grace, 1001, "24"); err != nil {
		t.Errorf("another account pays for it: %v", err)
	}
	w.now = w.now.Add(time.Minute)
	if _, err := w.find(ada, "20"); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

// TestKeptIsBounded also checks that limiters do not pile up.
func TestKeptIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	for i := range maxKept + 50 {
		w.now = w.now.Add(100 * time.Millisecond)
		_ = w.mayAsk(ident.UID(2000 + i))
		_, _ = w.ask(t.Context(), ident.DriveID("1"+strings.Repeat("0", 6)+ident.UID(i).String()))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.kept) > maxKept || len(w.limiters) > maxLimiters || w.core.asked < maxKept {
		t.Errorf("%d answers and %d limiters after %d questions", len(w.kept), len(w.limiters), w.core.asked)
	}
}

// TestCoreIsDown: the caller learns that it can try again, and nothing is remembered.
func TestCoreIsDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.core.err = coreapi.ErrNotSent
	if _, err := w.find(ada, "20"); !failure.Is(err, failure.NotFound) || !strings.Contains(failure.Why(err), "Try again") || !errors.Is(err, coreapi.ErrNotSent) {
		t.Errorf("%v", err)
	}
	if _, err := w.find(ada, "10"); err != nil {
		t.Errorf("a drive of our own: %v", err)
	}
	w.core.err = nil
	if _, err := w.find(ada, "20"); err != nil {
		t.Errorf("Core is back: %v", err)
	}
}

// TestOneQuestionForMany: who asks at the same time shares the answer, also when the first one hangs up.
func TestOneQuestionForMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.core.hold = make(chan struct{})
	first, hangUp := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.Find(first, ada, 1000, "20"); !errors.Is(err, context.Canceled) {
			t.Errorf("the one who hung up: %v", err)
		}
	})
	testkit.Eventually(t, "the question", func() bool { return w.core.count() == 1 })
	for range 5 {
		wg.Go(func() {
			if _, err := w.find(ada, "20"); err != nil {
				t.Error(err)
			}
		})
	}
	hangUp()
	time.Sleep(20 * time.Millisecond) // so that the others wait; without it the test proves less, and does not fail
	close(w.core.hold)
	wg.Wait()
	if n := w.core.count(); n > 2 {
		t.Errorf("Core was asked %d times", n)
	}
}

// TestNothingButTheIDIsTaken sends a whole forged drive over the socket: the answer, now and for others, is Core's.
func TestNothingButTheIDIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{Mapped: true, User: ada}, nil
	}})
	w.Register(srv)
	path := filepath.Join(testkit.PrivateDir(t), "s")
	listener, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, listener) }()
	t.Cleanup(func() { cancel(); <-done })
	c, err := ipc.Dial(ctx, path, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })

	forged := ipc.Call[json.RawMessage, ipcapi.FoundDrive]{Name: ipcapi.DriveFind.Name, Access: ipcapi.DriveFind.Access}
	for _, id := range []ident.DriveID{"20", "10", "24"} {
		got, err := ipc.Invoke(ctx, c, forged, json.RawMessage(
			`{"id":"`+string(id)+`","owner":{"User":"Ada#1815"},"providerGeneratedId":"hpc-x\n/etc","product":"evil","category":"evil","user":"Grace#1906"}`))
		if id == "24" {
			if !failure.Is(err, failure.NotFound) {
				t.Errorf("another user's drive: %+v, %v", got, err)
			}
			continue
		}
		if err != nil || got.ProviderGeneratedID != "hpc-Ada#1815\n/d/"+string(id) || got.Product != "st" {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
		if again, err := w.find(ada, id); err != nil || again != got {
			t.Errorf("%s for others: %+v, %v", id, again, err)
		}
	}
}

// TestPlace: where users may make drives, and who is told.
func TestPlace(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s)
		w.o.UserDrives = func(category string) (UserDrives, bool) {
			return UserDrives{Locators: []string{"work", "home"}, Directory: "Drives"}, category == "st"
		}
		put := func(id ident.DriveID, locator string, change func(*store.Drive)) {
			w.update(func(tx *store.Tx) error {
				d := store.Drive{
					ID: id, Owner: ident.Owner{User: ada}, Category: "st", Product: "st", Locator: locator, State: store.DriveRegistered,
					ProviderGeneratedID: "hpc-Ada#1815\n/" + locator + "/" + string(id), UpdatedAt: w.now,
				}
				if change != nil {
					change(&d)
				}
				return tx.PutDrive(d)
			})
		}
		place := func(user ident.UCloudUser, owner ident.Owner, category string) (ipcapi.DrivePlaceReply, error) {
			return w.Place(t.Context(), user, owner, category)
		}
		own := ident.Owner{User: ada}
		if p, err := place(ada, own, "st"); err != nil || p.Why == "" { // 10 has no locator
			t.Errorf("without a drive for it: %+v, %v", p, err)
		}
		put("31", "work", func(d *store.Drive) { d.ReadOnly = true })
		put("32", "work", func(d *store.Drive) { d.State = store.DriveFailed })
		put("33", "work", func(d *store.Drive) { d.Category = "other" })
		put("34", "archive", nil)
		put("35", "home", nil)
		p, err := place(ada, own, "st")
		if err != nil || p.Why != "" || p.Parent.ID != "35" || p.Directory != "Drives" || p.Parent.Owner != own || p.Parent.ProviderGeneratedID != "hpc-Ada#1815\n/home/35" {
			t.Errorf("%+v, %v", p, err)
		}
		put("36", "work", nil)
		if p, err = place(ada, own, "st"); err != nil || p.Parent.ID != "36" {
			t.Errorf("the first locator counts: %+v, %v", p, err)
		}
		if p, err = place(ada, own, "tape"); err != nil || !strings.Contains(p.Why, "provider") || p.Parent.ID != "" {
			t.Errorf("where it is not allowed: %+v, %v", p, err)
		}
		for _, owner := range []ident.Owner{own, {Project: climate}, {Project: "none"}, {}} {
			if p, err := place(grace, owner, "st"); !failure.Is(err, failure.NotFound) || p.Parent.ID != "" {
				t.Errorf("somebody else asks about %v: %+v, %v", owner, p, err)
			}
		}
		w.o.UserDrives = nil
		if p, err = place(ada, own, "st"); err != nil || p.Why == "" {
			t.Errorf("nowhere at all: %+v, %v", p, err)
		}
	})
}

// TestUnfinishedDriveIsNotKeptLong: Core knows a drive that is being made, but not yet our id of it.
func TestUnfinishedDriveIsNotKeptLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	unfinished := w.core.drives["20"]
	unfinished.ProviderGeneratedID = ""
	finished := w.core.drives["20"]
	w.core.drives["20"] = unfinished
	_, _ = w.find(ada, "20")
	w.core.drives["20"] = finished
	w.now = w.now.Add(keepMissing + 1)
	if d, err := w.find(ada, "20"); err != nil || d.ProviderGeneratedID == "" {
		t.Errorf("%+v, %v", d, err)
	}
}
