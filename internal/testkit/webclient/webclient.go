// Package webclient is the other side of uploads and downloads for tests and measurements: it sends files over the
// protocol WEBSOCKET_V2 as UCloud's web interface does (contract 11 section 2), and it shares no code with what it talks
// to. The frames are made here rather than by a library, because a library's small writes would be what is measured.
package webclient

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// The numbers of the web interface (contract 11 section 2.3).
const (
	batch      = 5000
	frameBytes = 65536
	chunkBytes = 16_000_000
	inFlight   = 256
)

// File is one file to be sent.
type File struct {
	Path     string // below the folder of the session; empty for a session of a single file
	Size     int64
	Modified int64 // ms since the epoch
	Open     func() (io.ReadCloser, error)
}

// Disk is a file of this machine.
func Disk(local, path string) (File, error) {
	info, err := os.Stat(local)
	if err != nil {
		return File{}, err
	}
	return File{
		Path: path, Size: info.Size(), Modified: info.ModTime().UnixMilli(),
		Open: func() (io.ReadCloser, error) { return os.Open(local) },
	}, nil
}

// Result is what the browser knows at the end.
type Result struct {
	Completed int   // as the server says
	Skipped   []int // files that the server did not want, by their number
	Bytes     int64 // of content
}

// Client holds what is the same for all uploads. The zero value is ready.
type Client struct {
	Chunk int // bytes of content in a message; 0: 16,000,000
	// Sent is told of content that has been sent; its error ends the upload as if the browser was closed.
	Sent func(n int64) error
}

// ErrClosed tells that the server or what is between has closed the connection before all files were completed. A
// browser shows that as the end of the upload (contract 11 section 2.3 point 6).
var ErrClosed = errors.New("the connection was closed before all files were completed")

// Upload sends files to the endpoint of a session and returns when all are completed.
func (c *Client) Upload(ctx context.Context, endpoint string, files []File) (Result, error) {
	conn, err := dial(ctx, endpoint)
	if err != nil {
		return Result{}, err
	}
	u := &upload{client: c, conn: conn, files: files, change: make(chan struct{}, 1), wanted: nil}
	if u.chunk = c.Chunk; u.chunk <= 0 {
		u.chunk = chunkBytes
	}
	stop := context.AfterFunc(ctx, func() { conn.nc.Close() }) //nolint:errcheck // it is to end
	defer stop()
	var reader sync.WaitGroup
	reader.Go(u.read)
	err = u.send()
	if err == nil {
		err = conn.write(opClose, nil) // normal close, no CLOSE message of the protocol
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	conn.nc.Close() //nolint:errcheck // nothing to lose
	reader.Wait()
	slices.Sort(u.res.Skipped)
	return u.res, err
}

type upload struct {
	client *Client
	conn   *socket
	files  []File
	chunk  int
	buf    []byte

	change chan struct{}

	mu     sync.Mutex // guards the fields below
	wanted []int      // last in, first out
	res    Result
	over   error
}

// send lists and sends until everything is completed.
func (u *upload) send() error {
	listed := 0
	for {
		u.mu.Lock()
		over, completed := u.over, u.res.Completed
		next := -1
		if n := len(u.wanted); n > 0 {
			next, u.wanted = u.wanted[n-1], u.wanted[:n-1]
		}
		u.mu.Unlock()
		switch {
		case over != nil && completed < len(u.files):
			return fmt.Errorf("%w: %w (%d of %d)", ErrClosed, over, completed, len(u.files))
		case completed > listed:
			return fmt.Errorf("the server has completed %d files of %d", completed, listed)
		case next >= 0:
			if err := u.sendFile(next); err != nil {
				return err
			}
		case completed == len(u.files):
			return nil
		case listed < len(u.files) && completed >= listed:
			var err error
			if listed, err = u.list(listed); err != nil {
				return err
			}
		default:
			<-u.change
		}
	}
}

func (u *upload) list(from int) (int, error) {
	to := min(from+batch, len(u.files))
	frame := []byte{4}
	for i := from; i < to; i++ {
		f := u.files[i]
		if len(frame)+24+len(f.Path) > frameBytes {
			if err := u.conn.write(opBinary, frame); err != nil {
				return from, err
			}
			frame = []byte{4}
		}
		frame = binary.BigEndian.AppendUint32(frame, uint32(i)) //nolint:gosec // a count of files
		frame = binary.BigEndian.AppendUint64(frame, uint64(f.Size))
		frame = binary.BigEndian.AppendUint64(frame, uint64(f.Modified))
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(f.Path))) //nolint:gosec // a path
		frame = append(frame, f.Path...)
	}
	return to, u.conn.write(opBinary, frame)
}

func (u *upload) sendFile(i int) error {
	f := u.files[i]
	r, err := f.Open()
	if err != nil {
		return u.conn.write(opBinary, binary.BigEndian.AppendUint32([]byte{3}, uint32(i))) //nolint:gosec // a count of files
	}
	defer r.Close() //nolint:errcheck // only read
	for left := f.Size; ; {
		n := min(left, int64(u.chunk))
		if int64(cap(u.buf)) < 5+n {
			u.buf = make([]byte, max(5+n, 64<<10))
		}
		msg := u.buf[:5+n]
		msg[0] = 2
		binary.BigEndian.PutUint32(msg[1:], uint32(i)) //nolint:gosec // a count of files
		if _, err := io.ReadFull(r, msg[5:]); err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
		if err := u.conn.write(opBinary, msg); err != nil {
			return err
		}
		u.mu.Lock()
		u.res.Bytes += n
		u.mu.Unlock()
		if u.client.Sent != nil {
			if err := u.client.Sent(n); err != nil {
				return err
			}
		}
		if left -= n; left == 0 {
			return nil
		}
	}
}

func (u *upload) read() {
	var err error
	for err == nil {
		var msg []byte
		if msg, err = u.conn.read(); err == nil {
			err = u.answers(msg)
		}
		u.signal()
	}
	u.mu.Lock()
	u.over = err
	u.mu.Unlock()
	u.signal()
}

func (u *upload) signal() {
	select {
	case u.change <- struct{}{}:
	default:
	}
}

// answers parses what a browser can parse, and nothing else (contract 11 section 2.1).
func (u *upload) answers(msg []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for ; len(msg) > 0; msg = msg[5:] {
		if len(msg) < 5 {
			return fmt.Errorf("an answer of %d bytes", len(msg))
		}
		v := int(int32(binary.BigEndian.Uint32(msg[1:]))) //nolint:gosec // two's complement
		if msg[0] != 5 && (v < 0 || v >= len(u.files)) {
			return fmt.Errorf("an answer about the unknown file %d", v)
		}
		switch msg[0] {
		case 0:
			u.wanted = append(u.wanted, v)
		case 3:
			u.res.Skipped = append(u.res.Skipped, v)
		case 5:
			if v < u.res.Completed {
				return fmt.Errorf("completed goes from %d to %d", u.res.Completed, v)
			}
			u.res.Completed = v
		default:
			return fmt.Errorf("opcode %d is nothing for a browser", msg[0])
		}
	}
	return nil
}

// The opcodes of WebSocket frames (RFC 6455 section 5.2).
const (
	opContinue = 0x0
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xA
)

// socket is the client's side of a WebSocket, with as few writes as possible.
type socket struct {
	nc net.Conn
	br *bufio.Reader

	mu  sync.Mutex // one frame at a time
	out []byte
}

// dial makes the handshake as a browser does, without a subprotocol.
func dial(ctx context.Context, endpoint string) (*socket, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	host, secure := u.Host, u.Scheme == "wss"
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[bool]string{true: "443", false: "80"}[secure])
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	if secure {
		nc = tls.Client(nc, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
	}
	s := &socket{nc: nc, br: bufio.NewReaderSize(nc, 64<<10)}
	stop := context.AfterFunc(ctx, func() { nc.Close() }) //nolint:errcheck // it is to end
	defer stop()
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // cannot fail
	_, err = fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
		u.RequestURI(), u.Host, base64.StdEncoding.EncodeToString(nonce[:]))
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(s.br, nil)
	}
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		err = &StatusError{Status: res.StatusCode, Text: string(text)}
	}
	if err != nil {
		nc.Close() //nolint:errcheck // the first error counts
		return nil, fmt.Errorf("connect to the upload: %w", err)
	}
	return s, nil
}

// StatusError is an answer that is not the start of an upload.
type StatusError struct {
	Status int
	Text   string
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d %s", e.Status, e.Text) }

// write sends one message. Clients mask (RFC 6455 section 5.3).
func (s *socket) write(op byte, msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var key [4]byte
	_, _ = rand.Read(key[:]) // cannot fail
	h := append(s.out[:0], 0x80|op)
	switch n := len(msg); {
	case n < 126:
		h = append(h, 0x80|byte(n))
	case n < 1<<16:
		h = binary.BigEndian.AppendUint16(append(h, 0x80|126), uint16(n))
	default:
		h = binary.BigEndian.AppendUint64(append(h, 0x80|127), uint64(n))
	}
	h = append(h, key[:]...)
	// The message is masked and sent in pieces, so that it stays in the processor's cache.
	word := uint64(binary.LittleEndian.Uint32(key[:]))
	word |= word << 32
	for first := true; first || len(msg) > 0; first = false {
		n := min(len(msg), 256<<10)
		at := len(h)
		h = append(h, msg[:n]...)
		msg = msg[n:]
		mask(h[at:], word)
		if _, err := s.nc.Write(h); err != nil {
			return err
		}
		h = h[:0]
	}
	s.out = h
	return nil
}

// mask applies the key, whose first byte is for the first byte. All pieces but the last have a length that 8 divides.
func mask(b []byte, word uint64) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^word)
	}
	for i := range b {
		b[i] ^= byte(word >> (8 * i))
	}
}

// read gives the next binary message. Pings are answered.
func (s *socket) read() ([]byte, error) {
	var msg []byte
	for {
		var h [2]byte
		if _, err := io.ReadFull(s.br, h[:]); err != nil {
			return nil, err
		}
		length := uint64(h[1] & 0x7f)
		if length >= 126 {
			ext := make([]byte, map[uint64]int{126: 2, 127: 8}[length])
			if _, err := io.ReadFull(s.br, ext); err != nil {
				return nil, err
			}
			length = binary.BigEndian.Uint64(append(make([]byte, 8-len(ext)), ext...))
		}
		if h[1]&0x80 != 0 || h[0]&0x70 != 0 || length > 1<<20 {
			return nil, fmt.Errorf("a frame that a server must not send: %x, %d bytes", h, length)
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(s.br, payload); err != nil {
			return nil, err
		}
		switch op := h[0] & 0xf; op {
		case opBinary, opContinue:
			msg = append(msg, payload...)
			if h[0]&0x80 != 0 {
				return msg, nil
			}
		case opPing:
			if err := s.write(opPong, payload); err != nil {
				return nil, err
			}
		case opPong:
		case opClose:
			code, reason := 0, ""
			if len(payload) >= 2 {
				code, reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
			}
			return nil, &CloseError{Code: code, Reason: reason}
		default:
			return nil, fmt.Errorf("a browser ends the connection for a message of kind %d", op)
		}
	}
}

// CloseError is a close that the server has asked for.
type CloseError struct {
	Code   int
	Reason string
}

// Error implements error.
func (e *CloseError) Error() string { return fmt.Sprintf("closed with %d %q", e.Code, e.Reason) }

// Download gets the endpoint of a download session, from an offset on. The caller closes the body.
func Download(ctx context.Context, endpoint string, offset int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	want := http.StatusOK
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		want = http.StatusPartialContent
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		res.Body.Close() //nolint:errcheck // the status counts
		return nil, &StatusError{Status: res.StatusCode, Text: strings.TrimSpace(string(text))}
	}
	return res, nil
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second, ReadBufferSize: 64 << 10}}
