package usermap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/store"
)

// Waits before an approval is repeated whose outcome is unknown. A Core that is about to die of the first attempt needs
// about 20 s to do so (recording 05 section 5), and must not meet the second one while it tries.
const (
	noAnswerWait    = 30 * time.Second
	noAnswerMaxWait = 30 * time.Minute
)

// RetryError tells the outbox to repeat a delivery, not before After from now. With zero the outbox's own back-off
// decides.
type RetryError struct {
	After time.Duration
	Cause error
}

// Error implements error.
func (e *RetryError) Error() string { return e.Cause.Error() }

// Unwrap gives the cause.
func (e *RetryError) Unwrap() error { return e.Cause }

// Deliver carries out one delivery of kind [KindApprove] or [KindClear]. Nil means that it is done. Any error means
// that it must be repeated; see [RetryError] for when.
//
// The entry's row may be changed here: before an approval is sent its next attempt is put off, so that this process
// may die at any point without the next one sending another approval too soon.
func (s *Service) Deliver(ctx context.Context, e store.OutboxEntry) error {
	var p payload
	if err := json.Unmarshal(e.Payload, &p); err != nil || p.User == "" {
		// Nothing can ever come of it. Dropping it loses nothing: Repair queues a readable one for a pending mapping.
		s.log.Error("a delivery cannot be read and is dropped", "delivery", e.ID, "error", err)
		return nil
	}
	switch e.Kind {
	case KindApprove:
		return s.deliverApprove(ctx, e, p)
	case KindClear:
		return s.deliverClear(ctx, p)
	}
	return fmt.Errorf("unknown kind of delivery %q", e.Kind)
}

// deliverClear tells Core that the connection is over. Clearing is harmless in every case.
func (s *Service) deliverClear(ctx context.Context, p payload) error {
	if err := s.o.Core.ClearConnection(ctx, p.User); err != nil {
		return &RetryError{Cause: fmt.Errorf("clear the connection of %q: %w", p.User, err)}
	}
	return nil
}

// deliverApprove sends the pair, unless the mapping has changed since the delivery was queued.
func (s *Service) deliverApprove(ctx context.Context, e store.OutboxEntry, p payload) error {
	current, over, err := s.standing(ctx, p)
	switch {
	case err != nil:
		return &RetryError{Cause: err}
	case over && e.Attempts > 0:
		// An earlier attempt without an answer may have connected a user who has no mapping any more.
		return s.deliverClear(ctx, p)
	case !current:
		return nil // a newer delivery, or none, speaks for the mapping as it stands
	}
	if err := s.o.Core.ClearConnection(ctx, p.User); err != nil {
		return &RetryError{Cause: fmt.Errorf("clear the connection of %q before approving it: %w", p.User, err)}
	}

	wait := waitAfterNoAnswer(e.Attempts)
	err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
		return tx.OutboxRetry(e.ID, s.o.Now().Add(wait), "approval sent, no answer seen", e.State)
	})
	if err != nil {
		return &RetryError{Cause: fmt.Errorf("write down that an approval is about to be sent: %w", err)}
	}
	if err := s.o.Core.ApproveConnection(ctx, p.User); err != nil {
		err = fmt.Errorf("approve the connection of %q: %w", p.User, err)
		if outcomeKnown(err) {
			return &RetryError{Cause: err}
		}
		return &RetryError{After: wait, Cause: err}
	}
	// From here on the answer of Core is a fact; a caller who gives up must not keep us from writing it down.
	return s.approved(context.WithoutCancel(ctx), p)
}

// outcomeKnown tells whether Core certainly does nothing (more) about an approval. Beside a lost answer, any status of
// 500 and above leaves that open: it may come from a proxy whose patience ended before Core's.
func outcomeKnown(err error) bool {
	if errors.Is(err, coreapi.ErrNotSent) {
		return true
	}
	status := coreapi.Status(err)
	return status != 0 && status < http.StatusInternalServerError
}

// waitAfterNoAnswer grows with the number of attempts. Each one that was sent counts twice: when it was put off before
// sending, and when it had failed.
func waitAfterNoAnswer(attempts int) time.Duration {
	wait := noAnswerWait
	for range attempts / 2 {
		if wait *= 2; wait >= noAnswerMaxWait {
			return noAnswerMaxWait
		}
	}
	return wait
}

// standing tells whether the delivery is about the mapping as it stands, and whether the mapping is over.
func (s *Service) standing(ctx context.Context, p payload) (current, over bool, err error) {
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		m, err := tx.MappingByUser(p.User)
		if errors.Is(err, store.ErrNotFound) {
			over = true
			return nil
		}
		current = err == nil && m.State == store.MappingPending && m.UpdatedAt.UnixMilli() == p.At
		over = err == nil && m.State == store.MappingExpired
		return err
	})
	return current, over, err
}

// approved writes down Core's answer and makes the mapping active. If the mapping changed while Core worked, the fresh
// connection at Core stands for nothing and is cleared again.
func (s *Service) approved(ctx context.Context, p payload) error {
	stale := false
	err := s.update(ctx, func(tx *store.Tx) error {
		m, err := tx.MappingByUser(p.User)
		switch {
		case errors.Is(err, store.ErrNotFound):
			stale = true
			return s.enqueue(tx, KindClear, store.Mapping{User: p.User, UpdatedAt: s.o.Now()})
		case err != nil:
			return err
		case m.State == store.MappingPending && m.UpdatedAt.UnixMilli() == p.At:
			at := s.stamp(m.UpdatedAt)
			m.State, m.ApprovedAt, m.UpdatedAt = store.MappingApproved, &at, at
			return tx.UpdateMapping(m)
		case m.State == store.MappingPending:
			stale = true // its own pair follows, and begins with a clear
			return nil
		default:
			stale = true
			return s.enqueue(tx, KindClear, m)
		}
	})
	if err != nil {
		// Core has approved and we could not note it: the pair is repeated, which begins with a clear.
		return &RetryError{After: noAnswerWait, Cause: fmt.Errorf("note the approval of %q: %w", p.User, err)}
	}
	if stale {
		s.log.Info("mapping changed while it was being approved", "user", p.User)
		return nil
	}
	if err := s.activate(ctx, p.User); err != nil {
		// The approval is on record. Repeating this delivery would send nothing; Run and Repair make it active.
		s.log.Error("an approved mapping could not be made active", "user", p.User, "error", err)
	}
	return nil
}
