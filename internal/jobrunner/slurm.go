package jobrunner

import (
	"context"
	"errors"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/slurm"
)

// Slurm is the engine of production.
type Slurm struct {
	Client *slurm.Client
	// Env is for sbatch itself; the job gets none of it.
	Env []string
}

// Submit implements [Engine]. The script goes to sbatch through a pipe: in the folder others might exchange it.
//
// The instance limits itself, and Slurm would hand its limits on to the job, which is to have those of its node
// (--propagate=NONE). The umask is handed on, which is what makes output readable for the project.
func (s *Slurm) Submit(ctx context.Context, sub Submission) (string, error) {
	id, err := s.Client.Submit(ctx, slurm.Submission{
		Text: sub.Script, Directory: sub.Folder, Args: append([]string{"--propagate=NONE"}, sub.Args...), Env: s.Env,
	})
	switch {
	case err == nil:
		return id.String(), nil
	case errors.Is(err, slurm.ErrUnknownOutcome):
		return "", err
	}
	return "", &RefusedError{Why: failure.Why(err), Cause: err}
}

// Cancel implements [Engine].
func (s *Slurm) Cancel(ctx context.Context, id string) error {
	j, err := slurm.ParseJobID(id)
	if err != nil {
		return err
	}
	return s.Client.Cancel(ctx, j)
}

// Suspend implements [Engine].
func (s *Slurm) Suspend(ctx context.Context, id string) error {
	return control(ctx, id, s.Client.Suspend)
}

// Resume implements [Engine].
func (s *Slurm) Resume(ctx context.Context, id string) error {
	return control(ctx, id, s.Client.Resume)
}

// control changes a job. Most sites leave this to operators, which is a refusal and no failure.
func control(ctx context.Context, id string, do func(context.Context, slurm.JobID) error) error {
	j, err := slurm.ParseJobID(id)
	if err != nil {
		return err
	}
	err = do(ctx, j)
	switch {
	case errors.Is(err, slurm.ErrDenied):
		return failure.Wrap(err, failure.Invalid, "This provider lets operators alone suspend and resume jobs")
	case err != nil && !errors.Is(err, slurm.ErrUnavailable):
		return failure.Wrap(err, failure.Invalid, "Slurm cannot suspend or resume the job now")
	}
	return err
}
