package roleuser

import (
	"context"
	"encoding/json"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/uploads"
)

// kindFailedUpload is a task that does nothing but fail: the protocol of uploads has no error message, and the browser
// shows an upload as done whatever happened, so the list of tasks is the only place where its user can see it (contract
// 11 section 2.6).
const kindFailedUpload = "upload_failed"

// failedUpload is what such a task tells.
type failedUpload struct {
	Why   string   `json:"why"`
	Files []string `json:"files"`
}

// uploadFailed makes the hook of package uploads.
func (p *parts) uploadFailed() func(context.Context, uploads.Report) error {
	return func(ctx context.Context, r uploads.Report) error {
		params, err := json.Marshal(failedUpload{Why: r.Title(), Files: r.Files})
		if err == nil {
			_, err = p.tasks.Submit(ctx, tasks.Spec{Kind: kindFailedUpload, Title: r.Title(), Params: params})
		}
		return err
	}
}

func runFailedUpload(_ context.Context, t *tasks.Task) error {
	var f failedUpload
	if err := json.Unmarshal(t.Params(), &f); err != nil {
		return err
	}
	t.Progress(tasks.Progress{Body: strings.Join(f.Files, "\n"), Percent: -1})
	return failure.New(failure.Invalid, "%s", f.Why)
}
