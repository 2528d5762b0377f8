package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// stream is the open hello of one process. Its handler's goroutine does all sending; others push items into a bounded
// queue. A process that does not read its items is treated as hung by whoever waits for their effect.
type stream struct {
	hello ipcapi.Hello
	pid   int32
	uid   ident.UID
	pidfd *os.File // of the process that said hello; owned by the stream until it is taken

	items chan outgoing
	end   chan struct{} // closed: the handler returns
	once  sync.Once
	gone  chan struct{} // closed when the handler has ended
}

type outgoing struct {
	item  ipcapi.InstanceItem
	files []*os.File
}

// push queues an item and takes ownership of the files.
func (s *stream) push(it ipcapi.InstanceItem, files ...*os.File) bool {
	select {
	case <-s.gone:
	default:
		select {
		case s.items <- outgoing{it, files}:
			return true
		default:
		}
	}
	for _, f := range files {
		f.Close() //nolint:errcheck // nothing was written
	}
	return false
}

// finish lets the handler return after what is queued has been sent.
func (s *stream) finish() { s.once.Do(func() { close(s.end) }) }

// pending is a program that is started through sudo and has not said hello yet. It is registered before it is started:
// it can be faster than the server.
type pending struct {
	begun     chan struct{} // closed when pid is set
	pid       int32         // that the server started: sudo, or the program itself; 0 if the start failed
	detaching bool          // the program was asked to run again outside sudo
	hello     chan *stream  // capacity 1
}

// errNoLaunch is the answer to everybody who says hello without having been started by us.
var errNoLaunch = failure.New(failure.Forbidden, "No instance of this account is being started")

// hello handles the stream of an instance. Any local process can open it: the uid is the kernel's, the rest is a claim.
func (l *Launcher) hello(ctx context.Context, r *ipc.Request, h ipcapi.Hello, send func(ipcapi.InstanceItem, ...*os.File) error) error {
	defer closeFiles(r.Files)
	select {
	case <-l.started: // before that the registry has not been read, and nobody can be recognised
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.Protocol != ipcapi.Protocol {
		return failure.New(failure.Invalid, "The server speaks protocol %d, the instance %d", ipcapi.Protocol, h.Protocol)
	}
	sl := l.slotOfUID(r.Peer.UID())
	if sl == nil || r.Peer.PID() <= 1 {
		l.counters.hellosRefused.Add(1)
		return errNoLaunch
	}
	pidfd, err := r.PIDFD()
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	st := &stream{
		hello: h, pid: r.Peer.PID(), uid: r.Peer.UID(), pidfd: pidfd,
		items: make(chan outgoing, 16), end: make(chan struct{}), gone: make(chan struct{}),
	}
	defer func() {
		close(st.gone)
		pidfd.Close() //nolint:errcheck // nothing was written
		for {
			select {
			case out := <-st.items:
				closeFiles(out.files)
			default:
				sl.poke()
				return
			}
		}
	}()
	if h.Resume {
		err = l.resume(ctx, sl, st, r.Files)
	} else {
		err = sl.offer(ctx, st)
	}
	if err != nil {
		l.counters.hellosRefused.Add(1)
		if l.complaints.Allow() { // any user can make us refuse something as often as they like
			l.log.Warn("hello refused", "uid", st.uid, "pid", st.pid, "resume", h.Resume, "error", err)
		}
		return err
	}
	return st.serve(ctx, send)
}

func (s *stream) serve(ctx context.Context, send func(ipcapi.InstanceItem, ...*os.File) error) error {
	deliver := func(out outgoing) error {
		defer closeFiles(out.files)
		return send(out.item, out.files...)
	}
	for {
		select {
		case out := <-s.items:
			if err := deliver(out); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.end:
			for {
				select {
				case out := <-s.items:
					if err := deliver(out); err != nil {
						return err
					}
				default:
					return nil
				}
			}
		}
	}
}

// offer gives a new process's stream to the launch that waits for it. In direct mode the process must be the one that
// was started. Where sudo stays in between, the process must descend from it; if /proc is hidden from us, its uid and
// the pending launch must do, which is what the kernel vouches for. The second process of a detached start cannot be
// tied to the first; it can only be a process of the same user, who gains nothing by taking its own instance's place.
func (s *slot) offer(ctx context.Context, st *stream) error {
	s.mu.Lock()
	waiting := slices.Clone(s.pending)
	s.mu.Unlock()
	var match *pending
	for _, p := range waiting {
		select {
		case <-p.begun:
		case <-ctx.Done():
			return ctx.Err()
		}
		switch {
		case p.pid == 0: // could not be started
		case p.pid == st.pid:
			match = p
		case st.hello.Detached:
			s.mu.Lock()
			if p.detaching && match == nil {
				match = p
			}
			s.mu.Unlock()
		default:
			if yes, known := descends(st.pid, p.pid); match == nil && (yes || !known && !s.l.o.Self) {
				match = p
			}
		}
	}
	if match == nil {
		return errNoLaunch
	}
	// The process is what the policy allowed: the account's uid in all four places and no capability. A setuid program
	// of the same user, or one with file capabilities, would show here.
	if ps, err := readStatus(st.pid); err == nil {
		for _, u := range ps.uids {
			if u != uint64(st.uid) {
				return failure.New(failure.Forbidden, "The process runs with mixed user ids")
			}
		}
		if ps.capabilities {
			return failure.New(failure.Forbidden, "The process has capabilities")
		}
		st.hello.Groups = ps.groupSet() // the kernel's word instead of the claim
	} else {
		st.hello.Groups = groupSet(st.hello.Groups)
	}
	select {
	case match.hello <- st:
		return nil
	default:
		return failure.New(failure.Conflict, "The instance has said hello already")
	}
}

// groupSet is the primary and the supplementary groups.
func (s status) groupSet() []ident.GID { return groupSet(append(s.groups, ident.GID(s.gids[1]))) }

func groupSet(g []ident.GID) []ident.GID {
	g = slices.Clone(g)
	slices.Sort(g)
	return slices.Compact(g)
}

// expect starts the program and registers it, until done is called.
func (s *slot) expect() (p *pending, c *child, done func(), err error) {
	p = &pending{begun: make(chan struct{}), hello: make(chan *stream, 1)}
	s.mu.Lock()
	s.pending = append(s.pending, p)
	s.mu.Unlock()
	done = func() {
		s.mu.Lock()
		s.pending = slices.DeleteFunc(s.pending, func(q *pending) bool { return q == p })
		s.mu.Unlock()
		select {
		case st := <-p.hello: // came too late
			st.finish()
		default:
		}
	}
	c, err = s.l.exec(s.uid, s.out)
	if err == nil {
		p.pid = c.pid
	}
	close(p.begun)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return p, c, done, nil
}

// processOf finds the process that makes a call. The pid is the kernel's, and the stream of that process is still open
// or was a moment ago.
func (l *Launcher) processOf(r *ipc.Request, route uint64) (*slot, *process, error) {
	sl := l.slotOfUID(r.Peer.UID())
	if sl == nil {
		return nil, nil, errNoLaunch
	}
	sl.mu.Lock()
	defer sl.mu.Unlock()
	p := sl.procs[r.Peer.PID()]
	if p == nil || sl.route.Route != route {
		return nil, nil, errNoLaunch
	}
	return sl, p, nil
}

func (l *Launcher) instanceReady(_ context.Context, r *ipc.Request, req ipcapi.Ready) (ipcapi.Empty, error) {
	sl, p, err := l.processOf(r, req.Route)
	if err != nil {
		return ipcapi.Empty{}, err
	}
	p.mu.Lock()
	p.refusal = req.Account
	p.mu.Unlock()
	first := false
	p.readyOnce.Do(func() { first = true; close(p.ready) })
	if req.Account != "" && !first { // during a launch, the launch looks at the refusal itself
		sl.command(command{kind: cmdStop, why: refusedByAccount(req.Account)})
	}
	return ipcapi.Empty{}, nil
}

func (l *Launcher) instanceStats(_ context.Context, r *ipc.Request, req ipcapi.Stats) (ipcapi.Empty, error) {
	sl := l.slotOfUID(r.Peer.UID())
	if sl == nil {
		return ipcapi.Empty{}, errNoLaunch
	}
	sl.mu.Lock()
	p := sl.procs[r.Peer.PID()]
	sl.mu.Unlock()
	if p == nil {
		return ipcapi.Empty{}, errNoLaunch
	}
	p.mu.Lock()
	p.stats, p.statsAt = req, time.Now()
	p.mu.Unlock()
	l.statsArrived()
	return ipcapi.Empty{}, nil
}

func (l *Launcher) instanceIdle(ctx context.Context, r *ipc.Request, req ipcapi.Idle) (ipcapi.IdleReply, error) {
	sl, p, err := l.processOf(r, req.Route)
	if err != nil {
		return ipcapi.IdleReply{}, err
	}
	answer := make(chan bool, 1)
	sl.command(command{kind: cmdIdle, proc: p, answer: answer})
	select {
	case stop := <-answer:
		return ipcapi.IdleReply{Stop: stop}, nil
	case <-ctx.Done():
		return ipcapi.IdleReply{}, ctx.Err()
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() //nolint:errcheck // nothing was written
	}
}

// refusedByAccount is the stop reason when the account itself says that it may not be used.
func refusedByAccount(why string) error {
	return failure.Wrap(errors.New(why), failure.Forbidden, "Your account at this provider is closed")
}
