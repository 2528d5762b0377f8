// Package browserlink is what uploads and downloads have in common on the side of the instance: links with a one-time
// token in the URL, which browsers and other providers use without any other credential (contract 11).
//
// # Trust
//
// The token is all that a caller has. It is asked about at IM/Server for every connection, under the account of this
// process; nothing is remembered here that would let it in ([Links.Open]). The gateway vouches only for the route. An
// Origin header comes from the browser, and tells which page is behind a request; it is compared with Core's public
// origin and our own ([Links.Origin]). Texts of tokens never enter errors or logs.
package browserlink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Store keeps sessions; [Client] is the implementation.
type Store interface {
	Create(ctx context.Context, purpose string, items []ipcapi.SessionItem) (tokens []string, err error)
	Consume(ctx context.Context, purpose, token string) (ipcapi.Session, error)
	Touch(ctx context.Context, note ipcapi.SessionNote) error
	Close(ctx context.Context, purpose, token string) error
}

// Client asks the server over IPC.
type Client struct {
	// Server is the connection; it fails with [failure.Unavailable] while the server is away.
	Server func() (*ipc.Client, error)
}

var _ Store = Client{}

// callTimeout bounds a call to the server. Core waits 5 s for the creation of a session.
const callTimeout = 4 * time.Second

// busyPause is between two attempts of a call that the server could not take. A browser into which many single files
// are dropped asks for a session for each of them, and for the user they would be failed uploads.
const busyPause = 100 * time.Millisecond

// sleep waits, and tells whether the context still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// invoke makes a call, and again as long as the server is away for a moment or the call comes too fast for it: the
// links stay valid, so a restart of the server is nothing that a browser should see. All calls may be repeated.
func invoke[Req, Resp any](ctx context.Context, c Client, call ipc.Call[Req, Resp], req Req) (resp Resp, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		var server *ipc.Client
		if server, err = c.Server(); err == nil {
			resp, err = ipc.Invoke(ctx, server, call, req)
		}
		if !failure.Is(err, failure.TooMany) && !failure.Is(err, failure.Unavailable) || !sleep(ctx, busyPause) {
			break
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = failure.Wrap(err, failure.Unavailable, "The provider's service does not answer, try again in a moment")
	}
	return resp, err
}

// Create makes sessions, a few at a time.
func (c Client) Create(ctx context.Context, purpose string, items []ipcapi.SessionItem) ([]string, error) {
	tokens := make([]string, 0, len(items))
	for len(items) > 0 {
		n := min(len(items), ipcapi.MaxSessionItems)
		reply, err := invoke(ctx, c, ipcapi.SessionCreate, ipcapi.SessionCreation{Purpose: purpose, Items: items[:n]})
		if err != nil {
			return nil, err
		}
		if len(reply.Tokens) != n {
			return nil, fmt.Errorf("the server made %d sessions instead of %d", len(reply.Tokens), n)
		}
		tokens, items = append(tokens, reply.Tokens...), items[n:]
	}
	return tokens, nil
}

// Consume looks a session up and counts a use.
func (c Client) Consume(ctx context.Context, purpose, token string) (ipcapi.Session, error) {
	return invoke(ctx, c, ipcapi.SessionConsume, ipcapi.SessionRef{Purpose: purpose, Token: token})
}

// Touch tells that a session is in use, and whether it still may be.
func (c Client) Touch(ctx context.Context, note ipcapi.SessionNote) error {
	_, err := invoke(ctx, c, ipcapi.SessionTouch, note)
	return err
}

// Wills gives what an earlier instance has left to do, see [ipcapi.SessionNote].
func (c Client) Wills(ctx context.Context, purpose string) ([][]byte, error) {
	reply, err := invoke(ctx, c, ipcapi.SessionWills, ipcapi.SessionWillsOf{Purpose: purpose})
	return reply.Wills, err
}

// Close ends a session.
func (c Client) Close(ctx context.Context, purpose, token string) error {
	_, err := invoke(ctx, c, ipcapi.SessionClose, ipcapi.SessionRef{Purpose: purpose, Token: token})
	return err
}

// Links makes and checks links.
type Links struct {
	Store                      // required
	Provider  string           // required
	User      ident.UCloudUser // required
	PublicURL string           // scheme://host[:port]; required
	Origins   []string         // further origins
}

// URL is the address of a link: /ucloud/{p}/upload or …/download with token and the hint that the gateway routes by
// (contract 11 section 1). socket gives the scheme of WebSockets.
func (l *Links) URL(endpoint, token string, socket bool) string {
	base := l.PublicURL
	if socket {
		base = "ws" + strings.TrimPrefix(base, "http")
	}
	return base + "/ucloud/" + l.Provider + "/" + endpoint + "?token=" + url.QueryEscape(token) +
		"&" + ident.QueryUserHint + "=" + url.QueryEscape(l.User.HintValue())
}

// ErrNoToken is a request without a token, or with different ones.
var errNoToken = failure.New(failure.NotFound, "This link is not valid, or it has expired")

// Token is the token of a request. Browsers may send it twice, in the query and in a header; both must be the same.
func Token(r *http.Request, header string) (string, error) {
	found := r.URL.Query()["token"]
	if header != "" {
		found = append(found, r.Header.Values(header)...)
	}
	if len(found) == 0 || found[0] == "" || len(found[0]) > 256 {
		return "", errNoToken
	}
	for _, t := range found[1:] {
		if t != found[0] {
			return "", errNoToken
		}
	}
	return found[0], nil
}

// Origin is the Origin header of a request if pages from there may use links, "" if there is none. Others are refused:
// a page of a stranger that has come by a link could otherwise read and write through its visitor's browser.
func (l *Links) Origin(r *http.Request) (string, error) {
	headers := r.Header.Values("Origin")
	if len(headers) == 0 {
		return "", nil
	}
	if len(headers) == 1 {
		got := normalOrigin(headers[0])
		if got != "" && got == normalOrigin(l.PublicURL) {
			return headers[0], nil
		}
		for _, o := range l.Origins {
			if got != "" && got == normalOrigin(o) {
				return headers[0], nil
			}
		}
	}
	return "", failure.New(failure.Forbidden, "This page may not use the link")
}

// normalOrigin brings an origin into the form that browsers send (RFC 6454 section 6.2): lower case, no default port.
// Anything that is not a plain http or https origin gives "".
func normalOrigin(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Opaque != "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.Hostname() == "" {
		return ""
	}
	scheme, port := strings.ToLower(u.Scheme), u.Port()
	switch {
	case scheme != "http" && scheme != "https":
		return ""
	case scheme == "http" && port == "80", scheme == "https" && port == "443":
		port = ""
	}
	host := strings.ToLower(u.Hostname())
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" {
		host += ":" + port
	}
	return scheme + "://" + host
}

// AllowOrigin adds the headers that let a page read the answer. There are no cookies, so no credentials are allowed.
func AllowOrigin(h http.Header, origin, expose string) {
	h.Add("Vary", "Origin")
	if origin == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if expose != "" {
		h.Set("Access-Control-Expose-Headers", expose)
	}
}

// Preflight answers OPTIONS (contract 11 section 6).
func (l *Links) Preflight(w http.ResponseWriter, r *http.Request, methods, headers string) error {
	origin, err := l.Origin(r)
	if err != nil {
		return err
	}
	h := w.Header()
	AllowOrigin(h, origin, "")
	if origin != "" {
		h.Set("Access-Control-Allow-Methods", methods)
		h.Set("Access-Control-Allow-Headers", headers)
		h.Set("Access-Control-Max-Age", "600")
	}
	h.Set("Allow", methods)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
