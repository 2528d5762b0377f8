package jobrunner

import (
	"context"
	"encoding/json"
	"errors"
	"path"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/scripts"
)

// MaxTemplateOutput is the most that a program may answer for the template function script(). It is for the runner that
// [TemplateScripts] gets.
const MaxTemplateOutput = 64 << 10

// TemplateScripts runs programs for the template function script() (contract 24 sections 6.3 and 10.4, contract 42 part
// B.16): as the user, on this host, while the job waits to be submitted. Which programs these may be, package jobrender has
// checked. The runner sees to the private file with the variables, to the clean environment, and to the end of the process
// group at its limit. Every failure is one of the application, with a sentence that names the program, and not its place.
func TemplateScripts(r *scripts.Runner) func(ctx context.Context, program string, request []byte) ([]byte, error) {
	return func(ctx context.Context, program string, request []byte) ([]byte, error) {
		h, err := r.Hook(scripts.HookOptions{Name: scripts.HookTemplateScript, Path: program})
		if err != nil {
			return nil, templateFailure(err, program)
		}
		var answer json.RawMessage
		if err := h.Call(ctx, scripts.Call{Reason: "render", Request: json.RawMessage(request)}, &answer); err != nil {
			return nil, templateFailure(err, program)
		}
		return answer, nil
	}
}

// templateFailure says what went wrong with a program. What the program has written is in the log, unless it is for users.
func templateFailure(err error, program string) error {
	why := "failed"
	failed, ok := errors.AsType[*scripts.Error](err)
	switch {
	case !ok, failed.Kind == scripts.TimedOut, failed.Kind == scripts.Interrupted:
		why = "did not end in time"
	case failed.UserMessage != "":
		why = "says: " + failed.UserMessage
	case failed.Kind == scripts.Refused, failed.Kind == scripts.Technical && failed.Signal == "":
		why = "could not be started"
	case failed.Kind == scripts.InvalidReply:
		why = "gave an answer that cannot be used"
	}
	return failure.Wrap(err, failure.Invalid, "The provider's program %s %s", path.Base(program), why)
}
