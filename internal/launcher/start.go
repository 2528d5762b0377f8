package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
)

// errRefused marks launches that policy forbids: they are no failure of the machine, and do not count as crashes.
var errRefused = errors.New("refused")

// errStartTimeout is the cause of launches that took too long.
var errStartTimeout = errors.New("the start took too long")

func refuse(err error) error { return fmt.Errorf("%w: %w", errRefused, err) }

// launch starts a process for the slot and returns when it is ready, but not published. It checks mapping and account
// each time, whatever was true when the slot was made.
func (s *slot) launch(ctx context.Context) (*process, error) {
	if err := s.l.makeRoom(ctx, s); err != nil {
		return nil, refuse(err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	for _, c := range s.mail {
		if c.kind == cmdStop { // it came before there was something to cancel
			stop(c.why)
		}
	}
	s.stopping = stop
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.stopping = nil
		s.mu.Unlock()
	}()
	// Refused before it waits for its turn, and looked up together with others who wait. The check that counts is the
	// one below, right before the start; most of it comes from the cache then.
	if _, err := s.check(ctx); err != nil {
		return nil, launchError(ctx, err)
	}
	select {
	case s.l.launches <- struct{}{}:
		defer func() { <-s.l.launches }()
	case <-ctx.Done():
		return nil, launchError(ctx, ctx.Err())
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.l.o.StartTimeout, errStartTimeout)
	defer cancel()
	checked, err := s.check(ctx)
	if err != nil {
		return nil, launchError(ctx, err)
	}
	if err := s.ensureListener(); err != nil {
		return nil, launchError(ctx, err)
	}
	p, err := s.start(ctx, checked)
	if err != nil {
		return nil, launchError(ctx, err)
	}
	s.l.counters.launches.Add(1)
	s.log.Info("instance started", "pid", p.pid, "port", s.route.Port, "generation", s.route.Generation,
		"direct", p.child != nil, "ms", time.Since(begun).Milliseconds())
	if s.l.o.Launched != nil {
		s.l.o.Launched(s.user)
	}
	return p, nil
}

// launchError gives every failed launch a sentence for the user. A cancelled launch has the reason of its stop.
func launchError(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errStartTimeout):
		return failure.Wrap(errors.Join(cause, err), failure.NoInstance,
			"Your instance at this provider did not start in time, please try again")
	case cause != nil && !errors.Is(cause, context.Canceled):
		return refuse(cause) // stopped on purpose
	}
	if _, ok := errors.AsType[*failure.Error](err); ok {
		return err
	}
	return failure.Wrap(err, failure.NoInstance,
		"Your instance at this provider could not be started; the operators can see the reason")
}

// check asks mapping and policy. A refusal is marked as one; a directory that does not answer is an ordinary failure.
func (s *slot) check(ctx context.Context) (localuser.Checked, error) {
	a, err := s.l.o.Mapping.Account(ctx, s.user)
	if err != nil {
		return localuser.Checked{}, s.judge(err)
	}
	if a.UID != s.uid || a.LocalName != s.localName {
		return localuser.Checked{}, refuse(errOtherAccount)
	}
	c, err := s.l.o.Policy.Check(ctx, s.uid, s.localName)
	if err != nil {
		return localuser.Checked{}, s.judge(err)
	}
	return c, nil
}

// judge tells refusals from failures to find out.
func (s *slot) judge(err error) error {
	switch failure.KindOf(err) {
	case failure.Forbidden, failure.NotFound, failure.NoInstance, failure.Invalid, failure.Conflict:
		return refuse(err)
	}
	return err
}

// ensureListener makes sure that the slot has a socket that listens. A new socket is a new route: it has a key of its
// own, so that nothing that was minted for the old one is accepted.
func (s *slot) ensureListener() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lis != nil {
		err := s.lis.revive() // a holder may have shut it down
		if err == nil {
			s.route.Generation++
			return nil
		}
		s.log.Warn("listener is lost, a new one is made", "port", s.route.Port, "error", err)
		s.closeListenerLocked()
	}
	s.open = false
	s.l.hub.remove(s.user)
	lis, err := s.l.ports.take(s.uid)
	if err != nil {
		return err
	}
	s.lis, s.inode = lis, lis.inode
	s.route = ipcapi.Route{
		User: s.user, UID: s.uid, Port: lis.port, Key: newKey(), Route: s.l.nextRoute.Add(1), Generation: 1,
	}
	return nil
}

// start runs the program and hands the listener over.
func (s *slot) start(ctx context.Context, checked localuser.Checked) (*process, error) {
	if !checked.Valid() {
		return nil, errors.New("start without a checked account") // a bug
	}
	pend, c, done, err := s.expect()
	if err != nil {
		return nil, err
	}
	st, err := s.awaitHello(ctx, pend, c)
	done()
	if err != nil {
		s.l.abandon(s, c)
		return nil, err
	}
	p, err := s.newProcess(st, c)
	if err != nil {
		st.finish()
		s.l.abandon(s, c)
		return nil, err
	}
	s.mu.Lock()
	s.procs[p.pid] = p
	s.mu.Unlock()
	if err := s.handOver(ctx, p, checked); err != nil {
		p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemStop, Reason: "the start was given up"})
		s.l.spawn(func() {
			s.l.ensureEnd(s.l.ctx, s, p, s.l.o.StopTimeout)
			s.drop(p)
		})
		return nil, err
	}
	return p, nil
}

// awaitHello waits for the stream of the started program, and takes it out of sudo's arms if sudo stayed.
func (s *slot) awaitHello(ctx context.Context, pend *pending, c *child) (*stream, error) {
	exited := c.exited
	for {
		select {
		case st := <-pend.hello:
			if st.pid == c.pid || st.hello.Detached {
				return st, nil
			}
			// sudo stays as the parent: for a PAM session, or because the sudo rule is not ours. The program runs
			// itself again in a session of its own and ends, so that sudo ends as well.
			s.mu.Lock()
			pend.detaching = true
			s.mu.Unlock()
			exited = nil // is going to end now, as it should
			st.push(ipcapi.InstanceItem{Kind: ipcapi.ItemDetach})
			st.finish()
		case <-exited:
			return nil, fmt.Errorf("start instance: %s", c.last())
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *slot) newProcess(st *stream, c *child) (*process, error) {
	p := &process{
		uid: s.uid, pid: st.pid, since: time.Now(), ready: make(chan struct{}), exited: make(chan struct{}),
		build: st.hello.Build, groups: st.hello.Groups, stream: st,
	}
	if st.pid == c.pid {
		p.child = c
		p.pidfd = c.pidfd
	} else {
		var err error
		if p.pidfd, err = pollable(st.pidfd); err != nil {
			return nil, err
		}
	}
	p.startTime, _ = startTimeOf(p.pid) // 0 where /proc is hidden
	p.watch(s.l.ctx, s.l)
	return p, nil
}

// handOver gives the process its listener and start-up document and waits until it serves.
func (s *slot) handOver(ctx context.Context, p *process, checked localuser.Checked) error {
	s.mu.Lock()
	lis, route := s.lis, s.route
	s.mu.Unlock()
	// On record before the hand-over: if this server dies now, the next one can adopt the instance.
	if err := s.l.registry.save(s.recordOf(p)); err != nil {
		return err
	}
	file, err := lis.file()
	if err != nil {
		return err
	}
	files := []*os.File{file}
	if p.child == nil {
		// The standard error of a detached process may lead through sudo, which has ended.
		w, _, err := s.l.newOutput(s.out)
		if err != nil {
			closeFiles(files)
			return err
		}
		files = append(files, w)
	}
	p.mu.Lock()
	p.settings = s.l.settings.Load()
	p.mu.Unlock()
	doc := s.startDocument(checked.Account(), route)
	now := s.clearanceNow(time.Now())
	doc.CheckAccount = !checked.SawShadow() && !s.l.o.Self && s.cleared != now
	if !p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemStart, Start: &doc}, files...) {
		return errors.New("hand over: the instance has gone")
	}
	gone, _ := p.gone()
	select {
	case <-p.ready:
	case <-p.exited:
		return fmt.Errorf("instance ended before it was ready: %s: %s", p.exitText(), strings.TrimSpace(s.out.tail(512)))
	case <-gone:
		return errors.New("instance closed its connection before it was ready")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.mu.Lock()
	why := p.refusal
	p.mu.Unlock()
	if why != "" {
		s.cleared = clearance{}
		return refuse(refusedByAccount(why))
	}
	s.cleared = now
	return nil
}

// clearance says when an account has found nothing against itself: the state of the account files and the day, because
// accounts expire at the beginning of one. The check starts a program, which is a quarter of a launch; it is not
// repeated while nothing can have changed. For accounts in a directory it finds nothing out in any case.
type clearance struct {
	files localuser.Stamp
	day   int64
}

func (s *slot) clearanceNow(now time.Time) clearance {
	return clearance{s.l.o.Policy.Directory().Stamp(), now.Unix() / 86400}
}

// startDocument is the reduced configuration plus what belongs to this route.
func (s *slot) startDocument(a localuser.Account, route ipcapi.Route) ipcapi.Start {
	doc := s.l.o.Settings()
	if s.l.o.Intents != nil {
		doc.Intents = s.l.o.Intents(s.user)
	}
	doc.User, doc.UID, doc.LocalName, doc.Home, doc.Shell = s.user, s.uid, a.Name, a.Home, a.Shell
	doc.ServiceUID, doc.Port, doc.Route, doc.HopKey = s.l.o.ServiceUID, route.Port, route.Route, route.Key
	def(&doc.IdleTimeoutMs, s.l.o.IdleTimeout.Milliseconds())
	def(&doc.DrainTimeoutMs, s.l.o.DrainTimeout.Milliseconds())
	def(&doc.ServerLossGraceMs, s.l.o.ServerLossGrace.Milliseconds())
	return doc
}

func (s *slot) recordOf(p *process) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return record{
		User: s.user, UID: s.uid, LocalName: s.localName, Port: s.route.Port, Inode: s.inode, Route: s.route.Route,
		Generation: s.route.Generation, HopKey: s.route.Key, PID: p.pid, StartTime: p.startTime, Build: p.build,
		Groups: p.groups, Since: p.since,
	}
}

// child is a program that the server has started itself.
type child struct {
	pid    int32
	pidfd  *os.File
	exited chan struct{}
	state  *os.ProcessState // valid after exited

	out    *userLog
	mark   uint64          // where its output begins in out
	outEnd <-chan struct{} // closed when all of it has been read
}

// last tells how the child ended and what it said.
func (c *child) last() string {
	t := time.NewTimer(200 * time.Millisecond) // somebody else may hold the pipe
	defer t.Stop()
	select {
	case <-c.outEnd:
	case <-t.C:
	}
	return fmt.Sprintf("%s: %s", c.state, strings.TrimSpace(c.out.since(c.mark, 1024)))
}

// exec starts ucloud-user as the account. Arguments and environment hold nothing but the uid; what the program needs to
// know it learns over the socket whose path is the one line on its standard input (contract 02 section 9.24).
func (l *Launcher) exec(uid ident.UID, out *userLog) (*child, error) {
	in, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start instance: %w", err)
	}
	defer in.Close()                          //nolint:errcheck // the program has its own
	_, err = w.WriteString(l.o.Socket + "\n") // fits into the pipe
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("start instance: %w", err)
	}
	mark := out.mark()
	stderr, outEnd, err := l.newOutput(out)
	if err != nil {
		return nil, fmt.Errorf("start instance: %w", err)
	}
	defer stderr.Close() //nolint:errcheck // the program has its own
	pidfd := -1
	command := func() *exec.Cmd {
		cmd := exec.Command(l.o.Sudo, "-n", "-u", "#"+uid.String(), "--", l.o.Program)
		if l.o.Self {
			cmd = exec.Command(l.o.Program)
		}
		cmd.Env = []string{} // not nil, which would mean ours
		cmd.Dir = "/"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, stderr, stderr
		// A session of its own: without a terminal in reach sudo makes no pty, even where use_pty is set, and no signal
		// of a terminal reaches instances.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
		return cmd
	}
	cmd := command()
	leave := l.cgroup.enter(cmd.SysProcAttr, uid, l.log)
	err = cmd.Start()
	leave()
	if err != nil && cmd.SysProcAttr.UseCgroupFD {
		l.log.Warn("cgroup cannot be entered, instance runs without one", "uid", uid, "error", err)
		cmd = command()
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start instance: %w", err)
	}
	c := &child{
		pid: int32(cmd.Process.Pid), exited: make(chan struct{}), out: out, mark: mark, outEnd: outEnd,
	}
	if pidfd < 0 {
		return nil, errors.New("start instance: the kernel has no pidfds, Linux 5.4 is needed")
	}
	if c.pidfd, err = pollableFD(pidfd); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(l.ctx, func() { c.pidfd.Close() }) //nolint:errcheck // ends the wait below
	ok := l.spawn(func() {
		defer stop()
		if waitReadable(c.pidfd) != nil {
			cmd.Process.Release() //nolint:errcheck // the server ends, the instance does not
			return
		}
		cmd.Wait() //nolint:errcheck // does not block now; the state tells
		c.state = cmd.ProcessState
		close(c.exited)
	})
	if !ok {
		return nil, errStopping
	}
	return c, nil
}

// newOutput makes a pipe for a standard error and copies what arrives to the user's log, until everybody has closed
// the writing end, when the channel is closed. The caller closes its own.
func (l *Launcher) newOutput(out *userLog) (*os.File, <-chan struct{}, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	end := make(chan struct{})
	stop := context.AfterFunc(l.ctx, func() { r.Close() }) //nolint:errcheck // ends the copying
	ok := l.spawn(func() {
		defer close(end)
		out.pump(r)
		stop()
		r.Close() //nolint:errcheck // nothing was written
	})
	if !ok {
		stop()
		r.Close() //nolint:errcheck // nothing was written
		w.Close() //nolint:errcheck // nothing was written
		return nil, nil, errStopping
	}
	return w, end, nil
}

// abandon ends a program that was started and never became an instance. Until sudo has become the user, it can be
// signalled; after that an executioner is needed.
func (l *Launcher) abandon(s *slot, c *child) {
	l.spawn(func() {
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			if err := signalFile(c.pidfd, sig); err != nil {
				break
			}
			if wait(l.ctx, c.exited, time.Second) {
				return
			}
		}
		if !wait(l.ctx, c.exited, time.Second) {
			l.execute(l.ctx, s, c.pidfd, c.exited)
		}
	})
}

// wait tells whether ch is closed within d.
func wait(ctx context.Context, ch <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ch:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}
