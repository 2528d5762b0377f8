package gateway

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
)

// maxSmallBody is the largest body that is read completely before the request is sent to an instance. Such requests can
// be sent again when they were not handed over, and a slow client does not occupy the instance.
const maxSmallBody = 64 << 10

// retryPause separates attempts to reach an upstream that refuses.
const retryPause = 25 * time.Millisecond

// forwardToInstance sends the request to the user's instance and copies the answer.
func (ex *exchange) forwardToInstance(r *http.Request, token string) error {
	ctx := r.Context()
	in, err := ex.findInstance(ctx, token)
	if err != nil {
		return err
	}
	out := &outgoing{answerTimeout: ex.settings.Limits.AnswerTimeout, buffers: &ex.g.large}
	if err := ex.prepareBody(r, out); err != nil {
		return err
	}
	if ex.class == classBrowser {
		limit := int64(ex.settings.Limits.MaxBrowserRequests)
		if !ex.g.sources.isProven(ex.user, ex.client.ip, ex.arrival) {
			limit = (limit + 1) / 2 // anybody can name the user: the rest is for those who were answered before
		}
		if in.streams.browser.Add(1) > limit {
			in.streams.browser.Add(-1)
			return failure.New(failure.TooMany, "Too many requests at a time")
		}
		defer in.streams.browser.Add(-1)
	}
	ex.in = in
	ex.proxy(r, func(req *http.Request) (*http.Response, error) {
		out.req = req
		return ex.sendToInstance(req.Context(), out)
	})
	return nil
}

// prepareBody decides how the body travels.
func (ex *exchange) prepareBody(r *http.Request, out *outgoing) error {
	if ex.body == nil {
		return nil
	}
	if r.ContentLength >= 0 && r.ContentLength <= maxSmallBody {
		b, _, err := readAll(r.Body, r.ContentLength, maxSmallBody)
		if err != nil {
			return failure.Wrap(err, failure.Invalid, "The body of the request could not be read")
		}
		out.small = b
		return nil
	}
	if r.ProtoMajor == 1 {
		// Else net/http would read the rest of the body before it sends an answer that comes early.
		ex.w.guard.rc.EnableFullDuplex() //nolint:errcheck // not available in tests without a server
		ex.body.streamed = true
	}
	out.stream, out.length = r.Body, r.ContentLength
	out.stopReading = ex.body.interrupt
	return nil
}

// sendToInstance sends the request until an instance has it, or the time to hold it has passed.
func (ex *exchange) sendToInstance(ctx context.Context, out *outgoing) (*http.Response, error) {
	for {
		in := ex.in
		res, err := ex.attempt(ctx, in, out)
		if err == nil {
			return res, nil
		}
		if _, ok := errors.AsType[*failure.Error](err); ok {
			return nil, err
		}
		if !errors.Is(err, errNotHandedOver) || ex.body != nil && out.stream != nil && ex.body.touched {
			return nil, err
		}
		if ctx.Err() != nil || time.Until(ex.holdUntil()) <= retryPause {
			return nil, err
		}
		if !errors.Is(err, errStale) {
			// Nobody listens, or the instance is on its way out. IM/Server knows more, or will in a moment.
			ex.g.metrics.upstreamErrors.WithLabelValues("not_handed_over").Inc()
			if sleep(ctx, retryPause) != nil {
				return nil, err
			}
		}
		next := ex.g.routes.lookup(ex.user)
		if next == nil || next == in {
			var werr error
			if next, werr = ex.wake(ctx, in); werr != nil {
				if next == nil && ex.g.routes.lookup(ex.user) == nil {
					return nil, werr
				}
				return nil, err
			}
		}
		ex.in = next
	}
}

// attempt sends the request to one instance.
func (ex *exchange) attempt(ctx context.Context, in *instance, out *outgoing) (*http.Response, error) {
	if ex.socket && in.streams.len() >= ex.settings.Limits.MaxUpgrades {
		return nil, failure.New(failure.TooMany, "Too many connections at a time")
	}
	start := time.Now()
	class, arrival := hoptoken.ClassCore, ex.arrival
	if ex.class == classBrowser {
		// Core gives up after 5 s, browsers do not: a slow one has its whole time from when its body is there.
		class, arrival = hoptoken.ClassBrowser, start
	}
	out.req.Header[hopHeader] = []string{hoptoken.Mint(in.route.Key, hoptoken.Claims{
		UID: in.route.UID, User: in.route.User, Method: out.req.Method, Path: ex.path, RequestID: ex.id, Arrival: arrival, Class: class,
	})}
	res, err := in.send(ctx, out)
	ex.upTime = time.Since(start)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get(hoptoken.HeaderNotRead) == "1" {
		res.Body.Close()
		return nil, errNotHandedOver
	}
	if up, ok := res.Body.(*upgraded); ok {
		up.large = &ex.g.large
		up.done = func() {
			in.streams.remove(up)
			ex.g.metrics.streams.Dec()
		}
		ex.g.metrics.streams.Inc()
		if !in.streams.add(up) {
			up.Close()
			return nil, errBadAnswer
		}
	}
	return res, nil
}

var hopHeader = http.CanonicalHeaderKey(hoptoken.Header)

// forwardToServer sends the request to IM/Server. Its calls are idempotent by design, so the request is sent again
// until there is an answer: a restart of the server costs time and no request.
func (ex *exchange) forwardToServer(r *http.Request) error {
	out := &outgoing{answerTimeout: ex.settings.Limits.AnswerTimeout}
	if ex.body != nil {
		b, complete, err := readAll(r.Body, r.ContentLength, ex.settings.Limits.MaxServerBody)
		if err != nil {
			return failure.Wrap(err, failure.Invalid, "The body of the request could not be read")
		}
		if !complete {
			return failure.New(failure.TooLarge, "The body of the request is too large")
		}
		out.small = b
	}
	ex.proxy(r, func(req *http.Request) (*http.Response, error) {
		out.req = req
		return ex.sendToServer(req.Context(), out)
	})
	return nil
}

func (ex *exchange) sendToServer(ctx context.Context, out *outgoing) (*http.Response, error) {
	var leave func()
	defer func() {
		if leave != nil {
			leave()
		}
	}()
	for {
		start := time.Now()
		res, err := ex.g.server.send(ctx, out)
		ex.upTime = time.Since(start)
		if err == nil {
			if up, ok := res.Body.(*upgraded); ok {
				up.large = &ex.g.large
			}
			return res, nil
		}
		if ctx.Err() != nil || errors.Is(err, errBadAnswer) {
			return nil, err
		}
		away := failure.Wrap(err, failure.Unavailable, whyAway)
		if leave == nil {
			var full error
			if leave, full = ex.g.holder.enter(ex.settings.Hold.Max); full != nil {
				return nil, away
			}
		}
		ex.g.metrics.upstreamErrors.WithLabelValues("server").Inc()
		if time.Until(ex.holdUntil()) <= retryPause || sleep(ctx, retryPause) != nil {
			return nil, away
		}
		ex.held += time.Since(start)
	}
}

// proxy lets httputil.ReverseProxy do what it is good at: hop-by-hop headers, trailers, copying and upgrades.
func (ex *exchange) proxy(r *http.Request, send roundTrip) {
	p := httputil.ReverseProxy{
		Rewrite:        ex.rewrite,
		Transport:      send,
		ModifyResponse: ex.modifyResponse,
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { ex.fail(err) },
		ErrorLog:       silent, // what it would write is in the access log
		BufferPool:     (*answerBuffers)(ex),
	}
	ex.aborted = true // unless ServeHTTP returns: it cuts an answer off by a panic
	p.ServeHTTP(&ex.w, r)
	ex.aborted = false
}

var silent = log.New(io.Discard, "", 0)

type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// rewrite makes the outgoing request from the cleaned parts. It runs after ReverseProxy has removed what the Connection
// header names, so a client cannot make it drop what is set here.
func (ex *exchange) rewrite(p *httputil.ProxyRequest) {
	h := p.Out.Header
	if ex.app != nil {
		ex.rewriteForApp(p)
		return
	}
	p.Out.URL = &url.URL{Path: ex.path, RawQuery: p.Out.URL.RawQuery}
	p.Out.Host = p.In.Host
	h[observability.HeaderRequestID] = []string{ex.id}
	delete(h, ident.HeaderUser)
	named := len(p.In.Header[ident.HeaderUser]) > 0
	if ex.user != "" && (ex.target == targetServer && named || ex.target != targetServer && ex.class == classCore) {
		h[ident.HeaderUser] = []string{ex.user.HeaderValue()}
	}
	if ex.target == targetServer {
		if v := p.In.Header["Authorization"]; len(v) > 0 {
			h["Authorization"] = v
		}
		if ex.client.ip.IsValid() {
			h["X-Forwarded-For"] = []string{ex.client.ip.String()}
		}
		proto := "http"
		if ex.client.https {
			proto = "https"
		}
		h["X-Forwarded-Proto"] = []string{proto}
		return
	}
	// The instance is the user's own process: it gets neither Core's token nor anything that a browser has for the
	// provider's own pages (design D2).
	delete(h, "Authorization")
	delete(h, "Cookie")
	delete(h, "Referer")
}

// modifyResponse cleans the head of an answer.
func (ex *exchange) modifyResponse(res *http.Response) error {
	removeInternalHeaders(res.Header)
	ex.prove(res.Request.Method, res.StatusCode)
	switch {
	case ex.app != nil:
		cleanAppAnswer(res.Header)
	case ex.target != targetServer:
		// An instance answers under the provider's name and can be anything its user likes. It must not be able to act on
		// the provider's own pages in somebody's browser.
		for _, name := range [...]string{"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Alt-Svc"} {
			delete(res.Header, name)
		}
		if ex.class == classBrowser {
			res.Header.Set("X-Content-Type-Options", "nosniff")
			res.Header.Add("Content-Security-Policy", "sandbox") // several policies all apply
		}
	}
	// ReverseProxy sends each piece at once only when it does not know the length. This says that it does not for all but
	// the shortest answers; the client still sees Content-Length.
	ex.short = res.ContentLength >= 0 && res.ContentLength <= int64(ex.g.small.size)
	if res.ContentLength > smallAnswer {
		res.ContentLength = -1
	}
	res.Header[observability.HeaderRequestID] = []string{ex.id}
	return nil
}

// smallAnswer is the length up to which an answer is sent in one piece; net/http buffers as much anyway.
const smallAnswer = 2 << 10

// answerBuffers implements [httputil.BufferPool]: short answers do not need 256 KiB.
type answerBuffers exchange

func (b *answerBuffers) pool() *bufferPool {
	if b.short {
		return &b.g.small
	}
	return &b.g.large
}

func (b *answerBuffers) Get() []byte  { return b.pool().Get() }
func (b *answerBuffers) Put(p []byte) { b.pool().Put(p) }

// fail answers with the error, unless the answer has begun.
func (ex *exchange) fail(err error) {
	ex.err = err
	if ex.w.status != 0 {
		return
	}
	h := ex.w.Header()
	h.Set(observability.HeaderRequestID, ex.id)
	h.Set("Cache-Control", "no-store")
	if e, ok := asLimit(err); ok {
		ex.refuse(e)
		h.Set("Retry-After", strconv.FormatInt(e.retryAfter(), 10))
		err = e.failure()
	}
	if ex.target == targetWeb || ex.target == targetDesktop {
		ex.failWeb(err)
		return
	}
	failure.WriteHTTP(&ex.w, classifyError(err))
}

// classifyError turns what a transport says into what the client is told (contract 02 point 9.22).
func classifyError(err error) error {
	if _, ok := errors.AsType[*failure.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, errTooLong):
		return failure.Wrap(err, failure.TooLarge, "The body of the request is too large")
	case errors.Is(err, errClient):
		return failure.Wrap(err, failure.Invalid, "The body of the request could not be read")
	case errors.Is(err, errNotHandedOver):
		return failure.Wrap(err, failure.Unavailable, whySlow)
	case errors.Is(err, context.Canceled):
		return failure.Wrap(err, failure.BadGateway, "The request was cancelled")
	}
	return failure.Wrap(err, failure.BadGateway, "The session at this provider ended before it answered")
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
