package gateway

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// loggedRefusals is how many failed requests of one source have a line of their own in the access log in an interval.
	loggedRefusals   = 20
	refusalsInterval = time.Minute
	maxRefusing      = 1 << 10 // sources that are counted separately
)

// refusals keep a flood of requests that fail from filling the access log: the first of each source are written, the others
// counted, and the count is written when the interval is over. Answered requests, and all of Core's, are always written.
type refusals struct {
	log *slog.Logger

	mu sync.Mutex
	by map[netip.Addr]*refusing // by [source]; the zero address stands for all for whom there was no room
}

type refusing struct {
	since  time.Time
	lines  int
	others map[int]int // those without a line, by status
}

// write tells whether a failed request gets a line.
func (f *refusals) write(ip netip.Addr, status int, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := source(ip)
	if f.by[key] == nil && len(f.by) >= maxRefusing {
		key = netip.Addr{}
	}
	r := f.by[key]
	if r == nil {
		r = &refusing{since: now, others: make(map[int]int)}
		f.by[key] = r
	}
	if r.lines < loggedRefusals {
		r.lines++
		return true
	}
	r.others[status]++
	return false
}

// sweep writes the counts of intervals that have ended.
func (f *refusals) sweep(now time.Time) {
	f.mu.Lock()
	ended := make(map[netip.Addr]*refusing)
	for key, r := range f.by {
		if now.Sub(r.since) >= refusalsInterval {
			ended[key] = r
			delete(f.by, key)
		}
	}
	f.mu.Unlock()
	for key, r := range ended {
		if len(r.others) == 0 {
			continue
		}
		client := "others"
		if key.Is6() {
			client = netip.PrefixFrom(key, 64).String()
		} else if key.IsValid() {
			client = key.String()
		}
		f.log.Info("requests refused, not logged one by one", "client", client, "since", r.since.UTC(), "by_status", r.others)
	}
}
