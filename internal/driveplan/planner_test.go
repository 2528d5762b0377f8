package driveplan

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestDrivesComeIntoBeing(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db)
		w.accounts.mapUser(karin.User, "karin01")
		w.mkdir("home/karin01")
		w.mkdir("projects/p-1")
		w.allocate(karin, 10)
		stop := w.run()
		d := w.waitFor(karin, "home/karin01", store.DriveRegistered)
		if d.ID == "" || d.Title != "Home" || d.Product != "storage" || d.Locator != "home" || d.LastError != "" {
			t.Errorf("drive %+v", d)
		}
		w.allocate(sandbox, 10)
		w.Changed(sandbox)
		d = w.waitFor(sandbox, "projects/p-1", store.DriveRegistered)
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
			w.mkdir("projects/p-9")
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
		w.mkdir("projects/p-1")
		w.mkdir("projects/p-2")
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
			w.mkdir("projects/p-1")
			w.allocate(sandbox, 10)
			evaluate(w, sandbox)
			w.products.set("storage", false) // Core was restored from a backup
			w.run()
			time.Sleep(10 * time.Minute)
			if w.sends() != 0 {
				t.Fatal("sent although Core does not know the product")
			}
			w.products.set("storage", true)
			if err := os.Remove(filepath.Join(w.base, "projects/p-1")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
			if w.sends() != 0 {
				t.Fatal("sent although the directory is gone")
			}
			w.mkdir("projects/p-1")
			time.Sleep(10 * time.Minute)
			if d, _ := w.drive(sandbox, "projects/p-1"); d.State != store.DriveRegistered {
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
	if len(asked) != 1 || asked[0].Owner != "root" || asked[0].Group != "climate" || asked[0].Mode != 0o2770 || asked[0].Root != w.base+"/projects" {
		t.Fatalf("asked for %+v", asked)
	}
	if d, _ := w.drive(sandbox, "projects/p-1"); d.State != store.DriveRegistering {
		t.Fatalf("drive %+v", d)
	}
	// A maker that puts a link in place is not believed.
	categories[0].Locators[1].Create = func(_ context.Context, d Directory) error { return os.Symlink("/", d.Path) }
	other := ident.Owner{Project: "p-2"}
	w.accounts.groups["p-2"] = Group{Name: "other", GID: 8}
	w.allocate(other, 1)
	if err := w.Evaluate(t.Context(), other); err == nil {
		t.Fatal("a symbolic link was taken for a drive")
	}
}

func TestAnIDNeverMovesToAnotherProduct(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	w.mkdir("projects/p-1")
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
	if d, _ := w.drive(sandbox, "projects/p-1"); d.Category != "storage" {
		t.Fatalf("drive %+v", d)
	}
}

func TestManyOwners(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	var owners []ident.Owner
	for i := range 40 {
		o := ident.Owner{Project: ident.ProjectID(fmt.Sprint("p-", i))}
		w.mkdir("projects/" + string(o.Project))
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
		w.waitFor(o, "projects/"+string(o.Project), store.DriveRegistered)
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
	if !slices.Contains([]bool{EntityAny.serves(karin)}, true) || EntityMemberFiles.serves(karin) || !EntityMemberFiles.serves(sandbox) || EntityProject.serves(karin) || EntityUser.serves(sandbox) {
		t.Error("entities")
	}
}
