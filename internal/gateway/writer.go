package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// traffic counts the bytes of a request for the access log. Both directions of an upgraded connection run at the same
// time.
type traffic struct {
	in, out atomic.Int64
	conn    *trackedConn // nil in tests without a listener
}

// What a client may send beside it, in bytes, for each request, and for each byte of a body or an answer: headers, frames,
// acknowledgements.
const (
	overheadOfRequest = 16 << 10
	overheadOfBody    = 2
	overheadOfAnswer  = 4 // bytes of the answer for one of overhead
)

func (t *traffic) request() {
	if t.conn != nil {
		t.conn.allow(overheadOfRequest)
	}
}

func (t *traffic) received(n int) {
	t.in.Add(int64(n))
	if t.conn != nil {
		t.conn.allow(int64(n) * overheadOfBody)
	}
}

func (t *traffic) sent(n int) {
	t.out.Add(int64(n))
	if t.conn != nil {
		t.conn.allow(int64(n) / overheadOfAnswer)
	}
}

// stallGuard gives a client time as long as it makes progress: the deadlines of net/http's Server would cut long uploads
// and downloads, and without any deadline a client that stops costs a connection for ever.
type stallGuard struct {
	rc      *http.ResponseController
	timeout time.Duration

	writeSet time.Time // when the write deadline was set last
}

// minProgress is the number of body bytes that a client must send within the stall timeout.
const minProgress = 1 << 10

// writing is called before each write.
func (g *stallGuard) writing() {
	now := time.Now()
	if now.Sub(g.writeSet) < g.timeout/4 {
		return
	}
	g.writeSet = now
	g.rc.SetWriteDeadline(now.Add(g.timeout)) //nolint:errcheck // a connection without deadlines is a test's
}

// responseWriter is the client's side of one request: it counts, remembers the status, moves the write deadline and
// marks the connection as closing while the gateway drains.
type responseWriter struct {
	http.ResponseWriter
	guard  stallGuard
	bytes  *traffic
	status int // 0: nothing was written
	// draining asks the client to use another connection next time. With HTTP/2, net/http turns this into GOAWAY.
	draining *atomic.Bool
	body     *clientBody // of a request of HTTP/1 that has one
	large    *bufferPool
}

// WriteHeader implements [http.ResponseWriter].
func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
		if w.draining.Load() && status != http.StatusSwitchingProtocols || w.body != nil && !w.body.mayFollow() {
			w.Header().Set("Connection", "close")
		}
	}
	w.guard.writing()
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.guard.writing()
	n, err := w.ResponseWriter.Write(p)
	w.bytes.sent(n)
	return n, err
}

// Unwrap lets [http.ResponseController] find the methods of the server's writer.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack gives ReverseProxy the connection for an upgrade, without losing what the client has sent already.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	return &hijacked{Conn: conn, br: rw.Reader, large: w.large, bytes: w.bytes}, rw, nil
}

// clientBody is the body of a request. It counts, and it demands progress: a read must not wait longer than the stall
// timeout, and within that time at least minProgress bytes must come.
type clientBody struct {
	body  io.ReadCloser
	guard *stallGuard
	bytes *traffic

	streamed bool // to an instance, while the answer may come already
	touched  bool // Read was called
	set      bool // a read deadline is set
	pending  int  // bytes since the deadline was set
	total    int64
	most     int64 // bytes that may come, if it is not 0

	ended, broken atomic.Bool // the end was read; reading has failed
}

// errTooLong is a body that is longer than its sender may make it.
var errTooLong = errors.New("the body is too long")

func (b *clientBody) Read(p []byte) (int, error) {
	b.touched = true
	if !b.set || b.pending >= minProgress {
		b.set, b.pending = true, 0
		b.guard.rc.SetReadDeadline(time.Now().Add(b.guard.timeout)) //nolint:errcheck // as above
	}
	n, err := b.body.Read(p)
	b.pending += n
	b.bytes.received(n)
	if b.total += int64(n); b.most > 0 && b.total > b.most {
		b.broken.Store(true)
		return n, errTooLong
	}
	switch err {
	case nil:
	case io.EOF:
		b.ended.Store(true)
		// net/http goes on reading in the background to see whether the client leaves; an old deadline would look like that.
		b.guard.rc.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	default:
		b.broken.Store(true)
	}
	return n, err
}

// mayFollow tells, before an answer, whether the client may send another request behind this body. What is left of a body
// must not be read as one. If nobody has begun to read it, net/http does so before it answers, unless it is long.
func (b *clientBody) mayFollow() bool {
	switch {
	case b.ended.Load():
		return true
	case b.streamed || b.broken.Load():
		return false
	}
	b.linger()
	return true
}

// linger gives the client a moment to send what is left of its body, which net/http reads so that the client sees the answer
// and not a broken connection. Without this it would wait for ever.
func (b *clientBody) linger() {
	if !b.ended.Load() {
		b.guard.rc.SetReadDeadline(time.Now().Add(endAfter)) //nolint:errcheck // as above
	}
}

// interrupt makes a pending Read return soon. After the end it does nothing: net/http reads in the background then, and would
// take the connection for dead, for this request and all that follow.
func (b *clientBody) interrupt() {
	if !b.ended.Load() {
		b.guard.rc.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // best effort
	}
}

// Close implements [io.Closer]. It leaves closing to net/http, which does it after the answer.
func (b *clientBody) Close() error { return nil }

// hasToken tells whether a comma separated header holds a token, ignoring case.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if equalFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// equalFold compares ASCII texts, ignoring case. strings.EqualFold would also match letters outside of ASCII that fold to
// ASCII ones.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}
