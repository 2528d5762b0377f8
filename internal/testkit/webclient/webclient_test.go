package webclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// peer is a server made with a library, so that framing and masking are checked by somebody else.
func peer(t *testing.T, serve func(ctx context.Context, ws *websocket.Conn) error) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow() //nolint:errcheck // it is over
		ws.SetReadLimit(64 << 20)
		if err := serve(r.Context(), ws); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return "ws" + strings.TrimPrefix(srv.URL, "http")
}

func memory(path string, content []byte) File {
	return File{Path: path, Size: int64(len(content)), Modified: 1, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
}

func say(ctx context.Context, ws *websocket.Conn, answers ...uint32) error {
	var msg []byte
	for i := 0; i < len(answers); i += 2 {
		msg = binary.BigEndian.AppendUint32(append(msg, byte(answers[i])), answers[i+1])
	}
	return ws.Write(ctx, websocket.MessageBinary, msg)
}

func TestUpload(t *testing.T) {
	t.Parallel()
	// Sizes around those at which the form of a frame changes, and the pieces in which it is masked.
	contents := [][]byte{nil, make([]byte, 1), make([]byte, 126-5), make([]byte, 65536-5), make([]byte, 256<<10), make([]byte, 1<<20+3)}
	for i, c := range contents {
		for j := range c {
			c[j] = byte(i + j*7)
		}
	}
	got := map[uint32][]byte{}
	url := peer(t, func(ctx context.Context, ws *websocket.Conn) error {
		_, listing, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		n := bytes.Count(listing, []byte("file"))
		if n != len(contents)+1 || listing[0] != 4 {
			t.Errorf("listed are %d files: %q", n, listing)
		}
		answers := []uint32{3, uint32(len(contents))}
		for i := range contents {
			answers = append(answers, 0, uint32(i))
		}
		if err := say(ctx, ws, answers...); err != nil {
			return err
		}
		for left := len(contents); left > 0; {
			_, msg, err := ws.Read(ctx)
			if err != nil {
				return err
			}
			id := binary.BigEndian.Uint32(msg[1:])
			got[id] = append(got[id], msg[5:]...)
			if len(got[id]) == len(contents[id]) {
				left--
			}
		}
		if err := say(ctx, ws, 5, uint32(len(contents)+1)); err != nil {
			return err
		}
		if _, _, err = ws.Read(ctx); websocket.CloseStatus(err) == websocket.StatusNoStatusRcvd {
			return nil
		}
		return err
	})
	var files []File
	for _, c := range contents {
		files = append(files, memory("file", c))
	}
	files = append(files, memory("file", []byte("not wanted")))
	c := Client{Chunk: 300 << 10}
	res, err := c.Upload(t.Context(), url, files)
	if err != nil || res.Completed != len(files) || len(res.Skipped) != 1 || res.Skipped[0] != len(contents) {
		t.Errorf("%+v, %v", res, err)
	}
	for i, c := range contents {
		if !bytes.Equal(got[uint32(i)], c) {
			t.Errorf("file %d of %d bytes arrives as %d bytes", i, len(c), len(got[uint32(i)]))
		}
	}
}

func TestUploadEnds(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(ctx context.Context, ws *websocket.Conn) error{
		"closed by the server": func(_ context.Context, ws *websocket.Conn) error {
			ws.Close(websocket.StatusInternalError, "disk full") //nolint:errcheck // the client hangs up
			return nil
		},
		"cut": func(_ context.Context, ws *websocket.Conn) error { return ws.CloseNow() },
		"an opcode that browsers do not know": func(ctx context.Context, ws *websocket.Conn) error {
			return say(ctx, ws, 6, 0)
		},
		"a file that is not there": func(ctx context.Context, ws *websocket.Conn) error { return say(ctx, ws, 0, 7) },
		"too much completed":       func(ctx context.Context, ws *websocket.Conn) error { return say(ctx, ws, 5, 7) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := peer(t, func(ctx context.Context, ws *websocket.Conn) error {
				if _, _, err := ws.Read(ctx); err != nil {
					return err
				}
				err := serve(ctx, ws)
				ws.Read(ctx) //nolint:errcheck // until the client ends
				return err
			})
			var c Client
			res, err := c.Upload(t.Context(), url, []File{memory("a", []byte("b"))})
			if err == nil {
				t.Errorf("the upload is a success: %+v", res)
			}
			if ce, ok := errors.AsType[*CloseError](err); name == "closed by the server" && (!ok || ce.Code != 1011 || ce.Reason != "disk full") {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestNoUpgrade(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	var c Client
	_, err := c.Upload(t.Context(), "ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != http.StatusNotFound {
		t.Error(err)
	}
}
