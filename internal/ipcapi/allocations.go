package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about allocations (contract 41 section 5.4).
var (
	AllocationList  = ipc.Stream[Empty, AllocationPage]{Name: "allocation.list", Access: ipc.AccessViewer}
	AllocationApply = ipc.Call[AllocationMutation, MutationReport]{Name: "allocation.apply", Access: ipc.AccessOperator}
)

// AllocationInfo is what UCloud has said about an owner's allocation in a category, and what was made of it here.
type AllocationInfo struct {
	User      ident.UCloudUser `json:"ucloudName,omitempty"` // exactly one of User and Project is set
	Project   ident.ProjectID  `json:"project,omitempty"`
	Local     string           `json:"local,omitempty"` // account or group
	Category  string           `json:"category"`
	Unit      string           `json:"unit"` // empty: not a storage product of the configuration
	Quota     int64            `json:"quota"`
	Used      int64            `json:"used"` // the greater of what UCloud has said last and what was reported to it
	Percent   int              `json:"percent"`
	Locked    bool             `json:"locked"`
	Allocator bool             `json:"allocator"` // of a project that only hands resources out
	UpdatedAt time.Time        `json:"updatedAt"`
	Drives    int              `json:"drives"`
	// What the site's script was told last, for the drive that is furthest behind; null if there is none.
	AppliedBytes *int64     `json:"appliedBytes"`
	AppliedAt    *time.Time `json:"appliedAt"`
	Problem      string     `json:"problem,omitempty"` // why a quota is not set
}

// AllocationPage is a part of a list of allocations.
type AllocationPage struct {
	Items []AllocationInfo `json:"items"`
}

// AllocationMutation has quotas set again and drives looked at, whatever was done before.
type AllocationMutation struct {
	Targets []AllocationTarget `json:"targets"`
	Reason  string             `json:"reason,omitempty"`
	DryRun  bool               `json:"dryRun,omitempty"`
}

// AllocationTarget is one owner of a mutation.
type AllocationTarget struct {
	User    ident.UCloudUser `json:"ucloudName,omitempty"`
	Project ident.ProjectID  `json:"project,omitempty"`
}
