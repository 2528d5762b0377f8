package jobs

import (
	"context"
	"os"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// pageSize is how many jobs go into one message.
const pageSize = 200

// list shows jobs to operators.
func (s *Service) list(ctx context.Context, _ *ipc.Request, q ipcapi.JobListRequest, send func(ipcapi.JobPage, ...*os.File) error) error {
	var pending map[int64]int
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { pending, err = tx.JobUpdateCounts(); return err }); err != nil {
		return err
	}
	if q.ID != "" {
		var rows []store.Job
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = named(tx, q.ID); return err }); err != nil {
			return err
		}
		var page ipcapi.JobPage
		for i := range rows {
			info := s.info(&rows[i], pending)
			info.Document = []byte(rows[i].Document)
			page.Jobs = append(page.Jobs, info)
		}
		return send(page)
	}
	after := int64(0)
	for {
		var rows []store.Job
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = tx.Jobs(after, pageSize); return err }); err != nil {
			return err
		}
		if len(rows) == 0 {
			return nil
		}
		after = rows[len(rows)-1].Key
		var page ipcapi.JobPage
		for i := range rows {
			if q.All || rows[i].Open() || pending[rows[i].Key] > 0 {
				page.Jobs = append(page.Jobs, s.info(&rows[i], pending))
			}
		}
		if len(page.Jobs) == 0 {
			continue
		}
		if err := send(page); err != nil {
			return err
		}
	}
}

// named are the jobs that an operator may mean: by Core's id, else by the engine's.
func named(tx *store.Tx, id string) ([]store.Job, error) {
	rows, err := tx.JobsByID(id)
	if err != nil || len(rows) > 0 {
		return rows, err
	}
	for _, engine := range []string{ipcapi.EngineSlurm, ipcapi.EngineLocal} {
		more, err := tx.JobsByEngineID(engine, id)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// info is a job as operators see it.
func (s *Service) info(j *store.Job, pending map[int64]int) ipcapi.JobInfo {
	name, _ := s.o.Users.LocalName(j.UID)
	return ipcapi.JobInfo{
		JobRecord: record(j, j.UID), LocalName: name, Product: j.Product, Category: j.Category, Partition: j.Partition, QoS: j.QoS,
		Name: j.Name, CreatedAt: j.CreatedAt, SeenAt: j.SeenAt, EngineState: j.EngineState, Submission: string(j.Submission),
		Pending: pending[j.Key], LastMessage: j.Message,
	}
}

// mutate does something with each job that is named, and writes it into the audit log.
func (s *Service) mutate(ctx context.Context, r *ipc.Request, action string, q ipcapi.JobMutation, do func(j *store.Job) (string, error)) ipcapi.MutationReport {
	var report ipcapi.MutationReport
	for _, id := range q.IDs {
		id = clip(id, 100)
		result := ipcapi.MutationResult{Key: id}
		var rows []store.Job
		err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = named(tx, id); return err })
		if err == nil && len(rows) == 0 {
			err = failure.New(failure.NotFound, "There is no job %s", id)
		}
		result.Status = ipcapi.ResultSkipped
		for i := range rows {
			if err != nil {
				break
			}
			var status string
			if status, err = do(&rows[i]); status == ipcapi.ResultOK {
				result.Status = status
			}
		}
		if err != nil {
			result.Status = ipcapi.ResultFailed
			result.Error = &ipcapi.MutationError{Status: failure.KindOf(err).Status(), Message: failure.Why(err)}
		}
		s.auditJob(r, action, id, q, result.Status, err)
		report.Results = append(report.Results, result)
	}
	return report
}

func (s *Service) operatorCancel(ctx context.Context, r *ipc.Request, q ipcapi.JobMutation) (ipcapi.MutationReport, error) {
	return s.mutate(ctx, r, "job.cancel", q, func(j *store.Job) (string, error) { return s.Cancel(ctx, j, q.Reason, q.DryRun) }), nil
}

// Cancel ends a job on behalf of an operator.
func (s *Service) Cancel(ctx context.Context, j *store.Job, reason string, dryRun bool) (string, error) {
	if j.Submission != store.JobSubmitted || j.State.Final() {
		return ipcapi.ResultSkipped, nil
	}
	name, ok := s.o.Users.LocalName(j.UID)
	if !ok && j.Engine == ipcapi.EngineSlurm {
		return "", failure.New(failure.NotFound, "The account with uid %d does not exist any more. Cancel the job with scancel %s", j.UID, j.EngineID)
	}
	if dryRun {
		return ipcapi.ResultOK, nil
	}
	if j.Engine == ipcapi.EngineSlurm {
		if s.o.Engine == nil {
			return "", failure.New(failure.Invalid, "This server does not use Slurm")
		}
		if err := s.o.Engine.Cancel(ctx, j.EngineID, name); err != nil {
			return "", err
		}
	}
	text := "An operator of the provider has cancelled this job"
	if reason != "" {
		text += ": " + clip(reason, 500)
	}
	err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		now, err := tx.Job(j.Key)
		if err != nil || now.State.Final() {
			return nil, err
		}
		now.Ending = true
		return &now, s.tell(tx, &now, providerapi.JobUpdate{Status: &text})
	})
	signal(s.lookNow)
	return ipcapi.ResultOK, err
}

func (s *Service) operatorResync(ctx context.Context, r *ipc.Request, q ipcapi.JobMutation) (ipcapi.MutationReport, error) {
	return s.mutate(ctx, r, "job.resync", q, func(j *store.Job) (string, error) { return s.Resync(ctx, j, q.DryRun) }), nil
}

// Resync compares a job with Slurm and with Core again, and tells Core its state once more.
func (s *Service) Resync(ctx context.Context, j *store.Job, dryRun bool) (string, error) {
	if j.Submission != store.JobSubmitted {
		return ipcapi.ResultSkipped, nil
	}
	if dryRun {
		return ipcapi.ResultOK, nil
	}
	err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		now, err := tx.Job(j.Key)
		if err != nil || now.Submission != store.JobSubmitted {
			return nil, err
		}
		now.CoreKnown, now.DeliverAfter = min(now.CoreKnown, 1), time.Time{}
		now.SeenAt = now.SubmittedAt // the next round looks as far back as it may
		differs, state, text := true, now.State, "The state of this job was compared again"
		if now.State == providerapi.JobInQueue {
			return &now, nil
		}
		return &now, s.tell(tx, &now, providerapi.JobUpdate{State: &state, Status: &text, ExpectedDifferentState: &differs})
	})
	signal(s.lookBack)
	signal(s.lookNow)
	return ipcapi.ResultOK, err
}
