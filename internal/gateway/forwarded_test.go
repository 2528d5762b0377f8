package gateway

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"testing"
)

func TestClientOf(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		name   string
		peer   string
		header map[string]string
		tls    bool
		ip     string
		https  bool
	}{
		{"direct", "192.0.2.1", nil, false, "192.0.2.1", false},
		{"direct with TLS", "192.0.2.1", nil, true, "192.0.2.1", true},
		{"untrusted peer lies", "192.0.2.1", map[string]string{"X-Forwarded-For": "1.1.1.1", "X-Forwarded-Proto": "https", "Forwarded": "for=2.2.2.2", "X-Real-Ip": "3.3.3.3"}, false, "192.0.2.1", false},
		{"proxy", "10.20.0.2", map[string]string{"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}, false, "192.0.2.7", true},
		{"client lies to the proxy", "10.20.0.2", map[string]string{"X-Forwarded-For": "1.1.1.1, 192.0.2.7"}, false, "192.0.2.7", false},
		{"two proxies", "10.20.0.2", map[string]string{"X-Forwarded-For": "1.1.1.1, 192.0.2.7, 10.20.0.3"}, false, "192.0.2.7", false},
		{"only proxies", "10.20.0.2", map[string]string{"X-Forwarded-For": "10.20.0.9"}, false, "10.20.0.9", false},
		{"garbage on the right", "10.20.0.2", map[string]string{"X-Forwarded-For": "192.0.2.7, unknown"}, false, "10.20.0.2", false},
		{"forwarded", "10.20.0.2", map[string]string{"Forwarded": `for=1.1.1.1, for="[2001:db8::7]:4711";proto=https`}, false, "2001:db8::7", true},
		{"client lies in the header that the proxy does not know", "10.20.0.2", map[string]string{"Forwarded": "for=1.1.1.1;proto=https", "X-Forwarded-For": "192.0.2.7"}, false, "192.0.2.7", false},
		{"real ip", "10.20.0.2", map[string]string{"X-Real-Ip": "192.0.2.9"}, false, "192.0.2.9", false},
		{"TLS to the proxy, plain before it", "10.20.0.2", map[string]string{"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "http"}, true, "192.0.2.7", false},
		{"IPv6 proxy", "fd00::1", map[string]string{"X-Forwarded-For": "192.0.2.7:55"}, false, "192.0.2.7", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := &http.Request{Header: http.Header{}}
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			if tc.tls {
				r.TLS = new(tls.ConnectionState)
			}
			got := clientOf(r, netip.MustParseAddr(tc.peer), trusted)
			if got.ip.String() != tc.ip || got.https != tc.https {
				t.Fatalf("got %+v", got)
			}
		})
	}
}

func TestHostAllowed(t *testing.T) {
	t.Parallel()
	s := &Settings{Hosts: []string{"Birch.example.net", "10.20.0.5", "2001:db8::1"}}
	dev := &Settings{Hosts: s.Hosts, LoopbackHosts: true}
	for _, tc := range []struct {
		host    string
		ok, dev bool
	}{
		{"birch.example.net", true, true},
		{"BIRCH.example.NET:8443", true, true},
		{"birch.example.net.", true, true},
		{"birch.example.net.:443", true, true},
		{"10.20.0.5:8889", true, true},
		{"[2001:db8::1]:443", true, true},
		{"[2001:db8::1]", true, true},
		{"localhost:8889", false, true},
		{"127.0.0.1:8889", false, true},
		{"127.9.9.9", false, true},
		{"[::1]:8889", false, true},
		{"", false, false},
		{"evil.example.net", false, false},
		{"birch.example.net.evil.org", false, false},
		{"xbirch.example.net", false, false},
		{"birch.example.net:443:443", false, false},
		{"birch.example.net:", false, false},
		{"birch.example.net:abc", false, false},
		{"birch.example.net@evil.org", false, false},
		{"birch.example.net/x", false, false},
		{"birch.example.net,evil.org", false, false},
		{"[birch.example.net]", false, false},
		{"[127.0.0.1]", false, false},
		{"b\u0131rch.example.net", false, false}, // folds to ASCII in some comparisons
		{"localhost.evil.org", false, false},
	} {
		if got := hostAllowed(tc.host, s); got != tc.ok {
			t.Errorf("%q: %v", tc.host, got)
		}
		if got := hostAllowed(tc.host, dev); got != tc.dev {
			t.Errorf("%q in development: %v", tc.host, got)
		}
	}
}
