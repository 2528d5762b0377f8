package ipc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ucloud-im/internal/ipc"
)

type greeting struct {
	Name string `json:"name"`
}

// A call is a value that server and client share. It says who may make it.
var hello = ipc.Call[greeting, greeting]{Name: "example.hello", Access: ipc.AccessAnyone}

// serve runs a server with one call until stop.
func serve() (path string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "imt-ipc-example")
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "example.sock")
	l, err := ipc.Listen(path)
	if err != nil {
		return "", nil, err
	}
	s := ipc.NewServer(ipc.ServerOptions{
		Authorize:         func(_ context.Context, p ipc.Peer) (ipc.Grant, error) { return ipc.Grant{Root: p.UID() == 0}, nil },
		RequestsPerSecond: 1_000_000,
	})
	ipc.Handle(s, hello, func(_ context.Context, r *ipc.Request, req greeting) (greeting, error) {
		return greeting{Name: "hello, " + req.Name}, nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	return path, func() {
		cancel()
		<-done
		os.RemoveAll(dir)
	}, nil
}

func Example() {
	path, stop, err := serve()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()

	ctx := context.Background()
	c, err := ipc.Dial(ctx, path, ipc.DialOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	answer, err := ipc.Invoke(ctx, c, hello, greeting{Name: "world"})
	fmt.Println(answer.Name, err)
	// Output: hello, world <nil>
}

// BenchmarkInvoke is one call there and back, client and server in one process.
func BenchmarkInvoke(b *testing.B) {
	path, stop, err := serve()
	if err != nil {
		b.Fatal(err)
	}
	defer stop()
	c, err := ipc.Dial(b.Context(), path, ipc.DialOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ipc.Invoke(b.Context(), c, hello, greeting{Name: "world"}); err != nil {
			b.Fatal(err)
		}
	}
}
