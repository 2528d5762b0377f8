package usermap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func (w *world) change(t *testing.T, user ident.UCloudUser, uid ident.UID, local string) error {
	t.Helper()
	_, _, err := w.s.Change(t.Context(), Change{User: user, UID: uid, Local: local, By: "root", Reason: "moved"})
	return err
}

// To UCloud a change of account is none: a second approveConnection of a connected user ends the Core process.
func TestChangeOnBothEngines(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, st *store.Store) {
		w := newWorldOn(t, st)
		w.link(t, alice, "alice")
		w.deliver(t)
		calls := len(w.core.calls)
		if err := w.change(t, alice, 2001, "carol"); err != nil {
			t.Fatal(err)
		}
		w.deliver(t)
		b, ok := w.s.Account(alice)
		if !ok || b.UID != 2003 || b.LocalName != "carol" {
			t.Fatalf("account %+v, %v", b, ok)
		}
		if _, ok := w.s.User(2001); ok {
			t.Error("the old account still belongs to the user")
		}
		if len(w.core.calls) != calls || !w.core.isConnected(alice) {
			t.Errorf("Core was called: %q", w.core.calls[calls:])
		}
		if !slices.Contains(w.inactive, string(alice)+": moved") || len(w.active) != 2 {
			t.Errorf("told: inactive %q, active %q", w.inactive, w.active)
		}
		w.link(t, mary, "alice") // the old account is free
		var history []store.Mapping
		if err := st.View(t.Context(), func(tx *store.Tx) (err error) { history, err = tx.MappingHistory(); return err }); err != nil {
			t.Fatal(err)
		}
		if len(history) != 3 || history[0].State != store.MappingRemoved || history[0].UID != 2001 || history[1].Method != MethodOperator || history[1].By != "root" {
			t.Errorf("history %+v", history)
		}
	})
}

// The connection stays as it is at UCloud, whatever state it is in.
func TestChangeInEveryState(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before func(t *testing.T, w *world)
		want   store.MappingState
	}{
		"pending":  {func(*testing.T, *world) {}, store.MappingActive},
		"approved": {func(t *testing.T, w *world) { w.setState(t, store.MappingApproved) }, store.MappingActive},
		"active":   {func(t *testing.T, w *world) { w.deliver(t) }, store.MappingActive},
		"expired": {func(t *testing.T, w *world) {
			w.deliver(t)
			if err := w.s.Expire(t.Context(), alice, nil, "test", false); err != nil {
				t.Fatal(err)
			}
		}, store.MappingExpired},
		"under way": {func(t *testing.T, w *world) {
			w.core.fault = func(call string) fault {
				if call == "approve" {
					return lostSlow
				}
				return noFault
			}
			w.deliver(t)
			w.core.fault = nil
		}, store.MappingActive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.link(t, alice, "alice")
			tc.before(t, w)
			if err := w.change(t, alice, 2001, "carol"); err != nil {
				t.Fatal(err)
			}
			w.deliverFor(t, 5*60e9)
			if got := w.state(t, alice); got != tc.want {
				t.Fatalf("state %s, want %s", got, tc.want)
			}
			if name != "approved" && w.core.isConnected(alice) != (tc.want == store.MappingActive) {
				t.Errorf("Core shows connected = %v; calls %q", w.core.isConnected(alice), w.core.calls)
			}
			if tc.want == store.MappingExpired { // the new account is reserved, the old one is not
				if _, err := w.s.Link(t.Context(), Link{User: alice, Local: "alice", Method: "test"}); !failure.Is(err, failure.Conflict) {
					t.Errorf("linked to the old account: %v", err)
				}
				w.link(t, alice, "carol")
			}
		})
	}
}

func (w *world) setState(t *testing.T, state store.MappingState) {
	t.Helper()
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		m, err := tx.MappingByUser(alice)
		if err != nil {
			return err
		}
		m.State = state
		return tx.UpdateMapping(m)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestChangeRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	w.link(t, mary, "bob")
	w.deliver(t)
	w.inactive = nil
	for name, tc := range map[string]struct {
		user ident.UCloudUser
		uid  ident.UID
		to   string
		want failure.Kind
	}{
		"unknown user":     {"Nobody#1", 2001, "carol", failure.NotFound},
		"changed since":    {alice, 2003, "carol", failure.Conflict},
		"same account":     {alice, 2001, "2001", failure.Conflict},
		"of somebody else": {alice, 2001, "bob", failure.Conflict},
		"no such account":  {alice, 2001, "dave", failure.NotFound},
	} {
		if err := w.change(t, tc.user, tc.uid, tc.to); !failure.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	was, now, err := w.s.Change(t.Context(), Change{User: alice, UID: 2001, Local: "carol", DryRun: true})
	if err != nil || was.UID != 2001 || now.UID != 2003 {
		t.Errorf("dry run: %+v to %+v, %v", was, now, err)
	}
	if b, _ := w.s.Account(alice); b.UID != 2001 || len(w.inactive) != 0 {
		t.Errorf("something has changed: %+v, told %q", b, w.inactive)
	}
}

// What hangs on a connection ends in its transaction, however it ends, and who fails to end it undoes the ending.
//
//attack:actor local user
//attack:does Keeps links and keys of a connection that has ended, because the server was killed before it got round to revoking them.
//attack:control What must not outlive a connection ends in the transaction that ends the mapping.
//attack:remove internal/usermap/lifecycle.go: if err := s.o.Ended(tx, m, e.cause); err != nil { => if err := error(nil); err != nil {
//attack:actor local user
//attack:does Keeps links and keys of the account that an operator has taken from them.
//attack:control What must not outlive a connection ends in the transaction that changes the account.
//attack:remove internal/usermap/change.go: if err := s.o.Ended(tx, was, CauseOperator); err != nil { => if err := error(nil); err != nil {
func TestEndedInTheTransaction(t *testing.T) {
	t.Parallel()
	ends := map[string]func(w *world) error{
		"core":     func(w *world) error { return w.s.Unlinked(t.Context(), alice) },
		"user":     func(w *world) error { return w.s.Disconnect(t.Context(), alice, 2001, "test") },
		"operator": func(w *world) error { return w.s.Expire(t.Context(), alice, nil, "test", false) },
		"remove":   func(w *world) error { return w.s.Remove(t.Context(), alice, nil, false, "test", false) },
		"purge":    func(w *world) error { return w.s.Remove(t.Context(), alice, nil, true, "test", false) },
		"change": func(w *world) error {
			_, _, err := w.s.Change(t.Context(), Change{User: alice, UID: 2001, Local: "carol"})
			return err
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.link(t, alice, "alice")
			w.deliver(t)
			var told []string
			refuse := errors.New("not now")
			w.s.o.Ended = func(tx *store.Tx, was store.Mapping, cause Cause) error {
				told = append(told, fmt.Sprintf("%s %s %d", cause, was.State, was.UID))
				if refuse != nil {
					return refuse
				}
				return tx.SetSetting("ended", "yes")
			}
			if err := end(w); !errors.Is(err, refuse) {
				t.Fatalf("the ending was not undone: %v", err)
			}
			if b, ok := w.s.Account(alice); !ok || b.UID != 2001 {
				t.Fatal("the mapping is gone although its end was refused")
			}
			refuse = nil
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			want := name
			if name == "remove" || name == "purge" || name == "change" {
				want = "operator"
			}
			want += " active 2001"
			if strings.Join(told, "; ") != want+"; "+want {
				t.Errorf("told %q, want twice %q", told, want)
			}
		})
	}
}
