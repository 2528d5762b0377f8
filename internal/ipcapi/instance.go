package ipcapi

import (
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls made by an instance (design D1, D3, D5).
//
// An instance opens [InstanceHello] first and keeps it open for life: the stream is the liveness in both directions.
// The handler accepts it only from a uid for which a launch is pending or an instance is registered.
var (
	InstanceHello = ipc.Stream[Hello, InstanceItem]{Name: "instance.hello", Access: ipc.AccessAnyone, Files: 1}
	InstanceReady = ipc.Call[Ready, Empty]{Name: "instance.ready", Access: ipc.AccessMapped}
	InstanceIdle  = ipc.Call[Idle, IdleReply]{Name: "instance.idle", Access: ipc.AccessMapped}
	InstanceStats = ipc.Call[Stats, Empty]{Name: "instance.stats", Access: ipc.AccessMapped}
	// InstanceRecheck asks the server to compare the groups of the caller's instance with those its account has now, and
	// tells whether the instance is being replaced.
	InstanceRecheck = ipc.Call[Empty, RecheckReply]{Name: "instance.recheck", Access: ipc.AccessMapped}
)

// Empty is a document without content.
type Empty struct{}

// Hello opens the stream of an instance. On a resume the request carries one descriptor, the instance's listener.
type Hello struct {
	Protocol  int         `json:"protocol"`
	Build     string      `json:"build"`             // identifies the executable, so that old code is replaced when idle
	StartedAt int64       `json:"startedAt"`         // Unix ms
	Detached  bool        `json:"detached"`          // this is the second process of a detached start
	Resume    bool        `json:"resume"`            // the instance runs already and lost the server
	Port      int         `json:"port,omitempty"`    // resume: the port it serves
	Route     uint64      `json:"route,omitempty"`   // resume: Start.Route
	Groups    []ident.GID `json:"groups"`            // supplementary groups of the process
	Account   string      `json:"account,omitempty"` // why the account may not be used (expired), as the account itself sees it
}

// Kinds of [InstanceItem].
const (
	ItemStart   = "start"   // Start is set; descriptor 0 is the listener, 1 (after a detach) a new standard error
	ItemDetach  = "detach"  // run again in a session of your own: sudo stayed in between
	ItemAdopted = "adopted" // resume accepted; descriptor 0, if any, is a new standard error
	ItemKill    = "kill"    // descriptor 0 is a pidfd of this uid: send SIGKILL to it and exit
	ItemDrain   = "drain"   // accept nothing new, finish what is under way, exit
	ItemStop    = "stop"    // end now; Reason says why
	ItemStats   = "stats"   // call InstanceStats once
	ItemQuiet   = "quiet"   // call InstanceIdle as soon as no request is under way, without waiting for the idle timeout
	ItemAccount = "account" // look at the own account again and call InstanceReady with the result
	ItemConfig  = "config"  // Start is set: settings that may change at run time have changed
)

// InstanceItem is what the server tells an instance.
type InstanceItem struct {
	Kind   string `json:"kind"`
	Reason string `json:"reason,omitempty"`
	Start  *Start `json:"start,omitempty"`
}

// Start is the start-up document: the reduced, secret-free view of the configuration plus the route's own key
// (contract 40 CFG-8). The key is known to the gateway, the server and this instance alone.
type Start struct {
	Provider   string           `json:"provider"`
	User       ident.UCloudUser `json:"user"`
	UID        ident.UID        `json:"uid"`
	LocalName  string           `json:"localName"`
	Home       string           `json:"home"`
	Shell      string           `json:"shell"`
	ServiceUID ident.UID        `json:"serviceUid"` // the only uid whose connections are accepted
	Port       int              `json:"port"`
	Route      uint64           `json:"route"`  // identifies the route; grows within the server's life
	HopKey     []byte           `json:"hopKey"` // 32 bytes

	IdleTimeoutMs     int64 `json:"idleTimeoutMs"` // 0 = never
	DrainTimeoutMs    int64 `json:"drainTimeoutMs"`
	ServerLossGraceMs int64 `json:"serverLossGraceMs"`
	Umask             int   `json:"umask"`

	MemoryBytes int64 `json:"memoryBytes"` // 0 = no limit; applied as soft heap limit and rlimits
	Tasks       int   `json:"tasks"`
	OpenFiles   int   `json:"openFiles"`

	// CheckAccount asks the instance whether its own account has expired, because the server may not read the shadow
	// database. The result comes with [Ready].
	CheckAccount bool `json:"checkAccount,omitempty"`

	LogLevel  string           `json:"logLevel"`
	Files     FilesSettings    `json:"files"`
	Links     LinkSettings     `json:"links"`
	Transfers TransferSettings `json:"transfers"`
	Jobs      JobSettings      `json:"jobs"`
	Intents   IntentSettings   `json:"intents"`
}

// FilesSettings are the settings of package files.
type FilesSettings struct {
	FollowSymlinks   string `json:"followSymlinks"` // "drive" or "always"
	MaxBrowseEntries int    `json:"maxBrowseEntries"`
	TrashEnabled     bool   `json:"trashEnabled"`
	JobFolder        string `json:"jobFolder"`
	Unmanaged        bool   `json:"unmanaged"`
	TrashRetentionMs int64  `json:"trashRetentionMs,omitempty"`

	SearchMaxResults int      `json:"searchMaxResults,omitempty"`
	SearchTimeoutMs  int64    `json:"searchTimeoutMs,omitempty"`
	SearchExclude    []string `json:"searchExclude,omitempty"` // names of directories
}

// Ready tells that the instance accepts requests. With Account set it does not, and ends: it is why the account may
// not be used, as the account itself sees it.
type Ready struct {
	Route   uint64 `json:"route"`
	Account string `json:"account,omitempty"`
}

// Idle asks whether the instance may end: it has had no request for the idle timeout. Requests is the number it has
// served, so that the server can see whether another one came in between.
type Idle struct {
	Route    uint64 `json:"route"`
	Requests uint64 `json:"requests"`
}

// IdleReply tells what to do. Stop: the route is gone and the gateway has confirmed it; finish and exit.
type IdleReply struct {
	Stop bool `json:"stop"`
}

// RecheckReply tells whether the instance is being replaced.
type RecheckReply struct {
	Replaced bool `json:"replaced"`
}

// Stats is what only the instance itself can measure.
type Stats struct {
	RSSBytes    int64  `json:"rssBytes"`
	PSSBytes    int64  `json:"pssBytes"`
	Requests    uint64 `json:"requests"`
	Active      int    `json:"active"`
	IdleSeconds int64  `json:"idleSeconds"`
}
