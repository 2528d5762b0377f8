package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

const (
	// linger keeps the stream open for a moment when there is nothing to do any more: the next task often comes soon.
	linger = 10 * time.Second
	// flushEvery is the least time between two reports of progress.
	flushEvery = 250 * time.Millisecond
)

// followLocked starts the follower if it does not run.
func (m *Manager) followLocked() {
	if m.following || m.closed {
		return
	}
	m.following = true
	m.wg.Go(m.follow)
}

// follow keeps the stream open until there is nothing to do.
func (m *Manager) follow() {
	pause := callPause
	for {
		start := time.Now()
		ended, err := m.session(m.life)
		if ended || m.life.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		if time.Since(start) > time.Minute {
			pause = callPause
		}
		m.log.Debug("the stream of tasks has ended", "error", err)
		if sleep(m.life, pause/2+rand.N(pause)) != nil {
			return
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// session opens the stream once and does what the server says. ended means that the follower has nothing more to do,
// and that following is false; with neither ended nor an error the stream is to be opened anew.
func (m *Manager) session(ctx context.Context) (ended bool, err error) {
	client, err := m.o.Server()
	if err != nil {
		return false, err
	}
	r, err := ipc.Open(ctx, client, ipcapi.TaskFollow, m.hello())
	if err != nil {
		return false, err
	}
	defer r.Close()
	for {
		next, cancel := m.patience(ctx)
		item, files, err := r.Next(next)
		quiet := errors.Is(next.Err(), context.DeadlineExceeded)
		cancel()
		for _, f := range files {
			f.Close() //nolint:errcheck // not expected, not used
		}
		switch {
		case err == nil:
			m.handle(item)
		case ctx.Err() != nil:
			return false, ctx.Err()
		case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the server has ended the stream: %w", err)
			}
			return false, err
		case quiet:
			if again, ended := m.rest(); again || ended {
				return ended, nil
			}
		}
	}
}

// hello says what we have in hand, for a server that does not know or was restarted.
func (m *Manager) hello() ipcapi.TaskHello {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty = false
	if m.pending == 0 {
		m.pending = -1 // until the server says so again
	}
	h := ipcapi.TaskHello{Max: m.o.MaxConcurrent}
	for _, t := range m.runs {
		h.Claims = append(h.Claims, ipcapi.TaskClaim{TaskRun: t.ref, Suspended: t.standing()})
		t.mu.Lock()
		t.news = true // the server may have forgotten
		t.mu.Unlock()
	}
	if len(m.runs) > 0 {
		m.flushSoonLocked()
	}
	return h
}

// patience is how long to wait for the next item: for ever while there is something to do.
func (m *Manager) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var cancel context.CancelFunc
	if m.quietLocked() {
		ctx, cancel = context.WithTimeout(ctx, linger)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	m.poke = cancel
	return ctx, cancel
}

func (m *Manager) quietLocked() bool { return m.pending == 0 && len(m.runs) == 0 && m.calls == 0 }

// rest ends the follower if there is nothing to do. If the server was asked for something since the stream was opened,
// the last item may be older than its effect; a new stream begins with the truth.
func (m *Manager) rest() (again, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.quietLocked():
		return false, false
	case m.dirty:
		return true, false
	}
	m.following = false
	return false, true
}

// handle does what the server says.
func (m *Manager) handle(item ipcapi.TaskItem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.settleLocked()
	t := m.runs[item.ID]
	if item.Kind != ipcapi.TaskItemRun && item.Kind != ipcapi.TaskItemPending && (t == nil || t.ref != item.TaskRun) {
		return // about a hand-out that we do not have any more
	}
	switch item.Kind {
	case ipcapi.TaskItemRun:
		m.takeLocked(item)
	case ipcapi.TaskItemPause:
		t.pause()
	case ipcapi.TaskItemResume:
		t.resume()
	case ipcapi.TaskItemCancel:
		t.stop(ErrCancelled)
	case ipcapi.TaskItemDrop:
		t.stop(errDropped)
	case ipcapi.TaskItemPending:
		m.pending = item.Pending
	}
}

// takeLocked starts the Runner of a task that is handed out.
func (m *Manager) takeLocked(item ipcapi.TaskItem) {
	before := m.runs[item.ID]
	switch {
	case item.Work == nil, before != nil && before.ref.Attempt >= item.Attempt:
		return
	case m.closed: // it was on its way
		m.wg.Go(func() { m.report(item.TaskRun, ipcapi.TaskEvent{TaskRun: item.TaskRun, Outcome: ipcapi.TaskReleased}) })
		return
	case before != nil:
		before.stop(errDropped) // the server knows of it no more
	}
	t := &Task{
		m: m, ref: item.TaskRun, kind: item.Work.Kind, params: item.Work.Params, saved: item.Work.Saved,
		done: make(chan struct{}), progress: Progress{Percent: -1},
	}
	t.ctx, t.stop = context.WithCancelCause(m.life)
	m.runs[item.ID] = t
	r := m.runners[item.Work.Kind]
	m.wg.Go(func() { m.run(t, r, before) })
}

// flushSoon has progress reported.
func (m *Manager) flushSoon() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushSoonLocked()
}

func (m *Manager) flushSoonLocked() {
	if m.flushing || m.closed {
		return
	}
	m.flushing = true
	m.wg.Go(m.flush)
}

// flush reports progress until there is none that is new.
func (m *Manager) flush() {
	for {
		m.mu.Lock()
		wait := flushEvery - time.Since(m.flushed)
		m.mu.Unlock()
		if wait > 0 && sleep(m.life, wait) != nil {
			return
		}
		batch := m.news()
		if batch == nil {
			return
		}
		err := send(m.life, m, ipcapi.TaskProgress, ipcapi.TaskProgressBatch{Tasks: batch})
		m.mu.Lock()
		m.flushed = time.Now()
		if err != nil && !settled(err) { // newer progress stays what it is
			for _, p := range batch {
				if t := m.runs[p.ID]; t != nil && t.ref == p.TaskRun {
					t.mu.Lock()
					t.news = true
					t.mu.Unlock()
				}
			}
			m.flushed = m.flushed.Add(time.Second) // the server is away
		}
		m.mu.Unlock()
	}
}

// news collects progress that has not been sent. Without any, flushing has ended.
func (m *Manager) news() (batch []ipcapi.TaskProgressed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.runs {
		if len(batch) == ipcapi.MaxTaskBatch {
			break
		}
		t.mu.Lock()
		if t.news {
			t.news = false
			batch = append(batch, ipcapi.TaskProgressed{TaskRun: t.ref, TaskState: ipcapi.TaskState{
				Body: t.progress.Body, Text: t.progress.Text, Percent: t.progress.Percent,
			}})
		}
		t.mu.Unlock()
	}
	m.flushing = len(batch) > 0
	return batch
}
