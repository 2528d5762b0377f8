package files

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

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
	Params() json.RawMessage
	Progress(p tasks.Progress)
	Summary(text string)
	Checkpoint(ctx context.Context) error
}

// The kinds of tasks. Unfinished ones are taken up by later versions of the program, so the names stay.
const (
	kindDelete     = "delete"
	kindEmptyTrash = "empty_trash"
)

func (s *Service) registerTasks() {
	if s.o.Tasks == nil {
		return
	}
	s.o.Tasks.Register(kindDelete, func(ctx context.Context, t *tasks.Task) error { return s.runDelete(ctx, t) })
	s.o.Tasks.Register(kindEmptyTrash, func(ctx context.Context, t *tasks.Task) error { return s.runEmptyTrash(ctx, t) })
}

// submit stores a task.
func (s *Service) submit(ctx context.Context, kind, title, icon string, params any) error {
	if s.o.Tasks == nil {
		return failure.New(failure.Invalid, "This takes longer than a request may, and background tasks are not available here")
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
func shortName(p drives.Path) string {
	const most = 80
	name := []rune(drives.Escape(p.Name()))
	if len(name) > most {
		name = append(name[:most-1], '…')
	}
	return string(name)
}

// tally counts what a task does and tells about it.
type tally struct {
	job    job
	what   string // "files removed"
	begin  time.Time
	told   time.Time
	done   int
	failed int
	first  error  // the first failure
	where  string // of the first failure, as in JSON
}

// tellEvery is how often progress is told. The manager passes on less.
const tellEvery = 100 * time.Millisecond

func (t *tally) add() {
	t.done++
	if now := time.Now(); now.Sub(t.told) >= tellEvery {
		t.told = now
		t.job.Progress(tasks.Progress{
			Body: fmt.Sprintf("%d %s", t.done, t.what),
			Text: fmt.Sprintf("%.0f files/s", float64(t.done)/max(now.Sub(t.begin).Seconds(), 0.001)), Percent: -1,
		})
	}
}

// fail counts a failure.
func (t *tally) fail(p drives.Path, err error) {
	t.failed++
	if t.first == nil {
		t.first, t.where = err, p.UCloud()
	}
}

// conclude is the end of a task: a success tells how much was done, and a failure how much was not and why.
func (s *Service) conclude(ctx context.Context, t *tally) error {
	if t.failed == 0 {
		t.job.Summary(fmt.Sprintf("%d %s", t.done, t.what))
		return nil
	}
	cause := s.refuse(ctx, t.first, changing)
	return failure.Wrap(cause, failure.KindOf(cause), "%d of %d files failed: %s (%s)",
		t.failed, t.done+t.failed, failure.Why(cause), t.where)
}
