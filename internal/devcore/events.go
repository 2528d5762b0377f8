package devcore

import (
	"context"
	"net/http"
	"sort"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// eventSession is one connection of the event stream. Its reference tables belong to Core.mu.
type eventSession struct {
	out        chan []byte
	retired    bool
	users      map[ident.UCloudUser]uint32
	projects   map[ident.ProjectID]uint32
	categories map[string]uint32
}

// queueLength is how many messages Core keeps for a slow session before it drops them (contract 31 section 4).
const queueLength = 128

// serveEvents is GET /api/accounting/notifications. On any problem the connection is closed without a word.
func (c *Core) serveEvents(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()

	_, message, err := conn.Read(ctx)
	if err != nil {
		return
	}
	auth, err := parseAuth(message)
	if err != nil {
		c.violate("accounting.notifications", "the first frame is no auth record", false)
		return
	}
	if !c.isProvider(auth.token) {
		if auth.token == "" {
			c.violate("accounting.notifications", "the auth record has an empty token", false)
		}
		return
	}
	s := &eventSession{
		out: make(chan []byte, queueLength), retired: auth.flags&flagIncludeRetired != 0,
		users: map[ident.UCloudUser]uint32{}, projects: map[ident.ProjectID]uint32{}, categories: map[string]uint32{},
	}
	c.mu.Lock()
	c.sessions[s] = struct{}{}
	replay := c.replayLocked(s, time.UnixMilli(auth.replayFrom))
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.sessions, s)
		c.mu.Unlock()
	}()

	go c.readReplayRequests(ctx, cancel, conn, s)
	for _, m := range replay {
		if conn.Write(ctx, websocket.MessageBinary, m) != nil {
			return
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case m, open := <-s.out:
			if !open || conn.Write(ctx, websocket.MessageBinary, m) != nil {
				return
			}
		}
	}
}

func (c *Core) readReplayRequests(ctx context.Context, cancel context.CancelFunc, conn *websocket.Conn, s *eventSession) {
	defer cancel()
	for {
		_, m, err := conn.Read(ctx)
		if err != nil {
			return
		}
		name, err := parseReplayUser(m)
		if err != nil {
			c.violate("accounting.notifications", "a frame after the first is no replay record", false)
			return
		}
		c.mu.Lock()
		if _, open := c.sessions[s]; open { // otherwise Disconnect has closed the queue
			for _, out := range c.replayUserLocked(s, name) {
				s.push(out)
			}
		}
		c.mu.Unlock()
	}
}

// push drops the message when the session is slow; only a replay repairs that.
func (s *eventSession) push(m []byte) {
	select {
	case s.out <- m:
	default:
	}
}

// Disconnect ends all event sessions, as a restart of Core would.
func (c *Core) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sessions {
		close(s.out)
		delete(c.sessions, s)
	}
}

// EventSessions is the number of open event streams.
func (c *Core) EventSessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// walletMessage defines the references that the session does not know yet, then the wallet.
func (c *Core) walletMessageLocked(s *eventSession, key walletKey) []byte {
	var m []byte
	var ref uint32
	if key.owner.IsProject() {
		r, known := s.projects[key.owner.Project]
		if !known {
			r = uint32(len(s.projects))
			s.projects[key.owner.Project] = r
			m = appendProject(m, r, c.projects[key.owner.Project].doc)
		}
		ref = r
	} else {
		r, known := s.users[key.owner.User]
		if !known {
			r = uint32(len(s.users))
			s.users[key.owner.User] = r
			m = appendUser(m, r, key.owner.User)
		}
		ref = r
	}
	cat, known := s.categories[key.category]
	if !known {
		cat = uint32(len(s.categories))
		s.categories[key.category] = cat
		m = appendCategory(m, cat, c.categories[key.category].doc)
	}
	return appendWallet(m, ref, cat, *c.wallets[key], key.owner.IsProject(), s.retired)
}

func (c *Core) projectMessageLocked(s *eventSession, id ident.ProjectID) []byte {
	ref, known := s.projects[id]
	if !known {
		ref = uint32(len(s.projects))
		s.projects[id] = ref
	}
	return appendProject(nil, ref, c.projects[id].doc)
}

// replayLocked is what a new session gets: wallets changed since from, then projects changed since from that have an
// allocation at the provider.
func (c *Core) replayLocked(s *eventSession, from time.Time) [][]byte {
	var out [][]byte
	for _, key := range c.walletKeysLocked() {
		if !c.wallets[key].updated.Before(from) {
			out = append(out, c.walletMessageLocked(s, key))
		}
	}
	for _, id := range c.projectIDsLocked() {
		if c.projects[id].doc.ModifiedAt > providerapi.MillisOf(from) && c.hasAllocationLocked(id) {
			out = append(out, c.projectMessageLocked(s, id))
		}
	}
	return out
}

// replayUserLocked: the user's projects, then all wallets of them and of the user.
func (c *Core) replayUserLocked(s *eventSession, name ident.UCloudUser) [][]byte {
	var out [][]byte
	member := map[ident.ProjectID]bool{}
	for _, id := range c.projectIDsLocked() {
		for _, m := range c.projects[id].doc.Status.Members {
			if m.Username == name && c.hasAllocationLocked(id) {
				member[id] = true
				out = append(out, c.projectMessageLocked(s, id))
			}
		}
	}
	for _, key := range c.walletKeysLocked() {
		if key.owner.User == name || member[key.owner.Project] {
			out = append(out, c.walletMessageLocked(s, key))
		}
	}
	return out
}

func (c *Core) hasAllocationLocked(id ident.ProjectID) bool {
	for key := range c.wallets {
		if key.owner.Project == id {
			return true
		}
	}
	return false
}

func (c *Core) announceWalletLocked(key walletKey) {
	if c.categories[key.category].doc.FreeToUse {
		return // nothing is sent live about these
	}
	for s := range c.sessions {
		s.push(c.walletMessageLocked(s, key))
	}
}

func (c *Core) announceProjectLocked(id ident.ProjectID) {
	if !c.hasAllocationLocked(id) {
		return
	}
	for s := range c.sessions {
		s.push(c.projectMessageLocked(s, id))
	}
}

func (c *Core) walletKeysLocked() []walletKey {
	keys := make([]walletKey, 0, len(c.wallets))
	for k := range c.wallets {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		return a.owner.Reference()+"\x00"+a.category < b.owner.Reference()+"\x00"+b.category
	})
	return keys
}

func (c *Core) projectIDsLocked() []ident.ProjectID {
	ids := make([]ident.ProjectID, 0, len(c.projects))
	for id := range c.projects {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}
