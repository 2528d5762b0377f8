package providerapi

import (
	"encoding/json"
	"time"

	"ucloud-im/internal/ident"
)

// JobState is where a job stands at UCloud/Core (contract 20 section 4.4).
type JobState string

// The states. Core knows no way out of the last three.
const (
	JobInQueue   JobState = "IN_QUEUE"
	JobRunning   JobState = "RUNNING"
	JobSuspended JobState = "SUSPENDED"
	JobSuccess   JobState = "SUCCESS"
	JobFailure   JobState = "FAILURE"
	JobExpired   JobState = "EXPIRED"
)

// Final tells whether Core ignores everything that is said about the job from then on.
func (s JobState) Final() bool { return s == JobSuccess || s == JobFailure || s == JobExpired }

// Job is a job as Core sends it (contract 20 section 4.1). What is passed through unchanged is kept raw.
type Job struct {
	ID                  string           `json:"id"`
	CreatedAt           Millis           `json:"createdAt"`
	Owner               ResourceOwner    `json:"owner"`
	Permissions         *Permissions     `json:"permissions"`
	ProviderGeneratedID string           `json:"providerGeneratedId,omitempty"`
	Updates             List[JobUpdate]  `json:"updates"`
	Specification       JobSpecification `json:"specification"`
	Status              JobStatus        `json:"status"`
	Output              JobOutput        `json:"output"`
}

// JobOutput is where a job's files are.
type JobOutput struct {
	OutputFolder *string `json:"outputFolder"`
}

// JobSpecification is what the user has asked for (contract 20 section 4.2).
type JobSpecification struct {
	Product           ProductReference             `json:"product"`
	Labels            map[string]string            `json:"labels"`
	Application       ApplicationReference         `json:"application"`
	Name              string                       `json:"name,omitempty"`
	Hostname          *string                      `json:"hostname"`
	Replicas          int                          `json:"replicas"`
	AllowDuplicateJob bool                         `json:"allowDuplicateJob"`
	Parameters        map[string]AppParameterValue `json:"parameters"`
	Resources         List[AppParameterValue]      `json:"resources"`
	TimeAllocation    *SimpleDuration              `json:"timeAllocation"`
	OpenedFile        string                       `json:"openedFile,omitempty"`
	RestartOnExit     bool                         `json:"restartOnExit,omitempty"`
	SSHEnabled        bool                         `json:"sshEnabled,omitempty"`
}

// JobStatus is filled by Core (contract 20 section 4.5).
type JobStatus struct {
	State               JobState        `json:"state"`
	JobParametersJSON   json.RawMessage `json:"jobParametersJson"`
	StartedAt           *Millis         `json:"startedAt"`
	ExpiresAt           *Millis         `json:"expiresAt"`
	ResolvedApplication *Application    `json:"resolvedApplication"`
	ResolvedProduct     *Product        `json:"resolvedProduct"`
	ResolvedSupport     json.RawMessage `json:"resolvedSupport"`
	AllowRestart        bool            `json:"allowRestart"`
}

// SimpleDuration is a length of time.
type SimpleDuration struct {
	Hours   int `json:"hours"`
	Minutes int `json:"minutes"`
	Seconds int `json:"seconds"`
}

// maxHours keeps a duration well inside what a time.Duration can hold.
const maxHours = 1 << 20

// Duration converts; numbers that no sender means are cut to about a hundred years.
func (d SimpleDuration) Duration() time.Duration {
	bound := func(n int) time.Duration { return time.Duration(max(0, min(n, maxHours))) }
	return bound(d.Hours)*time.Hour + bound(d.Minutes)*time.Minute + bound(d.Seconds)*time.Second
}

// SimpleDurationOf converts whole seconds.
func SimpleDurationOf(d time.Duration) SimpleDuration {
	s := int(max(0, d) / time.Second)
	return SimpleDuration{Hours: s / 3600, Minutes: s / 60 % 60, Seconds: s % 60}
}

// JobUpdate is an entry in the history of a job, and what is sent to add one (contract 20 section 3.2).
type JobUpdate struct {
	State                  *JobState            `json:"state"`
	OutputFolder           *string              `json:"outputFolder"`
	Status                 *string              `json:"status"`
	ExpectedState          *JobState            `json:"expectedState"`
	ExpectedDifferentState *bool                `json:"expectedDifferentState"`
	NewTimeAllocation      *int64               `json:"newTimeAllocation"` // ms, the new total; multiples of 60,000
	AllowRestart           *bool                `json:"allowRestart"`
	ResourceList           *[]AppParameterValue `json:"resourceList"`
	Timestamp              Millis               `json:"timestamp"` // Core's; ignored when sent
}

// JobUpdateItem is one item of POST /api/jobs/control/update.
type JobUpdateItem struct {
	ID     string    `json:"id"`
	Update JobUpdate `json:"update"`
}

// RegisterJob is one item of POST /api/jobs/control/register: a job that was submitted outside UCloud (contract 20 section 3.3).
type RegisterJob struct {
	Spec                JobSpecification  `json:"spec"`
	ProviderGeneratedID string            `json:"providerGeneratedId"`
	CreatedBy           *ident.UCloudUser `json:"createdBy"`
	Project             *ident.ProjectID  `json:"project"`
	ProjectAllRead      bool              `json:"projectAllRead"`
	ProjectAllWrite     bool              `json:"projectAllWrite"`
}

// JobExtension is one item of POST jobs/extend. RequestedTime is added to the time that the job has.
type JobExtension struct {
	Job           Job            `json:"job"`
	RequestedTime SimpleDuration `json:"requestedTime"`
}

// JobItem is one item of POST jobs/suspend and jobs/unsuspend.
type JobItem struct {
	Job Job `json:"job"`
}

// JobResource is the body of POST jobs/attachResource and jobs/detachResource.
type JobResource struct {
	Job      Job             `json:"job"`
	Resource json.RawMessage `json:"resource"`
}

// UpdateJobACL is one item of POST jobs/updateAcl. Access lists are Core's; what changes is of no interest here.
type UpdateJobACL struct {
	Resource Job `json:"resource"`
}

// DynamicParametersRequest is the body of POST jobs/requestDynamicParameters.
type DynamicParametersRequest struct {
	Owner       ResourceOwner `json:"owner"`
	Application Application   `json:"application"`
}

// DynamicParametersResponse is its answer.
type DynamicParametersResponse struct {
	Parameters List[ApplicationParameter] `json:"parameters"`
}

// SessionType is a kind of interactive session.
type SessionType string

// The kinds.
const (
	SessionWeb   SessionType = "WEB"
	SessionVNC   SessionType = "VNC"
	SessionShell SessionType = "SHELL"
)

// InteractiveSessionRequest is one item of POST jobs/interactiveSession (contract 20 section 2.5).
type InteractiveSessionRequest struct {
	Job         Job         `json:"job"`
	Rank        int         `json:"rank"`
	SessionType SessionType `json:"sessionType"`
	Target      *string     `json:"target"`
}

// OpenTerminalRequest is one item of POST jobs/openTerminalInFolder. Folder is a UCloud path.
type OpenTerminalRequest struct {
	Folder string `json:"folder"`
}

// OpenSession is a session that the browser may open; which fields are there depends on Type.
type OpenSession struct {
	Type              string `json:"type"` // "shell", "web" or "vnc"
	JobID             string `json:"jobId"`
	Rank              int    `json:"rank"`
	DomainOverride    string `json:"domainOverride"`
	RedirectClientTo  string `json:"redirectClientTo,omitempty"`
	SessionIdentifier string `json:"sessionIdentifier,omitempty"`
	URL               string `json:"url,omitempty"`
	Password          string `json:"password,omitempty"`
}

// ExistenceQuery is one item of POST /api/providers/resources/checkExistence.
type ExistenceQuery struct {
	Type string `json:"type"` // "job"
	ID   string `json:"id"`
}

// Frame of the WebSocket protocols (contract 21 section 1). Payload is decoded by the call.
type Frame struct {
	Call     string          `json:"call"`
	StreamID string          `json:"streamId"`
	Payload  json.RawMessage `json:"payload"`
	Bearer   string          `json:"bearer"`
	Project  *string         `json:"project"`
}

// Reply is a server's frame. Type is "message", or "response" for the last one, which has a status.
type Reply[T any] struct {
	Type     string `json:"type"`
	StreamID string `json:"streamId"`
	Payload  T      `json:"payload"`
	Status   int    `json:"status,omitempty"`
}

// FollowRequest is the payload of jobs.provider.{P}.follow (contract 21 section 3.2): Type is "init" with a job, or "cancel" with
// the id of a stream.
type FollowRequest struct {
	Type     string `json:"type"`
	Job      *Job   `json:"job,omitempty"`
	StreamID string `json:"streamId,omitempty"`
}

// LogChunk is a piece of the log of one rank. Text is cut anywhere but inside a UTF-8 sequence.
type LogChunk struct {
	StreamID string  `json:"streamId"`
	Rank     int     `json:"rank"`
	Stdout   *string `json:"stdout"`
	Stderr   *string `json:"stderr"`
	Channel  *string `json:"channel"`
}

// ShellRequest is what a terminal sends (contract 21 section 4.2): Type is "initialize", "input" or "resize".
type ShellRequest struct {
	Type              string `json:"type"`
	SessionIdentifier string `json:"sessionIdentifier,omitempty"`
	Data              string `json:"data,omitempty"`
	Cols              int    `json:"cols,omitempty"`
	Rows              int    `json:"rows,omitempty"`
}

// ShellResponse is what it gets: Type is "initialize", "data" or "ack".
type ShellResponse struct {
	Type string `json:"type"`
	Data string `json:"data,omitempty"`
}

// SSHKey is a public key of a user.
type SSHKey struct {
	ID            string              `json:"id"`
	Owner         ident.UCloudUser    `json:"owner"`
	CreatedAt     Millis              `json:"createdAt"`
	Fingerprint   string              `json:"fingerprint"`
	Specification SSHKeySpecification `json:"specification"`
}

// SSHKeySpecification is what its owner gave.
type SSHKeySpecification struct {
	Title string `json:"title"`
	Key   string `json:"key"`
}
