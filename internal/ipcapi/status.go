package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about the service as a whole (contract 41 section 5.1).
var (
	ServiceVersion  = ipc.Call[Empty, VersionInfo]{Name: "service.version", Access: ipc.AccessAnyone}
	ServiceStatus   = ipc.Call[Empty, StatusReport]{Name: "service.status", Access: ipc.AccessViewer}
	ConfigReload    = ipc.Call[Reload, ReloadReport]{Name: "config.reload", Access: ipc.AccessOperator}
	ConfigRunning   = ipc.Call[Empty, RunningConfig]{Name: "config.running", Access: ipc.AccessViewer}
	InstanceList    = ipc.Stream[Empty, InstancePage]{Name: "instance.list", Access: ipc.AccessViewer}
	InstanceStop    = ipc.Call[InstanceMutation, MutationReport]{Name: "instance.stop", Access: ipc.AccessOperator}
	InstanceRestart = ipc.Call[InstanceMutation, MutationReport]{Name: "instance.restart", Access: ipc.AccessOperator}
	DriveList       = ipc.Stream[Empty, DrivePage]{Name: "drive.list", Access: ipc.AccessViewer}
	GatewayDump     = ipc.Call[GatewayDumpRequest, GatewayState]{Name: "gateway.dump", Access: ipc.AccessViewer}
)

// VersionInfo identifies a running program.
type VersionInfo struct {
	Protocol  int       `json:"protocol"`
	Version   string    `json:"version"`
	Commit    string    `json:"commit,omitempty"`
	BuildTime string    `json:"buildTime,omitempty"`
	Platform  string    `json:"platform"`
	StartedAt time.Time `json:"startedAt"`
}

// Health is how well a part is, from best to worst: "ok", "warning", "error".
type Health string

// The degrees of health.
const (
	HealthOK      Health = "ok"
	HealthWarning Health = "warning"
	HealthError   Health = "error"
)

// Worse is the worse of two degrees. An unknown degree counts as an error.
func (h Health) Worse(o Health) Health {
	if o.rank() > h.rank() {
		return o
	}
	return h
}

func (h Health) rank() int {
	switch h {
	case HealthOK:
		return 0
	case HealthWarning:
		return 1
	}
	return 2
}

// StatusReport is one screen about the service. Health is the worst of the parts.
type StatusReport struct {
	Health      Health       `json:"health"`
	Provider    string       `json:"provider"`
	Version     VersionInfo  `json:"version"`
	Development bool         `json:"development"` // development switches are on (contract 40 CFG-12)
	Maintenance string       `json:"maintenance,omitempty"`
	Parts       []StatusPart `json:"parts"`
}

// StatusPart is one part of the service: "core", "events", "database", "gateway", "instances", "users",
// "deliveries", …
type StatusPart struct {
	Name    string `json:"name"`
	Health  Health `json:"health"`
	Summary string `json:"summary"`
	Facts   []Fact `json:"facts,omitempty"`
}

// Fact is a named value.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Reload asks the server to read its configuration again. With DryRun it only tells what would happen.
type Reload struct {
	DryRun bool `json:"dryRun,omitempty"`
}

// ReloadReport tells what a reload did. With problems of severity "error" nothing was changed.
type ReloadReport struct {
	Applied      []string        `json:"applied"`
	NeedsRestart []string        `json:"needsRestart"`
	Problems     []ConfigProblem `json:"problems"`
}

// ConfigProblem is one finding about a configuration.
type ConfigProblem struct {
	Severity string `json:"severity"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Key      string `json:"key,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// RunningConfig is the configuration in use, redacted, as YAML.
type RunningConfig struct {
	YAML string `json:"yaml"`
	Dir  string `json:"dir"`
}

// InstanceInfo is one running instance.
type InstanceInfo struct {
	UID         ident.UID        `json:"uid"`
	LocalName   string           `json:"localName"`
	User        ident.UCloudUser `json:"ucloudName"`
	State       string           `json:"state"`
	PID         int32            `json:"pid"`
	Port        int              `json:"port"`
	StartedAt   time.Time        `json:"startedAt"`
	IdleSeconds int64            `json:"idleSeconds"`
	MemoryBytes int64            `json:"memoryBytes"`
	Requests    uint64           `json:"requests"`
	Active      int              `json:"active"` // requests under way
	Restarts    int              `json:"restarts"`
	Build       string           `json:"build"`
	LastError   string           `json:"lastError,omitempty"`
}

// InstancePage is a part of a list of instances.
type InstancePage struct {
	Items []InstanceInfo `json:"items"`
}

// InstanceMutation stops or restarts the named instances.
type InstanceMutation struct {
	Users  []ident.UCloudUser `json:"users"`
	Reason string             `json:"reason,omitempty"`
	DryRun bool               `json:"dryRun,omitempty"`
}

// DriveInfo is one drive.
type DriveInfo struct {
	Key       string           `json:"providerGeneratedId"` // chosen by us, unique
	ID        ident.DriveID    `json:"id,omitempty"`
	User      ident.UCloudUser `json:"ucloudName,omitempty"` // exactly one of User and Project is set
	Project   ident.ProjectID  `json:"project,omitempty"`
	Member    ident.UCloudUser `json:"member,omitempty"` // of the project, whose drive it is alone
	Title     string           `json:"title"`
	Category  string           `json:"category"`
	Product   string           `json:"product"`
	Locator   string           `json:"locator"`
	Path      string           `json:"path"`
	ReadOnly  bool             `json:"readOnly"`
	State     string           `json:"state"`
	LastError string           `json:"lastError,omitempty"`
	UpdatedAt time.Time        `json:"updatedAt"`
	// In lists only: what the drive holds; null if it was never measured.
	UsedBytes  *int64     `json:"usedBytes"`
	MeasuredAt *time.Time `json:"measuredAt"`
	Method     string     `json:"method,omitempty"`     // of measuring
	UsageError string     `json:"usageError,omitempty"` // why the last measurement failed or is incomplete
}

// DrivePage is a part of a list of drives.
type DrivePage struct {
	Items []DriveInfo `json:"items"`
}

// GatewayDumpRequest asks for the route table. Tokens has the keys of the routes included, for root only.
type GatewayDumpRequest struct {
	Tokens bool `json:"tokens"`
}

// GatewayState is what the server has told its gateways.
type GatewayState struct {
	Gateways []GatewayInfo `json:"gateways"`
	Routes   []RouteInfo   `json:"routes"`
}

// GatewayInfo is one connected gateway process.
type GatewayInfo struct {
	PID         int32     `json:"pid"`
	Build       string    `json:"build"`
	Listen      []string  `json:"listen"`
	Sandbox     string    `json:"sandbox"` // what of gateway.sandbox it could do
	ConnectedAt time.Time `json:"connectedAt"`
	Sent        uint64    `json:"sent"`         // sequence number of the last update sent
	Applied     uint64    `json:"acknowledged"` // and of the last one it has confirmed
}

// RouteInfo is one route. Key is the hexadecimal key of its hop tokens, empty unless root asked for it.
type RouteInfo struct {
	User       ident.UCloudUser `json:"ucloudName"`
	UID        ident.UID        `json:"uid"`
	Port       int              `json:"port"`
	Route      uint64           `json:"route"`
	Generation uint64           `json:"generation"`
	Key        string           `json:"key,omitempty"`
}
