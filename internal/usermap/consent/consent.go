// Package consent leads a browser through a proof of identity: it binds the proof to the browser in which it began, keeps
// it in the database from the first page to the last, and connects nothing before the person has been shown both accounts
// and has agreed (contract 03 section 7, points 1 and 8). How the proof itself is made is for the methods that use it, such
// as package oidc.
//
//	Begin (Core)    Start (first page)    Claim (came back)     Prove                   Decide
//	 token ───────▶ started ────────────▶ checking ───────────▶ proved ───────────────▶ agreed: [usermap.Service.Link]
//	                                          │ Fail, restart                        └▶ cancelled
//	                                          └────────────────────────────────────────▶ failed
//
// # Trust
//
// UCloud/Core obtains the first URL, and may hand it to anybody; so may the user whom it was made for. What binds the rest
// is the browser that opens it first:
//
//   - The first page can be opened once, and gives that browser a cookie with a fresh secret. The answer of the identity
//     provider counts only with that cookie beside it (TestStateOfAnotherBrowser), and once (TestClaimOnce).
//   - Nonce, PKCE verifier and the token of the form are derived from the cookie and from a salt in the database, so that
//     neither a copy of the database nor a stolen state is of any use (TestDatabaseHoldsNoSecret).
//   - A link that is sent to a victim makes the victim log in, and then see that a UCloud user who is not them wants their
//     account (TestLinkSentToVictim). Only a POST with the form's token connects (TestConsentNeedsTheForm).
//   - One identity belongs to one UCloud user and one user to one identity as long as the user has a mapping; the database
//     decides that in the transaction of the mapping (TestIdentities).
//   - Each step is a transition of one row, so that a crash loses at most the step that was under way: what was being
//     checked must be begun again, what was proved waits for consent, what was agreed is repaired by package usermap
//     (TestCrash).
//   - Logins end by time, and are bounded for each user and in total (TestBounds).
package consent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// PurposeLogin is the purpose of the one-time token of the first page.
const PurposeLogin = onetime.PurposeLogin

const (
	// loginLife is for the way from the button "Connect" to the first page, and from there to the answer of the identity
	// provider: a person may have to look for a second factor.
	loginLife = 15 * time.Minute
	// consentLife is how long the question waits for an answer.
	consentLife = 15 * time.Minute
	// shownLife is how long the outcome can be seen, and so the life of the cookie.
	shownLife = time.Hour

	maxPerUser = 5      // logins, and first pages that were not opened; a new one replaces the oldest
	maxTotal   = 10_000 // logins
	secretSize = 32
	textLength = 43 // of secretSize in unpadded base64

	purgeEvery = 5 * time.Minute
)

// LongestLogin is how long the way from the button "Connect" to the answer of the person can take.
const LongestLogin = 2*loginLife + consentLife

// Options configure a [Service]. Store, Users, Tokens, Log, PageURL and Method are required.
type Options struct {
	Store  *store.Store
	Users  *usermap.Service
	Tokens *onetime.Tokens
	Log    *slog.Logger

	PageURL string // absolute URL of the first page; the token is added as query parameter "session"
	Method  string // what the mapping says about how it was proved

	// Lifetime is that of a connection; 0 or nil: it does not end by itself.
	Lifetime func() time.Duration
	// Fingerprint gives the fingerprint of a signing key that came with an attempt. nil: attempts with a key are refused.
	Fingerprint func(ctx context.Context, user ident.UCloudUser, key string) (string, error)

	MaxTotal int // logins; 0 means 10,000
	Now      func() time.Time
}

// Service keeps logins. It is safe for concurrent use.
type Service struct {
	o   Options
	log *slog.Logger
}

// New makes a service. Call [Service.Recover] before serving and [Service.Run] to forget what is over.
func New(o Options) (*Service, error) {
	if o.Store == nil || o.Users == nil || o.Tokens == nil || o.Log == nil || o.Method == "" {
		return nil, errors.New("consent: Store, Users, Tokens, Log and Method are required")
	}
	if u, err := url.Parse(o.PageURL); err != nil || !u.IsAbs() {
		return nil, fmt.Errorf("consent: PageURL %q must be absolute: Core passes it on as it is", o.PageURL)
	}
	if o.Lifetime == nil {
		o.Lifetime = func() time.Duration { return 0 }
	}
	if o.MaxTotal == 0 {
		o.MaxTotal = maxTotal
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{o: o, log: o.Log.With("part", "logins")}, nil
}

// newSecret makes a secret as text.
func newSecret() string {
	var raw [secretSize]byte
	rand.Read(raw[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// hash is under which a secret is stored. What is it for keeps a state from being used as a cookie.
func hash(what, secret string) [32]byte {
	return sha256.Sum256([]byte("ucloud login " + what + "\x00" + secret))
}

// derive makes another secret of the browser's cookie and the salt of its login.
func derive(what, cookie string, salt []byte) string {
	mac := hmac.New(sha256.New, []byte(cookie))
	mac.Write([]byte("ucloud login " + what + "\x00"))
	mac.Write(salt)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Begin gives the URL of the first page for an attempt. Only so many of a user are open: a new one replaces all before it
// when there are too many.
func (s *Service) Begin(ctx context.Context, a usermap.Attempt) (string, error) {
	if a.Key != "" && s.o.Fingerprint == nil {
		return "", errors.New("begin a login: signing keys are not known here")
	}
	var text string
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.CountTokens(a.User, PurposeLogin, s.o.Now())
		if err != nil {
			return err
		}
		if n >= maxPerUser {
			if _, err := tx.DeleteTokensOf(PurposeLogin, string(a.User)); err != nil {
				return err
			}
		}
		text, err = s.o.Tokens.IssueTx(tx, onetime.Spec{
			Purpose: PurposeLogin, User: a.User, Object: string(a.User), Data: []byte(a.Key),
		})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("begin a login for %q: %w", a.User, err)
	}
	return s.o.PageURL + "?session=" + url.QueryEscape(text), nil
}

// Usable tells whether the first page could be opened with the token now, without opening it. Refusal is NotFound.
func (s *Service) Usable(ctx context.Context, session string) error {
	_, err := s.o.Tokens.Peek(ctx, session, onetime.Expect{Purpose: PurposeLogin, Unbound: true})
	return err
}

// Started is what a login begins with. All of it is secret.
type Started struct {
	Cookie   string // for the browser; CookieLife says for how long
	State    string // for the identity provider, which gives it back
	Nonce    string // as State, in what the identity provider signs
	Verifier string // of PKCE (RFC 7636)
}

// CookieLife is how long the browser keeps the cookie.
const CookieLife = shownLife

// Start opens the first page: it uses the token up and binds the login to the browser that gets the cookie.
func (s *Service) Start(ctx context.Context, session string) (Started, error) {
	st := Started{Cookie: newSecret(), State: newSecret()}
	// As in Claim: anybody can open the page.
	if err := s.Usable(ctx, session); err != nil {
		return Started{}, fmt.Errorf("start a login: %w", err)
	}
	salt := make([]byte, secretSize)
	rand.Read(salt) //nolint:errcheck // never fails
	now := s.o.Now().UTC().Truncate(time.Millisecond)
	var user ident.UCloudUser
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error {
		g, err := s.o.Tokens.ConsumeTx(tx, session, onetime.Expect{Purpose: PurposeLogin, Unbound: true})
		if err != nil {
			return err
		}
		user = g.User
		if err := s.makeRoom(tx, user, now); err != nil {
			return err
		}
		return tx.InsertLogin(store.Login{
			StateHash: hash("state", st.State), CookieHash: hash("cookie", st.Cookie), Salt: salt, User: user, Key: string(g.Data),
			CreatedAt: now, ExpiresAt: now.Add(loginLife),
		})
	})
	if err != nil {
		return Started{}, fmt.Errorf("start a login: %w", err)
	}
	st.Nonce, st.Verifier = derive("nonce", st.Cookie, salt), derive("verifier", st.Cookie, salt)
	s.log.Info("login started", "user", user)
	return st, nil
}

// makeRoom keeps the logins within their bounds: the oldest of the user goes, never somebody else's.
func (s *Service) makeRoom(tx *store.Tx, user ident.UCloudUser, now time.Time) error {
	mine, err := tx.LoginsOf(user)
	if err != nil {
		return err
	}
	for i := maxPerUser - 1; i < len(mine); i++ {
		if err := tx.DeleteLogin(mine[i].StateHash); err != nil {
			return err
		}
	}
	n, err := tx.CountLogins()
	if err != nil || n < s.o.MaxTotal {
		return err
	}
	if n, err = tx.PurgeLogins(now); err == nil && n == 0 {
		err = failure.New(failure.TooMany, "Very many people are logging in. Please try again in some minutes")
	}
	return err
}

// Pending is a login whose browser has come back. It is being checked, once.
type Pending struct {
	rec      store.Login
	Nonce    string
	Verifier string
}

// User is whom Core has named.
func (p *Pending) User() ident.UCloudUser { return p.rec.User }

// StartedAt is when the browser left for the identity provider.
func (p *Pending) StartedAt() time.Time { return p.rec.CreatedAt }

var (
	errUnknownState = failure.New(failure.NotFound, "This login is not known here, or its time is over. Press \"Connect\" in UCloud again")
	errOtherBrowser = failure.New(failure.Forbidden, "This login was started in another browser. Press \"Connect\" in UCloud again, and log in with the same browser")
)

// ErrClaimed is in the chain of the error of [Service.Claim] for a login of this very browser that has come back before.
var ErrClaimed = errors.New("the login has come back before")

// Claim finds the login to which an answer of the identity provider belongs, for the browser that started it, and marks
// it so that the answer counts once. Errors: NotFound, Forbidden for another browser, and [ErrClaimed].
func (s *Service) Claim(ctx context.Context, state, cookie string) (*Pending, error) {
	if len(state) != textLength {
		return nil, errUnknownState
	}
	var rec store.Login
	// Anybody can send a state. One that is not known must not wait for the one writer of the database, nor hold it.
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		_, err := tx.LoginByState(hash("state", state))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, errUnknownState
	}
	if err != nil {
		return nil, err
	}
	err = s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		rec, err = tx.LoginByState(hash("state", state))
		if errors.Is(err, store.ErrNotFound) || err == nil && !s.o.Now().Before(rec.ExpiresAt) {
			return errUnknownState
		}
		if err != nil {
			return err
		}
		presented := hash("cookie", cookie)
		if !hmac.Equal(presented[:], rec.CookieHash[:]) {
			return errOtherBrowser
		}
		if rec.Stage != store.LoginStarted {
			return failure.Wrap(ErrClaimed, failure.Conflict, "This login has been completed already")
		}
		rec.Stage = store.LoginChecking
		return tx.MoveLogin(rec, store.LoginStarted)
	})
	if err != nil {
		return nil, err
	}
	return &Pending{rec: rec, Nonce: derive("nonce", cookie, rec.Salt), Verifier: derive("verifier", cookie, rec.Salt)}, nil
}

// Fail ends a login. The user sees the sentence of the error.
func (s *Service) Fail(ctx context.Context, p *Pending, why error) {
	s.log.Warn("login failed", "user", p.rec.User, "error", why)
	rec := p.rec
	rec.Stage, rec.Message, rec.ExpiresAt = store.LoginFailed, failure.Why(why), s.o.Now().Add(shownLife)
	err := s.o.Store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.MoveLogin(rec, p.rec.Stage) })
	if err != nil {
		s.log.Error("a failed login was not noted, it ends by time", "user", p.rec.User, "error", err)
	}
}

// Recover ends the logins that were being checked when the process ended: what came from the identity provider is lost,
// and cannot be had again. Call it before serving.
func (s *Service) Recover(ctx context.Context) error {
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.FailCheckingLogins("The service was restarted while your login was being checked")
		if n > 0 {
			s.log.Warn("logins were cut short by the end of the last process", "logins", n)
		}
		return err
	})
}

// Run forgets logins whose time is over, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		if _, err := s.Purge(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("old logins were not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Purge forgets the logins whose time is over and says how many they were.
func (s *Service) Purge(ctx context.Context) (n int, err error) {
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		n, err = tx.PurgeLogins(s.o.Now())
		return err
	})
	return n, err
}
