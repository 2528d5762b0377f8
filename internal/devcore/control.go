package devcore

import (
	"encoding/json"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const maxRequest = 4 << 20

// errorBody is Core's error document. Core capitalises the first letter of its own messages.
func errorBody(w http.ResponseWriter, status int, why string) {
	respond(w, status, map[string]any{"statusCode": status, "why": why, "errorCode": "", "detailedCode": 0})
}

func respond(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}

func bearer(r *http.Request) string {
	text, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return text
}

// control wraps a call that only the provider may make. A missing or bad token makes the caller a guest: 403, not 401
// (recording 02). An empty bearer is noted, since a provider must never send one.
func (c *Core) control(h func(w http.ResponseWriter, r *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.calls[r.URL.Path]++
		c.mu.Unlock()
		if bearer(r) == "" {
			c.violate(r.URL.Path, "called with an empty bearer", false)
		}
		if !c.isProvider(bearer(r)) {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
		h(w, r)
	}
}

// decode reads a request of the provider; it answers 400 itself.
func decode[T any](w http.ResponseWriter, r *http.Request) (v T, ok bool) {
	data, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if err != nil {
		errorBody(w, http.StatusBadRequest, "Bad request")
		return v, false
	}
	return v, true
}

// die behaves like a Core whose transaction cannot succeed: it retries for a while and exits without an answer.
func (c *Core) die(r *http.Request, reason string) {
	c.violate(r.URL.Path, reason, true)
	select {
	case <-time.After(c.opt.DeathDelay):
	case <-r.Context().Done():
	}
	panic(http.ErrAbortHandler) // closes the connection without an answer
}

func (c *Core) serveRefresh(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.calls[r.URL.Path]++
	want := c.refresh
	c.mu.Unlock()
	req, ok := decode[providerapi.BulkRequest[providerapi.RefreshToken]](w, r)
	if !ok {
		return
	}
	var res providerapi.BulkResponse[providerapi.AccessToken]
	for _, item := range req.Items {
		if item.RefreshToken != want {
			errorBody(w, http.StatusUnauthorized, "Unauthorized")
			return
		}
		res.Responses = append(res.Responses, providerapi.AccessToken{AccessToken: c.ProviderToken()})
	}
	respond(w, http.StatusOK, res)
}

func (c *Core) serveApprove(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.FindByUser](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	u := c.users[req.Username]
	reason := ""
	switch {
	case u == nil:
		reason = "approveConnection for a user that Core does not know"
	case u.connected:
		reason = "approveConnection for a user who is connected already"
	default:
		u.connected = true
	}
	c.mu.Unlock()
	if reason != "" {
		c.die(r, reason)
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

func (c *Core) serveClear(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.FindByUser](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	if u := c.users[req.Username]; u != nil {
		u.connected = false
	}
	c.mu.Unlock()
	respond(w, http.StatusOK, providerapi.Empty{})
}

func (c *Core) serveCreateProducts(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[providerapi.Product]](w, r)
	if !ok {
		return
	}
	if len(req.Items) == 0 {
		errorBody(w, http.StatusBadRequest, "No products supplied")
		return
	}
	for _, p := range req.Items {
		if p.Category.Provider != c.opt.Provider {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range req.Items {
		cat := c.categories[p.Category.Name]
		if cat == nil {
			cat = &category{doc: p.Category, products: map[string]providerapi.Product{}}
			c.categories[p.Category.Name] = cat
		}
		// On conflict only these two change; unit, frequency and freeToUse stay (contract 30 section 2).
		cat.doc.ProductType, cat.doc.AllowSubAllocations = p.Category.ProductType, p.Category.AllowSubAllocations
		p.Category = cat.doc
		cat.products[p.Name] = p
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

func (c *Core) serveBrowseProducts(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n := pageSize(q.Get("itemsPerPage"))
	var all []providerapi.Product
	c.mu.Lock()
	for _, cat := range c.categories {
		if f := q.Get("filterProvider"); f != "" && f != cat.doc.Provider {
			continue
		}
		for _, p := range cat.products {
			p.Category = cat.doc
			all = append(all, p)
		}
	}
	c.mu.Unlock()
	key := func(p providerapi.Product) string { return p.Category.Provider + "@" + p.Category.Name + "@" + p.Name }
	sort.Slice(all, func(i, j int) bool { return key(all[i]) < key(all[j]) })
	from := sort.Search(len(all), func(i int) bool { return key(all[i]) > q.Get("next") })
	page := providerapi.Page[providerapi.Product]{ItemsPerPage: n, Items: all[from:min(from+n, len(all))]}
	if len(page.Items) == n { // present whenever a page is full, so a last page may be empty
		next := key(page.Items[n-1])
		page.Next = &next
	}
	respond(w, http.StatusOK, page)
}

func pageSize(s string) int {
	n, err := strconv.Atoi(s)
	switch {
	case err != nil || n <= 0:
		return 50
	case n > 1000:
		return 1000
	default:
		return n
	}
}

func (c *Core) serveRegisterDrives(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[providerapi.RegisterDrive]](w, r)
	if !ok {
		return
	}
	for _, item := range req.Items {
		if item.Spec.Product.Provider != c.opt.Provider {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
	}
	if len(req.Items) > 1 {
		c.violate(r.URL.Path, "more than one drive in a register call", false)
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	for _, item := range req.Items {
		id, status, reason := c.registerDrive(item)
		if reason != "" {
			c.die(r, reason)
		}
		if status != http.StatusOK {
			errorBody(w, status, "Already exists")
			return
		}
		res.Responses = append(res.Responses, providerapi.FindByID{ID: string(id)})
	}
	respond(w, http.StatusOK, res)
}

func (c *Core) registerDrive(item providerapi.RegisterDrive) (id ident.DriveID, status int, fatal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.byPGID[item.ProviderGeneratedID]; taken {
		return "", http.StatusConflict, ""
	}
	owner := providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: item.Project}
	if item.CreatedBy != nil {
		owner.CreatedBy = *item.CreatedBy
	}
	if owner.CreatedBy != ident.SystemUser && c.users[owner.CreatedBy] == nil {
		return "", 0, "a drive registered for a user that Core does not know"
	}
	if item.Project != nil && c.projects[*item.Project] == nil {
		return "", 0, "a drive registered for a project that Core does not know"
	}
	cat := c.categories[item.Spec.Product.Category]
	if cat == nil || cat.products[item.Spec.Product.ID].Name == "" {
		return "", 0, "a drive registered in a product that was never declared"
	}
	c.nextID++
	id = ident.DriveID(strconv.Itoa(c.nextID))
	if item.Spec.Labels == nil {
		item.Spec.Labels = map[string]string{}
	}
	d := &providerapi.Drive{
		ID: id, CreatedAt: providerapi.MillisOf(time.Now()), Owner: owner, ProviderGeneratedID: item.ProviderGeneratedID,
		Specification: item.Spec,
		Permissions:   &providerapi.Permissions{Others: []providerapi.ACLEntry{}},
	}
	if item.Project != nil && item.ProjectAllRead {
		entry := providerapi.ACLEntry{
			Entity:      providerapi.ACLEntity{Type: "project_group", ProjectID: *item.Project, Group: c.projects[*item.Project].doc.Status.Groups[0].ID},
			Permissions: providerapi.List[providerapi.Permission]{providerapi.PermissionRead},
		}
		if item.ProjectAllWrite {
			entry.Permissions = append(entry.Permissions, providerapi.PermissionEdit)
		}
		d.Permissions.Others = append(d.Permissions.Others, entry)
	}
	c.drives[id], c.byPGID[item.ProviderGeneratedID] = d, id
	return id, http.StatusOK, ""
}

// providerView is a drive as the provider sees it.
func providerView(d *providerapi.Drive) providerapi.Drive {
	v := *d
	v.Permissions = &providerapi.Permissions{
		Myself: providerapi.List[providerapi.Permission]{providerapi.PermissionRead, providerapi.PermissionProvider},
		Others: d.Permissions.Others,
	}
	return v
}

func (c *Core) serveBrowseDrives(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n := pageSize(q.Get("itemsPerPage"))
	wanted := map[string]bool{}
	for _, id := range strings.Split(q.Get("filterProviderIds"), ",") { // the filter splits at commas, ids with one are lost
		wanted[id] = true
	}
	filtered := q.Get("filterProviderIds") != ""
	var all []providerapi.Drive
	c.mu.Lock()
	for _, d := range c.drives {
		if !filtered || wanted[d.ProviderGeneratedID] {
			all = append(all, providerView(d))
		}
	}
	c.mu.Unlock()
	number := func(id ident.DriveID) int { n, _ := strconv.Atoi(string(id)); return n }
	sort.Slice(all, func(i, j int) bool { return number(all[i].ID) > number(all[j].ID) })
	from := 0
	if next := q.Get("next"); next != "" {
		last, _ := strconv.Atoi(next)
		from = sort.Search(len(all), func(i int) bool { return number(all[i].ID) < last })
	}
	page := providerapi.Page[providerapi.Drive]{ItemsPerPage: n, Items: all[from:min(from+n, len(all))]}
	if from+n < len(all) {
		next := string(page.Items[n-1].ID)
		page.Next = &next
	}
	respond(w, http.StatusOK, page)
}

func (c *Core) serveRetrieveDrive(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	d := c.drives[ident.DriveID(r.URL.Query().Get("id"))]
	var v providerapi.Drive
	if d != nil {
		v = providerView(d)
	}
	c.mu.Unlock()
	if d == nil {
		errorBody(w, http.StatusForbidden, "Write permission is required") // not 404 (recording 06 section 9)
		return
	}
	respond(w, http.StatusOK, v)
}

func (c *Core) serveCheckExistence(w http.ResponseWriter, r *http.Request) {
	type item struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	}
	req, ok := decode[providerapi.BulkRequest[item]](w, r)
	if !ok {
		return
	}
	if len(req.Items) > 1000 {
		errorBody(w, http.StatusBadRequest, "Too many items")
		return
	}
	var res providerapi.BulkResponse[bool]
	c.mu.Lock()
	for _, it := range req.Items {
		res.Responses = append(res.Responses, it.Type == "file_collection" && c.drives[ident.DriveID(it.ID)] != nil || it.Type == "job" && c.jobs.jobs[it.ID] != nil)
	}
	c.mu.Unlock()
	respond(w, http.StatusOK, res)
}

func (c *Core) serveProjectMetadata(w http.ResponseWriter, r *http.Request) {
	id := ident.ProjectID(r.URL.Query().Get("id"))
	c.mu.Lock()
	p := c.projects[id]
	c.mu.Unlock()
	if p == nil {
		errorBody(w, http.StatusNotFound, "Unknown project")
		return
	}
	pi := ident.SystemUser
	if len(p.doc.Status.Members) > 0 {
		pi = p.doc.Status.Members[0].Username
	}
	respond(w, http.StatusOK, map[string]any{"id": id, "title": p.doc.Specification.Title, "piUsername": pi})
}
