package providerapi

import "ucloud-im/internal/ident"

// Drive is a file collection as Core sends it (contract 12 section 1.1). ResolvedSupport and ResolvedProduct are not
// needed here and are dropped.
type Drive struct {
	ID                  ident.DriveID        `json:"id"`
	CreatedAt           Millis               `json:"createdAt"`
	Owner               ResourceOwner        `json:"owner"`
	Permissions         *Permissions         `json:"permissions"`
	ProviderGeneratedID string               `json:"providerGeneratedId,omitempty"`
	Specification       DriveSpecification   `json:"specification"`
	Updates             List[ResourceUpdate] `json:"updates"`
	Status              DriveStatus          `json:"status"`
}

// DriveSpecification is the part of a drive that its creator chose.
type DriveSpecification struct {
	Title   string            `json:"title"`
	Product ProductReference  `json:"product"`
	Labels  map[string]string `json:"labels"`
}

// DriveStatus is filled by Core.
type DriveStatus struct {
	PreferredDrive  bool     `json:"preferredDrive"`
	ResolvedSupport any      `json:"resolvedSupport"`
	ResolvedProduct *Product `json:"resolvedProduct"`
}

// ResourceUpdate is an entry in the history of a resource.
type ResourceUpdate struct {
	Timestamp Millis  `json:"timestamp"`
	Status    *string `json:"status,omitempty"`
}

// May tells whether the calling user has the permission on the drive. ADMIN implies the others, EDIT does not imply
// READ: Core lists each.
func (d *Drive) May(p Permission) bool {
	if d.Permissions == nil {
		return false
	}
	for _, have := range d.Permissions.Myself {
		if have == p || have == PermissionAdmin {
			return true
		}
	}
	return false
}

// RegisterDrive is one item of files/collections/control/register (contract 12 section 3).
type RegisterDrive struct {
	Spec                DriveSpecification `json:"spec"`
	ProviderGeneratedID string             `json:"providerGeneratedId"`
	CreatedBy           *ident.UCloudUser  `json:"createdBy"`
	Project             *ident.ProjectID   `json:"project"`
	ProjectAllRead      bool               `json:"projectAllRead"`
	ProjectAllWrite     bool               `json:"projectAllWrite"`
}

// RenameDrive is one item of POST files/collections/rename.
type RenameDrive struct {
	ID       ident.DriveID `json:"id"`
	NewTitle string        `json:"newTitle"`
}

// UpdateDriveACL is one item of POST files/collections/updateAcl. Resource is the drive as it was before. What is added
// and deleted is of no interest here: access lists are Core's.
type UpdateDriveACL struct {
	Resource Drive `json:"resource"`
}
