package driveplan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
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
	// A user's drive, a project's, or that of one member of a project, which the others must not reach.
	if (d.Project == nil && d.CreatedBy == nil) || d.ProjectAllRead != (d.Project != nil && d.CreatedBy == nil) || (d.ProjectAllWrite && !d.ProjectAllRead) {
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
	for _, dir := range []string{"home", "projects"} {
		if err := os.Mkdir(filepath.Join(w.base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	return w
}

func (w *world) categories() []Category {
	home, work := w.base+"/home", w.base+"/projects"
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
