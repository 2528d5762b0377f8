package ipcapi

import (
	"encoding/json"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/providerapi"
)

// Calls of an instance about jobs (contract 20, 22; design D9). The server keeps the jobs; the instance runs sbatch and
// its kin as the user. A job is visible to its creator and to the members of its project; to everybody else it does not
// exist. What a request says about the caller is not believed: the account is the kernel's answer.
//
// A submission has three steps, so that nothing runs twice and nothing runs unknown, whoever dies in between: JobBegin
// stores the job, JobSubmitted or JobRefused stores what sbatch has answered. A job of which neither is heard is looked
// for in Slurm by its comment.
var (
	JobBegin = ipc.Call[JobBeginning, JobGrant]{Name: "job.begin", Access: ipc.AccessMapped}
	// A conflict as the answer to JobSubmitted means that the leave was over, or that the job runs under another id: the
	// instance has to cancel what it has submitted.
	JobSubmitted = ipc.Call[JobSubmission, JobReceipt]{Name: "job.submitted", Access: ipc.AccessMapped}
	JobRefused   = ipc.Call[JobRefusal, Empty]{Name: "job.refused", Access: ipc.AccessMapped}

	// JobFind looks a job up by Core's id.
	JobFind = ipc.Call[JobRef, JobRecord]{Name: "job.find", Access: ipc.AccessMapped}
	// JobWatch sends the record now and after each change, until the job has ended and for as long as the caller listens.
	JobWatch = ipc.Stream[JobRef, JobRecord]{Name: "job.watch", Access: ipc.AccessMapped}
	// JobEnding notes that the user has asked for the end, so that the state that follows is told in the right words.
	JobEnding = ipc.Call[JobRef, Empty]{Name: "job.ending", Access: ipc.AccessMapped}
	// JobChanged says that the instance has changed something in Slurm (suspend, unsuspend): look at this job soon.
	JobChanged = ipc.Call[JobRef, Empty]{Name: "job.changed", Access: ipc.AccessMapped}
	// JobExtend asks for a longer time limit, which only an operator of Slurm may set.
	JobExtend = ipc.Call[JobExtension, Empty]{Name: "job.extend", Access: ipc.AccessMapped}
	// JobLocal reports states of jobs of the local engine, which only the instance can see.
	JobLocal = ipc.Call[JobLocalReport, JobLocalReply]{Name: "job.local", Access: ipc.AccessMapped}
	// JobChoices are the Slurm accounts that the user may choose among in a workspace, if the choice is the user's.
	JobChoices = ipc.Call[JobWorkspace, JobChoiceReply]{Name: "job.choices", Access: ipc.AccessMapped}
)

// Calls of operators about jobs.
var (
	JobList   = ipc.Stream[JobListRequest, JobPage]{Name: "job.list", Access: ipc.AccessViewer}
	JobCancel = ipc.Call[JobMutation, MutationReport]{Name: "job.cancel", Access: ipc.AccessOperator}
	JobResync = ipc.Call[JobMutation, MutationReport]{Name: "job.resync", Access: ipc.AccessOperator}
	// JobExplain says what is known about a job and why it is as it is; Slurm is asked for it.
	JobExplain = ipc.Call[JobQuestion, JobExplanation]{Name: "job.explain", Access: ipc.AccessViewer}
	// JobRegister registers jobs at Core that were submitted outside UCloud, named by Slurm's ids.
	JobRegister = ipc.Call[JobMutation, MutationReport]{Name: "job.register", Access: ipc.AccessOperator}
)

// Engines of jobs.
const (
	EngineSlurm = "slurm"
	EngineLocal = "local"
)

// Bounds of the calls here, in bytes.
const (
	MaxJob        = 256 << 10 // of a job's JSON
	MaxJobMessage = 4 << 10
	MaxJobTargets = 64
	MaxWebTarget  = 256 // of the name of an interface
)

// JobBeginning asks for leave to submit a job. Job is Core's document without secrets (contract 20 section 7 rule 12).
type JobBeginning struct {
	Job     json.RawMessage `json:"job"`               // providerapi.Job, at most MaxJob bytes
	Account string          `json:"account,omitempty"` // the user's choice, where there is one
}

// JobGrant is what a job may have and how it is submitted. With Known the job was submitted before: nothing is to be done
// but to answer ProviderGeneratedID.
type JobGrant struct {
	Known               bool   `json:"known,omitempty"`
	ProviderGeneratedID string `json:"providerGeneratedId,omitempty"`

	Engine     string `json:"engine"`
	Account    string `json:"account"`
	Partition  string `json:"partition"`
	QoS        string `json:"qos,omitempty"`
	Constraint string `json:"constraint,omitempty"`
	Comment    string `json:"comment"` // goes into --comment: the only mark by which the server finds a job again

	Machine   JobMachine `json:"machine"`
	Exclusive bool       `json:"exclusive,omitempty"`
	MaxTimeMs int64      `json:"maxTimeMs,omitempty"`
	MaxNodes  int        `json:"maxNodes,omitempty"`

	// Base is the drive in which the folder of jobs lies; without one it is the user's home directory.
	Base   *FoundDrive `json:"base,omitempty"`
	Folder string      `json:"folder"` // name of the folder of all jobs, such as ucloud-jobs
	Port   int         `json:"port"`   // for a web interface or desktop, 0 for other applications

	// Attempt names this leave. Until is when it ends: sbatch must not be started later, since the server then takes a
	// job that it cannot find for one that was never submitted.
	Attempt int64     `json:"attempt"`
	Until   time.Time `json:"until"`
}

// JobMachine is the slice (contract 22 section 2).
type JobMachine struct {
	Name        string `json:"name"`
	Category    string `json:"category"`
	CPU         int    `json:"cpu"`
	CPUModel    string `json:"cpuModel,omitempty"`
	MemoryGB    int    `json:"memoryGb"`
	MemoryModel string `json:"memoryModel,omitempty"`
	GPU         int    `json:"gpu,omitempty"`
	GPUModel    string `json:"gpuModel,omitempty"`
	GPUType     string `json:"gpuType,omitempty"`
}

// JobSubmission tells that a job runs or waits under an id of the engine.
type JobSubmission struct {
	Job          string      `json:"job"`
	Attempt      int64       `json:"attempt"`
	EngineID     string      `json:"engineId"` // Slurm's job id, or the local engine's
	Folder       string      `json:"folder"`   // local path
	OutputFolder string      `json:"outputFolder,omitempty"`
	TimeMs       int64       `json:"timeMs"` // the time limit that was asked for
	Targets      []JobTarget `json:"targets,omitempty"`
}

// JobReceipt is what Core gets as the answer to its create.
type JobReceipt struct {
	ProviderGeneratedID string `json:"providerGeneratedId"`
}

// JobTarget is an interface that an application declares while it is submitted (contract 21 section 5.1).
type JobTarget struct {
	Rank   int    `json:"rank"`
	Type   string `json:"type"` // WEB or VNC
	Target string `json:"target"`
	Port   int    `json:"port"`
	TLS    bool   `json:"tls,omitempty"` // it speaks HTTPS
}

// JobRefusal tells that no job runs: the submission was refused, or did not come to it.
type JobRefusal struct {
	Job     string `json:"job"`
	Attempt int64  `json:"attempt"`
	Message string `json:"message"`
}

// JobRef names a job by Core's id.
type JobRef struct {
	ID string `json:"id"`
}

// JobRecord is what the server knows of a job.
type JobRecord struct {
	ID        string           `json:"id"`
	Owner     ident.Owner      `json:"owner"`
	CreatedBy ident.UCloudUser `json:"createdBy"`
	UID       ident.UID        `json:"uid"` // whose process it is
	Own       bool             `json:"own"` // UID is the caller's
	// Confirmed: Core has said that this is the account's job; until then it is a claim.
	Confirmed           bool                             `json:"confirmed,omitempty"`
	Engine              string                           `json:"engine"`
	EngineID            string                           `json:"engineId"`
	ProviderGeneratedID string                           `json:"providerGeneratedId"`
	Account             string                           `json:"account"`
	State               providerapi.JobState             `json:"state"`
	Folder              string                           `json:"folder"` // local path; empty for a job that was submitted outside UCloud
	Application         providerapi.ApplicationReference `json:"application"`
	ApplicationType     string                           `json:"applicationType"`
	Replicas            int                              `json:"replicas"`
	Nodes               []string                         `json:"nodes,omitempty"` // by rank, once it runs
	Port                int                              `json:"port,omitempty"`
	Targets             []JobTarget                      `json:"targets,omitempty"`
	StartedAt           time.Time                        `json:"startedAt,omitzero"`
	LimitMs             int64                            `json:"limitMs,omitempty"`
}

// JobExtension asks for AddMs more milliseconds.
type JobExtension struct {
	ID    string `json:"id"`
	AddMs int64  `json:"addMs"`
}

// JobLocalReport is what the instance's local engine sees. All: Jobs are all that it has.
type JobLocalReport struct {
	All  bool       `json:"all,omitempty"`
	Jobs []LocalJob `json:"jobs"`
}

// LocalJob is a job of the local engine.
type LocalJob struct {
	ID       string               `json:"id"`       // Core's
	EngineID string               `json:"engineId"` // the engine's
	State    providerapi.JobState `json:"state"`
	Message  string               `json:"message,omitempty"`
	Started  time.Time            `json:"started,omitzero"`
	Ended    time.Time            `json:"ended,omitzero"`
}

// JobLocalReply names jobs that the server wants ended: those that Core does not know.
type JobLocalReply struct {
	End []string `json:"end,omitempty"`
}

// JobWorkspace names a workspace: a project, or without one the caller's own.
type JobWorkspace struct {
	Project ident.ProjectID `json:"project,omitempty"`
}

// JobChoiceReply are Slurm accounts. Mapped: the provider knows the account, and there is nothing to choose.
type JobChoiceReply struct {
	Mapped   bool     `json:"mapped"`
	Accounts []string `json:"accounts,omitempty"`
}

// JobListRequest asks for jobs. Final ones are left out without All.
type JobListRequest struct {
	All bool   `json:"all,omitempty"`
	ID  string `json:"id,omitempty"` // Core's or the engine's id: this job only
}

// JobPage is a part of the list.
type JobPage struct {
	Jobs []JobInfo `json:"jobs"`
}

// JobInfo is a job as operators see it.
type JobInfo struct {
	JobRecord
	LocalName   string          `json:"localName"`
	Product     string          `json:"product"`
	Category    string          `json:"category"`
	Partition   string          `json:"partition"`
	QoS         string          `json:"qos,omitempty"`
	Name        string          `json:"name,omitempty"`
	CreatedAt   time.Time       `json:"createdAt"`
	SeenAt      time.Time       `json:"seenAt,omitzero"` // when Slurm last spoke of it
	EngineState string          `json:"engineState,omitempty"`
	Submission  string          `json:"submission"` // begun, submitted, refused, lost
	Pending     int             `json:"pending"`    // updates that Core has not taken yet
	LastMessage string          `json:"lastMessage,omitempty"`
	Document    json.RawMessage `json:"document,omitempty"` // providerapi.Job; only where one job was asked for
}

// JobQuestion asks about a job: by Core's id or else the engine's, or with Slurm by Slurm's alone.
type JobQuestion struct {
	ID    string `json:"id"`
	Slurm bool   `json:"slurm,omitempty"`
}

// JobExplanation is the answer. Notes are sentences for people, the most important first.
type JobExplanation struct {
	ID    string    `json:"id"`
	Jobs  []JobInfo `json:"jobs"`            // of UCloud: none, one, or several claims
	Slurm *SlurmJob `json:"slurm,omitempty"` // null: Slurm does not speak of it, or there is no Slurm
	Notes []string  `json:"notes"`
}

// SlurmJob is a job as Slurm describes it now.
type SlurmJob struct {
	ID        string    `json:"id"`
	User      string    `json:"user"`
	Account   string    `json:"account"`
	Partition string    `json:"partition"`
	QoS       string    `json:"qos,omitempty"`
	Name      string    `json:"name,omitempty"`
	Comment   string    `json:"comment,omitempty"`
	State     string    `json:"state"`            // Slurm's word
	Reason    string    `json:"reason,omitempty"` // why it waits, in a sentence
	Nodes     []string  `json:"nodes,omitempty"`
	NodeCount int       `json:"nodeCount"`
	CPUs      int       `json:"cpus"`
	LimitMs   int64     `json:"limitMs,omitempty"`
	Submitted time.Time `json:"submitted,omitzero"`
	Started   time.Time `json:"started,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
	Planned   time.Time `json:"planned,omitzero"` // when Slurm means to start it
}

// JobMutation changes jobs: those named by Core's id.
type JobMutation struct {
	IDs    []string `json:"ids"`
	Reason string   `json:"reason,omitempty"`
	DryRun bool     `json:"dryRun,omitempty"`
}

// Calls about web interfaces and desktops of jobs (contract 21 sections 5 and 6). The instance says which interface of
// which job the user wants to see; the server decides where that is.
var (
	WebOpen = ipc.Call[WebOpening, WebOpened]{Name: "web.open", Access: ipc.AccessMapped}
)

// WebOpening asks for a link. Port is where the application says that it listens, as read from the job's folder or the
// updates of the job; the server checks that it is one that this job may have.
type WebOpening struct {
	Job    string `json:"job"`
	Rank   int    `json:"rank"`
	Kind   string `json:"kind"` // WEB or VNC
	Target string `json:"target,omitempty"`
	Port   int    `json:"port,omitempty"`
	TLS    bool   `json:"tls,omitempty"` // it speaks HTTPS; for the interface of the application itself
}

// WebOpened is the link.
type WebOpened struct {
	URL string `json:"url"`
}

// JobSettings are the settings of jobs in the start-up document. Render is the site's part of job scripts
// (JSON of jobrender.Site).
type JobSettings struct {
	Enabled   bool   `json:"enabled,omitempty"`
	Engine    string `json:"engine,omitempty"`
	Binaries  string `json:"binaries,omitempty"`
	TimeoutMs int64  `json:"timeoutMs,omitempty"`
	Render    []byte `json:"render,omitempty"`

	OnSubmit            string            `json:"onSubmit,omitempty"` // program to run before sbatch
	OnSubmitArgs        []string          `json:"onSubmitArgs,omitempty"`
	OnSubmitTimeoutMs   int64             `json:"onSubmitTimeoutMs,omitempty"` // 0: that of the hook
	OnSubmitProtocol    int               `json:"onSubmitProtocol,omitempty"`
	OnSubmitEnvironment map[string]string `json:"onSubmitEnvironment,omitempty"`
	OnSubmitIgnore      bool              `json:"onSubmitIgnore,omitempty"` // its failure stops no job

	Web bool `json:"web,omitempty"`
	VNC bool `json:"vnc,omitempty"`

	Shell          bool     `json:"shell,omitempty"`        // terminals are offered
	ShellProgram   string   `json:"shellProgram,omitempty"` // instead of the account's shell
	LogReplay      int64    `json:"logReplay,omitempty"`    // bytes of an old log
	ShellHosts     string   `json:"shellHosts,omitempty"`   // how shells get to compute nodes: "srun" or "ssh"
	ShellDetachMs  int64    `json:"shellDetachMs,omitempty"`
	ShellIdleMs    int64    `json:"shellIdleMs,omitempty"`
	ShellMaxMs     int64    `json:"shellMaxMs,omitempty"`
	ShellMax       int      `json:"shellMax,omitempty"`
	SSHInstallKeys bool     `json:"sshInstallKeys,omitempty"`
	SSHKeysFile    string   `json:"sshKeysFile,omitempty"` // path, after substitution
	SSHKeyTypes    []string `json:"sshKeyTypes,omitempty"`
}
