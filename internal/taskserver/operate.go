package taskserver

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

const (
	pageSize   = 200
	maxListed  = 20_000
	maxTargets = 10_000
	// cancelWait is how long an operator's cancel waits for the work to end. It is to act within a second; a machine may
	// be busy.
	cancelWait = 10 * time.Second
)

// list gives all tasks, the newest first, those that ended a while ago included.
func (s *Service) list(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.TaskPage, ...*os.File) error) error {
	infos, err := s.infos(ctx)
	if err != nil {
		return err
	}
	for len(infos) > 0 {
		n := min(pageSize, len(infos))
		if err := send(ipcapi.TaskPage{Items: infos[:n]}); err != nil {
			return err
		}
		infos = infos[n:]
	}
	return nil
}

func (s *Service) infos(ctx context.Context) ([]ipcapi.TaskInfo, error) {
	var rows []store.Task
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { rows, err = tx.Tasks(maxListed); return err }); err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.unlock()
	infos := make([]ipcapi.TaskInfo, 0, len(rows))
	for _, row := range rows {
		connected := false
		if t := s.tasks[row.ID]; t != nil {
			row, connected = t.row, t.run != nil && t.run.sess != nil // newer than the database
		}
		infos = append(infos, s.info(row, connected))
	}
	return infos, nil
}

func (s *Service) info(row store.Task, connected bool) ipcapi.TaskInfo {
	i := ipcapi.TaskInfo{
		ID: row.ID, CoreID: row.CoreID, UID: row.UID, User: row.User, Kind: row.Kind, Title: row.Title, State: string(row.State),
		Wanted: string(row.Wanted), Body: row.Body, Progress: *status(row).Progress, Percent: row.Percent, Attempt: row.Attempt,
		Retries: row.Retries, Connected: connected, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
	if s.o.LocalName != nil {
		i.LocalName = s.o.LocalName(row.UID)
	}
	return i
}

// cancel ends tasks on behalf of an operator, also those that their users may not cancel. It waits until the work has
// ended, so that "ok" is true.
func (s *Service) cancel(ctx context.Context, r *ipc.Request, req ipcapi.TaskMutation) (ipcapi.MutationReport, error) {
	if len(req.IDs) > maxTargets {
		return ipcapi.MutationReport{}, failure.New(failure.TooLarge, "At most %d tasks can be cancelled at a time", maxTargets)
	}
	text := "Cancelled by an operator of the provider"
	if reason := line(req.Reason); reason != "" {
		text += ": " + reason
	}
	type target struct {
		task   *task // nil: done already
		status string
		err    error
	}
	targets := make([]target, len(req.IDs))
	for i, id := range req.IDs {
		targets[i].task, targets[i].status, targets[i].err = s.cancelOne(ctx, id, text, req.DryRun)
	}
	deadline := time.Now().Add(cancelWait)
	rep := ipcapi.MutationReport{Results: make([]ipcapi.MutationResult, 0, len(targets))}
	for i, t := range targets {
		id := req.IDs[i]
		if t.task != nil && !waitEnd(ctx, t.task, time.Until(deadline)) {
			t.err = failure.New(failure.Unavailable, "The work has been told to end and has not ended yet")
		}
		res := ipcapi.MutationResult{Key: strconv.FormatInt(id, 10), Status: t.status}
		if t.err != nil {
			res.Status = ipcapi.ResultFailed
			res.Error = &ipcapi.MutationError{Status: failure.KindOf(t.err).Status(), Message: failure.Why(t.err)}
		}
		s.audit(r, "task.cancel", t.err, slog.Int64("task", id), slog.String("reason", line(req.Reason)), slog.Bool("dryRun", req.DryRun))
		rep.Results = append(rep.Results, res)
	}
	return rep, nil
}

// cancelOne begins the end of a task. The task is given back if its end is to be waited for.
func (s *Service) cancelOne(ctx context.Context, id int64, text string, dryRun bool) (*task, string, error) {
	if err := s.begin(ctx); err != nil {
		return nil, "", err
	}
	defer s.unlock()
	t := s.tasks[id]
	if t == nil {
		err := s.o.Store.View(ctx, func(tx *store.Tx) error { _, err := tx.Task(id); return err })
		if err != nil {
			return nil, "", failure.Wrap(err, failure.NotFound, "There is no such task")
		}
		return nil, ipcapi.ResultSkipped, nil // ended
	}
	if dryRun {
		return nil, ipcapi.ResultOK, nil
	}
	return t, ipcapi.ResultOK, s.stop(ctx, t, text)
}

func (s *Service) audit(r *ipc.Request, action string, err error, attrs ...slog.Attr) {
	if s.o.Audit != nil {
		s.o.Audit(r, action, err, attrs...)
		return
	}
	attrs = append(attrs, slog.String("action", action), slog.Uint64("byUid", uint64(r.Peer.UID())), slog.Any("error", err))
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "command", attrs...)
}
