//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/vnckit"
)

// webSection switches interfaces of jobs on. Their ports are not those of the tests' own listeners.
const webSection = `    web: { enabled: true, prefix: app-, suffix: .apps.example.net, portRange: 12000-19999 }
`

// webBrowser is a browser of one user: every host name leads to the gateway.
type webBrowser struct {
	*http.Client
	t *testing.T
}

func (w *world) webBrowser(t *testing.T) *webBrowser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	gate := strings.TrimPrefix(w.gateURL, "http://")
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, gate)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &webBrowser{Client: &http.Client{Transport: tr, Jar: jar}, t: t}
}

// get gives the status and text of a page.
func (b *webBrowser) get(link string) (int, string) {
	b.t.Helper()
	req, err := http.NewRequest(http.MethodGet, link, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	res, err := b.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(body)
}

// session opens an interface as the web application does.
func (c *cluster) session(who *person, id string, kind providerapi.SessionType) (providerapi.OpenSession, error) {
	var answer struct {
		Responses []struct {
			Session providerapi.OpenSession `json:"session"`
		} `json:"responses"`
	}
	item := map[string]any{"id": id, "rank": 0, "sessionType": kind}
	if err := c.call(who.name, http.MethodPost, "/api/jobs/interactiveSession", map[string]any{"items": []any{item}}, &answer); err != nil {
		return providerapi.OpenSession{}, err
	}
	return answer.Responses[0].Session, nil
}

// link waits until an interface can be opened: the server asks Core first whose the job is.
func (c *cluster) link(id string, kind providerapi.SessionType) (s providerapi.OpenSession) {
	c.t.Helper()
	var last error
	testkit.Eventually(c.t, "a link to the interface", func() bool {
		s, last = c.session(c.ada, id, kind)
		return last == nil && s.RedirectClientTo+s.URL != ""
	})
	return s
}

// TestWebSession opens a web application and a desktop of real jobs, from Core to the compute node and back.
func TestWebSession(t *testing.T) {
	testkit.Require(t, testkit.Component("Xtigervnc", "websockify"))
	c := newCluster(t, computeSettings{slurm: webSection})
	app := filepath.Join(c.base, "bin", "webapp")
	c.must(accounts.Build("ucloud-im/internal/testkit/webapp/cmd", app))
	c.must(os.Chmod(app, 0o755))
	t.Run("at once", func(t *testing.T) {
		t.Run("web", func(t *testing.T) { t.Parallel(); testWeb(t, c.on(t), app) })
		t.Run("desktop", func(t *testing.T) { t.Parallel(); testDesktop(t, c.on(t), app) })
		t.Run("foreign", func(t *testing.T) { t.Parallel(); testForeignPort(t, c.on(t), app) })
	})
	t.Run("restarts", func(t *testing.T) { testWebRestarts(t, c.on(t), app) })
}

// waits is a line of shell that waits for a file.
func waits(file string) string { return "while [ ! -e '" + file + "' ]; do sleep 0.2; done; " }

func testWeb(t *testing.T, c *cluster, app string) {
	gate := filepath.Join(c.ada.account.Home, "web may start")
	id := c.submit(c.job(providerapi.ApplicationWeb, "Page", waits(gate)+"exec "+app+" -listen 127.0.0.1:$UCLOUD_PORT -name e2e"))
	c.becomes(id, providerapi.JobRunning)
	s := c.link(id, providerapi.SessionWeb)
	u, err := url.Parse(s.RedirectClientTo)
	c.must(err)
	if u.Hostname() != "app-"+id+"-0.apps.example.net" || u.Path != "/ucloud/"+provider+"/authorize-app" {
		t.Fatalf("the link is %s", s.RedirectClientTo)
	}
	browser, stranger := c.webBrowser(t), c.webBrowser(t)
	page := "http://" + u.Host + "/"
	if status, body := browser.get(s.RedirectClientTo); status != 503 || !strings.Contains(body, "is starting") || !strings.Contains(body, `http-equiv="refresh"`) {
		t.Errorf("before it listens: %d %s", status, body)
	}
	c.must(os.WriteFile(gate, nil, 0o644))
	testkit.Eventually(t, "the page to become the application", func() bool {
		status, body := browser.get(page)
		return status == 200 && strings.Contains(body, "This is e2e")
	})
	if status, _ := stranger.get(page); status != 403 {
		t.Errorf("a stranger: %d", status)
	}
	if status, _ := stranger.get(s.RedirectClientTo); status != 404 {
		t.Errorf("the link a second time: %d", status)
	}
	if status, body := browser.get(page + "seen"); status != 200 || strings.Contains(body, "ucloud-compute-session") {
		t.Errorf("what the application sees: %d %s", status, body)
	}
	cookies := browser.Jar.Cookies(&url.URL{Scheme: "http", Host: u.Host, Path: "/"})
	if len(cookies) != 1 || cookies[0].Value == u.Query().Get("token") {
		t.Errorf("cookies: %v", cookies)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+u.Host+"/echo", &websocket.DialOptions{HTTPClient: browser.Client})
	c.must(err)
	defer ws.CloseNow()
	c.must(ws.Write(ctx, websocket.MessageText, []byte("over the gateway")))
	if _, data, err := ws.Read(ctx); err != nil || string(data) != "over the gateway" {
		t.Errorf("echo: %q %v", data, err)
	}
	c.must(c.terminate(id))
	if _, _, err := ws.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket outlives the job: %v", err)
	}
	c.becomes(id, providerapi.JobSuccess)
	testkit.Eventually(t, "the host name to be gone", func() bool { status, _ := browser.get(page); return status == 404 })
	for _, secret := range []string{u.Query().Get("token"), cookies[0].Value} {
		if strings.Contains(c.gateway.tail()+c.server.tail(), secret) {
			t.Error("a secret is in a log")
		}
	}
}

func testDesktop(t *testing.T, c *cluster, app string) {
	script := fmt.Sprintf(`umask 077; %s -vncpasswd "$PWD/.vnc-password" > "$TMPDIR.pw"; (while :; do sleep 1; done) &
Xtigervnc -displayfd 1 -SecurityTypes VncAuth -rfbauth "$TMPDIR.pw" -rfbunixpath "$TMPDIR.rfb" -rfbport -1 -geometry 320x200 -depth 24 -AlwaysShared &
while [ ! -S "$TMPDIR.rfb" ]; do sleep 0.2; done; exec websockify --unix-target="$TMPDIR.rfb" 127.0.0.1:$UCLOUD_PORT`, app)
	script = "TMPDIR=$(mktemp -d)/x; " + script
	id := c.submit(c.job(providerapi.ApplicationVNC, "Desktop", script))
	c.becomes(id, providerapi.JobRunning)
	var name string
	var width int
	var last error
	// The token of a link is used up by one attempt, and the programs take a while to start: UCloud's page offers to try again.
	if !settles(func() bool {
		s := c.link(id, providerapi.SessionVNC)
		if !strings.HasPrefix(s.URL, c.gateURL+"/ucloud/"+provider+"/vnc?token=") || len(s.Password) != 8 || strings.Contains(s.URL, s.Password) {
			t.Fatalf("the session is %s with a password of %d", s.URL, len(s.Password))
		}
		ws, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http"), &websocket.DialOptions{Subprotocols: []string{"binary"}})
		if last = err; err != nil {
			return false
		}
		defer ws.CloseNow()
		name, width, _, last = vnckit.Login(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), s.Password)
		if strings.Contains(c.gateway.tail()+c.server.tail()+c.output(id, "job.sbatch"), s.Password) {
			t.Error("the password is in a log or in the script")
		}
		return last == nil
	}) || width != 320 {
		t.Errorf("the desktop %q has width %d: %v", name, width, last)
	}
	c.must(c.terminate(id))
}

// testForeignPort: the port of the job is taken by another user of the node.
func testForeignPort(t *testing.T, c *cluster, app string) {
	id := c.submit(c.job(providerapi.ApplicationWeb, "Robbed", "sleep 300"))
	c.becomes(id, providerapi.JobRunning)
	s := c.link(id, providerapi.SessionWeb)
	port := strings.TrimSpace(c.output(id, "allocated-port.txt"))
	thief := c.site.User(t)
	cmd := thief.Command(app, "-listen", "0.0.0.0:"+port, "-name", "thief")
	c.must(cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	testkit.Eventually(t, "the thief to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if status, body := c.webBrowser(t).get(s.RedirectClientTo); status != 502 || !strings.Contains(body, "does not belong to the job") {
		t.Errorf("%d %s", status, body)
	}
	c.must(c.terminate(id))
}

// testWebRestarts: gateway and server are killed, and the browser notices nothing but the moment.
func testWebRestarts(t *testing.T, c *cluster, app string) {
	id := c.submit(c.job(providerapi.ApplicationWeb, "Stays", "exec "+app+" -listen 127.0.0.1:$UCLOUD_PORT -name stays"))
	c.becomes(id, providerapi.JobRunning)
	s := c.link(id, providerapi.SessionWeb)
	u, err := url.Parse(s.RedirectClientTo)
	c.must(err)
	browser := c.webBrowser(t)
	page := "http://" + u.Host + "/"
	browser.get(s.RedirectClientTo)
	there := func() bool {
		status, body := browser.get(page)
		return status == 200 && strings.Contains(body, "stays")
	}
	testkit.Eventually(t, "the application", there)
	for _, s := range []*supervised{c.gateway, c.server} {
		n := s.startCount()
		s.signal(syscall.SIGKILL)
		testkit.Eventually(t, s.role+" to start again", func() bool { return s.startCount() > n })
		testkit.Eventually(t, "the application after the death of the "+s.role, there)
	}
	// It ends as before: the new server has the interface, and the new gateway hears of it.
	testkit.Eventually(t, "the job to be ended", func() bool { return c.terminate(id) == nil })
	testkit.Eventually(t, "the host name to be gone", func() bool { status, _ := browser.get(page); return status == 404 })
}
