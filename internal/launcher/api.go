package launcher

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// Info describes a user's slot for operators.
type Info struct {
	User        ident.UCloudUser
	UID         ident.UID
	LocalName   string
	State       State
	PID         int32 // 0 if there is no process
	Port        int
	Generation  uint64
	Since       time.Time // start of the process
	Build       string
	Active      int           // requests under way; as of StatsAt, like the following
	Idle        time.Duration // since the last request
	Requests    uint64
	MemoryBytes int64 // proportional set size
	StatsAt     time.Time
	Crashes     int    // since the server started
	Renew       bool   // will be replaced when idle
	Reason      string // why it is stopped
	LastOutput  string // the end of what it wrote to its standard error
}

type counters struct {
	launches, launchFailures, refused, crashes, crashLoops, hung, kills, unkillable atomic.Uint64
	adopted, idleStops, replaced, hellosRefused                                     atomic.Uint64
}

// Counters are totals since the server started, for metrics.
type Counters struct {
	Launches       uint64 // successful ones
	LaunchFailures uint64 // refused ones included
	Refused        uint64 // by mapping or policy
	Crashes        uint64 // unexpected ends
	CrashLoops     uint64 // slots that were given up for the restart window
	Hung           uint64 // lived, but did not talk to the server
	Kills          uint64
	Unkillable     uint64 // needed root; someone must act
	Adopted        uint64
	IdleStops      uint64
	Replaced       uint64
	HellosRefused  uint64
	Gateways       int // connected now
	Instances      int // now
}

// Counters gives the totals.
func (l *Launcher) Counters() Counters {
	c := &l.counters
	n := 0
	for _, s := range l.all() {
		s.mu.Lock()
		if s.current != nil {
			n++
		}
		s.mu.Unlock()
	}
	return Counters{
		Launches: c.launches.Load(), LaunchFailures: c.launchFailures.Load(), Refused: c.refused.Load(),
		Crashes: c.crashes.Load(), CrashLoops: c.crashLoops.Load(), Hung: c.hung.Load(), Kills: c.kills.Load(),
		Unkillable: c.unkillable.Load(), Adopted: c.adopted.Load(), IdleStops: c.idleStops.Load(),
		Replaced: c.replaced.Load(), HellosRefused: c.hellosRefused.Load(), Gateways: l.hub.connected(), Instances: n,
	}
}

// List describes all slots, sorted by user, with the numbers that instances reported last. See [Launcher.Refresh].
func (l *Launcher) List() []Info {
	var out []Info
	for _, s := range l.all() {
		out = append(out, s.info())
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.User, b.User) })
	return out
}

// Refresh asks all instances for their numbers and waits a second at most.
func (l *Launcher) Refresh(ctx context.Context) { l.refresh(ctx, time.Second) }

func (s *slot) info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{
		User: s.user, UID: s.uid, LocalName: s.localName, State: s.state, Port: s.route.Port,
		Generation: s.route.Generation, Crashes: s.total, Renew: s.renew, LastOutput: s.out.tail(4096),
	}
	if s.err != nil {
		i.Reason = failure.Why(s.err)
	}
	if p := s.current; p != nil {
		p.mu.Lock()
		i.PID, i.Since, i.Build = p.pid, p.since, p.build
		i.Active, i.Requests, i.MemoryBytes, i.StatsAt = p.stats.Active, p.stats.Requests, p.stats.PSSBytes, p.statsAt
		i.Idle = time.Duration(p.stats.IdleSeconds) * time.Second
		p.mu.Unlock()
	} else {
		i.Port = 0
	}
	return i
}

// StopUser ends the user's instance without waiting for requests under way: they are cut. reason is shown to whoever waits
// for it. It returns when the instance has ended, or when ctx ends; without an instance it does nothing.
func (l *Launcher) StopUser(ctx context.Context, user ident.UCloudUser, reason string) error {
	for _, s := range l.all(user) {
		done := make(chan struct{})
		s.command(command{kind: cmdStop, why: failure.New(failure.NoInstance, "%s", reason), done: done})
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Restart replaces the user's instance without losing a request: the old process finishes what it has begun while the
// new one serves. A slot that was given up after too many failures may be tried again at once.
func (l *Launcher) Restart(ctx context.Context, user ident.UCloudUser) error {
	for _, s := range l.all(user) {
		s.mu.Lock()
		s.crashes = nil
		s.mu.Unlock()
		done := make(chan struct{})
		s.command(command{kind: cmdReplace, done: done})
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Drain starts nothing new from now on, lets all instances finish what they have begun and waits for their end, or
// for the end of ctx. It gives the number that still runs.
func (l *Launcher) Drain(ctx context.Context) int {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	var waits []chan struct{}
	for _, s := range l.all() {
		done := make(chan struct{})
		waits = append(waits, done)
		s.command(command{kind: cmdDrain, why: errDraining, done: done})
	}
	left := 0
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			left++
		}
	}
	return left
}

// LimitedBy tells people what limits instances.
func (l *Launcher) LimitedBy() string {
	if l.cgroup == nil || !l.cgroup.enable {
		return "each process by itself: no cgroup with controllers was delegated"
	}
	return "cgroup"
}

// Reconfigure sends the present settings to all instances, after a reload of the configuration.
func (l *Launcher) Reconfigure(ctx context.Context) {
	l.settings.Add(1) // instances that are being started get them as well
	l.cgroup.limitTotal(l.log)
	for _, s := range l.all() {
		s.mu.Lock()
		p := s.current
		s.mu.Unlock()
		if p != nil {
			s.configure(ctx, p)
		}
	}
}

// configure sends the present settings to a process.
func (s *slot) configure(ctx context.Context, p *process) {
	s.mu.Lock()
	route := s.route
	s.mu.Unlock()
	a, err := s.l.o.Policy.Directory().ByUID(ctx, s.uid)
	if err != nil {
		s.log.Warn("instance keeps its old settings", "error", err)
		return
	}
	doc := s.startDocument(a, route)
	p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemConfig, Start: &doc})
}

// KeysChanged tells the instance of a user, if there is one, that the user's signing keys have changed. An instance that
// is not connected at the moment forgets what it has read when it comes back.
func (l *Launcher) KeysChanged(user ident.UCloudUser) {
	for _, s := range l.all(user) {
		s.mu.Lock()
		p := s.current
		s.mu.Unlock()
		if p != nil {
			p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemKeys})
		}
	}
}
