package taskserver

import (
	"container/heap"
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/providerapi"
)

const (
	// postGap is the least time between two posts of a task (contract 14 section 2).
	postGap = 500 * time.Millisecond
	// postAgain keeps a task in the user's list, which shows what was posted in the last five minutes.
	postAgain = 90 * time.Second
	// postParallel and postRate bound the posts of all tasks. Beyond, each is posted less often; the newest state counts.
	postParallel = 8
	postRate     = 50
	postRetryMax = time.Minute
)

// poster shows tasks that have not ended at Core: the newest status of each, from memory. A slow Core delays posts and
// nothing else.
type poster struct {
	core Core
	log  *slog.Logger
	pace *rate.Limiter
	kick chan struct{}

	mu      sync.Mutex // guards the fields below
	entries map[int64]*entry
	queue   dueQueue // entries that Core knows, that are not closed and not under way
}

// entry is what Core is to show of one task.
type entry struct {
	id, coreID int64
	status     providerapi.TaskStatus
	due        time.Time
	place      int // in the queue; -1: not in it
	last       time.Time
	failures   int
	news       bool          // status has not been posted
	closed     bool          // nothing is posted any more
	unsure     bool          // the last post may still be on its way
	underWay   chan struct{} // closed when the post under way has ended; nil: none is
}

func newPoster(core Core, log *slog.Logger) *poster {
	return &poster{
		core: core, log: log, pace: rate.NewLimiter(postRate, postRate/5), kick: make(chan struct{}, 1), entries: map[int64]*entry{},
	}
}

// put sets what is to be shown. coreID 0 means that Core does not know the task yet.
func (p *poster) put(id, coreID int64, s providerapi.TaskStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[id]
	if e == nil {
		e = &entry{id: id, place: -1}
		p.entries[id] = e
	}
	if e.closed {
		return
	}
	e.coreID, e.status, e.news = coreID, s, true
	p.enqueueLocked(e, e.last.Add(postGap))
}

// enqueueLocked puts an entry into its place, or moves it.
func (p *poster) enqueueLocked(e *entry, due time.Time) {
	if e.coreID == 0 || e.closed || e.underWay != nil {
		return
	}
	if e.failures > 0 && e.place >= 0 {
		return // news do not hurry what waits for Core to come back
	}
	e.due = due
	if e.place >= 0 {
		heap.Fix(&p.queue, e.place)
	} else {
		heap.Push(&p.queue, e)
	}
	p.stir()
}

// stir has run look at the queue.
func (p *poster) stir() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// close silences a task: no post begins any more. One may still be under way, see silence.
func (p *poster) close(id int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[id]
	if e == nil {
		return
	}
	p.closeLocked(e)
	if e.underWay == nil && !e.unsure {
		delete(p.entries, id)
	}
}

func (p *poster) closeLocked(e *entry) {
	e.closed = true
	if e.place >= 0 {
		heap.Remove(&p.queue, e.place)
	}
}

// silence closes a task, if it is not, and waits until nothing is under way for it. sure: nothing that was posted can
// arrive later.
func (p *poster) silence(ctx context.Context, id int64) (sure bool, err error) {
	for {
		p.mu.Lock()
		e := p.entries[id]
		if e != nil {
			p.closeLocked(e)
		}
		if e == nil || e.underWay == nil {
			defer p.mu.Unlock()
			return e == nil || !e.unsure, nil
		}
		wait := e.underWay
		p.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// forget drops what is remembered about a closed task.
func (p *poster) forget(id int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[id]; e != nil && e.closed && e.underWay == nil {
		delete(p.entries, id)
	}
}

// run posts until ctx ends, and waits for what is under way.
func (p *poster) run(ctx context.Context) {
	var posts sync.WaitGroup
	defer posts.Wait()
	slots := make(chan struct{}, postParallel)
	for {
		wait := p.wait(time.Now())
		if wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-p.kick:
			case <-t.C:
			}
			t.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		if wait > 0 {
			continue
		}
		// First the room, then the task: what is posted is chosen at the last moment.
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if p.pace.Wait(ctx) != nil {
			return
		}
		e := p.begin(time.Now())
		if e == nil {
			<-slots
			continue
		}
		posts.Go(func() {
			defer func() { <-slots }()
			p.post(ctx, e)
		})
	}
}

// wait is how long nothing is due; 0: something is.
func (p *poster) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return time.Hour
	}
	return max(0, p.queue[0].due.Sub(now))
}

// begin takes what is due longest.
func (p *poster) begin(now time.Time) *entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 || p.queue[0].due.After(now) {
		return nil
	}
	e := heap.Pop(&p.queue).(*entry)
	e.underWay = make(chan struct{})
	return e
}

// post makes one post.
func (p *poster) post(ctx context.Context, e *entry) {
	p.mu.Lock()
	coreID, s, closed := e.coreID, e.status, e.closed
	e.news = false
	p.mu.Unlock()
	var err error
	if !closed {
		err = p.core.PostTaskStatus(ctx, coreID, s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	close(e.underWay)
	e.underWay, e.last = nil, time.Now()
	switch {
	case closed:
	case err == nil:
		e.failures, e.unsure = 0, false
	case coreapi.Status(err) == http.StatusNotFound:
		p.log.WarnContext(ctx, "Core has forgotten a task", "task", e.id, "core", coreID)
		e.closed = true
	default:
		e.unsure = e.unsure || coreapi.Unanswered(err)
		e.failures++
		e.news = true
		if e.failures&(e.failures-1) == 0 && ctx.Err() == nil {
			p.log.WarnContext(ctx, "progress of a task was not posted", "task", e.id, "failures", e.failures, "error", err)
		}
	}
	switch {
	case e.closed:
		if !e.unsure {
			delete(p.entries, e.id)
		}
	case e.failures > 0:
		p.queueFailedLocked(e)
	case e.news:
		p.enqueueLocked(e, e.last.Add(postGap))
	default:
		p.enqueueLocked(e, e.last.Add(postAgain))
	}
}

// queueFailedLocked has an entry tried again later.
func (p *poster) queueFailedLocked(e *entry) {
	e.due = e.last.Add(min(time.Second<<min(e.failures-1, 10), postRetryMax))
	heap.Push(&p.queue, e)
	p.stir()
}

// dueQueue is a heap of entries, the earliest first.
type dueQueue []*entry

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q dueQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].place, q[j].place = i, j }

// Push implements [heap.Interface].
func (q *dueQueue) Push(x any) {
	e := x.(*entry)
	e.place = len(*q)
	*q = append(*q, e)
}

// Pop implements [heap.Interface].
func (q *dueQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.place = -1
	return e
}
