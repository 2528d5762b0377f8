package computeusage

import (
	"context"
	"time"
)

// Run is an allocation as Slurm's accounting tells of it: one row of sacct -X -D that has a start.
type Run struct {
	ID        string // of the job; task and component of arrays and heterogeneous jobs have their own
	Start     time.Time
	End       time.Time // zero: it has not ended, as far as slurmdbd knows
	Seconds   int64     // elapsed, without what it was suspended
	Account   string
	Partition string
	QoS       string

	Billing  int64 // -1: Slurm has computed none
	Nodes    int64
	CPU      int64
	GPU      int64
	MemoryMB int64
}

// key is unique for all time: numbers of jobs begin anew when slurmctld loses its state.
func (r *Run) key() string { return r.ID + "@" + r.Start.UTC().Format(time.RFC3339) }

// Source is what is asked of Slurm. An error means that nothing is known, and nothing is then changed.
type Source interface {
	// Live are the jobs that slurmctld has and that have begun, with the start of their present run. An error tells that
	// slurmctld does not answer.
	Live(ctx context.Context) (map[string]time.Time, error)
	// Runs are the runs that existed at any time since then, of these accounts; of all accounts if there are none.
	Runs(ctx context.Context, since time.Time, accounts []string) ([]Run, error)
	// RunsOf are the runs of these jobs, whenever they were.
	RunsOf(ctx context.Context, ids []string) ([]Run, error)
}
