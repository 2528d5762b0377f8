package devcore

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

func itoa(n int) string { return strconv.Itoa(n) }

// serveUpdateJobs adds updates. One id that is unknown fails the whole call before anything is done (contract 20 section 3.2).
func (c *Core) serveUpdateJobs(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[providerapi.JobUpdateItem]](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	fault := c.jobs.faults.Update
	c.mu.Unlock()
	if fault != nil {
		if status := fault(req.Items); status != 0 {
			errorBody(w, status, "Injected fault")
			return
		}
	}
	c.mu.Lock()
	missing := ""
	for _, it := range req.Items {
		if c.jobs.jobs[it.ID] == nil {
			missing = it.ID
			break
		}
	}
	var wrong []string
	if missing == "" {
		for _, it := range req.Items {
			if why := c.applyUpdateLocked(c.jobs.jobs[it.ID], it.Update); why != "" {
				wrong = append(wrong, fmt.Sprintf("job %s: %s", it.ID, why))
			}
		}
		c.jobs.announce()
	}
	c.mu.Unlock()
	for _, why := range wrong {
		c.violate(r.URL.Path, why, false)
	}
	if missing != "" {
		errorBody(w, http.StatusNotFound, "Not found or permission denied ("+missing+")")
		return
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

var jobStates = []providerapi.JobState{
	providerapi.JobInQueue, providerapi.JobRunning, providerapi.JobSuspended, providerapi.JobSuccess, providerapi.JobFailure, providerapi.JobExpired,
}

// applyUpdateLocked applies one update. It says what a provider should not have sent.
func (c *Core) applyUpdateLocked(j *fullJob, u providerapi.JobUpdate) (wrong string) {
	state := j.Status.State
	if u.State != nil && !slices.Contains(jobStates, *u.State) {
		return fmt.Sprintf("the state %q does not exist", *u.State)
	}
	if state.Final() && u.State != nil {
		switch {
		case !u.State.Final():
			return "" // final is final; such an update may be late
		case *u.State != state:
			return fmt.Sprintf("%s after %s, which users were told already", *u.State, state)
		}
	}
	switch {
	case u.ExpectedState != nil && *u.ExpectedState != state:
		return ""
	case u.ExpectedDifferentState != nil && *u.ExpectedDifferentState && u.State != nil && *u.State == state:
		return ""
	}
	now := providerapi.MillisOf(time.Now())
	u.Timestamp = now
	// Views that were handed out share the old slice: never write into its spare room.
	j.Updates = append(slices.Clip(j.Updates), u)
	if u.State != nil && *u.State != state {
		j.Status.State = *u.State
		if *u.State == providerapi.JobRunning {
			j.Status.StartedAt = &now
		}
	}
	if u.OutputFolder != nil {
		j.Output.OutputFolder = u.OutputFolder
	}
	if ms := u.NewTimeAllocation; ms != nil {
		// Core's conversion knows hours and minutes only.
		j.Specification.TimeAllocation = &providerapi.SimpleDuration{Hours: int(*ms / 3600000), Minutes: int(*ms / 60000 % 60)}
		if *ms%60000 != 0 {
			wrong = "a time allocation with seconds, which Core loses"
		}
	}
	if u.ResourceList != nil {
		j.Specification.Resources = nil
		for _, v := range *u.ResourceList {
			j.Specification.Resources = append(j.Specification.Resources, fullValue{
				Type: v.Type, Path: v.Path, MountPath: v.MountPath, ReadOnly: v.ReadOnly, Value: v.Value, Hostname: v.Hostname, JobID: v.JobID,
				ID: v.ID, Port: v.Port, Modules: v.Modules,
			})
		}
	}
	if j.Status.StartedAt != nil && j.Specification.TimeAllocation != nil {
		ends := *j.Status.StartedAt + providerapi.Millis(j.Specification.TimeAllocation.Duration().Milliseconds())
		j.Status.ExpiresAt = &ends
	}
	return wrong
}

// serveRegisterJobs makes jobs for what was submitted outside UCloud. Items before one that is refused stay (contract 20
// section 3.3).
func (c *Core) serveRegisterJobs(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[registerJob]](w, r)
	if !ok {
		return
	}
	for _, it := range req.Items {
		if it.Spec.Product.Provider != c.opt.Provider {
			errorBody(w, http.StatusForbidden, "Forbidden")
			return
		}
	}
	if len(req.Items) > 100 {
		c.violate(r.URL.Path, "more than 100 jobs in a register call", false)
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	for _, it := range req.Items {
		id, taken, fatal := c.registerJob(it)
		if fatal != "" {
			c.die(r, fatal)
		}
		if taken {
			errorBody(w, http.StatusConflict, "Already exists")
			return
		}
		res.Responses = append(res.Responses, providerapi.FindByID{ID: id})
	}
	respond(w, http.StatusOK, res)
}

type registerJob struct {
	Spec                fullSpecification `json:"spec"`
	ProviderGeneratedID string            `json:"providerGeneratedId"`
	CreatedBy           *ident.UCloudUser `json:"createdBy"`
	Project             *ident.ProjectID  `json:"project"`
	ProjectAllRead      bool              `json:"projectAllRead"`
	ProjectAllWrite     bool              `json:"projectAllWrite"`
}

func (c *Core) registerJob(it registerJob) (id string, taken bool, fatal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++ // also when it is refused (recording 09 sections 37 and 38)
	for _, j := range c.jobs.jobs {
		if j.ProviderGeneratedID == it.ProviderGeneratedID && it.ProviderGeneratedID != "" {
			return "", true, ""
		}
	}
	owner := providerapi.ResourceOwner{CreatedBy: ident.SystemUser, Project: it.Project}
	if it.CreatedBy != nil {
		owner.CreatedBy = *it.CreatedBy
	}
	if owner.CreatedBy != ident.SystemUser && c.users[owner.CreatedBy] == nil {
		return "", false, "a job registered for a user that Core does not know"
	}
	if it.Project != nil && c.projects[*it.Project] == nil {
		return "", false, "a job registered for a project that Core does not know"
	}
	if _, ok := c.machineLocked(it.Spec.Product); !ok {
		return "", false, "a job registered in a product that was never declared"
	}
	j := &fullJob{
		ID: itoa(c.nextID), CreatedAt: providerapi.MillisOf(time.Now()), Owner: owner, ProviderGeneratedID: it.ProviderGeneratedID,
		Permissions: &providerapi.Permissions{Others: []providerapi.ACLEntry{}}, Specification: it.Spec,
		Status: fullStatus{State: providerapi.JobInQueue},
	}
	if j.Specification.Labels == nil {
		j.Specification.Labels = map[string]string{}
	}
	if j.Specification.Parameters == nil {
		j.Specification.Parameters = map[string]fullValue{}
	}
	if it.Project != nil && it.ProjectAllRead {
		entry := providerapi.ACLEntry{
			Entity:      providerapi.ACLEntity{Type: "project_group", ProjectID: *it.Project, Group: c.projects[*it.Project].doc.Status.Groups[0].ID},
			Permissions: providerapi.List[providerapi.Permission]{providerapi.PermissionRead},
		}
		if it.ProjectAllWrite {
			entry.Permissions = append(entry.Permissions, providerapi.PermissionEdit)
		}
		j.Permissions.Others = append(j.Permissions.Others, entry)
	}
	if _, raw, ok := c.findApplicationLocked(it.Spec.Application); ok {
		j.Status.ResolvedApplication = raw
	}
	if m, ok := c.machineLocked(it.Spec.Product); ok {
		j.Status.ResolvedProduct, j.Status.ResolvedSupport = &m.Product, m
	}
	c.jobs.jobs[j.ID] = j
	c.jobs.announce()
	return j.ID, false, ""
}

// jobForProvider is a job as the provider sees it.
func jobForProvider(j *fullJob) fullJob {
	v := *j
	v.Permissions = &providerapi.Permissions{
		Myself: providerapi.List[providerapi.Permission]{providerapi.PermissionRead, providerapi.PermissionProvider},
		Others: j.Permissions.Others,
	}
	return v
}

func (c *Core) serveProviderRetrieveJob(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	j := c.jobs.jobs[r.URL.Query().Get("id")]
	var v fullJob
	if j != nil {
		v = jobForProvider(j)
	}
	c.mu.Unlock()
	if j == nil {
		errorBody(w, http.StatusForbidden, "Write permission is required")
		return
	}
	respond(w, http.StatusOK, viewed(v, r, false))
}

func (c *Core) serveProviderBrowseJobs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	listed := func(filter, value string) bool {
		f := q.Get(filter)
		return f == "" || slices.Contains(strings.Split(f, ","), value)
	}
	n := pageSize(q.Get("itemsPerPage"))
	var all []fullJob
	c.mu.Lock()
	for _, j := range c.sortedJobsLocked() {
		spec := j.Specification
		if listed("filterIds", j.ID) && listed("filterProviderIds", j.ProviderGeneratedID) && listed("filterState", string(j.Status.State)) &&
			listed("filterCreatedBy", string(j.Owner.CreatedBy)) && listed("filterApplication", spec.Application.Name) &&
			listed("filterProvider", spec.Product.Provider) && listed("filterProductId", spec.Product.ID) && listed("filterProductCategory", spec.Product.Category) {
			all = append(all, jobForProvider(j))
		}
	}
	c.mu.Unlock()
	slices.Reverse(all)
	from := 0
	if next := q.Get("next"); next != "" {
		from = len(all)
		for i, j := range all {
			if number(j.ID) < number(next) {
				from = i
				break
			}
		}
	}
	page := providerapi.Page[fullJob]{ItemsPerPage: n}
	for _, j := range all[from:min(from+n, len(all))] {
		page.Items = append(page.Items, viewed(j, r, true))
	}
	if from+n < len(all) {
		next := page.Items[n-1].ID
		page.Next = &next
	}
	respond(w, http.StatusOK, page)
}

func (c *Core) serveProviderLabels(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[jobRequest]](w, r)
	if !ok {
		return
	}
	c.changeJobs(req.Items, func(j *fullJob, it jobRequest) { j.Specification.Labels = it.Labels })
	respond(w, http.StatusOK, providerapi.Empty{})
}

// serveProviderSSHKeys lists the keys of who may use a job. In the recording the provider gets them as its own.
func (c *Core) serveProviderSSHKeys(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[struct {
		JobID string `json:"jobId"`
		Owner bool   `json:"owner"`
	}](w, r)
	if !ok {
		return
	}
	page := providerapi.Page[providerapi.SSHKey]{}
	c.mu.Lock()
	if j := c.jobs.jobs[req.JobID]; j != nil {
		for _, k := range c.jobs.keys {
			if k.Owner == j.Owner.CreatedBy || !req.Owner && slices.Contains(c.permissionsLocked(j, k.Owner), providerapi.PermissionEdit) {
				k.Owner = ident.UCloudUser("#P_" + c.opt.Provider)
				page.Items = append(page.Items, k)
			}
		}
	}
	c.mu.Unlock()
	page.ItemsPerPage = len(page.Items)
	respond(w, http.StatusOK, page)
}
