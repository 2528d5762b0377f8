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
	Attempt() int64
}

// The kinds of tasks. Unfinished ones are taken up by later versions of the program, so the names stay.
const (
	kindDelete     = "delete"
	kindEmptyTrash = "empty_trash"
	kindCopy       = "copy"
)

func (s *Service) registerTasks() {
	if s.o.Tasks == nil {
		return
	}
	s.o.Tasks.Register(kindDelete, func(ctx context.Context, t *tasks.Task) error { return s.runDelete(ctx, t) })
	s.o.Tasks.Register(kindEmptyTrash, func(ctx context.Context, t *tasks.Task) error { return s.runEmptyTrash(ctx, t) })
	s.o.Tasks.Register(kindCopy, func(ctx context.Context, t *tasks.Task) error { return s.runCopy(ctx, t) })
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

// tally counts what a task does and tells about it.
type tally struct {
	job    job
	what   string // "files removed"
	begin  time.Time
	told   time.Time
	done   int
	bytes  int64 // 0: it is not about bytes
	failed int
	first  error  // the first failure
	where  string // of the first failure, as in JSON
}

// tellEvery is how often progress is told. The manager passes on less.
const tellEvery = 100 * time.Millisecond

func (t *tally) add() {
	t.done++
	t.tell()
}

// tell passes on the progress, if it is time to.
func (t *tally) tell() {
	now := time.Now()
	if now.Sub(t.told) < tellEvery {
		return
	}
	t.told = now
	seconds := max(now.Sub(t.begin).Seconds(), 0.001)
	p := tasks.Progress{
		Body: fmt.Sprintf("%d %s", t.done, t.what), Text: fmt.Sprintf("%.2f files/s", float64(t.done)/seconds), Percent: -1,
	}
	if t.bytes > 0 {
		const mega = 1e6
		p.Body = fmt.Sprintf("%.2f MB | %s", float64(t.bytes)/mega, p.Body)
		p.Text = fmt.Sprintf("%.2f MB/s | %s", float64(t.bytes)/mega/seconds, p.Text)
	}
	t.job.Progress(p)
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
