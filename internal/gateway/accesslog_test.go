package gateway

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

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
