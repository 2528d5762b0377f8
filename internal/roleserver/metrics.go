package roleserver

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/events"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/scripts"
)

// newRegistry makes the metrics of the server. Values are read when Prometheus asks.
func newRegistry(s *server) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counter := func(name, help string, value func(launcher.Counters) uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "ucloud", Subsystem: "instances", Name: name, Help: help},
			func() float64 { return float64(value(s.launcher.Counters())) }))
	}
	counter("launches_total", "Instances started.", func(c launcher.Counters) uint64 { return c.Launches })
	counter("launch_failures_total", "Starts that failed or were refused.", func(c launcher.Counters) uint64 { return c.LaunchFailures })
	counter("refused_total", "Starts refused by mapping or policy.", func(c launcher.Counters) uint64 { return c.Refused })
	counter("crashes_total", "Unexpected ends of instances.", func(c launcher.Counters) uint64 { return c.Crashes })
	counter("crash_loops_total", "Users given up for the restart window.", func(c launcher.Counters) uint64 { return c.CrashLoops })
	counter("hung_total", "Instances that lived and did not react.", func(c launcher.Counters) uint64 { return c.Hung })
	counter("unkillable_total", "Instances that only root can end.", func(c launcher.Counters) uint64 { return c.Unkillable })
	counter("adopted_total", "Instances of an earlier server taken over.", func(c launcher.Counters) uint64 { return c.Adopted })
	counter("idle_stops_total", "Instances ended because they were idle.", func(c launcher.Counters) uint64 { return c.IdleStops })
	counter("replaced_total", "Instances replaced by new code or groups.", func(c launcher.Counters) uint64 { return c.Replaced })
	counter("hellos_refused_total", "Processes that claimed a place that is not theirs.", func(c launcher.Counters) uint64 { return c.HellosRefused })

	gauge := func(subsystem, name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "ucloud", Subsystem: subsystem, Name: name, Help: help}, value))
	}
	gauge("instances", "running", "Instances now.", func() float64 { return float64(s.launcher.Counters().Instances) })
	gauge("gateway", "connected", "Gateway processes connected now.", func() float64 { return float64(s.launcher.Counters().Gateways) })
	gauge("users", "connected", "Active mappings.", func() float64 { return float64(s.users.Active()) })
	gauge("core", "token_valid", "1 while a valid access token is at hand.", func() float64 { return truth(s.core.Status().State == coreapi.TokenOK) })
	gauge("events", "connected", "1 while the event stream is up.", func() float64 { return truth(s.events.Status().State == events.StateUp) })
	gauge("outbox", "waiting", "Deliveries to Core that wait.", func() float64 { return s.waiting(false) })
	gauge("outbox", "suspect", "Deliveries that need an operator's decision.", func() float64 { return s.waiting(true) })
	return r
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// waiting counts deliveries for a scrape; -1 if the database does not answer.
func (s *server) waiting(suspects bool) float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	queued, suspect, err := s.outboxCounts(ctx)
	switch {
	case err != nil:
		return -1
	case suspects:
		return float64(suspect)
	default:
		return float64(queued)
	}
}

// serveMetrics answers Prometheus and health checks until ctx ends.
func (s *server) serveMetrics(ctx context.Context) error {
	if s.metrics == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if why := s.notReady(r.Context()); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	m := s.config.Load().Metrics
	var token observability.Secret
	if m.Auth != nil {
		token = m.Auth.Token.Value()
	}
	srv := &http.Server{
		Handler: guardMetrics(mux, m.AllowedCIDRs, token), ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(s.metrics); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// guardMetrics lets in whom the configuration allows: networks, and holders of the token. Loopback needs no network.
func guardMetrics(h http.Handler, allowed []netip.Prefix, token observability.Secret) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(allowed) > 0 {
			peer, err := netip.ParseAddrPort(r.RemoteAddr)
			inside := func(p netip.Prefix) bool { return p.Contains(peer.Addr().Unmap()) }
			if err != nil || !peer.Addr().IsLoopback() && !slices.ContainsFunc(allowed, inside) {
				http.Error(w, "forbidden", http.StatusForbidden)
				return
			}
		}
		if token != "" {
			want := "Bearer " + token.Reveal()
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				http.Error(w, "unauthorized", http.StatusUnauthorized)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// notReady tells what keeps the provider from working, "" if nothing does. Core itself would not notice (contract 33
// section 9).
func (s *server) notReady(ctx context.Context) string {
	switch {
	case s.store.Ping(ctx) != nil:
		return "the database does not answer"
	case s.core.Status().State != coreapi.TokenOK:
		return "no access token for Core"
	case s.events.Status().State != events.StateUp:
		return "the event stream of Core is not connected"
	case s.launcher.Counters().Gateways == 0:
		return "no gateway is connected"
	}
	return ""
}

// scriptMetrics count calls of extension scripts (contract 42 section A.4), by hook and never by user.
type scriptMetrics struct {
	calls *prometheus.CounterVec
	took  *prometheus.HistogramVec
}

func newScriptMetrics(r *prometheus.Registry) scriptMetrics {
	m := scriptMetrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "ucloud", Subsystem: "scripts", Name: "calls_total", Help: "Calls of extension scripts, by hook and outcome.",
		}, []string{"hook", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "ucloud", Subsystem: "scripts", Name: "seconds", Help: "How long calls of extension scripts took.",
			Buckets: []float64{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600},
		}, []string{"hook"}),
	}
	r.MustRegister(m.calls, m.took)
	return m
}

func (m scriptMetrics) observe(hook string, kind scripts.Kind, took time.Duration) {
	result := string(kind)
	if result == "" {
		result = "ok"
	}
	m.calls.WithLabelValues(hook, result).Inc()
	m.took.WithLabelValues(hook).Observe(took.Seconds())
}
