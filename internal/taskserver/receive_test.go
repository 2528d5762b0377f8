package taskserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/tasks"
	"ucloud-im/internal/testkit"
)

// issue makes the session of a transfer.
func (w *world) issue(user ident.UCloudUser, purpose string) (token string, params json.RawMessage) {
	w.t.Helper()
	token, err := onetime.New(w.server.store, onetime.Options{}).Issue(context.Background(), onetime.Spec{
		Purpose: purpose, User: user, Object: "/1/x", Limits: onetime.Limits{Total: time.Hour, Uses: onetime.Unlimited},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(token))
	params, err = json.Marshal(ipcapi.ReceiveParams{Session: sum[:]})
	if err != nil {
		w.t.Fatal(err)
	}
	return token, params
}

func (w *world) sessionLives(token string) bool {
	w.t.Helper()
	err := w.server.store.View(context.Background(), func(tx *store.Tx) error { _, err := tx.TokenByHash(onetime.Hash(token)); return err })
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return err == nil
}

func (i *instance) transfer(p ipcapi.TransferProgress) (ipcapi.TransferVerdict, error) {
	c, err := i.server()
	if err != nil {
		return ipcapi.TransferVerdict{}, err
	}
	return ipc.Invoke(context.Background(), c, ipcapi.TransferUpdate, p)
}

// TestReceive: a transfer from elsewhere is shown and takes nobody's place; it ends with the session, and the session
// with it, over a restart of the server. No instance is kept or woken for it.
func TestReceive(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	for _, end := range []string{ipcapi.TaskSucceeded, ipcapi.TaskFailed, ipcapi.TaskCancelled, "cancel", "operator", "disconnect", "expired"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(w *world) { w.grace, w.limits = 50*time.Millisecond, [2]int{1, 1} })
			i := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
			token, params := w.issue(ada, ipcapi.PurposeTransfer)
			key := make([]byte, 16)
			id := i.submit(tasks.Spec{Kind: ipcapi.TaskReceive, Title: "Receiving", CanCancel: true, Params: params, Key: key})
			if again := i.submit(tasks.Spec{Kind: ipcapi.TaskReceive, Title: "Receiving", CanCancel: true, Params: params, Key: key}); again != id {
				t.Errorf("the same key made two tasks, %d and %d", id, again)
			}
			w.awaitCore("Receiving", providerapi.TaskRunning)
			// The only place is for those that work.
			work := i.submit(tasks.Spec{Kind: "copy", Title: "Copying", CanCancel: true})
			w.await(work, store.TaskRunning)
			if err := i.control(w.awaitCore("Copying", providerapi.TaskRunning).TaskID, "CANCELLED"); err != nil {
				t.Fatal(err)
			}
			w.await(work, store.TaskCancelled)
			testkit.Eventually(t, "the instance to be idle", func() bool { return !i.isBusy() })
			i.close()

			w.kill()
			w.mu.Lock()
			w.woken = nil // before the instance had opened its stream
			w.mu.Unlock()
			w.start()
			time.Sleep(200 * time.Millisecond) // the grace, and some
			if r := w.row(id); r.State != store.TaskRunning || r.Attempt != 0 {
				t.Errorf("after a restart: %+v", r)
			}
			w.mu.Lock()
			if len(w.woken) > 0 {
				t.Errorf("woken: %v", w.woken)
			}
			w.mu.Unlock()

			i = w.instance(uidAda, nil)
			if v, err := i.transfer(ipcapi.TransferProgress{Key: key, State: ipcapi.TaskState{Body: "half", Percent: -1}}); err != nil || v.Ended {
				t.Fatal(v, err)
			}
			testkit.Eventually(t, "progress at Core", func() bool { return *w.core.one("Receiving").Status.Body == "half" })
			if !w.sessionLives(token) {
				t.Error("the session has ended early")
			}
			want := store.TaskCancelled
			switch end {
			case "cancel":
				if err := i.control(w.core.one("Receiving").TaskID, "CANCELLED"); err != nil {
					t.Fatal(err)
				}
			case "operator":
				if _, err := ipc.Invoke(t.Context(), w.client(uidOp), ipcapi.TaskCancel, ipcapi.TaskMutation{IDs: []int64{id}}); err != nil {
					t.Fatal(err)
				}
			case "expired":
				want = store.TaskFailed
				w.server.svc.tidy(t.Context())
				if r := w.row(id); r.State != store.TaskRunning {
					t.Errorf("it has ended while its session lives: %+v", r)
				}
				err := w.server.store.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteToken(onetime.Hash(token)) })
				if err != nil {
					t.Fatal(err)
				}
				w.server.svc.tidy(t.Context())
			case "disconnect":
				if err := w.server.svc.UserInactive(t.Context(), ada, uidAda); err != nil {
					t.Fatal(err)
				}
			default:
				want = store.TaskState(end)
				if v, err := i.transfer(ipcapi.TransferProgress{Key: key, State: ipcapi.TaskState{Text: "over"}, Outcome: end}); err != nil || !v.Ended {
					t.Fatal(v, err)
				}
			}
			w.await(id, want)
			if w.sessionLives(token) {
				t.Error("the session lives on")
			}
			// Whoever still sends hears of it.
			if v, err := i.transfer(ipcapi.TransferProgress{Key: key}); err != nil || !v.Ended {
				t.Error(v, err)
			}
		})
	}
}

// TestReceiveOfOthers: a task ends no session but the own one of its user, and nobody else's task can be told about.
func TestReceiveOfOthers(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	w := newWorld(t, nil)
	bobs, params := w.issue(bob, ipcapi.PurposeTransfer)
	download, paramsDownload := w.issue(ada, ipcapi.PurposeDownload)
	i := w.instance(uidAda, map[string]tasks.Runner{"copy": forever})
	for n, p := range []json.RawMessage{params, paramsDownload, []byte(`{"session":"AA=="}`), []byte(`[]`)} {
		key := make([]byte, 16)
		key[0] = byte(n)
		i.submit(tasks.Spec{Kind: ipcapi.TaskReceive, Title: "x", Params: p, Key: key})
		if v, err := w.instance(uidBob, nil).transfer(ipcapi.TransferProgress{Key: key, Outcome: ipcapi.TaskSucceeded}); err != nil || v.Ended {
			t.Error(v, err)
		}
		if v, err := i.transfer(ipcapi.TransferProgress{Key: key, Outcome: ipcapi.TaskSucceeded}); err != nil || !v.Ended {
			t.Error(v, err)
		}
	}
	if !w.sessionLives(bobs) || !w.sessionLives(download) {
		t.Error("a session of somebody else, or for something else, has ended")
	}
	key := []byte("0123456789abcdef")
	i.submit(tasks.Spec{Kind: "copy", Title: "y", Key: key})
	if _, err := i.transfer(ipcapi.TransferProgress{Key: key, Outcome: ipcapi.TaskSucceeded}); !failure.Is(err, failure.Invalid) {
		t.Errorf("a task that works can be ended so: %v", err)
	}
}
