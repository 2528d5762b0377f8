package signingkeys

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
)

// Defaults of the configuration.
const (
	DefaultMaxPerUser = 10
	DefaultLifetime   = 180 * 24 * time.Hour
	DefaultPending    = time.Hour
)

const (
	// Purpose is of the one-time tokens of uploads.
	Purpose = onetime.PurposeKeyUpload
	// keepEnded and keepBarred are how long keys stay on record after their end. Nobody can bring a revoked key back as
	// long as it is there; a year later its owner would have to prove it again as if it were new.
	keepEnded  = 90 * 24 * time.Hour
	keepBarred = 400 * 24 * time.Hour
	// shown is how many keys of a user are listed at most, ended ones included.
	shown = 200
	// step is the least time between two looks at what has ended, most the longest.
	step = time.Minute
	most = time.Hour
)

// sessionLimits are those of the address to which a browser sends its key (contract 01 section 6). It can be used a few
// times because the gateway and browsers repeat requests whose answer was lost.
var sessionLimits = onetime.KeyUploadLimits

// Options configure a [Service]. Store, Tokens and Log are required.
type Options struct {
	Store  *store.Store
	Tokens *onetime.Tokens
	Log    *slog.Logger

	// MaxPerUser is how many active keys a user may have, Lifetime how long a key is active. Nil: the defaults.
	MaxPerUser func() int
	Lifetime   func() time.Duration
	// Pending is how long an uploaded key waits for the proof: as long as the proof may take. 0 means DefaultPending.
	Pending time.Duration
	// Changed is called after the active keys of a user have changed. It must return quickly. Nil: nobody wants to know.
	Changed func(user ident.UCloudUser)

	Now func() time.Time // nil: time.Now
}

// Service keeps the keys. It is safe for concurrent use.
type Service struct {
	o    Options
	log  *slog.Logger
	kick chan struct{} // wakes Run
}

// New makes a service.
func New(o Options) (*Service, error) {
	if o.Store == nil || o.Tokens == nil || o.Log == nil {
		return nil, errors.New("signingkeys: Store, Tokens and Log are required")
	}
	if o.MaxPerUser == nil {
		o.MaxPerUser = func() int { return DefaultMaxPerUser }
	}
	if o.Lifetime == nil {
		o.Lifetime = func() time.Duration { return DefaultLifetime }
	}
	if o.Pending == 0 {
		o.Pending = DefaultPending
	}
	if o.Changed == nil {
		o.Changed = func(ident.UCloudUser) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{o: o, log: o.Log.With("part", "signingkeys"), kick: make(chan struct{}, 1)}, nil
}

func (s *Service) now() time.Time { return s.o.Now().UTC().Truncate(time.Millisecond) }

// newID names a key. It is no secret, only short enough to be typed.
func newID() string { return strings.ToLower(rand.Text()[:10]) }

// Keys are the keys with which requests of the user verify now: active ones, proved for this account.
func (s *Service) Keys(ctx context.Context, user ident.UCloudUser, uid ident.UID) (keys []store.SigningKey, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		now := s.now()
		live, err := tx.LiveSigningKeys(user, now)
		keys = slices.DeleteFunc(live, func(k store.SigningKey) bool { return !k.Counts(uid, now) })
		return err
	})
	return keys, err
}

// Pending describes a key that waits for a proof by the user. Any other is NotFound.
func (s *Service) Pending(ctx context.Context, user ident.UCloudUser, id string) (k store.SigningKey, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		k, err = s.pending(tx, user, id)
		return err
	})
	return k, err
}

func (s *Service) pending(tx *store.Tx, user ident.UCloudUser, id string) (store.SigningKey, error) {
	k, err := tx.SigningKey(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return k, err
	}
	if err != nil || k.User != user || k.State != store.SigningKeyPending || !s.now().Before(k.ExpiresAt) {
		return store.SigningKey{}, failure.New(failure.NotFound, "The signing key that came with this connection cannot be used any more. "+
			"Please press \"Connect\" in UCloud again")
	}
	return k, nil
}

// Activate makes a pending key of the user usable for the account. It is for [usermap.Options.ActivateKey] and nobody
// else: the transaction is the one in which the proof is used up.
func (s *Service) Activate(tx *store.Tx, user ident.UCloudUser, id string, uid ident.UID, proof string) error {
	k, err := s.pending(tx, user, id)
	if err != nil {
		return err
	}
	if err := s.refuseBarred(tx, user, k.Fingerprint); err != nil {
		return err
	}
	now := s.now()
	live, err := tx.LiveSigningKeys(user, now)
	if err != nil {
		return err
	}
	others := 0
	for _, old := range live {
		switch {
		case old.State != store.SigningKeyActive:
		case old.Fingerprint == k.Fingerprint:
			err = tx.EndSigningKey(old.ID, store.SigningKeyExpired, "proved again", false, now)
		case !old.Counts(uid, now):
			err = tx.EndSigningKey(old.ID, store.SigningKeyRevoked, "proved for another account", false, now)
		default:
			others++
		}
		if err != nil {
			return err
		}
	}
	if others >= s.o.MaxPerUser() {
		return s.full(others)
	}
	// One whose time is over is called active until Run has seen it.
	if _, err := tx.ExpireSigningKeys(now); err != nil {
		return err
	}
	if err := tx.ActivateSigningKey(id, uid, proof, now, now.Add(s.o.Lifetime())); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		s.log.Info("signing key active", "user", user, "key", id, "fingerprint", k.Fingerprint, "uid", uid, "proof", proof)
		s.changed(user)
	})
	return nil
}

func (s *Service) refuseBarred(tx *store.Tx, user ident.UCloudUser, fingerprint string) error {
	barred, err := tx.SigningKeyBarred(user, fingerprint)
	if err == nil && barred {
		err = failure.New(failure.Conflict, "This signing key was revoked and cannot be used again. Please have your browser make a new one")
	}
	return err
}

func (s *Service) full(n int) error {
	return failure.New(failure.Conflict, "You have %d signing keys already, and more are not allowed. "+
		"Please revoke one that you do not use any more: ucloud keys list, then ucloud keys revoke ID", n)
}

// EndOf ends all keys of a user, in the transaction that ends the connection.
func (s *Service) EndOf(tx *store.Tx, user ident.UCloudUser, reason string) error {
	n, err := tx.EndSigningKeysOf(user, reason, s.now())
	if err != nil || n == 0 {
		return err
	}
	tx.AfterCommit(func() {
		s.log.Info("signing keys ended", "user", user, "keys", n, "reason", reason)
		s.changed(user)
	})
	return nil
}

// changed tells who wants to know, and has Run look.
func (s *Service) changed(user ident.UCloudUser) {
	s.wake()
	s.o.Changed(user)
}

func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Of are the keys of a user in any state, newest first.
func (s *Service) Of(ctx context.Context, user ident.UCloudUser) (keys []store.SigningKey, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		keys, err = tx.SigningKeysOf(user, shown)
		return err
	})
	return s.effective(keys), err
}

// Page are keys of all users in any state, at most limit of them, in the order of their ids and after the given one.
func (s *Service) Page(ctx context.Context, after string, limit int) (keys []store.SigningKey, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		keys, err = tx.SigningKeys(after, limit)
		return err
	})
	return s.effective(keys), err
}

// effective calls keys expired whose time is over although nobody has written that down yet.
func (s *Service) effective(keys []store.SigningKey) []store.SigningKey {
	now := s.now()
	for i, k := range keys {
		if k.EndedAt == nil && !now.Before(k.ExpiresAt) {
			keys[i].State = store.SigningKeyExpired
		}
	}
	return keys
}

// Revocation ends a key for good.
type Revocation struct {
	ID     string
	User   ident.UCloudUser // whose it must be; "" for an operator, who may revoke any
	By     string
	DryRun bool
}

// errDryRun undoes the transaction of a dry run.
var errDryRun = errors.New("dry run")

// Revoke ends a key, active or pending, so that this user can never use it again. changed is false for one that has ended
// before. A key of another user is NotFound, as one that does not exist.
func (s *Service) Revoke(ctx context.Context, r Revocation) (changed bool, err error) {
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		changed = false
		k, err := tx.SigningKey(r.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err != nil || r.User != "" && k.User != r.User {
			return failure.New(failure.NotFound, "There is no such signing key")
		}
		if k.EndedAt != nil {
			return nil
		}
		changed = true
		if r.DryRun {
			return errDryRun
		}
		tx.AfterCommit(func() {
			s.log.Info("signing key revoked", "user", k.User, "key", k.ID, "fingerprint", k.Fingerprint, "by", r.By)
			s.changed(k.User)
		})
		return tx.EndSigningKey(k.ID, store.SigningKeyRevoked, r.By, true, s.now())
	})
	if errors.Is(err, errDryRun) {
		err = nil
	}
	return changed, err
}

// Sweep ends keys whose time is over, forgets those that were not proved in time, and deletes what ended long ago.
func (s *Service) Sweep(ctx context.Context) error {
	var users []ident.UCloudUser
	err := s.o.Store.Update(ctx, func(tx *store.Tx) (err error) {
		now := s.now()
		if users, err = tx.ExpireSigningKeys(now); err != nil {
			return err
		}
		_, err = tx.PurgeSigningKeys(now.Add(-keepEnded), now.Add(-keepBarred))
		return err
	})
	if err != nil {
		return err
	}
	for _, u := range users {
		s.log.Info("signing key expired", "user", u)
		s.o.Changed(u)
	}
	return nil
}

// Run sweeps when there is something to do, until ctx is done; it returns nil then. That a key is still there for a while
// after its end lets nothing pass.
func (s *Service) Run(ctx context.Context) error {
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "ended signing keys cannot be removed", "error", err)
		}
		wait := most
		err := s.o.Store.View(ctx, func(tx *store.Tx) error {
			at, ok, err := tx.SigningKeysNextEnd()
			if ok {
				wait = min(most, max(at.Sub(s.now()), step))
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "the next end of a signing key cannot be found", "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.kick:
			timer.Stop()
			// What has just changed ends later; looking again every time would be a loop of writes.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(step):
			}
		case <-timer.C:
		}
	}
}
