package files

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/tasks"
)

// tally counts what a task does and tells about it. It is safe for concurrent use.
type tally struct {
	job   job
	did   string // "copied"
	begin time.Time

	mu       sync.Mutex // guards the fields below
	told     time.Time
	done     int
	bytes    int64
	found    amount // so far
	complete bool   // all has been found
	failed   int
	failures []failed // the first ones
	full     bool     // the storage is full: to go on makes no sense
	removing bool     // all was copied, and the originals of a move are being removed
}

// amount is how much there is.
type amount struct {
	files int
	bytes int64
}

// failed is one thing that did not work.
type failed struct {
	where string // as people read it
	err   error
}

const (
	// tellEvery is how often progress is told. The manager passes on less.
	tellEvery = 100 * time.Millisecond
	// maxFailures is how many failures are told by name.
	maxFailures = 20
	// maxBody and maxWhere bound what is told about failures, in characters.
	maxBody, maxWhere = 900, 100
)

func newTally(j job, did string) *tally { return &tally{job: j, did: did, begin: time.Now()} }

// add counts something that is done.
func (t *tally) add(files int, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += files
	t.bytes += bytes
	t.tell(false)
}

// find notes how much there is to do so far; complete tells that this is all.
func (t *tally) find(a amount, complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.found, t.complete = a, complete
	t.tell(false)
}

// fail counts a failure.
func (t *tally) fail(where string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed++
	if len(t.failures) < maxFailures {
		t.failures = append(t.failures, failed{where, err})
	}
	t.full = t.full || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func (t *tally) failedSoFar() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *tally) isFull() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.full
}

// tell passes on the progress, if it is time to.
func (t *tally) tell(now bool) {
	at := time.Now()
	if !now && at.Sub(t.told) < tellEvery {
		return
	}
	t.told = at
	t.job.Progress(t.progress(at))
}

// progress is how far the task is. A percentage is told when all has been found: a file counts as much as some bytes of
// content, so that neither many small files nor one large one make it jump.
func (t *tally) progress(at time.Time) tasks.Progress {
	seconds := max(at.Sub(t.begin).Seconds(), 0.001)
	const perFile = 16 << 10
	p := tasks.Progress{
		Body:    fmt.Sprintf("%d files", t.done),
		Text:    fmt.Sprintf("%.2f files/s", float64(t.done)/seconds),
		Percent: -1,
	}
	if t.found.files > 0 {
		p.Body = fmt.Sprintf("%d / %d files", t.done, max(t.found.files, t.done))
	}
	if t.bytes > 0 || t.found.bytes > 0 {
		amounts := size(float64(t.bytes))
		if t.found.files > 0 {
			amounts += "/" + size(float64(max(t.found.bytes, t.bytes)))
		}
		p.Body = amounts + " | " + p.Body
		p.Text = size(float64(t.bytes)/seconds) + "/s | " + p.Text
	}
	if all := float64(t.found.bytes) + perFile*float64(t.found.files); t.complete && all > 0 {
		p.Percent = min(100*(float64(t.bytes)+perFile*float64(t.done+t.failed))/all, 100)
	}
	return p
}

// size writes an amount of bytes for people.
func size(bytes float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for ; bytes >= 999.995 && i < len(units)-1; i++ {
		bytes /= 1000
	}
	if i == 0 {
		return fmt.Sprintf("%.0f B", bytes)
	}
	return fmt.Sprintf("%.2f %s", bytes, units[i])
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// cancelled says how far a task came that is ended by its user.
func (t *tally) cancelled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.job.Summary(fmt.Sprintf("Cancelled. %s %s before", plural(t.done, "file"), t.did))
}

// conclude is the end of a task: a success tells how much was done, and a failure how much was not and why (contract 14
// section 5). note, if not empty, is told beside a failure.
func (s *Service) conclude(ctx context.Context, t *tally, note string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failed == 0 {
		t.tell(true)
		t.job.Summary(plural(t.done, "file") + " " + t.did)
		return nil
	}
	p := t.progress(time.Now())
	whys := make([]string, len(t.failures))
	var cause error
	for i, f := range t.failures {
		err := s.refuse(ctx, f.err, changing)
		whys[i] = lowerFirst(failure.Why(err))
		if i == 0 {
			cause = err
		}
	}
	all := max(t.done+t.failed, t.found.files)
	var text string
	switch {
	case t.removing:
		text = fmt.Sprintf("All was copied, but of the originals %d could not be removed", t.failed)
	case t.full && t.done == 0:
		text = "Nothing was " + t.did
	case t.full && t.complete:
		text = fmt.Sprintf("Only %d of %s %s", t.done, plural(all, "file"), t.did)
	case t.full:
		text = fmt.Sprintf("Only %s %s", plural(t.done, "file"), t.did)
	default:
		text = fmt.Sprintf("%d of %s failed", t.failed, plural(all, "file"))
	}
	text = fmt.Sprintf("%s: %s (%s)", text, whys[0], middle(t.failures[0].where, maxWhere))
	if note != "" {
		text += ". " + note
	}
	p.Body = t.list(whys)
	t.job.Progress(p)
	err := failure.Wrap(cause, failure.KindOf(cause), "%s", text)
	if t.passing() {
		return tasks.Transient(err)
	}
	return err
}

// passing tells whether all failures are of the kind that passes, as when a file server is restarted (contract 14 section
// 5). The task is tried again then, and leaves out what is done.
func (t *tally) passing() bool {
	if t.failed > len(t.failures) {
		return false
	}
	for _, f := range t.failures {
		passes := false
		for _, errno := range []unix.Errno{unix.EAGAIN, unix.ESTALE, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.ENOTCONN, unix.ESHUTDOWN} {
			passes = passes || errors.Is(f.err, errno)
		}
		if !passes {
			return false
		}
	}
	return true
}

// list names what has failed, as far as there is room for it.
func (t *tally) list(whys []string) string {
	var b strings.Builder
	n := 0
	for i, f := range t.failures {
		item := fmt.Sprintf("%s: %s", middle(f.where, maxWhere), whys[i])
		if i > 0 {
			item = "; " + item
		}
		if b.Len()+len(item) > maxBody {
			break
		}
		b.WriteString(item)
		n++
	}
	if more := t.failed - n; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// lowerFirst makes a sentence fit for the middle of one.
func lowerFirst(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z' {
		return string(s[0]+'a'-'A') + s[1:]
	}
	return s
}

// middle shortens a path by leaving out its middle.
func middle(s string, most int) string {
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	half := most / 2
	return string(runes[:half]) + "…" + string(runes[len(runes)-(most-half-1):])
}

// discoverAfter is how long a task works before what there is to do is counted beside it. Most are done by then.
const discoverAfter = 500 * time.Millisecond

// discover counts what is below a folder, for the percentage. It goes on beside the work, and ends with it. What cannot
// be read is not counted: the work itself tells about that.
func (t *tally) discover(ctx context.Context, parent *drives.Dir, name string, want drives.Node) {
	timer := time.NewTimer(discoverAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	dir, node, err := parent.OpenSub(name)
	if err != nil {
		return
	}
	if !node.Same(want) {
		dir.Close()
		return
	}
	var walk tree[struct{}]
	defer walk.close()
	walk.push(&level[struct{}]{name: name, node: node, dir: dir})
	var found amount
	for !walk.empty() {
		if ctx.Err() != nil || t.job.Checkpoint(ctx) != nil {
			return
		}
		e, ok, err := walk.entry()
		if err != nil || !ok {
			l, err := walk.pop()
			l.dir.Close()
			if err != nil {
				return
			}
			continue
		}
		entry := string(e.Name)
		here := walk.last().dir
		if e.Type == drives.EntryDirectory {
			if sub, node, err := here.OpenSub(entry); err == nil {
				walk.push(&level[struct{}]{name: entry, node: node, dir: sub})
			}
			continue
		}
		switch node, err := here.Node(entry); {
		case err != nil || drives.IsDraft(entry):
			continue
		case node.Kind == drives.NodeDirectory: // the file system does not tell kinds
			if sub, node, err := here.OpenSub(entry); err == nil {
				walk.push(&level[struct{}]{name: entry, node: node, dir: sub})
			}
			continue
		case node.Kind == drives.NodeRegular:
			found.bytes += node.Size
		}
		found.files++
		if found.files%1000 == 0 {
			t.find(found, false)
		}
	}
	t.find(found, true)
}
