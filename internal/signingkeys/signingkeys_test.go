package signingkeys

import (
	"context"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

// ticketOf is an open ticket of mary without a key.
func ticketOf(t *testing.T, w *world) ticket.Ticket {
	t.Helper()
	to, err := w.method.Skip(t.Context(), w.begin(t, mary))
	if err != nil {
		t.Fatal(err)
	}
	return ticketIn(t, to)
}

// TestRevokedStaysRevoked: a key that somebody has revoked is no use any more, whatever is proved with it.
//
//attack:actor internet
//attack:does Uses a stolen browser key again after its owner has revoked it, and has the owner connect it anew.
//attack:control A key that was revoked never becomes usable again for the user.
//attack:remove internal/signingkeys/signingkeys.go: if err == nil && barred { => if err == nil && barred && user == "" {
func TestRevokedStaysRevoked(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		k := w.connect(t, alice, "alice")
		id := w.of(t, alice)[0].ID
		w.changes()
		if changed, err := w.keys.Revoke(t.Context(), Revocation{ID: id, By: "test", DryRun: true}); err != nil || !changed || len(w.active(t, alice, 2001)) != 1 {
			t.Errorf("dry run: %v, %v", changed, err)
		}
		// A key of somebody else does not exist for a user.
		_, err := w.keys.Revoke(t.Context(), Revocation{ID: id, User: mary, By: "test"})
		wantKind(t, "a key of another user", err, failure.NotFound)
		// The same key waits for another proof when it is revoked.
		waiting := w.upload(t, w.begin(t, alice), k)
		for _, want := range []bool{true, false} {
			if changed, err := w.keys.Revoke(t.Context(), Revocation{ID: id, User: alice, By: "test"}); err != nil || changed != want {
				t.Errorf("changed %v, %v", changed, err)
			}
		}
		if got := w.active(t, alice, 2001); len(got) != 0 {
			t.Errorf("active keys %q", got)
		}
		if got := w.changes(); len(got) != 1 {
			t.Errorf("told about %q", got)
		}
		wantKind(t, "proving it again", w.complete(waiting, alice, "alice", k.Fingerprint()), failure.Conflict)
		_, err = w.method.Receive(t.Context(), w.begin(t, alice), k.PEM())
		wantKind(t, "uploading it again", err, failure.Conflict)
		w.connect(t, alice, "alice")
	})
}

// TestKeysEndWithTheMapping: in the same transaction, however it ends.
//
//attack:actor internet
//attack:does Goes on signing with a key after the user has disconnected, and after the account was given to somebody else.
//attack:control Keys end in the transaction that ends the mapping.
//attack:remove internal/signingkeys/signingkeys.go: tx.EndSigningKeysOf(user, reason, s.now()) => 0, error(nil)
func TestKeysEndWithTheMapping(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		for what, end := range map[string]func(w *world) error{
			"disconnected at UCloud": func(w *world) error { return w.users.Unlinked(t.Context(), alice) },
			"ended by an operator": func(w *world) error {
				return w.users.Expire(t.Context(), alice, nil, "test", false)
			},
			"removed": func(w *world) error { return w.users.Remove(t.Context(), alice, nil, true, "test", false) },
			"changed account": func(w *world) error {
				_, _, err := w.users.Change(t.Context(), usermap.Change{User: alice, UID: 2001, Local: "bob", By: "test"})
				return err
			},
		} {
			w := testWorld(t, s)
			k := w.connect(t, alice, "alice")
			pending := w.upload(t, w.begin(t, alice), newKey())
			w.changes()
			if err := end(w); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if a, b := w.active(t, alice, 2001), w.active(t, alice, 2002); len(a)+len(b) != 0 {
				t.Errorf("%s: active keys %q, %q", what, a, b)
			}
			if got := w.changes(); len(got) != 1 || got[0] != alice {
				t.Errorf("%s: told about %q", what, got)
			}
			if rec, err := w.tickets.Describe(t.Context(), pending); err != nil {
				t.Error(err)
			} else if key, err := w.tickets.Key(t.Context(), rec); err != nil || !key.Withdrawn {
				t.Errorf("%s: the key of the open ticket is %+v, %v", what, key, err)
			}
			// The browser still has the key, and a new proof makes it usable.
			if err := w.users.Remove(t.Context(), alice, nil, true, "test", false); err != nil && !failure.Is(err, failure.NotFound) {
				t.Fatal(err)
			}
			w.connectWith(t, alice, "alice", k)
			if got := w.active(t, alice, 2001); len(got) != 1 {
				t.Errorf("%s: after connecting again active keys %q", what, got)
			}
			if err := w.users.Remove(t.Context(), alice, nil, true, "test", false); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestKeysAreForTheAccount: a key that was proved for one account is none of another, even if ending it went wrong.
//
//attack:actor local user
//attack:does Gets the account of a user by a mistake of the operators, and uses requests that the user signed before.
//attack:control A key counts for the account for which it was proved.
//attack:remove internal/store/signingkeys.go: k.UID != nil && *k.UID == uid => k.UID != nil
func TestKeysAreForTheAccount(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	w.connect(t, alice, "alice")
	if got := w.active(t, alice, 2002); len(got) != 0 {
		t.Errorf("active for another account: %q", got)
	}
	if got := w.active(t, mary, 2001); len(got) != 0 {
		t.Errorf("active for another user: %q", got)
	}
}

func TestNoKeyWithoutProof(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	w.upload(t, w.begin(t, alice), newKey())
	id := w.of(t, alice)[0].ID
	if _, err := w.users.Link(t.Context(), usermap.Link{User: alice, Local: "alice", Method: "operator", Key: id, NoApprove: true}); err == nil {
		t.Error("a key became usable without a word to Core")
	}
	if _, err := w.users.Link(t.Context(), usermap.Link{User: alice, Local: "alice", Method: "operator"}); err != nil {
		t.Fatal(err)
	}
	if got := w.active(t, alice, 2001); len(got) != 0 {
		t.Errorf("active keys %q", got)
	}
	// A dry run of a proof changes nothing.
	k := newKey()
	tk := w.upload(t, w.begin(t, alice), k)
	if _, err := w.tickets.Complete(t.Context(), ticket.Completion{
		Ticket: tk, User: alice, Local: "alice", KeyFingerprint: k.Fingerprint(), DryRun: true,
	}); err != nil {
		t.Fatal(err)
	}
	if got := w.active(t, alice, 2001); len(got) != 0 || len(w.changes()) != 0 {
		t.Errorf("after a dry run active keys %q", got)
	}
}

// TestKeysExpire: by time, whether or not anybody has written that down.
//
//attack:actor internet
//attack:does Signs with a key that was found in an old backup of a browser.
//attack:control Keys end after a time.
//attack:remove internal/signingkeys/signingkeys.go: now.Add(s.o.Lifetime())) => now.Add(1e18))
func TestKeysExpire(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		k := w.connect(t, alice, "alice")
		tk := w.upload(t, w.begin(t, mary), newKey())
		w.changes()
		w.add(24 * time.Hour)
		if got := w.active(t, alice, 2001); len(got) != 0 {
			t.Errorf("active keys %q", got)
		}
		if got := w.of(t, alice); len(got) != 1 || got[0].State != store.SigningKeyExpired {
			t.Errorf("on record: %v", got)
		}
		rec, err := w.tickets.Describe(t.Context(), tk)
		if err != nil || rec.State != store.TicketExpired {
			t.Errorf("ticket %v, %v", rec.State, err)
		}
		if err := w.keys.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.changes(); len(got) != 1 || got[0] != alice {
			t.Errorf("told about %q", got)
		}
		if got := w.of(t, mary); len(got) != 0 {
			t.Errorf("the key without a proof is kept: %v", got)
		}
		// The same key again, with the old one still on record.
		w.connectWith(t, alice, "alice", k)
		w.add(keepEnded + time.Hour)
		if err := w.keys.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := w.of(t, alice); len(got) != 1 {
			t.Errorf("%d keys on record", len(got))
		}
	})
}

// TestExpiredButNotSwept: nobody has noted the end of a key when its owner proves it again.
func TestExpiredButNotSwept(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	k := w.connect(t, alice, "alice")
	w.add(25 * time.Hour)
	w.connectWith(t, alice, "alice", k)
	if got := w.active(t, alice, 2001); len(got) != 1 {
		t.Errorf("active keys %q", got)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	w.connect(t, alice, "alice")
	w.connect(t, alice, "alice")
	w.connect(t, mary, "bob")
	seen := map[string]ident.UCloudUser{}
	for after := ""; ; {
		page, err := w.keys.Page(t.Context(), after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, k := range page {
			seen[k.ID] = k.User
		}
		after = page[len(page)-1].ID
	}
	if len(seen) != 3 {
		t.Errorf("seen %v", seen)
	}
}

// TestRun: keys end and users are told without anybody asking.
func TestRun(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	w.connect(t, alice, "alice")
	w.changes()
	w.add(25 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := w.keys.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	for deadline := time.Now().Add(testkit.Patience); ; time.Sleep(10 * time.Millisecond) {
		if got := w.changes(); len(got) == 1 && got[0] == alice {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody was told that the key has ended")
		}
	}
}
