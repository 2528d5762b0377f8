package gateway

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

func TestMain(m *testing.M) {
	if upgradeChild() || webAppChild() {
		return
	}
	// net/http lets the client read the last answer for half a second before it closes a connection.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const (
	provider = "birch"
	alice    = ident.UCloudUser("Alice#1234")
	bob      = ident.UCloudUser("Bob#1")
)

// coreKey signs tokens as Core does. Making a key takes a while, so all tests share one.
var coreKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

// coreToken is a token of Core; change edits its claims.
func coreToken(change func(jwt.MapClaims)) string {
	now := time.Now().Unix()
	claims := jwt.MapClaims{
		"principalType": "service", "role": "SERVICE", "iss": "cloud.sdu.dk", "sub": "_UCloud",
		"aud": []string{"all:write"}, "iat": now, "exp": now + 600,
	}
	if change != nil {
		change(claims)
	}
	s, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(coreKey())
	if err != nil {
		panic(err)
	}
	return s
}

func bearer() string { return "Bearer " + coreToken(nil) }

// seen is a request as an upstream received it.
type seen struct {
	Method, Target, Host string
	Header               http.Header
	Body                 string
}

// backend is an upstream for tests: an instance or IM/Server.
type backend struct {
	name string
	l    net.Listener
	srv  *http.Server

	mu      sync.Mutex
	reqs    []seen
	handler http.HandlerFunc
}

func newBackend(t testing.TB, name string, l net.Listener) *backend {
	t.Helper()
	b := &backend{name: name, l: l}
	b.srv = &http.Server{Handler: b, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	var wg sync.WaitGroup
	wg.Go(func() { b.srv.Serve(l) })
	t.Cleanup(func() {
		b.srv.Close()
		wg.Wait()
	})
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	h := b.handler
	b.mu.Unlock()
	if h != nil {
		h(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	b.reqs = append(b.reqs, seen{Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: r.Header.Clone(), Body: string(body)})
	b.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"by":"`+b.name+`"}`)
}

func (b *backend) handle(h http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handler = h
}

func (b *backend) seen() []seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]seen(nil), b.reqs...)
}

func (b *backend) port() int { return b.l.Addr().(*net.TCPAddr).Port }

// control answers the gateway's questions; tests replace the functions.
type control struct {
	mu    sync.Mutex
	wake  func(ctx context.Context, user ident.UCloudUser) (*Route, string, error)
	token func(ctx context.Context, user ident.UCloudUser, hash [32]byte) (bool, error)
	web   func(ctx context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error)
	wakes int
}

func (c *control) Wake(ctx context.Context, user ident.UCloudUser) (*Route, string, error) {
	c.mu.Lock()
	c.wakes++
	f := c.wake
	c.mu.Unlock()
	if f == nil {
		return nil, "You are not connected to this provider.", nil
	}
	return f(ctx, user)
}

func (c *control) TokenOpen(ctx context.Context, user ident.UCloudUser, hash [32]byte) (bool, error) {
	c.mu.Lock()
	f := c.token
	c.mu.Unlock()
	if f == nil {
		return false, nil
	}
	return f(ctx, user, hash)
}

func (c *control) WebExchange(ctx context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error) {
	c.mu.Lock()
	f := c.web
	c.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	return f(ctx, kind, host, hash)
}

func (c *control) onWeb(f func(ctx context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.web = f
}

func (c *control) onWake(f func(ctx context.Context, user ident.UCloudUser) (*Route, string, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake = f
}

func (c *control) onToken(f func(ctx context.Context, user ident.UCloudUser, hash [32]byte) (bool, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = f
}

func (c *control) wakeCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wakes
}

// fixture is a gateway with IM/Server, Alice's instance, and a client.
type fixture struct {
	*Gateway
	t          testing.TB
	server     *backend
	serverPath string
	alice      *backend
	key        hoptoken.Key
	control    *control
	settings   Settings
	log        *logBuffer
	address    string // of the gateway
	client     *http.Client
	registry   *prometheus.Registry
}

type fixtureOption func(*fixture, *Options)

func newFixture(t testing.TB, options ...fixtureOption) *fixture {
	t.Helper()
	f := &fixture{t: t, control: new(control), key: hoptoken.NewKey(), log: new(logBuffer), registry: prometheus.NewRegistry()}
	// Not t.TempDir: with the names of subtests in it, paths get too long for sockets.
	dir, err := os.MkdirTemp("", "imt-gw-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f.serverPath = filepath.Join(dir, "server.sock")
	f.server = newBackend(t, "server", listen(t, "unix", f.serverPath))
	f.alice = newBackend(t, "alice", listen(t, "tcp", "127.0.0.1:0"))
	verifier, err := auth.NewVerifier([]*rsa.PublicKey{&coreKey().PublicKey}, auth.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(f.log, nil))
	f.settings = Settings{
		Provider: provider, Hosts: []string{"birch.example.net", "im.birch.example.net"}, LoopbackHosts: true, AccessLog: true,
	}
	o := Options{
		VerifyCore: verifier.VerifyCore, Control: f.control, Routes: NewTable(log), Log: log, Registry: f.registry,
		DialServer: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", f.serverPath)
		},
	}
	for _, opt := range options {
		opt(f, &o)
	}
	f.Gateway, err = New(o, f.settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	f.route(alice, f.alice, 1, 1)
	f.address = f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}})
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	f.client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return f
}

// serve runs the gateway on listeners until the test ends and gives the address of the first.
func (f *fixture) serve(o ServerOptions) string {
	f.t.Helper()
	s, err := f.NewServer(o)
	if err != nil {
		f.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(); err != nil {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // at once
		s.Drain(ctx, Drain{})
		s.main.Close()
		wg.Wait()
		f.Gateway.draining.Store(false)
	})
	return o.Listeners[0].Addr().String()
}

func (f *fixture) route(user ident.UCloudUser, b *backend, id, generation uint64) Route {
	r := Route{User: user, UID: 20001, Port: b.port(), Key: f.key, ID: id, Generation: generation}
	f.routes.Apply(Update{Put: []Route{r}})
	return r
}

// reply is an answer with its body.
type reply struct {
	*http.Response
	body string
}

// do sends a request; header values are pairs.
func (f *fixture) do(method, target, body string, header ...string) reply {
	f.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, "http://"+f.address+target, rd)
	if err != nil {
		f.t.Fatal(err)
	}
	req.Host = "birch.example.net"
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return reply{res, string(b)}
}

// core sends a request as Core does for a user.
func (f *fixture) core(method, target, body string, user ident.UCloudUser, header ...string) reply {
	f.t.Helper()
	return f.do(method, target, body, append(header, "Authorization", bearer(), "UCloud-Username", user.HeaderValue())...)
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// freePort gives a port on which nobody listens.
func freePort(t testing.TB) int {
	l := listen(t, "tcp", "127.0.0.1:0")
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually waits for a condition; the limit is generous because the machine may be busy.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, what, cond)
}

var errTest = errors.New("test")

func contains(s, sub string) bool { return strings.Contains(s, sub) }

func readProcTCP() string {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		panic(err)
	}
	return string(b)
}
