package transfers

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	filesvc "ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/transfers/dial"
	"ucloud-im/internal/uploads"
)

const (
	testUser = ident.UCloudUser("AdaLovelace#4821")
	testUID  = ident.UID(61021)
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if what := os.Getenv(playEnv); what != "" {
		play(what)
		return
	}
	goleak.VerifyTestMain(m)
}

// memory is a store of sessions without a server.
type memory struct {
	mu       sync.Mutex
	sessions map[string]*ipcapi.Session
	purposes map[string]string
	n        int
}

func newMemory() *memory {
	return &memory{sessions: map[string]*ipcapi.Session{}, purposes: map[string]string{}}
}

func (m *memory) Create(_ context.Context, purpose string, items []ipcapi.SessionItem) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var tokens []string
	for _, it := range items {
		m.n++
		token := fmt.Sprintf("%s-%d", purpose, m.n)
		m.sessions[token], m.purposes[token] = &ipcapi.Session{Object: it.Object, Data: it.Data}, purpose
		tokens = append(tokens, token)
	}
	return tokens, nil
}

func (m *memory) Consume(_ context.Context, purpose, token string) (ipcapi.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[token]
	if s == nil || m.purposes[token] != purpose {
		return ipcapi.Session{}, failure.New(failure.NotFound, "This link is not valid, or it has expired")
	}
	return *s, nil
}

func (m *memory) Touch(ctx context.Context, n ipcapi.SessionNote) error {
	if _, err := m.Consume(ctx, n.Purpose, n.Token); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.Note != nil {
		m.sessions[n.Token].Note = n.Note
	}
	return nil
}

func (m *memory) Close(_ context.Context, _, token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, token)
	return nil
}

func (m *memory) open(purpose string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for token := range m.sessions {
		if m.purposes[token] == purpose {
			n++
		}
	}
	return n
}

// board is where tasks are submitted to, and where the server hears about transfers.
type board struct {
	mu      sync.Mutex
	tasks   []tasks.Spec
	byKey   map[string]bool
	updates []ipcapi.TransferProgress
	ended   map[string]bool // keys of tasks that were cancelled or have ended
	away    error
}

func (b *board) Register(string, tasks.Runner) {}

func (b *board) Submit(_ context.Context, s tasks.Spec) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away != nil {
		return 0, b.away
	}
	if len(s.Key) != 16 {
		return 0, fmt.Errorf("a key of %d bytes", len(s.Key))
	}
	if !b.byKey[string(s.Key)] {
		b.byKey[string(s.Key)] = true
		b.tasks = append(b.tasks, s)
	}
	return int64(len(b.tasks)), nil
}

func (b *board) update(_ context.Context, p ipcapi.TransferProgress) (ipcapi.TransferVerdict, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away != nil {
		return ipcapi.TransferVerdict{}, b.away
	}
	k := string(p.Key)
	if b.ended[k] {
		return ipcapi.TransferVerdict{Ended: true}, nil
	}
	b.updates = append(b.updates, p)
	b.ended[k] = p.Outcome != ""
	return ipcapi.TransferVerdict{Ended: b.ended[k]}, nil
}

// outcome is the end that the server was told, "" if there is none.
func (b *board) outcome() (outcome, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, u := range b.updates {
		if u.Outcome != "" {
			return u.Outcome, u.State.Text
		}
	}
	return "", ""
}

func (b *board) all() []tasks.Spec {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]tasks.Spec{}, b.tasks...)
}

// site is one provider with an instance of the user.
type site struct {
	tb       testing.TB
	name     string
	dir      string // the drive
	sessions *memory
	board    *board
	transfer *Service
	uploads  *uploads.Service
	http     *httptest.Server
	listener *cutter
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func testSettings() Settings {
	return Settings{
		Outgoing: true, Incoming: true, Peers: []string{"*"}, Connections: 3, Dial: &dial.Policy{Networks: loopback, Plain: true},
	}
}

func newSite(tb testing.TB, name string, change func(*Settings)) *site {
	tb.Helper()
	s := &site{
		tb: tb, name: name, dir: tb.TempDir(), sessions: newMemory(),
		board: &board{byKey: map[string]bool{}, ended: map[string]bool{}},
	}
	set := testSettings()
	if change != nil {
		change(&set)
	}
	log := slog.New(slog.DiscardHandler)
	s.transfer = New(Options{
		Provider: name, User: testUser, Sessions: s.sessions, Tasks: s.board, Update: s.board.update, Log: log, Settings: set,
	})
	s.transfer.retryPause, s.transfer.tickEvery = 5*time.Millisecond, 20*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s.listener = &cutter{Listener: l}
	o := uploads.Options{
		Provider: name, User: testUser, Sessions: s.sessions, Log: log, SpillDir: tb.TempDir(),
		Settings: uploads.Settings{NoSync: true, PublicURL: "http://" + l.Addr().String()},
	}
	s.transfer.Hook(&o)
	s.uploads = uploads.New(o)
	s.transfer.Attach(s.uploads)
	s.http = &httptest.Server{Listener: s.listener, Config: &http.Server{Handler: gateway(tb, name, s.transfer, s.uploads, log)}}
	s.http.Start()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.uploads.Close(ctx); err != nil {
			tb.Error(err)
		}
		s.transfer.Close()
		s.http.Close()
	})
	return s
}

// gateway puts the checks of an instance in front of the services, and plays the gateway: requests with an Authorization
// header are Core's.
func gateway(tb testing.TB, name string, t *Service, u *uploads.Service, log *slog.Logger) http.Handler {
	key := hoptoken.NewKey()
	f := filesvc.New(filesvc.Options{Provider: name, Log: log, Timeout: time.Minute})
	tb.Cleanup(func() { f.Close(context.Background()) })
	h := fileserver.New(fileserver.Options{
		Provider: name, Files: f, Log: log, Routes: append(t.Routes(), u.Routes()...),
		Start: ipcapi.Start{Provider: name, User: testUser, UID: testUID, HopKey: key[:]},
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := hoptoken.Claims{
			UID: testUID, User: testUser, Method: r.Method, Path: r.URL.Path, RequestID: "0123456789abcdef",
			Arrival: time.Now(), Class: hoptoken.ClassBrowser,
		}
		if r.Header.Get("Authorization") != "" {
			c.Class = hoptoken.ClassCore
			r.Header.Set(ident.HeaderUser, testUser.HeaderValue())
		}
		r.Header.Set(hoptoken.Header, hoptoken.Mint(key, c))
		h.ServeHTTP(w, r)
	})
}

// cutter is a listener whose connections can be cut after a number of bytes.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	limit int64        // bytes that may still come in; 0: no limit
	next  func() int64 // the limit after a cut; nil: none
	cuts  int
	total int64          // bytes that came in
	bend  func(p []byte) // changes what comes in
	conns map[*cutConn]struct{}
}

func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	cc := &cutConn{conn, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		c.conns = map[*cutConn]struct{}{}
	}
	c.conns[cc] = struct{}{}
	return cc, nil
}

// cutOften cuts all connections whenever so many bytes have come in as next says; nil: never again.
func (c *cutter) cutOften(next func() int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next, c.limit = next, 0
	if next != nil {
		c.limit = next()
	}
}

func (c *cutter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

type cutConn struct {
	net.Conn
	c *cutter
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.c.total += int64(n)
	if c.c.bend != nil {
		c.c.bend(p[:n])
	}
	if c.c.limit > 0 {
		if c.c.limit -= int64(n); c.c.limit <= 0 {
			c.c.limit = 0
			c.c.cuts++
			if c.c.next != nil {
				c.c.limit = c.c.next()
			}
			for other := range c.c.conns {
				other.Conn.(*net.TCPConn).SetLinger(0)
				other.Conn.Close()
			}
			c.c.conns = nil
			return 0, net.ErrClosed
		}
	}
	return n, err
}

func (c *cutConn) Close() error {
	c.c.mu.Lock()
	delete(c.c.conns, c)
	c.c.mu.Unlock()
	return c.Conn.Close()
}

func (s *site) drive(permissions ...providerapi.Permission) providerapi.Drive {
	if permissions == nil {
		permissions = []providerapi.Permission{"READ", "EDIT"}
	}
	return providerapi.Drive{
		ID: "5123", ProviderGeneratedID: s.name + "-x\n" + s.dir,
		Owner:       providerapi.ResourceOwner{CreatedBy: testUser},
		Permissions: &providerapi.Permissions{Myself: permissions},
		Specification: providerapi.DriveSpecification{
			Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: s.name},
		},
	}
}

// noDrive is the drive that Core sends where none belongs to the step.
var noDrive = json.RawMessage(`{"createdAt":-62135596800000,"owner":{"project":null},"permissions":null,"specification":{"title":"","product":{"id":"","category":"","provider":""},"labels":null},"updates":null,"status":{"preferredDrive":false,"resolvedSupport":null,"resolvedProduct":null}}`)

// post makes a call of Core and checks both documents against the description.
func (s *site) post(body any) (int, map[string]any) {
	s.tb.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		s.tb.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, s.http.URL+"/ucloud/"+s.name+"/files/transfer", bytes.NewReader(raw))
	if err != nil {
		s.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		s.tb.Fatal(err)
	}
	if res.StatusCode == 200 {
		op := "ucloud.PROVIDER_ID.files.transfer"
		apischema.Provider(s.tb).Request(s.tb, op, raw)
		apischema.Provider(s.tb).Response(s.tb, op, text)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		s.tb.Fatalf("%v: %s", err, text)
	}
	return res.StatusCode, out
}

// steps makes the three calls, and gives the task of the source.
func steps(tb testing.TB, from, to *site, path, target string, protocols ...string) *fakeJob {
	tb.Helper()
	must := func(status int, answer map[string]any) map[string]any {
		tb.Helper()
		if status != 200 {
			tb.Fatalf("%d %v", status, answer)
		}
		return answer
	}
	one := must(from.post(map[string]any{
		"type": "InitiateSource", "sourcePath": "/5123" + path, "sourceCollection": from.drive(), "destinationProvider": to.name, "destinationCollection": noDrive,
	}))
	if protocols != nil { // those of another implementation
		one["supportedProtocols"] = protocols
	}
	two := must(to.post(map[string]any{
		"type": "InitiateDestination", "destinationPath": "/5123" + target, "destinationCollection": to.drive(), "sourceProvider": from.name,
		"supportedProtocols": one["supportedProtocols"], "sourceCollection": noDrive,
	}))
	must(from.post(map[string]any{
		"type": "Start", "session": one["session"], "selectedProtocol": two["selectedProtocol"], "protocolParameters": two["protocolParameters"],
		"sourceCollection": noDrive, "destinationCollection": noDrive,
	}))
	all := from.board.all()
	return &fakeJob{params: all[len(all)-1].Params}
}

// fakeJob is a task without a manager.
type fakeJob struct {
	mu       sync.Mutex
	params   json.RawMessage
	saved    json.RawMessage
	progress []tasks.Progress
	summary  string
	gate     chan struct{}
	stood    int // times that somebody waited
	keep     func(json.RawMessage)
}

func (j *fakeJob) Params() json.RawMessage { return j.params }

func (j *fakeJob) Saved() json.RawMessage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.saved
}

func (j *fakeJob) Save(state json.RawMessage) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.saved = state
	if j.keep != nil {
		j.keep(state)
	}
	return nil
}

func (j *fakeJob) Progress(p tasks.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.progress = append(j.progress, p)
}

func (j *fakeJob) Summary(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.summary = text
}

func (j *fakeJob) Paused() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.gate != nil
}

func (j *fakeJob) pause() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.gate = make(chan struct{})
}

func (j *fakeJob) resume() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.gate)
	j.gate = nil
}

func (j *fakeJob) stands() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stood > 0
}

func (j *fakeJob) Checkpoint(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		j.mu.Lock()
		gate := j.gate
		if gate != nil {
			j.stood++
		}
		j.mu.Unlock()
		if gate == nil {
			return nil
		}
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
}

// again runs a task until it is not to be tried again.
func again(ctx context.Context, s *Service, j *fakeJob) error {
	for n := 0; ; n++ {
		err := s.runSend(ctx, j)
		if err == nil || ctx.Err() != nil || !isTransient(err) {
			return err
		}
		if n > 1000 {
			return fmt.Errorf("it is tried again and again: %w", errors.Join(errors.New("no end"), err))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// isTransient tells whether the task would be tried again.
func isTransient(err error) bool {
	return err != nil && fmt.Sprintf("%T", err) == fmt.Sprintf("%T", tasks.Transient(io.EOF))
}

// plant makes a tree: paths to contents.
func plant(tb testing.TB, dir string, tree map[string]string) {
	tb.Helper()
	for path, content := range tree {
		full := dir + "/" + path
		if err := os.MkdirAll(filepath.Dir(full), 0o777); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o666); err != nil {
			tb.Fatal(err)
		}
		when := time.UnixMilli(1_600_000_000_000 + int64(len(path))*1_234_567)
		if err := os.Chtimes(full, when, when); err != nil {
			tb.Fatal(err)
		}
	}
}

// grown reads a tree of regular files, with their times.
func grown(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // it went while we looked
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(raw) > 100 {
			raw = []byte(hex.EncodeToString(sum(raw)))
		}
		out[strings.TrimPrefix(path, dir+"/")] = fmt.Sprintf("%s @%d", raw, info.ModTime().UnixMilli())
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// content is random, and the same for the same number.
func content(seed uint64, size int) string {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	b := make([]byte, size)
	r.Read(b)
	return string(b)
}

func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	testkit.Eventually(tb, what, cond)
}
