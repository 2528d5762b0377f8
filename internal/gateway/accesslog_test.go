package gateway

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func (f *fixture) gather() []*dto.MetricFamily {
	f.t.Helper()
	ms, err := f.registry.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	return ms
}

func TestRedactQuery(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "",
		"token=secret":            "token=[redacted]",
		"a=1&usernameHint=QQ==&b": "a=[redacted]&usernameHint=QQ==&b=[redacted]",
		"%74oken=secret":          "%74oken=[redacted]",
		"username%48int=QQ":       "username%48int=QQ",
		"usernameHint2=secret":    "usernameHint2=[redacted]",
		"secret":                  "secret=[redacted]",
	} {
		if got := redactQuery(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestNoSecretsInTheLog sends secrets in every place where clients have them.
//
//attack:actor local user
//attack:does Reads the access log for tokens of links that are still open.
//attack:control Values in query strings are not logged.
//attack:remove internal/gateway/accesslog.go: b.WriteString(observability.Redacted) => b.WriteString(observability.Redacted[:0] + value)
func TestNoSecretsInTheLog(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := bearer()
	secrets := []string{"sEcReT", strings.TrimPrefix(token, "Bearer "), string(f.key[:])}
	hint := "&usernameHint=" + alice.HintValue()
	f.do("GET", "/ucloud/birch/download?token=sEcReT"+hint, "", "Cookie", "a=sEcReT", "Referer", "https://x/?t=sEcReT")
	f.do("GET", "/ucloud/birch/integration/instructions?ticket=sEcReT", "")
	f.do("GET", "/ucloud-oidc?code=sEcReT&state=sEcReT", "")
	f.do("GET", "/ucloud/birch/integration/redirect?session=sEcReT", "")
	f.do("POST", "/ucloud/birch/integration/redirect?session=sEcReT", "sEcReT", "Origin", "https://ucloud.example.org")
	f.do("POST", "/ucloud/birch/upload?"+hint[1:], "sEcReT", "Chunked-Upload-Token", "sEcReT")
	f.do("POST", "/ucloud/birch/files/browse", "sEcReT", "Authorization", token, "UCloud-Username", alice.HeaderValue())
	f.do("POST", "/ucloud/birch/files/browse", "{}", "Authorization", "Bearer sEcReT")
	f.routes.Apply(Update{Full: true})
	f.do("GET", "/ucloud/birch/download?token=sEcReT"+hint, "")
	log := f.log.String()
	for _, s := range secrets {
		if strings.Contains(log, s) {
			t.Errorf("a secret is in the log:\n%s", log)
		}
	}
	lines := strings.Split(strings.TrimSpace(log), "\n")
	n := 0
	for _, line := range lines {
		var rec map[string]any
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatal(err)
		}
		if rec["msg"] != "request" {
			continue
		}
		n++
		for _, key := range []string{"request", "method", "path", "status", "took_ms", "target", "class", "client"} {
			if rec[key] == nil {
				t.Errorf("%s is missing in %s", key, line)
			}
		}
		if strings.Contains(line, "usernameHint=") && rec["user"] != string(alice) {
			t.Errorf("user is missing in %s", line)
		}
	}
	if n != 9 {
		t.Errorf("%d records for 9 requests", n)
	}
	f.Reconfigure(func() Settings { s := f.settings; s.AccessLog = false; return s }())
	f.do("GET", "/ucloud-oidc", "")
	if f.log.String() != log {
		t.Error("logged although switched off")
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.core("POST", "/ucloud/birch/files/browse", "{}", alice)
	f.core("POST", "/ucloud/birch/files/browse", "{}", bob)
	f.do("GET", "/nothing", "")
	got := map[string]float64{}
	eventually(t, "metrics", func() bool {
		for _, m := range f.gather() {
			for _, v := range m.GetMetric() {
				name := m.GetName()
				for _, l := range v.GetLabel() {
					name += "," + l.GetValue()
				}
				got[name] = v.GetCounter().GetValue() + v.GetGauge().GetValue()
			}
		}
		return got["ucloud_gateway_requests_in_flight"] == 0
	})
	for name, want := range map[string]float64{
		"ucloud_gateway_requests_total,core,200,instance": 1, "ucloud_gateway_requests_total,core,449,instance": 1,
		"ucloud_gateway_requests_total,none,404,none": 1, "ucloud_gateway_wakes_total,refused": 1,
		"ucloud_gateway_routes": 1, "ucloud_gateway_connections": 1, "ucloud_gateway_held_requests": 0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

// TestRefusalsDoNotFillTheLog: of the failed requests of one address some have a line, the others are counted. Whoever is
// answered has a line, and so has Core.
//
//attack:actor internet
//attack:does Fills the disk with lines of the access log.
//attack:control Only the first failed requests of an address are logged one by one, the others as a number.
//attack:remove internal/gateway/refusals.go: if r.lines < loggedRefusals { => if r.lines >= 0 {
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const more = 7
	for range loggedRefusals + more {
		f.do("GET", "/nothing", "")
	}
	f.do("GET", "/ucloud/birch/files/browse", "", "Authorization", "Bearer forged")
	f.do("GET", "/ucloud/birch/files/retrieveProducts", "")
	f.core("POST", "/ucloud/birch/files/browse", "{}", bob) // 449
	f.refusals.sweep(time.Now())
	count := func(s string) int { return strings.Count(f.log.String(), s) }
	eventually(t, "the line of the last request", func() bool { return count(`"status":449`) == 1 })
	if n := count(`"status":404`); n != loggedRefusals {
		t.Errorf("%d lines", n)
	}
	if n := count(`"status":401`); n != 0 {
		t.Errorf("%d lines of another refusal", n)
	}
	if n := count(`"status":200`); n != 1 {
		t.Errorf("%d lines of what was answered", n)
	}
	if count("by_status") != 0 {
		t.Error("counted before the interval was over")
	}
	f.refusals.sweep(time.Now().Add(refusalsInterval))
	if !strings.Contains(f.log.String(), `"client":"127.0.0.1"`) || count(fmt.Sprintf(`"by_status":{"401":1,"404":%d}`, more)) != 1 {
		t.Errorf("no summary in %s", f.log.String())
	}
	f.do("GET", "/nothing", "")
	eventually(t, "a line in the next interval", func() bool { return count(`"status":404`) == loggedRefusals+1 })
}

// TestRefusalsAreBounded: sources beyond the room of the table are counted together.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	r := &refusals{log: slog.New(slog.NewJSONHandler(log, nil)), by: make(map[netip.Addr]*refusing)}
	now := time.Now()
	ip := netip.MustParseAddr("10.0.0.1")
	written := 0
	for range 2 * maxRefusing {
		if ip = ip.Next(); r.write(ip, 404, now) {
			written++
		}
	}
	if written != maxRefusing+loggedRefusals || len(r.by) != maxRefusing+1 {
		t.Errorf("%d lines, %d sources", written, len(r.by))
	}
	r.sweep(now.Add(refusalsInterval))
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), fmt.Sprintf(`"client":"others","since":"%s","by_status":{"404":%d}`, now.UTC().Format(time.RFC3339Nano), maxRefusing-loggedRefusals)) {
		t.Errorf("%d lines: %s", n, log.String())
	}
}
