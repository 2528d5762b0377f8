package usermap

import (
	"context"
	"errors"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// MethodOperator is the method of mappings that an operator made.
const MethodOperator = "operator"

// Change gives a user another local account.
type Change struct {
	User   ident.UCloudUser
	UID    ident.UID // of the account that the user has now; otherwise nothing happens and the error is a Conflict
	Local  string    // the new one: login name, or a uid if it is a number
	By     string    // who wants it, for the record
	Reason string
	DryRun bool // have everything checked and nothing written
}

// Change ends the mapping of a user and makes another one in its place, in one transaction. To UCloud the user stays as
// connected as before: a connected user is active with the new account at once, without a word to Core, because a second
// approval of a connected user ends the Core process (contract 03 section 2.4). One whose connection has ended keeps the
// new account reserved, and one who is being connected is connected with the new one, by a pair of its own.
//
// Everything that hung on the old account ends as with [Service.Remove], and its uid is free.
func (s *Service) Change(ctx context.Context, c Change) (was, now store.Mapping, err error) {
	account, err := s.o.Policy.Check(ctx, c.Local)
	if err != nil {
		return was, now, err
	}
	err = s.update(ctx, func(tx *store.Tx) error {
		if was, now, err = s.planChange(tx, c, account); err != nil {
			return err
		}
		if c.DryRun {
			return errDryRun
		}
		return s.writeChange(tx, was, now)
	})
	if errors.Is(err, errDryRun) {
		return was, now, nil
	}
	if err != nil {
		return store.Mapping{}, store.Mapping{}, err
	}
	s.log.Info("mapping changed", "user", c.User, "uid", was.UID, "new_uid", now.UID, "new_local", now.LocalName, "state", string(now.State),
		"by", c.By, "reason", c.Reason)
	ctx = context.WithoutCancel(ctx)
	s.o.OnInactive(ctx, c.User, was.UID, c.Reason)
	switch now.State {
	case store.MappingActive:
		s.o.OnActive(ctx, c.User)
	case store.MappingApproved:
		if err := s.activate(ctx, c.User); err != nil {
			s.log.Error("a changed mapping could not be made active yet", "user", c.User, "error", err)
		}
	}
	return was, now, nil
}

// planChange says what would be written.
func (s *Service) planChange(tx *store.Tx, c Change, a Account) (was, now store.Mapping, err error) {
	was, err = tx.MappingByUser(c.User)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return was, now, failure.Wrap(err, failure.NotFound, "There is no mapping for %q", c.User)
	case err != nil:
		return was, now, err
	case was.UID != c.UID:
		return was, now, failure.New(failure.Conflict, "The mapping of %q has changed meanwhile: its uid is %d, not %d", c.User, was.UID, c.UID)
	case was.UID == a.UID:
		return was, now, failure.New(failure.Conflict, "The UCloud user %q has the local account %s (uid %d) already", c.User, a.Name, a.UID)
	}
	if other, err := tx.MappingByUID(a.UID); err == nil {
		return was, now, uidTaken(a, other.User)
	} else if !errors.Is(err, store.ErrNotFound) {
		return was, now, err
	}
	at := s.stamp(was.UpdatedAt)
	now = store.Mapping{
		User: c.User, UID: a.UID, LocalName: a.Name, State: was.State, Method: MethodOperator, By: c.By,
		CreatedAt: at, UpdatedAt: at, ApprovedAt: was.ApprovedAt, ExpiresAt: was.ExpiresAt,
	}
	return was, now, nil
}

func (s *Service) writeChange(tx *store.Tx, was, now store.Mapping) error {
	if err := s.o.Ended(tx, was, CauseOperator); err != nil {
		return err
	}
	if err := tx.RemoveMapping(was.User, false, now.UpdatedAt); err != nil {
		return err
	}
	err := tx.InsertMapping(now)
	switch {
	case errors.Is(err, store.ErrConflict):
		return failure.Wrap(err, failure.Conflict, "The local user %s (uid %d) is connected already", now.LocalName, now.UID)
	case err != nil:
		return err
	}
	switch now.State {
	case store.MappingActive:
		return tx.AddReplayUser(now.User)
	case store.MappingPending:
		return s.enqueue(tx, KindApprove, now)
	}
	return nil
}
