package scripts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long things may take after a program should have ended.
const (
	killGrace  = 5 * time.Second  // between TERM and KILL (contract 42 SCR-6)
	drainGrace = 2 * time.Second  // for output that children of an ended program hold open (SCR-8)
	stuckGrace = 10 * time.Second // for the kernel to end a killed process, which it cannot while a file server hangs

	hurriedGrace = 250 * time.Millisecond // each of them, where somebody waits who does not wait long
)

// grace is d, or less in a hurry.
func (s *spec) grace(d time.Duration) time.Duration {
	if s.hurried {
		return min(d, hurriedGrace)
	}
	return d
}

// spec is what is started.
type spec struct {
	program      *program
	args         []string // without the program's name
	env          []string
	stdin        *os.File
	secrets      []*os.File // become descriptors 3 and up
	timeout      time.Duration
	hurried      bool
	maxOut       int
	maxErr       int
	stderrLine   func(string)
	addressSpace uint64 // bytes; 0: no limit
	processes    uint64 // of the account; 0: no limit
}

// ending is how a program ended.
type ending struct {
	exit        int    // -1: not by itself
	signal      string // that ended it
	timedOut    bool
	interrupted bool
	stuck       bool // killed, and still there
	out, err    *collector
	gone        <-chan struct{} // closed when the process does not exist any more
}

// process is a running program, and the leader of its process group.
type process struct {
	pid    int
	exited chan struct{} // closed when it has ended; its id stays taken until reap is closed
	reap   chan struct{}
	gone   chan struct{} // closed after it was reaped; state is set then
	state  *os.ProcessState
}

// run starts the program and waits for its end. An error means that it was not started.
func (s *spec) run(ctx context.Context) (*ending, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), outR.Close(), outW.Close())
	}
	p, err := s.start(outW, errW)
	outW.Close() //nolint:errcheck // the child has its own
	errW.Close() //nolint:errcheck // the child has its own
	if err != nil {
		return nil, errors.Join(err, outR.Close(), errR.Close())
	}
	e := &ending{exit: -1, out: collect(outR, s.maxOut, nil), err: collect(errR, s.maxErr, s.stderrLine), gone: p.gone}
	s.wait(ctx, p, e)
	close(p.reap)
	deadline := time.Now().Add(s.grace(drainGrace))
	for _, c := range []*collector{e.out, e.err} {
		_ = c.pipe.SetReadDeadline(deadline) // fails only if it is closed, which is what we wait for
		<-c.done
	}
	if e.stuck {
		return e, nil
	}
	<-p.gone
	if ws, ok := p.state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.signal = unix.SignalName(ws.Signal())
	} else {
		e.exit = p.state.ExitCode()
	}
	return e, nil
}

// wait returns when the program has ended, by itself or by us. While it runs, and until it is reaped, its id and that of
// its group cannot be those of somebody else.
func (s *spec) wait(ctx context.Context, p *process, e *ending) {
	limit := time.NewTimer(s.timeout)
	defer limit.Stop()
	select {
	case <-p.exited:
		return
	case <-limit.C:
		e.timedOut = true
	case <-ctx.Done():
		e.interrupted = true
	}
	p.signal(unix.SIGTERM)
	if !within(s.grace(killGrace), p.exited) {
		p.signal(unix.SIGKILL)
		e.stuck = !within(s.grace(stuckGrace), p.exited)
	}
	p.signal(unix.SIGKILL) // what the program has left behind
}

// signal reaches the whole group. It fails only if nobody is left in it.
func (p *process) signal(s unix.Signal) { _ = unix.Kill(-p.pid, s) }

func within(d time.Duration, c <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
		return false
	}
}

// start starts the program. One goroutine stays with it for life, on a thread of its own: the parent-death signal
// (prctl(2)) is sent when the thread that has forked ends, not the process.
func (s *spec) start(stdout, stderr *os.File) (*process, error) {
	// Everything of ours is close-on-exec. This also holds for descriptors that were inherited or opened by code that
	// does not know better.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("close descriptors: %w", err)
	}
	files := append([]*os.File{s.stdin, stdout, stderr}, s.secrets...)
	executable, done, err := s.program.executable(files)
	if err != nil {
		return nil, err
	}
	defer done()
	p := &process{exited: make(chan struct{}), reap: make(chan struct{}), gone: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		proc, err := os.StartProcess(executable, append([]string{s.program.path}, s.args...), &os.ProcAttr{
			Dir: "/", Env: s.env, Files: files,
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		})
		if err != nil {
			started <- fmt.Errorf("start %s: %w", s.program.path, errors.Unwrap(err))
			return
		}
		p.pid = proc.Pid
		s.confine(p.pid)
		started <- nil
		for unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		close(p.exited)
		<-p.reap
		// Cannot fail: nobody else waits for this child.
		p.state, _ = proc.Wait()
		close(p.gone)
	}()
	return p, <-started
}

// confine sets limits from outside, directly after the start: Go has no way to do it in between. A program that forks in
// the meantime is not a threat that limits could stop.
func (s *spec) confine(pid int) {
	set := func(resource int, n uint64) {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil) // it has ended already, or the limit is lower
	}
	set(unix.RLIMIT_CORE, 0) // an image could hold secrets
	if s.addressSpace > 0 {
		set(unix.RLIMIT_AS, s.addressSpace)
	}
	if s.processes > 0 {
		set(unix.RLIMIT_NPROC, s.processes)
	}
}
