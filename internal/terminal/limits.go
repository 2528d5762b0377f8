package terminal

import (
	"time"

	"golang.org/x/sys/unix"
)

// lost is called after a connection has ended: a terminal that is not kept ends with it.
func (h *holder) lost() {
	if h.o.DetachMs <= 0 {
		h.terminate()
	}
}

// limits ends the shell when one of its times is up.
func (h *holder) limits() {
	for {
		next := h.due(time.Now())
		if next <= 0 {
			h.terminate()
			return
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-h.recount:
		case <-h.over:
			t.Stop()
			return
		}
		t.Stop()
	}
}

// due gives the time until the next limit. What moves a limit away is noticed when that time is over.
func (h *holder) due(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := 24 * time.Hour
	limit := func(since time.Time, d time.Duration) { next = min(next, since.Add(d).Sub(now)) }
	if h.o.MaxMs > 0 {
		limit(h.started, time.Duration(h.o.MaxMs)*time.Millisecond)
	}
	if h.o.IdleMs > 0 {
		limit(h.used, time.Duration(h.o.IdleMs)*time.Millisecond)
	}
	if h.conn == nil {
		patience := time.Duration(h.o.DetachMs) * time.Millisecond
		if h.left.Equal(h.started) {
			patience = max(patience, firstAttach)
		}
		limit(h.left, patience)
	}
	return next
}

// terminate hangs up, and makes sure that the shell ends.
func (h *holder) terminate() {
	h.kill(unix.SIGHUP)
	h.kill(unix.SIGCONT) // one that is stopped would not notice
	go func() {
		t := time.NewTimer(hangUp)
		defer t.Stop()
		select {
		case <-h.exited:
		case <-t.C:
			h.kill(unix.SIGKILL)
		}
	}()
}

// kill sends a signal to the shell's process group and to the one in the foreground.
func (h *holder) kill(sig unix.Signal) {
	select {
	case <-h.exited:
		return // the number may be another process's
	default:
	}
	if group := foregroundOf(h.tty); group > 1 && group != h.cmd.Process.Pid {
		unix.Kill(-group, sig) //nolint:errcheck // it may be gone
	}
	unix.Kill(-h.cmd.Process.Pid, sig) //nolint:errcheck // likewise
}
