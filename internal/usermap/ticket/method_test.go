package ticket

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
)

const (
	alice = ident.UCloudUser("Alice#1234")
	mary  = ident.UCloudUser("Mary#0001")
)

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

type policy struct{}

func (policy) Check(_ context.Context, local string) (usermap.Account, error) {
	if uid, ok := map[string]ident.UID{"alice": 2001, "2001": 2001, "bob": 2002, "2002": 2002}[local]; ok {
		return usermap.Account{Name: map[ident.UID]string{2001: "alice", 2002: "bob"}[uid], UID: uid}, nil
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not allowed", local)
}

type world struct {
	mu    sync.Mutex
	now   time.Time
	dir   string
	store *store.Store
	users *usermap.Service
	m     *Method
}

func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) add(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, log := testkit.PrivateDir(t), slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := &world{now: time.Date(2031, 2, 3, 9, 0, 0, 0, time.UTC), store: st, dir: dir}
	if w.users, err = usermap.New(t.Context(), usermap.Options{Store: st, Core: core{}, Policy: policy{}, Log: log, Now: w.Now}); err != nil {
		t.Fatal(err)
	}
	if w.m, err = NewMethod(Options{Store: st, Users: w.users, Log: log, PageURL: "https://im.example.org/page", Now: w.Now}); err != nil {
		t.Fatal(err)
	}
	return w
}

// begin presses "Connect" and gives the ticket that the page shows.
func (w *world) begin(t *testing.T, user ident.UCloudUser) Ticket {
	t.Helper()
	to, err := w.users.Begin(t.Context(), w.m, user)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(to)
	if err != nil || u.Host != "im.example.org" || u.Path != "/page" {
		t.Fatalf("redirect to %q, %v", to, err)
	}
	tk, err := Parse(u.Query().Get("ticket"))
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

func (w *world) complete(t *testing.T, tk Ticket, user ident.UCloudUser, local string) error {
	t.Helper()
	_, err := w.m.Complete(t.Context(), Completion{Ticket: tk, User: user, Local: local, By: local})
	return err
}

// deliver lets the outbox work until the user is connected.
func (w *world) deliver(t *testing.T) {
	t.Helper()
	b := outbox.New(w.store, outbox.Options{Now: w.Now})
	w.users.Register(b)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	patience, done := context.WithTimeout(ctx, testkit.Patience)
	defer done()
	if err := w.users.WaitActive(patience, alice); err != nil {
		t.Fatal(err)
	}
}

func (w *world) stage(t *testing.T, tk Ticket) Stage {
	t.Helper()
	v, err := w.m.View(t.Context(), tk.String())
	if failure.Is(err, failure.NotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return v.Stage
}

func TestFromBeginToConnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	if s := w.stage(t, tk); s != StageOpen {
		t.Fatalf("stage %d", s)
	}
	if err := w.complete(t, tk, alice, "alice"); err != nil {
		t.Fatal(err)
	}
	if s := w.stage(t, tk); s != StageConnecting {
		t.Fatalf("stage %d", s)
	}
	w.deliver(t)
	v, err := w.m.View(t.Context(), tk.String())
	if err != nil || v.Stage != StageConnected || v.LocalName != "alice" || v.User != alice {
		t.Fatalf("view %+v, %v", v, err)
	}
	w.add(closedVisible - time.Second)
	if s := w.stage(t, tk); s != StageConnected {
		t.Fatalf("stage %d within the day", s)
	}
	w.add(time.Second)
	if s := w.stage(t, tk); s != 0 {
		t.Fatalf("stage %d after a day", s)
	}
}

//attack:actor local user
//attack:does Reads open tickets in a copy of the database.
//attack:control Only the hash of a ticket is stored.
//attack:remove internal/usermap/ticket/method.go: Hash: t.Hash(), User: user, => User: user + ident.UCloudUser(t.String()),
func TestOnlyTheHashIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	var raw []byte
	for _, name := range []string{"im.db", "im.db-wal"} { // whatever SQLite has put where
		part, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		raw = append(raw, part...)
	}
	if !strings.Contains(string(raw), string(alice)) {
		t.Fatal("the copy does not hold the ticket's row: the test looks in the wrong place")
	}
	if strings.Contains(string(raw), tk.s) || strings.Contains(string(raw), tk.String()) {
		t.Fatal("the ticket is in the database")
	}
}

//attack:actor internet
//attack:does Uses a ticket again.
//attack:control A ticket is used once.
//attack:remove internal/usermap/ticket/method.go: case store.TicketOpen:\n\tcase store.TicketUsed:\n\t\treturn failure.New(failure.Conflict, "The ticket has been used already") => case store.TicketOpen, store.TicketUsed:
//attack:remove internal/usermap/ticket/method.go: err = tx.CloseTicket(rec.Hash, store.TicketUsed, &a.UID, c.By, "", m.o.Now()) => if rec.State == store.TicketOpen {\n\t\terr = tx.CloseTicket(rec.Hash, store.TicketUsed, &a.UID, c.By, "", m.o.Now())\n\t}
func TestSingleUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	if err := w.complete(t, tk, alice, "alice"); err != nil {
		t.Fatal(err)
	}
	if err := w.complete(t, tk, alice, "alice"); !failure.Is(err, failure.Conflict) {
		t.Fatalf("the second use gave %v", err)
	}
	if err := w.complete(t, tk, alice, "bob"); !failure.Is(err, failure.Conflict) {
		t.Fatalf("the use for another account gave %v", err)
	}
}

func TestSupersededAndExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.begin(t, alice)
	w.add(time.Second)
	tk := w.begin(t, alice)
	if s := w.stage(t, old); s != 0 {
		t.Fatalf("a superseded ticket shows stage %d", s)
	}
	if err := w.complete(t, old, alice, "alice"); !failure.Is(err, failure.Conflict) {
		t.Fatalf("a superseded ticket gave %v", err)
	}
	w.add(DefaultLifetime - time.Second)
	if s := w.stage(t, tk); s != StageOpen {
		t.Fatalf("stage %d just before the end", s)
	}
	w.add(time.Second)
	if s := w.stage(t, tk); s != 0 {
		t.Fatalf("an expired ticket shows stage %d", s)
	}
	if err := w.complete(t, tk, alice, "alice"); !failure.Is(err, failure.Conflict) {
		t.Fatalf("an expired ticket gave %v", err)
	}
	if n, err := w.m.ExpireOld(t.Context()); n != 1 || err != nil {
		t.Fatalf("ExpireOld = %d, %v", n, err)
	}
	for _, left := range []int{2, 0} { // closed ones are kept for a while
		if _, err := w.m.ExpireOld(t.Context()); err != nil {
			t.Fatal(err)
		}
		if list, err := w.m.List(t.Context()); err != nil || len(list) != left {
			t.Fatalf("%d tickets, %v", len(list), err)
		}
		w.add(keepClosed + time.Second)
	}
}

func TestRefusalKeepsTheTicketOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.begin(t, mary)
	if err := w.complete(t, first, mary, "alice"); err != nil {
		t.Fatal(err)
	}
	tk := w.begin(t, alice)
	for local, kind := range map[string]failure.Kind{"alice": failure.Conflict, "root": failure.Forbidden} {
		if err := w.complete(t, tk, alice, local); !failure.Is(err, kind) {
			t.Fatalf("%s: %v", local, err)
		}
		if s := w.stage(t, tk); s != StageOpen {
			t.Fatalf("%s: the ticket was used up by a refusal (stage %d)", local, s)
		}
	}
	if err := w.complete(t, tk, alice, "bob"); err != nil {
		t.Fatal(err)
	}
}

// TestCompleteNeedsTheConfirmedUser is about a victim who is told to run somebody else's ticket: what counts is whom
// they were shown.
//
//attack:actor internet
//attack:does Sends a ticket of another user of UCloud to somebody, who completes it.
//attack:control Who completes a ticket confirms the UCloud user whose it is.
//attack:remove internal/usermap/ticket/method.go: if rec.User != confirmed { => if confirmed == "\x00" {
func TestCompleteNeedsTheConfirmedUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, alice)
	attacker := w.begin(t, mary)
	err := w.complete(t, attacker, alice, "alice")
	if !failure.Is(err, failure.Conflict) {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(failure.Why(err), string(mary)) {
		t.Fatalf("the refusal tells whose ticket it is: %s", failure.Why(err))
	}
	if s := w.stage(t, attacker); s != StageOpen {
		t.Fatalf("stage %d", s)
	}
}

func TestUnknownTicket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, alice)
	if err := w.complete(t, New(), alice, "alice"); !failure.Is(err, failure.NotFound) {
		t.Fatalf("got %v", err)
	}
	for _, text := range []string{"", "x", New().String()} {
		if _, err := w.m.View(t.Context(), text); !failure.Is(err, failure.NotFound) {
			t.Fatalf("%q: %v", text, err)
		}
	}
}

func TestReject(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	if err := w.m.Reject(t.Context(), Short(tk.Hash()), "root", "Please mail us", true); err != nil {
		t.Fatal(err)
	}
	if s := w.stage(t, tk); s != StageOpen {
		t.Fatalf("a dry run left stage %d", s)
	}
	if err := w.m.Reject(t.Context(), Short(tk.Hash()), "root", "Please mail us", false); err != nil {
		t.Fatal(err)
	}
	v, err := w.m.View(t.Context(), tk.String())
	if err != nil || v.Stage != StageRejected || v.Message != "Please mail us" {
		t.Fatalf("view %+v, %v", v, err)
	}
	if err := w.m.Reject(t.Context(), tk.String(), "root", "", false); !failure.Is(err, failure.Conflict) {
		t.Fatalf("rejecting twice gave %v", err)
	}
	if err := w.complete(t, tk, alice, "alice"); !failure.Is(err, failure.Conflict) {
		t.Fatalf("a rejected ticket gave %v", err)
	}
	if err := w.m.Reject(t.Context(), "zzzzzzzz", "root", "", false); !failure.Is(err, failure.NotFound) {
		t.Fatalf("an unknown ticket gave %v", err)
	}
}

//attack:actor compromised core
//attack:does Makes tickets without end.
//attack:control Tickets are limited in rate and number.
//attack:remove internal/usermap/ticket/method.go: allowed := b.left >= 1 => allowed := b.left > -1000
func TestBeginIsLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range beginBurst {
		w.begin(t, alice)
	}
	if _, err := w.m.Begin(t.Context(), usermap.Attempt{User: alice}); !failure.Is(err, failure.TooMany) {
		t.Fatalf("got %v", err)
	}
	w.begin(t, mary) // others are not affected
	w.add(beginEvery)
	w.begin(t, alice)
}

func TestViewAfterReconnectElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk := w.begin(t, alice)
	if err := w.complete(t, tk, alice, "alice"); err != nil {
		t.Fatal(err)
	}
	w.deliver(t)
	if err := w.users.Remove(t.Context(), alice, nil, true, "test", false); err != nil {
		t.Fatal(err)
	}
	if s := w.stage(t, tk); s != 0 {
		t.Fatalf("a removed mapping still shows stage %d", s)
	}
	if _, err := w.users.Link(t.Context(), usermap.Link{User: alice, Local: "bob"}); err != nil {
		t.Fatal(err)
	}
	if s := w.stage(t, tk); s != 0 {
		t.Fatalf("the old ticket shows the new account (stage %d)", s)
	}
}
