package slurmaccounts

import "context"

// Cluster is what the service asks of Slurm, and what it changes there. Changes are only asked for one after the other.
type Cluster interface {
	// AccountsOf are the accounts that a user is in.
	AccountsOf(ctx context.Context, user string) ([]string, error)
	// Read gives the accounts of these names that exist; all there are without names.
	Read(ctx context.Context, names []string) (map[string]State, error)

	Create(ctx context.Context, a NewAccount) error
	Change(ctx context.Context, account string, c Change) error
	// AddUsers makes users members, and makes them known to Slurm if they are not. byDefault: their jobs without an account
	// belong to this one from now on.
	AddUsers(ctx context.Context, account string, users []string, byDefault bool) error
	RemoveUsers(ctx context.Context, account string, users []string) error
}

// None stands for a limit that is not set.
const None = -1

// State is an account as Slurm has it.
type State struct {
	Organization string
	QoS          []string
	MaxJobs      int64 // None: no limit
	MaxSubmit    int64
	Billing      int64 // limit of billing minutes
	Fairshare    int64 // None: that of the parent
	Users        map[string]bool
}

// NewAccount is an account to make.
type NewAccount struct {
	Name         string
	Organization string
	Description  string
	Parent       string // empty: root
	QoS          []string
	DefaultQoS   string
}

// Change is what to change of an account; nil leaves a field as it is.
type Change struct {
	MaxJobs   *int64
	MaxSubmit *int64
	Billing   *int64
	Fairshare *int64
	AddQoS    []string
}

func (c Change) empty() bool {
	return c.MaxJobs == nil && c.MaxSubmit == nil && c.Billing == nil && c.Fairshare == nil && len(c.AddQoS) == 0
}
