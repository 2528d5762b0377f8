package rolegateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/gateway"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Pauses between attempts to reach IM/Server. The longest is short: held requests wait for it.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// errAway tells that IM/Server is not connected.
var errAway = errors.New("the server is not connected")

// controller keeps the connection to IM/Server: it receives the route table, confirms each update once it has been
// applied, and asks the gateway's questions. While the server is away the table stays as it is (design D5).
type controller struct {
	socket string
	hello  ipcapi.GatewayHello
	table  *gateway.Table
	web    *gateway.WebTable
	log    *slog.Logger

	client atomic.Pointer[ipc.Client]
	synced chan struct{} // closed when the first whole table has been applied
	once   sync.Once
}

var _ gateway.Control = (*controller)(nil)

func newController(socket string, hello ipcapi.GatewayHello, table *gateway.Table, web *gateway.WebTable, log *slog.Logger) *controller {
	return &controller{socket: socket, hello: hello, table: table, web: web, log: log.With("part", "control"), synced: make(chan struct{})}
}

// run keeps the connection until ctx ends.
func (c *controller) run(ctx context.Context) {
	pause := firstPause
	lost := false
	for ctx.Err() == nil {
		connected, err := c.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if connected {
			pause = firstPause
		}
		if connected || !lost {
			c.log.Warn("no connection to the server, the route table stays as it is", "error", err)
		}
		lost = true
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// session is one connection. connected tells whether it received anything.
func (c *controller) session(ctx context.Context) (connected bool, err error) {
	// Only a server of our own account may give us routes and keys.
	own := ident.UID(os.Geteuid()) //nolint:gosec // a uid fits
	client, err := ipc.Dial(ctx, c.socket, ipc.DialOptions{ServerUID: func(uid ident.UID) bool { return uid == own }})
	if err != nil {
		return false, err
	}
	defer client.Close()
	updates, err := ipc.Open(ctx, client, ipcapi.GatewayRoutes, c.hello)
	if err != nil {
		return false, err
	}
	defer updates.Close()
	defer c.client.Store(nil)
	interfaces := make(chan struct{})
	go func() {
		defer close(interfaces)
		if c.followWeb(ctx, client) {
			client.Close() //nolint:errcheck // ends the loop below, and with it the session
		}
	}()
	defer func() {
		client.Close() //nolint:errcheck // ends the goroutine
		<-interfaces
	}()
	for {
		u, _, err := updates.Next(ctx)
		if errors.Is(err, io.EOF) {
			return connected, errors.New("the server has ended the stream of routes")
		}
		if err != nil {
			return connected, err
		}
		update, err := c.convert(u)
		if err != nil {
			return connected, err
		}
		// After Apply nothing is sent to what the update replaced; that is what the confirmation says.
		c.table.Apply(update)
		if _, err := ipc.Invoke(ctx, client, ipcapi.GatewayAck, ipcapi.RouteAck{Seq: u.Seq}); err != nil {
			return connected, fmt.Errorf("confirm update %d: %w", u.Seq, err)
		}
		if !connected {
			connected = true
			c.client.Store(client)
			c.log.Info("connected to the server", "routes", c.table.Len())
		}
		if u.Full {
			c.once.Do(func() { close(c.synced) })
		}
	}
}

func (c *controller) convert(u ipcapi.RouteUpdate) (gateway.Update, error) {
	out := gateway.Update{Full: u.Full, Remove: u.Remove}
	for _, r := range u.Put {
		route, err := convertRoute(r)
		if err != nil {
			return gateway.Update{}, err
		}
		out.Put = append(out.Put, route)
	}
	return out, nil
}

func convertRoute(r ipcapi.Route) (gateway.Route, error) {
	if r.User == "" || r.Port <= 0 || r.Port > 65535 || len(r.Key) != len(hoptoken.Key{}) {
		return gateway.Route{}, fmt.Errorf("server sent a bad route %d for user %q, port %d", r.Route, r.User, r.Port)
	}
	return gateway.Route{
		User: r.User, UID: r.UID, Port: r.Port, Key: hoptoken.Key(r.Key), ID: r.Route, Generation: r.Generation,
	}, nil
}

// Wake implements [gateway.Control].
func (c *controller) Wake(ctx context.Context, user ident.UCloudUser) (*gateway.Route, string, error) {
	client := c.client.Load()
	if client == nil {
		return nil, "", errAway
	}
	reply, err := ipc.Invoke(ctx, client, ipcapi.GatewayWake, ipcapi.Wake{User: user})
	if err != nil {
		if refusal(err) {
			return nil, failure.Why(err), nil
		}
		return nil, "", err
	}
	if reply.Route == nil {
		return nil, reply.Why, nil
	}
	route, err := convertRoute(*reply.Route)
	if err != nil {
		return nil, "", err
	}
	return &route, "", nil
}

// refusal tells whether the server has answered no, as opposed to not having answered. The why of such an answer is for
// end users.
func refusal(err error) bool {
	switch failure.KindOf(err) {
	case failure.Invalid, failure.Forbidden, failure.NotFound, failure.Conflict, failure.NoInstance, failure.TooMany:
		_, ok := errors.AsType[*failure.Error](err)
		return ok
	}
	return false
}

// TokenOpen implements [gateway.Control].
func (c *controller) TokenOpen(ctx context.Context, user ident.UCloudUser, hash [32]byte) (bool, error) {
	client := c.client.Load()
	if client == nil {
		return false, errAway
	}
	reply, err := ipc.Invoke(ctx, client, ipcapi.GatewayToken, ipcapi.TokenQuery{User: user, Hash: hash[:]})
	return reply.Open, err
}
