package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

func (s *Service) explain(ctx context.Context, _ *ipc.Request, q ipcapi.JobQuestion) (ipcapi.JobExplanation, error) {
	return s.Explain(ctx, q)
}

// Explain tells operators why a job is as it is, or why UCloud does not show it (contract 41 section 5.6). That Slurm does
// not answer is a note and no error: what the server itself knows can be told all the same.
func (s *Service) Explain(ctx context.Context, q ipcapi.JobQuestion) (ipcapi.JobExplanation, error) {
	x := ipcapi.JobExplanation{ID: clip(q.ID, 100), Jobs: []ipcapi.JobInfo{}, Notes: []string{}}
	note := func(format string, args ...any) { x.Notes = append(x.Notes, fmt.Sprintf(format, args...)) }
	var rows []store.Job
	var pending map[int64]int
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if pending, err = tx.JobUpdateCounts(); err != nil {
			return err
		}
		if q.Slurm {
			rows, err = tx.JobsByEngineID(ipcapi.EngineSlurm, q.ID)
		} else {
			rows, err = named(tx, q.ID)
		}
		return err
	})
	if err != nil {
		return x, err
	}
	id := q.ID
	for i := range rows {
		x.Jobs = append(x.Jobs, s.info(&rows[i], pending))
		if i == 0 || id == "" {
			id = rows[i].EngineID
		}
	}
	var what *seen
	if s.o.Engine != nil && id != "" {
		if what, err = s.inSlurm(ctx, id); err != nil {
			note("Slurm could not be asked: %s", failure.Why(err))
		}
	}
	o, understood := Observation{}, false
	if what != nil && len(what.parts) > 0 {
		o, understood = what.whole()
		if !understood {
			o = what.parts[0]
			note("Slurm says %s, which has no meaning here: the job stays as it is", o.Word)
		}
		x.Slurm = slurmJob(&o)
	}
	for i := range rows {
		s.explainRow(&rows[i], pending[rows[i].Key], what, note)
	}
	switch {
	case understood && !o.State.Final() && o.Reason != "":
		note("Slurm lets it wait: %s", o.Reason)
	case understood && len(rows) > 0 && o.Message != "":
		note("Slurm's %s is %s at UCloud: %s", o.Word, o.State, o.Message)
	}
	if understood && o.Planned.After(s.o.Now()) {
		note("Slurm means to start it at %s", o.Planned.UTC().Format(time.RFC3339))
	}
	switch {
	case len(rows) > 0:
	case x.Slurm == nil && err == nil:
		return x, failure.New(failure.NotFound, "Neither UCloud nor Slurm has a job %s", x.ID)
	case understood:
		return x, s.explainOutside(ctx, what, &o, note)
	}
	return x, nil
}

// inSlurm is what slurmctld and accounting say about one job. nil: nothing.
func (s *Service) inSlurm(ctx context.Context, id string) (*seen, error) {
	if n, err := jobIDs([]string{id}); err != nil || n[0].String() != id {
		return nil, nil //nolint:nilnil,nilerr // an id of UCloud's, or what is none at all
	}
	queue, err := s.o.Engine.Present(ctx, []string{id})
	if err != nil {
		return nil, err
	}
	history, err := s.o.Engine.Lookup(ctx, []string{id})
	if err != nil {
		return nil, err
	}
	return together(queue, history)[id], nil
}

func slurmJob(o *Observation) *ipcapi.SlurmJob {
	return &ipcapi.SlurmJob{
		ID: o.ID, User: o.User, Account: o.Account, Partition: o.Partition, QoS: o.QoS, Name: clip(o.Name, 200), Comment: clip(o.Comment, 200),
		State: o.Word, Reason: o.Reason, Nodes: o.Nodes, NodeCount: o.NodeCount, CPUs: o.CPUs, LimitMs: o.Limit.Milliseconds(),
		Submitted: o.Submitted, Started: o.Started, Ended: o.Ended, Planned: o.Planned,
	}
}

// explainRow tells how far a job of UCloud is, and what it waits for.
func (s *Service) explainRow(j *store.Job, pending int, what *seen, note func(string, ...any)) {
	switch j.Submission {
	case store.JobBegun:
		note("Job %s: leave to submit was given until %s, and nothing was heard since", j.ID, j.Until.UTC().Format(time.RFC3339))
		return
	case store.JobRefused:
		note("Job %s was not submitted: %s", j.ID, j.Message)
		return
	case store.JobLost:
		note("Job %s was given up: %s", j.ID, j.Message)
		return
	case store.JobSubmitted:
	}
	if name, _ := s.o.Users.LocalName(j.UID); what != nil && !what.of(name) {
		note("Job %s is claimed by account %d (%s), and Slurm says that it is %s's. It is left alone", j.ID, j.UID, name, what.parts[0].User)
	} else if name == "" {
		note("Job %s: there is no account with the uid %d any more, so it is left alone", j.ID, j.UID)
	}
	if j.Outside {
		note("Job %s was submitted outside UCloud and registered", j.ID)
	}
	switch {
	case j.CoreMisses > 0:
		note("UCloud has denied job %s %d times; after %d times in %s it is cancelled", j.ID, j.CoreMisses, deniedTimes, deniedFor)
	case j.CoreKnown == 0:
		note("UCloud has not confirmed job %s yet. Until it does, nothing is said about the job", j.ID)
	}
	if pending > 0 {
		note("%d updates of job %s wait for UCloud", pending, j.ID)
	}
	switch {
	case j.State.Final():
		note("Job %s has ended as %s: %s. Nothing leads out of a final state", j.ID, j.State, j.Message)
	case j.Ending:
		note("The end of job %s was asked for", j.ID)
	case !j.MissingSince.IsZero():
		note("Slurm has not spoken of job %s since %s. It is called ended when both squeue and sacct deny it for %s", j.ID, j.MissingSince.UTC().Format(time.RFC3339), givenUp)
	}
}

// explainOutside tells whether UCloud is told about a job that was submitted without it, and if not why.
func (s *Service) explainOutside(ctx context.Context, what *seen, o *Observation, note func(string, ...any)) error {
	if claim, ours := s.claimOf(o.Comment); ours {
		note("It bears the mark of job %s of UCloud, which is not known here", claim)
	}
	owners, ok := s.o.Accounts.(Owners)
	if !ok {
		return nil
	}
	set := s.o.Settings()
	c, why, err := s.classify(ctx, owners, set, o)
	switch {
	case err != nil:
		return err
	case !what.of(o.User):
		note("UCloud does not show it: its parts belong to several accounts")
	case why != "":
		note("UCloud does not show it: %s", why)
	case o.State.Final():
		note("UCloud does not show it: it has ended, and jobs are registered while they wait or run")
	default:
		note("It is a job of %s in the workspace %s on the machine %s", c.user, c.owner.Reference(), c.machine.Name)
		if set.RegisterOutside {
			s.mu.Lock()
			until := s.quiet[o.ID]
			s.mu.Unlock()
			if until.After(s.o.Now()) {
				note("It is looked at again at %s; \"ucloud jobs register\" does it now", until.UTC().Format(time.RFC3339))
			} else {
				note("The next look at Slurm registers it")
			}
		} else {
			note("UCloud does not show it: the configuration has no \"externalJobs: register\". \"ucloud jobs register\" shows this one")
		}
	}
	return nil
}

func (s *Service) operatorRegister(ctx context.Context, r *ipc.Request, q ipcapi.JobMutation) (ipcapi.MutationReport, error) {
	var report ipcapi.MutationReport
	for _, id := range q.IDs {
		id = clip(id, 100)
		result := ipcapi.MutationResult{Key: id}
		var err error
		if result.Status, err = s.RegisterByHand(ctx, id, q.DryRun); err != nil {
			result.Status = ipcapi.ResultFailed
			result.Error = &ipcapi.MutationError{Status: failure.KindOf(err).Status(), Message: failure.Why(err)}
		}
		s.auditJob(r, "job.register", id, q, result.Status, err)
		report.Results = append(report.Results, result)
	}
	return report, nil
}

// RegisterByHand tells Core about one job that was submitted without us, whatever the configuration says about such jobs.
func (s *Service) RegisterByHand(ctx context.Context, id string, dryRun bool) (status string, err error) {
	owners, ok := s.o.Accounts.(Owners)
	if s.o.Engine == nil || !ok {
		return "", failure.New(failure.Invalid, "This server does not use Slurm")
	}
	what, err := s.inSlurm(ctx, id)
	if err != nil {
		return "", err
	}
	if what == nil {
		return "", failure.New(failure.NotFound, "Slurm has no job %s", id)
	}
	o, ok := what.whole()
	set := s.o.Settings()
	switch {
	case !ok || !what.of(o.User):
		return "", failure.New(failure.Invalid, "What Slurm says about the job cannot be understood")
	case o.State.Final():
		return "", failure.New(failure.Invalid, "The job has ended")
	}
	if claim, ours := s.claimOf(o.Comment); ours {
		var rows []store.Job
		if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = tx.JobsByID(claim); return err }); err != nil {
			return "", err
		}
		for i := range rows {
			if rows[i].Submission == store.JobBegun {
				return "", failure.New(failure.Conflict, "It is being submitted as job %s of UCloud", claim)
			}
		}
	}
	c, why, err := s.classify(ctx, owners, set, &o)
	switch {
	case err != nil:
		return "", err
	case c.known != "":
		return ipcapi.ResultSkipped, nil
	case why == "" && !dryRun:
		why, err = s.register(ctx, owners, set, &o)
	}
	if err == nil && why != "" {
		err = failure.New(failure.Invalid, "The job cannot be registered: %s", why)
	}
	return ipcapi.ResultOK, err
}

// auditJob writes a command about a job into the audit log.
func (s *Service) auditJob(r *ipc.Request, action, id string, q ipcapi.JobMutation, status string, err error) {
	attrs := []any{
		slog.String("action", action), slog.String("result", status), slog.Uint64("byUid", uint64(r.Peer.UID())),
		slog.String("job", id), slog.String("reason", clip(q.Reason, 200)), slog.Bool("dryRun", q.DryRun),
	}
	if err != nil {
		attrs = append(attrs, slog.String("why", err.Error()))
	}
	s.o.Audit.Info("command", attrs...)
}
