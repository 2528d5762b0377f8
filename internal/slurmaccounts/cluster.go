package slurmaccounts

import "context"

// Cluster is what the service asks of Slurm.
type Cluster interface {
	// AccountsOf are the accounts that a user is in.
	AccountsOf(ctx context.Context, user string) ([]string, error)
}
