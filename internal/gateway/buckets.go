package gateway

import (
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds the entries of one table: about 6 MiB. An attacker has more addresses than any table has room for.
const maxBuckets = 1 << 16

// rateOf is a rate with a burst: the number that may come at once. A rate of 0 or less means no limit.
type rateOf struct {
	perSecond float64
	burst     float64
}

// buckets are token buckets by key, in bounded memory. An entry is one time: when the bucket will be full again (GCRA, the
// generic cell rate algorithm). An entry whose time has passed says the same as none.
//
// When the table is full the emptiest debt of a few random entries is forgotten. So an attacker with many addresses pushes
// out mostly entries of their own, and an unknown address is never refused because the table is full.
type buckets[K comparable] struct {
	max int

	mu   sync.Mutex
	full map[K]int64 // nanoseconds since start
	// start makes times comparable with one subtraction, and monotonic.
	start time.Time
}

func newBuckets[K comparable](limit int) *buckets[K] {
	return &buckets[K]{max: limit, full: make(map[K]int64), start: time.Now()}
}

// take takes one token. If there is none it tells when there will be one.
func (b *buckets[K]) take(key K, r rateOf, now time.Time) (wait time.Duration, ok bool) {
	return b.spend(key, r, now, 1)
}

// peek tells whether a token could be taken, without taking it.
func (b *buckets[K]) peek(key K, r rateOf, now time.Time) (wait time.Duration, ok bool) {
	return b.spend(key, r, now, 0)
}

func (b *buckets[K]) spend(key K, r rateOf, now time.Time, n int64) (wait time.Duration, ok bool) {
	if r.perSecond <= 0 {
		return 0, true
	}
	each := int64(float64(time.Second) / r.perSecond)
	room := int64(max(r.burst, 1) * float64(each))
	at := int64(now.Sub(b.start))
	b.mu.Lock()
	defer b.mu.Unlock()
	old, known := b.full[key]
	next := max(old, at) + each
	if next-at > room {
		return time.Duration(next - at - room), false
	}
	if n > 0 {
		if !known && len(b.full) >= b.max {
			b.evictLocked()
		}
		b.full[key] = next
	}
	return 0, true
}

// giveBack returns a token that was taken.
func (b *buckets[K]) giveBack(key K, r rateOf) {
	if r.perSecond <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, known := b.full[key]; known {
		b.full[key] = old - int64(float64(time.Second)/r.perSecond)
	}
}

func (b *buckets[K]) evictLocked() {
	var victim K
	least, seen := int64(0), 0
	for k, v := range b.full { // the order is random
		if seen == 0 || v < least {
			victim, least = k, v
		}
		if seen++; seen == 8 {
			break
		}
	}
	delete(b.full, victim)
}

// sweep forgets the full buckets.
func (b *buckets[K]) sweep(now time.Time) {
	at := int64(now.Sub(b.start))
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, v := range b.full {
		if v <= at {
			delete(b.full, k)
		}
	}
}

func (b *buckets[K]) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.full)
}

// source is what counts as one address: all of an IPv4 address, and the network of an IPv6 address, since whoever has one
// has the 2^64 others of the same /64 too.
func source(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	if !ip.Is6() {
		return ip
	}
	p, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return ip
	}
	return p.Addr()
}

// site is the /48 that an IPv6 address is in, the usual size of what one customer of a provider gets, and for others the
// zero address.
func site(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	if !ip.Is6() {
		return netip.Addr{}
	}
	p, err := ip.WithZone("").Prefix(48)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}
