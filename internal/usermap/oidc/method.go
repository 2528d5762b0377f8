package oidc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
)

// MethodName is what the mapping's Method says for connections made by a login.
const MethodName = "oidc"

const (
	// patience is how long the browser waits for the outcome before it is shown a page that does.
	patience = 5 * time.Second
	// parallel is how many logins are checked at a time, perUser how many of one user: the program of the site may hang.
	parallel = 32
	perUser  = 2
	// checkTime bounds the check of one login: three answers of the identity provider, a program, a new account.
	checkTime = 5 * time.Minute
	// retryFirst and retryMax are the pauses between attempts to find the identity provider.
	retryFirst = 5 * time.Second
	retryMax   = 5 * time.Minute
)

// Options configure a [Method]. Consent, Account, Existing and Log are required.
type Options struct {
	Consent *consent.Service
	Log     *slog.Logger
	// Account gives the account with a uid if the policy allows it. It may wait for the name service to know a new one.
	Account func(ctx context.Context, uid ident.UID) (usermap.Account, error)
	// Existing gives the mapping of a user, or an error of kind NotFound.
	Existing func(ctx context.Context, user ident.UCloudUser) (store.Mapping, error)

	Now      func() time.Time
	Patience time.Duration // 0 means 5 s
}

// Method is the proof by login. It is safe for concurrent use.
type Method struct {
	o   Options
	log *slog.Logger

	current atomic.Pointer[issuer]
	kick    chan struct{} // wakes Run after a change

	base   context.Context //nolint:containedctx // of the checks, which outlive the requests that begin them
	cancel context.CancelFunc
	slots  chan struct{}

	mu     sync.Mutex // guards closed and busy, and orders closed with checks.Add
	closed bool
	busy   map[ident.UCloudUser]int // checks that are under way
	checks sync.WaitGroup
}

var _ usermap.Method = (*Method)(nil)

// New makes a method. Nothing is asked until [Method.Run] or a browser asks.
func New(o Options, s Settings) (*Method, error) {
	if o.Consent == nil || o.Account == nil || o.Existing == nil || o.Log == nil {
		return nil, errors.New("oidc: Consent, Account, Existing and Log are required")
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience == 0 {
		o.Patience = patience
	}
	m := &Method{o: o, log: o.Log.With("part", "oidc"), kick: make(chan struct{}, 1), slots: make(chan struct{}, parallel), busy: map[ident.UCloudUser]int{}}
	m.base, m.cancel = context.WithCancel(context.Background())
	m.current.Store(newIssuer(s, o.Now))
	return m, nil
}

// Set replaces the settings. Logins that are under way go on with those they meet.
func (m *Method) Set(s Settings) error {
	if err := s.check(); err != nil {
		return err
	}
	old := m.current.Load()
	next := newIssuer(s, m.o.Now)
	if old.same(s) {
		next.known.Store(old.known.Load())
	}
	m.current.Store(next)
	select {
	case m.kick <- struct{}{}:
	default:
	}
	return nil
}

// Run looks for the identity provider until it has answered, and reads its discovery document again from time to time. When
// ctx ends it ends the checks that are under way; it returns when they have.
func (m *Method) Run(ctx context.Context) error {
	defer func() {
		m.mu.Lock()
		m.closed = true
		m.mu.Unlock()
		m.cancel()
		m.checks.Wait()
	}()
	pause := retryFirst
	for {
		i := m.current.Load()
		wait := discoveryLife
		if d := i.known.Load(); d == nil || m.o.Now().Sub(d.at) >= discoveryLife {
			if _, err := i.ask(ctx, 0); err != nil && ctx.Err() == nil {
				m.log.Warn("the identity provider does not answer as it should; nobody can connect meanwhile", "issuer", i.Issuer, "error", cause(err))
				wait, pause = pause, min(2*pause, retryMax)
			} else if err == nil {
				pause = retryFirst
				m.log.Info("the identity provider is known", "issuer", i.Issuer)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.kick:
			pause = retryFirst
		case <-timer.C:
		}
		timer.Stop()
	}
}

// cause is what a log should say about an error whose text is for users.
func cause(err error) error {
	if c := errors.Unwrap(err); c != nil {
		return c
	}
	return err
}

// State is what operators want to know about the identity provider.
type State struct {
	Issuer, RedirectURI string
	Known               bool // the discovery document has been read
	Problem             error
}

// State tells how the identity provider is.
func (m *Method) State() State {
	i := m.current.Load()
	s := State{Issuer: i.Issuer, RedirectURI: i.RedirectURI, Known: i.known.Load() != nil}
	select {
	case i.turn <- struct{}{}:
		s.Problem = i.last
		<-i.turn
	default: // it is being asked just now
	}
	return s
}

// Begin implements [usermap.Method]. The URL is one of ours: Core is given it, and only the browser that opens it can be
// bound to the login.
func (m *Method) Begin(ctx context.Context, a usermap.Attempt) (string, error) {
	return m.o.Consent.Begin(ctx, a)
}

// Open is the first page. As long as the identity provider is away the token of the page stays good.
func (m *Method) Open(ctx context.Context, session string) (consent.Opened, error) {
	if err := m.o.Consent.Usable(ctx, session); err != nil {
		return consent.Opened{}, err
	}
	d, err := m.current.Load().ready(ctx)
	if err != nil {
		return consent.Opened{}, err
	}
	st, err := m.o.Consent.Start(ctx, session)
	if err != nil {
		return consent.Opened{}, err
	}
	to := d.oauth.AuthCodeURL(st.State, oauth2.SetAuthURLParam("nonce", st.Nonce), oauth2.S256ChallengeOption(st.Verifier))
	return consent.Opened{URL: to, Cookie: st.Cookie}, nil
}

// Return takes what the browser brings back from the identity provider. Whatever comes of it is shown by the page of the
// login, [Method.View]; an error means that there is no such page.
func (m *Method) Return(ctx context.Context, query, cookie string) error {
	a, err := parseAnswer(query)
	if err != nil {
		return err
	}
	select {
	case m.slots <- struct{}{}:
	default:
		return failure.New(failure.Unavailable, "Very many people are logging in. Please reload this page in a moment")
	}
	p, err := m.o.Consent.Claim(ctx, a.state, cookie)
	if err != nil {
		<-m.slots
		if errors.Is(err, consent.ErrClaimed) {
			return nil // a reload
		}
		return err
	}
	if err := m.enter(p.User()); err != nil {
		<-m.slots
		m.o.Consent.Fail(ctx, p, err)
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer m.checks.Done()
		defer func() { <-m.slots }()
		defer m.leave(p.User())
		defer close(done)
		m.check(p, a)
	}()
	timer := time.NewTimer(m.o.Patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// enter counts a check that begins.
func (m *Method) enter(user ident.UCloudUser) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return failure.New(failure.Unavailable, "The service is being restarted")
	case m.busy[user] >= perUser:
		return failure.New(failure.TooMany, "Other logins of %q are still being checked. Please wait until they are done, "+
			"and press \"Connect\" in UCloud again", user)
	}
	m.busy[user]++
	m.checks.Add(1)
	return nil
}

func (m *Method) leave(user ident.UCloudUser) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[user]--; m.busy[user] == 0 {
		delete(m.busy, user)
	}
}

// check does what the outcome of a login depends on.
func (m *Method) check(p *consent.Pending, a answer) {
	ctx, cancel := context.WithTimeout(m.base, checkTime)
	defer cancel()
	proof, err := m.prove(ctx, p, a)
	if err == nil {
		err = m.o.Consent.Prove(ctx, p, proof)
	}
	if err != nil {
		m.o.Consent.Fail(ctx, p, err)
	}
}

func (m *Method) prove(ctx context.Context, p *consent.Pending, a answer) (consent.Proof, error) {
	i := m.current.Load()
	d, err := i.ready(ctx)
	if err != nil {
		return consent.Proof{}, err
	}
	if err := a.checkIssuer(i.Issuer, d.sendsIss); err != nil {
		return consent.Proof{}, err
	}
	if a.err != "" {
		return consent.Proof{}, failure.Wrap(errors.New("the identity provider answers "+clip(a.err)), failure.Forbidden,
			"You were not logged in at the identity provider")
	}
	who, err := i.redeem(ctx, d, a.code, expected{nonce: p.Nonce, verifier: p.Verifier, since: p.StartedAt()})
	if err != nil {
		return consent.Proof{}, err
	}
	uid, err := m.mapped(ctx, i, p.User(), who)
	if err != nil {
		return consent.Proof{}, err
	}
	account, err := m.o.Account(ctx, uid)
	if err != nil {
		return consent.Proof{}, err
	}
	return consent.Proof{Issuer: i.Issuer, Subject: who.subject, Account: account}, nil
}

// mapped asks the program whose account it is (contract 42 section B.2).
func (m *Method) mapped(ctx context.Context, i *issuer, user ident.UCloudUser, who person) (ident.UID, error) {
	request := scripts.LoginRequest{
		Claims: who.claims, EmailVerified: who.emailVerified, Email: who.email, Subject: who.subject, Profile: who.profile,
		UCloudUsername: user, Issuer: i.Issuer,
	}
	existing, err := m.o.Existing(ctx, user)
	switch {
	case err == nil:
		request.ExistingUID = &existing.UID
	case !failure.Is(err, failure.NotFound):
		return 0, err
	}
	var reply scripts.UIDReply
	for attempt := 1; ; attempt++ {
		err := i.Map.Call(ctx, scripts.Call{
			// The same key as for the news of the end of a connection: no two programs work on one user at a time.
			Key: "user/" + string(user), Owner: ident.Owner{User: user}, Request: request, Attempt: attempt, Reason: "login",
		}, &reply)
		if err == nil {
			return ident.UID(*reply.UID), nil //nolint:gosec // Check has looked at it
		}
		var e *scripts.Error
		if !errors.As(err, &e) {
			return 0, fmt.Errorf("find the local account: %w", err)
		}
		if e.Kind == scripts.Temporary && attempt == 1 {
			continue // one quick repetition, since a person waits (contract 42 section A.3)
		}
		return 0, notMapped(e)
	}
}

// notMapped is what the user is told when the program has found no account.
func notMapped(e *scripts.Error) error {
	switch {
	case e.UserMessage != "":
		return failure.Wrap(e, failure.Forbidden, "%s", e.UserMessage)
	case e.Kind == scripts.NotPermitted:
		return failure.Wrap(e, failure.Forbidden, "You have no account here that UCloud can be connected with. Please ask the operators")
	}
	return failure.Wrap(e, failure.Unavailable, "Your local account could not be found out. Please try again later, or ask the operators")
}

// View gives the content of the page of a login, see [consent.Service.View].
func (m *Method) View(ctx context.Context, cookie string) (consent.View, error) {
	return m.o.Consent.View(ctx, cookie)
}

// Decide takes the answer of the person, see [consent.Service.Decide].
func (m *Method) Decide(ctx context.Context, cookie, form string, agree bool) error {
	return m.o.Consent.Decide(ctx, cookie, form, agree)
}
