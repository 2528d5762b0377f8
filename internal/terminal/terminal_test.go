package terminal

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
	testUser   = ident.UCloudUser("AdaLovelace#4821")
	testOrigin = "https://ucloud.example.org"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(HolderEnv); mode != "" {
		os.Exit(RunHolder(mode))
	}
	if order := os.Getenv(strangerEnv); order != "" {
		stranger(order)
		return
	}
	goleak.VerifyTestMain(m)
}

// memory keeps sessions as the server does: each works once.
type memory struct {
	mu       sync.Mutex // guards the fields below
	sessions map[string]ipcapi.SessionItem
	n        int
}

func (m *memory) Create(_ context.Context, purpose string, items []ipcapi.SessionItem) (tokens []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range items {
		m.n++
		token := fmt.Sprintf("%s-%d", purpose, m.n)
		m.sessions[token] = it
		tokens = append(tokens, token)
	}
	return tokens, nil
}

func (m *memory) Consume(_ context.Context, purpose, token string) (ipcapi.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, ok := m.sessions[token]
	if !ok || !strings.HasPrefix(token, purpose+"-") {
		return ipcapi.Session{}, failure.New(failure.NotFound, "This link is not valid, or it has expired")
	}
	delete(m.sessions, token)
	return ipcapi.Session{Object: it.Object, Data: it.Data}, nil
}

func (m *memory) Touch(context.Context, ipcapi.SessionNote) error      { return nil }
func (m *memory) Close(context.Context, string, string) error          { return nil }
func (noTasks) Register(string, tasks.Runner)                          {}
func (noTasks) Submit(context.Context, tasks.Spec) (id int64, e error) { return 1, nil }

type noTasks struct{}

// world is an instance with a job of the local engine and a drive.
type world struct {
	t        testing.TB
	provider string // of its own for each test, so that they do not see each other's holders
	sessions *memory
	svc      *Service
	set      Settings
	url      string
	dir      string // of the job, and the drive 7

	mu  sync.Mutex // guards the fields below
	job ipcapi.JobRecord
}

func newWorld(t testing.TB, change func(*Settings)) *world {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	w := &world{
		t: t, provider: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())) + fmt.Sprint(os.Getpid()),
		sessions: &memory{sessions: map[string]ipcapi.SessionItem{}}, dir: dir,
		set: Settings{Enabled: true, PublicURL: "https://hpc.example.org", Origins: []string{testOrigin}, Shell: "/bin/bash", Detach: time.Hour},
	}
	w.job = ipcapi.JobRecord{ID: "512", Own: true, Engine: ipcapi.EngineLocal, EngineID: "1", State: providerapi.JobRunning, Folder: dir, Replicas: 1}
	if change != nil {
		change(&w.set)
	}
	w.start()
	t.Cleanup(func() {
		w.svc.EndAll(context.Background())
		testkit.Eventually(t, "the shells to end", func() bool {
			all, err := w.svc.holders.list(context.Background())
			must(t, err)
			return len(all) == 0
		})
	})
	return w
}

// start makes an instance. The one before has ended.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.svc = New(Options{
		Provider: w.provider, User: testUser, Sessions: w.sessions, Log: log, Settings: w.set,
		Account: Account{UID: ident.UID(os.Getuid()), Name: "ada", Home: w.dir},
		Job: func(_ context.Context, id string) (ipcapi.JobRecord, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if id != w.job.ID {
				return ipcapi.JobRecord{}, failure.New(failure.NotFound, "unknown")
			}
			return w.job, nil
		},
		Drive: func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
			if id != "7" {
				return providerapi.Drive{}, failure.New(failure.NotFound, "unknown")
			}
			return providerapi.Drive{
				ID: "7", ProviderGeneratedID: w.provider + "-x\n" + w.dir, Owner: providerapi.ResourceOwner{CreatedBy: testUser},
				Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{ID: "s", Category: "s", Provider: w.provider}},
			}, nil
		},
		Env: func() []string {
			return []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir, "LANG=C.UTF-8", "TERM=dumb", "BASH_SILENCE_DEPRECATION_WARNING=1"}
		},
	})
	f := files.New(files.Options{Provider: w.provider, Log: log, Tasks: noTasks{}})
	key := hoptoken.NewKey()
	h := fileserver.New(fileserver.Options{
		Provider: w.provider, Files: f, Log: log, Routes: w.svc.Routes(),
		Start: ipcapi.Start{Provider: w.provider, User: testUser, UID: 7, HopKey: key[:]},
	})
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		r.Header.Set(hoptoken.Header, hoptoken.Mint(key, hoptoken.Claims{
			UID: 7, User: testUser, Method: r.Method, Path: r.URL.Path, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassBrowser,
		}))
		h.ServeHTTP(rw, r)
	}))
	w.url = srv.URL
	svc := w.svc
	w.t.Cleanup(func() {
		svc.Close()
		srv.Close()
		testkit.Eventually(w.t, "the sockets to end", func() bool { return svc.sockets.Load() == 0 })
		must(w.t, f.Close(context.Background()))
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openJob gives an identifier for a terminal in the job.
func (w *world) openJob() string {
	w.t.Helper()
	w.mu.Lock()
	job := w.job
	w.mu.Unlock()
	ses, err := w.svc.OpenJob(w.t.Context(), &job, 0)
	must(w.t, err)
	if ses.Type != "shell" || ses.JobID != "512" || ses.DomainOverride != "wss://hpc.example.org" || ses.SessionIdentifier == "" {
		w.t.Errorf("session %+v", ses)
	}
	return ses.SessionIdentifier
}

// browser is one terminal in a browser.
type browser struct {
	t      testing.TB
	ws     *websocket.Conn
	stream int
	acks   map[string]int
	out    strings.Builder
}

func (w *world) dial() *browser {
	w.t.Helper()
	ws, _, err := websocket.Dial(w.t.Context(), "ws"+strings.TrimPrefix(w.url, "http")+"/ucloud/"+w.provider+"/websocket?session=x&usernameHint=y",
		&websocket.DialOptions{HTTPHeader: http.Header{"Origin": {testOrigin}}})
	must(w.t, err)
	w.t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(1 << 20)
	return &browser{t: w.t, ws: ws, acks: map[string]int{}}
}

// open dials and begins.
func (w *world) open(id string) *browser {
	w.t.Helper()
	b := w.dial()
	b.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":90,"rows":30}`, id))
	if got := b.raw(); got != `{"type":"message","payload":{"type":"initialize"},"streamId":"0"}` {
		w.t.Fatalf("answer to initialize: %s", got)
	}
	return b
}

func (b *browser) send(payload string) (stream string) {
	b.t.Helper()
	stream = fmt.Sprint(b.stream)
	b.stream++
	must(b.t, b.ws.Write(b.t.Context(), websocket.MessageText, []byte(`{"call":"jobs.compute.x.shell.open","streamId":"`+stream+`","payload":`+payload+`}`)))
	return stream
}

func (b *browser) input(text string) string {
	b.t.Helper()
	raw, err := json.Marshal(text)
	must(b.t, err)
	return b.send(`{"type":"input","data":` + string(raw) + `}`)
}

func (b *browser) read() (string, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 60*time.Second)
	defer cancel()
	kind, data, err := b.ws.Read(ctx)
	if err == nil && (kind != websocket.MessageText || !utf8.Valid(data)) {
		b.t.Errorf("%v frame %q", kind, data)
	}
	return string(data), err
}

func (b *browser) raw() string {
	b.t.Helper()
	s, err := b.read()
	must(b.t, err)
	return s
}

// next takes one message.
func (b *browser) next() error {
	b.t.Helper()
	data, err := b.read()
	if err != nil {
		return err
	}
	var m providerapi.Reply[providerapi.ShellResponse]
	d := json.NewDecoder(strings.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		b.t.Fatalf("%s: %v", data, err)
	}
	switch {
	case m.Type != "message":
		b.t.Fatalf("%s", data)
	case m.Payload.Type == "data" && m.StreamID == "0" && m.Payload.Data != "":
		b.out.WriteString(m.Payload.Data)
	case m.Payload.Type == "ack" && m.StreamID != "":
		b.acks[m.StreamID]++
	default:
		b.t.Fatalf("%s", data)
	}
	return nil
}

// until takes messages until the output has the text.
func (b *browser) until(text string) string {
	b.t.Helper()
	b.when("output "+text, func() bool { return strings.Contains(b.out.String(), text) })
	return b.out.String()
}

func (b *browser) when(what string, holds func() bool) {
	b.t.Helper()
	for !holds() {
		if err := b.next(); err != nil {
			b.t.Fatalf("waiting for %s: %v, output %.3000q", what, err, b.out.String())
		}
	}
}

// end takes messages until the socket is closed, and gives how.
func (b *browser) end() websocket.StatusCode {
	b.t.Helper()
	for {
		if err := b.next(); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// pid is the process id of the shell. What is typed differs from what is looked for.
func (b *browser) pid() string {
	b.t.Helper()
	b.out.Reset()
	b.input("echo pi'd'=$$.\r")
	text := b.until("pid=")
	b.until(".\r\n")
	_, rest, _ := strings.Cut(b.out.String(), "pid=")
	_ = text
	pid, _, _ := strings.Cut(rest, ".")
	return pid
}

// TestTerminal is a conversation with a shell.
func TestTerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	ack := b.input("echo one'two'; pwd; echo $TERM/$LANG/$UCLOUD_JOB_ID/$0/${UCLOUD_USER_TERMINAL-none}; tty; stty size\r")
	out := b.until("30 90")
	for _, want := range []string{"onetwo", "\n" + w.dir + "\r\n", "xterm-256color/C.UTF-8/512/-bash/none", "/dev/pts/"} {
		if !strings.Contains(out, want) {
			t.Errorf("output has no %q: %q", want, out)
		}
	}
	b.when("the acknowledgement", func() bool { return b.acks[ack] == 1 })
	ack = b.send(`{"type":"resize","cols":132,"rows":50}`)
	b.when("the acknowledgement", func() bool { return b.acks[ack] == 1 })
	b.input("stty size\r")
	b.until("50 132")
	ack = b.send(`{"type":"initialize","sessionIdentifier":"x","cols":1,"rows":1}`) // once more: acknowledged, nothing else
	b.when("the acknowledgement", func() bool { return b.acks[ack] == 1 })
	b.input("stty size; echo do'ne'\r")
	if out := b.until("done"); !strings.HasSuffix(strings.TrimRight(out[:strings.Index(out, "done")], "\r\n"), "50 132") {
		t.Errorf("%q", out)
	}
}

func TestUTF8(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.input("printf '\\342\\202'; sleep 0.05; printf '\\254\\377|æ日🎉|'; echo e'nd'\r")
	if out := b.until("end\r\n"); !strings.Contains(out, "€\ufffd|æ日🎉|end") {
		t.Errorf("%q", out)
	}
	b.input("echo æ日🎉 | od -An -tx1\r")
	b.until("c3 a6 e6 97 a5 f0 9f 8e 89 0a")
}

// TestEnd: the socket is closed when the shell ends, with all of its output before that.
func TestEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.input("seq 30000; exec echo fare'well'\r")
	if code := b.end(); code != websocket.StatusNormalClosure {
		t.Errorf("closed with %v", code)
	}
	if out := b.out.String(); !strings.Contains(out, "\n29999\r\n30000\r\nfarewell\r\n") {
		t.Errorf("%d bytes, ends with %.100q", len(out), out[max(0, len(out)-100):])
	}
	// Also if it has left something in the background that holds the terminal.
	b = w.open(w.openJob())
	b.input("sleep 1000 & exec echo fare'well'\r")
	b.end()
	if !strings.Contains(b.out.String(), "farewell") {
		t.Errorf("%q", b.out.String())
	}
}

// TestIdentifiers: unknown ones, used ones, and those of other things.
func TestIdentifiers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	used := w.openJob()
	b := w.open(used)
	uploads, err := w.sessions.Create(t.Context(), ipcapi.PurposeUpload, []ipcapi.SessionItem{{Data: []byte(`{"v":1,"job":"512"}`)}})
	must(t, err)
	odd, err := w.sessions.Create(t.Context(), ipcapi.PurposeShell, []ipcapi.SessionItem{
		{Data: []byte(`{"v":1}`)},
		{Data: []byte(`{"v":1,"job":"512","path":"/7"}`)},
		{Data: []byte(`[]`)},
		{Data: []byte(`{"v":1,"job":"513"}`)},
		{Data: []byte(`{"v":1,"job":"512","rank":1}`)},
		{Data: []byte(`{"v":1,"job":"512","rank":-1}`)},
	})
	must(t, err)
	for _, id := range append([]string{"", used, "x", strings.Repeat("x", 1000), uploads[0]}, odd...) {
		c := w.dial()
		c.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":80,"rows":24}`, id))
		if code := c.end(); code != websocket.StatusPolicyViolation || len(c.acks)+c.out.Len() > 0 {
			t.Errorf("%.20q: %v, %v, %q", id, code, c.acks, c.out.String())
		}
	}
	b.input("echo still'here'\r")
	b.until("stillhere")
}

// TestJobIsLookedUpAgain: what was true when the link was made need not be true when it is used.
func TestJobIsLookedUpAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for name, change := range map[string]func(*ipcapi.JobRecord){
		"ended":       func(r *ipcapi.JobRecord) { r.State = providerapi.JobSuccess },
		"queued":      func(r *ipcapi.JobRecord) { r.State = providerapi.JobInQueue },
		"another's":   func(r *ipcapi.JobRecord) { r.Own = false },
		"gone":        func(r *ipcapi.JobRecord) { r.ID = "513" },
		"odd node":    func(r *ipcapi.JobRecord) { r.Engine = ipcapi.EngineSlurm; r.Nodes = []string{"-oProxyCommand=x"} },
		"no node yet": func(r *ipcapi.JobRecord) { r.Engine = ipcapi.EngineSlurm },
		"odd id": func(r *ipcapi.JobRecord) {
			r.Engine, r.Nodes, r.EngineID = ipcapi.EngineSlurm, []string{"c1"}, "--uid=0"
		},
	} {
		id := w.openJob()
		w.mu.Lock()
		before := w.job
		change(&w.job)
		w.mu.Unlock()
		b := w.dial()
		b.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":80,"rows":24}`, id))
		if code := b.end(); code != websocket.StatusPolicyViolation {
			t.Errorf("%s: %v", name, code)
		}
		w.mu.Lock()
		w.job = before
		w.mu.Unlock()
	}
}

// TestWrongFrames: whoever does not speak the protocol is not talked to.
func TestWrongFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for _, payload := range []string{
		`{"type":"input","data":"x"}`, `{"type":"resize","cols":1,"rows":1}`, `{"type":"x"}`, `[]`, `{"type":"initialize","cols":"80"}`, `{`,
	} {
		b := w.dial()
		must(t, b.ws.Write(t.Context(), websocket.MessageText, []byte(`{"streamId":"0","payload":`+payload+`}`)))
		if code := b.end(); code != websocket.StatusPolicyViolation {
			t.Errorf("%s: %v", payload, code)
		}
	}
	b := w.dial()                                                              // too much before anything is known of it
	b.ws.Write(t.Context(), websocket.MessageText, make([]byte, firstBytes+1)) //nolint:errcheck // seen below
	if code := b.end(); code != websocket.StatusMessageTooBig {
		t.Errorf("a long first message: %v", code)
	}
	b = w.open(w.openJob())
	must(t, b.ws.Write(t.Context(), websocket.MessageBinary, []byte("x")))
	if code := b.end(); code != websocket.StatusUnsupportedData {
		t.Errorf("binary: %v", code)
	}
	b = w.open(w.openJob())
	b.send(`{"type":"what"}`)
	if code := b.end(); code != websocket.StatusPolicyViolation {
		t.Errorf("an unknown type: %v", code)
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	_, resp, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(w.url, "http")+"/ucloud/"+w.provider+"/websocket?session=x&usernameHint=y",
		&websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://evil.example.org"}}})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a strange page: %v", err)
	}
	w.set.Enabled = false
	w.svc.SetSettings(w.set)
	if _, _, err = websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(w.url, "http")+"/ucloud/"+w.provider+"/websocket?session=x&usernameHint=y", nil); err == nil {
		t.Error("terminals are switched off")
	}
	if _, err := w.svc.OpenJob(t.Context(), &w.job, 0); !failure.Is(err, failure.Invalid) {
		t.Errorf("%v", err)
	}
	if _, err := w.svc.OpenFolder(t.Context(), "/7"); !failure.Is(err, failure.Invalid) {
		t.Errorf("%v", err)
	}
}

// TestFolder: a shell begins in the folder, whatever its name, and not outside of the drive.
func TestFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	odd := "odd $(touch pwned) 'name' æ\n;x"
	must(t, os.MkdirAll(filepath.Join(w.dir, odd), 0o700))
	must(t, os.WriteFile(filepath.Join(w.dir, "file"), nil, 0o600))
	must(t, os.Symlink("/etc", filepath.Join(w.dir, "out")))
	ses, err := w.svc.OpenFolder(t.Context(), "/7/"+odd)
	must(t, err)
	if ses.JobID != "/7/"+odd || ses.Type != "shell" {
		t.Errorf("%+v", ses)
	}
	b := w.open(ses.SessionIdentifier)
	b.input("pwd | od -An -c -w1000; echo e'nd'\r")
	if out := b.until("end\r\n"); !strings.Contains(strings.ReplaceAll(out, "   ", ""), `$(touch`) || !strings.Contains(out, `\n   ;   x`) {
		t.Errorf("%q", out)
	}
	for path, kind := range map[string]failure.Kind{
		"/7/none": failure.NotFound, "/7/file": failure.NotFound, "/7/out": failure.Forbidden, "/8": failure.NotFound, "/7/../8": failure.Invalid, "7": failure.Invalid,
		"": failure.Invalid, "/": failure.NotFound,
	} {
		if _, err := w.svc.OpenFolder(t.Context(), path); !failure.Is(err, kind) {
			t.Errorf("%q: %v, want kind %d", path, err, kind)
		}
	}
	// The folder may be gone, or be another one, when the browser comes.
	ses, err = w.svc.OpenFolder(t.Context(), "/7/"+odd)
	must(t, err)
	must(t, os.Remove(filepath.Join(w.dir, odd)))
	must(t, os.Symlink("/etc", filepath.Join(w.dir, odd)))
	b = w.dial()
	b.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":80,"rows":24}`, ses.SessionIdentifier))
	if code := b.end(); code != websocket.StatusPolicyViolation {
		t.Errorf("a folder that has become a link: %v", code)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "pwned")); err == nil {
		t.Error("the name of a folder was executed")
	}
}
