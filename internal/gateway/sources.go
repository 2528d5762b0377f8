package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// siteFactor is how many times the rate of one address the 65,536 networks of a /48 may use together.
const siteFactor = 16

// provenFor is how long a user who has got an answer at an address counts as known there.
const provenFor = 15 * time.Minute

// The limits, as they are named in metrics and logs.
const (
	limitRequests    = "requests_per_address"
	limitUser        = "requests_per_user"
	limitFailures    = "failures_per_address"
	limitConnections = "connections_per_address"
	limitConcurrent  = "concurrent_connections_per_address"
	limitChecks      = "token_checks"
	limitResets      = "resets_per_connection"
	limitFrames      = "frames_per_connection"
)

var limitNames = []string{limitRequests, limitUser, limitFailures, limitConnections, limitConcurrent, limitChecks, limitResets, limitFrames}

// limitError is a refusal because of a rate.
type limitError struct {
	limit string
	wait  time.Duration
}

// Error implements [error].
func (e *limitError) Error() string { return fmt.Sprintf("limit %s, again in %s", e.limit, e.wait) }

// retryAfter is the value of the header: whole seconds, rounded up.
func (e *limitError) retryAfter() int64 { return max(1, int64((e.wait+time.Second-1)/time.Second)) }

// userAt is a user at an address.
type userAt struct {
	user string
	at   netip.Addr
}

// sources are the rates of addresses and users. Requests with a verified Core token never come here (contract 00 point
// 9.17).
type sources struct {
	requests *buckets[netip.Addr]
	sites    *buckets[netip.Addr]
	failures *buckets[netip.Addr]
	checks   *buckets[netip.Addr] // questions about one-time tokens
	asked    *buckets[struct{}]   // those of all strangers
	users    *buckets[userAt]
	proven   *buckets[userAt] // holds marks, not tokens
	logged   *buckets[logKey]
	lines    *rate.Limiter
	log      *slog.Logger
	count    func(limit string)
}

type logKey struct {
	limit string
	at    netip.Addr
}

func newSources(log *slog.Logger, count func(limit string)) *sources {
	return &sources{
		requests: newBuckets[netip.Addr](maxBuckets), sites: newBuckets[netip.Addr](maxBuckets), failures: newBuckets[netip.Addr](maxBuckets),
		checks: newBuckets[netip.Addr](maxBuckets), asked: newBuckets[struct{}](1),
		users: newBuckets[userAt](maxBuckets), proven: newBuckets[userAt](maxBuckets), logged: newBuckets[logKey](maxBuckets / 8),
		lines: rate.NewLimiter(5, 50), log: log, count: count,
	}
}

func (s *sources) sweep(now time.Time) {
	for _, b := range []*buckets[netip.Addr]{s.requests, s.sites, s.failures, s.checks} {
		b.sweep(now)
	}
	s.users.sweep(now)
	s.proven.sweep(now)
	s.logged.sweep(now)
}

// request counts a request of an address. An address that is not known, since it came over a Unix socket from a proxy that
// does not say, has no limit.
func (s *sources) request(ip netip.Addr, l *Limits, now time.Time) error {
	if !ip.IsValid() {
		return nil
	}
	r := l.requestRate()
	if wait, ok := s.requests.take(source(ip), r, now); !ok {
		return &limitError{limitRequests, wait}
	}
	if at := site(ip); at.IsValid() {
		if wait, ok := s.sites.take(at, rateOf{r.perSecond * siteFactor, r.burst * siteFactor}, now); !ok {
			return &limitError{limitRequests, wait}
		}
	}
	return nil
}

// isCore takes back what request has counted: it was Core's.
func (s *sources) isCore(ip netip.Addr, l *Limits) {
	if !ip.IsValid() {
		return
	}
	r := l.requestRate()
	s.requests.giveBack(source(ip), r)
	if at := site(ip); at.IsValid() {
		s.sites.giveBack(at, rateOf{r.perSecond * siteFactor, r.burst * siteFactor})
	}
}

// mayTry tells whether the address may still try: it has not failed too often.
func (s *sources) mayTry(ip netip.Addr, l *Limits, now time.Time) error {
	if !ip.IsValid() {
		return nil
	}
	if wait, ok := s.failures.peek(source(ip), l.failureRate(), now); !ok {
		return &limitError{limitFailures, wait}
	}
	return nil
}

// failed counts a request that was refused because of what it lacks: a token, a right, or a thing that exists.
func (s *sources) failed(ip netip.Addr, l *Limits, now time.Time) {
	if ip.IsValid() {
		s.failures.take(source(ip), l.failureRate(), now)
	}
}

// user counts a request that names a user. Anybody can name anybody, so those who have proved nothing share one allowance,
// and a user who has got an answer at this address before has another there: strangers cannot use it up.
func (s *sources) user(user ident.UCloudUser, ip netip.Addr, l *Limits, now time.Time) error {
	key := userAt{user: string(user)}
	if s.isProven(user, ip, now) {
		key.at = source(ip)
	}
	if wait, ok := s.users.take(key, l.userRate(), now); !ok {
		return &limitError{limitUser, wait}
	}
	return nil
}

// app counts a request to an interface of a job, whose session was checked.
func (s *sources) app(id string, l *Limits, now time.Time) error {
	if wait, ok := s.users.take(userAt{user: "\x00" + id}, l.userRate(), now); !ok {
		return &limitError{limitUser, wait}
	}
	return nil
}

// The mark of a known user is a bucket that is full again, and so forgotten, after provenFor.
var provenRate = rateOf{perSecond: 1 / provenFor.Seconds(), burst: 2}

func (s *sources) prove(user ident.UCloudUser, ip netip.Addr, now time.Time) {
	s.proven.take(userAt{string(user), source(ip)}, provenRate, now) // refused when it is known for long
}

func (s *sources) isProven(user ident.UCloudUser, ip netip.Addr, now time.Time) bool {
	if !ip.IsValid() || user == "" {
		return false
	}
	// One mark leaves no room for two more.
	_, ok := s.proven.peek(userAt{string(user), source(ip)}, rateOf{provenRate.perSecond, 1}, now)
	return !ok
}

// note counts and logs a refusal, once in a minute for each address, and not more than a log can take.
func (s *sources) note(limit string, ip netip.Addr, now time.Time) {
	s.count(limit)
	if _, ok := s.logged.take(logKey{limit, source(ip)}, rateOf{1. / 60, 1}, now); !ok || !s.lines.AllowN(now, 1) {
		return
	}
	s.log.Warn("limit reached", "limit", limit, "client", ip.String())
}

// admit counts the request against the limits of its address. A refusal does not hold for a request that turns out to be
// Core's.
func (ex *exchange) admit() error {
	if ex.exempt() {
		return nil
	}
	ex.limited = true
	return ex.g.sources.request(ex.client.ip, &ex.settings.Limits, ex.arrival)
}

// mayTry refuses clients whose address has failed too often. Core never gets there, and neither do sessions that were
// checked, nor users who have got an answer at this address before.
func (ex *exchange) mayTry() error {
	if !ex.limited {
		return nil
	}
	return ex.g.sources.mayTry(ex.client.ip, &ex.settings.Limits, ex.arrival)
}

// mayAsk tells whether the request may make a question about a one-time token. No address has more than a tenth of them, so
// that one which makes tokens up leaves the others theirs, and users who are known at their address do not share with strangers.
func (ex *exchange) mayAsk() error {
	s, l := ex.g.sources, &ex.settings.Limits
	if ex.limited && ex.client.ip.IsValid() {
		if wait, ok := s.checks.take(source(ex.client.ip), l.checkRate(10), ex.arrival); !ok {
			return &limitError{limitChecks, wait}
		}
	}
	if s.isProven(ex.user, ex.client.ip, ex.arrival) {
		return nil
	}
	if wait, ok := s.asked.take(struct{}{}, l.checkRate(1), ex.arrival); !ok {
		return &limitError{limitChecks, wait}
	}
	return nil
}

// limitBrowser is what a request without Core's token may cost an instance.
func (ex *exchange) limitBrowser(r *http.Request) error {
	if !ex.limited {
		return nil
	}
	l := &ex.settings.Limits
	if err := ex.g.sources.user(ex.user, ex.client.ip, l, ex.arrival); err != nil {
		return err
	}
	if ex.body == nil {
		return nil
	}
	if r.ContentLength > l.MaxBrowserBody {
		return failure.New(failure.TooLarge, "The body of the request is too large")
	}
	ex.body.most = l.MaxBrowserBody
	return nil
}

// exempt tells whether Core uses this connection. Behind a trusted proxy the connection says nothing: it is the proxy's.
func (ex *exchange) exempt() bool {
	return ex.conn != nil && !ex.conn.trusted && ex.conn.core.Load() && ex.conn.ip == ex.client.ip
}

// refuse ends a request that is over a limit.
func (ex *exchange) refuse(e *limitError) {
	ex.g.sources.note(e.limit, ex.client.ip, ex.arrival)
	if e.limit != limitUser && ex.conn != nil && !ex.conn.trusted && ex.conn.ip == ex.client.ip && !ex.conn.core.Load() {
		// Refusing over an open connection costs us more than the client: let it connect anew, which has a rate of its own.
		ex.w.Header().Set("Connection", "close")
		ex.conn.endSoon()
	}
}

// asLimit gives the refusal in err's chain.
func asLimit(err error) (*limitError, bool) { return errors.AsType[*limitError](err) }

// tooMany is what a client is told.
func (e *limitError) failure() error {
	return failure.Wrap(e, failure.TooMany, "Too many requests. Please try again in %d seconds", e.retryAfter())
}

// prove looks at the head of an instance's answer: one that grants something says that the user is known at this address.
// A preflight is answered to everybody.
func (ex *exchange) prove(method string, status int) {
	if ex.class != classBrowser || ex.in == nil || !ex.client.ip.IsValid() || method == http.MethodOptions {
		return
	}
	switch status {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusPartialContent, http.StatusNotModified, http.StatusSwitchingProtocols:
		ex.g.sources.prove(ex.user, ex.client.ip, ex.arrival)
	}
}

// account looks at the answer to a request without Core's token: what it says about the client.
func (ex *exchange) account(status int) {
	if ex.class == classCore || !ex.limited {
		return
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		if ex.target == targetWeb && ex.app != nil {
			return // the application's own answer
		}
		if errors.Is(ex.err, errNoSession) {
			return // a page that was left open
		}
		ex.g.sources.failed(ex.client.ip, &ex.settings.Limits, ex.arrival)
	}
}
