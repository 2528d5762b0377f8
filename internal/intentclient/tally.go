package intentclient

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ucloud-im/internal/ipcapi"
)

// tally counts verdicts until they are handed in.
type tally struct {
	server Server
	log    *slog.Logger
	hold   time.Duration
	now    func() time.Time

	handing sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	counts map[ipcapi.IntentCount]int64
	timer  *time.Timer // armed while there is something to hand in
	closed bool
}

// maxRows bounds the counts: there are some 30 calls, and few verdicts occur.
const maxRows = 512

// add counts one verdict. key is without number, user and time.
func (t *tally) add(key ipcapi.IntentCount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.putLocked(key, 1)
	if t.timer == nil && !t.closed {
		t.timer = time.AfterFunc(t.hold, t.due)
	}
}

func (t *tally) putLocked(key ipcapi.IntentCount, n int64) {
	if t.counts == nil {
		t.counts = map[ipcapi.IntentCount]int64{}
	}
	if _, ok := t.counts[key]; ok || len(t.counts) < maxRows {
		t.counts[key] += n
	}
}

// due runs when numbers have been held for long enough.
func (t *tally) due() {
	t.mu.Lock()
	t.timer = nil
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.handing.Add(1)
	t.mu.Unlock()
	defer t.handing.Done()
	ctx, cancel := context.WithTimeout(context.Background(), seenTimeout)
	defer cancel()
	t.hand(ctx)
}

// hand gives the numbers to the server. If it is away they are kept for the next time: nothing is armed for them.
func (t *tally) hand(ctx context.Context) {
	t.mu.Lock()
	counts := t.counts
	t.counts = nil
	t.mu.Unlock()
	if len(counts) == 0 {
		return
	}
	doc := ipcapi.IntentCounts{Counts: make([]ipcapi.IntentCount, 0, len(counts))}
	for key, n := range counts {
		key.Count = n
		doc.Counts = append(doc.Counts, key)
	}
	if err := t.server.Seen(ctx, doc); err != nil {
		t.log.Debug("numbers about intents are not handed in", "error", err)
		t.mu.Lock()
		defer t.mu.Unlock()
		for key, n := range counts {
			t.putLocked(key, n)
		}
	}
}

// close hands in what is left.
func (t *tally) close(ctx context.Context) {
	t.mu.Lock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	t.mu.Unlock()
	t.handing.Wait()
	t.hand(ctx)
}
