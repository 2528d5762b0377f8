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
			if (want == failure.Internal) != (err == nil) || (err != nil && failure.KindOf(err) != want) || (questions >= 0 && len(asked) != questions) || (questions < 0 && len(asked) < 2) {
				t.Errorf("%v, %d questions", err, len(asked))
			}
		}
		const ok, many = failure.Internal, -1 // no error; several questions
		fail = away
		began := time.Now()
		check(user, failure.Unavailable, many) // never known
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("it was waited for %v", took)
		}
		plain := l.ask
		l.ask = func(ctx context.Context, q ipcapi.LockQuery) (ipcapi.LockReply, error) {
			if len(asked) == 9 { // the server has been started again
				fail = nil
			}
			return plain(ctx, q)
		}
		check(user, ok, 10)
		l.ask = plain
		l.known = map[ipcapi.LockQuery]answer{}
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
		check(project, failure.Unavailable, many) // too old
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
