package config

// SSH are the login nodes (contract 40 section 8).
type SSH struct {
	Enabled            bool      `key:"enabled" default:"false" doc:"Tell users how to log in."`
	InstallKeys        bool      `key:"installKeys" default:"false" doc:"Install users' keys; needs enabled."`
	Host               *Endpoint `key:"host" port:"22" need:"when enabled" doc:"Login node."`
	AuthorizedKeysFile Pattern   `key:"authorizedKeysFile" vars:"ssh" default:"\"#{home}/.ssh/authorized_keys\"" doc:"Where keys are installed."`
	AllowedKeyTypes    []string  `key:"allowedKeyTypes" default:"[ed25519, ecdsa, \"rsa>=3072\", \"sk-*\"]" doc:"Kinds of keys; options in front of a key are refused."`
}

// Slurm is the job engine (contract 40 section 8).
type Slurm struct {
	Binaries               Path               `key:"binaries" exists:"dir" defaultDoc:"search PATH" doc:"Directory of the Slurm tools."`
	CommandTimeout         Duration           `key:"commandTimeout" default:"30s" max:"10m" doc:"Time limit of every command."`
	Poll                   SlurmPoll          `key:"poll" doc:"How often Slurm is asked."`
	PartitionsFilter       bool               `key:"partitionsFilter" default:"true" doc:"Ask for configured partitions only."`
	ExternalJobs           string             `key:"externalJobs" enum:"register,ignore" default:"register" doc:"Jobs submitted outside UCloud."`
	States                 Map[string]        `key:"states" keys:"text" enum:"success,failure,expired,inQueue,running" defaultDoc:"a built-in table" doc:"Meaning of Slurm states, by the first word of the state."`
	Hooks                  SlurmHooks         `key:"hooks" doc:"Scripts around jobs."`
	JobFolder              string             `key:"jobFolder" default:"ucloud-jobs" doc:"Folder in the primary drive; one name."`
	FakeResourceAllocation bool               `key:"fakeResourceAllocation" default:"false" doc:"Every job asks for one CPU and little memory. Only with development.enabled."`
	SystemLoad             string             `key:"systemLoad" default:"\"\"" doc:"Template text that loads software."`
	SystemUnload           string             `key:"systemUnload" default:"\"\"" doc:"Template text that unloads software."`
	Srun                   Srun               `key:"srun" doc:"How srun is called in job scripts."`
	ModulesFile            Path               `key:"modulesFile" exists:"file" defaultDoc:"none" doc:"Modules in Lmod spider JSON."`
	ModulesRefresh         Duration           `key:"modulesRefresh" default:"1h" doc:"How often that file is read again."`
	Applications           Path               `key:"applications" default:"applications" flags:"relative" doc:"Directory of software definitions, relative to the configuration directory. A bad document disables that application only."`
	Templates              Templates          `key:"templates" doc:"What templates may do."`
	Sbatch                 Sbatch             `key:"sbatch" doc:"Directives of job scripts."`
	Web                    Web                `key:"web" doc:"Web applications of jobs."`
	Shell                  string             `key:"shell" enum:"srun,ssh" default:"srun" doc:"How terminals in jobs get to compute nodes. ssh needs a login without a password, such as host-based authentication, and pam_slurm_adopt."`
	LogReplay              Size               `key:"logReplay" default:"4MiB" min:"64KiB" doc:"How much of the log of a job is shown to who opens it, for all of its files together; of longer ones the end."`
	VNC                    VNC                `key:"vnc" doc:"Remote desktops."`
	TimeExtension          bool               `key:"timeExtension" default:"false" doc:"Users may give their jobs more time, up to maxTime. The service account has to be an operator of Slurm."`
	Accounts               *AccountManagement `key:"accountManagement" need:"if managed; forbidden when unmanaged" doc:"Slurm accounts."`
	Machines               Map[Machine]       `key:"machines" need:"yes" keys:"category" flags:"nonempty" doc:"Compute products by category name; each is one pair of partition and QoS."`
}

// SlurmPoll says how often Slurm is asked.
type SlurmPoll struct {
	Jobs     Duration `key:"jobs" default:"15s" min:"1s" max:"1h" doc:"States of jobs."`
	Usage    Duration `key:"usage" default:"60s" min:"5s" max:"1d" doc:"Usage of accounts."`
	Lookback Duration `key:"lookback" default:"7d" min:"1h" doc:"Window of sacct; covers outages."`
}

// SlurmHooks are scripts around jobs.
type SlurmHooks struct {
	OnJobSubmit Exec `key:"onJobSubmit" defaultDoc:"none" doc:"Runs as the end user before sbatch."`
}

// Srun is how srun is called in job scripts.
type Srun struct {
	Command string   `key:"command" default:"srun" flags:"nonempty" doc:"Program."`
	Flags   []string `key:"flags" default:"[]" doc:"Arguments."`
}

// Templates bound what application templates may do.
type Templates struct {
	AllowScripts []Exec `key:"allowScripts" default:"[]" doc:"Programs that templates may call; nothing else."`
	RenderWords  bool   `key:"renderWords" flags:"added" default:"true" doc:"Take words of an application's environment and sbatch options that contain {{ or {% for templates, as uploads of YAML v2 mean them."`
}

// Sbatch are directives for all jobs.
type Sbatch struct {
	Extra  Map[string] `key:"extra" keys:"text" flags:"numeric" defaultDoc:"{}" doc:"Site-wide directives, name to template."`
	Locked []string    `key:"locked" default:"[]" doc:"Directives that applications cannot change, besides account, partition, parsable and comment."`
}

// Web are web applications of jobs.
type Web struct {
	Enabled   bool      `key:"enabled" default:"false" doc:"Offer them."`
	Prefix    string    `key:"prefix" need:"when enabled" doc:"Start of the host name."`
	Suffix    string    `key:"suffix" need:"when enabled" doc:"Rest of the host name, below a domain of the certificate."`
	PortRange PortRange `key:"portRange" default:"20000-29999" doc:"Ports on compute nodes."`
	BindCheck bool      `key:"bindCheck" default:"true" doc:"Warn if an application listens without a login of its own."`
}

// VNC are remote desktops.
type VNC struct {
	Enabled bool `key:"enabled" default:"true" doc:"Offer them."`
}

// AccountManagement is how Slurm accounts are made and found.
type AccountManagement struct {
	Accounting AccountAccounting `key:"accounting" need:"yes" doc:"Limits and usage of accounts."`
	Mapper     AccountMapper     `key:"accountMapper" need:"yes" doc:"Which account an owner has in a category."`
}

// AccountAccounting is how limits are set and usage is read.
type AccountAccounting struct {
	Type      string              `key:"type" need:"yes" enum:"Automatic,Scripted,Off" doc:"Who sets limits and reads usage."`
	Automatic AutomaticAccounting `key:"automatic" doc:"For type Automatic."`
	Scripted  *ScriptedAccounting `key:"scripted" need:"for type Scripted" doc:"Extension scripts."`
}

// AutomaticAccounting is done with sacctmgr.
type AutomaticAccounting struct {
	Fairshare         string `key:"fairshare" enum:"fromQuota,keep" default:"fromQuota" doc:"Fair share of accounts."`
	ParentAccount     Name   `key:"parentAccount" defaultDoc:"none" doc:"Parent of new accounts."`
	CreateUsers       bool   `key:"createUsers" default:"true" doc:"Add users to accounts."`
	SetDefaultAccount bool   `key:"setDefaultAccount" default:"false" doc:"Set the default account of users."`
	Cleanup           bool   `key:"cleanup" default:"true" doc:"Remove users who left."`
	WhenLocked        string `key:"whenLocked" enum:"maxJobs0,maxSubmit0,none" default:"maxSubmit0" doc:"How a locked account is stopped."`
}

// ScriptedAccounting are the extension scripts of type Scripted.
type ScriptedAccounting struct {
	OnQuotaUpdated     Exec `key:"onQuotaUpdated" need:"yes" doc:"Sets limits."`
	OnProjectUpdated   Exec `key:"onProjectUpdated" need:"yes" doc:"Sets members."`
	OnUsageReporting   Exec `key:"onUsageReporting" need:"yes" doc:"Reads usage."`
	OnUserDisconnected Exec `key:"onUserDisconnected" defaultDoc:"none" doc:"A user disconnected."`
}

// AccountMapper gives the account of an owner in a category.
type AccountMapper struct {
	Type     string  `key:"type" need:"yes" enum:"Pattern,Scripted,UserChoice" doc:"How the account is found."`
	Users    Pattern `key:"users" vars:"accountUser" need:"for type Pattern" doc:"Account of a user. Lower-cased, letters, digits, '.', '_' and '-', at most 100."`
	Projects Pattern `key:"projects" vars:"accountProject" need:"for type Pattern" doc:"Account of a project."`
	Script   Exec    `key:"script" need:"for type Scripted" doc:"Script that answers the account."`
}

// Machine is a compute category: one partition and QoS with its slices.
type Machine struct {
	Partition      string            `key:"partition" need:"yes" flags:"nonempty" doc:"Slurm partition."`
	QoS            string            `key:"qos" defaultDoc:"none" doc:"Slurm QoS. (partition, qos) is unique (X-09)."`
	Payment        ComputePayment    `key:"payment" need:"yes" doc:"Unit and price."`
	Groups         Map[MachineGroup] `key:"groups" keys:"category" flags:"nonempty" need:"exactly one of groups and inline slices" doc:"Groups of slices. Instead, the keys of one group may stand in the category itself."`
	Inline         MachineGroup      `key:",inline"`
	MaxTime        Duration          `key:"maxTime" defaultDoc:"from Slurm" doc:"Longest time limit of a job."`
	MaxNodes       int               `key:"maxNodes" min:"1" defaultDoc:"from Slurm" doc:"Most nodes of a job."`
	HiddenInGrants bool              `key:"hiddenInGrants" default:"false" doc:"Not shown in grant applications."`
	FreeToUse      bool              `key:"freeToUse" default:"false" doc:"No usage reports."`
}

// SliceGroups are the groups of the category: those of the file, or one with the name of the category.
func (m *Machine) SliceGroups(category string) Map[MachineGroup] {
	if m.Groups.Len() > 0 {
		return m.Groups
	}
	return Map[MachineGroup]{entries: []entry[MachineGroup]{{category, &m.Inline}}}
}

// The units of compute products.
const (
	UnitCPU    = "Cpu"
	UnitGPU    = "Gpu"
	UnitMemory = "Memory"
)

// ComputePayment is unit and price of a compute category.
type ComputePayment struct {
	Type     string `key:"type" need:"yes" enum:"Resource,Money" doc:"Resource counts units, Money counts an amount."`
	Unit     string `key:"unit" enum:"Cpu,Gpu,Memory" need:"for Resource" doc:"What is counted. It cannot change once the category is registered."`
	Interval string `key:"interval" enum:"Minutely,Hourly,Daily" default:"Minutely" doc:"Accounting period; usage is reported in it."`
	Currency string `key:"currency" need:"for Money; forbidden for Resource" doc:"Three letters, such as DKK."`
}

// MachineGroup is a list of slices: parallel lists of equal length.
type MachineGroup struct {
	CPU         []int    `key:"cpu" min:"1" max:"1000000" need:"in each group" doc:"Cores of each slice."`
	Memory      []int    `key:"memory" min:"1" max:"100000000" need:"in each group" doc:"Memory of each slice, GB."`
	GPU         []int    `key:"gpu" min:"0" max:"100000" default:"[]" doc:"GPUs of each slice."`
	Price       []Money  `key:"price" need:"for Money; forbidden for Resource" doc:"Price of each slice in one period."`
	CPUModel    string   `key:"cpuModel" defaultDoc:"empty" doc:"Shown to users."`
	MemoryModel string   `key:"memoryModel" defaultDoc:"empty" doc:"Shown to users."`
	GPUModel    string   `key:"gpuModel" defaultDoc:"empty" doc:"Shown to users."`
	Description string   `key:"description" defaultDoc:"empty" doc:"Shown to users."`
	Constraint  string   `key:"constraint" defaultDoc:"none" doc:"Slurm constraint of the job."`
	GPUType     string   `key:"gpuType" defaultDoc:"none" doc:"Type in --gres."`
	Exclusive   bool     `key:"exclusive" default:"false" doc:"Whole nodes."`
	Fraction    Fraction `key:"fraction" default:"{numerator: 1, denominator: 1}" doc:"Part of a device."`
	NameSuffix  string   `key:"nameSuffix" enum:"Cpu,Gpu,Memory,CpuV2,GpuV2,MemoryV2" defaultDoc:"Gpu if gpu is given, else Cpu" doc:"Form of product names."`
}

// Suffix is the name suffix with its default.
func (g *MachineGroup) Suffix() string {
	switch {
	case g.NameSuffix != "":
		return g.NameSuffix
	case len(g.GPU) > 0:
		return UnitGPU
	}
	return UnitCPU
}
