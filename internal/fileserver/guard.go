package fileserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/observability"
)

// Route declares a call of an instance. Every field is required.
type Route struct {
	Method  string
	Path    string         // below /ucloud/{provider}/, without a slash at either end; or the whole path, from /ucloud/ on
	Class   hoptoken.Class // who may call
	MaxBody int64          // bytes
	Intent  intent.Rule    // what its user must have signed
	Serve   func(w http.ResponseWriter, c *Call) error
}

// Call is a request that has passed the checks: it came through the gateway, it is for this instance's user, and its
// caller has the class that the route accepts. Only this package makes one.
type Call struct {
	*http.Request
	claims  hoptoken.Claims
	route   *Route
	intents Intents
	log     *slog.Logger
}

// Claims are what the gateway vouches for.
func (c *Call) Claims() hoptoken.Claims { return c.claims }

// Log is the logger of the request.
func (c *Call) Log() *slog.Logger { return c.log }

// guard checks requests and hands them to their routes.
type guard struct {
	verifier hoptoken.Verifier
	prefix   string // "/ucloud/{provider}/"
	routes   map[string]*Route
	intents  Intents // nil: nothing is asked for
	log      *slog.Logger
}

func newGuard(o Options, routes []Route) *guard {
	if len(o.Start.HopKey) != len(hoptoken.Key{}) || o.Start.User == "" || o.Provider == "" || o.Files == nil {
		panic("fileserver: the instance's identity is not complete")
	}
	g := &guard{
		verifier: hoptoken.Verifier{
			Key: hoptoken.Key(o.Start.HopKey), UID: o.Start.UID, User: o.Start.User, Now: o.Now,
		},
		prefix:  "/ucloud/" + o.Provider + "/",
		routes:  make(map[string]*Route, len(routes)),
		intents: o.Intents,
		log:     o.Log.With("part", "fileserver"),
	}
	for _, r := range routes {
		known := r.Class == hoptoken.ClassCore || r.Class == hoptoken.ClassBrowser
		key := r.Method + " " + r.Path
		if !known || r.MaxBody <= 0 || r.Serve == nil || r.Method == "" || !wellFormed(r.Path) {
			panic(fmt.Sprintf("fileserver: route %q does not say who may call it, or is not complete", key))
		}
		if err := r.Intent.Check(); err != nil {
			panic(fmt.Sprintf("fileserver: route %q: %v", key, err))
		}
		if r.Class == hoptoken.ClassBrowser && r.Intent.Exempt == "" {
			panic(fmt.Sprintf("fileserver: route %q is for browsers, which have tokens of their own instead of intents", key))
		}
		if g.routes[key] != nil {
			panic(fmt.Sprintf("fileserver: route %q is declared twice", key))
		}
		g.routes[key] = &r
	}
	return g
}

// wellFormed tells whether a path may stand in a route.
func wellFormed(path string) bool {
	rest := strings.TrimPrefix(path, "/ucloud/")
	return rest != "" && strings.Trim(rest, "/") == rest
}

// ServeHTTP implements [http.Handler]. The order is that of contract 01 section 5; nothing of the request's body is read
// before all checks have passed but that of the signed intent, which needs it.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	claims, route, err := g.check(r)
	if err != nil {
		g.refuse(w, r, claims, err)
		return
	}
	c := &Call{
		Request: r.WithContext(observability.WithRequestID(r.Context(), claims.RequestID)),
		claims:  claims, route: route, intents: g.intents,
		log: g.log.With("request", claims.RequestID, "user", claims.User),
	}
	err = g.checkIntent(w, c)
	if err == nil {
		err = route.Serve(w, c)
	}
	if err != nil {
		level := slog.LevelDebug
		if failure.KindOf(err) == failure.Internal {
			level = slog.LevelError
		}
		c.log.Log(r.Context(), level, "request failed", "path", r.URL.Path, "error", err)
		failure.WriteHTTP(w, err)
	}
}

// check decides whether the request may be served, and by which route.
//
// A request of Core that has waited for too long is refused unread by the verifier: Core has given up on it. The answer
// is 503, which is true (nothing was done) and which nobody is there to read; closing the connection instead would look
// to the gateway like the death of this instance (contract 02 points 22 and 23).
func (g *guard) check(r *http.Request) (hoptoken.Claims, *Route, error) {
	tokens := r.Header.Values(hoptoken.Header)
	if len(tokens) != 1 {
		return hoptoken.Claims{}, nil, failure.Wrap(fmt.Errorf("%d hop tokens", len(tokens)),
			failure.Unauthenticated, "The request did not come through the gateway")
	}
	claims, err := g.verifier.Verify(tokens[0], r.Method, r.URL.Path)
	if err != nil {
		return hoptoken.Claims{}, nil, err
	}
	// The token names the user already. The header is compared as well because it is what Core itself said: if the two
	// differ, something between here and there is wrong, and nothing may be done with this user's identity.
	if err := g.checkUser(r, claims.Class); err != nil {
		return claims, nil, err
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	route := g.routes[r.Method+" "+path]
	if below, ok := strings.CutPrefix(path, g.prefix); ok && route == nil {
		if strings.HasPrefix(below, "/") {
			return claims, nil, errNoRoute
		}
		route = g.routes[r.Method+" "+below]
	}
	if route == nil {
		return claims, nil, errNoRoute
	}
	if claims.Class != route.Class {
		return claims, nil, failure.New(failure.Forbidden, "This call is not for browsers")
	}
	return claims, route, nil
}

// checkUser compares Core's user header with the user of this instance. Calls of Core have it, except WebSockets, which
// carry a hint in the query that the gateway has put into the token.
func (g *guard) checkUser(r *http.Request, class hoptoken.Class) error {
	headers := r.Header.Values(ident.HeaderUser)
	if len(headers) == 0 && (class == hoptoken.ClassBrowser || r.URL.Query().Has(ident.QueryUserHint)) {
		return nil
	}
	if len(headers) != 1 {
		return failure.Wrap(fmt.Errorf("%d user headers", len(headers)), failure.Forbidden, "The request names no user")
	}
	user, err := ident.DecodeUserHeader(headers[0])
	if err != nil {
		return failure.Wrap(err, failure.Invalid, "The request names its user in an unreadable way")
	}
	if user != g.verifier.User {
		return failure.Wrap(errWrongUser, failure.Forbidden, "The request is for another user")
	}
	return nil
}

var errWrongUser = errors.New("the user header names another user than the instance serves")

// refuse answers a request that was not let in and closes its connection, since the body has not been read.
func (g *guard) refuse(w http.ResponseWriter, r *http.Request, claims hoptoken.Claims, err error) {
	level := slog.LevelWarn
	if errors.Is(err, errNoRoute) {
		level = slog.LevelDebug
	}
	g.log.Log(r.Context(), level, "request refused", "method", r.Method, "path", r.URL.Path,
		"request", claims.RequestID, "remote", r.RemoteAddr, "error", err)
	if r.Body != nil && r.ContentLength != 0 && !errors.Is(err, errNoRoute) {
		w.Header().Set("Connection", "close")
	}
	failure.WriteHTTP(w, err)
}
