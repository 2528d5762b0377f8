package coreapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"ucloud-im/internal/observability"
	"ucloud-im/internal/providerapi"
)

const (
	// RenewBefore is the remaining life below which an access token is renewed (contract 00 section 6).
	RenewBefore = 3 * time.Minute

	// defaultLife is the life of an access token that does not tell its own (contract 01 section 4).
	defaultLife = 10 * time.Minute

	// revokedPause is how often a refused refresh token is tried again (contract 05, step B5).
	revokedPause = time.Minute

	// forcedPause is the least time between two exchanges that are made because Core refused an access token which
	// should be good: Core answers 403 for many other reasons.
	forcedPause = 30 * time.Second

	// callRefresh is the call name in errors.
	callRefresh = "auth.providers.refresh"
)

// tokenForm is what may stand in an Authorization header (RFC 6750 section 2.1).
var tokenForm = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// maxToken bounds the length of an access token in bytes, as servers bound their headers.
const maxToken = 8 << 10

// TokenOptions configure a [TokenSource].
type TokenOptions struct {
	BaseURL      string               // address of Core (provider.hosts.ucloud)
	Provider     string               // our provider id; a token for another provider is refused. Empty: not checked
	RefreshToken observability.Secret // server.yml: refreshToken
	HTTP         *http.Client         // from [NewHTTPClient]
	Timeout      time.Duration        // of one exchange; 0 means 10 s
	Retry        Backoff              // pause after a failed exchange
	UserAgent    string               // empty means "ucloud-im"
	Log          *slog.Logger         // nil discards
}

// TokenSource hands out access tokens for Core. There is no goroutine behind it: whoever asks when less than
// [RenewBefore] remains makes the exchange, everybody else goes on with the old token or, if there is none, waits for
// that one exchange. Errors of the exchange never take away a token that is still valid.
type TokenSource struct {
	url      string
	provider string
	http     *http.Client
	timeout  time.Duration
	retry    Backoff
	agent    string
	log      *slog.Logger

	// mu guards everything below. It is never held during network traffic.
	mu       sync.Mutex
	refresh  observability.Secret
	epoch    int         // counts SetRefreshToken, so that an old exchange cannot report on a new token
	current  accessToken // zero: none
	stale    bool        // current came from an earlier refresh token, or was refused by Core
	forced   time.Time   // when current was last called stale because Core refused it
	flight   *exchange   // nil: nobody is asking Core
	failures int         // in a row
	nextTry  time.Time   // no exchange before
	revoked  bool
	lastErr  error
	lastOK   time.Time
}

type accessToken struct {
	text    string
	fetched time.Time
	expires time.Time
}

// exchange is one call to Core that several callers may wait for.
type exchange struct{ done chan struct{} }

// NewTokenSource makes a token source. It does no I/O.
func NewTokenSource(o TokenOptions) (*TokenSource, error) {
	base, err := ParseBaseURL(o.BaseURL)
	if err != nil {
		return nil, err
	}
	if o.RefreshToken == "" {
		return nil, errors.New("token source: no refresh token")
	}
	if o.HTTP == nil {
		return nil, errors.New("token source: no HTTP client")
	}
	return &TokenSource{
		url:      base.JoinPath("/auth/providers/refresh").String(),
		provider: o.Provider,
		http:     o.HTTP,
		timeout:  orDefault(o.Timeout, defaultTimeout),
		retry:    o.Retry,
		agent:    orDefault(o.UserAgent, defaultUserAgent),
		log:      orDefault(o.Log, slog.New(slog.DiscardHandler)).With("part", "coreapi"),
		refresh:  o.RefreshToken,
	}, nil
}

// orDefault is v, or d where v is the zero value.
func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// Token gives a valid access token, never an empty one. It asks Core if there is none or if the present one is about
// to expire. The error wraps [ErrNotSent], and [ErrRevoked] if Core refused the refresh token.
func (s *TokenSource) Token(ctx context.Context) (string, error) {
	for {
		now := time.Now()
		s.mu.Lock()
		cur := s.current
		valid := cur.text != "" && now.Before(cur.expires)
		if valid && !s.stale && cur.expires.Sub(now) >= renewBefore(cur) {
			s.mu.Unlock()
			return cur.text, nil
		}
		if now.Before(s.nextTry) { // backing off
			err := s.unavailableLocked(now)
			s.mu.Unlock()
			if valid {
				return cur.text, nil
			}
			return "", err
		}
		if f := s.flight; f != nil { // somebody asks already
			s.mu.Unlock()
			if valid {
				return cur.text, nil
			}
			select {
			case <-f.done:
				continue
			case <-ctx.Done():
				return "", fmt.Errorf("%w: wait for an access token: %w", ErrNotSent, ctx.Err())
			}
		}
		f := s.beginLocked()
		refresh, epoch := s.refresh, s.epoch
		s.mu.Unlock()

		err := s.fetch(ctx, f, refresh, epoch)
		if err == nil {
			continue // the token is in place, or a newer refresh token wants an exchange of its own
		}
		if valid && time.Now().Before(cur.expires) {
			return cur.text, nil
		}
		return "", fmt.Errorf("%w: %w", ErrNotSent, err)
	}
}

// renewBefore is RenewBefore, less for tokens that live so shortly that they would always be renewed.
func renewBefore(t accessToken) time.Duration {
	return min(RenewBefore, t.expires.Sub(t.fetched)/2)
}

// Renew is called when Core refused the token used. It gives another one, by an exchange if nobody made one meanwhile.
// It does so once in a while only, so that refusals for other reasons do not flood Core.
func (s *TokenSource) Renew(ctx context.Context, used string) (string, error) {
	s.mu.Lock()
	if s.current.text == used {
		if ago := time.Since(s.forced); ago < forcedPause {
			s.mu.Unlock()
			return "", fmt.Errorf("an access token was replaced already %s ago", ago.Round(time.Second))
		}
		s.forced, s.stale = time.Now(), true
	}
	s.mu.Unlock()
	t, err := s.Token(ctx)
	if err != nil {
		return "", err
	}
	if t == used {
		return "", errors.New("another access token is not to be had now")
	}
	return t, nil
}

// SetRefreshToken replaces the refresh token, for a reload of the configuration. The present access token stays in
// use until an exchange with the new refresh token has succeeded; pauses and alarms of the old one are forgotten.
func (s *TokenSource) SetRefreshToken(t observability.Secret) {
	if t == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == s.refresh {
		return
	}
	s.refresh = t
	s.epoch++
	s.stale = true
	s.failures, s.nextTry, s.revoked, s.lastErr = 0, time.Time{}, false, nil
}

// Run keeps a token at hand until ctx ends, so that a revoked refresh token is noticed without traffic.
func (s *TokenSource) Run(ctx context.Context) error {
	for {
		_, _ = s.Token(ctx) // the outcome is in Status
		timer := time.NewTimer(s.untilNextTry())
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// untilNextTry is how long Run may sleep.
func (s *TokenSource) untilNextTry() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	at := s.nextTry
	if !now.Before(at) && s.current.text != "" {
		at = s.current.expires.Add(-renewBefore(s.current))
	}
	return max(at.Sub(now), time.Second)
}

// TokenState is what an operator needs to know about the credentials.
type TokenState string

// The states.
const (
	TokenNone        TokenState = "none"        // nothing was asked yet
	TokenOK          TokenState = "ok"          // a valid token is at hand
	TokenUnavailable TokenState = "unavailable" // no valid token, exchanges fail; retried with back-off
	TokenRevoked     TokenState = "revoked"     // Core refuses the refresh token: an operator has to act
)

// TokenStatus is a snapshot for the status command.
type TokenStatus struct {
	State     TokenState
	ExpiresAt time.Time // of the present token; zero if none
	RenewedAt time.Time // last successful exchange
	NextTry   time.Time // no exchange before; zero if not backing off
	LastError string    // of the last exchange, empty after a success
}

// Status tells how the credentials are. A revoked refresh token shows even while the last access token still lives.
func (s *TokenSource) Status() TokenStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	st := TokenStatus{State: TokenNone, ExpiresAt: s.current.expires, RenewedAt: s.lastOK}
	if now.Before(s.nextTry) {
		st.NextTry = s.nextTry
	}
	if s.lastErr != nil {
		st.LastError = s.lastErr.Error()
	}
	switch {
	case s.revoked:
		st.State = TokenRevoked
	case s.current.text != "" && now.Before(s.current.expires):
		st.State = TokenOK
	case s.lastErr != nil:
		st.State = TokenUnavailable
	}
	return st
}

func (s *TokenSource) unavailableLocked(now time.Time) error {
	return fmt.Errorf("%w: no access token, next try in %s: %w",
		ErrNotSent, s.nextTry.Sub(now).Round(time.Second), s.lastErr)
}

func (s *TokenSource) beginLocked() *exchange {
	f := &exchange{done: make(chan struct{})}
	s.flight = f
	return f
}

// fetch makes the exchange and records the outcome. It returns nil if the caller should look at the state again.
func (s *TokenSource) fetch(ctx context.Context, f *exchange, refresh observability.Secret, epoch int) error {
	started := time.Now()
	text, err := s.exchange(ctx, refresh)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	s.flight = nil
	if epoch != s.epoch {
		// The refresh token was replaced meanwhile: neither a failure nor a success of the old one counts.
		return nil
	}
	if err != nil && ctx.Err() != nil {
		// Our caller gave up; that says nothing about Core. Whoever waits makes the next attempt.
		return err
	}
	now := time.Now()
	if err != nil {
		s.failures++
		s.lastErr = err
		pause := s.retry.Delay(s.failures)
		if Status(err) == http.StatusUnauthorized {
			err = fmt.Errorf("%w: %w", ErrRevoked, err)
			s.lastErr, s.revoked, pause = err, true, revokedPause
			s.log.Error("Core refuses the refresh token; the provider has to be given a new one", "error", err)
		} else {
			s.log.Warn("access token not renewed", "error", err, "failures", s.failures, "pause", pause)
		}
		s.nextTry = now.Add(pause)
		return err
	}
	if s.revoked || s.failures > 0 {
		s.log.Info("access token renewed again", "failures", s.failures)
	}
	s.current = accessToken{text: text, fetched: started, expires: started.Add(lifeOf(text))}
	s.stale, s.failures, s.nextTry, s.revoked, s.lastErr, s.lastOK = false, 0, time.Time{}, false, nil, now
	return nil
}

// exchange is POST /auth/providers/refresh, without Authorization (contract 01 section 4). It is idempotent: the
// refresh token does not rotate.
func (s *TokenSource) exchange(ctx context.Context, refresh observability.Secret) (string, error) {
	body := providerapi.BulkRequest[providerapi.RefreshToken]{
		Items: []providerapi.RefreshToken{{RefreshToken: refresh.Reveal()}},
	}
	var answer providerapi.BulkResponse[providerapi.AccessToken]
	err := send(ctx, s.http, s.timeout, request{
		call: callRefresh, method: http.MethodPost, url: s.url, agent: s.agent, body: body, maxBody: 64 << 10,
	}, &answer)
	if err != nil {
		return "", withoutURL(err)
	}
	// Core answers {} to a request that it found no items in; a missing token must never become an empty bearer.
	if len(answer.Responses) != 1 {
		return "", fmt.Errorf("%s: Core answered with %d tokens", callRefresh, len(answer.Responses))
	}
	text := answer.Responses[0].AccessToken
	if len(text) > maxToken || !tokenForm.MatchString(text) {
		return "", fmt.Errorf("%s: Core answered with something that is no token", callRefresh)
	}
	if claims, ok := readClaims(text); ok && s.provider != "" && claims.Subject != "" {
		if want := "#P_" + s.provider; claims.Subject != want {
			return "", fmt.Errorf("%s: the refresh token belongs to %q, not to %q",
				callRefresh, cleanText(claims.Subject), want)
		}
	}
	return text, nil
}

// withoutURL removes *url.Error layers: their text repeats method and address and adds nothing.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok && e == err {
		return e.Err
	}
	return err
}

// claims is the part of an access token that we look at. It is read, not verified: the token came from Core itself
// and only Core has to believe it.
type claims struct {
	Subject   string `json:"sub"`
	IssuedAt  int64  `json:"iat"`
	ExpiresAt int64  `json:"exp"`
}

func readClaims(token string) (claims, bool) {
	var c claims
	_, rest, ok := strings.Cut(token, ".")
	if !ok {
		return c, false
	}
	payload, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return claims{}, false
	}
	return c, true
}

// lifeOf is how long a fresh token lives. It is the difference of two times of Core's clock, so that a wrong clock
// here does not matter.
func lifeOf(token string) time.Duration {
	c, ok := readClaims(token)
	if !ok || c.IssuedAt <= 0 || c.ExpiresAt <= c.IssuedAt || c.ExpiresAt-c.IssuedAt > 24*3600 {
		return defaultLife
	}
	return time.Duration(c.ExpiresAt-c.IssuedAt) * time.Second
}
