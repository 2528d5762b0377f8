package taskserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Core is what this package needs of the client for Core.
type Core interface {
	CreateTask(ctx context.Context, t providerapi.CreateTask) (int64, error)
	PostTaskStatus(ctx context.Context, coreID int64, s providerapi.TaskStatus) error
}

// Options configure a [Service]. Store, Core, User, Wake and Log are required.
type Options struct {
	Store *store.Store
	Core  Core
	// User gives the UCloud user of a uid by an active mapping.
	User func(ident.UID) (ident.UCloudUser, bool)
	// Wake starts the instance of a user, or finds it running.
	Wake func(ctx context.Context, user ident.UCloudUser) error
	Log  *slog.Logger

	// Audit writes a line about a change by an operator; nil: the log.
	Audit func(r *ipc.Request, action string, err error, attrs ...slog.Attr)
	// LocalName gives the login name of a uid for lists, "" if it is not known. Nil: none is.
	LocalName func(ident.UID) string

	// Running tasks of one user and of all. 0 means 10 and 100 (tasks.maxPerUser and tasks.maxGlobal).
	MaxPerUser, MaxGlobal int

	// Grace is how long after a start, or after an instance was lost that may live, tasks in hand are not given to
	// another one. 0 means 15 s.
	Grace time.Duration

	Now func() time.Time // nil: time.Now; deliveries go by the clock of the outbox
}

// Limits that are no configuration.
const (
	maxOpen     = 500 // tasks of one user that have not ended
	maxSessions = 4   // streams of one user: an instance, its successor, and reconnects
	maxClaims   = 2 * maxOpen
	maxUnknown  = 64 // claims of tasks that are looked for in the database
	maxLosses   = 5  // attempts in a row that may end with their process
	keptEnded   = 200

	submitRate, submitBurst = 1, 100 // per second and user; each makes a record at Core
	saveRate, saveBurst     = 5, 20  // per second and user; each is a transaction

	longAttempt  = 10 * time.Minute // an attempt that lasted so long was no failure to start
	retryFirst   = 4 * time.Second
	retryMax     = 5 * time.Minute
	retryFor     = 24 * time.Hour
	pausedFor    = 7 * 24 * time.Hour
	retention    = 30 * 24 * time.Hour
	persistEvery = time.Minute
)

// Service keeps the tasks. Make it with [New], register it with the IPC server and the outbox, then call [Service.Run].
type Service struct {
	o      Options
	log    *slog.Logger
	poster *poster
	turn   chan struct{} // holds one element while somebody reads or changes what follows
	kick   chan struct{} // holds one element: the scheduler has something to look at

	started time.Time
	owners  map[ownerKey]*owner
	tasks   map[int64]*task // all that have not ended
	lost    map[int64]*task // running, and no session has them
	hungry  map[*owner]bool // may have something to be handed out
	running int             // tasks in state running
	loaded  bool

	perUser, global int

	createAgain, sealAfter time.Duration    // constants, shorter in tests
	committed              func(after bool) // told before and after the commit of a task; nil but in tests

	wakers sync.WaitGroup
	waking chan struct{} // bounds the wakes at a time
}

// ownerKey is who a task belongs to: the kernel's uid as that UCloud user.
type ownerKey struct {
	uid  ident.UID
	user ident.UCloudUser
}

// owner is a user with tasks or sessions.
type owner struct {
	ownerKey
	tasks    map[int64]*task
	sessions []*session // the newest last
	running  int

	submits, saves *rate.Limiter

	wakeAt    time.Time // not before
	wakeFails int
	waking    bool
}

// task is one that has not ended.
type task struct {
	owner *owner
	row   store.Task    // as in the database, but for progress
	news  bool          // progress is not in the database yet
	run   *run          // who has it in hand; nil: nobody
	ended chan struct{} // closed at the end
	doubt bool          // a commit had no known outcome: the row must be read again
	why   string        // what a cancelled task says instead of what its work says
}

// run is a hand-out.
type run struct {
	sess  *session // nil: lost
	pid   int32    // of the process that has or had it; 0: not known
	since time.Time
	lost  time.Time
}

// New makes a service without tasks; Run loads them.
func New(o Options) *Service {
	if o.Store == nil || o.Core == nil || o.User == nil || o.Wake == nil || o.Log == nil {
		panic("taskserver: Store, Core, User, Wake and Log are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Grace <= 0 {
		o.Grace = 15 * time.Second
	}
	log := o.Log.With("part", "tasks")
	s := &Service{
		o: o, log: log, poster: newPoster(o.Core, log), turn: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		owners: map[ownerKey]*owner{}, tasks: map[int64]*task{}, lost: map[int64]*task{}, hungry: map[*owner]bool{},
		waking: make(chan struct{}, 4), started: o.Now(),
		createAgain: createAgain, sealAfter: sealAfter,
	}
	s.setLimits(o.MaxPerUser, o.MaxGlobal)
	return s
}

// Register adds the handlers to the IPC server and the deliveries to the outbox.
func (s *Service) Register(srv *ipc.Server, box *outbox.Outbox) {
	ipc.HandleStream(srv, ipcapi.TaskFollow, s.follow)
	ipc.Handle(srv, ipcapi.TaskLeave, s.leave)
	ipc.Handle(srv, ipcapi.TaskSubmit, s.submit)
	ipc.Handle(srv, ipcapi.TaskProgress, s.progress)
	ipc.Handle(srv, ipcapi.TaskReport, s.report)
	ipc.Handle(srv, ipcapi.TaskSave, s.save)
	ipc.Handle(srv, ipcapi.TaskControl, s.control)
	ipc.Handle(srv, ipcapi.TransferUpdate, s.transfer)
	ipc.HandleStream(srv, ipcapi.TaskList, s.list)
	ipc.Handle(srv, ipcapi.TaskCancel, s.cancel)

	box.RegisterGuarded(kindCreate, s.deliverCreate, outbox.RetryAfter(errCut, s.createAgain))
	box.Register(kindFinal, s.deliverFinal)
	box.Register(kindSeal, s.deliverSeal)
}

// lock waits for the turn.
func (s *Service) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the tasks: %w", ctx.Err())
	}
}

func (s *Service) unlock() { <-s.turn }

// begin is lock for a call, which must wait for the tasks to be loaded.
func (s *Service) begin(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	if !s.loaded {
		s.unlock()
		return failure.New(failure.Unavailable, "The provider's service is being restarted, try again in a moment")
	}
	return nil
}

// look has the scheduler look.
func (s *Service) look() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// SetLimits changes how many tasks may run at a time, of one user and of all. Tasks that run are left alone.
func (s *Service) SetLimits(perUser, global int) {
	s.turn <- struct{}{}
	s.setLimits(perUser, global)
	s.unlock()
	s.look()
}

func (s *Service) setLimits(perUser, global int) {
	if perUser <= 0 {
		perUser = 10
	}
	if global <= 0 {
		global = 100
	}
	s.perUser, s.global = perUser, global
}

// perKind bounds the tasks of one kind of one user, so that long transfers leave room for deletions (contract 14
// section 5).
func (s *Service) perKind() int { return max(1, (s.perUser+2)/3) }

// caller is the owner that a request speaks for.
func caller(r *ipc.Request) ownerKey { return ownerKey{r.Peer.UID(), r.Grant.User} }

// owner gives the owner of a key, new if need be.
func (s *Service) owner(k ownerKey) *owner {
	o := s.owners[k]
	if o == nil {
		o = &owner{
			ownerKey: k, tasks: map[int64]*task{},
			submits: rate.NewLimiter(submitRate, submitBurst), saves: rate.NewLimiter(saveRate, saveBurst),
		}
		s.owners[k] = o
	}
	return o
}

// mine finds a task of the caller that has not ended. A task that ended is answered by the second result.
func (s *Service) mine(ctx context.Context, k ownerKey, id int64) (t *task, ended *store.Task, err error) {
	if t := s.tasks[id]; t != nil {
		if t.owner.ownerKey != k {
			return nil, nil, errNoTask
		}
		if t.doubt {
			if err := s.reload(ctx, t); err != nil {
				return nil, nil, err
			}
			return s.mine(ctx, k, id)
		}
		return t, nil, nil
	}
	var row store.Task
	err = s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.Task(id); return err })
	if errors.Is(err, store.ErrNotFound) || err == nil && (ownerKey{row.UID, row.User}) != k {
		return nil, nil, errNoTask
	}
	return nil, &row, err
}

var errNoTask = failure.New(failure.NotFound, "There is no such task")

// commitTimeout bounds a transaction that must not be left half-way because a caller has gone.
const commitTimeout = 30 * time.Second

// change stores a new row of a task, and also what belongs to it, and takes it over. ctx ends nothing that has begun.
func (s *Service) change(ctx context.Context, t *task, row store.Task, also func(*store.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := s.update(ctx, func(tx *store.Tx) error {
		if err := tx.UpdateTask(row); err != nil {
			return err
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
	if err != nil {
		t.doubt = true
		s.log.ErrorContext(ctx, "a task cannot be stored", "task", row.ID, "state", row.State, "error", err)
		if again := s.reload(ctx, t); again != nil {
			s.log.ErrorContext(ctx, "a task cannot be read", "task", row.ID, "error", again)
		}
		return fmt.Errorf("store task %d: %w", row.ID, err)
	}
	s.take(t, row)
	t.news = false
	return nil
}

// update is a transaction that stores a task.
func (s *Service) update(ctx context.Context, fn func(*store.Tx) error) error {
	if s.committed == nil {
		return s.o.Store.Update(ctx, fn)
	}
	s.committed(false)
	err := s.o.Store.Update(ctx, fn)
	s.committed(true)
	return err
}

// reload reads the row of a task again.
func (s *Service) reload(ctx context.Context, t *task) error {
	var row store.Task
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.Task(t.row.ID); return err })
	if errors.Is(err, store.ErrNotFound) {
		row, err = t.row, nil
		row.State = store.TaskCancelled
	}
	if err != nil {
		return err
	}
	t.doubt = false
	s.take(t, row)
	return nil
}

// take makes row the truth in memory, and shows it.
func (s *Service) take(t *task, row store.Task) {
	if t.row.State.Final() && t.row.State != "" {
		return
	}
	count := func(state store.TaskState, n int) {
		if state == store.TaskRunning && !passive(row.Kind) {
			s.running += n
			t.owner.running += n
		}
	}
	count(t.row.State, -1)
	// Core's knowledge changes by other ways than rows.
	row.Core, row.CoreID = t.row.Core, t.row.CoreID
	t.row = row
	count(row.State, +1)
	if row.State != store.TaskRunning {
		delete(s.lost, row.ID)
	}
	if row.State.Final() {
		delete(s.tasks, row.ID)
		delete(t.owner.tasks, row.ID)
		s.poster.close(row.ID)
		close(t.ended)
	} else if row.Core != store.TaskCoreNone {
		s.poster.put(row.ID, row.CoreID, status(row))
	}
	s.hungry[t.owner] = true
	t.owner.announce()
	s.look()
}

// add takes a row from the database into memory.
func (s *Service) add(row store.Task) *task {
	o := s.owner(ownerKey{row.UID, row.User})
	t := &task{owner: o, ended: make(chan struct{})}
	t.row.Core, t.row.CoreID = row.Core, row.CoreID
	s.tasks[row.ID], o.tasks[row.ID] = t, t
	s.take(t, row)
	return t
}

// finish ends a task, and has Core told.
func (s *Service) finish(ctx context.Context, t *task, state store.TaskState, text string) error {
	row := t.row
	row.State, row.Wanted, row.Text = state, "", line(text)
	now := s.o.Now()
	row.StateAt, row.UpdatedAt = now, now
	if state == store.TaskSucceeded {
		row.Percent = 100
	}
	if row.Text == "" {
		row.Text = map[store.TaskState]string{
			store.TaskSucceeded: "Done", store.TaskCancelled: "Cancelled", store.TaskFailed: "The task failed",
		}[state]
	}
	return s.change(ctx, t, row, func(tx *store.Tx) error {
		if passive(row.Kind) {
			if err := closeSession(tx, row); err != nil {
				return err
			}
		}
		if row.Core == store.TaskCoreNone {
			return nil
		}
		_, err := tx.Enqueue(kindFinal, outboxKey(row.ID), payload(row.ID), time.Now())
		return err
	})
}

// queue puts a task back, because its hand-out is over.
func (s *Service) queue(ctx context.Context, t *task, change func(*store.Task)) error {
	switch t.row.Wanted {
	case store.TaskCancelled:
		return s.finish(ctx, t, store.TaskCancelled, "")
	case store.TaskSuspended:
		return s.suspend(ctx, t)
	}
	row := t.row
	row.State, row.Wanted, row.Text, row.StateAt = store.TaskQueued, "", "", s.o.Now()
	if change != nil {
		change(&row)
	}
	return s.change(ctx, t, row, nil)
}

// suspend notes that a task stands still.
func (s *Service) suspend(ctx context.Context, t *task) error {
	row := t.row
	row.State, row.Wanted, row.StateAt, row.NotBefore = store.TaskSuspended, "", s.o.Now(), time.Time{}
	return s.change(ctx, t, row, nil)
}

// dead tells that a process has certainly ended. EPERM is the answer about a living process of another account.
func dead(pid int32) bool { return pid > 0 && errors.Is(syscall.Kill(int(pid), 0), syscall.ESRCH) }

func outboxKey(id int64) string { return "task/" + strconv.FormatInt(id, 10) }

// Counts are numbers for status and metrics.
type Counts struct {
	Queued, Running, Suspended int
	Lost                       int // running, and their instance is away
	Sessions                   int
	Unwakeable                 int // users with waiting tasks whose instance did not start
}

// Counts gives the numbers of now.
func (s *Service) Counts(ctx context.Context) (c Counts, err error) {
	if err := s.lock(ctx); err != nil {
		return c, err
	}
	defer s.unlock()
	for _, t := range s.tasks {
		switch t.row.State {
		case store.TaskQueued:
			c.Queued++
		case store.TaskRunning:
			c.Running++
		case store.TaskSuspended:
			c.Suspended++
		}
	}
	c.Lost = len(s.lost)
	for _, o := range s.owners {
		c.Sessions += len(o.sessions)
		if o.wakeFails > 0 && len(o.sessions) == 0 {
			c.Unwakeable++
		}
	}
	return c, nil
}
