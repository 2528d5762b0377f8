package providerapi

import (
	"encoding/json"
	"time"

	"ucloud-im/internal/ident"
)

// Millis is a point in time in milliseconds since the Unix epoch. Core sends [UnsetMillis] where it has no value.
type Millis int64

// UnsetMillis is Go's zero time in milliseconds, which Core sends for timestamps it does not fill in.
const UnsetMillis Millis = -62135596800000

// MillisOf converts a time; the zero time becomes [UnsetMillis].
func MillisOf(t time.Time) Millis { return Millis(t.UnixMilli()) }

// Time converts to UTC.
func (m Millis) Time() time.Time { return time.UnixMilli(int64(m)).UTC() }

// List is a slice that is sent as [] when it is empty.
type List[T any] []T

// MarshalJSON implements [json.Marshaler].
func (l List[T]) MarshalJSON() ([]byte, error) {
	if len(l) == 0 {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}

// Empty is the JSON object {}.
type Empty struct{}

// BulkRequest is a request for several items; the member is absent when there are none.
type BulkRequest[T any] struct {
	Items []T `json:"items,omitempty"`
}

// BulkResponse is the answer to a [BulkRequest], one response per item in order.
type BulkResponse[T any] struct {
	Responses []T `json:"responses,omitempty"`
}

// Page is one page of a listing. Next is opaque, nil means that this is the last page.
type Page[T any] struct {
	Items        List[T] `json:"items"`
	ItemsPerPage int     `json:"itemsPerPage"`
	Next         *string `json:"next"`
}

// FindByID is {"id": …}.
type FindByID struct {
	ID string `json:"id"`
}

// Permission is what somebody may do with a resource.
type Permission string

// The permissions of Core.
const (
	PermissionRead     Permission = "READ"
	PermissionEdit     Permission = "EDIT"
	PermissionAdmin    Permission = "ADMIN"
	PermissionProvider Permission = "PROVIDER"
)

// ACLEntity is who an access entry is for: Type is "project_group" or "user".
type ACLEntity struct {
	Type      string           `json:"type"`
	ProjectID ident.ProjectID  `json:"projectId,omitempty"`
	Group     string           `json:"group,omitempty"`
	Username  ident.UCloudUser `json:"username,omitempty"`
}

// ACLEntry grants permissions to an entity.
type ACLEntry struct {
	Entity      ACLEntity        `json:"entity"`
	Permissions List[Permission] `json:"permissions"`
}

// Permissions of a resource: of the caller, and of others (nil where not asked for).
type Permissions struct {
	Myself List[Permission] `json:"myself"`
	Others []ACLEntry       `json:"others"`
}

// ResourceOwner is the creator and, for resources of a project, the project.
type ResourceOwner struct {
	CreatedBy ident.UCloudUser `json:"createdBy"`
	Project   *ident.ProjectID `json:"project"`
}

// Workspace is the owner as a workspace.
func (o ResourceOwner) Workspace() ident.Owner {
	if o.Project != nil && *o.Project != "" {
		return ident.Owner{Project: *o.Project}
	}
	return ident.Owner{User: o.CreatedBy}
}

// WalletOwner is the owner of a wallet; Type is "user" or "project".
type WalletOwner struct {
	Type      string           `json:"type"`
	Username  ident.UCloudUser `json:"username"`
	ProjectID ident.ProjectID  `json:"projectId"`
}

// WalletOwnerOf converts a workspace.
func WalletOwnerOf(o ident.Owner) WalletOwner {
	if o.IsProject() {
		return WalletOwner{Type: "project", ProjectID: o.Project}
	}
	return WalletOwner{Type: "user", Username: o.User}
}
