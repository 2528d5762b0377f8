package launcher_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// These tests run as root and start two programs as the service account: a server (the launcher behind an IPC socket)
// and a gateway (a small one that follows the rules of ipcapi.RouteUpdate). Both are this test binary, told by an
// environment variable what to be, and take orders over their standard input.
const roleEnv = "IMT_LAUNCHER_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "server":
		os.Exit(serverMain())
	case "gateway":
		os.Exit(gatewayMain())
	case "client":
		os.Exit(clientMain())
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if shared.site != nil {
		if err := shared.site.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// shared is the site all tests of this process use: making one takes a second.
var shared struct {
	once sync.Once
	site *accounts.Site
	bin  string // this test binary, where the service account can execute it
	err  error
}

const (
	directProgram = "ucloud-user"
	pamProgram    = "ucloud-user-pam"
	stockProgram  = "ucloud-user-stock"
)

func theSite(t testing.TB) *accounts.Site {
	t.Helper()
	accounts.Require(t)
	shared.once.Do(func() {
		shared.err = func() error {
			site, err := accounts.Setup("ln")
			if err != nil {
				return err
			}
			shared.site = site
			built := filepath.Join(site.Dir, "built")
			if err := accounts.Build("ucloud-im/internal/launcher/internal/testinstance", built); err != nil {
				return err
			}
			for name, rule := range map[string]accounts.Rule{
				directProgram: accounts.Direct, pamProgram: accounts.PAM, stockProgram: accounts.Stock,
			} {
				if _, err := site.Install(name, built, rule); err != nil {
					return err
				}
			}
			data, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				return err
			}
			shared.bin = filepath.Join(site.Dir, "test")
			return os.WriteFile(shared.bin, data, 0o755)
		}()
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

// serverConfig is what a test server is told.
type serverConfig struct {
	Dir          string
	Program      string
	Group        string
	First, Last  int
	Mapping      map[ident.UCloudUser]launcher.Account
	Self         bool
	As           *accounts.Account // the service account; the site's if nil
	Sudo         string
	Cgroup       string
	MaxInstances int
	RestartMax   int
	Intents      string // mode of the policy about signed intents

	Idle, Start, Drain, LossGrace, Recover, ServerLoss, Stop, Confirm time.Duration
}

// nextPorts gives each world a part of the range, so that tests can say which port comes next.
var nextPorts atomic.Int32

// nextRange gives the number of a range whose first ports are free: other tests run on this machine too.
func nextRange(t testing.TB) int {
	t.Helper()
	for n := int(nextPorts.Add(1)) - 1; n < 200; n = int(nextPorts.Add(1)) - 1 {
		free := true
		for port := firstPort + 200*n; port < firstPort+200*n+10; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				free = false
				break
			}
			l.Close() //nolint:errcheck // a test
		}
		if free {
			return n
		}
	}
	t.Fatal("no free range of ports")
	return 0
}

const firstPort = 20000

// world is one service under test.
type world struct {
	t      testing.TB
	site   *accounts.Site
	cfg    serverConfig
	server *proc
	gw     *proc

	service accounts.Account
	groups  []uint32 // supplementary groups of the service account's processes
	cgroup  *os.File // where they are started; nil: where the test is
}

// proc is a helper program.
type proc struct {
	cmd  *exec.Cmd
	rpc  *rpc.Client
	log  *safeBuffer
	once sync.Once
	done chan struct{}
}

type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type pipes struct {
	io.Reader
	io.WriteCloser
}

func newWorld(t testing.TB, change func(*serverConfig), users ...accounts.Account) *world {
	t.Helper()
	site := theSite(t)
	n := nextRange(t)
	w := &world{t: t, site: site, cfg: serverConfig{
		Dir: filepath.Join(site.Dir, fmt.Sprintf("w%d", n)), Program: filepath.Join(site.Dir, directProgram),
		Group: site.Group, First: firstPort + 200*n, Last: firstPort + 199 + 200*n, Mapping: map[ident.UCloudUser]launcher.Account{},
		Start: 30 * time.Second, Drain: 10 * time.Second, LossGrace: 3 * time.Second, Recover: 8 * time.Second,
		ServerLoss: time.Minute, Stop: 3 * time.Second, Confirm: 5 * time.Second, RestartMax: 50,
	}}
	for _, u := range users {
		w.cfg.Mapping[userOf(u)] = launcher.Account{UID: u.UID, LocalName: u.Name}
	}
	if change != nil {
		change(&w.cfg)
	}
	w.service = site.Service
	if w.cfg.As != nil {
		w.service = *w.cfg.As
	}
	for dir, mode := range map[string]os.FileMode{"": 0o755, "state": 0o700, "log": 0o750} {
		path := filepath.Join(w.cfg.Dir, dir)
		if err := os.MkdirAll(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(w.service.UID), int(w.service.GID)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		w.stopAll()
		if t.Failed() {
			for _, p := range []*proc{w.server, w.gw} {
				if p != nil {
					t.Logf("output of %s:\n%s", p.cmd.Env[0], p.log)
				}
			}
			logs, _ := filepath.Glob(filepath.Join(w.cfg.Dir, "log/users/*"))
			for _, l := range logs {
				data, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", l, data[:min(len(data), 8192)])
			}
		}
	})
	return w
}

// newRunning is newWorld with server and gateway started.
func newRunning(t testing.TB, change func(*serverConfig), users ...accounts.Account) *world {
	t.Helper()
	w := newWorld(t, change, users...)
	w.startServer()
	w.startGateway()
	return w
}

func userOf(a accounts.Account) ident.UCloudUser { return ident.UCloudUser("User " + a.Name + "#1") }

func (w *world) socket() string { return filepath.Join(w.cfg.Dir, "ucloud.sock") }

func (w *world) startServer() { w.t.Helper(); w.server = w.startRole("server") }

func (w *world) startGateway() {
	w.t.Helper()
	w.gw = w.startRole("gateway")
	w.eventually("gateway follows", func() bool { return w.counters().Gateways > 0 })
}

func (w *world) startRole(role string) *proc {
	w.t.Helper()
	cfg, err := json.Marshal(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := w.service.Command(shared.bin)
	cmd.SysProcAttr.Credential.Groups = w.groups
	if w.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(w.cgroup.Fd())
	}
	cmd.Env = append([]string{roleEnv + "=" + role, "IMT_CONFIG=" + string(cfg)}, cmd.Env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &proc{cmd: cmd, log: &safeBuffer{}, done: make(chan struct{})}
	cmd.Stderr = p.log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { cmd.Wait(); close(p.done) }() //nolint:errcheck // killed by tests
	p.rpc = rpc.NewClient(pipes{out, in})
	var ok bool
	if err := p.rpc.Call("Control.Ping", 0, &ok); err != nil {
		w.t.Fatalf("%s does not start: %v\n%s", role, err, p.log)
	}
	return p
}

// kill is kill -9.
func (p *proc) kill(testing.TB) {
	p.once.Do(func() {
		p.cmd.Process.Kill() //nolint:errcheck // may be gone
		<-p.done
		p.rpc.Close() //nolint:errcheck // broken anyway
	})
}

// stop ends the program in an orderly way.
func (p *proc) stop(t testing.TB) {
	p.once.Do(func() {
		p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // may be gone
		select {
		case <-p.done:
			if p.cmd.ProcessState.ExitCode() == leakCode {
				t.Errorf("the server leaves goroutines behind:\n%s", p.log)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("does not end:\n%s", p.log)
			p.cmd.Process.Kill() //nolint:errcheck // may be gone
			<-p.done
		}
		p.rpc.Close() //nolint:errcheck // broken anyway
	})
}

func (w *world) stopAll() {
	if w.gw != nil {
		w.gw.stop(w.t)
	}
	if w.server != nil {
		w.server.stop(w.t)
	}
	for _, a := range w.cfg.Mapping {
		accounts.KillAll(a.UID)
	}
}

func (w *world) call(p *proc, method string, args, reply any) {
	w.t.Helper()
	if err := p.rpc.Call("Control."+method, args, reply); err != nil {
		w.t.Fatalf("%s: %v", method, err)
	}
}

// Woken is the answer of the server to a wake.
type Woken struct {
	Route ipcapi.Route
	Why   string
	Kind  failure.Kind
	Cause string
}

func (w *world) tryWake(u accounts.Account) Woken {
	w.t.Helper()
	var r Woken
	w.call(w.server, "Wake", userOf(u), &r)
	return r
}

func (w *world) wake(u accounts.Account) ipcapi.Route {
	w.t.Helper()
	r := w.tryWake(u)
	if r.Why != "" {
		w.t.Fatalf("wake %s: %s (%s)", u.Name, r.Why, r.Cause)
	}
	return r.Route
}

func (w *world) list() map[ident.UCloudUser]launcher.Info {
	w.t.Helper()
	var infos []launcher.Info
	w.call(w.server, "List", 0, &infos)
	m := map[ident.UCloudUser]launcher.Info{}
	for _, i := range infos {
		m[i.User] = i
	}
	return m
}

func (w *world) info(u accounts.Account) launcher.Info { w.t.Helper(); return w.list()[userOf(u)] }

func (w *world) counters() launcher.Counters {
	w.t.Helper()
	var c launcher.Counters
	w.call(w.server, "Counters", 0, &c)
	return c
}

// Fetched is an answer of an instance, through the gateway.
type Fetched struct {
	Status int
	Body   string
	Err    string
}

type Fetch struct {
	User         ident.UCloudUser
	Method, Path string
	Body         string
	Timeout      time.Duration
}

func (w *world) get(u accounts.Account, path string) Fetched {
	w.t.Helper()
	var r Fetched
	w.call(w.gw, "Fetch", Fetch{User: userOf(u), Method: "GET", Path: path, Timeout: 30 * time.Second}, &r)
	return r
}

// post is get for what must not be sent twice: the HTTP client repeats a GET whose connection broke.
func (w *world) post(u accounts.Account, path string) Fetched {
	w.t.Helper()
	var r Fetched
	w.call(w.gw, "Fetch", Fetch{User: userOf(u), Method: "POST", Path: path, Body: "x", Timeout: 30 * time.Second}, &r)
	return r
}

func (w *world) mustGet(u accounts.Account, path string) string {
	w.t.Helper()
	r := w.get(u, path)
	if r.Err != "" || r.Status != 200 {
		w.t.Fatalf("GET %s of %s: %+v", path, u.Name, r)
	}
	return r.Body
}

func (w *world) about(u accounts.Account) about {
	w.t.Helper()
	var a about
	if err := json.Unmarshal([]byte(w.mustGet(u, "/about")), &a); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// about mirrors testinstance.About.
type about struct {
	PID     int
	UID     int
	Groups  []int
	Args    []string
	Env     []string
	Dir     string
	Status  map[string]string
	Files   map[string]string
	Umask   int
	NoFile  uint64
	Release string
	Intents string
	Keys    int64
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	eventually(w.t, what, ok)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	testkit.Eventually(t, what, ok)
}

func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(rest, "Z")
}
