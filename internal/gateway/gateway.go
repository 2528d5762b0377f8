package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
)

// Gateway is the ingress as an [http.Handler]; [Gateway.Serve] runs it on listeners. Make one with [New].
type Gateway struct {
	o        Options
	log      *slog.Logger
	access   *slog.Logger
	settings atomic.Pointer[Settings]
	routes   *Table
	server   *upstream // IM/Server
	holder   *holder
	conns    *connections
	sources  *sources
	refusals *refusals
	metrics  *metrics
	checks   atomic.Int64 // questions about one-time tokens under way
	draining atomic.Bool

	small, large bufferPool

	done  chan struct{} // closed by Close
	close sync.Once
	wg    sync.WaitGroup // the sweeper
}

// New makes a gateway. It opens nothing and starts no request; call [Gateway.Close] when it is not needed any more.
func New(o Options, s Settings) (*Gateway, error) {
	if o.VerifyCore == nil || o.Control == nil || o.Routes == nil || o.DialServer == nil || o.Log == nil {
		return nil, errors.New("gateway: a required option is missing")
	}
	if s.Provider == "" || len(s.Hosts) == 0 && !s.LoopbackHosts {
		return nil, errors.New("gateway: provider and hosts must be set")
	}
	g := &Gateway{
		o: o, log: o.Log.With("part", "gateway"), access: o.AccessLog, routes: o.Routes,
		server: &upstream{dial: o.DialServer}, done: make(chan struct{}),
		small: bufferPool{size: 16 << 10}, large: bufferPool{size: 256 << 10},
	}
	if g.access == nil {
		g.access = o.Log.With("part", "access")
	}
	g.refusals = &refusals{log: g.access, by: make(map[netip.Addr]*refusing)}
	g.Reconfigure(s)
	g.conns = newConnections(g.settings.Load)
	o.Routes.check = o.CheckListener
	if o.Web != nil {
		o.Web.check = o.CheckWebListener
	}
	g.holder = newHolder(o.Control, o.Routes, g.log)
	g.metrics = newMetrics(o.Registry, g)
	g.holder.count = func(result string) { g.metrics.wakes.WithLabelValues(result).Inc() }
	g.sources = newSources(g.log, func(limit string) { g.metrics.limited.WithLabelValues(limit).Inc() })
	g.conns.refused = func(limit string, ip netip.Addr) { g.sources.note(limit, ip, time.Now()) }
	g.wg.Go(g.sweep)
	return g, nil
}

// Reconfigure replaces the settings for requests that arrive from now on. The fields of [Limits] that say so take effect
// at the next start only.
func (g *Gateway) Reconfigure(s Settings) {
	s = s.withDefaults()
	g.settings.Store(&s)
}

// Close ends the goroutines of the gateway. Requests must have ended before.
func (g *Gateway) Close() {
	g.close.Do(func() { close(g.done) })
	g.holder.close()
	g.wg.Wait()
	g.refusals.sweep(time.Now().Add(refusalsInterval))
	g.server.retire()
}

func (g *Gateway) sweep() {
	tick := time.NewTicker(upstreamIdleTimeout / 3)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			g.server.sweep(now)
			g.routes.sweep(now)
			g.sources.sweep(now)
			g.refusals.sweep(now)
			g.conns.rates.sweep(now)
			if g.o.Web != nil {
				g.o.Web.sweep(now)
			}
		case <-g.done:
			return
		}
	}
}

// ServeHTTP implements [http.Handler].
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := g.settings.Load()
	ex := &exchange{g: g, settings: s, arrival: time.Now(), id: observability.NewRequestID(), class: classNone}
	ex.w = responseWriter{
		ResponseWriter: w, bytes: &ex.bytes, draining: &g.draining, large: &g.large,
		guard: stallGuard{rc: http.NewResponseController(w), timeout: s.Limits.StallTimeout},
	}
	ex.conn, _ = r.Context().Value(connKey{}).(*trackedConn)
	ex.bytes.conn = ex.conn
	ex.bytes.request()
	if r.Body != nil && r.Body != http.NoBody {
		ex.body = &clientBody{body: r.Body, guard: &ex.w.guard, bytes: &ex.bytes}
		// In a copy: net/http decides by the Body of its own request what may follow on the connection.
		own := *r
		r = &own
		r.Body = ex.body
		if r.ProtoMajor == 1 {
			ex.w.body = ex.body
		}
	}
	g.metrics.inFlight.Inc()
	defer ex.finish(r) // also when ReverseProxy aborts the connection by a panic
	if err := ex.serve(r); err != nil {
		ex.fail(err)
	}
	if ex.w.body != nil {
		ex.w.body.linger()
	}
}

// exchange is one request and everything the gateway finds out about it.
type exchange struct {
	g        *Gateway
	settings *Settings
	w        responseWriter
	body     *clientBody // nil if the request has none
	conn     *trackedConn
	bytes    traffic
	id       string
	arrival  time.Time
	client   client

	path    string // cleaned
	target  target
	user    ident.UCloudUser
	class   callerClass
	in      *instance // the instance that got the request
	app     *webApp   // the interface of a job that got it
	socket  bool      // a WebSocket upgrade
	held    time.Duration
	upTime  time.Duration // until the head of the answer
	err     error         // why the gateway answered itself, or what broke
	short   bool          // the answer is short
	aborted bool          // the answer was cut off
	limited bool          // the request is subject to the limits by address

	wantsPage bool // a person looks at the answer
}

// callerClass says who a request comes from.
type callerClass uint8

const (
	classNone    callerClass = iota // nothing is known
	classCore                       // Core's token was verified
	classBrowser                    // no token; the user is a hint for routing
)

func (c callerClass) String() string { return [...]string{"none", "core", "browser"}[c] }

// serve is the pipeline. Its order is part of the security of the gateway: see the package comment.
func (ex *exchange) serve(r *http.Request) error {
	ex.wantsPage = wantsPage(r)
	removeInternalHeaders(r.Header)
	ex.findClient(r)
	over := ex.admit()
	authorization := len(r.Header["Authorization"]) > 0
	if over != nil && !authorization { // it cannot be Core
		return over
	}
	if host, ok := ex.settings.webHost(r.Host); ok {
		if over != nil { // Core does not go there
			return over
		}
		return ex.serveWeb(r, host)
	}
	if r.TLS != nil && ex.settings.HSTS > 0 { // not over plain HTTP (RFC 6797 section 7.2)
		ex.w.Header().Set("Strict-Transport-Security", "max-age="+strconv.FormatInt(int64(ex.settings.HSTS/time.Second), 10))
	}
	id, query, err := ex.sanitise(r)
	if err != nil {
		return cmp.Or(over, err)
	}
	ex.target = classify(ex.settings.Provider, ex.path)
	if ex.target == targetNone {
		return cmp.Or(over, ex.mayTry(), failure.New(failure.NotFound, "Not found"))
	}
	core := false
	if _, ok := r.Header["Authorization"]; ok {
		if _, err := ex.g.o.VerifyCore(r.Header); err != nil {
			return cmp.Or(over, ex.mayTry(), failure.Wrap(err, failure.Unauthenticated, "The token of the request is not valid"))
		}
		core = true
		ex.class = classCore
		if ex.limited && over == nil {
			ex.g.sources.isCore(ex.client.ip, &ex.settings.Limits)
		}
		if ex.conn != nil {
			ex.conn.sawCore(ex.arrival)
		}
	}
	leave, err := ex.enterConn(core)
	if err != nil {
		return err
	}
	defer leave()
	if !core && !ex.g.sources.isProven(ex.user, ex.client.ip, ex.arrival) {
		if err := ex.mayTry(); err != nil {
			return err
		}
	}
	switch ex.target {
	case targetServer:
		return ex.forwardToServer(r)
	case targetDesktop:
		return ex.serveDesktop(r)
	}
	if err := ex.authorise(r, id, core); err != nil {
		return err
	}
	if ex.class == classBrowser {
		if err := ex.limitBrowser(r); err != nil {
			return err
		}
		// Two tokens, or none, are nothing that the server could look up.
		return ex.forwardToInstance(r, oneTimeToken(r, query))
	}
	return ex.forwardToInstance(r, "")
}

// sanitise cleans the request in place and refuses what is ambiguous. After it, no header with an internal meaning is
// left.
func (ex *exchange) sanitise(r *http.Request) (identity, map[string][]string, error) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		return identity{}, nil, failure.New(failure.Invalid, "The method is not supported")
	}
	raw := r.RequestURI
	if strings.HasPrefix(raw, "/") {
		raw, _, _ = strings.Cut(raw, "?")
	} else { // absolute-form, whose host net/http has put into r.Host (RFC 9112 section 3.2.2); HTTP/2 has no such form
		u := r.URL
		if r.ProtoMajor != 1 || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Opaque != "" || u.Host != r.Host {
			return identity{}, nil, failure.New(failure.Invalid, "The request target is not valid")
		}
		raw = r.URL.EscapedPath()
	}
	path, err := cleanPath(raw)
	if err != nil {
		return identity{}, nil, err
	}
	ex.path = path
	if values, ok := r.Header["Host"]; ok && (len(values) != 1 || values[0] != r.Host) {
		// HTTP/2 only: ":authority" and "host" disagree (RFC 9113 section 8.3.1).
		return identity{}, nil, failure.New(failure.Invalid, "The request names several hosts")
	}
	if !hostAllowed(r.Host, ex.settings) {
		return identity{}, nil, failure.New(failure.Misdirected, "This host is not served here")
	}
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return identity{}, nil, err
	}
	id, err := extractIdentity(r.Header, query)
	if err != nil {
		return identity{}, nil, err
	}
	ex.user = id.user
	ex.socket = isWebSocket(r)
	if ex.socket && ex.body != nil {
		return identity{}, nil, failure.New(failure.Invalid, "An upgrade cannot have a body")
	}
	if !ex.socket {
		delete(r.Header, "Upgrade")
		delete(r.Header, "Http2-Settings")
	}
	return id, query, nil
}

// findClient notes who the client is and removes the headers that say so.
func (ex *exchange) findClient(r *http.Request) {
	peer := netip.Addr{}
	if ex.conn != nil {
		peer = ex.conn.ip
	} else if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = ap.Addr().Unmap()
	}
	ex.client = clientOf(r, peer, ex.settings.TrustedProxies)
	for _, name := range forwardingHeaders {
		delete(r.Header, name)
	}
}

// authorise decides whether a request may go to an instance, and as what (contract 02 point 9.23). Default deny.
func (ex *exchange) authorise(r *http.Request, id identity, core bool) error {
	// A browser's chunked upload names its user in the header, as contract 11 section 4 prescribes; without Core's token
	// that is as good as a hint.
	chunked := ex.target == targetUpload && r.Method != http.MethodGet
	switch {
	case id.user == "":
		return failure.New(failure.NotFound, "Not found")
	case core && (id.header || r.Method == http.MethodGet):
		return nil
	case core:
		return failure.New(failure.NotFound, "Not found")
	case id.header && !chunked:
		return failure.New(failure.Unauthenticated, "The request has no token")
	case !ex.target.forBrowsers() || !browserMethod(ex.target, r.Method, ex.socket):
		return failure.New(failure.NotFound, "Not found")
	}
	ex.class = classBrowser
	return nil
}

// browserMethod lists what browsers do at their three endpoints (contract 11 sections 2, 4, 5.2 and 6, contract 01
// section 6). OPTIONS is the preflight of CORS.
func browserMethod(t target, method string, socket bool) bool {
	switch t {
	case targetUpload:
		return socket || method == http.MethodPost || method == http.MethodOptions
	case targetDownload:
		return !socket && (method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions)
	case targetTerminal:
		return socket
	}
	return false
}

// oneTimeToken finds the token of a browser request; empty if there is none, or more than one.
func oneTimeToken(r *http.Request, query map[string][]string) string {
	var found []string
	found = append(found, query["token"]...)
	found = append(found, query["session"]...)
	found = append(found, r.Header["Chunked-Upload-Token"]...)
	if len(found) == 0 {
		return ""
	}
	for _, t := range found[1:] {
		if t != found[0] {
			return ""
		}
	}
	return found[0]
}

// enterConn bounds the concurrent requests of one HTTP/2 connection.
func (ex *exchange) enterConn(core bool) (leave func(), err error) {
	c := ex.conn
	if c == nil {
		return func() {}, nil
	}
	limit := ex.settings.Limits.MaxStreams
	if core || c.core.Load() {
		limit = ex.settings.Limits.MaxCoreStreams
	}
	if c.active.Add(1) > int64(limit) {
		c.active.Add(-1)
		return nil, failure.New(failure.TooMany, "Too many requests at a time")
	}
	return func() { c.active.Add(-1) }, nil
}

// findInstance gives the user's instance, waking it if the request may do that. token is the one-time token of a request
// of class browser.
func (ex *exchange) findInstance(ctx context.Context, token string) (*instance, error) {
	if in := ex.g.routes.lookup(ex.user); in != nil {
		return in, nil
	}
	if ex.class == classBrowser {
		// Only a token that is open for exactly this user may wake an instance (contract 02 section 2).
		if err := ex.checkToken(ctx, token); err != nil {
			return nil, err
		}
	}
	return ex.wake(ctx, nil)
}

func (ex *exchange) checkToken(ctx context.Context, token string) error {
	gone := failure.New(failure.NotFound, "This link is not valid or has expired")
	if token == "" {
		return gone
	}
	open := false
	err := ex.ask(ctx, token, func(ctx context.Context, hash [sha256.Size]byte) (err error) {
		open, err = ex.g.o.Control.TokenOpen(ctx, ex.user, hash)
		return err
	})
	if err == nil && !open {
		return gone
	}
	return err
}

// ask asks IM/Server about a one-time token, and again while it is away.
func (ex *exchange) ask(ctx context.Context, token string, question func(ctx context.Context, hash [sha256.Size]byte) error) error {
	if err := ex.mayAsk(); err != nil {
		return err
	}
	// Anybody can cause this question, so it must not take the places of Core's requests while the server is away.
	defer ex.g.checks.Add(-1)
	if ex.g.checks.Add(1) > int64(max(ex.settings.Hold.Max/4, 1)) {
		return failure.New(failure.Unavailable, whyBusy)
	}
	ctx, cancel := context.WithDeadline(ctx, ex.holdUntil())
	defer cancel()
	hash := sha256.Sum256([]byte(token))
	for {
		err := question(ctx, hash)
		if err == nil {
			return nil
		}
		select { // the server may be restarting
		case <-time.After(wakeRetry):
		case <-ctx.Done():
			return failure.Wrap(err, failure.Unavailable, whyAway)
		}
	}
}

// wake holds the request until the user has an instance other than failed.
func (ex *exchange) wake(ctx context.Context, failed *instance) (*instance, error) {
	if ex.settings.Hold.Disabled {
		return nil, failure.New(failure.NoInstance, whyDisabled)
	}
	leave, err := ex.g.holder.enter(ex.settings.Hold.Max)
	if err != nil {
		return nil, err
	}
	defer leave()
	start := time.Now()
	defer func() { ex.held += time.Since(start) }()
	return ex.g.holder.await(ctx, ex.user, failed, ex.holdUntil())
}

func (ex *exchange) holdUntil() time.Time { return ex.arrival.Add(ex.settings.Hold.Timeout) }
