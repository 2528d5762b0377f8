package launcher_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/rpc"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
)

// What runs as the service account.

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

func (c *Control) KeysChanged(u ident.UCloudUser, ok *bool) error {
	*ok = true
	c.l.KeysChanged(u)
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
		Self: cfg.Self, Sudo: cfg.Sudo, PortFirst: cfg.First, PortLast: cfg.Last, Cgroup: cfg.Cgroup, CgroupLimits: cfg.Cgroup != "",
		StateDir: filepath.Join(cfg.Dir, "state"), LogDir: filepath.Join(cfg.Dir, "log"),
		Settings: func() ipcapi.Start {
			return ipcapi.Start{Provider: "test", Umask: 0o007, OpenFiles: 4096, LogLevel: "DEBUG"}
		},
		Intents: func(u ident.UCloudUser) ipcapi.IntentSettings {
			return ipcapi.IntentSettings{Mode: cfg.Intents + " for " + string(u)}
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
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && ctx.Err() == nil {
		// Nothing was sent. The route went away between the look into the table and the dial: look again.
		g.mu.Lock()
		stale := g.table[f.User] != h
		g.mu.Unlock()
		if stale {
			return g.fetch(f)
		}
	}
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
