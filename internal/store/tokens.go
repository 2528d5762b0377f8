package store

import (
	"database/sql"
	"time"

	"ucloud-im/internal/ident"
)

// Token is a one-time token of package onetime. Its text is not stored, only its SHA-256.
type Token struct {
	Hash        [32]byte
	Purpose     string
	User        ident.UCloudUser
	Object      string // what it opens
	CreatedAt   time.Time
	ExpiresAt   time.Time
	IdleTimeout time.Duration // ends that long after the last use; 0: no such limit. Whole milliseconds
	FirstUseBy  *time.Time    // ends then if it was never used
	UsedAt      *time.Time    // last use
	UsesLeft    int           // -1: unlimited
	Data        []byte        // of the issuer
}

// EndsAt is when the token ends if it is not used again: the earliest of its limits. At that time it is over.
func (t Token) EndsAt() time.Time {
	end := t.ExpiresAt
	if t.UsedAt == nil && t.FirstUseBy != nil && t.FirstUseBy.Before(end) {
		end = *t.FirstUseBy
	}
	if t.IdleTimeout > 0 {
		last := t.CreatedAt
		if t.UsedAt != nil {
			last = *t.UsedAt
		}
		if idle := last.Add(t.IdleTimeout); idle.Before(end) {
			end = idle
		}
	}
	return end
}

const tokenColumns = `hash, purpose, user_name, object, created_at, expires_at, idle_ms, first_use_by, used_at, uses_left, data`

func scanToken(s scanner) (t Token, err error) {
	var hash []byte
	var created, expires, idle int64
	var firstUse, used sql.NullInt64
	if err = s.Scan(&hash, &t.Purpose, &t.User, &t.Object, &created, &expires, &idle, &firstUse, &used, &t.UsesLeft, (*blob)(&t.Data)); err != nil {
		return t, err
	}
	t.CreatedAt, t.ExpiresAt, t.IdleTimeout = fromMS(created), fromMS(expires), time.Duration(idle)*time.Millisecond
	t.FirstUseBy, t.UsedAt = fromOpt(firstUse), fromOpt(used)
	t.Hash, err = hashOf(hash)
	return t, err
}

// InsertToken stores a new token. A hash that exists is [ErrConflict].
func (tx *Tx) InsertToken(t Token) error {
	return tx.execOne(ErrConflict, "store token",
		`INSERT INTO tokens (`+tokenColumns+`, ends_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		t.Hash[:], t.Purpose, string(t.User), t.Object, toMS(t.CreatedAt), toMS(t.ExpiresAt), t.IdleTimeout.Milliseconds(),
		optMS(t.FirstUseBy), optMS(t.UsedAt), t.UsesLeft, bytesOf(t.Data), toMS(t.EndsAt()))
}

// TokenByHash is the token, also when its time is over.
func (tx *Tx) TokenByHash(hash [32]byte) (Token, error) {
	return one(tx, scanToken, "look up token", `SELECT `+tokenColumns+` FROM tokens WHERE hash = ?`, hash[:])
}

// UpdateToken stores uses, limits and data of a token. Purpose, user, object and creation never change.
func (tx *Tx) UpdateToken(t Token) error {
	return tx.execOne(ErrNotFound, "change token",
		`UPDATE tokens SET expires_at = ?, idle_ms = ?, first_use_by = ?, used_at = ?, uses_left = ?, data = ?, ends_at = ? WHERE hash = ?`,
		toMS(t.ExpiresAt), t.IdleTimeout.Milliseconds(), optMS(t.FirstUseBy), optMS(t.UsedAt), t.UsesLeft, bytesOf(t.Data),
		toMS(t.EndsAt()), t.Hash[:])
}

// DeleteToken removes a token. No such token is [ErrNotFound], so of two that use it up one fails.
func (tx *Tx) DeleteToken(hash [32]byte) error {
	return tx.execOne(ErrNotFound, "remove token", `DELETE FROM tokens WHERE hash = ?`, hash[:])
}

// DeleteTokensOf removes the tokens of a purpose for an object, such as those of a job that has ended, and says how many
// they were.
func (tx *Tx) DeleteTokensOf(purpose, object string) (int, error) {
	n, err := tx.exec("remove tokens of an object", `DELETE FROM tokens WHERE purpose = ? AND object = ?`, purpose, object)
	return int(n), err
}

// DeleteTokensOfUser removes all tokens of a user and says how many they were.
func (tx *Tx) DeleteTokensOfUser(user ident.UCloudUser) (int, error) {
	n, err := tx.exec("remove tokens of a user", `DELETE FROM tokens WHERE user_name = ?`, string(user))
	return int(n), err
}

// CountTokens is how many tokens of a purpose the user has that are not over.
func (tx *Tx) CountTokens(user ident.UCloudUser, purpose string, now time.Time) (int, error) {
	return one(tx, value[int], "count tokens",
		`SELECT count(*) FROM tokens WHERE user_name = ? AND purpose = ? AND ends_at > ?`, string(user), purpose, toMS(now))
}

// PurgeTokens removes the tokens whose time is over or whose uses are spent, and says how many they were.
func (tx *Tx) PurgeTokens(now time.Time) (int, error) {
	n, err := tx.exec("purge tokens", `DELETE FROM tokens WHERE ends_at <= ? OR uses_left = 0`, toMS(now))
	return int(n), err
}

// TokensNextEnd is when the next token ends. false: there is none.
func (tx *Tx) TokensNextEnd() (time.Time, bool, error) {
	ms, err := one(tx, value[sql.NullInt64], "find next end of a token", `SELECT min(ends_at) FROM tokens`)
	if err != nil || !ms.Valid {
		return time.Time{}, false, err
	}
	return fromMS(ms.Int64), true, nil
}
