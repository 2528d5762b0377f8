package jobrunner

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

// interfaceServer answers web.open and remembers what it was asked.
func interfaceServer(t *testing.T) (IPC, func() ipcapi.WebOpening) {
	t.Helper()
	var mu sync.Mutex
	var last ipcapi.WebOpening
	srv := ipc.NewServer(ipc.ServerOptions{Log: slog.New(slog.DiscardHandler), Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{User: "Ada#1", Mapped: true}, nil
	}})
	ipc.Handle(srv, ipcapi.WebOpen, func(_ context.Context, _ *ipc.Request, o ipcapi.WebOpening) (ipcapi.WebOpened, error) {
		mu.Lock()
		defer mu.Unlock()
		last = o
		return ipcapi.WebOpened{URL: "https://link.example.org/"}, nil
	})
	dir, err := os.MkdirTemp("", "imt-int")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ipc.Listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx, l) }) //nolint:errcheck // seen by its effect
	client, err := ipc.Dial(ctx, filepath.Join(dir, "s"), ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close() //nolint:errcheck // a test
		cancel()
		wg.Wait()
		os.RemoveAll(dir)
	})
	return IPC{Connect: func() (*ipc.Client, error) { return client, nil }}, func() ipcapi.WebOpening {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func TestOpenInterface(t *testing.T) {
	t.Parallel()
	server, asked := interfaceServer(t)
	write := func(t *testing.T, folder, name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	call := func(folder string, kind providerapi.SessionType, target string) SessionCall {
		c := SessionCall{Record: ipcapi.JobRecord{ID: "512", Folder: folder, Own: true}, Rank: 1, Type: kind}
		if target != "" {
			c.Target = &target
		}
		return c
	}
	t.Run("web", func(t *testing.T) {
		folder := t.TempDir()
		for text, want := range map[string]ipcapi.WebOpening{
			"23817\n": {Port: 23817}, " 23817  https \n": {Port: 23817, TLS: true}, "": {},
		} {
			write(t, folder, "allocated-port.txt", text, 0o660)
			want.Job, want.Rank, want.Kind = "512", 1, "WEB"
			got, err := server.OpenInterface(t.Context(), call(folder, providerapi.SessionWeb, ""))
			if err != nil || got != (providerapi.OpenSession{Type: "web", JobID: "512", Rank: 1, RedirectClientTo: "https://link.example.org/"}) || asked() != want {
				t.Errorf("%q: %+v, %v, asked %+v", text, got, err, asked())
			}
		}
		for _, text := range []string{"no port", "0", "70000", "80 https x", strings.Repeat("1", 500)} {
			write(t, folder, "allocated-port.txt", text, 0o660)
			if got, err := server.OpenInterface(t.Context(), call(folder, providerapi.SessionWeb, "")); err == nil {
				t.Errorf("%q: %+v", text, got)
			}
		}
		if _, err := server.OpenInterface(t.Context(), call(folder, providerapi.SessionWeb, "Board")); err != nil || asked().Target != "Board" || asked().Port != 0 {
			t.Errorf("a target: %v, asked %+v", err, asked())
		}
		if _, err := server.OpenInterface(t.Context(), call(t.TempDir(), providerapi.SessionWeb, "")); err != nil || asked().Port != 0 {
			t.Errorf("without the file: %v, asked %+v", err, asked())
		}
	})
	t.Run("desktop", func(t *testing.T) {
		folder := t.TempDir()
		write(t, folder, ".vnc-password", "secret12\n", 0o600)
		got, err := server.OpenInterface(t.Context(), call(folder, providerapi.SessionVNC, ""))
		if err != nil || got != (providerapi.OpenSession{Type: "vnc", JobID: "512", Rank: 1, URL: "https://link.example.org/", Password: "secret12"}) {
			t.Errorf("%+v, %v", got, err)
		}
		c := call(folder, providerapi.SessionVNC, "")
		c.Record.Own = false
		if got, err := server.OpenInterface(t.Context(), c); !failure.Is(err, failure.Forbidden) || got.Password != "" {
			t.Errorf("of somebody else's job: %+v, %v", got, err)
		}
		refused := func(what string) {
			t.Helper()
			if got, err := server.OpenInterface(t.Context(), call(folder, providerapi.SessionVNC, "")); !failure.Is(err, failure.Conflict) || got.Password != "" {
				t.Errorf("%s: %+v, %v", what, got, err)
			}
		}
		if err := os.Chmod(filepath.Join(folder, ".vnc-password"), 0o640); err != nil {
			t.Fatal(err)
		}
		refused("a password that others can read")
		if err := os.Remove(filepath.Join(folder, ".vnc-password")); err != nil {
			t.Fatal(err)
		}
		refused("no password")
		write(t, folder, "secret", "of the user", 0o600)
		if err := os.Symlink(filepath.Join(folder, "secret"), filepath.Join(folder, ".vnc-password")); err != nil {
			t.Fatal(err)
		}
		refused("a link to another file")
	})
}
