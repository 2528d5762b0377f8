package usermap

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestLinkBecomesActive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	if got := w.state(t, alice); got != store.MappingPending {
		t.Fatalf("state %s before Core has answered", got)
	}
	if _, ok := w.s.User(2001); ok {
		t.Fatal("a pending mapping counts as an identity")
	}
	if _, err := w.s.Resolve(t.Context(), alice); !errors.Is(err, ErrNotConnected) {
		t.Fatalf("a pending mapping can be launched: %v", err)
	}
	w.deliver(t)
	if got := w.state(t, alice); got != store.MappingActive {
		t.Fatalf("state %s", got)
	}
	if u, ok := w.s.User(2001); !ok || u != alice {
		t.Fatalf("User(2001) = %q, %v", u, ok)
	}
	if a, err := w.s.Resolve(t.Context(), alice); err != nil || a.Name != "alice" {
		t.Fatalf("Resolve = %+v, %v", a, err)
	}
	if !slices.Equal(w.core.calls, []string{"clear " + string(alice), "approve " + string(alice)}) {
		t.Fatalf("calls %q", w.core.calls)
	}
	if !slices.Equal(w.active, []ident.UCloudUser{alice}) || !slices.Equal(w.replays(t), []ident.UCloudUser{alice}) {
		t.Fatalf("hooks %q, replays %q", w.active, w.replays(t))
	}
}

func TestOnlyUsersCoreHasNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.s.Link(t.Context(), Link{User: "Typo#1234", Local: "alice", Method: "operator", By: "root"})
	if !failure.Is(err, failure.Invalid) {
		t.Fatalf("got %v", err)
	}
	w.deliverFor(t, time.Minute)
	if len(w.core.calls) != 0 {
		t.Fatalf("Core was told about a user it never named: %q", w.core.calls)
	}
}

//attack:actor malicious identity
//attack:does Names, for a second user of UCloud, an account that is connected already.
//attack:control An account belongs to one user, and the database says so.
//attack:remove internal/usermap/link.go: if other, err := tx.MappingByUID(a.UID); err == nil && other.User != l.User {\n\t\treturn other, uidTaken(a, other.User)\n\t} => if other, err := tx.MappingByUID(a.UID); err == nil && other.User != l.User {\n\t\tif err := tx.RemoveMapping(other.User, false, other.UpdatedAt); err != nil {\n\t\t\treturn other, err\n\t\t}\n\t}
func TestOneUIDOneUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	for _, tc := range []struct {
		name  string
		user  ident.UCloudUser
		local string
	}{
		{"uid of another user", mary, "alice"},
		{"another uid for the user", alice, "bob"},
		{"uid given as number", mary, "2001"},
	} {
		for _, state := range []string{"pending", "active", "expired"} {
			used := false
			_, err := w.s.Link(t.Context(), Link{
				User: tc.user, Local: tc.local, Method: "test",
				Also: func(*store.Tx, Account) error { used = true; return nil },
			})
			if !failure.Is(err, failure.Conflict) || !used {
				t.Errorf("%s, %s: got %v", tc.name, state, err)
			}
			switch state {
			case "pending":
				w.deliver(t)
			case "active":
				if err := w.s.Expire(t.Context(), alice, nil, "test", false); err != nil {
					t.Fatal(err)
				}
				w.deliver(t)
			}
		}
		w.link(t, alice, "alice") // the same pair is welcome again
	}
	_, err := w.s.Link(t.Context(), Link{User: alice, Local: "bob", Method: "test"})
	if !strings.Contains(failure.Why(err), "ucloud users change") {
		t.Errorf("the refusal does not say what to do: %s", failure.Why(err))
	}
}

// TestOneUIDOneUserUnderConcurrency lets two users race for one account, on both engines: what decides is the
// constraint of the database.
func TestOneUIDOneUserUnderConcurrency(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, st *store.Store) {
		w := newWorldOn(t, st)
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			user := []ident.UCloudUser{alice, mary}[i%2]
			wg.Go(func() {
				_, errs[i] = w.s.Link(context.Background(), Link{User: user, Local: "carol", Method: "test"})
			})
		}
		wg.Wait()
		ms, err := w.s.Mappings(t.Context())
		if err != nil || len(ms) != 1 {
			t.Fatalf("%d mappings for one uid, %v", len(ms), err)
		}
		for i, err := range errs {
			if winner := []ident.UCloudUser{alice, mary}[i%2] == ms[0].User; winner != (err == nil) {
				t.Errorf("attempt %d: %v, and the mapping belongs to %q", i, err, ms[0].User)
			}
		}
	})
}

// TestLifeCycleOnBothEngines goes once around: connect, disconnect, connect again, remove, give the uid to another.
func TestLifeCycleOnBothEngines(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, st *store.Store) {
		w := newWorldOn(t, st)
		for range 2 {
			w.link(t, alice, "alice")
			if _, err := w.s.Link(t.Context(), Link{User: mary, Local: "alice"}); !failure.Is(err, failure.Conflict) {
				t.Fatalf("a second user: %v", err)
			}
			w.deliver(t)
			if w.state(t, alice) != store.MappingActive {
				t.Fatalf("state %s", w.state(t, alice))
			}
			if err := w.s.Expire(t.Context(), alice, nil, "test", false); err != nil {
				t.Fatal(err)
			}
			w.deliver(t)
		}
		if err := w.s.Remove(t.Context(), alice, nil, false, "test", false); err != nil {
			t.Fatal(err)
		}
		w.link(t, mary, "alice")
		w.deliver(t)
		if u, _ := w.s.User(2001); u != mary {
			t.Fatalf("uid 2001 belongs to %q", u)
		}
	})
}

func TestAlsoFailingUndoesEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := failure.New(failure.Conflict, "used")
	_, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", Also: func(*store.Tx, Account) error { return want }})
	if !errors.Is(err, want) || w.state(t, alice) != "none" {
		t.Fatalf("got %v, state %s", err, w.state(t, alice))
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", DryRun: true})
	if err != nil || m.UID != 2001 || w.state(t, alice) != "none" {
		t.Fatalf("got %+v, %v, state %s", m, err, w.state(t, alice))
	}
	w.link(t, alice, "alice")
	w.deliver(t)
	if err := w.s.Expire(t.Context(), alice, nil, "x", true); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), alice, nil, true, "x", true); err != nil {
		t.Fatal(err)
	}
	if w.state(t, alice) != store.MappingActive || len(w.inactive) != 0 || w.deliver(t) != 0 {
		t.Fatalf("a dry run changed something: %s %q", w.state(t, alice), w.inactive)
	}
}

func TestUnlinked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, u := range []ident.UCloudUser{mary, "Nobody#1"} {
		if err := w.s.Unlinked(t.Context(), u); err != nil {
			t.Fatalf("%q: %v", u, err)
		}
	}
	w.link(t, alice, "alice")
	w.deliver(t)
	calls := len(w.core.calls)
	for range 2 {
		if err := w.s.Unlinked(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := w.s.User(2001); ok {
		t.Fatal("the uid still counts as connected")
	}
	if len(w.inactive) != 1 {
		t.Fatalf("OnInactive ran for %q", w.inactive)
	}
	if w.deliver(t) != 0 || len(w.core.calls) != calls {
		t.Fatal("Core was told what it said itself")
	}
	// Core has forgotten the connection by itself.
	delete(w.core.connected, alice)
	w.link(t, alice, "alice")
	w.deliver(t)
	if w.state(t, alice) != store.MappingActive || !w.core.isConnected(alice) {
		t.Fatal("reconnecting does not work")
	}
}

func TestUnlinkedWhileBeingApproved(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{noFault, lostAfter, lostSlow} {
		w := newWorld(t)
		w.link(t, alice, "alice")
		w.core.fault = func(call string) fault {
			if call != "approve" {
				return noFault
			}
			w.core.fault = nil
			w.core.mu.Unlock()
			defer w.core.mu.Lock()
			if err := w.s.Unlinked(t.Context(), alice); err != nil {
				t.Fatal(err)
			}
			return f
		}
		w.deliver(t)
		w.deliverFor(t, 2*time.Minute)
		if w.state(t, alice) != store.MappingExpired {
			t.Errorf("fault %d: state %s", f, w.state(t, alice))
		}
		if w.core.isConnected(alice) {
			t.Errorf("fault %d: Core shows a connection that does not exist; calls %q", f, w.core.calls)
		}
	}
}

func TestRemoveGivesTheUIDFree(t *testing.T) {
	t.Parallel()
	for _, purge := range []bool{false, true} {
		w := newWorld(t)
		w.link(t, alice, "alice")
		w.deliver(t)
		wrong := ident.UID(7)
		if err := w.s.Remove(t.Context(), alice, &wrong, purge, "test", false); !failure.Is(err, failure.Conflict) {
			t.Fatalf("a mapping that changed meanwhile was removed: %v", err)
		}
		if err := w.s.Remove(t.Context(), alice, nil, purge, "test", false); err != nil {
			t.Fatal(err)
		}
		w.deliver(t)
		if w.core.isConnected(alice) || w.state(t, alice) != "none" || len(w.inactive) != 1 {
			t.Fatalf("purge %v: connected %v, state %s", purge, w.core.isConnected(alice), w.state(t, alice))
		}
		w.link(t, mary, "alice")
		w.link(t, alice, "bob")
		w.deliver(t)
		if u, _ := w.s.User(2001); u != mary {
			t.Fatalf("uid 2001 belongs to %q", u)
		}
	}
}

func TestResolveChecksAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	w.deliver(t)
	acc := w.policy["alice"]

	delete(w.policy, "alice")
	w.policy["eve"] = Account{Name: "eve", UID: acc.UID}
	if a, err := w.s.Resolve(t.Context(), alice); err == nil {
		t.Fatalf("a recycled uid was accepted: %+v", a)
	}
	delete(w.policy, "eve")
	if _, err := w.s.Resolve(t.Context(), alice); !failure.Is(err, failure.NotFound) {
		t.Fatalf("a missing account was accepted: %v", err)
	}
	w.policy["alice"] = acc
	if _, err := w.s.Resolve(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := w.clock.Now().Add(time.Hour)
	if _, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", ExpiresAt: &at}); err != nil {
		t.Fatal(err)
	}
	w.deliver(t)
	if wait := w.s.sweep(t.Context()); wait > time.Hour || wait < 59*time.Minute {
		t.Fatalf("sweep comes back in %v", wait)
	}
	w.clock.Add(time.Hour)
	if _, ok := w.s.User(2001); ok {
		t.Fatal("an expired mapping counts before the sweep")
	}
	w.s.sweep(t.Context())
	w.deliver(t)
	if w.state(t, alice) != store.MappingExpired || len(w.inactive) != 1 || w.core.isConnected(alice) {
		t.Fatalf("state %s, inactive %q, connected %v", w.state(t, alice), w.inactive, w.core.isConnected(alice))
	}
}

func TestRunExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	// The mapping's time is over as soon as it is active; Run notices the change by itself.
	at := w.clock.Now().Add(-time.Second)
	if _, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", ExpiresAt: &at, NoApprove: true}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the mapping expires", func() bool { return w.state(t, alice) == store.MappingExpired })
}

func TestWaitActive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.s.WaitActive(gone, alice); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- w.s.WaitActive(t.Context(), alice) }()
	w.deliver(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNoApprove(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", NoApprove: true}); err != nil {
		t.Fatal(err)
	}
	if w.deliver(t) != 0 || w.state(t, alice) != store.MappingActive || len(w.replays(t)) != 1 {
		t.Fatalf("state %s, calls %q", w.state(t, alice), w.core.calls)
	}
}
