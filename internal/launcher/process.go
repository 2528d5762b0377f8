package launcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// process is one instance as the server sees it: a pid, a pidfd that tells its end, and the stream it holds open.
type process struct {
	uid       ident.UID
	pid       int32
	startTime uint64 // field 22 of /proc/PID/stat; 0 if /proc does not show the process (hidepid)
	since     time.Time
	pidfd     *os.File
	child     *child        // set if the server is the parent
	exited    chan struct{} // closed when the process has ended
	ready     chan struct{} // closed at InstanceReady
	readyOnce sync.Once

	mu      sync.Mutex // guards the fields below
	build   string
	groups  []ident.GID
	refusal string // why the account may not be used, in the account's own view
	stream  *stream
	stats   ipcapi.Stats
	statsAt time.Time
	// settings is the number of the settings that the process was started with.
	settings uint64
}

// watch starts the goroutine that notices the end of the process. It holds no thread.
func (p *process) watch(ctx context.Context, l *Launcher) {
	if p.child != nil {
		p.exited = p.child.exited // the child's own watcher closes it after the exit status is known
		return
	}
	stop := context.AfterFunc(ctx, func() { p.pidfd.Close() }) //nolint:errcheck // ends the wait below
	l.spawn(func() {
		defer stop()
		// An error means that the server ends: the instance lives on.
		if err := waitReadable(p.pidfd); err == nil {
			close(p.exited)
		}
	})
}

// detach forgets a stream that has ended, unless another one has taken its place.
func (p *process) detach(gone <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream != nil && p.stream.gone == gone {
		p.stream = nil
	}
}

// close frees the pidfd after the end of the process, or of the server.
func (p *process) close() {
	p.mu.Lock()
	st := p.stream
	p.mu.Unlock()
	if st != nil {
		st.finish()
	}
	p.pidfd.Close() //nolint:errcheck // nothing was written
}

func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// send queues an item for the process. False means that it cannot be told: no stream, or it does not read.
func (p *process) send(it ipcapi.InstanceItem, files ...*os.File) bool {
	p.mu.Lock()
	s := p.stream
	p.mu.Unlock()
	if s == nil {
		for _, f := range files {
			f.Close() //nolint:errcheck // nothing was written
		}
		return false
	}
	return s.push(it, files...)
}

// attach makes s the stream of the process and ends an older one.
func (p *process) attach(s *stream) {
	p.mu.Lock()
	old := p.stream
	p.stream = s
	p.mu.Unlock()
	if old != nil {
		old.finish()
	}
}

// gone is closed when the current stream has ended; nil if there is none.
func (p *process) gone() (ch <-chan struct{}, attached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream == nil {
		return nil, false
	}
	return p.stream.gone, true
}

// exitText describes how the process ended, as far as the server can know.
func (p *process) exitText() string {
	if p.child != nil && p.child.state != nil {
		return p.child.state.String()
	}
	return "ended"
}

// pollable turns a pidfd into a file whose readability the runtime's poller reports. The given file stays the caller's.
func pollable(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("poll pidfd: %w", err)
	}
	var fd int
	var inner error
	if err := rc.Control(func(raw uintptr) { fd, inner = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, fmt.Errorf("poll pidfd: %w", err)
	}
	if inner != nil {
		return nil, fmt.Errorf("poll pidfd: %w", inner)
	}
	return pollableFD(fd)
}

// pollableFD owns fd. os.NewFile registers a descriptor with the poller only if it is non-blocking.
func pollableFD(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("poll pidfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// pidfdOpen opens a pidfd by process id. The caller must check afterwards that it is the process meant.
func pidfdOpen(pid int32) (*os.File, error) {
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitReadable blocks the goroutine, not a thread, until the pidfd reports the end of its process.
func waitReadable(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		if errors.Is(err, unix.EINTR) {
			return false
		}
		perr = err
		return err != nil || n == 1
	})
	if err == nil {
		err = perr
	}
	return err
}

// status is what /proc tells about a process of another user. The kernel vouches for it.
type status struct {
	ppid         int32
	uids         []uint64 // real, effective, saved, file system
	gids         []uint64
	groups       []ident.GID
	capabilities bool // some capability is inheritable, permitted, effective or ambient
}

// errHidden tells that /proc does not show the process: it has ended, or proc is mounted with hidepid.
var errHidden = errors.New("process is not visible in /proc")

func readStatus(pid int32) (status, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/status")
	if err != nil {
		return status{}, fmt.Errorf("%w: %w", errHidden, err)
	}
	return parseStatus(raw)
}

func parseStatus(raw []byte) (status, error) {
	var s status
	var seen int
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		fields := strings.Fields(value)
		var err error
		switch key {
		case "PPid":
			seen++
			var ns []uint64
			if ns, err = numbers(fields, 10); err == nil && len(ns) == 1 {
				s.ppid = int32(ns[0])
			}
		case "Uid":
			seen++
			s.uids, err = numbers(fields, 10)
		case "Gid":
			seen++
			s.gids, err = numbers(fields, 10)
		case "Groups":
			seen++
			var ns []uint64
			ns, err = numbers(fields, 10)
			for _, n := range ns {
				s.groups = append(s.groups, ident.GID(n))
			}
		case "CapInh", "CapPrm", "CapEff", "CapAmb": // not CapBnd, which is a limit and no right
			seen++
			var ns []uint64
			ns, err = numbers(fields, 16)
			s.capabilities = s.capabilities || slices.ContainsFunc(ns, func(n uint64) bool { return n != 0 })
		}
		if err != nil {
			return status{}, fmt.Errorf("parse /proc status, field %s: %w", key, err)
		}
	}
	if err := sc.Err(); err != nil {
		return status{}, fmt.Errorf("parse /proc status: %w", err)
	}
	if seen != 8 || len(s.uids) != 4 || len(s.gids) != 4 {
		return status{}, errors.New("parse /proc status: fields are missing")
	}
	return s, nil
}

func numbers(fields []string, base int) ([]uint64, error) {
	out := make([]uint64, 0, len(fields))
	for _, f := range fields {
		n, err := strconv.ParseUint(f, base, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// startTimeOf reads field 22 of /proc/PID/stat: with the pid it identifies a process for the life of the machine.
func startTimeOf(pid int32) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errHidden, err)
	}
	return parseStartTime(raw)
}

func parseStartTime(raw []byte) (uint64, error) {
	// The command name stands in parentheses and may itself hold blanks and parentheses (proc(5)).
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return 0, errors.New("parse /proc stat: no command name")
	}
	fields := strings.Fields(string(raw[end+1:]))
	if len(fields) < 20 {
		return 0, errors.New("parse /proc stat: too few fields")
	}
	n, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse /proc stat: start time: %w", err)
	}
	return n, nil
}

// descends tells whether the process is a descendant of ancestor. known is false where /proc does not tell.
func descends(pid, ancestor int32) (yes, known bool) {
	// sudo, at most a monitor and the program: more than a few steps up cannot be right.
	for range 5 {
		st, err := readStatus(pid)
		if err != nil {
			return false, false
		}
		if st.ppid == ancestor {
			return true, true
		}
		if st.ppid <= 1 {
			return false, true
		}
		pid = st.ppid
	}
	return false, true
}
