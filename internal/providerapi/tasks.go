package providerapi

import (
	"math"

	"ucloud-im/internal/ident"
)

// TaskState is the state of a background task at Core (contract 14 section 1).
type TaskState string

// The states. The last three are final.
const (
	TaskInQueue   TaskState = "IN_QUEUE"
	TaskSuspended TaskState = "SUSPENDED"
	TaskRunning   TaskState = "RUNNING"
	TaskCancelled TaskState = "CANCELLED"
	TaskFailure   TaskState = "FAILURE"
	TaskSuccess   TaskState = "SUCCESS"
)

// TaskStatus is what Core shows of a task. Core replaces the whole status with what is posted: a field that is left out
// is erased there. In state FAILURE the web client shows Progress as the error.
type TaskStatus struct {
	State    TaskState `json:"state"`
	Title    *string   `json:"title"`
	Body     *string   `json:"body"`
	Progress *string   `json:"progress"`
	// Percentage is 0 to 100, negative while it is not known; Core sends null before the first post.
	Percentage *float64 `json:"progressPercentage"`
}

// TaskPercentage makes a number fit for [TaskStatus]: what is no number is "not known", since JSON cannot hold it.
func TaskPercentage(p float64) *float64 {
	switch {
	case math.IsNaN(p) || p < 0:
		p = -1
	case p > 100:
		p = 100
	}
	return &p
}

// TaskSpecification says which buttons the web client shows; it is fixed at creation.
type TaskSpecification struct {
	CanPause  bool `json:"canPause"`
	CanCancel bool `json:"canCancel"`
}

// Task is a task as Core describes it.
type Task struct {
	TaskID        int64             `json:"taskId"`
	CreatedAt     Millis            `json:"createdAt"`
	ModifiedAt    Millis            `json:"modifiedAt"`
	CreatedBy     ident.UCloudUser  `json:"createdBy"`
	Provider      string            `json:"provider"` // without the prefix that principals have
	Status        TaskStatus        `json:"status"`
	Specification TaskSpecification `json:"specification"`
	Icon          *string           `json:"icon"`
}

// CreateTask asks Core for a task in the name of a user. Each text is at most 1024 bytes.
type CreateTask struct {
	User     ident.UCloudUser `json:"user"`
	Title    *string          `json:"title"`
	Body     *string          `json:"body"`
	Progress *string          `json:"progress"`
	TaskSpecification
	Icon *string `json:"icon"`
}

// PostTaskStatus replaces the status of a task.
type PostTaskStatus struct {
	Update TaskUpdate `json:"update"`
}

// TaskUpdate is the new status of a task. Core ignores ModifiedAt, but does not accept null.
type TaskUpdate struct {
	TaskID     int64      `json:"taskId"`
	ModifiedAt Millis     `json:"modifiedAt"`
	NewStatus  TaskStatus `json:"newStatus"`
}

// PauseOrCancelTask is what a user wants of a task: SUSPENDED, RUNNING (go on) or CANCELLED. Core has checked that the
// task is the user's, and nothing else.
type PauseOrCancelTask struct {
	ID             int64     `json:"id"`
	RequestedState TaskState `json:"requestedState"`
}
