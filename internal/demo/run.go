package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	builtin "ucloud-im/internal/applications"
	"ucloud-im/internal/devcore"
	"ucloud-im/internal/devcore/console"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
)

// projectID is the id of the demo's project. It is fixed so that its directory is found again.
const projectID ident.ProjectID = "6f2d3c1a-5b0e-4a77-9c1d-0d5e3f8a1b42"

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
)

// Run runs the demo until ctx ends, then stops everything it started.
func Run(ctx context.Context, o Options) error {
	l, err := plan()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }
	if err := portsFree(o.CorePort, o.GatewayPort, o.GatewayPort+1); err != nil {
		return err
	}
	say("UCloud integration module demo, %s", o.Version)
	if l.root {
		if err := l.createAccounts(say); err != nil {
			return err
		}
	} else {
		say("not root: everything runs as %s, instances are started directly instead of with sudo,", l.service)
		say("and there is one user. Run it as root to see two users with real accounts.")
	}
	l.findSlurm(say)
	// The simulated Core forgets everything when it ends, so the provider starts anew as well.
	if err := errors.Join(os.RemoveAll(l.state), os.RemoveAll(l.run)); err != nil {
		return err
	}
	if err := errors.Join(l.directories(), l.install(o.Programs)); err != nil {
		return err
	}
	key := randomKey()
	core, err := devcore.New(devcore.Options{
		Provider: Provider, ProviderURL: fmt.Sprintf("http://127.0.0.1:%d", o.GatewayPort), ConsoleKey: key,
		PollInterval: 2 * time.Second, FirstID: int(time.Now().Unix() - 1_700_000_000), Log: slog.New(slog.NewTextHandler(o.Out, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Signing: o.signing(), TakeOver: o.TakenOver,
	})
	if err != nil {
		return err
	}
	if err := l.configure(o, core); err != nil {
		return err
	}
	return l.serve(ctx, o, core, key, say)
}

// signing tells whether users sign what they ask for.
func (o Options) signing() bool {
	return o.SignedIntents == intent.ModeLog || o.SignedIntents == intent.ModeRequire
}

func randomKey() string {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b)
}

func portsFree(ports ...int) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return fmt.Errorf("port %d of the demo is in use; choose others with --core-port and --gateway-port: %w", port, err)
		}
		_ = l.Close()
	}
	return nil
}

// serve runs the simulated Core in this process and gateway and server as children.
func (l *layout) serve(ctx context.Context, o Options, core *devcore.Core, key string, say func(string, ...any)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", o.CorePort))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: core.Handler(console.Files()), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	wg.Go(func() { core.Run(ctx) })
	defer func() {
		_ = server.Close()
		cancel()
		wg.Wait()
	}()

	srv, err := l.start("server", o.Out)
	if err != nil {
		return err
	}
	defer stop(srv)
	if err := l.waitSocket(ctx, srv); err != nil {
		return err
	}
	gw, err := l.start("gateway", o.Out)
	if err != nil {
		return err
	}
	defer stop(gw)
	defer l.stopInstances()

	if err := l.prepare(ctx, core, srv, gw); err != nil {
		return err
	}
	if l.root {
		if err := l.guide(ctx, o, core, say); err != nil {
			say("%v", err)
		}
	} else {
		wg.Go(func() {
			if err := l.guide(ctx, o, core, say); err != nil {
				say("%v", err)
			}
		})
	}
	l.explain(o, key, say)
	select {
	case <-ctx.Done():
		say("stopping")
		return nil
	case <-srv.done:
		return fmt.Errorf("the server ended: %w", srv.err)
	case <-gw.done:
		return fmt.Errorf("the gateway ended: %w", gw.err)
	}
}

// waitSocket waits until the server answers, so that the gateway finds it at once.
func (l *layout) waitSocket(ctx context.Context, server *process) error {
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	for {
		if _, err := os.Stat(l.socket()); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-server.done:
			return fmt.Errorf("the server ended: %w", server.err)
		case <-deadline.C:
			return fmt.Errorf("the server was not ready within %s", readyTimeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// prepare gives the users allocations once the provider has declared its products.
func (l *layout) prepare(ctx context.Context, core *devcore.Core, parts ...*process) error {
	names := make([]ident.UCloudUser, 0, len(l.people)+1)
	for _, p := range append(slices.Clone(l.people), l.tourist) {
		if slices.Contains(names, ident.UCloudUser(p.ucloud)) {
			continue
		}
		core.AddUser(ident.UCloudUser(p.ucloud))
		names = append(names, ident.UCloudUser(p.ucloud))
	}
	core.AddProject(projectID, "Analytical engines", names...)
	offer := offered()
	shipped, err := builtin.Builtin()
	if err != nil {
		return err
	}
	for _, d := range shipped {
		offer = append(offer, d.Application)
	}
	for _, app := range offer {
		if err := core.AddApplication(app); err != nil {
			return err
		}
	}
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	for !core.Declared(category) || len(core.Machines()) == 0 || core.EventSessions() == 0 || core.Polls() == 0 {
		select {
		case <-ctx.Done():
			return nil
		case <-parts[0].done:
			return fmt.Errorf("the server ended: %w", parts[0].err)
		case <-parts[1].done:
			return fmt.Errorf("the gateway ended: %w", parts[1].err)
		case <-deadline.C:
			return fmt.Errorf("the provider was not ready within %s; see the messages above", readyTimeout)
		case <-time.After(50 * time.Millisecond):
		}
	}
	for _, name := range names {
		if err := core.Allocate(ident.Owner{User: name}, category, 1000); err != nil {
			return err
		}
	}
	if err := l.allocateMachines(core, names); err != nil {
		return err
	}
	return core.Allocate(ident.Owner{Project: projectID}, category, 1000)
}

func (l *layout) explain(o Options, key string, say func(string, ...any)) {
	ucloud := filepath.Join(l.programs, "ucloud")
	say("")
	say("running: simulated Core, gateway on 127.0.0.1:%d, server, all ready", o.GatewayPort)
	say("")
	say("  1. Open   http://127.0.0.1:%d/#key=%s", o.CorePort, key)
	say("  2. Press Connect and follow the link; the page shows a ticket.")
	say("  3. Approve it, as operator (root or a member of the operators group):")
	for _, p := range l.people {
		say("       %s --socket %s connect TICKET %s     # %s", ucloud, l.socket(), p.local, p.ucloud)
	}
	if l.root {
		say("     or as the user: su - %s -c '%s --socket %s connect TICKET'", l.people[0].local, ucloud, l.socket())
	}
	if o.signing() {
		say("     The console has made a key; its fingerprint has to be the one on the page with the ticket. Add it to the command")
		say("     of the operator: --key SHA256:... The user is asked instead. Signed intents: %s.", o.SignedIntents)
	}
	say("  4. In the console, open the drive Home and upload, download, copy, move, search and trash files;")
	say("     look at the result with ls -l in the home directory. Submit a job, look at its log, open a terminal in it.")
	if l.partition != "" {
		say("     Jobs run in the partition %s of the Slurm on this machine.", l.partition)
	} else {
		say("     There is no Slurm that the demo can use: jobs are processes on this machine, one after the other or all at once.")
		say("     That is for trying out only. `make demo SLURM=1`, as root, starts a Slurm for it.")
	}
	say("")
	if o.TakenOver {
		say("This Core is in wrong hands. What users have really sent, and a request that none of them has:")
		say("  %s captured --console 'http://127.0.0.1:%d/#key=%s'", filepath.Join(o.Programs, "ucloud-dev"), o.CorePort, key)
		say("  %s forge --console ... --replay N --body '...' [--no-intent]", filepath.Join(o.Programs, "ucloud-dev"))
		say("")
	}
	say("See also: %s --socket %s status | users list | instances list", ucloud, l.socket())
	say("Configuration: %s   Logs: %s", l.config, l.logs)
	if l.root {
		say("Ctrl-C stops everything; `make demo-clean` removes the accounts.")
	} else {
		say("Ctrl-C stops everything; `make demo-clean` removes %s.", l.base)
	}
	say("")
}

// process is a child whose output is shown line by line.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err is set before
	err  error
}

func (l *layout) start(role string, show io.Writer) (*process, error) {
	file, err := os.OpenFile(filepath.Join(l.logs, role+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	out := &lineWriter{file: file, show: show}
	cmd := exec.Command(filepath.Join(l.programs, "ucloud"), role, "--config-dir", l.config)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + l.state}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // a successor (SIGUSR2) may hold the pipe open
	// A group of its own: Ctrl-C reaches us alone, and we stop the parts in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if l.root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(l.uid), Gid: uint32(l.gid)}
	}
	if err := cmd.Start(); err != nil {
		file.Close()
		return nil, fmt.Errorf("start the %s: %w", role, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer file.Close()
		p.err = cmd.Wait()
		if p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.done)
	}()
	return p, nil
}

func stop(p *process) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// stopInstances asks the server to end all instances: they would otherwise wait for its return.
func (l *layout) stopInstances() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(l.programs, "ucloud"), "--socket", l.socket(), "instances", "stop", "--all", "--yes", "--quiet")
	_ = cmd.Run() // the server may be gone already
}

// lineWriter writes everything to a file and passes on what a person should see: warnings, errors, and lines that are
// no log lines.
type lineWriter struct {
	mu   sync.Mutex // standard output and standard error share a writer
	file io.Writer
	show io.Writer
	rest string
}

// Write implements [io.Writer].
func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(b); err != nil {
		return 0, err
	}
	text := l.rest + string(b)
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok {
			l.rest = text
			return len(b), nil
		}
		if !routine(line) {
			fmt.Fprintln(l.show, line)
		}
		text = rest
	}
}

// routine tells whether a line is a log line of level info or debug, in either format.
func routine(line string) bool {
	for _, level := range []string{"level=INFO", "level=DEBUG", `"level":"INFO"`, `"level":"DEBUG"`} {
		if strings.Contains(line, level) {
			return true
		}
	}
	return false
}
