package scripts

import (
	"context"
	"slices"
	"sync"
)

// lanes lets one call per key through at a time, in the order of arrival.
type lanes struct {
	mu    sync.Mutex
	byKey map[string][]chan struct{} // the first has the lane, the others wait until their channel is closed
}

// enter waits for the turn of key and returns the function that ends it. An empty key waits for nobody.
func (l *lanes) enter(ctx context.Context, key string) (leave func(), err error) {
	if key == "" {
		return func() {}, nil
	}
	turn := make(chan struct{})
	l.mu.Lock()
	if l.byKey == nil {
		l.byKey = map[string][]chan struct{}{}
	}
	queue := append(l.byKey[key], turn)
	l.byKey[key] = queue
	if len(queue) == 1 {
		close(turn)
	}
	l.mu.Unlock()
	leave = sync.OnceFunc(func() { l.leave(key, turn) })
	select {
	case <-turn:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// leave takes a caller out of the queue, wherever it stands.
func (l *lanes) leave(key string, turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.byKey[key]
	i := slices.Index(queue, turn)
	queue = slices.Delete(queue, i, i+1)
	if len(queue) == 0 {
		delete(l.byKey, key)
		return
	}
	l.byKey[key] = queue
	if i == 0 {
		close(queue[0])
	}
}
