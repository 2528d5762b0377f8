package driveplan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeCore behaves like the Core of the recordings, and fails the test where a real one would end.
type fakeCore struct {
	t *testing.T

	mu         sync.Mutex
	users      map[ident.UCloudUser]bool
	projects   map[ident.ProjectID]bool
	products   map[providerapi.ProductReference]bool
	drives     map[string]providerapi.Drive
	taken      map[string]bool // ids that some other resource has
	noFilter   bool            // filterProviderIds finds nothing
	unanswered map[string]*unanswered
	sent       map[string]int
	finds      int
	// behave is what happens with the next registrations, one element each; then they work.
	behave []func(ctx context.Context, register func() (ident.DriveID, error)) (ident.DriveID, error)
}

type unanswered struct {
	times int
	at    time.Time
	asked bool
}

func newFakeCore(t *testing.T) *fakeCore {
	return &fakeCore{
		t: t, users: map[ident.UCloudUser]bool{}, projects: map[ident.ProjectID]bool{},
		products: map[providerapi.ProductReference]bool{}, drives: map[string]providerapi.Drive{}, taken: map[string]bool{},
		unanswered: map[string]*unanswered{}, sent: map[string]int{},
	}
}

func (c *fakeCore) RegisterDrive(ctx context.Context, d providerapi.RegisterDrive) (ident.DriveID, error) {
	c.mu.Lock()
	id := d.ProviderGeneratedID
	c.sent[id]++
	if !c.products[d.Spec.Product] {
		c.t.Errorf("ends Core: drive %q in product %+v, which Core does not know", id, d.Spec.Product)
	}
	if d.CreatedBy != nil && !c.users[*d.CreatedBy] {
		c.t.Errorf("ends Core: unknown user %q", *d.CreatedBy)
	}
	if d.Project != nil && !c.projects[*d.Project] {
		c.t.Errorf("ends Core: unknown project %q", *d.Project)
	}
	if (d.Project == nil) == (d.CreatedBy == nil) || d.ProjectAllRead != (d.Project != nil) || (d.ProjectAllWrite && d.Project == nil) {
		c.t.Errorf("owner of %q: %+v", id, d)
	}
	if d.Spec.Labels != nil {
		c.t.Errorf("labels on %q", id)
	}
	if u := c.unanswered[id]; u != nil {
		if u.times > 1 || !u.asked || time.Since(u.at) < 20*time.Second {
			c.t.Errorf("may end Core: %q sent again %s after %d attempts without answer, asked: %v", id, time.Since(u.at), u.times, u.asked)
		}
	}
	var behave func(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error)
	if len(c.behave) > 0 {
		behave, c.behave = c.behave[0], c.behave[1:]
	}
	c.mu.Unlock()

	register := func() (ident.DriveID, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.drives[id]; ok || c.taken[id] {
			return "", &coreapi.StatusError{Status: 409, Why: "Already exists"}
		}
		drive := providerapi.Drive{
			ID: ident.DriveID(fmt.Sprint(100 + len(c.drives))), ProviderGeneratedID: id, Specification: d.Spec,
			Owner: providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: d.Project},
		}
		if d.CreatedBy != nil {
			drive.Owner.CreatedBy = *d.CreatedBy
		}
		c.drives[id] = drive
		return drive.ID, nil
	}
	if behave == nil {
		return register()
	}
	driveID, err := behave(ctx, register)
	if coreapi.Unanswered(err) {
		c.mu.Lock()
		u := c.unanswered[id]
		if u == nil {
			u = &unanswered{}
			c.unanswered[id] = u
		}
		u.times, u.at, u.asked = u.times+1, time.Now(), false
		c.mu.Unlock()
	}
	return driveID, err
}

func (c *fakeCore) FindDrive(ctx context.Context, id string) (providerapi.Drive, bool, error) {
	c.mu.Lock()
	if c.noFilter {
		c.mu.Unlock()
		return providerapi.Drive{}, false, nil
	}
	c.mu.Unlock()
	return c.FindDriveByBrowsing(ctx, id)
}

func (c *fakeCore) FindDriveByBrowsing(_ context.Context, id string) (providerapi.Drive, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finds++
	if u := c.unanswered[id]; u != nil {
		u.asked = true
	}
	d, ok := c.drives[id]
	return d, ok, nil
}

// Behaviours of Core for one registration.

func cutBefore(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error) {
	return "", coreapi.ErrNoAnswer
}

func cutAfter(_ context.Context, register func() (ident.DriveID, error)) (ident.DriveID, error) {
	_, _ = register()
	return "", coreapi.ErrNoAnswer
}

func fails(err error) func(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error) {
	return func(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error) { return "", err }
}

// fakeProducts is the gate for products.
type fakeProducts struct {
	mu       sync.Mutex
	declared map[string]bool
}

func (p *fakeProducts) Declared(c string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.declared[c]
}

func (p *fakeProducts) Reference(c string) (providerapi.ProductReference, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.declared[c]
	return providerapi.ProductReference{ID: c, Category: c, Provider: "hpc"}, ok
}

func (p *fakeProducts) set(c string, declared bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.declared[c] = declared
}

// fakeAccounts are the mappings.
type fakeAccounts struct {
	mu     sync.Mutex
	users  map[ident.UCloudUser]Account
	groups map[ident.ProjectID]Group
}

func (a *fakeAccounts) LocalAccount(_ context.Context, u ident.UCloudUser) (Account, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc, ok := a.users[u]
	return acc, ok, nil
}

func (a *fakeAccounts) ProjectGroup(_ context.Context, p ident.ProjectID) (Group, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, ok := a.groups[p]
	return g, ok, nil
}

func (a *fakeAccounts) mapUser(u ident.UCloudUser, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.users[u] = Account{Name: name, UID: 1000, PrimaryGroup: name}
}

// world is everything around a planner.
type world struct {
	t        *testing.T
	db       *store.Store
	core     *fakeCore
	products *fakeProducts
	accounts *fakeAccounts
	base     string // with home/ and work/
	*Planner
	box *outbox.Outbox
}

func newWorld(t *testing.T, db *store.Store) *world {
	t.Helper()
	w := &world{
		t: t, db: db, core: newFakeCore(t), products: &fakeProducts{declared: map[string]bool{"storage": true}},
		accounts: &fakeAccounts{users: map[ident.UCloudUser]Account{}, groups: map[ident.ProjectID]Group{}}, base: t.TempDir(),
	}
	w.core.products[providerapi.ProductReference{ID: "storage", Category: "storage", Provider: "hpc"}] = true
	for _, dir := range []string{"home", "work"} {
		if err := os.Mkdir(filepath.Join(w.base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	return w
}

func (w *world) categories() []Category {
	home, work := w.base+"/home", w.base+"/work"
	return []Category{{Name: "storage", Locators: []Locator{
		{
			Name: "home", Entity: EntityUser, Pattern: expand(home + "/#{localUsername}"), Title: expand("Home"),
			Needs: []string{VarLocalUsername}, AllowedRoots: []string{home},
		},
		{
			Name: "work", Entity: EntityProject, Pattern: expand(work + "/#{ucloudProjectId}"), Title: expand("#{ucloudProjectTitle}"),
			Needs: []string{VarUCloudProjectID, VarProjectTitle}, AllowedRoots: []string{work},
		},
	}}}
}

// restart makes planner and outbox as a new process would.
func (w *world) restart() {
	w.t.Helper()
	w.box = outbox.New(w.db, outbox.Options{})
	p, err := New(Options{
		Provider: "hpc", Categories: w.categories(), Store: w.db, Core: w.core, Products: w.products, Accounts: w.accounts, Outbox: w.box,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Planner = p
}

// run starts planner and outbox until stop is called.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	p, box := w.Planner, w.box
	wg.Go(func() { _ = p.Run(ctx) })
	wg.Go(func() { _ = box.Run(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.db.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

// allocate does what an event of Core does.
func (w *world) allocate(owner ident.Owner, quota int64) {
	w.t.Helper()
	w.update(func(tx *store.Tx) error {
		if owner.IsProject() {
			doc := providerapi.Project{ID: owner.Project}
			doc.Specification.Title, doc.Specification.CanConsumeResources = "Title of "+string(owner.Project), true
			if _, _, err := tx.PutProject(store.Project{ID: owner.Project, ModifiedAt: time.Now(), Document: doc}); err != nil {
				return err
			}
		} else if err := tx.SeeUser(owner.User, time.Now()); err != nil {
			return err
		}
		_, err := tx.PutWallet(store.Wallet{Owner: owner, Category: "storage", CombinedQuota: quota, LastUpdate: time.Now()})
		return err
	})
	w.core.mu.Lock()
	defer w.core.mu.Unlock()
	if owner.IsProject() {
		w.core.projects[owner.Project] = true
	} else {
		w.core.users[owner.User] = true
	}
}

func (w *world) mkdir(path string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.base, path), 0o700); err != nil {
		w.t.Fatal(err)
	}
}

// drive is the row for a path below base.
func (w *world) drive(owner ident.Owner, path string) (d store.Drive, ok bool) {
	w.t.Helper()
	err := w.db.View(w.t.Context(), func(tx *store.Tx) (err error) {
		d, err = tx.Drive(GeneratedID("hpc", owner, filepath.Join(w.base, path)))
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return d, err == nil
}

func (w *world) waitFor(owner ident.Owner, path string, state store.DriveState) store.Drive {
	w.t.Helper()
	var d store.Drive
	testkit.Eventually(w.t, fmt.Sprintf("drive %s is %s", path, state), func() bool {
		d, _ = w.drive(owner, path)
		return d.State == state
	})
	return d
}

func (w *world) sends() (n int) {
	w.core.mu.Lock()
	defer w.core.mu.Unlock()
	for _, k := range w.core.sent {
		n += k
	}
	return n
}

var (
	karin   = ident.Owner{User: "Karin#2718"}
	sandbox = ident.Owner{Project: "p-1"}
)

func TestDrivesComeIntoBeing(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db)
		w.accounts.mapUser(karin.User, "karin01")
		w.mkdir("home/karin01")
		w.mkdir("work/p-1")
		w.allocate(karin, 10)
		stop := w.run()
		d := w.waitFor(karin, "home/karin01", store.DriveRegistered)
		if d.ID == "" || d.Title != "Home" || d.Product != "storage" || d.Locator != "home" || d.LastError != "" {
			t.Errorf("drive %+v", d)
		}
		w.allocate(sandbox, 10)
		w.Changed(sandbox)
		d = w.waitFor(sandbox, "work/p-1", store.DriveRegistered)
		core := w.core.drives[d.ProviderGeneratedID]
		if core.ID != d.ID || core.Specification.Title != "Title of p-1" || core.Owner.CreatedBy != ident.SystemUser {
			t.Errorf("Core has %+v", core)
		}
		// Nothing is registered twice, whoever asks how often, nor after a restart.
		for range 3 {
			w.Changed(karin, sandbox)
			w.ChangedAll()
			if err := w.EvaluateAll(t.Context()); err != nil {
				t.Error(err)
			}
		}
		stop()
		w.restart()
		if err := w.EvaluateAll(t.Context()); err != nil {
			t.Error(err)
		}
		w.update(func(tx *store.Tx) error {
			all, err := tx.OutboxAll()
			if len(all) != 0 {
				t.Errorf("outbox %+v", all)
			}
			return err
		})
		if n := w.sends(); n != 2 {
			t.Errorf("%d registrations", n)
		}
		// A locator that is gone takes no drive with it.
		if err := w.SetCategories(nil); err != nil {
			t.Fatal(err)
		}
		if err := w.EvaluateAll(t.Context()); err != nil {
			t.Error(err)
		}
		if d, ok := w.drive(karin, "home/karin01"); !ok || d.State != store.DriveRegistered {
			t.Errorf("drive %+v, %v", d, ok)
		}
	})
}

func TestGates(t *testing.T) {
	t.Parallel()
	evaluate := func(w *world, owner ident.Owner) {
		w.t.Helper()
		if err := w.Evaluate(w.t.Context(), owner); err != nil {
			w.t.Fatal(err)
		}
	}
	queued := func(w *world) (n int) {
		w.update(func(tx *store.Tx) error {
			all, err := tx.OutboxAll()
			n = len(all)
			return err
		})
		return n
	}
	t.Run("mapping, directory, product", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, storetest.SQLite(t))
		w.products.set("storage", false)
		w.allocate(karin, 10)
		evaluate(w, karin)
		if _, ok := w.drive(karin, "home/karin01"); ok {
			t.Fatal("a drive before the mapping")
		}
		w.accounts.mapUser(karin.User, "karin01")
		evaluate(w, karin)
		if d, _ := w.drive(karin, "home/karin01"); d.State != store.DriveDesired || d.LastError == "" {
			t.Fatalf("without its directory: %+v", d)
		}
		w.mkdir("home/karin01")
		evaluate(w, karin)
		if d, _ := w.drive(karin, "home/karin01"); d.State != store.DrivePrepared || d.LastError == "" || queued(w) != 0 {
			t.Fatalf("before Core has accepted the product: %+v", d)
		}
		w.products.set("storage", true)
		evaluate(w, karin)
		if d, _ := w.drive(karin, "home/karin01"); d.State != store.DriveRegistering || queued(w) != 1 {
			t.Fatalf("with all gates open: %+v", d)
		}
		evaluate(w, karin)
		if queued(w) != 1 {
			t.Fatal("queued twice")
		}
	})
	t.Run("owner that Core has not named", func(t *testing.T) {
		t.Parallel()
		for _, owner := range []ident.Owner{{User: "typed-by-an-operator"}, {Project: "p-9"}} {
			w := newWorld(t, storetest.SQLite(t))
			categories := w.categories()
			categories[0].Locators[1].Title, categories[0].Locators[1].Needs = nil, nil
			if err := w.SetCategories(categories); err != nil {
				t.Fatal(err)
			}
			w.accounts.mapUser("typed-by-an-operator", "typed")
			w.mkdir("home/typed")
			w.mkdir("work/p-9")
			w.update(func(tx *store.Tx) error {
				_, err := tx.PutWallet(store.Wallet{Owner: owner, Category: "storage", CombinedQuota: 1, LastUpdate: time.Now()})
				return err
			})
			evaluate(w, owner)
			w.update(func(tx *store.Tx) error {
				if all, err := tx.DrivesOf(owner); err != nil || len(all) != 1 || all[0].State != store.DrivePrepared {
					t.Errorf("drives %+v, %v", all, err)
				}
				return nil
			})
			if queued(w) != 0 {
				t.Fatalf("a registration for %+v", owner)
			}
		}
	})
	t.Run("no quota, allocator, other category", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, storetest.SQLite(t))
		w.mkdir("work/p-1")
		w.mkdir("work/p-2")
		w.allocate(sandbox, 0)
		w.allocate(ident.Owner{Project: "p-2"}, 10)
		w.update(func(tx *store.Tx) error {
			_, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{Project: "p-2"}, Category: "storage", CombinedQuota: 10, IsAllocator: true, LastUpdate: time.Now()})
			return err
		})
		if err := w.EvaluateAll(t.Context()); err != nil || queued(w) != 0 {
			t.Fatalf("%v, %d queued", err, queued(w))
		}
	})
	t.Run("closed after queueing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, storetest.SQLite(t))
			w.mkdir("work/p-1")
			w.allocate(sandbox, 10)
			evaluate(w, sandbox)
			w.products.set("storage", false) // Core was restored from a backup
			w.run()
			time.Sleep(10 * time.Minute)
			if w.sends() != 0 {
				t.Fatal("sent although Core does not know the product")
			}
			w.products.set("storage", true)
			if err := os.Remove(filepath.Join(w.base, "work/p-1")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
			if w.sends() != 0 {
				t.Fatal("sent although the directory is gone")
			}
			w.mkdir("work/p-1")
			time.Sleep(10 * time.Minute)
			if d, _ := w.drive(sandbox, "work/p-1"); d.State != store.DriveRegistered {
				t.Fatalf("drive %+v", d)
			}
		})
	})
}

func TestWaitsForTheDirectory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, storetest.SQLite(t))
		w.accounts.mapUser(karin.User, "karin01")
		w.allocate(karin, 10)
		w.run()
		time.Sleep(time.Hour)
		if w.sends() != 0 {
			t.Fatal("registered a path that is not there")
		}
		w.mkdir("home/karin01")
		time.Sleep(6 * time.Minute)
		if d, _ := w.drive(karin, "home/karin01"); d.State != store.DriveRegistered {
			t.Fatalf("drive %+v", d)
		}
	})
}

func TestMappingChangesBeforeTheDirectoryAppears(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.accounts.mapUser(karin.User, "wrong")
	w.allocate(karin, 10)
	if err := w.Evaluate(t.Context(), karin); err != nil {
		t.Fatal(err)
	}
	w.accounts.mapUser(karin.User, "karin01")
	if err := w.Evaluate(t.Context(), karin); err != nil {
		t.Fatal(err)
	}
	if d, ok := w.drive(karin, "home/wrong"); ok {
		t.Fatalf("still wanted: %+v", d)
	}
	if d, ok := w.drive(karin, "home/karin01"); !ok || d.State != store.DriveDesired {
		t.Fatalf("drive %+v, %v", d, ok)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	categories := w.categories()
	var asked []Directory
	categories[0].Locators[1].Create = func(_ context.Context, d Directory) error {
		asked = append(asked, d)
		return os.Mkdir(d.Path, os.FileMode(d.Mode&0o777))
	}
	categories[0].Locators[1].Owner, categories[0].Locators[1].Group = expand("root"), expand("#{localGroupName}")
	categories[0].Locators[1].Mode = 0o2770
	if err := w.SetCategories(categories); err != nil {
		t.Fatal(err)
	}
	w.accounts.groups["p-1"] = Group{Name: "climate", GID: 7}
	w.allocate(sandbox, 1)
	if err := w.Evaluate(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0].Owner != "root" || asked[0].Group != "climate" || asked[0].Mode != 0o2770 || asked[0].Root != w.base+"/work" {
		t.Fatalf("asked for %+v", asked)
	}
	if d, _ := w.drive(sandbox, "work/p-1"); d.State != store.DriveRegistering {
		t.Fatalf("drive %+v", d)
	}
	// A maker that puts a link in place is not believed.
	categories[0].Locators[1].Create = func(_ context.Context, d Directory) error { return os.Symlink("/", d.Path) }
	other := ident.Owner{Project: "p-2"}
	w.allocate(other, 1)
	if err := w.Evaluate(t.Context(), other); err == nil {
		t.Fatal("a symbolic link was taken for a drive")
	}
}

func TestAnIDNeverMovesToAnotherProduct(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.mkdir("work/p-1")
	w.allocate(sandbox, 10)
	if err := w.Evaluate(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	w.products.set("other", true)
	moved := w.categories()
	moved[0].Name = "other"
	if err := w.SetCategories(moved); err != nil {
		t.Fatal(err)
	}
	w.update(func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: sandbox, Category: "other", CombinedQuota: 1, LastUpdate: time.Now()})
		return err
	})
	if err := w.Evaluate(t.Context(), sandbox); err == nil {
		t.Fatal("no complaint")
	}
	if d, _ := w.drive(sandbox, "work/p-1"); d.Category != "storage" {
		t.Fatalf("drive %+v", d)
	}
}

// TestRegistrationRules goes through what Core may answer (contract 05 section C). The fake Core fails the test if it is
// sent anything that could end a real one.
func TestRegistrationRules(t *testing.T) {
	t.Parallel()
	type behaviour = func(context.Context, func() (ident.DriveID, error)) (ident.DriveID, error)
	for name, tc := range map[string]struct {
		prepare func(*fakeCore, string)
		behave  []behaviour
		want    store.DriveState
		sends   int // at least 1; 0: any number
		within  time.Duration
	}{
		"works":                           {want: store.DriveRegistered, sends: 1, within: time.Second},
		"not sent":                        {behave: []behaviour{fails(coreapi.ErrNotSent), fails(coreapi.ErrNotSent)}, want: store.DriveRegistered, sends: 3, within: time.Minute},
		"answer lost":                     {behave: []behaviour{cutAfter}, want: store.DriveRegistered, sends: 1, within: 2 * time.Minute},
		"request lost":                    {behave: []behaviour{cutBefore}, want: store.DriveRegistered, sends: 2, within: 2 * time.Minute},
		"request lost twice":              {behave: []behaviour{cutBefore, cutBefore}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"lost, then away, then lost":      {behave: []behaviour{cutBefore, fails(coreapi.ErrNotSent), fails(coreapi.ErrNotSent), cutBefore}, want: store.DriveSuspect, sends: 4, within: time.Hour},
		"second answer lost":              {behave: []behaviour{cutBefore, cutAfter}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"died behind a proxy":             {behave: []behaviour{fails(&coreapi.StatusError{Status: 502}), fails(&coreapi.StatusError{Status: 504})}, want: store.DriveSuspect, sends: 2, within: time.Hour},
		"taken by ours":                   {prepare: ours, want: store.DriveRegistered, sends: 1, within: time.Minute},
		"taken by ours, filter blind":     {prepare: func(c *fakeCore, id string) { ours(c, id); c.noFilter = true }, want: store.DriveRegistered, sends: 1, within: time.Minute},
		"taken by something else":         {prepare: func(c *fakeCore, id string) { c.taken[id] = true }, want: store.DriveSuspect, sends: 1, within: time.Hour},
		"taken by a drive of other owner": {prepare: foreign, want: store.DriveFailed, sends: 1, within: time.Hour},
		"refused, then accepted":          {behave: []behaviour{fails(&coreapi.StatusError{Status: 403}), fails(&coreapi.StatusError{Status: 400})}, want: store.DriveRegistered, sends: 3, within: time.Hour},
		"bug in Core":                     {behave: []behaviour{fails(&coreapi.StatusError{Status: 500})}, want: store.DriveRegistered, sends: 2, within: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, storetest.SQLite(t))
				w.mkdir("work/p-1")
				w.allocate(sandbox, 10)
				w.core.behave = tc.behave
				if tc.prepare != nil {
					tc.prepare(w.core, GeneratedID("hpc", sandbox, w.base+"/work/p-1"))
				}
				w.run()
				time.Sleep(tc.within)
				d, _ := w.drive(sandbox, "work/p-1")
				if d.State != tc.want || w.sends() != tc.sends || (d.State == store.DriveRegistered) != (d.ID != "") {
					t.Fatalf("after %s: %d sends, drive %+v", tc.within, w.sends(), d)
				}
				if d.State != store.DriveRegistered && d.LastError == "" {
					t.Error("nothing tells the operator why")
				}
				// And nothing happens to it any more, whoever looks.
				w.ChangedAll()
				time.Sleep(24 * time.Hour)
				after, _ := w.drive(sandbox, "work/p-1")
				if after.State != tc.want || w.sends() != tc.sends {
					t.Fatalf("a day later: %d sends, drive %+v", w.sends(), after)
				}
			})
		})
	}
}

func ours(c *fakeCore, id string) {
	p := sandbox.Project
	c.drives[id] = providerapi.Drive{
		ID: "77", ProviderGeneratedID: id, Owner: providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: &p},
		Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: "hpc"}},
	}
}

func foreign(c *fakeCore, id string) {
	ours(c, id)
	d := c.drives[id]
	d.Owner = providerapi.ResourceOwner{CreatedBy: "somebody#1"}
	c.drives[id] = d
}

// TestCrashBetweenAnyTwoSteps ends the process at each point and lets the next one finish, on both engines.
func TestCrashBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"note", "queue", "queued", "sending", "sent"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, storetest.SQLite(t))
				w.mkdir("work/p-1")
				w.allocate(sandbox, 10)
				crash := errors.New("crash")
				reached := make(chan struct{})
				switch step {
				case "note", "queue":
					w.fault = func(s string) error {
						if s == step {
							return crash
						}
						return nil
					}
					if err := w.Evaluate(t.Context(), sandbox); !errors.Is(err, crash) {
						t.Fatal(err)
					}
				case "queued":
					if err := w.Evaluate(t.Context(), sandbox); err != nil {
						t.Fatal(err)
					}
				case "sending", "sent":
					w.core.behave = append(w.core.behave, func(ctx context.Context, register func() (ident.DriveID, error)) (ident.DriveID, error) {
						if step == "sent" {
							_, _ = register()
						}
						close(reached)
						<-ctx.Done()
						return "", ctx.Err()
					})
					stop := w.run()
					<-reached
					stop()
				}
				w.restart()
				w.run()
				time.Sleep(5 * time.Minute)
				d, _ := w.drive(sandbox, "work/p-1")
				if d.State != store.DriveRegistered || len(w.core.drives) != 1 || w.core.drives[d.ProviderGeneratedID].ID != d.ID {
					t.Fatalf("drive %+v, Core %+v", d, w.core.drives)
				}
				want := map[string]int{"sending": 2}[step]
				if n := w.sends(); n != max(want, 1) {
					t.Fatalf("%d sends", n)
				}
			})
		})
	}
}

func TestManyOwners(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	var owners []ident.Owner
	for i := range 40 {
		o := ident.Owner{Project: ident.ProjectID(fmt.Sprint("p-", i))}
		w.mkdir("work/" + string(o.Project))
		w.allocate(o, 1)
		owners = append(owners, o)
	}
	w.run()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, o := range owners {
				w.Changed(o)
				if err := w.Evaluate(t.Context(), o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, o := range owners {
		w.waitFor(o, "work/"+string(o.Project), store.DriveRegistered)
	}
	if n := w.sends(); n != len(owners) {
		t.Fatalf("%d registrations of %d drives", n, len(owners))
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]Locator{
		"neither":  {Name: "a", AllowedRoots: []string{"/x"}},
		"both":     {Name: "a", Pattern: expand("/x"), Script: answer("/x"), AllowedRoots: []string{"/x"}},
		"no roots": {Name: "a", Pattern: expand("/x")},
		"no name":  {Pattern: expand("/x"), AllowedRoots: []string{"/x"}},
	} {
		if err := checkCategories([]Category{{Name: "c", Locators: []Locator{l}}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	good := Locator{Name: "a", Pattern: expand("/x"), AllowedRoots: []string{"/x"}}
	if err := checkCategories([]Category{{Name: "c", Locators: []Locator{good, good}}}); err == nil {
		t.Error("two locators by one name")
	}
	if !slices.Contains([]bool{EntityAny.serves(karin)}, true) || EntityMemberFiles.serves(karin) || EntityProject.serves(karin) || EntityUser.serves(sandbox) {
		t.Error("entities")
	}
}
