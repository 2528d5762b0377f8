package slurm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"

	"ucloud-im/internal/failure"
)

// Submission is a batch script to submit. Its directives are in the script; Args come after them and win.
type Submission struct {
	Script    string   // path
	Text      []byte   // instead of a path: the script itself, which sbatch reads from its standard input
	Directory string   // where sbatch runs, and with it the job unless a directive says otherwise
	Args      []string // more arguments of sbatch, such as --comment=...
	Env       []string // for sbatch itself, such as HOME; nothing of it reaches the job
}

// Submit submits a job as the user who runs this process (contract 22 section 12.6 and 12.12). The error is a
// [*RefusedError] if there certainly is no job, and [ErrUnknownOutcome] if there may be one.
//
// The job gets no environment from here: Slurm lets the user log in on the node for it (--export=NONE), and sets
// SLURM_EXPORT_ENV=NONE, which a script has to take away before srun.
func (c *Client) Submit(ctx context.Context, s Submission) (JobID, error) {
	args := append([]string{"--parsable", "--export=NONE"}, s.Args...)
	if s.Text == nil {
		if s.Script == "" || strings.HasPrefix(s.Script, "-") {
			return JobID{}, fmt.Errorf("%q is no script", s.Script)
		}
		args = append(args, s.Script)
	}
	out, err := c.output(ctx, command{program: "sbatch", args: args, env: s.Env, dir: s.Directory, input: s.Text})
	if err == nil {
		id, err := parseSubmitted(out)
		if err != nil {
			return JobID{}, unknown(err)
		}
		return id, nil
	}
	failed, ok := errors.AsType[*CommandError](err)
	switch {
	case ok && errors.Is(failed.Cause, os.ErrNotExist), ok && errors.Is(failed.Cause, os.ErrPermission):
		// It was never started, or its directory is gone.
		return JobID{}, failure.Wrap(err, failure.Internal, "The job could not be submitted")
	case !ok, failed.Exit <= 0, doubtful(failed.Stderr), strings.TrimSpace(out) != "":
		return JobID{}, unknown(err)
	}
	return JobID{}, refused(failed)
}

func unknown(err error) error {
	return failure.Wrap(fmt.Errorf("%w: %w", ErrUnknownOutcome, err), failure.Unavailable, "Slurm does not answer at the moment. Try again in a few minutes")
}

// lost are messages of sbatch after which there may be a job: the request may have arrived and only the answer been lost.
// It is compiled when it is needed: it would take most of a megabyte of each instance.
var lost = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)time[d -]*out|contact|connect|transmi|receive|communicat|socket|unexpected message|header length|authentication|protocol|broken pipe|reset by peer|standby|shutdown|resource temporarily`)
})

// doubtful tells whether there may be a job although sbatch failed. Only the line about the submission itself counts, if
// there is one: remarks of the site beside it may contain any word.
func doubtful(stderr string) bool {
	const failed = "Batch job submission failed: "
	if i := strings.LastIndex(stderr, failed); i >= 0 {
		stderr = stderr[i+len(failed):]
	}
	return lost().MatchString(stderr)
}

// parseSubmitted parses "730512" or "730512;cluster". sbatch may print remarks of the site before it.
func parseSubmitted(out string) (JobID, error) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	text, _, _ := strings.Cut(lines[len(lines)-1], ";")
	id, err := ParseJobID(text)
	if err == nil && id != id.Leader() {
		err = fmt.Errorf("%q is no id of a new job", cut(text))
	}
	return id, err
}

// refusals are what users read instead of Slurm's words (contract 22 section 4).
var refusals = []struct{ contains, message string }{
	{"Requested time limit is invalid", "The time limit is too large. Ask for less time, or choose another machine type"},
	{"Node count specification invalid", "Too many nodes. Ask for fewer, or choose another machine type"},
	{"More processors", "Too many nodes. Ask for fewer, or choose another machine type"},
	{"Requested node config", "Too many nodes. Ask for fewer, or choose another machine type"},
}

func refused(e *CommandError) error {
	message := ""
	for _, r := range refusals {
		if strings.Contains(e.Stderr, r.contains) {
			message = r.message
			break
		}
	}
	if message == "" {
		message = plainMessage(e.Stderr)
	}
	return failure.Wrap(&RefusedError{Message: message, Cause: e}, failure.Invalid, "%s", message)
}

// plainMessage is what sbatch says, without its name at the start of each line.
func plainMessage(stderr string) string {
	var lines []string
	for line := range strings.SplitSeq(stderr, "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "sbatch: ")
		line = strings.TrimSpace(strings.TrimPrefix(line, "error: "))
		line = strings.TrimSpace(strings.TrimPrefix(line, "Batch job submission failed: "))
		if line = strings.ToValidUTF8(line, "?"); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return "Slurm refused the job without a reason"
	}
	text := "Slurm refused the job: " + strings.Join(lines, "; ")
	if len(text) > 1000 {
		text = strings.ToValidUTF8(text[:1000], "") + "..."
	}
	return text
}
