package jobs

import (
	"context"
	"time"

	"ucloud-im/internal/providerapi"
)

// Engine is Slurm as the monitor sees it.
type Engine interface {
	// Queue gives all jobs that slurmctld knows, of the partitions that are configured.
	Queue(ctx context.Context) ([]Observation, error)
	// History gives the jobs that accounting knows and that were active since a time.
	History(ctx context.Context, since time.Time) ([]Observation, error)
	// Lookup asks accounting for jobs by their ids.
	Lookup(ctx context.Context, ids []string) ([]Observation, error)
	// Present asks slurmctld for jobs by their ids, whatever partition they are in. Those that it does not have are left out.
	Present(ctx context.Context, ids []string) ([]Observation, error)
	// Cancel ends a job, if it is the user's. A job that has ended, or is not there, is no error.
	Cancel(ctx context.Context, id, user string) error
	SetTimeLimit(ctx context.Context, id string, total time.Duration) error
}

// Observation is what Slurm says about a job, or about some tasks of an array.
type Observation struct {
	ID   string // of the job, the whole array or the leader of a heterogeneous job
	Task string // of an array: one task or several; else empty
	Het  int    // component of a heterogeneous job; 0 is the leader, and every other job

	User                    string // login name, as Slurm knows it
	Account, Partition, QoS string
	Name, Comment           string

	State   providerapi.JobState // empty: Slurm has said something that we do not understand
	Word    string               // Slurm's word for the state
	Message string               // the state in a sentence for the user
	Reason  string               // why it waits, in a sentence; empty: nothing to tell
	Vague   bool                 // it has ended, and accounting will soon know more about it

	Nodes     []string
	NodeCount int
	CPUs      int // in all
	MemoryMB  int64
	GPUs      int

	Submitted, Started, Ended time.Time
	Planned                   time.Time // when Slurm means to start it
	Limit                     time.Duration
}
