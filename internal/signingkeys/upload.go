package signingkeys

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// Method puts the upload of a key in front of another way to connect. Core is given the address of the upload; a browser
// that knows of keys sends its own there, and any other just goes there. Both are sent on to the proof.
type Method struct {
	Keys *Service
	Next usermap.Method
	// URL is the absolute address of the upload; the session is added as query parameter.
	URL string
	// Wanted tells whether keys are asked for when this user connects.
	Wanted func(user ident.UCloudUser) bool
}

var _ usermap.Method = (*Method)(nil)

// Begin implements [usermap.Method].
func (m *Method) Begin(ctx context.Context, a usermap.Attempt) (string, error) {
	if !m.Wanted(a.User) {
		return m.Next.Begin(ctx, a)
	}
	session, err := m.Keys.Begin(ctx, a.User)
	if err != nil {
		return "", err
	}
	return m.URL + "?session=" + url.QueryEscape(session), nil
}

// Receive takes the key of a browser, in PEM, and gives the address where the proof begins. The same key again gives
// another one, as the first answer may have been lost.
func (m *Method) Receive(ctx context.Context, session, text string) (redirectURL string, err error) {
	a, err := m.Keys.Upload(ctx, session, text)
	if err != nil {
		return "", err
	}
	return m.Next.Begin(ctx, a)
}

// Skip is Receive for a browser that has no key. Repeated, it gives the same ticket.
func (m *Method) Skip(ctx context.Context, session string) (redirectURL string, err error) {
	user, err := m.Keys.Skip(ctx, session)
	if err != nil {
		return "", err
	}
	// Without a key there is nothing to compare, and a page that is loaded anew must not end a ticket that somebody has noted.
	return m.Next.Begin(ctx, usermap.Attempt{User: user, Secret: observability.Secret(session)})
}

// Begin opens a session for the upload of a key of the user, and ends the one before.
func (s *Service) Begin(ctx context.Context, user ident.UCloudUser) (session string, err error) {
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.DeleteTokensOf(Purpose, string(user)); err != nil {
			return err
		}
		session, err = s.o.Tokens.IssueTx(tx, onetime.Spec{Purpose: Purpose, User: user, Object: string(user), Limits: sessionLimits})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("open a session for the key of %q: %w", user, err)
	}
	return session, nil
}

// refused is the answer to every session that cannot be used, whatever the reason.
func refused() error {
	return failure.New(failure.NotFound, "This link is not valid any more. Please press \"Connect\" in UCloud again")
}

// interfered is the answer to the second party that uses a session.
func interfered() error {
	return failure.New(failure.Conflict, "Somebody else has used this link, so it cannot be used any more. "+
		"Please press \"Connect\" in UCloud again, and tell the operators of this provider if it happens twice")
}

var expected = onetime.Expect{Purpose: Purpose, Unbound: true}

// known refuses sessions that nobody has ever opened, or that are over, without writing anything. A session whose token
// is gone is still known by its key, so that a second key for it is noticed.
func (s *Service) known(ctx context.Context, session string) error {
	_, err := s.o.Tokens.Peek(ctx, session, expected)
	if !failure.Is(err, failure.NotFound) {
		return err
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		_, err := tx.SigningKeyOfSession(onetime.Hash(session))
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return refused()
	}
	return err
}

// Upload takes in the key that a browser has sent with a session, as pending. It refuses:
//
//   - NotFound: the session.
//   - Invalid: a key that is not good enough.
//   - Conflict: somebody else has used the session, the key was revoked before, or the user has too many.
func (s *Service) Upload(ctx context.Context, session, text string) (a usermap.Attempt, err error) {
	if err := s.known(ctx, session); err != nil {
		return a, err
	}
	key, err := signkey.Parse(text)
	if err != nil {
		return a, err
	}
	hash := onetime.Hash(session)
	var first *store.SigningKey // the key of somebody else
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		a, first = usermap.Attempt{}, nil
		have, err := tx.SigningKeyOfSession(hash)
		switch {
		case errors.Is(err, store.ErrNotFound):
			a, err = s.insert(tx, session, key)
			return err
		case err != nil:
			return err
		case have.Fingerprint != key.Fingerprint():
			first = &have
			return s.closeSession(tx, have)
		case have.State != store.SigningKeyPending:
			return refused() // it has done its work
		}
		// The same browser again: it had no answer.
		if _, err := s.consume(tx, session); err != nil {
			return err
		}
		a = usermap.Attempt{User: have.User, Key: have.ID}
		return nil
	})
	if err != nil {
		return usermap.Attempt{}, err
	}
	if first != nil {
		s.log.Warn("two different signing keys were sent for one connection, none is taken: somebody else has the link that UCloud passed on",
			"user", first.User, "first", first.Fingerprint, "second", key.Fingerprint())
		return usermap.Attempt{}, interfered()
	}
	s.wake()
	s.log.Info("signing key uploaded", "user", a.User, "key", a.Key, "fingerprint", key.Fingerprint())
	return a, nil
}

// insert stores the first key of a session.
func (s *Service) insert(tx *store.Tx, session string, key signkey.Key) (usermap.Attempt, error) {
	g, err := s.consume(tx, session)
	if err != nil {
		return usermap.Attempt{}, err
	}
	if !g.FirstUsed {
		// A browser has gone through it without a key.
		return usermap.Attempt{}, refused()
	}
	if err := s.refuseBarred(tx, g.User, key.Fingerprint()); err != nil {
		return usermap.Attempt{}, err
	}
	now := s.now()
	if err := s.makeRoom(tx, g.User, key.Fingerprint()); err != nil {
		return usermap.Attempt{}, err
	}
	k := store.SigningKey{
		ID: newID(), User: g.User, PublicKey: key.DER(), Fingerprint: key.Fingerprint(), Algorithm: key.Algorithm(),
		Session: onetime.Hash(session), State: store.SigningKeyPending, CreatedAt: now, ExpiresAt: now.Add(s.o.Pending),
	}
	return usermap.Attempt{User: k.User, Key: k.ID}, tx.InsertSigningKey(k)
}

// makeRoom refuses a key beyond the limit. Keys that nobody has proved give way: whoever uploads many of them must not be
// able to keep others out.
func (s *Service) makeRoom(tx *store.Tx, user ident.UCloudUser, fingerprint string) error {
	live, err := tx.LiveSigningKeys(user, s.now())
	if err != nil {
		return err
	}
	active := 0
	var pending []string
	for _, k := range live {
		switch {
		case k.State == store.SigningKeyPending:
			pending = append(pending, k.ID)
		case k.Fingerprint != fingerprint:
			active++
		}
	}
	most := s.o.MaxPerUser()
	if active >= most {
		return s.full(active)
	}
	for len(pending) > 0 && active+len(pending) >= most {
		if err := tx.ForgetSigningKey(pending[0]); err != nil {
			return err
		}
		pending = pending[1:]
	}
	return nil
}

// consume uses the session once.
func (s *Service) consume(tx *store.Tx, session string) (onetime.Grant, error) {
	g, err := s.o.Tokens.ConsumeTx(tx, session, expected)
	if failure.Is(err, failure.NotFound) {
		return g, refused()
	}
	return g, err
}

// closeSession forgets a key, if nothing has come of it yet, and the session with which it came.
func (s *Service) closeSession(tx *store.Tx, k store.SigningKey) error {
	for _, err := range []error{tx.DeleteToken(k.Session), tx.ForgetSigningKey(k.ID)} {
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return nil
}

// Skip uses a session for a browser that sends no key. It may do so again, when somebody loads the page anew.
func (s *Service) Skip(ctx context.Context, session string) (user ident.UCloudUser, err error) {
	if err := s.known(ctx, session); err != nil {
		return "", err
	}
	var first *store.SigningKey
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		user, first = "", nil
		have, err := tx.SigningKeyOfSession(onetime.Hash(session))
		if err == nil {
			first = &have
			return s.closeSession(tx, have)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		g, err := s.consume(tx, session)
		user = g.User
		return err
	})
	if err != nil {
		return "", err
	}
	if first != nil {
		s.log.Warn("a browser without a signing key came after one was sent for the same connection, it is not taken: "+
			"somebody else has the link that UCloud passed on", "user", first.User, "key", first.Fingerprint)
		return "", interfered()
	}
	return user, nil
}
