package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
)

// Work goes on while the server is away, and is the same attempt afterwards.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	var starts, rounds atomic.Int64
	finish := make(chan struct{})
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(ctx context.Context, task *tasks.Task) error {
		starts.Add(1)
		for {
			if err := task.Checkpoint(ctx); err != nil {
				return err
			}
			task.Progress(tasks.Progress{Body: fmt.Sprint(rounds.Add(1)), Percent: -1})
			select {
			case <-finish:
				return nil
			case <-time.After(2 * time.Millisecond):
			}
		}
	}})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	w.awaitCore("T", providerapi.TaskRunning)
	for range 2 {
		w.kill()
		before := rounds.Load()
		testkit.Eventually(t, "work without a server", func() bool { return rounds.Load() > before+10 })
		w.start()
		posts := len(w.core.one("T").posts)
		testkit.Eventually(t, "progress after the restart", func() bool { return len(w.core.one("T").posts) > posts })
	}
	// The end comes while the server is away: the report waits, and the work is not repeated.
	w.kill()
	close(finish)
	time.Sleep(20 * time.Millisecond)
	w.start()
	w.awaitCore("T", providerapi.TaskSuccess)
	if row := w.row(id); row.Attempt != 1 || starts.Load() != 1 {
		t.Errorf("attempt %d, started %d times", row.Attempt, starts.Load())
	}
}

// A wish that came through is there after a restart, also if the instance did not hear of it.
func TestWishSurvivesRestart(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	w.awaitCore("T", providerapi.TaskRunning)
	for _, want := range []store.TaskState{store.TaskSuspended, store.TaskCancelled} {
		w.inside(func(s *Service) { // stored, and not told
			task := s.tasks[id]
			row := task.row
			if row.State == store.TaskSuspended {
				row.State = store.TaskRunning
			}
			row.Wanted = want
			if err := s.change(context.Background(), task, row, nil); err != nil {
				t.Error(err)
			}
		})
		w.kill()
		w.start()
		w.await(id, want)
	}
	w.awaitCore("T", providerapi.TaskCancelled)
}

// The next instance continues from what was saved.
func TestInstanceRestart(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	saved := make(chan struct{})
	var once sync.Once
	runner := func(ctx context.Context, task *tasks.Task) error {
		if string(task.Saved()) == `{"done":7}` {
			task.Summary("continued")
			return nil
		}
		if err := task.Save(json.RawMessage(`{"done":7}`)); err != nil {
			return err
		}
		once.Do(func() { close(saved) })
		err := forever(ctx, task)
		if !errors.Is(err, tasks.ErrInterrupted) {
			t.Errorf("the work ended with %v", err)
		}
		return err
	}
	first := w.instance(uidAda, map[string]tasks.Runner{"copy": runner})
	id := first.submit(tasks.Spec{Kind: "copy", Title: "T"})
	<-saved
	first.close()
	if row := w.row(id); row.State != store.TaskQueued {
		t.Errorf("after an orderly end it is %s", row.State)
	}
	w.instance(uidAda, map[string]tasks.Runner{"copy": runner})
	if st := w.awaitCore("T", providerapi.TaskSuccess).last(); *st.Progress != "continued" {
		t.Errorf("%+v", st)
	}
	if row := w.row(id); row.Attempt != 2 {
		t.Errorf("attempt %d", row.Attempt)
	}
}

// A paused task outlives its instance, and goes on in the next one.
func TestPausedOutlivesInstance(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	runners := map[string]tasks.Runner{"copy": forever}
	first := w.instance(uidAda, runners)
	id := first.submit(tasks.Spec{Kind: "copy", Title: "T", CanPause: true, CanCancel: true})
	coreID := w.awaitCore("T", providerapi.TaskRunning).TaskID
	if err := first.control(coreID, "SUSPENDED"); err != nil {
		t.Fatal(err)
	}
	w.await(id, store.TaskSuspended)
	first.close()
	if row := w.row(id); row.State != store.TaskSuspended {
		t.Errorf("it became %s", row.State)
	}
	w.mu.Lock()
	if len(w.woken) > 0 {
		t.Errorf("a paused task wakes %v", w.woken)
	}
	w.mu.Unlock()
	second := w.instance(uidAda, runners)
	if err := second.control(coreID, "RUNNING"); err != nil {
		t.Fatal(err)
	}
	w.await(id, store.TaskRunning)
	if err := second.control(coreID, "CANCELLED"); err != nil {
		t.Fatal(err)
	}
	w.awaitCore("T", providerapi.TaskCancelled)
}

// deadPID is the id of a process that has ended.
func deadPID(t *testing.T) int32 {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return int32(cmd.Process.Pid)
}

// crash makes the service believe that the process behind the session of a user has died: its connection ends, and the
// kernel does not know its id. The manager itself is kept from coming back.
func (w *world) crash(t *testing.T, in *instance) {
	t.Helper()
	pid := deadPID(t)
	w.inside(func(s *Service) {
		for _, sess := range s.owners[ownerKey{in.uid, ada}].sessions {
			sess.pid = pid
			for _, task := range sess.owner.tasks {
				if task.run != nil {
					task.run.pid = pid
				}
			}
		}
	})
	in.mu.Lock()
	in.w = &world{socket: "/nonexistent", t: w.t} // it finds the server no more
	_ = in.c.Close()
	in.mu.Unlock()
	t.Cleanup(func() { in.closeWithin(time.Second) })
}

// A killed instance is woken again for its tasks. A task that kills its instance again and again has failed.
func TestCrashes(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, func(w *world) { w.grace = time.Hour }) // the death of the process must be what counts
	runners := map[string]tasks.Runner{"copy": func(ctx context.Context, _ *tasks.Task) error { <-ctx.Done(); return ctx.Err() }}
	in := w.instance(uidAda, runners)
	wakes := make(chan ident.UCloudUser, 20)
	w.mu.Lock()
	w.wake = func(u ident.UCloudUser) error { wakes <- u; return nil }
	w.mu.Unlock()
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	for n := int64(1); n <= maxLosses; n++ {
		testkit.Eventually(t, "attempt", func() bool { r := w.row(id); return r.Attempt == n && r.State == store.TaskRunning })
		w.crash(t, in)
		if n == maxLosses {
			break
		}
		if u := <-wakes; u != ada {
			t.Errorf("woken: %s", u)
		}
		in = w.instance(uidAda, runners)
	}
	st := w.awaitCore("T", providerapi.TaskFailure).last()
	if *st.Progress != "The task was given up: its process ended unexpectedly 5 times" {
		t.Errorf("%q", *st.Progress)
	}
}

// What nobody claims after a restart of the server is handed out again after the grace, and not before.
func TestUnclaimed(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, func(w *world) { w.grace = 700 * time.Millisecond })
	runners := map[string]tasks.Runner{"copy": func(ctx context.Context, _ *tasks.Task) error { <-ctx.Done(); return ctx.Err() }}
	in := w.instance(uidAda, runners)
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	w.await(id, store.TaskRunning)
	w.kill()
	in.mu.Lock()
	in.w = &world{socket: "/nonexistent", t: t}
	in.mu.Unlock()
	w.start()
	start := time.Now()
	w.instance(uidAda, runners)
	testkit.Eventually(t, "another attempt", func() bool { return w.row(id).Attempt == 2 })
	if took := time.Since(start); took < 500*time.Millisecond {
		t.Errorf("handed out again after %v", took)
	}
	// The old process comes back: what it has is not its own any more.
	in.mu.Lock()
	in.w = w
	in.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	if row := w.row(id); row.Attempt != 2 || row.State != store.TaskRunning {
		t.Errorf("%+v", row)
	}
}

// Users with unfinished tasks are woken after a start: those only, a few at a time, and again with pauses when it does
// not work.
func TestWake(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	now := time.Now()
	var offset atomic.Int64
	w := newWorld(t, func(w *world) {
		w.grace = time.Millisecond
		w.clock = func() time.Time { return now.Add(time.Duration(offset.Load())) }
	})
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	w.await(id, store.TaskRunning)
	other := w.instance(uidBob, map[string]tasks.Runner{"copy": forever})
	paused := other.submit(tasks.Spec{Kind: "copy", Title: "P", CanPause: true})
	if err := other.control(w.awaitCore("P", providerapi.TaskRunning).TaskID, "SUSPENDED"); err != nil {
		t.Fatal(err)
	}
	w.await(paused, store.TaskSuspended)
	w.kill()
	in.closeWithin(time.Second)
	other.closeWithin(time.Second)
	w.mu.Lock()
	w.woken = nil
	w.wake = func(ident.UCloudUser) error { return failure.New(failure.Unavailable, "crash loop") }
	w.mu.Unlock()
	offset.Add(int64(time.Hour))
	w.start()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, u := range w.woken {
			if u != ada {
				t.Errorf("woken: %s", u)
			}
		}
		return len(w.woken)
	}
	settled := func() bool {
		ok := false
		w.inside(func(s *Service) {
			o := s.owners[ownerKey{uidAda, ada}]
			ok = o != nil && !o.waking && o.wakeAt.After(s.o.Now())
		})
		return ok
	}
	testkit.Eventually(t, "loaded", func() (ok bool) { w.inside(func(s *Service) { ok = s.loaded }); return ok })
	for n := 1; n <= 4; n++ {
		offset.Add(int64(2 * wakeMax))
		w.server.svc.look()
		testkit.Eventually(t, "wake", func() bool { return count() >= n && settled() })
	}
	if n := count(); n > 6 { // each look of the clock wakes once
		t.Errorf("woken %d times", n)
	}
	if c, err := w.server.svc.Counts(t.Context()); err != nil || c.Unwakeable != 1 || c.Queued != 1 || c.Suspended != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}
