package slurm

import (
	"errors"
	"fmt"
	"strings"

	"ucloud-im/internal/failure"
)

// Errors to compare with.
var (
	// ErrUnknownOutcome says that a job may have been submitted, or not. Only Slurm can tell, later.
	ErrUnknownOutcome = errors.New("it is not known whether the job was submitted")
	// ErrUnavailable says that slurmctld or slurmdbd does not answer, or not in time.
	ErrUnavailable = errors.New("no answer from Slurm")
	// ErrNoJob says that slurmctld does not have the job: it never did, or has forgotten it.
	ErrNoJob = errors.New("no such job")
	// ErrDenied says that the user, or the service account, may not do that.
	ErrDenied = errors.New("not permitted by Slurm")
	// ErrIncomplete says that a command seemed to succeed but did not print all that it should have.
	ErrIncomplete = errors.New("incomplete answer")
	// ErrFinished says that a job has ended already.
	ErrFinished = errors.New("the job has ended")
	// ErrNoAccount says that there is no such account.
	ErrNoAccount = errors.New("no such account")
	// ErrBusy says that an account or a user still has jobs.
	ErrBusy = errors.New("still has jobs")
	// ErrDefaultAccount says that a user cannot leave an account that is the user's default one while there are others.
	ErrDefaultAccount = errors.New("is the default account of the user")
)

// CommandError is a command that failed.
type CommandError struct {
	Program  string
	Exit     int // -1: it was killed, or could not be started
	Stderr   string
	TimedOut bool
	Cause    error
}

func (e *CommandError) Error() string {
	text := e.Stderr
	if len(text) > 500 {
		text = text[:500] + "..."
	}
	if e.TimedOut {
		return fmt.Sprintf("%s: took too long: %q", e.Program, text)
	}
	return fmt.Sprintf("%s: %v: %q", e.Program, e.Cause, text)
}

// Unwrap gives the cause.
func (e *CommandError) Unwrap() error { return e.Cause }

// Is makes the errors above comparable, by what Slurm printed.
func (e *CommandError) Is(target error) bool {
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(e.Stderr, w) {
				return true
			}
		}
		return false
	}
	switch target {
	case ErrUnavailable:
		return e.TimedOut || has("Unable to contact slurm controller", "Connection refused", "Socket timed out", "Zero Bytes were transmitted",
			"Unable to contact slurm", "Unable to connect to database", "Slurm backup controller in standby", "Slurmdbd", "Connection timed out",
			"Transport endpoint is not connected", "Resource temporarily unavailable", "Problem talking to the database", "Couldn't get DB connection", "Sending PersistInit msg")
	case ErrNoJob:
		return has("Invalid job id specified")
	case ErrDenied:
		return has("Access/permission denied", "Access denied", "Only admins", "doesn't have permission", "don't have permission", "not have permission", "Your user doesn't")
	case ErrFinished:
		return has("already completing or completed", "Job has already finished", "Job is no longer pending execution", "Job/step already completing")
	case ErrNoAccount:
		return has("doesn't exist", "Nothing modified")
	case ErrBusy:
		return has("Job(s) active")
	case ErrDefaultAccount:
		return has("default account")
	}
	return false
}

// classify gives an error of a command a kind and a sentence that a user may see. doing completes "Slurm could not ...".
func classify(err error, doing string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnavailable):
		return failure.Wrap(err, failure.Unavailable, "Slurm does not answer at the moment. Try again in a few minutes")
	case errors.Is(err, ErrNoJob):
		return failure.Wrap(err, failure.NotFound, "Slurm does not know this job any more")
	case errors.Is(err, ErrDenied):
		return failure.Wrap(err, failure.Forbidden, "Slurm does not permit this")
	case errors.Is(err, ErrFinished):
		return failure.Wrap(err, failure.Conflict, "The job has ended already")
	}
	return failure.Wrap(err, failure.Internal, "Slurm could not %s", doing)
}

// RefusedError is a submission that Slurm refused: there is no job.
type RefusedError struct {
	Message string // for the user
	Cause   error
}

func (e *RefusedError) Error() string { return "sbatch refuses the job: " + e.Message }

// Unwrap gives what sbatch said.
func (e *RefusedError) Unwrap() error { return e.Cause }
