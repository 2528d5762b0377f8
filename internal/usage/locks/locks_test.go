package locks

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

func TestWritable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked []ipcapi.LockQuery
		var reply ipcapi.LockReply
		var fail error
		l := New(nil)
		l.ask = func(_ context.Context, q ipcapi.LockQuery) (ipcapi.LockReply, error) {
			asked = append(asked, q)
			return reply, fail
		}
		user, project := ident.Owner{User: "Alice#1"}, ident.Owner{Project: "p"}
		away := errors.New("away")
		check := func(owner ident.Owner, want failure.Kind, questions int) {
			t.Helper()
			asked = nil
			err := l.Writable(t.Context(), owner, "disk")
			if (want == failure.Internal) != (err == nil) || (err != nil && failure.KindOf(err) != want) || len(asked) != questions {
				t.Errorf("%v, %d questions", err, len(asked))
			}
		}
		const ok = failure.Internal // stands for no error
		fail = away
		check(user, failure.Unavailable, 1) // never known
		fail = nil
		check(user, ok, 1)
		if asked[0] != (ipcapi.LockQuery{Category: "disk"}) { // whose wallet it is, is the kernel's word
			t.Errorf("%+v", asked)
		}
		check(user, ok, 0)
		reply.Locked = true
		check(project, failure.PaymentRequired, 1)
		check(user, ok, 0)
		time.Sleep(fresh)
		check(user, failure.PaymentRequired, 1) // within seconds
		reply.Locked, fail = false, away
		time.Sleep(stale - time.Second)
		check(user, failure.PaymentRequired, 1)
		check(project, failure.Unavailable, 1) // too old
		fail = failure.New(failure.Forbidden, "no")
		check(project, failure.Forbidden, 1)
	})
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	l := New(nil)
	for i := range 3 * most {
		l.keep(ipcapi.LockQuery{Project: ident.ProjectID(rune(i))}, true)
	}
	if len(l.known) > most {
		t.Errorf("%d answers", len(l.known))
	}
}
