package ipcapi

import (
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls of instances about allocations and usage.
var (
	// UsageLocked asks whether Core has locked a wallet. Only wallets of the caller and of projects that the caller is a
	// member of can be asked about.
	UsageLocked = ipc.Call[LockQuery, LockReply]{Name: "usage.locked", Access: ipc.AccessMapped}
	// UsageWork asks for a directory to measure, one that the caller's user may read.
	UsageWork = ipc.Call[Empty, UsageJob]{Name: "usage.work", Access: ipc.AccessMapped}
	// UsageScanned hands in how a measurement stands.
	UsageScanned = ipc.Call[UsageProgress, UsageVerdict]{Name: "usage.scanned", Access: ipc.AccessMapped}
)

// LockQuery names a wallet: that of a project, or without one the caller's own.
type LockQuery struct {
	Project  ident.ProjectID `json:"project,omitempty"`
	Category string          `json:"category"`
}

// LockReply tells whether new data must be refused. A wallet that Core has never spoken of counts as locked.
type LockReply struct {
	Locked bool `json:"locked"`
	Known  bool `json:"known"`
}

// UsageJob is a directory to measure. Without one, Drive is empty and RetryMs says when to ask again.
type UsageJob struct {
	Drive   string `json:"drive,omitempty"` // provider generated id
	Path    string `json:"path,omitempty"`
	State   []byte `json:"state,omitempty"` // where an earlier measurement was; see package scan
	Rate    int    `json:"rate,omitempty"`  // entries per second
	RetryMs int64  `json:"retryMs,omitempty"`
	// Quota is one of the constants below if the quota of the file system tells what the directory holds, should there
	// be one: that of its owner, if none of the directories in Others lies on the same file system, or that of the group GID.
	Quota  string    `json:"quota,omitempty"`
	Others []string  `json:"others,omitempty"`
	GID    ident.GID `json:"gid,omitempty"`
}

// The values of UsageJob.Quota.
const (
	QuotaUser  = "user"
	QuotaGroup = "group"
)

// MaxScanState bounds UsageProgress.State in bytes.
const MaxScanState = 256 << 10

// UsageProgress is where a measurement is. With Error it has ended without a result.
type UsageProgress struct {
	Drive string `json:"drive"`
	State []byte `json:"state"`
	Error string `json:"error,omitempty"`
	Quota bool   `json:"quota,omitempty"` // the quota of the file system was asked
}

// UsageVerdict tells whether the measurement is still wanted from this instance.
type UsageVerdict struct {
	Continue bool `json:"continue"`
}
