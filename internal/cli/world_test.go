package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/operator"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

// Uids without accounts: what a uid may do is decided by the directory below, and the kernel does not care.
const (
	uidKay    = ident.UID(3_900_000_011) // an account that may be connected
	uidLee    = ident.UID(3_900_000_012) // another
	uidViewer = ident.UID(3_900_000_021)
	uidNobody = ident.UID(3_900_000_031)
)

// socketVariable tells the program under test where the server is.
const socketVariable = "CLI_TEST_SOCKET"

func TestMain(m *testing.M) {
	if os.Getenv("CLI_TEST_PROGRAM") != "" { // this binary as the program, for runs as another uid
		program()
	}
	testscript.Main(m, map[string]func(){"ucloud": program})
}

// program is what cmd/ucloud does, with roles that only say that they ran.
func program() {
	role := func(name string) func(context.Context, RoleOptions) error {
		return func(_ context.Context, o RoleOptions) error {
			_, err := fmt.Fprintf(o.Stdout, "%s runs with %s\n", name, o.ConfigDir)
			return err
		}
	}
	args := os.Args[1:]
	if s := os.Getenv(socketVariable); s != "" {
		args = append([]string{"--socket", s}, args...)
	}
	os.Exit(Run(context.Background(), args, os.Getenv, os.Stdin, os.Stdout, os.Stderr, testHooks(role)))
}

func testHooks(role func(string) func(context.Context, RoleOptions) error) Hooks {
	return Hooks{
		RunServer: role("server"), RunGateway: role("gateway"),
		Version: ipcapi.VersionInfo{Version: "1.2.3", Commit: "abc"},
		Units:   map[string]string{"ucloud-server.service": "[Unit]\nDescription=server\n"},
	}
}

type directory struct{}

func (directory) ByUID(_ context.Context, uid ident.UID) (localuser.Account, error) {
	name, ok := map[ident.UID]string{uidKay: "kay", uidLee: "lee", uidViewer: "vera"}[uid]
	if !ok && uid == ident.UID(os.Getuid()) {
		name, ok = "tester", true
	}
	if !ok {
		return localuser.Account{}, failure.New(failure.NotFound, "no uid %d", uid)
	}
	return localuser.Account{Name: name, UID: uid, GID: 100}, nil
}

func (directory) Group(_ context.Context, name string) (localuser.Group, error) {
	switch name {
	case "ops": // whoever runs the tests is an operator
		return localuser.Group{Name: name, GID: 3_900_000_101, Members: []string{"tester"}}, nil
	case "reef":
		return localuser.Group{Name: name, GID: 3_900_000_201}, nil
	case "viewers":
		return localuser.Group{Name: name, GID: 3_900_000_102, Members: []string{"vera"}}, nil
	}
	return localuser.Group{}, failure.New(failure.NotFound, "no group %s", name)
}

func (directory) Groups(context.Context, string) ([]ident.GID, error) { return nil, nil }

func (directory) GroupByID(_ context.Context, gid ident.GID) (localuser.Group, error) {
	if gid == 3_900_000_201 {
		return localuser.Group{Name: "reef", GID: gid}, nil
	}
	return localuser.Group{}, failure.New(failure.NotFound, "There is no local group with the id %s", gid)
}

func (directory) Invalidate() {}

// policyFake allows kay and lee, and any account that ends in "x".
type policyFake struct{}

func (policyFake) Check(_ context.Context, nameOrUID string) (usermap.Account, error) {
	for name, uid := range map[string]ident.UID{"kay": uidKay, "lee": uidLee} {
		if nameOrUID == name || nameOrUID == uid.String() {
			return usermap.Account{Name: name, UID: uid, Home: "/home/" + name, Shell: "/bin/sh"}, nil
		}
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not a member of ucloud_users (needed to start a user instance)", nameOrUID)
}

// coreFake answers unless it is away.
type coreFake struct {
	mu   sync.Mutex
	away bool
}

func (c *coreFake) answer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		return errors.New("connection refused")
	}
	return nil
}

func (c *coreFake) ClearConnection(context.Context, ident.UCloudUser) error   { return c.answer() }
func (c *coreFake) ApproveConnection(context.Context, ident.UCloudUser) error { return c.answer() }

type instancesFake struct {
	mu      sync.Mutex
	list    []launcher.Info
	changed int
}

func (i *instancesFake) List() []launcher.Info { i.mu.Lock(); defer i.mu.Unlock(); return i.list }

func (i *instancesFake) Refresh(context.Context) {}

func (i *instancesFake) StopUser(context.Context, ident.UCloudUser, string) error { return i.change() }

func (i *instancesFake) Restart(context.Context, ident.UCloudUser) error { return i.change() }

func (i *instancesFake) change() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.changed++
	return nil
}

func (i *instancesFake) changes() int { i.mu.Lock(); defer i.mu.Unlock(); return i.changed }

// world is a server with everything the command line talks to.
type world struct {
	socket    string
	store     *store.Store
	users     *usermap.Service
	method    *ticket.Method
	keys      *signingkeys.Service
	core      *coreFake
	instances *instancesFake
	intents   ipcapi.IntentSummary
	reload    ipcapi.ReloadReport
	stop      func()

	mu     sync.Mutex // guards what follows
	status ipcapi.StatusReport
	hang   bool // status does not answer
}

// setPart changes a part of the status.
func (w *world) setPart(name string, change func(*ipcapi.StatusPart)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Parts = slices.Clone(w.status.Parts) // the old ones may be on their way to somebody
	for i := range w.status.Parts {
		if w.status.Parts[i].Name == name {
			change(&w.status.Parts[i])
		}
	}
}

func (i *instancesFake) set(list ...launcher.Info) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = list
}

// newWorld starts a server. cleanup is called at the end.
func newWorld(cleanup func(func()), dir string) (*world, error) {
	log := slog.New(slog.DiscardHandler)
	w := &world{socket: filepath.Join(dir, "s"), core: &coreFake{}, instances: &instancesFake{}}
	// Other accounts must reach the socket.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	private := filepath.Join(dir, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	cleanup(w.stop)
	var err error
	if w.store, err = store.Open(ctx, store.Options{Driver: "sqlite", Path: filepath.Join(private, "im.db"), Log: log}); err != nil {
		return nil, err
	}
	cleanup(func() { w.stop(); _ = w.store.Close() })
	if w.keys, err = signingkeys.New(signingkeys.Options{Store: w.store, Tokens: onetime.New(w.store, onetime.Options{}), Log: log}); err != nil {
		return nil, err
	}
	if w.users, err = usermap.New(ctx, usermap.Options{
		Store: w.store, Core: w.core, Policy: policyFake{}, Log: log,
		ActivateKey: func(tx *store.Tx, user ident.UCloudUser, key string, a usermap.Account, proof string) error {
			return w.keys.Activate(tx, user, key, a.UID, proof)
		},
		Ended: func(tx *store.Tx, was store.Mapping, cause usermap.Cause) error {
			return w.keys.EndOf(tx, was.User, "disconnected: "+string(cause))
		},
	}); err != nil {
		return nil, err
	}
	if w.method, err = ticket.NewMethod(ticket.Options{
		Store: w.store, Users: w.users, Log: log, PageURL: "https://im.example.org/page", SelfService: true,
	}); err != nil {
		return nil, err
	}
	w.status = ipcapi.StatusReport{Parts: []ipcapi.StatusPart{
		{Name: "core", Health: ipcapi.HealthOK, Summary: "connected", Facts: []ipcapi.Fact{{Name: "lag", Value: "2 s"}}},
		{Name: "database", Health: ipcapi.HealthOK, Summary: "sqlite, schema 1"},
	}}
	hooks, err := siteScripts(dir)
	if err != nil {
		return nil, err
	}
	s, err := operator.New(operator.Options{
		Users: w.users, Tickets: w.method, Keys: w.keys, Store: w.store, Instances: w.instances, Provider: "example",
		UCloudPublic: "https://ucloud.example.org", Log: log, Audit: log,
		Units: func() map[string]string { return map[string]string{"disk": "GB"} }, Apply: func(ident.Owner) {},
		SlurmAccounts: slurmAccounts{}, Scripts: func() []*scripts.Hook { return hooks },
		Groups: directory{}, GroupRules: func(context.Context) operator.GroupRules {
			return operator.GroupRules{MinGID: 1000, Denied: []string{"viewers"}}
		},
		Version: ipcapi.VersionInfo{Protocol: ipcapi.Protocol, Version: "9.8.7", Platform: "test", StartedAt: time.Date(2031, 2, 3, 9, 0, 0, 0, time.UTC)},
		Status: func(ctx context.Context) ipcapi.StatusReport {
			w.mu.Lock()
			rep, hang := w.status, w.hang
			w.mu.Unlock()
			if hang {
				<-ctx.Done()
			}
			return rep
		},
		Reload:  func(context.Context, bool) (ipcapi.ReloadReport, error) { return w.reload, nil },
		Running: func() (ipcapi.RunningConfig, error) { return ipcapi.RunningConfig{YAML: "running: yes\n"}, nil },
		Gateway: func(keys bool) (ipcapi.GatewayState, error) {
			r := ipcapi.RouteInfo{User: "Alice#1234", UID: uidKay, Port: 42000, Route: 3, Generation: 1}
			if keys {
				r.Key = "5ec7e7"
			}
			return ipcapi.GatewayState{
				Gateways: []ipcapi.GatewayInfo{{PID: 77, Build: "b", Listen: []string{"0.0.0.0:8889"}, Sent: 5, Applied: 5}}, Routes: []ipcapi.RouteInfo{r},
			}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	srv := ipc.NewServer(ipc.ServerOptions{Log: log, Authorize: operator.NewAuthorizer(operator.AuthorizerOptions{
		User: w.users.User, Directory: directory{}, ServiceUID: 3_900_000_099, OperatorGroup: "ops", ViewerGroup: "viewers", Log: log,
	})})
	s.Register(srv)
	ipc.Handle(srv, ipcapi.IntentReport, func(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.IntentSummary, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.intents, nil
	})
	l, err := ipc.Listen(w.socket)
	if err != nil {
		return nil, err
	}
	box := outbox.New(w.store, outbox.Options{})
	w.users.Register(box)
	wg.Go(func() { _ = srv.Serve(ctx, l) })
	wg.Go(func() { _ = box.Run(ctx) })
	return w, nil
}

// testWorld is newWorld for ordinary tests.
func testWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w, err := newWorld(t.Cleanup, dir)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// begin presses "Connect" at UCloud and gives the ticket.
func (w *world) begin(u ident.UCloudUser) (string, error) {
	to, err := w.users.Begin(context.Background(), w.method, u)
	if err != nil {
		return "", err
	}
	parsed, err := url.Parse(to)
	if err != nil {
		return "", err
	}
	return parsed.Query().Get("ticket"), nil
}

// beginWithKey is begin for a browser that has a signing key of its own, and gives the fingerprint.
func (w *world) beginWithKey(ctx context.Context, u ident.UCloudUser) (ticket, fingerprint string, err error) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	key, err := signkey.FromPublic(public)
	if err != nil {
		return "", "", err
	}
	upload := &signingkeys.Method{Keys: w.keys, Next: w.method, URL: "https://im.example.org/upload", Wanted: func(ident.UCloudUser) bool { return true }}
	to, err := w.users.Begin(ctx, upload, u)
	if err != nil {
		return "", "", err
	}
	parsed, err := url.Parse(to)
	if err != nil {
		return "", "", err
	}
	if to, err = upload.Receive(ctx, parsed.Query().Get("session"), key.PEM()); err != nil {
		return "", "", err
	}
	if parsed, err = url.Parse(to); err != nil {
		return "", "", err
	}
	return parsed.Query().Get("ticket"), key.Fingerprint(), nil
}

// run runs a command in this process.
func (w *world) run(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	none := func(string) func(context.Context, RoleOptions) error { return nil }
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	code = Run(t.Context(), append([]string{"--socket", w.socket}, args...), func(string) string { return "" }, stdin, &out, &errs, testHooks(none))
	return code, out.String(), errs.String()
}

// as runs a command as another uid, in a process of its own.
func (w *world) as(uid ident.UID, args ...string) (code int, output string, err error) {
	cmd := exec.Command("/proc/self/exe", args...) // the binary's path may be closed to the other uid
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Env = []string{"CLI_TEST_PROGRAM=1", socketVariable + "=" + w.socket, "LOGNAME=someone"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode(), string(out), nil
	}
	return 0, string(out), err
}

// TestScripts runs the scripts in testdata/script, each against a server of its own. Besides testscript's commands they
// have:
//
//	code N ARGS…           run ucloud with ARGS and demand this exit code
//	begin USER VAR         press "Connect" at UCloud; the ticket is in $VAR; USER nobody: a ticket that nobody has issued
//	beginkey USER VAR KEY  the same with a browser that has a signing key, whose fingerprint is in $KEY
//	core up|away           let UCloud/Core answer or not
//	instance USER NAME     the launcher knows an instance of the user
//	project ID TITLE MEMBER…  UCloud tells about a project
//	wallet OWNER CATEGORY QUOTA USED LOCKED  UCloud tells about an allocation; OWNER project:ID for projects
//	health PART STATE      the status of a part
//	as UID N TEXT ARGS…    run ucloud as another uid, demand exit code and a text in the output; needs root
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "cli-script")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			w, err := newWorld(env.Defer, dir)
			if err != nil {
				return err
			}
			env.Values["world"] = w
			env.Vars = append(env.Vars, socketVariable+"="+w.socket, "TZ=UTC", "LOGNAME=someone")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": scriptCode, "begin": scriptBegin, "beginkey": scriptBeginKey, "core": scriptCore, "instance": scriptInstance, "health": scriptHealth, "as": scriptAs,
			"project": scriptProject, "wallet": scriptWallet,
		},
	})
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value("world").(*world) }

func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec("ucloud", args[1:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func scriptBegin(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "nobody" {
		ts.Setenv(args[1], ticket.New().String())
		return
	}
	tk, err := worldOf(ts).begin(ident.UCloudUser(args[0]))
	ts.Check(err)
	ts.Setenv(args[1], tk)
}

func scriptBeginKey(ts *testscript.TestScript, _ bool, args []string) {
	tk, fingerprint, err := worldOf(ts).beginWithKey(context.Background(), ident.UCloudUser(args[0]))
	ts.Check(err)
	ts.Setenv(args[1], tk)
	ts.Setenv(args[2], fingerprint)
}

func scriptProject(ts *testscript.TestScript, _ bool, args []string) {
	p := providerapi.Project{ID: ident.ProjectID(args[0])}
	p.Specification.Title, p.Specification.CanConsumeResources = args[1], true
	for _, m := range args[2:] {
		p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: ident.UCloudUser(m), Role: "USER"})
	}
	ts.Check(worldOf(ts).store.Update(context.Background(), func(tx *store.Tx) error {
		_, _, err := tx.PutProject(store.Project{ID: p.ID, ModifiedAt: time.Now(), Document: p})
		return err
	}))
}

func scriptWallet(ts *testscript.TestScript, _ bool, args []string) {
	owner := ident.Owner{User: ident.UCloudUser(args[0])}
	if id, ok := strings.CutPrefix(args[0], "project:"); ok {
		owner = ident.Owner{Project: ident.ProjectID(id)}
	}
	quota, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	used, err := strconv.ParseInt(args[3], 10, 64)
	ts.Check(err)
	ts.Check(worldOf(ts).store.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{
			Owner: owner, Category: args[1], CombinedQuota: quota, TotalUsage: used, Locked: args[4] == "yes", LastUpdate: time.Now(),
		})
		return err
	}))
}

func scriptCore(ts *testscript.TestScript, _ bool, args []string) {
	c := worldOf(ts).core
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = args[0] == "away"
}

func scriptInstance(ts *testscript.TestScript, _ bool, args []string) {
	i := worldOf(ts).instances
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = append(slices.Clone(i.list), launcher.Info{
		User: ident.UCloudUser(args[0]), LocalName: args[1], UID: ident.UID(2000 + len(i.list)), PID: int32(100 + len(i.list)),
		Port: 42000 + len(i.list), State: "running", Idle: 90 * time.Second, MemoryBytes: 3 << 20,
	})
}

func scriptHealth(ts *testscript.TestScript, _ bool, args []string) {
	worldOf(ts).setPart(args[0], func(p *ipcapi.StatusPart) { p.Health = ipcapi.Health(args[1]) })
}

func scriptAs(ts *testscript.TestScript, _ bool, args []string) {
	uid, err := ident.ParseUID(args[0])
	ts.Check(err)
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	code, out, err := worldOf(ts).as(uid, args[3:]...)
	ts.Check(err)
	ts.Logf("uid %d, exit code %d:\n%s", uid, code, out)
	if code != want || !strings.Contains(out, args[2]) {
		ts.Fatalf("exit code %d, want %d; output does not hold %q", code, want, args[2])
	}
}

// needRoot skips a test that starts processes of other uids.
func needRoot(t *testing.T) { testkit.Require(t, testkit.Root) }
