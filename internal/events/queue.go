package events

import (
	"context"
	"sync"
	"time"
)

// queue holds messages between the reader and the writer. It is bounded in bytes: a reader that finds it full waits,
// and the queue remembers that, since Core drops events for readers that wait.
type queue struct {
	limit int // bytes

	mu       sync.Mutex // guards what follows
	messages []queued
	bytes    int
	closed   bool
	stalled  bool

	arrived chan struct{} // holds one element: messages or closed changed
	taken   chan struct{} // holds one element: room was made
}

type queued struct {
	data []byte
	at   time.Time
}

func newQueue(limit int) *queue {
	return &queue{limit: limit, arrived: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// put adds a message. One that is larger than the limit is accepted when the queue is empty.
func (q *queue) put(ctx context.Context, data []byte) error {
	for {
		q.mu.Lock()
		if len(q.messages) == 0 || q.bytes+len(data) <= q.limit {
			q.messages = append(q.messages, queued{data: data, at: time.Now()})
			q.bytes += len(data)
			q.mu.Unlock()
			signal(q.arrived)
			return nil
		}
		q.stalled = true
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.taken:
		}
	}
}

// close says that nothing more will come. What is queued can still be taken.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	signal(q.arrived)
}

// take removes up to most messages without waiting. done tells that the queue is closed and empty now.
func (q *queue) take(most int) (messages []queued, done bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(most, len(q.messages))
	messages = append(messages, q.messages[:n]...)
	for i := range n {
		q.bytes -= len(q.messages[i].data)
		q.messages[i] = queued{} // for the garbage collector
	}
	q.messages = q.messages[n:]
	if len(q.messages) > 0 {
		signal(q.arrived)
	} else {
		q.messages = nil
	}
	if n > 0 {
		signal(q.taken)
	}
	return messages, q.closed && len(q.messages) == 0
}

// state tells how far behind the writer is: bytes waiting, since when, and whether the reader ever had to wait.
func (q *queue) state() (bytes int, since time.Time, stalled bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.messages) > 0 {
		since = q.messages[0].at
	}
	return q.bytes, since, q.stalled
}
