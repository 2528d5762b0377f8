package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about Slurm accounts (contract 41 section 5.7).
var (
	SlurmAccountList       = ipc.Stream[Empty, SlurmAccountPage]{Name: "slurmaccount.list", Access: ipc.AccessViewer}
	SlurmAccountReevaluate = ipc.Call[SlurmAccountMutation, MutationReport]{Name: "slurmaccount.reevaluate", Access: ipc.AccessOperator}
	// SlurmAccountAdopt hands accounts over that others have made in Slurm.
	SlurmAccountAdopt = ipc.Call[SlurmAccountMutation, MutationReport]{Name: "slurmaccount.adopt", Access: ipc.AccessOperator}
)

// States of Slurm accounts.
const (
	SlurmAccountOK      = "ok"
	SlurmAccountMissing = "missing" // there is an allocation, and no account
	SlurmAccountDrift   = "drift"   // Slurm is not as it should be yet
	SlurmAccountForeign = "foreign" // somebody else has made it in Slurm, and it is left alone
)

// SlurmAccountInfo is the Slurm account of a workspace in a machine category, with what should be and what is.
type SlurmAccountInfo struct {
	User     ident.UCloudUser `json:"ucloudName,omitempty"` // exactly one of User and Project is set
	Project  ident.ProjectID  `json:"project,omitempty"`
	Local    string           `json:"local,omitempty"` // account or group
	Category string           `json:"category"`
	Account  string           `json:"account"` // empty: none
	State    string           `json:"state"`
	Members  int              `json:"members"` // put there by us
	// The limit and the lock as they should be, and as they were set last; a limit is in units times minutes, null: none.
	WantedMinutes  *int64     `json:"wantedMinutes"`
	WantedLock     bool       `json:"wantedLock"`
	AppliedMinutes *int64     `json:"appliedMinutes"`
	AppliedLock    bool       `json:"appliedLock"`
	AppliedAt      *time.Time `json:"appliedAt"`
	// What was used, in units times minutes, and what Core was told, in units of the product.
	UsedMinutes   int64      `json:"usedMinutes"`
	ReportedUnits int64      `json:"reportedUnits"`
	ReportedAt    *time.Time `json:"reportedAt"` // null: Core has not confirmed it
	Problem       string     `json:"problem,omitempty"`
}

// SlurmAccountPage is a part of a list of accounts.
type SlurmAccountPage struct {
	Items []SlurmAccountInfo `json:"items"`
}

// SlurmAccountMutation changes accounts of workspaces.
type SlurmAccountMutation struct {
	Targets []SlurmAccountTarget `json:"targets"`
	Reason  string               `json:"reason,omitempty"`
	DryRun  bool                 `json:"dryRun,omitempty"`
}

// SlurmAccountTarget is one workspace and category.
type SlurmAccountTarget struct {
	User     ident.UCloudUser `json:"ucloudName,omitempty"`
	Project  ident.ProjectID  `json:"project,omitempty"`
	Category string           `json:"category"`
}
