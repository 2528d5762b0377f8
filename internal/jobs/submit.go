package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// engineIDForm is what may be an id of an engine. Slurm's are numbers.
var engineIDForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// errLate is the answer to a report of an attempt that does not count any more.
var errLate = failure.New(failure.Conflict, "This submission came too late and does not count. The job has to be cancelled.")

func (s *Service) submitted(ctx context.Context, r *ipc.Request, sub ipcapi.JobSubmission) (ipcapi.JobReceipt, error) {
	return s.Submitted(ctx, r.Grant.User, r.Peer.UID(), sub)
}

// Submitted takes an instance's word for it that the engine has accepted a job. What the engine says itself comes later.
func (s *Service) Submitted(ctx context.Context, user ident.UCloudUser, uid ident.UID, sub ipcapi.JobSubmission) (ipcapi.JobReceipt, error) {
	sub.Folder, sub.OutputFolder = clip(sub.Folder, 4096), clip(sub.OutputFolder, 4096)
	if n, err := strconv.ParseUint(sub.EngineID, 10, 63); s.o.Engine != nil && (err != nil || strconv.FormatUint(n, 10) != sub.EngineID) || !engineIDForm.MatchString(sub.EngineID) {
		return ipcapi.JobReceipt{}, failure.New(failure.Invalid, "This is not the id of a job of %s", s.engine())
	}
	if len(sub.Targets) > ipcapi.MaxJobTargets || sub.TimeMs < 0 {
		return ipcapi.JobReceipt{}, failure.New(failure.Invalid, "The report about the job cannot be")
	}
	var receipt ipcapi.JobReceipt
	err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		j, err := tx.JobOf(sub.Job, uid)
		if errors.Is(err, store.ErrNotFound) || err == nil && j.CreatedBy != user {
			return nil, errUnknown
		}
		if err != nil {
			return nil, err
		}
		switch {
		case j.Submission == store.JobSubmitted && j.EngineID != sub.EngineID, j.Submission != store.JobSubmitted && j.Submission != store.JobBegun,
			j.Attempt != sub.Attempt:
			return nil, errLate
		case j.Submission == store.JobBegun:
			if err := s.adopt(tx, &j, sub.EngineID); err != nil {
				return nil, err
			}
		}
		receipt.ProviderGeneratedID = j.PGID
		if j.Folder != "" {
			return nil, nil //nolint:nilnil // said before
		}
		j.Folder, j.OutputFolder = sub.Folder, sub.OutputFolder
		if sub.TimeMs > 0 {
			j.LimitMs = sub.TimeMs
		}
		for _, t := range sub.Targets {
			j.Targets = append(j.Targets, store.JobTarget{Rank: t.Rank, Type: clip(t.Type, 20), Target: clip(t.Target, 200), Port: t.Port, TLS: t.TLS})
		}
		return &j, s.firstUpdates(tx, &j)
	})
	if err != nil {
		return ipcapi.JobReceipt{}, err
	}
	return receipt, nil
}

// adopt gives a job the id that it has in the engine.
func (s *Service) adopt(tx *store.Tx, j *store.Job, engineID string) error {
	taken, err := tx.JobsByEngineID(j.Engine, engineID)
	if err != nil {
		return err
	}
	for i := range taken {
		if taken[i].UID == j.UID {
			return failure.New(failure.Conflict, "This id is that of another job")
		}
	}
	now := s.o.Now()
	j.Submission, j.EngineID, j.SubmittedAt = store.JobSubmitted, engineID, now
	j.MissingSince, j.MissingRounds = time.Time{}, 0
	j.PGID = j.Account + "/" + engineID + "/" + strconv.FormatInt(now.UnixMilli(), 10)
	where := "Submitted to Slurm as job " + engineID
	if j.Engine == ipcapi.EngineLocal {
		where = "Started on the machine of the provider, without a batch system"
	}
	return s.tell(tx, j, providerapi.JobUpdate{Status: &where})
}

// firstUpdates tells what is known when the instance has reported a submission.
func (s *Service) firstUpdates(tx *store.Tx, j *store.Job) error {
	if j.OutputFolder != "" {
		folder := j.OutputFolder
		if err := s.tell(tx, j, providerapi.JobUpdate{OutputFolder: &folder}); err != nil {
			return err
		}
	}
	for _, t := range j.Targets {
		line, err := json.Marshal(struct {
			Rank        int     `json:"rank"`
			Type        string  `json:"type"`
			Target      string  `json:"target"`
			Port        int     `json:"port"`
			DefaultName *string `json:"defaultName"`
		}{t.Rank, t.Type, t.Target, t.Port, nil})
		if err != nil {
			return err
		}
		text := "Target: " + string(line)
		if err := s.tell(tx, j, providerapi.JobUpdate{Status: &text}); err != nil {
			return err
		}
	}
	if line := s.o.Settings().SSHLine; line != nil {
		name, _ := s.o.Users.LocalName(j.UID)
		if text := line(name); text != "" && name != "" {
			text = "SSH: Connected! Available at: " + text
			return s.tell(tx, j, providerapi.JobUpdate{Status: &text})
		}
	}
	return nil
}

// tell stores an update for Core in the transaction of its cause.
func (s *Service) tell(tx *store.Tx, j *store.Job, u providerapi.JobUpdate) error {
	if u.Status != nil {
		text := clip(*u.Status, ipcapi.MaxJobMessage)
		u.Status = &text
		if !strings.HasPrefix(text, "Target: ") && !strings.HasPrefix(text, "SSH: ") {
			j.Message = text
		}
	}
	tx.AfterCommit(func() { signal(s.deliverNow) })
	return tx.AddJobUpdate(j.Key, u, s.o.Now())
}

// enter puts a job into a state and tells Core. Nothing leads out of a final state.
func (s *Service) enter(tx *store.Tx, j *store.Job, state providerapi.JobState, message string) error {
	if j.State == state || j.State.Final() {
		return nil
	}
	now, differs := s.o.Now(), true
	j.State = state
	if state.Final() && j.EndedAt.IsZero() {
		j.EndedAt = now
	}
	if state == providerapi.JobRunning && j.StartedAt.IsZero() {
		j.StartedAt = now
	}
	return s.tell(tx, j, providerapi.JobUpdate{State: &state, Status: &message, ExpectedDifferentState: &differs})
}

func (s *Service) refused(ctx context.Context, r *ipc.Request, q ipcapi.JobRefusal) (ipcapi.Empty, error) {
	return ipcapi.Empty{}, s.Refused(ctx, r.Grant.User, r.Peer.UID(), q)
}

// Refused takes an instance's word for it that nothing runs. Core hears it from the instance, and deletes its record.
func (s *Service) Refused(ctx context.Context, user ident.UCloudUser, uid ident.UID, q ipcapi.JobRefusal) error {
	return s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		j, err := tx.JobOf(q.Job, uid)
		if errors.Is(err, store.ErrNotFound) || err == nil && j.CreatedBy != user {
			return nil, errUnknown
		}
		switch {
		case err != nil:
			return nil, err
		case j.Attempt != q.Attempt, j.Submission == store.JobSubmitted:
			return nil, errLate
		case j.Submission != store.JobBegun:
			return nil, nil //nolint:nilnil // said before
		}
		j.Submission, j.EndedAt, j.Message = store.JobRefused, s.o.Now(), clip(q.Message, ipcapi.MaxJobMessage)
		return &j, nil
	})
}
