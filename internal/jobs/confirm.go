package jobs

import (
	"context"
	"errors"
	"net/http"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	// confirmFirst is how long after a submission Core is asked for the job. It knows it only after it has our answer.
	confirmFirst = 2 * time.Second
	// confirmSure is how long after a submission Core cannot give the job up any more.
	confirmSure = 30 * time.Second
	// confirmAgain is the time between two questions for a job that Core has denied.
	confirmAgain = time.Minute
	// confirmFailed is the same for one that Core has not answered about.
	confirmFailed = 10 * time.Second
	// deniedTimes and deniedFor: then Core does not have it (contract 20 section 3.4).
	deniedTimes, deniedFor = 3, 5 * time.Minute
	confirmEvery           = time.Second
	confirmAtOnce          = 50   // jobs of which Core is asked whose they are
	confirmBatch           = 1000 // jobs of which Core is asked whether they exist
	confirmFailures        = 3    // questions that may fail in one pass
)

// confirm asks Core for jobs of which it is not certain that Core has them, until ctx ends.
func (s *Service) confirm(ctx context.Context) error {
	failures := 0
	for {
		pause := confirmEvery
		if err := s.confirmSome(ctx); err != nil && ctx.Err() == nil {
			failures++
			pause = min(firstPause<<min(failures, 10), longestPause)
			s.log.Warn("Core was not asked about jobs", "error", err, "failures", failures, "pause", pause)
		} else {
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// confirmSome makes one pass.
func (s *Service) confirmSome(ctx context.Context) error {
	now := s.o.Now()
	var waiting []store.Job
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		waiting, err = tx.JobsToConfirm(now.Add(-confirmFirst), confirmBatch)
		return err
	}); err != nil {
		return err
	}
	var whose, there []store.Job
	for i := range waiting {
		j := &waiting[i]
		switch age := now.Sub(j.SubmittedAt); {
		case j.CoreMisses > 0 && now.Sub(j.CoreChecked) < confirmAgain, j.CoreKnown == 0 && now.Sub(j.CoreChecked) < confirmFailed, j.CoreKnown == 0 && age < confirmFirst,
			j.CoreKnown == 1 && j.CoreMisses == 0 && age < confirmSure:
		case j.CoreKnown == 0 && len(whose) < confirmAtOnce:
			whose = append(whose, *j)
		case j.CoreKnown > 0:
			there = append(there, *j)
		}
	}
	var problems []error
	failed := 0
	for i := range whose {
		err := s.confirmOwner(ctx, &whose[i])
		if err == nil {
			continue
		}
		problems = append(problems, err)
		if ctx.Err() == nil {
			// It may be this one job that Core cannot answer about: the others come first from now on.
			problems = append(problems, s.askLater(ctx, &whose[i]))
		}
		if failed++; failed >= confirmFailures || ctx.Err() != nil {
			return errors.Join(problems...)
		}
	}
	return errors.Join(append(problems, s.confirmExistence(ctx, there))...)
}

// askLater notes that Core has not answered about a job.
func (s *Service) askLater(ctx context.Context, asked *store.Job) error {
	return s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		j, err := tx.Job(asked.Key)
		if err != nil || j.Submission != store.JobSubmitted {
			return nil, ignoreGone(err)
		}
		j.CoreChecked = s.o.Now()
		return &j, nil
	})
}

// confirmOwner asks Core whose a job is. Nothing is said to Core about it before.
func (s *Service) confirmOwner(ctx context.Context, j *store.Job) error {
	known, err := s.o.Core.RetrieveJob(ctx, j.ID)
	switch status := coreapi.Status(err); {
	case status == http.StatusForbidden || status == http.StatusNotFound:
		return s.answered(ctx, j, false)
	case err != nil:
		return err
	case !theirs(&known, j):
		s.log.Warn("an account claims a job that is somebody else's at Core", "job", j.ID, "uid", j.UID, "of", known.Owner.CreatedBy)
		return s.forget(ctx, j.Key, "This job is not of this user")
	}
	return s.answered(ctx, j, true)
}

// theirs tells whether Core's job is the one of the row.
func theirs(known *providerapi.Job, j *store.Job) bool {
	p := known.Specification.Product
	return known.Owner.CreatedBy == j.CreatedBy && known.Owner.Workspace() == j.Owner && p.Category == j.Category && p.ID == j.Product
}

// confirmExistence asks whether Core still has jobs that it had.
func (s *Service) confirmExistence(ctx context.Context, list []store.Job) error {
	if len(list) == 0 {
		return nil
	}
	resources := make([]coreapi.Resource, 0, len(list))
	for i := range list {
		resources = append(resources, coreapi.Resource{Type: coreapi.TypeJob, ID: list[i].ID})
	}
	answers, err := s.o.Core.CheckExistence(ctx, resources)
	if err != nil {
		return err
	}
	for i := range list {
		if err := s.answered(ctx, &list[i], answers[i]); err != nil {
			return err
		}
	}
	return nil
}

// answered notes whether Core has a job. One that Core has denied often and for long is cancelled and forgotten.
func (s *Service) answered(ctx context.Context, asked *store.Job, has bool) error {
	now := s.o.Now()
	lost := false
	err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		lost = false
		j, err := tx.Job(asked.Key)
		if err != nil || j.Submission != store.JobSubmitted || j.Attempt != asked.Attempt {
			return nil, ignoreGone(err)
		}
		j.CoreChecked = now
		if !has {
			j.CoreMisses++
			lost = j.CoreMisses >= deniedTimes && now.Sub(j.SubmittedAt) >= deniedFor
			return &j, nil
		}
		j.CoreMisses, j.CoreKnown, j.DeliverAfter = 0, max(j.CoreKnown, 1), time.Time{}
		if now.Sub(j.SubmittedAt) >= confirmSure {
			j.CoreKnown = 2
		}
		tx.AfterCommit(func() { signal(s.deliverNow) })
		return &j, nil
	})
	if err != nil || !lost {
		return err
	}
	s.log.Warn("Core does not have a job that was submitted; it is cancelled", "job", asked.ID, "engine_id", asked.EngineID)
	if !asked.State.Final() && s.o.Engine != nil {
		name, ok := s.o.Users.LocalName(asked.UID)
		if !ok {
			return nil // asked again later
		}
		if err := s.o.Engine.Cancel(ctx, asked.EngineID, name); err != nil {
			s.log.Error("a job that Core does not have cannot be cancelled; it is tried again", "job", asked.ID, "engine_id", asked.EngineID, "error", err)
			return nil
		}
	}
	return s.forget(ctx, asked.Key, "Core does not have this job")
}

func ignoreGone(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// forget gives up a job of which nothing is to be said any more.
func (s *Service) forget(ctx context.Context, key int64, why string) error {
	return s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
		j, err := tx.Job(key)
		if err != nil || j.Submission != store.JobSubmitted {
			return nil, ignoreGone(err)
		}
		j.Submission, j.Message = store.JobLost, why
		if j.EndedAt.IsZero() {
			j.EndedAt = s.o.Now()
		}
		return &j, tx.DropJobUpdates(key)
	})
}
