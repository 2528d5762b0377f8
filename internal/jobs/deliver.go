package jobs

import (
	"context"
	"net/http"
	"slices"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

const (
	firstPause, longestPause = time.Second, time.Minute
	// putOff is how long nothing is said about a job that Core did not know when it was told something.
	putOff = time.Minute
	// lookAgain is how often it is looked for updates although nobody has said that there are any: some were put off.
	lookAgain = 15 * time.Second
	// deliverFailures is after how many failures of Core in one batch it is Core that has a problem.
	deliverFailures = 3
)

// deliver tells Core what there is to tell until ctx ends.
func (s *Service) deliver(ctx context.Context) error {
	failures := 0
	for {
		more, err := s.deliverSome(ctx)
		pause := lookAgain
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			failures++
			pause = min(firstPause<<min(failures-1, 10), longestPause)
			s.log.Warn("Core was not told about jobs", "error", err, "failures", failures, "pause", pause)
		case more:
			failures = 0
			continue
		default:
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		case <-wakeUnless(err != nil, s.deliverNow):
		}
		timer.Stop()
	}
}

// wakeUnless is the channel, or one that is never ready.
func wakeUnless(never bool, c chan struct{}) <-chan struct{} {
	if never {
		return nil
	}
	return c
}

// deliverSome sends one batch. more: there may be another one.
func (s *Service) deliverSome(ctx context.Context) (more bool, err error) {
	var due []store.JobUpdate
	if err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		due, err = tx.DueJobUpdates(s.o.Now(), coreapi.MaxJobUpdates)
		return err
	}); err != nil || len(due) == 0 {
		return false, err
	}
	full := len(due) == coreapi.MaxJobUpdates
	for len(due) > 0 {
		err := s.send(ctx, due)
		if err == nil {
			return full, s.taken(ctx, due)
		}
		if id, ok := coreapi.UnknownJob(err); ok && slices.ContainsFunc(due, func(u store.JobUpdate) bool { return u.Job == id }) {
			// Core has looked at all ids before anything else, so the others are sent without this one.
			if err := s.putOff(ctx, due, id); err != nil {
				return false, err
			}
			due = slices.DeleteFunc(due, func(u store.JobUpdate) bool { return u.Job == id })
			continue
		}
		switch coreapi.Status(err) {
		case http.StatusNotFound, http.StatusBadRequest, http.StatusInternalServerError:
		default:
			return false, err
		}
		return full, s.deliverEach(ctx, due)
	}
	return full, nil
}

func (s *Service) send(ctx context.Context, due []store.JobUpdate) error {
	items := make([]providerapi.JobUpdateItem, 0, len(due))
	for _, u := range due {
		items = append(items, providerapi.JobUpdateItem{ID: u.Job, Update: u.Update})
	}
	return s.o.Core.UpdateJobs(ctx, items)
}

// deliverEach sends the updates of each job by themselves, since Core does not say which one it dislikes. One that is refused
// for what it says would be refused for ever, so it is dropped. A job that Core fails of is set aside for a while.
func (s *Service) deliverEach(ctx context.Context, due []store.JobUpdate) error {
	set := map[string]bool{} // jobs of which nothing more is said now
	failed := 0
	for i := range due {
		one := due[i : i+1]
		if set[one[0].Job] {
			continue
		}
		err := s.send(ctx, one)
		switch status := coreapi.Status(err); {
		case err == nil:
			err = s.taken(ctx, one)
		case status == http.StatusNotFound:
			set[one[0].Job] = true
			err = s.putOff(ctx, one, one[0].Job)
		case status == http.StatusInternalServerError:
			if failed++; failed >= deliverFailures {
				return err // it is not the job
			}
			s.log.Error("Core fails of what it is told about a job; it is tried again later", "job", one[0].Job, "error", err)
			set[one[0].Job] = true
			err = s.putOff(ctx, one, one[0].Job)
		case status == http.StatusBadRequest:
			s.log.Error("Core refuses what it is told about a job; it is dropped", "job", one[0].Job, "error", err)
			err = s.taken(ctx, one)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// taken removes updates that Core has taken.
func (s *Service) taken(ctx context.Context, due []store.JobUpdate) error {
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		for _, u := range due {
			if err := tx.RemoveJobUpdate(u.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// putOff sets the jobs with an id aside that Core has just said not to know: Core is asked about them soon.
func (s *Service) putOff(ctx context.Context, due []store.JobUpdate, id string) error {
	for _, u := range due {
		if u.Job != id {
			continue
		}
		err := s.change(ctx, func(tx *store.Tx) (*store.Job, error) {
			j, err := tx.Job(u.Key)
			if err != nil || j.DeliverAfter.After(s.o.Now()) {
				return nil, err
			}
			j.DeliverAfter = s.o.Now().Add(putOff)
			if j.CoreMisses == 0 {
				j.CoreMisses, j.CoreChecked = 1, s.o.Now()
			}
			return &j, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
