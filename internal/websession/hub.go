package websession

import (
	"context"
	"maps"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// chunk is how many routes travel in one message.
const chunk = 100

// hub is the table of interfaces and the gateways that follow it. Updates to a gateway are coalesced: a slow one gets the
// latest state of what changed.
type hub struct {
	loaded     chan struct{} // closed when the table is complete for the first time
	loadedOnce sync.Once

	mu       sync.Mutex // guards the fields below
	table    map[string]ipcapi.WebRoute
	version  uint64
	gateways map[*follower]struct{}
}

// follower is one connected gateway.
type follower struct {
	dirty map[string]struct{}
	kick  chan struct{} // holds one element
}

func newHub() *hub {
	return &hub{
		loaded: make(chan struct{}), table: map[string]ipcapi.WebRoute{}, gateways: map[*follower]struct{}{},
		version: uint64(time.Now().UnixMicro()), //nolint:gosec // positive; later than that of an earlier server
	}
}

func (h *hub) ready() { h.loadedOnce.Do(func() { close(h.loaded) }) }

// put publishes a route, unless it is what is published already.
func (h *hub) put(r ipcapi.WebRoute) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.table[r.ID]; ok {
		r.Version = old.Version
		if reflect.DeepEqual(old, r) {
			return
		}
	}
	h.version++
	r.Version = h.version
	h.table[r.ID] = r
	h.touchLocked(r.ID)
}

// remove withdraws a route.
func (h *hub) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.table[id]; !ok {
		return
	}
	delete(h.table, id)
	h.version++
	h.touchLocked(id)
}

func (h *hub) touchLocked(id string) {
	for f := range h.gateways {
		f.dirty[id] = struct{}{}
		select {
		case f.kick <- struct{}{}:
		default:
		}
	}
}

func (h *hub) route(id string) (ipcapi.WebRoute, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, ok := h.table[id]
	return r, ok
}

// follow serves one gateway: the whole table, then changes.
func (h *hub) follow(ctx context.Context, _ *ipc.Request, hello ipcapi.GatewayHello, send func(ipcapi.WebUpdate, ...*os.File) error) error {
	if hello.Protocol != ipcapi.Protocol {
		return failure.New(failure.Invalid, "The server speaks protocol %d, the gateway %d", ipcapi.Protocol, hello.Protocol)
	}
	select {
	case <-h.loaded:
	case <-ctx.Done():
		return ctx.Err()
	}
	f := &follower{dirty: map[string]struct{}{}, kick: make(chan struct{}, 1)}
	h.mu.Lock()
	all := ipcapi.WebUpdate{Full: true, Put: slices.Collect(maps.Values(h.table))}
	h.gateways[f] = struct{}{}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.gateways, f)
		h.mu.Unlock()
	}()
	if err := sendChunks(all, send); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.kick:
		}
		if err := sendChunks(h.collect(f), send); err != nil {
			return err
		}
	}
}

// collect is what has changed for a gateway.
func (h *hub) collect(f *follower) ipcapi.WebUpdate {
	h.mu.Lock()
	defer h.mu.Unlock()
	var u ipcapi.WebUpdate
	for id := range f.dirty {
		if r, ok := h.table[id]; ok {
			u.Put = append(u.Put, r)
		} else {
			u.Remove = append(u.Remove, ipcapi.WebRemoval{ID: id, Version: h.version})
		}
	}
	clear(f.dirty)
	return u
}

// sendChunks sends an update in messages of bounded size, of which the gateway makes one.
func sendChunks(u ipcapi.WebUpdate, send func(ipcapi.WebUpdate, ...*os.File) error) error {
	for len(u.Put) > chunk {
		if err := send(ipcapi.WebUpdate{Full: u.Full, More: true, Put: u.Put[:chunk]}); err != nil {
			return err
		}
		u.Put = u.Put[chunk:]
	}
	return send(u)
}
