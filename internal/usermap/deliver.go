package usermap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/store"
)

// Waits before an approval is repeated whose outcome is unknown. A Core that is about to die of the first attempt needs
// about 20 s to do so (recording 05 section 5), and must not meet the second one while it tries.
const (
	noAnswerWait    = 30 * time.Second
	noAnswerMaxWait = 10 * time.Minute
)

var errCutShort = errors.New("the process ended while an approval was under way")

// Register tells the outbox how the deliveries of this package are made. The approval is a guarded kind: the outbox
// notes each attempt before it begins, so that this process may die at any point without the next one sending another
// approval too soon.
func (s *Service) Register(b *outbox.Outbox) {
	b.RegisterGuarded(KindApprove, s.deliverApprove, outbox.RetryAfter(errCutShort, noAnswerWait))
	b.Register(KindClear, s.deliverClear)
}

// payload is the content of a delivery. At is the mapping's UpdatedAt in Unix milliseconds when it was queued.
type payload struct {
	User ident.UCloudUser `json:"user"`
	At   int64            `json:"at"`
}

// read decodes a delivery. One that cannot be read is of no use to anybody and is given up; Repair queues a readable
// one for a mapping that still needs it.
func read(e store.OutboxEntry) (p payload, err error) {
	if err = json.Unmarshal(e.Payload, &p); err == nil && p.User == "" {
		err = errors.New("no user is named")
	}
	if err != nil {
		return p, outbox.Permanent(fmt.Errorf("read the delivery: %w", err))
	}
	return p, nil
}

// deliverClear tells Core that the connection is over. Clearing is harmless in every case, and may be repeated.
func (s *Service) deliverClear(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	p, err := read(e)
	if err != nil {
		return outbox.Result{}, err
	}
	if err := s.o.Core.ClearConnection(ctx, p.User); err != nil {
		return outbox.Result{}, fmt.Errorf("clear the connection of %q: %w", p.User, err)
	}
	return outbox.Result{}, nil
}

// deliverApprove sends the pair, unless the mapping has changed since the delivery was queued.
func (s *Service) deliverApprove(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	p, err := read(e)
	if err != nil {
		return outbox.Result{}, err
	}
	current, over, err := s.standing(ctx, p)
	switch {
	case err != nil:
		return outbox.Result{}, err
	case over && e.Attempts > 0:
		// An earlier attempt without an answer may have connected a user who has no mapping any more.
		return s.deliverClear(ctx, e)
	case !current:
		return outbox.Result{}, nil // a newer delivery, or none, speaks for the mapping as it stands
	}
	if err := s.o.Core.ClearConnection(ctx, p.User); err != nil {
		return outbox.Result{}, fmt.Errorf("clear the connection of %q before approving it: %w", p.User, err)
	}
	if err := s.o.Core.ApproveConnection(ctx, p.User); err != nil {
		err = fmt.Errorf("approve the connection of %q: %w", p.User, err)
		if outcomeKnown(err) {
			return outbox.Result{}, err
		}
		return outbox.Result{}, outbox.RetryAfter(err, waitAfterNoAnswer(e.Attempts))
	}
	// Core's answer is written down in the transaction that removes the delivery. A process that stops right after the
	// commit makes the mapping active at its next start, see Repair.
	return outbox.Result{Complete: func(tx *store.Tx) error {
		tx.AfterCommit(func() {
			if err := s.activate(context.WithoutCancel(ctx), p.User); err != nil {
				s.log.Error("an approved mapping could not be made active yet", "user", p.User, "error", err)
			}
		})
		return s.approved(tx, p)
	}}, nil
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

// waitAfterNoAnswer grows with the number of failed attempts before.
func waitAfterNoAnswer(attempts int) time.Duration {
	wait := noAnswerWait
	for range attempts {
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

// approved writes down Core's answer. If the mapping changed while Core worked, the fresh connection at Core stands for
// nothing and is cleared again.
func (s *Service) approved(tx *store.Tx, p payload) error {
	m, err := tx.MappingByUser(p.User)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return s.enqueue(tx, KindClear, store.Mapping{User: p.User, UpdatedAt: s.o.Now()})
	case err != nil:
		return err
	case m.State == store.MappingPending && m.UpdatedAt.UnixMilli() == p.At:
		at := s.stamp(m.UpdatedAt)
		m.State, m.ApprovedAt, m.UpdatedAt = store.MappingApproved, &at, at
		return tx.UpdateMapping(m)
	case m.State == store.MappingPending:
		return nil // its own pair follows, and begins with a clear
	}
	return s.enqueue(tx, KindClear, m)
}
