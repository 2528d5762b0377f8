package websock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve accepts one socket, does something with it, and gives a raw connection to it.
func serve(t *testing.T, o Options, do func(*Conn) error) (client net.Conn, result <-chan error) {
	t.Helper()
	client, result, _ = serveWith(t, o, "", do)
	return client, result
}

// serveWith sends more headers, and gives the head of the answer too.
func serveWith(t *testing.T, o Options, header string, do func(*Conn) error) (net.Conn, <-chan error, string) {
	t.Helper()
	done := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !IsUpgrade(r) {
			t.Error("no upgrade")
		}
		c, err := Accept(w, r, o)
		if err != nil {
			done <- err
			return
		}
		defer c.CloseNow()
		done <- do(c)
	}))
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"+header+"\r\n")
	if err != nil {
		t.Fatal(err)
	}
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("%s: %v", head, err)
		}
		head = append(head, b...)
	}
	if !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
		t.Fatalf("%s", head)
	}
	return conn, done, string(head)
}

// frame is a client's frame with a mask of zeros (RFC 6455 section 5.2).
func frame(first byte, length uint64, payload string) []byte {
	b := []byte{first, 0x80 | 127}
	b = binary.BigEndian.AppendUint64(b, length)
	return append(append(b, 0, 0, 0, 0), payload...)
}

const text, fin = 0x1, 0x80

// TestCloseEnds: a peer that has announced an endless frame, and goes on with it, cannot hold the end up.
func TestCloseEnds(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 1 << 10, CloseTimeout: 100 * time.Millisecond}, func(c *Conn) error {
		return c.Close(websocket.StatusNormalClosure, "the end")
	})
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		client.Write(frame(fin|text, 1<<62, "")) //nolint:errcheck // seen below
		for {
			if _, err := client.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // a byte now and then
		}
	}()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Error("the closure does not end")
		client.Close()
		<-done
	}
	<-feeding
}

func TestReadLimit(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 10}, func(c *Conn) error {
		if data, err := c.ReadText(context.Background()); string(data) != "0123456789" || err != nil {
			t.Errorf("%q, %v", data, err)
		}
		_, err := c.ReadText(context.Background())
		return err
	})
	client.Write(frame(fin|text, 10, "0123456789"))  //nolint:errcheck // seen below
	client.Write(frame(fin|text, 11, "01234567890")) //nolint:errcheck // seen below
	if err := <-done; !errors.Is(err, websocket.ErrMessageTooBig) {
		t.Errorf("%v", err)
	}
}

func TestTextOnly(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 10}, func(c *Conn) error {
		_, err := c.ReadText(context.Background())
		return err
	})
	client.Write(frame(fin|0x2, 1, "x")) //nolint:errcheck // seen below
	if err := <-done; !errors.Is(err, ErrText) {
		t.Errorf("%v", err)
	}
}

// TestCut: half a message is none.
func TestCut(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 100}, func(c *Conn) error {
		_, err := c.ReadText(context.Background())
		return err
	})
	client.Write(frame(fin|text, 10, "01234")) //nolint:errcheck // seen below
	client.Close()
	if err := <-done; err == nil {
		t.Error("half a message is taken for a whole one")
	}
}

// TestWriteEnds: a peer that does not read loses the connection.
func TestWriteEnds(t *testing.T) {
	t.Parallel()
	_, done := serve(t, Options{ReadLimit: 100, WriteTimeout: 50 * time.Millisecond}, func(c *Conn) error {
		big := make([]byte, 1<<20)
		for {
			if err := c.Send(context.Background(), big); err != nil {
				_, err = c.ReadText(context.Background())
				return err
			}
		}
	})
	select {
	case err := <-done:
		if err == nil {
			t.Error("the connection lives")
		}
	case <-time.After(60 * time.Second):
		t.Fatal("the write does not end")
	}
}

// TestKeepAliveEnds: a peer that does not answer is given up, and one that does is not.
func TestKeepAliveEnds(t *testing.T) {
	t.Parallel()
	client, done := serve(t, Options{ReadLimit: 100}, func(c *Conn) error {
		ctx, cancel := context.WithCancel(context.Background())
		over := make(chan struct{})
		go func() { defer close(over); c.KeepAlive(ctx, 100*time.Millisecond) }()
		_, err := c.ReadText(context.Background())
		cancel()
		<-over
		return err
	})
	ping := make([]byte, 2)
	if _, err := io.ReadFull(client, ping); err != nil || ping[0] != fin|0x9 {
		t.Fatalf("%x, %v", ping, err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("the connection lives")
		}
	case <-time.After(60 * time.Second):
		t.Fatal("a peer that has gone is not noticed")
	}
}
