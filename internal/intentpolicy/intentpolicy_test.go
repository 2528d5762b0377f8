package intentpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// TestPolicyForUser: the stricter of a user's and a call's mode counts where both are given, otherwise the one that is.
func TestPolicyForUser(t *testing.T) {
	t.Parallel()
	p := Policy{
		Mode:  intent.ModeLog,
		Users: map[ident.UCloudUser]string{"Strict#1": intent.ModeRequire, "Lax#2": intent.ModeOff},
		Calls: map[string]string{"jobs.create": intent.ModeRequire, "files.browse": intent.ModeOff}, Exempt: []string{"files.copy"},
		MaxAge: time.Minute, Skew: 30 * time.Second,
	}
	for _, tc := range []struct {
		user ident.UCloudUser
		call string
		want string
	}{
		{"Anybody#3", "files.move", intent.ModeLog},
		{"Anybody#3", "files.browse", intent.ModeOff},
		{"Anybody#3", "jobs.create", intent.ModeRequire},
		{"Anybody#3", "files.copy", intent.ModeOff},
		{"Strict#1", "files.move", intent.ModeRequire},
		{"Strict#1", "files.browse", intent.ModeRequire},
		{"Strict#1", "files.copy", intent.ModeOff},
		{"Lax#2", "files.move", intent.ModeOff},
		{"Lax#2", "jobs.create", intent.ModeRequire},
		{"lax#2", "files.move", intent.ModeLog}, // names are compared byte by byte
	} {
		s := p.For(tc.user)
		if got := intent.NewPolicy(s.Mode, s.Calls, s.Exempt).Mode(intent.Rule{Calls: []string{tc.call}}); got != tc.want {
			t.Errorf("%s, %s: %s, want %s", tc.user, tc.call, got, tc.want)
		}
		if s.MaxAgeMs != 60_000 || s.SkewMs != 30_000 {
			t.Errorf("limits %+v", s)
		}
	}
	if !p.Wanted("Lax#2") || (Policy{Mode: intent.ModeOff}).Wanted("x") || !(Policy{Users: map[ident.UCloudUser]string{"x": "log"}}).Wanted("x") {
		t.Error("whose keys are wanted")
	}
	if got := p.Describe(); got != "log, with exceptions" {
		t.Errorf("described as %q", got)
	}
}

// metrics gives what Prometheus would read.
func (s *Service) metrics() map[string]float64 {
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(s.o.Metrics.(*prometheus.Registry), promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	out := map[string]float64{}
	for line := range strings.Lines(rec.Body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok {
			out[name+"}"], _ = strconv.ParseFloat(value, 64)
		}
	}
	return out
}

func metric(call, verdict, mode string) string {
	return fmt.Sprintf(`ucloud_intents_seen_total{call=%q,mode=%q,verdict=%q}`, call, mode, verdict)
}

func newService(t *testing.T) *Service {
	t.Helper()
	return New(Options{
		Policy:  func() *Policy { return &Policy{Mode: intent.ModeLog} },
		Keyless: func(context.Context) ([]ident.UCloudUser, error) { return []ident.UCloudUser{"Zoe#2", "Bob#1"}, nil },
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
}

func counts(c ...ipcapi.IntentCount) ipcapi.IntentCounts { return ipcapi.IntentCounts{Counts: c} }

// TestReport: numbers add up, refusals come first.
func TestReport(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for range 2 {
		if err := s.take("Ada#1", counts(
			ipcapi.IntentCount{Call: "files.browse", Verdict: "ok", Mode: "log", Form: "1", Count: 90},
			ipcapi.IntentCount{Call: "jobs.create", Verdict: "missing", Mode: "log", Count: 2},
			ipcapi.IntentCount{Call: "jobs.follow", Verdict: ipcapi.IntentOptional, Mode: "log", Count: 1},
			ipcapi.IntentCount{Call: "files.move", Verdict: "signature", Mode: "require", Form: "1", Count: 5},
			ipcapi.IntentCount{Call: "files.move", Verdict: ipcapi.IntentUnavailable, Mode: "require", Count: 1},
		)); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := s.report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range rep.Counts {
		got = append(got, fmt.Sprint(c.User, " ", c.Call, " ", c.Verdict, " ", c.Count, " ", c.Refused))
		if c.LastAt == nil {
			t.Errorf("no time: %+v", c)
		}
	}
	want := []string{
		"Ada#1 files.move signature 10 true", "Ada#1 jobs.create missing 4 true", "Ada#1 files.browse ok 180 false",
		"Ada#1 files.move unavailable 2 false", "Ada#1 jobs.follow optional 2 false",
	}
	if !slices.Equal(got, want) || rep.Mode != "log" || !slices.Equal(rep.Keyless, []ident.UCloudUser{"Bob#1", "Zoe#2"}) {
		t.Errorf("%q, %+v", got, rep)
	}
	if n := s.metrics()[metric("files.move", "signature", "require")]; n != 10 {
		t.Errorf("the metric says %v", n)
	}
	s.o.Keyless = func(context.Context) ([]ident.UCloudUser, error) { return nil, errors.New("no database") }
	if _, err := s.report(t.Context()); err == nil {
		t.Error("a report without the database")
	}
}

// TestNumbersAreBounded: no instance can fill the memory of the server, the report or the metrics.
//
//attack:actor compromised instance
//attack:does Hands in numbers about calls with made-up names, until the server and Prometheus run out of memory.
//attack:control Numbers are kept by fixed sets of words only.
//attack:remove internal/intentpolicy/service.go: if slices.Contains(words, word) { => if true {
//attack:actor compromised instance
//attack:does Hands in numbers in all combinations, so that the users that come after it are not counted by name.
//attack:control Each user has a bounded number of rows.
//attack:remove internal/intentpolicy/service.go: || s.own[r.user] >= maxOwnRows) => || false)
func TestNumbersAreBounded(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for i := range 3000 {
		_ = s.take("Eve#1", counts(ipcapi.IntentCount{
			Call: fmt.Sprint("made.up", i), Verdict: fmt.Sprint(i), Mode: fmt.Sprint(i), Form: fmt.Sprint("form ", i), Count: 1,
		}))
	}
	if len(s.rows) != 1 || len(s.metrics()) != 1 {
		t.Errorf("%d rows, %d metrics", len(s.rows), len(s.metrics()))
	}
	for _, call := range intent.Names() {
		for _, verdict := range verdicts {
			for _, mode := range modes {
				_ = s.take("Eve#1", counts(ipcapi.IntentCount{Call: call, Verdict: verdict, Mode: mode, Count: 1}))
			}
		}
	}
	mine := 0
	for r := range s.rows {
		if r.user == "Eve#1" {
			mine++
		}
	}
	if mine > maxOwnRows {
		t.Errorf("one user has %d rows", mine)
	}
	if err := s.take("Eve#1", ipcapi.IntentCounts{Counts: make([]ipcapi.IntentCount, maxReport+1)}); !failure.Is(err, failure.Invalid) {
		t.Errorf("a long report: %v", err)
	}
	before := s.metrics()[metric("files.copy", "ok", "log")]
	_ = s.take("Eve#1", counts(
		ipcapi.IntentCount{Call: "files.copy", Verdict: "ok", Mode: "log", Count: 1 << 62}, ipcapi.IntentCount{Call: "files.copy", Verdict: "ok", Mode: "log", Count: -5},
	))
	if n := s.metrics()[metric("files.copy", "ok", "log")]; n != before+maxCount {
		t.Errorf("a large number made %v of %v", n, before)
	}
	for i := range maxRows + 100 {
		_ = s.take(ident.UCloudUser(fmt.Sprint("U#", i)), counts(ipcapi.IntentCount{Call: "files.copy", Verdict: "ok", Mode: "log", Count: 1}))
	}
	if most := maxRows + 40*20*3; len(s.rows) > most {
		t.Errorf("%d rows", len(s.rows))
	}
}

// TestNumbersAreTheCallers: over the socket, whose numbers they are is what the kernel and the mapping say.
//
//attack:actor compromised instance
//attack:does Hands in numbers in the name of another user, so that the operator switches to require too early, or never.
//attack:control The server takes the user from the kernel's uid and not from the document.
//attack:remove internal/intentpolicy/service.go: user: user, call: known => user: cmp.Or(c.User, user), call: known
func TestNumbersAreTheCallers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var mu sync.Mutex
	grant := ipc.Grant{User: "Ada#1", Mapped: true}
	server := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		mu.Lock()
		defer mu.Unlock()
		return grant, nil
	}})
	s.Register(server)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := ipc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); serving.Wait() })
	c, err := ipc.Dial(t.Context(), socket, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	lie := counts(ipcapi.IntentCount{User: "Bob#1", Call: "files.copy", Verdict: "ok", Mode: "log", Count: 3})
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.IntentSeen, lie); err != nil {
		t.Fatal(err)
	}
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.IntentReport, ipcapi.Empty{}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("a user reads the report: %v", err)
	}
	mu.Lock()
	grant = ipc.Grant{Viewer: true}
	mu.Unlock()
	rep, err := ipc.Invoke(t.Context(), c, ipcapi.IntentReport, ipcapi.Empty{})
	if err != nil || len(rep.Counts) != 1 || rep.Counts[0].User != "Ada#1" {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.IntentSeen, lie); !failure.Is(err, failure.Forbidden) {
		t.Errorf("somebody without a mapping hands in numbers: %v", err)
	}
}
