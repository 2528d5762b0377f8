package ipc

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ucloud-im/internal/ident"
)

const (
	// requestUnit is the size of a request that counts as one in the rate. Decoding JSON is the cost that the rate
	// bounds, and it grows with size.
	requestUnit = 16 << 10
	// controlFactor is how many cancel and credit frames are allowed per request.
	controlFactor = 10
	// maxHanging is how many descriptors of one uid may hang in close(2) before the uid gets no new connection.
	maxHanging = 4
	// sweepFloor is the number of accounts below which nobody bothers to forget idle ones.
	sweepFloor = 256
)

var (
	errTooManyConns = errors.New("too many connections of the uid")
	errFull         = errors.New("too many connections")
	errConnRate     = errors.New("connections of the uid come too fast")
	errHanging      = errors.New("descriptors that the uid sent hang in close")
)

// account is what one uid uses. The limiters have locks of their own; the rest is guarded by quota.mu.
type account struct {
	uid      ident.UID
	exempt   bool
	conns    int
	hanging  int
	requests *rate.Limiter // nil: no limit
	control  *rate.Limiter // nil: no limit
	complain rate.Sometimes
}

// idleAt tells whether forgetting the account would change nothing.
func (a *account) idleAt(now time.Time) bool {
	return a.conns == 0 && a.hanging == 0 &&
		(a.requests == nil || a.requests.TokensAt(now) >= float64(a.requests.Burst())) &&
		(a.control == nil || a.control.TokensAt(now) >= float64(a.control.Burst()))
}

// quota keeps the accounts of all uids. Exempt uids are counted but not limited, and do not use up the total, so that
// users who fill it together cannot keep the gateway out.
type quota struct {
	maxConns, maxPerUID int
	perSecond, burst    int
	exempt              func(ident.UID) bool
	now                 func() time.Time

	mu      sync.Mutex
	total   int // connections of uids that are not exempt
	byUID   map[ident.UID]*account
	sweepAt int // forget idle accounts when there are this many
}

// admit counts a new connection, or says why there must be none. The caller gives it back with release.
func (q *quota) admit(uid ident.UID) (*account, error) {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.byUID[uid]
	if a == nil {
		q.sweepLocked(now)
		a = q.newAccount(uid)
		q.byUID[uid] = a
	}
	switch {
	case a.hanging > maxHanging:
		return a, errHanging
	case a.exempt:
	case a.conns >= q.maxPerUID:
		return a, errTooManyConns
	case q.total >= q.maxConns:
		return a, errFull
	case !a.requests.AllowN(now, 1): // a connection costs about as much as a request
		return a, errConnRate
	}
	a.conns++
	if !a.exempt {
		q.total++
	}
	return a, nil
}

func (q *quota) newAccount(uid ident.UID) *account {
	a := &account{
		uid: uid, exempt: q.exempt != nil && q.exempt(uid),
		complain: rate.Sometimes{First: 3, Interval: 10 * time.Second},
	}
	if !a.exempt {
		a.requests = rate.NewLimiter(rate.Limit(q.perSecond), q.burst)
		a.control = rate.NewLimiter(rate.Limit(q.perSecond*controlFactor), q.burst*controlFactor)
	}
	return a
}

func (q *quota) release(a *account) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.conns--
	if !a.exempt {
		q.total--
	}
}

func (q *quota) hang(a *account, delta int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.hanging += delta
}

// sweepLocked forgets idle accounts. It needs no timer: it runs when new uids arrive, and the threshold doubles so
// that its cost per new uid stays constant.
func (q *quota) sweepLocked(now time.Time) {
	if len(q.byUID) < q.sweepAt {
		return
	}
	for uid, a := range q.byUID {
		if a.idleAt(now) {
			delete(q.byUID, uid)
		}
	}
	q.sweepAt = max(sweepFloor, 2*len(q.byUID))
}

// allowRequest takes what a request of the size costs, and tells whether the uid could afford it.
func (a *account) allowRequest(now time.Time, bytes int) bool {
	return a.requests == nil || a.requests.AllowN(now, 1+bytes/requestUnit)
}

// allowControl is the same for cancel and credit frames.
func (a *account) allowControl(now time.Time) bool {
	return a.control == nil || a.control.AllowN(now, 1)
}
