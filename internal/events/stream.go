package events

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/store"
)

const (
	// margin is subtracted from the stored position when connecting (contract 31 section 6).
	margin = 5 * time.Minute

	// settleQuiet without a message, or settleAge since the handshake, ends the replay as far as we can tell.
	settleQuiet = 30 * time.Second
	settleAge   = 10 * time.Minute

	// pingEvery is the pause between our pings, pingWait how long the answer may take.
	pingEvery = 30 * time.Second
	pingWait  = 20 * time.Second

	// handshakeWait bounds the upgrade and the writing of one record.
	handshakeWait = 15 * time.Second

	// goodAge is how long a session must live to count as a success for the back-off.
	goodAge = time.Minute
)

// Defaults of [Options].
const (
	DefaultMaxMessage = 32 << 20
	DefaultMaxQueue   = 64 << 20
	DefaultMaxSession = 4 * time.Hour
	DefaultReplayHour = 3
)

// Tokens is where access tokens come from; [coreapi.TokenSource] is the implementation.
type Tokens interface {
	Token(ctx context.Context) (string, error)
	Renew(ctx context.Context, used string) (string, error)
}

// Options configure a [Stream].
type Options struct {
	BaseURL  string       // address of Core (provider.hosts.ucloud)
	Provider string       // our provider id
	HTTP     *http.Client // from [coreapi.NewHTTPClient]
	Tokens   Tokens
	Store    *store.Store
	Retry    coreapi.Backoff // pause after a session that broke (provider.core.retry)

	// Changed is told what is different after a commit. It runs in a goroutine of its own, one call at a time; what
	// happens meanwhile is collected for the next call. It is not repeated when it fails, and what was collected when the
	// process ends is lost: callers compare everything at start. Nil: nobody is told.
	Changed func(ctx context.Context, c Change)

	UserAgent  string        // empty means "ucloud-im"
	MaxMessage int64         // bytes of one message; 0 means [DefaultMaxMessage]
	MaxQueue   int           // bytes read and not stored yet; 0 means [DefaultMaxQueue]
	MaxSession time.Duration // a session is restarted after about this; 0 means [DefaultMaxSession]
	ReplayHour int           // local hour of the nightly full replay; 0 means [DefaultReplayHour]
	Log        *slog.Logger  // nil discards
}

// Stream is the receiving end of the event stream. [Stream.Run] keeps a session up; the other methods may be called at
// any time.
type Stream struct {
	o    Options
	url  string
	log  *slog.Logger
	dial func(ctx context.Context) (conn, error)

	replay chan struct{} // holds one element: look for users to replay

	mu      sync.Mutex // guards what follows
	status  Status
	queue   *queue        // of the present session, nil if there is none
	pending changeSet     // not yet told to Changed
	told    chan struct{} // holds one element: pending is not empty
}

// New makes a stream. It does no I/O.
func New(o Options) (*Stream, error) {
	base, err := coreapi.ParseBaseURL(o.BaseURL)
	if err != nil {
		return nil, err
	}
	if o.HTTP == nil || o.Tokens == nil || o.Store == nil || o.Provider == "" {
		return nil, errors.New("event stream: HTTP client, token source, store and provider id are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.UserAgent == "" {
		o.UserAgent = "ucloud-im"
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	if o.MaxQueue <= 0 {
		o.MaxQueue = DefaultMaxQueue
	}
	if o.MaxSession <= 0 {
		o.MaxSession = DefaultMaxSession
	}
	if o.ReplayHour <= 0 || o.ReplayHour > 23 {
		o.ReplayHour = DefaultReplayHour
	}
	s := &Stream{
		o: o, url: base.JoinPath("/api/accounting/notifications").String(), log: o.Log.With("part", "events"),
		replay: make(chan struct{}, 1), pending: newChangeSet(), told: make(chan struct{}, 1),
		status: Status{State: StateDown},
	}
	s.dial = s.dialCore
	return s, nil
}

// ReplayUsers has the users that stand in the database with [store.Tx.AddReplayUser] asked for, now or as soon as a
// session is up. Call it after the commit. It never blocks.
func (s *Stream) ReplayUsers() { signal(s.replay) }

// Run keeps a session up until ctx ends.
func (s *Stream) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.tell(ctx) })

	renewed := false // the token was renewed since the last session that worked
	for failures := 0; ; {
		s.setState(StateConnecting, nil, time.Time{})
		end := s.session(ctx)
		if ctx.Err() != nil {
			s.setState(StateDown, nil, time.Time{})
			return ctx.Err()
		}
		if end.planned {
			failures, renewed = 0, false
			s.log.Debug("event session restarted", "why", end.err)
			continue
		}
		if end.age >= goodAge {
			failures, renewed = 0, false
		}
		failures++
		// Core gives no reason when it refuses a token, it closes (contract 31 section 1).
		if end.token != "" && !end.accepted && !renewed {
			renewed = true
			if _, err := s.o.Tokens.Renew(ctx, end.token); err != nil {
				s.log.Debug("access token not renewed after a refused session", "error", err)
			}
		}
		pause := s.o.Retry.Delay(failures)
		s.setState(StateDown, end.err, time.Now().Add(pause))
		s.log.Warn("event session ended", "error", end.err, "failures", failures, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// tell calls the hook with what has been collected, one call at a time.
func (s *Stream) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.told:
		}
		s.mu.Lock()
		set := s.pending
		s.pending = newChangeSet()
		s.mu.Unlock()
		if !set.empty() && s.o.Changed != nil {
			s.o.Changed(ctx, set.change())
		}
	}
}

func (s *Stream) collect(set changeSet) {
	if set.empty() {
		return
	}
	s.mu.Lock()
	s.pending.merge(set)
	s.mu.Unlock()
	signal(s.told)
}

// nextFullReplay is the first time at the replay hour after last.
func nextFullReplay(last time.Time, hour int) time.Time {
	if last.IsZero() {
		return time.Time{}
	}
	last = last.Local()
	next := time.Date(last.Year(), last.Month(), last.Day(), hour, 0, 0, 0, time.Local)
	if !next.After(last) {
		next = time.Date(last.Year(), last.Month(), last.Day()+1, hour, 0, 0, 0, time.Local)
	}
	return next
}

// spread is d give or take a tenth, so that providers do not reconnect together.
func spread(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }
