package gateway

import (
	"bufio"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/handover"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/testkit"
)

// The upgrade is tested with real processes: the test binary runs itself as a gateway that hands its listener to a
// successor, as package rolegateway does.

const (
	envChild    = "GATEWAY_TEST_CHILD" // address to listen on
	envChildKey = "GATEWAY_TEST_KEY"   // Core's public key
	envChildTo  = "GATEWAY_TEST_TO"    // port of Alice's instance
	envReady    = "GATEWAY_TEST_READY" // directory; a process that takes signals makes a file with its id there
)

// A client that gets no processor for a while must not meet the end of a connection that was idle only because of that.
var upgradeDrain = Drain{Grace: 1500 * time.Millisecond, Idle: 30 * time.Second, Requests: 20 * time.Second, Upgrades: 20 * time.Second}

// upgradeChild runs the child if this process is one.
func upgradeChild() bool {
	address := os.Getenv(envChild)
	if address == "" {
		return false
	}
	if err := runChild(address); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func runChild(address string) error {
	sockets, err := handover.Inherit()
	if err != nil {
		return err
	}
	l, err := sockets.Listen(context.Background(), address)
	if err != nil {
		return err
	}
	der, err := base64.StdEncoding.DecodeString(os.Getenv(envChildKey))
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS1PublicKey(der)
	if err != nil {
		return err
	}
	verifier, err := auth.NewVerifier([]*rsa.PublicKey{key}, auth.Options{})
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	table := NewTable(log)
	var port int
	fmt.Sscan(os.Getenv(envChildTo), &port)
	table.Apply(Update{Put: []Route{{User: alice, UID: 20001, Port: port, Key: hoptoken.Key{1}, ID: 1}}})
	g, err := New(Options{
		VerifyCore: verifier.VerifyCore, Control: new(control), Routes: table, Log: log,
		DialServer: func(context.Context) (net.Conn, error) { return nil, errTest },
	}, Settings{Provider: provider, Hosts: []string{"birch.example.net"}, Hold: Hold{Timeout: testkit.Patience}}) // a busy machine is no reason to fail
	if err != nil {
		return err
	}
	defer g.Close()
	s, err := g.NewServer(ServerOptions{Listeners: []net.Listener{l}})
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM)
	served := make(chan error, 1)
	go func() { served <- s.Run() }()
	if err := sockets.Ready(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(os.Getenv(envReady), fmt.Sprint(os.Getpid())), nil, 0o600); err != nil {
		return err
	}
	if sig := <-signals; sig == syscall.SIGTERM {
		s.Drain(context.Background(), Drain{})
		return <-served
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if _, err := handover.Start(context.Background(), handover.Successor{Path: self, Listeners: []net.Listener{l}}); err != nil {
		return err
	}
	s.Drain(context.Background(), upgradeDrain)
	return <-served
}

// TestUpgradeUnderLoad replaces the gateway several times while clients of all kinds use it. Not one request may fail,
// and an upgraded connection must survive.
func TestUpgradeUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	instance := newBackend(t, "alice", listen(t, "tcp", "127.0.0.1:0"))
	instance.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echo(w, r)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		if r.Header.Get("X-Slow") != "" {
			time.Sleep(500 * time.Millisecond)
		}
		fmt.Fprint(w, n, " ", err)
	})
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	t.Setenv(envChild, address)
	t.Setenv(envChildKey, base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(&coreKey().PublicKey)))
	t.Setenv(envChildTo, fmt.Sprint(instance.port()))
	ready := t.TempDir()
	t.Setenv(envReady, ready)
	takesSignals := func(pid int) bool {
		_, err := os.Stat(filepath.Join(ready, fmt.Sprint(pid)))
		return err == nil
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	first, err := handover.Start(t.Context(), handover.Successor{Path: self})
	if err != nil {
		t.Fatal(err)
	}

	head := "Host: birch.example.net\r\nAuthorization: " + bearer() + "\r\nUcloud-Username: " + alice.HeaderValue() + "\r\n"
	var done, failed atomic.Int64
	fail := func(kind string, err error) {
		failed.Add(1)
		t.Errorf("%s: %v", kind, err)
	}
	stop := make(chan struct{})
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	// client sends requests over one connection after the other; a connection is used until the gateway says otherwise, or
	// for one request.
	client := func(kind, request, want string, fresh bool, pause time.Duration) {
		for !stopped() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				fail(kind+": connect", err)
				return
			}
			br := bufio.NewReader(c)
			for !stopped() {
				io.WriteString(c, request)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					fail(kind, err)
					break
				}
				b, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != 200 || string(b) != want {
					fail(kind, fmt.Errorf("%d %q %w", res.StatusCode, b, err))
				}
				done.Add(1)
				if fresh || res.Close {
					break
				}
				time.Sleep(pause)
			}
			c.Close()
		}
	}
	small := "POST /ucloud/birch/files/move HTTP/1.1\r\n" + head + "Content-Length: 2\r\n\r\n{}"
	large := "POST /ucloud/birch/files/x HTTP/1.1\r\n" + head + "Content-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000)
	slow := "POST /ucloud/birch/files/x HTTP/1.1\r\n" + head + "X-Slow: 1\r\nContent-Length: 0\r\n\r\n"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { client("keep-alive", small, "2 <nil>", false, time.Millisecond) })
	}
	for range 4 {
		wg.Go(func() { client("fresh", small, "2 <nil>", true, 0) })
	}
	wg.Go(func() { client("large", large, "100000 <nil>", false, 5*time.Millisecond) })
	wg.Go(func() { client("slow", slow, "0 <nil>", false, 0) })
	wg.Go(func() { client("seldom", small, "2 <nil>", false, 700*time.Millisecond) })
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end() // a client that outlives a failed test hides why it failed

	socket, _, err := websocket.Dial(t.Context(), "ws://"+address+"/ucloud/birch/websocket?session=x&usernameHint="+alice.HintValue(),
		&websocket.DialOptions{Host: "birch.example.net"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.CloseNow()

	pids := []int{first.PID}
	for range 3 {
		old := pids[len(pids)-1]
		before := done.Load()
		eventually(t, "the process takes signals", func() bool { return takesSignals(old) })
		syscall.Kill(old, syscall.SIGUSR2)
		var next int
		eventually(t, "a successor", func() bool { next = childOf(old); return next != 0 })
		pids = append(pids, next)
		time.Sleep(2 * time.Second) // longer than the grace
		if done.Load() == before {
			t.Error("no requests during the upgrade")
		}
		if err := socket.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
			t.Errorf("upgraded connection: %v", err)
		} else if _, b, err := socket.Read(t.Context()); err != nil || string(b) != "x" {
			t.Errorf("upgraded connection: %q, %v", b, err)
		}
	}
	end()
	socket.Close(websocket.StatusNormalClosure, "")
	t.Logf("%d requests, %d failed", done.Load(), failed.Load())
	// The replaced processes end by themselves when their last connection has ended.
	if err := <-first.Exited; err != nil {
		t.Errorf("first process: %v", err)
	}
	last := pids[len(pids)-1]
	eventually(t, "the last process takes signals", func() bool { return takesSignals(last) })
	syscall.Kill(last, syscall.SIGTERM)
	eventually(t, "all processes end", func() bool {
		for _, pid := range pids[1:] {
			if running(pid) {
				return false
			}
		}
		return true
	})
}

// childOf finds a child of a process, the newest if there are several.
func childOf(parent int) (child int) {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		panic(err)
	}
	for _, e := range dir {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		if ppid, state := stat(pid); ppid == parent && state != "Z" {
			child = pid
		}
	}
	return child
}

func stat(pid int) (parent int, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	fmt.Sscan(string(b[strings.LastIndexByte(string(b), ')')+1:]), &state, &parent)
	return parent, state
}

func running(pid int) bool {
	_, state := stat(pid)
	return state != "" && state != "Z"
}
