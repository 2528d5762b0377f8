package gateway

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// Route is how one user's instance is reached: always 127.0.0.1:Port.
type Route struct {
	User ident.UCloudUser
	UID  ident.UID
	Port int
	// Key is the key of the hop tokens of this route alone. It must not be logged; [Route.LogValue] leaves it out.
	Key hoptoken.Key
	// ID identifies the route, Generation the process behind it.
	ID, Generation uint64
}

// LogValue implements [slog.LogValuer] without the key.
func (r Route) LogValue() slog.Value {
	return slog.GroupValue(slog.String("user", string(r.User)), slog.Any("uid", r.UID), slog.Int("port", r.Port),
		slog.Uint64("id", r.ID), slog.Uint64("generation", r.Generation))
}

// Update changes a [Table].
type Update struct {
	Full   bool // Put is the whole table
	Put    []Route
	Remove []ident.UCloudUser
}

// instance is an entry of the table: a route and the connections of its generation.
type instance struct {
	route Route
	upstream
	streams *streams // upgraded connections of the route, shared by its generations
}

// Table is the gateway's table of routes. Reading takes no lock: the map is replaced as a whole by each update, which
// costs about 0.1 ms for some thousand routes and is rare in comparison. All methods are safe for concurrent use.
type Table struct {
	log    *slog.Logger
	routes atomic.Pointer[map[ident.UCloudUser]*instance]
	check  func(port int) error // set by New before the first request

	mu      sync.Mutex                  // serialises updates; held while connections of old generations are retired
	removed map[ident.UCloudUser]uint64 // the last removed route of users without one, since the last full update
	changed chan struct{}
	watcher func(ident.UCloudUser, *instance) // told about each new entry; set by New
}

// NewTable makes an empty table.
func NewTable(log *slog.Logger) *Table {
	t := &Table{log: log.With("part", "routes"), changed: make(chan struct{}, 1), removed: make(map[ident.UCloudUser]uint64)}
	t.routes.Store(&map[ident.UCloudUser]*instance{})
	return t
}

// lookup gives the entry of a user, nil if there is none.
func (t *Table) lookup(user ident.UCloudUser) *instance { return (*t.routes.Load())[user] }

// Len is the number of routes.
func (t *Table) Len() int { return len(*t.routes.Load()) }

// Routes gives a copy of the table, ordered by user. It contains the keys.
func (t *Table) Routes() []Route {
	m := *t.routes.Load()
	out := make([]Route, 0, len(m))
	for _, user := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[user].route)
	}
	return out
}

// Changed receives a value some time after the table has changed; several changes may give one value.
func (t *Table) Changed() <-chan struct{} { return t.changed }

// Apply changes the table. When it returns, no request can be written any more to a connection that was opened for a
// route, or a generation of a route, that the update replaced or removed; upgraded connections of removed routes are
// closed. Then, and only then, may the update be acknowledged to IM/Server.
func (t *Table) Apply(u Update) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.applyLocked(u)
}

// adopt adds a route that came as the answer to a wake and gives the user's entry. The answer can be overtaken by
// updates: an older route or generation than the one in the table, and a route that was removed, is ignored.
func (t *Table) adopt(r Route) *instance {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.lookup(r.User)
	newer := in == nil || in.route.ID < r.ID || in.route.ID == r.ID && in.route.Generation < r.Generation
	if gone, ok := t.removed[r.User]; newer && (!ok || gone < r.ID) {
		t.applyLocked(Update{Put: []Route{r}})
	}
	return t.lookup(r.User)
}

func (t *Table) applyLocked(u Update) {
	old := *t.routes.Load()
	next := make(map[ident.UCloudUser]*instance, len(old)+len(u.Put))
	if u.Full {
		clear(t.removed)
	} else {
		maps.Copy(next, old)
	}
	for _, user := range u.Remove {
		if in := next[user]; in != nil {
			t.removed[user] = in.route.ID
		}
		delete(next, user)
	}
	var added []*instance
	for _, r := range u.Put {
		delete(t.removed, r.User)
		before := old[r.User]
		if before != nil && before.route == r {
			next[r.User] = before
			continue
		}
		in := t.newInstance(r)
		if before != nil && before.route.ID == r.ID {
			in.streams = before.streams
		}
		next[r.User] = in
		added = append(added, in)
	}
	t.routes.Store(&next)

	// The new map is visible; what is retired below cannot be found any more, and who has found it before is refused by
	// upstream.begin.
	var retiring sync.WaitGroup
	for user, before := range old {
		after := next[user]
		if after == before {
			continue
		}
		retiring.Go(before.retire)
		if after == nil || after.streams != before.streams {
			before.streams.closeAll()
		}
	}
	retiring.Wait()
	if t.watcher != nil {
		for _, in := range added {
			t.watcher(in.route.User, in)
		}
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
	t.log.Debug("routes changed", "full", u.Full, "put", len(u.Put), "removed", len(u.Remove), "routes", len(next))
}

func (t *Table) newInstance(r Route) *instance {
	in := &instance{route: r, streams: new(streams)}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port))
	in.dial = func(ctx context.Context) (net.Conn, error) {
		// Exactly this address: 127.0.0.2 and ::1 with the same port can be bound by anybody (experiments section 3).
		// Keep-alive probes have no use on loopback and cost four system calls for each connection.
		d := net.Dialer{KeepAlive: -1}
		c, err := d.DialContext(ctx, "tcp4", address)
		if err != nil {
			return nil, err
		}
		if t.check != nil {
			if err := t.check(r.Port); err != nil {
				c.Close()
				return nil, err
			}
		}
		return c, nil
	}
	return in
}

// sweep closes connections to instances that were idle for long.
func (t *Table) sweep(now time.Time) {
	for _, in := range *t.routes.Load() {
		in.sweep(now)
	}
}

// streams are the upgraded connections of one route.
type streams struct {
	browser atomic.Int64 // requests without Core's token under way, upgraded ones included

	mu     sync.Mutex
	open   map[*upgraded]struct{}
	closed bool // the route is gone
}

// add registers a connection. It reports false, and registers nothing, when the route is gone.
func (s *streams) add(c *upgraded) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.open == nil {
		s.open = make(map[*upgraded]struct{})
	}
	s.open[c] = struct{}{}
	return true
}

func (s *streams) remove(c *upgraded) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *streams) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *streams) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}
