package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// Kinds of deliveries. The names are in the database.
const (
	kindCreate = "task.create"
	kindFinal  = "task.final"
	kindSeal   = "task.seal"
)

const (
	// createAgain is when a creation without a known outcome is repeated: after the record that it may have made has
	// left the user's list (contract 14 section 2), with a minute for clocks and slow requests.
	createAgain = 6 * time.Minute
	// sealAfter is when a final state is posted again because an earlier post may have been on its way. No request
	// lives so long.
	sealAfter = 30 * time.Second
)

var errCut = errors.New("the server ended while the task was being created at Core")

// ordered reads the row that a delivery is about; false: it has been forgotten.
func (s *Service) ordered(ctx context.Context, e store.OutboxEntry) (row store.Task, ok bool, err error) {
	var p orderPayload
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return row, false, outbox.Permanent(fmt.Errorf("read order: %w", err))
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.Task(p.Task); return err })
	if errors.Is(err, store.ErrNotFound) {
		return row, false, nil
	}
	return row, err == nil, err
}

// deliverCreate makes the record at Core.
func (s *Service) deliverCreate(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	row, ok, err := s.ordered(ctx, e)
	if !ok || err != nil || row.Core != store.TaskCoreWanted {
		return outbox.Result{}, err
	}
	st := status(row)
	req := providerapi.CreateTask{
		User: row.User, Title: st.Title, Body: st.Body, Progress: st.Progress,
		TaskSpecification: providerapi.TaskSpecification{CanPause: row.CanPause, CanCancel: row.CanCancel},
	}
	if row.Icon != "" {
		req.Icon = &row.Icon
	}
	coreID, err := s.o.Core.CreateTask(ctx, req)
	switch {
	case err == nil:
		return outbox.Result{Complete: func(tx *store.Tx) error {
			tx.AfterCommit(func() { s.known(row.ID, coreID, store.TaskCoreKnown) })
			return tx.TaskKnown(row.ID, coreID)
		}}, nil
	case coreapi.Unanswered(err):
		return outbox.Result{}, outbox.RetryAfter(err, s.createAgain)
	case coreapi.Status(err) == http.StatusNotFound, coreapi.Status(err) == http.StatusBadRequest:
		// Core does not want it, and never will. The work goes on without being shown.
		return outbox.Result{Complete: func(tx *store.Tx) error {
			tx.AfterCommit(func() { s.known(row.ID, 0, store.TaskCoreNone) })
			return tx.TaskCore(row.ID, store.TaskCoreNone)
		}}, outbox.Permanent(err)
	}
	return outbox.Result{}, err
}

// known takes over what Core knows about a task.
func (s *Service) known(id, coreID int64, state store.TaskCoreState) {
	s.turn <- struct{}{}
	defer s.unlock()
	if coreID != 0 { // Core gives an id out twice only when it was set back
		for _, other := range s.tasks {
			if other.row.CoreID == coreID && other.row.ID != id {
				other.row.Core, other.row.CoreID = store.TaskCoreNone, 0
				s.poster.close(other.row.ID)
			}
		}
	}
	t := s.tasks[id]
	if t == nil {
		return
	}
	t.row.Core, t.row.CoreID = state, coreID
	if state == store.TaskCoreNone {
		s.poster.close(id)
		s.poster.forget(id)
		return
	}
	s.poster.put(id, coreID, status(t.row))
}

// deliverFinal posts the final state. Nothing else is posted for the task any more, except by deliverSeal.
func (s *Service) deliverFinal(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	row, ok, err := s.ordered(ctx, e)
	if !ok || err != nil || row.Core != store.TaskCoreKnown {
		return outbox.Result{}, err
	}
	sure, err := s.poster.silence(ctx, row.ID)
	if err != nil {
		return outbox.Result{}, err
	}
	if s.o.Now().Sub(s.started) < s.sealAfter {
		sure = false // what the process before this one has posted last is not known
	}
	err = s.o.Core.PostTaskStatus(ctx, row.CoreID, status(row))
	gone := coreapi.Status(err) == http.StatusNotFound || coreapi.Status(err) == http.StatusBadRequest
	if err != nil && !gone {
		return outbox.Result{}, err
	}
	res := outbox.Result{Complete: func(tx *store.Tx) error {
		if !sure && !gone {
			if _, err := tx.Enqueue(kindSeal, e.Key, e.Payload, time.Now().Add(s.sealAfter)); err != nil {
				return err
			}
		}
		tx.AfterCommit(func() { s.poster.forget(row.ID) })
		return tx.TaskCore(row.ID, store.TaskCoreClosed)
	}}
	if gone {
		err = outbox.Permanent(err)
	}
	return res, err
}

// deliverSeal posts the final state once more.
func (s *Service) deliverSeal(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	row, ok, err := s.ordered(ctx, e)
	if !ok || err != nil || !row.State.Final() || row.CoreID == 0 {
		return outbox.Result{}, err
	}
	err = s.o.Core.PostTaskStatus(ctx, row.CoreID, status(row))
	if st := coreapi.Status(err); st == http.StatusNotFound || st == http.StatusBadRequest {
		err = outbox.Permanent(err)
	}
	return outbox.Result{}, err
}
