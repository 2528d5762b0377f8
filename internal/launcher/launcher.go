package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
)

// Account is the local account that a UCloud user is mapped to.
type Account struct {
	UID       ident.UID
	LocalName string // when the mapping was made
}

// Mapping tells the local account of a user. Only active mappings count (contract 05 section D). The error is
// [failure.NotFound] or [failure.Forbidden] with a sentence for the end user if there is none; any other kind means
// that it is not known now, and stops nothing that runs.
type Mapping interface {
	Account(ctx context.Context, user ident.UCloudUser) (Account, error)
}

// Options configure a [Launcher]. Config keys are those of contract 40 section 5.
type Options struct {
	Mapping Mapping
	Policy  *localuser.Policy
	Log     *slog.Logger

	ServiceUID ident.UID // the uid of this process; instances accept connections of this one only
	Program    string    // absolute path of ucloud-user
	Socket     string    // absolute path of the IPC socket (ipc.directory)
	Sudo       string    // "" means /usr/bin/sudo
	Self       bool      // userInstances.launcher: self (development)

	PortFirst, PortLast int    // internal.userPorts
	StateDir            string // instances/ is made below it
	LogDir              string // logs.directory; users/ is made below it. "" keeps the last output in memory only
	Cgroup              string // delegated cgroup v2 directory, "" for none
	CgroupLimits        bool   // controllers may be switched on in it

	// Limits of each instance and of all together, where there is a cgroup with controllers. Nil: none.
	Limits func() (each, total Limits)

	// Settings gives the part of the start-up document that comes from the configuration. Identity, route and key are
	// filled in by the launcher; time limits too, where Settings leaves them 0. It is called for each launch and by
	// [Launcher.Reconfigure], so that a reload takes effect.
	Settings func() ipcapi.Start
	// Intents gives the policy about signed intents for a user, at the same moments. Nil: off.
	Intents func(user ident.UCloudUser) ipcapi.IntentSettings

	// Launched is told about each start of an instance. It must not block. Nil: nobody.
	Launched func(user ident.UCloudUser)

	MaxInstances    int           // userInstances.maxInstances; 0 means 500
	StartTimeout    time.Duration // userInstances.startTimeout; 0 means 15 s
	IdleTimeout     time.Duration // userInstances.idleTimeout; 0 means never
	DrainTimeout    time.Duration // userInstances.drainTimeout; 0 means 30 s
	ServerLossGrace time.Duration // userInstances.serverLossGrace; 0 means 2 min
	RestartMax      int           // userInstances.restart.max; 0 means 5
	RestartWindow   time.Duration // userInstances.restart.window; 0 means 10 min
	Parallel        int           // launches at a time; 0 means 1.5 times the cores

	StopTimeout    time.Duration // how long an instance has to obey a stop before it is killed; 0 means 3 s
	LossGrace      time.Duration // how long a live instance may be without its stream; 0 means 15 s
	RecoverGrace   time.Duration // how long registered instances have to come back after a restart; 0 means 20 s
	ConfirmTimeout time.Duration // how long gateways have to confirm that a route is gone; 0 means 5 s
	SweepInterval  time.Duration // each instance's account is looked at once in this time; 0 means 15 min
}

func (o *Options) defaults() error {
	def(&o.Sudo, "/usr/bin/sudo")
	def(&o.MaxInstances, 500)
	def(&o.StartTimeout, 15*time.Second)
	def(&o.DrainTimeout, 30*time.Second)
	def(&o.ServerLossGrace, 2*time.Minute)
	def(&o.RestartMax, 5)
	def(&o.RestartWindow, 10*time.Minute)
	def(&o.Parallel, max(2, runtime.NumCPU()*3/2))
	def(&o.StopTimeout, 3*time.Second)
	def(&o.LossGrace, 15*time.Second)
	def(&o.RecoverGrace, 20*time.Second)
	def(&o.ConfirmTimeout, 5*time.Second)
	def(&o.SweepInterval, 15*time.Minute)
	switch {
	case o.Mapping == nil || o.Policy == nil || o.Settings == nil:
		return errors.New("launcher: mapping, policy and settings are required")
	case !filepath.IsAbs(o.Program) || !filepath.IsAbs(o.Socket) || !filepath.IsAbs(o.Sudo):
		return errors.New("launcher: paths must be absolute")
	}
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Launcher starts and supervises the instances of all users. See the package comment.
type Launcher struct {
	o        Options
	log      *slog.Logger
	ports    *ports
	registry *registry
	logs     *privateDir // nil: memory only
	hub      *hub
	cgroup   *cgroup // nil: none

	launches chan struct{} // semaphore of Options.Parallel
	kills    chan struct{} // semaphore for executioners
	evicting chan struct{} // capacity 1: one search for an idle instance at a time

	complaints *rate.Limiter // of log lines about refused callers

	nextRoute atomic.Uint64
	settings  atomic.Uint64 // grows with each call of Reconfigure
	counters  counters

	started chan struct{} // closed by Run
	wg      sync.WaitGroup
	ctx     context.Context // the life of Run; set before started is closed

	mu       sync.Mutex // guards the fields below
	closed   bool       // Run is ending: no new goroutines
	draining bool       // Drain was called: no new launches
	slots    map[ident.UCloudUser]*slot
	byUID    map[ident.UID]*slot
	stats    chan struct{} // closed and replaced when an instance has reported its numbers
}

// New opens the directories, and reads which instances an earlier server has left running. Their routes are in the
// table at once, so that a gateway that connects before they have reconnected keeps them.
func New(o Options) (*Launcher, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Launcher{
		o: o, log: o.Log.With("part", "launcher"), hub: newHub(),
		launches: make(chan struct{}, o.Parallel), kills: make(chan struct{}, 2), evicting: make(chan struct{}, 1),
		complaints: rate.NewLimiter(1, 20), started: make(chan struct{}), stats: make(chan struct{}),
		slots: map[ident.UCloudUser]*slot{}, byUID: map[ident.UID]*slot{},
	}
	// Routes are identified for longer than the server lives: instances of its predecessor keep theirs.
	l.nextRoute.Store(uint64(time.Now().UnixMicro()))
	var err error
	if l.ports, err = newPorts(o.PortFirst, o.PortLast); err != nil {
		return nil, fmt.Errorf("launcher: %w", err)
	}
	dir, err := openPrivateDir(filepath.Join(o.StateDir, "instances"))
	if err != nil {
		return nil, fmt.Errorf("launcher: %w", err)
	}
	l.registry = &registry{dir: dir, log: l.log}
	if o.LogDir != "" {
		if l.logs, err = openPrivateDir(filepath.Join(o.LogDir, "users")); err != nil {
			dir.close()
			return nil, fmt.Errorf("launcher: %w", err)
		}
	}
	if o.Limits == nil {
		o.Limits = func() (each, total Limits) { return each, total }
	}
	if o.Cgroup != "" {
		if l.cgroup, err = openCgroup(o.Cgroup, o.CgroupLimits, o.Limits, l.log); err != nil {
			l.log.Warn("cgroup cannot be used, instances run without one", "error", err)
		}
	}
	if err := l.recover(); err != nil {
		l.close()
		return nil, fmt.Errorf("launcher: %w", err)
	}
	return l, nil
}

func (l *Launcher) close() {
	l.registry.dir.close()
	if l.logs != nil {
		l.logs.close()
	}
}

// Register adds the handlers of instances and gateways to the IPC server. gateway.token is not among them.
func (l *Launcher) Register(s *ipc.Server) {
	ipc.HandleStream(s, ipcapi.InstanceHello, l.hello)
	ipc.Handle(s, ipcapi.InstanceReady, l.instanceReady)
	ipc.Handle(s, ipcapi.InstanceIdle, l.instanceIdle)
	ipc.Handle(s, ipcapi.InstanceStats, l.instanceStats)
	ipc.HandleStream(s, ipcapi.GatewayRoutes, l.hub.follow)
	ipc.Handle(s, ipcapi.GatewayAck, l.hub.ack)
	ipc.Handle(s, ipcapi.GatewayWake, l.gatewayWake)
}

// Run supervises until ctx ends. Instances live on after it: the next server adopts them. It may be called once, and
// the IPC server should be running or start soon.
func (l *Launcher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.ctx = ctx
	for _, s := range l.all() {
		p := s.current
		p.watch(ctx, l)
		l.spawn(func() { s.supervise(ctx, p) })
	}
	close(l.started)
	l.wg.Go(func() { l.sweep(ctx) })
	l.wg.Go(func() { l.watchAccounts(ctx) })
	<-ctx.Done()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
	l.mu.Lock()
	for _, s := range l.slots {
		s.release()
	}
	l.mu.Unlock()
	l.close()
	return nil
}

// spawn runs f in a goroutine that Run waits for; false if the launcher is ending.
func (l *Launcher) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Go(f)
	return true
}

func (l *Launcher) gatewayWake(ctx context.Context, _ *ipc.Request, req ipcapi.Wake) (ipcapi.WakeReply, error) {
	route, err := l.Wake(ctx, req.User)
	if err != nil {
		l.log.InfoContext(ctx, "wake refused", "user", req.User, "error", err)
		return ipcapi.WakeReply{Why: failure.Why(err)}, nil
	}
	return ipcapi.WakeReply{Route: &route}, nil
}

// Wake gives the route to the user's instance and starts the instance if there is none. It returns when the instance
// is ready, was refused or failed, or when ctx ends; the launch goes on then. Errors have a sentence for the end user.
func (l *Launcher) Wake(ctx context.Context, user ident.UCloudUser) (ipcapi.Route, error) {
	select {
	case <-l.started:
	default:
		return ipcapi.Route{}, errStopping
	}
	l.mu.Lock()
	s := l.slots[user]
	l.mu.Unlock()
	if s != nil {
		if route, ok := s.published(); ok {
			return route, nil
		}
	}
	account, err := l.o.Mapping.Account(ctx, user)
	if err != nil {
		return ipcapi.Route{}, err
	}
	if s, err = l.slotFor(user, account); err != nil {
		return ipcapi.Route{}, err
	}
	return s.wake(ctx)
}

var (
	errStopping = failure.New(failure.Unavailable, "The service is starting or stopping, try again in a moment")
	errDraining = failure.New(failure.NoInstance, "The provider is closed for maintenance, try again later")
)

// slotFor finds or makes the slot of a user. A uid serves one user at a time: two users never share an instance, even
// if the database says otherwise.
func (l *Launcher) slotFor(user ident.UCloudUser, a Account) (*slot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errStopping
	}
	if l.draining {
		return nil, errDraining
	}
	s := l.slots[user]
	if s != nil && (s.uid != a.UID || s.localName != a.LocalName) {
		// The user has connected another account. What still runs for the old one goes first.
		if !s.idleForGood() {
			s.command(command{kind: cmdStop, why: errOtherAccount})
			return nil, errOtherAccount
		}
		l.forgetLocked(s)
		s = nil
	}
	if other := l.byUID[a.UID]; other != nil && other.user != user {
		if !other.idleForGood() {
			return nil, failure.New(failure.NoInstance,
				"Your local account is in use by another UCloud user, please tell the operators of this provider")
		}
		l.forgetLocked(other)
	}
	if s == nil {
		s = newSlot(l, user, a)
		l.slots[user], l.byUID[a.UID] = s, s
	}
	return s, nil
}

var errOtherAccount = failure.New(failure.NoInstance, "Your local account has changed, try again in a moment")

func (l *Launcher) forgetLocked(s *slot) {
	delete(l.slots, s.user)
	if l.byUID[s.uid] == s {
		delete(l.byUID, s.uid)
	}
}

func (l *Launcher) slotOfUID(uid ident.UID) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byUID[uid]
}

// all gives the slots of the named users, of everybody if there are no names.
func (l *Launcher) all(users ...ident.UCloudUser) []*slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*slot
	if len(users) == 0 {
		for _, s := range l.slots {
			out = append(out, s)
		}
		return out
	}
	for _, u := range users {
		if s := l.slots[u]; s != nil {
			out = append(out, s)
		}
	}
	return out
}
