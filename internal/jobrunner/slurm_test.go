package jobrunner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/slurmkit"
)

// site is a server with real accounts and a real Slurm.
type site struct {
	cluster *slurmkit.Cluster
	dir     string // root's; everybody may read it
	binary  string // this test
	socket  string
	server  *fakeServer
	account string           // of Slurm
	user    accounts.Account // whose drive it is
	other   accounts.Account // has the same account of Slurm
	drive   string
}

func newSite(t *testing.T) *site {
	t.Helper()
	accounts.Require(t)
	slurmkit.Require(t)
	s := &site{cluster: slurmkit.Start(t), server: newFakeServer()}
	a := accounts.New(t, "jr")
	s.dir = a.Dir
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	s.binary = filepath.Join(a.Dir, "jobrunner.test")
	if err := os.WriteFile(s.binary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	s.user, s.other = a.User(t), a.User(t)
	s.account = s.cluster.Account(t, s.user.Name, s.other.Name)
	s.drive = filepath.Join(s.user.Home, "drive")
	if err := os.Mkdir(s.drive, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.drive, int(s.user.UID), int(s.user.GID)); err != nil {
		t.Fatal(err)
	}
	s.server.grant.Engine, s.server.grant.Account, s.server.grant.Partition = ipcapi.EngineSlurm, s.account, "normal"
	s.server.grant.Base = &ipcapi.FoundDrive{ID: "5123", ProviderGeneratedID: provider + "-x\n" + s.drive}
	s.server.known = func(comment string) string { return strings.Join(s.jobs(t, comment), "+") }
	s.socket = filepath.Join(a.Dir, "server.sock")
	s.serve(t)
	return s
}

// serve answers the calls of instances.
func (s *site) serve(t *testing.T) {
	t.Helper()
	srv := ipc.NewServer(ipc.ServerOptions{RequestsPerSecond: 10000, Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{User: user, Mapped: true}, nil
	}})
	f := s.server
	ipc.Handle(srv, ipcapi.JobBegin, func(ctx context.Context, _ *ipc.Request, b ipcapi.JobBeginning) (ipcapi.JobGrant, error) {
		return f.Begin(ctx, b)
	})
	ipc.Handle(srv, ipcapi.JobSubmitted, func(ctx context.Context, _ *ipc.Request, n ipcapi.JobSubmission) (ipcapi.JobReceipt, error) {
		return f.Submitted(ctx, n)
	})
	ipc.Handle(srv, ipcapi.JobRefused, func(ctx context.Context, _ *ipc.Request, n ipcapi.JobRefusal) (ipcapi.Empty, error) {
		return ipcapi.Empty{}, f.Refused(ctx, n)
	})
	ipc.Handle(srv, ipcapi.JobFind, func(ctx context.Context, _ *ipc.Request, n ipcapi.JobRef) (ipcapi.JobRecord, error) {
		return f.Find(ctx, n.ID)
	})
	ipc.Handle(srv, ipcapi.JobEnding, func(ctx context.Context, _ *ipc.Request, n ipcapi.JobRef) (ipcapi.Empty, error) {
		return ipcapi.Empty{}, f.Ending(ctx, n.ID)
	})
	ipc.Handle(srv, ipcapi.JobChanged, func(ctx context.Context, _ *ipc.Request, n ipcapi.JobRef) (ipcapi.Empty, error) {
		return ipcapi.Empty{}, f.Changed(ctx, n.ID)
	})
	l, err := ipc.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// jobs are the ids of all jobs with a comment, those that have ended too as long as slurmctld has them.
func (s *site) jobs(t testing.TB, comment string) []string {
	t.Helper()
	out := s.cluster.Run(t, "squeue", "-a", "-h", "-t", "all", "-o", "%i %k", "--account="+s.account)
	var ids []string
	for line := range strings.Lines(out) {
		if id, c, _ := strings.Cut(strings.TrimSpace(line), " "); c == comment {
			ids = append(ids, id)
		}
	}
	return ids
}

// call has an instance of an account do something. An error is the end of the instance.
func (s *site) call(t *testing.T, as accounts.Account, call childCall) (childResult, error) {
	t.Helper()
	call.Socket, call.Home, call.Drive = s.socket, as.Home, s.drive
	text, err := json.Marshal(call)
	if err != nil {
		t.Fatal(err)
	}
	cmd := as.Command(s.binary)
	cmd.Env = append(cmd.Env, childEnv+"=1")
	cmd.Stdin = bytes.NewReader(text)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if stderr.Len() > 0 {
		t.Log(stderr.String())
	}
	var res childResult
	if err == nil {
		err = json.Unmarshal(out, &res)
	}
	return res, err
}

func killed(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

func (s *site) folder(id string) string { return filepath.Join(s.drive, "ucloud-jobs", id) }

func (s *site) file(id, name string) string {
	raw, _ := os.ReadFile(filepath.Join(s.folder(id), name))
	return string(raw)
}

// await waits until a job has completed, and its output is there.
func (s *site) await(t *testing.T, id, want string) {
	t.Helper()
	engine := get(s.server, func() string { return s.server.news[id].EngineID })
	final := []string{"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
	if got := s.cluster.WaitState(t, engine, final...); got != want {
		t.Fatalf("job %s is %s, not %s: %s%s", id, got, want, s.file(id, "stdout.txt"), s.file(id, "stderr.txt"))
	}
}

// TestSlurm: the tests with a real Slurm share what takes long to make.
func TestSlurm(t *testing.T) {
	s := newSite(t)
	for name, test := range map[string]func(*testing.T, *site){
		"Environment": testEnvironment, "Refused": testSbatchRefuses, "Killed": testKilledDuringSubmission, "Terminate": testTerminate,
		"Injection": testInjection, "Suspend": testSuspendDenied,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func shortJob(id string, words ...string) *providerapi.Job {
	j := newJob(id, words...)
	j.Specification.TimeAllocation = &providerapi.SimpleDuration{Minutes: 5}
	return j
}

// testEnvironment: a job has the environment of its user on the node, and nothing of the instance but the umask.
func testEnvironment(t *testing.T, s *site) {
	const id = "9001"
	res, err := s.call(t, s.user, childCall{Job: shortJob(id, "sh", "-c", `echo "$HOME|$USER|$(id -un)|$(umask)|$(ulimit -d)|$(pwd)"; env`)})
	if err != nil || res.Why != "" {
		t.Fatal(err, res)
	}
	s.await(t, id, "COMPLETED")
	first, env, _ := strings.Cut(s.file(id, "stdout.txt"), "\n")
	if want := strings.Join([]string{s.user.Home, s.user.Name, s.user.Name, "0007", "unlimited", s.folder(id)}, "|"); first != want {
		t.Errorf("the job has %s, want %s", first, want)
	}
	for line := range strings.Lines(env) {
		for _, bad := range []string{childEnv + "=", "TZ=", "LC_ALL=C\n", "SLURM_TIME_FORMAT="} {
			if strings.HasPrefix(line, bad) {
				t.Errorf("the job has %q in its environment", line)
			}
		}
	}
	news := get(s.server, func() ipcapi.JobSubmission { return s.server.news[id] })
	if !strings.HasPrefix(res.ID, s.account+"/"+news.EngineID+"/") || news.TimeMs != 300_000 {
		t.Errorf("answer %q, the server was told %+v", res.ID, news)
	}
	if got := s.jobs(t, "ucloud:"+provider+":"+id); len(got) != 1 || got[0] != news.EngineID {
		t.Errorf("jobs with the comment: %v, submitted as %s", got, news.EngineID)
	}
	info, err := os.Stat(filepath.Join(s.folder(id), "job.sbatch"))
	if err != nil || info.Mode() != 0o770 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if info, err = os.Stat(s.folder(id)); err != nil || info.Mode() != 0o770|os.ModeDir {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// testSbatchRefuses: what Slurm says is passed on, and nothing is left.
func testSbatchRefuses(t *testing.T, s *site) {
	j := shortJob("9002", "true")
	j.Status.ResolvedApplication.Invocation.Sbatch = map[string]providerapi.InvocationParameter{
		"constraint": {Type: providerapi.PartWord, Word: "nosuchfeature"},
	}
	res, err := s.call(t, s.user, childCall{Job: j})
	if err != nil || res.Kind != failure.Invalid || !strings.Contains(res.Why, "nvalid feature") {
		t.Errorf("%v, %+v", err, res)
	}
	if _, err := os.Stat(s.folder("9002")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder stays:", err)
	}
	if get(s.server, func() string { return s.server.refused["9002"] }) != res.Why {
		t.Error("the server was not told")
	}
	// Where Slurm does not answer, nobody says that nothing runs.
	broken := s.binaries(t, "broken", "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)' >&2; exit 1")
	res, err = s.call(t, s.user, childCall{Job: shortJob("9003", "true"), Binaries: broken})
	if err != nil || res.Kind != failure.Internal {
		t.Errorf("%v, %+v", err, res)
	}
	if get(s.server, func() string { return s.server.refused["9003"] }) != "" || s.file("9003", "job.sbatch") == "" {
		t.Error("a job of which nobody knows was given up")
	}
}

// binaries makes a directory with Slurm's commands, of which sbatch is replaced.
func (s *site) binaries(t *testing.T, name, sbatch string) string {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sbatch"), []byte("#!/bin/bash\n"+sbatch+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"scancel", "squeue", "scontrol"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// testKilledDuringSubmission kills the instance between every two steps. Afterwards Core asks again, as it does not, but an
// operator's tool might: then the job has run exactly once, and the server knows it by the id that Slurm has given it.
func testKilledDuringSubmission(t *testing.T, s *site) {
	sbatch, err := exec.LookPath("sbatch")
	if err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct {
		step string
		runs bool // there is a job after the death
	}{
		{"begun", false},
		{"rendered", false},
		{"folder", false},
		{"filled", false},
		{"hooked", false},
		{"sbatch has not connected", true},
		{"sbatch has its answer", true},
		{"submitted", true},
		{"told", true},
	} {
		t.Run(tc.step, func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprint(9100 + i)
			comment := "ucloud:" + provider + ":" + id
			call := childCall{Job: shortJob(id, "sh", "-c", "echo x >>../runs-"+id), Kill: tc.step}
			switch tc.step { // sbatch is not killed with the instance
			case "sbatch has not connected":
				call.Binaries = s.binaries(t, "before", "kill -KILL $PPID; exec "+sbatch+` "$@"`)
			case "sbatch has its answer":
				call.Binaries = s.binaries(t, "after", sbatch+` "$@"; kill -KILL $PPID`)
			}
			if _, err := s.call(t, s.user, call); !killed(err) {
				t.Fatalf("the instance has ended by %v", err)
			}
			if tc.runs {
				eventually(t, func() bool { return len(s.jobs(t, comment)) > 0 }, func() string { return "the job is lost" })
			}
			if got := s.jobs(t, comment); len(got) > 1 || tc.runs != (len(got) == 1) {
				t.Fatalf("jobs %v", got)
			}
			res, err := s.call(t, s.user, childCall{Job: call.Job})
			if err != nil || res.Why != "" {
				t.Fatal(err, res)
			}
			got := s.jobs(t, comment)
			if len(got) != 1 || !strings.HasPrefix(res.ID, s.account+"/"+got[0]+"/") {
				t.Fatalf("jobs %v, known as %q", got, res.ID)
			}
			s.cluster.WaitState(t, got[0], "COMPLETED")
			if runs, err := os.ReadFile(filepath.Join(s.drive, "ucloud-jobs", "runs-"+id)); err != nil || string(runs) != "x\n" {
				t.Errorf("it has run: %q, %v", runs, err)
			}
		})
	}
}

// testTerminate: the job ends, whatever Core's document says; another user is told why they cannot.
func testTerminate(t *testing.T, s *site) {
	const id = "9010"
	if res, err := s.call(t, s.user, childCall{Job: shortJob(id, "sleep", "1000")}); err != nil || res.Why != "" {
		t.Fatal(err, res)
	}
	engine := get(s.server, func() string { return s.server.news[id].EngineID })
	// Even if the server is wrong about the owner nobody's job but the user's own is ended: Slurm refuses.
	res, err := s.call(t, s.other, childCall{End: id})
	if err != nil || res.Kind != failure.Forbidden {
		t.Errorf("by another user: %+v, %v", res, err)
	}
	if state := s.cluster.State(engine); state != "RUNNING" && state != "PENDING" {
		t.Fatalf("the job is %s", state)
	}
	for range 2 {
		if res, err := s.call(t, s.user, childCall{End: id}); err != nil || res.Why != "" {
			t.Fatal(err, res)
		}
	}
	s.await(t, id, "CANCELLED")
	if s.server.count("ending "+id) < 1 {
		t.Error("the server does not know why")
	}
}

// testSuspendDenied: ordinary users may not, and that is a 400.
func testSuspendDenied(t *testing.T, s *site) {
	const id = "9011"
	if res, err := s.call(t, s.user, childCall{Job: shortJob(id, "sleep", "1000")}); err != nil || res.Why != "" {
		t.Fatal(err, res)
	}
	engine := get(s.server, func() string { return s.server.news[id].EngineID })
	s.cluster.WaitState(t, engine, "RUNNING")
	res, err := s.call(t, s.user, childCall{Suspend: id})
	if err != nil || res.Kind != failure.Invalid {
		t.Errorf("%+v, %v", res, err)
	}
	if res, err := s.call(t, s.user, childCall{End: id}); err != nil || res.Why != "" {
		t.Fatal(err, res)
	}
	s.await(t, id, "CANCELLED")
}

// payloads do something that can be seen if anything executes them, and nothing else.
var payloads = []string{
	"; touch pwned", "$(touch pwned)", "`touch pwned`", "| touch pwned", "& touch pwned &", "&& touch pwned", "'; touch pwned; '",
	`"; touch pwned; "`, `\"; touch pwned; \"`, `'\''; touch pwned; '`, "${IFS}$(touch${IFS}pwned)", "\\$(touch pwned)", "$'\\n'touch pwned",
	"<(touch pwned)", ">pwned", "{touch,pwned}", "{{ 7 * 7 }}", "{% raw %}", "{- sbatch('x', 'y') -}", "#{x}", "%j", "%(touch pwned)s",
	"~root", "*", "?", "[a-z]", "!!", "!touch", "#SBATCH --wrap=x", "--wrap=touch pwned", "-x", "--", "", " ", "  two  spaces ", "\t",
	"ünïcödé ☃ \U0001f4a5", "\u202e", `\`, `\\`, `\n`, `'`, `"`, "''", `""`, "$", "$$", "$HOME", "${HOME}", "\a\b\x1b[31m",
	strings.Repeat("x", 5000), "EOF", "ENDOFSCRIPT", "a=b", "=", "\u00a0", "0x10", "1e6",
}

// breaks are payloads over several lines, for values that may have them.
var breaks = []string{"\ntouch pwned\n", "x\n#SBATCH --job-name=pwned\n", "x\r\ntouch pwned", "\n", "x\nEOF\ntouch pwned\n"}

// testInjection sends everything that a user can type through a real sbatch: the program gets what was typed, and nothing
// was executed.
func testInjection(t *testing.T, s *site) {
	const id = "9020"
	j := shortJob(id, "sh", "-c", `for a; do printf '%s\0' "$a"; done >received`, "x")
	app := &j.Status.ResolvedApplication.Invocation
	var want []string
	add := func(typ, kind string, value any, expect string) {
		name := fmt.Sprintf("p%d", len(app.Parameters))
		raw, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		v := providerapi.AppParameterValue{Type: kind, Value: raw}
		if kind == providerapi.ValueFile {
			v = providerapi.AppParameterValue{Type: kind, Path: value.(string)}
		}
		app.Parameters = append(app.Parameters, providerapi.ApplicationParameter{Type: typ, Name: name})
		app.Invocation = append(app.Invocation, providerapi.InvocationParameter{Type: providerapi.PartVariable, VariableNames: []string{name}})
		j.Specification.Parameters[name] = v
		want = append(want, expect)
	}
	for _, p := range append(payloads, breaks...) {
		add(providerapi.ParameterText, providerapi.ValueText, p, p)
		add(providerapi.ParameterTextArea, providerapi.ValueText, p, p)
		add(providerapi.ParameterEnumeration, providerapi.ValueText, p, p)
		if p == "" || p == "\n" || strings.ContainsAny(p, "/") || len(p) > 255 || strings.TrimSpace(p) == "" {
			continue
		}
		dir := filepath.Join(s.drive, p)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if !strings.ContainsAny(p, "\n\r\a\b\x1b") { // such names have another form on the wire
			add(providerapi.ParameterInputDirectory, providerapi.ValueFile, "/5123/"+p, dir)
		}
	}
	add(providerapi.ParameterInteger, providerapi.ValueInteger, json.Number("9007199254740993"), "9007199254740993")
	add(providerapi.ParameterFloatingPoint, providerapi.ValueFloatingPoint, json.Number("0.1"), "0.1")
	add(providerapi.ParameterBoolean, providerapi.ValueBoolean, true, "true")
	// What is not an argument: title, labels, host name, the application's own name, and other people's account and machine names.
	j.Specification.Name = strings.Join(payloads, " ")
	j.Specification.Labels = map[string]string{"$(touch pwned)": "`touch pwned`"}
	host := "$(touch pwned)"
	j.Specification.Hostname = &host
	j.Status.ResolvedApplication.Metadata.Title = "$(touch pwned)"
	j.Status.ResolvedApplication.Metadata.Version = "1'$(touch pwned)`touch pwned`\"; touch pwned"
	res, err := s.call(t, s.user, childCall{Job: j})
	if err != nil || res.Why != "" {
		t.Fatal(err, res)
	}
	s.await(t, id, "COMPLETED")
	got := strings.Split(strings.TrimSuffix(s.file(id, "received"), "\x00"), "\x00")
	if len(got) != len(want) {
		t.Fatalf("the program got %d arguments instead of %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("argument %d is %q, typed was %q", i, got[i], want[i])
		}
	}
	s.nothingExecuted(t)
	if s.file(id, "stderr.txt") != "" {
		t.Errorf("errors of the script: %s", s.file(id, "stderr.txt"))
	}
	// Line breaks where a directive would be made of them are refused before sbatch.
	for i, p := range breaks {
		if p == "\n" {
			continue // a line break at the end is no part of a word
		}
		bad := shortJob(fmt.Sprint(9030+i), "true")
		bad.Status.ResolvedApplication.Metadata.Name = "x" + p
		bad.Status.ResolvedApplication.Invocation.Sbatch = map[string]providerapi.InvocationParameter{
			"job-name": {Type: providerapi.PartWord, Word: "x" + p},
		}
		res, err := s.call(t, s.user, childCall{Job: bad})
		if err != nil || res.Kind != failure.Invalid {
			t.Errorf("%q: %+v, %v", p, res, err)
		}
	}
	s.nothingExecuted(t)
}

// nothingExecuted looks where a payload would have left its file.
func (s *site) nothingExecuted(t *testing.T) {
	t.Helper()
	for _, root := range []string{s.user.Home, s.dir} {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "pwned" {
				t.Errorf("a value was executed: %s", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("/pwned"); err == nil {
		t.Error("a value was executed in /")
	}
}
