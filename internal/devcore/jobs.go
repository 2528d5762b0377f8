package devcore

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// fullValue is a value of a parameter as Core writes it: all members, whatever the type (recording 09 section 1).
type fullValue struct {
	Type          string          `json:"type"`
	Path          string          `json:"path"`
	MountPath     string          `json:"mountPath"`
	ReadOnly      bool            `json:"readOnly"`
	Value         json.RawMessage `json:"value"`
	Hostname      string          `json:"hostname"`
	JobID         string          `json:"jobId"`
	ID            string          `json:"id"`
	Specification fullWorkflow    `json:"specification"`
	Modules       []string        `json:"modules"`
	Port          int             `json:"port"`
	TLS           bool            `json:"tls"`
	Server        string          `json:"server"`
	Token         string          `json:"token"`
	TokenType     string          `json:"tokenType"`
}

type fullWorkflow struct {
	ApplicationName string                             `json:"applicationName"`
	Language        string                             `json:"language"`
	Init            *string                            `json:"init"`
	Job             *string                            `json:"job"`
	Readme          *string                            `json:"readme"`
	Inputs          []providerapi.ApplicationParameter `json:"inputs"`
}

// valueTypes says of which type the values of a parameter are (contract 24 section 2).
var valueTypes = map[string]string{
	providerapi.ParameterInputFile: providerapi.ValueFile, providerapi.ParameterInputDirectory: providerapi.ValueFile,
	providerapi.ParameterText: providerapi.ValueText, providerapi.ParameterTextArea: providerapi.ValueText,
	providerapi.ParameterInteger: providerapi.ValueInteger, providerapi.ParameterFloatingPoint: providerapi.ValueFloatingPoint,
	providerapi.ParameterBoolean: providerapi.ValueBoolean, providerapi.ParameterEnumeration: providerapi.ValueText,
	providerapi.ParameterPeer: providerapi.ValuePeer, providerapi.ParameterLicenseServer: providerapi.ValueLicenseServer,
	providerapi.ParameterNetworkIP: providerapi.ValueNetwork, providerapi.ParameterIngress: providerapi.ValueIngress,
	providerapi.ParameterWorkflow: providerapi.ValueWorkflow, providerapi.ParameterModules: providerapi.ValueModules,
	providerapi.ParameterPrivateNetwork: providerapi.ValuePrivateNetwork,
}

// fullSpecification is [providerapi.JobSpecification] in Core's spelling.
type fullSpecification struct {
	Product           providerapi.ProductReference     `json:"product"`
	Labels            map[string]string                `json:"labels"`
	Application       providerapi.ApplicationReference `json:"application"`
	Name              string                           `json:"name,omitempty"`
	Hostname          *string                          `json:"hostname"`
	Replicas          int                              `json:"replicas"`
	AllowDuplicateJob bool                             `json:"allowDuplicateJob"`
	Parameters        map[string]fullValue             `json:"parameters"`
	Resources         providerapi.List[fullValue]      `json:"resources"`
	TimeAllocation    *providerapi.SimpleDuration      `json:"timeAllocation"`
	OpenedFile        string                           `json:"openedFile,omitempty"`
	RestartOnExit     bool                             `json:"restartOnExit,omitempty"`
	SSHEnabled        bool                             `json:"sshEnabled,omitempty"`
}

// fullJob is [providerapi.Job] in Core's spelling.
type fullJob struct {
	ID                  string                                  `json:"id"`
	CreatedAt           providerapi.Millis                      `json:"createdAt"`
	Owner               providerapi.ResourceOwner               `json:"owner"`
	Permissions         *providerapi.Permissions                `json:"permissions"`
	ProviderGeneratedID string                                  `json:"providerGeneratedId,omitempty"`
	Updates             providerapi.List[providerapi.JobUpdate] `json:"updates"`
	Specification       fullSpecification                       `json:"specification"`
	Status              fullStatus                              `json:"status"`
	Output              providerapi.JobOutput                   `json:"output"`
}

type fullStatus struct {
	State               providerapi.JobState `json:"state"`
	JobParametersJSON   json.RawMessage      `json:"jobParametersJson"`
	StartedAt           *providerapi.Millis  `json:"startedAt"`
	ExpiresAt           *providerapi.Millis  `json:"expiresAt"`
	ResolvedApplication json.RawMessage      `json:"resolvedApplication"`
	ResolvedProduct     *providerapi.Product `json:"resolvedProduct"`
	ResolvedSupport     *jobSupport          `json:"resolvedSupport"`
	AllowRestart        bool                 `json:"allowRestart"`
}

type jobSupport struct {
	Product  providerapi.Product    `json:"product"`
	Support  providerapi.JobSupport `json:"support"`
	Features []string               `json:"features"`
}

// jobStore is what Core keeps about compute. [Core.mu] guards it.
type jobStore struct {
	jobs    map[string]*fullJob
	apps    map[providerapi.ApplicationReference]json.RawMessage // as Core sends them
	docs    []providerapi.Application                            // in the order in which they were added
	support map[providerapi.ProductReference]providerapi.JobSupport
	keys    []providerapi.SSHKey
	lastKey int
	faults  JobFaults
	changed chan struct{} // closed and replaced at each change of a job
	creates []string      // ids of all jobs that were ever sent to the provider, also of those that were deleted
}

func newJobStore() jobStore {
	return jobStore{
		jobs: map[string]*fullJob{}, apps: map[providerapi.ApplicationReference]json.RawMessage{},
		support: map[providerapi.ProductReference]providerapi.JobSupport{}, changed: make(chan struct{}),
	}
}

func (s *jobStore) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// JobFaults is what goes wrong between Core and the provider on purpose. The zero value is a Core without faults.
type JobFaults struct {
	// GiveUpAfter is how long Core waits for the answer to a submission; 0 means as long as for other calls.
	GiveUpAfter time.Duration
	// DropAnswer loses the answers to submissions: the provider has worked, Core takes the call for failed.
	DropAnswer bool
	// Update answers calls of jobs/control/update with its status instead of doing anything, unless that is 0.
	Update func(items []providerapi.JobUpdateItem) int
}

// SetJobFaults replaces the faults.
func (c *Core) SetJobFaults(f JobFaults) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs.faults = f
}

// ForgetJob deletes the record of a job, as a Core that lost its database would.
func (c *Core) ForgetJob(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs.jobs, id)
	c.jobs.announce()
}

// Job is a job as Core has it.
func (c *Core) Job(id string) (providerapi.Job, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs.jobs[id]
	if j == nil {
		return providerapi.Job{}, false
	}
	return exported(j), true
}

// Jobs are all jobs, oldest first.
func (c *Core) Jobs() []providerapi.Job {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []providerapi.Job
	for _, j := range c.sortedJobsLocked() {
		out = append(out, exported(j))
	}
	return out
}

// SentJobs are the ids of all jobs that were ever sent to the provider, also of those whose record was deleted because
// the provider had refused or not answered.
func (c *Core) SentJobs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.jobs.creates)
}

// exported converts a job to the provider's type.
func exported(j *fullJob) providerapi.Job {
	var out providerapi.Job
	data, err := json.Marshal(j)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		panic("devcore: a job is no job: " + err.Error()) // it was built from decoded JSON
	}
	return out
}

func (c *Core) sortedJobsLocked() []*fullJob {
	out := slices.Collect(maps.Values(c.jobs.jobs))
	slices.SortFunc(out, func(a, b *fullJob) int { return number(a.ID) - number(b.ID) })
	return out
}

func number(id string) int {
	n, _ := strconv.Atoi(id)
	return n
}

// AddApplication puts an application into the catalogue.
func (c *Core) AddApplication(app providerapi.Application) error {
	raw, err := applicationDocument(app)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := app.Metadata.Reference()
	if c.jobs.apps[ref] == nil {
		c.jobs.docs = append(c.jobs.docs, app)
	}
	c.jobs.apps[ref] = raw
	return nil
}

// applicationDocument writes an application as Core does, with the members that mean nothing to a provider.
func applicationDocument(app providerapi.Application) (json.RawMessage, error) {
	data, err := json.Marshal(app)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	missing := func(at map[string]any, members map[string]any) {
		for k, v := range members {
			if _, there := at[k]; !there {
				at[k] = v
			}
		}
	}
	missing(doc, map[string]any{"favorite": false, "versions": nil})
	missing(doc["metadata"].(map[string]any), map[string]any{"group": map[string]any{
		"metadata":      map[string]any{"id": -1},
		"specification": map[string]any{"title": "", "description": "", "defaultFlavor": "", "categories": nil, "colorReplacement": map[string]any{"light": nil, "dark": nil}, "logoHasText": false},
		"status":        map[string]any{"applications": nil},
	}})
	missing(doc["invocation"].(map[string]any), map[string]any{
		"ucx": nil, "inference": nil, "container": map[string]any{"changeWorkingDirectory": true, "runAsRoot": true, "runAsRealUser": false},
		"allowPublicIp": nil, "jobAuditLogIsEnabled": nil, "modules": nil,
	})
	if tool, ok := doc["invocation"].(map[string]any)["tool"].(map[string]any)["tool"].(map[string]any); ok {
		missing(tool["description"].(map[string]any), map[string]any{"container": ""})
	}
	return json.Marshal(doc)
}

// findApplicationLocked gives an application in both forms.
func (c *Core) findApplicationLocked(ref providerapi.ApplicationReference) (app providerapi.Application, raw json.RawMessage, ok bool) {
	raw, ok = c.jobs.apps[ref]
	for _, app := range c.jobs.docs {
		if app.Metadata.Reference() == ref {
			return app, raw, ok
		}
	}
	return app, nil, false
}

// jobFeatures are the features of a product in Core's order (contract 20 section 2.7).
func jobFeatures(s providerapi.JobSupport) []string {
	out := []string{}
	for _, b := range []struct {
		name string
		has  providerapi.JobBackendSupport
	}{{"docker", s.Docker}, {"native", s.Native}, {"vm", s.VirtualMachine}} {
		for _, f := range []struct {
			name string
			has  bool
		}{
			{"bindLinkToPort", b.has.BindLinkToPort},
			{"enabled", b.has.Enabled},
			{"extension", b.has.TimeExtension},
			{"logs", b.has.Logs},
			{"peers", b.has.Peers},
			{"suspension", b.has.Suspension && b.name == "vm"},
			{"terminal", b.has.Terminal},
			{"vnc", b.has.VNC},
			{"web", b.has.Web},
		} {
			if f.has {
				out = append(out, "jobs."+b.name+"."+f.name)
			}
		}
	}
	return out
}

// backendPrefix is how the features of the backend of an application begin.
func backendPrefix(app providerapi.Application) string {
	backend := ""
	if t := app.Invocation.Tool.Tool; t != nil {
		backend = t.Description.Backend
	}
	switch backend {
	case providerapi.BackendNative:
		return "jobs.native."
	case "DOCKER":
		return "jobs.docker."
	case "VIRTUAL_MACHINE":
		return "jobs.vm."
	}
	return "jobs.none."
}

// machineLocked finds a compute product and what the provider supports for it.
func (c *Core) machineLocked(ref providerapi.ProductReference) (*jobSupport, bool) {
	cat := c.categories[ref.Category]
	if cat == nil || ref.Provider != c.opt.Provider {
		return nil, false
	}
	product, ok := cat.products[ref.ID]
	if !ok || product.ProductType != providerapi.ProductTypeCompute {
		return nil, false
	}
	support := c.jobs.support[ref]
	return &jobSupport{Product: product, Support: support, Features: jobFeatures(support)}, true
}

// learnJobs keeps what the provider has said to support.
func (c *Core) learnJobs(list []providerapi.JobSupport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs.support = map[providerapi.ProductReference]providerapi.JobSupport{}
	for _, s := range list {
		c.jobs.support[s.Product] = s
	}
}

// Machines are the compute products that the provider has declared and supports.
func (c *Core) Machines() []providerapi.Product {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []providerapi.Product
	for ref := range c.jobs.support {
		if m, ok := c.machineLocked(ref); ok {
			out = append(out, m.Product)
		}
	}
	slices.SortFunc(out, func(a, b providerapi.Product) int {
		return cmp.Or(cmp.Compare(a.Category.Name, b.Category.Name), cmp.Compare(a.CPU, b.CPU), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// permissionsLocked are what a user may do with a job; nil means that it does not exist for the user.
func (c *Core) permissionsLocked(j *fullJob, who ident.UCloudUser) providerapi.List[providerapi.Permission] {
	project := j.Owner.Workspace()
	member := project.IsProject() && c.isMemberLocked(project.Project, who)
	switch {
	case j.Owner.CreatedBy == who && (member || !project.IsProject()), member && c.managesLocked(project.Project, who):
		return providerapi.List[providerapi.Permission]{providerapi.PermissionAdmin, providerapi.PermissionRead, providerapi.PermissionEdit}
	case member:
		var out providerapi.List[providerapi.Permission]
		for _, e := range j.Permissions.Others {
			out = append(out, e.Permissions...)
		}
		return out
	}
	return nil
}

// managesLocked tells whether a user is the PI or an administrator of a project, to whom all of its jobs are open.
func (c *Core) managesLocked(id ident.ProjectID, who ident.UCloudUser) bool {
	p := c.projects[id]
	return p != nil && slices.ContainsFunc(p.doc.Status.Members, func(m providerapi.ProjectMember) bool {
		return m.Username == who && (m.Role == "PI" || m.Role == "ADMIN")
	})
}

// userJob gives a job as an end user sees it, with everything that is sent to the provider.
func (c *Core) userJob(id string, who ident.UCloudUser, need providerapi.Permission) (fullJob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs.jobs[id]
	if j != nil {
		v := *j
		v.Permissions = &providerapi.Permissions{Myself: c.permissionsLocked(j, who), Others: []providerapi.ACLEntry{}}
		if slices.Contains(v.Permissions.Myself, need) {
			return v, nil
		}
	}
	return fullJob{}, &CallError{StatusCode: http.StatusForbidden, Why: "Write permission is required"}
}
