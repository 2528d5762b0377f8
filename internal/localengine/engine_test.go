package localengine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashStep) != "" {
		crash()
	}
	// Jobs are login shells. What stands in the profile of whoever runs the tests is not to be run, and killed half-way.
	home, err := os.MkdirTemp("", "localengine")
	if err != nil {
		panic(err)
	}
	os.Setenv("HOME", home) //nolint:errcheck // fails for NUL bytes only
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(home) //nolint:errcheck // temporary
		os.Exit(code)
	}))
}

// bench is an engine with a place for its jobs.
type bench struct {
	t *testing.T
	*Engine
	o      Options
	folder string

	mu   sync.Mutex
	last map[string]Job // by Core's id
}

func newBench(t *testing.T, dir string) *bench {
	t.Helper()
	b := &bench{t: t, folder: t.TempDir(), last: map[string]Job{}}
	b.o = Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Grace: time.Second, Changed: func(j Job) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.last[j.Job] = j
	}}
	b.open()
	return b
}

// open makes an engine on what is there, as a new instance does.
func (b *bench) open() {
	b.t.Helper()
	b.Engine = New(b.o)
	b.t.Cleanup(b.Close)
	if err := b.Recover(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) spec(job, script string) Spec {
	return Spec{Job: job, Folder: b.folder, Script: []byte("#!/bin/bash\n" + script), Output: "stdout.txt", Error: "stderr.txt"}
}

func (b *bench) submit(s Spec) string {
	b.t.Helper()
	id, err := b.Submit(context.Background(), s)
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// await waits for a state of a job.
func (b *bench) await(job string, want providerapi.JobState) Job {
	b.t.Helper()
	var got Job
	eventually(b.t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		got = b.last[job]
		return got.State == want || got.State.Final()
	}, func() string { return fmt.Sprintf("job %s is %+v, not %s", job, got, want) })
	if got.State != want {
		b.t.Fatalf("job %s is %s (%s), not %s", job, got.State, got.Message, want)
	}
	return got
}

func (b *bench) file(name string) string {
	raw, _ := os.ReadFile(filepath.Join(b.folder, name))
	return string(raw)
}

func (b *bench) awaitFile(name string) string {
	b.t.Helper()
	eventually(b.t, func() bool { return b.file(name) != "" }, func() string { return "no file " + name })
	return strings.TrimSpace(b.file(name))
}

func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(why())
		}
	}
}

func alive(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	st, err := readStat(n)
	return err == nil && st.state != 'Z'
}

func TestLife(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	for job, tc := range map[string]struct {
		script string
		want   providerapi.JobState
		say    string
	}{
		"1": {"echo out; echo err >&2; pwd", providerapi.JobSuccess, "exit code 0"},
		"2": {"exit 7", providerapi.JobFailure, "exit code 7"},
		"3": {"kill -SEGV $$", providerapi.JobFailure, "signal 11"},
		"4": {"kill -KILL 0", providerapi.JobFailure, "killed"},
		"5": {"no-such-program", providerapi.JobFailure, "exit code 127"},
	} {
		s := b.spec(job, tc.script)
		s.Output, s.Error = job+".out", job+".err"
		b.submit(s)
		got := b.await(job, tc.want)
		if !strings.Contains(got.Message, tc.say) {
			t.Errorf("job %s: %q, want %q in it", job, got.Message, tc.say)
		}
		if got.Started.IsZero() || got.Ended.Before(got.Started) {
			t.Errorf("job %s: from %v to %v", job, got.Started, got.Ended)
		}
	}
	if out, err := b.file("1.out"), b.file("1.err"); out != "out\n"+b.folder+"\n" || err != "err\n" {
		t.Errorf("output %q, errors %q", out, err)
	}
}

// What a job leaves in the background ends with it, as under Slurm.
func TestNothingStays(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	b.submit(b.spec("1", "(trap '' TERM HUP; echo $BASHPID >stray; exec sleep 1000) & until [ -s stray ]; do sleep 0.01; done"))
	b.await("1", providerapi.JobSuccess)
	stray := b.awaitFile("stray")
	eventually(t, func() bool { return !alive(t, stray) }, func() string { return "a process of the job is still there" })
}

func TestTimeLimit(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	polite := b.spec("1", "trap 'echo bye >farewell; exit 0' TERM; while :; do sleep 0.1; done")
	polite.Limit = time.Second
	b.submit(polite)
	stubborn := b.spec("2", "trap '' TERM; while :; do sleep 0.1; done")
	stubborn.Limit = time.Second
	b.submit(stubborn)
	within := b.spec("3", "exit 3")
	within.Limit = time.Hour
	b.submit(within)
	b.await("1", providerapi.JobExpired)
	b.await("2", providerapi.JobExpired)
	b.await("3", providerapi.JobFailure)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	id := b.submit(b.spec("1", "trap 'echo bye >farewell; exit 5' TERM; echo $$ >pid; while :; do sleep 0.1; done"))
	stubborn := b.submit(b.spec("2", "trap '' TERM; echo $$ >pid2; while :; do sleep 0.1; done"))
	b.awaitFile("pid")
	pid := b.awaitFile("pid2")
	for range 2 { // twice is the same as once
		if err := b.Cancel(id); err != nil {
			t.Fatal(err)
		}
		if err := b.Cancel(stubborn); err != nil {
			t.Fatal(err)
		}
	}
	b.await("1", providerapi.JobSuccess)
	b.await("2", providerapi.JobSuccess)
	if b.file("farewell") != "bye\n" || alive(t, pid) {
		t.Errorf("farewell %q, the stubborn one lives: %v", b.file("farewell"), alive(t, pid))
	}
	if err := b.Cancel(id); err != nil {
		t.Error("a job that has ended:", err)
	}
	if err := b.Cancel("unknown"); err != nil {
		t.Error("an unknown job:", err)
	}
}

// A job that is suspended can be cancelled, and one that goes on ends by itself.
func TestSuspend(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	id := b.submit(b.spec("1", "echo $$ >pid; while [ ! -e go ]; do sleep 0.02; done"))
	pid := b.awaitFile("pid")
	if err := b.Suspend(id); err != nil {
		t.Fatal(err)
	}
	b.await("1", providerapi.JobSuspended)
	eventually(t, func() bool { return processState(pid) == 'T' }, func() string { return "the job still runs" })
	b.Close() // the next instance knows it too
	b.open()
	b.await("1", providerapi.JobSuspended)
	if err := b.Resume(id); err != nil {
		t.Fatal(err)
	}
	b.await("1", providerapi.JobRunning)
	if err := os.WriteFile(filepath.Join(b.folder, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.await("1", providerapi.JobSuccess)
	if err := b.Suspend(id); !failure.Is(err, failure.NotFound) {
		t.Error("a job that has ended:", err)
	}

	id = b.submit(b.spec("2", "trap 'exit 1' TERM; while :; do sleep 0.1; done"))
	if err := b.Suspend(id); err != nil {
		t.Fatal(err)
	}
	if err := b.Cancel(id); err != nil {
		t.Fatal(err)
	}
	if got := b.await("2", providerapi.JobSuccess); !strings.Contains(got.Message, "cancelled") {
		t.Error(got.Message)
	}
}

func processState(pid string) byte {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return 0
	}
	st, err := readStat(n)
	if err != nil {
		return 0
	}
	return st.state
}

// Jobs go on while no instance is there, and their ends are known afterwards.
func TestRestart(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	wait := "while [ ! -e go ]; do sleep 0.02; done; "
	note := b.spec("1", wait+"exit 0")
	note.Note = []byte(`{"some":"thing"}`)
	first := b.submit(note)
	b.submit(b.spec("2", wait+"exit 9"))
	long := b.submit(b.spec("3", "sleep 1000"))
	b.Close()

	b.mu.Lock()
	clear(b.last)
	b.mu.Unlock()
	b.open()
	if got := b.await("1", providerapi.JobRunning); got.ID != first || string(got.Note) != `{"some":"thing"}` {
		t.Errorf("found again as %+v", got)
	}
	b.Close()
	if err := os.WriteFile(filepath.Join(b.folder, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"1", "2"} { // they end while nobody looks
		j := b.last[id]
		eventually(t, func() bool { _, err := os.Stat(filepath.Join(b.o.Dir, j.ID, fileExit)); return err == nil },
			func() string { return "job " + id + " does not end" })
	}
	b.open()
	b.await("1", providerapi.JobSuccess)
	if got := b.await("2", providerapi.JobFailure); !strings.Contains(got.Message, "exit code 9") {
		t.Error(got.Message)
	}
	// One that is being cancelled when the instance ends is ended by the next.
	if err := b.Cancel(long); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.open()
	b.await("3", providerapi.JobSuccess)
	eventually(t, func() bool {
		return !slices.ContainsFunc(b.Jobs(), func(j Job) bool { return !j.State.Final() })
	}, func() string { return "a job does not end" })
	for _, j := range b.Jobs() {
		if err := b.Forget(j.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(b.o.Dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// A job of Core is started once, also if it is asked for again.
func TestOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	s := b.spec("1", "echo x >>runs; sleep 1000")
	id := b.submit(s)
	if again := b.submit(s); again != id {
		t.Errorf("started again as %s, after %s", again, id)
	}
	b.awaitFile("runs")
	b.Close()
	b.open()
	if again := b.submit(s); again != id {
		t.Errorf("started again as %s, after %s", again, id)
	}
	if err := b.Cancel(id); err != nil {
		t.Fatal(err)
	}
	b.await("1", providerapi.JobSuccess)
	if b.file("runs") != "x\n" {
		t.Errorf("it has run: %q", b.file("runs"))
	}
	// Without an answer before the deadline nothing runs.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Submit(ctx, b.spec("2", "echo x >late")); !failure.Is(err, failure.Invalid) {
		t.Error("after the deadline:", err)
	}
}

// A pid that belongs to another process by now is neither watched nor signalled.
func TestForeignProcessIsLeftAlone(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]process{
		"later start": {pid: cmd.Process.Pid, start: st.start - 1, boot: bootID()},
		"other boot":  {pid: cmd.Process.Pid, start: st.start, boot: "6f1f8d6e-0000-0000-0000-000000000000"},
	} {
		dir := t.TempDir()
		b := newBench(t, dir)
		j := &job{dir: filepath.Join(dir, "abc"), spec: Spec{ID: "abc", Job: "1"}}
		if err := j.write(); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%d %d %s\n", p.pid, p.start, p.boot)
		if err := os.WriteFile(filepath.Join(j.dir, fileProcess), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := j.mark(fileCancelled); err != nil { // it is even told to end it
			t.Fatal(err)
		}
		b.open()
		b.await("1", providerapi.JobSuccess)
		if !alive(t, strconv.Itoa(cmd.Process.Pid)) {
			t.Fatalf("%s: the process of somebody else was killed", name)
		}
	}
	// The right one is.
	p := process{pid: cmd.Process.Pid, start: st.start, boot: bootID()}
	p.killAll()
	eventually(t, func() bool { return !p.alive() }, func() string { return "killAll does nothing" })
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]process{
		"12 34 boot\n": {12, 34, "boot"}, "": {}, "1 2 b": {}, "-5 2 b": {}, "0 2 b": {}, "5 x b": {}, "99999999999 1 b": {}, "5 1": {}, "5 1 b c": {},
	} {
		got, err := parseProcess([]byte(text))
		if got != want || (err == nil) != (want.pid != 0) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	got, err := parseStat([]byte("7 (a) b) (S) S 1 7 6 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2"))
	if err != nil || got != (stat{state: 'S', session: 6, start: 4711}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", ")", "7 (a) S 1", "7 (a) S 1 7 x 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (a) b) (S) S 1 7 6 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		_, _ = parseStat(raw)
		_, _ = parseProcess(bytes.Clone(raw))
	})
}
