package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/scripts/scriptlog"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

// scriptWorld is a server with three calls: a success now, a failure two hours ago and a time-out three days ago.
func scriptWorld(t *testing.T) func(args ...string) (code int, stdout, stderr string) {
	t.Helper()
	l := scriptlog.New(storetest.SQLite(t), nil, nil)
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	code := 3
	for _, e := range []scripts.Entry{
		{Hook: scripts.HookUsage, StartedAt: now.Add(-72 * time.Hour), Result: "timeout", Signal: "SIGKILL", Owner: ident.Owner{Project: "p-1"}, Request: "{}"},
		{
			Hook: scripts.HookQuotaUpdated, StartedAt: now.Add(-2 * time.Hour), Result: "failed", Exit: &code, Message: "disk is away", Path: "/opt/q",
			Owner: ident.Owner{User: "Alice#1"}, Request: `{"drive":1}`, Stdout: "o\x1b[2J\nx", Stderr: "needle\n", StdoutBytes: 9, FileHash: "abc",
		},
		{Hook: scripts.HookQuotaUpdated, StartedAt: now.Add(-time.Minute), Result: "ok", Exit: new(int), Path: "/opt/q"},
	} {
		e.UID, e.Attempt, e.Duration, e.Invocation = 990, 2, 1500*time.Millisecond, "inv"
		l.RecordScript(t.Context(), e)
	}
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Viewer: true}, nil }})
	ipc.Handle(srv, versionCall, func(context.Context, *ipc.Request, struct{}) (map[string]int, error) {
		return map[string]int{"protocol": 1}, nil
	})
	l.Register(srv)
	path := testkit.PrivateDir(t) + "/s"
	listener, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ctx, listener)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		h := testHooks(func(string) func(context.Context, RoleOptions) error { return nil })
		h.Now = func() time.Time { return now }
		code := Run(t.Context(), append([]string{"--socket", path}, args...), func(string) string { return "" }, strings.NewReader(""), &out, &errs, h)
		return code, out.String(), errs.String()
	}
}

// versionCall is service.version with the least that a client looks at.
var versionCall = ipc.Call[struct{}, map[string]int]{Name: "service.version", Access: ipc.AccessAnyone}

func TestScriptsList(t *testing.T) {
	t.Parallel()
	run := scriptWorld(t)
	for _, tc := range []struct {
		args []string
		want string // ids
	}{
		{nil, "3 2 1"},
		{[]string{"--failures"}, "2 1"},
		{[]string{"--hook", "onQuota*"}, "3 2"},
		{[]string{"--script", "/opt/q", "--failures"}, "2"},
		{[]string{"--user", "Alice#1"}, "2"},
		{[]string{"--user", "p-1"}, "1"},
		{[]string{"--exit-code", "3"}, "2"},
		{[]string{"--exit-code", "SIGKILL"}, "1"},
		{[]string{"--result", "timeout"}, "1"},
		{[]string{"--query", "NEEDLE"}, "2"},
		{[]string{"--query", "n(eedle"}, ""},
		{[]string{"--since", "1d"}, "3 2"},
		{[]string{"--since", "2031-05-06T07:00:00Z"}, "3"},
		{[]string{"--after-relative", "90m"}, "3"},
		{[]string{"--until", "1h", "--since", "4d"}, "2 1"},
		{[]string{"--limit", "1"}, "3"},
	} {
		code, out, errs := run(append([]string{"scripts", "ls", "-o", "name"}, tc.args...)...)
		if got := strings.Join(strings.Fields(out), " "); code != ExitOK || got != tc.want {
			t.Errorf("%q: %d, %q, %s", tc.args, code, got, errs)
		}
	}
	for _, bad := range [][]string{{"--since", "yesterday"}, {"--until", "x"}, {"--sort", "nothing"}, {"--hook", "/(/"}} {
		if code, _, _ := run(append([]string{"scripts", "list"}, bad...)...); code != ExitUsage {
			t.Errorf("%q: exit code %d", bad, code)
		}
	}
	_, out, _ := run("scripts", "list", "--json", "--query", "needle")
	var doc envelope[map[string]any]
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Schema != "ucloud.cli/scripts.list/1" || doc.Total != 1 || doc.Items[0]["stderr"] != nil || doc.Items[0]["exit"] != 3.0 {
		t.Errorf("%s, %v", out, err)
	}
}

func TestScriptsShow(t *testing.T) {
	t.Parallel()
	run := scriptWorld(t)
	code, out, errs := run("scripts", "get", "2")
	for _, part := range []string{"disk is away", "exit\t3", "Alice#1", "sha256\tabc", "duration\t1.5s", "--- request\n{\"drive\":1}\n", "--- stdout\no?[2J\nx\n", "--- stderr\nneedle\n"} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not in\n%s", part, out)
		}
	}
	if code != ExitOK || strings.Contains(out, "\x1b") {
		t.Errorf("%d %s %q", code, errs, out)
	}
	if _, out, _ := run("scripts", "show", "2", "--stderr"); out != "needle\n" {
		t.Errorf("%q", out)
	}
	if _, out, _ := run("scripts", "show", "2", "--json"); !strings.Contains(out, `"invocation":"inv"`) {
		t.Error(out)
	}
	if code, _, errs := run("scripts", "show", "99"); code != ExitNoMatch || !strings.Contains(errs, "no call of a script") {
		t.Errorf("%d %s", code, errs)
	}
	if code, _, _ := run("scripts", "show", "x"); code != ExitUsage {
		t.Errorf("%d", code)
	}
}
