package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/slurm"
)

// maxNodeNames bounds how many nodes of a job are named.
const maxNodeNames = 10_000

// Slurm is the [Engine].
type Slurm struct {
	Client *slurm.Client
	// States gives the table of the configuration as it is now.
	States func() *slurm.States
	// Partitions are those that are asked for; empty: all.
	Partitions func() []string
	// UID gives the number of a login name, so that a user can be told who has cancelled the job. Service is our own.
	UID     func(name string) (ident.UID, bool)
	Service ident.UID
	Log     *slog.Logger
}

// Queue implements [Engine]. Jobs that ended in the last minutes are there too.
func (e Slurm) Queue(ctx context.Context) ([]Observation, error) {
	var all []Observation
	err := e.Client.Queue(ctx, slurm.QueueQuery{Partitions: e.partitions(), States: []string{"all"}}, e.collect(&all))
	return all, err
}

// History implements [Engine].
func (e Slurm) History(ctx context.Context, since time.Time) ([]Observation, error) {
	var all []Observation
	err := e.Client.Accounting(ctx, slurm.AccountingQuery{Since: since, Partitions: e.partitions()}, e.collect(&all))
	return all, err
}

// Lookup implements [Engine].
func (e Slurm) Lookup(ctx context.Context, ids []string) ([]Observation, error) {
	list, err := jobIDs(ids)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var all []Observation
	err = e.Client.Accounting(ctx, slurm.AccountingQuery{IDs: list}, e.collect(&all))
	return all, err
}

// Present implements [Engine].
func (e Slurm) Present(ctx context.Context, ids []string) ([]Observation, error) {
	list, err := jobIDs(ids)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var all []Observation
	err = e.Client.Queue(ctx, slurm.QueueQuery{IDs: list, States: []string{"all"}}, e.collect(&all))
	return all, err
}

// Cancel implements [Engine]. The service account may cancel everything, and the id was told by a user, so Slurm is asked
// first whose job it is (TestForeignJobIsNotCancelled).
func (e Slurm) Cancel(ctx context.Context, id, user string) error {
	list, err := jobIDs([]string{id})
	if err != nil {
		return err
	}
	found, foreign := false, false
	if err := e.Client.Queue(ctx, slurm.QueueQuery{IDs: list}, func(j slurm.Job) error {
		found, foreign = true, foreign || j.User != user
		return nil
	}); err != nil {
		return err
	}
	if foreign {
		e.Log.Warn("a job of Slurm is not cancelled, since it is another user's", "slurm", id, "claimed_by", user)
	}
	if !found || foreign {
		return nil
	}
	return e.Client.Cancel(ctx, list...)
}

// SetTimeLimit implements [Engine].
func (e Slurm) SetTimeLimit(ctx context.Context, id string, total time.Duration) error {
	list, err := jobIDs([]string{id})
	if err != nil {
		return err
	}
	return e.Client.SetTimeLimit(ctx, list[0], total)
}

func (e Slurm) partitions() []string {
	if e.Partitions == nil {
		return nil
	}
	if list := e.Partitions(); len(list) > 0 {
		return list
	}
	return nil
}

func jobIDs(ids []string) ([]slurm.JobID, error) {
	out := make([]slurm.JobID, 0, len(ids))
	for _, s := range ids {
		id, err := slurm.ParseJobID(s)
		if err != nil {
			return nil, fmt.Errorf("id of a job: %w", err)
		}
		out = append(out, id)
	}
	return out, nil
}

// collect makes observations of rows. The table is the same for a whole listing, and lists of nodes repeat.
func (e Slurm) collect(all *[]Observation) func(slurm.Job) error {
	states := e.States()
	nodes := map[string][]string{}
	return func(j slurm.Job) error {
		*all = append(*all, e.observation(states, nodes, &j))
		return nil
	}
}

func (e Slurm) observation(states *slurm.States, known map[string][]string, j *slurm.Job) Observation {
	o := Observation{
		ID: strconv.FormatUint(j.ID.ID, 10), Task: j.ID.Task, Het: int(j.ID.Het), User: j.User, Account: j.Account,
		Partition: j.Partition, QoS: j.QoS, Name: j.Name, Comment: j.Comment, Word: j.State, Reason: slurm.Reason(j.Reason),
		NodeCount: j.NodeCount, CPUs: j.CPUs, MemoryMB: j.TRES["mem"] >> 20, GPUs: int(j.TRES["gres/gpu"]),
		Submitted: j.Submit, Started: j.Start, Ended: j.End, Planned: j.EstimatedStart, Limit: j.Limit,
	}
	who := slurm.Actors{Service: e.Service}
	if j.HasBy && e.UID != nil {
		who.Owner, _ = e.UID(j.User)
	}
	// squeue does not tell these, and for a moment sacct does not either.
	o.Vague = j.State == "FAILED" && j.ExitCode == 0 && j.Signal == 0 || j.State == "CANCELLED" && !j.HasBy
	if m, ok := states.Of(*j, who); ok {
		o.State, o.Message = m.State, m.Sentence
	}
	if j.Nodes == "" {
		return o
	}
	list, ok := known[j.Nodes]
	if !ok {
		var err error
		if list, err = slurm.ExpandNodes(j.Nodes, maxNodeNames); err != nil {
			e.Log.Warn("the nodes of a job cannot be read", "slurm", o.ID, "nodes", j.Nodes, "error", err)
			list = nil
		}
		known[j.Nodes] = list
	}
	o.Nodes = list
	return o
}
