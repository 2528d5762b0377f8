package localengine

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed" // the supervisor
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

//go:embed supervise.sh
var supervisor string

// Options configure an [Engine].
type Options struct {
	Dir string       // where what is known of jobs is kept; made if it is missing
	Log *slog.Logger // required
	// Changed is called after each change of a job, from the job's goroutine: not at the same time for the same job.
	Changed func(Job)
	Shell   string        // "": bash
	Grace   time.Duration // between SIGTERM and SIGKILL; 0: 10 seconds
	Now     func() time.Time

	// step, if not nil, is called between the steps of a submission. Tests end the process there.
	step func(name string)
}

// Spec is a job that is to run.
type Spec struct {
	ID     string          `json:"id"`  // the engine's; made by [Engine.Submit]
	Job    string          `json:"job"` // Core's
	Folder string          `json:"folder"`
	Script []byte          `json:"-"`      // what runs; a copy is kept, since others may be able to change what stands in the folder
	Output string          `json:"output"` // name or path
	Error  string          `json:"error"`
	Limit  time.Duration   `json:"limit"` // 0: none
	Note   json.RawMessage `json:"note,omitempty"`
}

// Job is a job as it stands.
type Job struct {
	Spec
	State   providerapi.JobState
	Message string
	Started time.Time
	Ended   time.Time
}

// Engine runs jobs. It is safe for concurrent use.
type Engine struct {
	o    Options
	life context.Context
	end  context.CancelFunc
	wait sync.WaitGroup

	mu   sync.Mutex // guards jobs and the fields of each that say so
	jobs map[string]*job
}

// job is one job.
type job struct {
	dir     string
	spec    Spec
	process process
	child   *exec.Cmd // nil if an earlier instance has started it

	// The rest is guarded by Engine.mu.
	state     providerapi.JobState
	message   string
	started   time.Time
	ended     time.Time
	cancelled bool
	killer    *time.Timer
}

// New makes an engine. It starts nothing and looks at nothing.
func New(o Options) *Engine {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Changed == nil {
		o.Changed = func(Job) {}
	}
	o.Grace = cmp.Or(o.Grace, 10*time.Second)
	o.Shell = cmp.Or(o.Shell, "bash")
	o.Log = o.Log.With("part", "localengine")
	e := &Engine{o: o, jobs: map[string]*job{}}
	e.life, e.end = context.WithCancel(context.Background())
	return e
}

// errGone is for jobs of which nothing is known.
var errGone = failure.New(failure.NotFound, "There is no such job")

// Close stops watching. Jobs go on.
func (e *Engine) Close() {
	e.end()
	e.mu.Lock()
	for _, j := range e.jobs {
		if j.killer != nil {
			j.killer.Stop() // the mark is set: the next engine goes on with it
		}
	}
	e.mu.Unlock()
	e.wait.Wait()
}

// Submit starts a job. A job of Core that is here already is not started again: its id is given.
// An error of the kind [failure.Invalid] means that nothing runs.
func (e *Engine) Submit(ctx context.Context, s Spec) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", failure.Wrap(err, failure.Invalid, "It took too long to start the job")
	}
	if id := e.find(s.Job); id != "" {
		return id, nil
	}
	s.ID = strings.ToLower(rand.Text()[:12])
	j := &job{dir: filepath.Join(e.o.Dir, s.ID), spec: s, state: providerapi.JobRunning}
	e.step("begin")
	if err := j.write(); err != nil {
		return "", failure.Wrap(err, failure.Invalid, "The job could not be started: its record could not be written to your home directory")
	}
	e.step("recorded")
	if err := e.start(j); err != nil {
		return "", failure.Wrap(errors.Join(err, j.drop()), failure.Invalid, "The job could not be started on this machine")
	}
	e.step("started")
	e.o.Log.Info("job started; this engine is for trying out, not for production", "job", s.Job, "id", s.ID, "pid", j.process.pid)
	e.watch(j)
	return s.ID, nil
}

// find is the engine's id of a job of Core.
func (e *Engine) find(core string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, j := range e.jobs {
		if j.spec.Job == core && !j.state.Final() {
			return id
		}
	}
	return ""
}

func (e *Engine) step(name string) {
	if e.o.step != nil {
		e.o.step(name)
	}
}

// start runs the supervisor until it says that the job is on its way.
func (e *Engine) start(j *job) error {
	ready, said, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // nothing was written
	s := j.spec
	limit := int64((s.Limit + time.Second - 1) / time.Second)
	cmd := exec.Command(e.o.Shell, "-c", supervisor, "ucloud-job", j.dir, strconv.FormatInt(limit, 10),
		strconv.FormatInt(int64((e.o.Grace+time.Second-1)/time.Second), 10), s.Folder, s.Output, s.Error)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{said}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	said.Close() //nolint:errcheck // the supervisor has it
	if err != nil {
		return err
	}
	j.child = cmd
	timer := time.AfterFunc(startTimeout, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	_, err = ready.Read(make([]byte, 1)) // the end: it was closed, or the supervisor has died
	timer.Stop()
	if !j.known() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		return errors.Join(errors.New("the supervisor did not start"), err, cmd.Wait())
	}
	return nil
}

// startTimeout bounds the few lines that the supervisor runs before the job.
const startTimeout = 10 * time.Second

// known reads who the supervisor is.
func (j *job) known() bool {
	raw, err := j.read(fileProcess)
	if err != nil {
		return false
	}
	if j.process, err = parseProcess(raw); err != nil {
		return false
	}
	j.started, _ = j.has(fileProcess)
	return true
}

// watch takes a job into the engine and follows it to its end.
func (e *Engine) watch(j *job) {
	e.mu.Lock()
	e.jobs[j.spec.ID] = j
	e.mu.Unlock()
	e.wait.Go(func() {
		if err := e.follow(j); err != nil {
			e.o.Log.Error("a job cannot be watched", "job", j.spec.Job, "error", err)
			return
		}
		if e.life.Err() != nil {
			return
		}
		e.finish(j)
	})
}

// follow reports a job that has not ended yet, and returns when it has, or when the engine was closed.
func (e *Engine) follow(j *job) error {
	f, ok, err := j.process.open()
	if err != nil || !ok {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	e.report(j)
	defer context.AfterFunc(e.life, func() { f.Close() })() //nolint:errcheck // ends the wait
	if err := wait(f); err != nil && e.life.Err() == nil {
		return err
	}
	return nil
}

// finish notes the end of a job whose leader is gone.
func (e *Engine) finish(j *job) {
	j.process.killAll()
	if j.child != nil {
		_ = j.child.Wait() // the exit code stands in the record
	}
	e.mu.Lock()
	if j.killer != nil {
		j.killer.Stop()
	}
	j.state, j.message, j.ended = j.outcome(e.o.Now())
	e.mu.Unlock()
	e.report(j)
}

func (e *Engine) report(j *job) {
	e.mu.Lock()
	v := j.view()
	e.mu.Unlock()
	e.o.Changed(v)
}

// view needs Engine.mu.
func (j *job) view() Job {
	return Job{Spec: j.spec, State: j.state, Message: j.message, Started: j.started, Ended: j.ended}
}

// Jobs are all jobs, those too that have ended and are not forgotten.
func (e *Engine) Jobs() []Job {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]Job, 0, len(e.jobs))
	for _, j := range e.jobs {
		list = append(list, j.view())
	}
	slices.SortFunc(list, func(a, b Job) int { return a.Started.Compare(b.Started) })
	return list
}

// Cancel ends a job: SIGTERM, and after the grace SIGKILL. A job that has ended or is not known is ended.
func (e *Engine) Cancel(id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	j := e.jobs[id]
	if j == nil || j.state.Final() || j.cancelled {
		return nil
	}
	if err := j.mark(fileCancelled); err != nil {
		return fmt.Errorf("note the end of a job: %w", err)
	}
	j.cancelled = true
	return e.terminateLocked(j)
}

// terminateLocked sends the signals.
func (e *Engine) terminateLocked(j *job) error {
	err := j.process.signal(unix.SIGTERM)
	_ = j.process.signal(unix.SIGCONT) // a stopped process does not see the other one
	j.killer = time.AfterFunc(e.o.Grace, j.process.killAll)
	return err
}

// Suspend stops a job where it is.
func (e *Engine) Suspend(id string) error { return e.pause(id, true) }

// Resume lets it go on.
func (e *Engine) Resume(id string) error { return e.pause(id, false) }

func (e *Engine) pause(id string, stop bool) error {
	e.mu.Lock()
	j := e.jobs[id]
	if j == nil || j.state.Final() {
		e.mu.Unlock()
		return errGone
	}
	var err error
	if stop {
		if err = j.mark(fileSuspended); err == nil {
			err = j.process.signal(unix.SIGSTOP)
		}
		j.state, j.message = providerapi.JobSuspended, "The job is suspended"
	} else {
		if err = os.Remove(filepath.Join(j.dir, fileSuspended)); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		err = errors.Join(err, j.process.signal(unix.SIGCONT))
		j.state, j.message = providerapi.JobRunning, "The job goes on"
	}
	v := j.view()
	e.mu.Unlock()
	if err != nil {
		return fmt.Errorf("suspend or resume a job: %w", err)
	}
	e.o.Changed(v)
	return nil
}

// Forget drops what is known of a job that has ended.
func (e *Engine) Forget(id string) error {
	e.mu.Lock()
	j := e.jobs[id]
	if j == nil || !j.state.Final() {
		e.mu.Unlock()
		return nil
	}
	delete(e.jobs, id)
	e.mu.Unlock()
	return j.drop()
}
