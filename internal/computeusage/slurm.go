package computeusage

import (
	"context"
	"strings"
	"time"

	"ucloud-im/internal/slurm"
)

// Slurm is the [Source] that the commands of Slurm speak for.
type Slurm struct{ Client *slurm.Client }

// Live implements [Source].
func (s Slurm) Live(ctx context.Context) (map[string]time.Time, error) {
	if err := s.Client.Ping(ctx); err != nil {
		return nil, err
	}
	live := map[string]time.Time{}
	err := s.Client.Queue(ctx, slurm.QueueQuery{}, func(j slurm.Job) error {
		if !waits(j.State) && !j.Start.IsZero() {
			live[j.ID.String()] = j.Start
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return live, nil
}

// waits tells whether a job in this state has not begun, or is back in the queue.
func waits(state string) bool { return state == "PENDING" || strings.HasPrefix(state, "REQUEUE") }

// Runs implements [Source].
func (s Slurm) Runs(ctx context.Context, since time.Time, accounts []string) ([]Run, error) {
	return s.list(ctx, slurm.AccountingQuery{Since: since, Accounts: accounts, Duplicates: true})
}

// RunsOf implements [Source].
func (s Slurm) RunsOf(ctx context.Context, ids []string) ([]Run, error) {
	parsed := make([]slurm.JobID, 0, len(ids))
	for _, text := range ids {
		id, err := slurm.ParseJobID(text)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, id)
	}
	return s.list(ctx, slurm.AccountingQuery{IDs: parsed, Duplicates: true})
}

func (s Slurm) list(ctx context.Context, q slurm.AccountingQuery) (runs []Run, err error) {
	err = s.Client.Accounting(ctx, q, func(j slurm.Job) error {
		if !j.Start.IsZero() {
			runs = append(runs, runOf(j))
		}
		return nil
	})
	if err != nil {
		return nil, err // the list was not whole
	}
	return runs, nil
}

func runOf(j slurm.Job) Run {
	r := Run{
		ID: j.ID.String(), Start: j.Start, End: j.End, Seconds: int64(j.Elapsed / time.Second),
		Account: j.Account, Partition: j.Partition, QoS: j.QoS,
		Billing: -1, Nodes: int64(j.NodeCount), CPU: j.TRES["cpu"], GPU: j.TRES["gres/gpu"], MemoryMB: j.TRES["mem"] >> 20,
	}
	if n, ok := j.TRES["billing"]; ok {
		r.Billing = n
	}
	if n, ok := j.TRES["node"]; ok {
		r.Nodes = n
	}
	return r
}
