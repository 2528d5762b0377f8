package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/vnckit"
)

// desktop starts a real VNC server with a password, and in front of it what makes WebSockets out of its connections, as a
// job of a desktop does. It gives the port of the latter.
func desktop(t *testing.T, password string) int {
	t.Helper()
	testkit.Require(t, testkit.Component("Xtigervnc", "websockify"))
	dir, err := os.MkdirTemp("", "imt-vnc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	secret, socket := filepath.Join(dir, "passwd"), filepath.Join(dir, "rfb")
	if err := os.WriteFile(secret, vnckit.Obfuscated(password), 0o600); err != nil {
		t.Fatal(err)
	}
	displays, display, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, stdin *os.File, extra []*os.File, args ...string) {
		t.Helper()
		program, err := testkit.Program(name)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, extra
		if stdin != nil {
			cmd.Stdin = stdin
		}
		cmd.Env = append(os.Environ(), "HOME="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if t.Failed() {
				t.Logf("%s: %s", name, out.String())
			}
		})
	}
	run("Xtigervnc", nil, []*os.File{display}, "-displayfd", "3", "-SecurityTypes", "VncAuth", "-rfbauth", secret, "-rfbunixpath", socket,
		"-rfbport", "-1", "-geometry", "320x200", "-depth", "24", "-AlwaysShared")
	display.Close()
	defer displays.Close()
	if _, err := bufio.NewReader(displays).ReadString('\n'); err != nil {
		t.Fatalf("the VNC server did not start: %v", err)
	}
	l := listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)
	f, err := l.File() // handed over, so that nobody can take the port
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run("websockify", f, nil, "--inetd", "--unix-target="+socket)
	return l.Addr().(*net.TCPAddr).Port
}

// TestDesktopThroughTheGateway: a real VNC server, reached as UCloud's viewer reaches it.
func TestDesktopThroughTheGateway(t *testing.T) {
	t.Parallel()
	const password = "pAsSwOrD"
	port := desktop(t, password)
	w := newWebFixture(t)
	route := WebRoute{ID: "vnc/512/0/", Kind: WebDesktop, Address: "127.0.0.1", Port: port, UID: 20001, Version: 50}
	var mu sync.Mutex
	tokens := map[[32]byte]bool{}
	w.control.onWeb(func(_ context.Context, kind WebKind, host string, hash [32]byte) (*WebSession, error) {
		mu.Lock()
		defer mu.Unlock()
		if kind != WebDesktop || host != "" || !tokens[hash] {
			return nil, nil
		}
		delete(tokens, hash)
		route.Version++
		value := fmt.Sprintf("%x", hash)
		route.Grants = append(route.Grants, grantOf(value, time.Hour))
		return &WebSession{Value: value, ExpiresAt: time.Now().Add(time.Hour), Route: route}, nil
	})
	dial := func(token string, known bool) (net.Conn, error) {
		if known {
			mu.Lock()
			tokens[sha256.Sum256([]byte(token))] = true
			mu.Unlock()
		}
		c, _, err := websocket.Dial(t.Context(), "ws://"+w.address+"/ucloud/birch/vnc?token="+token, &websocket.DialOptions{
			Host: "birch.example.net", Subprotocols: []string{"binary"}, HTTPHeader: map[string][]string{"Cookie": {"a=b"}, "Origin": {"https://ucloud.example.org"}},
		})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.CloseNow() })
		return websocket.NetConn(t.Context(), c, websocket.MessageBinary), nil
	}
	conn, err := dial("cAnArY-1", true)
	if err != nil {
		t.Fatal(err)
	}
	if name, width, height, err := vnckit.Login(conn, password); err != nil || width != 320 || height != 200 || name == "" {
		t.Fatalf("%q %d %d %v", name, width, height, err)
	}
	second, err := dial("cAnArY-2", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := vnckit.Login(second, "wrong"); err == nil {
		t.Error("a wrong password was accepted")
	}
	for _, token := range []string{"cAnArY-1", "cAnArY-3"} {
		if _, err := dial(token, false); err == nil {
			t.Errorf("%s opened the desktop", token)
		}
	}
	if r := w.do("GET", "/ucloud/birch/vnc?token=cAnArY-4", ""); r.StatusCode != 400 {
		t.Errorf("without WebSocket: %d", r.StatusCode)
	}
	// The job ends.
	w.web.Apply(WebUpdate{Remove: map[string]uint64{route.ID: 1000}})
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "deadline") {
		t.Error("the desktop goes on after its job")
	}
	if log := w.log.String(); contains(log, "cAnArY") || contains(log, password) {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}

// TestDesktopThatStarts: the token is used up at once, so a desktop that does not listen yet is waited for.
func TestDesktopThatStarts(t *testing.T) {
	t.Parallel()
	w := newWebFixture(t)
	port, start := reserved(t)
	value := "v"
	route := WebRoute{ID: "vnc/512/0/", Kind: WebDesktop, Address: "127.0.0.1", Port: port, UID: 20001, Version: 50, Grants: []WebGrant{grantOf(value, time.Hour)}}
	asked := make(chan struct{}, 1)
	w.control.onWeb(func(context.Context, WebKind, string, [32]byte) (*WebSession, error) {
		asked <- struct{}{}
		return &WebSession{Value: value, ExpiresAt: time.Now().Add(time.Hour), Route: route}, nil
	})
	done := make(chan error, 1)
	go func() {
		c, _, err := websocket.Dial(t.Context(), "ws://"+w.address+"/ucloud/birch/vnc?token=t", &websocket.DialOptions{Host: "birch.example.net"})
		if c != nil {
			c.CloseNow()
		}
		done <- err
	}()
	<-asked
	time.Sleep(2 * desktopPause) // so that it has tried; if not, the test still holds
	b := newBackend(t, "late", start())
	b.handle(echo)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
