package ipcapi

import "ucloud-im/internal/ipc"

// TransferUpdate tells the server how far a transfer from another provider is, and asks whether it may go on. Its task is
// of the kind [TaskReceive]: the work is done by whoever sends, at their pace and maybe never, so no instance has such a
// task in hand, and none is woken for it.
var TransferUpdate = ipc.Call[TransferProgress, TransferVerdict]{Name: "transfer.update", Access: ipc.AccessMapped}

// TaskReceive is the kind of the tasks that show transfers from other providers. Its Params are a [ReceiveParams]. When
// the task ends in whatever way, the session ends with it.
const TaskReceive = "receive"

// ReceiveParams are the Params of a [TaskReceive].
type ReceiveParams struct {
	Session []byte `json:"session"` // SHA-256 of the session's token
}

// TransferProgress is how far a transfer is. With Outcome, TaskSucceeded, TaskFailed or TaskCancelled, it has
// ended.
type TransferProgress struct {
	Key     []byte    `json:"key"` // of the task's submission
	State   TaskState `json:"state"`
	Outcome string    `json:"outcome,omitempty"`
}

// TransferVerdict answers. Ended: the transfer was cancelled, or has ended otherwise.
type TransferVerdict struct {
	Ended bool `json:"ended"`
}

// PurposeSource is a session of a transfer to another provider, made by its first step and used by its last (contract 13
// section 2). Its token goes to Core instead of into a URL, so the gateway wakes nobody for it.
const PurposeSource = "transfersource"

// TransferSettings are the settings of transfers in the start-up document.
type TransferSettings struct {
	Outgoing bool     `json:"outgoing"` // may be sent to other providers
	Incoming bool     `json:"incoming"` // may be received from other providers
	Peers    []string `json:"peers"`    // provider ids, or *

	MaxBytes    int64    `json:"maxBytes,omitempty"`    // of one transfer; 0: no bound
	Connections int      `json:"connections,omitempty"` // of one transfer
	Networks    []string `json:"networks,omitempty"`    // that may be connected to although they are not public, as CIDR
	Ports       []int    `json:"ports,omitempty"`       // that may be connected to; empty: all
	Plain       bool     `json:"plain,omitempty"`       // connections without TLS are allowed, for development
	Roots       string   `json:"roots,omitempty"`       // further trust anchors, PEM
}
