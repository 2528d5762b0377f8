package jobrunner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

// Create submits a job and gives its providerGeneratedId (contract 20 section 2.1). arrived is when Core's request came in.
func (r *Runner) Create(ctx context.Context, arrived time.Time, job *providerapi.Job) (string, error) {
	if err := checkJob(job); err != nil {
		return "", err
	}
	raw, err := documentOf(job)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithDeadline(ctx, arrived.Add(r.o.answerWithin))
	defer cancel()
	grant, err := r.o.Server.Begin(ctx, ipcapi.JobBeginning{Job: raw, Account: chosenAccount(job)})
	if err != nil {
		return "", err
	}
	if grant.Known {
		return grant.ProviderGeneratedID, nil
	}
	r.o.step("begun")
	return r.inBackground(ctx, job, grant)
}

// checkJob refuses what cannot be a job.
func checkJob(job *providerapi.Job) error {
	switch {
	case !validID(job.ID):
		return failure.New(failure.Invalid, "The request names no job")
	case job.Status.ResolvedApplication == nil:
		return failure.New(failure.Invalid, "The job has no application")
	case job.Status.ResolvedApplication.Metadata.Name == "unknown" || job.Specification.Application.Name == "unknown":
		return failure.New(failure.Invalid, "Jobs that were submitted outside UCloud cannot be run again from here")
	}
	return nil
}

// documentOf is the job as the server keeps it. Decoding has dropped the members that hold secrets; the values that had
// them are dropped too, since nothing is left of them but that there was one (contract 20 section 7 rule 12).
func documentOf(job *providerapi.Job) (json.RawMessage, error) {
	secret := func(v providerapi.AppParameterValue) bool { return v.Type == providerapi.ValueAPIServer }
	spec := &job.Specification
	spec.Resources = slices.DeleteFunc(spec.Resources, secret)
	maps.DeleteFunc(spec.Parameters, func(_ string, v providerapi.AppParameterValue) bool { return secret(v) })
	if bytes.Contains(job.Status.JobParametersJSON, []byte(providerapi.ValueAPIServer)) {
		job.Status.JobParametersJSON = nil // Core leaves them out there; this is for one that does not
	}
	raw, err := json.Marshal(job)
	if err == nil && len(raw) > ipcapi.MaxJob {
		short := *job // what the product supports, the server has declared itself
		short.Status.ResolvedSupport = nil
		raw, err = json.Marshal(&short)
	}
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The job cannot be read")
	}
	if len(raw) > ipcapi.MaxJob {
		return nil, failure.New(failure.TooLarge, "The job with its application and parameters is larger than %d KiB", ipcapi.MaxJob>>10)
	}
	return raw, nil
}

// chosenAccount is the Slurm account that the user has chosen in the form, where there is a choice.
func chosenAccount(job *providerapi.Job) string {
	v, ok := job.Specification.Parameters[jobrender.AccountParameter]
	var s string
	if !ok || json.Unmarshal(v.Value, &s) != nil {
		return ""
	}
	return s
}

// errGaveUp is the answer when Core waits no longer. Its status must not be one after which Core repeats the call.
var errGaveUp = failure.New(failure.Internal, "The job was not submitted: Slurm does not answer in time. Try again later.")

// inBackground submits, whatever becomes of the request, and waits for the result as long as Core does. A job that was
// submitted after Core had given up is ended: Core has deleted its record.
func (r *Runner) inBackground(ctx context.Context, job *providerapi.Job, grant ipcapi.JobGrant) (string, error) {
	type result struct {
		id  string
		err error
	}
	var settled atomic.Bool // by whoever is first: the submission with its result, or the request giving up
	done := make(chan result, 1)
	release := r.o.Busy()
	r.wait.Go(func() {
		defer release()
		s := r.newSubmission(job, grant)
		defer func() {
			if p := recover(); p != nil { // the server finds out what has become of the job
				r.log.Error("panic while a job was submitted", "job", job.ID, "panic", p, "stack", string(debug.Stack()))
				select {
				case done <- result{err: fmt.Errorf("panic: %v", p)}:
				default: // the result was given before
				}
			}
		}()
		life, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.leave)
		defer cancel()
		id, err := s.run(life)
		if settled.CompareAndSwap(false, true) {
			done <- result{id: id, err: err}
			s.tell()
			return
		}
		r.log.Warn("Core has given up on a job before Slurm has answered", "job", job.ID, "error", err)
		s.tell()
		if err == nil {
			s.giveUp()
		}
	})
	select {
	case res := <-done:
		return res.id, res.err
	case <-ctx.Done():
		if !settled.CompareAndSwap(false, true) {
			res := <-done
			return res.id, res.err
		}
		return "", failure.Wrap(ctx.Err(), failure.Internal, "%s", failure.Why(errGaveUp))
	}
}

// submission is one attempt to submit a job.
type submission struct {
	r     *Runner
	job   *providerapi.Job
	grant ipcapi.JobGrant
	leave time.Duration // how long sbatch may be started and run
	news  *ipcapi.JobSubmission
	told  bool
}

// maxLeave bounds the leave, in case that the clocks of server and instance are not the same one.
const maxLeave = time.Minute

func (r *Runner) newSubmission(job *providerapi.Job, grant ipcapi.JobGrant) *submission {
	return &submission{r: r, job: job, grant: grant, leave: min(grant.Until.Sub(r.o.Now()), maxLeave)}
}

// run takes all steps. If it fails before sbatch was run, or sbatch refuses, the server is told, and nothing is left.
func (s *submission) run(ctx context.Context) (string, error) {
	place, err := s.r.placeOf(s.grant, s.job.ID)
	if err != nil {
		return "", s.refuse(failure.Wrap(err, failure.Internal, "The job's folder could not be made"))
	}
	script, err := s.render(ctx, place)
	if err != nil {
		return "", s.refuse(err)
	}
	s.r.o.step("rendered")
	f, err := makeFolder(place, s.grant.Attempt > 1)
	if err != nil {
		return "", s.refuse(err)
	}
	defer f.close()
	s.r.o.step("folder")
	if l, ok := s.r.o.Engine.(*Local); ok {
		defer l.hold()()
	}
	id, err := s.submit(ctx, place, f, script)
	if _, no := refused(err); no || err != nil && id == notStarted {
		if rerr := f.remove(); rerr != nil && f.made {
			s.r.log.Info("the folder of a job that was not submitted stays", "job", s.job.ID, "error", rerr)
		}
		s.r.o.step("removed")
		return "", s.refuse(err)
	}
	if err != nil {
		// Nobody knows. The server finds the job by its comment, or forgets it.
		s.r.log.Error("the outcome of a submission is not known", "job", s.job.ID, "error", err)
		return "", failure.Wrap(err, failure.Internal, "%s", failure.Why(errGaveUp))
	}
	return s.submitted(ctx, place, script, id)
}

// notStarted in place of an id tells that the engine was not asked.
const notStarted = "-"

// render makes the script. Nothing has been changed so far.
func (s *submission) render(ctx context.Context, p place) (*jobrender.Script, error) {
	site, err := s.r.o.Site()
	if err != nil {
		return nil, err
	}
	g, m := s.grant, s.grant.Machine
	grant := jobrender.Grant{
		Account: g.Account, Partition: g.Partition, QoS: g.QoS, Constraint: g.Constraint, Comment: g.Comment, Exclusive: g.Exclusive,
		Machine: jobrender.Machine(m), Nodes: max(1, s.job.Specification.Replicas), Folder: p.local, Port: g.Port,
		Run: s.r.o.Script,
	}
	if t := s.job.Specification.TimeAllocation; t != nil {
		grant.Time = t.Duration()
	}
	if grant.Time <= 0 {
		if tool := s.job.Status.ResolvedApplication.Invocation.Tool.Tool; tool != nil {
			grant.Time = tool.Description.DefaultTimeAllocation.Duration()
		}
	}
	if s.desktop() {
		grant.Password = p.local + "/" + jobrender.PasswordFile
	}
	site.MaxTime = time.Duration(g.MaxTimeMs) * time.Millisecond // of the machine: an application cannot set more by itself
	return jobrender.Render(ctx, s.job, site, grant, s.r.newPathFinder().local)
}

// desktop tells whether the application is a remote desktop.
func (s *submission) desktop() bool {
	return s.job.Status.ResolvedApplication.Invocation.ApplicationType == providerapi.ApplicationVNC
}

// submit fills the folder and runs sbatch.
func (s *submission) submit(ctx context.Context, p place, f *folder, script *jobrender.Script) (string, error) {
	if err := f.fill(script, s.desktop()); err != nil {
		return notStarted, err
	}
	s.r.o.step("filled")
	var args []string
	if s.r.o.Hook != nil {
		var err error
		args, err = s.r.o.Hook(ctx, HookCall{
			Job: s.job, Grant: s.grant, Script: script, Path: p.local + "/" + jobrender.ScriptFile, Nodes: max(1, s.job.Specification.Replicas),
		})
		if err != nil {
			return notStarted, err
		}
	}
	s.r.o.step("hooked")
	news := s.newsOf(p, script)
	note, err := json.Marshal(news)
	if err != nil {
		return notStarted, err
	}
	// The clock of the context is monotonic, and was started when the leave was given: a clock that is set in between
	// cannot make sbatch start after the server has stopped waiting for it.
	if ctx.Err() != nil {
		return notStarted, failure.Wrap(ctx.Err(), failure.Internal, "%s", failure.Why(errGaveUp))
	}
	return s.r.o.Engine.Submit(ctx, Submission{
		Job: s.job.ID, Script: script.Text, Folder: p.local, Limit: script.TimeLimit, Note: note, Args: args,
	})
}

// newsOf is what the server is told of a job that was submitted, without the engine's id.
func (s *submission) newsOf(p place, script *jobrender.Script) ipcapi.JobSubmission {
	news := ipcapi.JobSubmission{
		Job: s.job.ID, Attempt: s.grant.Attempt, Folder: p.local, OutputFolder: p.output, TimeMs: script.TimeLimit.Milliseconds(),
	}
	for _, t := range script.Targets {
		if len(news.Targets) < ipcapi.MaxJobTargets {
			news.Targets = append(news.Targets, ipcapi.JobTarget{Rank: t.Rank, Type: t.Type, Target: t.Target, Port: t.Port})
		}
	}
	return news
}

// submitted tells the server, and finds the answer to Core.
func (s *submission) submitted(ctx context.Context, p place, script *jobrender.Script, id string) (string, error) {
	s.r.o.step("submitted")
	news := s.newsOf(p, script)
	news.EngineID = id
	s.news = &news
	s.r.log.Info("job submitted", "job", s.job.ID, "engine", s.grant.Engine, "id", id)
	receipt, err := s.r.o.Server.Submitted(ctx, news)
	switch {
	case unwanted(err):
		s.told = true
		s.withdraw(err)
		return "", err
	case err != nil:
		// The job runs, so Core may have it. The server hears of it later, or finds it; the id is one like the server's.
		s.r.log.Warn("the server could not be told of a job", "job", s.job.ID, "error", err)
		return fmt.Sprintf("%s/%s/%d", s.grant.Account, id, s.r.o.Now().UnixMilli()), nil
	}
	s.told = true
	s.r.o.step("told")
	return receipt.ProviderGeneratedID, nil
}

// unwanted tells whether the server does not take a job: the leave was over, or the job runs under another id.
func unwanted(err error) bool {
	return failure.Is(err, failure.Conflict) || failure.Is(err, failure.NotFound)
}

// withdraw ends a job that the server does not take.
func (s *submission) withdraw(why error) {
	s.r.log.Warn("ending a job that the server does not take", "job", s.job.ID, "id", s.news.EngineID, "error", why)
	ctx, cancel := context.WithTimeout(s.r.life, cancelTimeout)
	defer cancel()
	if err := s.r.o.Engine.Cancel(ctx, s.news.EngineID); err != nil {
		s.r.log.Error("it could not be ended; the server will", "job", s.job.ID, "error", err)
	}
}

// refuse tells the server that nothing runs, and gives err as an answer to Core.
func (s *submission) refuse(err error) error {
	if no, ok := refused(err); ok {
		err = failure.Wrap(no, failure.Invalid, "%s", no.Why)
	}
	s.r.log.Info("job not submitted", "job", s.job.ID, "error", err)
	ctx, cancel := context.WithTimeout(s.r.life, callTimeout)
	defer cancel()
	message := failure.Why(err)
	if len(message) > ipcapi.MaxJobMessage {
		message = message[:ipcapi.MaxJobMessage]
	}
	// If the server does not hear of it, it finds out that Slurm knows no such job.
	if terr := s.r.o.Server.Refused(ctx, ipcapi.JobRefusal{Job: s.job.ID, Attempt: s.grant.Attempt, Message: message}); terr != nil {
		s.r.log.Warn("the server could not be told of a job that was refused", "job", s.job.ID, "error", terr)
	}
	return err
}

// tell repeats what the server has not heard yet, for a while.
func (s *submission) tell() {
	if s.news == nil || s.told {
		return
	}
	ctx, cancel := context.WithTimeout(s.r.life, s.r.o.retryFor)
	defer cancel()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		_, err := s.r.o.Server.Submitted(ctx, *s.news)
		if err == nil {
			s.told = true
			return
		}
		if unwanted(err) {
			s.withdraw(err)
			return
		}
		if kind := failure.KindOf(err); kind != failure.Unavailable && kind != failure.Internal {
			s.r.log.Warn("the server does not take a job", "job", s.job.ID, "error", err)
			return
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			s.r.log.Warn("the server was not told of a job; it finds it in Slurm", "job", s.job.ID, "error", err)
			return
		}
	}
}

// giveUp ends a job of which Core has no record.
func (s *submission) giveUp() {
	ctx, cancel := context.WithTimeout(s.r.life, cancelTimeout)
	defer cancel()
	if err := s.r.o.Server.Ending(ctx, s.job.ID); err != nil {
		s.r.log.Info("the end of a job could not be noted", "job", s.job.ID, "error", err)
	}
	s.withdraw(errGaveUp)
}
