package events

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/events/eventwire"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

// conn is the part of a WebSocket that a session needs; *websocket.Conn has it.
type conn interface {
	Read(ctx context.Context) (websocket.MessageType, []byte, error)
	Write(ctx context.Context, t websocket.MessageType, p []byte) error
	Ping(ctx context.Context) error
	CloseNow() error
}

// ending tells how a session ended.
type ending struct {
	err      error
	planned  bool          // we ended it to begin another
	token    string        // that was presented, empty if it did not come to that
	accepted bool          // Core has shown a sign of life after the token
	age      time.Duration // since the handshake
}

// errRestart ends a session that is followed by another at once.
var errRestart = errors.New("session restarted as planned")

// maxBatch is how many messages are stored in one transaction at most.
const maxBatch = 256

// settingFullReplay holds the time of the last full replay that ran to its end, in Unix milliseconds.
const settingFullReplay = "events.fullReplayAt"

// live is the state of one session. Its goroutines are: the reader, the writer and the keeper, which pings and sends.
type live struct {
	s        *Stream
	conn     conn
	refs     *references
	queue    *queue
	begun    time.Time // handshake
	full     bool      // replays everything
	accepted atomic.Bool

	// The rest belongs to the writer.
	settled bool      // the replay is over
	newest  time.Time // greatest time stamp of Core's stored in this session
}

// session runs one session to its end.
func (s *Stream) session(ctx context.Context) ending {
	var from, lastFull time.Time
	err := s.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if from, err = tx.ReplayFrom(); err != nil {
			return err
		}
		lastFull, err = fullReplayAt(tx)
		return err
	})
	if err != nil {
		return ending{err: fmt.Errorf("read the position in the event stream: %w", err)}
	}
	s.mu.Lock()
	s.status.Position, s.status.LastFullReplay = from, lastFull
	s.mu.Unlock()
	nextFull := nextFullReplay(lastFull, s.o.ReplayHour)
	full := from.IsZero() || !time.Now().Before(nextFull)
	var fromMillis int64
	if !full {
		fromMillis = max(from.Add(-margin).UnixMilli(), 0)
	}

	token, err := s.o.Tokens.Token(ctx)
	if err != nil {
		return ending{err: err}
	}
	c, err := s.dial(ctx)
	if err != nil {
		return ending{err: fmt.Errorf("connect to the event stream: %w", err)}
	}
	defer c.CloseNow() //nolint:errcheck // the session is over
	begun := time.Now()
	end := ending{token: token}
	if err := send(ctx, c, eventwire.AppendAuth(nil, fromMillis, eventwire.FlagIncludeRetired, token)); err != nil {
		end.err = fmt.Errorf("authenticate: %w", err)
		return end
	}
	l := &live{
		s: s, conn: c, refs: newReferences(s.o.Provider, s.log), queue: newQueue(s.o.MaxQueue), begun: begun, full: full,
	}
	s.mu.Lock()
	s.queue = l.queue
	s.mu.Unlock()
	s.log.Info("event session begun", "from", fromMillis, "full", full)

	// The session ends early for the nightly replay.
	if full {
		nextFull = nextFullReplay(begun, s.o.ReplayHour)
	}
	life := min(spread(s.o.MaxSession), nextFull.Sub(begun))
	end.err = l.run(ctx, life)
	end.accepted, end.age, end.planned = l.accepted.Load(), time.Since(begun), errors.Is(end.err, errRestart)
	s.mu.Lock()
	s.queue = nil
	s.mu.Unlock()
	return end
}

func fullReplayAt(tx *store.Tx) (time.Time, error) {
	text, err := tx.Setting(settingFullReplay)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, nil // nonsense means that there was none
	}
	return time.UnixMilli(ms), nil
}

// dialCore opens the WebSocket. Authentication is in the first record, so there is no Authorization header.
func (s *Stream) dialCore(ctx context.Context) (conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeWait)
	defer cancel()
	header := http.Header{}
	header.Set("User-Agent", s.o.UserAgent)
	c, resp, err := websocket.Dial(ctx, s.url, &websocket.DialOptions{
		HTTPClient: s.o.HTTP, HTTPHeader: header, CompressionMode: websocket.CompressionDisabled,
	})
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(s.o.MaxMessage)
	return c, nil
}

func send(ctx context.Context, c conn, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeWait)
	defer cancel()
	return c.Write(ctx, websocket.MessageBinary, b)
}

// run moves events until something ends the session, and returns the first reason. It returns after all goroutines.
func (l *live) run(outer context.Context, life time.Duration) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	wg.Go(func() {
		cancel(l.read(ctx))
		l.queue.close()
	})
	wg.Go(func() { cancel(l.keep(ctx)) })
	wg.Go(func() {
		timer := time.NewTimer(life)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
			cancel(errRestart)
		}
	})
	// What was read is stored even if the connection is gone, so the writer lives in the outer context.
	if err := l.write(outer); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// read queues messages until the connection ends.
func (l *live) read(ctx context.Context) error {
	for {
		_, message, err := l.conn.Read(ctx)
		if err != nil {
			return fmt.Errorf("read from the event stream: %w", err)
		}
		l.accept()
		l.s.sawMessage(time.Now())
		if err := l.queue.put(ctx, message); err != nil {
			return err
		}
	}
}

// accept notes that Core has taken the token.
func (l *live) accept() {
	if !l.accepted.Swap(true) {
		l.s.setState(StateUp, nil, time.Time{})
	}
}

// keep pings Core and asks for the users that are to be replayed.
func (l *live) keep(ctx context.Context) error {
	// Core reads our next message only after it has accepted the token, so the answer to a ping is the acceptance that
	// Core otherwise does not give. A request that is sent before it could get lost.
	if err := l.ping(ctx); err != nil {
		return err
	}
	l.accept()
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		if err := l.askForUsers(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.s.replay:
		case <-ticker.C:
			if err := l.ping(ctx); err != nil {
				return err
			}
		}
	}
}

func (l *live) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingWait)
	defer cancel()
	if err := l.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

// askForUsers sends the pending ReplayUser records. A name is removed after it was sent: twice does no harm.
func (l *live) askForUsers(ctx context.Context) error {
	db := l.s.o.Store
	var users []ident.UCloudUser
	err := db.View(ctx, func(tx *store.Tx) (err error) {
		users, err = tx.ReplayUsers()
		return err
	})
	if err != nil {
		return fmt.Errorf("read users to replay: %w", err)
	}
	for _, u := range users {
		if err := send(ctx, l.conn, eventwire.AppendReplayUser(nil, u)); err != nil {
			return fmt.Errorf("ask for a user: %w", err)
		}
		if err := db.Update(ctx, func(tx *store.Tx) error { return tx.RemoveReplayUser(u) }); err != nil {
			return fmt.Errorf("note that a user was asked for: %w", err)
		}
		l.s.log.Debug("everything about a user asked for", "user", string(u))
	}
	return nil
}
