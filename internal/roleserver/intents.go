package roleserver

import (
	"context"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intentpolicy"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// intentPolicy is what a configuration says about signed intents.
func intentPolicy(cfg *config.Config) *intentpolicy.Policy {
	c := cfg.Provider.Core
	s := c.SignedIntents
	p := &intentpolicy.Policy{
		Mode: s.Mode, Exempt: s.Exempt, MaxAge: time.Duration(s.MaxAge),
		Skew:  max(time.Duration(c.ClockSkew), time.Millisecond), // 0 would mean the usual one
		Users: make(map[ident.UCloudUser]string, s.Users.Len()), Calls: make(map[string]string, s.Calls.Len()),
	}
	for name, mode := range s.Users.All() {
		p.Users[ident.UCloudUser(name)] = *mode
	}
	for name, mode := range s.Calls.All() {
		p.Calls[name] = *mode
	}
	return p
}

// intentSettings are those of a user's instance.
func (s *server) intentSettings(user ident.UCloudUser) ipcapi.IntentSettings {
	return s.signing.Load().For(user)
}

// buildIntents makes what collects the numbers about signed intents.
func (s *server) buildIntents(context.Context) error {
	s.intents = intentpolicy.New(intentpolicy.Options{
		Policy: s.signing.Load, Keyless: s.keyless, Metrics: s.registry, Log: s.log,
	})
	return nil
}

// keyless gives the connected users of whom no browser has a key that counts.
func (s *server) keyless(ctx context.Context) (out []ident.UCloudUser, err error) {
	now := time.Now()
	var keys []store.SigningKey
	err = s.store.View(ctx, func(tx *store.Tx) (err error) {
		keys, err = tx.ActiveSigningKeys(now)
		return err
	})
	if err != nil {
		return nil, err
	}
	keyed := map[ident.UCloudUser]bool{}
	for _, k := range keys {
		b, ok := s.users.Account(k.User)
		if ok && k.Counts(b.UID, now) {
			keyed[k.User] = true
		}
	}
	for user := range s.users.Bindings() {
		if !keyed[user] {
			out = append(out, user)
		}
	}
	return out, nil
}
