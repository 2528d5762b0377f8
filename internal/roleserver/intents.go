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

// intentPolicy is what the configuration says about signed intents.
func intentPolicy(cfg *config.Config) intentpolicy.Policy {
	c := cfg.Provider.Core
	s := c.SignedIntents
	p := intentpolicy.Policy{
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
	return intentPolicy(s.config.Load()).For(user)
}

// buildIntents makes what collects the numbers about signed intents.
func (s *server) buildIntents(context.Context) error {
	s.intents = intentpolicy.New(intentpolicy.Options{
		Policy:  func() intentpolicy.Policy { return intentPolicy(s.config.Load()) },
		Keyless: s.keyless, Metrics: s.registry, Log: s.log,
	})
	return nil
}

// keyless gives the connected users of whom no browser has a key that counts.
func (s *server) keyless(ctx context.Context) ([]ident.UCloudUser, error) {
	var out []ident.UCloudUser
	now := time.Now()
	err := s.store.View(ctx, func(tx *store.Tx) error {
		out = nil
		for user, b := range s.users.Bindings() {
			keys, err := tx.LiveSigningKeys(user, now)
			if err != nil {
				return err
			}
			if !hasKey(keys, b.UID) {
				out = append(out, user)
			}
		}
		return nil
	})
	return out, err
}

// hasKey tells whether one of the keys counts for the account.
func hasKey(keys []store.SigningKey, uid ident.UID) bool {
	for _, k := range keys {
		if k.State == store.SigningKeyActive && k.UID != nil && *k.UID == uid {
			return true
		}
	}
	return false
}
