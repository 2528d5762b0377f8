package uploads

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

const (
	sweepPage   = 512                  // entries between two pauses
	sweepPause  = 5 * time.Millisecond // so that a large directory costs next to nothing
	maxSwept    = 4096                 // directories that are remembered
	maxPerConn  = 256                  // directories that one connection has brought
	sweepsAhead = 64                   // directories that wait
)

// janitor removes the hidden files of processes that were killed. It looks only at directories to which something has
// been uploaded, each once a day, one after the other. It works as long as the service, not as the connection: most
// connections are over in a moment.
type janitor struct {
	s    *Service
	life time.Duration

	mu      sync.Mutex // guards the fields below
	seen    map[dirKey]*swept
	queue   []*drives.Dir
	running bool
}

type dirKey struct{ dev, ino uint64 }

type swept struct {
	cursor drives.Cursor
	done   time.Time // of the last complete pass
	busy   bool      // is queued or being looked at
}

// offer tells of a directory to which something has been uploaded. The caller must be counted by Service.work.
func (j *janitor) offer(dir *drives.Dir) {
	v, err := dir.Identify()
	if err != nil {
		return
	}
	key := dirKey{v.Dev, v.Ino}
	if !j.claim(key) {
		return
	}
	list, err := dir.Clone() // readable, with a position and a life of its own
	if err != nil {
		j.release(key)
		j.s.log.Debug("old files of uploads were not looked for", "error", err)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = append(j.queue, list)
	if !j.running {
		j.running = true
		j.s.work.Go(j.run)
	}
}

// claim reserves a directory if it is due and there is room for it.
func (j *janitor) claim(k dirKey) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) >= sweepsAhead {
		return false // another file will bring the directory again
	}
	st := j.seen[k]
	if st == nil {
		if len(j.seen) >= maxSwept {
			maps.DeleteFunc(j.seen, func(_ dirKey, st *swept) bool { return !st.busy })
		}
		st = &swept{}
		j.seen[k] = st
	}
	if st.busy || !st.done.IsZero() && j.s.now().Sub(st.done) < j.life {
		return false
	}
	st.busy = true
	return true
}

func (j *janitor) release(k dirKey) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if st := j.seen[k]; st != nil {
		st.busy = false
	}
}

// run looks at what is queued, and ends.
func (j *janitor) run() {
	for {
		j.mu.Lock()
		if len(j.queue) == 0 {
			j.queue, j.running = nil, false
			j.mu.Unlock()
			return
		}
		dir := j.queue[0]
		j.queue = j.queue[1:]
		j.mu.Unlock()
		if err := j.sweep(j.s.life, dir); err != nil {
			j.s.log.Debug("old files of uploads were not looked for", "error", err)
		}
		dir.Close()
	}
}

// sweep looks at one directory until it is through or ctx ends. The next time it goes on where it stopped.
func (j *janitor) sweep(ctx context.Context, dir *drives.Dir) error {
	v, err := dir.Identify()
	if err != nil {
		return err
	}
	key := dirKey{v.Dev, v.Ino}
	defer j.release(key)
	j.mu.Lock()
	st := j.seen[key]
	j.mu.Unlock()
	if st == nil {
		return nil
	}
	before := j.s.now().Add(-j.life)
	for ctx.Err() == nil {
		next, more, err := dir.Page(st.cursor, sweepPage, func(e drives.Entry) error {
			if e.Type != drives.EntryRegular && e.Type != drives.EntryUnknown || len(e.Name) == 0 || e.Name[0] != '.' || !drives.IsDraft(string(e.Name)) {
				return nil
			}
			removed, err := dir.RemoveOldDraft(string(e.Name), before)
			if removed {
				j.s.log.Info("removed what an interrupted upload had left", "name", string(e.Name))
			}
			if errors.Is(err, unix.ENOENT) {
				err = nil
			}
			return err
		})
		if err != nil {
			return err
		}
		st.cursor = next // nobody else has it while it is busy
		if !more {
			j.mu.Lock()
			st.cursor, st.done = 0, j.s.now()
			j.mu.Unlock()
			return nil
		}
		pause := time.NewTimer(sweepPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	return nil
}

// remember brings a directory to the janitor, once for each connection.
func (c *conn) remember(t target) {
	c.mu.Lock()
	_, known := c.swept[t.rel]
	if !known && len(c.swept) < maxPerConn {
		if c.swept == nil {
			c.swept = map[string]struct{}{}
		}
		c.swept[t.rel] = struct{}{}
	} else {
		known = true
	}
	c.mu.Unlock()
	if !known {
		c.s.drafts.offer(t.dir)
	}
}
