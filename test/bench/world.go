//go:build bench

package main

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/accounts"
)

const (
	provider = "bench"
	category = "bench-storage"

	readyTimeout = 60 * time.Second
	stopTimeout  = 15 * time.Second
)

// person is a UCloud user with a local account, connected, with a home drive.
type person struct {
	name    ident.UCloudUser
	account accounts.Account
	drive   providerapi.Drive
}

// world is one provider as a site runs it, with the simulated Core in this process. The settings are the defaults but
// for paths, ports and names.
type world struct {
	site   *accounts.Site // nil as an ordinary user: then everything runs as that user and there is no sudo
	base   string
	self   string // this program, where the service account can execute it
	people []*person

	core    *devcore.Core
	gateway *part
	server  *part
	gate    string // address of the gateway

	closers []func() error // run in reverse
}

// newWorld makes accounts and directories and starts all parts. If it fails, the world is to be closed all the same.
func newWorld(ctx context.Context, b *bench) (w *world, err error) {
	w = &world{}
	root := os.Geteuid() == 0
	if root {
		if err := removeLeftovers(b.progress); err != nil {
			return w, err
		}
	}
	b.progress("making accounts, starting server and gateway")
	if root {
		if err := w.makeSite(b.amount(500, 100)); err != nil {
			return w, err
		}
	} else if err := w.makeOwn(); err != nil {
		return w, err
	}
	user := filepath.Join(w.base, "ucloud-user")
	if w.site != nil {
		if user, err = w.site.Install("ucloud-user", filepath.Join(b.bin, "ucloud-user"), accounts.Direct); err != nil {
			return w, err
		}
	} else if err := install(filepath.Join(b.bin, "ucloud-user"), user); err != nil {
		return w, err
	}
	if err := w.start(ctx, b.bin, user); err != nil {
		return w, w.explain(err)
	}
	if err := w.connect(ctx, b); err != nil {
		return w, w.explain(err)
	}
	return w, nil
}

// makeSite makes the service account, the sudo rule's group and n users.
func (w *world) makeSite(n int) error {
	site, err := accounts.Setup(siteTag)
	if err != nil {
		return err
	}
	w.site = site
	w.defers(site.Close)
	w.defers(func() error { return removeAccounts(strings.TrimSuffix(site.Group, "g") + "u") })
	if err := renumber(site); err != nil {
		return err
	}
	users, err := addUsers(site, n)
	if err != nil {
		return err
	}
	for i, u := range users {
		w.people = append(w.people, &person{name: ident.UCloudUser(fmt.Sprintf("Bench#%04d", i+1)), account: u})
	}
	w.base = filepath.Join(site.Dir, "w")
	return os.Mkdir(w.base, 0o755)
}

// makeOwn is for an ordinary user, who is the only account of this provider.
func (w *world) makeOwn() (err error) {
	me, err := user.Current()
	if err != nil {
		return err
	}
	uid, err := ident.ParseUID(me.Uid)
	if err != nil {
		return err
	}
	// The directory has to be short: a socket's path may not exceed 107 bytes.
	if w.base, err = os.MkdirTemp("/tmp", "imt-bench-"); err != nil {
		return err
	}
	w.defers(func() error { return os.RemoveAll(w.base) })
	home := filepath.Join(w.base, "home")
	w.people = []*person{{name: "Bench#0001", account: accounts.Account{Name: me.Username, UID: uid, Home: home}}}
	return os.Mkdir(home, 0o700)
}

// defers adds a step of close.
func (w *world) defers(f func() error) { w.closers = append(w.closers, f) }

// close undoes everything, in reverse, whatever fails.
func (w *world) close() error {
	var errs []error
	for _, f := range slices.Backward(w.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// explain adds the end of the logs to an error, and whether a part has ended.
func (w *world) explain(err error) error {
	for _, p := range []*part{w.server, w.gateway} {
		if p == nil {
			continue
		}
		select {
		case <-p.done:
			err = fmt.Errorf("%w\n%s has ended: %s", err, p.cmd.Args[1], p.cmd.ProcessState)
		default:
		}
	}
	for _, name := range []string{"server.out", "gateway.out"} {
		data, _ := os.ReadFile(filepath.Join(w.base, name))
		err = fmt.Errorf("%w\n--- end of %s:\n%s", err, name, data[max(0, len(data)-2000):])
	}
	return err
}

func install(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		return err
	}
	return os.Chmod(to, 0o755)
}

// freePort finds a port outside of the range of instances, which the configuration demands.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port")
}

func (w *world) start(ctx context.Context, bin, userProgram string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	metrics, err := freePort()
	if err != nil {
		return err
	}
	w.gate = fmt.Sprintf("127.0.0.1:%d", port)
	corePort, err := w.startCore(ctx)
	if err != nil {
		return err
	}
	if err := w.configure(corePort, port, metrics, userProgram); err != nil {
		return err
	}
	program := filepath.Join(w.base, "ucloud")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w.self = filepath.Join(w.base, "bench")
	if err := errors.Join(install(filepath.Join(bin, "ucloud"), program), install(self, w.self)); err != nil {
		return err
	}
	// Instances that outlive the server would wait for its return. Those of accounts end with their accounts.
	var left []int
	w.defers(func() error {
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone
		}
		return nil
	})
	if w.server, err = w.startPart("server", program); err != nil {
		return err
	}
	w.defers(func() error {
		left = childrenOf(w.server.pid())
		return nil
	})
	if err := eventually(ctx, "the server", w.server, func() bool {
		admin, err := w.admin(ctx)
		return err == nil && admin.Close() == nil
	}); err != nil {
		return err
	}
	if w.gateway, err = w.startPart("gateway", program); err != nil {
		return err
	}
	return eventually(ctx, "the provider", w.server, func() bool {
		return w.core.Declared(category) && w.core.EventSessions() > 0 && w.core.Polls() > 0
	})
}

func (w *world) serviceUID() ident.UID {
	if w.site != nil {
		return w.site.Service.UID
	}
	return w.people[0].account.UID
}

// admin connects to the server, which ends connections that are not used for a while.
func (w *world) admin(ctx context.Context) (*ipc.Client, error) {
	return ipc.Dial(ctx, w.socket(), ipc.DialOptions{ServerUID: func(uid ident.UID) bool { return uid == w.serviceUID() }})
}

func (w *world) socket() string { return filepath.Join(w.base, "run", "ucloud.sock") }

// startCore runs the simulated Core and gives its port.
func (w *world) startCore(ctx context.Context) (int, error) {
	core, err := devcore.New(devcore.Options{
		Provider: provider, ProviderURL: "http://" + w.gate, ConsoleKey: cryptorand.Text(), Log: slog.New(slog.DiscardHandler),
		RetryPause: 100 * time.Millisecond,
	})
	if err != nil {
		return 0, err
	}
	w.core = core
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	srv := &http.Server{Handler: core.Handler(nil), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	// Core lives until close, not until the interrupt: the parts end in order.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() { core.Run(ctx) })
	w.defers(func() error {
		cancel()
		err := srv.Close()
		wg.Wait()
		return err
	})
	return l.Addr().(*net.TCPAddr).Port, nil
}

const configText = `version: 1
provider:
  id: %[1]s
  hosts:
    ucloud: { address: 127.0.0.1, port: %[2]d, scheme: http }
    self: { address: 127.0.0.1, port: %[3]d, scheme: http }
development: { enabled: true }
gateway:
  listen: ["127.0.0.1:%[3]d"]
internal: { serverListen: "unix:%[5]s/run/private/server.sock" }
metrics: { listen: "127.0.0.1:%[4]d" }
stateDirectory: %[5]s/state
ipc: { directory: %[5]s/run }
logs: { destination: stdout, directory: %[5]s/log }
database: { type: sqlite, path: %[5]s/state/ucloud.db }
scripts: { spool: %[5]s/spool }
userInstances:
  group: %[6]s
  executable: %[7]s
  deniedUsers: [root, %[8]s]
  launcher: %[9]s
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: help@example.invalid }
  fileSystems:
    %[10]s:
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%[11]s", title: Home, freeQuota: 0 }
`

func (w *world) configure(corePort, port, metrics int, userProgram string) error {
	launcher, denied, home := "sudo", "", w.people[0].account.Home
	var group string
	if w.site != nil {
		group, denied = w.site.Group, w.site.Service.Name
		home = filepath.Join(w.site.Dir, "home") + "/#{localUsername}"
	} else {
		launcher, denied = "self", "nobody"
		g, err := user.LookupGroupId(fmt.Sprint(os.Getgid()))
		if err != nil {
			return err
		}
		group = g.Name
	}
	own := func(path string, mode os.FileMode) error {
		if err := os.Chmod(path, mode); err != nil || w.site == nil {
			return err
		}
		return os.Chown(path, int(w.site.Service.UID), int(w.site.Service.GID))
	}
	for dir, mode := range map[string]os.FileMode{"config": 0o750, "state": 0o700, "log": 0o750, "run": 0o755, "run/private": 0o700, "spool": 0o700, "load": 0o700} {
		dir = filepath.Join(w.base, dir)
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
		if err := own(dir, mode); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"config.yml": fmt.Sprintf(configText, provider, corePort, port, metrics, w.base, group, userProgram, denied, launcher, category, home),
		"server.yml": "version: 1\nrefreshToken: " + w.core.RefreshToken() + "\n", "ucloud_crt.pem": w.core.PublicKey(),
	} {
		path := filepath.Join(w.base, "config", name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
		if err := own(path, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// part is a running role.
type part struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *part) pid() int { return p.cmd.Process.Pid }

// startPart starts server or gateway as the service account; close stops it.
func (w *world) startPart(role, program string) (*part, error) {
	out, err := os.OpenFile(filepath.Join(w.base, role+".out"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own
	cmd := exec.Command(program, role, "--config-dir", filepath.Join(w.base, "config"))
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = w.asService()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	p := &part{cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }() // however it ends
	w.defers(func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // may be gone
		select {
		case <-p.done:
			return nil
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			<-p.done
			return fmt.Errorf("the %s did not end by itself", role)
		}
	})
	return p, nil
}

// asService gives the attributes of processes of the service account. Each has a process group of its own, so that a
// Ctrl-C at the terminal reaches this program alone, which stops them in order.
func (w *world) asService() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if w.site != nil {
		attr.Credential = w.site.Service.Credential()
	}
	return attr
}

// childrenOf gives the children of all threads of a process.
func childrenOf(pid int) (children []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for _, text := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(text); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

func (w *world) uids(people []*person) map[ident.UID]bool {
	out := make(map[ident.UID]bool, len(people))
	for _, p := range people {
		out[p.account.UID] = true
	}
	return out
}

// connect connects everybody by the way that users take: Core asks for a connection, and the ticket on the provider's
// page is approved. It returns when Core has all home drives.
func (w *world) connect(ctx context.Context, b *bench) error {
	for _, p := range w.people {
		w.core.AddUser(p.name)
		if err := w.core.Allocate(ident.Owner{User: p.name}, category, 1000); err != nil {
			return err
		}
		for i := range 50 {
			name := filepath.Join(p.account.Home, fmt.Sprintf("result-%02d.dat", i))
			if err := os.WriteFile(name, []byte("data\n"), 0o644); err != nil {
				return err
			}
			if w.site == nil {
				continue
			}
			if err := os.Chown(name, int(p.account.UID), int(p.account.GID)); err != nil {
				return err
			}
		}
	}
	admin, err := w.admin(ctx)
	if err != nil {
		return err
	}
	defer admin.Close()
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, p := range w.people {
		g.Go(func() error { return w.connectOne(gctx, admin, p) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	err = eventually(ctx, "the home drives", w.server, func() bool {
		owned := make(map[ident.UCloudUser]providerapi.Drive)
		for _, d := range w.core.Drives() {
			owned[d.Owner.CreatedBy] = d
		}
		for _, p := range w.people {
			var ok bool
			if p.drive, ok = owned[p.name]; !ok {
				return false
			}
			p.drive.Permissions = &providerapi.Permissions{Myself: []providerapi.Permission{providerapi.PermissionRead, providerapi.PermissionEdit}}
		}
		return true
	})
	if err == nil {
		b.progress("connected %d users in %.1f s", len(w.people), time.Since(start).Seconds())
	}
	return err
}

func (w *world) connectOne(ctx context.Context, admin *ipc.Client, p *person) error {
	var res providerapi.ConnectResponse
	if err := w.core.Call(ctx, "", http.MethodPost, "/ucloud/"+provider+"/integration/connect", providerapi.FindByUser{Username: p.name}, &res); err != nil {
		return fmt.Errorf("connect %s: %w", p.name, err)
	}
	page, err := url.Parse(res.RedirectTo)
	if err != nil {
		return err
	}
	ticket := page.Query().Get("ticket")
	var link ipcapi.LinkResult
	wait := (10 * time.Second).Milliseconds()
	if w.site != nil {
		link, err = ipc.Invoke(ctx, admin, ipcapi.TicketApprove, ipcapi.TicketApproval{Ticket: ticket, User: p.name, Local: p.account.Name, WaitMs: wait})
	} else {
		link, err = ipc.Invoke(ctx, admin, ipcapi.TicketComplete, ipcapi.TicketCompletion{Ticket: ticket, User: p.name, WaitMs: wait})
	}
	if err == nil && link.State != string(store.MappingActive) {
		err = fmt.Errorf("the connection is %s", link.State)
	}
	if err != nil {
		return fmt.Errorf("approve %s: %w", p.name, err)
	}
	return nil
}

// eventually waits for a condition, but not for one that cannot come because the process it depends on has ended.
func eventually(ctx context.Context, what string, p *part, cond func() bool) error {
	deadline := time.Now().Add(readyTimeout)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s", readyTimeout, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			return fmt.Errorf("a part ended while waiting for %s", what)
		case <-time.After(pause):
		}
	}
	return nil
}
