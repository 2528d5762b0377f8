package roleserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
	"ucloud-im/internal/usermap/oidc"
)

const (
	// accountWait is how long a new account may take to be known to the name service (contract 42 SEC-S4).
	accountWait  = 30 * time.Second
	accountPause = 2 * time.Second
)

// login is the proof of identity by a login at an identity provider. All is nil unless that is configured.
type login struct {
	consent *consent.Service
	oidc    *oidc.Method
}

// buildLogin makes what services.identityManagement.oidc configures. The identity provider is not asked yet: the server
// starts without it.
func (s *server) buildLogin(ctx context.Context) error {
	cfg := s.config.Load()
	if cfg.Services.Identity.Type != config.IdentityOIDC {
		return nil
	}
	var err error
	s.consent, err = consent.New(consent.Options{
		Store: s.store, Users: s.users, Tokens: s.tokens, Log: s.log, Method: oidc.MethodName,
		PageURL:     cfg.Provider.Hosts.SelfPublic.URL() + integration.LoginPath(cfg.Provider.ID.String()),
		Lifetime:    func() time.Duration { return time.Duration(s.config.Load().Services.Identity.OIDC.ConnectionLifetime) },
		Fingerprint: s.keyFingerprint,
	})
	if err != nil {
		return err
	}
	settings, plan, err := s.loginSettings(cfg)
	if err != nil {
		return err
	}
	if err := s.useHooks(ofLogin, plan); err != nil {
		return err
	}
	s.oidc, err = oidc.New(oidc.Options{Consent: s.consent, Account: s.accountOf, Existing: s.users.Mapping, Log: s.log}, settings)
	if err != nil {
		return err
	}
	return s.consent.Recover(ctx)
}

// loginSettings are services.identityManagement.oidc, as the method takes it.
func (s *server) loginSettings(cfg *config.Config) (out oidc.Settings, plan storagePlan, err error) {
	c := cfg.Services.Identity.OIDC
	if c == nil || cfg.Secrets == nil || cfg.Secrets.OIDC == nil {
		return out, plan, errors.New("services.identityManagement.oidc and oidc.clientSecret in secrets.yml are required")
	}
	client, err := coreapi.NewHTTPClient(coreapi.HTTPOptions{CAFile: c.CAFile.String()})
	if err != nil {
		return out, plan, fmt.Errorf("services.identityManagement.oidc: %w", err)
	}
	hook, err := s.hook(&plan, scripts.HookUserConnected, scripts.Purpose{
		At: "services.identityManagement.oidc.onUserConnected", Form: scripts.FormLogin, Accept: s.acceptUID,
	}, c.OnUserConnected, 0)
	if err != nil {
		return out, plan, fmt.Errorf("services.identityManagement.oidc.onUserConnected: %w", err)
	}
	return oidc.Settings{
		Issuer: c.Issuer.String(), ClientID: c.ClientID, ClientSecret: cfg.Secrets.OIDC.ClientSecret.Value(), Scopes: c.Scopes,
		RedirectURI: cfg.Provider.Hosts.SelfPublic.URL() + integration.CallbackPath, HTTP: client, Map: hook,
	}, plan, nil
}

// loginPlan prepares a reload. The result takes the new settings over.
func (s *server) loginPlan(cfg *config.Config) (apply func() error, err error) {
	if s.oidc == nil || cfg.Services.Identity.OIDC == nil {
		return func() error { return nil }, nil
	}
	settings, plan, err := s.loginSettings(cfg)
	if err != nil {
		return nil, err
	}
	return func() error { return errors.Join(s.useHooks(ofLogin, plan), s.oidc.Set(settings)) }, nil
}

// runLogin runs what logins need in the background.
func (s *server) runLogin(ctx context.Context) error {
	if s.oidc == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- s.consent.Run(ctx) }()
	err := s.oidc.Run(ctx)
	return errors.Join(err, <-done)
}

// accountOf gives the account that a program has named, if the policy allows it. A program may have made it just now, so
// the name service is given some time.
func (s *server) accountOf(ctx context.Context, uid ident.UID) (usermap.Account, error) {
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	for {
		a, err := s.users.Check(ctx, uid.String())
		if !failure.Is(err, failure.NotFound) {
			return a, err
		}
		timer := time.NewTimer(accountPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return a, err
		case <-timer.C:
			s.directory.Invalidate()
		}
	}
}

// loginStatus tells operators what to register at the identity provider, and whether it answers.
func (s *server) loginStatus() ipcapi.StatusPart {
	st := s.oidc.State()
	p := ipcapi.StatusPart{Name: "login", Health: ipcapi.HealthOK, Summary: "the identity provider answers", Facts: []ipcapi.Fact{
		fact("issuer", st.Issuer), fact("redirectUri", st.RedirectURI),
	}}
	switch {
	case !st.Known && st.Problem != nil:
		p.Health, p.Summary = ipcapi.HealthError, "nobody can connect: "+st.Problem.Error()
	case !st.Known:
		p.Health, p.Summary = ipcapi.HealthWarning, "the identity provider has not been asked yet"
	case st.Problem != nil:
		p.Health, p.Summary = ipcapi.HealthWarning, st.Problem.Error()
	}
	return p
}

// keyFingerprint is what the person who consents is shown of the signing key that came with the login.
func (s *server) keyFingerprint(ctx context.Context, user ident.UCloudUser, id string) (fingerprint string, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		k, err := tx.SigningKey(id)
		if err == nil && (k.User != user || k.State != store.SigningKeyPending) {
			err = store.ErrNotFound
		}
		fingerprint = k.Fingerprint
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return "", failure.Wrap(err, failure.Conflict, "The signing key that came with this login is not waiting any more. Press \"Connect\" in UCloud again")
	}
	return fingerprint, err
}
