// Package taskapi is the one call about background tasks that Core makes on an instance (contract 14 section 3).
package taskapi

import (
	"context"
	"net/http"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
)

// Controller passes on what a user wants of a task; [tasks.Manager] is the implementation.
type Controller interface {
	Control(ctx context.Context, coreID int64, state string) error
}

// maxBody is plenty for two fields.
const maxBody = 4 << 10

// Route answers POST /ucloud/{provider}/tasks/pauseOrCancel. Core has checked nothing but that the task belongs to the
// user of the request; the guard of package fileserver makes sure that this is the user of the instance, and the server
// looks the task up among those of the kernel's uid. So another user's task is 404.
func Route(c Controller) fileserver.Route {
	return fileserver.Route{
		Method: http.MethodPost, Path: "tasks/pauseOrCancel", Class: hoptoken.ClassCore, MaxBody: maxBody,
		Intent: intent.Rule{Calls: []string{"tasks.pauseOrCancel"}, Unsigned: true},
		Serve: func(w http.ResponseWriter, call *fileserver.Call) error {
			var req providerapi.PauseOrCancelTask
			if err := call.Decode(w, &req); err != nil {
				return err
			}
			switch req.RequestedState {
			case providerapi.TaskSuspended, providerapi.TaskRunning, providerapi.TaskCancelled:
			default:
				return failure.New(failure.Invalid, "A task can be paused, resumed or cancelled")
			}
			if req.ID <= 0 {
				return failure.New(failure.NotFound, "There is no such task")
			}
			if err := c.Control(call.Context(), req.ID, string(req.RequestedState)); err != nil {
				return err
			}
			return call.Write(w, providerapi.Empty{})
		},
	}
}
