package launcher

import (
	"cmp"
	"context"
	"errors"
	"time"

	"ucloud-im/internal/failure"
)

// What follows when a process ends unexpectedly or does not start: a new one, after a pause that grows, until there
// have been too many failures within the restart window.

var errTooOften = errors.New("too many failures in the restart window")

// throttledLocked refuses to start what has failed too often lately (contract 02 section 9.10).
func (s *slot) throttledLocked(now time.Time) error {
	s.forgetCrashesLocked(now)
	if len(s.crashes) < s.l.o.RestartMax {
		return nil
	}
	wait := s.crashes[0].Add(s.l.o.RestartWindow).Sub(now).Round(time.Second)
	return failure.Wrap(cmp.Or(s.err, errTooOften), failure.NoInstance, "Your instance at this provider has failed %d times in a row. "+
		"It will be tried again in %v; the operators can see the reason", len(s.crashes), wait)
}

func (s *slot) forgetCrashesLocked(now time.Time) {
	for len(s.crashes) > 0 && now.Sub(s.crashes[0]) >= s.l.o.RestartWindow {
		s.crashes = s.crashes[1:]
	}
}

// recordCrash counts a failure and gives the pause before the next try, false if there shall be none.
func (s *slot) recordCrash(now time.Time) (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetCrashesLocked(now)
	s.crashes = append(s.crashes, now)
	s.total++
	n := len(s.crashes)
	return backoff(n), n < s.l.o.RestartMax
}

// backoff is the pause after the nth failure in the window: none after the first, so that queued requests are
// answered in time, then doubling from half a second to half a minute.
func backoff(n int) time.Duration {
	if n <= 1 {
		return 0
	}
	return min(500*time.Millisecond<<min(n-2, 10), 30*time.Second)
}

// crashed handles the unexpected end of the current process. The listener stays: connections that wait in it are
// answered by the next process.
func (s *slot) crashed(ctx context.Context, p *process) next {
	s.l.counters.crashes.Add(1)
	s.drop(p)
	pause, again := s.recordCrash(time.Now())
	s.log.Warn("instance ended unexpectedly", "pid", p.pid, "status", p.exitText(), "output", s.out.tail(2048))
	err := failure.New(failure.NoInstance, "Your instance at this provider ended unexpectedly and is being started again")
	s.mu.Lock()
	recoverable := s.lis != nil || s.wanted
	s.mu.Unlock()
	if !recoverable { // it never came back after a restart of the server, and its socket is lost with it
		return s.end(ctx, err)
	}
	return s.again(ctx, err, pause, again)
}

// again waits before the next launch, or ends the slot if there shall be none.
func (s *slot) again(ctx context.Context, why error, pause time.Duration, allowed bool) next {
	if !allowed {
		s.l.counters.crashLoops.Add(1)
		s.log.Error("instance fails again and again, it is not restarted for now", "error", why)
		return s.end(ctx, why)
	}
	s.setState(Backoff)
	t := time.NewTimer(pause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nextLeave
		case <-t.C:
			s.setState(Starting)
			return nextLaunch
		case <-s.kick:
			for c, ok := s.nextMail(); ok; c, ok = s.nextMail() {
				if c.kind == cmdStop {
					n := s.stop(ctx, c.why)
					c.finish()
					return n
				}
				c.finish()
			}
		}
	}
}

// launchFailed decides what follows a launch that gave no process. A first launch is not repeated, the next request
// tries again. After a crash, connections may wait in the listener, so that it is.
func (s *slot) launchFailed(ctx context.Context, err error) next {
	if ctx.Err() != nil {
		s.leave()
		return nextLeave
	}
	s.l.counters.launchFailures.Add(1)
	s.mu.Lock()
	again := s.open
	s.mu.Unlock()
	if errors.Is(err, errRefused) {
		s.l.counters.refused.Add(1)
		s.log.Warn("launch refused", "error", err)
		return s.end(ctx, err)
	}
	if failure.Is(err, failure.Unavailable) { // the account database is down, which says nothing about the instance
		s.log.Warn("launch not possible now", "error", err)
		if again {
			return s.again(ctx, err, backoff(4), true)
		}
		return s.end(ctx, err)
	}
	pause, allowed := s.recordCrash(time.Now())
	s.log.Error("launch failed", "error", err, "output", s.out.tail(2048))
	if !again {
		return s.end(ctx, err)
	}
	return s.again(ctx, err, pause, allowed)
}
