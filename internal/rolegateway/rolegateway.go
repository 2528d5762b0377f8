// Package rolegateway runs the gateway as a process of the service account: it reads the configuration, opens or takes
// over the listeners, connects to IM/Server over IPC, and does what signals and the service manager ask for. All
// decisions about requests are in package gateway.
//
// # Signals
//
// SIGHUP reads configuration, certificates and Core's keys again and keeps the old ones if the new ones are wrong.
// SIGUSR2 starts the executable again, which may have been replaced, hands the listeners to it, and leaves when the last
// connection has ended. The end of the context given to [Run], normally SIGTERM, drains and ends. The last two lose no
// request as long as somebody (the successor, or systemd with socket activation) holds the listeners.
package rolegateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/config"
	"ucloud-im/internal/gateway"
	"ucloud-im/internal/handover"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/nodump"
	"ucloud-im/internal/sockdiag"
)

// Options say how the process was started.
type Options struct {
	ConfigDir string
	Build     string // identifies the executable in logs and towards IM/Server
	// Log is the process's log; nil means standard error in the configured form.
	Log *slog.Logger
	// AccessOutput receives the access log; nil means standard error.
	AccessOutput io.Writer
	// Program and Args start a successor for SIGUSR2. The defaults are this executable and its own arguments.
	Program string
	Args    []string
	// Sandbox lets the process replace itself to enter its sandbox (gateway.sandbox). Programs set it, tests that run a
	// gateway among other things cannot.
	Sandbox bool
}

// snapshotWait is how long the first answer is delayed for the route table of IM/Server. The last table is in use
// already, and requests wait for routes anyway, so this is short.
const snapshotWait = 2 * time.Second

// Run runs the gateway until ctx ends, or until a successor has taken over and the last connection has ended. A wrong
// configuration is an error that [config.AsProblems] understands, and nothing has been opened then.
func Run(ctx context.Context, o Options) error {
	if os.Geteuid() == 0 {
		return config.ErrRoot
	}
	if err := nodump.Apply(); err != nil { // tokens, keys of routes and of TLS are in memory
		return err
	}
	if err := o.setDefaults(); err != nil {
		return err
	}
	cfg, problems := load(o.ConfigDir)
	if cfg == nil {
		return problems.Err()
	}
	p := &process{o: o, config: cfg}
	p.setUpLogs()
	if err := p.enterSandbox(); err != nil { // before anything is opened: the process may begin anew
		return err
	}
	sockets, err := handover.Inherit()
	if err != nil {
		return err
	}
	p.sockets, p.notifier = sockets, handover.NewNotifier()
	tuneMemory()
	for _, w := range problems {
		p.log.Warn("configuration", "problem", w.String())
	}
	return p.run(ctx)
}

// tuneMemory trades memory for time: a gateway has a live heap of some megabytes and makes about 10 KiB of garbage for
// each request, so with Go's default it collects many times a second under load. Measured with 32 clients: a fifth more
// requests, and p99 down by a third. The limit makes the collector careful again should the heap ever be large.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(1 << 30)
	}
}

func (o *Options) setDefaults() error {
	if o.AccessOutput == nil {
		o.AccessOutput = os.Stderr
	}
	if o.Program == "" {
		// The path as it was at the start: after an upgrade /proc/self/exe names the deleted file.
		program, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the own executable: %w", err)
		}
		o.Program = program
		if o.Args == nil {
			o.Args = os.Args[1:]
		}
	}
	return nil
}

// process is the running gateway.
type process struct {
	o        Options
	log      *slog.Logger
	level    slog.LevelVar
	sockets  *handover.Sockets
	notifier *handover.Notifier

	config   *config.Config
	verifier *auth.Verifier
	table    *gateway.Table
	web      *gateway.WebTable
	gateway  *gateway.Gateway
	server   *gateway.Server
	control  *controller
	cert     *gateway.Certificate // nil without TLS
	kernel   *sockdiag.Client

	sandbox   string         // what was achieved, for people
	confined  bool           // in the sandbox
	listeners []net.Listener // public ones, then redirect and metrics: what a successor gets
	registry  *prometheus.Registry
}

func (p *process) run(ctx context.Context) error {
	if err := p.build(ctx); err != nil {
		for _, l := range p.listeners {
			l.Close()
		}
		return p.explain(err)
	}
	defer p.kernel.Close()
	defer p.gateway.Close()

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals)

	// These outlive ctx: a draining gateway still needs routes.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { p.control.run(work) })
	saving, stopSaving := context.WithCancel(work)
	defer stopSaving()
	wg.Go(func() { p.table.Keep(saving, p.routeFile()) })
	wg.Go(func() { p.web.Keep(saving, p.webRouteFile()) })
	metrics := p.serveMetrics(&wg)
	defer metrics.Close()
	served := make(chan error, 1)
	wg.Go(func() { served <- p.server.Run() })

	select {
	case <-p.control.synced:
	case <-time.After(snapshotWait):
		p.log.Warn("the server is away, starting with the last route table", "routes", p.table.Len())
	case <-ctx.Done():
	}
	if err := errors.Join(p.sockets.Ready(), p.notifier.Ready()); err != nil {
		p.log.Warn("readiness not reported", "error", err)
	}
	p.log.Info("gateway ready", "build", p.o.Build, "listen", addresses(p.listeners), "routes", p.table.Len(), "sandbox", p.sandbox)

	for {
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
			p.note(p.notifier.Stopping())
			p.log.Info("gateway stops")
			drain, cancel := context.WithTimeout(work, gateway.DrainStopped.Grace+gateway.DrainStopped.Requests+5*time.Second)
			defer cancel()
			p.server.Drain(drain, gateway.DrainStopped)
			return <-served
		case s := <-signals:
			if s == syscall.SIGHUP {
				p.reload()
				continue
			}
			if !p.upgrade(ctx) {
				continue
			}
			// The successor saves the table and has the port of the metrics.
			stopSaving()
			metrics.Close()
			p.server.Drain(ctx, gateway.DrainReplaced)
			p.log.Info("replaced gateway ends")
			return <-served
		}
	}
}

// build makes all parts and opens the listeners. It accepts nothing yet.
func (p *process) build(ctx context.Context) error {
	keys, err := auth.ReadKeys(p.config.Provider.Core.KeyFiles())
	if err != nil {
		return err
	}
	p.verifier, err = auth.NewVerifier(keys, auth.Options{Issuer: p.config.Provider.Core.JWTIssuer, Leeway: time.Duration(p.config.Provider.Core.ClockSkew)})
	if err != nil {
		return fmt.Errorf("set up the verification of Core's tokens: %w", err)
	}
	if err := p.listen(ctx); err != nil {
		return err
	}
	if rest := p.sockets.CloseRest(); len(rest) > 0 {
		p.log.Warn("inherited sockets that are not configured were closed", "addresses", rest)
	}
	p.table = gateway.NewTable(p.log)
	if err := p.table.Load(p.routeFile()); err != nil {
		p.log.Error("last route table not used", "error", err)
	}
	p.web = gateway.NewWebTable(p.log)
	if err := p.web.Load(p.webRouteFile()); err != nil {
		p.log.Error("last table of interfaces not used", "error", err)
	}
	p.control = newController(p.config.IPCSocket(), ipcapi.GatewayHello{
		Protocol: ipcapi.Protocol, Build: p.o.Build, PID: os.Getpid(), Listen: addresses(p.listeners), Sandbox: p.sandbox,
	}, p.table, p.web, p.log)
	kernel, err := sockdiag.NewClient()
	if err != nil {
		return err
	}
	p.kernel = kernel
	p.registry = prometheus.NewRegistry()
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server := p.config.Internal.ServerListen
	p.gateway, err = gateway.New(gateway.Options{
		VerifyCore:       p.verifier.VerifyCore,
		Control:          p.control,
		Routes:           p.table,
		CheckListener:    listenerCheck(kernel),
		Web:              p.web,
		CheckWebListener: gateway.CheckListener(kernel.Lookup, sockdiag.ErrNotFound),
		Log:              p.log,
		AccessLog:        p.accessLogger(),
		Registry:         p.registry,
		DialServer: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, server.Network(), server.Address())
		},
	}, settings(p.config))
	if err != nil {
		return err
	}
	return p.newServer()
}

// listenerCheck tells whether a port of an instance is listened on by a socket that the service account has made (design
// D1): after a crash of server and instance anybody could have taken it.
func listenerCheck(kernel *sockdiag.Client) func(port int) error {
	own := ident.UID(os.Geteuid()) //nolint:gosec // a uid fits
	return func(port int) error {
		uid, err := kernel.Lookup(loopback(port), anyAddress)
		if err != nil {
			return err
		}
		if uid != own {
			return fmt.Errorf("port %d belongs to uid %s", port, uid)
		}
		return nil
	}
}

const routeFileName = "gateway-routes.json"

// routeFile is where the last route table is kept.
func (p *process) routeFile() string {
	return filepath.Join(stateDirectory(p.config), routeFileName)
}

// upgrade starts the successor. It gives false when there is none, and this process goes on.
func (p *process) upgrade(ctx context.Context) bool {
	p.log.Info("starting a successor", "program", p.o.Program)
	next, err := handover.Start(ctx, handover.Successor{Path: p.o.Program, Args: p.o.Args, Listeners: p.listeners})
	if err != nil {
		p.log.Error("upgrade failed, this process goes on", "error", err)
		return false
	}
	p.note(p.notifier.MainPID(next.PID))
	p.log.Info("successor has taken over", "pid", next.PID)
	return true
}

func (p *process) note(err error) {
	if err != nil {
		p.log.Debug("service manager not told", "error", err)
	}
}

func addresses(ls []net.Listener) []string {
	out := make([]string, 0, len(ls))
	for _, l := range ls {
		out = append(out, l.Addr().String())
	}
	return out
}

// closer is what serveMetrics gives.
type closer interface{ Close() error }

var _ closer = (*http.Server)(nil)
