package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

// few is a rate that gives n at once and then, within a test, nothing.
func few(n float64) (perSecond, burst float64) { return 0.001, n / 0.001 }

func withRequests(n float64) fixtureOption {
	return func(f *fixture, _ *Options) {
		f.settings.Limits.RequestsPerSecondPerIP, f.settings.Limits.Burst = few(n)
	}
}

const (
	products = "/ucloud/birch/files/retrieveProducts"
	hint     = "?usernameHint=QWxpY2UjMTIzNA%3D%3D"
)

// TestRequestsPerAddress: an address has so many requests, and Core, at the same address, as many as it likes (contract 00
// point 9.17).
//
//attack:actor internet
//attack:does Sends requests without a token as fast as it can.
//attack:control Requests of one address have a rate; Core's verified requests and connections do not count.
//attack:remove internal/gateway/gateway.go: if over != nil && !authorization { // it cannot be Core => if over != nil && authorization && false {
func TestRequestsPerAddress(t *testing.T) {
	t.Parallel()
	f := newFixture(t, withRequests(5))
	for i := range 5 {
		if res := f.do("GET", products, ""); res.StatusCode != 200 {
			t.Fatalf("request %d: %d", i, res.StatusCode)
		}
	}
	for _, tc := range []struct{ method, target, header, value string }{
		{"GET", products, "", ""},
		{"GET", "/nothing", "", ""},
		{"GET", "/bad%2fpath", "", ""},
		{"GET", products, "Authorization", "Bearer forged"},
		{"GET", "/ucloud/birch/download" + hint + "&token=x", "", ""},
	} {
		var header []string
		if tc.header != "" {
			header = []string{tc.header, tc.value}
		}
		res := f.do(tc.method, tc.target, "", header...)
		if after, err := strconv.Atoi(res.Header.Get("Retry-After")); res.StatusCode != 429 || err != nil || after < 500 {
			t.Errorf("%s %s: %d %v", tc.method, tc.target, res.StatusCode, res.Header)
		}
		if !res.Close {
			t.Errorf("%s %s: the connection stays", tc.method, tc.target)
		}
	}
	for range 10 {
		if res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); res.StatusCode != 200 {
			t.Fatalf("Core: %d", res.StatusCode)
		}
	}
	c, status := f.heldConn(t, "Authorization: "+bearer()+"\r\n")
	if status != 200 {
		t.Fatalf("Core: %d", status)
	}
	for range 3 { // the connection is Core's, whatever this request lacks
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: birch.example.net\r\n\r\n", products)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("on Core's connection: %v %v", res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	if n := f.limited(limitRequests); n != 5 {
		t.Errorf("%v refusals counted", n)
	}
	if n := strings.Count(f.log.String(), "limit reached"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

// limited is the count of refusals.
func (f *fixture) limited(limit string) float64 {
	for _, m := range f.gather() {
		if m.GetName() == "ucloud_gateway_limited_total" {
			for _, v := range m.GetMetric() {
				if v.GetLabel()[0].GetValue() == limit {
					return v.GetCounter().GetValue()
				}
			}
		}
	}
	f.t.Fatal("no metric")
	return 0
}

// TestCoreDoesNotUseUp: Core's requests leave others what they have.
func TestCoreDoesNotUseUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, withRequests(5))
	for range 20 { // each on a connection of its own
		if _, status := f.heldConn(t, "Authorization: "+bearer()+"\r\n"); status != 200 {
			t.Fatalf("Core: %d", status)
		}
	}
	for i := range 5 {
		if res := f.do("GET", products, ""); res.StatusCode != 200 {
			t.Errorf("request %d: %d", i, res.StatusCode)
		}
	}
}

// TestRequestsBehindProxies: the address is the client's, and not the proxy's; and of an IPv6 address only the network
// counts.
//
//attack:actor internet
//attack:does Takes a new address of its own IPv6 network for each request.
//attack:control All addresses of a /64 share one rate, and all networks of a /48 share another.
//attack:remove internal/gateway/buckets.go: p, err := ip.WithZone("").Prefix(64) => p, err := ip.WithZone("").Prefix(128)
func TestRequestsBehindProxies(t *testing.T) {
	t.Parallel()
	f := newFixture(t, withRequests(2), func(f *fixture, _ *Options) {
		f.settings.TrustedProxies = append(f.settings.TrustedProxies, prefix("127.0.0.0/8"))
	})
	get := func(from string, header ...string) int {
		return f.do("GET", products, "", append(header, "X-Forwarded-For", from)...).StatusCode
	}
	for i, from := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::2"} {
		if s := get(from); s != 200 {
			t.Fatalf("request %d: %d", i, s)
		}
	}
	for _, from := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::3", "6.6.6.6, 192.0.2.1"} {
		if s := get(from); s != 429 {
			t.Errorf("%s: %d", from, s)
		}
	}
	// Core passes, and does not open the door for those who come over the same proxy, on the same connection.
	if s := get("192.0.2.1", "Authorization", bearer()); s != 200 {
		t.Errorf("Core: %d", s)
	}
	if s := get("192.0.2.1"); s != 429 {
		t.Errorf("behind Core: %d", s)
	}
}

func TestSites(t *testing.T) {
	t.Parallel()
	s := newSources(nil, nil)
	l := &Limits{RequestsPerSecondPerIP: 0.001, Burst: 1000} // one each
	now, passed := time.Now(), 0
	for i := range 100 {
		ip := netip.MustParseAddr(fmt.Sprintf("2001:db8:7:%x::1", i))
		if s.request(ip, l, now) == nil {
			passed++
		}
	}
	if passed != siteFactor {
		t.Errorf("%d networks of one site", passed)
	}
	if s.request(netip.MustParseAddr("2001:db8:8::1"), l, now) != nil {
		t.Error("another site")
	}
}

// TestFailuresPerAddress: who fails often is not listened to any more, except for Core and users who are known there.
//
//attack:actor internet
//attack:does Tries one token after another.
//attack:control An address that has failed too often is refused for a while.
//attack:remove internal/gateway/sources.go: if wait, ok := s.failures.peek(source(ip), l.failureRate(), now); !ok { => if wait, ok := time.Duration(0), true; !ok {
func TestFailuresPerAddress(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.FailuresPerMinutePerIP = 5 })
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("token") != "good" {
			w.WriteHeader(404)
		}
	})
	link := func(token string) int {
		return f.do("GET", "/ucloud/birch/download"+hint+"&token="+token, "").StatusCode
	}
	if s := link("good"); s != 200 {
		t.Fatalf("status %d", s)
	}
	for i := range 5 {
		want, got := 401, 0
		if i%2 == 0 {
			got = f.do("GET", products, "", "Authorization", "Bearer forged").StatusCode
		} else {
			want, got = 404, link("bad"+strconv.Itoa(i))
		}
		if got != want {
			t.Fatalf("failure %d: %d", i, got)
		}
	}
	for _, got := range []int{
		f.do("GET", products, "", "Authorization", "Bearer forged").StatusCode,
		f.do("GET", products, "").StatusCode,
		f.do("GET", "/wp-admin", "").StatusCode,
		f.do("GET", "/ucloud/birch/download?usernameHint=Qm9iIzE%3D&token=x", "").StatusCode, // Bob has nothing here
	} {
		if got != 429 {
			t.Errorf("status %d", got)
		}
	}
	if s := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); s.StatusCode != 404 { // the handler's answer
		t.Errorf("Core: %d", s.StatusCode)
	}
	if s := link("good"); s != 200 {
		t.Errorf("known user: %d", s)
	}
}

// TestStrangersDoNotUseUpUsers: anybody can name a user. That costs the user nothing.
//
//attack:actor internet
//attack:does Sends requests in the name of a user, from many addresses, until the user's allowance is used up.
//attack:control Addresses at which the user was answered before have an allowance of their own.
//attack:remove internal/gateway/sources.go: if s.isProven(user, ip, now) { => if false {
func TestStrangersDoNotUseUpUsers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) {
		f.settings.Limits.RequestsPerSecondPerUser, f.settings.Limits.Burst = few(4)
		f.settings.TrustedProxies = append(f.settings.TrustedProxies, prefix("127.0.0.0/8"))
	})
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("token") != "good" {
			w.WriteHeader(404)
		}
	})
	link := func(from, token string) int {
		return f.do("GET", "/ucloud/birch/download"+hint+"&token="+token, "", "X-Forwarded-For", from).StatusCode
	}
	if s := link("192.0.2.1", "good"); s != 200 {
		t.Fatalf("status %d", s)
	}
	for i := range 3 { // the first request of the user counted among the strangers'
		if s := link("198.51.100."+strconv.Itoa(i), "bad"); s != 404 {
			t.Fatalf("stranger %d: %d", i, s)
		}
	}
	if s := link("198.51.100.9", "bad"); s != 429 {
		t.Errorf("one too many: %d", s)
	}
	for range 4 {
		if s := link("192.0.2.1", "good"); s != 200 {
			t.Errorf("the user: %d", s)
		}
	}
	if s := link("192.0.2.1", "good"); s != 429 {
		t.Errorf("the user has a limit too: %d", s)
	}
	if s := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); s.StatusCode == 429 {
		t.Error("Core was refused")
	}
}

// TestPreflightProvesNothing: it is answered to everybody.
func TestPreflightProvesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	at := netip.MustParseAddr("127.0.0.1")
	for _, tc := range []struct {
		method string
		want   bool
	}{{"OPTIONS", false}, {"GET", true}} {
		if s := f.do(tc.method, "/ucloud/birch/download"+hint+"&token=x", ""); s.StatusCode != 200 {
			t.Fatalf("%s: %d", tc.method, s.StatusCode)
		}
		if got := f.sources.isProven(alice, at, time.Now()); got != tc.want {
			t.Errorf("after %s: %t", tc.method, got)
		}
	}
	if f.sources.isProven(alice, at, time.Now().Add(2*provenFor+time.Minute)) {
		t.Error("known for ever")
	}
}

// TestConnectionRate: new connections of an address have a rate, except where Core has called from.
//
//attack:actor internet
//attack:does Opens one connection after another, each with a TLS handshake that costs the gateway more than the client.
//attack:control New connections of one address have a rate, and those over it are closed before the handshake.
//attack:remove internal/gateway/conns.go: if _, ok := a.rates.take(from, s.Limits.connectionRate(), now); !ok { => if _, ok := a.rates.take(from, rateOf{}, now); !ok {
func TestConnectionRate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) {
		f.settings.Limits.ConnectionsPerSecondPerIP, f.settings.Limits.Burst = few(3)
	})
	for i := range 3 {
		if _, status := f.heldConn(t, ""); status != 200 {
			t.Fatalf("connection %d: %d", i, status)
		}
	}
	if _, status := f.heldConn(t, ""); status != 0 {
		t.Errorf("one too many: %d", status)
	}
	if n := f.limited(limitConnections); n != 1 {
		t.Errorf("%v refusals counted", n)
	}
	f.conns.mu.Lock()
	f.conns.core[netip.MustParseAddr("127.0.0.1")] = time.Now()
	f.conns.mu.Unlock()
	for range 5 {
		if _, status := f.heldConn(t, "Authorization: "+bearer()+"\r\n"); status != 200 {
			t.Errorf("Core: %d", status)
		}
	}
}

// TestBrowserBody: a request without Core's token may carry a piece of an upload, and not more.
//
//attack:actor internet
//attack:does Sends a body without an end to an instance.
//attack:control The bodies of requests without Core's token have a bound.
//attack:remove internal/gateway/writer.go: if b.total += int64(n); b.most > 0 && b.total > b.most { => if false {
func TestBrowserBody(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxBrowserBody = 100 << 10 })
	target := "/ucloud/birch/upload" + hint
	if res := f.do("POST", target, strings.Repeat("x", 100<<10), "Chunked-Upload-Token", "t"); res.StatusCode != 200 {
		t.Errorf("as long as allowed: %d", res.StatusCode)
	}
	if res := f.do("POST", target, strings.Repeat("x", 100<<10+1), "Chunked-Upload-Token", "t"); res.StatusCode != 413 {
		t.Errorf("longer: %d", res.StatusCode)
	}
	before := len(f.alice.seen())
	// Without a length, so that only reading it tells.
	pr, pw := io.Pipe()
	go func() {
		_, err := pw.Write(make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	req, _ := http.NewRequestWithContext(context.Background(), "POST", "http://"+f.address+target, pr)
	req.Host = "birch.example.net"
	req.Header.Set("Chunked-Upload-Token", "t")
	res, err := f.client.Do(req)
	if err == nil {
		if res.Body.Close(); res.StatusCode != 413 {
			t.Errorf("without a length: %d", res.StatusCode)
		}
	}
	pr.Close()
	if len(f.alice.seen()) != before {
		t.Error("the instance has read it all")
	}
	if res := f.core("POST", "/ucloud/birch/files/browse", strings.Repeat("x", 200<<10), alice); res.StatusCode != 200 {
		t.Errorf("Core: %d", res.StatusCode)
	}
}

// TestStrangersLeaveRoom: requests that hang in a user's name do not take all of the user's places.
func TestStrangersLeaveRoom(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) {
		f.settings.Limits.MaxBrowserRequests = 4
		f.settings.TrustedProxies = append(f.settings.TrustedProxies, prefix("127.0.0.0/8"))
	})
	user := netip.MustParseAddr("192.0.2.1")
	f.sources.prove(alice, user, time.Now())
	release := make(chan struct{})
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	open := func(from string) net.Conn {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(c, "GET /ucloud/birch/download%s&token=x HTTP/1.1\r\nHost: birch.example.net\r\nX-Forwarded-For: %s\r\n\r\n", hint, from)
		return c
	}
	inFlight := func() int64 { return f.routes.lookup(ident.UCloudUser(alice)).streams.browser.Load() }
	open("198.51.100.1")
	open("198.51.100.2")
	eventually(t, "two strangers are in", func() bool { return inFlight() == 2 })
	res, err := http.ReadResponse(bufio.NewReader(open("198.51.100.3")), nil)
	if err != nil || res.StatusCode != 429 {
		t.Fatalf("the third stranger: %v %v", res, err)
	}
	open("192.0.2.1")
	eventually(t, "the user is in", func() bool { return inFlight() == 3 })
}
