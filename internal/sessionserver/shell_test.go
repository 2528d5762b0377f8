package sessionserver

import (
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

// TestShell: an identifier of a terminal works once, within a minute, and for its user only.
func TestShell(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, 0)
		job := ipcapi.SessionItem{Object: "job/512", Owner: ident.Owner{User: ada}, Data: []byte("mine")}
		tokens, err := w.create(ipcapi.PurposeShell, job, job, job)
		if err != nil {
			t.Fatal(err)
		}
		w.be("Mallory#1")
		_, err = w.consume(ipcapi.PurposeShell, tokens[0])
		w.want("another user's", err, failure.NotFound)
		w.be(ada)
		_, err = w.consume(ipcapi.PurposeUpload, tokens[0])
		w.want("another purpose", err, failure.NotFound)
		if ses, err := w.consume(ipcapi.PurposeShell, tokens[0]); err != nil || ses.Object != "job/512" || string(ses.Data) != "mine" {
			t.Errorf("%+v, %v", ses, err)
		}
		_, err = w.consume(ipcapi.PurposeShell, tokens[0])
		w.want("a second time", err, failure.NotFound)
		w.now.Add((59 * time.Second).Milliseconds())
		if _, err := w.consume(ipcapi.PurposeShell, tokens[1]); err != nil {
			t.Errorf("within a minute: %v", err)
		}
		w.now.Add((2 * time.Second).Milliseconds())
		_, err = w.consume(ipcapi.PurposeShell, tokens[2])
		w.want("after a minute", err, failure.NotFound)

		_, err = w.create(ipcapi.PurposeUpload, job)
		w.want("an upload without a drive", err, failure.Invalid)
	})
}
