package slurm

import (
	"time"

	"ucloud-im/internal/ident"
)

// Job is a row of squeue or sacct. What a command does not tell, or Slurm does not know yet, is zero.
type Job struct {
	ID      JobID
	Cluster string // sacct only
	// State is the first word of the state, in capital letters; By who cancelled the job ("CANCELLED by 1000").
	State  string
	By     ident.UID
	HasBy  bool
	Reason string // why a job waits; squeue only

	User, Account, Name, Partition, QoS, Comment string
	WorkDir                                      string

	Nodes     string // a list as Slurm writes it, see [ExpandNodes]
	NodeCount int    // of a job that waits: how many it asks for
	CPUs      int

	Submit, Start, End time.Time
	EstimatedStart     time.Time // of a job that waits, where the scheduler has planned it; squeue only
	Elapsed            time.Duration
	Limit              time.Duration
	Unlimited          bool // no time limit; Limit is 0

	TRES      TRES // allocated; sacct only, shared by jobs with the same: not to be changed
	Requested TRES // the same for what was asked for

	ExitCode, Signal int
	Restarts         int // not told by any of the listings of Slurm 22.05, and 0 there
	Priority         uint64
	ArrayJob         uint64 // the array that a task, or several, belong to
	Requeued         bool   // this run of the job ended in going back into the queue
}
