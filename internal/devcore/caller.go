package devcore

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"time"

	"ucloud-im/internal/ident"
)

// CallError is what an end user sees when a call of the provider fails (recording 08).
type CallError struct {
	StatusCode   int    `json:"statusCode"`
	Why          string `json:"why"`
	ErrorCode    string `json:"errorCode"`
	DetailedCode int    `json:"detailedCode"`
}

// Error implements error.
func (e *CallError) Error() string { return fmt.Sprintf("%d %s", e.StatusCode, e.Why) }

// unreadableBody is the detail with which Core reports a success it cannot decode.
const unreadableBody = 327681

const maxProviderBody = 16 << 20

// Call calls the provider as Core does for a user: up to five repetitions after 449 and 503, init before each. An
// empty user makes a call on nobody's behalf, which is never repeated. response may be nil.
func (c *Core) Call(ctx context.Context, who ident.UCloudUser, method, path string, request, response any) error {
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return err
		}
	}
	for try := 0; ; try++ {
		status, data, err := c.once(ctx, who, method, path, body, intentsOf(ctx)...)
		again := who != "" && try < 5 && (status == 449 || status == http.StatusServiceUnavailable)
		if err != nil || !again {
			return finish(status, data, err, response)
		}
		initBody, err := json.Marshal(map[string]any{"username": who})
		if err != nil {
			return err
		}
		// The result of init is ignored, even a failure.
		_, _, _ = c.once(ctx, who, http.MethodPost, "/ucloud/"+c.opt.Provider+"/integration/init", initBody)
		select {
		case <-time.After(c.opt.RetryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func finish(status int, data []byte, err error, response any) error {
	if err != nil {
		return &CallError{StatusCode: http.StatusBadGateway}
	}
	if status < 200 || status > 299 {
		e := &CallError{}
		_ = json.Unmarshal(data, e) // a body that is not JSON loses its text
		e.StatusCode = status
		return e
	}
	if response == nil {
		response = &struct{}{}
	}
	if json.Unmarshal(data, response) != nil {
		return &CallError{StatusCode: http.StatusBadGateway, DetailedCode: unreadableBody}
	}
	return nil
}

// once makes one attempt.
func (c *Core) once(ctx context.Context, who ident.UCloudUser, method, path string, body []byte, intents ...string) (int, []byte, error) {
	c.capture(Captured{User: who, Method: method, Path: path, Body: string(body), Intents: intents})
	h := http.Header{}
	addIntents(h, intents)
	return c.exchange(ctx, who, method, path, body, h)
}

// exchange sends a request. The 5 s limit covers the whole exchange. No Content-Type is sent.
func (c *Core) exchange(ctx context.Context, who ident.UCloudUser, method, path string, body []byte, more http.Header) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.opt.ProviderURL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.ServiceToken())
	if who != "" {
		req.Header.Set(ident.HeaderUser, who.HeaderValue())
	}
	req.Header.Set("Accept-Encoding", "gzip")
	maps.Copy(req.Header, more)
	res, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	var r io.Reader = res.Body
	if res.Header.Get("Content-Encoding") == "gzip" {
		if r, err = gzip.NewReader(r); err != nil {
			return 0, nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(r, maxProviderBody))
	return res.StatusCode, data, err
}
