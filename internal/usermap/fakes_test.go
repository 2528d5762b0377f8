package usermap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2031, 2, 3, 9, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// strictCore behaves like Core and notes everything that would end a real one (contract 03 section 2.4).
type strictCore struct {
	clock *clock

	mu        sync.Mutex
	known     map[ident.UCloudUser]bool
	connected map[ident.UCloudUser]bool
	// working holds approvals whose answer was lost while Core still worked on them, with the time at which the row
	// appears. An approval that meets another one before that would run into it.
	working map[ident.UCloudUser]time.Time
	calls   []string
	deaths  []string
	// fault is asked before each call is carried out.
	fault func(call string) fault
	// observe, if set, is told about each call.
	observe func(call string)
}

type fault int

const (
	noFault    fault = iota
	notSent          // the call never reaches Core
	lostBefore       // no answer, and Core does nothing
	lostAfter        // no answer, Core has done it
	lostSlow         // no answer, Core does it 20 s later
	refused          // Core answers 400
	proxied          // a proxy answers 504, Core does it 20 s later
)

func newCore(c *clock, known ...ident.UCloudUser) *strictCore {
	k := &strictCore{
		clock: c, known: make(map[ident.UCloudUser]bool), connected: make(map[ident.UCloudUser]bool),
		working: make(map[ident.UCloudUser]time.Time),
	}
	for _, u := range known {
		k.known[u] = true
	}
	return k
}

// settle carries out what Core was still working on.
func (k *strictCore) settle() {
	for u, at := range k.working {
		if !k.clock.Now().Before(at) {
			k.approve(u)
			delete(k.working, u)
		}
	}
}

func (k *strictCore) approve(u ident.UCloudUser) {
	switch {
	case !k.known[u]:
		k.deaths = append(k.deaths, fmt.Sprintf("approved %q, whom Core does not know", u))
	case k.connected[u]:
		k.deaths = append(k.deaths, fmt.Sprintf("approved %q, who is connected", u))
	}
	k.connected[u] = true
}

func (k *strictCore) call(name string, u ident.UCloudUser, do func(), slow func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.settle()
	k.calls = append(k.calls, name+" "+string(u))
	if k.observe != nil {
		k.observe(name)
	}
	f := noFault
	if k.fault != nil {
		f = k.fault(name)
	}
	switch f {
	case notSent:
		return coreapi.ErrNotSent
	case refused:
		return &coreapi.StatusError{Call: name, Status: 400}
	case lostBefore:
		return coreapi.ErrNoAnswer
	case lostAfter:
		do()
		return coreapi.ErrNoAnswer
	case lostSlow:
		slow()
		return coreapi.ErrNoAnswer
	case proxied:
		slow()
		return &coreapi.StatusError{Call: name, Status: 504}
	}
	do()
	return nil
}

func (k *strictCore) ClearConnection(_ context.Context, u ident.UCloudUser) error {
	do := func() { delete(k.connected, u) }
	return k.call("clear", u, do, do)
}

func (k *strictCore) ApproveConnection(_ context.Context, u ident.UCloudUser) error {
	return k.call("approve", u,
		func() {
			if _, ok := k.working[u]; ok {
				k.deaths = append(k.deaths, fmt.Sprintf("approved %q while an approval was under way", u))
			}
			k.approve(u)
		},
		func() { k.working[u] = k.clock.Now().Add(20 * time.Second) })
}

// check fails the test if Core would have died, or if an approval was sent without a clear directly before it.
func (k *strictCore) check(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.settle()
	for _, d := range k.deaths {
		t.Errorf("Core would have ended: %s; calls: %q", d, k.calls)
	}
	for i, c := range k.calls {
		if user, ok := cutPrefix(c, "approve "); ok && (i == 0 || k.calls[i-1] != "clear "+user) {
			t.Errorf("call %d approves without a clear directly before it: %q", i, k.calls)
		}
	}
}

func (k *strictCore) isConnected(u ident.UCloudUser) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.settle()
	return k.connected[u]
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return "", false
}

// accounts is a policy over a fixed list.
type accounts map[string]Account

func someAccounts() accounts {
	a := accounts{}
	for i, name := range []string{"alice", "bob", "carol"} {
		uid := ident.UID(2001 + i)
		a[name] = Account{Name: name, UID: uid, GID: 100, Home: "/home/" + name, Shell: "/bin/sh", PrimaryGroup: "users"}
	}
	return a
}

func (a accounts) Check(_ context.Context, nameOrUID string) (Account, error) {
	if uid, err := strconv.ParseUint(nameOrUID, 10, 32); err == nil {
		for _, acc := range a {
			if acc.UID == ident.UID(uid) {
				return acc, nil
			}
		}
	}
	if acc, ok := a[nameOrUID]; ok {
		return acc, nil
	}
	return Account{}, failure.New(failure.NotFound, "There is no account %q", nameOrUID)
}

// world is a service with everything around it.
type world struct {
	clock    *clock
	core     *strictCore
	policy   accounts
	store    *store.Store
	s        *Service
	now      func() time.Time // clock of the service, if not the world's
	active   []ident.UCloudUser
	inactive []string
}

const (
	alice = ident.UCloudUser("Alice#1234")
	mary  = ident.UCloudUser("Mary Ünal#0001")
)

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, storetest.SQLite(t))
}

// newWorldOn is newWorld over a given database.
func newWorldOn(t *testing.T, st *store.Store) *world {
	t.Helper()
	c := newClock()
	w := &world{clock: c, core: newCore(c, alice, mary), policy: someAccounts(), store: st}
	for _, u := range []ident.UCloudUser{alice, mary} {
		if err := st.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(u, c.Now()) }); err != nil {
			t.Fatal(err)
		}
	}
	w.restart(t)
	t.Cleanup(func() { w.core.check(t) })
	return w
}

// restart makes a new service over the same store, as a new process would.
func (w *world) restart(t *testing.T) {
	t.Helper()
	now := w.clock.Now
	if w.now != nil {
		now = w.now
	}
	s, err := New(t.Context(), Options{
		Store: w.store, Core: w.core, Policy: w.policy, Log: slog.New(slog.DiscardHandler), Now: now,
		OnActive: func(_ context.Context, u ident.UCloudUser) { w.active = append(w.active, u) },
		OnInactive: func(_ context.Context, u ident.UCloudUser, _ ident.UID, reason string) {
			w.inactive = append(w.inactive, string(u)+": "+reason)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.s = s
}

// deliver works on what is due in the outbox until nothing is, and tells how many attempts that took. It does what
// package outbox does, one step after the other, so that a test can stop it at any of them.
func (w *world) deliver(t *testing.T) (attempts int) {
	t.Helper()
	for range 50 {
		var due []store.OutboxEntry
		if err := w.store.View(t.Context(), func(tx *store.Tx) (err error) {
			due, err = tx.OutboxHeads(w.clock.Now(), 10)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if len(due) == 0 {
			return attempts
		}
		for _, e := range due {
			attempts++
			w.attempt(t, e)
		}
	}
	t.Fatal("the outbox does not come to an end")
	return 0
}

func (w *world) attempt(t *testing.T, e store.OutboxEntry) {
	t.Helper()
	update := func(f func(tx *store.Tx) error) {
		t.Helper()
		if err := w.store.Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	do := w.s.deliverClear
	if e.Kind == KindApprove { // guarded
		do = w.s.deliverApprove
		update(func(tx *store.Tx) error { return tx.OutboxBegin(e.ID) })
	}
	res, err := do(t.Context(), e)
	if err == nil {
		update(func(tx *store.Tx) error {
			if res.Complete != nil {
				if err := res.Complete(tx); err != nil {
					return err
				}
			}
			return tx.OutboxDone(e.ID)
		})
		return
	}
	update(func(tx *store.Tx) error {
		wait := time.Second
		if strings.Contains(fmt.Sprintf("%#v", err), "hasAfter:true") {
			wait = waitAfterNoAnswer(e.Attempts)
		}
		return tx.OutboxRetry(e.ID, w.clock.Now().Add(wait), err.Error(), store.OutboxQueued)
	})
}

// recover does what the outbox does at its start.
func (w *world) recover(t *testing.T) {
	t.Helper()
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		begun, err := tx.OutboxBegun()
		for _, e := range begun {
			err = errors.Join(err, tx.OutboxRetry(e.ID, w.clock.Now().Add(noAnswerWait), "cut", e.State))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// deliverFor lets time pass, from one due delivery to the next.
func (w *world) deliverFor(t *testing.T, d time.Duration) {
	t.Helper()
	for end := w.clock.Now().Add(d); w.clock.Now().Before(end); {
		next, waiting := end, false
		if err := w.store.View(t.Context(), func(tx *store.Tx) (err error) {
			next, waiting, err = tx.OutboxNextDue(w.clock.Now())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if !waiting || next.After(end) {
			next = end
		}
		w.clock.Add(max(next.Sub(w.clock.Now()), time.Second))
		w.deliver(t)
	}
}

func (w *world) state(t *testing.T, u ident.UCloudUser) store.MappingState {
	t.Helper()
	m, err := w.s.Mapping(t.Context(), u)
	if failure.Is(err, failure.NotFound) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.State
}

func (w *world) link(t *testing.T, u ident.UCloudUser, local string) {
	t.Helper()
	if _, err := w.s.Link(t.Context(), Link{User: u, Local: local, Method: "test", By: "test"}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) replays(t *testing.T) (users []ident.UCloudUser) {
	t.Helper()
	if err := w.store.View(t.Context(), func(tx *store.Tx) (err error) {
		users, err = tx.ReplayUsers()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return users
}
