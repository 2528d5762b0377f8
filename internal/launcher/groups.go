package launcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/instance/exeid"
	"ucloud-im/internal/ipcapi"
)

// A process keeps the groups it was started with. So what the databases say now is compared with what the process has:
// on request ([Launcher.Recheck]), when the local account files change, and slowly for all, because directories behind
// SSSD or LDAP announce nothing. Less than before: the instance ends at once. More: a new one replaces it when idle
// (contract 02 section 9.9).

var errGroupsShrunk = failure.New(failure.NoInstance, "Your group memberships have changed, try again in a moment")

// Recheck looks at mapping, account and groups of the named users' instances, of all if there are no names. Call it
// when a mapping or a project has changed. It returns when all have been looked at; what must end is told so by then,
// and ends in the background.
func (l *Launcher) Recheck(ctx context.Context, users ...ident.UCloudUser) {
	l.o.Policy.Directory().Invalidate()
	for _, s := range l.all(users...) {
		if ctx.Err() != nil {
			return
		}
		l.recheck(ctx, s)
	}
}

// recheck looks at one slot. What cannot be found out now changes nothing.
func (l *Launcher) recheck(ctx context.Context, s *slot) {
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if p == nil {
		return
	}
	checked, err := s.check(ctx)
	switch {
	case errors.Is(err, errRefused):
		s.log.Warn("instance may not go on", "error", err)
		s.command(command{kind: cmdStop, why: err})
		return
	case err != nil:
		if ctx.Err() == nil {
			s.log.Warn("account cannot be checked, instance goes on for now", "error", err)
		}
		return
	}
	want, err := l.o.Policy.Directory().Groups(ctx, checked.Account().Name)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("groups cannot be checked, instance goes on for now", "error", err)
		}
		return
	}
	p.mu.Lock()
	have, build := p.groups, p.build
	p.mu.Unlock()
	lost, gained := compareGroups(have, want)
	current, err := exeid.Of(l.o.Program)
	switch {
	case l.o.Self: // the groups are those of the server's own login
	case lost:
		s.log.Info("instance has groups that the account has lost")
		s.command(command{kind: cmdStop, why: errGroupsShrunk})
		return
	case gained:
		s.log.Info("account has groups that the instance lacks, it is replaced when idle")
		s.command(command{kind: cmdRenew})
		return
	}
	if err == nil && build != current {
		s.log.Info("instance runs old code, it is replaced when idle")
		s.command(command{kind: cmdRenew})
		return
	}
	if !checked.SawShadow() && !l.o.Self {
		p.send(ipcapi.InstanceItem{Kind: ipcapi.ItemAccount})
	}
}

// compareGroups tells whether a process with the groups have has lost or gained something, compared with want.
func compareGroups(have, want []ident.GID) (lost, gained bool) {
	lost = slices.ContainsFunc(have, func(g ident.GID) bool { return !slices.Contains(want, g) })
	gained = slices.ContainsFunc(want, func(g ident.GID) bool { return !slices.Contains(have, g) })
	return lost, gained
}

// sweep looks at one instance after the other, each once per [Options.SweepInterval].
func (l *Launcher) sweep(ctx context.Context) {
	for {
		slots := l.all()
		pause := l.o.SweepInterval / time.Duration(max(1, len(slots)))
		if len(slots) == 0 {
			pause = l.o.SweepInterval
		}
		for _, s := range append(slots, nil) {
			if !sleep(ctx, pause) {
				return
			}
			if s != nil {
				l.recheck(ctx, s)
			}
			if len(slots) == 0 {
				break
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// accountDirs holds the local account files. They are replaced by renaming, so the directory is watched.
const accountDir = "/etc"

// watchAccounts looks at all instances when an account file has changed, a moment later, because tools change several.
func (l *Launcher) watchAccounts(ctx context.Context) {
	f, err := watchDir(accountDir)
	if err != nil {
		l.log.Warn("account files are not watched, changes are noticed later", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { f.Close() }) //nolint:errcheck // ends the read below
	defer f.Close()                                      //nolint:errcheck // nothing was written
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			if ctx.Err() == nil {
				l.log.Warn("account files are not watched any more", "error", err)
			}
			return
		}
		if !accountEvent(buf[:n]) {
			continue
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return
		}
		l.Recheck(ctx)
	}
}

func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("inotify_add_watch %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// accountEvent tells whether the events (inotify(7)) name one of the account files, or are too many to tell.
func accountEvent(buf []byte) bool {
	const header = 16
	for len(buf) >= header {
		mask := binary.NativeEndian.Uint32(buf[4:])
		n := int(binary.NativeEndian.Uint32(buf[12:]))
		if n < 0 || n > len(buf)-header {
			return true
		}
		name := strings.TrimRight(string(buf[header:header+n]), "\x00")
		buf = buf[header+n:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		switch name {
		case "passwd", "group", "shadow", "nsswitch.conf":
			return true
		}
	}
	return false
}
