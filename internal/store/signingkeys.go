package store

import (
	"database/sql"
	"errors"
	"time"

	"ucloud-im/internal/ident"
)

// SigningKeyState is how far a signing key is.
type SigningKeyState string

// The states. Only active keys verify anything.
const (
	SigningKeyPending SigningKeyState = "pending" // uploaded; the login that must follow has not succeeded
	SigningKeyActive  SigningKeyState = "active"
	SigningKeyExpired SigningKeyState = "expired"
	SigningKeyRevoked SigningKeyState = "revoked"
)

// SigningKey is a public key with which the browser of a user signs requests (contract 01 section 7.2).
type SigningKey struct {
	ID          string
	User        ident.UCloudUser
	PublicKey   []byte // SubjectPublicKeyInfo, DER
	Fingerprint string
	Algorithm   string
	Session     [32]byte // SHA-256 of the token with which it was uploaded
	State       SigningKeyState
	CreatedAt   time.Time
	ActivatedAt *time.Time
	ExpiresAt   time.Time // of a pending key: when the upload is forgotten
	EndedAt     *time.Time
	UID         *ident.UID // the account for which it was activated; it counts for no other
	Proof       string     // how the user proved who they are, such as "ticket"
	By          string     // who ended it, and why
	Barred      bool       // somebody revoked this very key: the user cannot activate it again
}

// Counts tells whether requests verify with the key: it is active, its time is not over, and it was proved for the account.
func (k SigningKey) Counts(uid ident.UID, now time.Time) bool {
	return k.State == SigningKeyActive && now.Before(k.ExpiresAt) && k.UID != nil && *k.UID == uid
}

const signingKeyColumns = `id, user_name, public_key, fingerprint, algorithm, session, state, created_at, activated_at, expires_at, ended_at, ` +
	`uid, proof, actor, barred`

func scanSigningKey(s scanner) (k SigningKey, err error) {
	var session []byte
	var created, expires, barred int64
	var activated, ended, uid sql.NullInt64
	if err = s.Scan(&k.ID, &k.User, (*blob)(&k.PublicKey), &k.Fingerprint, &k.Algorithm, &session, &k.State, &created, &activated, &expires,
		&ended, &uid, &k.Proof, &k.By, &barred); err != nil {
		return k, err
	}
	k.CreatedAt, k.ActivatedAt, k.ExpiresAt, k.EndedAt = fromMS(created), fromOpt(activated), fromMS(expires), fromOpt(ended)
	if uid.Valid {
		u := ident.UID(uid.Int64)
		k.UID = &u
	}
	k.Barred = barred != 0
	k.Session, err = hashOf(session)
	return k, err
}

// InsertSigningKey stores a pending key. An id or a session that exists is [ErrConflict]. The transaction stays usable.
func (tx *Tx) InsertSigningKey(k SigningKey) error {
	if k.State != SigningKeyPending {
		return errors.New("store signing key: a new key is pending")
	}
	return tx.execOne(ErrConflict, "store signing key",
		`INSERT INTO signing_keys (`+signingKeyColumns+`) VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, NULL, ?, NULL, NULL, '', '', 0)
		 ON CONFLICT DO NOTHING`,
		k.ID, string(k.User), bytesOf(k.PublicKey), k.Fingerprint, k.Algorithm, k.Session[:], toMS(k.CreatedAt), toMS(k.ExpiresAt))
}

// ActivateSigningKey makes a pending key active for an account. One that is not pending (any more), or is forgotten by
// at, is [ErrConflict]. The user must have no active key with the same fingerprint.
func (tx *Tx) ActivateSigningKey(id string, uid ident.UID, proof string, at, expires time.Time) error {
	return tx.execOne(ErrConflict, "activate signing key",
		`UPDATE signing_keys SET state = 'active', uid = ?, proof = ?, activated_at = ?, expires_at = ?
		 WHERE id = ? AND state = 'pending' AND expires_at > ?`,
		int64(uid), proof, toMS(at), toMS(expires), id, toMS(at))
}

// EndSigningKey gives a pending or active key a final state, and is [ErrConflict] for one that has ended.
func (tx *Tx) EndSigningKey(id string, state SigningKeyState, by string, barred bool, at time.Time) error {
	if state != SigningKeyExpired && state != SigningKeyRevoked {
		return errors.New("end signing key: this is no final state")
	}
	return tx.execOne(ErrConflict, "end signing key",
		`UPDATE signing_keys SET state = ?, ended_at = ?, actor = ?, barred = ? WHERE id = ? AND state IN ('pending', 'active')`,
		string(state), toMS(at), prose(by), toBit(barred), id)
}

// EndSigningKeysOf ends the active keys of a user and forgets the pending ones. It says how many were active.
func (tx *Tx) EndSigningKeysOf(user ident.UCloudUser, by string, at time.Time) (int, error) {
	if _, err := tx.exec("forget signing keys", `DELETE FROM signing_keys WHERE user_name = ? AND state = 'pending'`, string(user)); err != nil {
		return 0, err
	}
	n, err := tx.exec("end signing keys",
		`UPDATE signing_keys SET state = 'revoked', ended_at = ?, actor = ? WHERE user_name = ? AND state = 'active'`, toMS(at), prose(by), string(user))
	return int(n), err
}

// ForgetSigningKey deletes a key that is pending; any other is [ErrNotFound].
func (tx *Tx) ForgetSigningKey(id string) error {
	return tx.execOne(ErrNotFound, "forget signing key", `DELETE FROM signing_keys WHERE id = ? AND state = 'pending'`, id)
}

// SigningKey is the key with the id, in whatever state.
func (tx *Tx) SigningKey(id string) (SigningKey, error) {
	return one(tx, scanSigningKey, "look up signing key", `SELECT `+signingKeyColumns+` FROM signing_keys WHERE id = ?`, id)
}

// SigningKeyOfSession is the key that was uploaded with the token of this hash.
func (tx *Tx) SigningKeyOfSession(hash [32]byte) (SigningKey, error) {
	return one(tx, scanSigningKey, "look up signing key of a session", `SELECT `+signingKeyColumns+` FROM signing_keys WHERE session = ?`, hash[:])
}

// LiveSigningKeys are the pending and active keys of a user whose time is not over, oldest first. Their number is bounded
// by whoever inserts.
func (tx *Tx) LiveSigningKeys(user ident.UCloudUser, now time.Time) ([]SigningKey, error) {
	return list(tx, scanSigningKey, "list live signing keys", `SELECT `+signingKeyColumns+` FROM signing_keys
		 WHERE user_name = ? AND state IN ('pending', 'active') AND expires_at > ? ORDER BY created_at, id`, string(user), toMS(now))
}

// SigningKeyBarred tells whether this very key of the user was revoked.
func (tx *Tx) SigningKeyBarred(user ident.UCloudUser, fingerprint string) (bool, error) {
	n, err := one(tx, value[int64], "look up revoked signing key",
		`SELECT count(*) FROM signing_keys WHERE user_name = ? AND fingerprint = ? AND barred = 1`, string(user), fingerprint)
	return n > 0, err
}

// SigningKeysOf are the newest keys of a user in any state, at most limit, newest first.
func (tx *Tx) SigningKeysOf(user ident.UCloudUser, limit int) ([]SigningKey, error) {
	return list(tx, scanSigningKey, "list signing keys of a user",
		`SELECT `+signingKeyColumns+` FROM signing_keys WHERE user_name = ? ORDER BY created_at DESC, id LIMIT ?`, string(user), limit)
}

// SigningKeys are keys of all users in any state, at most limit, in the order of their ids and after the given one.
func (tx *Tx) SigningKeys(after string, limit int) ([]SigningKey, error) {
	return list(tx, scanSigningKey, "list signing keys",
		`SELECT `+signingKeyColumns+` FROM signing_keys WHERE id > ? ORDER BY id LIMIT ?`, after, limit)
}

// ActiveSigningKeys are the active keys of all users whose time is not over.
func (tx *Tx) ActiveSigningKeys(now time.Time) ([]SigningKey, error) {
	return list(tx, scanSigningKey, "list active signing keys",
		`SELECT `+signingKeyColumns+` FROM signing_keys WHERE state = 'active' AND expires_at > ? ORDER BY id`, toMS(now))
}

// ExpireSigningKeys ends the active keys whose time is over and names their users; pending ones are forgotten.
func (tx *Tx) ExpireSigningKeys(now time.Time) ([]ident.UCloudUser, error) {
	if _, err := tx.exec("forget signing keys", `DELETE FROM signing_keys WHERE state = 'pending' AND expires_at <= ?`, toMS(now)); err != nil {
		return nil, err
	}
	return list(tx, value[ident.UCloudUser], "expire signing keys",
		`UPDATE signing_keys SET state = 'expired', ended_at = expires_at WHERE state = 'active' AND expires_at <= ? RETURNING user_name`, toMS(now))
}

// PurgeSigningKeys deletes the keys that ended before the given times, those that are barred later than the others, and
// says how many they were.
func (tx *Tx) PurgeSigningKeys(ended, barred time.Time) (int, error) {
	n, err := tx.exec("purge signing keys", `DELETE FROM signing_keys WHERE ended_at < ? AND barred = 0 OR ended_at < ?`, toMS(ended), toMS(barred))
	return int(n), err
}

// SigningKeysNextEnd is when the next pending or active key ends. false: there is none.
func (tx *Tx) SigningKeysNextEnd() (time.Time, bool, error) {
	ms, err := one(tx, value[sql.NullInt64], "find next end of a signing key",
		`SELECT min(expires_at) FROM signing_keys WHERE state IN ('pending', 'active')`)
	if err != nil || !ms.Valid {
		return time.Time{}, false, err
	}
	return fromMS(ms.Int64), true, nil
}
