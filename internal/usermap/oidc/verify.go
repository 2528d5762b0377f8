package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"ucloud-im/internal/failure"
)

const (
	// skew is by how much the clocks of the identity provider and ours may differ.
	skew = 2 * time.Minute
	// maxSubject is the length of a subject (OpenID Connect Core 1.0 section 2).
	maxSubject = 255
)

// person is who has logged in.
type person struct {
	subject       string
	claims        json.RawMessage // of the ID token
	email         string          // verified
	emailVerified bool
	profile       string
}

// refused is an answer of the identity provider that cannot be accepted. The user can do nothing about the reason, which
// is for the log.
func refused(why string) error {
	return failure.Wrap(errors.New(why), failure.BadGateway, "The answer of the identity provider cannot be accepted. Please try again, and tell the operators if it does not help")
}

// expected is what a login expects of the answer.
type expected struct {
	nonce    string
	verifier string
	since    time.Time // the login was started
}

// redeem exchanges the code and checks everything that comes back (OpenID Connect Core 1.0 sections 3.1.3 and 5.3).
func (i *issuer) redeem(ctx context.Context, d *discovered, code string, want expected) (person, error) {
	ctx = gooidc.ClientContext(ctx, i.http) // oauth2 takes the client from the same place
	exchange, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	token, err := d.oauth.Exchange(exchange, code, oauth2.VerifierOption(want.verifier))
	if err != nil {
		return person{}, refused("exchange the code: " + i.hide(err).Error())
	}
	if !strings.EqualFold(token.TokenType, "Bearer") {
		return person{}, refused("the access token is of the type " + clip(token.TokenType))
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return person{}, refused("the answer holds no ID token")
	}
	check, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	p, err := i.verify(check, d, raw, token.AccessToken, want)
	if err != nil {
		return person{}, refused("ID token: " + i.hide(err).Error())
	}
	if d.provider.UserInfoEndpoint() == "" {
		return p, nil
	}
	ask, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return p, i.addUserInfo(ask, d, token, &p)
}

// idClaims are the claims of an ID token that are checked here; go-oidc has checked iss, aud and exp.
type idClaims struct {
	Azp           *string  `json:"azp"`
	Email         string   `json:"email"`
	EmailVerified flexBool `json:"email_verified"`
	Profile       string   `json:"profile"`
}

// flexBool is a boolean that some identity providers write as text.
type flexBool bool

// UnmarshalJSON implements [json.Unmarshaler]. Only true and "true" are true.
func (b *flexBool) UnmarshalJSON(data []byte) error {
	*b = string(data) == "true" || string(data) == `"true"`
	return nil
}

// verify checks an ID token.
func (i *issuer) verify(ctx context.Context, d *discovered, raw, access string, want expected) (person, error) {
	now := i.now()
	verifier := gooidc.NewVerifier(i.Issuer, d.keys, &gooidc.Config{
		ClientID: i.ClientID, SupportedSigningAlgs: d.algs, Now: func() time.Time { return now },
	})
	t, err := verifier.Verify(ctx, raw)
	if err != nil {
		return person{}, err
	}
	var c idClaims
	if err := t.Claims(&c); err != nil {
		return person{}, fmt.Errorf("claims: %w", err)
	}
	switch {
	case c.Azp != nil && *c.Azp != i.ClientID:
		return person{}, errors.New("azp is somebody else")
	case len(t.Audience) > 1 && c.Azp == nil:
		return person{}, errors.New("it is for several, and azp does not say for whom")
	case !equal(t.Nonce, want.nonce):
		return person{}, errors.New("the nonce is not that of this login")
	case t.IssuedAt.After(now.Add(skew)):
		return person{}, errors.New("it was issued in the future")
	case t.IssuedAt.Before(want.since.Add(-skew)):
		return person{}, errors.New("it was issued before the login began")
	case t.Subject == "" || len(t.Subject) > maxSubject || strings.ContainsFunc(t.Subject, func(r rune) bool { return r < ' ' || r > '~' }):
		return person{}, errors.New("sub is no subject")
	}
	if t.AccessTokenHash != "" {
		if err := t.VerifyAccessToken(access); err != nil {
			return person{}, errors.New("at_hash does not fit the access token")
		}
	}
	p := person{subject: t.Subject, emailVerified: bool(c.EmailVerified), profile: c.Profile}
	if p.emailVerified {
		p.email = c.Email
	}
	return p, t.Claims(&p.claims)
}

// addUserInfo takes over what the ID token leaves out. An identity provider that offers userinfo has to give it: a program
// that decides by it would decide otherwise without.
func (i *issuer) addUserInfo(ctx context.Context, d *discovered, token *oauth2.Token, p *person) error {
	info, err := d.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return refused("userinfo: " + i.hide(err).Error())
	}
	if info.Subject != p.subject {
		return refused("userinfo is about somebody else")
	}
	if !p.emailVerified && info.EmailVerified {
		p.email, p.emailVerified = info.Email, true
	}
	if p.profile == "" {
		p.profile = info.Profile
	}
	return nil
}
