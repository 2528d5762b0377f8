package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// raw sends bytes and gives the answers: n of them, and those that follow although nothing should.
func raw(t *testing.T, address, request string, n int) []reply {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	var out []reply
	for {
		wait := 20 * time.Second
		if len(out) >= n {
			wait = 100 * time.Millisecond
		}
		c.SetReadDeadline(time.Now().Add(wait))
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			return out
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return out
		}
		out = append(out, reply{res, string(b)})
	}
}

// TestSmuggling sends what a careless chain of parsers reads in two ways. Each must be refused, or be read as exactly
// the requests in want, and nothing else may reach an upstream.
//
//attack:actor internet
//attack:does Encodes slashes, so that a call passes as one of the server's and reaches another handler.
//attack:control The path is cleaned once, and what two parsers could read in two ways is refused.
//attack:remove internal/gateway/path.go: return "", failure.New(failure.Invalid, "The path contains an encoded character that is not allowed") => _ = c
//attack:run encoded_slash_to_a_server_path
//attack:actor internet
//attack:does Sends a request with two identities, one of which each part of the provider might believe.
//attack:control A request names one user, or is refused.
//attack:remove internal/gateway/identity.go: switch values := h[ident.HeaderUser]; len(values) { => switch values := h[ident.HeaderUser]; min(1, len(values)) {
//attack:run two_identities
//attack:actor internet
//attack:does Hides a second request in the body of an upgrade.
//attack:control An upgrade has no body.
//attack:remove internal/gateway/gateway.go: if ex.socket && ex.body != nil { => if ex.socket && ex.body != nil && false {
//attack:run upgrade_with_a_body
//attack:actor internet
//attack:does Uses the gateway under a name that is not its own (DNS rebinding).
//attack:control Requests for other hosts are refused.
//attack:remove internal/gateway/gateway.go: if !hostAllowed(r.Host, ex.settings) { => if false {
//attack:run other_host
func TestSmuggling(t *testing.T) {
	t.Parallel()
	auth := "Authorization: " + bearer() + "\r\nUcloud-Username: " + alice.HeaderValue() + "\r\n"
	const host = "Host: birch.example.net\r\n"
	post := "POST /ucloud/birch/files/browse HTTP/1.1\r\n" + host + auth
	inner := "POST /ucloud/birch/files/trash HTTP/1.1\r\n" + host + auth + "Content-Length: 2\r\n\r\n{}"
	for _, tc := range []struct {
		name    string
		request string
		status  []int    // of the answers
		want    []string // bodies that the instance saw
		server  int      // requests that the server saw
	}{
		{"plain", post + "Content-Length: 2\r\n\r\n{}", []int{200}, []string{"{}"}, 0},
		{"pipelined, both ours", post + "Content-Length: 2\r\n\r\n{}" + inner, []int{200, 200}, []string{"{}", "{}"}, 0},
		{"length and chunked", post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{200}, []string{""}, 0},
		{"length and chunked, hidden request", post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + "GARBAGE\r\n\r\n", []int{200, 400}, []string{""}, 0},
		{"two lengths", post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", []int{400}, nil, 0},
		{"list of lengths", post + "Content-Length: 2, 3\r\n\r\n{}x", []int{400}, nil, 0},
		{"signed length", post + "Content-Length: +2\r\n\r\n{}", []int{400}, nil, 0},
		{"negative length", post + "Content-Length: -2\r\n\r\n{}", []int{400}, nil, 0},
		{"hexadecimal length", post + "Content-Length: 0x2\r\n\r\n{}", []int{400}, nil, 0},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{501}, nil, 0},
		{"chunked and identity", post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", []int{501}, nil, 0},
		{"unknown encoding", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", []int{501}, nil, 0},
		{"vertical tab in encoding", post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", []int{400}, nil, 0},
		{"space before colon", post + "Transfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\n{}", []int{400}, nil, 0},
		{"bad chunk size", post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", []int{400}, nil, 0},
		{"folded header", post + "X-A: 1\r\n Ucloud-Secret: x\r\nContent-Length: 2\r\n\r\n{}", []int{200}, []string{"{}"}, 0},
		{"NUL in header", post + "X-A: a\x00b\r\nContent-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"bare CR in header", post + "X-A: a\rUcloud-Secret: x\r\nContent-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"two hosts", "GET /ucloud/birch/integration/x HTTP/1.1\r\n" + host + "Host: evil.example.org\r\n\r\n", []int{400}, nil, 0},
		{"no host", "GET /ucloud/birch/integration/x HTTP/1.1\r\n\r\n", []int{400}, nil, 0},
		{"other host", "GET /ucloud/birch/integration/x HTTP/1.1\r\nHost: evil.example.org\r\n\r\n", []int{421}, nil, 0},
		{"absolute form, ours", "GET http://birch.example.net/ucloud/birch/integration/x HTTP/1.1\r\nHost: birch.example.net\r\n\r\n", []int{200}, nil, 1},
		{"absolute form decides, not Host", "GET http://evil.example.org/ucloud/birch/integration/x HTTP/1.1\r\n" + host + "\r\n", []int{421}, nil, 0},
		{"absolute form with user", "GET http://a@birch.example.net/ucloud/birch/integration/x HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"absolute form, other scheme", "GET ftp://birch.example.net/ucloud/birch/integration/x HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"absolute form, encoded slash", "GET http://birch.example.net/ucloud/birch%2fintegration/x HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"absolute form without a path", "GET http://birch.example.net HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"authority form", "CONNECT birch.example.net:443 HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"asterisk", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"trace", "TRACE /ucloud/birch/integration/x HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"encoded slash to a server path", "POST /ucloud/birch%2Fintegration%2Finit HTTP/1.1\r\n" + host + auth + "Content-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"encoded dots out of a server path", "POST /ucloud/birch/integration/%2e%2e/files/trash HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"dots out of a server path need a token", "POST /ucloud/birch/integration/../files/trash HTTP/1.1\r\n" + host + "Ucloud-Username: " + alice.HeaderValue() + "\r\nContent-Length: 0\r\n\r\n", []int{401}, nil, 0},
		{"parameter in the path", "POST /ucloud/birch/integration;x/init HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"semicolon in the query", "GET /ucloud/birch/integration/x?a=1;usernameHint=x HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"connection header names the user", "POST /ucloud/birch/files/browse HTTP/1.1\r\n" + host + auth + "Connection: Ucloud-Username, X-Ucloud-Hop, Authorization\r\nContent-Length: 2\r\n\r\n{}", []int{200}, []string{"{}"}, 0},
		{"h2c upgrade is ignored", "POST /ucloud/birch/files/browse HTTP/1.1\r\n" + host + auth + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{}", []int{200}, []string{"{}"}, 0},
		{"HTTP/2 preface on a plain listener", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400}, nil, 0},
		{"request line with two spaces", "POST  /ucloud/birch/files/browse HTTP/1.1\r\n" + host + "\r\n", []int{400}, nil, 0},
		{"upgrade with a body", "GET /ucloud/birch/files HTTP/1.1\r\n" + host + auth + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{}", []int{400}, nil, 0},
		{"two identities", post + "ucloud-username: " + bob.HeaderValue() + "\r\nContent-Length: 0\r\n\r\n", []int{400}, nil, 0},
		{"two tokens", post + "authorization: Bearer x\r\nContent-Length: 0\r\n\r\n", []int{401}, nil, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			got := raw(t, f.address, tc.request, len(tc.status))
			if len(got) != len(tc.status) {
				t.Fatalf("%d answers, want %v: %+v", len(got), tc.status, got)
			}
			for i, status := range tc.status {
				if got[i].StatusCode != status {
					t.Errorf("answer %d is %d %q, want %d", i, got[i].StatusCode, got[i].body, status)
				}
			}
			reqs := f.alice.seen()
			if len(reqs) != len(tc.want) || len(f.server.seen()) != tc.server {
				t.Fatalf("instance saw %+v, server %+v", reqs, f.server.seen())
			}
			for i, r := range reqs {
				if r.Body != tc.want[i] {
					t.Errorf("instance saw the body %q, want %q", r.Body, tc.want[i])
				}
				if r.Header.Get("Ucloud-Username") != alice.HeaderValue() || r.Header.Get("X-Ucloud-Hop") == "" {
					t.Errorf("instance saw %v", r.Header)
				}
				for _, name := range []string{"Ucloud-Secret", "Authorization", "Upgrade", "Http2-Settings", "Transfer-Encoding"} {
					if v, ok := r.Header[name]; ok {
						t.Errorf("instance saw %s: %q", name, v)
					}
				}
			}
		})
	}
}

// TestInternalHeadersAreStrippedOnEveryRoute sends every internal header on every kind of route.
//
//attack:actor internet
//attack:does Sends the headers by which the parts of the provider know one another.
//attack:control Internal headers are removed from every request on every route.
//attack:remove internal/gateway/gateway.go: removeInternalHeaders(r.Header) => _ = 0
//attack:actor internet
//attack:does Claims another address in a forwarding header, to get around limits and into the log.
//attack:control Forwarding headers are removed, and believed from trusted proxies only.
//attack:remove internal/gateway/gateway.go: delete(r.Header, name) => _ = name
func TestInternalHeadersAreStrippedOnEveryRoute(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	internal := []string{
		"ucloud-secret", "forged", "X-Jwt-Payload", "forged", "x-ucloud-hop", "forged", "X-Ucloud-Not-Read", "forged",
		"X-Ucloud-Uid", "forged", "X-Request-Id", "forged", "ucloud_secret", "forged", "X_Ucloud_Hop", "forged", "X-UCLOUD_HOP", "forged",
		"X-Forwarded-For", "forged", "X-Real-Ip", "forged", "Forwarded", "for=forged", "X-Forwarded-Host", "forged", "X-Forwarded-Proto", "forged",
	}
	hint := "usernameHint=" + alice.HintValue()
	f.core("POST", "/ucloud/birch/files/browse", "{}", alice, internal...)
	f.do("GET", "/ucloud/birch/files/x?"+hint, "", append(internal, "Authorization", bearer())...)
	f.do("GET", "/ucloud/birch/download?token=t&"+hint, "", internal...)
	f.do("POST", "/ucloud/birch/upload?token=t&"+hint, "x", internal...)
	f.do("GET", "/ucloud/birch/integration/instructions", "", internal...)
	f.core("POST", "/ucloud/birch/integration/init", "{}", alice, internal...)
	f.do("GET", "/ucloud/birch/files/retrieveProducts", "", internal...)
	f.do("GET", "/ucloud/birch/authorize-app", "", internal...)
	f.do("GET", "/ucloud/birch/vnc/x", "", internal...)
	f.do("GET", "/ucloud-oidc", "", internal...)
	all := append(f.alice.seen(), f.server.seen()...)
	if len(all) != 10 {
		t.Fatalf("%d requests arrived", len(all))
	}
	for _, r := range all {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, " "), "forged") {
				t.Errorf("%s: %s: %q arrived", r.Target, name, values)
			}
		}
		if r.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s has no request id", r.Target)
		}
	}
}

// TestHTTP2PseudoHeaders sends frames that no proper client sends.
//
//attack:actor internet
//attack:does Names one host in :authority and another in host.
//attack:control A request that names two hosts is refused.
//attack:remove internal/gateway/gateway.go: if values, ok := r.Header["Host"]; ok && (len(values) != 1 || values[0] != r.Host) { => if false {
func TestHTTP2PseudoHeaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	address := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	good := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "birch.example.net"}, {":path", "/ucloud/birch/integration/x"}}
	with := func(extra ...[2]string) [][2]string { return append(append([][2]string(nil), good...), extra...) }
	replace := func(name, value string) [][2]string {
		out := append([][2]string(nil), good...)
		for i := range out {
			if out[i][0] == name {
				out[i][1] = value
			}
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		fields [][2]string
		status string // "" = the stream or connection is reset
	}{
		{"good", good, "200"},
		{"agreeing host", with([2]string{"host", "birch.example.net"}), "200"},
		{"other host", with([2]string{"host", "evil.example.org"}), "400"},
		{"other authority", replace(":authority", "evil.example.org"), "421"},
		{"authority with user", replace(":authority", "a@birch.example.net"), ""},
		{"path without slash", replace(":path", "ucloud/birch/integration/x"), ""},
		{"absolute path", replace(":path", "https://birch.example.net/ucloud/birch/integration/x"), "400"},
		{"encoded slash", replace(":path", "/ucloud/birch/integration%2fx"), "400"},
		{"request line in the path", replace(":path", "/ucloud/birch/integration/x HTTP/1.1\r\nUcloud-Secret: x"), ""},
		{"line break in a value", with([2]string{"x-a", "1\r\nucloud-secret: x"}), ""},
		{"pseudo header twice", with([2]string{":path", "/ucloud/birch/files/trash"}), ""},
		{"pseudo header after a header", append(with([2]string{"x-a", "1"}), [2]string{":authority", "evil.example.org"}), ""},
		{"unknown pseudo header", with([2]string{":user", "root"}), ""},
		{"transfer-encoding", with([2]string{"transfer-encoding", "chunked"}), ""},
		{"connection", with([2]string{"connection", "upgrade"}), ""},
		{"name in capitals", with([2]string{"Ucloud-Secret", "x"}), ""},
		{"method with space", replace(":method", "GET /evil HTTP/1.1"), ""},
		{"extended connect", append([][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}}, good[1:]...), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := http2Request(t, address, tc.fields); got != tc.status && (tc.status != "" || !strings.HasPrefix(got, "4")) {
				t.Errorf("status %q, want %q", got, tc.status)
			}
		})
	}
	t.Cleanup(func() {
		for _, r := range f.server.seen() {
			if _, ok := r.Header["Ucloud-Secret"]; ok || r.Target != "/ucloud/birch/integration/x" {
				t.Errorf("the server saw %+v", r)
			}
		}
	})
}
