package devcore

import (
	"encoding/base64"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// handleFiles serves what end users do with files. Core looks at permissions of drives and at what the provider has
// announced, never at the files themselves (contract 10 section 4).
func (c *Core) handleFiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/files/browse", c.endUser(c.serveBrowseFiles))
	mux.HandleFunc("GET /api/files/retrieve", c.endUser(c.serveRetrieveFile))
	mux.HandleFunc("POST /api/files/folder", c.endUser(bulk(c, http.MethodPost, "/folder", c.createFolder)))
	mux.HandleFunc("POST /api/files/move", c.endUser(bulk(c, http.MethodPost, "/move", c.moveFile)))
	mux.HandleFunc("POST /api/files/copy", c.endUser(bulk(c, http.MethodPost, "/copy", c.copyFile)))
	mux.HandleFunc("POST /api/files/trash", c.endUser(bulk(c, http.MethodPost, "/trash", c.trashFile)))
	mux.HandleFunc("POST /api/files/emptyTrash", c.endUser(bulk(c, http.MethodPost, "/emptyTrash", c.trashFile)))
	mux.HandleFunc("DELETE /api/files", c.endUser(bulk(c, http.MethodDelete, "", c.deleteFile)))
	mux.HandleFunc("POST /api/files/upload", c.endUser(sessions[uploadRequest, uploadForward, uploadSession](c, "/upload", c.createUpload)))
	mux.HandleFunc("POST /api/files/download", c.endUser(sessions[fileRequest, fileForward, downloadSession](c, "/download", c.createDownload)))
	mux.HandleFunc("POST /api/files/transfer", c.endUser(c.serveTransfer))
	mux.HandleFunc("GET /api/files", c.serveSearch)
}

// Features of drives, as Core derives them from what the provider announces (contract 12 section 1.2).
const (
	featureReadOnly        = "drive.ops.readOnly"
	featureTrash           = "drive.ops.trash"
	featureStreamingSearch = "drive.ops.streamingSearch"
)

// featuresOf lists the features of a storage product in alphabetical order.
func featuresOf(s providerapi.FSSupport) []string {
	out := []string{}
	for _, f := range []struct {
		key  string
		have bool
	}{
		{"drive.acl", s.Collection.ACLModifiable},
		{"drive.deletion", s.Collection.UsersCanDelete},
		{"drive.management", s.Collection.UsersCanCreate || s.Collection.UsersCanRename},
		{featureReadOnly, s.Files.IsReadOnly},
		{"drive.ops.search", s.Files.SearchSupported},
		{"drive.ops.shares", s.Files.SharesSupported},
		{featureStreamingSearch, s.Files.StreamingSearchSupported},
		{"drive.ops.terminal", s.Files.OpenInTerminal},
		{featureTrash, s.Files.TrashSupported},
		{"drive.stats.recursiveSize", s.Stats.SizeIncludingChildrenInBytes},
		{"drive.stats.size", s.Stats.SizeInBytes},
		{"drive.stats.timestamps", s.Stats.ModifiedAt || s.Stats.CreatedAt || s.Stats.AccessedAt},
		{"drive.stats.unix", s.Stats.UnixPermissions || s.Stats.UnixOwner || s.Stats.UnixGroup},
		{"drive.stats.visualization", s.Stats.Visualization},
	} {
		if f.have {
			out = append(out, f.key)
		}
	}
	return out
}

type resolvedSupport struct {
	Product  providerapi.Product   `json:"product"`
	Support  providerapi.FSSupport `json:"support"`
	Features []string              `json:"features"`
}

// resolveLocked fills in product and features; both are unknown until the provider has declared the product and
// answered a poll.
func (c *Core) resolveLocked(d *providerapi.Drive) {
	ref := d.Specification.Product
	cat := c.categories[ref.Category]
	if cat == nil {
		return
	}
	product, ok := cat.products[ref.ID]
	if !ok {
		return
	}
	d.Status.ResolvedProduct = &product
	if support, ok := c.support.storage[ref.ID]; ok {
		d.Status.ResolvedSupport = resolvedSupport{Product: product, Support: support, Features: featuresOf(support)}
	}
}

// has tells whether a drive has a feature.
func has(d *providerapi.Drive, feature string) bool {
	s, ok := d.Status.ResolvedSupport.(resolvedSupport)
	return ok && slices.Contains(s.Features, feature)
}

// driveOf finds the drive of a path as Core does: by the first component of the cleaned path. The path itself is
// forwarded as the user sent it. A drive that is unknown or somebody else's gives the same error, with the text that
// Core has for it (recording 07 section 16).
func (c *Core) driveOf(p string, who ident.UCloudUser, need providerapi.Permission) (*providerapi.Drive, error) {
	if p == "" {
		return nil, &CallError{StatusCode: http.StatusBadRequest, Why: "No path was given"}
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+p), "/"), "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.drives[ident.DriveID(id)]; d != nil {
		if v := c.userViewLocked(d, who); v != nil && v.May(need) {
			return v, nil
		}
	}
	return nil, &CallError{StatusCode: http.StatusForbidden, Why: "Write permission is required"}
}

// writable is driveOf for calls that change something in the drive.
func (c *Core) writable(p string, who ident.UCloudUser) (*providerapi.Drive, error) {
	d, err := c.driveOf(p, who, providerapi.PermissionEdit)
	if err == nil && has(d, featureReadOnly) {
		err = &CallError{StatusCode: http.StatusForbidden, Why: "This file system is read-only"}
	}
	return d, err
}

// filesPath is the path of a file call of the provider.
func (c *Core) filesPath(operation string) string {
	return "/ucloud/" + c.opt.Provider + "/files" + operation
}

// collect makes the provider's request out of the end user's; nothing is sent when one item may not be.
func collect[In, Out any](w http.ResponseWriter, r *http.Request, who ident.UCloudUser, convert func(In, ident.UCloudUser) (Out, error)) (request providerapi.BulkRequest[Out], ok bool) {
	req, ok := decode[providerapi.BulkRequest[In]](w, r)
	if !ok {
		return request, false
	}
	for _, it := range req.Items {
		out, err := convert(it, who)
		if err != nil {
			fail(w, err)
			return request, false
		}
		request.Items = append(request.Items, out)
	}
	return request, true
}

// bulk is a call whose responses Core does not look at: the end user gets one {} per item.
func bulk[In, Out any](c *Core, method, operation string, convert func(In, ident.UCloudUser) (Out, error)) func(http.ResponseWriter, *http.Request, ident.UCloudUser) {
	return func(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
		request, ok := collect(w, r, who, convert)
		if !ok {
			return
		}
		if err := c.Call(r.Context(), who, method, c.filesPath(operation), request, nil); err != nil {
			fail(w, err)
			return
		}
		respond(w, http.StatusOK, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(request.Items))})
	}
}

// sessions is a call whose responses the end user needs: one per item, or the answer is no good (contract 00 section 3).
func sessions[In, Out, Session any](c *Core, operation string, convert func(In, ident.UCloudUser) (Out, error)) func(http.ResponseWriter, *http.Request, ident.UCloudUser) {
	return func(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
		request, ok := collect(w, r, who, convert)
		if !ok {
			return
		}
		var res providerapi.BulkResponse[Session]
		err := c.Call(r.Context(), who, http.MethodPost, c.filesPath(operation), request, &res)
		if err == nil && len(res.Responses) != len(request.Items) {
			err = &CallError{StatusCode: http.StatusBadGateway, Why: "Bad response from the provider (malformed response)"}
			c.violate("files"+operation, "the number of responses is not the number of items", false)
		}
		if err != nil {
			fail(w, err)
			return
		}
		respond(w, http.StatusOK, res)
	}
}

type fileRequest struct {
	ID string `json:"id"`
}

type fileForward struct {
	ID                 string            `json:"id"`
	ResolvedCollection providerapi.Drive `json:"resolvedCollection"`
}

type folderRequest struct {
	ID             string `json:"id"`
	ConflictPolicy string `json:"conflictPolicy"`
}

type folderForward struct {
	folderRequest
	ResolvedCollection providerapi.Drive `json:"resolvedCollection"`
}

func (c *Core) createFolder(it folderRequest, who ident.UCloudUser) (folderForward, error) {
	d, err := c.writable(it.ID, who)
	if err != nil {
		return folderForward{}, err
	}
	return folderForward{it, *d}, nil
}

type moveRequest struct {
	OldID          string `json:"oldId"`
	NewID          string `json:"newId"`
	ConflictPolicy string `json:"conflictPolicy"`
}

type moveForward struct {
	ResolvedOldCollection providerapi.Drive `json:"resolvedOldCollection"`
	ResolvedNewCollection providerapi.Drive `json:"resolvedNewCollection"`
	moveRequest
}

func (c *Core) moveFile(it moveRequest, who ident.UCloudUser) (moveForward, error) {
	return c.between(it, who, providerapi.PermissionEdit)
}

func (c *Core) copyFile(it moveRequest, who ident.UCloudUser) (moveForward, error) {
	return c.between(it, who, providerapi.PermissionRead)
}

func (c *Core) between(it moveRequest, who ident.UCloudUser, need providerapi.Permission) (moveForward, error) {
	from, err := c.driveOf(it.OldID, who, need)
	if err != nil {
		return moveForward{}, err
	}
	to, err := c.writable(it.NewID, who)
	if err != nil {
		return moveForward{}, err
	}
	if from.Specification.Product.Provider != to.Specification.Product.Provider {
		return moveForward{}, &CallError{StatusCode: http.StatusBadRequest, Why: "Files cannot be moved or copied between providers"}
	}
	return moveForward{*from, *to, it}, nil
}

func (c *Core) trashFile(it fileRequest, who ident.UCloudUser) (fileForward, error) {
	d, err := c.writable(it.ID, who)
	if err != nil {
		return fileForward{}, err
	}
	if !has(d, featureTrash) {
		return fileForward{}, &CallError{StatusCode: http.StatusNotFound, Why: "This drive has no trash"}
	}
	return fileForward{it.ID, *d}, nil
}

// deleteFile makes the description of the file that Core sends instead of the drive (recording 07 section 12).
func (c *Core) deleteFile(it fileRequest, who ident.UCloudUser) (userFile, error) {
	d, err := c.writable(it.ID, who)
	if err != nil {
		return userFile{}, err
	}
	return userFile{
		ID: it.ID, CreatedAt: d.CreatedAt, Owner: d.Owner, Permissions: d.Permissions, Specification: specificationOf(d),
		Status: providerapi.FileStatus{ModifiedAt: providerapi.UnsetMillis, AccessedAt: providerapi.UnsetMillis},
	}, nil
}

type uploadRequest struct {
	ID                 string                   `json:"id"`
	Type               string                   `json:"type"`
	SupportedProtocols providerapi.List[string] `json:"supportedProtocols"`
	ConflictPolicy     string                   `json:"conflictPolicy"`
}

type uploadForward struct {
	uploadRequest
	ResolvedCollection providerapi.Drive `json:"resolvedCollection"`
}

type uploadSession struct {
	Endpoint string `json:"endpoint"`
	Protocol string `json:"protocol"`
	Token    string `json:"token"`
}

func (c *Core) createUpload(it uploadRequest, who ident.UCloudUser) (uploadForward, error) {
	d, err := c.writable(it.ID, who)
	if err != nil {
		return uploadForward{}, err
	}
	return uploadForward{it, *d}, nil
}

type downloadSession struct {
	Endpoint string `json:"endpoint"`
}

func (c *Core) createDownload(it fileRequest, who ident.UCloudUser) (fileForward, error) {
	d, err := c.driveOf(it.ID, who, providerapi.PermissionRead)
	if err != nil {
		return fileForward{}, err
	}
	return fileForward{it.ID, *d}, nil
}

// userFile is a file as Core shows it to end users: owner, permissions and product are those of the drive.
type userFile struct {
	ID            string                        `json:"id"`
	CreatedAt     providerapi.Millis            `json:"createdAt"`
	Owner         providerapi.ResourceOwner     `json:"owner"`
	Permissions   *providerapi.Permissions      `json:"permissions"`
	Specification providerapi.FileSpecification `json:"specification"`
	Status        providerapi.FileStatus        `json:"status"`
}

func specificationOf(d *providerapi.Drive) providerapi.FileSpecification {
	return providerapi.FileSpecification{Collection: d.ID, Product: d.Specification.Product}
}

// show adds what Core knows to what the provider has answered. The simulator keeps no favourites.
func show(d *providerapi.Drive, f providerapi.File) userFile {
	f.Status.Metadata.Metadata = map[string]any{}
	return userFile{
		ID: f.ID, CreatedAt: f.Status.ModifiedAt, Owner: d.Owner, Permissions: d.Permissions, Specification: specificationOf(d), Status: f.Status,
	}
}

func showAll(d *providerapi.Drive, files []providerapi.File) providerapi.List[userFile] {
	out := make(providerapi.List[userFile], 0, len(files))
	for _, f := range files {
		out = append(out, show(d, f))
	}
	return out
}

// fullFlags are the flags as Core sends them: all keys, always.
type fullFlags struct {
	IncludeOthers         bool              `json:"includeOthers"`
	IncludeUpdates        bool              `json:"includeUpdates"`
	IncludeSupport        bool              `json:"includeSupport"`
	IncludeProduct        bool              `json:"includeProduct"`
	FilterLabels          map[string]string `json:"filterLabels"`
	FilterCreatedBy       *string           `json:"filterCreatedBy"`
	FilterCreatedAfter    *uint64           `json:"filterCreatedAfter"`
	FilterCreatedBefore   *uint64           `json:"filterCreatedBefore"`
	FilterProvider        *string           `json:"filterProvider"`
	FilterProductID       *string           `json:"filterProductId"`
	FilterProductCategory *string           `json:"filterProductCategory"`
	HideProductID         *string           `json:"hideProductId"`
	HideProductCategory   *string           `json:"hideProductCategory"`
	HideProvider          *string           `json:"hideProvider"`
	FilterProviderIDs     *string           `json:"filterProviderIds"`
	FilterIDs             *string           `json:"filterIds"`
	SortBy                *string           `json:"sortBy"`
	SortDirection         *string           `json:"sortDirection"`
	providerapi.FileFlags
}

func flagsOf(r *http.Request) fullFlags {
	q := r.URL.Query()
	text := func(name string) *string { return optional(q.Get(name)) }
	boolean := func(name string) *bool {
		if v, err := strconv.ParseBool(q.Get(name)); err == nil {
			return &v
		}
		return nil
	}
	return fullFlags{
		FilterLabels: map[string]string{}, SortBy: text("sortBy"), SortDirection: text("sortDirection"),
		FileFlags: providerapi.FileFlags{
			IncludePermissions: boolean("includePermissions"), IncludeTimestamps: boolean("includeTimestamps"),
			IncludeSizes: boolean("includeSizes"), IncludeUnixInfo: boolean("includeUnixInfo"),
			IncludeMetadata: boolean("includeMetadata"), Path: text("path"), FilterHiddenFiles: boolean("filterHiddenFiles"),
			FilterByFileExtension: text("filterByFileExtension"),
		},
	}
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (c *Core) serveBrowseFiles(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	q := r.URL.Query()
	drive, err := c.driveOf(q.Get("path"), who, providerapi.PermissionRead)
	if err != nil {
		fail(w, err)
		return
	}
	n, _ := strconv.Atoi(q.Get("itemsPerPage"))
	flags := flagsOf(r)
	request := map[string]any{
		"resolvedCollection": drive,
		// The capital letter is Core's (contract 00 section 3).
		"Browse": map[string]any{
			"flags": flags, "itemsPerPage": n, "next": optional(q.Get("next")),
			"sortBy": flags.SortBy, "sortDirection": flags.SortDirection,
		},
	}
	var page providerapi.Page[providerapi.File]
	if err := c.Call(r.Context(), who, http.MethodPost, c.filesPath("/browse"), request, &page); err != nil {
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, providerapi.Page[userFile]{Items: showAll(drive, page.Items), ItemsPerPage: page.ItemsPerPage, Next: page.Next})
}

func (c *Core) serveRetrieveFile(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	id := r.URL.Query().Get("id")
	drive, err := c.driveOf(id, who, providerapi.PermissionRead)
	if err != nil {
		fail(w, err)
		return
	}
	request := map[string]any{"resolvedCollection": drive, "retrieve": map[string]any{"flags": flagsOf(r), "id": id}}
	var file providerapi.File
	if err := c.Call(r.Context(), who, http.MethodPost, c.filesPath("/retrieve"), request, &file); err != nil {
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, show(drive, file))
}

// socketURL is the address of the provider for WebSockets.
func socketURL(base string) string { return "ws" + strings.TrimPrefix(base, "http") }

// userHint names a user where a WebSocket cannot have a header of ours: URL-safe base64 with padding, not escaped.
func userHint(who ident.UCloudUser) string { return base64.URLEncoding.EncodeToString([]byte(who)) }
