package launcher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

// How a hung instance is ended. The server has another uid than the instance, so that kill(2) and
// pidfd_send_signal(2) are refused. Three ways, tried in this order:
//
//  1. directly, which works when both have the same uid (development);
//  2. cgroup.kill, where a cgroup subtree was delegated to the service account; it also ends the children;
//  3. an executioner: the program is started for the same uid once more, receives the pidfd of the hung process and
//     sends SIGKILL as that user. A pidfd cannot hit a process that has got the same number since.
//
// The third needs the sudo rule to allow the user still. A hung instance of somebody who has left the allowed group
// can only be ended by root, or through a cgroup; it is isolated (no route, no listener) and reported.

const (
	executions        = 3
	executionDeadline = 10 * time.Second
)

var errUnkillable = errors.New("the process could not be ended")

// stop ends all processes of the slot, and the slot with them. Requests under way are cut; who asks later is to hear why
// there is no instance, so gateways confirm first that they send no more, but none that does not answer keeps a process.
func (s *slot) stop(ctx context.Context, why error) next {
	s.setState(Stopping)
	if err := s.withdraw(ctx); err != nil && ctx.Err() == nil {
		s.log.Debug("instance is stopped although its route is not confirmed to be gone", "error", err)
	}
	s.log.Info("instance is stopped", "reason", failure.Why(why))
	s.mu.Lock()
	var procs []*process
	for _, p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	for _, p := range procs {
		p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemStop, Reason: failure.Why(why)})
	}
	for _, p := range procs {
		s.l.ensureEnd(ctx, s, p, s.l.o.StopTimeout)
		if ctx.Err() != nil {
			s.leave()
			return nextLeave
		}
		s.drop(p)
	}
	return s.end(ctx, why)
}

// lost ends a process that lives but has not talked to the server for the grace, and starts a new one.
func (s *slot) lost(ctx context.Context, p *process) next {
	s.l.counters.hung.Add(1)
	s.l.ensureEnd(ctx, s, p, 0)
	if ctx.Err() != nil {
		s.leave()
		return nextLeave
	}
	return s.crashed(ctx, p)
}

// retire waits for the end of a process that was replaced and drains.
func (s *slot) retire(p *process) {
	s.l.spawn(func() {
		s.l.ensureEnd(s.l.ctx, s, p, s.l.o.DrainTimeout+s.l.o.StopTimeout)
		s.drop(p)
	})
}

// ensureEnd gives the process some time to end by itself and then makes it.
func (l *Launcher) ensureEnd(ctx context.Context, s *slot, p *process, patience time.Duration) bool {
	if wait(ctx, p.exited, patience) {
		return true
	}
	if ctx.Err() != nil {
		return false
	}
	s.log.Warn("instance does not end by itself, it is killed", "pid", p.pid)
	if l.execute(ctx, s, p.pidfd, p.exited) {
		l.counters.kills.Add(1)
		return true
	}
	if ctx.Err() == nil {
		l.counters.unkillable.Add(1)
		s.log.Error("hung instance cannot be ended, root must kill it", "pid", p.pid, "error", errUnkillable)
	}
	return false
}

// execute ends the process behind pidfd by whatever way works.
func (l *Launcher) execute(ctx context.Context, s *slot, pidfd *os.File, exited <-chan struct{}) bool {
	if signalFile(pidfd, unix.SIGKILL) == nil {
		return wait(ctx, exited, executionDeadline)
	}
	if l.cgroup.kill(s.uid) == nil && wait(ctx, exited, time.Second) {
		return true
	}
	select {
	case l.kills <- struct{}{}:
		defer func() { <-l.kills }()
	case <-exited:
		return true
	case <-ctx.Done():
		return false
	}
	for range executions {
		if err := l.executioner(ctx, s, pidfd, exited); err != nil {
			s.log.Warn("executioner failed", "error", err)
		}
		if wait(ctx, exited, time.Second) {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return false
}

// executioner starts the program for the same uid and gives it the pidfd.
func (l *Launcher) executioner(ctx context.Context, s *slot, pidfd *os.File, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, executionDeadline)
	defer cancel()
	pend, c, done, err := s.expect()
	if err != nil {
		return err
	}
	defer done()
	select {
	case st := <-pend.hello:
		victim, err := pollable(pidfd)
		if err != nil {
			st.finish()
			return err
		}
		if !st.push(ipcapi.InstanceItem{Kind: ipcapi.ItemKill}, victim) {
			return errors.New("executioner has gone")
		}
		st.finish()
	case <-c.exited:
		return fmt.Errorf("start executioner: %s", c.last())
	case <-exited:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	if !wait(ctx, exited, executionDeadline) {
		return errUnkillable
	}
	return nil
}

// signalFile is pidfd_send_signal(2).
func signalFile(pidfd *os.File, sig unix.Signal) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return inner
}

// newKey makes the hop token key of a route.
func newKey() []byte {
	k := make([]byte, keyBytes)
	rand.Read(k) //nolint:errcheck // never fails, crypto/rand documents it
	return k
}
