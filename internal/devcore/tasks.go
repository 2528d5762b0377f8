package devcore

import (
	"net/http"
	"slices"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// finalTask are the states after which Core changes nothing any more.
var finalTask = []providerapi.TaskState{providerapi.TaskSuccess, providerapi.TaskFailure, providerapi.TaskCancelled}

func (c *Core) serveCreateTask(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.CreateTask](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	known := c.users[req.User] != nil
	var task providerapi.Task
	if known {
		now := providerapi.MillisOf(time.Now())
		task = providerapi.Task{
			TaskID: int64(len(c.tasks) + 1), CreatedAt: now, ModifiedAt: now, CreatedBy: req.User, Provider: c.opt.Provider, Icon: req.Icon,
			Status:        providerapi.TaskStatus{State: providerapi.TaskInQueue, Title: req.Title, Body: req.Body, Progress: req.Progress},
			Specification: providerapi.TaskSpecification{CanPause: req.CanPause, CanCancel: req.CanCancel},
		}
		c.tasks = append(c.tasks, task)
	}
	c.mu.Unlock()
	if !known {
		c.die(r, "a task for a user that Core does not know")
	}
	respond(w, http.StatusOK, task)
}

func (c *Core) servePostTaskStatus(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.PostTaskStatus](w, r)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := req.Update.TaskID - 1
	if i < 0 || i >= int64(len(c.tasks)) {
		errorBody(w, http.StatusNotFound, "Not found")
		return
	}
	t := &c.tasks[i]
	t.Status, t.ModifiedAt = req.Update.NewStatus, providerapi.MillisOf(time.Now())
	respond(w, http.StatusOK, providerapi.Empty{})
}

// Tasks are the background tasks of a user, oldest first.
func (c *Core) Tasks(who ident.UCloudUser) []providerapi.Task {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []providerapi.Task
	for _, t := range c.tasks {
		if t.CreatedBy == who {
			out = append(out, t)
		}
	}
	return out
}

// Ended tells whether a task has come to its end.
func Ended(t providerapi.Task) bool { return slices.Contains(finalTask, t.Status.State) }
