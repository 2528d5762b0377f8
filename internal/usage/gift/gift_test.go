package gift

import (
	"context"
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
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

type fakeCore struct {
	mu     sync.Mutex
	behave []error
	asked  []providerapi.ProviderGift
}

func (c *fakeCore) RegisterGift(_ context.Context, g providerapi.ProviderGift) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, g)
	if len(c.behave) == 0 {
		return nil
	}
	err := c.behave[0]
	c.behave = c.behave[1:]
	return err
}

func (c *fakeCore) take() (asked []providerapi.ProviderGift) {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked, c.asked = c.asked, nil
	return asked
}

const alice = ident.UCloudUser("Alice#1")

// TestGifts: each user gets each gift once, whatever Core does and however often the process starts or users connect.
func TestGifts(t *testing.T) {
	t.Parallel()
	notOffered := &coreapi.StatusError{Status: 404, Why: "404 page not found"}
	for name, tc := range map[string]struct {
		behave  []error
		again   bool
		first   int // requests after the first connection
		second  int // after another start, and another connection
		suspect int
	}{
		"works":           {first: 1},
		"away":            {behave: []error{coreapi.ErrNotSent, coreapi.ErrNotSent}, first: 3},
		"refused":         {behave: []error{&coreapi.StatusError{Status: 403}}, first: 2},
		"bug":             {behave: []error{&coreapi.StatusError{Status: 500}}, first: 2},
		"not offered":     {behave: []error{notOffered}, first: 1, second: 1},
		"outcome unknown": {behave: []error{coreapi.ErrNoAnswer}, first: 1, suspect: 1},
		"with every one":  {again: true, first: 1, second: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := storetest.SQLite(t)
			synctest.Test(t, func(t *testing.T) {
				core := &fakeCore{behave: tc.behave}
				var mu sync.Mutex
				declared := false
				start := func() (g *Gifts, stop func()) {
					box := outbox.New(db, outbox.Options{})
					g, err := New(Options{
						Provider: "hpc", Store: db, Core: core, Outbox: box,
						Categories: []Category{{Name: "disk", Units: 10, Again: tc.again}, {Name: "none"}},
						Declared:   func(string) bool { mu.Lock(); defer mu.Unlock(); return declared },
					})
					if err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					wg.Go(func() { _ = box.Run(ctx) })
					return g, func() { cancel(); wg.Wait() }
				}
				g, stop := start()
				if err := g.Connected(t.Context(), alice); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
				if n := len(core.take()); n != 0 {
					t.Errorf("%d requests before Core knew user and product", n)
				}
				if err := db.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(alice, time.Now()) }); err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				declared = true
				mu.Unlock()
				time.Sleep(3 * time.Hour)
				asked := core.take()
				if len(asked) != tc.first || asked[0] != (providerapi.ProviderGift{OwnerUsername: alice, Category: providerapi.CategoryReference{Name: "disk", Provider: "hpc"}, Quota: 10}) {
					t.Errorf("asked %+v", asked)
				}
				stop()
				g, stop = start()
				if err := g.Repair(t.Context(), []ident.UCloudUser{alice}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Hour)
				if n := len(core.take()); n != 0 {
					t.Errorf("%d requests after another start", n)
				}
				if err := g.Connected(t.Context(), alice); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Hour)
				if n := len(core.take()); n != tc.second {
					t.Errorf("%d requests after another connection", n)
				}
				stop()
				if err := db.View(t.Context(), func(tx *store.Tx) error {
					all, err := tx.OutboxAll()
					if len(all) != tc.suspect {
						t.Errorf("left in the outbox: %+v", all)
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
