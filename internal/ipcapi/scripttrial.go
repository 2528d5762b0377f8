package ipcapi

import (
	"encoding/json"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls with which operators try extension scripts by hand (contract 41 section 5.9, contract 42 section A.6).
var (
	// ScriptHooks are the hooks that the server calls; those of users' instances are not among them.
	ScriptHooks = ipc.Call[Empty, ScriptHookList]{Name: "script.hooks", Access: ipc.AccessOperator}
	ScriptTry   = ipc.Call[ScriptTrialRequest, ScriptTrial]{Name: "script.try", Access: ipc.AccessOperator}
)

// ScriptHook is a configured hook with its program as it stands on the disk.
type ScriptHook struct {
	Key         string     `json:"key"` // in the configuration
	Hook        string     `json:"hook"`
	Path        string     `json:"path"`
	Args        []string   `json:"args"`
	TimeoutMs   int64      `json:"timeoutMs"`
	Protocol    int        `json:"protocol"`
	Concurrency int        `json:"concurrency"`
	Environment []string   `json:"environment"` // names; values may be secrets
	Changes     bool       `json:"changes"`     // it is there to change something at the site
	UID         ident.UID  `json:"uid"`         // who executes it
	FileOwner   *ident.UID `json:"fileOwner"`
	FileMode    string     `json:"fileMode,omitempty"` // octal
	FileHash    string     `json:"fileHash,omitempty"`
	Problem     string     `json:"problem,omitempty"` // why it would not be executed
}

// ScriptHookList are all hooks.
type ScriptHookList struct {
	Items []ScriptHook `json:"items"`
}

// ScriptTrialRequest has a hook called by hand.
type ScriptTrialRequest struct {
	Key    string          `json:"key"`
	Input  json.RawMessage `json:"input,omitempty"` // the request; absent: a sample
	DryRun bool            `json:"dryRun"`          // tells the script to change nothing
	Reason string          `json:"reason,omitempty"`
}

// States of a [ScriptTrial].
const (
	ScriptOK      = "ok"
	ScriptFailed  = "failed"
	ScriptSkipped = "skipped"      // not called, because it changes something
	ScriptNotRun  = "not executed" // not called, because nobody wanted that
)

// ScriptTrial is a hook and what came of calling it by hand.
type ScriptTrial struct {
	ScriptHook
	Status    string             `json:"status"`
	Objection string             `json:"objection,omitempty"` // why the reply, right in form, would be refused in real use
	Call      *ScriptTrialRecord `json:"call"`                // null: there was none
}

// ScriptTrialRecord is the call. Texts are as in the script log.
type ScriptTrialRecord struct {
	Invocation  string    `json:"invocation"`
	StartedAt   time.Time `json:"startedAt"`
	DurationMs  int64     `json:"durationMs"`
	Result      string    `json:"result"`
	Exit        *int      `json:"exit"`
	Signal      string    `json:"signal,omitempty"`
	Message     string    `json:"message,omitempty"`
	Request     string    `json:"request"`
	Stdout      string    `json:"stdout"`
	Stderr      string    `json:"stderr"`
	StdoutBytes int64     `json:"stdoutBytes"`
	StderrBytes int64     `json:"stderrBytes"`
}
