package files

import (
	"sync"
	"time"

	"ucloud-im/internal/drives"
)

// Which index serves which listing.
const (
	// maxIndexAge bounds how long a listing goes on from an index although the directory has changed.
	maxIndexAge = 10 * time.Minute
	// maxStatAge bounds how long an order by size or time may begin a new listing: files change without their directory.
	maxStatAge = 30 * time.Second
	// racySlack is how long before a scan a directory must have been at rest for its times to prove that nothing has
	// changed since. It covers the clock tick of the file system and small differences to a server's clock.
	racySlack = 2 * time.Second
)

// dirKey identifies the listings of a directory by one order.
type dirKey struct {
	dev, ino uint64
	order    order
}

// cache keeps the indexes of large directories and the scans that are making them. Its memory is bounded in bytes, and
// everything in it goes away when it has not been used for the idle time: an idle instance holds nothing.
//
// It also is the allowance of the builders: what they use counts against the same bound.
type cache struct {
	limit int64
	idle  time.Duration
	now   func() time.Time

	// mu guards the fields below. It is not held over system calls that may block.
	mu      sync.Mutex
	used    int64 // bytes of cached indexes, of those still in use, and of builders
	entries map[dirKey]*cached
	scans   map[dirKey]*scan
	timer   *time.Timer // runs while there are entries
	closed  bool
}

// cached is an index with its users. It is in the cache's map unless evicted.
type cached struct {
	*index
	cache    *cache
	users    int // guarded by cache.mu, as is the rest
	lastUsed time.Time
	evicted  bool
}

func newCache(limit int64, idle time.Duration, now func() time.Time) *cache {
	return &cache{
		limit: limit, idle: idle, now: now,
		entries: make(map[dirKey]*cached), scans: make(map[dirKey]*scan),
	}
}

// take implements [allowance], evicting unused indexes to make room.
func (c *cache) take(n int64, must bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.used+n > c.limit && c.evictOldestLocked() {
	}
	if c.used+n > c.limit && !must {
		return false
	}
	c.used += n
	return true
}

// give implements [allowance].
func (c *cache) give(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= n
}

// release ends one use of an index.
func (e *cached) release() {
	c := e.cache
	c.mu.Lock()
	e.users--
	e.lastUsed = c.now()
	gone := e.evicted && e.users == 0
	c.mu.Unlock()
	if gone {
		e.free()
	}
}

// free gives back the memory. The caller has made sure that nobody uses the index.
func (e *cached) free() {
	if e.unmap != nil {
		e.unmap()
	}
}

// evictOldestLocked drops the index that has not been used for the longest time. It reports false if all are in use.
func (c *cache) evictOldestLocked() bool {
	var oldest dirKey
	var found *cached
	for k, e := range c.entries {
		if e.users == 0 && (found == nil || e.lastUsed.Before(found.lastUsed)) {
			oldest, found = k, e
		}
	}
	if found == nil {
		return false
	}
	c.evictLocked(oldest)
	return true
}

// evictLocked takes an index out of the cache. Its memory is freed at once, or by its last user.
func (c *cache) evictLocked(k dirKey) {
	e := c.entries[k]
	delete(c.entries, k)
	e.evicted = true
	if e.users == 0 {
		c.freeLocked(e)
	}
}

// freeLocked lets go of the lock for a moment: giving back the memory takes it.
func (c *cache) freeLocked(e *cached) {
	c.mu.Unlock()
	e.free()
	c.mu.Lock()
}

// finish records the outcome of a scan. Everybody who waits has one use of the result.
func (c *cache) finish(sc *scan, x *index, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.scans[sc.key] == sc {
		delete(c.scans, sc.key)
	}
	if sc.err = err; err != nil {
		return
	}
	e := &cached{index: x, cache: c, users: sc.waiters, lastUsed: c.now()}
	sc.result = e
	if old := c.entries[sc.key]; c.closed || (old != nil && old.generation.serial > x.generation.serial) {
		if e.evicted = true; e.users == 0 {
			c.freeLocked(e)
		}
		return
	} else if old != nil {
		c.evictLocked(sc.key)
	}
	c.entries[sc.key] = e
	if c.timer == nil {
		c.timer = time.AfterFunc(c.idle, c.expire)
	}
}

// expire drops what has been idle for too long. It runs from the timer.
func (c *cache) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for {
		var key dirKey
		found := false
		for k, e := range c.entries {
			if e.users == 0 && now.Sub(e.lastUsed) >= c.idle {
				key, found = k, true
				break
			}
		}
		if !found {
			break
		}
		c.evictLocked(key) // may unlock: look again from the beginning
	}
	c.timer = nil
	if len(c.entries) > 0 && !c.closed {
		c.timer = time.AfterFunc(c.idle/2+time.Second, c.expire)
	}
}

// get finds an index for a listing of the directory as it is now. The caller must release it.
func (c *cache) get(k dirKey, q *query, now drives.Version) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil || !c.serves(e.index, q, now) {
		return nil
	}
	e.users++
	e.lastUsed = c.now()
	return e
}

// serves tells whether an index is right for a listing.
//
// A listing that has begun may use every index that was made after its beginning, whether the directory has changed
// since or not: entries that were there all the time are in it. Everything else needs an index that shows the directory
// as it is.
func (c *cache) serves(x *index, q *query, now drives.Version) bool {
	age := c.now().Sub(x.scannedAt)
	if !x.covers(q.after, q.descending) || (x.tooMany && q.token != nil) {
		return false
	}
	if q.token != nil && q.token.generation.process == x.generation.process &&
		q.token.generation.serial <= x.generation.serial {
		return age < maxIndexAge
	}
	if q.order != byPath && age > maxStatAge {
		return false
	}
	return !x.racy && x.version == now
}

// close drops everything. Indexes in use are freed by their users.
func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	for len(c.entries) > 0 {
		for k := range c.entries {
			c.evictLocked(k)
			break
		}
	}
}
