package launcher

import (
	"context"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

// askedToEnd answers a process that has had no request for the idle timeout, or has become quiet after a request to.
func (s *slot) askedToEnd(ctx context.Context, pp **process, c command) next {
	if c.proc != *pp {
		return 0 // a process that drains already; finish answers no
	}
	s.mu.Lock()
	renew := s.renew
	s.mu.Unlock()
	if renew {
		s.replace(ctx, pp)
		return 0
	}
	return s.endIdle(ctx, *pp, c.answer)
}

// endIdle ends an idle process without losing a request. The order matters:
//
//  1. the route goes, and every gateway confirms that it sends nothing over it any more. If one cannot confirm, the
//     instance stays: a request might be on its way;
//  2. the process is told to end. It still answers what it has received;
//  3. if a connection waits in the listener all the same, or somebody has asked for a route, a new process starts on
//     the same listener; otherwise the listener goes too.
func (s *slot) endIdle(ctx context.Context, p *process, answer chan<- bool) next {
	if err := s.withdraw(ctx); err != nil {
		s.log.Debug("idle instance stays, its route is not confirmed to be gone", "error", err)
		s.republish()
		return 0
	}
	s.setState(Stopping)
	s.l.counters.idleStops.Add(1)
	if answer != nil {
		answer <- true
	} else {
		p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemDrain, Reason: "idle"})
	}
	if !s.l.ensureEnd(ctx, s, p, s.l.o.DrainTimeout+s.l.o.StopTimeout) && ctx.Err() != nil {
		s.leave()
		return nextLeave
	}
	s.drop(p)
	s.mu.Lock()
	if s.lis != nil && s.lis.queued() {
		s.wanted = true
	}
	s.mu.Unlock()
	s.log.Info("idle instance has ended", "pid", p.pid)
	return s.end(ctx, nil)
}

// drain ends a process that may finish its requests first, whether or not gateways are there to confirm.
func (s *slot) drain(ctx context.Context, p *process, why error) next {
	s.setState(Stopping)
	s.unpublish()
	p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemDrain, Reason: failure.Why(why)})
	if !s.l.ensureEnd(ctx, s, p, s.l.o.DrainTimeout+s.l.o.StopTimeout) && ctx.Err() != nil {
		s.leave()
		return nextLeave
	}
	s.drop(p)
	return s.end(ctx, why)
}

// republish puts the route back.
func (s *slot) republish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.wanted = true, false
	s.l.hub.put(s.route)
	s.changedLocked()
}

// replace starts a new process on the same listener and drains the old one beside it: because the code or the groups
// of the old one are out of date. If the new one does not start, the old one stays.
func (s *slot) replace(ctx context.Context, pp **process) {
	old := *pp
	s.mu.Lock()
	s.renew = false
	s.mu.Unlock()
	fresh, err := s.launch(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.l.counters.launchFailures.Add(1)
			s.log.Warn("instance could not be replaced, the old one stays", "error", err)
			if err := s.l.registry.save(s.recordOf(old)); err != nil { // the failed one may have been put on record
				s.log.Error("instance is not on record", "error", err)
			}
		}
		return
	}
	// Both accept until the old one has closed its copy of the listener; then gateways close what they had open to it.
	old.send(ipcapi.InstanceItem{Kind: ipcapi.ItemDrain, Reason: "replaced"})
	s.becomeCurrent(fresh)
	s.catchUp(ctx, fresh)
	s.l.counters.replaced.Add(1)
	s.retire(old)
	*pp = fresh
}

// makeRoom stops the longest idle instance if there are as many as allowed.
func (l *Launcher) makeRoom(ctx context.Context, s *slot) error {
	s.mu.Lock()
	has := s.current != nil
	s.mu.Unlock()
	if has { // a replacement
		return nil
	}
	if l.running(s) < l.o.MaxInstances {
		return nil
	}
	select {
	case l.evicting <- struct{}{}:
		defer func() { <-l.evicting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for range 3 {
		if l.running(s) < l.o.MaxInstances {
			return nil
		}
		victim := l.longestIdle(ctx, s)
		if victim == nil {
			break
		}
		victim.log.Info("idle instance makes room for another user")
		done := make(chan struct{})
		victim.command(command{kind: cmdEvict, done: done})
		if !wait(ctx, done, l.o.ConfirmTimeout+l.o.DrainTimeout) {
			break
		}
	}
	if l.running(s) < l.o.MaxInstances {
		return nil
	}
	return failure.New(failure.NoInstance,
		"The provider is busy: %d users work at the moment, which is the limit. Please try again later", l.o.MaxInstances)
}

// running counts the other slots that have a process or are about to.
func (l *Launcher) running(but *slot) int {
	n := 0
	for _, s := range l.all() {
		if s != but && !s.idleForGood() {
			n++
		}
	}
	return n
}

// longestIdle asks all instances for their numbers and gives the one that has been idle for the longest time.
func (l *Launcher) longestIdle(ctx context.Context, but *slot) *slot {
	begun := time.Now()
	l.refresh(ctx, time.Second)
	var best *slot
	var longest int64 = -1
	for _, s := range l.all() {
		if s == but {
			continue
		}
		s.mu.Lock()
		p, st := s.current, s.state
		s.mu.Unlock()
		if p == nil || st != Running {
			continue
		}
		p.mu.Lock()
		if p.statsAt.After(begun) && p.stats.Active == 0 && p.stats.IdleSeconds > longest {
			best, longest = s, p.stats.IdleSeconds
		}
		p.mu.Unlock()
	}
	return best
}

// statsArrived wakes those who wait in refresh.
func (l *Launcher) statsArrived() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.stats)
	l.stats = make(chan struct{})
}

// refresh asks all running instances for their numbers and waits until they have answered, or for at most d.
func (l *Launcher) refresh(ctx context.Context, d time.Duration) {
	begun := time.Now()
	var asked []*process
	for _, s := range l.all() {
		s.mu.Lock()
		p := s.current
		s.mu.Unlock()
		if p != nil && p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemStats}) {
			asked = append(asked, p)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		l.mu.Lock()
		arrived := l.stats
		l.mu.Unlock()
		missing := false
		for _, p := range asked {
			p.mu.Lock()
			missing = missing || p.statsAt.Before(begun)
			p.mu.Unlock()
		}
		if !missing {
			return
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return
		}
	}
}
