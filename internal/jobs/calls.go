package jobs

import (
	"context"
	"errors"
	"os"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

func (s *Service) find(ctx context.Context, r *ipc.Request, q ipcapi.JobRef) (ipcapi.JobRecord, error) {
	return s.Visible(ctx, r.Grant.User, r.Peer.UID(), q.ID)
}

func (s *Service) watch(ctx context.Context, r *ipc.Request, q ipcapi.JobRef, send func(ipcapi.JobRecord, ...*os.File) error) error {
	return s.Watch(ctx, r.Grant.User, r.Peer.UID(), q.ID, func(rec ipcapi.JobRecord) error { return send(rec) })
}

// Watch sends a job as the user may see it, and again after each change, until it has ended. Slurm is not asked for it: who
// watches costs nothing there (BenchmarkWatched).
func (s *Service) Watch(ctx context.Context, user ident.UCloudUser, uid ident.UID, id string, send func(ipcapi.JobRecord) error) error {
	changed, stop := s.watcher(id)
	defer stop()
	for {
		rec, err := s.Visible(ctx, user, uid, id)
		if err != nil {
			return err
		}
		if err := send(rec); err != nil || rec.State.Final() {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// ending notes that a user wants a job to end. The instance ends those of its own user; those of others are ended here, for
// who manages the project.
func (s *Service) ending(ctx context.Context, r *ipc.Request, q ipcapi.JobRef) (ipcapi.Empty, error) {
	return ipcapi.Empty{}, s.End(ctx, r.Grant.User, r.Peer.UID(), q.ID)
}

// End notes that a user wants a job to end, and ends it if it is another user's.
func (s *Service) End(ctx context.Context, user ident.UCloudUser, uid ident.UID, id string) error {
	cancel, name := "", ""
	err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		cancel = ""
		j, manages, err := s.visible(tx, user, uid, id)
		if err != nil || !j.Open() {
			return nil, err
		}
		if !manages {
			return nil, failure.New(failure.Forbidden, "Only who started the job and the administrators of the project can end it")
		}
		if j.UID != uid {
			cancel = j.EngineID
			name, _ = s.o.Users.LocalName(j.UID)
		}
		j.Ending = true
		return &j, nil
	})
	if err != nil || cancel == "" || name == "" || s.o.Engine == nil {
		return err
	}
	if err := s.o.Engine.Cancel(ctx, cancel, name); err != nil {
		return err
	}
	signal(s.lookNow)
	return nil
}

// changed has the engine looked at soon, since the caller has changed something there.
func (s *Service) changed(ctx context.Context, r *ipc.Request, q ipcapi.JobRef) (ipcapi.Empty, error) {
	if _, err := s.Visible(ctx, r.Grant.User, r.Peer.UID(), q.ID); err != nil {
		return ipcapi.Empty{}, err
	}
	signal(s.lookNow)
	return ipcapi.Empty{}, nil
}

func (s *Service) extend(ctx context.Context, r *ipc.Request, q ipcapi.JobExtension) (ipcapi.Empty, error) {
	return ipcapi.Empty{}, s.Extend(ctx, r.Grant.User, r.Peer.UID(), q)
}

// maxExtension keeps a sum of milliseconds from running over.
const maxExtension = 10 * 365 * 24 * time.Hour

// Extend gives a job more time, up to what its machine may have. Should the server die before Core is told, the monitor sees
// the limit and tells it.
func (s *Service) Extend(ctx context.Context, user ident.UCloudUser, uid ident.UID, q ipcapi.JobExtension) error {
	set := s.o.Settings()
	if !set.TimeExtension || s.o.Engine == nil {
		return failure.New(failure.Invalid, "This provider does not extend the time of jobs")
	}
	add := time.Duration(q.AddMs) * time.Millisecond
	if q.AddMs <= 0 || q.AddMs > maxExtension.Milliseconds() {
		return failure.New(failure.Invalid, "The additional time must be positive")
	}
	var j store.Job
	manages := false
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { j, manages, err = s.visible(tx, user, uid, q.ID); return err })
	if err != nil {
		return err
	}
	m, ok := set.Machine(providerapi.ProductReference{ID: j.Product, Category: j.Category, Provider: s.o.Provider})
	total := roundUp(time.Duration(j.LimitMs)*time.Millisecond + add)
	switch {
	case !manages:
		return failure.New(failure.Forbidden, "Only who started the job and the administrators of the project can extend it")
	case j.Submission != store.JobSubmitted || j.State.Final():
		return failure.New(failure.Invalid, "The job does not run any more")
	case j.SeenAt.IsZero(): // Slurm has not said yet whose it is
		return failure.New(failure.Conflict, "The job was submitted just now. Try again in a minute.")
	case j.LimitMs == 0 || !ok || m.MaxTime == 0:
		return failure.New(failure.Invalid, "The time of this job cannot be extended")
	case total > m.MaxTime:
		return failure.New(failure.Invalid, "A job on machines of this kind may run for at most %s in all", duration(m.MaxTime))
	}
	if err := s.o.Engine.SetTimeLimit(ctx, j.EngineID, total); err != nil {
		return err
	}
	return s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		now, err := tx.Job(j.Key)
		if err != nil || now.LimitMs == total.Milliseconds() {
			return nil, err
		}
		return &now, s.setLimit(tx, &now, total)
	})
}

// setLimit notes a new time limit and tells Core, which cannot keep seconds (contract 20 section 3.2).
func (s *Service) setLimit(tx *store.Tx, j *store.Job, total time.Duration) error {
	j.LimitMs = total.Milliseconds()
	ms := roundUp(total).Milliseconds()
	return s.tell(tx, j, providerapi.JobUpdate{NewTimeAllocation: &ms})
}

func roundUp(d time.Duration) time.Duration { return (d + time.Minute - 1).Truncate(time.Minute) }

func (s *Service) choices(ctx context.Context, r *ipc.Request, q ipcapi.JobWorkspace) (ipcapi.JobChoiceReply, error) {
	user, owner := r.Grant.User, ident.Owner{User: r.Grant.User}
	if q.Project != "" {
		owner = ident.Owner{Project: q.Project}
		var belongs bool
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { belongs, _, err = member(tx, q.Project, user); return err }); err != nil {
			return ipcapi.JobChoiceReply{}, err
		}
		if !belongs {
			return ipcapi.JobChoiceReply{}, failure.New(failure.NotFound, "You do not belong to this project")
		}
	}
	chooser, ok := s.o.Accounts.(Chooser)
	if !ok {
		return ipcapi.JobChoiceReply{Mapped: true}, nil
	}
	mapped, accounts, err := chooser.Choices(ctx, owner, user)
	return ipcapi.JobChoiceReply{Mapped: mapped, Accounts: accounts}, err
}

func (s *Service) local(ctx context.Context, r *ipc.Request, q ipcapi.JobLocalReport) (ipcapi.JobLocalReply, error) {
	return s.Local(ctx, r.Grant.User, r.Peer.UID(), q)
}

// maxLocal bounds a report of the local engine.
const maxLocal = 10_000

// Local takes over what the local engine of an instance says about the jobs of its user.
func (s *Service) Local(ctx context.Context, user ident.UCloudUser, uid ident.UID, q ipcapi.JobLocalReport) (ipcapi.JobLocalReply, error) {
	if len(q.Jobs) > maxLocal {
		return ipcapi.JobLocalReply{}, failure.New(failure.TooLarge, "That are too many jobs")
	}
	var reply ipcapi.JobLocalReply
	var ids []string
	reported := map[string]bool{}
	for i := range q.Jobs {
		reported[q.Jobs[i].ID] = true
		end := false
		err := s.change(ctx, func(tx *store.Tx) (j *store.Job, err error) {
			end = false
			row, err := tx.JobOf(q.Jobs[i].ID, uid)
			if errors.Is(err, store.ErrNotFound) {
				end = true
				return nil, nil //nolint:nilnil // nothing changes
			}
			if err != nil {
				return nil, err
			}
			j, end, err = s.localJob(tx, &row, user, &q.Jobs[i])
			return j, err
		})
		if err != nil {
			return ipcapi.JobLocalReply{}, err
		}
		if end {
			ids = append(ids, q.Jobs[i].ID)
		}
	}
	reply.End = ids
	if !q.All {
		return reply, nil
	}
	var open []store.Job
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { open, err = tx.OpenJobsOf(uid); return err }); err != nil {
		return reply, err
	}
	for i := range open {
		if open[i].Engine != ipcapi.EngineLocal || reported[open[i].ID] {
			continue
		}
		err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
			j, err := tx.Job(open[i].Key)
			switch {
			case err != nil || !j.Open():
				return nil, err
			case j.Submission == store.JobBegun && !s.o.Now().After(j.Until.Add(settling)):
				return nil, nil //nolint:nilnil // it may be on its way
			case j.Submission == store.JobBegun:
				j.Submission, j.EndedAt = store.JobLost, s.o.Now()
				return &j, nil
			case s.o.Now().Before(j.SubmittedAt.Add(settling)):
				return nil, nil //nolint:nilnil // the report may be older than the job
			}
			return &j, s.enter(tx, &j, providerapi.JobFailure, "The job is not there any more: the machine was restarted, or its folder was removed")
		})
		if err != nil {
			return reply, err
		}
	}
	return reply, nil
}

// localJob takes over a report about one job. end: it must not run.
func (s *Service) localJob(tx *store.Tx, j *store.Job, user ident.UCloudUser, l *ipcapi.LocalJob) (changed *store.Job, end bool, err error) {
	known := l.State == providerapi.JobInQueue || l.State == providerapi.JobRunning || l.State == providerapi.JobSuspended || l.State.Final()
	switch {
	case j.Engine != ipcapi.EngineLocal || j.CreatedBy != user || !engineIDForm.MatchString(l.EngineID) || !known:
		return nil, false, nil
	case j.Submission == store.JobBegun:
		if err := s.adopt(tx, j, l.EngineID); err != nil {
			return nil, false, err
		}
	case j.Submission != store.JobSubmitted || j.EngineID != l.EngineID:
		return nil, !l.State.Final(), nil
	}
	if j.State.Final() {
		return nil, false, nil
	}
	j.SeenAt, j.EngineState = s.o.Now(), string(l.State)
	message := clip(l.Message, ipcapi.MaxJobMessage)
	if message == "" {
		message = localMessage(l.State)
	}
	if l.State == providerapi.JobRunning && len(j.Nodes) == 0 {
		j.Nodes = []string{"localhost"}
	}
	if !l.Started.IsZero() {
		j.StartedAt = l.Started
	}
	return j, j.Ending && !l.State.Final(), s.enter(tx, j, l.State, message)
}

func localMessage(state providerapi.JobState) string {
	switch state {
	case providerapi.JobRunning:
		return "The job is running"
	case providerapi.JobSuspended:
		return "The job is suspended"
	case providerapi.JobSuccess:
		return "The job has finished"
	case providerapi.JobFailure:
		return "The job has failed"
	case providerapi.JobExpired:
		return "The time of the job is over"
	case providerapi.JobInQueue:
	}
	return "The job waits"
}
