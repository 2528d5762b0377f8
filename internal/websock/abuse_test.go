package websock

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// readOne is a server that reads one message.
func readOne(c *Conn) error {
	_, err := c.ReadText(context.Background())
	return err
}

// short is a frame with a length of up to 125 and a mask of zeros.
func short(first byte, payload string) []byte {
	return append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
}

// TestFramesWithoutContent: pings between messages, and pieces of a message that are empty, have a bound.
//
//attack:actor internet
//attack:does Sends pings, or empty pieces of one message, over a WebSocket without end.
//attack:control What comes beside the messages of a WebSocket is bounded.
//attack:remove internal/websock/websock.go: if w.came.Add(int64(n)) > freeOverhead+7*w.limit.Load() && w.tooMuch() { => if false && w.tooMuch() {
func TestFramesWithoutContent(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ first, flood []byte }{
		"pings":          {nil, short(fin|0x9, "")},
		"pongs":          {nil, short(fin|0xA, "")},
		"pings in a gap": {short(text, "x"), short(fin|0x9, "12345678")},
		"empty pieces":   {short(text, "x"), short(0, "")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, done := serve(t, Options{ReadLimit: 1 << 10}, readOne)
			go io.Copy(io.Discard, client) //nolint:errcheck // pongs; ends with the connection
			client.Write(tc.first)         //nolint:errcheck // seen below
			flood := bytes.Repeat(tc.flood, 10_000)
			sent := 0
			for ; sent < 8<<20; sent += len(flood) {
				if _, err := client.Write(flood); err != nil {
					break
				}
			}
			if sent >= 8<<20 {
				client.Close()
				t.Fatalf("%d MiB were taken", sent>>20)
			}
			if err := <-done; err == nil {
				t.Error("a message was read")
			}
		})
	}
}

// TestSmallPieces: a message in frames of one byte is as good as any.
func TestSmallPieces(t *testing.T) {
	t.Parallel()
	const size = 50_000
	client, done := serve(t, Options{ReadLimit: size}, func(c *Conn) error {
		for range 2 {
			data, err := c.ReadText(context.Background())
			if err != nil || len(data) != size {
				t.Errorf("%d bytes, %v", len(data), err)
				return err
			}
		}
		return nil
	})
	w := bufio.NewWriterSize(client, 64<<10)
	for range 2 {
		w.Write(short(text, "x"))
		for range size - 2 {
			w.Write(short(0, "x"))
		}
		w.Write(short(fin, "x"))
	}
	w.Flush()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFragmentsHaveOneLimit: the bound is that of the message, however it is cut.
//
//attack:actor internet
//attack:does Sends one WebSocket message in any number of pieces, each of them small.
//attack:control The bound of a message counts all of its pieces.
//attack:remove internal/websock/websock.go: c.Conn.SetReadLimit(n) => c.Conn.SetReadLimit(-1)
func TestFragmentsHaveOneLimit(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 100}, readOne)
	client.Write(short(text, strings.Repeat("a", 50))) //nolint:errcheck // seen below
	for range 10 {
		client.Write(short(0, strings.Repeat("a", 50))) //nolint:errcheck // seen below
	}
	client.Write(short(fin, "")) //nolint:errcheck // seen below
	if err := <-done; !errors.Is(err, websocket.ErrMessageTooBig) {
		t.Errorf("%v", err)
	}
}

// TestBadFrames: what the protocol forbids ends the connection, and is not guessed at.
func TestBadFrames(t *testing.T) {
	t.Parallel()
	for name, bytes := range map[string][]byte{
		"not masked":                {fin | text, 1, 'x'},
		"compressed":                short(fin|0x40|text, "x"),
		"a second reserved bit":     short(fin|0x20|text, "x"),
		"a reserved kind":           short(fin|0x3, "x"),
		"a reserved control kind":   short(fin|0xB, "x"),
		"a ping in pieces":          short(0x9, "x"),
		"a long ping":               frame(fin|0x9, 126, strings.Repeat("x", 126)),
		"a piece of nothing":        short(fin, "x"),
		"a message in a message":    append(short(text, "x"), short(fin|text, "x")...),
		"a length beyond the world": frame(fin|text, 1<<63|5, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, done := serve(t, Options{ReadLimit: 1 << 10, CloseTimeout: 100 * time.Millisecond}, readOne)
			client.Write(bytes) //nolint:errcheck // seen below
			select {
			case err := <-done:
				if err == nil {
					t.Error("a message was read")
				}
			case <-time.After(60 * time.Second):
				t.Error("the connection waits")
				client.Close()
				<-done
			}
		})
	}
}

// TestGiantFrame: a length is believed only as far as the bound, and nothing is allocated for it.
func TestGiantFrame(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 1 << 10}, readOne)
	client.Write(frame(fin|text, 1<<40, strings.Repeat("x", 2<<10))) //nolint:errcheck // seen below
	if err := <-done; !errors.Is(err, websocket.ErrMessageTooBig) {
		t.Errorf("%v", err)
	}
}

// TestNoCompression: it is not agreed on although the client offers it: a small message could be a large one.
func TestNoCompression(t *testing.T) {
	t.Parallel()
	_, _, head := serveOffer(t, "permessage-deflate; client_max_window_bits")
	if strings.Contains(strings.ToLower(head), "sec-websocket-extensions") {
		t.Errorf("%s", head)
	}
}

// serveOffer is serve for a client that offers an extension; it gives the head of the answer too.
func serveOffer(t *testing.T, extension string) (net.Conn, <-chan error, string) {
	t.Helper()
	return serveWith(t, Options{ReadLimit: 100}, "Sec-WebSocket-Extensions: "+extension+"\r\n", func(*Conn) error { return nil })
}

// FuzzFrames: whatever comes, reading ends when the connection does, and no message is longer than allowed.
func FuzzFrames(f *testing.F) {
	f.Add(short(fin|text, "hello"))
	f.Add(append(short(text, "x"), short(fin, "y")...))
	f.Add(append(short(fin|0x9, "ping"), short(fin|text, "z")...))
	f.Add(frame(fin|text, 1<<62, "x"))
	f.Add([]byte{fin | text, 1, 'x'})
	f.Add(short(fin|0x8, "\x03\xe8bye"))
	f.Fuzz(func(t *testing.T, data []byte) {
		client, done := serve(t, Options{ReadLimit: 64, WriteTimeout: 100 * time.Millisecond, CloseTimeout: 100 * time.Millisecond}, func(c *Conn) error {
			for {
				_, b, err := c.Read(context.Background())
				if err != nil {
					return err
				}
				if len(b) > 64 {
					t.Errorf("%d bytes", len(b))
				}
			}
		})
		go io.Copy(io.Discard, client) //nolint:errcheck // ends with the connection
		client.Write(data)             //nolint:errcheck // it may have ended
		client.(*net.TCPConn).CloseWrite()
		select {
		case <-done:
		case <-time.After(60 * time.Second):
			t.Error("reading does not end")
			client.Close()
			<-done
		}
	})
}
