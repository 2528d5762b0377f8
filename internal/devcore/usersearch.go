package devcore

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

const (
	maxSocketMessage = 16 << 20
	socketFrame      = 4096 // Core sends longer messages in several frames
	firstMessageTime = 10 * time.Second
)

// socketRequest is the first message of an end user on a WebSocket of Core (contract 00 section 7).
type socketRequest[T any] struct {
	Call     string  `json:"call"`
	StreamID string  `json:"streamId"`
	Bearer   string  `json:"bearer"`
	Project  *string `json:"project"`
	Payload  T       `json:"payload"`

	SignedIntent string `json:"signedIntent,omitempty"`
}

type socketMessage struct {
	Type     string `json:"type"` // message or response
	StreamID string `json:"streamId"`
	Payload  any    `json:"payload"`
	Status   int    `json:"status,omitempty"`
}

// openSocket accepts an end user's WebSocket and reads who it is and what is asked for. It closes the connection
// itself when that is not acceptable, and gives nil.
func openSocket[T any](c *Core, w http.ResponseWriter, r *http.Request) (*websocket.Conn, socketRequest[T], ident.UCloudUser) {
	var req socketRequest[T]
	conn, err := websocket.Accept(w, r, nil) // refuses other origins
	if err != nil {
		return nil, req, ""
	}
	ctx, cancel := context.WithTimeout(r.Context(), firstMessageTime)
	defer cancel()
	_, data, err := conn.Read(ctx)
	if err == nil {
		err = json.Unmarshal(data, &req)
	}
	if err != nil {
		_ = conn.Close(websocket.StatusUnsupportedData, "the first message is no request")
		return nil, req, ""
	}
	c.mu.Lock()
	who := c.logins[req.Bearer]
	c.mu.Unlock()
	if who == "" {
		endSocket(ctx, conn, req.StreamID, &CallError{StatusCode: http.StatusForbidden, Why: "Forbidden"})
		return nil, req, ""
	}
	return conn, req, who
}

// endSocket tells an end user why there will be no stream.
func endSocket(ctx context.Context, conn *websocket.Conn, stream string, why *CallError) {
	_ = send(ctx, conn, socketMessage{Type: "response", StreamID: stream, Payload: why, Status: why.StatusCode})
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

func send(ctx context.Context, conn *websocket.Conn, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return conn.Write(ctx, websocket.MessageText, data)
}

type searchRequest struct {
	Query         string    `json:"query"`
	CurrentFolder *string   `json:"currentFolder"`
	Flags         fullFlags `json:"flags"`
}

type searchForward struct {
	Query    string                    `json:"query"`
	Owner    providerapi.ResourceOwner `json:"owner"`
	Flags    fullFlags                 `json:"flags"`
	Category struct {
		Name     string `json:"name"`
		Provider string `json:"provider"`
	} `json:"category"`
	CurrentFolder string `json:"currentFolder"`
}

// searchBatch is what the provider finds.
type searchBatch[File any] struct {
	Type  string                 `json:"type"` // result or end_of_results
	Batch providerapi.List[File] `json:"batch"`
}

// serveSearch is the streaming search: GET /api/files with an upgrade (recording 07 section 17). What the provider
// sends is passed on with Core's additions until one of the two closes. There is no repetition after 449, and no
// message about a provider that cannot be reached: the stream just ends.
func (c *Core) serveSearch(w http.ResponseWriter, r *http.Request) {
	user, req, who := openSocket[searchRequest](c, w, r)
	if user == nil {
		return
	}
	defer user.CloseNow()
	refuse := func(status int, why string) {
		endSocket(r.Context(), user, req.StreamID, &CallError{StatusCode: status, Why: why})
	}
	switch {
	case req.Call != "files.streamingSearch":
		refuse(http.StatusBadRequest, "Unknown call")
		return
	case req.Payload.Query == "" || req.Payload.CurrentFolder == nil:
		refuse(http.StatusBadRequest, "A query and a folder are required")
		return
	}
	drive, err := c.driveOf(*req.Payload.CurrentFolder, who, providerapi.PermissionRead)
	switch {
	case err != nil:
		refuse(http.StatusForbidden, err.(*CallError).Why)
		return
	case !has(drive, featureStreamingSearch):
		refuse(http.StatusNotFound, "This drive cannot be searched")
		return
	}
	ctx := user.CloseRead(c.WithIntents(r.Context(), req.SignedIntent)) // ends when the end user stops the search
	provider, err := c.openSearch(ctx, who, drive, req.Payload)
	if err != nil {
		c.log.Warn("search at the provider", "error", err)
		_ = user.Close(websocket.StatusNormalClosure, "")
		return
	}
	defer provider.CloseNow()
	for {
		kind, data, err := provider.Read(ctx)
		if err != nil {
			break
		}
		var m struct {
			Type    string                        `json:"type"`
			Status  int                           `json:"status"`
			Payload searchBatch[providerapi.File] `json:"payload"`
		}
		if kind != websocket.MessageText || json.Unmarshal(data, &m) != nil {
			c.violate("files.streamingSearch", "a message that is no batch of results", false)
			continue
		}
		if c.opt.Signing && m.Type == "response" && m.Status > 399 {
			// Today's Core does not look at the type. The browser has to hear that its signature was refused.
			refuse(m.Status, "The provider does not allow this search")
			break
		}
		err = send(ctx, user, socketMessage{
			Type: "message", StreamID: req.StreamID,
			Payload: searchBatch[userFile]{Type: m.Payload.Type, Batch: showAll(drive, m.Payload.Batch)},
		})
		if err != nil {
			break
		}
	}
	// A stopped search is closed towards the provider, which notices by that alone.
	_ = provider.Close(websocket.StatusNormalClosure, "")
	_ = user.Close(websocket.StatusNormalClosure, "")
}

// openSearch asks the provider for a search.
func (c *Core) openSearch(ctx context.Context, who ident.UCloudUser, d *providerapi.Drive, req searchRequest) (*websocket.Conn, error) {
	forward := searchForward{Query: req.Query, Owner: d.Owner, Flags: req.Flags, CurrentFolder: *req.CurrentFolder}
	forward.Category.Name, forward.Category.Provider = d.Specification.Product.Category, d.Specification.Product.Provider
	return c.begin(ctx, who, c.filesPath(""), socketRequest[searchForward]{
		Call: "files.provider." + c.opt.Provider + ".streamingSearch", StreamID: ignoredStream, Payload: forward, SignedIntent: signed(ctx),
	})
}

// writeFrames sends a message in frames of Core's size.
func writeFrames(ctx context.Context, conn *websocket.Conn, data []byte) error {
	if len(data) <= socketFrame {
		return conn.Write(ctx, websocket.MessageText, data)
	}
	w, err := conn.Writer(ctx, websocket.MessageText)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), socketFrame)
		if _, err := w.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return w.Close()
}
