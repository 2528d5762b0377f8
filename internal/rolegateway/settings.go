package rolegateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/config"
	"ucloud-im/internal/gateway"
	"ucloud-im/internal/observability"
)

var anyAddress = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)

func loopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)) //nolint:gosec // checked by convertRoute
}

// load reads the configuration as the gateway may see it, with the rules about this machine.
func load(dir string) (*config.Config, config.Problems) {
	return config.Load(dir, config.Options{
		Role: config.RoleGateway, Environment: true,
		ParseKeys: func(b []byte) error { _, err := auth.ParsePublicKeys(b); return err },
	})
}

// settings is what can change while the gateway runs.
func settings(c *config.Config) gateway.Settings {
	g := &c.Gateway
	hsts := time.Duration(0)
	if g.TLS != nil && !c.Development.Enabled {
		hsts = time.Duration(g.TLS.HSTS)
	}
	return gateway.Settings{
		HSTS:           hsts,
		Provider:       c.Provider.ID.String(),
		Hosts:          []string{c.Provider.Hosts.SelfPublic.Address, c.Provider.Hosts.Self.Address},
		LoopbackHosts:  c.Development.Enabled,
		TrustedProxies: g.TrustedProxies,
		AccessLog:      g.AccessLog.Enabled,
		Web:            webSettings(c),
		Hold:           gateway.Hold{Disabled: !g.Hold.Enabled, Timeout: time.Duration(g.Hold.Timeout), Max: g.Hold.Max},
		Limits: gateway.Limits{
			MaxHeaderBytes:      int(g.Limits.MaxHeaderBytes.Bytes()),
			HeaderTimeout:       time.Duration(g.Limits.HeaderTimeout),
			IdleTimeout:         time.Duration(g.Limits.IdleTimeout),
			MaxConnectionsPerIP: g.Limits.MaxConnectionsPerIP,

			RequestsPerSecondPerIP:    float64(g.Limits.RequestsPerSecondPerIP),
			RequestsPerSecondPerUser:  float64(g.Limits.RequestsPerSecondPerUser),
			ConnectionsPerSecondPerIP: float64(g.Limits.ConnectionsPerSecondPerIP),
			FailuresPerMinutePerIP:    float64(g.Limits.FailuresPerMinutePerIP),
			Burst:                     float64(g.Limits.Burst),
			MaxBrowserBody:            g.Limits.MaxBrowserBody.Bytes(),
			Resets:                    g.Limits.ResetsPerConnection,
		},
	}
}

func certificateFiles(t *config.TLS) gateway.CertificateFiles {
	f := gateway.CertificateFiles{Certificate: t.Certificate.String(), Key: t.Key.File()}
	if f.Key == "" {
		f.KeyPEM = t.Key.Value()
	}
	return f
}

// listen opens, or takes over, all listeners.
func (p *process) listen(ctx context.Context) error {
	g := &p.config.Gateway
	all := append([]config.Listen(nil), g.Listen...)
	for _, l := range []config.Listen{g.RedirectHTTP, g.MetricsListen} {
		if l.IsSet() {
			all = append(all, l)
		}
	}
	for _, l := range all {
		nl, err := p.sockets.Listen(ctx, l.String())
		if err != nil {
			return err
		}
		p.listeners = append(p.listeners, nl)
	}
	return nil
}

// newServer puts gateway, certificate and listeners together.
func (p *process) newServer() error {
	g := &p.config.Gateway
	o := gateway.ServerOptions{Listeners: p.listeners[:len(g.Listen)]}
	if g.TLS != nil {
		var err error
		if p.cert, err = gateway.LoadCertificate(certificateFiles(g.TLS), p.log); err != nil {
			return err
		}
		minVersion := uint16(tls.VersionTLS12)
		if g.TLS.MinVersion == "1.3" {
			minVersion = tls.VersionTLS13
		}
		o.TLS = p.cert.TLSConfig(minVersion)
	}
	if g.RedirectHTTP.IsSet() {
		o.Redirect, o.RedirectTo = p.listeners[len(g.Listen)], p.config.Provider.Hosts.SelfPublic.URL()
	}
	var err error
	p.server, err = p.gateway.NewServer(o)
	return err
}

// serveMetrics runs the endpoint for Prometheus and health checks, if it is configured.
func (p *process) serveMetrics(wg *sync.WaitGroup) closer {
	srv := &http.Server{
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	if !p.config.Gateway.MetricsListen.IsSet() {
		return srv
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if p.control.client.Load() == nil {
			http.Error(w, "the server is away", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv.Handler = mux
	l := p.listeners[len(p.listeners)-1]
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("metrics endpoint ended", "error", err)
		}
	})
	return srv
}

// reload takes over what can change at run time; on any problem everything stays as it was (contract 40 section 10).
func (p *process) reload() {
	p.note(p.notifier.Reloading())
	defer func() { p.note(p.notifier.Ready()) }()
	if err := p.tryReload(); err != nil {
		p.log.Error("reload refused, the old configuration stays in use", "error", p.explain(err))
		return
	}
	p.log.Info("configuration reloaded")
}

func (p *process) tryReload() error {
	c, problems := load(p.o.ConfigDir)
	if c == nil {
		return problems.Err()
	}
	keys, err := auth.ReadKeys(c.Provider.Core.KeyFiles())
	if err != nil {
		return err
	}
	// The certificate is the last part that can fail: after it nothing is left half changed.
	switch t := c.Gateway.TLS; {
	case (t == nil) != (p.cert == nil):
		p.log.Warn("turning TLS on or off needs a restart")
	case t != nil:
		if err := p.cert.Use(certificateFiles(t)); err != nil {
			return err
		}
	}
	if err := p.verifier.SetKeys(keys); err != nil {
		return err
	}
	p.warnOfRestart(c)
	next := settings(c)
	next.Provider = p.config.Provider.ID.String()
	p.gateway.Reconfigure(next)
	p.setLevel(c)
	return nil
}

// warnOfRestart names changes that stay without effect until this process is replaced, which SIGUSR2 does without a lost
// request.
func (p *process) warnOfRestart(c *config.Config) {
	old := p.config
	limits := c.Gateway.Limits // all but these take effect at once
	limits.MaxHeaderBytes, limits.HeaderTimeout, limits.IdleTimeout = old.Gateway.Limits.MaxHeaderBytes, old.Gateway.Limits.HeaderTimeout, old.Gateway.Limits.IdleTimeout
	for key, changed := range map[string]bool{
		"provider.id":           c.Provider.ID != old.Provider.ID,
		"gateway.listen":        !slices.Equal(c.Gateway.Listen, old.Gateway.Listen),
		"gateway.redirectHttp":  c.Gateway.RedirectHTTP != old.Gateway.RedirectHTTP,
		"gateway.metricsListen": c.Gateway.MetricsListen != old.Gateway.MetricsListen,
		"gateway.sandbox":       c.Gateway.Sandbox != old.Gateway.Sandbox,
		"gateway.limits":        c.Gateway.Limits != limits,
		"ipc.directory":         c.IPC.Directory != old.IPC.Directory,
		"internal.serverListen": c.Internal.ServerListen != old.Internal.ServerListen,
	} {
		if changed {
			p.log.Warn("change takes effect in a new process only (SIGUSR2 or restart)", "key", key)
		}
	}
}

// setUpLogs makes the process's log unless the caller has.
func (p *process) setUpLogs() {
	p.setLevel(p.config)
	p.log = p.o.Log
	if p.log == nil {
		p.log = observability.NewLogger(os.Stderr, observability.LogOptions{JSON: p.config.Logs.Format == "json", Level: &p.level})
	}
}

func (p *process) setLevel(c *config.Config) {
	name := c.Logs.Level
	if v := os.Getenv("UCLOUD_LOG_LEVEL"); v != "" {
		name = v
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err == nil {
		p.level.Set(level)
	}
}

func (p *process) accessLogger() *slog.Logger {
	return observability.NewLogger(p.o.AccessOutput, observability.LogOptions{JSON: p.config.Gateway.AccessLog.Format != "text"})
}
