package websock

import (
	"context"
	"sync"
)

// Lives lets the sockets of a service be closed: those that there are, so that their clients come back, or all for ever.
// The zero value is ready for use.
type Lives struct {
	mu   sync.Mutex // guards the fields below
	ctx  context.Context
	end  context.CancelFunc
	over bool
}

// Now is the context of sockets that begin now.
func (l *Lives) Now() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nowLocked()
}

func (l *Lives) nowLocked() context.Context {
	if l.ctx == nil {
		l.ctx, l.end = context.WithCancel(context.Background())
	}
	return l.ctx
}

// Interrupt ends the sockets that there are. New ones may come.
func (l *Lives) Interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nowLocked()
	l.end()
	if !l.over {
		l.ctx = nil
	}
}

// Close ends the sockets that there are, and new ones at once.
func (l *Lives) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nowLocked()
	l.over = true
	l.end()
}
