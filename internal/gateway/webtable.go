package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ucloud-im/internal/ident"
)

// WebKind says what an interface of a job is (contract 21 sections 5 and 6).
type WebKind string

// The kinds.
const (
	WebApplication WebKind = "WEB" // has a host name of its own
	WebDesktop     WebKind = "VNC" // one path on the provider's host name
)

// WebRoute is one interface of a job: where it is, and which browsers may use it.
type WebRoute struct {
	ID     string
	Kind   WebKind
	Host   string // of an application, in small letters
	Cookie string // name of the cookie of an application
	// Address and Port are where it is; no Address while the job does not run. UID is the account of the job.
	Address string
	Port    int
	UID     ident.UID
	TLS     bool
	Grants  []WebGrant
	Version uint64 // grows with each change
}

// WebGrant is the right of one browser, named by the SHA-256 of the secret that the browser has.
type WebGrant struct {
	Hash      [sha256.Size]byte
	ExpiresAt time.Time
}

// WebUpdate changes a [WebTable].
type WebUpdate struct {
	Full   bool // Put is the whole table
	Put    []WebRoute
	Remove map[string]uint64 // versions by id
}

// WebTable holds the interfaces of jobs. Reading takes no lock. All methods are safe for concurrent use.
type WebTable struct {
	log   *slog.Logger
	now   func() time.Time
	index atomic.Pointer[webIndex]
	// check tells whether the listener at an address of this machine belongs to the account; set by New.
	check func(listener netip.AddrPort, uid ident.UID) error

	mu      sync.Mutex
	removed map[string]uint64 // versions of routes that were removed, since the last full update
	changed chan struct{}
}

// webIndex is immutable.
type webIndex struct {
	byID   map[string]*webApp
	byHost map[string]*webApp
}

// webApp is an entry of the table. The connections are shared by all versions of a route that name the same place.
type webApp struct {
	route  WebRoute
	grants map[[sha256.Size]byte]time.Time
	place  *webPlace
}

// webPlace is where an interface is, with the connections to it and the requests under way.
type webPlace struct {
	upstream

	mu    sync.Mutex
	flows map[*webFlow]struct{}
	shut  bool // the place is not in the table any more
}

// webFlow is one request under way, for a WebSocket as long as it is open.
type webFlow struct {
	grant  [sha256.Size]byte
	socket bool
	cut    context.CancelFunc
}

// NewWebTable makes an empty table.
func NewWebTable(log *slog.Logger) *WebTable {
	t := &WebTable{log: log.With("part", "web"), now: time.Now, changed: make(chan struct{}, 1), removed: map[string]uint64{}}
	t.index.Store(&webIndex{})
	return t
}

func (t *WebTable) host(name string) *webApp { return t.index.Load().byHost[strings.ToLower(name)] }

// Len is the number of interfaces.
func (t *WebTable) Len() int { return len(t.index.Load().byID) }

// Changed receives a value some time after the table has changed; several changes may give one value.
func (t *WebTable) Changed() <-chan struct{} { return t.changed }

// Routes gives a copy of the table, ordered by id.
func (t *WebTable) Routes() []WebRoute {
	m := t.index.Load().byID
	out := make([]WebRoute, 0, len(m))
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[id].route)
	}
	return out
}

// Apply changes the table. When it returns, requests of interfaces and of browsers that the update has removed are cut
// off, WebSockets among them.
func (t *WebTable) Apply(u WebUpdate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.applyLocked(u)
}

// adopt adds the route that came with the answer to an exchange, and gives the entry. The answer can be overtaken by
// updates, also by one that removes the route: then nothing changes.
func (t *WebTable) adopt(r WebRoute) *webApp {
	t.mu.Lock()
	defer t.mu.Unlock()
	app := t.index.Load().byID[r.ID]
	if gone, ok := t.removed[r.ID]; (app == nil || app.route.Version < r.Version) && (!ok || gone < r.Version) {
		t.applyLocked(WebUpdate{Put: []WebRoute{r}})
	}
	return t.index.Load().byID[r.ID]
}

func (t *WebTable) applyLocked(u WebUpdate) {
	old := t.index.Load()
	next := &webIndex{byID: map[string]*webApp{}, byHost: map[string]*webApp{}}
	if u.Full {
		clear(t.removed)
	} else {
		maps.Copy(next.byID, old.byID)
	}
	for id, version := range u.Remove {
		t.removed[id] = version
		delete(next.byID, id)
	}
	for _, r := range u.Put {
		delete(t.removed, r.ID)
		next.byID[r.ID] = t.newApp(r, old.byID[r.ID])
	}
	for _, app := range next.byID {
		if app.route.Kind == WebApplication {
			next.byHost[app.route.Host] = app
		}
	}
	t.index.Store(next)
	for id, before := range old.byID {
		after := next.byID[id]
		if after == nil || after.place != before.place {
			before.place.close()
		} else if after != before {
			after.cutRevoked(t.now())
		}
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

func (t *WebTable) newApp(r WebRoute, before *webApp) *webApp {
	app := &webApp{route: r, grants: make(map[[sha256.Size]byte]time.Time, len(r.Grants))}
	for _, g := range r.Grants {
		app.grants[g.Hash] = g.ExpiresAt
	}
	if before != nil {
		if b := before.route; b.Address == r.Address && b.Port == r.Port && b.UID == r.UID && b.TLS == r.TLS && b.Kind == r.Kind && b.Host == r.Host {
			app.place = before.place
			return app
		}
	}
	app.place = t.newPlace(r)
	return app
}

// allows tells whether a browser with this secret may use the interface now.
func (a *webApp) allows(hash [sha256.Size]byte, now time.Time) bool {
	end, ok := a.grants[hash]
	return ok && now.Before(end)
}

// session finds the grant of a request by its cookies. Several cookies may have the name: a neighbour's page can set one
// for all hosts of the suffix, which must not lock the user out.
func (a *webApp) session(r *http.Request, now time.Time) (hash [sha256.Size]byte, ok bool) {
	for _, c := range r.CookiesNamed(a.route.Cookie) {
		hash = sha256.Sum256([]byte(c.Value))
		if a.allows(hash, now) {
			return hash, true
		}
	}
	return [sha256.Size]byte{}, false
}

// cutRevoked ends the requests of browsers that may not use the interface any more.
func (a *webApp) cutRevoked(now time.Time) {
	a.place.mu.Lock()
	var gone []*webFlow
	for f := range a.place.flows {
		if !a.allows(f.grant, now) {
			gone = append(gone, f)
		}
	}
	a.place.mu.Unlock()
	for _, f := range gone {
		f.cut()
	}
}

// sweep ends sessions whose time is over, and closes connections that were idle for long.
func (t *WebTable) sweep(now time.Time) {
	for _, app := range t.index.Load().byID {
		app.cutRevoked(t.now())
		app.place.sweep(now)
	}
}

// cutAll ends all requests.
func (t *WebTable) cutAll() {
	for _, app := range t.index.Load().byID {
		app.place.close()
	}
}

// errShut tells that the interface has gone while a request was on its way to it.
var errShut = errors.New("the interface was withdrawn")

// Limits of what one interface has to take at a time.
type webLimits struct{ requests, sockets int }

// enter registers a request. leave must be called when it has ended.
func (p *webPlace) enter(f *webFlow, l webLimits) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return nil, errShut
	}
	sockets := 0
	for o := range p.flows {
		if o.socket {
			sockets++
		}
	}
	if len(p.flows) >= l.requests || f.socket && sockets >= l.sockets {
		return nil, errWebBusy
	}
	if p.flows == nil {
		p.flows = map[*webFlow]struct{}{}
	}
	p.flows[f] = struct{}{}
	return func() {
		p.mu.Lock()
		delete(p.flows, f)
		p.mu.Unlock()
	}, nil
}

// close ends all requests and lets no new one in.
func (p *webPlace) close() {
	p.mu.Lock()
	p.shut = true
	open := slices.Collect(maps.Keys(p.flows))
	p.mu.Unlock()
	for _, f := range open {
		f.cut()
	}
	p.retire()
}

// Why an interface cannot be reached.
var (
	errNotRunning = errors.New("the job does not run")
	errForeign    = errors.New("the port belongs to somebody else")
)

// webDialTimeout bounds a connection to a compute node. One lost packet costs a second.
const webDialTimeout = 4 * time.Second

func (t *WebTable) newPlace(r WebRoute) *webPlace {
	p := new(webPlace)
	p.dialTimeout = webDialTimeout
	address := net.JoinHostPort(r.Address, strconv.Itoa(r.Port))
	p.dial = func(ctx context.Context) (net.Conn, error) {
		if r.Address == "" || r.Port == 0 {
			return nil, errNotRunning
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		if err := t.checkOwner(c, r.UID); err != nil {
			c.Close()
			return nil, fmt.Errorf("%w: %w", errForeign, err)
		}
		if !r.TLS {
			return c, nil
		}
		// The certificate says nothing here: it is the user's own, made for this job (contract 21 section 5.3).
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // see above
		if err := secure.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		return &tlsConn{secure}, nil
	}
	return p
}

// checkOwner asks the kernel, if the other end is on this machine, whether the listener is the job's: another user of
// the node may have taken the port first (contract 21 section 8.12). Kernels of other machines cannot be asked.
func (t *WebTable) checkOwner(c net.Conn, uid ident.UID) error {
	remote, ok1 := c.RemoteAddr().(*net.TCPAddr)
	local, ok2 := c.LocalAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return errors.New("not a TCP connection")
	}
	if t.check == nil || !onThisMachine(remote.AddrPort().Addr().Unmap(), local.AddrPort().Addr().Unmap()) {
		return nil
	}
	return t.check(netip.AddrPortFrom(remote.AddrPort().Addr().Unmap(), remote.AddrPort().Port()), uid)
}

// onThisMachine tells whether the other end of a connection is on this machine.
func onThisMachine(remote, local netip.Addr) bool {
	if remote.IsLoopback() || remote == local {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true // then the check decides, which knows sockets of this machine only
	}
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == remote {
				return true
			}
		}
	}
	return false
}

// tlsConn gives access to the descriptor below TLS.
type tlsConn struct{ *tls.Conn }

// SyscallConn implements [syscall.Conn].
func (c *tlsConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.NetConn().(syscall.Conn)
	if !ok {
		return nil, errors.New("the connection below TLS has no descriptor")
	}
	return sc.SyscallConn()
}
