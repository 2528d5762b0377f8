package joblogs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/textstream"
	"ucloud-im/internal/websock"
)

const (
	// initBytes bounds the first message: Core sends the whole job, with everything it knows about its application.
	initBytes = 4 << 20
	// initPatience is how long Core may take to send it, which it does at once.
	initPatience = 30 * time.Second
	// maxSockets bounds the followers of one instance.
	maxSockets = 100
	// DefaultReplay is how much of an old log is sent, in bytes, for all files together.
	DefaultReplay = 4 << 20
	// keepAlive is between two frames by which Core notices that its browser has left (contract 21 section 3.2 point 5).
	keepAlive = 30 * time.Second
	// patience is how long Core may take to accept a frame. It passes everything on to a browser, which may be slow.
	patience = 2 * time.Minute
)

// Options configure a [Service]. All are required, except Replay.
type Options struct {
	Provider string
	Jobs     Jobs
	Log      *slog.Logger
	Replay   int64 // bytes; 0 means DefaultReplay
}

// Service follows logs.
type Service struct {
	o     Options
	log   *slog.Logger
	watch watcher
	time  timing
	keep  time.Duration

	replay  atomic.Int64
	sockets atomic.Int64
	lives   websock.Lives
}

// New makes a Service.
func New(o Options) *Service {
	s := &Service{o: o, log: o.Log.With("part", "joblogs"), time: usual, keep: keepAlive}
	s.SetReplay(o.Replay)
	return s
}

// SetReplay changes how much of an old log is sent; 0 means DefaultReplay.
func (s *Service) SetReplay(n int64) {
	if n <= 0 {
		n = DefaultReplay
	}
	s.replay.Store(n)
}

// Close closes the sockets. Core connects again, and gets the log from the next instance.
func (s *Service) Close() { s.lives.Close() }

// Interrupt closes the sockets that there are, because something waits for the end of all work: Core connects again.
func (s *Service) Interrupt() { s.lives.Interrupt() }

// Routes are the calls of the package. The path has the provider in a place of its own (contract 21 section 2).
func (s *Service) Routes() []fileserver.Route {
	return []fileserver.Route{{
		Method: http.MethodGet, Path: "/ucloud/jobs.provider." + s.o.Provider + "/websocket", Class: hoptoken.ClassCore, MaxBody: 1, Serve: s.serve,
		// Older modules asked for none here; whoever wants logs to be signed for names the call in the policy.
		Intent: intent.Rule{Calls: []string{"jobs.follow"}, Unsigned: true, Frame: true, Optional: true, Owners: []string{"job"}},
	}}
}

func (s *Service) serve(w http.ResponseWriter, c *fileserver.Call) error {
	if !websock.IsUpgrade(c.Request) {
		return failure.New(failure.NotFound, "This provider does not know the call")
	}
	if s.sockets.Add(1) > maxSockets {
		s.sockets.Add(-1)
		return failure.New(failure.TooMany, "Too many logs are followed at a time")
	}
	defer s.sockets.Add(-1)
	w.Header().Set(websock.HeaderNoBearer, "true")
	ws, err := websock.Accept(w, c.Request, websock.Options{ReadLimit: initBytes, WriteTimeout: patience})
	if err != nil {
		c.Log().Debug("upgrade failed", "error", err)
		return nil // it has been answered
	}
	defer ws.CloseNow() //nolint:errcheck // it may be closed
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel()
	life := s.lives.Now()
	stop := context.AfterFunc(life, cancel)
	defer stop()
	code, reason := s.converse(ctx, ws, c)
	if life.Err() != nil {
		code, reason = websocket.StatusServiceRestart, "the service restarts"
	}
	if code != 0 {
		ws.Close(code, reason) //nolint:errcheck // nobody else to tell
	}
	return nil
}

// request is what Core sends; of the job only its id is of interest, whatever else it looks like.
type request struct {
	providerapi.StreamRequest
	wish wish
}

type wish struct {
	Type string `json:"type"`
	Job  *struct {
		ID string `json:"id"`
	} `json:"job"`
	StreamID string `json:"streamId"`
}

// maxID bounds ids in frames.
const maxID = 128

func parseRequest(provider string, data []byte) (request, error) {
	var r request
	if err := json.Unmarshal(data, &r.StreamRequest); err != nil {
		return r, fmt.Errorf("decode: %w", err)
	}
	p := &r.wish
	if len(r.Payload) > 0 {
		if err := json.Unmarshal(r.Payload, p); err != nil {
			return r, fmt.Errorf("decode payload: %w", err)
		}
	}
	switch {
	case r.Call != "jobs.provider."+provider+".follow":
		return r, fmt.Errorf("call %.100q", r.Call)
	case len(r.StreamID) > maxID || len(p.StreamID) > maxID:
		return r, fmt.Errorf("an id of %d bytes", max(len(r.StreamID), len(p.StreamID)))
	case p.Type == "init" && p.Job != nil && p.Job.ID != "" && len(p.Job.ID) <= maxID, p.Type == "cancel":
		return r, nil
	}
	return r, fmt.Errorf("type %.100q, or no job", p.Type)
}

// converse serves the socket and gives how it is to be closed; zero: it is closed.
func (s *Service) converse(ctx context.Context, ws *websock.Conn, c *fileserver.Call) (websocket.StatusCode, string) {
	log := c.Log()
	first, cancel := context.WithTimeout(ctx, initPatience)
	data, err := ws.ReadText(first)
	cancel()
	if err != nil {
		log.Debug("no request on the socket of a log", "error", err)
		return websocket.StatusPolicyViolation, "a request is expected"
	}
	req, err := parseRequest(s.o.Provider, data)
	if err != nil || req.wish.Type != "init" {
		log.Debug("following a log is refused", "error", err)
		return websocket.StatusPolicyViolation, "the request is not valid"
	}
	if err := c.CheckFrame(ctx, req.Call, req.SignedIntent, req.Payload); err != nil {
		log.Debug("following a log is refused", "error", err)
		return websocket.StatusPolicyViolation, failure.Why(err)
	}
	data, req.Payload = nil, nil
	ws.SetReadLimit(64 << 10)

	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	session := rand.Text()
	logs, stopLogs := context.WithCancel(ctx)
	defer stopLogs()
	all.Go(func() { s.keepAwake(ctx, ws, cancel) })
	all.Go(func() {
		if err := s.logs(ctx, logs, ws, req.StreamID, session, req.wish.Job.ID); err != nil {
			log.Debug("following a log ends", "error", err)
			if ctx.Err() == nil {
				ws.CloseNow() //nolint:errcheck // it is to end
			}
			cancel()
		}
	})
	for {
		data, err := ws.ReadText(ctx)
		if err != nil {
			return 0, ""
		}
		r, err := parseRequest(s.o.Provider, data)
		if err != nil || r.wish.Type != "cancel" {
			return websocket.StatusPolicyViolation, "the request is not valid"
		}
		if r.wish.StreamID == session {
			stopLogs()
		}
	}
}

var keepAliveFrame = []byte(`{"ping":"pong"}`)

// keepAwake sends the frames by which Core notices that its browser has left, also after the end of the log.
func (s *Service) keepAwake(ctx context.Context, ws *websock.Conn, cancel func()) {
	t := time.NewTicker(s.keep)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if ws.Send(ctx, keepAliveFrame) != nil {
			cancel()
			return
		}
	}
}

// logs sends the log and its end. It returns nil when there is nothing more to send and the socket is to stay open. ctx is
// that of the socket, wanted ends when Core wants no more: what is being sent then must not be cut.
func (s *Service) logs(ctx, wanted context.Context, ws *websock.Conn, stream, session, job string) error {
	heard := &news{wake: make(chan struct{}, 1)}
	var hearing sync.WaitGroup
	defer hearing.Wait()
	hear, stop := context.WithCancel(wanted)
	defer stop()
	hearing.Go(func() { s.hear(hear, job, heard) })

	frame := make([]byte, 0, pieceBytes+pieceBytes/4)
	w := &follower{s: s, news: heard, send: func(src *source, quoted []byte) error {
		if len(quoted) == 2 {
			return nil // all of it is held back
		}
		frame = appendChunk(frame[:0], stream, session, src.rank, src.stderr, quoted)
		return ws.Send(ctx, frame)
	}}
	if err := w.run(wanted); err != nil && wanted.Err() == nil {
		return err
	}
	if ctx.Err() != nil {
		return nil // nobody hears it
	}
	return ws.Send(ctx, appendEnd(frame[:0], stream, session))
}

// appendChunk appends a piece of the log (contract 21 section 3.2 point 4).
func appendChunk(b []byte, stream, session string, rank int, stderr bool, quoted []byte) []byte {
	b = append(b, `{"type":"message","streamId":`...)
	b = textstream.AppendString(b, stream)
	b = append(b, `,"payload":{"streamId":`...)
	b = textstream.AppendString(b, session)
	b = append(b, `,"rank":`...)
	b = strconv.AppendInt(b, int64(rank), 10)
	if stderr {
		b = append(append(b, `,"stdout":null,"stderr":`...), quoted...)
	} else {
		b = append(append(append(b, `,"stdout":`...), quoted...), `,"stderr":null`...)
	}
	return append(b, `,"channel":null}}`...)
}

// appendEnd appends the end of the log (contract 21 section 3.2 point 7).
func appendEnd(b []byte, stream, session string) []byte {
	b = append(b, `{"type":"response","status":200,"streamId":`...)
	b = textstream.AppendString(b, stream)
	b = append(b, `,"payload":{"streamId":`...)
	b = textstream.AppendString(b, session)
	return append(b, `,"rank":0,"stdout":null,"stderr":null,"channel":null}}`...)
}
