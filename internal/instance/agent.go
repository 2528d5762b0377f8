package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/instance/exeid"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/sockdiag"
)

// Options configure [Run].
type Options struct {
	// Handler makes the handler of the instance's requests. It is called once, as the user, in the user's environment,
	// before the instance says that it is ready. Every request it sees came from the service account; who is meant by
	// it is for the handler to verify (hop token).
	Handler func(a *Agent) (http.Handler, error)
	// Ending, if set, is called once when the instance begins to end, while the server can still be reached. Work that
	// belongs to no request is to be given back now: the end waits for it as long as it counts as busy ([Agent.Busy]).
	// It should return before ctx ends.
	Ending func(ctx context.Context)
	// Quiet, if set, is told that the server waits for the end of what is under way, in order to replace the instance: what
	// can be begun anew without a loss should end, such as a socket that its client opens again.
	Quiet func()
	// Stopping, if set, is called beside Ending when the instance does not end in order to be replaced, but at once: its
	// user may not have it any more, or an operator has ended it.
	Stopping func(ctx context.Context)
	// Configure, if set, is told when settings have changed; [Agent.Start] has the new ones.
	Configure func(a *Agent)
	// Keys, if set, is told that the signing keys of the user may have changed: the server says so, or it was away and may
	// have been unable to.
	Keys func(a *Agent)
	// Build identifies the code; "" means the executable file itself.
	Build string
}

const maxProcs = 4

// Agent is the running instance as its handlers see it.
type Agent struct {
	o       Options
	log     *slog.Logger
	level   *slog.LevelVar
	out     *logWriter
	socket  string
	server  ident.UID
	build   string
	started time.Time
	second  bool // the second process of a detached start

	start  atomic.Pointer[ipcapi.Start]
	client atomic.Pointer[ipc.Client]
	lost   atomic.Int64 // Unix ns since when the server is away; 0: it is there

	srv  *server
	idle *idler

	asking     atomic.Bool     // a question to end is under way
	leave      chan ending     // the instance shall end
	life       context.Context // of the connection to the server; set before anything is served
	background sync.WaitGroup  // calls to the server that nobody waits for
}

// ending says how the instance ends.
type ending struct {
	drain bool
	why   string
	err   error
}

// Run is the whole life of the process. ctx ends it in an orderly way, as a signal does. Call it before anything else
// has been done. nil means that the process did what it was started for.
func Run(ctx context.Context, o Options) error {
	if err := Harden(); err != nil {
		return err
	}
	// A broken standard error must not end the process. Notify, not Ignore: children would inherit the latter.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	// An instance serves one person. Each processor the runtime may use costs memory, also when idle.
	runtime.GOMAXPROCS(min(runtime.NumCPU(), maxProcs))
	level := new(slog.LevelVar)
	out := newLogWriter()
	a := &Agent{
		o: o, level: level, out: out, build: o.Build, started: time.Now(), leave: make(chan ending, 8),
		log: observability.NewLogger(out, observability.LogOptions{JSON: true, Level: level}).With("part", "instance"),
	}
	err := a.run(ctx)
	if err != nil {
		a.log.Error("instance ends", "error", err)
	}
	return err
}

func (a *Agent) run(ctx context.Context) error {
	var err error
	if a.build == "" {
		if a.build, err = exeid.Of(exeid.Self); err != nil {
			return err
		}
	}
	if a.server, err = serverUID(); err != nil {
		return fmt.Errorf("read SUDO_UID: %w", err)
	}
	a.second = os.Getenv(detachedEnv) != ""
	os.Clearenv()
	if a.socket, err = readSocketPath(os.Stdin, 10*time.Second); err != nil {
		return err
	}
	link, err := a.connect(ctx, false)
	if err != nil {
		return err
	}
	item, files, err := link.items.Next(ctx)
	if err != nil {
		link.client.Close() //nolint:errcheck // ends with the process
		return fmt.Errorf("hello: %w", err)
	}
	switch item.Kind {
	case ipcapi.ItemDetach:
		link.client.Close() //nolint:errcheck // ends with the process
		return detach(a.socket, a.server)
	case ipcapi.ItemKill:
		if len(files) != 1 {
			return errors.New("kill: no process was named")
		}
		return execute(files[0])
	case ipcapi.ItemStart:
		return a.serve(ctx, link, item, files)
	}
	return fmt.Errorf("the server answered hello with %q", item.Kind)
}

// link is one connection to the server with its stream.
type link struct {
	client *ipc.Client
	items  *ipc.Receiver[ipcapi.InstanceItem]
}

// connect opens the stream. With resume it hands the listener back.
func (a *Agent) connect(ctx context.Context, resume bool) (link, error) {
	client, err := ipc.Dial(ctx, a.socket, ipc.DialOptions{ServerUID: func(u ident.UID) bool { return u == a.server }})
	if err != nil {
		return link{}, fmt.Errorf("connect to server: %w", err)
	}
	hello := ipcapi.Hello{
		Protocol: ipcapi.Protocol, Build: a.build, StartedAt: a.started.UnixMilli(), Detached: a.second, Resume: resume,
		Groups: ownGroups(),
	}
	var files []*os.File
	if resume {
		start := a.start.Load()
		hello.Port, hello.Route = start.Port, start.Route
		files = append(files, a.srv.file)
	}
	items, err := ipc.Open(ctx, client, ipcapi.InstanceHello, hello, files...)
	if err != nil {
		client.Close() //nolint:errcheck // nothing to lose
		return link{}, fmt.Errorf("hello: %w", err)
	}
	return link{client, items}, nil
}

func ownGroups() []ident.GID {
	gids := []ident.GID{ident.GID(os.Getgid())}
	if more, err := os.Getgroups(); err == nil {
		for _, g := range more {
			gids = append(gids, ident.GID(g))
		}
	}
	slices.Sort(gids)
	return slices.Compact(gids)
}

// serve is the life after the start-up document has arrived.
func (a *Agent) serve(ctx context.Context, l link, item ipcapi.InstanceItem, files []*os.File) error {
	if item.Start == nil || len(files) == 0 {
		return errors.New("the start-up document is incomplete")
	}
	start := item.Start
	if start.UID != ident.UID(os.Getuid()) {
		return fmt.Errorf("the start-up document is for uid %s", start.UID)
	}
	// The connection lives until the end, also while requests are finished after ctx has ended.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	a.life = life
	a.start.Store(start)
	a.client.Store(l.client)
	a.setLevel(start.LogLevel)
	if len(files) > 1 {
		if err := a.out.redirect(files[1]); err != nil {
			return fmt.Errorf("take standard error: %w", err)
		}
		files[1].Close() //nolint:errcheck // a duplicate is in place
	}
	refusal := make(chan string, 1)
	if start.CheckAccount {
		go func() { refusal <- checkAccount(ctx, start.LocalName) }() // beside the rest; it takes a few milliseconds
	} else {
		refusal <- ""
	}
	adoptEnvironment(*start)
	if err := applyLimits(*start); err != nil {
		return err
	}
	peers, err := sockdiag.NewClient()
	if err != nil {
		return fmt.Errorf("peer check: %w", err)
	}
	defer peers.Close() //nolint:errcheck // ends with the process
	if a.srv, err = newServer(files[0], start.ServiceUID, peers, http.NotFoundHandler(), a.log); err != nil {
		return err
	}
	handler, err := a.o.Handler(a)
	if err != nil {
		return fmt.Errorf("prepare handlers: %w", err)
	}
	a.srv.handler = handler
	a.idle = newIdler(a.srv, start.MemoryBytes*8/10, func() time.Duration {
		return time.Duration(a.start.Load().IdleTimeoutMs) * time.Millisecond
	}, a.askToEnd)
	defer a.idle.stop()
	if why := <-refusal; why != "" {
		a.sayReady(ctx, l.client, why) //nolint:errcheck // it ends in any case
		return errors.New(why)
	}
	a.srv.start()
	if err := a.sayReady(ctx, l.client, ""); err != nil {
		return err
	}
	a.log.Info("instance serves", "port", start.Port)

	a.background.Go(func() { a.follow(a.life, l) })
	end := a.await(ctx)
	a.idle.stop()
	a.wind(ctx, end, time.Duration(start.DrainTimeoutMs)*time.Millisecond)
	cancel()
	a.background.Wait()
	return end.err
}

// wind ends the serving. Work that is given back first need not be waited for.
func (a *Agent) wind(ctx context.Context, end ending, limit time.Duration) {
	var given sync.WaitGroup
	if a.o.Ending != nil {
		given.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endingTimeout)
			defer cancel()
			a.o.Ending(ctx)
		})
	}
	if !end.drain && end.err == nil && a.o.Stopping != nil {
		given.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endingTimeout)
			defer cancel()
			a.o.Stopping(ctx)
		})
	}
	if end.drain {
		a.log.Info("instance drains", "reason", end.why)
		a.srv.drain(context.WithoutCancel(ctx), limit)
	} else {
		a.log.Info("instance stops", "reason", end.why)
		a.srv.stop()
	}
	given.Wait()
}

// endingTimeout bounds [Options.Ending].
const endingTimeout = 2 * time.Second

// await waits for the reason to end.
func (a *Agent) await(ctx context.Context) ending {
	select {
	case e := <-a.leave:
		return e
	case <-ctx.Done():
		return ending{drain: true, why: "signal"}
	case err := <-a.srv.done:
		// Somebody has shut the listener down through a duplicate. The server makes a new one for the next process.
		return ending{why: "the listener is gone", err: fmt.Errorf("serve: %w", err)}
	}
}

func (a *Agent) end(e ending) {
	select {
	case a.leave <- e:
	default: // reasons enough
	}
}

func (a *Agent) sayReady(ctx context.Context, c *ipc.Client, refusal string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := ipc.Invoke(ctx, c, ipcapi.InstanceReady, ipcapi.Ready{Route: a.start.Load().Route, Account: refusal})
	if err != nil {
		return fmt.Errorf("say ready: %w", err)
	}
	return nil
}

const callTimeout = 30 * time.Second

// follow reads what the server says, and finds the server again when it was lost, until ctx ends.
func (a *Agent) follow(ctx context.Context, l link) {
	for {
		err := a.read(ctx, l)
		a.client.CompareAndSwap(l.client, nil)
		l.client.Close() //nolint:errcheck // it is broken or not needed
		if ctx.Err() != nil {
			return
		}
		if a.srv.draining.Load() {
			return // it ends anyway, and the server knows
		}
		a.lost.Store(time.Now().UnixNano())
		a.log.Warn("connection to the server is lost", "error", err)
		if l, err = a.reconnect(ctx); err != nil {
			if ctx.Err() == nil {
				a.end(ending{drain: true, why: "no server", err: err})
			}
			return
		}
	}
}

// read carries out items until the stream ends.
func (a *Agent) read(ctx context.Context, l link) error {
	for {
		item, files, err := l.items.Next(ctx)
		if err != nil {
			return err
		}
		a.handle(ctx, l, item, files)
	}
}

func (a *Agent) handle(ctx context.Context, l link, item ipcapi.InstanceItem, files []*os.File) {
	defer func() {
		for _, f := range files {
			f.Close() //nolint:errcheck // nothing was written
		}
	}()
	switch item.Kind {
	case ipcapi.ItemDrain:
		a.end(ending{drain: true, why: item.Reason})
	case ipcapi.ItemStop:
		a.end(ending{why: item.Reason})
	case ipcapi.ItemQuiet:
		if a.o.Quiet != nil {
			a.o.Quiet()
		}
		a.idle.askWhenQuiet()
	case ipcapi.ItemStats:
		a.invoke(ctx, "report numbers", func(ctx context.Context) error {
			_, err := ipc.Invoke(ctx, l.client, ipcapi.InstanceStats, a.srv.measure())
			return err
		})
	case ipcapi.ItemAccount:
		a.invoke(ctx, "report account", func(ctx context.Context) error {
			why := checkAccount(ctx, a.start.Load().LocalName)
			if why == "" {
				return nil
			}
			return a.sayReady(ctx, l.client, why)
		})
	case ipcapi.ItemConfig:
		a.reconfigure(item.Start)
	case ipcapi.ItemKeys:
		a.keysChanged()
	case ipcapi.ItemAdopted:
		if len(files) > 0 {
			if err := a.out.redirect(files[0]); err != nil {
				a.log.Warn("standard error cannot be taken", "error", err)
			}
		}
	}
}

// invoke makes a call beside the reading of items, which may bring a stop meanwhile.
func (a *Agent) invoke(ctx context.Context, what string, call func(context.Context) error) {
	a.background.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := call(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn(what, "error", err)
		}
	})
}

func (a *Agent) keysChanged() {
	if a.o.Keys != nil {
		a.o.Keys(a)
	}
}

// reconfigure takes over settings. Who the instance is and where it serves cannot change.
func (a *Agent) reconfigure(next *ipcapi.Start) {
	old := a.start.Load()
	if next == nil || next.Route != old.Route || next.UID != old.UID {
		return
	}
	s := *next
	s.HopKey, s.Port, s.User, s.ServiceUID = old.HopKey, old.Port, old.User, old.ServiceUID
	a.start.Store(&s)
	a.setLevel(s.LogLevel)
	a.idle.again()
	if a.o.Configure != nil {
		a.o.Configure(a)
	}
}

func (a *Agent) setLevel(name string) {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) == nil {
		a.level.Set(l)
	}
}

// reconnect tries until the grace is over. A server that knows us not, or not any more, ends it at once.
func (a *Agent) reconnect(ctx context.Context) (link, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(a.start.Load().ServerLossGraceMs)*time.Millisecond)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		l, err := a.resume(ctx)
		if err == nil {
			return l, nil
		}
		if failure.Is(err, failure.Forbidden) || failure.Is(err, failure.Invalid) {
			return link{}, fmt.Errorf("the server does not take the instance back: %w", err)
		}
		t := time.NewTimer(pause/2 + rand.N(pause)) // thousands of instances must not come at the same moment
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return link{}, fmt.Errorf("no server within the grace: %w", err)
		}
	}
}

func (a *Agent) resume(ctx context.Context) (link, error) {
	try, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	l, err := a.connect(try, true)
	if err != nil {
		return link{}, err
	}
	item, files, err := l.items.Next(try)
	if err != nil {
		l.client.Close() //nolint:errcheck // it is refused or broken
		return link{}, err
	}
	a.handle(ctx, l, item, files) // adopted, or already a stop
	a.client.Store(l.client)
	a.lost.Store(0)
	a.keysChanged()
	a.log.Info("server is back")
	return l, nil
}

// askToEnd asks the server whether the instance may end now. It makes sure first that no request can come any more.
func (a *Agent) askToEnd() {
	if a.asking.Swap(true) {
		return
	}
	a.invoke(a.life, "ask to end", func(ctx context.Context) error {
		defer a.asking.Store(false)
		c := a.client.Load()
		if c == nil { // no server, nobody to ask
			a.idle.again()
			return nil
		}
		reply, err := ipc.Invoke(ctx, c, ipcapi.InstanceIdle, ipcapi.Idle{
			Route: a.start.Load().Route, Requests: a.srv.requests.Load(),
		})
		if err == nil && reply.Stop {
			a.end(ending{drain: true, why: "idle"})
			return nil
		}
		a.idle.again()
		return err
	})
}

// Start is the start-up document, with the settings as they are now.
func (a *Agent) Start() ipcapi.Start { return *a.start.Load() }

// Log is the instance's logger.
func (a *Agent) Log() *slog.Logger { return a.log }

// Server is the connection to the server. It fails with [failure.Unavailable] while the server is away.
func (a *Agent) Server() (*ipc.Client, error) {
	if c := a.client.Load(); c != nil {
		return c, nil
	}
	return nil, failure.New(failure.Unavailable, "The provider's service is being restarted, try again in a moment")
}

// Away tells for how long the server has been away; 0 if it is there.
func (a *Agent) Away() time.Duration {
	if lost := a.lost.Load(); lost != 0 {
		return max(1, time.Since(time.Unix(0, lost)))
	}
	return 0
}

// Busy tells that work goes on outside of a request, such as a copy in the background: the instance is not idle, and
// draining waits for it. Call the result when it has ended.
func (a *Agent) Busy() (done func()) {
	a.srv.begin()
	return sync.OnceFunc(a.srv.end)
}
