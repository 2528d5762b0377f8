package localuser

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a made-up account database that answers as getent and id do.
type machine struct {
	mu    sync.Mutex
	calls map[string]int
	lines map[string]string // "passwd alice" -> record; "id alice" -> groups
	err   error
	block chan struct{}
}

func (m *machine) run(_ context.Context, program string, args ...string) ([]byte, int, error) {
	key := strings.Join(args, " ")
	key = strings.Replace(key, "-- ", "", 1)
	if len(args) > 3 {
		return m.several(args[0], args[2:])
	}
	m.mu.Lock()
	m.calls[key]++
	line, ok := m.lines[key]
	err, block := m.err, m.block
	m.mu.Unlock()
	if block != nil {
		<-block
	}
	switch {
	case err != nil:
		return nil, 0, err
	case ok:
		return []byte(line), 0, nil
	case filepath.Base(program) == "id":
		return nil, 1, errors.New("no such user")
	}
	return nil, 2, errors.New("exit status 2")
}

func (m *machine) several(database string, keys []string) (out []byte, exit int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls["several"]++
	for _, k := range keys {
		m.calls[database+" "+k]++
		line, ok := m.lines[database+" "+k]
		if !ok {
			exit, err = 2, errors.New("exit status 2")
		}
		out = append(out, line...)
	}
	return out, exit, err
}

func (m *machine) set(key, line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines[key] = line
}

func (m *machine) count(key string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[key]
}

type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(1_700_000_000, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func usual() *machine {
	return &machine{calls: map[string]int{}, lines: map[string]string{
		"passwd alice":       "alice:x:2001:2001:Alice:/home/alice:/bin/bash\n",
		"passwd 2001":        "alice:x:2001:2001:Alice:/home/alice:/bin/bash\n",
		"passwd 2002":        "bob:x:2002:100:Bob:/home/bob:/usr/sbin/nologin\n",
		"passwd 2003":        "carol:x:2003:100::/home/carol:/bin/sh\n",
		"passwd 2004":        "4711:x:2004:100::/home/x:/bin/sh\n",
		"passwd 4711":        "4711:x:2004:100::/home/x:/bin/sh\n",
		"passwd 500":         "daemon2:x:500:100::/:/bin/sh\n",
		"passwd 999":         "ucloud:x:999:999::/:/bin/sh\n",
		"passwd 3001":        "member:x:3001:9000::/home/m:/bin/sh\n",
		"passwd 3002":        "hidden:x:3002:100::/home/h:\n",
		"passwd 3003":        "Denied:x:3003:9000::/home/d:/bin/sh\n",
		"group ucloud_users": "ucloud_users:x:9000:alice,bob\n",
		"group empty":        "empty:x:9001:\n",
		"-G alice":           "2001 9000\n",
		"-G carol":           "100\n",
		"-G hidden":          "100 9000\n", // the directory does not list members
	}}
}

func directory(m *machine) (*Directory, *clock) {
	c := &clock{}
	d := NewDirectory(Options{Now: c.now})
	d.run = m.run
	d.stamp = func() Stamp { return Stamp{} }
	d.shadowReadable = func() bool { return true }
	return d, c
}

func TestLookups(t *testing.T) {
	t.Parallel()
	d, _ := directory(usual())
	a, err := d.ByName(t.Context(), "alice")
	if want := (Account{"alice", 2001, 2001, "/home/alice", "/bin/bash"}); err != nil || a != want {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err = d.ByUID(t.Context(), 2001); err != nil || a.Name != "alice" {
		t.Fatalf("%+v, %v", a, err)
	}
	if g, err := d.Group(t.Context(), "ucloud_users"); err != nil || g.GID != 9000 || !slices.Equal(g.Members, []string{"alice", "bob"}) {
		t.Fatalf("%+v, %v", g, err)
	}
	if g, err := d.Group(t.Context(), "empty"); err != nil || len(g.Members) != 0 {
		t.Fatalf("%+v, %v", g, err)
	}
	if gids, err := d.Groups(t.Context(), "alice"); err != nil || !slices.Equal(gids, []ident.GID{2001, 9000}) {
		t.Fatalf("%v, %v", gids, err)
	}
	for name, err := range map[string]error{
		"account": second(d.ByName(t.Context(), "nobody-here")), "uid": second(d.ByUID(t.Context(), 7)),
		"group": second(d.Group(t.Context(), "nogroup-here")), "groups": second(d.Groups(t.Context(), "nobody-here")),
	} {
		if !failure.Is(err, failure.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestNamesThatAreNumbers: getent would take them for ids, and answer about somebody else.
func TestNamesThatAreNumbers(t *testing.T) {
	t.Parallel()
	m := usual()
	m.set("passwd 2001x", "alice:x:2001:2001::/:/bin/sh\n") // an answer about another name
	d, _ := directory(m)
	for _, name := range []string{"2001", "0", "4711", "+2001", "-1", "", "a b", "a\nb", "a:b", "a/b", "..", "#2001", "%g", strings.Repeat("x", 300)} {
		if a, err := d.ByName(t.Context(), name); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %+v, %v", name, a, err)
		}
		if _, err := d.Groups(t.Context(), name); err == nil {
			t.Errorf("groups of %q", name)
		}
	}
	if a, err := d.ByName(t.Context(), "2001x"); !failure.Is(err, failure.NotFound) {
		t.Errorf("a record of another name was taken: %+v, %v", a, err)
	}
	for _, name := range []string{"alice", "user@site.org", `DOM\user`, "a.b-c_d", "ünal", "007bond", "x1"} {
		if !ValidName(name) {
			t.Errorf("%q is refused", name)
		}
	}
}

func TestCache(t *testing.T) {
	t.Parallel()
	m := usual()
	d, c := directory(m)
	get := func() {
		t.Helper()
		if _, err := d.ByUID(t.Context(), 2001); err != nil {
			t.Fatal(err)
		}
		d.ByUID(t.Context(), 7) //nolint:errcheck // does not exist
	}
	for range 5 {
		get()
	}
	if m.count("passwd 2001") != 1 || m.count("passwd 7") != 1 {
		t.Fatalf("asked %d and %d times", m.count("passwd 2001"), m.count("passwd 7"))
	}
	c.advance(6 * time.Second)
	get()
	if m.count("passwd 2001") != 1 || m.count("passwd 7") != 2 {
		t.Fatal("negative answers live for 5 s, positive ones longer")
	}
	c.advance(31 * time.Second)
	get()
	if m.count("passwd 2001") != 2 {
		t.Fatal("an old answer is used")
	}
	d.Invalidate()
	get()
	if m.count("passwd 2001") != 3 {
		t.Fatal("Invalidate does nothing")
	}
	d.stamp = func() Stamp { return Stamp{{ino: 1}} } // somebody ran usermod
	get()
	if m.count("passwd 2001") != 4 {
		t.Fatal("a change of the account files is not noticed")
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	d, _ := directory(usual())
	d.o.MaxEntries = 10
	for uid := range ident.UID(1000) {
		d.ByUID(t.Context(), uid) //nolint:errcheck // most do not exist
		if len(d.entries) > 10 {
			t.Fatalf("%d entries", len(d.entries))
		}
	}
}

func TestSingleFlightAndInvalidation(t *testing.T) {
	t.Parallel()
	m := usual()
	m.block = make(chan struct{})
	d, _ := directory(m)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { d.ByUID(context.Background(), 2001) }) //nolint:errcheck // counted below
	}
	for m.count("passwd 2001") == 0 {
		time.Sleep(time.Millisecond)
	}
	// A caller who comes after an invalidation must not get the answer of a lookup that began before.
	d.Invalidate()
	m.set("passwd 2001", "newname:x:2001:1::/:/bin/sh\n")
	late := make(chan Account, 1)
	go func() { a, _ := d.ByUID(context.Background(), 2001); late <- a }()
	for m.count("passwd 2001") < 2 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.ByUID(ctx, 2001); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who gave up: %v", err)
	}
	close(m.block)
	wg.Wait()
	if a := <-late; a.Name != "newname" {
		t.Errorf("got %+v", a)
	}
	if a, _ := d.ByUID(t.Context(), 2001); a.Name != "newname" {
		t.Errorf("an answer from before the invalidation was stored: %+v", a)
	}
}

// TestBurst asks for many uids at a time, some of which do not exist.
func TestBurst(t *testing.T) {
	t.Parallel()
	m := usual()
	m.block = make(chan struct{})
	for uid := 5000; uid < 5200; uid += 2 {
		m.set("passwd "+strconv.Itoa(uid), "u"+strconv.Itoa(uid)+":x:"+strconv.Itoa(uid)+":1::/:/bin/sh\n")
	}
	d, _ := directory(m)
	var wg sync.WaitGroup
	for uid := ident.UID(5000); uid < 5200; uid++ {
		wg.Go(func() {
			a, err := d.ByUID(context.Background(), uid)
			if uid%2 == 0 && (err != nil || a.UID != uid || a.Name != "u"+uid.String()) {
				t.Errorf("%s: %+v, %v", uid, a, err)
			}
			if uid%2 == 1 && !failure.Is(err, failure.NotFound) {
				t.Errorf("%s: %+v, %v", uid, a, err)
			}
		})
	}
	for {
		d.uids.mu.Lock()
		n := len(d.uids.waiting)
		d.uids.mu.Unlock()
		if n == 200-batchProcesses {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(m.block)
	wg.Wait()
	if n := m.count("several"); n == 0 || n > 8 {
		t.Errorf("%d processes", n)
	}
	m.set("passwd 6000", "broken\n")
	m.block = make(chan struct{})
	var errs [3]error
	for i := range errs {
		wg.Go(func() { _, errs[i] = d.ByUID(context.Background(), ident.UID(6000+i)) })
	}
	close(m.block)
	wg.Wait()
	if errs[0] == nil {
		t.Error("a broken record was taken")
	}
}

func TestErrorsAreNotCached(t *testing.T) {
	t.Parallel()
	m := usual()
	m.err = errors.New("directory is down")
	d, _ := directory(m)
	if _, err := d.ByUID(t.Context(), 2001); !failure.Is(err, failure.Unavailable) {
		t.Fatal(err)
	}
	m.err = nil
	if _, err := d.ByUID(t.Context(), 2001); err != nil {
		t.Fatal(err)
	}
}

//attack:actor local user
//attack:does Connects the account of a service of the system, or root.
//attack:control Accounts below the lowest allowed uid have no instance.
//attack:remove internal/localuser/policy.go: case uid < p.o.MinUID: => case false:
//attack:actor local user
//attack:does Uses an account that was locked.
//attack:control Locked accounts have no instance.
//attack:remove internal/localuser/policy.go: if s.LockedHash { => if false {
//attack:actor local user
//attack:does Uses an account that has expired.
//attack:control Expired accounts have no instance.
//attack:remove internal/localuser/policy.go: s.Expires >= 0 && today >= s.Expires => s.Expires >= 0 && today < 0
//attack:actor local user
//attack:does Uses an account that is not in the allowed group.
//attack:control Only members of the group that the operator names have instances.
//attack:remove internal/localuser/policy.go: if !slices.Contains(gids, g.GID) { => if gids == nil {
//attack:actor local user
//attack:does Gets a uid that belonged to somebody else who was connected.
//attack:control The name of the account must be the one that was connected.
//attack:remove internal/localuser/policy.go: case a.Name != localName: => case false:
//attack:actor local user
//attack:does Uses an account without a login shell.
//attack:control Accounts without a login shell have no instance.
//attack:remove internal/localuser/policy.go: case noLogin(a.Shell): => case false:
func TestPolicy(t *testing.T) {
	t.Parallel()
	day := int64(86400)
	for _, tc := range []struct {
		name   string
		uid    ident.UID
		local  string
		shadow string
		change func(o *PolicyOptions)
		kind   failure.Kind // 0 = accepted
		why    string
	}{
		{name: "member by list", uid: 2001, local: "alice"},
		{name: "member by primary group", uid: 3001, local: "member"},
		{name: "member that the directory does not list", uid: 3002, local: "hidden"},
		{name: "root", uid: 0, local: "root", kind: failure.Forbidden, why: "root"},
		{name: "overflow uid", uid: 65534, local: "nobody", kind: failure.Forbidden, why: "no account"},
		{name: "no uid", uid: 1<<32 - 1, local: "x", kind: failure.Forbidden, why: "no account"},
		{name: "below the floor", uid: 500, local: "daemon2", kind: failure.Forbidden, why: "below"},
		{name: "above the ceiling", uid: 2001, local: "alice", change: func(o *PolicyOptions) { o.MaxUID = 2000 }, kind: failure.Forbidden, why: "above"},
		{name: "service account", uid: 999, local: "ucloud", change: func(o *PolicyOptions) { o.MinUID = 1 }, kind: failure.Forbidden, why: "service account"},
		{name: "unknown uid", uid: 7777, local: "x", kind: failure.NotFound, why: "7777"},
		{name: "recycled uid", uid: 2001, local: "alfred", kind: failure.Forbidden, why: `belongs to the account "alice" now`},
		{name: "numeric name", uid: 2004, local: "4711", kind: failure.Forbidden, why: "safely"},
		{name: "nologin", uid: 2002, local: "bob", kind: failure.Forbidden, why: "login shell"},
		{name: "not a member", uid: 2003, local: "carol", kind: failure.Forbidden, why: "not a member"},
		{name: "group is missing", uid: 2001, local: "alice", change: func(o *PolicyOptions) { o.Group = "gone" }, kind: failure.NotFound, why: "gone"},
		{name: "denied, other case", uid: 3003, local: "Denied", kind: failure.Forbidden, why: "excluded"},
		{name: "locked hash", uid: 2001, local: "alice", shadow: "alice:!$6$x$y:1:0:9:7:::\n", kind: failure.Forbidden, why: "locked"},
		{name: "no password", uid: 2001, local: "alice", shadow: "alice:!:1:0:9:7:::\n"},
		{name: "no password either", uid: 2001, local: "alice", shadow: "alice:*:1:0:9:7:::\n"},
		{name: "never set", uid: 2001, local: "alice", shadow: "alice:!!:1:0:9:7:::\n"},
		{name: "locked without password", uid: 2001, local: "alice", shadow: "alice:!*:1:0:9:7:::\n"},
		{name: "expires today", uid: 2001, local: "alice", shadow: "alice:*:1:0:9:7::" + itoa(1_700_000_000/day) + ":\n", kind: failure.Forbidden, why: "expired"},
		{name: "expires tomorrow", uid: 2001, local: "alice", shadow: "alice:*:1:0:9:7::" + itoa(1_700_000_000/day+1) + ":\n"},
		{name: "expired at 0", uid: 2001, local: "alice", shadow: "alice:*:1:0:9:7::0:\n", kind: failure.Forbidden, why: "expired"},
		{name: "broken shadow record", uid: 2001, local: "alice", shadow: "alice:*\n", kind: failure.Unavailable, why: "does not answer"},
		{name: "self: other account", uid: 2001, local: "alice", change: self, kind: failure.Forbidden, why: "development"},
		{name: "self: own account, no group", uid: 2003, local: "carol", change: func(o *PolicyOptions) { self(o); o.ServiceUID = 2003 }},
		{name: "self: root", uid: 0, local: "root", change: func(o *PolicyOptions) { self(o); o.ServiceUID = 0 }, kind: failure.Forbidden, why: "root"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := usual()
			if tc.shadow != "" {
				m.set("shadow "+tc.local, tc.shadow)
			}
			d, c := directory(m)
			o := PolicyOptions{Group: "ucloud_users", MinUID: 1000, MaxUID: 4294967293, Denied: []string{"denied", "root"}, ServiceUID: 999, Now: c.now}
			if tc.change != nil {
				tc.change(&o)
			}
			got, err := NewPolicy(d, o).Check(t.Context(), tc.uid, tc.local)
			if tc.why == "" {
				if err != nil || !got.Valid() || got.Account().UID != tc.uid || got.SawShadow() != (tc.shadow != "") {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			if got.Valid() || !failure.Is(err, tc.kind) || !strings.Contains(failure.Why(err), tc.why) {
				t.Fatalf("%+v, %v; want kind %v, %q", got, err, tc.kind, tc.why)
			}
		})
	}
}

func self(o *PolicyOptions) { o.Self, o.ServiceUID = true, 4000 }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// TestRunTool uses real programs.
func TestRunTool(t *testing.T) {
	t.Parallel()
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "tool")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := runTool(10*time.Second, 1000)
	if out, exit, err := run(t.Context(), script(`echo "$@" $HOME $0x`), "a", "b"); err != nil || exit != 0 || !strings.HasPrefix(string(out), "a b /") {
		t.Errorf("%q, %d, %v", out, exit, err)
	}
	if _, exit, err := run(t.Context(), script("echo oops >&2; exit 2"), "x"); exit != 2 || err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("%d, %v", exit, err)
	}
	if out, _, err := run(t.Context(), script("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done | head -c 100000"), "x"); err == nil {
		t.Errorf("%d bytes of output were taken", len(out))
	}
	if out, _, err := run(t.Context(), "/usr/bin/env", "-u", "x"); err != nil || string(out) != "LC_ALL=C\nPATH=/usr/bin:/bin\n" {
		t.Errorf("environment %q, %v", out, err)
	}
	if _, _, err := run(t.Context(), "/nonexistent", "x"); err == nil {
		t.Error("a missing program is no error")
	}
	begun := time.Now()
	if _, _, err := runTool(200*time.Millisecond, 1000)(t.Context(), script("sleep 60 & sleep 60"), "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRealDirectory(t *testing.T) {
	t.Parallel()
	d := NewDirectory(Options{})
	a, err := d.ByName(t.Context(), "root")
	if err != nil || a.UID != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if b, err := d.ByUID(t.Context(), 0); err != nil || b != a {
		t.Fatalf("%+v, %v", b, err)
	}
	if g, err := d.Groups(t.Context(), "root"); err != nil || !slices.Contains(g, 0) {
		t.Fatalf("%v, %v", g, err)
	}
	if _, err := d.ByName(t.Context(), "no-such-account-here"); !failure.Is(err, failure.NotFound) {
		t.Fatal(err)
	}
	if _, err := d.ByUID(t.Context(), 4_000_000_123); !failure.Is(err, failure.NotFound) {
		t.Fatal(err)
	}
	if _, err := d.Groups(t.Context(), "no-such-account-here"); !failure.Is(err, failure.NotFound) {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if s, ok, err := d.Shadow(t.Context(), "root"); err != nil || !ok || s.Name != "root" {
			t.Fatalf("%+v, %v, %v", s, ok, err)
		}
	}
}

func FuzzParsePasswd(f *testing.F) {
	f.Add([]byte("alice:x:2001:2001:Alice:/home/alice:/bin/bash\n"))
	f.Add([]byte("alice:x:4294967295:0:::\n"))
	f.Add([]byte("a:b\nc:d\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parsePasswd(b)
		if err != nil {
			return
		}
		line := strings.TrimSuffix(string(b), "\n")
		if strings.ContainsAny(line, "\n\x00") || a.Name == "" || !strings.HasPrefix(line, a.Name+":") || !strings.Contains(line, ":"+a.UID.String()+":") {
			t.Fatalf("%q -> %+v", b, a)
		}
	})
}

func FuzzParseOthers(f *testing.F) {
	f.Add([]byte("ucloud_users:x:9000:alice,bob\n"))
	f.Add([]byte("1 2 3\n"))
	f.Add([]byte("alice:!$6$x$y:1:0:9:7::20000:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := parseGroup(b); err == nil && (g.Name == "" || slices.Contains(g.Members, "")) {
			t.Fatalf("%q -> %+v", b, g)
		}
		if gids, err := parseGroups(b); err == nil && len(gids) == 0 {
			t.Fatalf("%q -> no groups", b)
		}
		if s, err := parseShadow(b); err == nil && s.Name == "" {
			t.Fatalf("%q -> %+v", b, s)
		}
	})
}
