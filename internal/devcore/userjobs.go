package devcore

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// handleJobs serves both sides of compute (contract 20; recordings 09 and 10).
func (c *Core) handleJobs(mux *http.ServeMux) {
	// Calls of the provider.
	mux.HandleFunc("POST /api/jobs/control/update", c.control(c.serveUpdateJobs))
	mux.HandleFunc("POST /api/jobs/control/register", c.control(c.serveRegisterJobs))
	mux.HandleFunc("GET /api/jobs/control/retrieve", c.control(c.serveProviderRetrieveJob))
	mux.HandleFunc("GET /api/jobs/control/browse", c.control(c.serveProviderBrowseJobs))
	mux.HandleFunc("POST /api/jobs/control/updateLabels", c.control(c.serveProviderLabels))
	mux.HandleFunc("POST /api/jobs/control/browseSshKeys", c.control(c.serveProviderSSHKeys))
	// Calls of end users.
	mux.HandleFunc("POST /api/jobs", c.endUser(c.serveSubmit))
	mux.HandleFunc("GET /api/jobs", c.serveFollow)
	mux.HandleFunc("GET /api/jobs/browse", c.endUser(c.serveUserJobs))
	mux.HandleFunc("GET /api/jobs/retrieve", c.endUser(c.serveUserJob))
	mux.HandleFunc("POST /api/jobs/terminate", c.endUser(jobCall(c, "/terminate", "", func(j fullJob, _ jobRequest) any { return j })))
	mux.HandleFunc("POST /api/jobs/extend", c.endUser(jobCall(c, "/extend", "extension", func(j fullJob, it jobRequest) any {
		return map[string]any{"job": j, "requestedTime": it.RequestedTime}
	})))
	// Core does not ask whether these two are supported.
	for _, operation := range []string{"/suspend", "/unsuspend"} {
		mux.HandleFunc("POST /api/jobs"+operation, c.endUser(jobCall(c, operation, "", func(j fullJob, _ jobRequest) any {
			return map[string]any{"job": j}
		})))
	}
	mux.HandleFunc("POST /api/jobs/rename", c.endUser(c.serveRenameJobs))
	mux.HandleFunc("POST /api/jobs/updateLabels", c.endUser(c.serveJobLabels))
	mux.HandleFunc("POST /api/jobs/interactiveSession", c.endUser(c.serveInteractive))
	mux.HandleFunc("POST /api/jobs/openTerminalInFolder", c.endUser(c.serveFolderTerminal))
	mux.HandleFunc("POST /api/jobs/requestDynamicParameters", c.endUser(c.serveDynamicParameters))
	mux.HandleFunc("POST /api/ssh", c.endUser(c.serveAddSSHKeys))
	mux.HandleFunc("DELETE /api/ssh", c.endUser(c.serveDeleteSSHKeys))
	// Development only: the catalogue and the machines, which the web application gets in other ways.
	mux.HandleFunc("GET /api/dev/compute", c.development(c.serveCompute))
}

// jobRequest is one item of the end users' calls; which members count depends on the call.
type jobRequest struct {
	ID            string                     `json:"id"`
	JobID         string                     `json:"jobId"`
	RequestedTime providerapi.SimpleDuration `json:"requestedTime"`
	NewTitle      string                     `json:"newTitle"`
	Labels        map[string]string          `json:"labels"`
	Rank          int                        `json:"rank"`
	SessionType   providerapi.SessionType    `json:"sessionType"`
	Target        *string                    `json:"target"`
}

// job is the job that an item is about.
func (it jobRequest) job() string {
	if it.JobID != "" {
		return it.JobID
	}
	return it.ID
}

// collectJobs decodes the request and finds the jobs; nothing is done when one item may not be. It answers errors itself.
func (c *Core) collectJobs(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) (items []jobRequest, jobs []fullJob, ok bool) {
	req, ok := decode[providerapi.BulkRequest[jobRequest]](w, r)
	if !ok {
		return nil, nil, false
	}
	for _, it := range req.Items {
		j, err := c.userJob(it.job(), who, providerapi.PermissionEdit)
		if err != nil {
			fail(w, err)
			return nil, nil, false
		}
		jobs = append(jobs, j)
	}
	return req.Items, jobs, true
}

// supports tells whether the machine of a job has a feature for the backend of its application.
func supports(j fullJob, feature string, prefix string) bool {
	return j.Status.ResolvedSupport != nil && slices.Contains(j.Status.ResolvedSupport.Features, prefix+feature)
}

func (c *Core) backendOf(j fullJob) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	app, _, _ := c.findApplicationLocked(j.Specification.Application)
	return backendPrefix(app)
}

// jobCall passes a call about jobs on; the end user gets one {} per item. feature is what the machine must support.
func jobCall(c *Core, operation, feature string, item func(fullJob, jobRequest) any) func(http.ResponseWriter, *http.Request, ident.UCloudUser) {
	return func(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
		items, jobs, ok := c.collectJobs(w, r, who)
		if !ok {
			return
		}
		var forward providerapi.BulkRequest[any]
		for i, j := range jobs {
			if feature != "" && !supports(j, feature, c.backendOf(j)) {
				fail(w, badJob("This operation is not supported by the provider"))
				return
			}
			forward.Items = append(forward.Items, item(j, items[i]))
		}
		if err := c.Call(r.Context(), who, http.MethodPost, c.jobsPath(operation), forward, nil); err != nil {
			fail(w, err)
			return
		}
		respond(w, http.StatusOK, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(items))})
	}
}

// serveRenameJobs changes Core's own record; the provider never hears of it.
func (c *Core) serveRenameJobs(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	items, _, ok := c.collectJobs(w, r, who)
	if !ok {
		return
	}
	c.changeJobs(items, func(j *fullJob, it jobRequest) { j.Specification.Name = it.NewTitle })
	respond(w, http.StatusOK, providerapi.Empty{})
}

func (c *Core) changeJobs(items []jobRequest, change func(*fullJob, jobRequest)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range items {
		if j := c.jobs.jobs[it.job()]; j != nil {
			change(j, it)
		}
	}
	c.jobs.announce()
}

// serveJobLabels tells the provider the new labels; 404 is agreement.
func (c *Core) serveJobLabels(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	items, jobs, ok := c.collectJobs(w, r, who)
	if !ok {
		return
	}
	for i := range jobs {
		jobs[i].Specification.Labels = items[i].Labels
	}
	err := c.Call(r.Context(), who, http.MethodPost, c.jobsPath("/onUpdatedLabels"), providerapi.BulkRequest[fullJob]{Items: jobs}, nil)
	if e, ok := err.(*CallError); err != nil && (!ok || e.StatusCode != http.StatusNotFound) {
		fail(w, err)
		return
	}
	c.changeJobs(items, func(j *fullJob, it jobRequest) { j.Specification.Labels = it.Labels })
	respond(w, http.StatusOK, providerapi.Empty{})
}

// openedSession is a session as the browser gets it.
type openedSession struct {
	ProviderDomain string                  `json:"providerDomain"`
	ProviderID     string                  `json:"providerId"`
	Session        providerapi.OpenSession `json:"session"`
}

func (c *Core) serveInteractive(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	items, jobs, ok := c.collectJobs(w, r, who)
	if !ok {
		return
	}
	var forward providerapi.BulkRequest[any]
	for i, j := range jobs {
		feature := map[providerapi.SessionType]string{
			providerapi.SessionWeb: "web", providerapi.SessionVNC: "vnc", providerapi.SessionShell: "terminal",
		}[items[i].SessionType]
		if feature == "" || !supports(j, feature, c.backendOf(j)) {
			fail(w, badJob("This operation is not supported by the provider"))
			return
		}
		forward.Items = append(forward.Items, map[string]any{
			"job": j, "rank": items[i].Rank, "sessionType": items[i].SessionType, "target": items[i].Target,
		})
	}
	c.openSessions(w, r, who, "/interactiveSession", forward)
}

func (c *Core) serveFolderTerminal(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[providerapi.OpenTerminalRequest]](w, r)
	if !ok {
		return
	}
	var forward providerapi.BulkRequest[any]
	for _, it := range req.Items {
		if _, err := c.driveOf(it.Folder, who, providerapi.PermissionEdit); err != nil {
			fail(w, err)
			return
		}
		forward.Items = append(forward.Items, it)
	}
	c.openSessions(w, r, who, "/openTerminalInFolder", forward)
}

// openSessions needs exactly one response for each item.
func (c *Core) openSessions(w http.ResponseWriter, r *http.Request, who ident.UCloudUser, operation string, forward providerapi.BulkRequest[any]) {
	var res providerapi.BulkResponse[providerapi.OpenSession]
	err := c.Call(r.Context(), who, http.MethodPost, c.jobsPath(operation), forward, &res)
	if err == nil && len(res.Responses) != len(forward.Items) {
		err = &CallError{StatusCode: http.StatusBadGateway, Why: "Bad response from the provider (malformed response)"}
		c.violate("jobs"+operation, "the number of responses is not the number of items", false)
	}
	if err != nil {
		fail(w, err)
		return
	}
	var out providerapi.BulkResponse[openedSession]
	for _, s := range res.Responses {
		out.Responses = append(out.Responses, openedSession{ProviderDomain: c.opt.ProviderURL, ProviderID: c.opt.Provider, Session: s})
	}
	respond(w, http.StatusOK, out)
}

// viewed leaves out what was not asked for.
func viewed(j fullJob, r *http.Request, browse bool) fullJob {
	q := r.URL.Query()
	on := func(flag string) bool { return q.Get(flag) == "true" }
	if !on("includeUpdates") {
		j.Updates = nil
	}
	if browse && !on("includeApplication") {
		j.Status.ResolvedApplication = nil
	}
	if browse && !on("includeParameters") {
		j.Status.JobParametersJSON = nil
	}
	if !on("includeProduct") && !on("includeSupport") {
		j.Status.ResolvedProduct, j.Status.ResolvedSupport = nil, nil
	}
	return j
}

func (c *Core) serveUserJobs(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	page := providerapi.Page[fullJob]{ItemsPerPage: 250}
	c.mu.Lock()
	all := c.sortedJobsLocked()
	c.mu.Unlock()
	slices.Reverse(all)
	for _, stored := range all {
		if j, err := c.userJob(stored.ID, who, providerapi.PermissionRead); err == nil {
			page.Items = append(page.Items, viewed(j, r, true))
		}
	}
	respond(w, http.StatusOK, page)
}

func (c *Core) serveUserJob(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	j, err := c.userJob(r.URL.Query().Get("id"), who, providerapi.PermissionRead)
	if err != nil {
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, viewed(j, r, false))
}

// keyTypes are the only check that Core makes of a key (contract 23 section 4).
var keyTypes = []string{"ssh-ed25519 ", "ssh-rsa ", "ecdsa-sha2-nistp256 ", "ecdsa-sha2-nistp384 ", "ecdsa-sha2-nistp521 "}

func (c *Core) serveAddSSHKeys(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[providerapi.SSHKeySpecification]](w, r)
	if !ok {
		return
	}
	for _, spec := range req.Items {
		if !slices.ContainsFunc(keyTypes, func(prefix string) bool { return strings.HasPrefix(spec.Key, prefix) }) {
			fail(w, badJob("Invalid or unsupported public key"))
			return
		}
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	c.mu.Lock()
	for _, spec := range req.Items {
		c.jobs.lastKey++
		key := providerapi.SSHKey{ID: itoa(c.jobs.lastKey), Owner: who, CreatedAt: providerapi.MillisOf(time.Now()), Specification: spec}
		c.jobs.keys = append(c.jobs.keys, key)
		res.Responses = append(res.Responses, providerapi.FindByID{ID: key.ID})
	}
	c.mu.Unlock()
	c.sendKeys(r, who)
	respond(w, http.StatusOK, res)
}

func (c *Core) serveDeleteSSHKeys(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[providerapi.FindByID]](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	c.jobs.keys = slices.DeleteFunc(c.jobs.keys, func(k providerapi.SSHKey) bool {
		return k.Owner == who && slices.ContainsFunc(req.Items, func(it providerapi.FindByID) bool { return it.ID == k.ID })
	})
	c.mu.Unlock()
	c.sendKeys(r, who)
	respond(w, http.StatusOK, providerapi.Empty{})
}

// sendKeys tells the provider all keys of a user. A failure is logged only.
func (c *Core) sendKeys(r *http.Request, who ident.UCloudUser) {
	all := providerapi.List[providerapi.SSHKey]{}
	c.mu.Lock()
	for _, k := range c.jobs.keys {
		if k.Owner == who {
			all = append(all, k)
		}
	}
	c.mu.Unlock()
	err := c.Call(r.Context(), who, http.MethodPost, "/ucloud/"+c.opt.Provider+"/ssh/keyUploaded", map[string]any{"username": who, "allKeys": all}, nil)
	if err != nil {
		c.log.Warn("the provider was not told of SSH keys", "error", err)
	}
}

// serveCompute is what the console needs for its form. With an end user's token it names the user's projects.
func (c *Core) serveCompute(w http.ResponseWriter, r *http.Request) {
	type project struct {
		ID    ident.ProjectID `json:"id"`
		Title string          `json:"title"`
	}
	type machine struct {
		Product  providerapi.Product `json:"product"`
		Features []string            `json:"features"`
	}
	machines := providerapi.List[machine]{}
	for _, p := range c.Machines() {
		c.mu.Lock()
		m, ok := c.machineLocked(p.Reference())
		c.mu.Unlock()
		if ok {
			machines = append(machines, machine{p, m.Features})
		}
	}
	projects := providerapi.List[project]{}
	c.mu.Lock()
	who := c.logins[bearer(r)]
	for _, id := range c.projectIDsLocked() {
		if who != "" && c.isMemberLocked(id, who) {
			projects = append(projects, project{id, c.projects[id].doc.Specification.Title})
		}
	}
	apps := providerapi.List[providerapi.Application](slices.Clone(c.jobs.docs))
	c.mu.Unlock()
	respond(w, http.StatusOK, map[string]any{"applications": apps, "machines": machines, "projects": projects})
}
