package launcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

// hubServer serves a hub on a socket.
func hubServer(t *testing.T) (*hub, func() *ipc.Client) {
	t.Helper()
	h := newHub()
	s := ipc.NewServer(ipc.ServerOptions{Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{Service: true}, nil
	}})
	ipc.HandleStream(s, ipcapi.GatewayRoutes, h.follow)
	ipc.Handle(s, ipcapi.GatewayAck, h.ack)
	path := filepath.Join(testkit.PrivateDir(t), "s.sock")
	l, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ctx, l) }) //nolint:errcheck // seen by its effect
	t.Cleanup(func() { cancel(); wg.Wait() })
	return h, func() *ipc.Client {
		c, err := ipc.Dial(ctx, path, ipc.DialOptions{ServerUID: func(u ident.UID) bool { return u == ident.UID(os.Getuid()) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() }) //nolint:errcheck // a test
		return c
	}
}

func follow(t *testing.T, c *ipc.Client) *ipc.Receiver[ipcapi.RouteUpdate] {
	t.Helper()
	r, err := ipc.Open(t.Context(), c, ipcapi.GatewayRoutes, ipcapi.GatewayHello{Protocol: ipcapi.Protocol})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func nextUpdate(t *testing.T, r *ipc.Receiver[ipcapi.RouteUpdate]) ipcapi.RouteUpdate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	u, _, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func ackUpdate(t *testing.T, c *ipc.Client, u ipcapi.RouteUpdate) {
	t.Helper()
	if _, err := ipc.Invoke(t.Context(), c, ipcapi.GatewayAck, ipcapi.RouteAck{Seq: u.Seq}); err != nil {
		t.Fatal(err)
	}
}

func TestHubConfirms(t *testing.T) {
	t.Parallel()
	h, dial := hubServer(t)
	h.put(ipcapi.Route{User: "a", Port: 1})
	if err := h.confirmed(t.Context(), 1); !errors.Is(err, errNoGateway) {
		t.Fatalf("without a gateway: %v", err)
	}
	c1, c2 := dial(), dial()
	r1, r2 := follow(t, c1), follow(t, c2)
	u1, u2 := nextUpdate(t, r1), nextUpdate(t, r2)
	if !u1.Full || len(u1.Put) != 1 || u1.Put[0].Port != 1 {
		t.Fatalf("%+v", u1)
	}
	ackUpdate(t, c1, u1)
	ackUpdate(t, c2, u2)
	if err := h.confirmed(t.Context(), 1); err != nil {
		t.Fatal(err)
	}

	// What was not sent cannot be confirmed.
	ackUpdate(t, c1, ipcapi.RouteUpdate{Seq: u1.Seq + 1000})
	ackUpdate(t, c2, ipcapi.RouteUpdate{Seq: u1.Seq + 1000})

	v := h.remove("a")
	u1, u2 = nextUpdate(t, r1), nextUpdate(t, r2)
	if len(u1.Remove) != 1 || u1.Seq != v || u1.Full {
		t.Fatalf("%+v", u1)
	}
	ackUpdate(t, c1, u1)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.confirmed(short, v); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one of two has confirmed: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- h.confirmed(context.Background(), v) }()
	ackUpdate(t, c2, u2)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestHubLosesGateway(t *testing.T) {
	t.Parallel()
	h, dial := hubServer(t)
	c1, c2 := dial(), dial()
	r1, r2 := follow(t, c1), follow(t, c2)
	ackUpdate(t, c1, nextUpdate(t, r1))
	ackUpdate(t, c2, nextUpdate(t, r2))
	h.put(ipcapi.Route{User: "a"})
	v := h.remove("a")
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() { close(started); done <- h.confirmed(context.Background(), v) }()
	<-started
	time.Sleep(50 * time.Millisecond)
	c2.Close() //nolint:errcheck // the point of the test
	if err := <-done; !errors.Is(err, errGatewayLost) {
		t.Fatalf("a gateway that has gone may still use its table: %v", err)
	}
	testkit.Eventually(t, "it is forgotten", func() bool { return h.connected() == 1 })
}

// TestHubCoalesces: a gateway that reads slowly gets the last state of each user, not each step.
func TestHubCoalesces(t *testing.T) {
	t.Parallel()
	h, dial := hubServer(t)
	c := dial()
	r := follow(t, c)
	nextUpdate(t, r)
	const steps = 5000
	for i := range steps {
		h.put(ipcapi.Route{User: "a", Port: i})
		h.put(ipcapi.Route{User: "b", Port: i})
	}
	h.remove("b")
	n := 0
	table := map[ident.UCloudUser]int{}
	for {
		u := nextUpdate(t, r)
		n++
		for _, p := range u.Put {
			table[p.User] = p.Port
		}
		for _, gone := range u.Remove {
			delete(table, gone)
		}
		if u.Seq == 2*steps+1 {
			break
		}
	}
	if len(table) != 1 || table["a"] != steps-1 {
		t.Fatalf("%v", table)
	}
	if n > steps {
		t.Fatalf("%d updates", n)
	}
}
