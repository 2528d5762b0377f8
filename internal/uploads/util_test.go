package uploads

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

const (
	testProvider = "hpc-example"
	testUser     = ident.UCloudUser("AdaLovelace#4821")
	testUID      = ident.UID(61021)
	testOrigin   = "https://ucloud.example.org"
	// patience is for things that happen soon on an idle machine.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("UPLOADS_TEST_DIR"); dir != "" {
		playServer(dir)
		return
	}
	if err := flag.Set("rapid.checks", strconv.Itoa(rounds(100, 40))); err != nil { // the command line comes later, and counts
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// memory is a store of sessions without a server.
type memory struct {
	mu       sync.Mutex
	sessions map[string]*ipcapi.Session
	purposes map[string]string
	items    []ipcapi.SessionItem
	closed   []string
	done     map[string]bool
	wills    map[string]string
	consumed int
	down     error // what every call fails with
	n        int
}

var _ browserlink.Store = (*memory)(nil)

func (m *memory) Create(_ context.Context, purpose string, items []ipcapi.SessionItem) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return nil, m.down
	}
	var tokens []string
	for _, it := range items {
		m.n++
		token := fmt.Sprintf("token-%d", m.n)
		m.sessions[token] = &ipcapi.Session{Object: it.Object, Data: it.Data}
		m.purposes[token] = purpose
		m.items = append(m.items, it)
		tokens = append(tokens, token)
	}
	return tokens, nil
}

func (m *memory) Consume(_ context.Context, purpose, token string) (ipcapi.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.consumed++
	if m.down != nil {
		return ipcapi.Session{}, m.down
	}
	s := m.sessions[token]
	if s == nil || m.purposes[token] != purpose {
		return ipcapi.Session{}, failure.New(failure.NotFound, "no such session")
	}
	return *s, nil
}

func (m *memory) Touch(_ context.Context, n ipcapi.SessionNote) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return m.down
	}
	s := m.sessions[n.Token]
	if s == nil {
		return failure.New(failure.NotFound, "no such session")
	}
	if n.Note != nil {
		s.Note = n.Note
	}
	if n.Done {
		m.done[n.Token] = true
	}
	if n.Will != nil {
		m.wills[n.Token] = string(n.Will)
	}
	if n.NoWill {
		delete(m.wills, n.Token)
	}
	return nil
}

func (m *memory) Close(_ context.Context, _, token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sessions, token)
	m.closed = append(m.closed, token)
	return m.down
}

func (m *memory) uses() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.consumed
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = err
}

// world is a service with everything around it.
type world struct {
	tb      testing.TB
	dir     string // the drive
	svc     *Service
	store   *memory
	http    *httptest.Server
	reports chan Report
	closed  chan Info
	narrow  atomic.Int64 // bytes of answers that the kernel keeps for new connections; 0: what is usual
}

// newWorld starts a service over a drive. change may alter the options.
func newWorld(tb testing.TB, dir string, change func(*Options)) *world {
	tb.Helper()
	w := &world{
		tb: tb, dir: dir, reports: make(chan Report, 100), closed: make(chan Info, 100),
		store: &memory{sessions: map[string]*ipcapi.Session{}, purposes: map[string]string{}, done: map[string]bool{}, wills: map[string]string{}},
	}
	log := slog.New(slog.DiscardHandler)
	o := Options{
		Provider: testProvider, User: testUser, Sessions: w.store, Log: log, SpillDir: tb.TempDir(),
		Settings: Settings{NoSync: true, Origins: []string{testOrigin}},
		Failed:   func(_ context.Context, r Report) error { w.reports <- r; return nil },
		Closed:   func(_ context.Context, i Info) error { w.closed <- i; return nil },
	}
	w.http = httptest.NewUnstartedServer(nil)
	o.Settings.PublicURL = "http://" + w.http.Listener.Addr().String()
	if change != nil {
		change(&o)
	}
	w.svc = New(o)
	w.http.Config.Handler = gateway(tb, w.svc, log)
	w.http.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tcp, ok := c.(*net.TCPConn); ok && w.narrow.Load() > 0 {
			tcp.SetReadBuffer(narrowBytes)
			tcp.SetWriteBuffer(int(w.narrow.Load()))
		}
		return ctx
	}
	w.http.Start()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.svc.Close(ctx); err != nil {
			tb.Error(err)
		}
		w.http.Close()
	})
	return w
}

// gateway puts the checks of an instance in front of the service, and plays the gateway: requests with an Authorization
// header are Core's.
func gateway(tb testing.TB, svc *Service, log *slog.Logger) http.Handler {
	key := hoptoken.NewKey()
	fsvc := files.New(files.Options{Provider: testProvider, Log: log, Timeout: time.Minute})
	tb.Cleanup(func() { fsvc.Close(context.Background()) })
	h := fileserver.New(fileserver.Options{
		Provider: testProvider, Files: fsvc, Log: log, Routes: svc.Routes(),
		Start: ipcapi.Start{Provider: testProvider, User: testUser, UID: testUID, HopKey: key[:]},
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

func testDrive(dir string) providerapi.Drive {
	return providerapi.Drive{
		ID: "5123", ProviderGeneratedID: testProvider + "-x\n" + dir,
		Owner:       providerapi.ResourceOwner{CreatedBy: testUser},
		Permissions: &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ", "EDIT"}},
		Specification: providerapi.DriveSpecification{
			Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider},
		},
	}
}

// post makes a call of Core.
func (w *world) post(path string, body any) (int, string) {
	w.tb.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		w.tb.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, w.http.URL+"/ucloud/"+testProvider+"/"+path, bytes.NewReader(raw))
	if err != nil {
		w.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.tb.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.tb.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func (w *world) item(path, kind string, policy providerapi.ConflictPolicy, protocols ...string) CreateUpload {
	return CreateUpload{
		ID: "/5123" + path, Type: kind, ConflictPolicy: policy, SupportedProtocols: protocols, ResolvedCollection: testDrive(w.dir),
	}
}

// session makes a session over HTTP.
func (w *world) session(path, kind string, policy providerapi.ConflictPolicy, protocols ...string) UploadSession {
	w.tb.Helper()
	status, body := w.post("files/upload", providerapi.BulkRequest[CreateUpload]{Items: []CreateUpload{w.item(path, kind, policy, protocols...)}})
	if status != 200 {
		w.tb.Fatalf("create %s: %d %s", path, status, body)
	}
	var res providerapi.BulkResponse[UploadSession]
	if err := json.Unmarshal([]byte(body), &res); err != nil || len(res.Responses) != 1 {
		w.tb.Fatalf("%v: %s", err, body)
	}
	return res.Responses[0]
}

// script is a client that sends what a test says.
type script struct {
	tb testing.TB
	*websocket.Conn
	got  []byte // answers not yet looked at
	err  error  // why there are no more
	text []string
	done int32 // the last count
}

// narrowBytes is what the kernel keeps of what the client sends over a narrow connection. With less than a segment of the
// loopback interface, which has 64 KiB, TCP waits for its timers.
const narrowBytes = 128 << 10

func (w *world) dial(s UploadSession) *script {
	w.tb.Helper()
	opts := &websocket.DialOptions{HTTPClient: http.DefaultClient}
	if w.narrow.Load() > 0 {
		opts.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if tcp, ok := c.(*net.TCPConn); ok {
				tcp.SetReadBuffer(int(w.narrow.Load()))
				tcp.SetWriteBuffer(narrowBytes)
			}
			return c, err
		}}}
	}
	ws, _, err := websocket.Dial(w.tb.Context(), s.Endpoint, opts)
	if err != nil {
		w.tb.Fatal(err)
	}
	ws.SetReadLimit(1 << 20)
	c := &script{tb: w.tb, Conn: ws}
	w.tb.Cleanup(func() { ws.CloseNow() })
	return c
}

func (c *script) binary(parts ...[]byte) {
	c.tb.Helper()
	if err := c.Write(c.tb.Context(), websocket.MessageBinary, slices.Concat(parts...)); err != nil {
		c.tb.Log("write:", err)
	}
}

type listed struct {
	id       int32
	size     int64
	modified int64
	path     string
}

func listing(files ...listed) []byte {
	b := []byte{opListing}
	for _, f := range files {
		b = binary.BigEndian.AppendUint32(b, uint32(f.id))
		b = binary.BigEndian.AppendUint64(b, uint64(f.size))
		b = binary.BigEndian.AppendUint64(b, uint64(f.modified))
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.path)))
		b = append(b, f.path...)
	}
	return b
}

func num(op byte, id int32) []byte { return binary.BigEndian.AppendUint32([]byte{op}, uint32(id)) }

func chunk(id int32, data string) []byte { return append(num(opChunk, id), data...) }

// next gives the next answer, or false with the error of the connection.
func (c *script) next() (op byte, v int32, ok bool) {
	for len(c.got) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		kind, msg, err := c.Read(ctx)
		cancel()
		if err != nil {
			c.err = err
			return 0, 0, false
		}
		if kind == websocket.MessageText {
			c.text = append(c.text, string(msg))
			return 'T', 0, true
		}
		c.got = msg
	}
	if len(c.got) < 5 {
		c.tb.Fatalf("an answer of %d bytes", len(c.got))
	}
	op, v = c.got[0], int32(binary.BigEndian.Uint32(c.got[1:]))
	c.got = c.got[5:]
	return op, v, true
}

// expect checks the next answers, in this order. Counts come whenever the server likes: only the last one is checked.
func (c *script) expect(want ...[]byte) {
	c.tb.Helper()
	for _, w := range want {
		for w[0] != opCompleted || c.done != int32(binary.BigEndian.Uint32(w[1:])) {
			op, v, ok := c.next()
			if !ok {
				c.tb.Fatalf("want %v, got the end: %v", w, c.err)
			}
			if op == opCompleted {
				if v <= c.done || w[0] == opCompleted && v > int32(binary.BigEndian.Uint32(w[1:])) {
					c.tb.Fatalf("count %d after %d, want %v", v, c.done, w)
				}
				c.done = v
				continue
			}
			if got := num(op, v); !bytes.Equal(got, w) {
				c.tb.Fatalf("got %v, want %v", got, w)
			}
			break
		}
	}
}

// expectClose checks how the connection ends.
func (c *script) expectClose(code websocket.StatusCode) {
	c.tb.Helper()
	for c.err == nil {
		if op, v, ok := c.next(); ok {
			c.tb.Logf("before the end: %d %d", op, v)
		}
	}
	if got := websocket.CloseStatus(c.err); got != code {
		c.tb.Fatalf("closed with %d (%v), want %d", got, c.err, code)
	}
}

// tree reads a directory: paths to contents, directories to "/".
func tree(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel := strings.TrimPrefix(path, dir+"/")
		if d.IsDir() {
			out[rel] = "/"
			return nil
		}
		if d.Type()&os.ModeSymlink != 0 {
			to, err := os.Readlink(path)
			out[rel] = "-> " + to
			return err
		}
		raw, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // removed meanwhile
		}
		out[rel] = string(raw)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		tb.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	testkit.Eventually(tb, what, cond)
}

func b64(u ident.UCloudUser) string { return base64.StdEncoding.EncodeToString([]byte(u)) }

const someTime = int64(1_700_000_000_123)
