package coreapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

const (
	defaultTimeout   = 10 * time.Second
	defaultUserAgent = "ucloud-im"

	// maxErrorBody bounds what is read of an error answer, maxDrain what is read to be able to reuse a connection.
	maxErrorBody = 16 << 10
	maxDrain     = 64 << 10
)

// request is one HTTP exchange with Core.
type request struct {
	call    string // dotted name for errors and logs
	method  string
	url     string
	token   string // empty only for the token exchange
	agent   string
	body    any // nil: none
	maxBody int64
}

// send makes one exchange and decodes the answer into out (nil: the answer is not looked at). See the package comment
// for what the errors tell.
func send(ctx context.Context, hc *http.Client, timeout time.Duration, r request, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	// net/http sends a request a second time only if the first connection took nothing of it or, for requests
	// without a body, if they are idempotent by method. So a POST is on the wire at most once.
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := newRequest(ctx, r)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", r.call, ErrNotSent, err)
	}
	resp, err := hc.Do(req)
	if err != nil {
		outcome := ErrNotSent
		if connected.Load() {
			outcome = ErrNoAnswer
		}
		return fmt.Errorf("%s: %w: %w", r.call, outcome, withoutURL(err))
	}
	defer func() {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
		_ = resp.Body.Close()
	}()

	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		return statusError(r.call, resp.StatusCode, body)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, r.maxBody+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: read the answer: %w", r.call, ErrNoAnswer, err)
	case int64(len(body)) > r.maxBody:
		return fmt.Errorf("%s: %w: the answer is longer than %d bytes", r.call, ErrNoAnswer, r.maxBody)
	case out == nil:
		return nil // any 2xx is success for calls without a result
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s: %w: decode the answer: %w", r.call, ErrNoAnswer, err)
	}
	return nil
}

func newRequest(ctx context.Context, r request) (*http.Request, error) {
	var body io.Reader
	if r.body != nil {
		raw, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return nil, errors.New("the request cannot be built")
	}
	req.Header.Set("User-Agent", r.agent)
	req.Header.Set("Accept", "application/json")
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	return req, nil
}
