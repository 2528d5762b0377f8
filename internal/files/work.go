package files

import (
	"context"
	"encoding/json"
	"fmt"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/tasks"
)

// Tasks is what this package needs of [tasks.Manager].
type Tasks interface {
	Register(kind string, r tasks.Runner)
	Submit(ctx context.Context, s tasks.Spec) (id int64, err error)
}

// job is a task under way; [tasks.Task] is one.
type job interface {
	ID() int64
	Params() json.RawMessage
	Progress(p tasks.Progress)
	Summary(text string)
	Checkpoint(ctx context.Context) error
	Attempt() int64
}

// The kinds of tasks. Unfinished ones are taken up by later versions of the program, so the names stay.
const (
	kindDelete     = "delete"
	kindEmptyTrash = "empty_trash"
	kindCopy       = "copy"
	kindMove       = "move"
)

func (s *Service) registerTasks() {
	if s.o.Tasks == nil {
		return
	}
	s.o.Tasks.Register(kindDelete, func(ctx context.Context, t *tasks.Task) error { return s.runDelete(ctx, t) })
	s.o.Tasks.Register(kindEmptyTrash, func(ctx context.Context, t *tasks.Task) error { return s.runEmptyTrash(ctx, t) })
	s.o.Tasks.Register(kindCopy, func(ctx context.Context, t *tasks.Task) error { return s.runCopy(ctx, t) })
	s.o.Tasks.Register(kindMove, func(ctx context.Context, t *tasks.Task) error { return s.runCopy(ctx, t) })
}

var errNoTasks = failure.New(failure.Invalid, "This takes longer than a request may, and background tasks are not available here")

// submit stores a task.
func (s *Service) submit(ctx context.Context, kind, title, icon string, params any) error {
	if s.o.Tasks == nil {
		return errNoTasks
	}
	raw, err := json.Marshal(params)
	if err != nil {
		return fmt.Errorf("encode task: %w", err)
	}
	_, err = s.o.Tasks.Submit(ctx, tasks.Spec{
		Kind: kind, Title: title, Icon: icon, CanPause: true, CanCancel: true, Params: raw,
	})
	return err
}

// shortName is the name of a file for a title.
func shortName(p drives.Path) string { return shorten(drives.Escape(p.Name()), 80) }

func shorten(text string, most int) string {
	runes := []rune(text)
	if len(runes) > most {
		runes = append(runes[:most-1], '…')
	}
	return string(runes)
}
