package config

import (
	"log/slog"
	"net/netip"
)

// IPC is the socket for instances, gateway and command line (contract 40 section 5).
type IPC struct {
	Directory Path      `key:"directory" reload:"restart" default:"/run/ucloud" doc:"Holds ucloud.sock; not writable by others."`
	Limits    IPCLimits `key:"limits" doc:"Protection of the server from local users."`
}

// IPCLimits bound what one local user can ask.
type IPCLimits struct {
	MaxRequestBytes         Size `key:"maxRequestBytes" default:"1MiB" min:"64KiB" max:"64MiB" doc:"Size of one request."`
	RequestsPerSecondPerUID int  `key:"requestsPerSecondPerUid" default:"200" min:"1" max:"1000000" doc:"Rate for one uid."`
}

// Logs says where and how much is logged.
type Logs struct {
	Destination string      `key:"destination" enum:"journal,file,stdout" default:"journal" doc:"Where logs go."`
	Directory   Path        `key:"directory" default:"/var/log/ucloud" doc:"For destination file, and for the logs of instances. Owner is the service account, mode 0750 or less."`
	Format      string      `key:"format" enum:"text,json" default:"text" doc:"text or json."`
	Level       string      `key:"level" enum:"error,warn,info,debug" default:"info" doc:"Lowest level that is written. UCLOUD_LOG_LEVEL overrides it."`
	Levels      Map[string] `key:"levels" enum:"error,warn,info,debug" defaultDoc:"{}" doc:"Level of single components, by name."`
	Rotation    LogRotation `key:"rotation" doc:"Rotation of log files."`
}

// SlogLevel is the level for [log/slog].
func (l Logs) SlogLevel() slog.Level { return slogLevel(l.Level) }

// ComponentLevel is the level of one component: its own, or the general one.
func (l Logs) ComponentLevel(component string) slog.Level {
	if own, ok := l.Levels.Get(component); ok {
		return slogLevel(*own)
	}
	return l.SlogLevel()
}

func slogLevel(word string) slog.Level {
	switch word {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// LogRotation says when log files are replaced and removed.
type LogRotation struct {
	Enabled  bool     `key:"enabled" default:"true" doc:"Rotate."`
	MaxAge   Duration `key:"maxAge" default:"90d" doc:"Age at which a file is removed."`
	MaxSize  Size     `key:"maxSize" default:"100MiB" min:"64KiB" doc:"Size at which a new file is begun."`
	Compress bool     `key:"compress" default:"true" doc:"Compress old files."`
}

// Audit records who did what to which uid.
type Audit struct {
	Enabled       bool     `key:"enabled" default:"true" doc:"Write records."`
	Retention     Duration `key:"retention" default:"180d" doc:"When records are removed."`
	IncludeBodies bool     `key:"includeBodies" default:"true" doc:"Keep request bodies; sensitive fields are redacted."`
	File          Path     `key:"file" defaultDoc:"none: the database" doc:"Also append records to this file."`
}

// Terminal is the web terminal.
type Terminal struct {
	Enabled            bool     `key:"enabled" default:"true" doc:"Offer terminals."`
	Shell              Path     `key:"shell" exists:"file" defaultDoc:"the user's login shell" doc:"Program that is started."`
	IdleTimeout        Duration `key:"idleTimeout" default:"4h" zero:"yes" doc:"Time without input and output; 0 = never."`
	MaxSessionsPerUser int      `key:"maxSessionsPerUser" default:"10" min:"1" max:"1000" doc:"Open terminals of one user."`
	Detach             Duration `key:"detach" default:"10m" zero:"yes" max:"7d" doc:"How long a terminal whose connection is lost is kept, with what runs in it, also over an upgrade; 0 = it ends with the connection."`
	MaxTime            Duration `key:"maxTime" default:"0" zero:"yes" doc:"Longest life of a terminal; 0 = no limit."`
}

// The kinds of database.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Database is where the server keeps its state. Login data are in server.yml.
type Database struct {
	Type             string   `key:"type" enum:"sqlite,postgres" reload:"restart" default:"sqlite" doc:"sqlite is embedded; postgres needs database in server.yml."`
	Path             Path     `key:"path" reload:"restart" defaultDoc:"/var/lib/ucloud/ucloud.db (ucloud.db in stateDirectory)" doc:"Database file, for sqlite."`
	MaxConnections   int      `key:"maxConnections" reload:"restart" default:"16" min:"1" max:"1000" doc:"Open connections."`
	ConnectTimeout   Duration `key:"connectTimeout" reload:"restart" default:"10s" max:"10m" doc:"Time limit for a connection."`
	StatementTimeout Duration `key:"statementTimeout" reload:"restart" default:"30s" max:"1h" doc:"Time limit of one statement."`
}

// Retention says when records are removed; done once a day.
type Retention struct {
	FinishedJobs    Duration `key:"finishedJobs" default:"90d" doc:"Jobs that have ended. At least the longest time limit of a job (X-20)."`
	TransferRecords Duration `key:"transferRecords" default:"30d" doc:"Transfers between providers."`
	UploadTokens    Duration `key:"uploadTokens" default:"7d" doc:"Tokens of uploads."`
	ScriptLog       Duration `key:"scriptLog" default:"30d" doc:"Log of extension scripts."`
}

// Files are the limits and habits of file calls.
type Files struct {
	MaxBrowseEntries int      `key:"maxBrowseEntries" default:"0" min:"0" doc:"Directories with more entries are not sorted by size or time; 0 = no bound. Never limits what is listed."`
	SearchMaxResults int      `key:"searchMaxResults" default:"10000" min:"1" doc:"Results of one search."`
	SearchTimeout    Duration `key:"searchTimeout" default:"5m" max:"1d" doc:"Time limit of one search."`
	SearchExclude    []string `key:"searchExclude" default:"[.snapshots, .snapshot, .zfs]" doc:"Directory names that a search does not enter."`
	FollowSymlinks   string   `key:"followSymlinks" enum:"drive,always" default:"drive" doc:"drive: links are followed as long as they stay in the drive."`
	Download         Download `key:"download" doc:"Downloads."`
	Upload           Upload   `key:"upload" doc:"Uploads."`
	Trash            Trash    `key:"trash" doc:"The bin of a drive."`
}

// Download are the limits of downloads.
type Download struct {
	TokenLifetime Duration `key:"tokenLifetime" default:"1h" max:"180d" doc:"Until the first use of a link."`
	TokenInUse    Duration `key:"tokenInUse" default:"24h" max:"180d" doc:"After the first use."`
	Directories   bool     `key:"directories" default:"true" doc:"Directories as a streaming zip."`
	Ranges        bool     `key:"ranges" default:"true" doc:"Partial downloads."`
}

// Upload are the limits of uploads.
type Upload struct {
	TokenIdle     Duration `key:"tokenIdle" default:"24h" max:"180d" doc:"Life of an unused session."`
	TokenLifetime Duration `key:"tokenLifetime" default:"7d" max:"180d" doc:"Longest life of a session."`
	MaxParallel   int      `key:"maxParallel" default:"16" min:"1" max:"1024" doc:"Parallel streams of one user."`
	InFlight      Size     `key:"inFlight" default:"64MiB" min:"1MiB" doc:"Data in memory, whole instance."`
}

// Trash is the bin of a drive.
type Trash struct {
	Enabled   bool     `key:"enabled" default:"true" doc:"Offer a bin."`
	Retention Duration `key:"retention" default:"0" zero:"yes" doc:"Age at which its content is removed; 0 = never."`
}

// Tasks bound background work.
type Tasks struct {
	MaxPerUser int `key:"maxPerUser" default:"10" min:"1" max:"10000" doc:"Running tasks of one user."`
	MaxGlobal  int `key:"maxGlobal" default:"100" min:"1" max:"100000" doc:"Running tasks of all users."`
}

// Transfers are copies between providers.
type Transfers struct {
	Enabled         bool           `key:"enabled" default:"true" doc:"Offer transfers."`
	Outgoing        bool           `key:"outgoing" default:"true" doc:"Users may send to other providers."`
	Incoming        bool           `key:"incoming" default:"true" doc:"Users may receive from other providers."`
	AllowedPeers    []string       `key:"allowedPeers" default:"[\"*\"]" doc:"Provider ids, or *. A provider may limit its partners for legal reasons."`
	MaxSize         Size           `key:"maxSize" default:"0" zero:"yes" doc:"Largest transfer in bytes; 0 = no bound."`
	Connections     int            `key:"connections" default:"4" min:"1" max:"16" doc:"Connections of one outgoing transfer."`
	AllowedNetworks []netip.Prefix `key:"allowedNetworks" default:"[]" doc:"Networks that may be sent to although they are private, loopback or otherwise not public."`
	Ports           []int          `key:"ports" default:"[443]" min:"1" max:"65535" doc:"Ports of other providers that may be connected to; an empty list allows all."`
	CAFile          Path           `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Extra trust anchors for other providers, PEM."`
}

// Scripts are the defaults of all extension scripts (contract 42).
type Scripts struct {
	Timeout     Duration     `key:"timeout" default:"60s" max:"1h" doc:"After it the process group is ended."`
	Concurrency int          `key:"concurrency" default:"0" min:"0" max:"1000" doc:"Calls of one hook at once; 0 = the hook's own default."`
	MaxOutput   Size         `key:"maxOutput" default:"4MiB" min:"4KiB" max:"1GiB" doc:"Bytes of standard output that are kept."`
	Redact      []string     `key:"redact" default:"[password, secret, token, claims]" doc:"Names of fields that are masked in the script log."`
	Spool       Path         `key:"spool" reload:"restart" default:"/var/spool/ucloud/requests" doc:"Directory of request files, mode 0700."`
	Compat      ScriptCompat `key:"compat" doc:"Slips of the reference that old scripts rely on."`
}

// ScriptCompat keeps old scripts working.
type ScriptCompat struct {
	LocalNameAsUcloudUsername bool `key:"localNameAsUcloudUsername" default:"false" doc:"The account mapper gets the local name as ucloudUsername."`
}

// Hooks are scripts that belong to no service.
type Hooks struct {
	OnServiceEvent Exec `key:"onServiceEvent" defaultDoc:"none" doc:"Called for events such as an expiring certificate; a bridge to monitoring."`
}

// CLI names the groups with rights on the command line.
type CLI struct {
	OperatorGroup Name `key:"operatorGroup" default:"ucloud_operators" doc:"Members may change things. A missing group means nobody."`
	ViewerGroup   Name `key:"viewerGroup" default:"ucloud_viewers" doc:"Members may look. A missing group means nobody."`
}

// Development switches on what must never run in production (CFG-12).
type Development struct {
	Enabled    bool      `key:"enabled" reload:"restart" default:"false" doc:"Allows plain http, launcher self and the keys below. Refused with an https public host and a listener other than loopback."`
	DebugPorts PortRange `key:"debugPorts" reload:"restart" defaultDoc:"none" doc:"Ports for debuggers."`
	FakeSlurm  bool      `key:"fakeSlurm" reload:"restart" default:"false" doc:"Run without Slurm commands."`
}
