package taskserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

const (
	lostEvery   = 500 * time.Millisecond // how often a lost instance is looked after
	wakeFirst   = 5 * time.Second
	wakeMax     = 10 * time.Minute
	wakeTimeout = 2 * time.Minute
)

// Run loads the tasks, hands them out and shows them at Core until ctx ends. Until they are loaded calls are answered
// with Unavailable.
func (s *Service) Run(ctx context.Context) error {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		err := s.load(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		s.log.ErrorContext(ctx, "the tasks cannot be loaded", "error", err)
		sleep(ctx, pause)
	}
	defer s.wakers.Wait()
	done := make(chan struct{})
	go func() { defer close(done); s.poster.run(ctx) }()
	defer func() { <-done }()

	keep := time.NewTicker(persistEvery)
	defer keep.Stop()
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	s.tidy(ctx)
	for {
		wait := s.step(ctx)
		if wait == 0 {
			wait = time.Hour
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.kick:
		case <-timer.C:
		case <-keep.C:
			s.persist(ctx)
		case <-hour.C:
			s.tidy(ctx)
		}
		timer.Stop()
		if ctx.Err() != nil {
			s.persist(context.WithoutCancel(ctx))
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// load reads the tasks that have not ended. Those in hand belong to instances that are about to come back.
func (s *Service) load(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	var rows []store.Task
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = tx.OpenTasks(); return err }); err != nil {
		return err
	}
	now := s.o.Now()
	for _, row := range rows {
		t := s.add(row)
		if row.State == store.TaskRunning && !passive(row.Kind) {
			t.run = &run{lost: now, since: row.StateAt}
			s.lost[row.ID] = t
		}
		t.owner.wakeAt = now.Add(s.o.Grace) // who lives comes by themselves
	}
	for _, o := range s.owners {
		if user, ok := s.o.User(o.uid); !ok || user != o.user {
			s.cancelAll(ctx, o)
		}
	}
	s.loaded = true
	return nil
}

// step does what is due, and says when something will be; 0: nothing is.
func (s *Service) step(ctx context.Context) time.Duration {
	if s.lock(ctx) != nil {
		return 0
	}
	defer s.unlock()
	next := &alarm{now: s.o.Now()}
	s.requeueLost(ctx, next)
	for _, o := range s.hand(ctx, next) {
		s.wake(ctx, o, next)
	}
	for o := range s.hungry {
		if !o.settle(next) {
			delete(s.hungry, o)
		}
	}
	for k, o := range s.owners {
		if len(o.tasks) == 0 && len(o.sessions) == 0 && !o.waking && o.rested(next.now) {
			delete(s.owners, k)
			delete(s.hungry, o)
		}
	}
	return next.wait
}

// alarm finds the next moment at which something is due.
type alarm struct {
	now  time.Time
	wait time.Duration // 0: none
}

func (a *alarm) at(t time.Time) { a.after(t.Sub(a.now)) }

func (a *alarm) after(d time.Duration) {
	d = max(d, 10*time.Millisecond)
	if a.wait == 0 || d < a.wait {
		a.wait = d
	}
}

// rested tells that the limits of an owner have forgotten what was.
func (o *owner) rested(now time.Time) bool {
	return o.submits.TokensAt(now) >= submitBurst && o.saves.TokensAt(now) >= saveBurst
}

// settle tells whether the owner still waits for something, and sets the alarm for tasks that may not run yet.
func (o *owner) settle(next *alarm) bool {
	waits := false
	for _, t := range o.tasks {
		if t.row.State != store.TaskQueued {
			continue
		}
		waits = true
		if t.row.NotBefore.After(next.now) {
			next.at(t.row.NotBefore)
		}
	}
	return waits
}

// requeueLost takes back what nobody will finish.
func (s *Service) requeueLost(ctx context.Context, next *alarm) {
	for _, t := range s.lost {
		gone := dead(t.run.pid)
		if !gone && next.now.Sub(t.run.lost) < s.o.Grace {
			next.after(lostEvery)
			continue
		}
		if err := s.giveUp(ctx, t, gone); err != nil {
			next.after(time.Second) // the database is away
			continue
		}
		t.run = nil
	}
}

// giveUp ends a hand-out of which nothing will be heard. died: its process certainly has.
func (s *Service) giveUp(ctx context.Context, t *task, died bool) error {
	losses := 0
	if died {
		losses = t.row.Losses + 1
		if s.o.Now().Sub(t.run.since) > longAttempt {
			losses = 1
		}
	}
	if losses >= maxLosses {
		return s.finish(ctx, t, store.TaskFailed, fmt.Sprintf("The task was given up: its process ended unexpectedly %d times", losses))
	}
	return s.queue(ctx, t, func(row *store.Task) { row.Losses = losses })
}

// hand hands out what may run, fairly: who has the least under way comes first. It gives those who wait and have no
// instance.
func (s *Service) hand(ctx context.Context, next *alarm) (absent []*owner) {
	full := map[*owner]bool{}
	for s.running < s.global && ctx.Err() == nil {
		var best *owner
		var first *task // of best
		for o := range s.hungry {
			if full[o] {
				continue
			}
			t := s.next(o)
			switch {
			case t == nil:
				full[o] = true
			case !o.present():
				full[o] = true
				absent = append(absent, o)
			case best == nil || o.running < best.running || o.running == best.running && t.row.ID < first.row.ID:
				best, first = o, t
			}
		}
		if best == nil {
			break
		}
		if err := s.handOne(ctx, first); err != nil {
			full[best] = true // it is logged
			next.after(time.Second)
		}
	}
	return absent
}

// next is the oldest task of an owner that may run now.
func (s *Service) next(o *owner) (first *task) {
	if o.running >= s.perUser {
		return nil
	}
	now := s.o.Now()
	kinds := map[string]int{}
	for _, t := range o.tasks {
		if t.row.State == store.TaskRunning {
			kinds[t.row.Kind]++
		}
	}
	for _, t := range o.tasks {
		if t.row.State == store.TaskQueued && !t.row.NotBefore.After(now) && kinds[t.row.Kind] < s.perKind() && !t.doubt &&
			(first == nil || t.row.ID < first.row.ID) {
			first = t
		}
	}
	if first != nil && o.present() && first.run == nil && o.free() == nil {
		return nil
	}
	return first
}

// present tells whether there is an instance that takes tasks.
func (o *owner) present() bool {
	return slices.ContainsFunc(o.sessions, func(s *session) bool { return !s.leaving })
}

// free is the session that takes a task: the newest, unless it runs as many as it wants to.
func (o *owner) free() *session {
	var sess *session
	for _, x := range o.sessions {
		if !x.leaving {
			sess = x
		}
	}
	if sess == nil || sess.max == 0 {
		return sess
	}
	n := 0
	for _, t := range o.tasks {
		if t.run != nil && t.run.sess == sess && t.row.State == store.TaskRunning {
			n++
		}
	}
	if n >= sess.max {
		return nil
	}
	return sess
}

// handOne hands out a task: to the process where it stands still, or anew.
func (s *Service) handOne(ctx context.Context, t *task) error {
	stands := t.run != nil && t.run.sess != nil
	row := t.row
	row.State, row.Wanted, row.NotBefore, row.StateAt, row.Text = store.TaskRunning, "", time.Time{}, s.o.Now(), ""
	if !stands {
		row.Attempt++
	}
	sess := t.owner.free()
	if stands {
		sess = t.run.sess
	}
	if sess == nil {
		return errors.New("no session takes the task")
	}
	if err := s.change(ctx, t, row, nil); err != nil {
		return err
	}
	t.run = &run{sess: sess, pid: sess.pid, since: row.StateAt}
	ref := ipcapi.TaskRun{ID: row.ID, Attempt: row.Attempt}
	if stands {
		sess.notify(ipcapi.TaskItemResume, ref)
	} else {
		sess.hand(ref)
	}
	return nil
}

// wake has the instance of an owner started, beside everything else.
func (s *Service) wake(ctx context.Context, o *owner, next *alarm) {
	switch {
	case o.waking:
		return
	case o.wakeAt.After(next.now):
		next.at(o.wakeAt)
		return
	}
	o.waking = true
	s.wakers.Go(func() {
		err := s.wakeOne(ctx, o.user)
		s.turn <- struct{}{}
		defer s.unlock()
		o.waking = false
		if o.present() {
			return
		}
		// Also when it started: it has to open its stream, and if it does not, then not for the next ten minutes either.
		pause := min(wakeFirst<<min(o.wakeFails, 16), wakeMax)
		o.wakeFails++
		o.wakeAt = s.o.Now().Add(pause)
		if err != nil && ctx.Err() == nil && o.wakeFails&(o.wakeFails-1) == 0 {
			s.log.WarnContext(ctx, "an instance with unfinished tasks cannot be started", "user", o.user, "failures", o.wakeFails, "next", pause, "error", err)
		}
		s.hungry[o] = true
		s.look()
	})
}

// wakeOne waits for its turn among the wakes, and wakes.
func (s *Service) wakeOne(ctx context.Context, user ident.UCloudUser) error {
	select {
	case s.waking <- struct{}{}:
		defer func() { <-s.waking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	return s.o.Wake(ctx, user)
}

// UserInactive is told that a mapping has ended: all tasks of the user are cancelled, and Core is told. Call it before
// the instance is stopped. An error means that some were not; the next start of the server does it.
func (s *Service) UserInactive(ctx context.Context, user ident.UCloudUser, uid ident.UID) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	o := s.owners[ownerKey{uid, user}]
	if o == nil {
		return nil
	}
	return s.cancelAll(ctx, o)
}

func (s *Service) cancelAll(ctx context.Context, o *owner) error {
	var problems []error
	for _, t := range o.tasks {
		err := s.finish(ctx, t, store.TaskCancelled, "You were disconnected from this provider")
		if err != nil {
			problems = append(problems, err)
			continue
		}
		s.tell(t, ipcapi.TaskItemCancel)
	}
	return errors.Join(problems...)
}

// persist stores progress that is only in memory.
func (s *Service) persist(ctx context.Context) {
	if s.lock(ctx) != nil {
		return
	}
	defer s.unlock()
	var rows []store.Task
	for _, t := range s.tasks {
		if t.news && !t.doubt {
			rows = append(rows, t.row)
		}
	}
	if len(rows) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, row := range rows {
			if err := tx.UpdateTask(row); err != nil && !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.log.WarnContext(ctx, "progress of tasks was not stored", "error", err)
		return
	}
	for _, row := range rows {
		if t := s.tasks[row.ID]; t != nil {
			t.news = false
		}
	}
}

// tidy ends what nobody will end, and forgets what ended long ago.
func (s *Service) tidy(ctx context.Context) {
	if s.lock(ctx) != nil {
		return
	}
	defer s.unlock()
	now := s.o.Now()
	for _, t := range s.tasks {
		var err error
		switch {
		case t.doubt:
			err = s.reload(ctx, t)
		case passive(t.row.Kind) && s.expired(ctx, t):
			err = s.finish(ctx, t, store.TaskFailed, "The other provider has not sent anything for too long, and the transfer has expired")
		case t.row.State == store.TaskSuspended && now.Sub(t.row.StateAt) > pausedFor:
			err = s.stop(ctx, t, "The task was paused for more than seven days")
		case now.Sub(t.row.UpdatedAt) > retention:
			err = s.finish(ctx, t, store.TaskFailed, "The task has made no progress for thirty days")
			s.tell(t, ipcapi.TaskItemCancel)
		}
		if err != nil {
			s.log.WarnContext(ctx, "an old task was not ended", "task", t.row.ID, "error", err)
		}
	}
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.PurgeTasks(now.Add(-retention)); err != nil {
			return err
		}
		_, err := tx.TrimTasks(keptEnded)
		return err
	})
	if err != nil && !failure.Is(err, failure.Unavailable) && ctx.Err() == nil {
		s.log.WarnContext(ctx, "old tasks were not forgotten", "error", err)
	}
}
