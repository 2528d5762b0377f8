package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

const (
	alice = ident.UCloudUser("Alice#1234")
	mary  = ident.UCloudUser("Mary#0001")

	// Uids without accounts: what a uid may do is decided by the directory below, and the kernel does not care.
	uidKay     = ident.UID(3_900_000_011) // an allowed account
	uidLee     = ident.UID(3_900_000_012) // another
	uidViewer  = ident.UID(3_900_000_021)
	uidOp      = ident.UID(3_900_000_022)
	uidService = ident.UID(3_900_000_023)
	uidNobody  = ident.UID(3_900_000_031) // known to nobody

	gidOps, gidViewers = ident.GID(3_900_000_101), ident.GID(3_900_000_102)
)

func TestMain(m *testing.M) {
	if call := os.Getenv("OPERATOR_TEST_CALLS"); call != "" {
		os.Exit(playChild(call))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

// directory is a fixed set of accounts and groups. The account that runs the tests is an operator.
type directory struct{ broken bool }

func (d directory) account(uid ident.UID) (localuser.Account, bool) {
	name, ok := map[ident.UID]string{
		uidKay: "kay", uidLee: "lee", uidViewer: "vera", uidOp: "otto", uidService: "ucloud",
	}[uid]
	if !ok && uid == ident.UID(os.Getuid()) {
		name, ok = "tester", true
	}
	return localuser.Account{Name: name, UID: uid, GID: 100}, ok
}

func (d directory) ByUID(_ context.Context, uid ident.UID) (localuser.Account, error) {
	if a, ok := d.account(uid); ok {
		return a, nil
	}
	return localuser.Account{}, failure.New(failure.NotFound, "no uid %d", uid)
}

func (d directory) Group(_ context.Context, name string) (localuser.Group, error) {
	switch {
	case d.broken:
		return localuser.Group{}, failure.New(failure.Unavailable, "the name service does not answer")
	case name == "ops":
		return localuser.Group{Name: name, GID: gidOps, Members: []string{"tester"}}, nil
	case name == "viewers":
		return localuser.Group{Name: name, GID: gidViewers, Members: []string{"vera"}}, nil
	}
	return localuser.Group{}, failure.New(failure.NotFound, "no group %s", name)
}

func (d directory) Groups(_ context.Context, name string) ([]ident.GID, error) {
	if name == "otto" { // a member whom the group does not list
		return []ident.GID{100, gidOps}, nil
	}
	return []ident.GID{100}, nil
}

// policyFake allows the two accounts kay and lee.
type policyFake struct{}

func (policyFake) Check(_ context.Context, nameOrUID string) (usermap.Account, error) {
	for name, uid := range map[string]ident.UID{"kay": uidKay, "lee": uidLee} {
		if nameOrUID == name || nameOrUID == uid.String() {
			return usermap.Account{Name: name, UID: uid, Home: "/home/" + name, Shell: "/bin/sh"}, nil
		}
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not a member of users", nameOrUID)
}

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

type instances struct {
	mu      sync.Mutex
	list    []launcher.Info
	stopped []string
	stuck   bool // an instance does not end
}

func (i *instances) List() []launcher.Info   { i.mu.Lock(); defer i.mu.Unlock(); return i.list }
func (i *instances) Refresh(context.Context) {}
func (i *instances) StopUser(_ context.Context, u ident.UCloudUser, reason string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stopped = append(i.stopped, fmt.Sprintf("stop %s: %s", u, reason))
	if i.stuck {
		return context.DeadlineExceeded
	}
	return nil
}

func (i *instances) Restart(_ context.Context, u ident.UCloudUser) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stopped = append(i.stopped, fmt.Sprintf("restart %s", u))
	return nil
}

// done gives what was asked of the instances so far.
func (i *instances) done() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.stopped)
}

func (i *instances) set(list ...launcher.Info) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = list
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

func (b *buffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

type world struct {
	socket    string
	store     *store.Store
	users     *usermap.Service
	method    *ticket.Method
	keys      *signingkeys.Service
	instances *instances
	audit     *buffer
	client    *ipc.Client // of the account that runs the tests
}

func newWorld(t *testing.T, change ...func(*Options)) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	// Other accounts must reach the socket, so it does not lie in a private directory.
	dir, err := os.MkdirTemp("", "operator-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &world{socket: filepath.Join(dir, "s"), instances: &instances{}, audit: &buffer{}}
	if w.store, err = store.Open(t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(testkit.PrivateDir(t), "im.db"), Log: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	if w.keys, err = signingkeys.New(signingkeys.Options{Store: w.store, Tokens: onetime.New(w.store, onetime.Options{}), Log: log}); err != nil {
		t.Fatal(err)
	}
	if w.users, err = usermap.New(t.Context(), usermap.Options{
		Store: w.store, Core: core{}, Policy: policyFake{}, Log: log,
		ActivateKey: func(tx *store.Tx, user ident.UCloudUser, key string, a usermap.Account, proof string) error {
			return w.keys.Activate(tx, user, key, a.UID, proof)
		},
	}); err != nil {
		t.Fatal(err)
	}
	if w.method, err = ticket.NewMethod(ticket.Options{
		Store: w.store, Users: w.users, Log: log, PageURL: "https://im.example.org/page", SelfService: true,
	}); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Users: w.users, Tickets: w.method, Keys: w.keys, Store: w.store, Instances: w.instances, Provider: "example",
		Status: func(context.Context) ipcapi.StatusReport {
			return ipcapi.StatusReport{Parts: []ipcapi.StatusPart{{Name: "core", Health: ipcapi.HealthWarning, Summary: "late"}}}
		},
		Gateway: func(keys bool) (ipcapi.GatewayState, error) {
			key := ""
			if keys {
				key = "secret-key"
			}
			return ipcapi.GatewayState{Routes: []ipcapi.RouteInfo{{User: alice, Port: 42000, Key: key}}}, nil
		},
		Running:       func() (ipcapi.RunningConfig, error) { return ipcapi.RunningConfig{YAML: "version: 1\n"}, nil },
		Reload:        func(context.Context, bool) (ipcapi.ReloadReport, error) { return ipcapi.ReloadReport{}, nil },
		SlurmAccounts: &accountBook{},
		Scripts:       func() []*scripts.Hook { return nil },
		Groups:        projectGroups{}, GroupRules: func(context.Context) GroupRules { return GroupRules{MinGID: 1000} },
		Log: log, Audit: slog.New(slog.NewTextHandler(w.audit, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := ipc.NewServer(ipc.ServerOptions{Log: log, Authorize: NewAuthorizer(AuthorizerOptions{
		User: w.users.User, Directory: directory{}, ServiceUID: uidService, OperatorGroup: "ops", ViewerGroup: "viewers", Log: log,
	})})
	s.Register(srv)
	l, err := ipc.Listen(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	box := outbox.New(w.store, outbox.Options{})
	w.users.Register(box)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ctx, l) })
	wg.Go(func() { _ = box.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	if w.client, err = ipc.Dial(t.Context(), w.socket, ipc.DialOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.client.Close() })
	return w
}

// begin presses "Connect" at UCloud.
func (w *world) begin(t *testing.T, u ident.UCloudUser) string {
	t.Helper()
	to, err := w.users.Begin(t.Context(), w.method, u)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Query().Get("ticket")
}

// invoke makes a call as the account that runs the tests.
func invoke[Req, Resp any](t *testing.T, w *world, c ipc.Call[Req, Resp], req Req) (Resp, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	return ipc.Invoke(ctx, w.client, c, req)
}

func must[Req, Resp any](t *testing.T, w *world, c ipc.Call[Req, Resp], req Req) Resp {
	t.Helper()
	resp, err := invoke(t, w, c, req)
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	return resp
}

// collect reads a whole list.
func collect[Req, Page, Item any](ctx context.Context, c *ipc.Client, s ipc.Stream[Req, Page], req Req, items func(Page) []Item) ([]Item, error) {
	r, err := ipc.Open(ctx, c, s, req)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out []Item
	for {
		page, _, err := r.Next(ctx)
		if err != nil {
			if strings.Contains(err.Error(), "EOF") {
				err = nil
			}
			return out, err
		}
		out = append(out, items(page)...)
	}
}

// request is one call that a child process makes; Ticket is used by those that need one.
type request struct {
	Call   string
	Ticket string
	User   ident.UCloudUser
}

// answer is what the child saw: 200, or the status of the failure's kind.
type answer struct {
	Call   string
	Status int
	Body   string
}

// call makes one call by name.
type caller func(ctx context.Context, c *ipc.Client, r request) (any, error)

func plain[Req, Resp any](c ipc.Call[Req, Resp], req func(request) Req) caller {
	return func(ctx context.Context, cl *ipc.Client, r request) (any, error) {
		return ipc.Invoke(ctx, cl, c, req(r))
	}
}

func stream[Req, Page any](s ipc.Stream[Req, Page]) caller {
	return func(ctx context.Context, cl *ipc.Client, r request) (any, error) {
		var req Req
		return collect(ctx, cl, s, req, func(p Page) []Page { return []Page{p} })
	}
}

func empty(request) ipcapi.Empty { return ipcapi.Empty{} }

// calls are all calls of the two files that this package answers, with arguments that would work for the right caller.
func calls() map[string]caller {
	target := func(r request) ipcapi.UserMutation {
		return ipcapi.UserMutation{Targets: []ipcapi.UserTarget{{User: r.User, UID: uidKay}}, DryRun: true}
	}
	return map[string]caller{
		ipcapi.TicketDescribe.Name: plain(ipcapi.TicketDescribe, func(r request) ipcapi.TicketRef { return ipcapi.TicketRef{Ticket: r.Ticket} }),
		ipcapi.TicketComplete.Name: plain(ipcapi.TicketComplete, func(r request) ipcapi.TicketCompletion {
			return ipcapi.TicketCompletion{Ticket: r.Ticket, User: r.User, WaitMs: 10_000}
		}),
		ipcapi.TicketApprove.Name: plain(ipcapi.TicketApprove, func(r request) ipcapi.TicketApproval {
			return ipcapi.TicketApproval{Ticket: r.Ticket, User: r.User, Local: "lee", DryRun: true}
		}),
		ipcapi.TicketReject.Name: plain(ipcapi.TicketReject, func(r request) ipcapi.TicketRejection {
			return ipcapi.TicketRejection{Tickets: []string{r.Ticket}, DryRun: true}
		}),
		ipcapi.TicketList.Name: stream(ipcapi.TicketList),
		ipcapi.UserList.Name:   stream(ipcapi.UserList),
		ipcapi.UserShow.Name:   plain(ipcapi.UserShow, func(r request) ipcapi.UserRef { return ipcapi.UserRef{User: r.User} }),
		ipcapi.UserAdd.Name: plain(ipcapi.UserAdd, func(r request) ipcapi.UserAddition {
			return ipcapi.UserAddition{User: mary, Local: "lee", DryRun: true}
		}),
		ipcapi.UserExpire.Name: plain(ipcapi.UserExpire, target),
		ipcapi.UserRemove.Name: plain(ipcapi.UserRemove, target),
		ipcapi.UserChange.Name: plain(ipcapi.UserChange, func(r request) ipcapi.UserAccountChange {
			return ipcapi.UserAccountChange{User: r.User, UID: uidKay, Local: "lee", DryRun: true}
		}),
		ipcapi.MeKeys.Name: plain(ipcapi.MeKeys, empty),
		ipcapi.MeRevokeKey.Name: plain(ipcapi.MeRevokeKey, func(r request) ipcapi.SigningKeyRevocation {
			return ipcapi.SigningKeyRevocation{IDs: []string{r.Ticket}}
		}),
		ipcapi.KeyList.Name: stream(ipcapi.KeyList),
		ipcapi.KeyRevoke.Name: plain(ipcapi.KeyRevoke, func(r request) ipcapi.SigningKeyRevocation {
			return ipcapi.SigningKeyRevocation{IDs: []string{r.Ticket}, DryRun: true}
		}),
		ipcapi.MeShow.Name:         plain(ipcapi.MeShow, empty),
		ipcapi.MeDisconnect.Name:   plain(ipcapi.MeDisconnect, func(request) ipcapi.MeDisconnection { return ipcapi.MeDisconnection{} }),
		ipcapi.ServiceVersion.Name: plain(ipcapi.ServiceVersion, empty),
		ipcapi.ServiceStatus.Name:  plain(ipcapi.ServiceStatus, empty),
		ipcapi.ConfigReload.Name:   plain(ipcapi.ConfigReload, func(request) ipcapi.Reload { return ipcapi.Reload{DryRun: true} }),
		ipcapi.ConfigRunning.Name:  plain(ipcapi.ConfigRunning, empty),
		ipcapi.InstanceList.Name:   stream(ipcapi.InstanceList),
		ipcapi.InstanceStop.Name: plain(ipcapi.InstanceStop, func(r request) ipcapi.InstanceMutation {
			return ipcapi.InstanceMutation{Users: []ident.UCloudUser{r.User}}
		}),
		ipcapi.InstanceRestart.Name: plain(ipcapi.InstanceRestart, func(r request) ipcapi.InstanceMutation {
			return ipcapi.InstanceMutation{Users: []ident.UCloudUser{r.User}}
		}),
		ipcapi.SlurmAccountList.Name: stream(ipcapi.SlurmAccountList),
		ipcapi.SlurmAccountReevaluate.Name: plain(ipcapi.SlurmAccountReevaluate, func(request) ipcapi.SlurmAccountMutation {
			return ipcapi.SlurmAccountMutation{DryRun: true}
		}),
		ipcapi.SlurmAccountAdopt.Name: plain(ipcapi.SlurmAccountAdopt, func(request) ipcapi.SlurmAccountMutation {
			return ipcapi.SlurmAccountMutation{DryRun: true}
		}),
		ipcapi.SlurmAccountAdd.Name: plain(ipcapi.SlurmAccountAdd, func(request) ipcapi.SlurmAccountAddition {
			return ipcapi.SlurmAccountAddition{Owner: ipcapi.SlurmAccountOwner{User: "Nobody#1"}, DryRun: true}
		}),
		ipcapi.SlurmAccountRemove.Name: plain(ipcapi.SlurmAccountRemove, func(request) ipcapi.SlurmAccountMutation {
			return ipcapi.SlurmAccountMutation{DryRun: true}
		}),
		ipcapi.SlurmAccountSync.Name: plain(ipcapi.SlurmAccountSync, func(request) ipcapi.SlurmAccountMutation {
			return ipcapi.SlurmAccountMutation{DryRun: true}
		}),
		ipcapi.SlurmAccountEvaluate.Name: plain(ipcapi.SlurmAccountEvaluate, func(request) ipcapi.SlurmAccountQuestion {
			return ipcapi.SlurmAccountQuestion{Owner: ipcapi.SlurmAccountOwner{User: "Nobody#1"}}
		}),
		ipcapi.ScriptHooks.Name: plain(ipcapi.ScriptHooks, empty),
		ipcapi.ScriptTry.Name: plain(ipcapi.ScriptTry, func(request) ipcapi.ScriptTrialRequest {
			return ipcapi.ScriptTrialRequest{Key: "none", DryRun: true}
		}),
		ipcapi.AllocationList.Name: stream(ipcapi.AllocationList),
		ipcapi.AllocationApply.Name: plain(ipcapi.AllocationApply, func(request) ipcapi.AllocationMutation {
			return ipcapi.AllocationMutation{DryRun: true}
		}),
		ipcapi.ProjectList.Name: stream(ipcapi.ProjectList),
		ipcapi.ProjectShow.Name: plain(ipcapi.ProjectShow, func(request) ipcapi.ProjectRef { return ipcapi.ProjectRef{ID: reef} }),
		ipcapi.ProjectMap.Name: plain(ipcapi.ProjectMap, func(request) ipcapi.ProjectMapping {
			return ipcapi.ProjectMapping{ID: reef, Group: "reef", DryRun: true}
		}),
		ipcapi.ProjectRemove.Name: plain(ipcapi.ProjectRemove, func(request) ipcapi.ProjectMutation { return ipcapi.ProjectMutation{} }),
		ipcapi.DriveList.Name:     stream(ipcapi.DriveList),
		ipcapi.GatewayDump.Name:   plain(ipcapi.GatewayDump, func(request) ipcapi.GatewayDumpRequest { return ipcapi.GatewayDumpRequest{} }),
		"gateway.dump tokens": plain(ipcapi.GatewayDump, func(request) ipcapi.GatewayDumpRequest {
			return ipcapi.GatewayDumpRequest{Tokens: true}
		}),
	}
}

// playChild makes the calls that the environment names and prints the answers.
func playChild(text string) int {
	var reqs []request
	if err := json.Unmarshal([]byte(text), &reqs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	c, err := ipc.Dial(ctx, os.Getenv("OPERATOR_TEST_SOCKET"), ipc.DialOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	var answers []answer
	for _, r := range reqs {
		resp, err := calls()[r.Call](ctx, c, r)
		a := answer{Call: r.Call, Status: 200}
		if err != nil {
			a.Status, a.Body = failure.KindOf(err).Status(), failure.Why(err)
		} else {
			raw, _ := json.Marshal(resp)
			a.Body = string(raw)
		}
		answers = append(answers, a)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		return 1
	}
	return 0
}

// as makes calls as another uid, straight over the socket.
func (w *world) as(t *testing.T, uid ident.UID, reqs ...request) map[string]answer {
	t.Helper()
	testkit.Require(t, testkit.Root)
	text, err := json.Marshal(reqs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe") // the binary's path may be closed to the other uid
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Env = []string{"OPERATOR_TEST_CALLS=" + string(text), "OPERATOR_TEST_SOCKET=" + w.socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: 65534}}
	out, err := cmd.Output()
	if err != nil {
		var stderr string
		if e, ok := err.(*exec.ExitError); ok {
			stderr = string(e.Stderr)
		}
		t.Fatalf("child of uid %d: %v %s", uid, err, stderr)
	}
	var answers []answer
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatalf("child of uid %d said %s", uid, out)
	}
	byCall := make(map[string]answer)
	for _, a := range answers {
		byCall[a.Call] = a
	}
	return byCall
}

func itoa(u ident.UID) string { return strconv.FormatUint(uint64(u), 10) }
