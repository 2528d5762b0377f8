package instance

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"ucloud-im/internal/ipcapi"
)

const (
	// quietAfter is when the garbage collector is switched off after the last request. With it on, Go collects every
	// two minutes for ever, which is most of what a thousand idle instances cost.
	quietAfter = 10 * time.Second
	// quietLimit lets the collector work all the same if something allocates while it is off.
	quietLimit = 24 << 20
)

// idler notices that there is nothing to do. One timer is armed while the instance is quiet; none while it works.
type idler struct {
	srv     *server
	timeout func() time.Duration // 0 = never ends for idleness
	onIdle  func()               // nothing has happened for the timeout, or somebody wanted to know
	limit   int64                // soft memory limit while working

	mu    sync.Mutex // guards the fields below
	timer *time.Timer
	quiet bool // the collector is off
	ask   bool // tell onIdle as soon as nothing is under way
	ended bool
}

func newIdler(srv *server, limit int64, timeout func() time.Duration, onIdle func()) *idler {
	i := &idler{srv: srv, timeout: timeout, onIdle: onIdle, limit: limit}
	srv.wakeUp, srv.rest = i.wakeUp, i.rest
	i.mu.Lock()
	defer i.mu.Unlock()
	i.collectLocked(true)
	i.armLocked(time.Now())
	return i
}

// wakeUp is called when work arrives.
func (i *idler) wakeUp() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.quiet {
		i.collectLocked(true)
	}
}

// rest is called when nothing is under way any more.
func (i *idler) rest() {
	i.mu.Lock()
	ask := i.ask
	i.ask = false
	i.armLocked(time.Now())
	i.mu.Unlock()
	if ask {
		i.onIdle()
	}
}

// askWhenQuiet calls onIdle now or when the requests under way have ended.
func (i *idler) askWhenQuiet() {
	i.mu.Lock()
	i.ask = true
	i.mu.Unlock()
	if i.srv.active.Load() == 0 {
		i.rest()
	}
}

// armLocked arms the timer for the next thing that is due, if it is not armed.
func (i *idler) armLocked(now time.Time) {
	if i.timer != nil || i.ended {
		return
	}
	last := time.Unix(0, i.srv.lastEnd.Load())
	var due time.Time
	switch timeout := i.timeout(); {
	case !i.quiet:
		due = last.Add(quietAfter)
		if timeout > 0 && timeout < quietAfter {
			due = last.Add(timeout)
		}
	case timeout > 0:
		due = last.Add(timeout)
	default:
		return
	}
	i.timer = time.AfterFunc(max(due.Sub(now), time.Millisecond), i.tick)
}

// tick runs when the timer fires. Requests may have come and gone since it was armed, without touching it.
func (i *idler) tick() {
	if i.due() {
		i.onIdle()
	}
}

// due tells whether the idle time is over. If not, the timer is armed again.
func (i *idler) due() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.timer = nil
	if i.ended || i.srv.active.Load() > 0 {
		return false // rest arms it again
	}
	idle := time.Since(time.Unix(0, i.srv.lastEnd.Load()))
	if !i.quiet && idle >= quietAfter {
		i.collectLocked(false)
	}
	if timeout := i.timeout(); timeout > 0 && idle >= timeout {
		return true // again arms it, if the instance stays
	}
	i.armLocked(time.Now())
	return false
}

// again starts a new idle time, because the server wants the instance to stay.
func (i *idler) again() {
	i.srv.lastEnd.Store(time.Now().UnixNano())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.armLocked(time.Now())
}

func (i *idler) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	if i.timer != nil {
		i.timer.Stop()
	}
}

// collectLocked switches the garbage collector on, or off after it has given back what the work has left: without
// that, an idle instance keeps up to 4 MiB of garbage, the least that Go collects by itself.
func (i *idler) collectLocked(on bool) {
	i.quiet = !on
	if on {
		limit := i.limit
		if limit <= 0 {
			limit = math.MaxInt64
		}
		debug.SetMemoryLimit(limit)
		debug.SetGCPercent(100)
		return
	}
	debug.FreeOSMemory()
	debug.SetMemoryLimit(quietLimit)
	debug.SetGCPercent(-1)
}

// measure gives what only the process itself can know.
func (s *server) measure() ipcapi.Stats {
	st := ipcapi.Stats{Requests: s.requests.Load(), Active: int(s.active.Load())}
	if st.Active == 0 {
		st.IdleSeconds = int64(time.Since(time.Unix(0, s.lastEnd.Load())).Seconds())
	}
	raw, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return st
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "Rss:":
			st.RSSBytes = kb << 10
		case "Pss:":
			st.PSSBytes = kb << 10
		}
	}
	return st
}
