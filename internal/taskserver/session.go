package taskserver

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// session is the stream of one instance.
type session struct {
	owner *owner
	pid   int32
	max   int
	// leaving: its process is about to end and takes no more tasks. Guarded by the service's turn.
	leaving bool
	// wake holds one element: there is something to send.
	wake chan struct{}

	// What is to be sent is bounded by the number of tasks: a newer notice about a task replaces the older.
	mu      sync.Mutex // guards the fields below
	handed  []ipcapi.TaskRun
	notices map[int64]ipcapi.TaskItem
	pending int
	news    bool // pending has changed
}

// follow hands tasks out to an instance until its connection ends.
func (s *Service) follow(ctx context.Context, r *ipc.Request, hello ipcapi.TaskHello, send func(ipcapi.TaskItem, ...*os.File) error) error {
	if len(hello.Claims) > maxClaims || hello.Max < 0 {
		return failure.New(failure.Invalid, "The request could not be read")
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sess := &session{
		pid: r.Peer.PID(), max: hello.Max, wake: make(chan struct{}, 1), notices: map[int64]ipcapi.TaskItem{}, pending: -1,
	}
	err := s.attach(ctx, sess, caller(r), hello.Claims)
	s.unlock()
	if err != nil {
		return err
	}
	defer func() {
		s.turn <- struct{}{} // whatever ends the stream, its tasks must not be forgotten
		defer s.unlock()
		s.detach(sess)
	}()
	return s.serve(ctx, sess, send)
}

// attach makes a session and gives it back what it has in hand. It is given what is its own, and no other session has.
func (s *Service) attach(ctx context.Context, sess *session, k ownerKey, claims []ipcapi.TaskClaim) error {
	o := s.owner(k)
	if len(o.sessions) >= maxSessions {
		return failure.New(failure.TooMany, "There are too many streams of tasks")
	}
	sess.owner = o
	unknown := 0
	for _, c := range claims {
		if s.tasks[c.ID] == nil {
			if unknown++; unknown > maxUnknown {
				sess.notify(ipcapi.TaskItemDrop, c.TaskRun)
				continue
			}
		}
		if err := s.claim(ctx, sess, c); err != nil {
			return err
		}
	}
	o.sessions = append(o.sessions, sess)
	o.wakeAt, o.wakeFails = time.Time{}, 0
	o.announce()
	s.hungry[o] = true
	s.look()
	return nil
}

func (s *Service) claim(ctx context.Context, sess *session, c ipcapi.TaskClaim) error {
	t, ended, err := s.mine(ctx, sess.owner.ownerKey, c.ID)
	switch {
	case failure.Is(err, failure.NotFound):
		sess.notify(ipcapi.TaskItemDrop, c.TaskRun)
		return nil
	case err != nil:
		return err
	case ended != nil && ended.Attempt == c.Attempt && ended.State == store.TaskCancelled:
		sess.notify(ipcapi.TaskItemCancel, c.TaskRun) // so that it cleans up
		return nil
	case ended != nil && ended.Attempt == c.Attempt && ended.State == store.TaskSucceeded:
		return nil // its report came through, and it does not know yet
	case ended != nil, t.row.Attempt != c.Attempt, passive(t.row.Kind), t.run != nil && t.run.sess != nil && t.run.sess.pid != sess.pid:
		sess.notify(ipcapi.TaskItemDrop, c.TaskRun)
		return nil
	}
	if t.row.State == store.TaskQueued && !c.Suspended { // it came back after the grace, and before another one got it
		row := t.row
		row.State, row.StateAt, row.NotBefore = store.TaskRunning, s.o.Now(), time.Time{}
		if err := s.change(ctx, t, row, nil); err != nil {
			return err
		}
	}
	since := s.o.Now()
	if t.run != nil {
		since = t.run.since
	}
	t.run = &run{sess: sess, pid: sess.pid, since: since}
	delete(s.lost, t.row.ID)
	switch {
	case t.row.Wanted == store.TaskCancelled:
		sess.notify(ipcapi.TaskItemCancel, c.TaskRun)
	case !c.Suspended && (t.row.Wanted == store.TaskSuspended || t.row.State == store.TaskSuspended):
		sess.notify(ipcapi.TaskItemPause, c.TaskRun)
	case c.Suspended && t.row.State == store.TaskRunning && t.row.Wanted == "":
		sess.notify(ipcapi.TaskItemResume, c.TaskRun)
	}
	return nil
}

// leave has nothing more handed to the process of the caller. What it is handed at the same moment it gives back.
func (s *Service) leave(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (ipcapi.Empty, error) {
	if err := s.begin(ctx); err != nil {
		return ipcapi.Empty{}, err
	}
	defer s.unlock()
	if o := s.owners[caller(r)]; o != nil {
		for _, sess := range o.sessions {
			sess.leaving = sess.leaving || sess.pid == r.Peer.PID()
		}
	}
	return ipcapi.Empty{}, nil
}

// detach takes a session out. Its tasks wait for the instance to come back, or for news of its death.
func (s *Service) detach(sess *session) {
	o := sess.owner
	o.sessions = slices.DeleteFunc(o.sessions, func(x *session) bool { return x == sess })
	for id, t := range o.tasks {
		if t.run == nil || t.run.sess != sess {
			continue
		}
		if t.row.State != store.TaskRunning {
			t.run = nil // a paused one that is claimed again is taken back
			continue
		}
		t.run.sess, t.run.lost = nil, s.o.Now()
		s.lost[id] = t
	}
	if pause := s.o.Now().Add(wakeAfterEnd); o.wakeAt.Before(pause) {
		o.wakeAt = pause // a successor may be about to come
	}
	s.hungry[o] = true
	s.look()
}

// wakeAfterEnd is how long after the end of an instance another one is woken for its tasks.
const wakeAfterEnd = time.Second

// serve sends what there is to send.
func (s *Service) serve(ctx context.Context, sess *session, send func(ipcapi.TaskItem, ...*os.File) error) error {
	for {
		for _, item := range sess.take() {
			if item.Kind == ipcapi.TaskItemRun {
				work, ok, err := s.work(ctx, item.TaskRun)
				if err != nil {
					return err // the instance opens the stream again, without this hand-out
				}
				if !ok {
					continue
				}
				item.Work = work
			}
			if err := send(item); err != nil {
				return err
			}
		}
		select {
		case <-sess.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// work loads what a hand-out consists of; false: it is over already.
func (s *Service) work(ctx context.Context, r ipcapi.TaskRun) (*ipcapi.TaskWork, bool, error) {
	var row store.Task
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.TaskWork(r.ID); return err })
	if err != nil || row.Attempt != r.Attempt || row.State != store.TaskRunning {
		return nil, false, err
	}
	return &ipcapi.TaskWork{Kind: row.Kind, Title: row.Title, Params: row.Params, Saved: row.Saved}, true, nil
}

// hand queues a hand-out.
func (sess *session) hand(r ipcapi.TaskRun) {
	sess.mu.Lock()
	sess.handed = append(sess.handed, r)
	delete(sess.notices, r.ID)
	sess.mu.Unlock()
	sess.stir()
}

// notify queues a notice about a task.
func (sess *session) notify(kind string, r ipcapi.TaskRun) {
	sess.mu.Lock()
	old, is := sess.notices[r.ID]
	if !is || old.TaskRun != r || old.Kind != ipcapi.TaskItemCancel && old.Kind != ipcapi.TaskItemDrop {
		sess.notices[r.ID] = ipcapi.TaskItem{Kind: kind, TaskRun: r}
	}
	sess.mu.Unlock()
	sess.stir()
}

func (sess *session) stir() {
	select {
	case sess.wake <- struct{}{}:
	default:
	}
}

// take gives what is to be sent now: hand-outs before notices about them, and the number last.
func (sess *session) take() []ipcapi.TaskItem {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	var items []ipcapi.TaskItem
	for _, r := range sess.handed {
		items = append(items, ipcapi.TaskItem{Kind: ipcapi.TaskItemRun, TaskRun: r})
	}
	for _, n := range sess.notices {
		items = append(items, n)
	}
	if sess.news {
		items = append(items, ipcapi.TaskItem{Kind: ipcapi.TaskItemPending, Pending: sess.pending})
	}
	sess.handed, sess.news = nil, false
	clear(sess.notices)
	return items
}

// announce tells the sessions of an owner how many tasks wait or run.
func (o *owner) announce() {
	n := 0
	for _, t := range o.tasks {
		if t.row.State != store.TaskSuspended && !passive(t.row.Kind) {
			n++
		}
	}
	for _, sess := range o.sessions {
		sess.mu.Lock()
		changed := sess.pending != n
		if changed {
			sess.pending, sess.news = n, true
		}
		sess.mu.Unlock()
		if changed {
			sess.stir()
		}
	}
}
