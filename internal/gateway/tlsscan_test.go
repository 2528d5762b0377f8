package gateway

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/testkit"
)

// scan is what sslscan says about a listener.
type scan struct {
	Test struct {
		Protocols []struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
			Enabled int    `xml:"enabled,attr"`
		} `xml:"protocol"`
		Fallback struct {
			Supported int `xml:"supported,attr"`
		} `xml:"fallback"`
		Renegotiation struct {
			Supported int `xml:"supported,attr"`
			Secure    int `xml:"secure,attr"`
		} `xml:"renegotiation"`
		Compression struct {
			Supported int `xml:"supported,attr"`
		} `xml:"compression"`
		Heartbleed []struct {
			Vulnerable int `xml:"vulnerable,attr"`
		} `xml:"heartbleed"`
		Ciphers []struct {
			Version  string `xml:"sslversion,attr"`
			Bits     int    `xml:"bits,attr"`
			Cipher   string `xml:"cipher,attr"`
			Strength string `xml:"strength,attr"`
		} `xml:"cipher"`
		Groups []struct {
			Bits int    `xml:"bits,attr"`
			Name string `xml:"name,attr"`
		} `xml:"group"`
	} `xml:"ssltest"`
}

// TestScanner lets a scanner from the distribution look at a listener of the gateway.
//
//attack:actor internet
//attack:does Makes a client and the gateway agree on a version or cipher of TLS that can be broken.
//attack:control TLS 1.2 and 1.3 only, with forward secrecy and authenticated encryption.
//attack:remove internal/gateway/certificate.go: MinVersion:     minVersion, => MinVersion:     tls.VersionTLS10 + 0*minVersion,
func TestScanner(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Component("sslscan"))
	program, err := testkit.Program("sslscan")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	for name, minVersion := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		address := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(minVersion)})
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			out, err := exec.CommandContext(ctx, program, "--xml=-", "--no-colour", "--connect-timeout=60", "--timeout=60", address).Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var s scan
			if err := xml.Unmarshal(out, &s); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			versions := map[string]bool{}
			for _, p := range s.Test.Protocols {
				versions[p.Type+p.Version] = p.Enabled != 0
			}
			for _, old := range []string{"ssl2", "ssl3", "tls1.0", "tls1.1"} {
				if on, known := versions[old]; on || !known {
					t.Errorf("%s: known %t, enabled %t", old, known, on)
				}
			}
			if !versions["tls1.3"] || versions["tls1.2"] != (minVersion == tls.VersionTLS12) {
				t.Errorf("versions: %v", versions)
			}
			for _, c := range s.Test.Ciphers {
				forward := c.Version == "TLSv1.3" || strings.HasPrefix(c.Cipher, "ECDHE-")
				sealed := strings.Contains(c.Cipher, "GCM") || strings.Contains(c.Cipher, "CHACHA20")
				if !forward || !sealed || c.Bits < 128 || c.Strength != "strong" && c.Strength != "acceptable" {
					t.Errorf("cipher %+v", c)
				}
			}
			for _, g := range s.Test.Groups {
				if g.Bits < 112 {
					t.Errorf("group %+v", g)
				}
			}
			for _, h := range s.Test.Heartbleed {
				if h.Vulnerable != 0 {
					t.Error("heartbleed")
				}
			}
			if len(s.Test.Ciphers) == 0 || len(s.Test.Groups) == 0 {
				t.Errorf("the scanner found nothing:\n%s", out)
			}
			if s.Test.Renegotiation.Supported != 0 || s.Test.Compression.Supported != 0 {
				t.Errorf("renegotiation %+v, compression %+v", s.Test.Renegotiation, s.Test.Compression)
			}
		})
	}
}

// TestHSTS: a browser that has seen the gateway over TLS does not go back, and is told so over TLS only.
func TestHSTS(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.HSTS = 48 * time.Hour })
	address := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	get := func(url, path, token string) string {
		req, _ := http.NewRequest("GET", url+path, nil)
		req.Host = "birch.example.net"
		if token != "" {
			req.Header.Set("Authorization", token)
			req.Header.Set("Ucloud-Username", alice.HeaderValue())
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if v := res.Header["Strict-Transport-Security"]; len(v) > 1 {
			t.Errorf("%s: %v", path, v)
		}
		return res.Header.Get("Strict-Transport-Security")
	}
	f.alice.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=1; includeSubDomains") // not for an instance to say
	})
	for _, path := range []string{products, "/nothing", "/ucloud/birch/files"} {
		if v := get("https://"+address, path, bearer()); v != "max-age=172800" {
			t.Errorf("%s: %q", path, v)
		}
		if v := get("http://"+f.address, path, bearer()); v != "" {
			t.Errorf("%s over plain HTTP: %q", path, v)
		}
	}
}
