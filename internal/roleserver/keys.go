package roleserver

import (
	"context"
	"errors"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
)

// buildKeys makes what looks after the signing keys of users' browsers.
func (s *server) buildKeys(context.Context) error {
	var err error
	s.keys, err = signingkeys.New(signingkeys.Options{
		Store: s.store, Tokens: s.tokens, Log: s.log,
		MaxPerUser: func() int { return s.config.Load().Provider.Core.SignedIntents.MaxKeysPerUser },
		Lifetime:   func() time.Duration { return time.Duration(s.config.Load().Provider.Core.SignedIntents.KeyLifetime) },
		Pending:    proofTime(s.config.Load()),
		Changed:    func(user ident.UCloudUser) { s.launcher.KeysChanged(user) },
	})
	return err
}

// proofTime is how long a proof may take from the upload of a key to its end, with some time for what lies between.
func proofTime(cfg *config.Config) time.Duration {
	if cfg.Services.Identity.Type == config.IdentityManual {
		return time.Duration(cfg.Services.Identity.Manual.Tickets.Lifetime) + time.Minute
	}
	return consent.LongestLogin + time.Minute
}

// withKeys puts the upload of signing keys in front of a way to connect.
func (s *server) withKeys(next usermap.Method) *signingkeys.Method {
	hosts := s.config.Load().Provider.Hosts
	return &signingkeys.Method{
		Keys: s.keys, Next: next, URL: hosts.SelfPublic.URL() + integration.UploadPath(s.config.Load().Provider.ID.String()),
		Wanted: func(user ident.UCloudUser) bool { return s.signing.Load().Wanted(user) },
	}
}

// activateKey is for [usermap.Options].
func (s *server) activateKey(tx *store.Tx, user ident.UCloudUser, key string, a usermap.Account, proof string) error {
	return s.keys.Activate(tx, user, key, a.UID, proof)
}

// mappingEnded ends, with a mapping, what must not outlive it: also what could make it anew without another word of Core,
// which are open tickets and logins that only wait for a click.
func (s *server) mappingEnded(tx *store.Tx, was store.Mapping, cause usermap.Cause) error {
	if _, err := tx.DeleteTokensOfUser(was.User); err != nil {
		return err
	}
	if err := errors.Join(
		tx.DeleteLoginsOf(was.User),
		tx.ExpireTicketsOf(was.User, time.Now()),
	); err != nil {
		return err
	}
	if err := s.siteHooks.Ended(tx, was, cause); err != nil {
		return err
	}
	return s.keys.EndOf(tx, was.User, "disconnected: "+string(cause))
}

// registerKeys answers an instance that asks for the keys of its user. The user and the account are the kernel's word.
func (s *server) registerKeys() {
	ipc.Handle(s.ipc, ipcapi.IntentKeys, func(ctx context.Context, r *ipc.Request, _ ipcapi.Empty) (ipcapi.IntentKeySet, error) {
		keys, err := s.keys.Keys(ctx, r.Grant.User, r.Peer.UID())
		set := ipcapi.IntentKeySet{Keys: make([]ipcapi.IntentKey, 0, len(keys))}
		for _, k := range keys {
			set.Keys = append(set.Keys, ipcapi.IntentKey{ID: k.ID, PublicKey: k.PublicKey, ExpiresAt: &k.ExpiresAt})
		}
		return set, err
	})
}
