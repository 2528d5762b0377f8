package ticket

import (
	"context"
	"errors"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// Decision is what a program of the site has decided about a ticket (contract 42 section B.3a).
type Decision struct {
	Local   string // account of an approved one, "" for a rejected one
	By      string
	Message string // for the user, of a rejected one
}

// Decide approves or rejects an open ticket that is known by its hash. It does what [Method.Complete] and [Method.Reject] do
// for operators; the signing key that came with the ticket is forgotten, as no person has compared it.
func (m *Method) Decide(ctx context.Context, hash [32]byte, d Decision) error {
	open := func(tx *store.Tx) (store.Ticket, error) {
		rec, err := tx.TicketByHash(hash)
		if errors.Is(err, store.ErrNotFound) {
			return rec, errUnknown(err)
		}
		if err == nil {
			rec = m.effective(rec)
			err = usable(rec, rec.User)
		}
		return rec, err
	}
	if d.Local == "" {
		return m.o.Store.Update(ctx, func(tx *store.Tx) error {
			rec, err := open(tx)
			if err != nil {
				return err
			}
			return tx.CloseTicket(rec.Hash, store.TicketRejected, nil, d.By, d.Message, m.o.Now())
		})
	}
	var rec store.Ticket
	err := m.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		rec, err = open(tx)
		return err
	})
	if err != nil {
		return err
	}
	_, err = m.o.Users.Link(ctx, usermap.Link{
		User: rec.User, Local: d.Local, Method: MethodName, By: d.By,
		Also: func(tx *store.Tx, a usermap.Account) error {
			rec, err := open(tx)
			if err != nil {
				return err
			}
			if err := m.settleKey(tx, rec, ""); err != nil {
				return err
			}
			err = tx.CloseTicket(rec.Hash, store.TicketUsed, &a.UID, d.By, "", m.o.Now())
			if errors.Is(err, store.ErrConflict) {
				return failure.Wrap(err, failure.Conflict, "The ticket has been used meanwhile")
			}
			return err
		},
	})
	return err
}
