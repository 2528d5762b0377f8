package providerapi

import "ucloud-im/internal/ident"

// FileType is FILE or DIRECTORY; the protocol knows nothing else.
type FileType string

// The file types.
const (
	TypeFile      FileType = "FILE"
	TypeDirectory FileType = "DIRECTORY"
)

// Icon hints (contract 10 section 3.2).
const (
	IconTrash = "DIRECTORY_TRASH"
	IconJobs  = "DIRECTORY_JOBS"
)

// ConflictPolicy is what to do when the target exists.
type ConflictPolicy string

// The conflict policies (contract 10 section 3.4).
const (
	ConflictRename      ConflictPolicy = "RENAME"
	ConflictReject      ConflictPolicy = "REJECT"
	ConflictReplace     ConflictPolicy = "REPLACE"
	ConflictMergeRename ConflictPolicy = "MERGE_RENAME"
)

// Sort keys and directions of browse.
const (
	SortByPath       = "PATH"
	SortByModifiedAt = "MODIFIED_AT"
	SortBySize       = "SIZE"

	SortAscending  = "ascending"
	SortDescending = "descending"
)

// File is what the provider returns about a file (ProviderFile of the contract).
type File struct {
	ID        string     `json:"id"` // UCloud path: /<drive>/…
	CreatedAt Millis     `json:"createdAt"`
	Status    FileStatus `json:"status"`
}

// FileStatus holds the properties of a file.
type FileStatus struct {
	Type                         FileType     `json:"type"`
	Icon                         string       `json:"icon,omitempty"`
	SizeInBytes                  *int64       `json:"sizeInBytes"`
	SizeIncludingChildrenInBytes *int64       `json:"sizeIncludingChildrenInBytes"`
	FileCount                    *uint64      `json:"fileCount"`
	DirectoryCount               *uint64      `json:"directoryCount"`
	ModifiedAt                   Millis       `json:"modifiedAt"`
	AccessedAt                   Millis       `json:"accessedAt"`
	UnixMode                     int          `json:"unixMode"` // decimal value of the permission bits
	UnixOwner                    ident.UID    `json:"unixOwner"`
	UnixGroup                    ident.GID    `json:"unixGroup"`
	Metadata                     FileMetadata `json:"metadata"`
}

// FileMetadata is filled by Core and always empty here.
type FileMetadata struct {
	Metadata map[string]any `json:"metadata"`
}

// FileFlags tells which properties the client wants and what to list. The generic resource flags that Core sends
// along have no meaning for files and are dropped.
type FileFlags struct {
	IncludePermissions    *bool   `json:"includePermissions"`
	IncludeTimestamps     *bool   `json:"includeTimestamps"`
	IncludeSizes          *bool   `json:"includeSizes"`
	IncludeUnixInfo       *bool   `json:"includeUnixInfo"`
	IncludeMetadata       *bool   `json:"includeMetadata"`
	Path                  *string `json:"path"`
	FilterHiddenFiles     *bool   `json:"filterHiddenFiles"`
	FilterByFileExtension *string `json:"filterByFileExtension"`
}

// FilesBrowse is the request of POST files/browse. The second member is spelled with a capital letter by Core.
type FilesBrowse struct {
	ResolvedCollection Drive        `json:"resolvedCollection"`
	Browse             BrowseParams `json:"Browse"`
}

// BrowseParams is the paging and sorting part of a browse request.
type BrowseParams struct {
	Flags         FileFlags `json:"flags"`
	ItemsPerPage  int       `json:"itemsPerPage,omitempty"`
	Next          *string   `json:"next"`
	SortBy        *string   `json:"sortBy"`
	SortDirection *string   `json:"sortDirection"`
}

// FilesRetrieve is the request of POST files/retrieve.
type FilesRetrieve struct {
	ResolvedCollection Drive          `json:"resolvedCollection"`
	Retrieve           RetrieveParams `json:"retrieve"`
}

// RetrieveParams names the file.
type RetrieveParams struct {
	ID    string    `json:"id"`
	Flags FileFlags `json:"flags"`
}

// CreateFolder is one item of POST files/folder.
type CreateFolder struct {
	ID                 string         `json:"id"`
	ConflictPolicy     ConflictPolicy `json:"conflictPolicy"`
	ResolvedCollection Drive          `json:"resolvedCollection"`
}
