package jobrunner

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Engine runs jobs: Slurm, or processes of the user.
type Engine interface {
	// Submit hands over a job and gives the engine's id. If the error is a [*RefusedError], nothing runs and nothing will;
	// after any other error nobody knows. ctx ends when the leave does.
	Submit(ctx context.Context, s Submission) (id string, err error)
	// Cancel ends a job. One that has ended, or is not known, is ended.
	Cancel(ctx context.Context, id string) error
	// Suspend and Resume give an error of kind [failure.Invalid] where this is not possible.
	Suspend(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
}

// Submission is a job for an engine. Everything that Slurm is to know stands in the directives of the script.
type Submission struct {
	Job    string // Core's id
	Script []byte // what runs
	Folder string // local path of the job's folder
	Limit  time.Duration
	Args   []string // more arguments of sbatch, which win over directives
	// Note is what the engine keeps for the next instance: the [ipcapi.JobSubmission] without an id of the engine.
	Note json.RawMessage
}

// RefusedError tells for certain that nothing runs. Why is for the user.
type RefusedError struct {
	Why   string
	Cause error // may be nil
}

// Error is for the log.
func (e *RefusedError) Error() string {
	if e.Cause == nil {
		return e.Why
	}
	return e.Why + ": " + e.Cause.Error()
}

// Unwrap gives the cause.
func (e *RefusedError) Unwrap() error { return e.Cause }

func refused(err error) (*RefusedError, bool) { return errors.AsType[*RefusedError](err) }
