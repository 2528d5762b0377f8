//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// supervised is a role that is started again when it ends, as the service manager would.
type supervised struct {
	role string
	w    *world
	out  *ring

	mu       sync.Mutex // guards what follows
	cmd      *exec.Cmd
	stopping bool
	// replaced tells that the process has started its own successor, as a gateway does on SIGUSR2: its end is no reason
	// to start it again.
	replaced bool
	starts   int
	done     chan struct{}
}

func supervise(t *testing.T, w *world, role string) *supervised {
	t.Helper()
	s := &supervised{role: role, w: w, out: &ring{}, done: make(chan struct{})}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func (s *supervised) start() error {
	cmd := exec.Command(s.w.ucloud, s.role, "--config-dir", filepath.Join(s.w.base, "config"))
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = s.out, s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.w.site.Service.Credential()}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the %s: %w", s.role, err)
	}
	s.mu.Lock()
	s.cmd = cmd
	s.starts++
	s.mu.Unlock()
	go s.wait(cmd)
	return nil
}

func (s *supervised) wait(cmd *exec.Cmd) {
	err := cmd.Wait()
	s.mu.Lock()
	over := s.stopping || s.replaced
	s.mu.Unlock()
	if over {
		close(s.done)
		return
	}
	fmt.Fprintf(s.out, "--- %s ended (%v), starting it again\n", s.role, err)
	time.Sleep(50 * time.Millisecond)
	if err := s.start(); err != nil {
		fmt.Fprintln(s.out, err)
		close(s.done)
	}
}

func (s *supervised) stop() {
	s.mu.Lock()
	s.stopping = true
	cmd := s.cmd
	s.mu.Unlock()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		_ = cmd.Process.Kill()
		<-s.done
	}
}

func (s *supervised) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.cmd.Process.Signal(sig)
}

func (s *supervised) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

func (s *supervised) startCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts
}

func (s *supervised) tail() string { return s.out.String() }

// ring keeps the end of a process's output, and all of it is searched for secrets.
type ring struct {
	mu   sync.Mutex
	text bytes.Buffer
}

const ringSize = 8 << 20

func (r *ring) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.text.Len() < ringSize {
		r.text.Write(b)
	}
	return len(b), nil
}

func (r *ring) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.text.String()
	const show = 64 << 10
	if len(s) > show {
		s = "…" + s[len(s)-show:]
	}
	return s
}

func (r *ring) all() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.text.Bytes())
}
