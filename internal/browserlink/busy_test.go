package browserlink

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

// TestBusy: a call that comes too fast for the server, or while it is away, is made again, and others are not.
func TestBusy(t *testing.T) {
	t.Parallel()
	srv := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{Mapped: true, User: "Ada#1"}, nil
	}})
	var asked atomic.Int64
	var refusal atomic.Value
	refusal.Store(failure.TooMany)
	ipc.Handle(srv, ipcapi.SessionCreate, func(context.Context, *ipc.Request, ipcapi.SessionCreation) (ipcapi.SessionTokens, error) {
		if asked.Add(1) < 3 {
			return ipcapi.SessionTokens{}, failure.New(refusal.Load().(failure.Kind), "no")
		}
		return ipcapi.SessionTokens{Tokens: []string{"t"}}, nil
	})
	socket := filepath.Join(testkit.PrivateDir(t), "s")
	l, err := ipc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	client, err := ipc.Dial(ctx, socket, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	away := 2
	c := Client{Server: func() (*ipc.Client, error) {
		if away--; away >= 0 {
			return nil, failure.New(failure.Unavailable, "away")
		}
		return client, nil
	}}

	tokens, err := c.Create(t.Context(), ipcapi.PurposeUpload, make([]ipcapi.SessionItem, 1))
	if err != nil || len(tokens) != 1 || asked.Load() != 3 {
		t.Errorf("%q after %d calls: %v", tokens, asked.Load(), err)
	}
	asked.Store(0)
	refusal.Store(failure.Forbidden)
	if _, err := c.Create(t.Context(), ipcapi.PurposeUpload, make([]ipcapi.SessionItem, 1)); !failure.Is(err, failure.Forbidden) || asked.Load() != 1 {
		t.Errorf("after %d calls: %v", asked.Load(), err)
	}
}
