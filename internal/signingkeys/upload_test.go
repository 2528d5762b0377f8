package signingkeys

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap/ticket"
)

func TestKeysAreAskedForByPolicy(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	to, err := w.users.Begin(t.Context(), w.method, "Off#1")
	if err != nil || !strings.Contains(to, "?ticket=") {
		t.Errorf("%q, %v", to, err)
	}
	to, err = w.users.Begin(t.Context(), w.method, alice)
	if err != nil || !strings.HasPrefix(to, "https://im.example.org/redirect?session=") {
		t.Errorf("%q, %v", to, err)
	}
}

// TestPendingKeyVerifiesNothing: whoever is in Core can do everything but complete the proof.
//
//attack:actor compromised core
//attack:does Opens a session by "connect", uploads its own key there, and signs requests in the user's name with it.
//attack:control A key counts only after the proof that follows the upload.
//attack:remove internal/store/signingkeys.go: return k.State == SigningKeyActive && now.Before(k.ExpiresAt) && k.UID != nil && *k.UID == uid => return k.State != ""
func TestPendingKeyVerifiesNothing(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		mine := w.connect(t, alice, "alice")
		w.upload(t, w.begin(t, alice), newKey())
		if got := w.active(t, alice, 2001); len(got) != 1 || got[0] != mine.Fingerprint() {
			t.Errorf("active keys %q", got)
		}
	})
}

// TestUnconfirmedKeyIsForgotten: an operator approves what came by mail, or a script decides, without naming the key.
//
//attack:actor compromised core
//attack:does Uploads its own key for a user whose ticket an operator or a script then completes without a look at the key.
//attack:control A ticket that is completed without the fingerprint of its key makes a connection without a key.
//attack:remove internal/usermap/ticket/method.go: if c.KeyFingerprint != "" { => if true {
//attack:remove internal/usermap/ticket/method.go: if err := tx.ForgetSigningKey(rec.Key); !errors.Is(err, store.ErrNotFound) { => if err := error(nil); err != nil {
func TestUnconfirmedKeyIsForgotten(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		k := newKey()
		tk := w.upload(t, w.begin(t, alice), k)
		if err := w.complete(tk, alice, "alice", ""); err != nil {
			t.Fatal(err)
		}
		if got := w.active(t, alice, 2001); len(got) != 0 {
			t.Errorf("active keys %q", got)
		}
		if got := w.of(t, alice); len(got) != 0 {
			t.Errorf("keys on record %v", got)
		}
	})
}

// TestKeyNeedsTheConfirmedFingerprint: another key than the one that was compared is refused, and nothing is changed.
//
//attack:actor compromised core
//attack:does Swaps the ticket on its way to the user for one that carries another key.
//attack:control The fingerprint that the person has compared must be that of the ticket's key.
//attack:remove internal/usermap/ticket/method.go: case !sameFingerprint(key.Fingerprint, confirmed): => case confirmed == "-":
func TestKeyNeedsTheConfirmedFingerprint(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		k := newKey()
		tk := w.upload(t, w.begin(t, alice), k)
		for _, wrong := range []string{newKey().Fingerprint(), "SHA256:", "x", " "} {
			wantKind(t, wrong, w.complete(tk, alice, "alice", wrong), failure.Conflict)
		}
		if _, err := w.users.Mapping(t.Context(), alice); !failure.Is(err, failure.NotFound) {
			t.Errorf("connected: %v", err)
		}
		// As a person types it.
		if err := w.complete(tk, alice, "alice", " "+strings.TrimPrefix(k.Fingerprint(), "SHA256:")+"\n"); err != nil {
			t.Error(err)
		}
		if got := w.active(t, alice, 2001); len(got) != 1 || got[0] != k.Fingerprint() {
			t.Errorf("active keys %q", got)
		}
		if got := w.changes(); len(got) != 1 || got[0] != alice {
			t.Errorf("told about %q", got)
		}
		wantKind(t, "a ticket without key", w.complete(ticketOf(t, w), mary, "bob", k.Fingerprint()), failure.Conflict)
	})
}

// TestOneKeyPerSession: two parties with the same address.
//
//attack:actor compromised core
//attack:does Uploads its own key with the address that it passes on, before or after the browser does.
//attack:control A session takes one key; with a second one neither is taken.
//attack:remove internal/signingkeys/upload.go: case have.Fingerprint != key.Fingerprint(): => case have.Fingerprint == "":
func TestOneKeyPerSession(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		session, first := w.begin(t, alice), newKey()
		tk := w.upload(t, session, first)
		// The browser had no answer and asks again.
		if again := w.upload(t, session, first); again == tk {
			t.Error("the same ticket twice: its text would have to be stored")
		} else {
			tk = again
		}
		_, err := w.method.Receive(t.Context(), session, newKey().PEM())
		wantKind(t, "a second key", err, failure.Conflict)
		if !strings.Contains(w.logged(), "two different signing keys") {
			t.Error("the log does not say so")
		}
		for what, k := range map[string]string{"the first key again": first.PEM(), "a third": newKey().PEM()} {
			_, err := w.method.Receive(t.Context(), session, k)
			wantKind(t, what, err, failure.NotFound)
		}
		wantKind(t, "the ticket with the key", w.complete(tk, alice, "alice", first.Fingerprint()), failure.Conflict)
		if got := w.of(t, alice); len(got) != 0 {
			t.Errorf("keys on record %v", got)
		}
	})
}

// TestBrowserWithoutKeyAfterUpload: the browser that the address was meant for has no key, so the key was another's.
//
//attack:actor compromised core
//attack:does Uploads its own key for a user whose browser knows nothing of keys, and lets it go on to the ticket.
//attack:control A browser that comes without a key ends the session and the key that was sent for it.
//attack:remove internal/signingkeys/upload.go: first = &have\n\t\t\treturn s.closeSession(tx, have)\n\t\t}\n\t\tif !errors => user = have.User\n\t\t\treturn nil\n\t\t}\n\t\tif !errors
func TestBrowserWithoutKeyAfterUpload(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := testWorld(t, s)
		session := w.begin(t, alice)
		w.upload(t, session, newKey())
		_, err := w.method.Skip(t.Context(), session)
		wantKind(t, "a browser after a key", err, failure.Conflict)
		if len(w.of(t, alice)) != 0 || !strings.Contains(w.logged(), "somebody else has the link") {
			t.Errorf("keys %v, log %s", w.of(t, alice), w.logged())
		}
		_, err = w.method.Skip(t.Context(), session)
		wantKind(t, "once more", err, failure.NotFound)
	})
}

// TestKeyAfterBrowser: nothing can be added once a browser has gone through.
//
//attack:actor compromised core
//attack:does Uploads a key with a session through which the user's browser has gone without one.
//attack:control Only the first use of a session can bring a key.
//attack:remove internal/signingkeys/upload.go: if !g.FirstUsed { => if false {
func TestKeyAfterBrowser(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	session := w.begin(t, alice)
	first := ""
	for range 3 { // the page was loaded anew: the ticket is the one that somebody may have noted
		to, err := w.method.Skip(t.Context(), session)
		if err != nil || !strings.Contains(to, "?ticket=") || first != "" && to != first {
			t.Fatalf("%q, %v, at first %q", to, err, first)
		}
		first = to
	}
	if v, err := w.tickets.View(t.Context(), ticketIn(t, first).String()); err != nil || v.Stage != ticket.StageOpen {
		t.Errorf("%+v, %v", v, err)
	}
	other, err := w.method.Skip(t.Context(), w.begin(t, alice))
	if err != nil || other == first {
		t.Errorf("the next connection: %q, %v", other, err)
	}
	session = w.begin(t, alice)
	if _, err := w.method.Skip(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	_, err = w.method.Receive(t.Context(), session, newKey().PEM())
	wantKind(t, "a key after the browser", err, failure.NotFound)
}

// TestSessions: what opens nothing.
//
//attack:actor internet
//attack:does Tries old, superseded and invented sessions, and tokens of other kinds, to place a key.
//attack:control A session is a random token for one purpose, for a quarter of an hour, and ends with the next one.
//attack:remove internal/signingkeys/upload.go: tx.DeleteTokensOf(Purpose, string(user)) => 0, error(nil)
func TestSessions(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	superseded := w.begin(t, alice)
	old := w.begin(t, alice)
	other, err := w.keys.o.Tokens.Issue(t.Context(), onetime.Spec{Purpose: "upload", User: alice, Object: "/1", Limits: onetime.UploadLimits})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.method.Receive(t.Context(), superseded, newKey().PEM())
	wantKind(t, "a superseded session", err, failure.NotFound)
	w.add(15 * time.Minute)
	for what, session := range map[string]string{
		"an old session": old, "a token of another kind": other, "nothing": "", "something": strings.Repeat("x", 43),
	} {
		_, err := w.method.Receive(t.Context(), session, newKey().PEM())
		wantKind(t, what, err, failure.NotFound)
		_, err = w.method.Skip(t.Context(), session)
		wantKind(t, what+" without a key", err, failure.NotFound)
	}
	if len(w.of(t, alice)) != 0 {
		t.Error("a key was taken")
	}
	// Every use counts.
	session, k := w.begin(t, alice), newKey()
	for range sessionLimits.Uses {
		w.upload(t, session, k)
	}
	_, err = w.method.Receive(t.Context(), session, k.PEM())
	wantKind(t, "a session that is used up", err, failure.NotFound)
}

// TestSessionIsForItsUser: what a session brings belongs to the user whom Core named when it was opened.
//
//attack:actor internet
//attack:does Connects their own UCloud user and completes the proof, with the key, for another user.
//attack:control Key and ticket are for the user of the session; a proof of another user cannot use the key.
//attack:remove internal/signingkeys/signingkeys.go: if err != nil || k.User != user || k.State => if err != nil || k.State
func TestSessionIsForItsUser(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	k := newKey()
	w.upload(t, w.begin(t, mary), k)
	id := w.of(t, mary)[0].ID
	if _, err := w.keys.Pending(t.Context(), mary, id); err != nil {
		t.Fatal(err)
	}
	_, err := w.keys.Pending(t.Context(), alice, id)
	wantKind(t, "a key of another user", err, failure.NotFound)
	err = s(w).Update(t.Context(), func(tx *store.Tx) error { return w.keys.Activate(tx, alice, id, 2001, "test") })
	wantKind(t, "activating a key of another user", err, failure.NotFound)
}

func s(w *world) *store.Store { return w.store }

// TestWeakKeys: what anybody could sign with is not taken, and the session waits for a better key.
//
//attack:actor compromised core
//attack:does Has a browser upload a key whose private half can be computed.
//attack:control Keys are RSA of 2048 bits and more, or Ed25519.
//attack:remove internal/signkey/signkey.go: case bits < minBits: => case bits < 1024:
func TestWeakKeys(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	session := w.begin(t, alice)
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&short.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "no key", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))} {
		_, err := w.method.Receive(t.Context(), session, text)
		wantKind(t, text, err, failure.Invalid)
	}
	w.upload(t, session, newKey())
}

// TestBounds: a flood of keys that nobody proves hinders nobody for long, and touches no active key.
//
//attack:actor compromised core
//attack:does Uploads keys without end for one user.
//attack:control A user has a bounded number of keys; those that were not proved give way.
//attack:remove internal/signingkeys/upload.go: active+len(pending) >= most { => active+len(pending) >= 1000 {
func TestBounds(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	first := w.connect(t, alice, "alice")
	for range 10 {
		w.upload(t, w.begin(t, alice), newKey())
	}
	if got := w.of(t, alice); len(got) != w.most {
		t.Errorf("%d keys are kept", len(got))
	}
	second, third := w.connect(t, alice, "alice"), w.connect(t, alice, "alice")
	if got := w.active(t, alice, 2001); len(got) != 3 {
		t.Errorf("active keys %q", got)
	}
	session := w.begin(t, alice)
	_, err := w.method.Receive(t.Context(), session, newKey().PEM())
	wantKind(t, "one key too many", err, failure.Conflict)
	if !strings.Contains(failure.Why(err), "ucloud keys revoke") {
		t.Errorf("the user is told %q", failure.Why(err))
	}
	// The same key again renews it and is no other.
	w.add(time.Hour)
	w.connectWith(t, alice, "alice", second)
	if got := w.active(t, alice, 2001); len(got) != 3 {
		t.Errorf("active keys %q", got)
	}
	// Uploaded while there was room, and proved when there is none.
	w.most = 4
	tk, k := w.upload(t, w.begin(t, alice), newKey()), w.of(t, alice)[0]
	w.most = 3
	wantKind(t, "a proof beyond the limit", w.complete(tk, alice, "alice", k.Fingerprint), failure.Conflict)
	_, _ = first, third
}

// TestSameKeyOfTwoUsers: one browser profile with two UCloud users.
func TestSameKeyOfTwoUsers(t *testing.T) {
	t.Parallel()
	w := testWorld(t, storetest.SQLite(t))
	k := w.connect(t, alice, "alice")
	w.connectWith(t, mary, "bob", k)
	for user, uid := range map[ident.UCloudUser]ident.UID{alice: 2001, mary: 2002} {
		if got := w.active(t, user, uid); len(got) != 1 || got[0] != k.Fingerprint() {
			t.Errorf("%s has %q", user, got)
		}
	}
}
