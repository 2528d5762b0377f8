package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// pendingKey is a key as it is uploaded.
func pendingKey(id string, user ident.UCloudUser, n byte) store.SigningKey {
	return store.SigningKey{
		ID: id, User: user, PublicKey: []byte{n}, Fingerprint: "SHA256:" + string(rune('a'+n)), Algorithm: "RS256", Session: [32]byte{n, 31: 7},
		State: store.SigningKeyPending, CreatedAt: day.Add(time.Duration(n) * time.Second), ExpiresAt: day.Add(time.Hour),
	}
}

func TestSigningKeys(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		a, b, other := pendingKey("a", "A#1", 1), pendingKey("b", "A#1", 2), pendingKey("c", "B#2", 3)
		other.Fingerprint = a.Fingerprint // of another user: nobody's business
		update(t, s, func(tx *store.Tx) error {
			return errors.Join(tx.InsertSigningKey(a), tx.InsertSigningKey(b), tx.InsertSigningKey(other))
		})
		fails := func(what string, want error, f func(tx *store.Tx) error) {
			t.Helper()
			if err := s.Update(t.Context(), f); !errors.Is(err, want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		again := pendingKey("z", "A#1", 1)
		fails("a second key of a session", store.ErrConflict, func(tx *store.Tx) error { return tx.InsertSigningKey(again) })
		fails("an id twice", store.ErrConflict, func(tx *store.Tx) error {
			k := pendingKey("a", "A#1", 9)
			return tx.InsertSigningKey(k)
		})

		at, until := day.Add(time.Minute), day.Add(24*time.Hour)
		activate := func(id string) func(*store.Tx) error {
			return func(tx *store.Tx) error { return tx.ActivateSigningKey(id, 2001, "ticket", at, until) }
		}
		update(t, s, activate("a"))
		fails("an active key again", store.ErrConflict, activate("a"))
		fails("a key that does not exist", store.ErrConflict, activate("nil"))
		fails("a forgotten key", store.ErrConflict, func(tx *store.Tx) error {
			return tx.ActivateSigningKey("b", 2001, "ticket", b.ExpiresAt, until)
		})
		fails("forgetting an active key", store.ErrNotFound, func(tx *store.Tx) error { return tx.ForgetSigningKey("a") })

		uid := ident.UID(2001)
		a.State, a.ActivatedAt, a.ExpiresAt, a.UID, a.Proof = store.SigningKeyActive, &at, until, &uid, "ticket"
		read := func(tx *store.Tx) ([]store.SigningKey, error) { return tx.LiveSigningKeys("A#1", at) }
		if diff := cmp.Diff([]store.SigningKey{a, b}, get(t, s, read)); diff != "" {
			t.Error(diff)
		}
		if got := get(t, s, func(tx *store.Tx) (store.SigningKey, error) { return tx.SigningKeyOfSession(a.Session) }); got.ID != "a" {
			t.Errorf("the session's key is %q", got.ID)
		}
		for when, want := range map[time.Time][]store.SigningKey{at: {a}, until: nil} {
			active := get(t, s, func(tx *store.Tx) ([]store.SigningKey, error) { return tx.ActiveSigningKeys(when) })
			if diff := cmp.Diff(want, active); diff != "" {
				t.Errorf("active at %v: %s", when, diff)
			}
		}
		for _, tc := range []struct {
			key  store.SigningKey
			uid  ident.UID
			at   time.Time
			want bool
		}{{a, uid, at, true}, {a, uid + 1, at, false}, {a, uid, until, false}, {b, uid, at, false}} {
			if got := tc.key.Counts(tc.uid, tc.at); got != tc.want {
				t.Errorf("key %s counts for %d at %v: %v", tc.key.ID, tc.uid, tc.at, got)
			}
		}

		// The end of everything of a user leaves those of others alone.
		update(t, s, func(tx *store.Tx) error {
			n, err := tx.EndSigningKeysOf("A#1", "disconnected", at)
			if n != 1 {
				t.Errorf("%d keys ended", n)
			}
			return err
		})
		a.State, a.EndedAt, a.By = store.SigningKeyRevoked, &at, "disconnected"
		all := get(t, s, func(tx *store.Tx) ([]store.SigningKey, error) { return tx.SigningKeys("", 10) })
		if diff := cmp.Diff([]store.SigningKey{a, other}, all); diff != "" {
			t.Error(diff)
		}
		barred := func() bool {
			return get(t, s, func(tx *store.Tx) (bool, error) { return tx.SigningKeyBarred("A#1", a.Fingerprint) })
		}
		if barred() {
			t.Error("a key that ended with the connection cannot come back")
		}
		fails("ending twice", store.ErrConflict, func(tx *store.Tx) error {
			return tx.EndSigningKey("a", store.SigningKeyRevoked, "x", true, at)
		})

		// The same key again, and now revoked for good.
		again.Session, again.CreatedAt = [32]byte{9}, day.Add(2*time.Second)
		update(t, s, func(tx *store.Tx) error { return tx.InsertSigningKey(again) })
		update(t, s, activate("z"))
		update(t, s, func(tx *store.Tx) error { return tx.EndSigningKey("z", store.SigningKeyRevoked, "by uid 0", true, at) })
		if !barred() {
			t.Error("a revoked key is not barred")
		}
		if keys := get(t, s, func(tx *store.Tx) ([]store.SigningKey, error) { return tx.SigningKeysOf("A#1", 1) }); len(keys) != 1 || keys[0].ID != "z" {
			t.Errorf("the newest key is %v", keys)
		}
	})
}

func TestSigningKeysEnd(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		next := func() time.Time {
			var ok bool
			at := get(t, s, func(tx *store.Tx) (at time.Time, err error) { at, ok, err = tx.SigningKeysNextEnd(); return at, err })
			if !ok {
				return time.Time{}
			}
			return at
		}
		if !next().IsZero() {
			t.Error("an end without keys")
		}
		a, b := pendingKey("a", "A#1", 1), pendingKey("b", "A#1", 2)
		update(t, s, func(tx *store.Tx) error { return errors.Join(tx.InsertSigningKey(a), tx.InsertSigningKey(b)) })
		until := day.Add(24 * time.Hour)
		update(t, s, func(tx *store.Tx) error { return tx.ActivateSigningKey("a", 2001, "ticket", day, until) })
		if !next().Equal(b.ExpiresAt) {
			t.Errorf("next end %v", next())
		}
		update(t, s, func(tx *store.Tx) error {
			users, err := tx.ExpireSigningKeys(until.Add(-time.Millisecond))
			if len(users) != 0 {
				t.Errorf("expired of %v", users)
			}
			return err
		})
		if !next().Equal(until) {
			t.Errorf("the pending key was not forgotten: next end %v", next())
		}
		update(t, s, func(tx *store.Tx) error {
			users, err := tx.ExpireSigningKeys(until)
			if len(users) != 1 || users[0] != "A#1" {
				t.Errorf("expired of %v", users)
			}
			return err
		})
		if k := get(t, s, func(tx *store.Tx) (store.SigningKey, error) { return tx.SigningKey("a") }); k.State != store.SigningKeyExpired {
			t.Errorf("state %s", k.State)
		}
		purge := func(ended, barred time.Time) int {
			n := 0
			update(t, s, func(tx *store.Tx) (err error) { n, err = tx.PurgeSigningKeys(ended, barred); return err })
			return n
		}
		if n := purge(until, until); n != 0 {
			t.Errorf("purged %d too early", n)
		}
		if n := purge(until.Add(time.Second), day); n != 1 {
			t.Errorf("purged %d", n)
		}
	})
}
