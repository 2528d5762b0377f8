package consent

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// Proof is who the person is: an identity, and the local account that belongs to it.
type Proof struct {
	Issuer, Subject string
	Account         usermap.Account // allowed by the policy
}

// Prove notes what was found out about a login, which then waits for the person to agree. It refuses what could not be
// connected anyway, so that nobody is asked in vain.
func (s *Service) Prove(ctx context.Context, p *Pending, proof Proof) error {
	if proof.Issuer == "" || proof.Subject == "" || proof.Account.UID == 0 || proof.Account.Name == "" {
		return errors.New("prove a login: issuer, subject and account are required")
	}
	rec := p.rec
	rec.Stage, rec.Issuer, rec.Subject, rec.UID, rec.LocalName = store.LoginProved, proof.Issuer, proof.Subject, proof.Account.UID, proof.Account.Name
	rec.ExpiresAt = s.o.Now().Add(consentLife)
	return s.o.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := checkIdentity(tx, rec); err != nil {
			return err
		}
		m, err := tx.MappingByUser(rec.User)
		if err == nil && m.UID != rec.UID {
			return otherAccount(rec, m)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return tx.MoveLogin(rec, store.LoginChecking)
	})
}

func otherAccount(rec store.Login, m store.Mapping) error {
	return failure.New(failure.Conflict, "You have logged in with the account %s, but the UCloud user %q is connected with the account %s. "+
		"Log in with that one, or ask the operators to change the connection", rec.LocalName, rec.User, m.LocalName)
}

// checkIdentity refuses an identity that is another user's, and a user who has another identity of the same issuer. What
// belongs to users without a mapping counts no more, and is given back as out of date.
func checkIdentity(tx *store.Tx, rec store.Login) (outdated []store.Identity, err error) {
	whose, err := tx.IdentityBySubject(rec.Issuer, rec.Subject)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return nil, err
	case whose.User != rec.User:
		mapped, err := hasMapping(tx, whose.User)
		if err != nil {
			return nil, err
		}
		if mapped {
			return nil, failure.New(failure.Conflict, "You have logged in as somebody who is connected with another UCloud user, %q. "+
				"One person can be connected with one UCloud user only", whose.User)
		}
		outdated = append(outdated, whose)
	}
	mine, err := tx.IdentityOfUser(rec.User)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return nil, err
	case mine.Issuer != rec.Issuer:
		outdated = append(outdated, mine) // the provider uses another issuer now; the account still has to be the same
	case mine.Subject != rec.Subject:
		mapped, err := hasMapping(tx, rec.User)
		if err != nil {
			return nil, err
		}
		if mapped {
			return nil, failure.New(failure.Conflict, "The UCloud user %q was connected by another person's login than yours. "+
				"Log in as before, or ask the operators", rec.User)
		}
		outdated = append(outdated, mine)
	}
	return outdated, nil
}

func hasMapping(tx *store.Tx, user ident.UCloudUser) (bool, error) {
	_, err := tx.MappingByUser(user)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// bindIdentity writes down whose the identity is.
func (s *Service) bindIdentity(tx *store.Tx, rec store.Login) error {
	outdated, err := checkIdentity(tx, rec)
	if err != nil {
		return err
	}
	for _, i := range outdated {
		if err := tx.DeleteIdentity(i.Issuer, i.Subject); err != nil {
			return err
		}
	}
	if mine, err := tx.IdentityOfUser(rec.User); err == nil && mine.Issuer == rec.Issuer && mine.Subject == rec.Subject {
		return nil
	}
	err = tx.InsertIdentity(store.Identity{Issuer: rec.Issuer, Subject: rec.Subject, User: rec.User, CreatedAt: s.o.Now()})
	if errors.Is(err, store.ErrConflict) {
		// The constraint of the database has the last word.
		return failure.Wrap(err, failure.Conflict, "This login or this UCloud user has been connected otherwise meanwhile")
	}
	return err
}

// Stage is how far a login is, as its page shows it.
type Stage int

// The stages.
const (
	StageChecking   Stage = iota + 1
	StageAsk              // shown with the form
	StageConnecting       // agreed, Core has not confirmed yet
	StageConnected
	StageCancelled
	StageFailed
)

// View is what the page of a login shows.
type View struct {
	Stage       Stage
	User        ident.UCloudUser
	LocalName   string // from StageAsk on
	Fingerprint string // of the signing key that came with the login; empty: none
	Form        string // the secret of the form, of StageAsk
	Message     string // of StageFailed
	Assigned    bool   // the provider has found the account, and nobody has logged in
}

var errNoLogin = failure.New(failure.NotFound, "There is no login of this browser")

// find gives the login of a browser.
func (s *Service) find(ctx context.Context, cookie string) (rec store.Login, err error) {
	if len(cookie) != textLength {
		return rec, errNoLogin
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		rec, err = tx.LoginByCookie(hash("cookie", cookie))
		return err
	})
	if errors.Is(err, store.ErrNotFound) || err == nil && !s.o.Now().Before(rec.ExpiresAt) {
		return rec, errNoLogin
	}
	return rec, err
}

// View gives the content of the page for a browser. A browser without a login is NotFound.
func (s *Service) View(ctx context.Context, cookie string) (View, error) {
	rec, err := s.find(ctx, cookie)
	if err != nil {
		return View{}, err
	}
	v := View{User: rec.User, LocalName: rec.LocalName, Message: rec.Message}
	switch rec.Stage {
	case store.LoginChecking:
		v.Stage = StageChecking
		return v, nil
	case store.LoginProved:
		v.Stage, v.Form = StageAsk, derive("form", cookie, rec.Salt)
		if rec.Key != "" {
			v.Fingerprint, err = s.o.Fingerprint(ctx, rec.User, rec.Key)
		}
		return v, err
	case store.LoginCancelled:
		v.Stage = StageCancelled
		return v, nil
	case store.LoginFailed:
		v.Stage = StageFailed
		return v, nil
	case store.LoginAgreed:
	default:
		return View{}, errNoLogin
	}
	m, err := s.o.Users.Mapping(ctx, rec.User)
	switch {
	case failure.Is(err, failure.NotFound) || err == nil && m.UID != rec.UID:
		return View{}, errNoLogin // it has been ended or changed since
	case err != nil:
		return View{}, err
	}
	switch m.State {
	case store.MappingActive:
		v.Stage = StageConnected
	case store.MappingPending, store.MappingApproved:
		v.Stage = StageConnecting
	default:
		return View{}, errNoLogin
	}
	return v, nil
}

// Decide is the answer of the person. The form's secret shows that the answer comes from the page that was shown to this
// browser. What cannot be connected ends the login, and its page says why; an error means that nothing has changed.
func (s *Service) Decide(ctx context.Context, cookie, form string, agree bool) error {
	rec, err := s.find(ctx, cookie)
	if err != nil {
		return err
	}
	if !hmac.Equal([]byte(form), []byte(derive("form", cookie, rec.Salt))) {
		return failure.New(failure.Forbidden, "The answer does not come from the page of this login. Please open the page again")
	}
	if rec.Stage != store.LoginProved {
		return nil // it has been decided: the page shows how
	}
	if !agree {
		return s.cancel(ctx, rec)
	}
	var expires *time.Time
	if life := s.o.Lifetime(); life > 0 {
		at := s.o.Now().Add(life)
		expires = &at
	}
	_, err = s.o.Users.Link(ctx, usermap.Link{
		User: rec.User, Local: rec.UID.String(), Method: s.o.Method, By: rec.LocalName, ExpiresAt: expires, Key: rec.Key,
		Also: func(tx *store.Tx, a usermap.Account) error {
			if a.UID != rec.UID || a.Name != rec.LocalName {
				return failure.New(failure.Conflict, "Your local account has changed meanwhile. Please ask the operators")
			}
			if err := s.bindIdentity(tx, rec); err != nil {
				return err
			}
			done := rec
			done.Stage, done.ExpiresAt = store.LoginAgreed, s.o.Now().Add(shownLife)
			return tx.MoveLogin(done, store.LoginProved)
		},
	})
	switch failure.KindOf(err) {
	case failure.Conflict, failure.Forbidden, failure.NotFound, failure.Invalid:
		s.Fail(ctx, &Pending{rec: rec}, err)
		return nil
	}
	if errors.Is(err, store.ErrConflict) {
		return nil // pressed twice; the other one decides
	}
	if err != nil {
		return fmt.Errorf("connect %q after a login: %w", rec.User, err)
	}
	s.log.Info("login completed", "user", rec.User, "uid", rec.UID, "local", rec.LocalName)
	return nil
}

func (s *Service) cancel(ctx context.Context, rec store.Login) error {
	done := rec
	done.Stage, done.ExpiresAt = store.LoginCancelled, s.o.Now().Add(shownLife)
	err := s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.MoveLogin(done, store.LoginProved) })
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err == nil {
		s.log.Info("login cancelled by the user", "user", rec.User)
	}
	return err
}
