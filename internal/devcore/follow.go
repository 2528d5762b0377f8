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

// followPoll is how often Core looks for changes of a job that is followed.
const followPoll = 500 * time.Millisecond

// followUpdate is a message to who follows a job (recording 10).
type followUpdate struct {
	Updates    providerapi.List[providerapi.JobUpdate] `json:"updates"`
	Log        providerapi.List[logPiece]              `json:"log"`
	NewStatus  *fullStatus                             `json:"newStatus"`
	InitialJob *fullJob                                `json:"initialJob"`
}

type logPiece struct {
	Rank    int     `json:"rank"`
	Stdout  *string `json:"stdout"`
	Stderr  *string `json:"stderr"`
	Channel *string `json:"channel"`
}

// serveFollow is GET /api/jobs with an upgrade. What the provider sends is passed on until one of the two closes; when the
// provider does, the whole session ends (contract 21 section 3).
func (c *Core) serveFollow(w http.ResponseWriter, r *http.Request) {
	user, req, who := openSocket[struct {
		ID string `json:"id"`
	}](c, w, r)
	if user == nil {
		return
	}
	defer user.CloseNow()
	j, err := c.userJob(req.Payload.ID, who, providerapi.PermissionRead)
	if req.Call != "jobs.follow" || err != nil {
		endSocket(r.Context(), user, req.StreamID, &CallError{StatusCode: http.StatusForbidden, Why: "Write permission is required"})
		return
	}
	ctx, cancel := context.WithCancel(user.CloseRead(c.WithIntents(r.Context(), req.SignedIntent))) // ends when the end user leaves
	defer cancel()
	say := func(m followUpdate) error {
		return send(ctx, user, socketMessage{Type: "message", StreamID: req.StreamID, Payload: m})
	}
	if say(followUpdate{InitialJob: &j}) != nil {
		return
	}
	pieces := make(chan logPiece)
	if supports(j, "logs", c.backendOf(j)) {
		provider, err := c.openFollow(ctx, who, j)
		if err != nil {
			c.log.Warn("follow at the provider", "job", j.ID, "error", err)
			_ = user.Close(websocket.StatusNormalClosure, "")
			return
		}
		defer provider.CloseNow()
		go func() { // ends with the connection or the session
			defer cancel()
			c.readLog(ctx, provider, pieces)
		}()
	}
	tick := time.NewTicker(followPoll)
	defer tick.Stop()
	seen, state := len(j.Updates), j.Status.State
	for {
		select {
		case <-ctx.Done():
			_ = user.Close(websocket.StatusNormalClosure, "")
			return
		case p := <-pieces:
			if say(followUpdate{Log: providerapi.List[logPiece]{p}}) != nil {
				return
			}
		case <-tick.C:
			now, err := c.userJob(j.ID, who, providerapi.PermissionRead)
			if err != nil {
				continue
			}
			var m followUpdate
			if len(now.Updates) > seen {
				m.Updates = now.Updates[seen:]
			}
			if now.Status.State != state {
				m.NewStatus = &now.Status
			}
			if m.Updates == nil && m.NewStatus == nil {
				continue
			}
			seen, state = len(now.Updates), now.Status.State
			if say(m) != nil {
				return
			}
		}
	}
}

// readLog passes on what the provider sends until the connection ends.
func (c *Core) readLog(ctx context.Context, provider *websocket.Conn, pieces chan<- logPiece) {
	for {
		kind, data, err := provider.Read(ctx)
		if err != nil {
			return
		}
		var m struct {
			StreamID string          `json:"streamId"`
			Ping     json.RawMessage `json:"ping"`
			Payload  logPiece        `json:"payload"`
		}
		switch {
		case kind != websocket.MessageText || json.Unmarshal(data, &m) != nil:
			c.violate("jobs.follow", "a message that is no piece of a log", false)
			continue
		case m.StreamID != ignoredStream && m.Ping == nil:
			c.violate("jobs.follow", "an answer on another stream than the request", false)
		}
		select {
		case pieces <- m.Payload: // a keep-alive counts as a piece without text
		case <-ctx.Done():
			return
		}
	}
}

// ignoredStream is the stream id that Core uses towards providers.
const ignoredStream = "ignored"

// openFollow asks the provider for the log of a job.
func (c *Core) openFollow(ctx context.Context, who ident.UCloudUser, j fullJob) (*websocket.Conn, error) {
	return c.begin(ctx, who, "/ucloud/jobs.provider."+c.opt.Provider+"/websocket", socketRequest[map[string]any]{
		Call: "jobs.provider." + c.opt.Provider + ".follow", StreamID: ignoredStream, Payload: map[string]any{"type": "init", "job": j},
		SignedIntent: signed(ctx),
	})
}
