package devcore

import (
	"crypto/subtle"
	"errors"
	"io/fs"
	"net/http"
	"sort"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Handler serves everything: the provider's side, the end user's side, and, under /api/dev, the development calls.
// console holds the files of the web console; nil leaves it out.
func (c *Core) Handler(console fs.FS) http.Handler {
	mux := http.NewServeMux()
	// Calls of the provider.
	mux.HandleFunc("POST /auth/providers/refresh", c.serveRefresh)
	mux.HandleFunc("GET /api/accounting/notifications", c.serveEvents)
	mux.HandleFunc("POST /api/products/v2", c.control(c.serveCreateProducts))
	mux.HandleFunc("GET /api/products/v2/browse", c.serveBrowseProducts)
	mux.HandleFunc("POST /api/providers/integration/control/approveConnection", c.control(c.serveApprove))
	mux.HandleFunc("POST /api/providers/integration/control/clearConnection", c.control(c.serveClear))
	mux.HandleFunc("POST /api/providers/resources/checkExistence", c.control(c.serveCheckExistence))
	mux.HandleFunc("GET /api/projects/v2/retrieveMetadata", c.control(c.serveProjectMetadata))
	mux.HandleFunc("POST /api/files/collections/control/register", c.control(c.serveRegisterDrives))
	mux.HandleFunc("GET /api/files/collections/control/browse", c.control(c.serveBrowseDrives))
	mux.HandleFunc("GET /api/files/collections/control/retrieve", c.control(c.serveRetrieveDrive))
	mux.HandleFunc("POST /api/accounting/v2/reportUsage", c.control(c.serveReportUsage))
	mux.HandleFunc("POST /api/accounting/v2/registerProviderGift", c.control(http.NotFound)) // recording 12 section 13
	// Calls of end users.
	mux.HandleFunc("POST /auth/loginServer", c.serveLogin)
	mux.HandleFunc("GET /api/providers/integration/browse", c.endUser(c.serveConnections))
	mux.HandleFunc("POST /api/providers/integration/connect", c.endUser(c.serveConnect))
	mux.HandleFunc("POST /api/providers/integration/clearConnection", c.endUser(c.serveDisconnect))
	mux.HandleFunc("GET /api/files/collections/browse", c.endUser(c.serveUserDrives))
	c.handleDrives(mux)
	c.handleFiles(mux)
	c.handleTasks(mux)
	c.handleJobs(mux)
	c.handleTakeOver(mux)
	// Development only.
	mux.HandleFunc("GET /api/dev/state", c.development(c.serveState))
	mux.HandleFunc("POST /api/dev/allocate", c.development(c.serveAllocate))
	mux.HandleFunc("GET /api/dev/violations", c.development(func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, c.Violations())
	}))
	if console != nil {
		mux.Handle("GET /", c.secure(http.FileServerFS(console)))
	}
	return mux
}

// secure sets the headers that keep the console from being framed or from running anything but its own files.
// Uploads and the user's public key go from the page straight to the provider's gateway, so its address is the one foreign
// one that it may talk to.
func (c *Core) secure(h http.Handler) http.Handler {
	provider := socketURL(c.opt.ProviderURL)
	if c.opt.Signing {
		provider += " " + c.opt.ProviderURL
	}
	policy := "default-src 'self'; connect-src 'self' " + provider + "; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-cache")
		h.ServeHTTP(w, r)
	})
}

// headerDevKey carries [Options.ConsoleKey] on development calls.
const headerDevKey = "X-Dev-Key"

func (c *Core) keyMatches(key string) bool {
	return subtle.ConstantTimeCompare([]byte(key), []byte(c.opt.ConsoleKey)) == 1
}

// development admits the holder of the console key only: other users of the machine can reach the port too.
func (c *Core) development(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !c.keyMatches(r.Header.Get(headerDevKey)) {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
		h(w, r)
	}
}

func (c *Core) serveLogin(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[struct {
		Username ident.UCloudUser `json:"username"`
		Password string           `json:"password"`
	}](w, r)
	if !ok {
		return
	}
	token := ""
	if c.keyMatches(req.Password) {
		token = c.Login(req.Username)
	}
	if token == "" {
		errorBody(w, http.StatusUnauthorized, "Incorrect username or password")
		return
	}
	respond(w, http.StatusOK, map[string]any{
		"username": req.Username, "refreshToken": "", "accessToken": token, "csrfToken": "",
		"expiresAt": time.Now().Add(24 * time.Hour).UnixMilli(),
	})
}

// Login gives an access token for an end user, empty if there is no such user.
func (c *Core) Login(name ident.UCloudUser) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[name] == nil {
		return ""
	}
	token := "dev-" + randomHex(16)
	c.logins[token] = name
	return token
}

func (c *Core) endUser(h func(w http.ResponseWriter, r *http.Request, who ident.UCloudUser)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		who := c.logins[bearer(r)]
		c.mu.Unlock()
		if who == "" {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
		h(w, r.WithContext(c.WithIntents(r.Context(), r.Header.Values(headerIntent)...)), who)
	}
}

// fail passes an error of the provider on to the end user: status, why and errorCode.
func fail(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*CallError](err); ok {
		respond(w, e.StatusCode, e)
		return
	}
	errorBody(w, http.StatusInternalServerError, "Internal error")
}

// hasAllocationFor tells whether the user or one of the user's projects has an allocation: the provider is listed
// only then (contract 03 section 2.3).
func (c *Core) hasAllocationFor(who ident.UCloudUser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.wallets {
		if key.owner.User == who || c.isMemberLocked(key.owner.Project, who) {
			return true
		}
	}
	return false
}

func (c *Core) isMemberLocked(id ident.ProjectID, who ident.UCloudUser) bool {
	p := c.projects[id]
	if p == nil {
		return false
	}
	for _, m := range p.doc.Status.Members {
		if m.Username == who {
			return true
		}
	}
	return false
}

func (c *Core) serveConnections(w http.ResponseWriter, _ *http.Request, who ident.UCloudUser) {
	type entry struct {
		Provider               string `json:"provider"`
		Connected              bool   `json:"connected"`
		ProviderTitle          string `json:"providerTitle"`
		RequiresMessageSigning bool   `json:"requiresMessageSigning"`
		UnmanagedConnection    bool   `json:"unmanagedConnection"`
	}
	page := providerapi.Page[entry]{ItemsPerPage: 1}
	if c.hasAllocationFor(who) {
		page.Items = append(page.Items, entry{Provider: c.opt.Provider, Connected: c.Connected(who), ProviderTitle: c.opt.Provider, RequiresMessageSigning: c.opt.Signing})
	}
	respond(w, http.StatusOK, page)
}

func (c *Core) serveConnect(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	switch {
	case !c.hasAllocationFor(who):
		errorBody(w, http.StatusForbidden, "You have no allocation at this provider")
		return
	case c.Connected(who) && !c.opt.Signing: // with another browser's key otherwise
		errorBody(w, http.StatusForbidden, "You are already connected to this provider")
		return
	}
	var res providerapi.ConnectResponse
	err := c.Call(r.Context(), "", http.MethodPost, "/ucloud/"+c.opt.Provider+"/integration/connect",
		providerapi.FindByUser{Username: who}, &res)
	if err != nil {
		errorBody(w, http.StatusBadGateway, "Could not contact provider: "+err.Error())
		return
	}
	respond(w, http.StatusOK, res)
}

func (c *Core) serveDisconnect(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	c.mu.Lock()
	was := c.users[who].connected
	c.users[who].connected = false
	c.mu.Unlock()
	err := c.Call(r.Context(), "", http.MethodPost, "/ucloud/"+c.opt.Provider+"/integration/unlinked",
		providerapi.FindByUser{Username: who}, nil)
	if err != nil {
		// Core puts the connection back on any error (contract 03 section 2.4).
		c.mu.Lock()
		c.users[who].connected = was
		c.mu.Unlock()
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

// userView is a drive as an end user sees it; nil if the user has no permission on it.
func (c *Core) userViewLocked(d *providerapi.Drive, who ident.UCloudUser) *providerapi.Drive {
	v := *d
	perms := &providerapi.Permissions{Others: d.Permissions.Others}
	switch owner := d.Owner.Workspace(); {
	case d.Owner.CreatedBy == who && (!owner.IsProject() || c.isMemberLocked(owner.Project, who)):
		perms.Myself = providerapi.List[providerapi.Permission]{providerapi.PermissionAdmin, providerapi.PermissionRead, providerapi.PermissionEdit}
	case owner.IsProject() && d.Owner.CreatedBy == who && c.isMemberLocked(owner.Project, who):
		perms.Myself = providerapi.List[providerapi.Permission]{providerapi.PermissionAdmin, providerapi.PermissionRead, providerapi.PermissionEdit}
	case owner.IsProject() && c.isMemberLocked(owner.Project, who):
		for _, e := range d.Permissions.Others {
			perms.Myself = append(perms.Myself, e.Permissions...)
		}
	}
	if len(perms.Myself) == 0 {
		return nil
	}
	v.Permissions = perms
	// How Core recognises homes and member files (contract 12 section 1.1).
	v.Status.PreferredDrive = d.Owner.CreatedBy == who &&
		(strings.HasPrefix(d.ProviderGeneratedID, "h-") || strings.HasPrefix(d.ProviderGeneratedID, "pm-"))
	c.resolveLocked(&v)
	return &v
}

func (c *Core) serveUserDrives(w http.ResponseWriter, _ *http.Request, who ident.UCloudUser) {
	page := providerapi.Page[providerapi.Drive]{ItemsPerPage: 250}
	c.mu.Lock()
	for _, d := range c.drives {
		if v := c.userViewLocked(d, who); v != nil {
			page.Items = append(page.Items, *v)
		}
	}
	c.mu.Unlock()
	sort.Slice(page.Items, func(i, j int) bool { return page.Items[i].ID < page.Items[j].ID })
	respond(w, http.StatusOK, page)
}

// serveState tells the console what there is.
func (c *Core) serveState(w http.ResponseWriter, _ *http.Request) {
	type userState struct {
		Name      ident.UCloudUser `json:"name"`
		Connected bool             `json:"connected"`
	}
	c.mu.Lock()
	users := make([]userState, 0, len(c.users))
	for _, u := range c.users {
		users = append(users, userState{u.name, u.connected})
	}
	categories := make([]string, 0, len(c.categories))
	for name := range c.categories {
		categories = append(categories, name)
	}
	polls, sessions, violations := c.support.rounds, len(c.sessions), len(c.violations)
	c.mu.Unlock()
	sort.Slice(users, func(i, j int) bool { return users[i].Name < users[j].Name })
	sort.Strings(categories)
	respond(w, http.StatusOK, map[string]any{
		"provider": c.opt.Provider, "providerUrl": c.opt.ProviderURL, "users": users, "categories": categories,
		"polls": polls, "eventSessions": sessions, "violations": violations,
	})
}

func (c *Core) serveAllocate(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[struct {
		Owner    providerapi.WalletOwner `json:"owner"`
		Category string                  `json:"category"`
		Quota    int64                   `json:"quota"`
	}](w, r)
	if !ok {
		return
	}
	if err := c.Allocate(ident.Owner{User: req.Owner.Username, Project: req.Owner.ProjectID}, req.Category, req.Quota); err != nil {
		errorBody(w, http.StatusBadRequest, err.Error())
		return
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}
