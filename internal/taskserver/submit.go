package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// submit stores a new task. The answer comes after the commit.
func (s *Service) submit(ctx context.Context, r *ipc.Request, req ipcapi.TaskSubmission) (ipcapi.TaskRef, error) {
	if err := checkSubmission(req); err != nil {
		return ipcapi.TaskRef{}, err
	}
	if err := s.begin(ctx); err != nil {
		return ipcapi.TaskRef{}, err
	}
	defer s.unlock()
	k := caller(r)
	if id, err := s.submitted(ctx, k, req.Key); id != 0 || err != nil {
		return ipcapi.TaskRef{ID: id}, err
	}
	o := s.owner(k)
	switch {
	case len(o.tasks) >= maxOpen:
		return ipcapi.TaskRef{}, failure.New(failure.TooMany, "You have %d tasks that have not ended; wait for some of them, or cancel them", len(o.tasks))
	case !o.submits.AllowN(s.o.Now(), 1):
		return ipcapi.TaskRef{}, failure.New(failure.TooMany, "You have started too many tasks in a short time, try again in a moment")
	}
	row, err := s.insert(ctx, k, req)
	if err != nil {
		// A commit whose answer was lost may have come through all the same.
		if id, again := s.submitted(context.WithoutCancel(ctx), k, req.Key); again == nil && id != 0 {
			return ipcapi.TaskRef{ID: id}, nil
		}
		return ipcapi.TaskRef{}, err
	}
	s.add(row)
	return ipcapi.TaskRef{ID: row.ID}, nil
}

// checkSubmission refuses what cannot be a task.
func checkSubmission(req ipcapi.TaskSubmission) error {
	switch {
	case len(req.Key) != 16, !word(req.Kind, 32, kindRune), req.Icon != "" && !word(req.Icon, 64, iconRune),
		len(req.Title) > ipcapi.MaxTaskText, line(req.Title) == "":
		return failure.New(failure.Invalid, "The task is not described properly")
	case len(req.Params) > ipcapi.MaxTaskParams:
		return failure.New(failure.TooLarge, "The task is too large")
	}
	return nil
}

// submitted finds the task of a submission that came through before; 0: there is none.
func (s *Service) submitted(ctx context.Context, k ownerKey, key []byte) (int64, error) {
	var row store.Task
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) { row, err = tx.TaskByKey(k.uid, key); return err })
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, nil
	case err == nil && row.User != k.user: // of the user to whom the account belonged before
		return 0, failure.New(failure.Conflict, "The key of the task is taken")
	}
	// The commit may have come through without our knowledge.
	if err == nil && s.tasks[row.ID] == nil && !row.State.Final() {
		s.add(row)
	}
	return row.ID, err
}

func (s *Service) insert(ctx context.Context, k ownerKey, req ipcapi.TaskSubmission) (store.Task, error) {
	now := s.o.Now()
	row := store.Task{
		UID: k.uid, User: k.user, Key: req.Key, Kind: req.Kind, Title: line(req.Title), Icon: req.Icon,
		CanPause: req.CanPause, CanCancel: req.CanCancel, Params: req.Params, State: store.TaskQueued, Percent: -1,
		CreatedAt: now, UpdatedAt: now, StateAt: now,
	}
	if passive(row.Kind) {
		row.State = store.TaskRunning
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := s.update(ctx, func(tx *store.Tx) error {
		// Core has never named this user, so it is not told of their tasks either.
		seen, err := tx.UserSeen(k.user)
		if err != nil {
			return err
		}
		row.Core = store.TaskCoreNone
		if seen && !req.Hidden {
			row.Core = store.TaskCoreWanted
		}
		if row.ID, err = tx.InsertTask(row); err != nil || row.Core == store.TaskCoreNone {
			return err
		}
		_, err = tx.Enqueue(kindCreate, outboxKey(row.ID), payload(row.ID), time.Now())
		return err
	})
	row.Params = nil // stays in the database
	return row, err
}

// orderPayload is what the outbox keeps about a task: everything else is in its row.
type orderPayload struct {
	Task int64 `json:"task"`
}

func payload(id int64) []byte {
	raw, _ := json.Marshal(orderPayload{id}) //nolint:errchkjson // a number
	return raw
}
