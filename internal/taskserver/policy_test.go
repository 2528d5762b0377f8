package taskserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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
)

// TestConcurrency: no more run than is allowed, of one kind, of one user and of all; everybody gets a share; everything
// runs in the end.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, func(w *world) { w.limits = [2]int{4, 6} }) // 2 of a kind
	var mu sync.Mutex
	now, most := map[string]int{}, map[string]int{}
	started := map[ident.UID]int{}
	count := func(n int, keys ...string) {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range keys {
			now[k] += n
			most[k] = max(most[k], now[k])
		}
	}
	gate := make(chan struct{})
	instances := map[ident.UID]*instance{}
	for _, uid := range []ident.UID{uidAda, uidBob} {
		runners := map[string]tasks.Runner{}
		for _, kind := range []string{"copy", "trash", "transfer"} {
			keys := []string{uid.String() + kind, uid.String(), "all"}
			runners[kind] = func(ctx context.Context, task *tasks.Task) error {
				count(+1, keys...)
				defer count(-1, keys...)
				mu.Lock()
				started[uid]++
				mu.Unlock()
				select {
				case <-gate:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		instances[uid] = w.instance(uid, runners)
	}
	var ids []int64
	for n := range 6 {
		for uid, in := range instances {
			for _, kind := range []string{"copy", "trash", "transfer"} {
				ids = append(ids, in.submit(tasks.Spec{Kind: kind, Title: fmt.Sprint(kind, uid, n)}))
			}
		}
	}
	testkit.Eventually(t, "all places taken", func() bool { mu.Lock(); defer mu.Unlock(); return now["all"] == 6 })
	time.Sleep(50 * time.Millisecond)
	mu.Lock()
	if now["all"] != 6 || started[uidAda] < 2 || started[uidBob] < 2 {
		t.Errorf("running: %v", now)
	}
	mu.Unlock()
	close(gate)
	for _, id := range ids {
		w.await(id, store.TaskSucceeded)
	}
	mu.Lock()
	defer mu.Unlock()
	for key, n := range most {
		limit := 4
		switch {
		case key == "all":
			limit = 6
		case strings.HasSuffix(key, "copy") || strings.HasSuffix(key, "trash") || strings.HasSuffix(key, "transfer"):
			limit = 2
		}
		if n > limit {
			t.Errorf("%d at a time of %s", n, key)
		}
	}
}

// A paused task gives its place to another one, and waits for a place when it is to go on.
func TestPausedGivesPlace(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, func(w *world) { w.limits = [2]int{1, 1} })
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	a := in.submit(tasks.Spec{Kind: "copy", Title: "A", CanPause: true, CanCancel: true})
	w.await(a, store.TaskRunning)
	b := in.submit(tasks.Spec{Kind: "copy", Title: "B", CanPause: true, CanCancel: true})
	coreA := w.awaitCore("A", providerapi.TaskRunning).TaskID
	coreB := w.awaitCore("B", providerapi.TaskInQueue).TaskID
	if err := in.control(coreA, "SUSPENDED"); err != nil {
		t.Fatal(err)
	}
	w.await(b, store.TaskRunning)
	if err := in.control(coreA, "RUNNING"); err != nil {
		t.Fatal(err)
	}
	if row := w.row(a); row.State != store.TaskQueued {
		t.Errorf("A is %s while B has the place", row.State)
	}
	if err := in.control(coreB, "CANCELLED"); err != nil {
		t.Fatal(err)
	}
	w.await(a, store.TaskRunning)
	if row := w.row(a); row.Attempt != 1 {
		t.Errorf("attempt %d", row.Attempt)
	}
	// Progress shows that it really goes on.
	posts := len(w.core.one("A").posts)
	testkit.Eventually(t, "progress of A", func() bool { return len(w.core.one("A").posts) > posts+1 })
}

// An error that passes is tried again with growing pauses, and given up after a day.
func TestRetry(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	start := time.Now()
	var offset atomic.Int64
	w := newWorld(t, func(w *world) { w.clock = func() time.Time { return start.Add(time.Duration(offset.Load())) } })
	in := w.instance(uidAda, map[string]tasks.Runner{"transfer": func(context.Context, *tasks.Task) error {
		return tasks.Transient(failure.Wrap(errors.New("connection reset"), failure.BadGateway, "The other provider does not answer"))
	}})
	id := in.submit(tasks.Spec{Kind: "transfer", Title: "T", CanCancel: true})
	want := []time.Duration{4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, 64 * time.Second, 128 * time.Second, 256 * time.Second, 300 * time.Second, 300 * time.Second}
	for n, pause := range want {
		testkit.Eventually(t, "retry", func() bool { r := w.row(id); return r.Retries == n+1 && r.State == store.TaskQueued })
		row := w.row(id)
		if got := row.NotBefore.Sub(row.StateAt); got != pause || row.Text != fmt.Sprintf("Retrying in %d seconds: The other provider does not answer", int(pause.Seconds())) {
			t.Errorf("retry %d after %v: %q", n+1, got, row.Text)
		}
		if n == 0 {
			w.awaitCore("T", providerapi.TaskInQueue)
		}
		offset.Add(int64(pause))
		w.server.svc.look()
	}
	testkit.Eventually(t, "retry", func() bool { r := w.row(id); return r.Retries == len(want)+1 && r.State == store.TaskQueued })
	offset.Add(int64(retryFor))
	w.server.svc.look()
	if st := w.awaitCore("T", providerapi.TaskFailure).last(); *st.Progress != "The other provider does not answer" {
		t.Errorf("%q", *st.Progress)
	}
}

// Cancel works during the pause before a retry, at once.
func TestCancelDuringRetry(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{"transfer": func(context.Context, *tasks.Task) error {
		return tasks.Transient(errors.New("x"))
	}})
	id := in.submit(tasks.Spec{Kind: "transfer", Title: "T", CanCancel: true})
	testkit.Eventually(t, "retry", func() bool { return w.row(id).Retries == 1 })
	testkit.Eventually(t, "a record", func() bool { return w.core.one("T").TaskID != 0 && w.row(id).CoreID != 0 })
	if err := in.control(w.core.one("T").TaskID, "CANCELLED"); err != nil {
		t.Fatal(err)
	}
	if st := w.row(id).State; st != store.TaskCancelled {
		t.Error(st)
	}
}

// TestOldTasks: what nobody ends is ended, what ended is forgotten.
func TestOldTasks(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	start := time.Now()
	var offset atomic.Int64
	w := newWorld(t, func(w *world) { w.clock = func() time.Time { return start.Add(time.Duration(offset.Load())) } })
	in := w.instance(uidAda, map[string]tasks.Runner{
		"copy": forever, "stuck": func(ctx context.Context, _ *tasks.Task) error { <-ctx.Done(); return ctx.Err() },
	})
	paused := in.submit(tasks.Spec{Kind: "copy", Title: "P", CanPause: true})
	if err := in.control(w.awaitCore("P", providerapi.TaskRunning).TaskID, "SUSPENDED"); err != nil {
		t.Fatal(err)
	}
	w.await(paused, store.TaskSuspended)
	stuck := in.submit(tasks.Spec{Kind: "stuck", Title: "S"})
	w.awaitCore("S", providerapi.TaskRunning)
	tidy := func() { w.server.svc.tidy(t.Context()) }

	offset.Store(int64(pausedFor - time.Minute))
	tidy()
	if st := w.row(paused).State; st != store.TaskSuspended {
		t.Errorf("%s before seven days", st)
	}
	offset.Store(int64(pausedFor + time.Minute))
	tidy()
	if st := w.awaitCore("P", providerapi.TaskCancelled).last(); *st.Progress != "The task was paused for more than seven days" {
		t.Errorf("%q", *st.Progress)
	}
	if st := w.row(stuck).State; st != store.TaskRunning {
		t.Errorf("%s before thirty days", st)
	}
	offset.Store(int64(retention + time.Minute))
	tidy()
	if st := w.awaitCore("S", providerapi.TaskFailure).last(); *st.Progress != "The task has made no progress for thirty days" {
		t.Errorf("%q", *st.Progress)
	}
	testkit.Eventually(t, "closed", func() bool { return w.row(stuck).Core == store.TaskCoreClosed })
	offset.Store(int64(2*retention + 2*time.Minute))
	tidy()
	err := w.server.store.View(t.Context(), func(tx *store.Tx) error { _, err := tx.Task(stuck); return err })
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is remembered: %v", err)
	}
}

// TestDisconnected: the tasks of a user whose mapping has ended are cancelled, whether the server hears of it or finds
// out at its start, and the next owner of the account has nothing of them.
func TestDisconnected(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	block := map[string]tasks.Runner{"copy": forever}
	in, other := w.instance(uidAda, block), w.instance(uidBob, block)
	a := in.submit(tasks.Spec{Kind: "copy", Title: "A"})
	b := other.submit(tasks.Spec{Kind: "copy", Title: "B"})
	w.awaitCore("A", providerapi.TaskRunning)
	w.awaitCore("B", providerapi.TaskRunning)
	if err := w.server.svc.UserInactive(t.Context(), ada, uidBob); err != nil { // another account
		t.Fatal(err)
	}
	w.mu.Lock()
	w.gone[uidAda], w.gone[uidBob] = true, true
	w.mu.Unlock()
	if err := w.server.svc.UserInactive(t.Context(), ada, uidAda); err != nil {
		t.Fatal(err)
	}
	if st := w.row(a); st.State != store.TaskCancelled {
		t.Errorf("%+v", st)
	}
	if st := w.row(b); st.State != store.TaskRunning {
		t.Errorf("%+v", st)
	}
	w.kill()
	w.start()
	for _, title := range []string{"A", "B"} {
		if st := w.awaitCore(title, providerapi.TaskCancelled).last(); *st.Progress != "You were disconnected from this provider" {
			t.Errorf("%q", *st.Progress)
		}
	}
	if row := w.row(b); row.State != store.TaskCancelled {
		t.Errorf("%+v", row)
	}
}

func TestOperator(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	in := w.instance(uidAda, map[string]tasks.Runner{
		"copy": forever, "done": func(context.Context, *tasks.Task) error { return nil },
	})
	op := w.client(uidOp)
	running := in.submit(tasks.Spec{Kind: "copy", Title: "R"}) // its user cannot cancel it
	ended := in.submit(tasks.Spec{Kind: "done", Title: "E"})
	w.await(ended, store.TaskSucceeded)
	w.awaitCore("R", providerapi.TaskRunning)
	list := func() map[int64]ipcapi.TaskInfo {
		r, err := ipc.Open(t.Context(), op, ipcapi.TaskList, ipcapi.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		all := map[int64]ipcapi.TaskInfo{}
		for {
			page, _, err := r.Next(t.Context())
			if err != nil {
				return all
			}
			for _, i := range page.Items {
				all[i.ID] = i
			}
		}
	}
	if l := list(); len(l) != 2 || !l[running].Connected || l[running].State != "running" || l[running].User != ada || l[ended].State != "succeeded" {
		t.Errorf("%+v", l)
	}
	cancel := func(dry bool, ids ...int64) []string {
		rep, err := ipc.Invoke(t.Context(), op, ipcapi.TaskCancel, ipcapi.TaskMutation{IDs: ids, Reason: "node\nfailure", DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range rep.Results {
			out = append(out, r.Key+" "+r.Status)
		}
		return out
	}
	if got := cancel(true, running); got[0] != fmt.Sprint(running, " ok") || w.row(running).State != store.TaskRunning {
		t.Errorf("dry run: %v", got)
	}
	want := []string{fmt.Sprint(running, " ok"), fmt.Sprint(ended, " skipped"), "999 failed"}
	if got := cancel(false, running, ended, 999); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if st := w.row(running); st.State != store.TaskCancelled || st.Text != "Cancelled by an operator of the provider: node failure" {
		t.Errorf("%+v", st)
	}
	if w.row(ended).State != store.TaskSucceeded {
		t.Error("what had ended was changed")
	}
}
