package joblogs

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
)

// Jobs is what the package asks about jobs; a role implements it with [ipcapi.JobWatch].
type Jobs interface {
	// Watch calls see with the job as it is now and after each change, until the job has ended (nil), see returns false
	// (nil), or ctx ends.
	Watch(ctx context.Context, id string, see func(ipcapi.JobRecord) bool) error
}

// timing is how often a follower looks. Tests use less.
type timing struct {
	gap        time.Duration // between two looks, at least
	poll       time.Duration // first look without being told, where inotify does not see everything
	pollMost   time.Duration // and at most that rare
	safety     time.Duration // where it does
	unknown    time.Duration // how long a job may be unknown: Core may ask before its creation has come to an end
	settle     time.Duration // after the end: how long a file on another machine's disk may take to show
	settleStep time.Duration
}

var usual = timing{
	gap: 50 * time.Millisecond, poll: time.Second, pollMost: 10 * time.Second, safety: 30 * time.Second,
	unknown: 10 * time.Second, settle: 6 * time.Second, settleStep: time.Second,
}

// news is the newest record of a job.
type news struct {
	wake chan struct{}

	mu   sync.Mutex // guards the fields below
	rec  *ipcapi.JobRecord
	gone bool // there is nothing to follow
}

func (n *news) set(rec *ipcapi.JobRecord, gone bool) {
	n.mu.Lock()
	if rec != nil {
		n.rec = rec
	}
	n.gone = n.gone || gone
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *news) get() (*ipcapi.JobRecord, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rec, n.gone
}

// hear keeps the record up to date until the job has ended or ctx ends.
func (s *Service) hear(ctx context.Context, id string, n *news) {
	begun := time.Now()
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		final := false
		err := s.o.Jobs.Watch(ctx, id, func(r ipcapi.JobRecord) bool {
			pause = 250 * time.Millisecond
			n.set(&r, false)
			final = r.State.Final()
			return !final
		})
		if ctx.Err() != nil || final {
			return
		}
		rec, _ := n.get()
		switch {
		case failure.Is(err, failure.NotFound), failure.Is(err, failure.Forbidden), failure.Is(err, failure.Invalid):
			if rec != nil || time.Since(begun) > s.time.unknown {
				n.set(nil, true)
				return
			}
		case err != nil && !errors.Is(err, io.EOF):
			s.log.Debug("watching a job", "job", id, "error", err)
		}
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// follower sends the log of one job.
type follower struct {
	s    *Service
	news *news
	send sink

	f     *folder
	sub   *subscription
	local bool
	mem   scratch
	pause time.Duration // before the next look without being told
	ended time.Time     // when the end of the job was seen
	quiet int           // looks without anything new since then
}

// run sends everything there is to send. It returns nil when the job has ended and all of its log was sent.
func (w *follower) run(ctx context.Context) error {
	defer w.leave()
	changed, all := map[string]struct{}(nil), true
	for {
		rec, gone := w.news.get()
		if gone && (rec == nil || !rec.State.Final()) {
			return nil // removed, or never visible to this user
		}
		more, found := false, false
		if rec != nil && rec.Folder != "" {
			if w.enter(rec) {
				all = true
			}
			if w.f != nil {
				var err error
				if more, found, err = w.look(ctx, rec, changed, all); err != nil {
					return err
				}
			}
		}
		if rec != nil && rec.State.Final() {
			done, err := w.settle(rec, more || found)
			if done || err != nil {
				return err
			}
		}
		if changed, all = w.wait(ctx, rec, more, found); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// enter opens the folder when it is not open, or was replaced; true: it is another one than before.
func (w *follower) enter(rec *ipcapi.JobRecord) bool {
	if w.f != nil {
		if !w.f.gone() {
			return false
		}
		w.leave()
	}
	f, err := openFolder(rec.Folder)
	if err != nil {
		w.s.log.Debug("the folder of a job cannot be opened", "job", rec.ID, "error", err)
		return false
	}
	w.f, w.local = f, f.local()
	if w.sub, err = w.s.watch.subscribe(f.fd); err != nil {
		w.s.log.Debug("the folder of a job cannot be watched, it is looked at now and then", "job", rec.ID, "error", err)
		w.local = false
	}
	return true
}

func (w *follower) leave() {
	if w.sub != nil {
		w.s.watch.end(w.sub)
		w.sub = nil
	}
	if w.f != nil {
		w.f.close()
		w.f = nil
	}
}

// look sends what is new: in the files that have changed, or in all. more: there is more to send at once.
func (w *follower) look(ctx context.Context, rec *ipcapi.JobRecord, changed map[string]struct{}, all bool) (more, found bool, err error) {
	ranks := max(1, rec.Replicas)
	var these []*source
	if all {
		if err := w.f.find(ranks); err != nil {
			w.s.log.Debug("looking for logs", "job", rec.ID, "error", err)
		}
		these = w.f.order
	} else {
		for name := range changed {
			if s := w.f.add(name, ranks); s != nil {
				these = append(these, s)
			}
		}
	}
	replay := w.s.replay.Load()
	skip := skips{first: max(minShare, replay/int64(max(1, len(w.f.order)))), lag: 4 * replay}
	for _, s := range these {
		if ctx.Err() != nil {
			return false, false, ctx.Err()
		}
		before, ino := s.off, s.ino
		again, err := w.f.read(s, skip, &w.mem, w.send)
		if err != nil {
			return false, false, err
		}
		more = more || again
		found = found || s.off != before || s.ino != ino
	}
	return more, found, nil
}

// settle decides whether the log of a job that has ended is complete.
func (w *follower) settle(rec *ipcapi.JobRecord, found bool) (done bool, err error) {
	if w.ended.IsZero() {
		w.ended = time.Now()
	}
	w.quiet++
	if found {
		w.quiet = 0
	}
	patience := w.s.time.settle
	if w.local {
		patience = w.s.time.settleStep / 4
	}
	if rec.Folder != "" && w.f != nil && (w.quiet < 2 || time.Since(w.ended) < patience) {
		return false, nil
	}
	if w.f == nil {
		return true, nil
	}
	for _, s := range w.f.order {
		if err := s.rest(w.send); err != nil {
			return false, err
		}
	}
	return true, nil
}

// wait returns when there is reason to look again, and where.
func (w *follower) wait(ctx context.Context, rec *ipcapi.JobRecord, more, found bool) (changed map[string]struct{}, all bool) {
	t := &w.s.time
	if more {
		return nil, true
	}
	if !sleep(ctx, t.gap) {
		return nil, false
	}
	var most time.Duration
	switch {
	case rec == nil:
		most = t.safety // the news come by themselves
	case !w.ended.IsZero():
		most = t.settleStep
		if w.local {
			most = t.gap
		}
	case w.f == nil:
		most = t.pollMost
	case w.local:
		most = t.safety
	default:
		if w.pause = min(2*w.pause, t.pollMost); found || w.pause == 0 {
			w.pause = t.poll
		}
		most = w.pause
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	var wake chan struct{}
	if w.sub != nil {
		wake = w.sub.wake
	}
	select {
	case <-wake:
		w.pause = 0
		return w.sub.take()
	case <-w.news.wake:
		return nil, true
	case <-timer.C:
		return nil, true
	case <-ctx.Done():
		return nil, false
	}
}
