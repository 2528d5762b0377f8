package gateway

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// FuzzClientOf: a client that is no trusted proxy cannot say who it is, and what a proxy says is an address or nothing.
func FuzzClientOf(f *testing.F) {
	f.Add("192.0.2.1, 198.51.100.7", "for=192.0.2.1;proto=https", "https", "192.0.2.9")
	f.Add("[2001:db8::1]:443", `for="[2001:db8::1]:1", for=unknown`, "http", "")
	f.Add("::ffff:192.0.2.1,,", "for=;for", "HTTPS, http", "x")
	f.Fuzz(func(t *testing.T, xff, forwarded, proto, real string) {
		peer, trusted := netip.MustParseAddr("203.0.113.5"), []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		r := &http.Request{Header: http.Header{}}
		for name, v := range map[string]string{"X-Forwarded-For": xff, "Forwarded": forwarded, "X-Forwarded-Proto": proto, "X-Real-Ip": real} {
			if v != "" {
				r.Header[name] = []string{v}
			}
		}
		if c := clientOf(r, peer, trusted); c.ip != peer || c.https {
			t.Errorf("%+v", c)
		}
		proxy := netip.MustParseAddr("10.1.2.3")
		c := clientOf(r, proxy, trusted)
		if !c.ip.IsValid() || c.ip.Is4In6() {
			t.Errorf("%+v", c)
		}
		if s := source(c.ip); !s.IsValid() || source(s) != s || s.Zone() != "" {
			t.Errorf("%v of %v", s, c.ip)
		}
	})
}

// FuzzHost: what is left of a Host header is a name or an address, and never has a port or a separator.
func FuzzHost(f *testing.F) {
	for _, seed := range []string{"birch.example.net", "birch.example.net:443", "[::1]:80", "a@b", "a:b:c", "[::1", "x.", "%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		name := hostName(host)
		if strings.ContainsAny(name, "/@?#[] ,;%\\\r\n\x00") || strings.HasSuffix(name, ".") && !strings.HasSuffix(host, "..") && strings.Trim(host, ".:0123456789") != "" {
			t.Errorf("%q gives %q", host, name)
		}
	})
}

// FuzzCookie: no cookie of an application is for other hosts, or has the name of ours.
func FuzzCookie(f *testing.F) {
	for _, seed := range []string{"a=b", "a=b; Domain=example.net; Path=/", "a=b;domain = x", webCookiePrefix + "x=y", " a=b; DOMAIN"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		clean := hostOnlyCookie(line)
		for i, part := range strings.Split(clean, ";") {
			name, _, _ := strings.Cut(part, "=")
			name = strings.Trim(name, " \t")
			if i == 0 && hasPrefixFold(name, webCookiePrefix) || i > 0 && equalFold(name, "domain") {
				t.Errorf("%q gives %q", line, clean)
			}
		}
	})
}
