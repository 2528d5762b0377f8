package jobrunner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/localengine"
	"ucloud-im/internal/providerapi"
)

type localJob = localengine.Job

func TestCreate(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	id, err := b.create("512", "sh", "-c", "echo hello; pwd; echo \"$UCLOUD_JOB_ID $1\"", "x", "a  'b' $(touch pwned) `touch pwned`")
	if err != nil {
		t.Fatal(err)
	}
	news := get(b.server, func() ipcapi.JobSubmission { return b.server.news["512"] })
	if want := "acc/" + news.EngineID + "/1767222005000"; id != want || news.EngineID == "" {
		t.Errorf("answer %q, want %q", id, want)
	}
	if news.Folder != b.folder("512") || news.OutputFolder != "/5123/ucloud-jobs/512" || news.TimeMs != 3600_000 || news.Attempt != 1 {
		t.Errorf("the server was told %+v", news)
	}
	b.awaitState("512", providerapi.JobSuccess)
	if got, want := b.file("512", "stdout.txt"), "hello\n"+b.folder("512")+"\n512 a  'b' $(touch pwned) `touch pwned`\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	if !strings.Contains(b.file("512", "job.sbatch"), "ucloud:hpc-example:512") {
		t.Error("the script is not in the folder, or has no comment")
	}
	// The same again is answered, and nothing is done.
	again, err := b.create("512", "true")
	if err != nil || again != id {
		t.Errorf("again: %q, %v", again, err)
	}
}

// Without a drive the folder is in the home directory, and there is no output folder to tell of.
func TestHomeDirectory(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) { b.server.grant.Base = nil })
	if _, err := b.create("1", "true"); err != nil {
		t.Fatal(err)
	}
	news := get(b.server, func() ipcapi.JobSubmission { return b.server.news["1"] })
	if news.Folder != filepath.Join(b.home, "ucloud-jobs", "1") || news.OutputFolder != "" {
		t.Errorf("%+v", news)
	}
}

func TestRefusedBeforeAnything(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for name, change := range map[string]func(*providerapi.Job){
		"no id":            func(j *providerapi.Job) { j.ID = "" },
		"a path as id":     func(j *providerapi.Job) { j.ID = "../1" },
		"an option as id":  func(j *providerapi.Job) { j.ID = "-1" },
		"line break in id": func(j *providerapi.Job) { j.ID = "1\n2" },
		"no application":   func(j *providerapi.Job) { j.Status.ResolvedApplication = nil },
		"unknown":          func(j *providerapi.Job) { j.Status.ResolvedApplication.Metadata.Name = "unknown" },
		"unknown by name":  func(j *providerapi.Job) { j.Specification.Application.Name = "unknown" },
	} {
		j := newJob("77", "true")
		change(j)
		if _, err := b.Create(context.Background(), time.Now(), j); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := newJob("78", "true")
	big.Specification.Name = strings.Repeat("x", ipcapi.MaxJob)
	if _, err := b.Create(context.Background(), time.Now(), big); !failure.Is(err, failure.TooLarge) {
		t.Errorf("a large job: %v", err)
	}
	if calls := get(b.server, func() int { return len(b.server.calls) }); calls > 0 {
		t.Errorf("%d calls of the server", calls)
	}
	// What the server refuses is passed on.
	b.server.err["begin"] = failure.New(failure.PaymentRequired, "no more quota")
	if _, err := b.create("79", "true"); !failure.Is(err, failure.PaymentRequired) {
		t.Error(err)
	}
}

// Secrets neither reach the server nor the folder.
func TestSecretsAreDropped(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	raw, err := json.Marshal(newJob("5", "true"))
	if err != nil {
		t.Fatal(err)
	}
	const value = `{"type":"api_server","server":"https://core","token":"s3cr3t","tokenType":"x"}`
	text := strings.Replace(string(raw), `"resources":[]`, `"resources":[`+value+`,{"type":"network","id":"7"}]`, 1)
	text = strings.Replace(text, `"parameters":{}`, `"parameters":{"p":`+value+`}`, 1)
	text = strings.Replace(text, `"jobParametersJson":null`, `"jobParametersJson":{"request":{"resources":[`+value+`]}}`, 1)
	if strings.Count(text, "s3cr3t") != 3 {
		t.Fatal("the test does not test what it should: ", text)
	}
	var j providerapi.Job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(context.Background(), time.Now(), &j); err != nil {
		t.Fatal(err)
	}
	doc := get(b.server, func() string { return string(b.server.docs["5"]) })
	if strings.Contains(doc, "s3cr3t") || strings.Contains(doc, "api_server") {
		t.Error("the server was given", doc)
	}
	if !strings.Contains(doc, `"network"`) {
		t.Error("other resources were dropped too")
	}
	b.awaitState("5", providerapi.JobSuccess)
	err = filepath.WalkDir(b.folder("5"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			content, rerr := os.ReadFile(path)
			if rerr != nil || strings.Contains(string(content), "s3cr3t") {
				t.Errorf("%s has the secret, %v", path, rerr)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The account that the user has chosen is the server's to judge.
func TestChosenAccount(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	j := newJob("6", "true")
	j.Specification.Parameters[jobrender.AccountParameter] = providerapi.AppParameterValue{Type: providerapi.ValueText, Value: json.RawMessage(`"mine"`)}
	if _, err := b.Create(context.Background(), time.Now(), j); err != nil {
		t.Fatal(err)
	}
	if got := get(b.server, func() string { return b.server.account["6"] }); got != "mine" {
		t.Errorf("account %q", got)
	}
}

// Paths are those of the user's drives; an error names the parameter.
func TestPaths(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	outside := t.TempDir()
	for _, dir := range []string{"data", "it's; touch pwned"} {
		if err := os.Mkdir(filepath.Join(b.drive, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"inside": "data", "outside": outside, "dangling": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(b.drive, name)); err != nil {
			t.Fatal(err)
		}
	}
	withFile := func(id, path string) *providerapi.Job {
		j := newJob(id, "printf", "%s")
		app := &j.Status.ResolvedApplication.Invocation
		app.Parameters = []providerapi.ApplicationParameter{{Type: providerapi.ParameterInputFile, Name: "input"}}
		app.Invocation = append(app.Invocation, providerapi.InvocationParameter{Type: providerapi.PartVariable, VariableNames: []string{"input"}})
		j.Specification.Parameters["input"] = providerapi.AppParameterValue{Type: providerapi.ValueFile, Path: path}
		return j
	}
	for path, want := range map[string]string{
		"/5123/data":              "data",
		"/5123/":                  "",
		"/5123/./data/../data":    "data",
		"/5123/inside":            "inside",
		"/5123/it's; touch pwned": "it's; touch pwned",
		"/5123/nothing":           "!does not exist",
		"/5123/outside":           "!leaves the drive",
		"/5123/dangling":          "!does not exist",
		"/9999/data":              "!is not yours",
		"/5123/../9999/data":      "!",
		"/5123/../../etc/passwd":  "!",
		"/etc/passwd":             "!is not yours",
		"relative":                "!not a path",
		"":                        "!not a path",
		"/":                       "!not a path",
		"/..":                     "!not a path",
	} {
		id := "p" + strings.Map(func(r rune) rune {
			if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
				return r
			}
			return '_'
		}, path)
		_, err := b.Create(context.Background(), time.Now(), withFile(id, path))
		if why, bad := strings.CutPrefix(want, "!"); bad {
			if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), why) || !strings.Contains(failure.Why(err), `"input"`) {
				t.Errorf("%q: %v", path, err)
			}
			if strings.Contains(failure.Why(err), b.drive) {
				t.Errorf("%q: a local path is shown: %v", path, err)
			}
			if _, err := os.Stat(b.folder(id)); err == nil {
				t.Errorf("%q: the folder of a refused job is there", path)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		b.awaitState(id, providerapi.JobSuccess)
		if got := b.file(id, "stdout.txt"); got != filepath.Join(b.drive, want) {
			t.Errorf("%q: the program got %q", path, got)
		}
	}
}

// What is in the way of the folder is neither used nor followed nor removed.
func TestStrangersFolder(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(b *bench, elsewhere string) error
		want    string
	}{
		"a folder of that name": {func(b *bench, _ string) error { return os.MkdirAll(b.folder("1"), 0o700) }, "is there already"},
		"a link of that name": {func(b *bench, elsewhere string) error {
			if err := os.Mkdir(filepath.Join(b.drive, "ucloud-jobs"), 0o700); err != nil {
				return err
			}
			return os.Symlink(elsewhere, b.folder("1"))
		}, "is there already"},
		"the folder of jobs is a link": {func(b *bench, elsewhere string) error {
			return os.Symlink(elsewhere, filepath.Join(b.drive, "ucloud-jobs"))
		}, "has the name"},
		"the folder of jobs is a file": {func(b *bench, _ string) error {
			return os.WriteFile(filepath.Join(b.drive, "ucloud-jobs"), nil, 0o600)
		}, "has the name"},
		"the drive is gone": {func(b *bench, _ string) error { return os.RemoveAll(b.drive) }, "the drive is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, elsewhere := newBench(t, nil), t.TempDir()
			if err := tc.prepare(b, elsewhere); err != nil {
				t.Fatal(err)
			}
			_, err := b.create("1", "true")
			if !failure.Is(err, failure.Internal) || !strings.Contains(failure.Why(err), tc.want) {
				t.Errorf("%v", err)
			}
			if b.server.refused["1"] == "" || len(b.local.engine.Jobs()) > 0 {
				t.Errorf("refused %v, jobs %v", b.server.refused, b.local.engine.Jobs())
			}
			if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
				t.Errorf("the link was followed: %v, %v", left, err)
			}
		})
	}
	// On a second attempt the folder of the first is taken, but only from the user.
	b := newBench(t, nil)
	if err := os.MkdirAll(b.folder("1"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.server.attempt["1"] = 1
	if _, err := b.create("1", "true"); err != nil {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll(b.folder("2"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(b.folder("2"), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		b.server.attempt["2"] = 1
		if _, err := b.create("2", "true"); !strings.Contains(failure.Why(err), "does not belong") {
			t.Error(err)
		}
	}
}

// fakeEngine does as it is told.
type fakeEngine struct {
	mu     sync.Mutex
	submit func(ctx context.Context, s Submission) (string, error)
	err    error
	calls  []string
}

func (e *fakeEngine) Submit(ctx context.Context, s Submission) (string, error) {
	e.note("submit " + s.Job)
	return e.submit(ctx, s)
}
func (e *fakeEngine) Cancel(_ context.Context, id string) error  { return e.note("cancel " + id) }
func (e *fakeEngine) Suspend(_ context.Context, id string) error { return e.note("suspend " + id) }
func (e *fakeEngine) Resume(_ context.Context, id string) error  { return e.note("resume " + id) }

func (e *fakeEngine) note(call string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, call)
	return e.err
}

func (e *fakeEngine) did(call string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.calls {
		if c == call {
			return true
		}
	}
	return false
}

// sbatch's word is passed on, and nothing stays.
func TestRefusedByEngine(t *testing.T) {
	t.Parallel()
	e := &fakeEngine{submit: func(context.Context, Submission) (string, error) {
		return "", &RefusedError{Why: "The time limit is too large", Cause: errors.New("sbatch: error: secret")}
	}}
	b := newBench(t, func(b *bench) { b.o.Engine = e })
	_, err := b.create("1", "true")
	if !failure.Is(err, failure.Invalid) || failure.Why(err) != "The time limit is too large" {
		t.Error(err)
	}
	if b.server.refused["1"] != "The time limit is too large" {
		t.Errorf("the server was told %q", b.server.refused["1"])
	}
	if _, err := os.Stat(b.folder("1")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder stays:", err)
	}
	// What somebody has put there meanwhile is not removed with it.
	e.submit = func(context.Context, Submission) (string, error) {
		return "", errors.Join(&RefusedError{Why: "no"}, os.WriteFile(filepath.Join(b.folder("2"), "mine"), []byte("x"), 0o600))
	}
	if _, err := b.create("2", "true"); err == nil || b.file("2", "mine") != "x" {
		t.Errorf("%v, file %q", err, b.file("2", "mine"))
	}
}

// If nobody knows, the server is told nothing, and finds out.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	e := &fakeEngine{submit: func(context.Context, Submission) (string, error) { return "", errors.New("killed") }}
	b := newBench(t, func(b *bench) { b.o.Engine = e })
	_, err := b.create("1", "true")
	if !failure.Is(err, failure.Internal) || strings.Contains(failure.Why(err), "killed") {
		t.Error(err)
	}
	if len(b.server.refused) > 0 || len(b.server.news) > 0 {
		t.Errorf("the server was told %v, %v", b.server.refused, b.server.news)
	}
	if b.file("1", "job.sbatch") == "" {
		t.Error("the folder of a job that may run is gone")
	}
}

// An engine that takes longer than Core waits: the request is answered in time, the submission goes on, the server hears of
// it, and the job is ended, since Core has deleted it.
func TestSlowEngine(t *testing.T) {
	t.Parallel()
	slow := make(chan struct{})
	e := &fakeEngine{submit: func(ctx context.Context, _ Submission) (string, error) {
		select {
		case <-slow:
			return "99", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}}
	b := newBench(t, func(b *bench) { b.o.Engine, b.o.answerWithin = e, 100*time.Millisecond })
	_, err := b.create("1", "true")
	if !failure.Is(err, failure.Internal) {
		t.Error(err)
	}
	if b.server.count("submitted 1") != 0 {
		t.Error("submitted before the engine has answered")
	}
	close(slow)
	eventually(t, func() bool { return e.did("cancel 99") }, func() string { return "a job that Core does not know goes on" })
	if b.server.count("submitted 1") != 1 || b.server.count("ending 1") != 1 {
		t.Errorf("the server was told %v", b.server.calls)
	}
	// The same if the request goes away.
	ctx, cancel := context.WithCancel(context.Background())
	e.submit = func(context.Context, Submission) (string, error) { cancel(); <-slow; return "100", nil }
	slow = make(chan struct{})
	if _, err := b.Create(ctx, time.Now(), newJob("2", "true")); err == nil {
		t.Error("a request that has gone away was answered")
	}
	close(slow)
	eventually(t, func() bool { return e.did("cancel 100") }, func() string { return "a job that Core does not know goes on" })
}

// Nothing is submitted after the leave has ended.
func TestLeaveEnds(t *testing.T) {
	t.Parallel()
	e := &fakeEngine{submit: func(context.Context, Submission) (string, error) { return "1", nil }}
	b := newBench(t, func(b *bench) {
		b.o.Engine = e
		b.o.step = func(name string) {
			if name == "filled" { // something has taken its time
				time.Sleep(150 * time.Millisecond)
			}
		}
	})
	b.server.leave = 100 * time.Millisecond
	if _, err := b.create("1", "true"); !failure.Is(err, failure.Internal) {
		t.Error(err)
	}
	if e.did("submit 1") || b.server.refused["1"] == "" {
		t.Errorf("submitted: %v, refused: %v", e.did("submit 1"), b.server.refused)
	}
	b.server.leave = -time.Second
	if _, err := b.create("2", "true"); err == nil || e.did("submit 2") {
		t.Error("submitted with a leave that has ended")
	}
}

// A server that goes away after its leave hears of the result when it is back. Core gets its answer meanwhile.
func TestServerAway(t *testing.T) {
	t.Parallel()
	e := &fakeEngine{submit: func(context.Context, Submission) (string, error) { return "7", nil }}
	b := newBench(t, func(b *bench) { b.o.Engine = e })
	b.server.err["submitted"] = failure.New(failure.Unavailable, "away")
	id, err := b.create("1", "true")
	if err != nil || !strings.HasPrefix(id, "acc/7/") {
		t.Errorf("%q, %v", id, err)
	}
	b.server.mu.Lock()
	delete(b.server.err, "submitted")
	b.server.mu.Unlock()
	eventually(t, func() bool { return get(b.server, func() bool { return b.server.news["1"].EngineID == "7" }) },
		func() string { return "the server does not hear of the job" })
	if e.did("cancel 7") {
		t.Error("the job was ended")
	}
}

// A remote desktop gets a new password that only its user can read.
func TestDesktopPassword(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) { b.server.grant.Port = 23817 })
	seen := map[string]bool{}
	for _, id := range []string{"1", "2"} {
		j := newJob(id, "true")
		j.Status.ResolvedApplication.Invocation.ApplicationType = providerapi.ApplicationVNC
		if _, err := b.Create(context.Background(), time.Now(), j); err != nil {
			t.Fatal(err)
		}
		password := b.file(id, jobrender.PasswordFile)
		info, err := os.Stat(filepath.Join(b.folder(id), jobrender.PasswordFile))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if len(password) != 8 || seen[password] || strings.Contains(b.file(id, "job.sbatch"), password) {
			t.Errorf("password %q, script %s", password, b.file(id, "job.sbatch"))
		}
		seen[password] = true
	}
	if _, err := b.create("3", "true"); err != nil || b.file("3", jobrender.PasswordFile) != "" {
		t.Errorf("a batch job: %v, password %q", err, b.file("3", jobrender.PasswordFile))
	}
}

// What runs is what was rendered, whatever somebody has put into the folder in the last moment.
func TestScriptIsNotReadAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) {
		b.o.step = func(name string) {
			if name == "hooked" {
				if err := os.Rename(b.folder("1"), b.folder("old")); err != nil {
					t.Error(err)
				}
				if err := os.Mkdir(b.folder("1"), 0o700); err != nil {
					t.Error(err)
				}
				if err := os.WriteFile(filepath.Join(b.folder("1"), "job.sbatch"), []byte("#!/bin/bash\necho pwned >pwned\n"), 0o700); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if _, err := b.create("1", "echo", "mine"); err != nil {
		t.Fatal(err)
	}
	b.awaitState("1", providerapi.JobSuccess)
	if b.file("1", "pwned") != "" || b.file("1", "stdout.txt") != "mine\n" {
		t.Errorf("pwned %q, output %q", b.file("1", "pwned"), b.file("1", "stdout.txt"))
	}
}

// The site's program may refuse; then nothing runs.
func TestHook(t *testing.T) {
	t.Parallel()
	var got HookCall
	b := newBench(t, func(b *bench) {
		b.o.Hook = func(_ context.Context, h HookCall) ([]string, error) {
			got = h
			return nil, failure.New(failure.Forbidden, "not on Mondays")
		}
	})
	_, err := b.create("1", "true")
	if !failure.Is(err, failure.Forbidden) || failure.Why(err) != "not on Mondays" || b.server.refused["1"] != "not on Mondays" {
		t.Errorf("%v, %v", err, b.server.refused)
	}
	if got.Path != filepath.Join(b.folder("1"), "job.sbatch") || got.Nodes != 1 || len(b.local.engine.Jobs()) > 0 {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(b.folder("1")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder stays:", err)
	}
}

// The longest time of the machine bounds what an application sets by itself.
func TestMachineTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) { b.server.grant.MaxTimeMs = (90 * time.Minute).Milliseconds() })
	for i, tc := range []struct {
		time string
		ok   bool
	}{{"01:30:00", true}, {"01:30:01", false}, {"2:00:00", false}, {"7-0", false}, {"UNLIMITED", false}} {
		id := fmt.Sprint(i)
		_, err := b.Create(t.Context(), time.Now(), templateJob(t, id, `true {{ sbatch("time", "`+tc.time+`") }}`, "x"))
		if tc.ok {
			if took := get(b.server, func() int64 { return b.server.news[id].TimeMs }); err != nil || took != 5400_000 {
				t.Errorf("%s: %d ms, %v", tc.time, took, err)
			}
			b.awaitState(id, providerapi.JobSuccess)
		} else if !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", tc.time, err)
		}
	}
}
