package taskserver

import (
	"context"
	"errors"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

var errNotLast = failure.New(failure.Conflict, "The task has been handed to another process")

// progress takes over the newest progress of tasks. It costs no transaction: what is worth keeping is stored once a
// minute and with the next change of state.
func (s *Service) progress(ctx context.Context, r *ipc.Request, req ipcapi.TaskProgressBatch) (ipcapi.Empty, error) {
	if len(req.Tasks) > ipcapi.MaxTaskBatch {
		return ipcapi.Empty{}, failure.New(failure.TooLarge, "There are too many tasks in one request")
	}
	if err := s.begin(ctx); err != nil {
		return ipcapi.Empty{}, err
	}
	defer s.unlock()
	k := caller(r)
	for _, p := range req.Tasks {
		t := s.tasks[p.ID]
		if t == nil || t.owner.ownerKey != k || t.row.Attempt != p.Attempt || t.row.State != store.TaskRunning {
			continue // too late, or not theirs
		}
		t.row.Body, t.row.Text, t.row.Percent = body(p.Body), line(p.Text), percent(p.Percent)
		t.row.UpdatedAt, t.news = s.o.Now(), true
		if t.row.Core != store.TaskCoreNone {
			s.poster.put(t.row.ID, t.row.CoreID, status(t.row))
		}
	}
	return ipcapi.Empty{}, nil
}

func percent(p float64) float64 {
	if !(p >= 0) {
		return -1
	}
	return min(p, 100)
}

// save stores where a task would continue.
func (s *Service) save(ctx context.Context, r *ipc.Request, req ipcapi.TaskSaving) (ipcapi.Empty, error) {
	if len(req.Saved) > ipcapi.MaxTaskSaved {
		return ipcapi.Empty{}, failure.New(failure.TooLarge, "The state of the task is too large")
	}
	if err := s.begin(ctx); err != nil {
		return ipcapi.Empty{}, err
	}
	defer s.unlock()
	t, ended, err := s.mine(ctx, caller(r), req.ID)
	switch {
	case err != nil:
		return ipcapi.Empty{}, err
	case ended != nil, t.row.Attempt != req.Attempt:
		return ipcapi.Empty{}, errNotLast
	case !t.owner.saves.AllowN(s.o.Now(), 1):
		return ipcapi.Empty{}, failure.New(failure.TooMany, "The state of tasks is saved too often")
	}
	now := s.o.Now()
	err = s.update(ctx, func(tx *store.Tx) error { return tx.SaveTask(req.ID, req.Attempt, req.Saved, now) })
	if errors.Is(err, store.ErrConflict) {
		return ipcapi.Empty{}, errNotLast
	}
	if err == nil {
		t.row.UpdatedAt, t.row.Losses = now, 0
	}
	return ipcapi.Empty{}, err
}

// report ends a hand-out, or notes that it stands still. An end that was reported before, and one that came another way
// meanwhile, is a success: the instance need not know more.
func (s *Service) report(ctx context.Context, r *ipc.Request, ev ipcapi.TaskEvent) (ipcapi.Empty, error) {
	if err := s.begin(ctx); err != nil {
		return ipcapi.Empty{}, err
	}
	defer s.unlock()
	t, ended, err := s.mine(ctx, caller(r), ev.ID)
	switch {
	case err != nil:
		return ipcapi.Empty{}, err
	case ended != nil && ended.Attempt == ev.Attempt:
		return ipcapi.Empty{}, nil
	case ended != nil, t.row.Attempt != ev.Attempt:
		return ipcapi.Empty{}, errNotLast
	}
	return ipcapi.Empty{}, s.conclude(ctx, t, ev)
}

// conclude does what a report asks for.
func (s *Service) conclude(ctx context.Context, t *task, ev ipcapi.TaskEvent) error {
	t.row.Body, t.row.Percent, t.row.UpdatedAt = body(ev.State.Body), percent(ev.State.Percent), s.o.Now()
	over := t.run // what is over when the change is stored
	var err error
	switch ev.Outcome {
	case ipcapi.TaskSuspended:
		if t.row.State != store.TaskRunning || t.row.Wanted != store.TaskSuspended {
			return nil // it is to go on already
		}
		return s.suspend(ctx, t)
	case ipcapi.TaskSucceeded:
		return s.finish(ctx, t, store.TaskSucceeded, ev.State.Text)
	case ipcapi.TaskFailed:
		return s.finish(ctx, t, store.TaskFailed, ev.State.Text)
	case ipcapi.TaskCancelled:
		text := ev.State.Text
		if t.why != "" {
			text = t.why
		}
		return s.finish(ctx, t, store.TaskCancelled, text)
	case ipcapi.TaskReleased:
		if t.row.State == store.TaskRunning {
			err = s.queue(ctx, t, nil)
		}
	case ipcapi.TaskRetry:
		err = s.retry(ctx, t, over, line(ev.State.Text))
	default:
		return failure.New(failure.Invalid, "The report cannot be read")
	}
	if err == nil && t.run == over {
		t.run = nil
	}
	return err
}

// retry has a task tried again later, or gives it up.
func (s *Service) retry(ctx context.Context, t *task, last *run, why string) error {
	if t.row.State != store.TaskRunning {
		return nil
	}
	now := s.o.Now()
	retries, since := t.row.Retries, t.row.RetrySince
	if retries == 0 || last != nil && now.Sub(last.since) > longAttempt {
		retries, since = 0, now
	}
	if now.Sub(since) > retryFor {
		return s.finish(ctx, t, store.TaskFailed, why)
	}
	pause := retryMax
	if retries < 16 { // no overflow
		pause = min(retryFirst<<retries, retryMax)
	}
	return s.queue(ctx, t, func(row *store.Task) {
		row.Retries, row.RetrySince, row.NotBefore, row.Text = retries+1, since, now.Add(pause), retryText(pause, why)
	})
}

// States that a user may want, in Core's words.
const (
	wishPause  = "SUSPENDED"
	wishResume = "RUNNING"
	wishCancel = "CANCELLED"
)

// control does what the user asked Core for. It is stored before the answer.
func (s *Service) control(ctx context.Context, r *ipc.Request, req ipcapi.TaskWish) (ipcapi.Empty, error) {
	switch req.State {
	case wishPause, wishResume, wishCancel:
	default:
		return ipcapi.Empty{}, failure.New(failure.Invalid, "A task can be paused, resumed or cancelled")
	}
	if err := s.begin(ctx); err != nil {
		return ipcapi.Empty{}, err
	}
	defer s.unlock()
	var row store.Task
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.TaskByCoreID(req.CoreID); return err })
	if errors.Is(err, store.ErrNotFound) {
		return ipcapi.Empty{}, errNoTask
	}
	if err != nil {
		return ipcapi.Empty{}, err
	}
	t, ended, err := s.mine(ctx, caller(r), row.ID)
	if err != nil || ended != nil {
		return ipcapi.Empty{}, err // what has ended stays as it is, and that is no error
	}
	return ipcapi.Empty{}, s.wish(ctx, t, req.State)
}

func (s *Service) wish(ctx context.Context, t *task, state string) error {
	switch {
	case state == wishCancel && !t.row.CanCancel:
		return failure.New(failure.Invalid, "This task cannot be cancelled")
	case state == wishPause && !t.row.CanPause:
		return failure.New(failure.Invalid, "This task cannot be paused")
	case state == wishCancel:
		return s.stop(ctx, t, "")
	case t.row.Wanted == store.TaskCancelled:
		return nil // nothing comes after that
	case state == wishPause:
		return s.pause(ctx, t)
	}
	return s.resume(ctx, t)
}

// stop cancels a task. Work under way is told to end, and the task is cancelled when it has; a task that nobody works on
// is cancelled at once.
func (s *Service) stop(ctx context.Context, t *task, text string) error {
	live := t.run != nil && t.run.sess != nil
	if t.row.State == store.TaskRunning && live {
		row := t.row
		row.Wanted = store.TaskCancelled
		if err := s.change(ctx, t, row, nil); err != nil {
			return err
		}
		t.why = text
		s.tell(t, ipcapi.TaskItemCancel)
		return nil
	}
	if err := s.finish(ctx, t, store.TaskCancelled, text); err != nil {
		return err
	}
	s.tell(t, ipcapi.TaskItemCancel) // one that stands still has to clean up
	return nil
}

func (s *Service) pause(ctx context.Context, t *task) error {
	switch {
	case t.row.State == store.TaskQueued:
		return s.suspend(ctx, t)
	case t.row.State != store.TaskRunning || t.row.Wanted == store.TaskSuspended:
		return nil
	}
	row := t.row
	row.Wanted = store.TaskSuspended
	if err := s.change(ctx, t, row, nil); err != nil {
		return err
	}
	s.tell(t, ipcapi.TaskItemPause)
	return nil
}

func (s *Service) resume(ctx context.Context, t *task) error {
	row := t.row
	switch {
	case row.State == store.TaskRunning && row.Wanted == store.TaskSuspended:
		row.Wanted = ""
		if err := s.change(ctx, t, row, nil); err != nil {
			return err
		}
		s.tell(t, ipcapi.TaskItemResume)
	case row.State == store.TaskSuspended:
		now := s.o.Now()
		row.State, row.Text, row.Retries, row.StateAt, row.UpdatedAt = store.TaskQueued, "", 0, now, now
		return s.change(ctx, t, row, nil)
	}
	return nil
}

// tell sends a notice to whoever has the task in hand.
func (s *Service) tell(t *task, kind string) {
	if t.run != nil && t.run.sess != nil {
		t.run.sess.notify(kind, ipcapi.TaskRun{ID: t.row.ID, Attempt: t.row.Attempt})
	}
}

// waitEnd waits until a task has ended, ctx is done or the time is over.
func waitEnd(ctx context.Context, t *task, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
