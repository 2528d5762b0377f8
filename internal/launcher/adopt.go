package launcher

import (
	"context"
	"fmt"
	"os"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// errNotRegistered is the answer to a process that says it is an instance of ours and is not on record as one.
var errNotRegistered = failure.New(failure.Forbidden, "This process is not an instance of this service")

// recover reads the registry and makes slots for what still runs. Called once, before anybody else uses l.
func (l *Launcher) recover() error {
	records, err := l.registry.load()
	if err != nil {
		return err
	}
	inodes := map[uint64]ident.UID{}
	for _, r := range records {
		log := l.log.With("user", r.User, "uid", r.UID, "pid", r.PID)
		_, taken := inodes[r.Inode]
		if taken || l.slots[r.User] != nil || r.Port < 1024 {
			log.Warn("instance record is dropped, it contradicts another one")
			l.registry.remove(r.UID)
			continue
		}
		p, err := l.recovered(r)
		if err != nil {
			log.Info("registered instance has ended meanwhile", "error", err)
			l.registry.remove(r.UID)
			continue
		}
		inodes[r.Inode] = r.UID
		s := newSlot(l, r.User, Account{UID: r.UID, LocalName: r.LocalName})
		s.route = ipcapi.Route{
			User: r.User, UID: r.UID, Port: r.Port, Key: r.HopKey, Route: r.Route, Generation: r.Generation,
		}
		s.inode, s.current, s.procs[p.pid] = r.Inode, p, p
		s.state, s.running, s.open = Recovering, true, true
		l.slots[r.User], l.byUID[r.UID] = s, s
		l.ports.adopt(r.Port, r.UID)
		l.hub.put(s.route)
	}
	return nil
}

// recovered finds the process of a record, if it still is the same one.
func (l *Launcher) recovered(r record) (*process, error) {
	pidfd, err := pidfdOpen(r.PID)
	if err != nil {
		return nil, err
	}
	// The pidfd holds whatever has the number now. Compare after opening it: an unchanged start time shows that the
	// number has not been given to another process in between.
	err = func() error {
		began, err := startTimeOf(r.PID)
		if err != nil {
			return nil // hidden from us, or gone, which the pidfd tells at once
		}
		if r.StartTime != 0 && began != r.StartTime {
			return fmt.Errorf("pid %d is another process now", r.PID)
		}
		st, err := readStatus(r.PID)
		if err == nil && st.uids[0] != uint64(r.UID) {
			return fmt.Errorf("pid %d belongs to uid %d", r.PID, st.uids[0])
		}
		return nil
	}()
	if err != nil {
		pidfd.Close() //nolint:errcheck // nothing was written
		return nil, err
	}
	p := &process{
		uid: r.UID, pid: r.PID, startTime: r.StartTime, since: r.Since, pidfd: pidfd, ready: make(chan struct{}),
		exited: make(chan struct{}), build: r.Build, groups: r.Groups,
	}
	p.readyOnce.Do(func() { close(p.ready) })
	return p, nil
}

// resume gives an instance that lost the server its place back. See [takeBack] for what is checked about the socket.
func (l *Launcher) resume(ctx context.Context, s *slot, st *stream, files []*os.File) error {
	s.mu.Lock()
	p, route, inode, state := s.procs[st.pid], s.route, s.inode, s.state
	s.mu.Unlock()
	if p == nil || !p.alive() || st.hello.Route != route.Route || st.hello.Port != route.Port {
		return errNotRegistered
	}
	if p.startTime != 0 {
		if began, err := startTimeOf(st.pid); err == nil && began != p.startTime {
			return errNotRegistered
		}
	}
	if len(files) != 1 {
		return failure.New(failure.Invalid, "The listener is missing")
	}
	lis, err := takeBack(files[0], l.o.ServiceUID, route.Port, inode)
	if err != nil {
		return failure.Wrap(err, failure.Forbidden, "This is not the listener of the instance")
	}
	out, _, err := l.newOutput(s.out)
	if err != nil {
		lis.close(false)
		return err
	}
	s.mu.Lock()
	if s.lis == nil && s.procs[st.pid] == p {
		s.lis, lis = lis, nil
	}
	if s.state == Recovering {
		s.state = Running
	}
	s.mu.Unlock()
	if lis != nil {
		lis.close(false) // only the connection was lost, the server has its own
	}
	p.mu.Lock()
	p.build = st.hello.Build
	if ps, err := readStatus(st.pid); err == nil {
		p.groups = ps.groupSet()
	}
	p.mu.Unlock()
	p.attach(st)
	p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemAdopted}, out)
	s.configure(ctx, p) // another server may have other settings, and policies about intents must not lag behind
	l.counters.adopted.Add(1)
	s.log.Info("instance is back", "pid", p.pid, "port", route.Port, "was", state)
	s.poke()
	// Account, groups and code may have changed while there was no server.
	l.spawn(func() { l.recheck(l.ctx, s) })
	return nil
}
