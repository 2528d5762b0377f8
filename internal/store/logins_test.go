package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestLogins(t *testing.T) {
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
		login := func(n byte, user string) store.Login {
			return store.Login{
				StateHash: [32]byte{n}, CookieHash: [32]byte{n, 1}, Salt: []byte{n, 2}, User: "a#1", Key: user + "-key", Stage: store.LoginStarted,
				CreatedAt: now.Add(time.Duration(n) * time.Second), ExpiresAt: now.Add(time.Hour + time.Duration(n)*time.Second),
			}
		}
		first, second := login(1, "x"), login(2, "y")
		must(func(tx *store.Tx) error { return errors.Join(tx.InsertLogin(first), tx.InsertLogin(second)) })
		clash := login(3, "z")
		clash.CookieHash = first.CookieHash
		if err := update(func(tx *store.Tx) error { return tx.InsertLogin(clash) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("two logins with one cookie: %v", err)
		}

		// Each step is taken once.
		first.Stage = store.LoginChecking
		must(func(tx *store.Tx) error { return tx.MoveLogin(first, store.LoginStarted) })
		if err := update(func(tx *store.Tx) error { return tx.MoveLogin(first, store.LoginStarted) }); !errors.Is(err, store.ErrConflict) {
			t.Errorf("a step was taken twice: %v", err)
		}
		first.Stage, first.Issuer, first.Subject, first.UID, first.LocalName = store.LoginProved, "https://idp", "s", 4294967294, "alice"
		must(func(tx *store.Tx) error { return tx.MoveLogin(first, store.LoginChecking) })
		must(func(tx *store.Tx) error {
			byState, err := tx.LoginByState(first.StateHash)
			byCookie, err2 := tx.LoginByCookie(second.CookieHash)
			all, err3 := tx.LoginsOf("a#1")
			n, err4 := tx.CountLogins()
			if diff := cmp.Diff([]store.Login{first, second, second, first}, append([]store.Login{byState, byCookie}, all...)); diff != "" || n != 2 {
				t.Errorf("%d logins, %s", n, diff)
			}
			return errors.Join(err, err2, err3, err4)
		})

		// A restart ends what was being checked.
		second.Stage = store.LoginChecking
		must(func(tx *store.Tx) error {
			err := tx.MoveLogin(second, store.LoginStarted)
			n, err2 := tx.FailCheckingLogins("again")
			if n != 1 {
				t.Errorf("%d logins ended", n)
			}
			got, err3 := tx.LoginByState(second.StateHash)
			if got.Stage != store.LoginFailed || got.Message != "again" {
				t.Errorf("%+v", got)
			}
			return errors.Join(err, err2, err3)
		})
		must(func(tx *store.Tx) error {
			n, err := tx.PurgeLogins(first.ExpiresAt)
			left, err2 := tx.CountLogins()
			if n != 1 || left != 1 {
				t.Errorf("%d purged, %d left", n, left)
			}
			return errors.Join(err, err2, tx.DeleteLogin(second.StateHash))
		})
		if err := update(func(tx *store.Tx) error { return tx.DeleteLogin(second.StateHash) }); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removed twice: %v", err)
		}
	})
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		now := time.UnixMilli(1_760_000_000_000).UTC()
		a := store.Identity{Issuer: "https://idp", Subject: "1", User: "a#1", CreatedAt: now}
		insert := func(i store.Identity) error {
			return s.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertIdentity(i) })
		}
		if err := insert(a); err != nil {
			t.Fatal(err)
		}
		for name, i := range map[string]store.Identity{
			"another user":     {Issuer: "https://idp", Subject: "1", User: "b#1", CreatedAt: now},
			"another identity": {Issuer: "https://idp", Subject: "2", User: "a#1", CreatedAt: now},
		} {
			if err := insert(i); !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// The same subject of another issuer is somebody else.
		if err := insert(store.Identity{Issuer: "https://other", Subject: "1", User: "b#1", CreatedAt: now}); err != nil {
			t.Error(err)
		}
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			bySubject, err := tx.IdentityBySubject("https://idp", "1")
			ofUser, err2 := tx.IdentityOfUser("a#1")
			if diff := cmp.Diff([]store.Identity{a, a}, []store.Identity{bySubject, ofUser}); diff != "" {
				t.Error(diff)
			}
			err3 := tx.DeleteIdentity("https://idp", "1")
			_, gone := tx.IdentityOfUser("a#1")
			if !errors.Is(gone, store.ErrNotFound) {
				t.Errorf("after its removal: %v", gone)
			}
			return errors.Join(err, err2, err3, tx.DeleteIdentity("https://idp", "1"))
		})
		if err != nil {
			t.Error(err)
		}
	})
}
