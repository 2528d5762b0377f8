package slurmkit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// share is this process's part in the agreement of all test processes about who may stop daemons. A process whose
// tests use the cluster holds a lock that others may hold too; one that makes an outage holds it alone. A second lock,
// the gate, is what both pass through, so that users who come and go do not keep an outage waiting for ever.
type share struct {
	mu     sync.Mutex
	users  int      // tests of this process that have the cluster
	file   *os.File // the lock, while there are any
	outage sync.Mutex
}

var shared = &share{}

// lockPatience ends a test that waits for others longer than they can possibly take.
const lockPatience = 10 * time.Minute

// lock takes a lock of all processes. The kernel gives it back when the process ends, whatever happens.
func lock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if (!errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR)) || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *share) take(state string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		gate, err := lock(filepath.Join(state, "gate.lock"), syscall.LOCK_EX)
		if err != nil {
			return err
		}
		defer gate.Close() //nolint:errcheck // gives the lock back
		if s.file, err = lock(filepath.Join(state, "users.lock"), syscall.LOCK_SH); err != nil {
			return err
		}
	}
	s.users++
	return nil
}

func (s *share) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 && s.file != nil {
		_ = s.file.Close()
		s.file = nil
	}
}

// alone runs do while no other test, of this process or another, has the cluster. The caller has it.
func (s *share) alone(state string, do func()) error {
	s.outage.Lock() // one at a time here; the others wait without a share in the lock
	defer s.outage.Unlock()
	s.give()
	defer func() { _ = s.take(state) }()
	for deadline := time.Now().Add(lockPatience); ; {
		s.mu.Lock() // held during the outage: no test of this process takes the cluster
		if s.users == 0 {
			break
		}
		s.mu.Unlock()
		if time.Now().After(deadline) {
			return errors.New("other tests of this process do not give the cluster back")
		}
		time.Sleep(20 * time.Millisecond)
	}
	defer s.mu.Unlock()
	gate, err := lock(filepath.Join(state, "gate.lock"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer gate.Close() //nolint:errcheck // gives the lock back
	users, err := lock(filepath.Join(state, "users.lock"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer users.Close() //nolint:errcheck // as above
	do()
	return nil
}

// Outage runs do while nobody else uses the cluster: only there may daemons be stopped. When it returns all of them
// run again. The calling test has started the cluster once, and waits for all other tests that use it.
func (c *Cluster) Outage(t testing.TB, do func(o *Outage)) {
	t.Helper()
	err := c.share.alone(c.state, func() {
		o := &Outage{c: c, t: t}
		// Also when do ends the test by t.Fatal.
		defer func() {
			if err := start(); err != nil {
				t.Error(err)
			}
		}()
		do(o)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Outage stops and starts daemons.
type Outage struct {
	c *Cluster
	t testing.TB
}

// StopController ends slurmctld. Jobs go on, and every command that asks it fails.
func (o *Outage) StopController() { o.stop("ctld/slurmctld.pid", "slurmctld") }

// StopDatabase ends slurmdbd. sacct and sacctmgr fail.
func (o *Outage) StopDatabase() { o.stop("dbd/slurmdbd.pid", "slurmdbd") }

// KillNode kills the daemon of a node. slurmctld finds out after SlurmdTimeout (60 s), or when it is told that the node
// is down.
func (o *Outage) KillNode(node string) { o.end("slurmd/"+node+".pid", "slurmd", syscall.SIGKILL) }

// Restore starts whatever does not run.
func (o *Outage) Restore() {
	o.t.Helper()
	if err := start(); err != nil {
		o.t.Fatal(err)
	}
}

func (o *Outage) stop(pidFile, program string) { o.end(pidFile, program, syscall.SIGTERM) }

// end ends a daemon by the process in its file, by force after a while: slurmctld 22.05 may hang at its end.
func (o *Outage) end(pidFile, program string, signal syscall.Signal) {
	o.t.Helper()
	path := filepath.Join(o.c.state, pidFile)
	pid := runningPID(path, program)
	if pid == 0 {
		o.t.Fatalf("%s does not run", program)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		o.t.Fatal(err)
	}
	begin := time.Now()
	for runningPID(path, program) == pid {
		if time.Since(begin) > 5*time.Second {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if time.Since(begin) > patience {
			o.t.Fatalf("%s does not end", program)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runningPID is the process in a pid file if that is a living process of the program, 0 otherwise.
func runningPID(path, program string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.HasPrefix(string(status), "Name:\t"+program+"\n") || strings.Contains(string(status), "\nState:\tZ") {
		return 0
	}
	return pid
}

// Drain takes a node out of service for new jobs until the test ends. One test at a time does that, so that the others
// always have nodes left.
func (c *Cluster) Drain(t testing.TB, node string) {
	t.Helper()
	held, err := lock(filepath.Join(c.state, "drain.lock"), syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.resume(t, node)
		_ = held.Close()
	})
	c.Run(t, "scontrol", "update", "NodeName="+node, "State=DRAIN", "Reason=test")
}

// resume puts a node back into service.
func (c *Cluster) resume(t testing.TB, node string) {
	t.Helper()
	c.until(t, "node "+node, func() bool {
		out, err := c.Output("sinfo", "-h", "-n", node, "-p", "normal", "-o", "%T")
		if err != nil {
			return false
		}
		switch state := strings.TrimSpace(out); {
		case state == "idle" || state == "mixed" || state == "allocated" || state == "completing":
			return true
		case strings.HasPrefix(state, "drain") || strings.HasPrefix(state, "down"):
			_, _ = c.Output("scontrol", "update", "NodeName="+node, "State=RESUME")
		}
		return false
	})
}
