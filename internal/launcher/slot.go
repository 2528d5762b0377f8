package launcher

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// State is the state of a user's slot, see the package comment.
type State string

// The states.
const (
	Stopped    State = "stopped"
	Starting   State = "starting"
	Running    State = "running"
	Recovering State = "recovering"
	Backoff    State = "backoff"
	Stopping   State = "stopping"
)

// slot is the place of one user. Its supervisor goroutine makes all changes of state.
type slot struct {
	l         *Launcher
	user      ident.UCloudUser
	uid       ident.UID
	localName string
	log       *slog.Logger
	out       *userLog

	kick chan struct{} // capacity 1: there is mail, or a stream has come or gone

	mu       sync.Mutex // guards the fields below
	state    State
	running  bool  // the supervisor exists
	wanted   bool  // somebody waits for a route
	err      error // why the slot is stopped; nil after an orderly end
	changed  chan struct{}
	mail     []command
	stopping context.CancelCauseFunc // ends the launch under way; nil if there is none

	lis     *listener // nil while recovering, and when stopped
	inode   uint64    // of the listener, known also while recovering
	route   ipcapi.Route
	open    bool               // the route is in the table
	current *process           // nil if none
	procs   map[int32]*process // current and those that drain
	pending []*pending
	renew   bool      // replace the process when it is idle
	cleared clearance // of the account by itself; used by the supervisor only
	crashes []time.Time
	total   int // crashes since the server started
}

func newSlot(l *Launcher, user ident.UCloudUser, a Account) *slot {
	log := l.log.With("user", user, "uid", a.UID)
	return &slot{
		l: l, user: user, uid: a.UID, localName: a.LocalName, log: log, out: newUserLog(l.logs, a.UID, log),
		kick: make(chan struct{}, 1), state: Stopped, changed: make(chan struct{}), procs: map[int32]*process{},
	}
}

// command is a message to the supervisor.
type command struct {
	kind   commandKind
	why    error         // cmdStop: told to whoever waits
	proc   *process      // cmdIdle: who asks
	answer chan bool     // cmdIdle: may it end; capacity 1
	done   chan struct{} // closed when carried out, or when there is nothing to do; may be nil
}

type commandKind int

const (
	cmdStop    commandKind = iota + 1 // end at once
	cmdIdle                           // the process asks whether it may end
	cmdEvict                          // end it as if it had asked
	cmdReplace                        // new process on the same listener now, the old one finishes its requests
	cmdRenew                          // the same as soon as no request is under way
	cmdDrain                          // let it finish its requests and end it
)

func (c command) finish() {
	if c.answer != nil {
		select {
		case c.answer <- false:
		default:
		}
	}
	if c.done != nil {
		close(c.done)
	}
}

// command puts c into the mailbox. Without a supervisor there is nothing to do, and c is finished at once.
func (s *slot) command(c command) {
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		c.finish()
		return
	}
	s.mail = append(s.mail, c)
	if c.kind == cmdStop && s.stopping != nil {
		s.stopping(c.why)
	}
	s.mu.Unlock()
	s.poke()
}

func (s *slot) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *slot) nextMail() (command, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mail) == 0 {
		return command{}, false
	}
	c := s.mail[0]
	s.mail = s.mail[1:]
	return c, true
}

func (s *slot) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *slot) setState(st State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = st
	s.changedLocked()
}

// published gives the route if it is in the table.
func (s *slot) published() (ipcapi.Route, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.route, s.open
}

// idleForGood tells that nothing runs and no supervisor exists.
func (s *slot) idleForGood() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.running
}

// wake waits for a route, and starts the supervisor if there is none.
func (s *slot) wake(ctx context.Context) (ipcapi.Route, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for begun := false; ; {
		switch {
		case s.open:
			return s.route, nil
		case s.running: // join what is under way
		case begun:
			return ipcapi.Route{}, s.whyLocked()
		default:
			if err := s.throttledLocked(time.Now()); err != nil {
				return ipcapi.Route{}, err
			}
			s.running, s.state, s.err = true, Starting, nil
			if !s.l.spawn(func() { s.supervise(s.l.ctx, nil) }) {
				s.running, s.state = false, Stopped
				return ipcapi.Route{}, errStopping
			}
		}
		s.wanted, begun = true, true
		changed := s.changed
		s.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = failure.Wrap(ctx.Err(), failure.NoInstance, "Your instance at this provider is still starting, try again in a moment")
		}
		s.mu.Lock()
		if err != nil {
			return ipcapi.Route{}, err
		}
	}
}

// whyLocked is the error for those who waited for a slot that has stopped.
func (s *slot) whyLocked() error {
	if s.err != nil {
		return s.err
	}
	return failure.New(failure.NoInstance, "Your instance has just stopped, try again in a moment")
}

// next is what the supervisor does after a process has ended.
type next int

const (
	nextLaunch next = iota + 1
	nextEnd         // the slot has been stopped
	nextLeave       // the server ends, the instance lives on
)

// supervise is the life of a slot from the first wake, or from the restart of the server, until it is stopped. p is
// the process that runs already, nil if one must be launched.
func (s *slot) supervise(ctx context.Context, p *process) {
	for {
		if p == nil {
			var err error
			if p, err = s.launch(ctx); err != nil {
				if s.launchFailed(ctx, err) != nextLaunch {
					return
				}
				continue
			}
			s.becomeCurrent(p)
			s.catchUp(ctx, p)
		}
		if s.watch(ctx, &p) != nextLaunch {
			return
		}
		p = nil
	}
}

// becomeCurrent publishes the route with p behind it.
func (s *slot) becomeCurrent(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.procs[p.pid] = p, p
	s.state, s.open, s.wanted, s.err, s.renew = Running, true, false, nil, false
	s.l.hub.put(s.route)
	s.changedLocked()
}

// catchUp sends settings that have changed while p was started: until it was the current process nobody sent it any.
func (s *slot) catchUp(ctx context.Context, p *process) {
	p.mu.Lock()
	had := p.settings
	p.mu.Unlock()
	if had != s.l.settings.Load() {
		s.configure(ctx, p)
	}
}

// unpublish takes the route away and gives the version of the table that gateways must confirm.
func (s *slot) unpublish() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
	return s.l.hub.remove(s.user)
}

// withdraw takes the route away and waits until every gateway has confirmed that it sends nothing over it any more.
func (s *slot) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.l.o.ConfirmTimeout)
	defer cancel()
	return s.l.hub.confirmed(ctx, s.unpublish())
}

// watch follows the current process until it has ended. It may replace *pp.
func (s *slot) watch(ctx context.Context, pp **process) next {
	var grace *time.Timer
	var expired <-chan time.Time
	defer func() {
		if grace != nil {
			grace.Stop()
		}
	}()
	for {
		p := *pp
		gone, attached := p.gone()
		switch {
		case attached && grace != nil:
			grace.Stop()
			grace, expired = nil, nil
		case !attached && grace == nil:
			grace = time.NewTimer(s.graceFor())
			expired = grace.C
		}
		select {
		case <-ctx.Done():
			return nextLeave
		case <-p.exited:
			return s.crashed(ctx, p)
		case <-gone:
			p.detach(gone)
		case <-expired:
			s.log.Warn("instance lives but does not talk to the server", "pid", p.pid)
			return s.lost(ctx, p)
		case <-s.kick:
			if n := s.readMail(ctx, pp); n != 0 {
				return n
			}
		}
	}
}

// graceFor is how long a process may be without its stream.
func (s *slot) graceFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == Recovering {
		return s.l.o.RecoverGrace
	}
	return s.l.o.LossGrace
}

// readMail carries out the commands; 0 means go on watching.
func (s *slot) readMail(ctx context.Context, pp **process) next {
	for {
		c, ok := s.nextMail()
		if !ok {
			return 0
		}
		var n next
		switch c.kind {
		case cmdStop:
			n = s.stop(ctx, c.why)
		case cmdIdle:
			n = s.askedToEnd(ctx, pp, c)
		case cmdEvict:
			n = s.endIdle(ctx, *pp, nil)
		case cmdDrain:
			n = s.drain(ctx, *pp, c.why)
		case cmdReplace:
			s.replace(ctx, pp)
		case cmdRenew:
			s.mu.Lock()
			s.renew = true
			s.mu.Unlock()
			(*pp).send(ipcapi.InstanceItem{Kind: ipcapi.ItemQuiet})
		}
		c.finish()
		if n != 0 {
			return n
		}
	}
}

// leave ends the supervisor because the server ends.
func (s *slot) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changedLocked()
}

// drop forgets a process that has ended.
func (s *slot) drop(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.procs, p.pid)
	if s.current == p {
		s.current = nil
	}
	p.close()
}

// end stops the slot: no route, no listener, no record. Somebody who has asked for a route after an orderly end gets a
// new launch instead.
func (s *slot) end(ctx context.Context, why error) next {
	if ctx.Err() != nil {
		s.leave()
		return nextLeave
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
	s.l.hub.remove(s.user)
	s.l.registry.remove(s.uid)
	s.l.cgroup.remove(s.uid)
	if why == nil && s.wanted {
		s.state = Starting
		s.changedLocked()
		return nextLaunch
	}
	s.closeListenerLocked()
	for _, c := range s.mail {
		c.finish()
	}
	s.mail, s.running, s.wanted, s.state, s.err, s.renew = nil, false, false, Stopped, why, false
	s.changedLocked()
	return nextEnd
}

func (s *slot) closeListenerLocked() {
	if s.lis != nil {
		s.lis.close(true)
		s.lis = nil
	}
}

// release frees what the server holds, without touching the instance: the socket lives on in it.
func (s *slot) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lis != nil {
		s.lis.close(false)
		s.lis = nil
	}
	for _, p := range s.procs {
		p.close()
	}
}
