package devcore

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

func (c *Core) jobsPath(operation string) string {
	return "/ucloud/" + c.opt.Provider + "/jobs" + operation
}

// injectedPrefix marks parameters of the provider, whose names and types Core does not check.
const injectedPrefix = "_injected_"

// sampleRate is the parameter that Core adds to every job.
const sampleRate = "ucMetricSampleRate"

func badJob(format string, args ...any) error {
	return &CallError{StatusCode: http.StatusBadRequest, Why: fmt.Sprintf(format, args...)}
}

// serveSubmit makes one call of the provider for each job (recording 09 section 35). A job that the provider refuses is
// deleted, and the error is the user's.
func (c *Core) serveSubmit(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[fullSpecification]](w, r)
	if !ok {
		return
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	for _, spec := range req.Items {
		id, err := c.submit(r.Context(), spec, who, ident.ProjectID(r.Header.Get("Project")))
		if err != nil {
			fail(w, err)
			return
		}
		res.Responses = append(res.Responses, providerapi.FindByID{ID: id})
	}
	respond(w, http.StatusOK, res)
}

// Submit submits a job for a user; project is empty for the user's own workspace.
func (c *Core) Submit(ctx context.Context, who ident.UCloudUser, project ident.ProjectID, spec providerapi.JobSpecification) (string, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	var full fullSpecification
	if err := json.Unmarshal(data, &full); err != nil {
		return "", err
	}
	return c.submit(ctx, full, who, project)
}

func (c *Core) submit(ctx context.Context, spec fullSpecification, who ident.UCloudUser, project ident.ProjectID) (string, error) {
	j, err := c.newJob(ctx, spec, who, project)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	c.nextID++
	j.ID = strconv.Itoa(c.nextID)
	c.jobs.jobs[j.ID] = j
	c.jobs.creates = append(c.jobs.creates, j.ID)
	forward, faults := *j, c.jobs.faults
	c.mu.Unlock()
	if faults.GiveUpAfter > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, faults.GiveUpAfter)
		defer cancel()
	}
	var answer providerapi.BulkResponse[providerapi.FindByID]
	err = c.Call(ctx, who, http.MethodPost, c.jobsPath(""), providerapi.BulkRequest[fullJob]{Items: []fullJob{forward}}, &answer)
	if err == nil && faults.DropAnswer {
		err = &CallError{StatusCode: http.StatusBadGateway}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.jobs.jobs, j.ID)
		c.jobs.announce()
		return "", err
	}
	if len(answer.Responses) > 0 {
		j.ProviderGeneratedID = answer.Responses[0].ID
	}
	for _, other := range c.jobs.jobs {
		if other != j && j.ProviderGeneratedID != "" && other.ProviderGeneratedID == j.ProviderGeneratedID {
			// Contract 00 section 9.9.
			c.violations = append(c.violations, Violation{At: time.Now(), Call: c.jobsPath(""), Reason: "two jobs with the same provider generated id", Fatal: true})
		}
	}
	c.jobs.announce()
	return j.ID, nil
}

// newJob checks what a user wants as Core does, and makes the job, which is not kept yet.
func (c *Core) newJob(ctx context.Context, spec fullSpecification, who ident.UCloudUser, project ident.ProjectID) (*fullJob, error) {
	c.mu.Lock()
	machine, known := c.machineLocked(spec.Product)
	app, appDoc, appKnown := c.findApplicationLocked(spec.Application)
	member := project == "" || c.isMemberLocked(project, who)
	c.mu.Unlock()
	switch {
	case !member:
		return nil, &CallError{StatusCode: http.StatusForbidden, Why: "You are not a member of this project"}
	case !known:
		return nil, badJob("Bad machine type requested")
	case !appKnown:
		return nil, badJob("Unknown application requested")
	case !slices.Contains(machine.Features, backendPrefix(app)+"enabled"):
		return nil, badJob("The application is not supported by this machine")
	case spec.Replicas < 1:
		return nil, badJob("Bad number of nodes requested")
	}
	j := &fullJob{
		CreatedAt: providerapi.MillisOf(time.Now()), Owner: providerapi.ResourceOwner{CreatedBy: who},
		Permissions: &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{}, Others: []providerapi.ACLEntry{}},
	}
	if project != "" {
		j.Owner.Project = &project
	}
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	if spec.Parameters == nil {
		spec.Parameters = map[string]fullValue{}
	}
	if err := c.checkParameters(ctx, app, appDoc, j.Owner, spec.Parameters); err != nil {
		return nil, err
	}
	for i := range spec.Resources {
		if err := c.checkFile(&spec.Resources[i], who); err != nil {
			return nil, err
		}
	}
	for name, v := range spec.Parameters {
		if err := c.checkFile(&v, who); err != nil {
			return nil, err
		}
		spec.Parameters[name] = v
	}
	j.Status = fullStatus{State: providerapi.JobInQueue, ResolvedApplication: appDoc, ResolvedProduct: &machine.Product, ResolvedSupport: machine}
	j.Status.JobParametersJSON = exportParameters(spec, machine)
	spec.Parameters = maps.Clone(spec.Parameters)
	spec.Parameters[sampleRate] = fullValue{Type: providerapi.ValueText, Value: json.RawMessage(`"0ms"`)}
	j.Specification = spec
	return j, nil
}

// checkFile asks whether the user may see a file, and writes whether it is read-only to the user.
func (c *Core) checkFile(v *fullValue, who ident.UCloudUser) error {
	if v.Type != providerapi.ValueFile {
		return nil
	}
	d, err := c.driveOf(v.Path, who, providerapi.PermissionRead)
	if err != nil {
		return err
	}
	v.ReadOnly = !d.May(providerapi.PermissionEdit) || has(d, featureReadOnly)
	return nil
}

// checkParameters checks names and types (contract 20 section 2.8). The provider is asked for its own parameters only if
// there is a name that the application does not declare (recording 09 section 32).
func (c *Core) checkParameters(ctx context.Context, app providerapi.Application, doc json.RawMessage, owner providerapi.ResourceOwner, values map[string]fullValue) error {
	declared := map[string]providerapi.ApplicationParameter{}
	for _, p := range app.Invocation.Parameters {
		declared[p.Name] = p
	}
	check := func(p providerapi.ApplicationParameter) error {
		v, given := values[p.Name]
		switch {
		case p.Type == providerapi.ParameterReadme:
			return nil
		case !given && !p.Optional && (len(p.DefaultValue) == 0 || string(p.DefaultValue) == "null"):
			return badJob("Missing value for '%s'", p.Name)
		case given && v.Type != valueTypes[p.Type]:
			return badJob("Bad value provided for '%s'", p.Name)
		}
		return nil
	}
	for _, p := range app.Invocation.Parameters {
		if err := check(p); err != nil {
			return err
		}
	}
	var unknown []string
	for name := range values {
		if _, ok := declared[name]; !ok {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	dynamic, err := c.dynamicParameters(ctx, owner, doc)
	if err != nil {
		return err
	}
	for _, p := range dynamic {
		declared[p.Name] = p
		if !strings.HasPrefix(p.Name, injectedPrefix) {
			if err := check(p); err != nil {
				return err
			}
		}
	}
	for _, name := range unknown {
		if _, ok := declared[name]; !ok && !strings.HasPrefix(name, injectedPrefix) {
			return badJob("Unknown parameter supplied: '%s'", name)
		}
	}
	return nil
}

func (c *Core) dynamicParameters(ctx context.Context, owner providerapi.ResourceOwner, app json.RawMessage) ([]providerapi.ApplicationParameter, error) {
	request := map[string]any{"owner": owner, "application": app}
	var res providerapi.DynamicParametersResponse
	err := c.Call(ctx, owner.CreatedBy, http.MethodPost, c.jobsPath("/requestDynamicParameters"), request, &res)
	return res.Parameters, err
}

func (c *Core) serveDynamicParameters(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[struct {
		Application providerapi.ApplicationReference `json:"application"`
	}](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	_, doc, known := c.findApplicationLocked(req.Application)
	c.mu.Unlock()
	if !known {
		errorBody(w, http.StatusNotFound, "Unknown application")
		return
	}
	owner := providerapi.ResourceOwner{CreatedBy: who}
	if p := ident.ProjectID(r.Header.Get("Project")); p != "" {
		owner.Project = &p
	}
	list, err := c.dynamicParameters(r.Context(), owner, doc)
	if err != nil {
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, map[string]any{
		"parametersByProvider": map[string]any{c.opt.Provider: providerapi.List[providerapi.ApplicationParameter](list)},
	})
}

// exportParameters is what the web application needs to run a job again (contract 20 section 6).
func exportParameters(spec fullSpecification, machine *jobSupport) json.RawMessage {
	resources := providerapi.List[fullValue]{}
	for _, r := range spec.Resources {
		if r.Type != providerapi.ValueAPIServer {
			resources = append(resources, r)
		}
	}
	limit := providerapi.SimpleDuration{}
	if spec.TimeAllocation != nil {
		limit = *spec.TimeAllocation
	}
	data, err := json.Marshal(map[string]any{
		"siteVersion": 3,
		"request": map[string]any{
			"application": spec.Application, "product": spec.Product, "name": spec.Name, "replicas": spec.Replicas,
			"parameters": spec.Parameters, "resources": resources, "timeAllocation": limit,
			"resolvedProduct": machine.Product, "resolvedSupport": machine,
			"allowDuplicateJob": spec.AllowDuplicateJob, "sshEnabled": spec.SSHEnabled,
		},
		"resolvedResources": map[string]any{"ingress": nil},
		"machineType":       map[string]any{"cpu": machine.Product.CPU, "memoryInGigs": machine.Product.MemoryInGigs},
	})
	if err != nil {
		panic("devcore: a job's parameters cannot be written: " + err.Error()) // they were decoded from JSON
	}
	return data
}
