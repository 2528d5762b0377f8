package tasks

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Causes with which the context of a [Runner] ends.
var (
	// ErrCancelled: somebody has cancelled the task. A Runner that returns it, or the error of its context, has the task
	// end as cancelled.
	ErrCancelled = errors.New("the task was cancelled")
	// ErrInterrupted: the instance ends, or the task has been given to another one. It will be taken up again from what
	// was saved.
	ErrInterrupted = errors.New("the task was interrupted")
)

// errDropped is the cause when the server says that a hand-out is not ours any more. It is an [ErrInterrupted] of which
// nothing is reported.
var errDropped = fmt.Errorf("%w: it was handed to another process", ErrInterrupted)

// Spec describes a new task.
type Spec struct {
	Kind  string // which Runner: small letters and _, at most 32
	Title string // one line for the user: what is being done
	Icon  string // of the web client: copy, trash, heroPaperAirplane, …; may be empty
	// CanPause and CanCancel decide which buttons the user has. A Runner whose task can do either must call
	// [Task.Checkpoint] at least once per second of work.
	CanPause, CanCancel bool
	Hidden              bool            // the user is not shown the task
	Key                 []byte          // 16 bytes; a second task with the same key is the first one. nil: random
	Params              json.RawMessage // what the Runner needs, at most [ipcapi.MaxTaskParams]
}

// Runner does the work of one kind of task. nil is success, [ErrCancelled] or [ErrInterrupted] what they say,
// [Transient] tries again later, and anything else is a failure: the user is shown [failure.Why] of it. A panic is a
// failure as well.
type Runner func(ctx context.Context, t *Task) error

// Progress is how far a task is. Say what is true: amounts that are done, and a percentage only if the whole is known.
type Progress struct {
	Body    string  // amounts, such as "1.20 GB/3.40 GB | 120 / 312 files"
	Text    string  // speed, such as "85.00 MB/s | 12.00 files/s"
	Percent float64 // 0 to 100; negative or not a number: unknown
}

// Transient marks an error that may pass: the task goes back to the queue and is tried again after a pause that grows
// from 4 s to 5 min, for 24 hours at most. A lack of space, quota or permission is not of that kind (contract 14
// section 5).
func Transient(err error) error {
	if err == nil {
		return nil
	}
	return &transientError{err}
}

type transientError struct{ error }

func (e *transientError) Unwrap() error { return e.error }

// Options configure a [Manager]. Server, Log and Busy are required.
type Options struct {
	// Server is the connection to the server; an error while it is away.
	Server func() (*ipc.Client, error)
	Log    *slog.Logger
	// MaxConcurrent bounds the tasks that run here at a time, beside what the server's configuration says. 0: it does
	// not.
	MaxConcurrent int
	// Busy tells the instance that it is not idle until done is called.
	Busy func() (done func())
}

// Manager runs the tasks of one instance. All methods may be called concurrently.
type Manager struct {
	o    Options
	log  *slog.Logger
	life context.Context // ends with Close; its goroutines live as long
	end  context.CancelFunc
	wg   sync.WaitGroup // all goroutines

	mu        sync.Mutex // guards the fields below
	runners   map[string]Runner
	runs      map[int64]*Task // handed out to us
	closed    bool
	following bool   // the follower runs
	dirty     bool   // something was asked of the server since the stream was opened
	calls     int    // submissions and wishes under way
	pending   int    // of the server: tasks that wait or run; negative: not known
	poke      func() // has the follower look again
	busy      func() // ends Busy; nil while not busy
	flushing  bool   // a flush of progress is under way or armed
	flushed   time.Time
}

// New makes a manager. It does nothing until Resume or Submit.
func New(o Options) *Manager {
	if o.Server == nil || o.Log == nil || o.Busy == nil {
		panic("tasks: Server, Log and Busy are required")
	}
	m := &Manager{
		o: o, log: o.Log.With("part", "tasks"), runners: map[string]Runner{}, runs: map[int64]*Task{}, pending: -1,
		poke: func() {},
	}
	m.life, m.end = context.WithCancel(context.Background())
	return m
}

// Register says how tasks of a kind are run. It must happen before Resume; registering a kind twice is a bug and panics.
func (m *Manager) Register(kind string, r Runner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runners[kind] != nil || r == nil {
		panic("tasks: kind " + kind + " is registered twice, or without a function")
	}
	m.runners[kind] = r
}

// callPause is how long a call waits before it is made again while the server is being restarted.
const callPause = 100 * time.Millisecond

// Submit stores a task at the server and returns its id. It is durable then: it will run, now or after a restart, when
// it is its turn. It never waits for the work.
//
// Unavailable means that the server could not be reached until ctx ended; if it was lost in the middle of the call the
// task may exist all the same.
func (m *Manager) Submit(ctx context.Context, s Spec) (id int64, err error) {
	req := ipcapi.TaskSubmission{
		Key: make([]byte, 16), Kind: s.Kind, Title: cut(s.Title), Icon: s.Icon, CanPause: s.CanPause, CanCancel: s.CanCancel,
		Hidden: s.Hidden, Params: s.Params,
	}
	rand.Read(req.Key) //nolint:errcheck // never fails
	if s.Key != nil {
		req.Key = s.Key
	}
	m.mu.Lock()
	known, closed := m.runners[s.Kind] != nil || s.Kind == ipcapi.TaskReceive, m.closed
	m.mu.Unlock()
	switch {
	case !known:
		return 0, fmt.Errorf("submit task: kind %q is not registered", s.Kind)
	case closed:
		return 0, failure.New(failure.Unavailable, "Your instance is ending, try again")
	case len(s.Params) > ipcapi.MaxTaskParams:
		return 0, failure.New(failure.TooLarge, "The request names too many files at once")
	}
	ref, err := asking(ctx, m, ipcapi.TaskSubmit, req)
	return ref.ID, err
}

// Control passes on what the user asked Core for: pause (SUSPENDED), resume (RUNNING) or cancel (CANCELLED) of the task
// that Core knows by coreID. It is stored before Control returns. NotFound: the user has no such task; Invalid: it can
// not be paused or cancelled. Repeating it is harmless.
func (m *Manager) Control(ctx context.Context, coreID int64, state string) error {
	_, err := asking(ctx, m, ipcapi.TaskControl, ipcapi.TaskWish{CoreID: coreID, State: state})
	return err
}

// asking makes a call that may give this instance work, so that the stream must be open afterwards. While the server is
// being restarted the call is repeated: it is the same to the server whether it comes once or twice.
func asking[Req, Resp any](ctx context.Context, m *Manager, call ipc.Call[Req, Resp], req Req) (resp Resp, err error) {
	m.mu.Lock()
	m.calls++
	m.settleLocked()
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.calls--
		m.dirty = true
		m.followLocked()
		m.settleLocked()
		m.mu.Unlock()
	}()
	for {
		var c *ipc.Client
		if c, err = m.o.Server(); err == nil {
			if resp, err = ipc.Invoke(ctx, c, call, req); err == nil {
				return resp, nil
			}
		}
		if !failure.Is(err, failure.Unavailable) {
			return resp, err
		}
		if sleep(ctx, callPause) != nil || m.life.Err() != nil {
			return resp, err // the server's absence says more than the end of ctx
		}
	}
}

// Resume takes up tasks that an earlier instance of the user has left. It does not wait for them.
func (m *Manager) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.followLocked()
	return nil
}

// Close interrupts all tasks, gives them back to the server and ends. Call it as soon as the instance is to end, while
// the server can still be reached; tasks that are not given back are taken up a little later. It waits for the Runners
// and the reports until ctx ends. Closing again only waits.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	following := m.following && !m.closed
	m.closed = true
	m.mu.Unlock()
	if following { // otherwise what is given back would be handed to us again
		m.leave(ctx)
	}
	m.mu.Lock()
	ended := make([]<-chan struct{}, 0, len(m.runs))
	for _, t := range m.runs {
		t.stop(ErrInterrupted)
		ended = append(ended, t.done)
	}
	m.settleLocked()
	m.mu.Unlock()
	for _, done := range ended {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	m.end()
	all := make(chan struct{})
	go func() { m.wg.Wait(); close(all) }() // ends with the last Runner, or with the process
	select {
	case <-all:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end tasks: %w", ctx.Err())
	}
}

// leaveTimeout bounds how long the server is asked for no more tasks.
const leaveTimeout = 2 * time.Second

func (m *Manager) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if err := send(ctx, m, ipcapi.TaskLeave, ipcapi.Empty{}); err != nil {
		m.log.Debug("the server was not told that no tasks are taken any more", "error", err)
	}
}

// settleLocked makes the instance busy or not: it is while a task runs, or waits for its turn at the server. A paused
// one is none of the two: its user may leave it so for days.
func (m *Manager) settleLocked() {
	active := m.calls > 0 || m.pending > 0
	for _, t := range m.runs {
		active = active || !t.standing()
	}
	active = active && !m.closed
	switch {
	case active && m.busy == nil:
		m.busy = m.o.Busy()
	case !active && m.busy != nil:
		m.busy()
		m.busy = nil
	}
}

// sleep waits, or gives the cause of the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// cut bounds a text on its way to the server, which makes it fit for people.
func cut(s string) string { return s[:min(len(s), 4<<10)] }
