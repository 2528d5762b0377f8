package uploadclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is the other side, as a test wants it.
func peer(t *testing.T, serve func(ctx context.Context, ws *websocket.Conn)) string {
	t.Helper()
	ended := make(chan struct{}, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { ended <- struct{}{} }()
		defer ws.CloseNow()
		ws.SetReadLimit(64 << 20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		serve(ctx, ws)
	}))
	t.Cleanup(func() {
		s.Close()
		<-ended
	})
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func answerBytes(op byte, v int32) []byte {
	return binary.BigEndian.AppendUint32([]byte{op}, uint32(v))
}

type file struct {
	io.Reader
	err error
}

func (f file) Close() error { return nil }

func of(path, content string, size int64, err error) *File {
	return &File{Path: path, Size: size, Modified: time.UnixMilli(1_700_000_000_123), Open: func() (io.ReadCloser, error) {
		return file{strings.NewReader(content), nil}, err
	}}
}

func seq(files ...*File) iter.Seq2[*File, error] {
	return func(yield func(*File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// TestBytes checks what is sent to the byte (contract 11 section 2.1).
func TestBytes(t *testing.T) {
	t.Parallel()
	got := make(chan []byte, 10)
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn) {
		_, listing, _ := ws.Read(ctx)
		got <- listing
		ws.Write(ctx, websocket.MessageBinary, bytes.Join([][]byte{answerBytes(opOK, 41), answerBytes(opSkip, 42), answerBytes(opOK, 43)}, nil))
		for range 3 {
			_, msg, _ := ws.Read(ctx)
			got <- msg
		}
		ws.Write(ctx, websocket.MessageBinary, answerBytes(opCompleted, 3))
		_, msg, _ := ws.Read(ctx)
		got <- msg
		ws.Close(websocket.StatusNormalClosure, "")
	})
	var id atomic.Int32
	id.Store(40)
	events := map[Event]int{}
	c, err := Dial(t.Context(), endpoint, Options{NextID: func() int32 { return id.Add(1) }, Chunk: 4, Parallel: 1, Event: func(_ *File, e Event) { events[e]++ }})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Send(t.Context(), seq(of("a/b", "hello", 5, nil), of("c", "x", 1, nil), of("", "", 0, nil)))
	if err != nil || res.Listed != 3 || res.Skipped != 1 || res.Sent != 2 || res.Completed != 3 || res.Bytes != 5 {
		t.Errorf("%+v, %v", res, err)
	}
	if err := c.Finish(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		"\x04\x00\x00\x00\x29\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x00\x03a/b" +
			"\x00\x00\x00\x2a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x00\x01c" +
			"\x00\x00\x00\x2b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x8b\xcf\xe5\x68\x7b\x00\x00\x00\x00",
		"\x02\x00\x00\x00\x29hell", "\x02\x00\x00\x00\x29o", "\x02\x00\x00\x00\x2b", "\x06",
	} {
		if msg := <-got; string(msg) != want {
			t.Errorf("sent %q, want %q", msg, want)
		}
	}
	if events[Wanted] != 2 || events[Skipped] != 1 || events[Sent] != 2 || events[Unreadable] != 0 {
		t.Errorf("%v", events)
	}
}

// TestUnreadable: a file that cannot be read, or is not as long as it was, is skipped and the others go on.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	var skips atomic.Int32
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn) {
		ws.Read(ctx)
		for id := range int32(4) {
			ws.Write(ctx, websocket.MessageBinary, answerBytes(opOK, id))
		}
		for over := 0; over < 4; {
			_, msg, err := ws.Read(ctx)
			if err != nil {
				return
			}
			if msg[0] == opSkip {
				skips.Add(1)
				over++
			} else if len(msg) == 5+2 {
				over++
			}
		}
		ws.Write(ctx, websocket.MessageBinary, answerBytes(opCompleted, 4))
		ws.Read(ctx)
	})
	c, err := Dial(t.Context(), endpoint, Options{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Send(t.Context(), seq(of("gone", "", 1, errors.New("gone")), of("short", "a", 3, nil), of("long", "abcd", 3, nil), of("fine", "ab", 2, nil)))
	if err != nil || res.Unreadable != 3 || res.Sent != 1 || skips.Load() != 3 {
		t.Errorf("%+v, %v", res, err)
	}
	c.Close()
}

// TestHostilePeer: answers that make no sense end the connection with an error, and nothing hangs.
func TestHostilePeer(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string][]byte{
		"unknown opcode":      {9, 0, 0, 0, 0},
		"chunk":               answerBytes(opChunk, 0),
		"cut":                 {opOK, 0, 0},
		"file not listed":     answerBytes(opOK, 7),
		"more than listed":    answerBytes(opCompleted, 8),
		"negative":            answerBytes(opCompleted, -1),
		"less than before":    append(answerBytes(opCompleted, 1), answerBytes(opCompleted, 0)...),
		"wanted without end":  bytes.Repeat(answerBytes(opOK, 1), 100),
		"closed, and nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn) {
				ws.Read(ctx)
				if answers != nil {
					ws.Write(ctx, websocket.MessageBinary, answers)
					ws.Read(ctx)
					ws.Read(ctx)
				}
			})
			block := make(chan struct{})
			t.Cleanup(func() { close(block) })
			c, err := Dial(t.Context(), endpoint, Options{Ahead: 3, Parallel: 1})
			if err != nil {
				t.Fatal(err)
			}
			f := of("b", "", 5, nil)
			res, err := c.Send(t.Context(), seq(of("a", "a", 1, nil), f))
			if err == nil {
				t.Errorf("%+v", res)
			}
			c.Abort()
		})
	}
}

// TestAhead: no more files are listed than may be outstanding.
func TestAhead(t *testing.T) {
	t.Parallel()
	const ahead = 10
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn) {
		listed := int32(0)
		for done := int32(0); done < 100; {
			_, msg, err := ws.Read(ctx)
			if err != nil {
				return
			}
			listed += int32(len(msg)-1) / 25
			if listed-done > ahead {
				t.Errorf("%d files ahead", listed-done)
			}
			var out []byte
			for ; done < listed; done++ {
				out = append(out, answerBytes(opSkip, done)...)
			}
			ws.Write(ctx, websocket.MessageBinary, append(out, answerBytes(opCompleted, done)...))
		}
		ws.Read(ctx)
	})
	c, err := Dial(t.Context(), endpoint, Options{Ahead: ahead})
	if err != nil {
		t.Fatal(err)
	}
	var files []*File
	for range 100 {
		files = append(files, of("x", "", 1, nil))
	}
	if res, err := c.Send(t.Context(), seq(files...)); err != nil || res.Skipped != 100 {
		t.Errorf("%+v, %v", res, err)
	}
	c.Close()
	failing := func(yield func(*File, error) bool) { yield(nil, io.ErrUnexpectedEOF) }
	c, err = Dial(t.Context(), endpoint, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(t.Context(), failing); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	c.Abort()
}

// TestCancel: the end of the context ends Send.
func TestCancel(t *testing.T) {
	t.Parallel()
	endpoint := peer(t, func(ctx context.Context, ws *websocket.Conn) {
		ws.Read(ctx)
		ws.Read(ctx)
	})
	c, err := Dial(t.Context(), endpoint, Options{Ping: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("paused")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
	if _, err := c.Send(ctx, seq(of("a", "a", 1, nil))); !errors.Is(err, stop) && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	c.Abort()
	if _, err := Dial(t.Context(), strings.Replace(endpoint, "ws", "http", 1)+"/\x00", Options{}); err == nil {
		t.Error("dialled nonsense")
	}
}
