package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// halfCloseTimeout is how long a client may keep its side of an upgraded connection open after the instance has closed
// its own.
const halfCloseTimeout = 30 * time.Second

// upgraded is the upstream side of a connection that has switched protocols. ReverseProxy copies between it and the
// client; closing it ends both.
type upgraded struct {
	c     *upstreamConn
	large *bufferPool
	// done unregisters the connection; nil until it is registered.
	done func()
	once sync.Once
}

var (
	_ io.ReadWriteCloser = (*upgraded)(nil)
	_ io.WriterTo        = (*upgraded)(nil)
)

func (u *upgraded) Read(p []byte) (int, error)  { return u.c.br.Read(p) }
func (u *upgraded) Write(p []byte) (int, error) { return u.c.Conn.Write(p) }

// WriteTo copies to the client. First what came together with the head of the answer, then directly from socket to
// socket, which the kernel does without copying when neither side has TLS.
func (u *upgraded) WriteTo(w io.Writer) (int64, error) {
	return relay(w, u.c.br, u.c.Conn, u.large)
}

// CloseWrite passes a half-close on.
func (u *upgraded) CloseWrite() error {
	if cw, ok := u.c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Close implements [io.Closer]. It is safe to call it more than once and at any time.
func (u *upgraded) Close() error {
	err := u.c.Close()
	u.once.Do(func() {
		if u.done != nil {
			u.done()
		}
	})
	return err
}

// hijacked is the client side of an upgraded connection.
type hijacked struct {
	net.Conn
	br    *bufio.Reader // may hold what the client sent early
	large *bufferPool
	bytes *traffic
}

func (h *hijacked) Read(p []byte) (int, error) {
	n, err := h.br.Read(p)
	h.bytes.in.Add(int64(n))
	return n, err
}

func (h *hijacked) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(p)
	h.bytes.out.Add(int64(n))
	return n, err
}

// WriteTo copies to the instance, as [upgraded.WriteTo] does to the client.
func (h *hijacked) WriteTo(w io.Writer) (int64, error) {
	n, err := relay(w, h.br, h.Conn, h.large)
	h.bytes.in.Add(n)
	return n, err
}

// CloseWrite passes a half-close of the instance on and gives the client a while to do the same.
func (h *hijacked) CloseWrite() error {
	h.Conn.SetReadDeadline(time.Now().Add(halfCloseTimeout))
	if cw, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// relay writes to w what br has buffered and then everything from conn, which br must not read any more.
func relay(w io.Writer, br *bufio.Reader, conn net.Conn, buffers *bufferPool) (int64, error) {
	var total int64
	if n := br.Buffered(); n > 0 {
		b, err := br.Peek(n)
		if err != nil {
			return 0, err
		}
		written, err := w.Write(b)
		total = int64(written)
		if err != nil {
			return total, err
		}
		br.Discard(n)
	}
	// The sockets themselves, so that the kernel can splice.
	count := func(int64) {}
	switch t := w.(type) {
	case *hijacked:
		w, count = t.Conn, func(n int64) { t.bytes.out.Add(n) }
	case *upgraded:
		w = t.c.Conn
	}
	if tc, ok := w.(*trackedConn); ok {
		w = tc.Conn
	}
	if tc, ok := conn.(*trackedConn); ok {
		conn = tc.Conn
	}
	var n int64
	var err error
	dst, dstTCP := w.(*net.TCPConn)
	src, srcTCP := conn.(*net.TCPConn)
	if dstTCP && srcTCP {
		n, err = dst.ReadFrom(src)
	} else {
		buf := buffers.Get()
		n, err = io.CopyBuffer(onlyWriter{w}, onlyReader{conn}, buf)
		buffers.Put(buf)
	}
	count(n)
	return total + n, err
}

type onlyReader struct{ io.Reader }

// isWebSocket tells whether a request asks for the only upgrade that is passed on. All others, h2c among them, are
// ignored (RFC 9110 section 7.8): an upstream that took one up would speak a protocol that this process does not see.
func isWebSocket(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method == http.MethodGet &&
		hasToken(r.Header["Connection"], "upgrade") && len(r.Header["Upgrade"]) == 1 && equalFold(r.Header["Upgrade"][0], "websocket")
}
