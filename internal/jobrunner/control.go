package jobrunner

import (
	"context"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// cancelTimeout bounds the ending of a job. Core waits less, but a request that it has given up on is carried out.
const cancelTimeout = 30 * time.Second

// parallel is how many commands of Slurm run for one bulk request at a time.
const parallel = 4

// each does all items, a few at a time, whatever becomes of the request; the error is that of the first that failed.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	errs := make([]error, n)
	slots := make(chan struct{}, parallel)
	var wait sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = do(ctx, i)
		})
	}
	wait.Wait()
	return failure.EachItem(n, func(i int) error { return errs[i] })
}

// find finds a job that the caller may see.
func (r *Runner) find(ctx context.Context, id string) (ipcapi.JobRecord, error) {
	if !validID(id) {
		return ipcapi.JobRecord{}, errNoJob
	}
	rec, err := r.o.Server.Find(ctx, id)
	if err == nil && rec.ID != id {
		err = errNoJob
	}
	return rec, err
}

// own finds a job that the caller may do something with here. Only whoever has submitted it can: the system would refuse
// others too, in other words.
func (r *Runner) own(ctx context.Context, id, what string) (ipcapi.JobRecord, error) {
	rec, err := r.find(ctx, id)
	if err == nil && !rec.Own {
		return rec, failure.New(failure.Forbidden, "Only the person who has submitted the job can %s it", what)
	}
	return rec, err
}

// Terminate ends jobs. One that is not known or has ended is ended (contract 20 section 2.2). Whether somebody else's job may
// be ended decides the server, which then does it itself.
func (r *Runner) Terminate(ctx context.Context, jobs []providerapi.FindByID) error {
	return each(ctx, len(jobs), func(ctx context.Context, i int) error { return r.terminate(ctx, jobs[i].ID) })
}

func (r *Runner) terminate(ctx context.Context, id string) error {
	rec, err := r.find(ctx, id)
	if failure.Is(err, failure.NotFound) {
		return nil
	}
	if rec.State.Final() {
		return nil
	}
	if err != nil {
		return err
	}
	// First the reason is noted: the end of the job may be seen before scancel returns.
	if err := r.o.Server.Ending(ctx, id); err != nil && !failure.Is(err, failure.NotFound) {
		return err
	}
	if rec.EngineID == "" || !rec.Own {
		return nil // the server ends it, as soon as it finds it
	}
	if err := r.o.Engine.Cancel(ctx, rec.EngineID); err != nil {
		return explainEngine(err, "The job could not be ended at the moment, try again later")
	}
	return nil
}

// explainEngine keeps the sentence of an error that has one.
func explainEngine(err error, why string) error {
	if no, ok := refused(err); ok {
		return failure.Wrap(no, failure.Invalid, "%s", no.Why)
	}
	if failure.Is(err, failure.Internal) {
		return failure.Wrap(err, failure.Internal, "%s", why)
	}
	return err
}

// Extend adds time. Only an operator of Slurm can, so it is the server's work (contract 22 section 8).
func (r *Runner) Extend(ctx context.Context, items []providerapi.JobExtension) error {
	return each(ctx, len(items), func(ctx context.Context, i int) error {
		add := items[i].RequestedTime.Duration()
		if add <= 0 {
			return failure.New(failure.Invalid, "The job is to be extended by no time at all")
		}
		rec, err := r.find(ctx, items[i].Job.ID)
		if err != nil {
			return notHere(err)
		}
		if rec.State.Final() {
			return errEnded
		}
		return r.o.Server.Extend(ctx, ipcapi.JobExtension{ID: rec.ID, AddMs: add.Milliseconds()})
	})
}

var errEnded = failure.New(failure.Invalid, "The job has ended")

// notHere makes the answer for a job that there is not that for one with which this cannot be done: Core asks for it
// without looking at what the provider supports, and expects 400 (contract 20 sections 2.3, 2.4 and 7 rule 8).
func notHere(err error) error {
	if failure.Is(err, failure.NotFound) {
		return failure.Wrap(err, failure.Invalid, "%s", failure.Why(err))
	}
	return err
}

// Suspend and Resume stop a job where it is, and let it go on.
func (r *Runner) Suspend(ctx context.Context, items []providerapi.JobItem) error {
	return r.pause(ctx, items, "suspend", r.o.Engine.Suspend)
}

// Resume is the reverse of Suspend.
func (r *Runner) Resume(ctx context.Context, items []providerapi.JobItem) error {
	return r.pause(ctx, items, "resume", r.o.Engine.Resume)
}

func (r *Runner) pause(ctx context.Context, items []providerapi.JobItem, what string, do func(context.Context, string) error) error {
	return each(ctx, len(items), func(ctx context.Context, i int) error {
		rec, err := r.own(ctx, items[i].Job.ID, what)
		if err != nil {
			return notHere(err)
		}
		if rec.State.Final() {
			return errEnded
		}
		if rec.EngineID == "" {
			return failure.New(failure.Invalid, "The job has not been submitted yet")
		}
		if err := do(ctx, rec.EngineID); err != nil {
			return explainEngine(err, "The job could not be changed at the moment, try again later")
		}
		if err := r.o.Server.Changed(ctx, rec.ID); err != nil {
			r.log.Info("the server looks at the job later", "job", rec.ID, "error", err) // its next round sees the change
		}
		return nil
	})
}
