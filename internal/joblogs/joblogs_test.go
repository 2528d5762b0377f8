package joblogs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
)

const (
	testProvider = "hpc-example"
	testUser     = ident.UCloudUser("AdaLovelace#4821")
	testUID      = ident.UID(61021)
	testJob      = "512"
	path         = "/ucloud/jobs.provider." + testProvider + "/websocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// jobs are the server's records.
type jobs struct {
	mu   sync.Mutex // guards the fields below
	recs map[string]ipcapi.JobRecord
	tick chan struct{} // closed and replaced at each change
	down bool          // the next watches fail
}

func (j *jobs) set(r ipcapi.JobRecord) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.recs[r.ID] = r
	close(j.tick)
	j.tick = make(chan struct{})
}

// cut ends all watches, as a restart of the server does.
func (j *jobs) cut(down bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.down = down
	close(j.tick)
	j.tick = make(chan struct{})
}

func (j *jobs) Watch(ctx context.Context, id string, see func(ipcapi.JobRecord) bool) error {
	for {
		j.mu.Lock()
		r, ok := j.recs[id]
		tick, down := j.tick, j.down
		j.mu.Unlock()
		if down {
			return failure.New(failure.Unavailable, "the server restarts")
		}
		if !ok {
			return failure.New(failure.NotFound, "unknown")
		}
		if !see(r) {
			return nil
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// world is an instance that follows logs.
type world struct {
	t      testing.TB
	jobs   *jobs
	svc    *Service
	url    string
	dir    string // of testJob
	claims func(*hoptoken.Claims)
}

type noTasks struct{}

func (noTasks) Register(string, tasks.Runner)                     {}
func (noTasks) Submit(context.Context, tasks.Spec) (int64, error) { return 1, nil }

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, jobs: &jobs{recs: map[string]ipcapi.JobRecord{}, tick: make(chan struct{})}, dir: filepath.Join(t.TempDir(), testJob)}
	must(t, os.Mkdir(w.dir, 0o700))
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.svc = New(Options{Provider: testProvider, Jobs: w.jobs, Log: log})
	w.svc.time.gap, w.svc.time.unknown, w.svc.time.settle, w.svc.time.settleStep = 5*time.Millisecond, 300*time.Millisecond, 100*time.Millisecond, 20*time.Millisecond
	f := files.New(files.Options{Provider: testProvider, Log: log, Tasks: noTasks{}})
	key := hoptoken.NewKey()
	h := fileserver.New(fileserver.Options{
		Provider: testProvider, Files: f, Log: log, Routes: w.svc.Routes(),
		Start: ipcapi.Start{Provider: testProvider, User: testUser, UID: testUID, HopKey: key[:]},
	})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := hoptoken.Claims{
			UID: testUID, User: testUser, Method: r.Method, Path: r.URL.Path, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassCore,
		}
		if w.claims != nil {
			w.claims(&c)
		}
		r.Header.Set(hoptoken.Header, hoptoken.Mint(key, c))
		h.ServeHTTP(rw, r)
	}))
	w.url = srv.URL
	t.Cleanup(func() {
		w.svc.Close()
		srv.Close()
		http.DefaultClient.CloseIdleConnections()
		testkit.Eventually(t, "the sockets to end", func() bool { return w.svc.sockets.Load() == 0 })
		must(t, f.Close(context.Background()))
	})
	return w
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) { return len(p), nil }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) record(state providerapi.JobState) ipcapi.JobRecord {
	return ipcapi.JobRecord{ID: testJob, State: state, Folder: w.dir, Replicas: 2, Own: true}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(w.t, err)
	_, err = f.WriteString(text)
	must(w.t, err)
	must(w.t, f.Close())
}

// core is Core's side of a socket.
type core struct {
	t      testing.TB
	ws     *websocket.Conn
	text   map[string]string // by rank and channel
	ended  int
	pings  int
	stream string
}

const initFrame = `{"call":"jobs.provider.` + testProvider + `.follow","streamId":"ignored","payload":{"type":"init","job":{"id":"` + testJob + `","owner":{"createdBy":"AdaLovelace#4821","project":null}}},"bearer":"","project":null}`

func (w *world) dial() *core {
	w.t.Helper()
	ws, resp, err := websocket.Dial(w.t.Context(), "ws"+strings.TrimPrefix(w.url, "http")+path+"?usernameHint=x", nil)
	must(w.t, err)
	w.t.Cleanup(func() { ws.CloseNow() })
	if resp.Header.Get("ucloud-no-bearer") != "true" {
		w.t.Error("Core is not told to leave its token out")
	}
	ws.SetReadLimit(1 << 20)
	return &core{t: w.t, ws: ws, text: map[string]string{}}
}

// follow dials and asks for the log of the job.
func (w *world) follow() *core {
	w.t.Helper()
	c := w.dial()
	c.send(initFrame)
	return c
}

func (c *core) send(frame string) {
	c.t.Helper()
	must(c.t, c.ws.Write(c.t.Context(), websocket.MessageText, []byte(frame)))
}

// next takes one frame.
func (c *core) next(ctx context.Context) error {
	kind, data, err := c.ws.Read(ctx)
	if err != nil {
		return err
	}
	if kind != websocket.MessageText || !utf8.Valid(data) {
		c.t.Fatalf("%v frame %q", kind, data)
	}
	if string(data) == `{"ping":"pong"}` {
		c.pings++
		return nil
	}
	var m providerapi.Reply[providerapi.LogChunk]
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		c.t.Fatalf("%s: %v", data, err)
	}
	if m.StreamID != "ignored" || m.Payload.StreamID == "" || !strings.Contains(string(data), `"channel":null`) {
		c.t.Fatalf("frame %s", data)
	}
	c.stream = m.Payload.StreamID
	switch p := m.Payload; {
	case m.Type == "response" && m.Status == 200 && p.Stdout == nil && p.Stderr == nil:
		c.ended++
	case m.Type == "message" && p.Stdout != nil && p.Stderr == nil && c.ended == 0:
		c.text[fmt.Sprint(p.Rank, " out")] += *p.Stdout
	case m.Type == "message" && p.Stderr != nil && p.Stdout == nil && c.ended == 0:
		c.text[fmt.Sprint(p.Rank, " err")] += *p.Stderr
	default:
		c.t.Fatalf("frame %s after %d ends", data, c.ended)
	}
	return nil
}

// until takes frames until the condition holds.
func (c *core) until(what string, holds func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	for !holds() {
		if err := c.next(ctx); err != nil {
			c.t.Fatalf("waiting for %s: %v; %d ends, log %.2000q", what, err, c.ended, c.text)
		}
	}
}

func (c *core) untilText(channel, want string) {
	c.t.Helper()
	c.until(channel+" "+want, func() bool { return strings.HasSuffix(c.text[channel], want) })
	if c.text[channel] != want {
		c.t.Errorf("%s: %q, want %q", channel, c.text[channel], want)
	}
}

// TestFollow is the life of a job: queued, running, ended.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := w.record(providerapi.JobInQueue)
	rec.Folder = ""
	w.jobs.set(rec)
	c := w.follow()
	w.jobs.set(w.record(providerapi.JobInQueue))
	w.jobs.set(w.record(providerapi.JobRunning))
	w.write("stdout.txt", "line one\n")
	c.untilText("0 out", "line one\n")
	w.write("stderr.txt", "an error line\n")
	c.untilText("0 err", "an error line\n")
	w.write("std-1.out", "from rank 1\n")
	c.untilText("1 out", "from rank 1\n")
	w.write("std-1.err", "trouble")
	c.untilText("1 err", "trouble")
	w.write("stdout.txt", "line two")
	c.untilText("0 out", "line one\nline two")
	w.jobs.set(w.record(providerapi.JobSuccess))
	c.until("the end", func() bool { return c.ended == 1 })

	// And once more, as a finished job.
	c = w.follow()
	c.until("the end", func() bool { return c.ended == 1 })
	if c.text["0 out"] != "line one\nline two" || c.text["1 out"] != "from rank 1\n" || c.text["0 err"] != "an error line\n" || c.text["1 err"] != "trouble" {
		t.Errorf("log of the finished job: %q", c.text)
	}
}

// TestStaysOpen: after the end Core closes, not we, and until then it hears of us.
func TestStaysOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.svc.keep = 10 * time.Millisecond
	w.jobs.set(w.record(providerapi.JobFailure))
	c := w.follow()
	c.until("the end", func() bool { return c.ended == 1 })
	after := c.pings
	c.until("signs of life", func() bool { return c.pings > after+3 })
	if c.ended != 1 {
		t.Errorf("%d ends", c.ended)
	}
	must(t, c.ws.Close(websocket.StatusNormalClosure, ""))
	testkit.Eventually(t, "the socket to end", func() bool { return w.svc.sockets.Load() == 0 })
}

// TestDrain: what is written before the end is sent before the final frame, however much.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.svc.SetReplay(64 << 20)
	w.jobs.set(w.record(providerapi.JobRunning))
	w.write("stdout.txt", "start\n")
	c := w.follow()
	c.untilText("0 out", "start\n")
	more := strings.Repeat("0123456789abcde\n", 1<<16)
	w.write("stdout.txt", more)
	w.write("stderr.txt", "last words")
	w.jobs.set(w.record(providerapi.JobSuccess))
	c.until("the end", func() bool { return c.ended == 1 })
	if c.text["0 out"] != "start\n"+more || c.text["0 err"] != "last words" {
		t.Errorf("%d and %d bytes", len(c.text["0 out"]), len(c.text["0 err"]))
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.jobs.set(w.record(providerapi.JobRunning))
	w.write("stdout.txt", "a long first text\n")
	c := w.follow()
	c.untilText("0 out", "a long first text\n")
	must(t, os.Truncate(filepath.Join(w.dir, "stdout.txt"), 0))
	w.write("stdout.txt", "second\n")
	c.untilText("0 out", "a long first text\nsecond\n")
	// Another file under the name, longer than the one before.
	must(t, os.WriteFile(filepath.Join(w.dir, "x"), []byte("a third text that is longer than the second\n"), 0o600))
	must(t, os.Rename(filepath.Join(w.dir, "x"), filepath.Join(w.dir, "stdout.txt")))
	c.untilText("0 out", "a long first text\nsecond\na third text that is longer than the second\n")
}

// TestLateFiles: neither the folder nor the files need be there.
func TestLateFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.svc.time.pollMost, w.svc.time.safety = 10*time.Millisecond, 50*time.Millisecond
	must(t, os.Remove(w.dir))
	w.jobs.set(w.record(providerapi.JobRunning))
	c := w.follow()
	must(t, os.Mkdir(w.dir, 0o700))
	w.write("std-0.out", "here\n")
	c.untilText("0 out", "here\n")
	must(t, os.RemoveAll(w.dir))
	must(t, os.Mkdir(w.dir, 0o700))
	w.write("std-0.out", "again\n")
	c.untilText("0 out", "here\nagain\n")
}

// TestWithoutInotify: on other file systems the log comes by looking.
func TestWithoutInotify(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.svc.time.poll, w.svc.time.pollMost = 5*time.Millisecond, 20*time.Millisecond
	f, err := openFolder(w.dir)
	must(t, err)
	fw := &follower{s: w.svc, news: &news{wake: make(chan struct{}, 1)}, f: f}
	rec := w.record(providerapi.JobRunning)
	fw.news.set(&rec, false)
	got := make(chan string, 10)
	fw.send = func(_ *source, quoted []byte) error {
		got <- string(quoted)
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); fw.run(ctx) }() //nolint:errcheck // it is cancelled
	for i := range 3 {
		w.write("stdout.txt", fmt.Sprint(i))
		if s := <-got; s != fmt.Sprintf("%q", fmt.Sprint(i)) {
			t.Errorf("%s", s)
		}
	}
	cancel()
	<-done
}

func TestWholeRunes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.jobs.set(w.record(providerapi.JobRunning))
	c := w.follow()
	w.write("stdout.txt", "x\xe2\x82")
	c.untilText("0 out", "x")
	w.write("stdout.txt", "\xac\xff\xf0\x9f")
	c.untilText("0 out", "x€\ufffd")
	w.jobs.set(w.record(providerapi.JobSuccess))
	c.until("the end", func() bool { return c.ended == 1 })
	if got := c.text["0 out"]; got != "x€\ufffd\ufffd\ufffd" {
		t.Errorf("%q", got)
	}
}

// TestReplay: only the end of a long log is sent, from the start of a line, and the user is told.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.svc.SetReplay(20_000)
	var all strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&all, "line %d æ\n", i)
	}
	w.write("stdout.txt", all.String())
	w.jobs.set(w.record(providerapi.JobSuccess))
	c := w.follow()
	c.until("the end", func() bool { return c.ended == 1 })
	note, rest, _ := strings.Cut(c.text["0 out"], "\n")
	if !strings.Contains(note, "KiB of the log are left out") || !strings.Contains(note, "stdout.txt") {
		t.Errorf("it begins with %q", note)
	}
	if !strings.HasPrefix(rest, "line ") || !strings.HasSuffix(all.String(), rest) || len(rest) > 20_000 || len(rest) < 19_000 {
		t.Errorf("%d bytes, %.40q", len(rest), rest)
	}
}

// TestNothingButTheJobsFiles: no link, no device, no other name.
//
//attack:actor malicious job
//attack:does Replaces its log by a link to a file of the user, so that whoever follows the log sees it.
//attack:control Logs are read without following links.
//attack:remove internal/joblogs/source.go: &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG { => &st, 0); err != nil {
//attack:remove internal/joblogs/source.go: s.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK => s.name, unix.O_RDONLY|unix.O_NONBLOCK
func TestNothingButTheJobsFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	secret := filepath.Join(t.TempDir(), "id_ed25519")
	must(t, os.WriteFile(secret, []byte("SECRET"), 0o600))
	must(t, os.Symlink(secret, filepath.Join(w.dir, "stdout.txt")))
	must(t, os.Symlink(filepath.Dir(secret), filepath.Join(w.dir, "std-1.out")))
	for _, name := range []string{"std-2.out", "std--1.out", "std-00.out", "std-0.out.old", "job.sbatch", "std-.err"} {
		w.write(name, "SECRET")
	}
	must(t, mkfifo(filepath.Join(w.dir, "stderr.txt")))
	w.write("std-0.out", "ours")
	w.jobs.set(w.record(providerapi.JobSuccess))
	c := w.follow()
	c.until("the end", func() bool { return c.ended == 1 })
	if len(c.text) != 1 || c.text["0 out"] != "ours" {
		t.Errorf("log %q", c.text)
	}
	// Nor if the folder is one.
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(w.dir, link))
	rec := w.record(providerapi.JobSuccess)
	rec.Folder = link
	w.jobs.set(rec)
	c = w.follow()
	c.until("the end", func() bool { return c.ended == 1 })
	if len(c.text) != 0 {
		t.Errorf("through a link: %q", c.text)
	}
}

// TestForeignJob: a job that the user may not see has no log, and Core does not come back for it at once.
func TestForeignJob(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("stdout.txt", "SECRET")
	c := w.follow() // nothing is known of it
	c.until("the end", func() bool { return c.ended == 1 })
	if len(c.text) != 0 {
		t.Errorf("log %q", c.text)
	}
}

// TestServerRestarts: the log goes on, and the end of the job is heard afterwards.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.jobs.set(w.record(providerapi.JobRunning))
	w.write("stdout.txt", "one")
	c := w.follow()
	c.untilText("0 out", "one")
	w.jobs.cut(true)
	w.write("stdout.txt", "two")
	c.untilText("0 out", "onetwo")
	w.jobs.cut(false)
	w.jobs.set(w.record(providerapi.JobExpired))
	c.until("the end", func() bool { return c.ended == 1 })
}

func TestCancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.jobs.set(w.record(providerapi.JobRunning))
	w.write("stdout.txt", "one")
	c := w.follow()
	c.untilText("0 out", "one")
	cancel := func(id string) {
		c.send(`{"call":"jobs.provider.` + testProvider + `.follow","streamId":"ignored","payload":{"type":"cancel","streamId":"` + id + `"}}`)
	}
	cancel("another")
	w.write("stdout.txt", "two")
	c.untilText("0 out", "onetwo")
	cancel(c.stream)
	c.until("the end", func() bool { return c.ended == 1 })
	w.write("stdout.txt", "three")
	cancel(c.stream) // harmless
	w.svc.Close()
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	for c.next(ctx) == nil { // fails the test if there is text
	}
}

// TestWrongFrames: whoever does not speak the protocol is not talked to.
func TestWrongFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("stdout.txt", "SECRET")
	w.jobs.set(w.record(providerapi.JobRunning))
	for name, frame := range map[string]string{
		"other call":     strings.Replace(initFrame, ".follow", ".open", 1),
		"other provider": strings.Replace(initFrame, "jobs.provider.", "jobs.provider.x", 1),
		"no JSON":        "{",
		"no job":         strings.Replace(initFrame, `"job"`, `"jobs"`, 1),
		"no id":          strings.Replace(initFrame, `"512"`, `""`, 1),
		"long id":        strings.Replace(initFrame, `"512"`, `"`+strings.Repeat("5", 1000)+`"`, 1),
		"number":         strings.Replace(initFrame, `"512"`, `512`, 1),
		"cancel first":   strings.Replace(initFrame, `"init"`, `"cancel"`, 1),
		"other type":     strings.Replace(initFrame, `"init"`, `"x"`, 1),
		"long stream":    strings.Replace(initFrame, "ignored", strings.Repeat("i", 1000), 1),
	} {
		c := w.dial()
		c.send(frame)
		if err := c.next(t.Context()); err == nil || len(c.text) > 0 {
			t.Errorf("%s: %v, %q", name, err, c.text)
		}
	}
	c := w.follow()
	c.untilText("0 out", "SECRET")
	c.send(initFrame)
	if err := c.next(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("a second request: %v", err)
	}
	c = w.dial()
	must(t, c.ws.Write(t.Context(), websocket.MessageBinary, []byte(initFrame)))
	if err := c.next(t.Context()); err == nil {
		t.Error("binary is accepted")
	}
}

// TestForCoreOnly: not for browsers, not for other users.
func TestForCoreOnly(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*hoptoken.Claims){
		"browser":      func(c *hoptoken.Claims) { c.Class = hoptoken.ClassBrowser },
		"another user": func(c *hoptoken.Claims) { c.User = "GraceHopper#1907" },
		"another uid":  func(c *hoptoken.Claims) { c.UID++ },
	} {
		w := newWorld(t)
		w.claims = change
		_, resp, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(w.url, "http")+path+"?usernameHint=x", nil)
		if err == nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := newWorld(t)
	resp, err := http.Get(w.url + path + "?usernameHint=x")
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("without an upgrade: %d", resp.StatusCode)
	}
}

// TestMany: several sockets on one job and on others share one inotify instance, which ends with the last of them.
func TestMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.jobs.set(w.record(providerapi.JobRunning))
	var all []*core
	for range 8 {
		all = append(all, w.follow())
	}
	w.write("stdout.txt", "hello")
	for _, c := range all {
		c.untilText("0 out", "hello")
	}
	for _, c := range all[1:] {
		c.ws.CloseNow() //nolint:errcheck // as browsers do
	}
	testkit.Eventually(t, "the other sockets to end", func() bool { return w.svc.sockets.Load() == 1 })
	w.write("stdout.txt", "world")
	all[0].untilText("0 out", "helloworld")
	all[0].ws.CloseNow() //nolint:errcheck // as browsers do
	testkit.Eventually(t, "the end of the watching", func() bool {
		w.svc.watch.mu.Lock()
		defer w.svc.watch.mu.Unlock()
		return w.svc.watch.file == nil
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(initFrame))
	f.Add([]byte(`{"call":"jobs.provider.hpc-example.follow","payload":{"type":"cancel","streamId":"x"}}`))
	f.Add([]byte(`{"payload":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(testProvider, data)
		if err != nil {
			return
		}
		if r.wish.Type == "init" && (r.wish.Job == nil || r.wish.Job.ID == "" || len(r.wish.Job.ID) > maxID) || len(r.StreamID) > maxID {
			t.Errorf("accepted %q", data)
		}
		for _, frame := range [][]byte{appendChunk(nil, r.StreamID, "s", 1, false, []byte(`""`)), appendEnd(nil, r.StreamID, "s")} {
			if !json.Valid(frame) {
				t.Errorf("answer %q", frame)
			}
		}
	})
}
