package store

import (
	"database/sql"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
)

// TicketState is what became of a ticket.
type TicketState string

// The states. Every state but open is final.
const (
	TicketOpen       TicketState = "open"
	TicketUsed       TicketState = "used"
	TicketSuperseded TicketState = "superseded" // the user asked for a newer one
	TicketRejected   TicketState = "rejected"   // by an operator
	TicketExpired    TicketState = "expired"
)

// Ticket is a pending connection of a UCloud user (contract 03 section 3.3). The ticket's text is not stored, only its
// SHA-256.
type Ticket struct {
	Hash      [32]byte
	User      ident.UCloudUser
	CreatedAt time.Time
	ExpiresAt time.Time
	State     TicketState
	ClosedAt  *time.Time
	UID       *ident.UID // of the account it was used for
	By        string     // who closed it
	Message   string     // why it was rejected
	Key       string     // id of the signing key that came with it; "" for none
}

const ticketColumns = `hash, user_name, state, created_at, expires_at, closed_at, uid, actor, message, key_id`

func scanTicket(s scanner) (t Ticket, err error) {
	var hash []byte
	var created, expires int64
	var closed, uid sql.NullInt64
	if err = s.Scan(&hash, &t.User, &t.State, &created, &expires, &closed, &uid, &t.By, &t.Message, &t.Key); err != nil {
		return t, err
	}
	t.CreatedAt, t.ExpiresAt, t.ClosedAt = fromMS(created), fromMS(expires), fromOpt(closed)
	if uid.Valid {
		u := ident.UID(uid.Int64)
		t.UID = &u
	}
	t.Hash, err = hashOf(hash)
	return t, err
}

// InsertTicket stores an open ticket and supersedes the user's older open ones, so that at most maxOpenPerUser (at
// least 1) are open. A hash that exists is [ErrConflict].
func (tx *Tx) InsertTicket(t Ticket, maxOpenPerUser int) error {
	if err := tx.execOne(ErrConflict, "store ticket",
		`INSERT INTO tickets (`+ticketColumns+`) VALUES (?, ?, 'open', ?, ?, NULL, NULL, '', '', ?) ON CONFLICT DO NOTHING`,
		t.Hash[:], string(t.User), toMS(t.CreatedAt), toMS(t.ExpiresAt), t.Key); err != nil {
		return err
	}
	older, err := list(tx, value[[]byte], "list open tickets",
		`SELECT hash FROM tickets WHERE user_name = ? AND state = 'open' AND hash <> ? ORDER BY created_at DESC, hash`,
		string(t.User), t.Hash[:])
	if err != nil {
		return err
	}
	for i := max(maxOpenPerUser, 1) - 1; i < len(older); i++ {
		if _, err := tx.exec("supersede ticket", `UPDATE tickets SET state = 'superseded', closed_at = ? WHERE hash = ?`,
			toMS(t.CreatedAt), older[i]); err != nil {
			return err
		}
	}
	return nil
}

// TicketByHash is the ticket, in whatever state. A ticket past its ExpiresAt may still be called open: the caller
// compares with its clock.
func (tx *Tx) TicketByHash(hash [32]byte) (Ticket, error) {
	return one(tx, scanTicket, "look up ticket", `SELECT `+ticketColumns+` FROM tickets WHERE hash = ?`, hash[:])
}

// CloseTicket gives an open ticket its final state; exactly one caller succeeds. A ticket that is not open is
// [ErrConflict], and so is the use of one that has expired by at. The transaction stays usable.
func (tx *Tx) CloseTicket(hash [32]byte, state TicketState, uid *ident.UID, by, message string, at time.Time) error {
	if state == TicketOpen {
		return fmt.Errorf("close ticket: %q is not final", state)
	}
	var account sql.NullInt64
	if uid != nil {
		account = sql.NullInt64{Int64: int64(*uid), Valid: true}
	}
	n, err := tx.exec("close ticket",
		`UPDATE tickets SET state = ?, closed_at = ?, uid = ?, actor = ?, message = ?
		 WHERE hash = ? AND state = 'open' AND (expires_at > ? OR ? <> 'used')`,
		string(state), toMS(at), account, by, prose(message), hash[:], toMS(at), string(state))
	if err != nil || n == 1 {
		return err
	}
	if _, err := tx.TicketByHash(hash); err != nil {
		return err
	}
	return fmt.Errorf("close ticket: %w: it is no longer open", ErrConflict)
}

// Tickets are all tickets, oldest first.
func (tx *Tx) Tickets() ([]Ticket, error) {
	return list(tx, scanTicket, "list tickets", `SELECT `+ticketColumns+` FROM tickets ORDER BY created_at, hash`)
}

// ExpireTickets closes the open tickets whose time is over and says how many they were.
func (tx *Tx) ExpireTickets(now time.Time) (int, error) {
	n, err := tx.exec("expire tickets",
		`UPDATE tickets SET state = 'expired', closed_at = expires_at WHERE state = 'open' AND expires_at <= ?`, toMS(now))
	return int(n), err
}

// ExpireTicketsOf closes the open tickets of a user before their time.
func (tx *Tx) ExpireTicketsOf(user ident.UCloudUser, at time.Time) error {
	_, err := tx.exec("expire tickets of user", `UPDATE tickets SET state = 'expired', closed_at = ? WHERE user_name = ? AND state = 'open'`,
		toMS(at), string(user))
	return err
}

// PurgeTickets deletes the tickets that were closed before the given time and says how many they were.
func (tx *Tx) PurgeTickets(closedBefore time.Time) (int, error) {
	n, err := tx.exec("purge tickets", `DELETE FROM tickets WHERE state <> 'open' AND closed_at < ?`, toMS(closedBefore))
	return int(n), err
}
