package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about projects and their local groups (contract 41 section 5.3).
var (
	ProjectList   = ipc.Stream[Empty, ProjectPage]{Name: "project.list", Access: ipc.AccessViewer}
	ProjectShow   = ipc.Call[ProjectRef, ProjectDetails]{Name: "project.show", Access: ipc.AccessViewer}
	ProjectMap    = ipc.Call[ProjectMapping, ProjectDetails]{Name: "project.map", Access: ipc.AccessOperator}
	ProjectRemove = ipc.Call[ProjectMutation, MutationReport]{Name: "project.remove", Access: ipc.AccessOperator}
)

// States of a project as operators see them.
const (
	ProjectMapped   = "mapped"
	ProjectUnmapped = "unmapped"
	ProjectArchived = "archived" // at UCloud; it may have a group nevertheless
	ProjectBroken   = "broken"   // the group is not there any more
)

// ProjectInfo is one project that UCloud has told us about, or a group whose project UCloud has not told us about.
type ProjectInfo struct {
	ID        ident.ProjectID `json:"id"`
	Title     string          `json:"title"`
	State     string          `json:"state"`
	Group     string          `json:"group,omitempty"`
	GID       *ident.GID      `json:"gid"`
	Members   int             `json:"members"`
	Connected int             `json:"connected"` // members with an active connection
	LastEvent *time.Time      `json:"lastEvent"` // UCloud's clock
	Problem   string          `json:"problem,omitempty"`
}

// ProjectPage is a part of a list of projects.
type ProjectPage struct {
	Items []ProjectInfo `json:"items"`
}

// ProjectRef names a project.
type ProjectRef struct {
	ID ident.ProjectID `json:"id"`
}

// ProjectDetails is everything about one project.
type ProjectDetails struct {
	ProjectInfo
	People []ProjectPerson `json:"people"`
	Drives []DriveInfo     `json:"drives"`
}

// ProjectPerson is a member of a project. Only connected members have a local account; InGroup tells whether it belongs
// to the project's group, null if that is not known.
type ProjectPerson struct {
	User      ident.UCloudUser `json:"ucloudName"`
	Role      string           `json:"role"`
	LocalName string           `json:"localName,omitempty"`
	UID       *ident.UID       `json:"uid"`
	InGroup   *bool            `json:"inGroup"`
}

// ProjectMapping gives a project its local group: by name, or by gid if Group is a number.
type ProjectMapping struct {
	ID     ident.ProjectID `json:"id"`
	Group  string          `json:"group"`
	Reason string          `json:"reason,omitempty"`
	DryRun bool            `json:"dryRun,omitempty"`
}

// ProjectMutation takes their groups from projects. Each must have the gid that was shown to the operator. Without Force
// a project that lives at UCloud keeps its group.
type ProjectMutation struct {
	Targets []ProjectTarget `json:"targets"`
	Force   bool            `json:"force,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	DryRun  bool            `json:"dryRun,omitempty"`
}

// ProjectTarget is one project of a mutation.
type ProjectTarget struct {
	ID  ident.ProjectID `json:"id"`
	GID ident.GID       `json:"gid"`
}
