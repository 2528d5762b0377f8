package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit/webapp"
)

const (
	appHost   = "app-512-0.apps.example.net"
	appCookie = "ucloud-compute-session-512-0"
	appToken  = "tOkEn-of-a-LiNk"
	appSecret = "sEcReT-of-a-CoOkIe"
)

// webFixture is a gateway with one web application.
type webFixture struct {
	*fixture
	web   *WebTable
	app   *httptest.Server
	route WebRoute

	mu   sync.Mutex
	used bool // the token
}

func newWebFixture(t *testing.T, options ...fixtureOption) *webFixture {
	t.Helper()
	w := &webFixture{app: httptest.NewServer(webapp.Handler("one"))}
	t.Cleanup(w.app.Close)
	options = append(options, func(f *fixture, o *Options) {
		f.settings.Web = Web{Prefix: "app-", Suffix: ".apps.example.net", Secure: true, UCloud: "https://ucloud.example.org"}
		o.Web = NewWebTable(o.Log)
		w.web = o.Web
	})
	w.fixture = newFixture(t, options...)
	w.route = WebRoute{
		ID: "web/512/0/", Kind: WebApplication, Host: appHost, Cookie: appCookie, Address: "127.0.0.1", Port: portOf(w.app), UID: 20001,
		Version: 1, Grants: []WebGrant{grantOf(appSecret, time.Hour)},
	}
	w.web.Apply(WebUpdate{Full: true, Put: []WebRoute{w.route}})
	w.control.onWeb(func(_ context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.used || kind != w.route.Kind || host != w.route.Host || hash != sha256.Sum256([]byte(appToken)) {
			return nil, nil
		}
		w.used = true
		r := w.route
		r.Version = 2
		r.Grants = append(r.Grants, grantOf("new", time.Hour))
		return &WebSession{Value: "new", ExpiresAt: time.Now().Add(time.Hour), Route: r}, nil
	})
	return w
}

func grantOf(secret string, life time.Duration) WebGrant {
	return WebGrant{Hash: sha256.Sum256([]byte(secret)), ExpiresAt: time.Now().Add(life)}
}

func portOf(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }

// put replaces the route.
func (w *webFixture) put(change func(*WebRoute)) {
	w.route.Version += 10
	change(&w.route)
	w.web.Apply(WebUpdate{Put: []WebRoute{w.route}})
}

// page is a request of a browser to the host of the application.
func (w *webFixture) page(method, target, body string, header ...string) reply {
	w.t.Helper()
	return w.at(appHost, method, target, body, append([]string{"Accept", "text/html,*/*"}, header...)...)
}

func (w *webFixture) at(host, method, target, body string, header ...string) reply {
	w.t.Helper()
	req, err := http.NewRequest(method, "http://"+w.address+target, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body == "" {
		req.Body = nil
	}
	req.Host = host
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{res, string(b)}
}

const sessionHeader = appCookie + "=" + appSecret

func (r reply) seen(t *testing.T) webapp.Seen {
	t.Helper()
	var s webapp.Seen
	if err := json.Unmarshal([]byte(r.body), &s); err != nil || r.StatusCode != 200 {
		t.Fatalf("status %d: %v in %s", r.StatusCode, err, r.body)
	}
	return s
}

// TestWebLink is what happens when a user opens an application: the link, the cookie, the application.
func TestWebLink(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	const link = "/ucloud/birch/authorize-app?token=" + appToken
	if r := w.page("POST", link, ""); r.StatusCode != 404 {
		t.Errorf("POST: %d", r.StatusCode)
	}
	for _, other := range []string{"app-513-0.apps.example.net", "app-512-0-x.apps.example.net"} {
		if r := w.at(other, "GET", link, ""); r.StatusCode != 404 || r.Header.Get("Set-Cookie") != "" {
			t.Errorf("the link on %s: %d", other, r.StatusCode)
		}
	}
	r := w.page("GET", link, "")
	want := regexp.MustCompile("^" + appCookie + "=new; Path=/; Max-Age=3[0-9]{3}; HttpOnly; Secure; SameSite=Lax$")
	if r.StatusCode != 302 || r.Header.Get("Location") != "/" || !want.MatchString(r.Header.Get("Set-Cookie")) || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", r.StatusCode, r.Header)
	}
	if r := w.page("GET", "/", "", "Cookie", appCookie+"=new"); r.StatusCode != 200 || !contains(r.body, "This is one") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	// A token opens once, and it is not itself a key.
	if r := w.page("GET", link, ""); r.StatusCode != 404 || !contains(r.body, "not valid any more") || r.Header.Get("Set-Cookie") != "" {
		t.Errorf("the second use: %d %s", r.StatusCode, r.body)
	}
	if r := w.page("GET", link, "", "Cookie", appCookie+"=new"); r.StatusCode != 302 || r.Header.Get("Set-Cookie") != "" {
		t.Errorf("the second use by the same browser: %d %v", r.StatusCode, r.Header)
	}
	if r := w.page("GET", "/", "", "Cookie", appCookie+"="+appToken); r.StatusCode != 403 {
		t.Errorf("the token as a cookie: %d", r.StatusCode)
	}
}

// TestWebLinkOfAnotherHost: a link is for the host that it names, whatever the answer to the exchange says.
func TestWebLinkOfAnotherHost(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	w.control.onWeb(func(context.Context, WebKind, string, [32]byte) (*WebSession, error) {
		return &WebSession{Value: "new", ExpiresAt: time.Now().Add(time.Hour), Route: w.route}, nil
	})
	if r := w.at("app-513-0.apps.example.net", "GET", "/ucloud/birch/authorize-app?token=t", ""); r.StatusCode != 404 || r.Header.Get("Set-Cookie") != "" {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
}

// TestWebSessions: who gets in, and what others see.
func TestWebSessions(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	other := w.route
	other.ID, other.Host, other.Cookie = "web/513/0/", "app-513-0.apps.example.net", "ucloud-compute-session-513-0"
	other.Grants = []WebGrant{grantOf("of-513", time.Hour)}
	w.web.Apply(WebUpdate{Put: []WebRoute{other}})
	for name, header := range map[string][]string{
		"no cookie":              nil,
		"another value":          {"Cookie", appCookie + "=guess"},
		"another user's session": {"Cookie", appCookie + "=of-513"},
		"another name":           {"Cookie", "ucloud-compute-session-513-0=" + appSecret},
		"the hash":               {"Cookie", fmt.Sprintf("%s=%x", appCookie, sha256.Sum256([]byte(appSecret)))},
		"Authorization":          {"Authorization", bearer()},
	} {
		if r := w.page("GET", "/", "", header...); r.StatusCode != 403 || !contains(r.body, "from UCloud") {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
		if r := w.at(appHost, "POST", "/seen", "x", header...); r.StatusCode != 403 || contains(r.body, "<") {
			t.Errorf("%s, a program: %d %s", name, r.StatusCode, r.body)
		}
	}
	// A neighbour's page may have set a second cookie with the name.
	if r := w.page("GET", "/", "", "Cookie", appCookie+"=tossed; "+sessionHeader); r.StatusCode != 200 {
		t.Errorf("two cookies: %d", r.StatusCode)
	}
	for _, host := range []string{"app-999-0.apps.example.net", "app-.apps.example.net", "app-x.app-512-0.apps.example.net"} {
		if r := w.at(host, "GET", "/", "", "Accept", "text/html", "Cookie", sessionHeader); r.StatusCode != 404 && r.StatusCode != 421 || len(r.body) > 100 && r.StatusCode == 404 {
			t.Errorf("%s: %d %s", host, r.StatusCode, r.body)
		}
	}
	for _, host := range []string{"apps.example.net", "xapp-512-0.apps.example.net", "app-512-0.apps.example.net.evil.example", "birch.example.net"} {
		if r := w.at(host, "GET", "/", "", "Cookie", sessionHeader); r.StatusCode == 200 {
			t.Errorf("%s: %d %s", host, r.StatusCode, r.body)
		}
	}
	for _, host := range []string{strings.ToUpper(appHost), appHost + ":8443", appHost + "."} {
		if r := w.at(host, "GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 200 {
			t.Errorf("%s: %d %s", host, r.StatusCode, r.body)
		}
	}
	// Its time ends.
	w.put(func(r *WebRoute) { r.Grants = []WebGrant{grantOf(appSecret, -time.Second)} })
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 403 {
		t.Errorf("after its time: %d", r.StatusCode)
	}
}

// TestWebForwards: the application gets the request as the browser has sent it, and nothing of the provider's.
func TestWebForwards(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	target := "/seen/a%2Fb//c;x=1/%C3%A6?q=1;2&token=app"
	r := w.page("PUT", target, "body", "Cookie", "own=1; "+sessionHeader+"; ucloud-compute-session-9-9=other; x=y", "Authorization", "Bearer x",
		"UCloud-Username", alice.HeaderValue(), "Ucloud-Secret", "s", "ucloud_secret", "s", "X-Ucloud-Hop", "h", "UCloud-Signed-Intent", "i",
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil.example", "Forwarded", "for=6.6.6.6", "X-Own", "kept", "Proxy-Authorization", "p",
		"Referer", "https://x/ucloud/birch/authorize-app?token=t", "Connection", "X-Hop", "X-Hop", "1")
	got := r.seen(t)
	if got.Target != target || got.Method != "PUT" || got.Body != "body" || got.Host != appHost {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{
		"Cookie": "own=1; x=y", "Authorization": "", "Ucloud-Username": "", "Ucloud-Secret": "", "Ucloud_secret": "", "X-Ucloud-Hop": "",
		"Ucloud-Signed-Intent": "", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": appHost, "X-Forwarded-Proto": "https", "Forwarded": "",
		"X-Own": "kept", "Proxy-Authorization": "", "Referer": "", "X-Hop": "",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
	for name := range got.Header {
		if strings.Contains(strings.ToLower(name), "ucloud") {
			t.Errorf("header %s reached the application", name)
		}
	}
	// What it answers cannot reach other hosts of the browser.
	r = w.page("GET", "/cookies?domain=.apps.example.net&name=ucloud-compute-session-513-0", "", "Cookie", sessionHeader)
	if want := []string{"own=1; Path=/", "wide=1; Path=/; HttpOnly"}; !reflect.DeepEqual(r.Header["Set-Cookie"], want) {
		t.Errorf("cookies: %q", r.Header["Set-Cookie"])
	}
	if r.Header.Get("Clear-Site-Data") != "" || r.Header.Get("Strict-Transport-Security") != "" {
		t.Errorf("%v", r.Header)
	}
}

// TestWebOrigin: a page of a neighbour's application, whose requests carry the user's cookie because the hosts are of one
// site, can neither open a WebSocket nor change anything.
//
//attack:actor malicious job
//attack:does Serves a page that opens the neighbour's application in the user's browser, with the user's cookie.
//attack:control Other pages cannot post or open sockets to an application.
//attack:remove internal/gateway/web.go: if !sameOrigin(r) { => if false {
func TestWebOrigin(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	for origin, want := range map[string]int{
		"https://" + appHost: 200, "https://app-513-0.apps.example.net": 403, "null": 403, "https://evil.example": 403, "": 200,
	} {
		header := []string{"Cookie", sessionHeader}
		if origin != "" {
			header = append(header, "Origin", origin)
		}
		if r := w.page("POST", "/seen", "x", header...); r.StatusCode != want {
			t.Errorf("POST from %q: %d", origin, r.StatusCode)
		}
		c, res, err := w.socket("/echo", header...)
		if c != nil {
			c.CloseNow()
		}
		if (err == nil) != (want == 200) || res != nil && want == 403 && res.StatusCode != 403 {
			t.Errorf("WebSocket from %q: %v", origin, err)
		}
		if r := w.page("GET", "/", "", header...); r.StatusCode != 200 {
			t.Errorf("GET from %q: %d", origin, r.StatusCode)
		}
	}
}

func (w *webFixture) socket(path string, header ...string) (*websocket.Conn, *http.Response, error) {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return websocket.Dial(w.t.Context(), "ws://"+w.address+path, &websocket.DialOptions{Host: appHost, HTTPHeader: h, Subprotocols: []string{"echo"}})
}

// openFlows gives a WebSocket that works and a stream that runs.
func (w *webFixture) openFlows(t *testing.T) (c *websocket.Conn, stream io.ReadCloser) {
	t.Helper()
	c, _, err := w.socket("/echo", "Cookie", sessionHeader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.CloseNow() })
	if err := c.Write(t.Context(), websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if kind, b, err := c.Read(t.Context()); err != nil || kind != websocket.MessageBinary || string(b) != "hello" || c.Subprotocol() != "echo" {
		t.Fatalf("%v %q %v", kind, b, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+w.address+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = appHost
	req.Header.Set("Cookie", sessionHeader)
	res, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if _, err := io.ReadFull(res.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	return c, res.Body
}

// countCuts counts the requests under way that are cut off from now on.
func (w *webFixture) countCuts() *atomic.Int64 {
	n := new(atomic.Int64)
	p := w.web.host(appHost).place
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.flows {
		cut := f.cut
		f.cut = func() { n.Add(1); cut() }
	}
	return n
}

// mustEnd waits until both are cut off.
func mustEnd(t *testing.T, what string, c *websocket.Conn, stream io.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("%s: the WebSocket goes on: %v", what, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, stream)
		done <- err
	}()
	select {
	case <-done:
	case <-ctx.Done():
		t.Errorf("%s: the stream goes on", what)
	}
}

// TestWebWithdrawn: what is open ends with the job, with the user's right, and with the session's time.
func TestWebWithdrawn(t *testing.T) {
	t.Parallel()
	t.Run("the job ends", func(t *testing.T) {
		t.Parallel()
		w := newWebFixture(t)
		c, stream := w.openFlows(t)
		cuts := w.countCuts()
		w.web.Apply(WebUpdate{Remove: map[string]uint64{w.route.ID: 100}})
		if n := cuts.Load(); n != 2 {
			t.Fatalf("%d requests were cut off", n)
		}
		mustEnd(t, "removed", c, stream)
		if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 404 {
			t.Errorf("%d", r.StatusCode)
		}
	})
	t.Run("the user loses access", func(t *testing.T) {
		t.Parallel()
		w := newWebFixture(t)
		c, stream := w.openFlows(t)
		cuts := w.countCuts()
		w.put(func(r *WebRoute) { r.Grants = []WebGrant{grantOf("of another user", time.Hour)} })
		if n := cuts.Load(); n != 2 { // at once, not when somebody looks next
			t.Errorf("%d requests were cut off", n)
		}
		mustEnd(t, "revoked", c, stream)
		if r := w.page("GET", "/", "", "Cookie", "x=1; "+appCookie+"=of another user"); r.StatusCode != 403 && r.StatusCode != 200 {
			t.Errorf("%d", r.StatusCode)
		}
	})
	t.Run("another session is opened", func(t *testing.T) {
		t.Parallel()
		w := newWebFixture(t)
		c, _ := w.openFlows(t)
		w.put(func(r *WebRoute) { r.Grants = append(r.Grants, grantOf("another", time.Hour)) })
		if err := c.Write(t.Context(), websocket.MessageText, []byte("still")); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(t.Context()); err != nil || string(b) != "still" {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("the time is over", func(t *testing.T) {
		t.Parallel()
		w := newWebFixture(t)
		c, stream := w.openFlows(t)
		w.web.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
		w.web.sweep(time.Now())
		mustEnd(t, "expired", c, stream)
	})
	t.Run("the job starts again elsewhere", func(t *testing.T) {
		t.Parallel()
		w := newWebFixture(t)
		c, stream := w.openFlows(t)
		second := httptest.NewServer(webapp.Handler("two"))
		defer second.Close()
		w.put(func(r *WebRoute) { r.Port = portOf(second) })
		mustEnd(t, "moved", c, stream)
		if r := w.page("GET", "/", "", "Cookie", sessionHeader); !contains(r.body, "This is two") {
			t.Errorf("%d %s", r.StatusCode, r.body)
		}
	})
}

// TestWebNotReady: the page that becomes the application.
func TestWebNotReady(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	w.put(func(r *WebRoute) { r.Address = "" })
	r := w.page("GET", "/lab?x=1", "", "Cookie", sessionHeader)
	if r.StatusCode != 503 || !contains(r.body, "not running yet") || !contains(r.body, `<meta http-equiv="refresh" content="3">`) || r.Header.Get("Retry-After") != "3" {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	port, start := reserved(t)
	w.put(func(r *WebRoute) { r.Address, r.Port = "127.0.0.1", port })
	if r := w.page("GET", "/lab", "", "Cookie", sessionHeader); r.StatusCode != 503 || !contains(r.body, "is starting") || !contains(r.body, `content="3"`) {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if r := w.at(appHost, "POST", "/seen", "x", "Cookie", sessionHeader); r.StatusCode != 503 || contains(r.body, "<") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if _, res, err := w.socket("/echo", "Cookie", sessionHeader); err == nil || res == nil || res.StatusCode != 503 {
		t.Errorf("WebSocket: %v", err)
	}
	l := start()
	srv := &http.Server{Handler: webapp.Handler("late")}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	defer func() { srv.Close(); wg.Wait() }()
	if r := w.page("GET", "/lab", "", "Cookie", sessionHeader); r.StatusCode != 200 || !contains(r.body, "This is late") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

// reserved gives a port on which nobody listens, and nobody can, before start does.
func reserved(t *testing.T) (port int, start func() net.Listener) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(err)
	f := os.NewFile(uintptr(fd), "reserved")
	t.Cleanup(func() { f.Close() })
	must(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := unix.Getsockname(fd)
	must(err)
	return name.(*unix.SockaddrInet4).Port, func() net.Listener {
		t.Helper()
		must(unix.Listen(fd, 16))
		l, err := net.FileListener(f)
		must(err)
		t.Cleanup(func() { l.Close() })
		return l
	}
}

// TestWebBroken: an application that closes connections without an answer.
func TestWebBroken(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 10))
			c.Close()
		}
	}()
	w.put(func(r *WebRoute) { r.Port = l.Addr().(*net.TCPAddr).Port })
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 502 || !contains(r.body, "did not answer") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

func TestWebTLS(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	secure := httptest.NewTLSServer(webapp.Handler("secure"))
	defer secure.Close()
	w.put(func(r *WebRoute) { r.Port, r.TLS = portOf(secure), true })
	for range 3 {
		if got := w.page("GET", "/seen", "", "Cookie", sessionHeader).seen(t); got.Proto != "https" || got.Name != "secure" {
			t.Errorf("%+v", got)
		}
	}
	c, stream := w.openFlows(t)
	w.web.Apply(WebUpdate{Full: true})
	mustEnd(t, "withdrawn", c, stream)
	// The same with a target that does not speak TLS.
	w.put(func(r *WebRoute) { r.Port = portOf(w.app) })
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 503 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

func TestWebLimits(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t, func(f *fixture, _ *Options) { f.settings.Limits = Limits{MaxWebRequests: 3, MaxUpgrades: 1} })
	w.openFlows(t)
	if _, res, err := w.socket("/echo", "Cookie", sessionHeader); err == nil || res == nil || res.StatusCode != 429 {
		t.Errorf("a second WebSocket: %v", err)
	}
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 200 {
		t.Errorf("%d", r.StatusCode)
	}
}

// TestWebForeignListener: on this machine, the kernel says whose listener it is.
func TestWebForeignListener(t *testing.T) {
	t.Parallel()
	var asked []netip.AddrPort
	var mu sync.Mutex
	w := newWebFixture(t, func(_ *fixture, o *Options) {
		o.CheckWebListener = func(at netip.AddrPort, uid ident.UID) error {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, at)
			if uid != 20001 {
				return errTest
			}
			return nil
		}
	})
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 200 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	w.put(func(r *WebRoute) { r.UID = 20002 })
	if r := w.page("GET", "/", "", "Cookie", sessionHeader); r.StatusCode != 502 || !contains(r.body, "does not belong to the job") {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := netip.MustParseAddrPort(w.app.Listener.Addr().String()); len(asked) != 2 || asked[0] != want {
		t.Errorf("asked about %v", asked)
	}
}

func TestWebTable(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	file := filepath.Join(t.TempDir(), "interfaces.json")
	if err := w.web.Save(file); err != nil {
		t.Fatal(err)
	}
	second := NewWebTable(w.Gateway.log)
	if err := second.Load(file); err != nil {
		t.Fatal(err)
	}
	if got, want := second.Routes(), w.web.Routes(); len(got) != 1 || got[0].Host != want[0].Host || got[0].Grants[0].Hash != want[0].Grants[0].Hash {
		t.Errorf("%+v", got)
	}
	// An answer that was overtaken changes nothing.
	w.web.Apply(WebUpdate{Remove: map[string]uint64{w.route.ID: 5}})
	old := w.route
	old.Version = 4
	if w.web.adopt(old) != nil {
		t.Error("a removed interface came back")
	}
	old.Version = 6
	if w.web.adopt(old) == nil {
		t.Error("a new interface was not taken")
	}
	old.Version, old.Port = 5, 1
	if got := w.web.adopt(old); got.route.Version != 6 {
		t.Error("an older version was taken")
	}
}

// TestHostOnlyCookie also shows what keeps strangers out.
//
//attack:actor malicious job
//attack:does Sets a cookie for all applications, in the place of their session.
//attack:control Cookies of applications are for their own host, and never have the name of ours.
//attack:remove internal/gateway/web.go: name, _, _ := strings.Cut(p, "=") => name, _, _ := strings.Cut("x"+p, "=")
func TestHostOnlyCookie(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"a=b":                                     "a=b",
		"a=b; Domain=example.org; Secure":         "a=b; Secure",
		"a=b;domain = .example.org;Path=/":        "a=b;Path=/",
		"a=b; DOMAIN; Path=/":                     "a=b; Path=/",
		"a=domain=x; Path=/":                      "a=domain=x; Path=/",
		"a=b; \tDomain=x":                         "a=b",
		"ucloud-compute-session-1-0=x":            "",
		" UCloud-Compute-Session-1-0=x; Domain=y": "",
	} {
		if got := hostOnlyCookie(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestWebNoSecretsInTheLog has secrets in links, cookies, paths and queries of applications.
func TestWebNoSecretsInTheLog(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	w.page("GET", "/ucloud/birch/authorize-app?token="+appToken, "")
	w.page("GET", "/ucloud/birch/authorize-app?token="+appToken, "")
	w.page("GET", "/seen/cAnArY/x?token=cAnArY", "", "Cookie", sessionHeader, "Referer", "https://x/?cAnArY")
	w.page("GET", "/cAnArY", "", "Cookie", appCookie+"=cAnArY")
	w.do("GET", "/ucloud/birch/vnc?token=cAnArY", "")
	c, _, err := w.socket("/echo?token=cAnArY", "Cookie", sessionHeader)
	if err != nil {
		t.Fatal(err)
	}
	c.CloseNow()
	eventually(t, "six records", func() bool { return strings.Count(w.log.String(), `"msg":"request"`) == 6 })
	log := w.log.String()
	for _, secret := range []string{appToken, appSecret, "cAnArY", "=new"} {
		if contains(log, secret) {
			t.Errorf("%s is in the log:\n%s", secret, log)
		}
	}
	if !contains(log, `"host":"`+appHost+`"`) || !contains(log, `"interface":"web/512/0/"`) {
		t.Error(log)
	}
}
