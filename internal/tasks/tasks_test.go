package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a server that says what the test wants. It knows no rules; those are tested with the real one in
// package taskserver.
type server struct {
	t      *testing.T
	socket string
	stop   func()
	items  chan ipcapi.TaskItem // to be sent to whoever follows

	mu      sync.Mutex
	hellos  []ipcapi.TaskHello
	events  []ipcapi.TaskEvent
	batches []ipcapi.TaskProgressBatch
	saved   []ipcapi.TaskSaving
	submits []ipcapi.TaskSubmission
	wishes  []ipcapi.TaskWish
	leaves  int
	follows int // open streams
	fail    func(call string) error
}

func (s *server) check(call string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(call)
}

func handle[Req, Resp any](s *server, srv *ipc.Server, c ipc.Call[Req, Resp], do func(Req) Resp) {
	ipc.Handle(srv, c, func(_ context.Context, _ *ipc.Request, req Req) (resp Resp, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.check(c.Name); err != nil {
			return resp, err
		}
		return do(req), nil
	})
}

func newServer(t *testing.T) *server {
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "s"), items: make(chan ipcapi.TaskItem, 100)}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) start() {
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{Mapped: true, User: "Ada#1"}, nil
	}})
	ipc.HandleStream(srv, ipcapi.TaskFollow, func(ctx context.Context, _ *ipc.Request, h ipcapi.TaskHello, send func(ipcapi.TaskItem, ...*os.File) error) error {
		s.mu.Lock()
		s.hellos = append(s.hellos, h)
		s.follows++
		s.mu.Unlock()
		defer func() { s.mu.Lock(); s.follows--; s.mu.Unlock() }()
		for {
			select {
			case item := <-s.items:
				if err := send(item); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	handle(s, srv, ipcapi.TaskSubmit, func(r ipcapi.TaskSubmission) ipcapi.TaskRef {
		s.submits = append(s.submits, r)
		return ipcapi.TaskRef{ID: int64(len(s.submits))}
	})
	handle(s, srv, ipcapi.TaskProgress, func(r ipcapi.TaskProgressBatch) ipcapi.Empty { s.batches = append(s.batches, r); return ipcapi.Empty{} })
	handle(s, srv, ipcapi.TaskReport, func(r ipcapi.TaskEvent) ipcapi.Empty { s.events = append(s.events, r); return ipcapi.Empty{} })
	handle(s, srv, ipcapi.TaskSave, func(r ipcapi.TaskSaving) ipcapi.Empty { s.saved = append(s.saved, r); return ipcapi.Empty{} })
	handle(s, srv, ipcapi.TaskControl, func(r ipcapi.TaskWish) ipcapi.Empty { s.wishes = append(s.wishes, r); return ipcapi.Empty{} })
	handle(s, srv, ipcapi.TaskLeave, func(ipcapi.Empty) ipcapi.Empty { s.leaves++; return ipcapi.Empty{} })
	l, err := ipc.Listen(s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
}

// get reads something under the lock.
func get[T any](s *server, f func() T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

func (s *server) outcomes() []string {
	return get(s, func() (out []string) {
		for _, e := range s.events {
			out = append(out, e.Outcome)
		}
		return out
	})
}

func (s *server) run(id, attempt int64, saved string) {
	s.items <- ipcapi.TaskItem{
		Kind: ipcapi.TaskItemRun, TaskRun: ipcapi.TaskRun{ID: id, Attempt: attempt},
		Work: &ipcapi.TaskWork{Kind: "copy", Params: json.RawMessage(`{"p":1}`), Saved: json.RawMessage(saved)},
	}
}

func (s *server) tell(kind string, id, attempt int64) {
	s.items <- ipcapi.TaskItem{Kind: kind, TaskRun: ipcapi.TaskRun{ID: id, Attempt: attempt}}
}

// link is a connection that is made again.
type link struct {
	s  *server
	mu sync.Mutex
	c  *ipc.Client
}

func (l *link) get() (*ipc.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c != nil {
		select {
		case <-l.c.Done():
			_ = l.c.Close()
		default:
			return l.c, nil
		}
	}
	var err error
	l.c, err = ipc.Dial(context.Background(), l.s.socket, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	return l.c, err
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c != nil {
		_ = l.c.Close()
	}
}

func newManager(t *testing.T, s *server, r Runner) (m *Manager, busy *atomic.Int64) {
	l, busy := &link{s: s}, new(atomic.Int64)
	m = New(Options{
		Server: l.get, Log: slog.New(slog.DiscardHandler),
		Busy: func() func() { busy.Add(1); return sync.OnceFunc(func() { busy.Add(-1) }) },
	})
	m.Register("copy", r)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
		if busy.Load() != 0 {
			t.Error("busy after the end")
		}
		l.close()
	})
	return m, busy
}

func resume(t *testing.T, m *Manager) {
	t.Helper()
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Each result of a Runner is reported as what it means.
func TestResults(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		runner  Runner
		item    string // sent while it runs
		outcome string // "": nothing is reported
		text    string
	}{
		"success":        {func(_ context.Context, t *Task) error { t.Summary("3 files"); return nil }, "", "succeeded", "3 files"},
		"failure":        {func(context.Context, *Task) error { return failure.New(failure.NotFound, "It is gone") }, "", "failed", "It is gone"},
		"private":        {func(context.Context, *Task) error { return errors.New("secret") }, "", "failed", "An internal error occurred"},
		"panic":          {func(context.Context, *Task) error { panic("secret") }, "", "failed", "An internal error occurred"},
		"transient":      {func(context.Context, *Task) error { return Transient(failure.New(failure.BadGateway, "Away")) }, "", "retry", "Away"},
		"no error":       {func(context.Context, *Task) error { return Transient(nil) }, "", "succeeded", ""},
		"own cancel":     {func(context.Context, *Task) error { return ErrCancelled }, "", "cancelled", ""},
		"cancel":         {func(ctx context.Context, _ *Task) error { <-ctx.Done(); return context.Cause(ctx) }, "cancel", "cancelled", ""},
		"plain error":    {func(ctx context.Context, _ *Task) error { <-ctx.Done(); return ctx.Err() }, "cancel", "cancelled", ""},
		"too late":       {func(ctx context.Context, _ *Task) error { <-ctx.Done(); return nil }, "cancel", "succeeded", ""},
		"other failure":  {func(ctx context.Context, _ *Task) error { <-ctx.Done(); return failure.New(failure.Invalid, "No") }, "cancel", "failed", "No"},
		"drop":           {func(ctx context.Context, _ *Task) error { <-ctx.Done(); return ctx.Err() }, "drop", "", ""},
		"strange cancel": {func(context.Context, *Task) error { return context.Canceled }, "", "failed", "An internal error occurred"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			begun, ended := make(chan struct{}), make(chan struct{})
			m, busy := newManager(t, s, func(ctx context.Context, t *Task) error {
				close(begun)
				defer close(ended)
				return tc.runner(ctx, t)
			})
			resume(t, m)
			s.run(5, 2, "")
			<-begun
			if tc.item != "" {
				s.tell(tc.item, 5, 1) // about an older hand-out: nothing
				s.tell(tc.item, 5, 2)
			}
			<-ended
			testkit.Eventually(t, "the end", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.runs) == 0 })
			testkit.Eventually(t, "idle", func() bool { return busy.Load() == 0 })
			events := get(s, func() []ipcapi.TaskEvent { return slices.Clone(s.events) })
			switch {
			case tc.outcome == "":
				if len(events) > 0 {
					t.Errorf("%+v", events)
				}
			case len(events) != 1 || events[0].Outcome != tc.outcome || events[0].State.Text != tc.text || events[0].Attempt != 2:
				t.Errorf("%+v", events)
			case tc.outcome == "succeeded" && events[0].State.Percent != 100:
				t.Errorf("%+v", events)
			}
		})
	}
}

func TestUnknownKind(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, _ := newManager(t, s, func(context.Context, *Task) error { return nil })
	resume(t, m)
	s.items <- ipcapi.TaskItem{Kind: ipcapi.TaskItemRun, TaskRun: ipcapi.TaskRun{ID: 1, Attempt: 1}, Work: &ipcapi.TaskWork{Kind: "new"}}
	testkit.Eventually(t, "failure", func() bool { return slices.Equal(s.outcomes(), []string{"failed"}) })
	if _, err := m.Submit(t.Context(), Spec{Kind: "new", Title: "x"}); err == nil {
		t.Error("a kind that nobody runs can be submitted")
	}
}

// The newest progress is reported, at most every 250 ms, and never what JSON cannot hold.
func TestProgress(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	begin := time.Now()
	m, _ := newManager(t, s, func(_ context.Context, t *Task) error {
		zero := 0.0
		for time.Since(begin) < time.Second {
			t.Progress(Progress{Body: "b", Percent: zero / zero})
		}
		t.Progress(Progress{Body: strings.Repeat("\xff", 1<<20), Text: "last", Percent: 1 / zero})
		time.Sleep(2 * flushEvery)
		return nil
	})
	resume(t, m)
	s.run(1, 1, "")
	testkit.Eventually(t, "the end", func() bool { return len(s.outcomes()) == 1 })
	took := time.Since(begin)
	n := get(s, func() int { return len(s.batches) })
	if most := int(took/flushEvery) + 2; n < 2 || n > most {
		t.Errorf("%d reports in %v", n, took)
	}
	last := get(s, func() ipcapi.TaskProgressed { return s.batches[n-1].Tasks[0] })
	if last.Text != "last" || last.Percent != -1 || len(last.Body) > 3*4096 || last.ID != 1 {
		t.Errorf("%d bytes, %v, %q", len(last.Body), last.Percent, last.Text)
	}
}

// A report and a saving are repeated until they are answered; the work is not.
func TestReportIsRepeated(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var calls, runs atomic.Int64
	s.fail = func(call string) error {
		if (call == "task.report" || call == "task.save") && calls.Add(1)%3 != 0 {
			return []error{errors.New("broken"), failure.New(failure.TooMany, "slow"), failure.New(failure.Unavailable, "away")}[calls.Load()%3]
		}
		return nil
	}
	m, _ := newManager(t, s, func(_ context.Context, task *Task) error {
		runs.Add(1)
		if string(task.Saved()) != `{"n":1}` || task.Attempt() != 3 || string(task.Params()) != `{"p":1}` {
			t.Errorf("saved %s, attempt %d, params %s", task.Saved(), task.Attempt(), task.Params())
		}
		if err := task.Save(json.RawMessage(`{"n":2}`)); err != nil {
			t.Error(err)
		}
		if string(task.Saved()) != `{"n":2}` {
			t.Errorf("saved %s", task.Saved())
		}
		if err := task.Save(make(json.RawMessage, ipcapi.MaxTaskSaved+1)); err == nil {
			t.Error("a long state was saved")
		}
		return nil
	})
	resume(t, m)
	s.run(1, 3, `{"n":1}`)
	testkit.Eventually(t, "the report", func() bool { return slices.Equal(s.outcomes(), []string{"succeeded"}) })
	if runs.Load() != 1 {
		t.Errorf("%d runs", runs.Load())
	}
	if n := get(s, func() int { return len(s.saved) }); n != 1 {
		t.Errorf("%d savings", n)
	}
}

// A saving that is refused because another process has the task ends the work.
func TestRefusedSave(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.fail = func(call string) error {
		if call == "task.save" {
			return failure.New(failure.Conflict, "not yours")
		}
		return nil
	}
	ended := make(chan error, 1)
	m, _ := newManager(t, s, func(ctx context.Context, task *Task) error {
		err := task.Save(json.RawMessage(`1`))
		<-ctx.Done()
		ended <- err
		return err
	})
	resume(t, m)
	s.run(1, 1, "")
	if err := <-ended; !errors.Is(err, ErrInterrupted) {
		t.Error(err)
	}
	if out := s.outcomes(); len(out) > 0 {
		t.Errorf("reported %v", out)
	}
}

// A pause holds all goroutines of a Runner, is reported once, and the end of the task gets through to them.
func TestPause(t *testing.T) {
	t.Parallel()
	for _, end := range []string{ipcapi.TaskItemResume, ipcapi.TaskItemCancel, ipcapi.TaskItemDrop, "close"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			var rounds atomic.Int64
			stop := make(chan struct{})
			m, busy := newManager(t, s, func(ctx context.Context, task *Task) error {
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for task.Checkpoint(ctx) == nil {
							rounds.Add(1)
							select {
							case <-stop:
								return
							case <-time.After(time.Millisecond):
							}
						}
					})
				}
				wg.Wait()
				return context.Cause(ctx)
			})
			resume(t, m)
			s.run(1, 1, "")
			testkit.Eventually(t, "work", func() bool { return rounds.Load() > 10 && busy.Load() == 1 })
			s.tell(ipcapi.TaskItemPause, 1, 1)
			testkit.Eventually(t, "suspended", func() bool { return slices.Equal(s.outcomes(), []string{"suspended"}) })
			testkit.Eventually(t, "idle", func() bool { return busy.Load() == 0 })
			time.Sleep(20 * time.Millisecond)
			before := rounds.Load()
			time.Sleep(50 * time.Millisecond)
			if rounds.Load() != before {
				t.Error("it works on while it is paused")
			}
			want := []string{"suspended", "succeeded"}
			switch end {
			case "close":
				want[1] = "released"
				if err := m.Close(t.Context()); err != nil {
					t.Error(err)
				}
			case ipcapi.TaskItemResume:
				s.tell(end, 1, 1)
				testkit.Eventually(t, "work", func() bool { return rounds.Load() > before+10 && busy.Load() == 1 })
				close(stop)
			case ipcapi.TaskItemCancel:
				want[1] = "cancelled"
				s.tell(end, 1, 1)
			case ipcapi.TaskItemDrop:
				want = want[:1]
				s.tell(end, 1, 1)
				testkit.Eventually(t, "end", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.runs) == 0 })
			}
			testkit.Eventually(t, "the end", func() bool { return slices.Equal(s.outcomes(), want) })
		})
	}
}

// After the server was away the instance says what it has in hand, and reports its progress again.
func TestClaims(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, _ := newManager(t, s, func(ctx context.Context, task *Task) error {
		task.Progress(Progress{Body: "half", Percent: 50})
		for {
			if err := task.Checkpoint(ctx); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	})
	resume(t, m)
	s.run(1, 4, "")
	s.run(2, 7, "")
	s.tell(ipcapi.TaskItemPause, 2, 7)
	testkit.Eventually(t, "suspended", func() bool { return len(s.outcomes()) == 1 })
	s.stop()
	get(s, func() any { s.batches = nil; return nil })
	s.start()
	testkit.Eventually(t, "claims", func() bool { return get(s, func() bool { return len(s.hellos) == 2 }) })
	claims := get(s, func() []ipcapi.TaskClaim { return s.hellos[1].Claims })
	slices.SortFunc(claims, func(a, b ipcapi.TaskClaim) int { return int(a.ID - b.ID) })
	want := []ipcapi.TaskClaim{{TaskRun: ipcapi.TaskRun{ID: 1, Attempt: 4}}, {TaskRun: ipcapi.TaskRun{ID: 2, Attempt: 7}, Suspended: true}}
	if !slices.Equal(claims, want) {
		t.Errorf("%+v", claims)
	}
	testkit.Eventually(t, "progress again", func() bool {
		return get(s, func() bool { return len(s.batches) > 0 && s.batches[0].Tasks[0].Body == "half" })
	})
}

// A second hand-out of a task begins when the first has ended, never beside it.
func TestOneRunnerPerTask(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var now, most, runs atomic.Int64
	m, _ := newManager(t, s, func(ctx context.Context, _ *Task) error {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		runs.Add(1)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // takes a moment to end
		return ctx.Err()
	})
	resume(t, m)
	for attempt := int64(1); attempt <= 5; attempt++ {
		s.run(1, attempt, "")
		s.run(1, attempt, "") // again: nothing
		s.run(1, attempt-1, "")
		testkit.Eventually(t, "run", func() bool { return runs.Load() == attempt })
	}
	if most.Load() != 1 {
		t.Errorf("%d at a time", most.Load())
	}
	if out := s.outcomes(); len(out) > 0 {
		t.Errorf("reported %v", out)
	}
}

// At the end the tasks are given back, and nothing more is taken.
func TestClose(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, busy := newManager(t, s, func(ctx context.Context, _ *Task) error {
		<-ctx.Done()
		if !errors.Is(context.Cause(ctx), ErrInterrupted) {
			t.Errorf("cause %v", context.Cause(ctx))
		}
		return ctx.Err()
	})
	resume(t, m)
	s.run(1, 1, "")
	s.run(2, 1, "")
	testkit.Eventually(t, "busy", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.runs) == 2 && busy.Load() == 1 })
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := s.outcomes(); !slices.Equal(out, []string{"released", "released"}) {
		t.Errorf("%v", out)
	}
	if get(s, func() int { return s.leaves }) != 1 {
		t.Error("the server was not told beforehand")
	}
	if _, err := m.Submit(t.Context(), Spec{Kind: "copy", Title: "x"}); !failure.Is(err, failure.Unavailable) {
		t.Errorf("submit after the end: %v", err)
	}
	if err := m.Close(t.Context()); err != nil { // again
		t.Error(err)
	}
}

// Submit is repeated with the same key while the server is away, and gives up with the context.
func TestSubmit(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, _ := newManager(t, s, func(context.Context, *Task) error { return nil })
	s.stop()
	short, cancel := context.WithTimeout(t.Context(), 3*callPause)
	defer cancel()
	if _, err := m.Submit(short, Spec{Kind: "copy", Title: "x"}); !failure.Is(err, failure.Unavailable) {
		t.Errorf("without a server: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		id, err := m.Submit(context.Background(), Spec{Kind: "copy", Title: "x", Icon: "copy", CanPause: true, CanCancel: true, Params: json.RawMessage(`[1]`)})
		if id != 1 {
			err = errors.Join(err, errors.New("wrong id"))
		}
		done <- err
	}()
	var keys []string
	s.fail = func(call string) error {
		if call == "task.submit" {
			if keys = append(keys, call); len(keys) < 3 {
				return failure.New(failure.Unavailable, "starting")
			}
		}
		return nil
	}
	s.start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	sub := get(s, func() ipcapi.TaskSubmission { return s.submits[0] })
	if len(sub.Key) != 16 || sub.Kind != "copy" || !sub.CanPause || !sub.CanCancel || string(sub.Params) != "[1]" {
		t.Errorf("%+v", sub)
	}
	if _, err := m.Submit(t.Context(), Spec{Kind: "copy", Title: "x", Params: make(json.RawMessage, ipcapi.MaxTaskParams+1)}); !failure.Is(err, failure.TooLarge) {
		t.Errorf("large: %v", err)
	}
	// Whoever submits follows, so that the task can be handed out.
	testkit.Eventually(t, "stream", func() bool { return get(s, func() bool { return s.follows == 1 }) })
}

// The stream ends when there is nothing to do, unless something was asked for that it may not have heard of.
func TestRest(t *testing.T) {
	t.Parallel()
	m := New(Options{Server: func() (*ipc.Client, error) { return nil, errors.New("away") }, Log: slog.New(slog.DiscardHandler), Busy: func() func() { return func() {} }})
	m.following = true
	for name, tc := range map[string]struct {
		pending, calls int
		dirty          bool
		again, ended   bool
	}{
		"nothing":        {0, 0, false, false, true},
		"waiting":        {1, 0, false, false, false},
		"not known":      {-1, 0, false, false, false},
		"call under way": {0, 1, false, false, false},
		"asked":          {0, 0, true, true, false},
	} {
		m.pending, m.calls, m.dirty = tc.pending, tc.calls, tc.dirty
		if again, ended := m.rest(); again != tc.again || ended != tc.ended {
			t.Errorf("%s: %v, %v", name, again, ended)
		}
	}
	m.hello()
	if m.dirty {
		t.Error("a new stream has not heard")
	}
	m.end()
}

// An instance that has nothing to do closes its stream and has no goroutine left.
func TestIdleCostsNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	m, busy := newManager(t, s, func(context.Context, *Task) error { return nil })
	resume(t, m)
	s.items <- ipcapi.TaskItem{Kind: ipcapi.TaskItemPending, Pending: 2}
	testkit.Eventually(t, "busy", func() bool { return busy.Load() == 1 })
	s.items <- ipcapi.TaskItem{Kind: ipcapi.TaskItemPending, Pending: 0}
	testkit.Eventually(t, "idle", func() bool { return busy.Load() == 0 })
	testkit.Eventually(t, "closed", func() bool { return get(s, func() bool { return s.follows == 0 }) })
	m.wg.Wait()
	// And it opens it again.
	if err := m.Control(t.Context(), 7, "RUNNING"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "open", func() bool { return get(s, func() bool { return s.follows == 1 }) })
	if w := get(s, func() []ipcapi.TaskWish { return s.wishes }); len(w) != 1 || w[0] != (ipcapi.TaskWish{CoreID: 7, State: "RUNNING"}) {
		t.Errorf("%+v", w)
	}
}
