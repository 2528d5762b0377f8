//go:build bench

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// answerTimeout is how long an answer may take. Core itself gives up after 5 s; pages of large directories go directly.
const answerTimeout = 30 * time.Second

// conn is a keep-alive connection for one request at a time. It does what HTTP needs here and no more: the load generator
// shares the cores with what it measures.
type conn struct {
	c    net.Conn
	r    *bufio.Reader
	body []byte // of the last answer; valid until the next request

	closes bool // the last answer is the last on this connection
}

func dial(address string) (*conn, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return newConn(c), nil
}

func newConn(c net.Conn) *conn { return &conn{c: c, r: bufio.NewReaderSize(c, 16<<10)} }

func (c *conn) close() { c.c.Close() }

// do sends a whole request and reads the answer. The body is in c.body.
func (c *conn) do(request []byte) (status int, err error) {
	if err := c.c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	if _, err := c.c.Write(request); err != nil {
		return 0, err
	}
	length, chunked := -1, false
	c.closes = false
	for first := true; ; first = false {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, fmt.Errorf("read the answer: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if first {
			f := bytes.Fields(line)
			if len(f) < 2 {
				return 0, fmt.Errorf("not HTTP: %.80q", line)
			}
			if status, err = strconv.Atoi(string(f[1])); err != nil {
				return 0, fmt.Errorf("not HTTP: %.80q", line)
			}
			continue
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, fmt.Errorf("bad length %.40q", value)
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked"))
		case bytes.EqualFold(name, []byte("connection")):
			c.closes = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	c.body = c.body[:0]
	switch {
	case chunked:
		return status, c.readChunks()
	case length >= 0:
		return status, c.readBody(length)
	}
	return status, errors.New("an answer without a length")
}

func (c *conn) readBody(n int) error {
	for n > 0 {
		data, err := c.r.Peek(min(n, c.r.Size()))
		if len(data) == 0 {
			return fmt.Errorf("read the body: %w", err)
		}
		c.body = append(c.body, data...)
		n -= len(data)
		_, _ = c.r.Discard(len(data)) // they are buffered
	}
	return nil
}

func (c *conn) readChunks() error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read a chunk: %w", err)
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return fmt.Errorf("bad chunk %.40q", line)
		}
		if err := c.readBody(int(n)); err != nil {
			return err
		}
		if line, err = c.r.ReadSlice('\n'); err != nil || len(bytes.TrimSpace(line)) > 0 { // no trailers are expected
			return fmt.Errorf("bad end of a chunk %.40q: %w", line, err)
		}
		if n == 0 {
			return nil
		}
	}
}

// request gives the bytes of a POST as Core sends it: host is the one of the provider, whoever the request goes to first.
// Further headers are whole lines.
func request(host, path string, who ident.UCloudUser, body any, headers ...string) ([]byte, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n%s: %s\r\nAccept-Encoding: identity\r\n",
		path, host, len(data), ident.HeaderUser, who.HeaderValue())
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(data)
	return []byte(b.String()), nil
}

// Paths of the calls, as Core uses them.
const (
	browsePath   = "/ucloud/" + provider + "/files/browse"
	retrievePath = "/ucloud/" + provider + "/files/retrieve"
)

// browseOf is a listing of a directory in the person's home drive; rel begins with a slash or is empty.
func (p *person) browseOf(rel string, perPage int, next *string) providerapi.FilesBrowse {
	path := "/" + string(p.drive.ID) + rel
	yes := true
	return providerapi.FilesBrowse{ResolvedCollection: p.drive, Browse: providerapi.BrowseParams{
		Flags:        providerapi.FileFlags{Path: &path, IncludeSizes: &yes, IncludeTimestamps: &yes, IncludeUnixInfo: &yes},
		ItemsPerPage: perPage, Next: next,
	}}
}

// homeRequest is Core's request for the first 50 entries of the person's home.
func (w *world) homeRequest(p *person) ([]byte, error) {
	return request(w.gate, browsePath, p.name, p.browseOf("", 50, nil), "Authorization: Bearer "+w.core.ServiceToken())
}

// expectOK makes an error of every answer but 200.
func (c *conn) expectOK(request []byte) error {
	status, err := c.do(request)
	if err == nil && status != 200 {
		err = fmt.Errorf("answer %d: %.300s", status, c.body)
	}
	return err
}
