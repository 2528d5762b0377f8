package sitehooks_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/sitehooks"
	"ucloud-im/internal/usermap/ticket"
)

func TestMain(m *testing.M) {
	if dir, ok := testkit.Child(); ok {
		childMain(dir)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

const (
	alice = ident.UCloudUser("Alice#1234")
	mary  = ident.UCloudUser("Mary#0001")
)

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

type policy struct{}

func (policy) Check(_ context.Context, local string) (usermap.Account, error) {
	for i, name := range []string{"alice", "mary"} {
		uid := ident.UID(2001 + i) //nolint:gosec // small
		if local == name || local == uid.String() {
			return usermap.Account{Name: name, UID: uid}, nil
		}
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not allowed", local)
}

type discard struct{}

func (discard) RecordScript(context.Context, scripts.Entry) {}

// world is the service with everything around it.
type world struct {
	dir     string
	store   *store.Store
	users   *usermap.Service
	tickets *ticket.Method
	hooks   *sitehooks.Service
	runner  *scripts.Runner
	// account, if set, waits for an account that a script has named.
	account func(ctx context.Context, uid ident.UID) (usermap.Account, error)
	later   atomic.Int64 // by how much the clock of the hooks is ahead
}

func open(ctx context.Context, dir string) (*world, error) {
	log := slog.New(slog.DiscardHandler)
	w := &world{dir: dir}
	var err error
	if w.store, err = store.Open(ctx, store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: log}); err != nil {
		return nil, err
	}
	if w.runner, err = scripts.New(scripts.Options{Provider: "hpc", Spool: filepath.Join(dir, "spool"), Record: discard{}, Temporary: true}); err != nil {
		return nil, err
	}
	if err := w.runner.Open(); err != nil {
		return nil, err
	}
	w.hooks, err = sitehooks.New(sitehooks.Options{
		Store: w.store, Log: log, Now: func() time.Time { return time.Now().Add(time.Duration(w.later.Load())) },
		Hook: func(name string) *scripts.Hook {
			h, err := w.runner.Hook(scripts.HookOptions{
				Name: name, Path: filepath.Join(dir, "hook"), Timeout: testkit.Patience, Retry: scripts.Retry{Initial: 10 * time.Millisecond, Max: 50 * time.Millisecond},
			})
			if err != nil {
				panic(err)
			}
			return h
		},
		Decide: func(ctx context.Context, hash [32]byte, d ticket.Decision) error {
			return w.tickets.Decide(ctx, hash, d)
		},
		Account: func(ctx context.Context, uid ident.UID) (usermap.Account, error) {
			if w.account == nil {
				return usermap.Account{}, nil
			}
			return w.account(ctx, uid)
		},
	})
	if err != nil {
		return nil, err
	}
	if w.users, err = usermap.New(ctx, usermap.Options{Store: w.store, Core: core{}, Policy: policy{}, Log: log, Ended: w.hooks.Ended}); err != nil {
		return nil, err
	}
	w.tickets, err = ticket.NewMethod(ticket.Options{
		Store: w.store, Users: w.users, Log: log, PageURL: "https://im.example.org/page", Issued: w.hooks.TicketIssued,
	})
	return w, err
}

func newDir(t *testing.T, script string) string {
	t.Helper()
	dir := testkit.PrivateDir(t)
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeScript(t, dir, script)
	return dir
}

// writeScript writes the hook, which finds its directory in $d. Nothing may be forked meanwhile.
func writeScript(t *testing.T, dir, body string) {
	t.Helper()
	path := filepath.Join(dir, "hook")
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path+".new", []byte("#!/bin/bash\nd=$(dirname \"$0\")\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func openAt(t *testing.T, dir string) *world {
	t.Helper()
	w, err := open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.runner.Close(), w.store.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func newWorld(t *testing.T, script string) *world { t.Helper(); return openAt(t, newDir(t, script)) }

func (w *world) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.hooks.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func (w *world) link(ctx context.Context, user ident.UCloudUser, local string) error {
	err := w.store.Update(ctx, func(tx *store.Tx) error { return tx.SeeUser(user, time.Now()) })
	if err == nil {
		_, err = w.users.Link(ctx, usermap.Link{User: user, Local: local, Method: "test", NoApprove: true})
	}
	return err
}

// told gives what the script was asked, one request for each call that succeeded.
func (w *world) told(t *testing.T) []scripts.DisconnectedRequest {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.dir, "told"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var all []scripts.DisconnectedRequest
	for line := range strings.Lines(string(raw)) {
		var r scripts.DisconnectedRequest
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

const tell = `cat >> "$d/told"; echo >> "$d/told"`

func TestDisconnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, tell)
	stop := w.run(t)
	ends := []struct {
		cause string
		do    func() error
	}{
		{"core", func() error { return w.users.Unlinked(t.Context(), alice) }},
		{"user", func() error { return w.users.Disconnect(t.Context(), alice, 2001, "") }},
		{"operator", func() error { return w.users.Expire(t.Context(), alice, nil, "", false) }},
		{"operator", func() error { return w.users.Remove(t.Context(), alice, nil, true, "", false) }},
	}
	for i, e := range ends {
		if err := errors.Join(w.link(t.Context(), alice, "alice"), e.do()); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the script is told", func() bool { return len(w.told(t)) == i+1 })
	}
	if err := w.users.Unlinked(t.Context(), mary); err != nil { // was never connected
		t.Fatal(err)
	}
	testkit.Eventually(t, "nothing is left", func() bool { return w.calls(t, scripts.HookUserDisconnected) == 0 })
	stop()
	if all := w.told(t); len(all) != len(ends) {
		t.Errorf("told %+v", all)
	}
	for i, r := range w.told(t) {
		if r.Reason != ends[i].cause || r.UCloudUsername != alice || r.UID != 2001 || r.LocalUsername != "alice" || r.Projects == nil {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// TestReplaced: while the script fails, what it is to be told is overtaken. Told late, the end of a connection could take the
// account from somebody who is connected (contract 42 section A.3).
func TestReplaced(t *testing.T) {
	t.Parallel()
	link := func(w *world, ctx context.Context) error { return w.link(ctx, alice, "alice") }
	unlinked := func(w *world, ctx context.Context) error { return w.users.Unlinked(ctx, alice) }
	for name, tc := range map[string]struct {
		then []func(*world, context.Context) error
		told string
	}{
		"nothing":   {nil, "[2001 core]"},
		"came back": {[]func(*world, context.Context) error{link}, "[]"},
		"ended twice": {[]func(*world, context.Context) error{link, func(w *world, ctx context.Context) error {
			return w.users.Disconnect(ctx, alice, 2001, "")
		}}, "[2001 user]"},
		"has another account": {[]func(*world, context.Context) error{link, func(w *world, ctx context.Context) error {
			_, _, err := w.users.Change(ctx, usermap.Change{User: alice, UID: 2001, Local: "mary"})
			return err
		}}, "[2001 operator]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, `touch "$d/called"; exit 1`)
			stop := w.run(t)
			if err := errors.Join(link(w, t.Context()), unlinked(w, t.Context())); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the script fails", func() bool { failing, _, _, err := w.hooks.Status(t.Context()); return err == nil && failing == 1 })
			stop() // a call that is under way cannot be taken back
			for _, do := range tc.then {
				if err := do(w, t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := w.calls(t, scripts.HookUserDisconnected); n > 1 {
				t.Errorf("%d calls are queued", n)
			}
			writeScript(t, w.dir, tell)
			w.run(t)
			testkit.Eventually(t, "nothing is left", func() bool { return w.calls(t, scripts.HookUserDisconnected) == 0 })
			var got []string
			for _, r := range w.told(t) {
				got = append(got, fmt.Sprint(r.UID, " ", r.Reason))
			}
			if fmt.Sprint(got) != tc.told {
				t.Errorf("told %v, not %s", got, tc.told)
			}
		})
	}
}

// TestOldTickets: a script is not asked about a ticket that is not open any more, and pressing "Connect" while it fails does not
// make it more to do.
func TestOldTickets(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*world, context.Context) error{
		"superseded": func(w *world, ctx context.Context) error {
			for range 3 {
				if _, err := w.tickets.Begin(ctx, usermap.Attempt{User: alice}); err != nil {
					return err
				}
			}
			return nil
		},
		"rejected": func(w *world, ctx context.Context) error {
			list, err := w.tickets.List(ctx)
			if err != nil {
				return err
			}
			return w.tickets.Reject(ctx, ticket.Short(list[0].Hash), "root", "", false)
		},
		"expired": func(w *world, _ context.Context) error { w.later.Store(int64(ticket.DefaultLifetime)); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, `exit 1`)
			stop := w.run(t)
			if _, err := w.begin(t, ""); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the script fails", func() bool { failing, _, _, err := w.hooks.Status(t.Context()); return err == nil && failing == 1 })
			stop()
			if err := end(w, t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := w.calls(t, scripts.HookTicketCreated); n != 1 {
				t.Errorf("%d calls are queued", n)
			}
			writeScript(t, w.dir, `cat >> "$d/told"; echo >> "$d/told"`)
			w.run(t)
			testkit.Eventually(t, "nothing is left", func() bool { return w.calls(t, scripts.HookTicketCreated) == 0 })
			want := 0
			if name == "superseded" {
				want = 1
			}
			if all := w.told(t); len(all) != want {
				t.Errorf("told %d times", len(all))
			}
		})
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script string
		told   int
		parked int
	}{
		"again":         {`[ "$UCLOUD_ATTEMPT" -ge 4 ] || exit 1; ` + tell, 1, 0},
		"not permitted": {`touch "$d/called"; exit 77`, 0, 0},
		"bad data":      {`touch "$d/called"; exit 65`, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tc.script)
			w.run(t)
			if err := errors.Join(w.link(t.Context(), alice, "alice"), w.users.Unlinked(t.Context(), alice)); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the call is settled", func() bool {
				failing, parked, last, err := w.hooks.Status(t.Context())
				_, called := os.Stat(w.dir + "/called")
				return err == nil && failing == 0 && parked == tc.parked && (parked == 0 || last != "") && (called == nil || len(w.told(t)) == 1)
			})
			if tc.parked == 0 {
				return
			}
			writeScript(t, w.dir, tell) // the operator mends it, and reloads
			if err := w.hooks.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the script is told", func() bool { return len(w.told(t)) == 1 })
		})
	}
}

// childMain ends a connection and tells the script. It ends only when it is killed.
func childMain(dir string) {
	w, err := open(context.Background(), dir)
	if err == nil {
		err = w.link(context.Background(), alice, "alice")
	}
	if err == nil {
		err = w.users.Unlinked(context.Background(), alice)
	}
	if err == nil {
		if _, missing := os.Stat(dir + "/run"); missing != nil {
			testkit.AtMark(dir + "/ended")
		}
		err = w.hooks.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, "failed:", err)
	os.Exit(3)
}

// A service that is killed has the script told by the next one: right after the end of the connection, and in the middle of
// the call.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"ended", "in the script"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir := newDir(t, `while [ -e "$d/wait" ]; do touch "$d/running"; sleep 0.02; done; `+tell)
			mark := dir + "/ended"
			if point == "in the script" {
				mark = dir + "/running"
				touch(t, dir+"/run")
				touch(t, dir+"/wait")
			}
			testkit.KillChild(t, dir, mark)
			_ = os.Remove(dir + "/wait")
			w := openAt(t, dir)
			w.run(t)
			testkit.Eventually(t, "the script is told", func() bool {
				all := w.told(t)
				return len(all) > 0 && all[0].Reason == "core" && all[0].UID == 2001
			})
		})
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a script may decide about a ticket is what an operator may, less the signing key.
//
//attack:actor malicious script
//attack:does Approves a ticket for an account that the policy does not allow.
//attack:control A decision goes through the same checks as that of an operator.
//attack:remove internal/usermap/link.go: account, err := s.o.Policy.Check(ctx, l.Local) => account, err := Account{Name: "x", UID: 3000}, error(nil)
//attack:run not allowed
//attack:actor compromised core
//attack:does Connects in a user's name with a signing key of its own at a site where a script approves tickets.
//attack:control Nobody has compared the key, so the decision of a script forgets it.
//attack:remove internal/usermap/ticket/decide.go: if err := m.settleKey(tx, rec, ""); err != nil { => if err := error(nil); err != nil {
//attack:run approve
func TestDecisions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		reply string
		state store.TicketState
		want  string
	}{
		"notification":      {``, store.TicketOpen, "none"},
		"approve":           {`{"decision":"approve","uid":2001}`, store.TicketUsed, "alice pending ticket script onTicketCreated"},
		"reject":            {`{"decision":"reject","userMessage":"Ask first"}`, store.TicketRejected, "none"},
		"not allowed":       {`{"decision":"approve","uid":3000}`, store.TicketOpen, "none"},
		"taken account":     {`{"decision":"approve","uid":2002}`, store.TicketOpen, "none"},
		"root":              {`{"decision":"approve","uid":0}`, "", ""},
		"neither, nor else": {`{"decision":"maybe"}`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, `cat > "$d/asked"; cat <<'END'
`+tc.reply+`
END`)
			stop := w.run(t)
			if err := w.link(t.Context(), mary, "mary"); err != nil {
				t.Fatal(err)
			}
			key := w.pendingKey(t)
			if _, err := w.begin(t, key); err != nil {
				t.Fatal(err)
			}
			var list []store.Ticket
			if tc.state == "" { // an invalid reply is repeated
				testkit.Eventually(t, "the call fails", func() bool { failing, _, _, _ := w.hooks.Status(t.Context()); return failing == 1 })
				tc.state, tc.want = store.TicketOpen, "none"
			} else {
				testkit.Eventually(t, "the call is settled", func() bool { return w.calls(t, scripts.HookTicketCreated) == 0 })
			}
			stop()
			list, err := w.tickets.List(t.Context())
			if err != nil || len(list) != 1 || list[0].State != tc.state {
				t.Fatalf("tickets %+v, %v", list, err)
			}
			if name == "reject" && list[0].Message != "Ask first" {
				t.Errorf("the user is told %q", list[0].Message)
			}
			got := "none"
			if m, err := w.users.Mapping(t.Context(), alice); err == nil {
				got = m.LocalName + " " + string(m.State) + " " + m.Method + " " + m.By
			}
			if got != tc.want {
				t.Errorf("mapping %s", got)
			}
			if state := w.keyState(t, key); name == "approve" && state != "" || state == string(store.SigningKeyActive) {
				t.Errorf("the key is %q", state)
			}
			if m, err := w.users.Mapping(t.Context(), mary); err != nil || m.UID != 2002 {
				t.Errorf("the mapping of the other user is %+v, %v", m, err)
			}
			asked, err := os.ReadFile(w.dir + "/asked")
			if err != nil || !strings.Contains(string(asked), `"ticket":"`+ticket.Short(list[0].Hash)+`"`) {
				t.Errorf("asked %s, %v", asked, err)
			}
		})
	}
}

// TestNewAccount: an account that the script has just made may take a while to be known (contract 42 SEC-S4). The decision
// waits for it, and a service that ends meanwhile has not lost it.
func TestNewAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `echo '{"decision":"approve","uid":2001}'`)
	waits := make(chan ident.UID, 1)
	w.account = func(ctx context.Context, uid ident.UID) (usermap.Account, error) {
		waits <- uid
		<-ctx.Done()
		return usermap.Account{}, failure.New(failure.NotFound, "There is no account %d", uid)
	}
	stop := w.run(t)
	if _, err := w.begin(t, ""); err != nil {
		t.Fatal(err)
	}
	if uid := <-waits; uid != 2001 {
		t.Fatalf("waits for uid %d", uid)
	}
	stop()
	if n := w.calls(t, scripts.HookTicketCreated); n != 1 {
		t.Fatalf("%d calls are queued after the end of the service", n)
	}
	w.account = nil
	w.run(t)
	testkit.Eventually(t, "the ticket is used", func() bool {
		list, err := w.tickets.List(t.Context())
		return err == nil && len(list) == 1 && list[0].State == store.TicketUsed
	})
}

func (w *world) begin(t *testing.T, key string) (string, error) {
	t.Helper()
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(alice, time.Now()) }); err != nil {
		return "", err
	}
	return w.tickets.Begin(t.Context(), usermap.Attempt{User: alice, Key: key})
}

// calls counts the queued calls about alice.
func (w *world) calls(t *testing.T, hook string) (n int) {
	t.Helper()
	if err := w.store.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.CallsOf(hook, string(alice))
		n = len(all)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// pendingKey stores a signing key that waits for a proof.
func (w *world) pendingKey(t *testing.T) string {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Millisecond)
	k := store.SigningKey{
		ID: "k1", User: alice, PublicKey: []byte{1}, Fingerprint: "SHA256:x", Algorithm: "Ed25519", Session: [32]byte{1},
		State: store.SigningKeyPending, CreatedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.InsertSigningKey(k) }); err != nil {
		t.Fatal(err)
	}
	return k.ID
}

// keyState is the state of a signing key, "" if it is forgotten.
func (w *world) keyState(t *testing.T, id string) (state string) {
	t.Helper()
	if err := w.store.View(t.Context(), func(tx *store.Tx) error {
		k, err := tx.SigningKey(id)
		state = string(k.State)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return state
}
