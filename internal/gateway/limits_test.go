package gateway

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// held is a connection that has done one request, and stays open.
func (f *fixture) heldConn(t *testing.T, header string) (net.Conn, int) {
	t.Helper()
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /ucloud/birch/files/retrieveProducts HTTP/1.1\r\nHost: birch.example.net\r\n%s\r\n", header)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return c, 0 // closed at once
	}
	io.Copy(io.Discard, res.Body)
	return c, res.StatusCode
}

// TestConnectionsPerAddress, and that the limit never hits Core (contract 00 point 9.17).
func TestConnectionsPerAddress(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxConnectionsPerIP = 3 })
	var open []net.Conn
	for i := range 3 {
		c, status := f.heldConn(t, "")
		if status != 200 {
			t.Fatalf("connection %d: %d", i, status)
		}
		open = append(open, c)
	}
	if _, status := f.heldConn(t, ""); status != 0 {
		t.Fatalf("one too many: %d", status)
	}
	open[0].Close()
	eventually(t, "the closed connection is not counted", func() bool { return f.conns.len() == 2 })

	core := "Authorization: " + bearer() + "\r\n"
	if _, status := f.heldConn(t, core); status != 200 {
		t.Fatalf("Core: %d", status)
	}
	for i := range 10 { // Core has been seen: no limit for its address
		if _, status := f.heldConn(t, core); status != 200 {
			t.Fatalf("connection %d of Core: %d", i, status)
		}
	}

	// Core's connections do not count: there is room for a third unknown one once the address is not exempt any more.
	forget := func() {
		f.conns.mu.Lock()
		defer f.conns.mu.Unlock()
		clear(f.conns.core)
	}
	forget()
	if _, status := f.heldConn(t, ""); status != 200 {
		t.Fatalf("beside Core's connections: %d", status)
	}
	if _, status := f.heldConn(t, ""); status != 0 {
		t.Fatalf("one too many beside Core's connections: %d", status)
	}
	// The address is full; a Core that was seen there lately gets in nevertheless.
	f.conns.mu.Lock()
	f.conns.core[netip.MustParseAddr("127.0.0.1")] = time.Now()
	f.conns.mu.Unlock()
	if _, status := f.heldConn(t, core); status != 200 {
		t.Fatalf("Core at a full address: %d", status)
	}
}

// TestCoreIsRemembered: the address of a Core that has one connection for days stays exempt from the limits of new ones.
func TestCoreIsRemembered(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ip := netip.MustParseAddr("192.0.2.1")
	c := &trackedConn{all: f.conns, ip: ip}
	now := time.Now()
	for _, at := range []time.Duration{0, coreMemory / 2, coreMemory + time.Minute} {
		c.sawCore(now.Add(at))
	}
	f.conns.mu.Lock()
	defer f.conns.mu.Unlock()
	if seen := f.conns.core[ip].Sub(now); seen != coreMemory+time.Minute {
		t.Errorf("Core was last seen after %s", seen)
	}
}

// remote is a connection from somewhere.
type remote struct {
	net.Conn
	from net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.from }

// TestCoreInAFullNetwork: the limits are for the /64 of an IPv6 address, so the exemption of Core is too. Else strangers beside
// it would keep its next process out.
func TestCoreInAFullNetwork(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxConnectionsPerIP = 1 })
	now := time.Now()
	connect := func(ip string) (*trackedConn, string) {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		return f.conns.add(remote{here, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}, now)
	}
	core, limit := connect("2001:db8::1")
	if limit != "" {
		t.Fatal(limit)
	}
	if _, limit := connect("2001:db8::2"); limit != limitConcurrent {
		t.Fatalf("a second connection of the network: %q", limit)
	}
	core.sawCore(now)
	if _, limit := connect("2001:db8::3"); limit != "" {
		t.Errorf("another process of Core: %q", limit)
	}
	if _, limit := connect("2001:db8:0:1::1"); limit != "" {
		t.Errorf("another network: %q", limit)
	}
	if _, limit := connect("2001:db8:0:1::2"); limit != limitConcurrent {
		t.Errorf("a second connection of another network: %q", limit)
	}
}

func TestBadTokenDoesNotExempt(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxConnectionsPerIP = 2 })
	for range 2 {
		if _, status := f.heldConn(t, "Authorization: Bearer forged\r\n"); status != 401 {
			t.Fatalf("status %d", status)
		}
	}
	if _, status := f.heldConn(t, "Authorization: Bearer forged\r\n"); status != 0 {
		t.Fatalf("one too many: %d", status)
	}
}

// TestStreamsPerConnection: one HTTP/2 connection of an unknown client gets few concurrent requests, Core's gets many.
func TestStreamsPerConnection(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxStreams = 5 })
	release := make(chan struct{})
	f.server.handle(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	secure := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	token := bearer()
	run := func(core bool) map[int]int {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, MaxConnsPerHost: 1}
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr}
		var mu sync.Mutex
		statuses := map[int]int{}
		var wg sync.WaitGroup
		before := f.metricInFlight()
		for range 20 {
			wg.Go(func() {
				req, _ := http.NewRequest("GET", "https://"+secure+"/ucloud/birch/files/retrieveProducts", nil)
				req.Host = "birch.example.net"
				if core {
					req.Header.Set("Authorization", token)
				}
				res, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				mu.Lock()
				statuses[res.StatusCode]++
				mu.Unlock()
			})
		}
		want := 5.
		if core {
			want = 20
		}
		eventually(t, "requests under way", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return f.metricInFlight()-before == want && (core || statuses[429] == 15)
		})
		for range int(want) {
			release <- struct{}{}
		}
		wg.Wait()
		return statuses
	}
	if got := run(false); got[200] != 5 || got[429] != 15 {
		t.Errorf("unknown client: %v", got)
	}
	if got := run(true); got[200] != 20 {
		t.Errorf("Core: %v", got)
	}
}

func (f *fixture) metricInFlight() float64 {
	for _, m := range f.gather() {
		if m.GetName() == "ucloud_gateway_requests_in_flight" {
			return m.GetMetric()[0].GetGauge().GetValue()
		}
	}
	f.t.Fatal("no metric")
	return 0
}

func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxHeaderBytes = 8 << 10 })
	got := raw(t, f.address, "GET /ucloud/birch/integration/x HTTP/1.1\r\nHost: birch.example.net\r\nX: "+strings.Repeat("x", 16<<10)+"\r\n\r\n", 1)
	if len(got) != 1 || got[0].StatusCode != 431 {
		t.Errorf("got %+v", got)
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	f.serve(ServerOptions{
		Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, Redirect: l, RedirectTo: "https://birch.example.net:8443",
	})
	f.address = l.Addr().String()
	for target, want := range map[string]string{
		"/ucloud/birch/integration/instructions?ticket=x": "https://birch.example.net:8443/ucloud/birch/integration/instructions?ticket=x",
		"//evil.example.org/x":                            "https://birch.example.net:8443/evil.example.org/x",
		"/":                                               "https://birch.example.net:8443/",
	} {
		res := f.do("GET", target, "")
		if res.StatusCode != 308 || res.Header.Get("Location") != want {
			t.Errorf("%s: %d %q", target, res.StatusCode, res.Header.Get("Location"))
		}
	}
	for _, request := range []string{
		"GET /x HTTP/1.1\r\nHost: evil.example.org\r\n\r\n",
		"GET http://evil.example.org/x HTTP/1.1\r\nHost: evil.example.org\r\n\r\n",
		"GET /a%2f HTTP/1.1\r\nHost: birch.example.net\r\n\r\n",
	} {
		got := raw(t, f.address, request, 1)
		if len(got) != 1 || got[0].StatusCode < 400 || got[0].Header.Get("Location") != "" {
			t.Errorf("%q: %+v", request, got)
		}
	}
	if n := len(f.alice.seen()) + len(f.server.seen()); n > 0 {
		t.Error("a request over plain HTTP was served")
	}
	if _, err := f.NewServer(ServerOptions{Redirect: l, RedirectTo: "http://birch.example.net"}); err == nil {
		t.Error("a redirect to plain HTTP was accepted")
	}
}

func TestTrustedProxyForTheServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	header := []string{"X-Forwarded-For", "192.0.2.7", "X-Forwarded-Proto", "https"}
	f.do("GET", "/ucloud/birch/integration/x", "", header...)
	s := f.settings
	s.TrustedProxies = append(s.TrustedProxies, prefix("127.0.0.0/8"))
	f.Reconfigure(s)
	f.do("GET", "/ucloud/birch/integration/x", "", header...)
	got := f.server.seen()
	for i, want := range []struct{ ip, proto string }{{"127.0.0.1", "http"}, {"192.0.2.7", "https"}} {
		h := got[i].Header
		if h.Get("X-Forwarded-For") != want.ip || h.Get("X-Forwarded-Proto") != want.proto || h.Get("X-Real-Ip") != "" {
			t.Errorf("request %d: %v", i, h)
		}
	}
}
