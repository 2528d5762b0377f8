package transfers

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
)

func withTimeout(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 300*time.Millisecond)
}

// peer is a destination as a test wants it. serve has each connection.
func peer(t *testing.T, serve func(ctx context.Context, ws *websocket.Conn, n int64)) string {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(64 << 20)
		serve(r.Context(), ws, n.Add(1))
	}))
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

// jobTo is a task that sends a folder to an endpoint.
func jobTo(t *testing.T, s *site, endpoint string) *fakeJob {
	t.Helper()
	d := s.drive()
	raw, err := json.Marshal(sendParams{
		Drive: d.ID, Base: d.ProviderGeneratedID, Path: "/5123/data", Peer: "evil", Protocol: protocolBuiltIn, Endpoint: endpoint,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &fakeJob{params: raw}
}

func num(op byte, v int32) []byte { return binary.BigEndian.AppendUint32([]byte{op}, uint32(v)) }

// entries reads a listing: ids and sizes.
func entries(msg []byte) (out [][2]int64) {
	if len(msg) == 0 {
		return nil // the connection has ended
	}
	for msg = msg[1:]; len(msg) >= 24; {
		n := binary.BigEndian.Uint32(msg[20:])
		out = append(out, [2]int64{int64(binary.BigEndian.Uint32(msg)), int64(binary.BigEndian.Uint64(msg[4:]))})
		msg = msg[24+n:]
	}
	return out
}

// TestHostileDestination: whatever the other provider sends, the source ends with an error or tries again later, soon,
// and without having read more than it should.
func TestHostileDestination(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		serve func(ctx context.Context, ws *websocket.Conn, n int64)
		final bool
	}{
		"wants what was not listed": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			ws.Read(ctx)
			ws.Write(ctx, websocket.MessageBinary, num(0, 77777))
			ws.Read(ctx)
		}, true},
		"wants everything twice": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			_, msg, _ := ws.Read(ctx)
			for _, e := range entries(msg) {
				ws.Write(ctx, websocket.MessageBinary, append(num(0, int32(e[0])), num(0, int32(e[0]))...))
			}
			for {
				if _, _, err := ws.Read(ctx); err != nil {
					return
				}
			}
		}, true},
		"completes what it never wanted": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			_, msg, _ := ws.Read(ctx)
			ws.Write(ctx, websocket.MessageBinary, num(5, int32(len(entries(msg)))))
			ws.Read(ctx)
		}, true},
		"completes more than listed": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			ws.Read(ctx)
			ws.Write(ctx, websocket.MessageBinary, num(5, 1<<30))
			ws.Read(ctx)
		}, true},
		"sends commands of a client": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			ws.Write(ctx, websocket.MessageBinary, num(2, 0))
			ws.Read(ctx)
			ws.Read(ctx)
		}, true},
		"sends a huge message": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			ws.Write(ctx, websocket.MessageBinary, make([]byte, 8<<20))
			ws.Read(ctx)
		}, false},
		"floods with text": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			for range 2000 {
				if ws.Write(ctx, websocket.MessageText, []byte("pong")) != nil {
					return
				}
			}
		}, false},
		"closes at once":  {func(context.Context, *websocket.Conn, int64) {}, false},
		"closes politely": {func(_ context.Context, ws *websocket.Conn, _ int64) { ws.Close(websocket.StatusNormalClosure, "") }, false},
		"closes in the middle": {func(ctx context.Context, ws *websocket.Conn, _ int64) {
			_, msg, _ := ws.Read(ctx)
			for _, e := range entries(msg) {
				ws.Write(ctx, websocket.MessageBinary, num(0, int32(e[0])))
			}
			ws.Read(ctx)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "a", nil)
			tree := map[string]string{}
			for i := range 50 {
				tree[fmt.Sprint(i)] = content(uint64(i), 50_000)
			}
			plant(t, s.dir+"/data", tree)
			began := time.Now()
			err := s.transfer.runSend(t.Context(), jobTo(t, s, peer(t, tc.serve)))
			if err == nil || isTransient(err) == tc.final || failure.KindOf(err) != failure.BadGateway {
				t.Errorf("%v", err)
			}
			if d := time.Since(began); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			if left := openIn(s.dir); len(left) > 0 {
				t.Errorf("still open: %v", left)
			}
		})
	}
}

// TestSilentDestination: one that never answers is given up after a while; a cancel does not wait for that.
func TestSilentDestination(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	plant(t, s.dir+"/data", map[string]string{"x": "x"})
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn, _ int64) {
		for {
			if _, _, err := ws.Read(ctx); err != nil {
				return
			}
		}
	})
	ctx, cancel := withTimeout(t)
	defer cancel()
	began := time.Now()
	if err := s.transfer.runSend(ctx, jobTo(t, s, endpoint)); err == nil || time.Since(began) > 1300*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// TestNeverSatisfied: a destination that takes everything and wants it again is not sent it for ever.
func TestNeverSatisfied(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	tree := map[string]string{}
	for i := range 50 {
		tree[fmt.Sprint(i)] = content(uint64(i), 1000)
	}
	plant(t, s.dir+"/data", tree)
	var bytes, closed atomic.Int64
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn, _ int64) {
		sizes := map[int64]int64{}
		done := int32(0)
		for {
			_, msg, err := ws.Read(ctx)
			if err != nil || len(msg) == 0 {
				return
			}
			switch msg[0] {
			case 4:
				for _, e := range entries(msg) {
					sizes[e[0]] = e[1]
					ws.Write(ctx, websocket.MessageBinary, num(0, int32(e[0])))
				}
			case 2:
				bytes.Add(int64(len(msg) - 5))
				id := int64(binary.BigEndian.Uint32(msg[1:]))
				if sizes[id] -= int64(len(msg) - 5); sizes[id] == 0 {
					done++
					ws.Write(ctx, websocket.MessageBinary, num(5, done))
				}
			case 3:
				done++
				ws.Write(ctx, websocket.MessageBinary, num(5, done))
			case 6:
				closed.Add(1)
				return
			}
		}
	})
	j := jobTo(t, s, endpoint)
	if err := s.transfer.runSend(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Load(); n != maxTries*50*1000 || closed.Load() == 0 {
		t.Errorf("%d bytes were sent, closed %d times", n, closed.Load())
	}
	if !strings.Contains(j.summary, "50 files not confirmed by evil") {
		t.Error(j.summary)
	}
}

// TestRandomPeer: answers at random, closing at random, never hang the source or make it panic.
func TestRandomPeer(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", nil)
	tree := map[string]string{}
	for i := range 30 {
		tree[fmt.Sprint(i)] = content(uint64(i), 3000*i%20000)
	}
	plant(t, s.dir+"/data", tree)
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn, n int64) {
		rng := rand.New(rand.NewPCG(uint64(n), 3))
		go func() {
			for {
				if _, _, err := ws.Read(ctx); err != nil {
					return
				}
			}
		}()
		for range rng.IntN(60) {
			var msg []byte
			for range rng.IntN(5) {
				msg = append(msg, num([]byte{0, 3, 5, 0, 3, 9}[rng.IntN(6)], int32(rng.IntN(35)))...)
			}
			if rng.IntN(20) == 0 {
				msg = append(msg, 0, 0)
			}
			if ws.Write(ctx, websocket.MessageBinary, msg) != nil {
				return
			}
		}
	})
	for range 60 {
		ctx, cancel := withTimeout(t)
		_ = s.transfer.runSend(ctx, jobTo(t, s, endpoint))
		cancel()
	}
	if left := openIn(s.dir); len(left) > 0 {
		t.Errorf("still open: %v", left)
	}
}
