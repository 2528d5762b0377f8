package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

const (
	frameData         = 0
	framePing         = 6
	frameWindow       = 8
	frameContinuation = 9
)

// http2Conn is a client that sends what it likes.
type http2Conn struct {
	*tls.Conn
	mu     sync.Mutex
	frames map[byte]int
	data   int // bytes
	status map[uint32]string
	ended  chan struct{} // the server has closed the connection
}

// dialHTTP2 connects; settings are the payload of the first frame.
func dialHTTP2(t *testing.T, address string, settings []byte) *http2Conn {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	h := &http2Conn{Conn: c, frames: map[byte]int{}, status: map[uint32]string{}, ended: make(chan struct{})}
	t.Cleanup(func() {
		c.Close()
		<-h.ended
	})
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	http2Frame(c, frameSettings, 0, 0, settings)
	go h.read()
	return h
}

func (h *http2Conn) read() {
	defer close(h.ended)
	for {
		var head [9]byte
		if _, err := io.ReadFull(h, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(h, payload); err != nil {
			return
		}
		h.mu.Lock()
		h.frames[head[3]]++
		if head[3] == frameData {
			h.data += len(payload)
		}
		if head[3] == frameHeaders {
			h.status[binary.BigEndian.Uint32(head[5:])&0x7fffffff] = hpackStatus(payload)
		}
		h.mu.Unlock()
	}
}

func (h *http2Conn) seen(kind byte) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.frames[kind]
}

func (h *http2Conn) statusOf(stream uint32) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status[stream]
}

func (h *http2Conn) isClosed() bool {
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

// mustEnd waits until the server has closed the connection.
func (h *http2Conn) mustEnd(t *testing.T) {
	t.Helper()
	eventually(t, "the gateway closes the connection", h.isClosed)
}

// mustAnswer sends a ping that has to come back.
func (h *http2Conn) mustAnswer(t *testing.T) {
	t.Helper()
	before := h.seen(framePing)
	if err := http2Frame(h, framePing, 0, 0, []byte("question")); err != nil {
		t.Fatalf("the connection is gone: %v", err)
	}
	eventually(t, "the ping is answered", func() bool { return h.seen(framePing) > before || h.isClosed() })
	if h.isClosed() {
		t.Fatal("the connection was closed")
	}
}

func http2Fields(path string, header ...string) []byte {
	var block []byte
	for _, kv := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "birch.example.net"}, {":path", path}} {
		block = hpackLiteral(block, kv[0], kv[1])
	}
	for i := 0; i < len(header); i += 2 {
		block = hpackLiteral(block, header[i], header[i+1])
	}
	return block
}

// get begins a request without a body.
func (h *http2Conn) get(stream uint32, header ...string) error {
	return http2Frame(h, frameHeaders, 0x4|0x1, stream, http2Fields(products, header...))
}

// http2Fixture serves HTTP/2; the server answers nothing before release is closed if it is not nil.
func http2Fixture(t *testing.T, release chan struct{}, options ...fixtureOption) (*fixture, string) {
	f := newFixture(t, options...)
	if release != nil {
		f.server.handle(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
	}
	return f, f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
}

// TestRapidReset: a client may take back some requests and not any number of them. Core may: it does so for all users.
//
//attack:actor internet
//attack:does Begins requests over one HTTP/2 connection and takes each back at once, so that no limit of concurrent streams is ever reached (CVE-2023-44487).
//attack:control Requests that are taken back have a budget per connection, which Core's connections do not need.
//attack:remove internal/gateway/abuse.go: over := c.resets > float64(l.Resets) => over := false
func TestRapidReset(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	f, address := http2Fixture(t, release, func(f *fixture, _ *Options) { f.settings.Limits.Resets = 50 })
	flood := func(h *http2Conn, header ...string) {
		for i := range 400 {
			stream := uint32(2*i + 1)
			// The request has begun when the gateway has passed it on: one that is taken back before is no work.
			before := f.metricInFlight()
			if h.get(stream, header...) != nil {
				return
			}
			for f.metricInFlight() <= before && !h.isClosed() {
				runtime.Gosched()
			}
			if http2Frame(h, frameReset, 0, stream, []byte{0, 0, 0, 8}) != nil {
				return
			}
			for f.metricInFlight() > before && !h.isClosed() {
				runtime.Gosched()
			}
		}
	}
	h := dialHTTP2(t, address, nil)
	flood(h)
	h.mustEnd(t)
	if n := f.limited(limitResets); n != 1 {
		t.Errorf("%v connections counted", n)
	}
	core := dialHTTP2(t, address, nil)
	flood(core, "authorization", bearer())
	core.mustAnswer(t)
}

// TestRapidResetWithoutAPause: whatever the gateway's count sees of it, the connection does not outlive it, and the gateway
// still answers others.
func TestRapidResetWithoutAPause(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	f, address := http2Fixture(t, release, func(f *fixture, _ *Options) {
		f.settings.Limits.RequestsPerSecondPerIP, f.settings.Limits.Burst = few(1000)
	})
	h := dialHTTP2(t, address, nil)
	for i := 0; i < 100_000 && !h.isClosed(); i++ {
		stream := uint32(2*i + 1)
		if h.get(stream) != nil || http2Frame(h, frameReset, 0, stream, []byte{0, 0, 0, 8}) != nil {
			break
		}
	}
	h.mustEnd(t)
	close(release)
	if res := f.core("GET", products, "", alice); res.StatusCode != 200 {
		t.Errorf("somebody else: %d", res.StatusCode)
	}
	eventually(t, "nothing is left", func() bool { return f.metricInFlight() == 0 })
}

// TestFramesWithoutAPurpose: pings, settings and the like are cheap, and not free.
//
//attack:actor internet
//attack:does Floods one HTTP/2 connection with PING frames and reads the answers (likewise SETTINGS, or DATA without data).
//attack:control What a connection may send beside its requests and bodies has a budget.
//attack:remove internal/gateway/abuse.go: if c.http2.Load() && c.came.Add(int64(n)) > => if false && c.came.Add(int64(n)) >
func TestFramesWithoutAPurpose(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil)
	many := func(kind byte, stream uint32, payload []byte) []byte {
		var b bytes.Buffer
		for b.Len() < 64<<10 {
			http2Frame(&b, kind, 0, stream, payload)
		}
		return b.Bytes()
	}
	for name, tc := range map[string]struct {
		frames []byte
		open   bool
	}{
		"ping":       {many(framePing, 0, []byte("12345678")), false},
		"settings":   {many(frameSettings, 0, nil), false},
		"window":     {many(frameWindow, 0, []byte{0, 0, 0, 1}), false},
		"priority":   {many(2, 1, []byte{0, 0, 0, 0, 1}), false},
		"empty data": {many(frameData, 1, nil), true},
		"unknown":    {many(0xf0, 0, []byte("x")), false},
	} {
		t.Run(name, func(t *testing.T) {
			h := dialHTTP2(t, address, nil)
			if tc.open { // a request whose body is to come
				block := http2Fields(products)
				if err := http2Frame(h, frameHeaders, 0x4, 1, block); err != nil {
					t.Fatal(err)
				}
			}
			sent := 0
			for ; sent < 8<<20; sent += len(tc.frames) {
				if _, err := h.Write(tc.frames); err != nil {
					break
				}
			}
			if sent >= 8<<20 {
				t.Fatalf("the gateway took %d MiB", sent>>20)
			}
			h.mustEnd(t)
		})
	}
	if n := f.limited(limitFrames); n == 0 {
		t.Error("nothing was counted")
	}
	core := dialHTTP2(t, address, nil)
	core.get(1, "authorization", bearer())
	eventually(t, "an answer", func() bool { return core.statusOf(1) == "200" })
	ping := many(framePing, 0, []byte("12345678"))
	for range 16 {
		if _, err := core.Write(ping); err != nil {
			t.Fatal(err)
		}
	}
	core.mustAnswer(t)
}

// TestOverheadOfHonestClients: the budget is no limit for downloads, whose receiver sends windows all the time.
func TestOverheadOfHonestClients(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil)
	f.server.handle(func(w http.ResponseWriter, r *http.Request) {
		for range 256 {
			w.Write(make([]byte, 256<<10))
		}
	})
	// The largest waste that a client can think of: a window for each 100 bytes.
	h := dialHTTP2(t, address, []byte{0, 4, 0, 0, 0, 0})
	block := http2Fields(products)
	http2Frame(h, frameHeaders, 0x5, 1, block)
	wide := binary.BigEndian.AppendUint32(nil, 1<<24)
	if err := http2Frame(h, frameWindow, 0, 0, wide); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for range 100 {
		http2Frame(&b, frameWindow, 0, 1, []byte{0, 0, 0, 100})
	}
	received := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.data
	}
	for i := range 40 { // 5 MB of the answer for 650 KB of windows
		for range 13 {
			if _, err := h.Write(b.Bytes()); err != nil {
				t.Fatalf("cut off: %v", err)
			}
		}
		eventually(t, "the data", func() bool { return received() >= (i+1)*13*100*100 || h.isClosed() })
	}
	h.mustAnswer(t)
}

// TestBodyThatWaits: the budget is no limit for a body that comes before anybody reads it: as much as its window allows.
func TestBodyThatWaits(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil, func(f *fixture, _ *Options) { f.settings.Hold.Timeout = time.Minute })
	asked, release := make(chan struct{}), make(chan struct{})
	f.control.onToken(func(context.Context, ident.UCloudUser, [32]byte) (bool, error) {
		close(asked)
		<-release
		return false, nil
	})
	h := dialHTTP2(t, address, nil)
	var block []byte
	// Bob has no instance, so the server is asked about the token.
	for _, kv := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "birch.example.net"}, {":path", "/ucloud/birch/upload?token=x&usernameHint=Qm9iIzE%3D"}} {
		block = hpackLiteral(block, kv[0], kv[1])
	}
	if err := http2Frame(h, frameHeaders, 0x4, 1, block); err != nil {
		t.Fatal(err)
	}
	<-asked
	for range receiveWindow >> 14 {
		if err := http2Frame(h, frameData, 0, 1, make([]byte, 1<<14)); err != nil {
			t.Fatalf("cut off: %v", err)
		}
	}
	h.mustAnswer(t)
	close(release)
	eventually(t, "an answer", func() bool { return h.statusOf(1) == "404" })
}

// TestHeadersWithoutEnd: net/http bounds them; the gateway relies on it.
func TestHeadersWithoutEnd(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil)
	h := dialHTTP2(t, address, nil)
	if err := http2Frame(h, frameHeaders, 0, 1, http2Fields(products)); err != nil { // no END_HEADERS
		t.Fatal(err)
	}
	piece := hpackLiteral(nil, "x-filler", string(bytes.Repeat([]byte("a"), 8<<10)))
	sent := 0
	for ; sent < 64<<20; sent += len(piece) {
		if http2Frame(h, frameContinuation, 0, 1, piece) != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Fatalf("the gateway took %d MiB of CONTINUATION frames", sent>>20)
	}
	h.mustEnd(t)
	if len(f.server.seen()) > 0 {
		t.Error("a request without an end was served")
	}
}

// TestHeaderBomb: one byte of HPACK can stand for 4 KiB.
//
//attack:actor internet
//attack:does Sends headers that decompress to a thousand times their size.
//attack:control The size of headers is bounded after decompression.
//attack:remove internal/gateway/server.go: MaxHeaderBytes:               l.MaxHeaderBytes, => MaxHeaderBytes:               1 << 30,
func TestHeaderBomb(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil)
	h := dialHTTP2(t, address, nil)
	block := http2Fields(products)
	// "Literal with incremental indexing, new name": the first entry of the dynamic table, index 62.
	bomb := hpackLiteral(nil, "x-bomb", string(bytes.Repeat([]byte("a"), 4000)))
	bomb[0] = 0x40
	block = append(block, bomb...)
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 8<<10)...) // 32 MiB
	if err := http2Frame(h, frameHeaders, 0x5, 1, block); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer or an end", func() bool {
		return h.statusOf(1) != "" || h.seen(frameReset)+h.seen(frameGoAway) > 0 || h.isClosed()
	})
	if s := h.statusOf(1); s == "200" {
		t.Errorf("status %q", s)
	}
	if strings.Contains(f.log.String(), products) {
		t.Error("the request got as far as the gateway's own code")
	}
}

// TestSlowHTTP2: clients that stop lose the stream, or the connection.
//
//attack:actor internet
//attack:does Asks for much and opens no window for the answer, for as long as it likes.
//attack:control A client that takes nothing of an answer for a while loses the stream.
//attack:remove internal/gateway/writer.go: g.rc.SetWriteDeadline(now.Add(g.timeout)) //nolint:errcheck // a connection without deadlines is a test's => _ = now
func TestSlowHTTP2(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil, func(f *fixture, _ *Options) {
		f.settings.Limits.StallTimeout = time.Second
	})
	f.server.handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for range 100 {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	mustStop := func(t *testing.T, h *http2Conn) { // although the client is alive: only the stream is at fault
		t.Helper()
		for range 600 {
			if f.metricInFlight() == 0 {
				return
			}
			if http2Frame(h, framePing, 1, 0, make([]byte, 8)) != nil {
				t.Fatal("the connection is gone, and not the stream")
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("the request goes on")
	}
	t.Run("no window", func(t *testing.T) {
		h := dialHTTP2(t, address, []byte{0, 4, 0, 0, 0, 0}) // SETTINGS_INITIAL_WINDOW_SIZE = 0
		if err := h.get(1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the head", func() bool { return h.statusOf(1) == "200" })
		mustStop(t, h)
	})
	t.Run("no body", func(t *testing.T) {
		h := dialHTTP2(t, address, nil)
		if err := http2Frame(h, frameHeaders, 0x4, 1, http2Fields(products)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the request has begun", func() bool { return f.metricInFlight() == 1 || h.statusOf(1) != "" })
		mustStop(t, h)
		eventually(t, "the answer", func() bool { return h.statusOf(1) == "400" })
	})
	t.Run("half of the headers", func(t *testing.T) {
		h := dialHTTP2(t, address, nil)
		block := http2Fields(products)
		if err := http2Frame(h, frameHeaders, 0, 1, block[:10]); err != nil {
			t.Fatal(err)
		}
		h.mustEnd(t)
	})
	t.Run("half of a frame", func(t *testing.T) {
		h := dialHTTP2(t, address, nil)
		h.Write([]byte{0, 1})
		h.mustEnd(t)
	})
	t.Run("nothing at all", func(t *testing.T) {
		h := dialHTTP2(t, address, nil)
		h.mustEnd(t)
	})
}

// TestHandshakeWithoutEnd: whoever connects and does not speak TLS, or stops in the middle, is sent away.
//
//attack:actor internet
//attack:does Opens many connections and never finishes the TLS handshake.
//attack:control The handshake has the time of a request's head.
//attack:remove internal/gateway/server.go: ReadHeaderTimeout: l.HeaderTimeout, => ReadHeaderTimeout: 0 * l.HeaderTimeout,
func TestHandshakeWithoutEnd(t *testing.T) {
	t.Parallel()
	f, address := http2Fixture(t, nil, func(f *fixture, _ *Options) { f.settings.Limits.HeaderTimeout = 300 * time.Millisecond })
	hello := []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3} // the first bytes of a ClientHello of 512
	for name, first := range map[string][]byte{"silence": nil, "half a hello": hello, "one byte": hello[:1]} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(first)
			c.SetReadDeadline(time.Now().Add(60 * time.Second))
			if _, err := io.ReadAll(c); err != nil {
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Error("the connection stays")
				}
			}
		})
	}
	eventually(t, "no connection is left", func() bool { return f.conns.len() == 0 })
}
