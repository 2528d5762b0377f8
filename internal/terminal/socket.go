package terminal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/textstream"
	"ucloud-im/internal/websock"
)

const (
	// firstBytes bounds the first message, and textBytes a later one: what a user pastes is one.
	firstBytes = 16 << 10
	textBytes  = 4 << 20
	// initPatience is how long the first message may take.
	initPatience = 30 * time.Second
	// beginPatience is how long it may take until the shell is there.
	beginPatience = 30 * time.Second
	// writePatience is how long the browser may take to accept a message.
	writePatience = 30 * time.Second
	// pingEvery keeps the connection alive, and notices a browser that has gone.
	pingEvery = 30 * time.Second
	// maxSockets bounds the connections of one instance, with those that have said nothing yet.
	maxSockets = 100
	// maxID bounds ids in frames.
	maxID = 256
)

func (s *Service) serve(w http.ResponseWriter, c *fileserver.Call) error {
	set := s.set.Load()
	if _, err := set.links.Origin(c.Request); err != nil {
		return err
	}
	if !websock.IsUpgrade(c.Request) {
		return websock.ErrNotUpgrade()
	}
	if !set.Enabled {
		return errDisabled()
	}
	if s.sockets.Add(1) > maxSockets {
		s.sockets.Add(-1)
		return failure.New(failure.TooMany, "Too many terminals at a time")
	}
	defer s.sockets.Add(-1)
	ws, err := websock.Accept(w, c.Request, websock.Options{ReadLimit: firstBytes, WriteTimeout: writePatience})
	if err != nil {
		c.Log().Debug("upgrade failed", "error", err)
		return nil // it has been answered
	}
	defer ws.CloseNow() //nolint:errcheck // it may be closed
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel()
	stop := context.AfterFunc(s.lives.Now(), cancel)
	defer stop()
	code, reason := s.converse(ctx, set, ws, c.Log())
	if code != 0 {
		ws.Close(code, reason) //nolint:errcheck // nobody else to tell
	}
	return nil
}

// request is a message of the browser (contract 21 section 4.2).
type request struct {
	StreamID string                   `json:"streamId"`
	Payload  providerapi.ShellRequest `json:"payload"`
}

// The types of requests.
const (
	typeInitialize = "initialize"
	typeInput      = "input"
	typeResize     = "resize"
)

func parseRequest(data []byte) (request, error) {
	var r request
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("decode: %w", err)
	}
	if len(r.StreamID) > maxID || len(r.Payload.SessionIdentifier) > maxID {
		return r, errors.New("an id is too long")
	}
	switch r.Payload.Type {
	case typeInitialize, typeInput, typeResize:
		return r, nil
	}
	return r, fmt.Errorf("type %.40q", r.Payload.Type)
}

// appendReply appends a message to the browser; kind is plain.
func appendReply(b []byte, stream, kind string, quoted []byte) []byte {
	b = append(b, `{"type":"message","payload":{"type":"`...)
	b = append(append(b, kind...), '"')
	if quoted != nil {
		b = append(append(b, `,"data":`...), quoted...)
	}
	b = append(b, `},"streamId":`...)
	return append(textstream.AppendString(b, stream), '}')
}

// converse serves the socket and gives how it is to be closed; zero: it is closed.
func (s *Service) converse(ctx context.Context, set *config, ws *websock.Conn, log *slog.Logger) (websocket.StatusCode, string) {
	first, cancel := context.WithTimeout(ctx, initPatience)
	data, err := ws.ReadText(first)
	cancel()
	if err != nil {
		log.Debug("nothing came on the socket of a terminal", "error", err)
		return websocket.StatusPolicyViolation, "a request is expected"
	}
	req, err := parseRequest(data)
	if err != nil || req.Payload.Type != typeInitialize {
		log.Debug("a terminal is refused", "error", err)
		return websocket.StatusPolicyViolation, "the request is not valid"
	}
	shell, err := s.begin(ctx, set, req.Payload.SessionIdentifier, sizeOf(req.Payload.Cols, req.Payload.Rows))
	if err != nil {
		log.Info("a terminal cannot begin", "error", err)
		return websocket.StatusPolicyViolation, reason(err)
	}
	defer shell.Close() //nolint:errcheck // the shell stays for a while
	ws.SetReadLimit(textBytes)
	if ws.Send(ctx, appendReply(nil, req.StreamID, typeInitialize, nil)) != nil {
		return 0, ""
	}
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	defer shell.Close() //nolint:errcheck // ends the output
	defer cancel()
	ended := make(chan struct{})
	all.Go(func() { ws.KeepAlive(ctx, pingEvery) })
	all.Go(func() {
		if s.output(ctx, ws, shell, req.StreamID) {
			close(ended)
			// The browser waits for the end of the connection and nothing else (contract 21 section 8 point 11).
			ws.Close(websocket.StatusNormalClosure, "the shell has ended") //nolint:errcheck // nobody else to tell
			return
		}
		if ctx.Err() == nil {
			ws.CloseNow() //nolint:errcheck // it is to end
		}
	})
	code, why := s.input(ctx, ws, shell)
	select {
	case <-ended:
		return 0, ""
	default:
		return code, why
	}
}

// reason is what a browser may be told in a closing frame, which has room for 123 bytes.
func reason(err error) string {
	why := failure.Why(err)
	if len(why) > 100 {
		return "the terminal cannot be opened"
	}
	return why
}

// output sends what the shell writes; true: until it has ended.
func (s *Service) output(ctx context.Context, ws *websock.Conn, shell net.Conn, stream string) bool {
	var text textstream.Decoder
	in := bufio.NewReaderSize(shell, maxFrame+headBytes)
	buf := make([]byte, maxFrame)
	var quoted, frame []byte
	for {
		kind, p, err := readFrame(in, buf)
		switch {
		case err != nil:
			// Without a word: the holder was killed, and the shell with it. Or it is us who close.
			return ctx.Err() == nil && !errors.Is(err, net.ErrClosed) && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded))
		case kind == kindEnd:
			if text.Held() > 0 {
				ws.Send(ctx, appendReply(frame[:0], stream, "data", text.AppendRest(quoted[:0]))) //nolint:errcheck // it ends
			}
			return true
		case kind != kindData:
			continue
		}
		if quoted = text.AppendQuoted(quoted[:0], p); len(quoted) == 2 {
			continue // all of it is held back
		}
		frame = appendReply(frame[:0], stream, "data", quoted)
		if ws.Send(ctx, frame) != nil {
			return false
		}
	}
}

// input takes what the browser sends until the connection ends, and gives how it is to be closed.
func (s *Service) input(ctx context.Context, ws *websock.Conn, shell net.Conn) (websocket.StatusCode, string) {
	var frame []byte
	for {
		data, err := ws.ReadText(ctx)
		if err != nil {
			if errors.Is(err, websock.ErrText) {
				return websocket.StatusUnsupportedData, "text is expected"
			}
			return 0, ""
		}
		req, err := parseRequest(data)
		if err != nil {
			return websocket.StatusPolicyViolation, "the request is not valid"
		}
		switch req.Payload.Type {
		case typeInput:
			for p := range slices.Chunk([]byte(req.Payload.Data), maxFrame) {
				if frame, err = tell(shell, frame, kindInput, p); err != nil {
					return 0, ""
				}
			}
		case typeResize:
			z := sizeOf(req.Payload.Cols, req.Payload.Rows)
			if frame, err = tell(shell, frame, kindResize, z.append(nil)); err != nil {
				return 0, ""
			}
		}
		if ws.Send(ctx, appendReply(nil, req.StreamID, "ack", nil)) != nil {
			return 0, ""
		}
	}
}

// tellPatience is how long a holder may take to accept a frame. It always takes it soon, whatever its shell does.
const tellPatience = 4 * inputPatience

func tell(shell net.Conn, frame []byte, kind byte, p []byte) ([]byte, error) {
	shell.SetWriteDeadline(time.Now().Add(tellPatience)) //nolint:errcheck // a socket has deadlines
	frame = appendFrame(frame[:0], kind, p)
	_, err := shell.Write(frame)
	return frame, err
}

// begin turns an identifier into a shell: one that waits for its user, or a new one.
func (s *Service) begin(ctx context.Context, set *config, token string, z size) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, beginPatience)
	defer cancel()
	if token == "" {
		return nil, failure.New(failure.NotFound, "This terminal does not exist")
	}
	ses, err := s.o.Sessions.Consume(ctx, ipcapi.PurposeShell, token)
	if err != nil {
		return nil, err
	}
	var t ticket
	if err := json.Unmarshal(ses.Data, &t); err != nil || (t.Job == "") == (t.Path == "") {
		return nil, failure.Wrap(errors.Join(err, errors.New("the session is not one of a terminal")), failure.NotFound, "This terminal does not exist")
	}
	// Also for a shell that waits: the job may have ended, or may not be this user's any more.
	o, dir, err := s.orderFor(ctx, set, &t, z)
	if err != nil {
		return nil, err
	}
	if dir != nil {
		defer dir.Close() //nolint:errcheck // nothing was written
	}
	s.starts.Lock()
	defer s.starts.Unlock()
	all, err := s.holders.list(ctx)
	if err != nil {
		return nil, err
	}
	// The one that was left last first.
	slices.SortFunc(all, func(a, b found) int { return int(b.Left - a.Left) })
	for _, f := range all {
		if f.Key != o.Key || f.Attached {
			continue
		}
		if c, err := s.holders.attach(ctx, f.socket, z); err == nil {
			return c, nil
		}
	}
	if err := s.makeRoom(ctx, set, all); err != nil {
		return nil, err
	}
	name, err := s.holders.start(ctx, o, dir)
	if err != nil {
		return nil, failure.Wrap(err, failure.Invalid, "The shell does not start")
	}
	return s.holders.attach(ctx, name, z)
}

// makeRoom ends the shell that nobody has used for longest when there are too many. Those in use are left alone.
func (s *Service) makeRoom(ctx context.Context, set *config, all []found) error {
	for n := len(all); n >= set.Max; n-- {
		oldest := -1
		for i, f := range all {
			if !f.Attached && (oldest < 0 || f.Left < all[oldest].Left) {
				oldest = i
			}
		}
		if oldest < 0 {
			return failure.New(failure.TooMany, "You have %d terminals, which is as many as you may have", len(all))
		}
		if err := s.holders.end(ctx, all[oldest].socket); err != nil {
			s.log.Debug("a terminal cannot be ended", "error", err)
		}
		all = slices.Delete(all, oldest, oldest+1)
	}
	return nil
}
