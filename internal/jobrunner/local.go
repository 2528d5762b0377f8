package jobrunner

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/localengine"
	"ucloud-im/internal/providerapi"
)

// Local is the local engine with the reports that the server needs, because it cannot see the jobs itself. The instance
// stays busy as long as there is something to report.
type Local struct {
	engine *localengine.Engine
	server Server
	log    *slog.Logger
	busy   func() func()
	life   context.Context
	end    context.CancelFunc
	wait   sync.WaitGroup

	submitting sync.RWMutex // held for reading from the start of a job until the server knows it

	mu        sync.Mutex // guards the fields below
	dirty     bool       // there is news
	reporting bool       // a goroutine brings it
	release   func()     // not nil while the instance is kept busy
	leaving   bool
}

// LocalOptions configure [NewLocal].
type LocalOptions struct {
	Dir    string // where jobs are recorded
	Server Server
	Busy   func() (done func()) // nil: nobody wants to know
	Log    *slog.Logger
}

// NewLocal makes the engine. It does nothing before [Local.Start].
func NewLocal(o LocalOptions) *Local {
	l := &Local{server: o.Server, log: o.Log.With("part", "jobrunner"), busy: o.Busy}
	if l.busy == nil {
		l.busy = func() func() { return func() {} }
	}
	l.life, l.end = context.WithCancel(context.Background())
	l.engine = localengine.New(localengine.Options{Dir: o.Dir, Log: o.Log, Changed: func(localengine.Job) { l.changed() }})
	return l
}

// Start takes up what an earlier instance has left, and tells the server, also if there is nothing: it may be waiting for
// a job that was lost with that instance.
func (l *Local) Start() error {
	err := l.engine.Recover()
	for _, j := range l.engine.Jobs() {
		if !j.State.Final() {
			l.tell(j)
		}
	}
	l.changed()
	return err
}

// tell repeats the news of a submission, in case that the earlier instance has not come to it. A job that the server does
// not take is ended: Core has no record of it.
func (l *Local) tell(j localengine.Job) {
	var news ipcapi.JobSubmission
	if json.Unmarshal(j.Note, &news) != nil {
		return
	}
	news.EngineID = j.ID
	_, err := l.server.Submitted(l.life, news)
	if !unwanted(err) {
		return
	}
	l.log.Warn("ending a job that the server does not know", "job", j.Spec.Job, "error", err)
	if err := l.engine.Cancel(j.ID); err != nil {
		l.log.Error("it cannot be ended", "job", j.Spec.Job, "error", err)
	}
}

// GiveBack lets the instance end although jobs run. The next one finds them.
func (l *Local) GiveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaving = true
	l.keepLocked(false)
}

// Close ends the reports. Jobs go on.
func (l *Local) Close() {
	l.GiveBack()
	l.end()
	l.engine.Close()
	l.wait.Wait()
}

// changed has the server told.
func (l *Local) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty = true
	l.keepLocked(true)
	if l.reporting || l.life.Err() != nil {
		return
	}
	l.reporting = true
	l.wait.Go(l.report)
}

// keepLocked keeps the instance from ending, or not.
func (l *Local) keepLocked(keep bool) {
	switch {
	case keep && l.release == nil && !l.leaving:
		l.release = l.busy()
	case !keep && l.release != nil:
		l.release()
		l.release = nil
	}
}

// report brings the news until there is none.
func (l *Local) report() {
	const first, longest = 200 * time.Millisecond, 30 * time.Second
	for pause := first; ; {
		l.mu.Lock()
		if !l.dirty || l.life.Err() != nil {
			l.reporting = false
			l.keepLocked(l.unfinished())
			l.mu.Unlock()
			return
		}
		l.dirty = false
		l.mu.Unlock()
		err := l.reportOnce()
		if err == nil {
			pause = first
			continue
		}
		l.log.Info("the server could not be told of jobs, trying again", "error", err)
		l.mu.Lock()
		l.dirty = true
		l.mu.Unlock()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-l.life.Done():
			t.Stop()
		}
		pause = min(2*pause, longest)
	}
}

// unfinished tells whether there is a job whose end is still to be reported.
func (l *Local) unfinished() bool { return len(l.engine.Jobs()) > 0 }

// reportOnce tells the server of all jobs, forgets those of which it then knows the end, and ends those that it wants ended.
func (l *Local) reportOnce() error {
	l.submitting.Lock() // a job is not spoken of before the server knows it
	jobs := l.engine.Jobs()
	l.submitting.Unlock()
	report := ipcapi.JobLocalReport{All: true, Jobs: []ipcapi.LocalJob{}}
	for _, j := range jobs {
		report.Jobs = append(report.Jobs, ipcapi.LocalJob{
			ID: j.Spec.Job, EngineID: j.ID, State: j.State, Message: j.Message, Started: j.Started, Ended: j.Ended,
		})
	}
	reply, err := l.server.Local(l.life, report)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if !j.State.Final() {
			continue
		}
		if err := l.engine.Forget(j.ID); err != nil {
			l.log.Warn("the record of a job cannot be removed", "job", j.Spec.Job, "error", err)
		}
	}
	for _, core := range reply.End {
		for _, j := range jobs {
			if j.Spec.Job != core || j.State.Final() {
				continue
			}
			if err := l.engine.Cancel(j.ID); err != nil {
				l.log.Warn("a job cannot be ended", "job", core, "error", err)
			}
		}
	}
	return nil
}

// hold keeps reports back until a job that is being submitted is known to the server.
func (l *Local) hold() (release func()) {
	l.submitting.RLock()
	return l.submitting.RUnlock
}

// Submit implements [Engine].
func (l *Local) Submit(ctx context.Context, s Submission) (string, error) {
	id, err := l.engine.Submit(ctx, localengine.Spec{
		Job: s.Job, Folder: s.Folder, Script: s.Script, Output: jobrender.StdoutFile, Error: jobrender.StderrFile, Limit: s.Limit,
		Note: s.Note,
	})
	if failure.Is(err, failure.Invalid) {
		return "", &RefusedError{Why: failure.Why(err), Cause: err}
	}
	return id, err
}

// Cancel implements [Engine].
func (l *Local) Cancel(_ context.Context, id string) error { return l.engine.Cancel(id) }

// Suspend implements [Engine].
func (l *Local) Suspend(_ context.Context, id string) error { return l.engine.Suspend(id) }

// Resume implements [Engine].
func (l *Local) Resume(_ context.Context, id string) error { return l.engine.Resume(id) }

// State is that of a job, for those who cannot ask Slurm.
func (l *Local) State(id string) (providerapi.JobState, bool) {
	for _, j := range l.engine.Jobs() {
		if j.ID == id {
			return j.State, true
		}
	}
	return "", false
}
