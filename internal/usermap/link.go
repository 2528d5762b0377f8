package usermap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// Link is a proof that a UCloud user and a local account belong together.
type Link struct {
	User      ident.UCloudUser
	Local     string     // login name, or a uid if it is a number; from the kernel or from an operator, never from the user
	Method    string     // how it was proved: "ticket", "operator", …
	By        string     // who completed it, for the record
	ExpiresAt *time.Time // nil: the connection does not expire

	// Key is the id of the signing key that becomes usable with this proof, "" for none. Only a person who has been shown
	// what the key is may bring this about: whoever completes the proof at the local account and has compared the
	// fingerprint, see decision 14. A program that decides about a connection must leave it empty, as UCloud/Core could
	// have uploaded the key (contract 01 section 7.2).
	Key string

	// NoApprove makes the mapping active at once, without a word to Core. For a connection that Core already has.
	NoApprove bool
	// DryRun has everything checked and nothing written.
	DryRun bool
	// Also runs inside the transaction, before the mapping is written; its error undoes everything. A one-time proof is
	// used up here.
	Also func(tx *store.Tx, a Account) error
}

// errDryRun undoes the transaction of a dry run.
var errDryRun = errors.New("dry run")

// Link stores the mapping as pending together with the delivery that has Core approve it, in one transaction. The
// result is the mapping as written. It refuses, and leaves everything as it was:
//
//   - Forbidden, NotFound: the policy does not allow the account.
//   - Invalid: Core has never named this user.
//   - Conflict: the uid belongs to another user, or the user to another uid.
func (s *Service) Link(ctx context.Context, l Link) (store.Mapping, error) {
	if l.Key != "" && l.NoApprove {
		return store.Mapping{}, errors.New("link: no signing key becomes usable without a proof of the user")
	}
	account, err := s.o.Policy.Check(ctx, l.Local)
	if err != nil {
		return store.Mapping{}, err
	}
	var m store.Mapping
	err = s.update(ctx, func(tx *store.Tx) error {
		// The proof comes first: who has none must not learn which users there are.
		if l.Also != nil {
			if err := l.Also(tx, account); err != nil {
				return err
			}
		}
		// Approving a user whom Core does not know ends the Core process (contract 03 section 2.4).
		seen, err := tx.UserSeen(l.User)
		if err != nil {
			return err
		}
		if !seen {
			return failure.New(failure.Invalid, "UCloud has never named a user %q to this provider. "+
				"The user must press \"Connect\" in UCloud first, or receive an allocation here", quoted(string(l.User)))
		}
		if m, err = s.write(tx, l, account); err != nil {
			return err
		}
		if l.Key != "" {
			if err := s.o.ActivateKey(tx, l.User, l.Key, account, l.Method); err != nil {
				return err
			}
		}
		if l.DryRun {
			return errDryRun
		}
		return nil
	})
	if errors.Is(err, errDryRun) {
		return m, nil
	}
	if err != nil {
		return store.Mapping{}, err
	}
	s.log.Info("mapping stored", "user", m.User, "uid", m.UID, "local", m.LocalName, "method", m.Method,
		"state", string(m.State), "by", m.By)
	if m.State == store.MappingActive {
		s.o.OnActive(context.WithoutCancel(ctx), m.User)
	}
	return m, nil
}

// write stores the mapping and its delivery.
func (s *Service) write(tx *store.Tx, l Link, a Account) (store.Mapping, error) {
	if other, err := tx.MappingByUID(a.UID); err == nil && other.User != l.User {
		return other, uidTaken(a, other.User)
	} else if err != nil && !errors.Is(err, store.ErrNotFound) {
		return other, err
	}
	old, err := tx.MappingByUser(l.User)
	known := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return old, err
	}
	if known && old.UID != a.UID {
		return old, failure.New(failure.Conflict, "UCloud user %q belongs to the local user %s (uid %d), not to %s (uid %d). "+
			"To change that, an operator runs: ucloud users change %q --local-name %s", l.User, old.LocalName, old.UID, a.Name, a.UID, string(l.User), a.Name)
	}

	at := s.stamp(old.UpdatedAt)
	m := store.Mapping{
		User: l.User, UID: a.UID, LocalName: a.Name, State: store.MappingPending, Method: l.Method,
		CreatedAt: at, UpdatedAt: at, ExpiresAt: l.ExpiresAt, By: l.By,
	}
	if known {
		m.CreatedAt, m.LastSeenAt = old.CreatedAt, old.LastSeenAt
	}
	if l.NoApprove {
		m.State, m.ApprovedAt = store.MappingActive, &at
		if err := tx.AddReplayUser(m.User); err != nil {
			return m, err
		}
	}
	if known {
		err = tx.UpdateMapping(m)
	} else {
		err = tx.InsertMapping(m)
	}
	if errors.Is(err, store.ErrConflict) {
		// The constraint of the database has the last word.
		return m, failure.Wrap(err, failure.Conflict, "The local user %s (uid %d) or the UCloud user is connected already", a.Name, a.UID)
	}
	if err != nil || l.NoApprove {
		return m, err
	}
	return m, s.enqueue(tx, KindApprove, m)
}

func uidTaken(a Account, by ident.UCloudUser) error {
	return failure.New(failure.Conflict, "The local user %s (uid %d) is connected to the UCloud user %q. "+
		"One local user can be connected to one UCloud user only", a.Name, a.UID, by)
}

// stamp is the time of a change. It grows with every change of a mapping, so that a delivery can tell whether it is
// about the mapping as it stands.
func (s *Service) stamp(last time.Time) time.Time {
	at := s.o.Now().UTC().Truncate(time.Millisecond)
	if !at.After(last) {
		at = last.Add(time.Millisecond)
	}
	return at
}

// Kinds of deliveries to Core.
const (
	KindApprove = "connection.approve" // the pair clearConnection, approveConnection
	KindClear   = "connection.clear"
)

// deliveryKey keeps the deliveries of one user in order.
func deliveryKey(user ident.UCloudUser) string { return "connection/" + string(user) }

func (s *Service) enqueue(tx *store.Tx, kind string, m store.Mapping) error {
	return s.enqueueAfter(tx, kind, m, 0)
}

func (s *Service) enqueueAfter(tx *store.Tx, kind string, m store.Mapping, wait time.Duration) error {
	p, err := json.Marshal(payload{User: m.User, At: m.UpdatedAt.UnixMilli()})
	if err != nil {
		return err
	}
	if _, err := tx.Enqueue(kind, deliveryKey(m.User), p, s.o.Now().Add(wait)); err != nil {
		return fmt.Errorf("queue %s: %w", kind, err)
	}
	return nil
}

// DeliveryOf tells whether the outbox entry is about the connection of the user.
func DeliveryOf(e store.OutboxEntry, user ident.UCloudUser) bool {
	return (e.Kind == KindApprove || e.Kind == KindClear) && e.Key == deliveryKey(user)
}
