package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestWebSessions(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		now := time.UnixMilli(1_760_000_000_000).UTC()
		update := func(f func(tx *store.Tx) error) error { return s.Update(t.Context(), f) }
		must := func(f func(tx *store.Tx) error) {
			t.Helper()
			if err := update(f); err != nil {
				t.Fatal(err)
			}
		}
		app := store.WebInterface{ID: "web/512/0/", Job: "512", UID: 20001, CreatedBy: "a#1", Kind: "WEB", Host: "app-512-0.example.org", CreatedAt: now}
		desktop := store.WebInterface{ID: "vnc/512/1/", Job: "512", UID: 20001, CreatedBy: "a#1", Rank: 1, Kind: "VNC", CreatedAt: now}
		other := store.WebInterface{ID: "vnc/513/0/", Job: "513", UID: 20002, CreatedBy: "b#1", Kind: "VNC", TLS: true, CreatedAt: now}
		must(func(tx *store.Tx) error {
			return errors.Join(tx.PutWebInterface(app), tx.PutWebInterface(desktop), tx.PutWebInterface(other), tx.PutWebInterface(other))
		})
		clash := store.WebInterface{ID: "x", Job: "600", UID: 20002, CreatedBy: "b#1", Kind: "WEB", Host: app.Host, CreatedAt: now}
		if err := update(func(tx *store.Tx) error { return tx.PutWebInterface(clash) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a second interface of a host: %v", err)
		}
		taken := app
		taken.Job = "600"
		if err := update(func(tx *store.Tx) error { return tx.PutWebInterface(taken) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("an interface was taken over: %v", err)
		}
		taken = app
		taken.UID = 20002
		if err := update(func(tx *store.Tx) error { return tx.PutWebInterface(taken) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("an interface was taken over by another account: %v", err)
		}
		app.TLS = true
		sessions := []store.WebSession{
			{Hash: [32]byte{1}, Interface: app.ID, User: "a#1", CreatedAt: now, ExpiresAt: now.Add(time.Hour)},
			{Hash: [32]byte{2}, Interface: app.ID, User: "b#1", CreatedAt: now.Add(time.Second), ExpiresAt: now.Add(time.Minute)},
			{Hash: [32]byte{3}, Interface: desktop.ID, User: "a#1", CreatedAt: now, ExpiresAt: now.Add(time.Hour)},
		}
		must(func(tx *store.Tx) error {
			err := tx.PutWebInterface(app)
			for _, w := range sessions {
				err = errors.Join(err, tx.InsertWebSession(w))
			}
			return err
		})
		if err := update(func(tx *store.Tx) error { return tx.InsertWebSession(sessions[0]) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a session twice: %v", err)
		}
		if err := update(func(tx *store.Tx) error {
			return tx.InsertWebSession(store.WebSession{Hash: [32]byte{9}, Interface: "nothing", User: "a#1", CreatedAt: now, ExpiresAt: now})
		}); err == nil {
			t.Error("a session of nothing was stored")
		}
		must(func(tx *store.Tx) error {
			all, err := tx.WebInterfaces()
			check(t, err, all, []store.WebInterface{desktop, other, app})
			of, err := tx.WebInterfacesOf("512")
			check(t, err, of, []store.WebInterface{desktop, app})
			byHost, err := tx.WebInterfaceByHost(app.Host)
			check(t, err, byHost, app)
			byID, err := tx.WebInterfaceByID(other.ID)
			check(t, err, byID, other)
			if _, err := tx.WebInterfaceByHost(""); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a desktop has an empty host name: %v", err)
			}
			live, err := tx.WebSessionsOf(app.ID, now)
			check(t, err, live, []store.WebSession{sessions[1], sessions[0]})
			later, err := tx.WebSessionsOf(app.ID, now.Add(time.Minute))
			check(t, err, later, sessions[:1])
			mine, err := tx.WebSessionsOfUser("a#1")
			check(t, err, mine, []store.WebSession{sessions[0], sessions[2]})
			return nil
		})
		must(func(tx *store.Tx) error {
			gone, err := tx.PurgeWebSessions(now.Add(time.Minute))
			check(t, err, gone, []string{app.ID})
			return errors.Join(tx.DeleteWebSession(sessions[2].Hash), tx.DeleteWebInterface(app.ID))
		})
		must(func(tx *store.Tx) error {
			mine, err := tx.WebSessionsOfUser("a#1")
			check(t, err, mine, nil) // gone with its interface
			return nil
		})
	})
}

func check[T any](t *testing.T, err error, got, want T) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
