package jobs

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Service is the server's side of jobs. It is safe for concurrent use.
type Service struct {
	o   Options
	log *slog.Logger

	lookNow    chan struct{} // holds one element: look at the engine soon
	lookBack   chan struct{} // the same: and as far back as after a start
	deliverNow chan struct{} // holds one element: there is something to tell

	mu        sync.Mutex // guards the fields below
	listeners []func(Change)
	watchers  map[string]map[chan struct{}]struct{} // by Core's id
	health    Health
	quiet     map[string]time.Time // jobs submitted without us that are left alone, and until when
}

// New makes a Service. It does no I/O.
func New(o Options) (*Service, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	return &Service{
		o: o, log: o.Log.With("part", "jobs"), lookNow: make(chan struct{}, 1), lookBack: make(chan struct{}, 1), deliverNow: make(chan struct{}, 1),
		watchers: map[string]map[chan struct{}]struct{}{}, quiet: map[string]time.Time{},
	}, nil
}

// OnChange adds somebody who is told of changes, outside of transactions and locks, perhaps several times of the same. It
// must not block. It is called before [Service.Run].
func (s *Service) OnChange(f func(Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, f)
}

// Run watches the engine and tells Core until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if s.o.Engine != nil {
		group.Go(func() error { return s.monitor(ctx) })
	}
	group.Go(func() error { return s.deliver(ctx) })
	group.Go(func() error { return s.confirm(ctx) })
	return group.Wait()
}

// engine is the name of the engine that jobs are submitted to.
func (s *Service) engine() string {
	if s.o.Engine != nil {
		return ipcapi.EngineSlurm
	}
	return ipcapi.EngineLocal
}

// Register adds the calls to the IPC server.
func (s *Service) Register(srv *ipc.Server) {
	ipc.Handle(srv, ipcapi.JobBegin, s.begin)
	ipc.Handle(srv, ipcapi.JobSubmitted, s.submitted)
	ipc.Handle(srv, ipcapi.JobRefused, s.refused)
	ipc.Handle(srv, ipcapi.JobFind, s.find)
	ipc.HandleStream(srv, ipcapi.JobWatch, s.watch)
	ipc.Handle(srv, ipcapi.JobEnding, s.ending)
	ipc.Handle(srv, ipcapi.JobChanged, s.changed)
	ipc.Handle(srv, ipcapi.JobExtend, s.extend)
	ipc.Handle(srv, ipcapi.JobLocal, s.local)
	ipc.Handle(srv, ipcapi.JobChoices, s.choices)
	ipc.HandleStream(srv, ipcapi.JobList, s.list)
	ipc.Handle(srv, ipcapi.JobCancel, s.operatorCancel)
	ipc.Handle(srv, ipcapi.JobResync, s.operatorResync)
	ipc.Handle(srv, ipcapi.JobExplain, s.explain)
	ipc.Handle(srv, ipcapi.JobRegister, s.operatorRegister)
}

// errUnknown is the answer for what does not exist, and for what is not the caller's.
var errUnknown = failure.New(failure.NotFound, "This job does not exist, or you do not belong to its workspace")

// signal fills a channel that holds one element.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// committed is called after a change of a row was committed.
func (s *Service) committed(j *store.Job) {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	for c := range s.watchers[j.ID] {
		signal(c)
	}
	s.mu.Unlock()
	change := Change{JobRecord: record(j, j.UID), Lost: j.Submission == store.JobLost}
	for _, f := range listeners {
		f(change)
	}
}

// watcher gives a channel that is filled when something about a job has changed, and the function that ends it.
func (s *Service) watcher(id string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[id] == nil {
		s.watchers[id] = map[chan struct{}]struct{}{}
	}
	s.watchers[id][c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers[id], c)
		if len(s.watchers[id]) == 0 {
			delete(s.watchers, id)
		}
	}
}

// record is what callers get of a row.
func record(j *store.Job, caller ident.UID) ipcapi.JobRecord {
	r := ipcapi.JobRecord{
		ID: j.ID, Owner: j.Owner, CreatedBy: j.CreatedBy, UID: j.UID, Own: j.UID == caller,
		Confirmed: j.CoreKnown != 0 && j.Submission == store.JobSubmitted, Engine: j.Engine, EngineID: j.EngineID,
		ProviderGeneratedID: j.PGID, Account: j.Account, State: j.State, Folder: j.Folder,
		Application:     providerapi.ApplicationReference{Name: j.AppName, Version: j.AppVersion},
		ApplicationType: j.AppType, Replicas: j.Replicas, Nodes: j.Nodes, Port: j.Port, StartedAt: j.StartedAt, LimitMs: j.LimitMs,
	}
	for _, t := range j.Targets {
		r.Targets = append(r.Targets, ipcapi.JobTarget(t))
	}
	return r
}

// member tells whether the user belongs to a project, and whether as one who may manage it, as Core has described it last.
func member(tx *store.Tx, project ident.ProjectID, user ident.UCloudUser) (belongs, manages bool, err error) {
	p, err := tx.Project(project)
	if errors.Is(err, store.ErrNotFound) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	for _, m := range p.Document.Status.Members {
		if m.Username == user && user != "" {
			return true, m.Role == "PI" || m.Role == "ADMIN", nil
		}
	}
	return false, false, nil
}

// visible is the row of a job as the caller may see it: the caller's own, or one of a project of the caller that Core knows.
// manages tells whether the caller may end it for somebody else.
func (s *Service) visible(tx *store.Tx, user ident.UCloudUser, uid ident.UID, id string) (j store.Job, manages bool, err error) {
	rows, err := tx.JobsByID(id)
	if err != nil {
		return j, false, err
	}
	for i := range rows {
		if rows[i].UID == uid && rows[i].CreatedBy == user {
			return rows[i], true, nil
		}
	}
	for i := range rows {
		if rows[i].CoreKnown == 0 || rows[i].Submission != store.JobSubmitted || !rows[i].Owner.IsProject() {
			continue
		}
		belongs, manages, err := member(tx, rows[i].Owner.Project, user)
		if err != nil {
			return j, false, err
		}
		if belongs {
			return rows[i], manages, nil
		}
	}
	return j, false, errUnknown
}

// Visible is a job as a user may see it. To everybody else it does not exist.
func (s *Service) Visible(ctx context.Context, user ident.UCloudUser, uid ident.UID, id string) (ipcapi.JobRecord, error) {
	var j store.Job
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { j, _, err = s.visible(tx, user, uid, id); return err })
	if err != nil {
		return ipcapi.JobRecord{}, err
	}
	return record(&j, uid), nil
}

// change changes one row and tells about it.
func (s *Service) change(ctx context.Context, f func(tx *store.Tx) (*store.Job, error)) error {
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		j, err := f(tx)
		if err != nil || j == nil {
			return err
		}
		after := *j
		tx.AfterCommit(func() { s.committed(&after) })
		return tx.UpdateJob(after)
	})
}
