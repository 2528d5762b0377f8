package taskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// passive tells that tasks of a kind are done by somebody outside: they are shown at Core and can be cancelled like all
// others, but nobody has them in hand. They run from the beginning, take no place of those that work, and no instance is
// started or kept for them (contract 14, destination tasks of transfers).
func passive(kind string) bool { return kind == ipcapi.TaskReceive }

// transfer takes over how far a transfer from another provider is. It is told once per second while data comes in, so
// that a cancelled one ends soon.
func (s *Service) transfer(ctx context.Context, r *ipc.Request, req ipcapi.TransferProgress) (ipcapi.TransferVerdict, error) {
	if err := s.begin(ctx); err != nil {
		return ipcapi.TransferVerdict{}, err
	}
	defer s.unlock()
	k := caller(r)
	id, err := s.submitted(ctx, k, req.Key)
	if err != nil || id == 0 { // 0: its task was never made, and the transfer goes on unseen
		return ipcapi.TransferVerdict{}, err
	}
	t, ended, err := s.mine(ctx, k, id)
	switch {
	case err != nil:
		return ipcapi.TransferVerdict{}, err
	case ended != nil:
		return ipcapi.TransferVerdict{Ended: true}, nil
	case !passive(t.row.Kind):
		return ipcapi.TransferVerdict{}, failure.New(failure.Invalid, "This is not a task of a transfer")
	}
	t.row.Body, t.row.Text, t.row.Percent = line(req.State.Body), line(req.State.Text), percent(req.State.Percent)
	t.row.UpdatedAt, t.news = s.o.Now(), true
	switch req.Outcome {
	case "":
		if t.row.Core != store.TaskCoreNone {
			s.poster.put(t.row.ID, t.row.CoreID, status(t.row))
		}
		return ipcapi.TransferVerdict{}, nil
	case ipcapi.TaskSucceeded:
		err = s.finish(ctx, t, store.TaskSucceeded, req.State.Text)
	case ipcapi.TaskFailed:
		err = s.finish(ctx, t, store.TaskFailed, req.State.Text)
	case ipcapi.TaskCancelled:
		err = s.finish(ctx, t, store.TaskCancelled, req.State.Text)
	default:
		err = failure.New(failure.Invalid, "The report cannot be read")
	}
	return ipcapi.TransferVerdict{Ended: err == nil}, err
}

// sessionOf finds the session of a transfer by its task; [store.ErrNotFound]: there is none any more, or none of this user.
func sessionOf(tx *store.Tx, id int64) (store.Token, error) {
	row, err := tx.TaskWork(id)
	if err != nil {
		return store.Token{}, err
	}
	var p ipcapi.ReceiveParams
	if json.Unmarshal(row.Params, &p) != nil || len(p.Session) != 32 {
		return store.Token{}, store.ErrNotFound // an instance that describes its task wrongly
	}
	token, err := tx.TokenByHash([32]byte(p.Session))
	if err == nil && (token.User != row.User || token.Purpose != ipcapi.PurposeTransfer) {
		err = store.ErrNotFound // somebody else's
	}
	return token, err
}

// closeSession ends the session of a transfer whose task ends, so that nobody can use it any more.
func closeSession(tx *store.Tx, row store.Task) error {
	token, err := sessionOf(tx, row.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the session of a transfer: %w", err)
	}
	return tx.DeleteToken(token.Hash)
}

// expired tells whether the session of a transfer has ended by itself, so that nothing will come any more. Its task is
// made a moment after it.
func (s *Service) expired(ctx context.Context, t *task) bool {
	err := s.o.Store.View(ctx, func(tx *store.Tx) error { _, err := sessionOf(tx, t.row.ID); return err })
	return errors.Is(err, store.ErrNotFound)
}
