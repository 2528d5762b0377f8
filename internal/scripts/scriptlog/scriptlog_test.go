package scriptlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

// serve runs an IPC server with the log's calls and gives a client.
func serve(t *testing.T, l *Log, grant ipc.Grant) *ipc.Client {
	t.Helper()
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) { return grant, nil }})
	l.Register(srv)
	path := filepath.Join(testkit.PrivateDir(t), "s")
	listener, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	c, err := ipc.Dial(t.Context(), path, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func entry(n int) scripts.Entry {
	exit := 0
	return scripts.Entry{
		Invocation: fmt.Sprintf("i%d", n), Hook: scripts.HookUsage, Path: "/opt/x", FileHash: "h", Key: "drive/1",
		Owner: ident.Owner{User: "Alice#1"}, UID: 4_000_000_001, Attempt: 1, StartedAt: time.Now(), Duration: time.Second, Result: "ok",
		Exit: &exit, Request: `{"a":1}`, Stdout: "out\x00", Stderr: strings.Repeat("e", 9000), StdoutBytes: 4, StderrBytes: 1 << 33,
	}
}

func listAll(t *testing.T, c *ipc.Client, q ipcapi.ScriptListRequest) (all []ipcapi.ScriptInfo) {
	t.Helper()
	r, err := ipc.Open(t.Context(), c, ipcapi.ScriptList, q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		page, _, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Items...)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		l := New(s, nil, nil)
		for n := range pageSize + 5 {
			e := entry(n)
			if n == 3 {
				e.Result, e.Exit, e.Signal, e.Message = string(scripts.TimedOut), nil, "SIGKILL", "too long"
			}
			l.RecordScript(t.Context(), e)
		}
		c := serve(t, l, ipc.Grant{Viewer: true})
		all := listAll(t, c, ipcapi.ScriptListRequest{})
		if len(all) != pageSize+5 || all[0].ID < all[1].ID || all[0].Stderr != "" {
			t.Fatalf("%d calls, first %+v", len(all), all[0])
		}
		failed := listAll(t, c, ipcapi.ScriptListRequest{Hook: scripts.HookUsage, Failures: true, Texts: true})
		if len(failed) != 1 || failed[0].Message != "too long" || len(failed[0].Stderr) != maxSearched || failed[0].Exit != nil {
			t.Fatalf("%+v", failed)
		}
		soon := time.Now().Add(time.Hour)
		if none := listAll(t, c, ipcapi.ScriptListRequest{Since: &soon}); len(none) != 0 {
			t.Errorf("%+v", none)
		}
		if none := listAll(t, c, ipcapi.ScriptListRequest{Until: &all[len(all)-1].StartedAt}); len(none) != 0 {
			t.Errorf("%+v", none)
		}
		got, err := ipc.Invoke(t.Context(), c, ipcapi.ScriptShow, ipcapi.ScriptRef{ID: failed[0].ID})
		if err != nil || got.Invocation != "i3" || len(got.Stderr) != 9000 || got.Stdout != "out" || got.StderrBytes != 1<<33 || got.User != "Alice#1" {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := ipc.Invoke(t.Context(), c, ipcapi.ScriptShow, ipcapi.ScriptRef{ID: 1 << 40}); !failure.Is(err, failure.NotFound) {
			t.Error(err)
		}
	})
}

// TestOnlyViewersRead: what scripts were asked is not for every connected user.
func TestOnlyViewersRead(t *testing.T) {
	t.Parallel()
	l := New(storetest.SQLite(t), nil, nil)
	l.RecordScript(t.Context(), entry(1))
	c := serve(t, l, ipc.Grant{Mapped: true, User: "Alice#1"})
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.ScriptShow, ipcapi.ScriptRef{ID: 1}); !failure.Is(err, failure.Forbidden) {
		t.Error(err)
	}
	r, err := ipc.Open(t.Context(), c, ipcapi.ScriptList, ipcapi.ScriptListRequest{})
	if err == nil {
		_, _, err = r.Next(t.Context())
		r.Close()
	}
	if !failure.Is(err, failure.Forbidden) {
		t.Error(err)
	}
}

func TestRetention(t *testing.T) {
	s := storetest.SQLite(t)
	old := entry(1)
	old.StartedAt = time.Now().Add(-25 * time.Hour)
	l := New(s, func() time.Duration { return 24 * time.Hour }, nil)
	l.RecordScript(t.Context(), old)
	l.RecordScript(t.Context(), entry(2))
	if err := l.purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		err := s.View(t.Context(), func(tx *store.Tx) error {
			calls, err := tx.ScriptCalls(store.ScriptFilter{}, 10)
			n = len(calls)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 1 {
		t.Fatalf("%d calls are left", n)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*purgeEvery)
		defer cancel()
		if err := l.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
