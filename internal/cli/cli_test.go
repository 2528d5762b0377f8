package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// TestDocumentedCommandsExist calls every command by every name that contract 41 gives it.
func TestDocumentedCommandsExist(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"server", "gateway", "gateway dump", "version", "status", "doctor", "schema",
		"config check", "config show", "config print", "config get", "config schema", "config reload", "config diff",
		"setup sudoers", "setup systemd", "setup directories",
		"connect", "me", "me connect", "me disconnect",
		"users list", "users ls", "users show", "users get", "users view", "users stat", "users retrieve",
		"users add", "users create", "users change", "users remap", "users expire", "users remove", "users rm", "users delete", "users del",
		"tickets list", "tickets ls", "tickets approve", "tickets reject",
		"instances list", "instances ls", "instances stop", "instances restart", "drives list", "drives ls",
		"allocations list", "allocations ls", "allocations apply",
		"slurm-accounts list", "slurm-accounts ls", "slurm-accounts re-evaluate", "slurm-accounts adopt",
		"slurm-accounts add", "slurm-accounts rm", "slurm-accounts evaluate", "slurm-accounts sync", "slurm accounts add", "slurm accounts remove",
		"slurm accounts list", "slurm accounts re-evaluate", "slurm accounts adopt",
		"projects list", "projects ls", "projects show", "projects get", "projects map", "projects remove", "projects rm",
		"jobs list", "jobs ls", "jobs show", "jobs get", "jobs cancel", "jobs resync", "jobs explain", "jobs register",
		"apps list", "apps ls", "apps render",
		"scripts list", "scripts ls", "scripts show", "scripts get", "scripts test", "scripts run",
		"keys list", "keys ls", "keys revoke", "intents list", "intents ls", "intents revoke",
		"completion bash", "completion zsh", "completion fish",
	} {
		w := &world{socket: "/nonexistent"}
		code, out, errs := w.run(t, nil, append(strings.Fields(line), "--help")...)
		// The help must be the command's own and not that of the group above it.
		words := strings.Fields(line)
		use := "ucloud " + words[0]
		if code != ExitOK || !strings.Contains(out, use) || errs != "" || strings.Contains(out, "Available Commands") && len(words) == 2 {
			t.Errorf("%s: exit code %d, stderr %q\n%s", line, code, errs, out)
		}
	}
}

// privileged are commands that need a role, with arguments that would work for the right caller.
var privileged = [][]string{
	{"status"},
	{"users", "list"},
	{"users", "show", "kay"},
	{"users", "add", "--ucloud-name", "Mary#1", "--local-name", "lee"},
	{"users", "expire", "kay"},
	{"users", "remove", "kay", "--purge"},
	{"tickets", "list"},
	{"tickets", "approve", "TICKET", "--local-name", "lee"},
	{"connect", "TICKET", "lee"},
	{"tickets", "reject", "TICKET"},
	{"instances", "list"},
	{"instances", "stop", "--all"},
	{"instances", "restart", "--all"},
	{"drives", "list"},
	{"slurm-accounts", "add", "--local-name", "kay", "--category", "cpu", "--account-name", "x"},
	{"slurm-accounts", "evaluate", "--local-name", "kay", "--category", "cpu"},
	{"projects", "list"},
	{"slurm-accounts", "list"},
	{"slurm", "accounts", "re-evaluate", "--category", "cpu"},
	{"slurm-accounts", "adopt", "--category", "cpu"},
	{"allocations", "list"},
	{"allocations", "apply", "--ucloud-name", "Alice#1234"},
	{"projects", "map", "--ucloud-id", "x", "--local-id", "5"},
	{"projects", "remove", "x", "--force"},
	{"keys", "list", "--all"},
	{"keys", "revoke", "--user", "Alice#1234"},
	{"scripts", "test"},
	{"scripts", "run", "onUserConnected", "--input", "REQUEST"},
	{"gateway", "dump"},
	{"gateway", "dump", "--tokens"},
	{"config", "reload"},
	{"config", "diff"},
	{"setup", "sudoers", "--apply"},
	{"setup", "directories", "--apply"},
	{"setup", "systemd", "--apply"},
}

func TestPrivilegedCommandsAreRefused(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := testWorld(t)
	tk := connected(t, w)
	for _, args := range privileged {
		args := append([]string{"--yes"}, args...)
		for i := range args {
			switch args[i] {
			case "TICKET":
				args[i] = tk
			case "REQUEST":
				args[i] = w.scriptRequest()
			}
		}
		for _, uid := range []ident.UID{uidNobody, uidKay} { // kay is connected, which gives no role
			code, out, err := w.as(uid, args...)
			if err != nil {
				t.Fatal(err)
			}
			if code != ExitPermission {
				t.Errorf("uid %d, %q: exit code %d\n%s", uid, args, code, out)
			}
		}
	}
	if ms, err := w.users.Mappings(t.Context()); err != nil || len(ms) != 1 || ms[0].State != store.MappingActive {
		t.Errorf("something was changed: %+v, %v", ms, err)
	}
}

// connected connects kay with Alice and gives an open ticket of Mary.
func connected(t *testing.T, w *world) (openTicket string) {
	t.Helper()
	tk, err := w.begin("Alice#1234")
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errs := w.run(t, nil, "connect", tk, "kay", "--yes"); code != ExitOK {
		t.Fatalf("connect: %d %s", code, errs)
	}
	if openTicket, err = w.begin("Mary#1"); err != nil {
		t.Fatal(err)
	}
	return openTicket
}

// connectedWithKey connects kay with Alice by a browser that has a signing key.
func connectedWithKey(t *testing.T, w *world) {
	t.Helper()
	tk, fingerprint, err := w.beginWithKey(t.Context(), "Alice#1234")
	if err != nil {
		t.Fatal(err)
	}
	if code, out, errs := w.run(t, nil, "connect", tk, "kay", "--key", fingerprint, "--yes"); code != ExitOK || !strings.Contains(out, fingerprint) {
		t.Fatalf("connect: %d %s%s", code, out, errs)
	}
}

// TestDryRunsChangeNothing runs every change with --dry-run and compares the database before and after (contract 41
// section 8.4).
func TestDryRunsChangeNothing(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	tk := connected(t, w)
	connectedWithKey(t, w)
	w.instances.set(launcher.Info{User: "Alice#1234", LocalName: "kay", UID: uidKay, PID: 7, State: "running"})
	state := func() (out []any) {
		t.Helper()
		if err := w.store.View(t.Context(), func(tx *store.Tx) error {
			mappings, err1 := tx.MappingHistory()
			tickets, err2 := tx.Tickets()
			queue, err3 := tx.OutboxAll()
			keys, err4 := tx.SigningKeys("", 100)
			out = []any{mappings, tickets, queue, keys}
			return errors.Join(err1, err2, err3, err4)
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := state()
	for _, args := range [][]string{
		{"users", "add", "--ucloud-name", "Mary#1", "--local-name", "lee"},
		{"users", "expire", "kay"},
		{"users", "remove", "kay"},
		{"users", "remove", "kay", "--purge"},
		{"tickets", "approve", tk, "--local-name", "lee"},
		{"tickets", "reject", tk},
		{"connect", tk, "lee"},
		{"instances", "stop", "--all"},
		{"instances", "restart", "--all"},
		{"config", "reload"},
		{"keys", "revoke", "--user", "Alice#1234"},
		{"scripts", "test", "driveLocator"},
		{"scripts", "run", "onUserConnected", "--input", w.scriptRequest()},
	} {
		if code, out, errs := w.run(t, nil, append(args, "--dry-run")...); code != ExitOK {
			t.Errorf("%q: exit code %d\n%s%s", args, code, out, errs)
		}
		if diff := cmp.Diff(before, state()); diff != "" {
			t.Fatalf("%q changed something:\n%s", args, diff)
		}
	}
	if w.scriptsHaveRun() {
		t.Error("a script was called")
	}
	if n := w.instances.changes(); n != 0 {
		t.Errorf("%d instances were stopped or restarted", n)
	}
}

// TestOutputsMatchTheirSchemas validates what commands print against what "ucloud schema" says (contract 41 section 8.6).
func TestOutputsMatchTheirSchemas(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	tk := connected(t, w)
	connectedWithKey(t, w)
	w.instances.set(launcher.Info{User: "Alice#1234", LocalName: "kay", UID: uidKay, PID: 7, State: "running"})
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		p := providerapi.Project{ID: "p-1", Status: providerapi.ProjectStatus{Members: []providerapi.ProjectMember{{Username: "Alice#1234", Role: "PI"}}}}
		p.Specification.CanConsumeResources = true
		if _, _, err := tx.PutProject(store.Project{ID: p.ID, Document: p}); err != nil {
			return err
		}
		if _, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{User: "Alice#1234"}, Category: "disk", CombinedQuota: 10, LastUpdate: time.Now()}); err != nil {
			return err
		}
		return tx.PutDrive(store.Drive{ProviderGeneratedID: "x", Owner: ident.Owner{User: "Alice#1234"}, Title: "Home", Path: "/home/kay", State: store.DriveDesired, UpdatedAt: time.Now()})
	}); err != nil {
		t.Fatal(err)
	}
	tried := map[string]bool{}
	// These have servers of their own.
	jobs, _ := jobWorld(t)
	tasks, _ := taskWorld(t)
	scripts := scriptWorld(t)
	apart := map[string]func(...string) (int, string, string){"jobs": jobs, "tasks": tasks, "scripts list": scripts, "scripts show": scripts}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"jobs list", []string{"jobs", "list"}},
		{"jobs show", []string{"jobs", "show", "9"}},
		{"jobs explain", []string{"jobs", "explain", "9"}},
		{"jobs cancel", []string{"jobs", "cancel", "9", "--yes"}},
		{"jobs resync", []string{"jobs", "resync", "9"}},
		{"jobs register", []string{"jobs", "register", "710", "--yes"}},
		{"tasks list", []string{"tasks", "list"}},
		{"tasks cancel", []string{"tasks", "cancel", "3", "--yes"}},
		{"scripts list", []string{"scripts", "list"}},
		{"scripts show", []string{"scripts", "show", "1"}},
		{"scripts test", []string{"scripts", "test"}},
		{"scripts run", []string{"scripts", "run", "driveLocator", "--input", w.scriptRequest(), "--yes"}},
		{"users list", []string{"users", "list"}},
		{"users show", []string{"users", "show", "kay"}},
		{"tickets list", []string{"tickets", "list"}},
		{"instances list", []string{"instances", "list"}},
		{"instances stop", []string{"instances", "stop", "kay", "--yes"}},
		{"instances restart", []string{"instances", "restart", "kay", "--yes"}},
		{"drives list", []string{"drives", "list"}},
		{"projects map", []string{"projects", "map", "--ucloud-id", "p-1", "--local-name", "reef", "--yes"}},
		{"projects list", []string{"projects", "list"}},
		{"slurm-accounts list", []string{"slurm-accounts", "list"}},
		{"slurm-accounts re-evaluate", []string{"slurm", "accounts", "re-evaluate", "--category", "cpu", "--yes"}},
		{"slurm-accounts adopt", []string{"slurm-accounts", "adopt", "--category", "cpu", "--yes"}},
		{"slurm-accounts add", []string{"slurm-accounts", "add", "--local-name", "kay", "--category", "cpu", "--account-name", "physics", "--yes"}},
		{"slurm-accounts remove", []string{"slurm-accounts", "rm", "--category", "cpu", "--yes"}},
		{"slurm-accounts sync", []string{"slurm-accounts", "sync", "--category", "cpu", "--yes"}},
		{"slurm-accounts evaluate", []string{"slurm-accounts", "evaluate", "--owner", "kay", "--category", "cpu"}},
		{"allocations list", []string{"allocations", "list"}},
		{"allocations apply", []string{"allocations", "apply", "--category", "disk", "--yes"}},
		{"projects show", []string{"projects", "show", "p-1"}},
		{"projects remove", []string{"projects", "remove", "p-1", "--force", "--yes"}},
		{"gateway dump", []string{"gateway", "dump"}},
		{"service status", []string{"status"}},
		{"version show", []string{"version"}},
		{"intents report", []string{"intents", "report", "--all"}},
		{"me show", []string{"me"}},
		{"doctor run", []string{"doctor", "--check", "service"}},
		{"config check", []string{"config", "check", "--static", "/nonexistent"}},
		{"config reload", []string{"config", "reload"}},
		{"config diff", []string{"config", "diff"}},
		{"apps list", []string{"apps", "list"}},
		{"apps render", []string{"apps", "render", "interactive-shell"}},
		{"keys list", []string{"keys", "list", "--all"}},
		{"keys revoke", []string{"keys", "revoke", "--user", "Alice#1234", "--yes"}},
		{"tickets reject", []string{"tickets", "reject", "zzzzzzzz", "--yes"}},
		{"connect other", []string{"connect", tk, "lee", "--yes", "--dry-run"}},
		{"tickets approve", []string{"tickets", "approve", tk, "--local-name", "lee", "--yes"}},
		{"users expire", []string{"users", "expire", "lee", "--yes"}},
		{"users add", []string{"users", "add", "--ucloud-name", "Mary#1", "--local-name", "lee", "--yes"}},
		{"users remove", []string{"users", "remove", "kay", "--yes"}},
		{"users change", []string{"users", "change", "lee", "--local-name", "kay", "--yes"}},
	} {
		tried[tc.name] = true
		s := schemaOf(t, w, tc.name)
		var out, errs string
		run := apart[tc.args[0]]
		if run == nil {
			run = apart[tc.name]
		}
		if run != nil {
			_, out, errs = run(append(tc.args, "--json")...)
		} else {
			_, out, errs = w.run(t, nil, append(tc.args, "--json")...)
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(out))
		if err != nil {
			t.Errorf("%s: not JSON: %v\n%s%s", tc.name, err, out, errs)
			continue
		}
		if err := s.Validate(doc); err != nil {
			t.Errorf("%s: %v\n%s", tc.name, err, out)
		}
	}
	for name := range documents() {
		if self := name == "connect self" || strings.HasPrefix(name, "me "); !tried[name] && !self {
			t.Errorf("%s is not tried", name)
		}
	}
}

func schemaOf(t *testing.T, w *world, name string) *jsonschema.Schema {
	t.Helper()
	code, out, errs := w.run(t, nil, append([]string{"schema"}, strings.Fields(name)...)...)
	if code != ExitOK {
		t.Fatalf("schema %s: %s", name, errs)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

func TestHungAndDyingServers(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	w.mu.Lock()
	w.hang = true
	w.mu.Unlock()
	if code, _, errs := w.run(t, nil, "status", "--timeout", "100ms"); code != ExitTimeout || !strings.Contains(errs, "--timeout") {
		t.Errorf("hung: exit code %d, %s", code, errs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	interrupted, stop := context.WithCancel(t.Context())
	context.AfterFunc(ctx, stop)
	if code := Run(interrupted, []string{"--socket", w.socket, "status"}, func(string) string { return "" }, nil, io.Discard, io.Discard, Hooks{}); code != ExitInterrupted {
		t.Errorf("interrupted: exit code %d", code)
	}

	// A server that goes away in the middle of a call.
	path := testSocketDir(t) + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	})
	gone := &world{socket: path}
	if code, _, errs := gone.run(t, nil, "status"); code != ExitTemporary || !strings.Contains(errs, "ended the connection") {
		t.Errorf("server went away: exit code %d, %s", code, errs)
	}
}

// testSocketDir is a directory with a short path: those of tests may be too long for a socket.
func testSocketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestOtherProtocolVersions(t *testing.T) {
	t.Parallel()
	dir := testSocketDir(t)
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Viewer: true}, nil }})
	ipc.Handle(srv, ipcapi.ServiceVersion, func(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.VersionInfo, error) {
		return ipcapi.VersionInfo{Protocol: ipcapi.Protocol + 1, Version: "2.0"}, nil
	})
	l, err := ipc.Listen(dir + "/s")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ctx, l) })
	defer wg.Wait()
	defer cancel()
	w := &world{socket: dir + "/s"}
	if code, _, errs := w.run(t, nil, "users", "list"); code != ExitUnreachable || !strings.Contains(errs, "1.2.3") || !strings.Contains(errs, "2.0") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestForeignServersAreNotTrusted(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	a := &app{
		hooks: Hooks{Now: time.Now}, getenv: func(string) string { return "" }, stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard,
		serverUID: func(ident.UID) bool { return false },
	}
	if code := a.run(t.Context(), []string{"--socket", w.socket, "users", "list"}); code != ExitUnreachable {
		t.Fatalf("exit code %d", code)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), ExitFailed},
		{usagef("x"), ExitUsage},
		{failure.New(failure.NotFound, "x"), ExitNoMatch},
		{failure.New(failure.Conflict, "x"), ExitConflict},
		{failure.New(failure.Forbidden, "x"), ExitPermission},
		{&failure.Error{Kind: failure.Forbidden, Why: "x", Code: ipcapi.CodePolicy}, ExitPolicy},
		{failure.New(failure.Unavailable, "x"), ExitTemporary},
		{failure.New(failure.TooMany, "x"), ExitTemporary},
		{failure.New(failure.Internal, "x"), ExitFailed},
		{fmt.Errorf("call: %w", context.DeadlineExceeded), ExitTimeout},
		{context.Canceled, ExitInterrupted},
		{failure.Wrap(ipc.ErrDisconnected, failure.Unavailable, "x"), ExitTemporary},
		{&os.PathError{Op: "write", Err: syscall.EPIPE}, ExitFailed},
		{config.Problems{{Severity: config.Error}}, ExitConfig},
	} {
		if got := classify(t.Context(), tc.err).code; got != tc.want {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestReportsOfBulkChanges(t *testing.T) {
	t.Parallel()
	ok := ipcapi.MutationResult{Key: "a", Status: ipcapi.ResultOK}
	missing := ipcapi.MutationResult{Key: "b", Status: ipcapi.ResultFailed, Error: &ipcapi.MutationError{Status: 404, Message: "gone"}}
	for _, tc := range []struct {
		results []ipcapi.MutationResult
		want    int
	}{
		{nil, ExitOK},
		{[]ipcapi.MutationResult{ok, ok}, ExitOK},
		{[]ipcapi.MutationResult{ok, missing}, ExitPartial},
		{[]ipcapi.MutationResult{missing, missing}, ExitFailed},
		{[]ipcapi.MutationResult{missing}, ExitNoMatch},
	} {
		a := &app{stdout: io.Discard, stderr: io.Discard}
		code := ExitOK
		if err := a.mutated("users", "remove", "ucloudName", "removed", ipcapi.MutationReport{Results: tc.results}); err != nil {
			code = classify(t.Context(), err).code
		}
		if code != tc.want {
			t.Errorf("%d results: exit code %d, want %d", len(tc.results), code, tc.want)
		}
	}
}

// TestNoTerminalEscapes looks for what other people's texts could do to a terminal.
func TestNoTerminalEscapes(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	w.setPart("core", func(p *ipcapi.StatusPart) {
		p.Summary = "a\x1b]0;title\x07\x1b[2Jb\r\nc\u202e\u0085"
		p.Facts = []ipcapi.Fact{{Name: "lag", Value: "\x1b[31m"}}
	})
	for _, args := range [][]string{{"status", "-v"}, {"doctor", "--check", "service"}} {
		_, out, errs := w.run(t, nil, args...)
		if !strings.Contains(out, "title") {
			t.Fatalf("%q does not show the text: %s", args, out)
		}
		for _, r := range out + errs {
			if r != '\n' && r != '\t' && (unicode.IsControl(r) || r == '\u202e') {
				t.Errorf("%q prints %U", args, r)
			}
		}
	}
	w.instances.set(launcher.Info{User: "x\x1b[2J#1", LocalName: "kay", State: "running"})
	for _, format := range []string{"table", "wide", "csv", "name"} {
		_, out, errs := w.run(t, nil, "instances", "list", "-o", format)
		if strings.ContainsRune(out+errs, '\x1b') || !strings.Contains(out, "[2J#1") {
			t.Errorf("%s: %q", format, out)
		}
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		expr  string
		regex bool
		yes   []string
		no    []string
	}{
		{"Alice#1", false, []string{"Alice#1"}, []string{"alice#1", "Alice#12", ""}},
		{"A*", false, []string{"A", "Alice#1", "A/b[c]"}, []string{"BA"}},
		{"?b", false, []string{"ab"}, []string{"b", "aab"}},
		{"a.c*", false, []string{"a.cd"}, []string{"abcd"}},
		{"/^a.c$/", false, []string{"abc"}, []string{"abcd"}},
		{"b", true, []string{"abc"}, []string{"ac"}},
		{"/", false, []string{"/"}, []string{""}},
	} {
		ok, err := matcher(tc.expr, tc.regex)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range tc.yes {
			if !ok(s) {
				t.Errorf("%q does not match %q", tc.expr, s)
			}
		}
		for _, s := range tc.no {
			if ok(s) {
				t.Errorf("%q matches %q", tc.expr, s)
			}
		}
	}
	if _, err := matcher("/(/", false); err == nil {
		t.Error("a broken expression was accepted")
	}
}

func TestParseMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2031, 2, 3, 9, 0, 0, 0, time.UTC)
	got := map[string]string{}
	want := map[string]string{
		"2031-03-01T10:00:00Z": "2031-03-01T10:00:00Z", "2031-03-01": "2031-03-01T00:00:00Z", "2031-03-01 08:30": "2031-03-01T08:30:00Z",
		"30d": "2031-03-05T09:00:00Z", "90m": "2031-02-03T10:30:00Z", "0d": "2031-02-03T09:00:00Z",
		"": "error", "soon": "error", "-3h": "error", "-3d": "error", "99999999d": "error", "3": "error", "2031-13-01": "error",
	}
	for in := range want {
		at, err := parseMoment(in, now)
		if err != nil {
			got[in] = "error"
			continue
		}
		got[in] = at.Format(time.RFC3339)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSuggestions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"ucloud-name", "ucloud-nam", true},
		{"limit", "limti", true},
		{"limit", "limits", true},
		{"limit", "lxmit", true},
		{"limit", "sort", false},
		{"a", "bc", false},
	} {
		if oneEdit(tc.a, tc.b) != tc.want || oneEdit(tc.b, tc.a) != tc.want {
			t.Errorf("%q and %q: %v", tc.a, tc.b, !tc.want)
		}
	}
}

func TestJSONErrors(t *testing.T) {
	t.Parallel()
	w := &world{socket: "/nonexistent/s"}
	for _, args := range [][]string{{"users", "list", "--json"}, {"--json", "nothing"}, {"users", "show", "-o", "jsonl"}} {
		code, out, errs := w.run(t, nil, args...)
		var doc struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(errs), &doc); err != nil || doc.Error.Code == "" || doc.Error.Message == "" || out != "" || code == 0 {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	defer wr.Close()
	var errs bytes.Buffer
	code := Run(t.Context(), []string{"--socket", w.socket, "status"}, func(string) string { return "" }, nil, wr, &errs, Hooks{})
	if code != ExitFailed || errs.Len() != 0 {
		t.Fatalf("exit code %d, %s", code, errs.String())
	}
}
