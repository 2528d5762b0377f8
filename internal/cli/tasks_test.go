package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

// taskWorld is a server with four tasks. cancelled gets what it is asked for.
func taskWorld(t *testing.T) (run func(args ...string) (code int, stdout, stderr string), cancelled func() []ipcapi.TaskMutation) {
	t.Helper()
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	infos := []ipcapi.TaskInfo{
		{ID: 4, UID: 1004, User: "Bob#2", Kind: "trash", Title: "Emptying trash", State: "succeeded", Progress: "9 files removed", Percent: 100, CreatedAt: now.Add(-time.Hour)},
		{ID: 3, CoreID: 77, UID: 1003, LocalName: "alice", User: "Alice#1", Kind: "copy", Title: "Copying \x1b[31mx", State: "running", Body: "1 / 2 files", Progress: "3 MB/s", Percent: 50, Attempt: 2, Connected: true, CreatedAt: now.Add(-3 * time.Minute)},
		{ID: 2, UID: 1003, LocalName: "alice", User: "Alice#1", Kind: "transfer", Title: "Transferring", State: "running", Wanted: "suspended", Percent: -1, CreatedAt: now.Add(-50 * time.Hour)},
		{ID: 1, UID: 1004, User: "Bob#2", Kind: "copy", Title: "Copying y", State: "queued", Percent: -1, CreatedAt: now.Add(-9 * time.Second)},
	}
	var mu sync.Mutex
	var asked []ipcapi.TaskMutation
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Operator: true}, nil }})
	ipc.Handle(srv, ipcapi.ServiceVersion, func(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.VersionInfo, error) {
		return ipcapi.VersionInfo{Protocol: ipcapi.Protocol}, nil
	})
	ipc.HandleStream(srv, ipcapi.TaskList, func(_ context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.TaskPage, ...*os.File) error) error {
		return send(ipcapi.TaskPage{Items: infos})
	})
	ipc.Handle(srv, ipcapi.TaskCancel, func(_ context.Context, _ *ipc.Request, req ipcapi.TaskMutation) (rep ipcapi.MutationReport, err error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, req)
		for _, id := range req.IDs {
			r := ipcapi.MutationResult{Key: strconv.FormatInt(id, 10), Status: ipcapi.ResultOK}
			if id == 2 && !req.DryRun {
				r.Status, r.Error = ipcapi.ResultFailed, &ipcapi.MutationError{Status: 503, Message: "The work has not ended yet"}
			}
			rep.Results = append(rep.Results, r)
		}
		return rep, nil
	})
	socket := t.TempDir() + "/s"
	l, err := ipc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	run = func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		a := &app{
			hooks: Hooks{Now: func() time.Time { return now }}, getenv: func(string) string { return "" }, stdin: strings.NewReader(""),
			stdout: &out, stderr: &errs, serverUID: func(ident.UID) bool { return true },
		}
		code := a.run(t.Context(), append([]string{"--socket", socket, "--timeout", testkit.Patience.String()}, args...))
		return code, out.String(), errs.String()
	}
	return run, func() []ipcapi.TaskMutation { mu.Lock(); defer mu.Unlock(); all := asked; asked = nil; return all }
}

func TestTasksList(t *testing.T) {
	t.Parallel()
	run, _ := taskWorld(t)
	for _, tc := range []struct {
		args string
		want string
	}{
		{"", "3 2 1"},
		{"--ended", "4 3 2 1"},
		{"--state succeeded", "4"},
		{"--user alice", "3 2"},
		{"--user 1004", "1"},
		{"--ucloud-name Bob#2 --ended", "4 1"},
		{"--type copy", "3 1"},
		{"--sort age", "1 3 2"},
		{"--sort id", "1 2 3"},
		{"--type /^tra/", "2"},
	} {
		code, out, errs := run(append([]string{"tasks", "ls", "-o", "name"}, strings.Fields(tc.args)...)...)
		if got := strings.Join(strings.Fields(out), " "); code != ExitOK || got != tc.want || errs != "" {
			t.Errorf("%s: %d %q, want %q; %s", tc.args, code, got, tc.want, errs)
		}
	}
	_, out, _ := run("tasks", "list", "--no-header")
	want := "3\talice\tAlice#1\tcopy\trunning\tCopying ?[31mx\t50 %, 1 / 2 files\t3 MB/s\t3 min\n" +
		"2\talice\tAlice#1\ttransfer\trunning (to be suspended)\tTransferring\t\t\t2 d\n" +
		"1\t1004\tBob#2\tcopy\tqueued\tCopying y\t\t\t9 s\n"
	if out != want {
		t.Errorf("list:\n%s\nwant:\n%s", out, want)
	}
	if code, _, _ := run("tasks", "list", "--sort", "nothing"); code != ExitUsage {
		t.Errorf("a wrong column: %d", code)
	}
	var doc envelope[ipcapi.TaskInfo]
	if _, out, _ = run("tasks", "list", "--json"); json.Unmarshal([]byte(out), &doc) != nil || doc.Schema != "ucloud.cli/tasks.list/1" || doc.Total != 3 {
		t.Errorf("%s", out)
	}
}

func TestTasksCancel(t *testing.T) {
	t.Parallel()
	run, cancelled := taskWorld(t)
	for _, tc := range []struct {
		args string
		code int
		want string // what the server is asked for
	}{
		{"cancel --yes 3", ExitOK, "[{[3]  false}]"},
		{"cancel --yes 3 1 --reason full", ExitOK, "[{[3 1] full false}]"},
		{"cancel --yes --user alice", ExitPartial, "[{[3 2]  false}]"},
		{"cancel --yes 2", ExitTemporary, "[{[2]  false}]"},
		{"cancel --dry-run --all", ExitOK, "[{[3 2 1]  true}]"},
		{"kill-all", ExitPartial, "[{[3 2 1]  false}]"},
		{"kill-all --dry-run", ExitOK, "[{[3 2 1]  true}]"},
		{"cancel --all", ExitUsage, "[]"},      // nobody to ask
		{"cancel --yes", ExitUsage, "[]"},      // nothing named
		{"cancel --yes 4", ExitNoMatch, "[]"},  // has ended
		{"cancel --yes 99", ExitNoMatch, "[]"}, // there is none
		{"cancel --yes 3 --all", ExitUsage, "[]"},
	} {
		code, out, errs := run(append([]string{"tasks"}, strings.Fields(tc.args)...)...)
		if got := fmt.Sprint(cancelled()); code != tc.code || got != tc.want {
			t.Errorf("%s: exit %d, want %d; asked %s, want %s\n%s%s", tc.args, code, tc.code, got, tc.want, out, errs)
		}
	}
}
