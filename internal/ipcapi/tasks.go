package ipcapi

import (
	"encoding/json"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
)

// Calls about background tasks (contract 14). The server keeps the tasks, hands them out and talks to Core; an instance
// does the work. A task belongs to the uid and the UCloud user that submitted it: to everybody else it does not exist.
var (
	// TaskFollow is how an instance is handed tasks. It is open while the instance has tasks that are not finished.
	TaskFollow = ipc.Stream[TaskHello, TaskItem]{Name: "task.follow", Access: ipc.AccessMapped}
	// TaskLeave says that the calling process is about to end and takes no more tasks.
	TaskLeave    = ipc.Call[Empty, Empty]{Name: "task.leave", Access: ipc.AccessMapped}
	TaskSubmit   = ipc.Call[TaskSubmission, TaskRef]{Name: "task.submit", Access: ipc.AccessMapped}
	TaskProgress = ipc.Call[TaskProgressBatch, Empty]{Name: "task.progress", Access: ipc.AccessMapped}
	TaskReport   = ipc.Call[TaskEvent, Empty]{Name: "task.report", Access: ipc.AccessMapped}
	TaskSave     = ipc.Call[TaskSaving, Empty]{Name: "task.save", Access: ipc.AccessMapped}
	// TaskControl passes on what the user asked Core for.
	TaskControl = ipc.Call[TaskWish, Empty]{Name: "task.control", Access: ipc.AccessMapped}

	TaskList   = ipc.Stream[Empty, TaskPage]{Name: "task.list", Access: ipc.AccessViewer}
	TaskCancel = ipc.Call[TaskMutation, MutationReport]{Name: "task.cancel", Access: ipc.AccessOperator}
)

// Limits of what an instance may say about a task, in bytes. Texts that people read are cut by the server instead.
const (
	MaxTaskParams = 512 << 10
	MaxTaskSaved  = 256 << 10
	MaxTaskText   = 16 << 10 // of one text, before it is cut
	MaxTaskBatch  = 256      // tasks in one batch of progress
)

// TaskRun names one hand-out of a task. What an instance says about an older hand-out than the last one is refused.
type TaskRun struct {
	ID      int64 `json:"id"`
	Attempt int64 `json:"attempt"`
}

// TaskClaim is a hand-out that the instance still has, after it lost the server.
type TaskClaim struct {
	TaskRun
	Suspended bool `json:"suspended,omitempty"` // it stands still, as it was asked to
}

// TaskHello opens the stream.
type TaskHello struct {
	Max    int         `json:"max"` // tasks that the instance runs at a time; 0: no limit of its own
	Claims []TaskClaim `json:"claims,omitempty"`
}

// Kinds of [TaskItem].
const (
	TaskItemRun     = "run"     // Work is set: begin, or continue where it was saved
	TaskItemPause   = "pause"   // stand still at the next occasion, then report suspended
	TaskItemResume  = "resume"  // go on; not necessarily after a suspended report
	TaskItemCancel  = "cancel"  // end, then report cancelled
	TaskItemDrop    = "drop"    // it is not yours any more: end, and report nothing
	TaskItemPending = "pending" // Pending is set: how many tasks wait or run; with 0 the instance may end
)

// TaskItem is what the server tells an instance.
type TaskItem struct {
	Kind string `json:"kind"`
	TaskRun
	Work    *TaskWork `json:"work,omitempty"`
	Pending int       `json:"pending,omitempty"`
}

// TaskWork is a task as it is handed out.
type TaskWork struct {
	Kind   string          `json:"kind"`
	Title  string          `json:"title"`
	Params json.RawMessage `json:"params,omitempty"`
	Saved  json.RawMessage `json:"saved,omitempty"`
}

// TaskSubmission is a new task. A second one with the same Key is the same task.
type TaskSubmission struct {
	Key       []byte          `json:"key"`  // 16 random bytes
	Kind      string          `json:"kind"` // small letters and _, at most 32
	Title     string          `json:"title"`
	Icon      string          `json:"icon,omitempty"`
	CanPause  bool            `json:"canPause,omitempty"`
	CanCancel bool            `json:"canCancel,omitempty"`
	Hidden    bool            `json:"hidden,omitempty"` // no record at Core
	Params    json.RawMessage `json:"params,omitempty"`
}

// TaskRef names a task by our id.
type TaskRef struct {
	ID int64 `json:"id"`
}

// TaskState is how far a task is, for people: the body says what, Text how fast or why.
type TaskState struct {
	Body    string  `json:"body,omitempty"`
	Text    string  `json:"text,omitempty"`
	Percent float64 `json:"percent"` // 0 to 100; negative: not known
}

// TaskProgressBatch is the newest progress of some tasks.
type TaskProgressBatch struct {
	Tasks []TaskProgressed `json:"tasks"`
}

// TaskProgressed is the newest progress of one task.
type TaskProgressed struct {
	TaskRun
	TaskState
}

// Outcomes of a [TaskEvent].
const (
	TaskSuspended = "suspended" // it stands still, as asked
	TaskSucceeded = "succeeded"
	TaskFailed    = "failed"
	TaskCancelled = "cancelled"
	TaskReleased  = "released" // interrupted: to be handed out again
	TaskRetry     = "retry"    // it met an error that may pass: to be handed out again, later
)

// TaskEvent ends a hand-out, or says that it stands still. It is repeated until it is answered; one that came through
// before is answered with success again. Conflict means that the hand-out is not the last one.
type TaskEvent struct {
	TaskRun
	Outcome string    `json:"outcome"`
	State   TaskState `json:"state"`
}

// TaskSaving stores where a hand-out would continue.
type TaskSaving struct {
	TaskRun
	Saved json.RawMessage `json:"saved"`
}

// TaskWish is what a user wants of a task that Core shows: State is SUSPENDED, RUNNING or CANCELLED.
type TaskWish struct {
	CoreID int64  `json:"coreId"`
	State  string `json:"state"`
}

// TaskInfo is a task as operators see it.
type TaskInfo struct {
	ID        int64            `json:"id"`
	CoreID    int64            `json:"coreId,omitempty"`
	UID       ident.UID        `json:"uid"`
	User      ident.UCloudUser `json:"ucloudName"`
	LocalName string           `json:"localName,omitempty"`
	Kind      string           `json:"type"`
	Title     string           `json:"title"`
	State     string           `json:"state"`
	Wanted    string           `json:"wanted,omitempty"`
	Body      string           `json:"body,omitempty"`
	Progress  string           `json:"progress,omitempty"`
	Percent   float64          `json:"percent"`
	Attempt   int64            `json:"attempt"`
	Retries   int              `json:"retries,omitempty"`
	Connected bool             `json:"connected"` // an instance has it in hand now
	CreatedAt time.Time        `json:"createdAt"`
	UpdatedAt time.Time        `json:"updatedAt"`
}

// TaskPage is a part of a list of tasks.
type TaskPage struct {
	Items []TaskInfo `json:"items"`
}

// TaskMutation changes the named tasks.
type TaskMutation struct {
	IDs    []int64 `json:"ids"`
	Reason string  `json:"reason,omitempty"`
	DryRun bool    `json:"dryRun,omitempty"`
}
