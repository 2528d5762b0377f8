package taskserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
)

// Core is away from the submission to the end: the work is done, and Core gets everything later, in order.
func TestCoreAway(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	for _, status := range []int{503, 500, 403, 429} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.core.hooks(func(string) int { return status }, nil)
			in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(context.Context, *tasks.Task) error { return nil }})
			id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
			w.await(id, store.TaskSucceeded)
			w.kill() // nothing of this is in memory only
			w.start()
			w.core.hooks(nil, nil)
			task := w.awaitCore("T", providerapi.TaskSuccess)
			if len(task.posts) == 0 || task.posts[0].State != providerapi.TaskSuccess {
				t.Errorf("posts %+v", task.posts)
			}
		})
	}
}

// Core does not want the task: the work is done all the same, and nothing is left in the outbox.
func TestCoreRefuses(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	for _, status := range []int{404, 400} {
		w := newWorld(t, nil)
		w.core.hooks(func(string) int { return status }, nil)
		in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(context.Context, *tasks.Task) error { return nil }})
		id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
		w.await(id, store.TaskSucceeded)
		testkit.Eventually(t, "empty outbox", func() bool {
			n := 1
			err := w.server.store.View(t.Context(), func(tx *store.Tx) error {
				all, err := tx.OutboxAll()
				n = len(all)
				return err
			})
			return err == nil && n == 0
		})
		if row := w.row(id); row.Core != store.TaskCoreNone {
			t.Errorf("%+v", row)
		}
	}
}

// TestCreationIsNotRepeatedAtOnce: where Core may have made a record, another one is made only when the first has left
// the user's list.
func TestCreationIsNotRepeatedAtOnce(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	for _, answer := range []int{cut, 502, 504} {
		w := newWorld(t, nil)
		var mu sync.Mutex
		var at []time.Time
		w.core.hooks(func(op string) int {
			mu.Lock()
			defer mu.Unlock()
			if op == "tasks.create" {
				at = append(at, time.Now())
			}
			return 0
		}, func(op string) int {
			mu.Lock()
			defer mu.Unlock()
			if op == "tasks.create" && len(at) == 1 {
				return answer
			}
			return 0
		})
		in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(context.Context, *tasks.Task) error { return nil }})
		id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
		testkit.Eventually(t, "closed", func() bool { return w.row(id).Core == store.TaskCoreClosed })
		mu.Lock()
		if len(at) != 2 || at[1].Sub(at[0]) < w.server.svc.createAgain {
			t.Errorf("answer %d: created at %v", answer, at)
		}
		mu.Unlock()
		// The first record was never posted to, so it has left the list; the second has the end.
		var states []providerapi.TaskState
		for _, r := range w.core.all("T") {
			states = append(states, r.Status.State)
		}
		slices.Sort(states)
		if fmt.Sprint(states) != "[IN_QUEUE SUCCESS]" {
			t.Errorf("records %v", states)
		}
	}
	if createAgain < 5*time.Minute+30*time.Second {
		t.Error("a record is listed for five minutes")
	}
}

// postCore is a Core for the poster alone.
type postCore struct {
	post func(ctx context.Context, id int64, s providerapi.TaskStatus) error
}

func (postCore) CreateTask(context.Context, providerapi.CreateTask) (int64, error) { return 0, nil }

func (c postCore) PostTaskStatus(ctx context.Context, id int64, s providerapi.TaskStatus) error {
	return c.post(ctx, id, s)
}

func running(body string) providerapi.TaskStatus {
	return providerapi.TaskStatus{State: providerapi.TaskRunning, Body: &body}
}

// withPoster runs f with a poster in a bubble with its own time.
func withPoster(t *testing.T, post func(context.Context, int64, providerapi.TaskStatus) error, f func(ctx context.Context, p *poster)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoster(postCore{post}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx) }()
		f(ctx, p)
		cancel()
		<-done
	})
}

// Progress that comes all the time is posted twice a second, the newest each time; without news a task is posted every
// 90 seconds.
func TestPosterPace(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var all []string
	var times []time.Time
	posted := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(all) }
	withPoster(t, func(_ context.Context, _ int64, s providerapi.TaskStatus) error {
		mu.Lock()
		defer mu.Unlock()
		all, times = append(all, *s.Body), append(times, time.Now())
		return nil
	}, func(_ context.Context, p *poster) {
		p.put(1, 0, running("unknown to Core"))
		time.Sleep(time.Minute)
		if len(posted()) > 0 {
			t.Error("posted without Core's id")
		}
		for n := range 1000 {
			p.put(1, 11, running(fmt.Sprint(n)))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		posts := posted()
		if n := len(posts); n < 20 || n > 22 || posts[n-1] != "999" {
			t.Errorf("%d posts in 10 s, the last %s", n, posts[n-1])
		}
		mu.Lock()
		for i := 1; i < len(times); i++ {
			if times[i].Sub(times[i-1]) < postGap {
				t.Errorf("post %d after %v", i, times[i].Sub(times[i-1]))
			}
		}
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		if got := len(posted()) - len(posts); got < 6 || got > 7 {
			t.Errorf("%d posts in ten quiet minutes", got)
		}
		p.close(1)
		n := len(posted())
		p.put(1, 0, running("x"))
		time.Sleep(time.Hour)
		if len(posted()) > n {
			t.Error("posted after the end")
		}
	})
}

// All tasks together are posted 50 times a second at most, and none is left out.
func TestPosterTotal(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	count := map[int64]int{}
	withPoster(t, func(context.Context, int64, providerapi.TaskStatus) error { return nil }, func(_ context.Context, p *poster) {
		p.core = postCore{func(_ context.Context, id int64, _ providerapi.TaskStatus) error {
			mu.Lock()
			defer mu.Unlock()
			count[id]++
			return nil
		}}
		for range 100 { // 10 s
			for id := range int64(500) {
				p.put(id, id+1, running("x"))
			}
			time.Sleep(100 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		total := 0
		for _, n := range count {
			total += n
		}
		if total > 10*postRate+postRate/5+postParallel {
			t.Errorf("%d posts in 10 s", total)
		}
		if len(count) < 450 {
			t.Errorf("only %d of 500 tasks were posted", len(count))
		}
	})
}

// A Core that does not answer delays its posts and nothing else; what is posted when it is back is the newest.
func TestPosterSlowCore(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var posts []string
	away := true
	withPoster(t, func(_ context.Context, _ int64, s providerapi.TaskStatus) error {
		mu.Lock()
		hang := away
		mu.Unlock()
		if hang {
			time.Sleep(10 * time.Second)
			return coreapi.ErrNoAnswer
		}
		mu.Lock()
		defer mu.Unlock()
		posts = append(posts, *s.Body)
		return nil
	}, func(_ context.Context, p *poster) {
		start := time.Now()
		for n := range 100 {
			p.put(1, 11, running(fmt.Sprint(n)))
		}
		if time.Since(start) > 0 {
			t.Error("the worker had to wait")
		}
		time.Sleep(5 * time.Minute)
		mu.Lock()
		away = false
		mu.Unlock()
		p.put(1, 11, running("newest"))
		time.Sleep(2 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(posts) == 0 || posts[0] != "newest" {
			t.Errorf("posts %v", posts)
		}
	})
}

// TestPosterSilence: nothing is posted beside or after the final state, and an answer that never came is remembered.
func TestPosterSilence(t *testing.T) {
	t.Parallel()
	for name, result := range map[string]error{"answered": nil, "refused": &coreapi.StatusError{Status: 500}, "unanswered": coreapi.ErrNoAnswer, "not sent": coreapi.ErrNotSent} {
		var mu sync.Mutex
		begun, ended := 0, 0
		withPoster(t, func(context.Context, int64, providerapi.TaskStatus) error {
			mu.Lock()
			begun++
			mu.Unlock()
			time.Sleep(7 * time.Second)
			mu.Lock()
			ended++
			mu.Unlock()
			return result
		}, func(ctx context.Context, p *poster) {
			p.put(1, 11, running("x"))
			time.Sleep(time.Second)
			p.put(1, 11, running("y"))
			sure, err := p.silence(ctx, 1)
			mu.Lock()
			if err != nil || begun != 1 || ended != 1 {
				t.Errorf("%s: silent with %d posts begun and %d ended, %v", name, begun, ended, err)
			}
			mu.Unlock()
			if sure == errors.Is(result, coreapi.ErrNoAnswer) {
				t.Errorf("%s: sure is %v", name, sure)
			}
			time.Sleep(time.Hour)
			mu.Lock()
			defer mu.Unlock()
			if begun != 1 {
				t.Errorf("%s: posted after the silence", name)
			}
			p.forget(1)
			if len(p.entries) != 0 {
				t.Errorf("%s: remembered for ever", name)
			}
		})
	}
}

// A post that Core carries out late, after it was given up: the final state comes once more behind it.
func TestSeal(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	testkit.Eventually(t, "an old server", func() bool { return time.Since(w.server.svc.started) > 2*w.server.svc.sealAfter })
	goOn := make(chan struct{})
	in := w.instance(uidAda, map[string]tasks.Runner{"copy": func(_ context.Context, task *tasks.Task) error {
		task.Progress(tasks.Progress{Body: "half"})
		<-goOn
		return nil
	}})
	var once sync.Once
	lost := make(chan struct{})
	w.core.hooks(func(op string) int {
		answer := 0
		if op == "tasks.postStatus" {
			once.Do(func() { answer = cut; close(lost) })
		}
		return answer
	}, nil)
	id := in.submit(tasks.Spec{Kind: "copy", Title: "T"})
	<-lost
	time.Sleep(20 * time.Millisecond)
	close(goOn)
	testkit.Eventually(t, "closed", func() bool { return w.row(id).Core == store.TaskCoreClosed })
	// What was lost arrives now.
	w.core.mu.Lock()
	for _, task := range w.core.tasks {
		task.Status.State = providerapi.TaskRunning
	}
	w.core.mu.Unlock()
	w.awaitCore("T", providerapi.TaskSuccess)
}
