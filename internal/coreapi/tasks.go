package coreapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"ucloud-im/internal/providerapi"
)

// CreateTask makes a record of a background task in the name of a user and gives Core's id of it (contract 14
// section 2). A user whom Core does not know is a [StatusError] with 404.
//
// It must not be repeated without thought: each call makes another record, and a provider cannot look for records.
// Where the outcome is unknown, the record that may exist leaves the user's list after five minutes without a post.
func (c *Client) CreateTask(ctx context.Context, t providerapi.CreateTask) (int64, error) {
	const name = "tasks.create"
	if t.User == "" {
		return 0, fmt.Errorf("%s: %w: no user", name, ErrNotSent)
	}
	var answer providerapi.Task
	if err := c.do(ctx, call{name: name, method: http.MethodPost, path: "/api/tasks", body: t}, &answer); err != nil {
		return 0, err
	}
	if answer.TaskID <= 0 || answer.CreatedBy != t.User {
		return 0, fmt.Errorf("%s: %w: task %d of another user than asked for", name, ErrNoAnswer, answer.TaskID)
	}
	return answer.TaskID, nil
}

// PostTaskStatus replaces the status of a task at Core. The same status may be posted again. Core does not check the
// order of states: a late RUNNING after SUCCESS would open the task again, so the caller must keep the order. A task
// that is unknown, or another provider's, is a [StatusError] with 404.
func (c *Client) PostTaskStatus(ctx context.Context, coreID int64, s providerapi.TaskStatus) error {
	return c.do(ctx, call{
		name: "tasks.postStatus", method: http.MethodPost, path: "/api/tasks/postStatus", repeatable: true,
		body: providerapi.PostTaskStatus{Update: providerapi.TaskUpdate{
			TaskID: coreID, ModifiedAt: providerapi.MillisOf(time.Now()), NewStatus: s,
		}},
	}, nil)
}
