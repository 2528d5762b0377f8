package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// jobWorld is a server with five jobs.
func jobWorld(t *testing.T) (run func(args ...string) (code int, stdout, stderr string), asked func() string) {
	t.Helper()
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	info := func(id, engine, user, submission string, state providerapi.JobState) ipcapi.JobInfo {
		j := ipcapi.JobInfo{LocalName: user, Partition: "normal", Category: "cpu", Product: "cpu-4", Submission: submission, CreatedAt: now.Add(-time.Hour), Name: "x\x1b[31m"}
		j.ID, j.EngineID, j.State, j.UID, j.CreatedBy, j.Account, j.Replicas = id, engine, state, 1003, "Ada#1", "acc", 1
		j.Application = providerapi.ApplicationReference{Name: "gromacs", Version: "1"}
		j.Nodes = []string{"c1", "c2"}
		return j
	}
	infos := []ipcapi.JobInfo{
		info("9", "700", "ada", "submitted", providerapi.JobRunning), info("10", "701", "bob", "submitted", providerapi.JobInQueue),
		info("11", "702", "ada", "submitted", providerapi.JobFailure), info("12", "", "ada", "begun", providerapi.JobInQueue),
		info("13", "703", "bob", "submitted", providerapi.JobRunning),
	}
	infos[4].Application.Name = "unknown"
	infos[0].Document = []byte(`{"id":"9"}`)
	var mu sync.Mutex
	var log []string
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Operator: true}, nil }})
	ipc.Handle(srv, ipcapi.ServiceVersion, func(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.VersionInfo, error) {
		return ipcapi.VersionInfo{Protocol: ipcapi.Protocol}, nil
	})
	ipc.HandleStream(srv, ipcapi.JobList, func(_ context.Context, _ *ipc.Request, q ipcapi.JobListRequest, send func(ipcapi.JobPage, ...*os.File) error) error {
		var page ipcapi.JobPage
		for _, j := range infos {
			if q.ID == "" && (q.All || j.Submission == "begun" || !j.State.Final()) || q.ID != "" && (j.ID == q.ID || j.EngineID == q.ID) {
				page.Jobs = append(page.Jobs, j)
			}
		}
		return send(page)
	})
	mutate := func(verb string) func(context.Context, *ipc.Request, ipcapi.JobMutation) (ipcapi.MutationReport, error) {
		return func(_ context.Context, _ *ipc.Request, q ipcapi.JobMutation) (rep ipcapi.MutationReport, err error) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprint(verb, q.IDs, q.Reason, q.DryRun))
			for _, id := range q.IDs {
				rep.Results = append(rep.Results, ipcapi.MutationResult{Key: id, Status: ipcapi.ResultOK})
			}
			return rep, nil
		}
	}
	ipc.Handle(srv, ipcapi.JobCancel, mutate("cancel"))
	ipc.Handle(srv, ipcapi.JobResync, mutate("resync"))
	ipc.Handle(srv, ipcapi.JobRegister, mutate("register"))
	ipc.Handle(srv, ipcapi.JobExplain, func(_ context.Context, _ *ipc.Request, q ipcapi.JobQuestion) (ipcapi.JobExplanation, error) {
		x := ipcapi.JobExplanation{ID: q.ID, Jobs: []ipcapi.JobInfo{}, Notes: []string{"Slurm lets it wait: \x1b[31mno room"}}
		switch {
		case q.Slurm:
			x.Slurm = &ipcapi.SlurmJob{ID: q.ID, User: "bob", Account: "physics", Partition: "normal", State: "PENDING", NodeCount: 2, CPUs: 8, LimitMs: 3_600_000}
		case q.ID == "9":
			x.Jobs = infos[:1]
		default:
			return x, failure.New(failure.NotFound, "Neither UCloud nor Slurm has a job %s", q.ID)
		}
		return x, nil
	})
	ipc.HandleStream(srv, ipcapi.SlurmAccountList, func(_ context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.SlurmAccountPage, ...*os.File) error) error {
		limit := int64(6000)
		return send(ipcapi.SlurmAccountPage{Items: []ipcapi.SlurmAccountInfo{{Project: "p-1", Account: "physics", UsedMinutes: 5999, WantedMinutes: &limit, WantedLock: true}}})
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
	return run, func() string { mu.Lock(); defer mu.Unlock(); all := strings.Join(log, ";"); log = nil; return all }
}

func TestJobsList(t *testing.T) {
	t.Parallel()
	run, _ := jobWorld(t)
	for args, want := range map[string]string{
		"": "9 10 12 13", "--all": "9 10 11 12 13", "--state FAILURE": "11", "--local-user ada": "9 12", "--slurm-id 702": "11",
		"--external": "13", "--sort id": "9 10 12 13", "--nodes /c2/ --state RUNNING": "9 13", "--application gromacs --all": "9 10 11 12",
	} {
		code, out, errs := run(append([]string{"jobs", "ls", "-o", "name"}, strings.Fields(args)...)...)
		if got := strings.Join(strings.Fields(out), " "); code != ExitOK || got != want || errs != "" {
			t.Errorf("%s: %d %q, want %q; %s", args, code, got, want, errs)
		}
	}
	_, out, _ := run("jobs", "list", "--no-header", "--ucloud-id", "9")
	if want := "9\t700\tada\t\tRUNNING\t\tgromacs 1\tnormal\t60 min\n"; out != want && !strings.HasPrefix(out, "9\t700\tada\t\tRUNNING\t\tgromacs 1\tnormal\t1 h") {
		t.Errorf("%q, want %q", out, want)
	}
	var doc envelope[ipcapi.JobInfo]
	if _, out, _ = run("jobs", "list", "--json"); json.Unmarshal([]byte(out), &doc) != nil || doc.Schema != "ucloud.cli/jobs.list/1" || doc.Total != 4 {
		t.Errorf("%s", out)
	}
}

func TestJobsShow(t *testing.T) {
	t.Parallel()
	run, _ := jobWorld(t)
	for _, id := range []string{"9", "700"} {
		code, out, _ := run("jobs", "show", id, "--verbose")
		if code != ExitOK || !strings.Contains(out, "9 x?[31m") || !strings.Contains(out, "c1, c2") || !strings.Contains(out, `"id": "9"`) {
			t.Errorf("%d %q", code, out)
		}
	}
	if code, _, _ := run("jobs", "get", "99"); code != ExitNoMatch {
		t.Errorf("no such job: %d", code)
	}
	var doc itemEnvelope[ipcapi.JobInfo]
	if _, out, _ := run("jobs", "show", "9", "--json"); json.Unmarshal([]byte(out), &doc) != nil || doc.Item.EngineID != "700" {
		t.Errorf("%s", out)
	}
}

func TestJobsChange(t *testing.T) {
	t.Parallel()
	run, asked := jobWorld(t)
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"cancel --yes 9", ExitOK, "cancel[9]false"},
		{"cancel --yes 701 --reason full", ExitOK, "cancel[10]fullfalse"},
		{"cancel --yes --local-user bob", ExitOK, "cancel[10 13]false"},
		{"cancel --dry-run --all", ExitOK, "cancel[9 10 13]true"},
		{"cancel --all", ExitUsage, ""},      // nobody to ask
		{"cancel --yes", ExitUsage, ""},      // nothing named
		{"cancel --yes 11", ExitNoMatch, ""}, // has ended
		{"cancel --yes 12", ExitNoMatch, ""}, // is being submitted
		{"cancel --yes 9 --all", ExitUsage, ""},
		{"resync", ExitOK, "resync[9 10 13]false"},
		{"register", ExitUsage, ""},
		{"register 710 711", ExitUsage, ""}, // nobody to ask
		{"register 710 711 --yes --reason asked", ExitOK, "register[710 711]askedfalse"},
		{"register 710 --dry-run", ExitOK, "register[710]true"},
		{"resync 11", ExitOK, "resync[11]false"},
		{"resync --all", ExitOK, "resync[9 10 11 13]false"},
	} {
		code, out, errs := run(append([]string{"jobs"}, strings.Fields(tc.args)...)...)
		if got := asked(); code != tc.code || got != tc.want {
			t.Errorf("%s: exit %d, want %d; asked %s, want %s\n%s%s", tc.args, code, tc.code, got, tc.want, out, errs)
		}
	}
}

func TestJobsExplain(t *testing.T) {
	t.Parallel()
	run, _ := jobWorld(t)
	for _, tc := range []struct {
		args string
		code int
		want []string
	}{
		{"9", ExitOK, []string{"9, RUNNING, of ada (Ada#1)", "lets it wait: ?[31mno room"}},
		{"730 --slurm", ExitOK, []string{"730 PENDING, of bob", "physics of project p-1, used 5999 of 6000 billing minutes, locked", "2 nodes, 8 cpus, 1h0m0s"}},
		{"99", ExitNoMatch, nil},
		{"", ExitUsage, nil},
	} {
		code, out, errs := run(append([]string{"jobs", "explain"}, strings.Fields(tc.args)...)...)
		if code != tc.code {
			t.Errorf("%s: exit %d %s", tc.args, code, errs)
		}
		for _, text := range tc.want {
			if !strings.Contains(out, text) {
				t.Errorf("%s: no %q in\n%s", tc.args, text, out)
			}
		}
	}
}
