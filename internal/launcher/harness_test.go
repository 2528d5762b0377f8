package launcher_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/testkit/accounts"
)

// These tests run as root and start two programs as the service account: a server (the launcher behind an IPC socket)
// and a gateway (a small one that follows the rules of ipcapi.RouteUpdate). Both are this test binary, told by an
// environment variable what to be, and take orders over their standard input.
const roleEnv = "IMT_LAUNCHER_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "server":
		os.Exit(serverMain())
	case "gateway":
		os.Exit(gatewayMain())
	case "client":
		os.Exit(clientMain())
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if shared.site != nil {
		if err := shared.site.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// shared is the site all tests of this process use: making one takes a second.
var shared struct {
	once sync.Once
	site *accounts.Site
	bin  string // this test binary, where the service account can execute it
	err  error
}

const (
	directProgram = "ucloud-user"
	pamProgram    = "ucloud-user-pam"
	stockProgram  = "ucloud-user-stock"
)

func theSite(t testing.TB) *accounts.Site {
	t.Helper()
	accounts.Require(t)
	shared.once.Do(func() {
		shared.err = func() error {
			site, err := accounts.Setup("ln")
			if err != nil {
				return err
			}
			shared.site = site
			built := filepath.Join(site.Dir, "built")
			if err := accounts.Build("ucloud-im/internal/launcher/internal/testinstance", built); err != nil {
				return err
			}
			for name, rule := range map[string]accounts.Rule{
				directProgram: accounts.Direct, pamProgram: accounts.PAM, stockProgram: accounts.Stock,
			} {
				if _, err := site.Install(name, built, rule); err != nil {
					return err
				}
			}
			data, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				return err
			}
			shared.bin = filepath.Join(site.Dir, "test")
			return os.WriteFile(shared.bin, data, 0o755)
		}()
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

// serverConfig is what a test server is told.
type serverConfig struct {
	Dir          string
	Program      string
	Group        string
	First, Last  int
	Mapping      map[ident.UCloudUser]launcher.Account
	Self         bool
	As           *accounts.Account // the service account; the site's if nil
	Sudo         string
	Cgroup       string
	MaxInstances int
	RestartMax   int

	Idle, Start, Drain, LossGrace, Recover, ServerLoss, Stop, Confirm time.Duration
}

// nextPorts gives each world a part of the range, so that tests can say which port comes next.
var nextPorts atomic.Int32

// world is one service under test.
type world struct {
	t      testing.TB
	site   *accounts.Site
	cfg    serverConfig
	server *proc
	gw     *proc

	service accounts.Account
	groups  []uint32 // supplementary groups of the service account's processes
	cgroup  *os.File // where they are started; nil: where the test is
}

// proc is a helper program.
type proc struct {
	cmd  *exec.Cmd
	rpc  *rpc.Client
	log  *safeBuffer
	once sync.Once
	done chan struct{}
}

type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type pipes struct {
	io.Reader
	io.WriteCloser
}

func newWorld(t testing.TB, change func(*serverConfig), users ...accounts.Account) *world {
	t.Helper()
	site := theSite(t)
	n := int(nextPorts.Add(1)) - 1
	w := &world{t: t, site: site, cfg: serverConfig{
		Dir: filepath.Join(site.Dir, fmt.Sprintf("w%d", n)), Program: filepath.Join(site.Dir, directProgram),
		Group: site.Group, First: 20000 + 200*n, Last: 20199 + 200*n, Mapping: map[ident.UCloudUser]launcher.Account{},
		Start: 30 * time.Second, Drain: 10 * time.Second, LossGrace: 3 * time.Second, Recover: 8 * time.Second,
		ServerLoss: time.Minute, Stop: 3 * time.Second, Confirm: 5 * time.Second, RestartMax: 50,
	}}
	for _, u := range users {
		w.cfg.Mapping[userOf(u)] = launcher.Account{UID: u.UID, LocalName: u.Name}
	}
	if change != nil {
		change(&w.cfg)
	}
	w.service = site.Service
	if w.cfg.As != nil {
		w.service = *w.cfg.As
	}
	for dir, mode := range map[string]os.FileMode{"": 0o755, "state": 0o700, "log": 0o750} {
		path := filepath.Join(w.cfg.Dir, dir)
		if err := os.MkdirAll(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(w.service.UID), int(w.service.GID)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		w.stopAll()
		if t.Failed() {
			for _, p := range []*proc{w.server, w.gw} {
				if p != nil {
					t.Logf("output of %s:\n%s", p.cmd.Env[0], p.log)
				}
			}
			logs, _ := filepath.Glob(filepath.Join(w.cfg.Dir, "log/users/*"))
			for _, l := range logs {
				data, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", l, data[:min(len(data), 8192)])
			}
		}
	})
	return w
}

// newRunning is newWorld with server and gateway started.
func newRunning(t testing.TB, change func(*serverConfig), users ...accounts.Account) *world {
	t.Helper()
	w := newWorld(t, change, users...)
	w.startServer()
	w.startGateway()
	return w
}

func userOf(a accounts.Account) ident.UCloudUser { return ident.UCloudUser("User " + a.Name + "#1") }

func (w *world) socket() string { return filepath.Join(w.cfg.Dir, "ucloud.sock") }

func (w *world) startServer() { w.t.Helper(); w.server = w.startRole("server") }

func (w *world) startGateway() {
	w.t.Helper()
	w.gw = w.startRole("gateway")
	w.eventually("gateway follows", func() bool { return w.counters().Gateways > 0 })
}

func (w *world) startRole(role string) *proc {
	w.t.Helper()
	cfg, err := json.Marshal(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := w.service.Command(shared.bin)
	cmd.SysProcAttr.Credential.Groups = w.groups
	if w.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(w.cgroup.Fd())
	}
	cmd.Env = append([]string{roleEnv + "=" + role, "IMT_CONFIG=" + string(cfg)}, cmd.Env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &proc{cmd: cmd, log: &safeBuffer{}, done: make(chan struct{})}
	cmd.Stderr = p.log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { cmd.Wait(); close(p.done) }() //nolint:errcheck // killed by tests
	p.rpc = rpc.NewClient(pipes{out, in})
	var ok bool
	if err := p.rpc.Call("Control.Ping", 0, &ok); err != nil {
		w.t.Fatalf("%s does not start: %v\n%s", role, err, p.log)
	}
	return p
}

// kill is kill -9.
func (p *proc) kill(testing.TB) {
	p.once.Do(func() {
		p.cmd.Process.Kill() //nolint:errcheck // may be gone
		<-p.done
		p.rpc.Close() //nolint:errcheck // broken anyway
	})
}

// stop ends the program in an orderly way.
func (p *proc) stop(t testing.TB) {
	p.once.Do(func() {
		p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // may be gone
		select {
		case <-p.done:
			if p.cmd.ProcessState.ExitCode() == leakCode {
				t.Errorf("the server leaves goroutines behind:\n%s", p.log)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("does not end:\n%s", p.log)
			p.cmd.Process.Kill() //nolint:errcheck // may be gone
			<-p.done
		}
		p.rpc.Close() //nolint:errcheck // broken anyway
	})
}

func (w *world) stopAll() {
	if w.gw != nil {
		w.gw.stop(w.t)
	}
	if w.server != nil {
		w.server.stop(w.t)
	}
	for _, a := range w.cfg.Mapping {
		accounts.KillAll(a.UID)
	}
}

func (w *world) call(p *proc, method string, args, reply any) {
	w.t.Helper()
	if err := p.rpc.Call("Control."+method, args, reply); err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
}

// Woken is the answer of the server to a wake.
type Woken struct {
	Route ipcapi.Route
	Why   string
	Kind  failure.Kind
	Cause string
}

func (w *world) tryWake(u accounts.Account) Woken {
	w.t.Helper()
	var r Woken
	w.call(w.server, "Wake", userOf(u), &r)
	return r
}

func (w *world) wake(u accounts.Account) ipcapi.Route {
	w.t.Helper()
	r := w.tryWake(u)
	if r.Why != "" {
		w.t.Fatalf("wake %s: %s (%s)", u.Name, r.Why, r.Cause)
	}
	return r.Route
}

func (w *world) list() map[ident.UCloudUser]launcher.Info {
	w.t.Helper()
	var infos []launcher.Info
	w.call(w.server, "List", 0, &infos)
	m := map[ident.UCloudUser]launcher.Info{}
	for _, i := range infos {
		m[i.User] = i
	}
	return m
}

func (w *world) info(u accounts.Account) launcher.Info { w.t.Helper(); return w.list()[userOf(u)] }

func (w *world) counters() launcher.Counters {
	w.t.Helper()
	var c launcher.Counters
	w.call(w.server, "Counters", 0, &c)
	return c
}

// Fetched is an answer of an instance, through the gateway.
type Fetched struct {
	Status int
	Body   string
	Err    string
}

type Fetch struct {
	User         ident.UCloudUser
	Method, Path string
	Body         string
	Timeout      time.Duration
}

func (w *world) get(u accounts.Account, path string) Fetched {
	w.t.Helper()
	var r Fetched
	w.call(w.gw, "Fetch", Fetch{User: userOf(u), Method: "GET", Path: path, Timeout: 30 * time.Second}, &r)
	return r
}

// post is get for what must not be sent twice: the HTTP client repeats a GET whose connection broke.
func (w *world) post(u accounts.Account, path string) Fetched {
	w.t.Helper()
	var r Fetched
	w.call(w.gw, "Fetch", Fetch{User: userOf(u), Method: "POST", Path: path, Body: "x", Timeout: 30 * time.Second}, &r)
	return r
}

func (w *world) mustGet(u accounts.Account, path string) string {
	w.t.Helper()
	r := w.get(u, path)
	if r.Err != "" || r.Status != 200 {
		w.t.Fatalf("GET %s of %s: %+v", path, u.Name, r)
	}
	return r.Body
}

func (w *world) about(u accounts.Account) about {
	w.t.Helper()
	var a about
	if err := json.Unmarshal([]byte(w.mustGet(u, "/about")), &a); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// about mirrors testinstance.About.
type about struct {
	PID     int
	UID     int
	Groups  []int
	Args    []string
	Env     []string
	Dir     string
	Status  map[string]string
	Files   map[string]string
	Umask   int
	NoFile  uint64
	Release string
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	eventually(w.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("does not happen: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// ---- what runs as the service account ----

func readConfig() serverConfig {
	var cfg serverConfig
	if err := json.Unmarshal([]byte(os.Getenv("IMT_CONFIG")), &cfg); err != nil {
		panic(err)
	}
	return cfg
}

type mapping struct {
	mu sync.Mutex
	m  map[ident.UCloudUser]launcher.Account
}

func (m *mapping) Account(_ context.Context, u ident.UCloudUser) (launcher.Account, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.m[u]
	if !ok {
		return launcher.Account{}, failure.New(failure.NotFound, "You are not connected to this provider")
	}
	return a, nil
}

func (m *mapping) authorize(_ context.Context, p ipc.Peer) (ipc.Grant, error) {
	g := ipc.Grant{Service: p.UID() == ident.UID(os.Getuid())}
	m.mu.Lock()
	defer m.mu.Unlock()
	for u, a := range m.m {
		if a.UID == p.UID() {
			g.Mapped, g.User = true, u
		}
	}
	return g, nil
}

// Control is what a test asks a server.
type Control struct {
	l *launcher.Launcher
	m *mapping
}

func (c *Control) Ping(_ int, ok *bool) error { *ok = true; return nil }

func (c *Control) Wake(u ident.UCloudUser, r *Woken) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	route, err := c.l.Wake(ctx, u)
	r.Route = route
	if err != nil {
		r.Why, r.Kind, r.Cause = failure.Why(err), failure.KindOf(err), err.Error()
	}
	return nil
}

func (c *Control) List(_ int, r *[]launcher.Info) error {
	c.l.Refresh(context.Background())
	*r = c.l.List()
	return nil
}

func (c *Control) Counters(_ int, r *launcher.Counters) error { *r = c.l.Counters(); return nil }

func (c *Control) Stop(u ident.UCloudUser, ok *bool) error {
	*ok = true
	return c.l.StopUser(context.Background(), u, "an operator has stopped your instance")
}

func (c *Control) Restart(u ident.UCloudUser, ok *bool) error {
	*ok = true
	return c.l.Restart(context.Background(), u)
}

func (c *Control) Recheck(u []ident.UCloudUser, ok *bool) error {
	*ok = true
	c.l.Recheck(context.Background(), u...)
	return nil
}

func (c *Control) Drain(d time.Duration, left *int) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	*left = c.l.Drain(ctx)
	return nil
}

func (c *Control) Unmap(u ident.UCloudUser, ok *bool) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	*ok = true
	delete(c.m.m, u)
	return nil
}

func serverMain() int {
	cfg := readConfig()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	m := &mapping{m: cfg.Mapping}
	self := ident.UID(os.Getuid())
	l, err := launcher.New(launcher.Options{
		Mapping: m, Log: log, ServiceUID: self, Program: cfg.Program, Socket: filepath.Join(cfg.Dir, "ucloud.sock"),
		Policy: localuser.NewPolicy(localuser.NewDirectory(localuser.Options{}), localuser.PolicyOptions{
			Group: cfg.Group, MinUID: 1000, ServiceUID: self, Denied: []string{"root"}, Self: cfg.Self,
		}),
		Self: cfg.Self, Sudo: cfg.Sudo, PortFirst: cfg.First, PortLast: cfg.Last, Cgroup: cfg.Cgroup,
		StateDir: filepath.Join(cfg.Dir, "state"), LogDir: filepath.Join(cfg.Dir, "log"),
		Settings: func() ipcapi.Start {
			return ipcapi.Start{Provider: "test", Umask: 0o007, OpenFiles: 4096, LogLevel: "DEBUG"}
		},
		MaxInstances: cfg.MaxInstances, StartTimeout: cfg.Start, IdleTimeout: cfg.Idle, DrainTimeout: cfg.Drain,
		LossGrace: cfg.LossGrace, RecoverGrace: cfg.Recover, ServerLossGrace: cfg.ServerLoss, StopTimeout: cfg.Stop,
		ConfirmTimeout: cfg.Confirm, RestartMax: cfg.RestartMax,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s := ipc.NewServer(ipc.ServerOptions{
		Authorize: m.authorize, Log: log, ExemptUID: func(u ident.UID) bool { return u == self }, MaxConnsPerUID: 64,
	})
	l.Register(s)
	lis, err := ipc.Listen(filepath.Join(cfg.Dir, "ucloud.sock"))
	// A server that was killed while it started a program is survived by that program's copy of the socket, until it
	// has come to its execve.
	for i := 0; i < 50 && err != nil; i++ {
		time.Sleep(20 * time.Millisecond)
		lis, err = ipc.Listen(filepath.Join(cfg.Dir, "ucloud.sock"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })        //nolint:errcheck // always nil
	wg.Go(func() { s.Serve(ctx, lis) }) //nolint:errcheck // seen by its effect
	serveControl(&Control{l: l, m: m})
	cancel()
	wg.Wait()
	if err := goleak.Find(goleak.IgnoreAnyFunction("net/rpc.(*Server).ServeCodec")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return leakCode
	}
	return 0
}

// leakCode is the exit status of a server that leaves goroutines behind.
const leakCode = 77

// serveControl takes orders until standard input ends or SIGTERM comes.
func serveControl(rcvr any) {
	srv := rpc.NewServer()
	if err := srv.RegisterName("Control", rcvr); err != nil {
		panic(err)
	}
	term := make(chan os.Signal, 1)
	notify(term)
	done := make(chan struct{})
	go func() { srv.ServeConn(pipes{os.Stdin, os.Stdout}); close(done) }()
	select {
	case <-term:
	case <-done:
	}
}

// gateway is the least that keeps the rules of the route stream.
type gateway struct {
	cfg    serverConfig
	mute   atomic.Bool
	mu     sync.Mutex
	table  map[ident.UCloudUser]*hop
	seen   chan struct{}
	client *ipc.Client
}

// hop holds the connections of one generation of a route.
type hop struct {
	route ipcapi.Route
	tr    *http.Transport
}

func gatewayMain() int {
	g := &gateway{cfg: readConfig(), table: map[ident.UCloudUser]*hop{}, seen: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go g.follow(ctx)
	serveControl(&GatewayControl{g})
	return 0
}

func (g *gateway) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := g.session(ctx)
		fmt.Fprintln(os.Stderr, "gateway session:", err)
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *gateway) session(ctx context.Context) error {
	c, err := ipc.Dial(ctx, filepath.Join(g.cfg.Dir, "ucloud.sock"), ipc.DialOptions{
		ServerUID: func(u ident.UID) bool { return u == ident.UID(os.Getuid()) },
	})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a test
	r, err := ipc.Open(ctx, c, ipcapi.GatewayRoutes, ipcapi.GatewayHello{Protocol: ipcapi.Protocol, PID: os.Getpid()})
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.client = c
	g.mu.Unlock()
	for {
		up, _, err := r.Next(ctx)
		if err != nil {
			return err
		}
		g.apply(up)
		for g.mute.Load() {
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := ipc.Invoke(ctx, c, ipcapi.GatewayAck, ipcapi.RouteAck{Seq: up.Seq}); err != nil {
			return err
		}
	}
}

func (g *gateway) apply(up ipcapi.RouteUpdate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	keep := map[ident.UCloudUser]bool{}
	for _, r := range up.Put {
		keep[r.User] = true
		old := g.table[r.User]
		if old != nil && old.route.Route == r.Route && old.route.Generation == r.Generation {
			continue
		}
		g.table[r.User] = &hop{route: r, tr: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
		if old != nil {
			old.tr.CloseIdleConnections()
		}
	}
	drop := up.Remove
	if up.Full {
		for u := range g.table {
			if !keep[u] {
				drop = append(drop, u)
			}
		}
	}
	for _, u := range drop {
		if old := g.table[u]; old != nil {
			delete(g.table, u)
			old.tr.CloseIdleConnections()
		}
	}
	close(g.seen)
	g.seen = make(chan struct{})
}

// hopFor wakes the user if there is no route.
func (g *gateway) hopFor(ctx context.Context, u ident.UCloudUser) (*hop, error) {
	for {
		g.mu.Lock()
		h, c, seen := g.table[u], g.client, g.seen
		g.mu.Unlock()
		if h != nil {
			return h, nil
		}
		if c != nil {
			reply, err := ipc.Invoke(ctx, c, ipcapi.GatewayWake, ipcapi.Wake{User: u})
			switch {
			case err == nil && reply.Why != "":
				return nil, errors.New(reply.Why)
			case err == nil:
				g.mu.Lock()
				h = g.table[u]
				g.mu.Unlock()
				if h != nil {
					return h, nil
				}
			}
		}
		select {
		case <-seen:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (g *gateway) fetch(f Fetch) (r Fetched) {
	ctx, cancel := context.WithTimeout(context.Background(), f.Timeout)
	defer cancel()
	h, err := g.hopFor(ctx, f.User)
	if err != nil {
		return Fetched{Err: "no route: " + err.Error()}
	}
	url := fmt.Sprintf("http://127.0.0.1:%d%s", h.route.Port, f.Path)
	req, err := http.NewRequestWithContext(ctx, f.Method, url, io.NopCloser(strings.NewReader(f.Body)))
	if err != nil {
		return Fetched{Err: err.Error()}
	}
	req.ContentLength = int64(len(f.Body)) // without GetBody: it cannot be sent twice
	if f.Body == "" {
		req.Body = nil
	}
	resp, err := h.tr.RoundTrip(req)
	if err != nil {
		return Fetched{Err: err.Error()}
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	body, err := io.ReadAll(resp.Body)
	g.mu.Lock()
	if g.table[f.User] != h {
		defer h.tr.CloseIdleConnections() // the connection became stale while it was in use
	}
	g.mu.Unlock()
	if err != nil {
		return Fetched{Err: err.Error()}
	}
	return Fetched{Status: resp.StatusCode, Body: string(body)}
}

// GatewayControl is what a test asks a gateway.
type GatewayControl struct{ g *gateway }

func (c *GatewayControl) Ping(_ int, ok *bool) error { *ok = true; return nil }

func (c *GatewayControl) Mute(on bool, ok *bool) error { c.g.mute.Store(on); *ok = true; return nil }

func (c *GatewayControl) Fetch(f Fetch, r *Fetched) error { *r = c.g.fetch(f); return nil }

func (c *GatewayControl) Routes(_ int, r *[]ipcapi.Route) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for _, h := range c.g.table {
		*r = append(*r, h.route)
	}
	return nil
}

// load is a stream of requests.
type Load struct {
	Users    []ident.UCloudUser
	Rate     int // requests per second, over all users
	Duration time.Duration
}

type Loaded struct {
	OK     int
	Failed []string
	Slow   time.Duration
}

// Load sends requests that cannot be repeated, each with its own body, and counts those that are not answered.
func (c *GatewayControl) Load(l Load, r *Loaded) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	end := time.Now().Add(l.Duration)
	for i := 0; time.Now().Before(end); i++ {
		wg.Go(func() {
			begun := time.Now()
			body := fmt.Sprintf("request %d", i)
			got := c.g.fetch(Fetch{User: l.Users[i%len(l.Users)], Method: "POST", Path: "/work", Body: body, Timeout: 30 * time.Second})
			mu.Lock()
			defer mu.Unlock()
			r.Slow = max(r.Slow, time.Since(begun))
			if got.Status == 200 && strings.HasSuffix(got.Body, body) {
				r.OK++
			} else {
				r.Failed = append(r.Failed, fmt.Sprintf("%d: %+v", i, got))
			}
		})
		time.Sleep(time.Second / time.Duration(l.Rate))
	}
	wg.Wait()
	return nil
}
