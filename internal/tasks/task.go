package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Task is one hand-out of a task to its [Runner].
type Task struct {
	m      *Manager
	ref    ipcapi.TaskRun
	kind   string
	params json.RawMessage
	ctx    context.Context // of the Runner
	stop   context.CancelCauseFunc
	done   chan struct{} // the Runner has ended, and the server knows

	mu       sync.Mutex // guards the fields below
	saved    json.RawMessage
	progress Progress
	news     bool          // progress has not been sent
	summary  string        // for the end
	gate     chan struct{} // paused until it is closed; nil: not paused
	standsIn bool          // the Runner waits at the gate
}

// ID is our id of the task.
func (t *Task) ID() int64 { return t.ref.ID }

// Params are those of the [Spec].
func (t *Task) Params() json.RawMessage { return t.params }

// Attempt counts the hand-outs of this task, beginning with 1.
func (t *Task) Attempt() int64 { return t.ref.Attempt }

// Saved is what [Task.Save] has stored last, in this or an earlier attempt; empty if there is nothing.
func (t *Task) Saved() json.RawMessage {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.saved
}

// Progress says how far the task is. It is cheap and may be called for every file: what is reported is the newest state,
// at most every 250 ms.
func (t *Task) Progress(p Progress) {
	p.Body, p.Text = cut(p.Body), cut(p.Text)
	if !(p.Percent >= 0) || math.IsInf(p.Percent, 0) { // JSON has neither NaN nor infinity
		p.Percent = -1
	}
	t.mu.Lock()
	t.progress = p
	first := !t.news
	t.news = true
	t.mu.Unlock()
	if first {
		t.m.flushSoon()
	}
}

// Summary is what the user reads when the task has succeeded or was cancelled, such as "312 files copied". A failure
// says why instead.
func (t *Task) Summary(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.summary = cut(text)
}

// Checkpoint gives the cause when the task is to end, and waits while it is paused. Call it between units of work, less
// than a second apart. Several goroutines of a Runner may call it; the first that waits makes the task count as paused.
func (t *Task) Checkpoint(ctx context.Context) error {
	for {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		t.mu.Lock()
		gate := t.gate
		first := gate != nil && !t.standsIn
		t.standsIn = gate != nil
		t.mu.Unlock()
		if gate == nil {
			return nil
		}
		if first {
			t.m.stands(t)
		}
		select {
		case <-gate:
		case <-ctx.Done():
		case <-t.ctx.Done():
		}
	}
}

// Paused tells whether the task is to stand still, for a Runner that has to end something before it calls Checkpoint.
func (t *Task) Paused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gate != nil
}

// Save stores where the task would continue, at most [ipcapi.MaxTaskSaved]. It is durable when Save returns nil. Each
// call costs a transaction of the server's database, so call it every few seconds at most; it waits if it is called too
// often, or while the server is away. The error is the cause with which the task ends, or tells that state is too long.
func (t *Task) Save(state json.RawMessage) error {
	if len(state) > ipcapi.MaxTaskSaved {
		return fmt.Errorf("save task: %d bytes, at most %d are possible", len(state), ipcapi.MaxTaskSaved)
	}
	for {
		err := send(t.ctx, t.m, ipcapi.TaskSave, ipcapi.TaskSaving{TaskRun: t.ref, Saved: state})
		switch {
		case err == nil:
			t.mu.Lock()
			t.saved = state
			t.mu.Unlock()
			return nil
		case t.ctx.Err() != nil:
			return context.Cause(t.ctx)
		case settled(err):
			t.m.log.Warn("a task is not ours any more", "task", t.ref.ID, "error", err)
			t.stop(errDropped)
			return errDropped
		}
		if err := sleep(t.ctx, time.Second); err != nil {
			return err
		}
	}
}

// standing tells whether the Runner waits at the gate.
func (t *Task) standing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.standsIn
}

// pause closes the gate.
func (t *Task) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gate == nil {
		t.gate = make(chan struct{})
	}
}

// resume opens it.
func (t *Task) resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gate != nil {
		close(t.gate)
		t.gate, t.standsIn = nil, false
	}
}

// state is the progress for the wire.
func (t *Task) state() ipcapi.TaskState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return ipcapi.TaskState{Body: t.progress.Body, Text: t.progress.Text, Percent: t.progress.Percent}
}

// run is the life of a hand-out.
func (m *Manager) run(t *Task, r Runner, before *Task) {
	defer close(t.done)
	if before != nil {
		<-before.done // never two Runners for one task
	}
	err := call(t.ctx, r, t)
	if ev, ok := m.conclude(t, err); ok {
		m.report(t.ref, ev)
	}
	t.stop(ErrInterrupted)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs[t.ref.ID] == t {
		delete(m.runs, t.ref.ID)
	}
	m.settleLocked()
	m.poke()
}

// panicError is the panic of a Runner.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func call(ctx context.Context, r Runner, t *Task) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{value: v, stack: debug.Stack()}
		}
	}()
	if r == nil {
		return failure.New(failure.Invalid, "This version of the service cannot continue the task")
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return r(ctx, t)
}

// conclude turns the result of a Runner into what is reported; false: nothing is.
func (m *Manager) conclude(t *Task, err error) (ipcapi.TaskEvent, bool) {
	ev := ipcapi.TaskEvent{TaskRun: t.ref, State: t.state()}
	t.mu.Lock()
	summary := t.summary
	t.mu.Unlock()
	// What was called with the context returns its plain error.
	if cause := context.Cause(t.ctx); cause != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ErrInterrupted)) {
		err = cause
	}
	switch {
	case err == nil:
		ev.Outcome, ev.State.Percent, ev.State.Text = ipcapi.TaskSucceeded, 100, summary
	case errors.Is(err, ErrCancelled):
		ev.Outcome, ev.State.Text = ipcapi.TaskCancelled, summary
	case errors.Is(err, errDropped):
		return ev, false
	case errors.Is(err, ErrInterrupted):
		ev.Outcome = ipcapi.TaskReleased
	default:
		ev.Outcome, ev.State.Text = ipcapi.TaskFailed, cut(failure.Why(err))
		if _, ok := errors.AsType[*transientError](err); ok {
			ev.Outcome = ipcapi.TaskRetry
		}
		attrs := []any{"task", t.ref.ID, "kind", t.kind, "attempt", t.ref.Attempt, "error", err}
		if p, ok := errors.AsType[*panicError](err); ok {
			attrs = append(attrs, "stack", string(p.stack))
		}
		m.log.Warn("a task did not succeed", attrs...)
	}
	return ev, true
}

// stands notes that a task waits at its gate, and lets the server know beside it.
func (m *Manager) stands(t *Task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settleLocked()
	if m.closed {
		return // it is being interrupted
	}
	m.wg.Go(func() {
		m.report(t.ref, ipcapi.TaskEvent{TaskRun: t.ref, Outcome: ipcapi.TaskSuspended, State: t.state()})
	})
}

// reportPause is how long an unanswered report waits before it is sent again, at most.
const reportPause = 2 * time.Second

// report delivers an event. It gives up when the server says that it does not count any more, and when the manager ends.
func (m *Manager) report(ref ipcapi.TaskRun, ev ipcapi.TaskEvent) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, reportPause) {
		err := send(m.life, m, ipcapi.TaskReport, ev)
		if err == nil {
			return
		}
		if settled(err) {
			m.log.Warn("the server refuses the report about a task", "task", ref.ID, "outcome", ev.Outcome, "error", err)
			return
		}
		if sleep(m.life, pause) != nil {
			m.log.Warn("the report about a task was not delivered, it will run again", "task", ref.ID, "outcome", ev.Outcome, "error", err)
			return
		}
	}
}

// sendTimeout bounds one call.
const sendTimeout = 15 * time.Second

func send[Req, Resp any](ctx context.Context, m *Manager, c ipc.Call[Req, Resp], req Req) error {
	client, err := m.o.Server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	_, err = ipc.Invoke(ctx, client, c, req)
	return err
}

// settled tells that a repetition of the call would get the same answer.
func settled(err error) bool {
	switch failure.KindOf(err) {
	case failure.Conflict, failure.NotFound, failure.Forbidden, failure.Invalid, failure.TooLarge:
		return true
	}
	return false
}
