package slurmaccounts

import "context"

// fakeCluster is a Slurm in memory.
type fakeCluster struct {
	of map[string][]string
}

func (f *fakeCluster) AccountsOf(_ context.Context, user string) ([]string, error) {
	return f.of[user], nil
}
