package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The transport is synchronous: the goroutine of the request writes it, reads the answer's head and hands the rest to
// httputil.ReverseProxy. net/http's Transport needs two goroutines for each connection, whose wake-ups cost more than
// everything else the gateway does (experiments section 6). Only a request body that is streamed has a goroutine of its
// own, since the answer may come before the body has ended.

// What a failed exchange means for the answer (contract 02 point 9.22).
var (
	// errNotHandedOver: the upstream cannot have read a byte. It is safe to send the request again.
	errNotHandedOver = errors.New("nothing was handed over")
	// errNoAnswer: the request may have been read, and no byte of an answer came.
	errNoAnswer = errors.New("no answer")
	// errBadAnswer: the answer began and is not usable.
	errBadAnswer = errors.New("bad answer")
)

// outgoing is a request on its way to an upstream.
type outgoing struct {
	req    *http.Request // with the final URL, host and header
	small  []byte        // the complete body, or
	stream io.Reader     // a body that is sent while it is read; nil if there is none
	length int64         // of the stream, -1 if unknown
	// stopReading makes a pending Read of stream return soon.
	stopReading   func()
	answerTimeout time.Duration
	buffers       *bufferPool // for the stream
}

// send performs one exchange. On success the body of the answer owns the connection; for 101 it is an
// [io.ReadWriteCloser]. Errors wrap one of the three above.
func (u *upstream) send(ctx context.Context, out *outgoing) (*http.Response, error) {
	c, _, err := u.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotHandedOver, err)
	}
	// Closing the connection is what makes a blocked read or write return when the client has gone.
	stop := context.AfterFunc(ctx, func() { c.Close() })
	res, err := u.exchange(c, out, stop)
	if err != nil {
		stop()
		c.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		return nil, err
	}
	return res, nil
}

func (u *upstream) exchange(c *upstreamConn, out *outgoing, stop func() bool) (*http.Response, error) {
	if err := u.begin(c); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotHandedOver, err)
	}
	err := writeHead(c, out)
	if err == nil && out.small != nil {
		_, err = c.bw.Write(out.small)
	}
	if err == nil {
		err = c.bw.Flush()
	}
	u.finish(c)
	if err != nil {
		if c.wrote.Load() == 0 {
			return nil, fmt.Errorf("%w: %w", errNotHandedOver, err)
		}
		// The upstream may have answered early and closed; otherwise the read below fails too.
		c.SetReadDeadline(time.Now().Add(time.Second))
	} else if out.stream == nil {
		c.SetReadDeadline(time.Now().Add(out.answerTimeout))
	}
	var up *upload
	if out.stream != nil && err == nil {
		up = startUpload(c, out)
	}
	res, err := readHead(c, out.req)
	if err != nil {
		if up != nil {
			c.Close()
			up.stop()
			if up.clientErr != nil {
				return nil, fmt.Errorf("%w: read the request body: %w", errClient, up.clientErr)
			}
		}
		if c.read {
			return nil, fmt.Errorf("%w: %w", errBadAnswer, err)
		}
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if up == nil || up.answered() {
		c.SetReadDeadline(time.Time{})
	}
	c.budget = math.MaxInt64
	if res.StatusCode == http.StatusSwitchingProtocols {
		stop()
		res.Body = &upgraded{c: c}
		return res, nil
	}
	res.Body = &answerBody{
		body: res.Body, u: u, c: c, stop: stop, upload: up,
		// Nothing may be left on a connection that is used again, neither of the answer nor of the request.
		reusable: !res.Close && err == nil, ended: res.Body == http.NoBody,
	}
	return res, nil
}

// errClient: the client's own fault, such as a body that stalls or ends early.
var errClient = errors.New("bad request body")

// readHead reads the head of the final answer, skipping interim ones.
func readHead(c *upstreamConn, req *http.Request) (*http.Response, error) {
	c.budget = maxAnswerHead
	for {
		res, err := http.ReadResponse(c.br, req)
		if err != nil {
			return nil, err
		}
		// The budget bounds the number of interim answers too. 101 is final (RFC 9110 section 15.2.2).
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, nil
		}
	}
}

// writeHead writes the head of the request into the buffer of the connection. Names and values were validated by
// net/http when they came in or are our own; a line break would still be refused here, since it would start a second
// request.
func writeHead(c *upstreamConn, out *outgoing) error {
	r, w := out.req, c.bw
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(r.URL.RequestURI())
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(r.Host)
	w.WriteString("\r\n")
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer", "Expect":
			continue // ours to decide; Expect was answered by reading the body
		}
		for _, v := range values {
			if v == "" && name == "User-Agent" {
				continue // how ReverseProxy says that there was none
			}
			if strings.ContainsAny(v, "\r\n\x00") || strings.ContainsAny(name, ": \r\n\x00") {
				return fmt.Errorf("header %q cannot be forwarded", name)
			}
			w.WriteString(name)
			w.WriteString(": ")
			w.WriteString(v)
			w.WriteString("\r\n")
		}
	}
	switch {
	case out.stream != nil && out.length < 0:
		w.WriteString("Transfer-Encoding: chunked\r\n")
	case out.stream != nil:
		writeLength(c, out.length)
	case out.small != nil || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		writeLength(c, int64(len(out.small)))
	}
	_, err := w.WriteString("\r\n") // bufio keeps the first error
	return err
}

func writeLength(c *upstreamConn, n int64) {
	c.bw.WriteString("Content-Length: ")
	c.bw.Write(strconv.AppendInt(c.bw.AvailableBuffer(), n, 10))
	c.bw.WriteString("\r\n")
}

// upload is a request body being streamed.
type upload struct {
	done      chan struct{}
	complete  bool  // valid after done
	clientErr error // reading failed; valid after done
	interrupt func()

	mu   sync.Mutex
	sent bool // the body has been sent, and a deadline for the answer is set
	head bool // the head of the answer is there
}

// answered is called when the head of the answer has been read. It tells whether there is a deadline to remove.
func (up *upload) answered() bool {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.head = true
	return up.sent
}

// expectAnswer starts the time that the upstream has for its answer: an upload itself may take hours.
func (up *upload) expectAnswer(c *upstreamConn, timeout time.Duration) {
	up.mu.Lock()
	defer up.mu.Unlock()
	if !up.head {
		up.sent = true
		c.SetReadDeadline(time.Now().Add(timeout))
	}
}

func startUpload(c *upstreamConn, out *outgoing) *upload {
	up := &upload{done: make(chan struct{}), interrupt: out.stopReading}
	go func() { // waited for by answerBody.Close, or by exchange
		defer close(up.done)
		up.run(c, out)
	}()
	return up
}

func (up *upload) run(c *upstreamConn, out *outgoing) {
	buf := out.buffers.Get()
	defer out.buffers.Put(buf)
	body := &bodyReader{r: out.stream}
	var err error
	if out.length < 0 {
		chunks := httputil.NewChunkedWriter(c)
		if _, err = io.CopyBuffer(onlyWriter{chunks}, body, buf); err == nil {
			if err = chunks.Close(); err == nil {
				_, err = c.Write([]byte("\r\n")) // no trailers
			}
		}
	} else {
		var n int64
		n, err = io.CopyBuffer(onlyWriter{c}, body, buf)
		if err == nil && n != out.length {
			err = io.ErrUnexpectedEOF
			body.err = err
		}
	}
	up.complete = err == nil
	up.expectAnswer(c, out.answerTimeout)
	up.clientErr = body.err
	if body.err != nil {
		c.Close() // the upstream must not take a part for the whole
	}
}

// stop ends the upload, whose connection the caller has closed, and waits for its goroutine.
func (up *upload) stop() {
	select {
	case <-up.done:
		return
	default:
	}
	if up.interrupt != nil {
		up.interrupt()
	}
	<-up.done
}

// bodyReader remembers why reading failed, to tell the client's fault from the upstream's.
type bodyReader struct {
	r   io.Reader
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// answerBody is the body of an answer; closing it returns the connection to the pool if it can be used again.
type answerBody struct {
	body     io.ReadCloser
	u        *upstream
	c        *upstreamConn
	stop     func() bool
	upload   *upload
	reusable bool
	ended    bool // the end has been read
	once     sync.Once
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err == io.EOF {
		b.ended = true
	}
	return n, err
}

// uploadEnd is how long the end of an upload is waited for after the end of the answer.
const uploadEnd = 10 * time.Millisecond

// Close implements [io.Closer].
func (b *answerBody) Close() error {
	b.once.Do(b.close)
	return nil
}

func (b *answerBody) close() {
	reusable := b.reusable && b.ended
	if b.upload != nil {
		// The upstream answers when it has everything, a moment before the goroutine that sent it has noticed.
		timer := time.NewTimer(uploadEnd)
		defer timer.Stop()
		select {
		case <-b.upload.done:
			reusable = reusable && b.upload.complete
		case <-timer.C:
			reusable = false // answered without reading the whole request
			b.c.Close()
			b.upload.stop()
		}
	}
	if b.stop() && reusable && b.c.br.Buffered() == 0 {
		b.u.put(b.c)
		return
	}
	b.c.Close()
}

// bufferPool implements [httputil.BufferPool].
type bufferPool struct {
	size int
	pool sync.Pool
}

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, p.size)
}

func (p *bufferPool) Put(b []byte) {
	if cap(b) >= p.size {
		b = b[:p.size]
		p.pool.Put(&b)
	}
}

// readAll reads a body of a known small length, or of any length up to limit. It gives false if there is more.
func readAll(r io.Reader, length, limit int64) ([]byte, bool, error) {
	if length > limit {
		return nil, false, nil
	}
	if length >= 0 {
		b := make([]byte, length)
		_, err := io.ReadFull(r, b)
		return b, true, err
	}
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	return b.Bytes(), n <= limit, err
}
