package driveplan_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/devcore"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/events"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/products"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

// accounts maps two users and gives projects no group.
type accounts map[ident.UCloudUser]string

func (a accounts) LocalAccount(_ context.Context, u ident.UCloudUser) (driveplan.Account, bool, error) {
	name, ok := a[u]
	return driveplan.Account{Name: name, UID: 1000, PrimaryGroup: name}, ok, nil
}

func (accounts) ProjectGroup(context.Context, ident.ProjectID) (driveplan.Group, bool, error) {
	return driveplan.Group{}, false, nil
}

// TestFromAllocationToDrive runs everything that talks to Core against the simulator, which knows what would end a real
// Core: tokens, products, events, drives. It ends with the simulator's list of violations, which must be empty.
func TestFromAllocationToDrive(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		core, err := devcore.New(devcore.Options{Provider: "hpc", ProviderURL: "http://127.0.0.1:1", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		core.AddUser("Karin#2718")
		core.AddUser("Ada#1")
		project := core.AddProject("", "Climate", "Karin#2718", "Ada#1")
		srv := httptest.NewServer(core.Handler(nil))
		t.Cleanup(srv.Close)

		base := t.TempDir()
		for _, dir := range []string{"home/karin01", "projects/" + string(project)} {
			if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		hc, err := coreapi.NewHTTPClient(coreapi.HTTPOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(hc.CloseIdleConnections)
		retry := coreapi.Backoff{Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond}
		tokens, err := coreapi.NewTokenSource(coreapi.TokenOptions{
			BaseURL: srv.URL, Provider: "hpc", RefreshToken: observability.Secret(core.RefreshToken()), HTTP: hc, Retry: retry,
		})
		if err != nil {
			t.Fatal(err)
		}
		client, err := coreapi.New(coreapi.Options{BaseURL: srv.URL, Provider: "hpc", HTTP: hc, Tokens: tokens})
		if err != nil {
			t.Fatal(err)
		}
		catalog, err := products.NewCatalog(products.Options{
			Provider: "hpc", Storage: []products.Storage{{Name: "storage", Payment: products.Payment{Unit: "GB"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		var planner *driveplan.Planner
		declarer, err := products.NewDeclarer(catalog, products.DeclarerOptions{
			Core: client, Store: db, Retry: retry, OnDeclared: func(string) { planner.ChangedAll() },
		})
		if err != nil {
			t.Fatal(err)
		}
		box := outbox.New(db, outbox.Options{})
		planner, err = driveplan.New(driveplan.Options{
			Provider: "hpc", Store: db, Core: client, Products: declarer, Accounts: accounts{"Karin#2718": "karin01"}, Outbox: box, Retry: retry,
			Categories: []driveplan.Category{{Name: "storage", Locators: []driveplan.Locator{
				{
					Name: "home", Entity: driveplan.EntityUser, Needs: []string{driveplan.VarLocalUsername}, AllowedRoots: []string{base + "/home"},
					Pattern: func(v driveplan.Vars) (string, error) { return base + "/home/" + v[driveplan.VarLocalUsername], nil },
				},
				{
					Name: "work", Entity: driveplan.EntityProject, Needs: []string{driveplan.VarProjectTitle}, AllowedRoots: []string{base + "/projects"},
					Pattern: func(v driveplan.Vars) (string, error) {
						return base + "/projects/" + v[driveplan.VarUCloudProjectID], nil
					},
					Title: func(v driveplan.Vars) (string, error) { return "Work of " + v[driveplan.VarProjectTitle], nil },
				},
			}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := events.New(events.Options{
			BaseURL: srv.URL, Provider: "hpc", HTTP: hc, Tokens: tokens, Store: db, Retry: retry,
			Changed: func(_ context.Context, c events.Change) { planner.Changed(c.Owners...) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		t.Cleanup(func() {
			cancel()
			wg.Wait()
		})
		for _, run := range []func(context.Context) error{tokens.Run, declarer.Run, box.Run, planner.Run, stream.Run} {
			wg.Go(func() { _ = run(ctx) })
		}

		testkit.Eventually(t, "the category is declared", func() bool { return core.Declared("storage") && declarer.Declared("storage") })
		if err := core.Allocate(ident.Owner{User: "Karin#2718"}, "storage", 10); err != nil {
			t.Fatal(err)
		}
		// Not mapped: a wallet and no drive.
		if err := core.Allocate(ident.Owner{User: "Ada#1"}, "storage", 10); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the home is registered", func() bool { return len(core.Drives()) == 1 })
		testkit.Eventually(t, "the stream is up", func() bool { return stream.Status().State == events.StateUp })

		// Core restarts; what happens meanwhile arrives by replay.
		core.Disconnect()
		if err := core.Allocate(ident.Owner{Project: project}, "storage", 10); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the project's drive is registered", func() bool { return len(core.Drives()) == 2 })
		for _, d := range core.Drives() {
			row := store.Drive{}
			testkit.Eventually(t, "Core's id is stored", func() bool {
				return db.View(t.Context(), func(tx *store.Tx) (err error) {
					row, err = tx.DriveByID(d.ID)
					return err
				}) == nil
			})
			if row.ProviderGeneratedID != d.ProviderGeneratedID || row.Owner != d.Owner.Workspace() || row.State != store.DriveRegistered {
				t.Errorf("Core has %+v, we have %+v", d, row)
			}
		}
		err = db.View(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Wallet(ident.Owner{User: "Ada#1"}, "storage")
			return err
		})
		if err != nil {
			t.Errorf("wallet of a user who is not connected: %v", err)
		}
		if v := core.Violations(); len(v) != 0 {
			t.Errorf("violations: %+v", v)
		}
	})
}
