package launcher

import (
	"context"
	"errors"
	"maps"
	"os"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// hub is the route table and the gateways that follow it. Updates to a gateway are coalesced: a slow one gets the
// latest state of what changed, not each step, so that nothing queues up without bound.
type hub struct {
	mu       sync.Mutex // guards the fields below
	table    map[ident.UCloudUser]ipcapi.Route
	version  uint64 // grows with each change; it is the Seq of updates
	gateways map[*follower]struct{}
	lost     uint64        // how many gateways have disconnected so far
	changed  chan struct{} // closed and replaced when a gateway acknowledges, comes or goes
}

// follower is one connected gateway.
type follower struct {
	hello  ipcapi.GatewayHello
	pid    int32 // as the kernel says
	since  time.Time
	closed <-chan struct{} // of its connection; acknowledgements come over the same one
	dirty  map[ident.UCloudUser]struct{}
	kick   chan struct{} // capacity 1
	sent   uint64
	acked  uint64
}

// Reasons why gateways have not confirmed an update.
var (
	errNoGateway   = errors.New("no gateway is connected")
	errGatewayLost = errors.New("a gateway disconnected before it confirmed")
)

func newHub() *hub {
	return &hub{
		table: map[ident.UCloudUser]ipcapi.Route{}, gateways: map[*follower]struct{}{}, changed: make(chan struct{}),
	}
}

// put adds or replaces a route and gives the version of the table that has it.
func (h *hub) put(r ipcapi.Route) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table[r.User] = r
	return h.touchLocked(r.User)
}

// remove deletes the user's route.
func (h *hub) remove(user ident.UCloudUser) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.table[user]; !ok {
		return h.version
	}
	delete(h.table, user)
	return h.touchLocked(user)
}

func (h *hub) touchLocked(user ident.UCloudUser) uint64 {
	h.version++
	for f := range h.gateways {
		f.dirty[user] = struct{}{}
		select {
		case f.kick <- struct{}{}:
		default:
		}
	}
	return h.version
}

func (h *hub) broadcastLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// confirmed waits until all connected gateways have applied the version: after that not one byte comes over what it
// withdrew. It fails if there is no gateway, or if one goes away meanwhile: that one may still use its old table.
func (h *hub) confirmed(ctx context.Context, version uint64) error {
	h.mu.Lock()
	lost := h.lost
	h.mu.Unlock()
	for {
		h.mu.Lock()
		all := true
		for f := range h.gateways {
			all = all && f.acked >= version
		}
		n, nowLost, changed := len(h.gateways), h.lost, h.changed
		h.mu.Unlock()
		switch {
		case nowLost != lost:
			return errGatewayLost
		case n == 0:
			return errNoGateway
		case all:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow serves the route stream of one gateway: the whole table first, then changes.
func (h *hub) follow(ctx context.Context, r *ipc.Request, hello ipcapi.GatewayHello, send func(ipcapi.RouteUpdate, ...*os.File) error) error {
	if hello.Protocol != ipcapi.Protocol {
		return failure.New(failure.Invalid, "The server speaks protocol %d, the gateway %d", ipcapi.Protocol, hello.Protocol)
	}
	f := &follower{hello: hello, pid: r.Peer.PID(), since: time.Now(), closed: r.Closed(), dirty: map[ident.UCloudUser]struct{}{}, kick: make(chan struct{}, 1)}
	h.mu.Lock()
	full := ipcapi.RouteUpdate{Seq: h.version, Full: true}
	for route := range maps.Values(h.table) {
		full.Put = append(full.Put, route)
	}
	f.sent = h.version
	h.gateways[f] = struct{}{}
	h.broadcastLocked()
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.gateways, f)
		h.lost++
		h.broadcastLocked()
		h.mu.Unlock()
	}()
	if err := send(full); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.kick:
		}
		if up, ok := h.collect(f); ok {
			if err := send(up); err != nil {
				return err
			}
		}
	}
}

// collect makes the update that brings f up to date.
func (h *hub) collect(f *follower) (ipcapi.RouteUpdate, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(f.dirty) == 0 {
		return ipcapi.RouteUpdate{}, false
	}
	up := ipcapi.RouteUpdate{Seq: h.version}
	for user := range f.dirty {
		if route, ok := h.table[user]; ok {
			up.Put = append(up.Put, route)
		} else {
			up.Remove = append(up.Remove, user)
		}
	}
	clear(f.dirty)
	f.sent = h.version
	return up, true
}

// ack records what a gateway has applied. The connection tells which gateway speaks.
func (h *hub) ack(_ context.Context, r *ipc.Request, a ipcapi.RouteAck) (ipcapi.Empty, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.gateways {
		if f.closed == r.Closed() && a.Seq <= f.sent && a.Seq > f.acked {
			f.acked = a.Seq
			h.broadcastLocked()
		}
	}
	return ipcapi.Empty{}, nil
}

// connected is the number of gateways that follow the table.
func (h *hub) connected() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.gateways)
}
