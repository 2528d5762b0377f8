package scan

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Agent does the server's measurements in an instance, one after the other.
type Agent struct {
	// Server gives the connection to the server, as the instance's agent does.
	Server func() (*ipc.Client, error)
	Log    *slog.Logger // nil discards
}

const (
	// firstLook lets an instance do first what it was started for.
	firstLook = 20 * time.Second
	// lookAgain is the pause after a failure.
	lookAgain = 5 * time.Minute
	// longestLook bounds the pause that the server asks for.
	longestLook = 6 * time.Hour
	callTimeout = 30 * time.Second
	// saveLast is how long the state may take to be saved when the instance ends.
	saveLast = 2 * time.Second
)

var errUnwanted = errors.New("somebody else measures the directory now")

// Run measures what the server wants until ctx ends. It does not keep an instance alive: what was done is saved, and
// the next instance goes on with it.
func (a *Agent) Run(ctx context.Context) {
	log := a.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("part", "scan")
	for pause := firstLook; ; {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause, _ = a.turn(ctx, log)
	}
}

// Once does all measurements that the server has now, and tells how many.
func (a *Agent) Once(ctx context.Context) (n int) {
	for {
		if _, done := a.turn(ctx, slog.New(slog.DiscardHandler)); !done {
			return n
		}
		n++
	}
}

// turn asks for one measurement and does it. It tells when to ask again, and whether there was one and it was done.
func (a *Agent) turn(ctx context.Context, log *slog.Logger) (pause time.Duration, done bool) {
	job, err := call(ctx, a, ipcapi.UsageWork, ipcapi.Empty{})
	switch {
	case err != nil:
		log.Debug("no measurement", "error", err)
		return lookAgain, false
	case job.Drive == "":
		return min(max(time.Duration(job.RetryMs)*time.Millisecond, time.Second), longestLook), false
	}
	if err := a.measure(ctx, job); err != nil {
		if ctx.Err() == nil {
			log.Warn("a directory was not measured", "path", job.Path, "error", err)
		}
		return lookAgain, false
	}
	return time.Second, true
}

// measure does one job and hands its end in.
func (a *Agent) measure(ctx context.Context, job ipcapi.UsageJob) error {
	if totals, err := ofQuota(job, getQuota); err == nil {
		return a.handIn(ctx, job, State{Totals: totals, Done: true}, "", true)
	}
	state, err := Decode(job.State)
	if err != nil {
		state = State{} // of another version, or damaged
	}
	state, err = Run(ctx, job.Path, state, Options{Rate: job.Rate, Save: func(ctx context.Context, s State) error {
		return a.hand(ctx, job, s, "")
	}})
	switch {
	case err == nil:
		return a.hand(ctx, job, state, "")
	case errors.Is(err, errUnwanted):
		return err
	case ctx.Err() != nil:
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveLast)
		defer cancel()
		return errors.Join(err, a.hand(last, job, state, ""))
	}
	return errors.Join(err, a.hand(ctx, job, State{}, err.Error()))
}

// hand tells the server where a measurement is.
func (a *Agent) hand(ctx context.Context, job ipcapi.UsageJob, s State, problem string) error {
	return a.handIn(ctx, job, s, problem, false)
}

func (a *Agent) handIn(ctx context.Context, job ipcapi.UsageJob, s State, problem string, quota bool) error {
	raw, err := s.Encode()
	if err != nil {
		return err
	}
	if len(raw) > ipcapi.MaxScanState {
		return nil // too deep to be saved at this moment; it gets shallower again
	}
	verdict, err := call(ctx, a, ipcapi.UsageScanned, ipcapi.UsageProgress{Drive: job.Drive, State: raw, Error: problem, Quota: quota})
	if err == nil && !verdict.Continue && !s.Done && problem == "" {
		return errUnwanted
	}
	return err
}

func call[Req, Resp any](ctx context.Context, a *Agent, c ipc.Call[Req, Resp], req Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client, err := a.Server()
	if err != nil {
		var zero Resp
		return zero, err
	}
	return ipc.Invoke(ctx, client, c, req)
}
