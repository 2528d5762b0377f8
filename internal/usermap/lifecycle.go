package usermap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// activate makes an approved mapping active, queues the replay of what Core has told about the user before, and tells
// the rest of the server.
func (s *Service) activate(ctx context.Context, user ident.UCloudUser) error {
	done := false
	err := s.update(ctx, func(tx *store.Tx) error {
		done = false
		m, err := tx.MappingByUser(user)
		if err != nil {
			return err
		}
		if m.State != store.MappingApproved {
			return nil // somebody ended it meanwhile
		}
		m.State, m.UpdatedAt = store.MappingActive, s.stamp(m.UpdatedAt)
		if err := tx.UpdateMapping(m); err != nil {
			return err
		}
		done = true
		return tx.AddReplayUser(user)
	})
	if err != nil {
		return fmt.Errorf("activate the mapping of %q: %w", user, err)
	}
	if done {
		s.log.Info("mapping active", "user", user)
		s.o.OnActive(ctx, user)
	}
	return nil
}

// Repair closes what a crash may have left open (contract 05 section D, step D7): approved mappings become active, and
// pending ones without a delivery get one. Call it at start, before the outbox runs.
func (s *Service) Repair(ctx context.Context) error {
	var approved []ident.UCloudUser
	queued := 0
	err := s.update(ctx, func(tx *store.Tx) error {
		approved, queued = nil, 0
		entries, err := tx.OutboxAll()
		if err != nil {
			return err
		}
		waiting := make(map[string]bool)
		for _, e := range entries {
			if e.Kind == KindApprove {
				waiting[e.Key] = true
			}
		}
		ms, err := tx.Mappings()
		if err != nil {
			return err
		}
		for _, m := range ms {
			switch {
			case m.State == store.MappingApproved:
				approved = append(approved, m.User)
			case m.State == store.MappingPending && !waiting[deliveryKey(m.User)]:
				// Nobody knows when the lost delivery was last tried, so the new one waits as if it were just now.
				if err := s.enqueueAfter(tx, KindApprove, m, noAnswerWait); err != nil {
					return err
				}
				queued++
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("repair mappings: %w", err)
	}
	if queued > 0 {
		s.log.Warn("pending mappings had no delivery and got one", "count", queued)
	}
	var errs []error
	for _, user := range approved {
		errs = append(errs, s.activate(ctx, user))
	}
	return errors.Join(errs...)
}

// Begin notes that Core has named the user and starts a proof by the method.
func (s *Service) Begin(ctx context.Context, m Method, user ident.UCloudUser) (redirectURL string, err error) {
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error { return tx.SeeUser(user, s.o.Now()) })
	if err != nil {
		return "", fmt.Errorf("note the user %q: %w", user, err)
	}
	return m.Begin(ctx, Attempt{User: user})
}

// Unlinked ends the mapping because the user has disconnected at Core, which has forgotten the connection already. It
// is idempotent and succeeds for users who were never connected.
func (s *Service) Unlinked(ctx context.Context, user ident.UCloudUser) error {
	_, err := s.end(ctx, ending{user: user, state: store.MappingExpired, cause: CauseCore, reason: "disconnected in UCloud"})
	if failure.Is(err, failure.NotFound) {
		return nil
	}
	return err
}

// Expire ends the mapping and the connection at Core. The uid stays reserved for the user. uid, if not nil, must be
// the mapping's; otherwise nothing happens and the error is a Conflict.
func (s *Service) Expire(ctx context.Context, user ident.UCloudUser, uid *ident.UID, reason string, dryRun bool) error {
	_, err := s.end(ctx, ending{
		user: user, uid: uid, state: store.MappingExpired, tellCore: true, cause: CauseOperator, reason: reason, dryRun: dryRun,
	})
	return err
}

// Disconnect is [Service.Expire] by the user of the account. Only who has asked the kernel for the uid may call it.
func (s *Service) Disconnect(ctx context.Context, user ident.UCloudUser, uid ident.UID, reason string) error {
	_, err := s.end(ctx, ending{
		user: user, uid: &uid, state: store.MappingExpired, tellCore: true, cause: CauseUser, reason: reason,
	})
	return err
}

// Remove ends the mapping and the connection at Core and gives the uid free. The row stays on record as removed; with
// purge it is deleted. Conditions are those of Expire.
func (s *Service) Remove(ctx context.Context, user ident.UCloudUser, uid *ident.UID, purge bool, reason string, dryRun bool) error {
	_, err := s.end(ctx, ending{
		user: user, uid: uid, state: store.MappingRemoved, purge: purge, tellCore: true, cause: CauseOperator, reason: reason, dryRun: dryRun,
	})
	return err
}

// ending is how a mapping ends.
type ending struct {
	user     ident.UCloudUser
	uid      *ident.UID         // must match if not nil
	state    store.MappingState // expired or removed
	purge    bool
	tellCore bool
	cause    Cause
	reason   string
	dryRun   bool
	// only, if set, is asked about the stored mapping; false leaves it alone.
	only func(store.Mapping) bool
}

// end carries out an ending. Whoever may launch or act for the user sees the end before it returns. changed is false
// if the mapping had ended before.
func (s *Service) end(ctx context.Context, e ending) (changed bool, err error) {
	var was store.Mapping
	err = s.update(ctx, func(tx *store.Tx) error {
		changed = false
		was, err = tx.MappingByUser(e.user)
		if errors.Is(err, store.ErrNotFound) {
			return failure.Wrap(err, failure.NotFound, "There is no mapping for %q", e.user)
		}
		if err != nil {
			return err
		}
		if e.uid != nil && was.UID != *e.uid {
			return failure.New(failure.Conflict, "The mapping of %q has changed meanwhile: its uid is %d, not %d", e.user, was.UID, *e.uid)
		}
		if e.only != nil && !e.only(was) {
			return nil
		}
		if e.state == store.MappingExpired && was.State == store.MappingExpired {
			return nil
		}
		if e.dryRun {
			return errDryRun
		}
		changed = true
		return s.writeEnd(tx, e, was)
	})
	if errors.Is(err, errDryRun) {
		return false, nil
	}
	if err != nil || !changed {
		return false, err
	}
	s.log.Info("mapping ended", "user", e.user, "uid", was.UID, "state", string(e.state), "reason", e.reason)
	s.o.OnInactive(context.WithoutCancel(ctx), e.user, was.UID, e.reason)
	return true, nil
}

func (s *Service) writeEnd(tx *store.Tx, e ending, m store.Mapping) error {
	if err := s.o.Ended(tx, m, e.cause); err != nil {
		return err
	}
	at := s.stamp(m.UpdatedAt)
	m.UpdatedAt = at
	if e.state == store.MappingExpired {
		m.State, m.ExpiresAt = store.MappingExpired, &at
		if err := tx.UpdateMapping(m); err != nil {
			return err
		}
	} else if err := tx.RemoveMapping(e.user, e.purge, at); err != nil {
		return err
	}
	if !e.tellCore {
		return nil
	}
	return s.enqueue(tx, KindClear, m)
}

// Run ends mappings whose time is over and finishes what could not be finished at once. It blocks until ctx ends.
//
// Core is told by clearConnection and not through the manifest: its own comparison of expiry times is inverted
// (contract 03 section 2.4).
func (s *Service) Run(ctx context.Context) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		timer := time.NewTimer(s.sweep(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// sweep does what is due and tells when to come back.
func (s *Service) sweep(ctx context.Context) time.Duration {
	const most = time.Hour
	const again = 30 * time.Second // after an error
	wait := most
	ms, err := s.Mappings(ctx)
	if err != nil {
		s.log.Warn("read the mappings", "error", err)
		return again
	}
	now := s.o.Now()
	for _, m := range ms {
		switch {
		case m.State == store.MappingApproved:
			if err := s.activate(ctx, m.User); err != nil {
				s.log.Warn("finish a mapping", "user", m.User, "error", err)
				wait = min(wait, again)
			}
		case m.ExpiresAt == nil || m.State != store.MappingActive:
		case now.Before(*m.ExpiresAt):
			wait = min(wait, m.ExpiresAt.Sub(now))
		default:
			_, err := s.end(ctx, ending{
				user: m.User, uid: &m.UID, state: store.MappingExpired, tellCore: true, cause: CauseExpired, reason: "expired",
				// The user may have connected anew since the list was read.
				only: func(cur store.Mapping) bool {
					return cur.State == store.MappingActive && cur.ExpiresAt != nil && !now.Before(*cur.ExpiresAt)
				},
			})
			if err != nil {
				s.log.Warn("end an expired mapping", "user", m.User, "error", err)
				wait = min(wait, again)
			}
		}
	}
	if s.stale.Load() {
		if err := s.reload(ctx); err != nil {
			wait = min(wait, again)
		}
	}
	return wait
}
