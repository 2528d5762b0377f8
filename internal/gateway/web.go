package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Web is about the host names of web applications (services.slurm.web). With an empty Suffix there are none.
type Web struct {
	Prefix, Suffix string
	Secure         bool   // browsers use HTTPS: cookies must not travel without it
	UCloud         string // address of UCloud for browsers
}

// WebSession is what a browser gets for a one-time token.
type WebSession struct {
	Value     string // its secret
	ExpiresAt time.Time
	Route     WebRoute
}

// webCookiePrefix starts the names of all session cookies (contract 21 section 5.3).
const webCookiePrefix = "ucloud-compute-session-"

// webAnswerTimeout bounds the time until the head of an answer of an application, which may compute it first. A client
// that leaves ends the request long before.
const webAnswerTimeout = 24 * time.Hour

// Reasons for pages of our own.
var (
	errNoSession   = errors.New("the browser has no session of this application")
	errUnknownLink = errors.New("the link is not valid")
	errOtherOrigin = errors.New("another page is behind the request")
	errWebBusy     = errors.New("too many requests of this application at a time")
	errNoWebHost   = errors.New("no such application")
)

// webHost gives the host name of a request for an application. The provider's own names are never one.
func (s *Settings) webHost(host string) (string, bool) {
	if s.Web.Suffix == "" || hostAllowed(host, s) {
		return "", false
	}
	name := strings.ToLower(hostName(host))
	prefix, suffix := strings.ToLower(s.Web.Prefix), strings.ToLower(s.Web.Suffix)
	if len(name) <= len(prefix)+len(suffix) || !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, suffix) {
		return "", false
	}
	return name, true
}

// serveWeb answers a request on the host name of an application (contract 21 sections 5.3 and 8). Everything but the
// exchange of the token belongs to the application, so the path is passed on as it came.
func (ex *exchange) serveWeb(r *http.Request, host string) error {
	ex.target, ex.class = targetWeb, classBrowser
	if err := ex.checkTarget(r); err != nil {
		return err
	}
	leave, err := ex.enterConn(false)
	if err != nil {
		return err
	}
	defer leave()
	app := (*webApp)(nil)
	if ex.g.o.Web != nil {
		app = ex.g.o.Web.host(host)
	}
	if path, err := cleanPath(r.URL.EscapedPath()); err == nil && path == "/ucloud/"+ex.settings.Provider+"/authorize-app" {
		if err := ex.mayTry(); err != nil {
			return err
		}
		return ex.authorizeApp(r, host, app)
	}
	if app == nil {
		return errNoWebHost
	}
	grant, ok := app.session(r, time.Now())
	if !ok {
		return errNoSession
	}
	if !sameOrigin(r) {
		return errOtherOrigin
	}
	if ex.limited {
		if err := ex.g.sources.app(app.route.ID, &ex.settings.Limits, ex.arrival); err != nil {
			return err
		}
	}
	return ex.forwardToApp(r, app, grant)
}

// checkTarget refuses what is no request for a resource, or ambiguous about its host.
func (ex *exchange) checkTarget(r *http.Request) error {
	if values, ok := r.Header["Host"]; ok && (len(values) != 1 || values[0] != r.Host) {
		return failure.New(failure.Invalid, "The request names several hosts")
	}
	u := r.URL
	absolute := r.ProtoMajor == 1 && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && u.Opaque == "" && u.Host == r.Host
	if !strings.HasPrefix(r.RequestURI, "/") && !absolute || u.Opaque != "" {
		return failure.New(failure.Invalid, "The request target is not valid")
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return failure.New(failure.Invalid, "The method is not supported")
	}
	ex.socket = isWebSocket(r)
	if ex.socket && ex.body != nil {
		return failure.New(failure.Invalid, "An upgrade cannot have a body")
	}
	if !ex.socket {
		delete(r.Header, "Upgrade")
		delete(r.Header, "Http2-Settings")
	}
	return nil
}

// sameOrigin refuses what another page does in the user's browser: applications of different users are on sibling hosts,
// which SameSite does not keep apart, so a neighbour's page could open a WebSocket to this application, or post to it, with
// the user's cookie.
func sameOrigin(r *http.Request) bool {
	origins := r.Header["Origin"]
	if len(origins) == 0 || !isWebSocket(r) && (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions) {
		return true
	}
	u, err := url.Parse(origins[0])
	return len(origins) == 1 && err == nil && equalFold(u.Host, r.Host)
}

// authorizeApp exchanges the token of the link for a cookie with another secret (contract 21 section 5.3).
func (ex *exchange) authorizeApp(r *http.Request, host string, app *webApp) error {
	if r.Method != http.MethodGet || ex.socket {
		return errUnknownLink
	}
	session, err := ex.exchangeToken(r, WebApplication, host)
	if err != nil {
		if _, ok := app.sessionOf(r); ok && errors.Is(err, errUnknownLink) {
			ex.redirectToApp(nil) // the link was used before, by this browser
			return nil
		}
		return err
	}
	app = ex.g.o.Web.adopt(session.Route)
	if app == nil || app.route.Host != host {
		return errUnknownLink
	}
	seconds := int(time.Until(session.ExpiresAt) / time.Second)
	if seconds <= 0 {
		return errUnknownLink
	}
	// Without Domain the cookie is this host's alone.
	ex.redirectToApp(&http.Cookie{
		Name: app.route.Cookie, Value: session.Value, Path: "/", MaxAge: seconds, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: ex.settings.Web.Secure || ex.client.https,
	})
	return nil
}

func (a *webApp) sessionOf(r *http.Request) ([sha256.Size]byte, bool) {
	if a == nil {
		return [sha256.Size]byte{}, false
	}
	return a.session(r, time.Now())
}

func (ex *exchange) redirectToApp(c *http.Cookie) {
	if c != nil {
		http.SetCookie(&ex.w, c)
	}
	h := ex.w.Header()
	h.Set("Location", "/")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	ex.w.WriteHeader(http.StatusFound)
}

// exchangeToken uses the token of a request up.
func (ex *exchange) exchangeToken(r *http.Request, kind WebKind, host string) (session *WebSession, err error) {
	query, err := parseQuery(r.URL.RawQuery)
	if err != nil || len(query["token"]) != 1 || query["token"][0] == "" || ex.g.o.Web == nil {
		return nil, errUnknownLink
	}
	err = ex.ask(r.Context(), query["token"][0], func(ctx context.Context, hash [sha256.Size]byte) (err error) {
		session, err = ex.g.o.Control.WebExchange(ctx, kind, host, hash)
		return err
	})
	if err == nil && session == nil {
		err = errUnknownLink
	}
	return session, err
}

// forwardToApp sends the request to the application and copies the answer.
func (ex *exchange) forwardToApp(r *http.Request, app *webApp, grant [sha256.Size]byte) error {
	return ex.throughPlace(r, app, grant, func(ctx context.Context, out *outgoing) (*http.Response, error) {
		res, err := app.place.send(ctx, out)
		if err != nil && errors.Is(err, errNoAnswer) && ctx.Err() == nil && ex.body == nil && !ex.socket && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			res, err = app.place.send(ctx, out) // the application has just closed a connection that was kept
		}
		return res, err
	})
}

// throughPlace proxies a request that ends when the browser's right or the interface does.
func (ex *exchange) throughPlace(r *http.Request, app *webApp, grant [sha256.Size]byte, send func(context.Context, *outgoing) (*http.Response, error)) error {
	out := &outgoing{answerTimeout: webAnswerTimeout, buffers: &ex.g.large}
	if err := ex.prepareBody(r, out); err != nil {
		return err
	}
	ctx, cut := context.WithCancel(r.Context())
	defer cut()
	l := ex.settings.Limits
	leave, err := app.place.enter(&webFlow{grant: grant, socket: ex.socket, cut: cut}, webLimits{requests: l.MaxWebRequests, sockets: l.MaxUpgrades})
	if err != nil {
		return err
	}
	defer leave()
	if !app.stillAllowed(ex.g.o.Web, grant) { // it was revoked before the flow could be seen
		return errNoSession
	}
	ex.app = app
	ex.proxy(r.WithContext(ctx), func(req *http.Request) (*http.Response, error) {
		out.req = req
		start := time.Now()
		res, err := send(req.Context(), out)
		ex.upTime = time.Since(start)
		if err != nil {
			return nil, err
		}
		if up, ok := res.Body.(*upgraded); ok {
			up.large = &ex.g.large
			up.done = ex.g.metrics.streams.Dec
			ex.g.metrics.streams.Inc()
		}
		return res, nil
	})
	return nil
}

func (a *webApp) stillAllowed(t *WebTable, grant [sha256.Size]byte) bool {
	now := t.index.Load().byID[a.route.ID]
	return now != nil && now.place == a.place && now.allows(grant, t.now())
}

// rewriteForApp makes the request for an application: what the browser has sent, less what is the provider's.
func (ex *exchange) rewriteForApp(p *httputil.ProxyRequest) {
	in, h := p.In.URL, p.Out.Header
	p.Out.URL = &url.URL{Path: in.Path, RawPath: in.RawPath, RawQuery: in.RawQuery, ForceQuery: in.ForceQuery}
	p.Out.Host = p.In.Host
	stripCredentials(h)
	if ex.client.ip.IsValid() {
		h["X-Forwarded-For"] = []string{ex.client.ip.String()}
	}
	h["X-Forwarded-Host"] = []string{p.In.Host}
	h["X-Forwarded-Proto"] = []string{ex.scheme()}
	if ex.target == targetDesktop {
		p.Out.URL = &url.URL{Path: "/websockify"}
		for _, name := range []string{"Cookie", "Referer", "Origin"} {
			delete(h, name)
		}
	}
}

func (ex *exchange) scheme() string {
	if ex.client.https || ex.settings.Web.Secure {
		return "https"
	}
	return "http"
}

// stripCredentials removes what a compute node must not see (contract 21 section 8.3): session cookies, Authorization, and
// every header of UCloud.
func stripCredentials(h http.Header) {
	delete(h, "Authorization")
	delete(h, "Proxy-Authorization")
	for name := range h {
		if strings.HasPrefix(strings.ToLower(strings.ReplaceAll(name, "_", "-")), "ucloud-") {
			delete(h, name)
		}
	}
	if cookies := h["Cookie"]; len(cookies) > 0 {
		var kept []string
		for _, line := range cookies {
			for pair := range strings.SplitSeq(line, ";") {
				pair = strings.TrimSpace(pair)
				if pair != "" && !hasPrefixFold(pair, webCookiePrefix) {
					kept = append(kept, pair)
				}
			}
		}
		delete(h, "Cookie")
		if len(kept) > 0 {
			h["Cookie"] = []string{strings.Join(kept, "; ")}
		}
	}
	// The link itself, if a page that was reached through it tells where it was.
	if v := h["Referer"]; len(v) > 0 && strings.Contains(v[0], "authorize-app") {
		delete(h, "Referer")
	}
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && equalFold(s[:len(prefix)], prefix)
}

// cleanAppAnswer keeps an application from acting on other hosts in the browser: its neighbours' and the provider's.
func cleanAppAnswer(h http.Header) {
	for _, name := range [...]string{"Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "Public-Key-Pins"} {
		delete(h, name)
	}
	cookies := h["Set-Cookie"]
	delete(h, "Set-Cookie")
	for _, line := range cookies {
		if clean := hostOnlyCookie(line); clean != "" {
			h["Set-Cookie"] = append(h["Set-Cookie"], clean)
		}
	}
}

// hostOnlyCookie removes the attribute Domain, without which a cookie is its host's alone. A cookie with the name of one
// of ours is dropped.
func hostOnlyCookie(line string) string {
	parts := strings.Split(line, ";")
	if hasPrefixFold(strings.TrimSpace(parts[0]), webCookiePrefix) {
		return ""
	}
	kept := parts[:1]
	for _, p := range parts[1:] {
		name, _, _ := strings.Cut(p, "=")
		if !equalFold(strings.Trim(name, " \t"), "domain") {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ";")
}

// How long a desktop that does not listen yet is tried, and how often. The token has been used up, and the viewer of
// UCloud does not try again by itself.
const (
	desktopPatience = 15 * time.Second
	desktopPause    = 250 * time.Millisecond
)

// serveDesktop connects a viewer with the desktop of a job (contract 21 section 6).
func (ex *exchange) serveDesktop(r *http.Request) error {
	ex.class = classBrowser
	if !ex.socket {
		return failure.New(failure.Invalid, "This address is for the desktop viewer of UCloud")
	}
	session, err := ex.exchangeToken(r, WebDesktop, "")
	if err != nil {
		return err
	}
	app := ex.g.o.Web.adopt(session.Route)
	grant := sha256.Sum256([]byte(session.Value))
	if app == nil || app.route.Kind != WebDesktop || !app.allows(grant, time.Now()) {
		return errUnknownLink
	}
	return ex.throughPlace(r, app, grant, func(ctx context.Context, out *outgoing) (*http.Response, error) {
		deadline := time.Now().Add(desktopPatience)
		for {
			res, err := app.place.send(ctx, out)
			if err == nil || !errors.Is(err, errNotHandedOver) || errors.Is(err, errForeign) || time.Now().After(deadline) {
				return res, err
			}
			if sleep(ctx, desktopPause) != nil {
				return nil, err
			}
		}
	})
}

// CheckListener makes the check of [Options.CheckWebListener] out of a look-up of the owner of a listening socket. A
// program may listen at the address itself or at all addresses, of IPv4 or of both.
func CheckListener(lookup func(local, remote netip.AddrPort) (ident.UID, error), notFound error) func(netip.AddrPort, ident.UID) error {
	v4, v6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return func(at netip.AddrPort, uid ident.UID) error {
		any4, any6 := netip.AddrPortFrom(v4, at.Port()), netip.AddrPortFrom(v6, at.Port())
		candidates := [][2]netip.AddrPort{{at, netip.AddrPortFrom(v4, 0)}, {any4, netip.AddrPortFrom(v4, 0)}, {any6, netip.AddrPortFrom(v6, 0)}}
		if at.Addr().Is6() {
			candidates = [][2]netip.AddrPort{{at, netip.AddrPortFrom(v6, 0)}, {any6, netip.AddrPortFrom(v6, 0)}}
		}
		var err error
		for _, c := range candidates {
			var owner ident.UID
			if owner, err = lookup(c[0], c[1]); err == nil {
				if owner != uid {
					return fmt.Errorf("port %d belongs to uid %s, the job to %s", at.Port(), owner, uid)
				}
				return nil
			}
			if !errors.Is(err, notFound) {
				break
			}
		}
		return err
	}
}
