package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// MappingState is how far a mapping is (contract 05 section D).
type MappingState string

// The states. Only active mappings launch instances. All but removed are live: their user and uid are taken.
const (
	MappingPending  MappingState = "pending"  // stored, Core does not know yet
	MappingApproved MappingState = "approved" // Core has confirmed
	MappingActive   MappingState = "active"
	MappingExpired  MappingState = "expired" // disconnected or timed out; the uid stays reserved for the user
	MappingRemoved  MappingState = "removed" // kept for audit only
)

// Mapping says that a UCloud user is a local account (design D6).
type Mapping struct {
	User       ident.UCloudUser
	UID        ident.UID
	LocalName  string // login name when the mapping was made: a recycled uid no longer fits it
	State      MappingState
	Method     string // how it was proven, such as "ticket"
	CreatedAt  time.Time
	UpdatedAt  time.Time
	ApprovedAt *time.Time
	ExpiresAt  *time.Time // nil: never
	LastSeenAt *time.Time
	By         string // who made it: an operator's login name, or the user's own
}

const mappingColumns = `user_name, uid, local_name, state, method, actor, created_at, updated_at, approved_at, expires_at, last_seen_at`

func scanMapping(s scanner) (m Mapping, err error) {
	var created, updated int64
	var approved, expires, seen sql.NullInt64
	err = s.Scan(&m.User, &m.UID, &m.LocalName, &m.State, &m.Method, &m.By, &created, &updated, &approved, &expires, &seen)
	m.CreatedAt, m.UpdatedAt = fromMS(created), fromMS(updated)
	m.ApprovedAt, m.ExpiresAt, m.LastSeenAt = fromOpt(approved), fromOpt(expires), fromOpt(seen)
	return m, err
}

// InsertMapping stores a new live mapping. It is [ErrConflict] if the user or the uid has a live mapping already; the
// database's unique indexes decide that. The transaction stays usable.
func (tx *Tx) InsertMapping(m Mapping) error {
	if m.State == MappingRemoved {
		return errors.New("store mapping: a new mapping cannot be a removed one")
	}
	id, err := tx.next("mappings")
	if err != nil {
		return err
	}
	return tx.execOne(ErrConflict, "store mapping",
		`INSERT INTO mappings (id, `+mappingColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		id, string(m.User), int64(m.UID), m.LocalName, string(m.State), m.Method, m.By,
		toMS(m.CreatedAt), toMS(m.UpdatedAt), optMS(m.ApprovedAt), optMS(m.ExpiresAt), optMS(m.LastSeenAt))
}

// UpdateMapping changes the live mapping of m.User: everything but CreatedAt. Another uid than the stored one is
// [ErrConflict]: a change of uid needs a removal first (contract 03 section 3.6). No live mapping is [ErrNotFound].
func (tx *Tx) UpdateMapping(m Mapping) error {
	if m.State == MappingRemoved {
		return errors.New("change mapping: use RemoveMapping to remove it")
	}
	n, err := tx.exec("change mapping",
		`UPDATE mappings SET local_name = ?, state = ?, method = ?, actor = ?, updated_at = ?, approved_at = ?, expires_at = ?, last_seen_at = ?
		 WHERE user_name = ? AND uid = ? AND state <> 'removed'`,
		m.LocalName, string(m.State), m.Method, m.By, toMS(m.UpdatedAt), optMS(m.ApprovedAt), optMS(m.ExpiresAt), optMS(m.LastSeenAt),
		string(m.User), int64(m.UID))
	if err != nil || n == 1 {
		return err
	}
	if _, err := tx.MappingByUser(m.User); err != nil {
		return err
	}
	return fmt.Errorf("change mapping: %w: the user is mapped to another uid", ErrConflict)
}

// MappingByUser is the live mapping of the user.
func (tx *Tx) MappingByUser(user ident.UCloudUser) (Mapping, error) {
	return one(tx, scanMapping, "look up mapping by user",
		`SELECT `+mappingColumns+` FROM mappings WHERE user_name = ? AND state <> 'removed'`, string(user))
}

// MappingByUID is the live mapping of the account.
func (tx *Tx) MappingByUID(uid ident.UID) (Mapping, error) {
	return one(tx, scanMapping, "look up mapping by uid",
		`SELECT `+mappingColumns+` FROM mappings WHERE uid = ? AND state <> 'removed'`, int64(uid))
}

// Mappings are all live mappings, oldest first.
func (tx *Tx) Mappings() ([]Mapping, error) {
	return list(tx, scanMapping, "list mappings",
		`SELECT `+mappingColumns+` FROM mappings WHERE state <> 'removed' ORDER BY id`)
}

// MappingHistory are all mappings that were not purged, live or removed, oldest first.
func (tx *Tx) MappingHistory() ([]Mapping, error) {
	return list(tx, scanMapping, "list mappings", `SELECT `+mappingColumns+` FROM mappings ORDER BY id`)
}

// RemoveMapping ends the live mapping of the user, so that user and uid are free again. The row is kept for audit; with
// purge all rows of the user are deleted. Nothing to remove is [ErrNotFound].
func (tx *Tx) RemoveMapping(user ident.UCloudUser, purge bool, at time.Time) error {
	if purge {
		return tx.execOne(ErrNotFound, "purge mapping", `DELETE FROM mappings WHERE user_name = ?`, string(user))
	}
	return tx.execOne(ErrNotFound, "remove mapping",
		`UPDATE mappings SET state = 'removed', updated_at = ? WHERE user_name = ? AND state <> 'removed'`, toMS(at), string(user))
}

// TouchMapping notes that the user was active. It never goes back in time; no live mapping is no error.
func (tx *Tx) TouchMapping(user ident.UCloudUser, at time.Time) error {
	_, err := tx.exec("note activity",
		`UPDATE mappings SET last_seen_at = ? WHERE user_name = ? AND state <> 'removed' AND (last_seen_at IS NULL OR last_seen_at < ?)`,
		toMS(at), string(user), toMS(at))
	return err
}
