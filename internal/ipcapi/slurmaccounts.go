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
	// SlurmAccountAdd gives a workspace an account by hand, SlurmAccountRemove forgets which one it has.
	SlurmAccountAdd    = ipc.Call[SlurmAccountAddition, MutationReport]{Name: "slurmaccount.add", Access: ipc.AccessOperator}
	SlurmAccountRemove = ipc.Call[SlurmAccountMutation, MutationReport]{Name: "slurmaccount.remove", Access: ipc.AccessOperator}
	// SlurmAccountSync has members, limits and locks compared with Slurm and set again.
	SlurmAccountSync = ipc.Call[SlurmAccountMutation, MutationReport]{Name: "slurmaccount.sync", Access: ipc.AccessOperator}
	// SlurmAccountEvaluate asks the mapper without storing what it says. It may run a program of the site.
	SlurmAccountEvaluate = ipc.Call[SlurmAccountQuestion, SlurmAccountEvaluation]{Name: "slurmaccount.evaluate", Access: ipc.AccessOperator}
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

// SlurmAccountOwner is a workspace as operators name it. Exactly one member is set.
type SlurmAccountOwner struct {
	User    ident.UCloudUser `json:"ucloudName,omitempty"`
	Project ident.ProjectID  `json:"project,omitempty"`
	Local   string           `json:"local,omitempty"` // login name of the owner, or group of the project
	Any     string           `json:"any,omitempty"`   // whichever of these it is
}

// SlurmAccountAddition gives a workspace an account.
type SlurmAccountAddition struct {
	Owner    SlurmAccountOwner `json:"owner"`
	Category string            `json:"category"`
	Account  string            `json:"account"`
	Reason   string            `json:"reason,omitempty"`
	DryRun   bool              `json:"dryRun,omitempty"`
}

// SlurmAccountQuestion asks which account a workspace would have.
type SlurmAccountQuestion struct {
	Owner    SlurmAccountOwner `json:"owner"`
	Category string            `json:"category"`
}

// SlurmAccountEvaluation is what the mapper says, with what it was given. An error of the mapper is a part of it.
type SlurmAccountEvaluation struct {
	User      ident.UCloudUser  `json:"ucloudName,omitempty"` // exactly one of User and Project is set
	Project   ident.ProjectID   `json:"project,omitempty"`
	Category  string            `json:"category"`
	Account   string            `json:"account"` // empty: none
	Variables map[string]string `json:"variables"`
	Problem   string            `json:"problem,omitempty"`
}
