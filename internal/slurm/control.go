package slurm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
)

// Cancel cancels jobs. The leader of an array or of a heterogeneous job stands for all of it. Jobs that have ended, or
// that Slurm does not know, are no error: there is nothing left to cancel.
func (c *Client) Cancel(ctx context.Context, ids ...JobID) error {
	for len(ids) > 0 {
		n := min(len(ids), idsPerCall)
		args := []string{"--quiet"}
		for _, id := range ids[:n] {
			a, err := exact(id)
			if err != nil {
				return err
			}
			args = append(args, a)
		}
		if _, err := c.output(ctx, command{program: "scancel", args: args}); err != nil && !errors.Is(err, ErrNoJob) && !errors.Is(err, ErrFinished) {
			return classify(err, "cancel the job")
		}
		ids = ids[n:]
	}
	return nil
}

// exact is the identifier for commands that change jobs: tasks that are still together are named one by one, and never
// replaced by the whole array.
func exact(id JobID) (string, error) {
	if id.ID == 0 {
		return "", errors.New("a job without an id")
	}
	if !id.IsRange() {
		return id.String(), nil
	}
	tasks, _, _ := strings.Cut(id.Task, "%")
	if tasks == "" || strings.Contains(tasks, ".") {
		return "", fmt.Errorf("not all tasks of %s are known", cut(id.String()))
	}
	return strconv.FormatUint(id.ID, 10) + "_[" + tasks + "]", nil
}

// SetTimeLimit sets the time limit of a job, counted from its start. A part of a minute counts as a minute.
func (c *Client) SetTimeLimit(ctx context.Context, id JobID, limit time.Duration) error {
	if limit < time.Minute {
		return failure.New(failure.Invalid, "A time limit has at least one minute")
	}
	minutes := int64((limit + time.Minute - 1) / time.Minute)
	a, err := exact(id)
	if err != nil {
		return err
	}
	_, err = c.output(ctx, command{program: "scontrol", args: []string{"update", "JobId=" + a, "TimeLimit=" + strconv.FormatInt(minutes, 10)}})
	return classify(err, "change the time limit")
}

// Suspend stops the processes of a job and leaves it its resources.
func (c *Client) Suspend(ctx context.Context, id JobID) error { return c.control(ctx, "suspend", id) }

// Resume lets a suspended job go on.
func (c *Client) Resume(ctx context.Context, id JobID) error { return c.control(ctx, "resume", id) }

// Hold keeps a job that waits from starting.
func (c *Client) Hold(ctx context.Context, id JobID) error { return c.control(ctx, "hold", id) }

// Release takes a hold away.
func (c *Client) Release(ctx context.Context, id JobID) error { return c.control(ctx, "release", id) }

// Requeue puts a job back into the queue.
func (c *Client) Requeue(ctx context.Context, id JobID) error { return c.control(ctx, "requeue", id) }

func (c *Client) control(ctx context.Context, verb string, id JobID) error {
	a, err := exact(id)
	if err != nil {
		return err
	}
	_, err = c.output(ctx, command{program: "scontrol", args: []string{verb, a}})
	return classify(err, verb+" the job")
}

// Ping tells whether a controller answers.
func (c *Client) Ping(ctx context.Context) error {
	out, err := c.output(ctx, command{program: "scontrol", args: []string{"ping"}})
	if err == nil || out != "" {
		// The exit status says whether all controllers answer; one is enough.
		for line := range strings.SplitSeq(out, "\n") {
			if strings.HasPrefix(line, "Slurmctld") && strings.HasSuffix(strings.TrimSpace(line), " UP") {
				return nil
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: scontrol ping says %q", ErrUnavailable, cut(out))
	}
	return failure.Wrap(err, failure.Unavailable, "Slurm does not answer at the moment. Try again in a few minutes")
}

// Version is what squeue says, such as "22.05.8".
func (c *Client) Version(ctx context.Context) (string, error) {
	out, err := c.output(ctx, command{program: "squeue", args: []string{"--version"}})
	if err != nil {
		return "", classify(err, "tell its version")
	}
	fields := strings.Fields(out)
	if len(fields) != 2 || !strings.HasPrefix(fields[0], "slurm") {
		return "", fmt.Errorf("squeue --version: %w: %q", ErrIncomplete, cut(out))
	}
	return fields[1], nil
}

// Configuration is what slurmctld says about itself: the lines "Name = value" of scontrol show config, of which those
// without a value are left out.
func (c *Client) Configuration(ctx context.Context) (map[string]string, error) {
	out, err := c.output(ctx, command{program: "scontrol", args: []string{"show", "config"}})
	if err != nil {
		return nil, classify(err, "show its configuration")
	}
	return parseConfiguration(out)
}

func parseConfiguration(out string) (map[string]string, error) {
	settings := map[string]string{}
	for line := range strings.SplitSeq(out, "\n") {
		name, value, ok := strings.Cut(line, "=")
		if value = strings.TrimSpace(value); ok && value != "" && value != "(null)" {
			settings[strings.TrimSpace(name)] = value
		}
	}
	if settings["ClusterName"] == "" {
		return nil, fmt.Errorf("scontrol show config: %w", ErrIncomplete)
	}
	return settings, nil
}

// ClusterName is the name of the cluster that the commands talk to.
func (c *Client) ClusterName(ctx context.Context) (string, error) {
	settings, err := c.Configuration(ctx)
	return settings["ClusterName"], err
}
