package gateway

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Sentences for end users. Core shows the text of the last 449 to the user (contract 02 point 9.22).
const (
	whyBusy     = "The service is busy starting sessions for other users. Please try again in a moment."
	whySlow     = "Your session at this provider is still starting. Please try again in a moment."
	whyAway     = "The service at this provider is restarting. Please try again in a moment."
	whyDisabled = "You have no running session at this provider."
)

// wakeRetry is the pause before a question that IM/Server could not be asked is asked again.
const wakeRetry = 100 * time.Millisecond

// wakeLife bounds one question to IM/Server. It is longer than any hold, so that requests which come while the first
// ones give up join it.
const wakeLife = 20 * time.Second

// holder makes requests wait for the instance of their user. All requests of one user share one question to IM/Server.
type holder struct {
	control Control
	routes  *Table
	log     *slog.Logger
	held    atomic.Int64
	count   func(result string) // counts ended wakes for the metrics

	ctx    context.Context // ends when the gateway closes; bounds the goroutines of wakes
	closed context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	wakes map[ident.UCloudUser]*wake
}

// wake is one question to IM/Server under way.
type wake struct {
	done   chan struct{} // closed when the fields below are set
	cancel context.CancelFunc
	in     *instance
	why    string
	ended  bool // guarded by holder.mu
}

func newHolder(control Control, routes *Table, log *slog.Logger) *holder {
	ctx, cancel := context.WithCancel(context.Background())
	h := &holder{control: control, routes: routes, log: log, ctx: ctx, closed: cancel, wakes: make(map[ident.UCloudUser]*wake), count: func(string) {}}
	routes.watcher = h.routeAdded
	return h
}

// close ends all wakes and waits for them.
func (h *holder) close() {
	h.closed()
	h.wg.Wait()
}

// enter takes a place among the held requests.
func (h *holder) enter(limit int) (leave func(), err error) {
	if h.held.Add(1) > int64(limit) {
		h.held.Add(-1)
		return nil, failure.New(failure.NoInstance, whyBusy)
	}
	return func() { h.held.Add(-1) }, nil
}

// await waits until the user has an instance other than failed (nil: any), at the latest until deadline. The error is of
// kind NoInstance with the reason, or the context's.
func (h *holder) await(ctx context.Context, user ident.UCloudUser, failed *instance, deadline time.Time) (*instance, error) {
	left := time.Until(deadline)
	if left <= 0 {
		return nil, failure.New(failure.NoInstance, whySlow)
	}
	w := h.join(user)
	// The route may have come between the caller's look and our joining.
	if in := h.routes.lookup(user); in != nil && in != failed {
		return in, nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		return nil, failure.New(failure.NoInstance, whySlow)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if w.in == nil {
		return nil, failure.New(failure.NoInstance, "%s", w.why)
	}
	return w.in, nil
}

// join gives the wake of the user that is under way, or starts one.
func (h *holder) join(user ident.UCloudUser) *wake {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.wakes[user]; w != nil {
		return w
	}
	ctx, cancel := context.WithTimeout(h.ctx, wakeLife)
	w := &wake{done: make(chan struct{}), cancel: cancel}
	h.wakes[user] = w
	h.wg.Go(func() {
		defer cancel()
		in, why, result := h.ask(ctx, user)
		h.end(user, w, in, why, result)
	})
	return w
}

// ask asks IM/Server until it has answered or ctx ends. The server may be restarting: that alone is no answer.
func (h *holder) ask(ctx context.Context, user ident.UCloudUser) (in *instance, why, result string) {
	for attempt := 0; ; attempt++ {
		route, why, err := h.control.Wake(ctx, user)
		switch {
		case err == nil && route != nil && route.User != user:
			h.log.Error("wake gave the route of another user", "user", user, "route", *route)
			return nil, whyAway, "error"
		case err == nil && route != nil:
			return h.routes.adopt(*route), whyAway, "woken"
		case err == nil && why == "":
			return nil, whyDisabled, "refused"
		case err == nil:
			return nil, why, "refused"
		case ctx.Err() != nil:
			return nil, whySlow, "timeout"
		}
		if attempt == 0 {
			h.log.Warn("wake could not be asked", "user", user, "error", err)
		}
		select {
		case <-time.After(wakeRetry):
		case <-ctx.Done():
			return nil, whyAway, "timeout"
		}
	}
}

// routeAdded ends a wake early when its route came by the stream of updates.
func (h *holder) routeAdded(user ident.UCloudUser, in *instance) {
	h.mu.Lock()
	w := h.wakes[user]
	h.mu.Unlock()
	if w != nil {
		h.end(user, w, in, "", "woken")
	}
}

func (h *holder) end(user ident.UCloudUser, w *wake, in *instance, why, result string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.ended {
		return
	}
	w.ended, w.in, w.why = true, in, why
	if h.wakes[user] == w {
		delete(h.wakes, user)
	}
	h.count(result)
	w.cancel()
	close(w.done)
}
