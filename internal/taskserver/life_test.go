package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestLife(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	storetest.Options(t, func(t *testing.T, o store.Options) {
		w := newWorldOn(t, o, nil)
		goOn := make(chan struct{})
		in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(_ context.Context, task *tasks.Task) error {
			if string(task.Params()) != `{"from":"/1/a"}` {
				t.Errorf("params %s", task.Params())
			}
			task.Progress(tasks.Progress{Body: "1 / 2 files", Text: "3 MB/s", Percent: 50})
			<-goOn
			task.Progress(tasks.Progress{Body: "2 / 2 files", Text: "3 MB/s", Percent: 99})
			task.Summary("2 files copied")
			return nil
		}})
		id := in.submit(tasks.Spec{Kind: "copy", Title: "Copying a", Icon: "copy", CanCancel: true, Params: json.RawMessage(`{"from":"/1/a"}`)})
		testkit.Eventually(t, "progress at Core", func() bool {
			st := w.core.one("Copying a").Status
			return st.State == providerapi.TaskRunning && st.Body != nil && *st.Body == "1 / 2 files" && *st.Progress == "3 MB/s" && *st.Percentage == 50
		})
		if !in.isBusy() {
			t.Error("the instance may go idle while a task runs")
		}
		close(goOn)
		task := w.awaitCore("Copying a", providerapi.TaskSuccess)
		if task.CreatedBy != ada || *task.Icon != "copy" || !task.Specification.CanCancel || task.Specification.CanPause {
			t.Errorf("created as %+v", task.Task)
		}
		if st := task.last(); *st.Progress != "2 files copied" || *st.Body != "2 / 2 files" || *st.Percentage != 100 || *st.Title != "Copying a" {
			t.Errorf("ended as %+v", st)
		}
		testkit.Eventually(t, "closed", func() bool { return w.row(id).Core == store.TaskCoreClosed })
		testkit.Eventually(t, "idle", func() bool { return !in.isBusy() })
		if len(w.core.all("Copying a")) != 1 {
			t.Error("more than one record")
		}
	})
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{
		"fail": func(_ context.Context, task *tasks.Task) error {
			task.Progress(tasks.Progress{Body: "3 / 312 files", Percent: 1})
			return failure.New(failure.PaymentRequired, "3 of 312 files failed: disk quota exceeded (data/x.bin)")
		},
		"bug":    func(context.Context, *tasks.Task) error { panic("oh") },
		"secret": func(context.Context, *tasks.Task) error { return errors.New("/etc/secret is broken") },
		"nan": func(_ context.Context, task *tasks.Task) error {
			zero := 0.0
			task.Progress(tasks.Progress{Percent: 0 / zero, Body: "a\nb\x00\xff" + strings.Repeat("ü", 800)})
			return nil
		},
	})
	for kind, want := range map[string]providerapi.TaskState{
		"fail": providerapi.TaskFailure, "bug": providerapi.TaskFailure, "secret": providerapi.TaskFailure, "nan": providerapi.TaskSuccess,
	} {
		in.submit(tasks.Spec{Kind: kind, Title: kind})
		st := w.awaitCore(kind, want).last()
		switch kind {
		case "fail":
			if *st.Progress != "3 of 312 files failed: disk quota exceeded (data/x.bin)" || *st.Body != "3 / 312 files" || *st.Percentage != 1 {
				t.Errorf("%+v %q", st, *st.Progress)
			}
		case "nan":
			if got := []rune(*st.Body); len(*st.Body) > 1024 || len(got) < maxBody/2 || string(got[:7]) != "a b \ufffdüü" {
				t.Errorf("body %q", *st.Body)
			}
		default:
			if *st.Progress != "An internal error occurred" {
				t.Errorf("%s: %q", kind, *st.Progress)
			}
		}
	}
}

func TestPauseResumeCancel(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	var ends atomic.Value
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(ctx context.Context, task *tasks.Task) error {
		err := forever(ctx, task)
		ends.Store(err)
		return err
	}})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	coreID := w.awaitCore("T", providerapi.TaskRunning).TaskID
	for range 3 {
		if err := in.control(coreID, "SUSPENDED"); err != nil {
			t.Fatal(err)
		}
		w.await(id, store.TaskSuspended)
		if st := w.awaitCore("T", providerapi.TaskSuspended).last(); *st.Progress != "Paused" {
			t.Errorf("%+v", st)
		}
		testkit.Eventually(t, "a paused task is no reason to stay", func() bool { return !in.isBusy() })
		if err := in.control(coreID, "SUSPENDED"); err != nil { // again
			t.Fatal(err)
		}
		if err := in.control(coreID, "RUNNING"); err != nil {
			t.Fatal(err)
		}
		w.awaitCore("T", providerapi.TaskRunning)
	}
	if row := w.row(id); row.Attempt != 1 {
		t.Errorf("attempt %d: it was begun anew instead of going on", row.Attempt)
	}
	start := time.Now()
	if err := in.control(coreID, "CANCELLED"); err != nil {
		t.Fatal(err)
	}
	w.await(id, store.TaskCancelled)
	t.Logf("cancelled within %v", time.Since(start))
	w.awaitCore("T", providerapi.TaskCancelled)
	if err, _ := ends.Load().(error); !errors.Is(err, tasks.ErrCancelled) {
		t.Errorf("the work ended with %v", err)
	}
	// What has ended stays as it is.
	for _, state := range []string{"CANCELLED", "SUSPENDED", "RUNNING"} {
		if err := in.control(coreID, state); err != nil {
			t.Errorf("%s after the end: %v", state, err)
		}
	}
	if w.row(id).State != store.TaskCancelled {
		t.Error("it did not stay cancelled")
	}
}

func TestCancelOfPaused(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	ended := make(chan error, 1)
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(ctx context.Context, task *tasks.Task) error {
		err := forever(ctx, task)
		ended <- err
		return err
	}})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	coreID := w.awaitCore("T", providerapi.TaskRunning).TaskID
	if err := in.control(coreID, "SUSPENDED"); err != nil {
		t.Fatal(err)
	}
	w.await(id, store.TaskSuspended)
	if err := in.control(coreID, "CANCELLED"); err != nil {
		t.Fatal(err)
	}
	if w.row(id).State != store.TaskCancelled {
		t.Error("a paused task is not cancelled at once")
	}
	if err := <-ended; !errors.Is(err, tasks.ErrCancelled) { // so that it cleans up
		t.Errorf("the work ended with %v", err)
	}
	w.awaitCore("T", providerapi.TaskCancelled)
}

func TestWishesThatCannotBe(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	coreID := w.awaitCore("T", providerapi.TaskRunning).TaskID
	for state, want := range map[string]failure.Kind{
		"SUSPENDED": failure.Invalid, "CANCELLED": failure.Invalid, "SUCCESS": failure.Invalid, "": failure.Invalid,
	} {
		if err := in.control(coreID, state); !failure.Is(err, want) {
			t.Errorf("%q: %v", state, err)
		}
	}
	if err := in.control(coreID+99, "CANCELLED"); !failure.Is(err, failure.NotFound) {
		t.Errorf("unknown task: %v", err)
	}
}

// TestTasksOfOthersDoNotExist: whatever another account says about a task has no effect, and the answer does not tell
// whether there is one.
func TestTasksOfOthersDoNotExist(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	coreID := w.awaitCore("T", providerapi.TaskRunning).TaskID
	run := ipcapi.TaskRun{ID: id, Attempt: 1}
	other := w.client(uidBob)
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"control": func() error {
			_, err := ipc.Invoke(ctx, other, ipcapi.TaskControl, ipcapi.TaskWish{CoreID: coreID, State: "CANCELLED"})
			return err
		},
		"report": func() error {
			_, err := ipc.Invoke(ctx, other, ipcapi.TaskReport, ipcapi.TaskEvent{TaskRun: run, Outcome: ipcapi.TaskFailed})
			return err
		},
		"save": func() error {
			_, err := ipc.Invoke(ctx, other, ipcapi.TaskSave, ipcapi.TaskSaving{TaskRun: run, Saved: json.RawMessage(`1`)})
			return err
		},
	} {
		if err := call(); !failure.Is(err, failure.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ipc.Invoke(ctx, other, ipcapi.TaskProgress, ipcapi.TaskProgressBatch{
		Tasks: []ipcapi.TaskProgressed{{TaskRun: run, TaskState: ipcapi.TaskState{Body: "hacked"}}},
	}); err != nil {
		t.Error(err)
	}
	// A claim gives nothing, and takes nothing away.
	r, err := ipc.Open(ctx, other, ipcapi.TaskFollow, ipcapi.TaskHello{Claims: []ipcapi.TaskClaim{{TaskRun: run}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seen := map[string]bool{}
	for !seen[ipcapi.TaskItemDrop] || !seen[ipcapi.TaskItemPending] {
		item, _, err := r.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen[item.Kind] = true
		if item.Work != nil || item.Pending != 0 {
			t.Errorf("another account is told %+v", item)
		}
	}
	if row := w.row(id); row.State != store.TaskRunning || row.Attempt != 1 || string(row.Saved) != "" {
		t.Errorf("%+v", row)
	}
	for _, st := range w.core.one("T").posts {
		if *st.Body == "hacked" {
			t.Error("another account's text was posted")
		}
	}
	// Nobody without a mapping, and nobody but operators.
	stranger := w.client(uidNone)
	if _, err := ipc.Invoke(ctx, stranger, ipcapi.TaskSubmit, ipcapi.TaskSubmission{}); !failure.Is(err, failure.Forbidden) {
		t.Errorf("submit without a mapping: %v", err)
	}
	for _, c := range []*ipc.Client{other, stranger} {
		if _, err := ipc.Invoke(ctx, c, ipcapi.TaskCancel, ipcapi.TaskMutation{IDs: []int64{id}}); !failure.Is(err, failure.Forbidden) {
			t.Errorf("cancel as operator: %v", err)
		}
	}
	// The account belongs to another UCloud user now: the task is not theirs.
	w.inside(func(s *Service) {
		if _, _, err := s.mine(ctx, ownerKey{uidAda, bob}, id); !failure.Is(err, failure.NotFound) {
			t.Errorf("the same uid as another user: %v", err)
		}
	})
}

// A user whom Core has never named is not mentioned to Core; the work is done all the same.
func TestUserThatCoreHasNotNamed(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidEve, map[string]tasks.Runner{"copy": func(context.Context, *tasks.Task) error { return nil }})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	w.await(id, store.TaskSucceeded)
	hidden := w.instance(uidAda, map[string]tasks.Runner{"copy": func(context.Context, *tasks.Task) error { return nil }})
	id = hidden.submit(tasks.Spec{Kind: "copy", Title: "hidden", Hidden: true})
	w.await(id, store.TaskSucceeded)
	w.core.mu.Lock()
	defer w.core.mu.Unlock()
	if len(w.core.order) > 0 {
		t.Errorf("Core was told %q", w.core.order)
	}
}

// TestLimits: what is refused before it costs anything.
func TestLimits(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	c := w.client(uidAda)
	key := func(n byte) []byte { return append(make([]byte, 15), n) }
	good := ipcapi.TaskSubmission{Key: key(1), Kind: "copy", Title: "T"}
	with := func(change func(*ipcapi.TaskSubmission)) ipcapi.TaskSubmission { s := good; change(&s); return s }
	for name, s := range map[string]ipcapi.TaskSubmission{
		"no key":     with(func(s *ipcapi.TaskSubmission) { s.Key = nil }),
		"long key":   with(func(s *ipcapi.TaskSubmission) { s.Key = make([]byte, 17) }),
		"no kind":    with(func(s *ipcapi.TaskSubmission) { s.Kind = "" }),
		"kind":       with(func(s *ipcapi.TaskSubmission) { s.Kind = "Copy it" }),
		"long kind":  with(func(s *ipcapi.TaskSubmission) { s.Kind = strings.Repeat("a", 33) }),
		"no title":   with(func(s *ipcapi.TaskSubmission) { s.Title = " \n" }),
		"long title": with(func(s *ipcapi.TaskSubmission) { s.Title = strings.Repeat("a", ipcapi.MaxTaskText+1) }),
		"icon":       with(func(s *ipcapi.TaskSubmission) { s.Icon = "<img>" }),
		"params": with(func(s *ipcapi.TaskSubmission) {
			s.Params = json.RawMessage(`"` + strings.Repeat("a", ipcapi.MaxTaskParams) + `"`)
		}),
	} {
		want := failure.Invalid
		if name == "params" {
			want = failure.TooLarge
		}
		if _, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSubmit, s); !failure.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same submission again is the same task.
	first, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSubmit, good)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSubmit, good); err != nil || again != first {
		t.Errorf("%+v, then %+v, %v", first, again, err)
	}
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.TaskProgress, ipcapi.TaskProgressBatch{Tasks: make([]ipcapi.TaskProgressed, ipcapi.MaxTaskBatch+1)}); !failure.Is(err, failure.TooLarge) {
		t.Errorf("a large batch: %v", err)
	}
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSave, ipcapi.TaskSaving{
		TaskRun: ipcapi.TaskRun{ID: first.ID}, Saved: json.RawMessage(`"` + strings.Repeat("a", ipcapi.MaxTaskSaved) + `"`),
	}); !failure.Is(err, failure.TooLarge) {
		t.Errorf("a large state: %v", err)
	}
	// Streams.
	for n := range maxSessions + 1 {
		r, err := ipc.Open(t.Context(), c, ipcapi.TaskFollow, ipcapi.TaskHello{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, _, err = r.Next(t.Context())
		if (n >= maxSessions) != failure.Is(err, failure.TooMany) {
			t.Errorf("stream %d: %v", n, err)
		}
	}
	// Rate and number. The limits are those of the service; the transport has its own.
	w.inside(func(s *Service) {
		o := s.owners[ownerKey{uidAda, ada}]
		for n := len(o.tasks); n < maxOpen; n++ {
			o.tasks[-int64(n)] = &task{owner: o, row: store.Task{State: store.TaskSuspended}}
		}
	})
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSubmit, with(func(s *ipcapi.TaskSubmission) { s.Key = key(2) })); !failure.Is(err, failure.TooMany) {
		t.Errorf("too many open tasks: %v", err)
	}
	w.inside(func(s *Service) {
		o := s.owners[ownerKey{uidAda, ada}]
		for id := range o.tasks {
			if id < 0 {
				delete(o.tasks, id)
			}
		}
		o.submits.AllowN(time.Now(), int(o.submits.TokensAt(time.Now())))
	})
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.TaskSubmit, with(func(s *ipcapi.TaskSubmission) { s.Key = key(3) })); !failure.Is(err, failure.TooMany) {
		t.Errorf("too fast: %v", err)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "a", "a\nb", "\xff\xfe", strings.Repeat("ü", 300), "\u2028x", "  x  ", "\x1b[31m", "…"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := line(s)
		if len([]rune(got)) > maxLine || len(got) > 1024 || strings.ContainsAny(got, "\n\r\x00\x1b\u2028") {
			t.Errorf("%q became %q", s, got)
		}
		if line(got) != got {
			t.Errorf("%q becomes %q, and that %q", s, got, line(got))
		}
		if raw, err := json.Marshal(got); err != nil || len(raw) == 0 {
			t.Error(err)
		}
	})
}

var _ = ident.UID(0)
