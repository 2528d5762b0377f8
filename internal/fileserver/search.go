package fileserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/textstream"
	"ucloud-im/internal/websock"
)

const (
	// searchBody bounds the request of a search in bytes. A path may take 16 KiB in its escaped form.
	searchBody = 64 << 10
	// searchPatience is how long Core may take to send its request, which it does at once.
	searchPatience = 10 * time.Second
	// searchWrite is how long Core may take to accept a batch.
	searchWrite = 10 * time.Second
)

// search serves the streaming search (contract 13 section 3.1): one request, any number of batches, the end of results,
// and a normal closure. There is no way to report an error in the protocol, so a search that fails is closed without an
// end of results. Core ends a search by closing the connection.
func (s *server) search(w http.ResponseWriter, c *Call) error {
	if !websock.IsUpgrade(c.Request) {
		return errNoRoute
	}
	w.Header().Set(websock.HeaderNoBearer, "true") // older Cores repeat their token in messages otherwise
	ws, err := websock.Accept(w, c.Request, websock.Options{ReadLimit: searchBody})
	if err != nil {
		c.Log().Debug("upgrade failed", "error", err)
		return nil // it has been answered
	}
	defer ws.CloseNow() //nolint:errcheck // it may be closed
	code, reason := s.stream(c, ws)
	if code != 0 {
		ws.Close(code, reason) //nolint:errcheck // bounded by itself, and nobody else to tell
	}
	return nil
}

// stream does the search and gives how the connection is to be closed; zero: Core has closed it.
func (s *server) stream(c *Call, ws *websock.Conn) (websocket.StatusCode, string) {
	ctx, cancel := context.WithTimeout(c.Context(), searchPatience)
	kind, data, err := ws.Read(ctx)
	cancel()
	if err != nil {
		c.Log().Debug("no request on the socket of a search", "error", err)
		return 0, ""
	}
	if kind != websocket.MessageText {
		return websocket.StatusUnsupportedData, "text is expected"
	}
	m, req, err := parseSearch(s.provider, data)
	if err == nil {
		err = c.CheckFrame(c.Context(), m.Call, m.SignedIntent, m.Payload)
	}
	if err != nil {
		c.Log().Debug("search refused", "error", err)
		return websocket.StatusPolicyViolation, failure.Why(err)
	}
	// Reads control frames from now on. The context ends when Core closes, or sends something more.
	ctx = ws.CloseRead(c.Context())
	send := func(kind string, batch []providerapi.File) error {
		return s.sendBatch(ctx, ws, m.StreamID, kind, batch)
	}
	err = s.files.Search(ctx, &req, func(batch []providerapi.File) error { return send(providerapi.SearchResult, batch) })
	if err == nil {
		err = send(providerapi.SearchEnd, nil)
	}
	switch {
	case err == nil:
		return websocket.StatusNormalClosure, ""
	case ctx.Err() != nil:
		return 0, ""
	case errors.Is(err, files.ErrSearchReplaced):
		return websocket.StatusTryAgainLater, "too many searches at a time"
	case failure.Is(err, failure.Invalid):
		return websocket.StatusPolicyViolation, failure.Why(err)
	case errors.Is(err, context.Canceled):
		return websocket.StatusGoingAway, "the service ends"
	}
	c.Log().Info("search failed", "error", err)
	return websocket.StatusInternalError, "the search failed"
}

// parseSearch reads the first message on the socket.
func parseSearch(provider string, data []byte) (m providerapi.StreamRequest, req providerapi.FilesSearch, err error) {
	if err := json.Unmarshal(data, &m); err != nil {
		return m, req, failure.Wrap(err, failure.Invalid, "The request is not valid")
	}
	if m.Call != providerapi.SearchCall(provider) {
		return m, req, failure.Wrap(fmt.Errorf("call %.100q", m.Call), failure.Invalid, "The call is not known here")
	}
	if err := json.Unmarshal(m.Payload, &req); err != nil {
		return m, req, failure.Wrap(err, failure.Invalid, "The request is not valid")
	}
	if req.CurrentFolder == nil || *req.CurrentFolder == "" || req.Query == "" {
		return m, req, failure.New(failure.Invalid, "A query and a folder are required")
	}
	return m, req, nil
}

// sendBatch sends one answer.
func (s *server) sendBatch(ctx context.Context, ws *websock.Conn, stream, kind string, batch []providerapi.File) error {
	ctx, cancel := context.WithTimeout(ctx, searchWrite)
	defer cancel()
	return ws.Write(ctx, websocket.MessageText, appendAnswer(make([]byte, 0, 128+400*len(batch)), stream, kind, batch))
}

// appendAnswer appends an answer to a search as JSON.
func appendAnswer(b []byte, stream, kind string, batch []providerapi.File) []byte {
	b = append(b, `{"type":"message","streamId":`...)
	b = textstream.AppendString(b, stream)
	b = append(b, `,"payload":{"type":`...)
	b = textstream.AppendString(b, kind)
	b = append(b, `,"batch":[`...)
	for i := range batch {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFile(b, &batch[i])
	}
	return append(b, "]}}"...)
}
