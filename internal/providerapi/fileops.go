package providerapi

import "ucloud-im/internal/ident"

// MoveFile is one item of POST files/move and of POST files/copy. NewID is the full path of the target, not the folder
// that it is to be in.
type MoveFile struct {
	ResolvedOldCollection Drive          `json:"resolvedOldCollection"`
	ResolvedNewCollection Drive          `json:"resolvedNewCollection"`
	OldID                 string         `json:"oldId"`
	NewID                 string         `json:"newId"`
	ConflictPolicy        ConflictPolicy `json:"conflictPolicy"`
}

// FileInDrive is one item of POST files/trash and of POST files/emptyTrash.
type FileInDrive struct {
	ID                 string `json:"id"`
	ResolvedCollection Drive  `json:"resolvedCollection"`
}

// DeleteFile is one item of DELETE files: a file as Core describes it, with the id of its drive instead of the drive.
type DeleteFile struct {
	ID            string            `json:"id"`
	Permissions   *Permissions      `json:"permissions"`
	Specification FileSpecification `json:"specification"`
}

// FileSpecification names the drive of a file.
type FileSpecification struct {
	Collection ident.DriveID    `json:"collection"`
	Product    ProductReference `json:"product"`
}
