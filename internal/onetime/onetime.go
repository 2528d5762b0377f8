// Package onetime issues the tokens that browsers carry in URLs: for terminals, uploads, downloads, web applications and
// VNC (contract 01 sections 6 and 8.8). Such a token is a bearer secret in histories and logs of other people's
// machines, so it says nothing, lives briefly and opens one thing.
//
// The purposes, with their lives, stand in one table ([Purposes]); nothing else can be issued (TestPurposes). Tickets, which people
// type, are apart ([ucloud-im/internal/usermap/ticket]) and have the same properties.
//
// # Trust
//
// An attacker controls the text that is presented, sees old URLs, may read a copy of the database, and may be another
// user of the same provider. The package trusts crypto/rand, SHA-256, the database and the injected clock.
//
// # Properties, and the tests that prove them
//
//   - A token is 32 random bytes, nothing else: no time, no counter, no user (TestTextIsRandom). When the random source
//     fails the process ends; crypto/rand sees to that, and there is no other source.
//   - Only its SHA-256 is stored, so that a stolen database opens nothing (TestTextIsNotStored).
//   - It is found by an index over that hash. A comparison that takes longer the more bytes agree could only betray
//     the hash, from which the text cannot be had.
//   - It opens only the purpose, user and object it was issued for; anything else is answered like an unknown token and
//     uses nothing up (TestBinding).
//   - It ends at the first of: not used in time, unused for too long, total life, uses spent (TestLimits). Of many that
//     use a last use at once, one succeeds (TestLastUseOnce, on both engines).
//   - The text never appears in an error (TestErrorsDoNotShowTheToken).
//   - What has ended is removed by a timer, not by the next user (TestPurge). That it is still there for a while opens
//     nothing.
//   - A user has a bounded number of tokens for each purpose (TestBound).
package onetime

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

const (
	tokenBytes = 32
	textLength = 43 // of tokenBytes in unpadded base64
)

// Unlimited is for [Limits.Uses].
const Unlimited = -1

// DefaultMaxPerUser is how many tokens of one purpose a user may have at a time. It is far above what a browser needs.
const DefaultMaxPerUser = 1000

// Limits say how long a token lives. Parts of a millisecond are dropped.
type Limits struct {
	Total    time.Duration // from its issue; required
	FirstUse time.Duration // it ends if it was not used by then; 0: no such limit
	Idle     time.Duration // it ends that long after its last use, or its issue; 0: no such limit
	Uses     int           // at least 1, or Unlimited
}

// Spec is what a token is issued for.
type Spec struct {
	Purpose string           // required
	User    ident.UCloudUser // required: whose it is
	Object  string           // what it opens, such as a path or a job
	Limits  Limits           // zero: those of the purpose
	Data    []byte           // given back on use, for instance what to do with the object
}

// Expect is what a token must have been issued for to be accepted. Purpose is required, and User or Object or both; who
// knows neither sets Unbound and goes on with what the [Grant] says and nothing else.
type Expect struct {
	Purpose string
	User    ident.UCloudUser
	Object  string
	Unbound bool
}

// Grant is what an accepted token stands for.
type Grant struct {
	Purpose   string
	User      ident.UCloudUser
	Object    string
	Data      []byte
	IssuedAt  time.Time
	EndsAt    time.Time // if it is not used again
	UsesLeft  int       // after this use; Unlimited
	FirstUsed bool      // this was the first use
}

// Options are optional parts of [Tokens].
type Options struct {
	Log        *slog.Logger
	Now        func() time.Time
	MaxPerUser int // per purpose; 0 means DefaultMaxPerUser
}

// Tokens issues and accepts tokens.
type Tokens struct {
	store *store.Store
	o     Options
	log   *slog.Logger
	kick  chan struct{} // wakes Run after an issue
}

// New makes the token service over a database.
func New(s *store.Store, o Options) *Tokens {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxPerUser <= 0 {
		o.MaxPerUser = DefaultMaxPerUser
	}
	return &Tokens{store: s, o: o, log: o.Log.With("part", "onetime"), kick: make(chan struct{}, 1)}
}

// Now is the time by which tokens end.
func (t *Tokens) Now() time.Time { return t.o.Now() }

// Hash is under which a token is stored, and how others may name it without being able to use it (see [Tokens.Open]).
func Hash(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// refused is the one answer to every token that is not accepted, so that nothing can be learned from it. The cause is
// for the log and says why.
func refused(why string) error {
	return failure.Wrap(errors.New(why), failure.NotFound, "This link is not valid, or it has expired")
}

// Issue makes a token and returns its text: 43 characters of the URL-safe base64 alphabet. There is no way to get the
// text again. Too many tokens of the user for the purpose are [failure.TooMany].
func (t *Tokens) Issue(ctx context.Context, s Spec) (text string, err error) {
	err = t.store.Update(ctx, func(tx *store.Tx) error {
		text, err = t.IssueTx(tx, s)
		return err
	})
	if err != nil {
		return "", err
	}
	return text, nil
}

// IssueTx is [Tokens.Issue] as part of a transaction that stores more, such as an upload session. The text counts only
// if the transaction is committed.
func (t *Tokens) IssueTx(tx *store.Tx, s Spec) (text string, err error) {
	if s.Purpose == "" || s.User == "" {
		return "", errors.New("issue token: purpose and user are required")
	}
	limits, err := s.complete()
	if err != nil {
		return "", err
	}
	now := t.o.Now().Truncate(time.Millisecond)
	n, err := tx.CountTokens(s.User, s.Purpose, now)
	if err != nil {
		return "", err
	}
	if n >= t.o.MaxPerUser {
		return "", failure.New(failure.TooMany, "You have too many open links of this kind. Try again later")
	}
	var raw [tokenBytes]byte
	rand.Read(raw[:]) //nolint:errcheck // never fails, crypto/rand documents it
	text = base64.RawURLEncoding.EncodeToString(raw[:])
	rec := store.Token{
		Hash: Hash(text), Purpose: s.Purpose, User: s.User, Object: s.Object, Data: s.Data,
		CreatedAt: now, ExpiresAt: now.Add(limits.Total), IdleTimeout: limits.Idle, UsesLeft: limits.Uses,
	}
	if limits.FirstUse > 0 {
		by := now.Add(limits.FirstUse)
		rec.FirstUseBy = &by
	}
	if err := tx.InsertToken(rec); err != nil {
		return "", err
	}
	tx.AfterCommit(func() {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	})
	return text, nil
}

// check tells whether the stored token may be used now as expected.
func (t *Tokens) check(rec store.Token, e Expect) error {
	switch {
	case rec.Purpose != e.Purpose:
		return refused("the token is for " + rec.Purpose + ", not for " + e.Purpose)
	case e.User != "" && rec.User != e.User:
		return refused("the token is of another user")
	case e.Object != "" && rec.Object != e.Object:
		return refused("the token is for another object")
	case !t.o.Now().Before(rec.EndsAt()):
		return refused("the token has ended")
	case rec.UsesLeft == 0:
		return refused("the token is used up")
	}
	return nil
}

// find reads a token and checks it. Text that cannot be a token does not reach the database.
func (t *Tokens) find(tx *store.Tx, text string, e Expect) (store.Token, error) {
	if len(text) != textLength {
		return store.Token{}, refused("not a token")
	}
	return t.findHash(tx, Hash(text), e)
}

func (t *Tokens) findHash(tx *store.Tx, hash [32]byte, e Expect) (store.Token, error) {
	if e.Purpose == "" || e.User == "" && e.Object == "" && !e.Unbound {
		return store.Token{}, errors.New("check token: purpose, and user or object, must be expected")
	}
	rec, err := tx.TokenByHash(hash)
	if errors.Is(err, store.ErrNotFound) {
		return store.Token{}, refused("no such token")
	}
	if err != nil {
		return store.Token{}, err
	}
	return rec, t.check(rec, e)
}

// Peek tells what the token stands for without using it. Refusal is [failure.NotFound] whatever the reason.
func (t *Tokens) Peek(ctx context.Context, text string, e Expect) (g Grant, err error) {
	err = t.store.View(ctx, func(tx *store.Tx) error {
		rec, err := t.find(tx, text, e)
		g = grant(rec)
		return err
	})
	if err != nil {
		return Grant{}, err
	}
	return g, nil
}

// idleStep is how exactly the last use of a token with many uses is kept. A download in many ranges, or an upload in
// many sockets, would otherwise be a commit each.
const idleStep = time.Minute

// Consume uses the token once. Refusal is [failure.NotFound] whatever the reason, and leaves the token as it is.
func (t *Tokens) Consume(ctx context.Context, text string, e Expect) (g Grant, err error) {
	fresh := false
	err = t.store.View(ctx, func(tx *store.Tx) error {
		rec, err := t.find(tx, text, e)
		if err != nil {
			return err
		}
		step := min(idleStep, rec.IdleTimeout/10)
		fresh = rec.UsesLeft == Unlimited && rec.UsedAt != nil && (rec.IdleTimeout == 0 || t.o.Now().Sub(*rec.UsedAt) < step)
		g = grant(rec)
		g.FirstUsed = false
		return nil
	})
	if err != nil {
		return Grant{}, err
	}
	if fresh {
		return g, nil
	}
	err = t.store.Update(ctx, func(tx *store.Tx) error {
		g, err = t.ConsumeTx(tx, text, e)
		return err
	})
	if err != nil {
		return Grant{}, err
	}
	return g, nil
}

// ConsumeTx is [Tokens.Consume] as part of a transaction that stores what the use brings.
func (t *Tokens) ConsumeTx(tx *store.Tx, text string, e Expect) (Grant, error) {
	rec, err := t.find(tx, text, e)
	if err != nil {
		return Grant{}, err
	}
	return t.consume(tx, rec)
}

// ConsumeHashTx is [Tokens.ConsumeTx] for a caller that has received the hash of the text from a part of ours that has
// the text itself, so that it need not travel. Only such a part may be able to name hashes.
func (t *Tokens) ConsumeHashTx(tx *store.Tx, hash [32]byte, e Expect) (Grant, error) {
	rec, err := t.findHash(tx, hash, e)
	if err != nil {
		return Grant{}, err
	}
	return t.consume(tx, rec)
}

func (t *Tokens) consume(tx *store.Tx, rec store.Token) (Grant, error) {
	first := rec.UsedAt == nil
	now := t.o.Now().Truncate(time.Millisecond)
	rec.UsedAt = &now
	if rec.UsesLeft != Unlimited {
		rec.UsesLeft--
	}
	var err error
	if rec.UsesLeft == 0 {
		err = tx.DeleteToken(rec.Hash)
	} else {
		err = tx.UpdateToken(rec)
	}
	g := grant(rec)
	g.FirstUsed = first
	return g, err
}

func grant(rec store.Token) Grant {
	return Grant{
		Purpose: rec.Purpose, User: rec.User, Object: rec.Object, Data: rec.Data, IssuedAt: rec.CreatedAt,
		EndsAt: rec.EndsAt(), UsesLeft: rec.UsesLeft,
	}
}

// Open tells whether there is a token with this hash that could be used now and belongs to the user, for any of the
// purposes. The gateway asks so before it wakes an instance for a request without Core's token (contract 02 section 2).
func (t *Tokens) Open(ctx context.Context, hash [32]byte, user ident.UCloudUser, purposes ...string) (open bool, err error) {
	err = t.store.View(ctx, func(tx *store.Tx) error {
		open = false
		rec, err := tx.TokenByHash(hash)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range purposes {
			open = open || user != "" && t.check(rec, Expect{Purpose: p, User: user}) == nil
		}
		return nil
	})
	return open, err
}

// Revoke ends the tokens of a purpose for an object, such as those of a job that is over.
func (t *Tokens) Revoke(ctx context.Context, purpose, object string) error {
	return t.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.DeleteTokensOf(purpose, object)
		return err
	})
}

// RevokeUser ends all tokens of a user, who has disconnected.
func (t *Tokens) RevokeUser(ctx context.Context, user ident.UCloudUser) error {
	return t.store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.DeleteTokensOfUser(user)
		return err
	})
}
