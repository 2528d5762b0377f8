package localengine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process is the leader of a job's session.
type process struct {
	pid   int
	start uint64 // field 22 of /proc/PID/stat, clock ticks since boot
	boot  string // of the kernel that gave the pid
}

// bootID is the same for all processes since the machine was started.
var bootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})

// parseProcess reads what the supervisor has written.
func parseProcess(raw []byte) (process, error) {
	f := strings.Fields(string(raw))
	if len(f) != 3 {
		return process{}, fmt.Errorf("%d fields instead of 3", len(f))
	}
	pid, err := strconv.ParseInt(f[0], 10, 32)
	if err != nil || pid < 2 {
		return process{}, fmt.Errorf("pid %q", f[0])
	}
	start, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("start time: %w", err)
	}
	return process{pid: int(pid), start: start, boot: f[2]}, nil
}

// stat is what this package needs of /proc/PID/stat.
type stat struct {
	state   byte
	session int
	start   uint64
}

func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(raw)
}

// parseStat skips the name of the program, which may hold anything.
func parseStat(raw []byte) (stat, error) {
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(f) < 20 {
		return stat{}, errors.New("/proc/PID/stat is short")
	}
	session, err := strconv.Atoi(string(f[3]))
	if err != nil {
		return stat{}, fmt.Errorf("session: %w", err)
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{state: f[0][0], session: session, start: start}, nil
}

// open gives a descriptor that tells the end of the process. ok is false if the process has ended already, or the pid
// belongs to another one.
func (p process) open() (f *os.File, ok bool, err error) {
	if p.boot != bootID() {
		return nil, false, nil
	}
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("open pidfd: %w", err)
	}
	// The start time is read after the descriptor was opened: if it is the right one, so is the descriptor.
	if !p.alive() {
		unix.Close(fd) //nolint:errcheck // nothing was written
		return nil, false, nil
	}
	return os.NewFile(uintptr(fd), "pidfd"), true, nil
}

// alive tells whether the very process is there and has not ended.
func (p process) alive() bool {
	if p.boot != bootID() {
		return false
	}
	st, err := readStat(p.pid)
	return err == nil && st.start == p.start && st.state != 'Z' && st.state != 'X'
}

// wait returns when the process has ended, or f is closed. It holds no thread.
func wait(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
		n, err := unix.Poll(set, 0)
		if errors.Is(err, unix.EINTR) {
			return false
		}
		perr = err
		return err != nil || n == 1
	})
	return errors.Join(err, perr)
}

// signal sends a signal to the job: to the group of its leader, as long as that lives.
func (p process) signal(sig unix.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := unix.Kill(-p.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	return nil
}

// killAll kills everything in the session, the leader last. Processes that have made a session of their own are not found;
// nobody who only tries things out has such.
func (p process) killAll() {
	if p.boot != bootID() {
		return
	}
	if st, err := readStat(p.pid); err == nil && st.start != p.start {
		return // the number has a new owner, so nothing of the session is left
	}
	for range 3 { // what is killed may have started something meanwhile
		members := p.members()
		for _, pid := range members {
			_ = unix.Kill(pid, unix.SIGKILL) // gone already, or another user's
		}
		if len(members) == 0 {
			break
		}
	}
	if p.alive() {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
}

// members are the processes of the session without its leader.
func (p process) members() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var found []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == p.pid {
			continue
		}
		if st, err := readStat(pid); err == nil && st.session == p.pid && st.start >= p.start && st.state != 'Z' {
			found = append(found, pid)
		}
	}
	return found
}
