package scripts

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// Requests and replies of the hooks for storage (contract 42 sections B.6 to B.9), in protocol 1; protocol 2 puts the
// same into its envelope.

// Workspace describes the owner of a drive. UID and GID are absent for owners who are not known on this machine.
type Workspace struct {
	Type               string           `json:"type"` // "user" or "project"
	UCloudUsername     ident.UCloudUser `json:"ucloudUsername,omitempty"`
	UCloudProjectID    ident.ProjectID  `json:"ucloudProjectId,omitempty"`
	UID                *ident.UID       `json:"uid,omitempty"`
	GID                *ident.GID       `json:"gid,omitempty"`
	LocalUsername      string           `json:"localUsername,omitempty"`
	LocalGroupName     string           `json:"localGroupName,omitempty"`
	UCloudProjectTitle string           `json:"ucloudProjectTitle,omitempty"`
}

// WorkspaceOf describes an owner as far as its name does.
func WorkspaceOf(o ident.Owner) Workspace {
	if o.IsProject() {
		return Workspace{Type: "project", UCloudProjectID: o.Project}
	}
	return Workspace{Type: "user", UCloudUsername: o.User}
}

// DriveDescription is a drive with what its directory should be like, for whoever makes it.
type DriveDescription struct {
	Title                  string `json:"title"`
	LocatorName            string `json:"locatorName"`
	CategoryName           string `json:"categoryName"`
	FilePath               string `json:"filePath"`
	RecommendedOwnerName   string `json:"recommendedOwnerName"`
	RecommendedGroupName   string `json:"recommendedGroupName"`
	RecommendedPermissions string `json:"recommendedPermissions"` // octal
}

// QuotaUpdate is what Core says about the owner's allocation. The quota is that of all drives in SharedBetween together.
type QuotaUpdate struct {
	CombinedQuotaInBytes int64    `json:"combinedQuotaInBytes"`
	Locked               bool     `json:"locked"`
	SharedBetween        []string `json:"sharedBetween,omitempty"` // paths; only if there are several
}

// QuotaRequest is the request of [HookQuotaUpdated].
type QuotaRequest struct {
	Drive        DriveDescription `json:"drive"`
	QuotaUpdate  QuotaUpdate      `json:"quotaUpdate"`
	Owner        Workspace        `json:"owner"`
	FirstTime    bool             `json:"firstTime"`
	UsageInBytes *int64           `json:"usageInBytes"` // last known
}

// RemovedRequest is the request of [HookDriveRemoved].
type RemovedRequest struct {
	Drive  DriveDescription `json:"drive"`
	Owner  Workspace        `json:"owner"`
	Reason string           `json:"reason"`
}

// UsageRequest is the request of [HookUsage] for one drive.
type UsageRequest struct {
	LocatorName  string    `json:"locatorName"`
	CategoryName string    `json:"categoryName"`
	FilePath     string    `json:"filePath"`
	Owner        Workspace `json:"owner"`
}

// UsageBatchRequest is the request of [HookUsage] for up to [MaxUsageBatch] drives.
type UsageBatchRequest struct {
	Drives []UsageRequest `json:"drives"`
}

// MaxUsageBatch is how many drives one call may have.
const MaxUsageBatch = 500

// UsageReply is the reply of [HookUsage] for one drive.
type UsageReply struct {
	UsageInBytes *int64     `json:"usageInBytes"`
	UsageInFiles *int64     `json:"usageInFiles"`
	MeasuredAt   *time.Time `json:"measuredAt"`
}

// Check implements [Checker].
func (r *UsageReply) Check() error {
	switch {
	case r.UsageInBytes == nil:
		return errors.New("the reply has no usageInBytes")
	case *r.UsageInBytes < 0 || (r.UsageInFiles != nil && *r.UsageInFiles < 0):
		return errors.New("the reply has a negative usage")
	}
	return nil
}

// UsageBatchReply is the reply of [HookUsage] for several drives. A drive that is not in it was not measured.
type UsageBatchReply struct {
	Drives []DriveUsageReply `json:"drives"`
}

// DriveUsageReply is one drive in a [UsageBatchReply].
type DriveUsageReply struct {
	FilePath string `json:"filePath"`
	UsageReply
}

// Check implements [Checker].
func (r *UsageBatchReply) Check() error {
	if r.Drives == nil {
		return errors.New("the reply has no drives")
	}
	for _, d := range r.Drives {
		if err := d.UsageReply.Check(); err != nil {
			return fmt.Errorf("%q: %w", d.FilePath, err)
		}
	}
	return nil
}

// locatorReply is the reply of [HookDriveLocator].
type locatorReply struct {
	Path     json.RawMessage `json:"path"` // text or null; it must be there
	Title    *string         `json:"title"`
	ReadOnly *bool           `json:"readOnly"`
}

// Check implements [Checker].
func (r *locatorReply) Check() error {
	if len(r.Path) == 0 {
		return errors.New("the reply has no path")
	}
	_, err := r.path()
	return err
}

// location is the reply after it was checked.
func (r *locatorReply) location() (l Location) {
	l.Path, _ = r.path() // was checked
	if r.Title != nil {
		l.Title = *r.Title
	}
	l.ReadOnly = r.ReadOnly != nil && *r.ReadOnly
	return l
}

// path is empty for null and for an empty text: the owner has no such drive.
func (r *locatorReply) path() (string, error) {
	var p *string
	if err := json.Unmarshal(r.Path, &p); err != nil {
		return "", fmt.Errorf("path of the reply: %w", err)
	}
	if p == nil {
		return "", nil
	}
	return *p, nil
}
