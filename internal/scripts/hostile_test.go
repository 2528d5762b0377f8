package scripts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

func clearCloexec(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
}

// pidFile waits until a program has written its number.
func pidFile(t *testing.T, path string) (pid int) {
	t.Helper()
	testkit.Eventually(t, path+" is written", func() bool {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(string(text), "\n") {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
			return err == nil
		}
		return false
	})
	return pid
}

// TestHostileScripts: no program can keep a call, fill our memory, or leave a process behind in its group.
//
//attack:actor malicious script
//attack:does Starts a child that ignores TERM, so that it outlives the time limit of the script.
//attack:control At the end of its time the whole process group of a program is killed.
//attack:remove internal/scripts/process.go: func (p *process) signal(s unix.Signal) { _ = unix.Kill(-p.pid, s) } => func (p *process) signal(s unix.Signal) { _ = unix.Kill(p.pid, s) }
//attack:run child hangs and ignores TERM
func TestHostileScripts(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(o *Options) { o.MaxOutput = 8 << 10 })
	child := filepath.Join(s.dir, "child-")
	for _, tc := range []struct {
		name  string
		body  string
		kind  Kind
		child bool // leaves a process number in the file, which must be gone afterwards
	}{
		{name: "hangs", body: `sleep 1000`, kind: TimedOut},
		{name: "hangs and ignores TERM", body: `trap '' TERM; echo $$ > "$CHILD"; while :; do sleep 1; done`, kind: TimedOut, child: true},
		{name: "child hangs and ignores TERM", body: `(trap '' TERM; echo $BASHPID > "$CHILD"; exec -a x sleep 1000) & sleep 1000`, kind: TimedOut, child: true},
		{name: "ends at TERM, its child does not", body: `(trap '' TERM; echo $BASHPID > "$CHILD"; while :; do sleep 1; done) & trap 'exit 0' TERM; wait`, kind: TimedOut, child: true},
		{name: "endless output", body: `yes`, kind: TimedOut},
		{name: "endless output on stderr", body: `yes >&2`, kind: TimedOut},
		{name: "forks many", body: `for i in {1..50}; do (echo $BASHPID > "$CHILD"; sleep 1000) & done; wait`, kind: TimedOut, child: true},
		{name: "stops itself", body: `kill -STOP $$`, kind: TimedOut},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			file := child + strings.ReplaceAll(tc.name, " ", "-")
			h := s.hook(t, HookUsage, `CHILD="`+file+`"`+"\n"+tc.body, func(o *HookOptions) { o.Timeout = 2 * time.Second })
			e := asError(t, h.Call(t.Context(), Call{}, &UsageReply{}))
			if e.Kind != tc.kind {
				t.Errorf("%+v", e)
			}
			if tc.child {
				pid := pidFile(t, file)
				testkit.Eventually(t, "the child is gone", func() bool { return !alive(pid) })
			}
		})
	}
}

// TestOutputIsBounded: what is kept is bounded, what is counted is not.
//
//attack:actor malicious script
//attack:does Writes without end, to fill the memory of the server and its database.
//attack:control Of what a program writes only the beginning is kept, the rest is counted.
//attack:remove internal/scripts/output.go: c.kept = append(c.kept, data[:min(n, max(0, c.limit-len(c.kept)))]...) => c.kept = append(c.kept, data...)
func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(o *Options) { o.MaxOutput = 1 << 20 })
	h := s.hook(t, HookUsage, `head -c 3000000 /dev/zero | tr '\0' o; head -c 5000000 /dev/zero | tr '\0' e >&2`, nil)
	if e := asError(t, h.Call(t.Context(), Call{}, &UsageReply{})); e.Kind != InvalidReply {
		t.Errorf("%+v", e)
	}
	e := s.log.last(t)
	if e.StdoutBytes != 3_000_000 || e.StderrBytes != 5_000_000 {
		t.Errorf("%d and %d bytes", e.StdoutBytes, e.StderrBytes)
	}
	for _, text := range []string{e.Stdout, e.Stderr} {
		if len(text) < maxRecorded || len(text) > maxRecorded+100 || !strings.Contains(text, "[cut: 1048576 bytes in all]") {
			t.Errorf("%d bytes are kept", len(text))
		}
	}
}

// TestBackgroundChildren that hold the output open do not keep the call (contract 42 SCR-8).
//
//attack:actor malicious script
//attack:does Ends at once and leaves a child behind that holds the output open, so that the server waits for ever.
//attack:control Reading ends a moment after the program.
//attack:remove internal/scripts/process.go: _ = c.pipe.SetReadDeadline(deadline) // fails => _ = deadline // fails
func TestBackgroundChildren(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	file := filepath.Join(s.dir, "pid")
	h := s.hook(t, HookUsage, `sleep 1000 & echo $! > `+file+`; echo '{"usageInBytes": 5}'`, func(o *HookOptions) { o.Timeout = 10 * time.Minute })
	done := make(chan error, 1)
	go func() { done <- h.Call(context.Background(), Call{}, &UsageReply{}) }()
	pid := pidFile(t, file)
	defer syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // cleaning up
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testkit.Patience):
		t.Fatal("the call waits for the child")
	}
}

// TestInterruption: a call ends soon after its context, with its program.
func TestInterruption(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	file := filepath.Join(s.dir, "pid")
	h := s.hook(t, HookUsage, `echo $$ > `+file+`; sleep 1000`, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Call(ctx, Call{}, &UsageReply{}) }()
	pid := pidFile(t, file)
	cancel()
	if e := asError(t, <-done); e.Kind != Interrupted || !e.Kind.Retryable() {
		t.Errorf("%+v", e)
	}
	if alive(pid) {
		t.Error("the program still runs")
	}
	if s.log.last(t).Result != string(Interrupted) {
		t.Error("not written down")
	}
	if err := h.Call(ctx, Call{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// playService calls a hanging script and is killed meanwhile.
func playService() {
	r, err := New(Options{Provider: "p", Spool: os.Args[2], Record: &records{}, Temporary: true})
	if err == nil {
		err = r.Open()
	}
	var h *Hook
	if err == nil {
		h, err = r.Hook(HookOptions{Name: HookUsage, Path: os.Args[1]})
	}
	if err == nil {
		err = h.Call(context.Background(), Call{}, &UsageReply{})
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestKilledService: a program does not outlive the service, and its request file is removed at the next start.
func TestKilledService(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	spool := testkit.PrivateDir(t)
	file := filepath.Join(s.dir, "pid")
	path := s.script(t, "hang", `echo $$ > `+file+`; exec sleep 1000`)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, path, spool)
	cmd.Env = []string{childEnv + "=call"}
	cmd.Stdout = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := pidFile(t, file)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testkit.Eventually(t, "the program is gone", func() bool { return !alive(pid) })
	if names, _ := os.ReadDir(spool); len(names) != 1 {
		t.Errorf("request files: %v", names)
	}
	if err := os.WriteFile(filepath.Join(spool, "of-somebody-else"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{Provider: "p", Spool: spool, Record: s.log})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if names, _ := os.ReadDir(spool); len(names) != 1 || names[0].Name() != "of-somebody-else" {
		t.Errorf("left: %v", names)
	}
}

func TestSpoolMustBeOurs(t *testing.T) {
	t.Parallel()
	for _, mode := range []os.FileMode{0o750, 0o701, 0o777} {
		dir := testkit.PrivateDir(t)
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		r, err := New(Options{Provider: "p", Spool: dir, Record: &records{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Open(); err == nil {
			t.Errorf("mode %04o was accepted", mode)
			r.Close()
		}
	}
	missing := filepath.Join(testkit.PrivateDir(t), "new")
	r, err := New(Options{Provider: "p", Spool: missing, Record: &records{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if st, err := os.Stat(missing); err != nil || st.Mode().Perm() != 0o700 {
		t.Error(st, err)
	}
}

// TestTurns: 80 calls for 8 keys at once: never two of one key, never more than the hook allows, in order per key.
func TestTurns(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	journal := filepath.Join(s.dir, "journal")
	h := s.hook(t, HookQuotaUpdated, `
		key=$(jq -r .key "$1"); n=$(jq -r .n "$1")
		mkdir "`+s.dir+`/busy-$key" || exit 1
		echo "$key $n" >> `+journal+`
		running=$(ls -d `+s.dir+`/busy-* | wc -l)
		[ "$running" -le 3 ] || exit 2
		rmdir "`+s.dir+`/busy-$key"`, func(o *HookOptions) { o.Concurrency = 3 })
	var wg sync.WaitGroup
	var failed atomic.Int32
	for key := range 8 {
		for n := range 10 {
			wg.Go(func() {
				type request struct {
					Key string `json:"key"`
					N   int    `json:"n"`
				}
				if err := h.Call(t.Context(), Call{Key: fmt.Sprint(key), Request: request{fmt.Sprint(key), n}}, nil); err != nil {
					failed.Add(1)
					t.Error(err)
				}
			})
			waitQueued(t, s.Runner, fmt.Sprint("change/", key), n)
		}
	}
	wg.Wait()
	text, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for line := range strings.Lines(string(text)) {
		key, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n != fmt.Sprint(next[key]) {
			t.Fatalf("key %s: call %s came as number %d", key, n, next[key])
		}
		next[key]++
	}
	if len(next) != 8 || s.log.count() != 80 {
		t.Errorf("%d keys, %d calls", len(next), s.log.count())
	}
	if len(s.lanes.byKey) != 0 {
		t.Errorf("lanes are left: %v", s.lanes.byKey)
	}
}

// waitQueued waits until the n-th call of a lane has arrived, or the lane has moved on.
func waitQueued(t *testing.T, r *Runner, lane string, n int) {
	t.Helper()
	deadline := time.Now().Add(50 * time.Millisecond)
	for time.Now().Before(deadline) {
		r.lanes.mu.Lock()
		queued := len(r.lanes.byKey[lane])
		r.lanes.mu.Unlock()
		if queued > n {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// TestLanes: giving up a place in the middle disturbs nobody.
func TestLanes(t *testing.T) {
	t.Parallel()
	var l lanes
	first, err := l.enter(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { _, err := l.enter(ctx, "k"); second <- err }()
	testkit.Eventually(t, "the second waits", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.byKey["k"]) == 2 })
	third := make(chan func(), 1)
	go func() { leave, _ := l.enter(context.Background(), "k"); third <- leave }()
	testkit.Eventually(t, "the third waits", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.byKey["k"]) == 3 })
	if other, err := l.enter(t.Context(), "other"); err != nil {
		t.Error(err)
	} else {
		other()
	}
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	first()
	first() // twice is once
	(<-third)()
	if len(l.byKey) != 0 {
		t.Errorf("%v", l.byKey)
	}
}
