package files

import (
	"sync"
	"time"

	"ucloud-im/internal/drives"
)

// recent remembers the last moves for a short time. Core delivers calls more than once (contract 10, repeated delivery):
// a move whose source is gone has succeeded if its target is the very inode that was moved.
type recent struct {
	now func() time.Time

	mu    sync.Mutex // guards the fields below
	moves map[recentKey]recentMove
	order []recentKey // oldest first; may name keys that are gone or newer
}

type recentKey struct{ from, to string } // as asked for

type recentMove struct {
	node drives.Node
	name string // that the target has got
	at   time.Time
}

// Repetitions come within seconds: Core retries for half a minute, and a person clicks twice. Entries are bounded as
// well, at about 1 KiB each with long paths.
const (
	recentLife  = 5 * time.Minute
	recentMoves = 512
)

func newRecent(now func() time.Time) *recent {
	return &recent{now: now, moves: make(map[recentKey]recentMove)}
}

func (r *recent) add(key recentKey, node drives.Node, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for len(r.order) > 0 {
		oldest := r.order[0]
		if len(r.order) < recentMoves && now.Sub(r.moves[oldest].at) < recentLife {
			break
		}
		delete(r.moves, oldest)
		r.order = r.order[1:]
	}
	r.moves[key] = recentMove{node: node, name: name, at: now}
	r.order = append(r.order, key)
}

// get gives the move that the key stood for, if it is remembered.
func (r *recent) get(key recentKey) (recentMove, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.moves[key]
	return m, ok && r.now().Sub(m.at) < recentLife
}
