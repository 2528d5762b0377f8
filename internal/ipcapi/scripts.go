package ipcapi

import (
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about extension scripts (contract 41 section 5.9). What scripts were asked holds personal data, and what they
// answered may hold anything.
var (
	ScriptList = ipc.Stream[ScriptListRequest, ScriptPage]{Name: "script.list", Access: ipc.AccessViewer}
	ScriptShow = ipc.Call[ScriptRef, ScriptRecord]{Name: "script.show", Access: ipc.AccessViewer}
)

// ScriptListRequest chooses calls of scripts. Zero values choose everything. Since this log is long, the server filters
// by what has an index; the command line does the rest.
type ScriptListRequest struct {
	Hook     string     `json:"hook,omitempty"`
	Failures bool       `json:"failures,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	// Texts has request and output sent as well, cut to some kilobytes, so that they can be searched.
	Texts bool `json:"texts,omitempty"`
}

// ScriptInfo is one call of a script.
type ScriptInfo struct {
	ID         int64            `json:"id"`
	Hook       string           `json:"hook"`
	Path       string           `json:"path"`
	Key        string           `json:"key"`
	User       ident.UCloudUser `json:"ucloudName,omitempty"` // whom the call was about
	Project    ident.ProjectID  `json:"project,omitempty"`
	UID        ident.UID        `json:"uid"` // who executed the script
	Attempt    int              `json:"attempt"`
	StartedAt  time.Time        `json:"startedAt"`
	DurationMs int64            `json:"durationMs"`
	Result     string           `json:"result"`
	Exit       *int             `json:"exit"` // null: it did not exit by itself
	Signal     string           `json:"signal,omitempty"`
	Message    string           `json:"message,omitempty"`
	Request    string           `json:"request,omitempty"` // these three: with Texts only
	Stdout     string           `json:"stdout,omitempty"`
	Stderr     string           `json:"stderr,omitempty"`
}

// ScriptPage is a part of a list of calls, newest first.
type ScriptPage struct {
	Items []ScriptInfo `json:"items"`
}

// ScriptRef names a call.
type ScriptRef struct {
	ID int64 `json:"id"`
}

// ScriptRecord is all that is kept of a call. The request is redacted; texts are cut at 64 KiB, the numbers count what
// there was.
type ScriptRecord struct {
	ScriptInfo
	Invocation  string `json:"invocation"`
	FileHash    string `json:"fileHash"`
	StdoutBytes int64  `json:"stdoutBytes"`
	StderrBytes int64  `json:"stderrBytes"`
}
