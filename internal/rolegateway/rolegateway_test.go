package rolegateway

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

// envChild makes the test binary a gateway that reads its configuration from the directory it names.
const envChild = "ROLEGATEWAY_TEST_CONFIG"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		if err := Run(context.Background(), Options{ConfigDir: dir, Build: "child"}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if address := os.Getenv(envListen); address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			os.Exit(1)
		}
		for {
			if _, err := l.Accept(); err != nil {
				os.Exit(1)
			}
		}
	}
	goleak.VerifyTestMain(m)
}

// envListen makes the test binary listen at an address, as whatever account it runs.
const envListen = "ROLEGATEWAY_TEST_LISTEN"

const alice = ident.UCloudUser("Alice#1234")

// site is a configuration directory, an IM/Server as far as the gateway sees it, and one instance.
type site struct {
	t       testing.TB
	dir     string
	key     *rsa.PrivateKey
	listen  string
	metrics string
	route   ipcapi.Route

	stopIPC func()

	mu      sync.Mutex
	acks    []uint64
	hellos  []ipcapi.GatewayHello
	updates chan ipcapi.RouteUpdate
	wake    ipcapi.WakeReply
	wakeErr error
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func newSite(t testing.TB) *site {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), key: key, updates: make(chan ipcapi.RouteUpdate, 10)}
	s.listen, s.metrics = fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for _, d := range []string{"run", "run/private", "state"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(s.dir, "run"), 0o755)
	s.writeKey(key)
	s.writeConfig("")

	serve := func(l net.Listener, name string) *http.Server {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, `{"by":%q,"hop":%q}`, name, r.Header.Get(hoptoken.Header))
		})}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Serve(l) })
		t.Cleanup(func() {
			srv.Close()
			wg.Wait()
		})
		return srv
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(l, "alice")
	s.route = ipcapi.Route{User: alice, UID: 20001, Port: l.Addr().(*net.TCPAddr).Port, Key: make([]byte, 32), Route: 1, Generation: 1}
	ul, err := net.Listen("unix", filepath.Join(s.dir, "run/private/server.sock"))
	if err != nil {
		t.Fatal(err)
	}
	serve(ul, "server")
	return s
}

func (s *site) writeKey(k *rsa.PrivateKey) {
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "ucloud_key.pub"), []byte(base64.StdEncoding.EncodeToString(der)+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) writeConfig(extra string) {
	text := fmt.Sprintf(`version: 1
development: { enabled: true }
stateDirectory: %[1]s/state
ipc: { directory: %[1]s/run }
scripts: { spool: %[1]s/spool }
logs: { level: debug }
provider:
  id: birch
  hosts:
    ucloud: http://127.0.0.1:1
    self: http://127.0.0.1:8889
gateway:
  listen: ["%[2]s"]
  metricsListen: "%[3]s"
%[4]s
internal: { userPorts: "61000-61900" } # outside the ports that the test uses
userInstances: { launcher: self }
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    manual:
      tickets: { contact: help@example.org }
  fileSystems:
    disk:
      payment: { type: Resource, unit: TiB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}" }
`, s.dir, s.listen, s.metrics, extra)
	if err := os.WriteFile(filepath.Join(s.dir, "config.yml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// startIPC runs the server's side of the protocol.
func (s *site) startIPC() {
	s.t.Helper()
	srv := ipc.NewServer(ipc.ServerOptions{
		Log:       slog.New(slog.DiscardHandler),
		Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Service: true}, nil },
	})
	ipc.HandleStream(srv, ipcapi.GatewayRoutes, func(ctx context.Context, r *ipc.Request, req ipcapi.GatewayHello, send func(ipcapi.RouteUpdate, ...*os.File) error) error {
		s.mu.Lock()
		s.hellos = append(s.hellos, req)
		s.mu.Unlock()
		if err := send(ipcapi.RouteUpdate{Seq: 1, Full: true, Put: []ipcapi.Route{s.route}}); err != nil {
			return err
		}
		for {
			select {
			case u := <-s.updates:
				if err := send(u); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	ipc.Handle(srv, ipcapi.GatewayAck, func(_ context.Context, _ *ipc.Request, a ipcapi.RouteAck) (ipcapi.Empty, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.acks = append(s.acks, a.Seq)
		return ipcapi.Empty{}, nil
	})
	ipc.Handle(srv, ipcapi.GatewayWake, func(context.Context, *ipc.Request, ipcapi.Wake) (ipcapi.WakeReply, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.wake, s.wakeErr
	})
	ipc.Handle(srv, ipcapi.GatewayToken, func(_ context.Context, _ *ipc.Request, q ipcapi.TokenQuery) (ipcapi.TokenReply, error) {
		want := sha256.Sum256([]byte("open"))
		return ipcapi.TokenReply{Open: string(q.Hash) == string(want[:])}, nil
	})
	l, err := ipc.Listen(filepath.Join(s.dir, "run/ucloud.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx, l) })
	s.stopIPC = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	s.t.Cleanup(s.stopIPC)
}

func (s *site) acked(seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.acks {
		if a == seq {
			return true
		}
	}
	return false
}

// startGateway runs the role in this process until the test ends.
func (s *site) startGateway(o Options) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	o.ConfigDir, o.AccessOutput = s.dir, io.Discard
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ended := make(chan struct{})
	wg.Go(func() {
		defer close(ended)
		if err := Run(ctx, o); err != nil {
			s.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	s.t.Cleanup(stop)
	eventually(s.t, "the gateway listens", func() bool {
		c, err := net.Dial("tcp", s.metrics)
		if err == nil {
			c.Close()
		}
		select {
		case <-ended:
			return true
		default:
			return err == nil
		}
	})
	if s.t.Failed() {
		s.t.FailNow()
	}
	return stop
}

func (s *site) token(k *rsa.PrivateKey) string {
	now := time.Now().Unix()
	t, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"role": "SERVICE", "iss": "cloud.sdu.dk", "sub": "_UCloud", "aud": []string{"all:write"}, "iat": now, "exp": now + 600,
	}).SignedString(k)
	if err != nil {
		s.t.Fatal(err)
	}
	return "Bearer " + t
}

func (s *site) do(k *rsa.PrivateKey, target string) (int, string) {
	s.t.Helper()
	req, _ := http.NewRequest("POST", "http://"+s.listen+target, strings.NewReader("{}"))
	req.Header.Set("Authorization", s.token(k))
	req.Header.Set("Ucloud-Username", alice.HeaderValue())
	req.Close = true
	return do(s.t, req)
}

func do(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func (s *site) get(path string) (int, string) {
	req, _ := http.NewRequest("GET", "http://"+s.metrics+path, nil)
	req.Close = true
	return do(s.t, req)
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, what, cond)
}

const browse = "/ucloud/birch/files/browse"

func TestRole(t *testing.T) {
	if asService(t) {
		return
	}
	s := newSite(t)
	s.startIPC()
	stop := s.startGateway(Options{Build: "test"})
	eventually(t, "the first update is confirmed", func() bool { return s.acked(1) })
	if len(s.hellos) != 1 || s.hellos[0].Build != "test" || s.hellos[0].Protocol != ipcapi.Protocol {
		t.Errorf("hello %+v", s.hellos)
	}
	if code, body := s.do(s.key, browse); code != 200 || !strings.Contains(body, `"alice"`) {
		t.Fatalf("got %d %s", code, body)
	}
	if code, body := s.do(s.key, "/ucloud/birch/integration/init"); code != 200 || !strings.Contains(body, `"server"`) {
		t.Fatalf("got %d %s", code, body)
	}

	t.Run("updates are applied and confirmed", func(t *testing.T) {
		s.updates <- ipcapi.RouteUpdate{Seq: 2, Remove: []ident.UCloudUser{alice}}
		eventually(t, "confirmation", func() bool { return s.acked(2) })
		s.mu.Lock()
		s.wake = ipcapi.WakeReply{Why: "Please connect first."}
		s.mu.Unlock()
		if code, body := s.do(s.key, browse); code != 449 || !strings.Contains(body, "Please connect first.") {
			t.Errorf("refused: got %d %s", code, body)
		}
		s.mu.Lock()
		s.wakeErr = failure.New(failure.NotFound, "You are unknown here.")
		s.mu.Unlock()
		if code, body := s.do(s.key, browse); code != 449 || !strings.Contains(body, "You are unknown here.") {
			t.Errorf("refused with an error: got %d %s", code, body)
		}
		woken := s.route
		woken.Route = 2
		s.mu.Lock()
		s.wake, s.wakeErr = ipcapi.WakeReply{Route: &woken}, nil
		s.mu.Unlock()
		if code, body := s.do(s.key, browse); code != 200 {
			t.Errorf("woken: got %d %s", code, body)
		}
	})

	t.Run("one-time tokens wake", func(t *testing.T) {
		for token, want := range map[string]int{"open": 200, "shut": 404} {
			s.updates <- ipcapi.RouteUpdate{Seq: 3, Full: true}
			eventually(t, "the route is gone", func() bool {
				code, body := s.get("/metrics")
				return code == 200 && strings.Contains(body, "ucloud_gateway_routes 0")
			})
			req, _ := http.NewRequest("GET", "http://"+s.listen+"/ucloud/birch/download?token="+token+"&usernameHint="+alice.HintValue(), nil)
			req.Close = true
			if code, body := do(t, req); code != want {
				t.Errorf("%s: got %d %s", token, code, body)
			}
		}
	})

	t.Run("reload", func(t *testing.T) {
		next, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		if code, _ := s.do(next, browse); code != 401 {
			t.Fatalf("unknown key: %d", code)
		}
		s.writeKey(next)
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
		eventually(t, "the new key counts", func() bool { code, _ := s.do(next, browse); return code == 200 })
		// A broken configuration changes nothing.
		s.writeKey(s.key)
		s.writeConfig("  nonsense: true\n")
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
		time.Sleep(300 * time.Millisecond)
		if code, _ := s.do(next, browse); code != 200 {
			t.Errorf("after a broken reload: %d", code)
		}
		s.writeConfig("  hold: { enabled: false }\n")
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
		eventually(t, "the old key counts again", func() bool { code, _ := s.do(s.key, browse); return code == 200 })
		s.writeConfig("")
		syscall.Kill(os.Getpid(), syscall.SIGHUP)
	})

	t.Run("the table stays when the server is away, also in a new process", func(t *testing.T) {
		s.updates <- ipcapi.RouteUpdate{Seq: 4, Full: true, Put: []ipcapi.Route{s.route}}
		eventually(t, "confirmation", func() bool { return s.acked(4) })
		if code, _ := s.get("/readyz"); code != 200 {
			t.Errorf("readyz: %d", code)
		}
		s.stopIPC()
		eventually(t, "readyz", func() bool { code, _ := s.get("/readyz"); return code == 503 })
		if code, body := s.do(s.key, browse); code != 200 {
			t.Errorf("server away: got %d %s", code, body)
		}
		stop()
		if st, err := os.Stat(filepath.Join(s.dir, "state/gateway/gateway-routes.json")); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("route file: %v, %v", st, err)
		}
		s.startGateway(Options{})
		if code, body := s.do(s.key, browse); code != 200 {
			t.Errorf("new process: got %d %s", code, body)
		}
		s.startIPC()
		eventually(t, "connected again", func() bool { code, _ := s.get("/readyz"); return code == 200 })
		if code, body := s.get("/healthz"); code != 200 || body != "ok\n" {
			t.Errorf("healthz: %d %s", code, body)
		}
	})
}

// TestUpgrade replaces the process by SIGUSR2 while requests run.
func TestUpgrade(t *testing.T) {
	if asService(t) {
		return
	}
	s := newSite(t)
	s.startIPC()
	stop := s.startGateway(Options{Program: selfExe, Args: []string{}, Log: slog.New(slog.DiscardHandler)})
	eventually(t, "connected", func() bool { return s.acked(1) })
	t.Setenv(envChild, s.dir)
	end := make(chan struct{})
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			if code, body := s.do(s.key, browse); code != 200 {
				t.Errorf("got %d %s", code, body)
			}
			n++
		}
	})
	syscall.Kill(os.Getpid(), syscall.SIGUSR2)
	pid := 0
	eventually(t, "the successor is connected", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range s.hellos {
			if h.Build == "child" {
				pid = h.PID
				return true
			}
		}
		return false
	})
	time.Sleep(2 * time.Second) // the predecessor drains
	close(end)
	wg.Wait()
	if code, _ := s.get("/healthz"); code != 200 {
		t.Errorf("the successor's metrics: %d", code)
	}
	stop()
	if code, body := s.do(s.key, browse); code != 200 {
		t.Errorf("after the end of the old process: %d %s", code, body)
	}
	t.Logf("%d requests", n)
	syscall.Kill(pid, syscall.SIGTERM)
	eventually(t, "the successor ends", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
}

func TestRefusals(t *testing.T) {
	if os.Geteuid() == 0 {
		if err := Run(t.Context(), Options{}); !errors.Is(err, config.ErrRoot) {
			t.Errorf("as root: %v", err)
		}
	}
	if asService(t) {
		return
	}
	s := newSite(t)
	s.writeConfig("  nonsense: true\n")
	err := Run(t.Context(), Options{ConfigDir: s.dir})
	if problems, ok := config.AsProblems(err); !ok || len(problems) == 0 {
		t.Errorf("wrong configuration: %v", err)
	}
	s.writeConfig("")
	os.WriteFile(filepath.Join(s.dir, "ucloud_key.pub"), []byte("no key"), 0o644)
	if err := Run(t.Context(), Options{ConfigDir: s.dir}); err == nil {
		t.Error("started without a usable key")
	}
}

// TestListenerCheck: the kernel says whose socket listens on a port.
func TestListenerCheck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check := testCheck(t)
	port := l.Addr().(*net.TCPAddr).Port
	if err := check(port); err != nil {
		t.Errorf("own listener: %v", err)
	}
	l.Close()
	if err := check(port); err == nil {
		t.Error("nobody listens, and that was accepted")
	}
}
