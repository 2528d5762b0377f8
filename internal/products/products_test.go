package products

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func catalog(t *testing.T, f Features, s ...Storage) *Catalog {
	t.Helper()
	c, err := NewCatalog(Options{Provider: "hpc-example", Storage: s, Features: f})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func gb(name string) Storage { return Storage{Name: name, Payment: Payment{Unit: "GB"}} }

func TestProductsAreTheContracts(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../providerapi/testdata/examples/core/products.v2.create--storage.json")
	if err != nil {
		t.Fatal(err)
	}
	var ex struct{ Request json.RawMessage }
	if err := json.Unmarshal(raw, &ex); err != nil {
		t.Fatal(err)
	}
	s := gb("storage")
	s.Description = "A storage product"
	got, err := json.Marshal(providerapi.BulkRequest[providerapi.Product]{Items: catalog(t, Features{}, s).Products("storage")})
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := errors.Join(json.Unmarshal(got, &a), json.Unmarshal(ex.Request, &b)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, a); diff != "" {
		t.Fatal(diff)
	}
	apischema.Core(t).Request(t, "products.v2.create", got)
}

func TestPayments(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		payment   Payment
		unit      providerapi.AccountingUnit
		frequency string
		price     int64
	}{
		"quota":       {Payment{Unit: "TiB"}, providerapi.AccountingUnit{Name: "TiB", NamePlural: "TiB"}, "ONCE", 1},
		"daily":       {Payment{Unit: "GB", Interval: Daily}, providerapi.AccountingUnit{Name: "GB", NamePlural: "GB", DisplayFrequencySuffix: true}, "PERIODIC_DAY", 1},
		"hourly":      {Payment{Unit: "GB", Interval: Hourly}, providerapi.AccountingUnit{Name: "GB", NamePlural: "GB", DisplayFrequencySuffix: true}, "PERIODIC_HOUR", 1},
		"money":       {Payment{Currency: "DKK", Price: 1_500_000, Interval: Minutely}, providerapi.AccountingUnit{Name: "DKK", NamePlural: "DKK", FloatingPoint: true}, "PERIODIC_MINUTE", 1_500_000},
		"money, once": {Payment{Currency: "EUR", Price: 7}, providerapi.AccountingUnit{Name: "EUR", NamePlural: "EUR", FloatingPoint: true}, "ONCE", 7},
	} {
		p := catalog(t, Features{}, Storage{Name: "s", Payment: tc.payment}).Products("s")[0]
		if p.Category.AccountingUnit != tc.unit || p.Category.AccountingFrequency != tc.frequency || p.Price != tc.price {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for name, s := range map[string]Storage{
		"no name": {Payment: Payment{Unit: "GB"}}, "no unit": {Name: "s"}, "blank": {Name: "a b", Payment: Payment{Unit: "GB"}},
		"interval": {Name: "s", Payment: Payment{Unit: "GB", Interval: "Weekly"}}, "no price": {Name: "s", Payment: Payment{Currency: "DKK"}},
		"newline": {Name: "a\nb", Payment: Payment{Unit: "GB"}},
	} {
		if _, err := NewCatalog(Options{Provider: "p", Storage: []Storage{s}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewCatalog(Options{Provider: "p", Storage: []Storage{gb("a"), gb("a")}}); err == nil {
		t.Error("two products by the same name")
	}
}

func TestSupport(t *testing.T) {
	t.Parallel()
	ro := gb("archive")
	ro.ReadOnly = true
	c := catalog(t, Features{Trash: true, StreamingSearch: true, Terminal: true}, gb("storage"), ro)
	support := c.StorageSupport()
	body, err := json.Marshal(providerapi.BulkResponse[providerapi.FSSupport]{Responses: support})
	if err != nil {
		t.Fatal(err)
	}
	apischema.Provider(t).Response(t, "files.collections.retrieveProducts", body)

	// With everything on, it is the Slurm column of the contract.
	raw, err := os.ReadFile("../providerapi/testdata/examples/provider/files.collections.retrieveProducts.json")
	if err != nil {
		t.Fatal(err)
	}
	var ex struct {
		Response providerapi.BulkResponse[providerapi.FSSupport]
	}
	if err := json.Unmarshal(raw, &ex); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ex.Response.Responses[0], support[0]); diff != "" {
		t.Error(diff)
	}
	if f := support[1].Files; !f.IsReadOnly || f.TrashSupported {
		t.Errorf("read-only product: %+v", f)
	}
	for i, s := range support {
		p := c.Products(s.Product.Category)[0]
		ref, ok := c.Reference(s.Product.Category)
		if s.Product != p.Reference() || s.Product != ref || !ok || i > 1 {
			t.Errorf("the triples differ: %+v %+v %+v", s.Product, p.Reference(), ref)
		}
	}
	// What is not served is not announced.
	if f := catalog(t, Features{}, gb("storage")).StorageSupport()[0].Files; f != (providerapi.FSSupportFiles{}) {
		t.Errorf("announced: %+v", f)
	}
	own := gb("storage")
	own.UserDrives = true
	for _, s := range catalog(t, Features{}, own, ro).StorageSupport() {
		want := providerapi.FSSupportCollection{}
		if s.Product.Category == "storage" {
			want = providerapi.FSSupportCollection{UsersCanCreate: true, UsersCanRename: true, UsersCanDelete: true}
		}
		if s.Collection != want {
			t.Errorf("%s announces %+v", s.Product.Category, s.Collection)
		}
	}
	if _, ok := c.Reference("other"); ok {
		t.Error("a reference to an unknown category")
	}
}

// fakeCore keeps products as Core does: unit, frequency and freeToUse of a category never change, hidden is not kept.
type fakeCore struct {
	mu       sync.Mutex
	products []providerapi.Product
	declared []string // categories, one element per call
	browses  int
	fail     error            // of every call
	refuse   map[string]error // by category
}

func (c *fakeCore) BrowseProducts(context.Context) ([]providerapi.Product, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.browses++
	return slices.Clone(c.products), c.fail
}

func (c *fakeCore) DeclareProducts(_ context.Context, products []providerapi.Product) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	category := products[0].Category
	c.declared = append(c.declared, category.Name)
	if err := errors.Join(c.fail, c.refuse[category.Name]); err != nil {
		return err
	}
	for _, p := range products {
		p.HiddenInGrantApplications, p.Fraction = false, providerapi.Fraction{} // as recorded
		i := slices.IndexFunc(c.products, func(q providerapi.Product) bool { return q.Reference() == p.Reference() })
		if i < 0 {
			c.products = append(c.products, p)
			continue
		}
		p.Category.AccountingUnit = c.products[i].Category.AccountingUnit
		p.Category.AccountingFrequency = c.products[i].Category.AccountingFrequency
		p.Category.FreeToUse = c.products[i].Category.FreeToUse
		c.products[i] = p
	}
	return nil
}

func (c *fakeCore) calls() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.declared)
}

type running struct {
	*Declarer
	core   *fakeCore
	usable *[]string
}

func run(t *testing.T, db *store.Store, core *fakeCore, c *Catalog) running {
	t.Helper()
	var mu sync.Mutex
	var usable []string
	d, err := NewDeclarer(c, DeclarerOptions{Core: core, Store: db, OnDeclared: func(category string) {
		mu.Lock()
		defer mu.Unlock()
		usable = append(usable, category)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return running{d, core, &usable}
}

func state(t *testing.T, d *Declarer, category string) CategoryStatus {
	t.Helper()
	all, _ := d.Status()
	for _, s := range all {
		if s.Category == category {
			return s
		}
	}
	t.Fatalf("no status of %s", category)
	return CategoryStatus{}
}

func TestDeclaresWhatIsMissingAndWhatDiffers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := storetest.SQLite(t)
		core := &fakeCore{}
		d := run(t, db, core, catalog(t, Features{}, gb("a"), gb("b")))
		if d.Declared("a") {
			t.Fatal("usable before Core has accepted it")
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if got := core.calls(); !slices.Equal(got, []string{"a", "b"}) || !d.Declared("a") || !d.Declared("b") || d.Declared("c") {
			t.Fatalf("declared %v", got)
		}
		if !slices.Equal(*d.usable, []string{"a", "b"}) {
			t.Fatalf("told %v", *d.usable)
		}
		// Nothing is sent when nothing differs, day after day.
		time.Sleep(49 * time.Hour)
		if got := core.calls(); len(got) != 2 || core.browses != 3 {
			t.Fatalf("declared %v, compared %d times", got, core.browses)
		}
		// A new description: that category alone.
		changed := gb("b")
		changed.Description = "Better"
		d.SetCatalog(catalog(t, Features{}, gb("a"), changed))
		time.Sleep(time.Second)
		if got := core.calls(); !slices.Equal(got[2:], []string{"b"}) {
			t.Fatalf("declared %v", got[2:])
		}
		// The hidden flag is not given back by Core; its change shows in the hash.
		changed.Hidden = true
		d.SetCatalog(catalog(t, Features{}, gb("a"), changed))
		time.Sleep(25 * time.Hour)
		if got := core.calls(); !slices.Equal(got[3:], []string{"b"}) {
			t.Fatalf("declared %v", got[3:])
		}
		// Core was restored from an old backup.
		core.mu.Lock()
		core.products = nil
		core.mu.Unlock()
		time.Sleep(25 * time.Hour)
		if got := core.calls(); !slices.Equal(got[4:], []string{"a", "b"}) {
			t.Fatalf("declared %v", got[4:])
		}
	})
}

func TestARestartTakesOverAndANewDatabaseAsks(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		core := &fakeCore{}
		c := catalog(t, Features{}, gb("a"))
		d, err := NewDeclarer(c, DeclarerOptions{Core: core, Store: db})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		again, err := NewDeclarer(c, DeclarerOptions{Core: &fakeCore{fail: errors.New("away")}, Store: db})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Load(t.Context()); err != nil || !again.Declared("a") {
			t.Fatalf("after a restart with Core away: usable %v, %v", again.Declared("a"), err)
		}
		if err := again.reconcile(t.Context()); err == nil || !again.Declared("a") {
			t.Fatalf("%v", err)
		}
		// With an empty database and the products at Core nothing has to be sent.
		fresh, err := NewDeclarer(c, DeclarerOptions{Core: core, Store: storetest.SQLite(t)})
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh.reconcile(t.Context()); err != nil || !fresh.Declared("a") || len(core.calls()) != 1 {
			t.Fatalf("%v, %v", err, core.calls())
		}
	})
}

func TestWhatCoreWouldKeepIsNeverSent(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Storage){
		"unit":      func(s *Storage) { s.Payment.Unit = "TB" },
		"frequency": func(s *Storage) { s.Payment.Interval = Daily },
		"free":      func(s *Storage) { s.FreeToUse = true },
		"money":     func(s *Storage) { s.Payment = Payment{Currency: "DKK", Price: 1} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core := &fakeCore{}
			db := storetest.SQLite(t)
			before, _ := NewDeclarer(catalog(t, Features{}, gb("a")), DeclarerOptions{Core: core, Store: db})
			if err := before.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			other := gb("a")
			change(&other)
			d, _ := NewDeclarer(catalog(t, Features{}, other, gb("b")), DeclarerOptions{Core: core, Store: db})
			if err := d.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := core.calls(); !slices.Equal(got, []string{"a", "b"}) { // a once, before; b now
				t.Fatalf("declared %v", got)
			}
			s := state(t, d, "a")
			if s.State != Differs || s.Problem == "" || !s.Usable || !d.Declared("b") {
				t.Fatalf("status %+v", s)
			}
		})
	}
}

func TestRefusalsAndOutages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core := &fakeCore{refuse: map[string]error{"a": &coreapi.StatusError{Status: 400, Why: "database text"}}}
		d := run(t, storetest.SQLite(t), core, catalog(t, Features{}, gb("a"), gb("b")))
		time.Sleep(time.Hour)
		if s := state(t, d.Declarer, "a"); s.State != Refused || d.Declared("a") || s.Problem == "" {
			t.Fatalf("status %+v", s)
		}
		if !d.Declared("b") {
			t.Fatal("a refused category keeps the others away")
		}
		n := 0
		for _, c := range core.calls() {
			if c == "a" {
				n++
			}
		}
		if n < 50 || n > 130 {
			t.Fatalf("sent %d times in an hour", n)
		}
		core.mu.Lock()
		core.refuse = nil
		core.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if s := state(t, d.Declarer, "a"); s.State != Declared || !d.Declared("a") || s.Problem != "" {
			t.Fatalf("status %+v", s)
		}
	})
}

func TestRecordedProductsAreSame(t *testing.T) {
	t.Parallel()
	// Core's answer differs from what was sent in members that mean nothing.
	ours := catalog(t, Features{}, gb("a")).Products("a")[0]
	core := ours
	core.Fraction, core.HiddenInGrantApplications, core.Balance = providerapi.Fraction{}, true, 7
	if !same(ours, core) {
		t.Error("would be declared again and again")
	}
	core.Price = 2
	if same(ours, core) {
		t.Error("another price is no difference")
	}
}
