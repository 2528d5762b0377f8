package devcore

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ident"
)

// A Core in wrong hands: it has everything that Core has, and says to the provider whatever it likes, in the name of whom
// it likes ([Options.TakeOver]). What it does not have are the private keys of users. Everything that passes it by it
// can keep, alter, hold back and send again.

// ErrNotTakenOver is given where a Core that is not in wrong hands is asked to lie.
var ErrNotTakenOver = errors.New("devcore: this Core has not been taken over")

// Captured is a call that a user really made, as it went to the provider.
type Captured struct {
	ID      int              `json:"id"` // from 1
	At      time.Time        `json:"at"`
	User    ident.UCloudUser `json:"user"`
	Method  string           `json:"method"` // GET and Socket for a socket
	Path    string           `json:"path"`
	Body    string           `json:"body"` // the first message of a socket
	Intents []string         `json:"intents"`
	Socket  bool             `json:"socket"`
}

const maxCaptured = 1000

func (c *Core) capture(call Captured) {
	if !c.opt.TakeOver || call.User == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.capturedSoFar++
	call.ID, call.At = c.capturedSoFar, time.Now()
	c.captured = append(c.captured, call)
	if len(c.captured) > maxCaptured {
		c.captured = slices.Delete(c.captured, 0, len(c.captured)-maxCaptured)
	}
}

// Captured gives the newest calls of users, the oldest first.
func (c *Core) Captured() []Captured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.captured)
}

// Forgery is a request to the provider that no user has asked for. Core's own token is always valid.
type Forgery struct {
	Method  string           `json:"method"`
	Path    string           `json:"path"` // with the query, if any
	User    ident.UCloudUser `json:"user"` // in whose name; empty: in nobody's
	Body    string           `json:"body"`
	Intents []string         `json:"intents"` // each becomes a header of its own
	Header  http.Header      `json:"header"`  // more headers, or other ones than Core would send

	// Replay is the id of a captured call, whose members stand in for those that are empty here. NoIntents leaves out the
	// intents of that call.
	Replay    int  `json:"replay"`
	NoIntents bool `json:"noIntents"`
}

// Forged is what the provider answers.
type Forged struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
}

func (c *Core) fill(f Forgery) (Forgery, error) {
	if f.Replay == 0 {
		return f, nil
	}
	for _, was := range c.Captured() {
		if was.ID != f.Replay {
			continue
		}
		if f.Method == "" {
			f.Method = was.Method
		}
		if f.Path == "" {
			f.Path = was.Path
		}
		if f.User == "" {
			f.User = was.User
		}
		if f.Body == "" {
			f.Body = was.Body
		}
		if f.Intents == nil && !f.NoIntents {
			f.Intents = was.Intents
		}
		return f, nil
	}
	return f, errors.New("there is no captured call with this id")
}

// Forge sends a forged request, once.
func (c *Core) Forge(ctx context.Context, f Forgery) (Forged, error) {
	if !c.opt.TakeOver {
		return Forged{}, ErrNotTakenOver
	}
	f, err := c.fill(f)
	if err != nil {
		return Forged{}, err
	}
	h := http.Header{}
	addIntents(h, f.Intents)
	for name, values := range f.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	status, data, err := c.exchange(ctx, f.User, f.Method, f.Path, []byte(f.Body), h)
	return Forged{status, string(data)}, err
}

// ForgedSocket is what came of a forged socket.
type ForgedSocket struct {
	Messages []string             // what the provider sent
	Status   websocket.StatusCode // with which it closed the socket; 0 while it is open
}

// ForgeSocket opens a socket at the provider in a user's name and sends first messages as they are. It reads until the
// provider closes the socket, enough says that it has seen what it needs, or ctx ends.
func (c *Core) ForgeSocket(ctx context.Context, who ident.UCloudUser, path string, first []string, enough func(message string) bool) (ForgedSocket, error) {
	if !c.opt.TakeOver {
		return ForgedSocket{}, ErrNotTakenOver
	}
	conn, err := c.dial(ctx, who, path)
	if err != nil {
		return ForgedSocket{}, err
	}
	defer conn.CloseNow()
	for _, text := range first {
		if err := writeFrames(ctx, conn, []byte(text)); err != nil {
			return ForgedSocket{}, err
		}
	}
	var out ForgedSocket
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			out.Status = max(0, websocket.CloseStatus(err)) // -1: not closed in order
			return out, ctx.Err()
		}
		out.Messages = append(out.Messages, string(data))
		if enough != nil && enough(string(data)) {
			return out, nil
		}
	}
}

// dial opens a socket at the provider as Core does: the user in the query, the token as a header.
func (c *Core) dial(ctx context.Context, who ident.UCloudUser, path string) (*websocket.Conn, error) {
	target := socketURL(c.opt.ProviderURL) + path
	if !strings.Contains(path, "?") {
		target += "?usernameHint=" + userHint(who)
	}
	conn, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: c.opt.Transport},
		HTTPHeader: http.Header{"Authorization": {"Bearer " + c.ServiceToken()}},
	})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(maxSocketMessage)
	return conn, nil
}

// begin opens a socket at the provider and sends the first message.
func (c *Core) begin(ctx context.Context, who ident.UCloudUser, path string, first any) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.CallTimeout)
	defer cancel()
	data, err := json.Marshal(first)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, who, path)
	if err != nil {
		return nil, err
	}
	c.capture(Captured{User: who, Method: http.MethodGet, Path: path, Body: string(data), Intents: intentsOf(ctx), Socket: true})
	if err := writeFrames(ctx, conn, data); err != nil {
		conn.CloseNow() //nolint:errcheck // the first error matters
		return nil, err
	}
	return conn, nil
}

func (c *Core) handleTakeOver(mux *http.ServeMux) {
	if !c.opt.TakeOver {
		return
	}
	mux.HandleFunc("GET /api/dev/captured", c.development(func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, c.Captured())
	}))
	mux.HandleFunc("POST /api/dev/forge", c.development(func(w http.ResponseWriter, r *http.Request) {
		f, ok := decode[Forgery](w, r)
		if !ok {
			return
		}
		answer, err := c.Forge(r.Context(), f)
		if err != nil {
			errorBody(w, http.StatusBadRequest, err.Error())
			return
		}
		respond(w, http.StatusOK, answer)
	}))
}
