package uploads

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
)

const (
	sweepPage   = 512                  // entries between two pauses
	sweepPause  = 5 * time.Millisecond // so that a large directory costs next to nothing
	maxSwept    = 4096                 // directories that are remembered
	maxPerConn  = 256                  // directories that one connection has looked at
	sweepsAhead = 64
)

// janitor removes the hidden files of processes that were killed. It looks only at directories to which something is
// uploaded, while that goes on, each once a day, and goes on where it stopped.
type janitor struct {
	life time.Duration
	now  func() time.Time
	log  *slog.Logger

	mu   sync.Mutex // guards seen
	seen map[dirKey]*swept
}

type dirKey struct{ dev, ino uint64 }

type swept struct {
	cursor drives.Cursor
	done   time.Time // of the last complete pass
	busy   bool
}

func newJanitor(life time.Duration, now func() time.Time, log *slog.Logger) *janitor {
	return &janitor{life: life, now: now, log: log, seen: map[dirKey]*swept{}}
}

// sweep looks at one directory until it is through or ctx ends.
func (j *janitor) sweep(ctx context.Context, dir *drives.Dir) error {
	v, err := dir.Identify()
	if err != nil {
		return err
	}
	st := j.begin(dirKey{v.Dev, v.Ino})
	if st == nil {
		return nil
	}
	defer func() {
		j.mu.Lock()
		st.busy = false
		j.mu.Unlock()
	}()
	list, err := dir.Clone() // readable, and with a position of its own
	if err != nil {
		return err
	}
	defer list.Close()
	before := j.now().Add(-j.life)
	for {
		next, more, err := list.Page(st.cursor, sweepPage, func(e drives.Entry) error {
			if e.Type != drives.EntryRegular && e.Type != drives.EntryUnknown || len(e.Name) == 0 || e.Name[0] != '.' || !drives.IsDraft(string(e.Name)) {
				return nil
			}
			removed, err := dir.RemoveOldDraft(string(e.Name), before)
			if removed {
				j.log.Info("removed what an interrupted upload had left", "name", string(e.Name))
			}
			if errors.Is(err, unix.ENOENT) {
				err = nil
			}
			return err
		})
		if err != nil {
			return err
		}
		st.cursor = next
		if !more {
			j.mu.Lock()
			st.cursor, st.done = 0, j.now()
			j.mu.Unlock()
			return nil
		}
		pause := time.NewTimer(sweepPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil
		}
	}
}

// begin gives the state of a directory, nil if it need not be looked at now.
func (j *janitor) begin(k dirKey) *swept {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := j.seen[k]
	if st == nil {
		if len(j.seen) >= maxSwept {
			clear(j.seen)
		}
		st = &swept{}
		j.seen[k] = st
	}
	if st.busy || !st.done.IsZero() && j.now().Sub(st.done) < j.life {
		return nil
	}
	st.busy = true
	return st
}

// remember notes a directory for the janitor.
func (c *conn) remember(rel string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.swept[rel]; known || len(c.swept) >= maxPerConn {
		return
	}
	select {
	case c.sweep <- rel:
		if c.swept == nil {
			c.swept = map[string]struct{}{}
		}
		c.swept[rel] = struct{}{}
	default: // busy; another file will bring the directory again
	}
}

// sweepAll looks at the directories of the connection, one after the other.
func (c *conn) sweepAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rel := <-c.sweep:
			if err := c.sweepOne(ctx, rel); err != nil {
				c.log.Debug("old files of uploads were not looked for", "error", err)
			}
		}
	}
}

func (c *conn) sweepOne(ctx context.Context, rel string) error {
	if rel == relParent {
		return c.s.drafts.sweep(ctx, c.parent)
	}
	dir, err := c.openFolder()
	if err != nil {
		return err
	}
	if rel != "" {
		if dir, err = dir.Beneath(rel); err != nil {
			return err
		}
		defer dir.Close()
	}
	return c.s.drafts.sweep(ctx, dir)
}
