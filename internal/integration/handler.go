// Package integration answers the calls that UCloud/Core and browsers make on IM/Server: the manifest, connecting and
// disconnecting users, launching instances on request, what the products support, branding, and the page of a ticket
// (contracts 03, 30 section 7 and 33 section 4).
//
// # Trust
//
// Every route is registered with the class of its caller. Routes for Core demand Core's token, verified here although
// the gateway has done so before: the listener is a socket, but a mistake in front of it must not open these calls.
// Public routes take no identity from the request; the ticket page shows what the ticket itself gives access to, and a
// signing key is taken for whom the session of its upload was opened, from scripts of UCloud's own pages only
// (TestKeysComeFromUCloudOnly).
//
// A request of Core that carries a user name header is about that user and nothing else. It is accepted only where the
// body names the same user, so that it never acts as the system (contract 01 section 5). TestEveryRouteDemandsCore and
// TestUserHeader prove these.
package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/httpx"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

// Verifier checks that a request comes from Core. T is the verified caller.
type Verifier[T any] interface {
	VerifyCore(h http.Header) (T, error)
}

// Launcher starts instances.
type Launcher interface {
	// Wake returns nil when the user's instance is ready, or why there is none as a sentence for the user. A second
	// call joins a launch under way, and the launch goes on when ctx ends.
	Wake(ctx context.Context, user ident.UCloudUser) error
}

// Products tells what the configured products support, from memory: Core asks every ten seconds.
type Products interface {
	Storage() []providerapi.FSSupport
	Compute() []providerapi.JobSupport
}

// Tickets gives the content of a ticket's page.
type Tickets interface {
	View(ctx context.Context, text string) (ticket.View, error)
}

// Maintenance is the state of contract 33 section 5.
type Maintenance struct {
	Enabled bool
	Allow   []ident.UCloudUser // who may work nevertheless; counts only while Enabled
	Message string             // for users; empty means a general one
}

// Refuses tells whether the user is kept out now.
func (m Maintenance) Refuses(u ident.UCloudUser) bool {
	return m.Enabled && !slices.Contains(m.Allow, u)
}

// Check refuses the users who are kept out, as 404 because Core does not show the text of 5xx to users (contract 33
// section 5).
func (m Maintenance) Check(u ident.UCloudUser) error {
	if !m.Refuses(u) {
		return nil
	}
	if m.Message == "" {
		m.Message = "Service is currently undergoing maintenance."
	}
	return failure.New(failure.NotFound, "%s", m.Message)
}

// Options configure a [Handler]. Provider, UCloudPublic, Users, Launcher, Products and Log are required.
type Options struct {
	Provider     string // provider.id, part of every path
	UCloudPublic string // absolute URL of UCloud for browsers

	Users    *usermap.Service
	Method   usermap.Method // how users prove who they are; nil: nobody can connect
	Launcher Launcher
	Products Products

	// Tickets and Page serve the page of the ticket mapper; nil Tickets: no page.
	Tickets Tickets
	Page    PageOptions

	// Logins serve the pages of a login at an identity provider; nil: there are none. SelfPublic is then required: the
	// gateway's address for browsers.
	Logins     Logins
	SelfPublic string

	// Keys takes in the signing keys of browsers; nil: there are none.
	Keys Keys

	Branding    func() *Branding   // nil, or a nil result: no branding is configured
	Maintenance func() Maintenance // nil: never
	Healthy     func() error       // nil: always

	// InitWait is how long init waits for the instance, 0 means 4 s (contract 05, E3').
	InitWait time.Duration
	Log      *slog.Logger
}

// Handler serves the calls. It is safe for concurrent use.
type Handler struct {
	o      Options
	log    *slog.Logger
	verify func(http.Header) error
	mux    *http.ServeMux
	page   *page
	origin string // of our own pages
	ucloud string // the origin of UCloud's pages
}

// PagePath is the path of the ticket page below the gateway's public address.
func PagePath(provider string) string { return "/ucloud/" + provider + "/integration/instructions" }

// New makes a handler.
func New[T any](v Verifier[T], o Options) (*Handler, error) {
	if o.Provider == "" || o.UCloudPublic == "" || o.Users == nil || o.Launcher == nil || o.Products == nil || o.Log == nil {
		return nil, errors.New("integration: Provider, UCloudPublic, Users, Launcher, Products and Log are required")
	}
	if o.InitWait == 0 {
		o.InitWait = 4 * time.Second
	}
	if o.Branding == nil {
		o.Branding = func() *Branding { return nil }
	}
	if o.Maintenance == nil {
		o.Maintenance = func() Maintenance { return Maintenance{} }
	}
	if o.Healthy == nil {
		o.Healthy = func() error { return nil }
	}
	h := &Handler{
		o: o, log: o.Log.With("part", "integration"), mux: http.NewServeMux(),
		verify: func(hd http.Header) error { _, err := v.VerifyCore(hd); return err },
	}
	if h.origin = originOf(o.SelfPublic); o.Logins != nil && o.SelfPublic == "" {
		return nil, errors.New("integration: SelfPublic is required for logins")
	}
	h.ucloud = originOf(o.UCloudPublic)
	if o.Tickets != nil || o.Logins != nil || o.Keys != nil {
		var err error
		if h.page, err = newPage(o.Page, o.UCloudPublic); err != nil {
			return nil, fmt.Errorf("integration: %w", err)
		}
	}
	return h, h.routes()
}

// caller is who may use a route. The zero value is invalid, so a route without a class does not start.
type caller int

const (
	callerPublic    caller = iota + 1 // anybody; takes no identity from the request
	callerCore                        // Core itself: a user name header is refused
	callerCoreAbout                   // Core about a user: a user name header must name the user of the body
)

// handlerFunc answers a request or returns an error that has not been written yet.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// route is a call with the class of its callers.
type route struct {
	method, path string
	caller       caller
	do           handlerFunc
}

func (h *Handler) routes() error {
	base := "/ucloud/" + h.o.Provider
	routes := []route{
		{"GET", base + "/integration/retrieveManifest", callerCore, h.manifest},
		{"POST", base + "/integration/connect", callerCoreAbout, h.connect},
		{"POST", base + "/integration/unlinked", callerCoreAbout, h.unlinked},
		{"POST", base + "/integration/init", callerCoreAbout, h.launch},
		{"GET", base + "/integration/instructions", callerPublic, h.instructions},
		{"GET", LoginPath(h.o.Provider), callerPublic, h.loginOpen},
		{"GET", CallbackPath, callerPublic, h.loginReturn},
		{"GET", ConsentPath(h.o.Provider), callerPublic, h.consentPage},
		{"POST", ConsentPath(h.o.Provider), callerPublic, h.consentDecide},
		{"GET", base + "/files/collections/retrieveProducts", callerCore, h.storageProducts},
		{"GET", base + "/jobs/retrieveProducts", callerCore, h.computeProducts},
		{"GET", base + "/ingresses/retrieveProducts", callerCore, h.noProducts},
		{"GET", base + "/networkips/retrieveProducts", callerCore, h.noProducts},
		{"GET", base + "/licenses/retrieveProducts", callerCore, h.noProducts},
		{"GET", base + "/private-networks/retrieveProducts", callerCore, h.noProducts},
		{"GET", base + "/provider/branding/retrieveInfo", callerCore, h.brandingInfo},
		{"GET", base + "/provider/branding/image", callerPublic, h.brandingImage},
		{"GET", "/healthz", callerPublic, h.healthz},
	}
	if h.o.Keys != nil {
		upload := UploadPath(h.o.Provider)
		routes = append(routes, route{"GET", upload, callerPublic, h.keySkip}, route{"POST", upload, callerPublic, h.keyUpload},
			route{"OPTIONS", upload, callerPublic, h.keyPreflight})
	}
	for _, r := range routes {
		guarded, err := h.guard(r.caller, r.do)
		if err != nil {
			return fmt.Errorf("integration: route %s %s: %w", r.method, r.path, err)
		}
		h.mux.HandleFunc(r.method+" "+r.path, guarded)
	}
	return nil
}

// guard puts the check of the caller in front of a handler.
func (h *Handler) guard(c caller, do handlerFunc) (http.HandlerFunc, error) {
	if c < callerPublic || c > callerCoreAbout {
		return nil, errors.New("no class of caller is declared")
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if c != callerPublic {
			if err := h.verify(r.Header); err != nil {
				h.fail(w, r, unauthenticated(err))
				return
			}
		}
		if c == callerCore && len(r.Header.Values(ident.HeaderUser)) > 0 {
			h.fail(w, r, failure.New(failure.Forbidden, "This call is made by UCloud itself and not for a user"))
			return
		}
		if err := do(w, r); err != nil {
			h.fail(w, r, err)
		}
	}, nil
}

// unauthenticated makes sure that a refused token is a 401, whatever the verifier says.
func unauthenticated(err error) error {
	if failure.Is(err, failure.Unauthenticated) {
		return err
	}
	return failure.Wrap(err, failure.Unauthenticated, "The request is not authenticated")
}

// ServeHTTP implements [http.Handler]. Unknown paths and wrong methods are both 404 (contract 00 section 1). Paths that
// are not clean are unknown: the gateway cleans them, and a redirect is of no use to Core.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r = r.WithContext(observability.WithRequestID(r.Context(), r.Header.Get(observability.HeaderRequestID)))
	do, pattern := h.mux.Handler(r)
	if _, path, _ := strings.Cut(pattern, " "); path == "" || path != r.URL.Path {
		h.fail(w, r, failure.New(failure.NotFound, "There is no such call"))
		return
	}
	do.ServeHTTP(w, r)
}

// fail answers with an error and logs what an operator must know.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	level := slog.LevelDebug
	switch failure.KindOf(err) {
	case failure.Internal:
		level = slog.LevelError
	case failure.Unauthenticated, failure.Forbidden:
		level = slog.LevelWarn
	}
	// The path only: the query of the page holds a ticket.
	h.log.Log(r.Context(), level, "call refused", "method", r.Method, "path", r.URL.Path, "status", failure.KindOf(err).Status(),
		"request", observability.RequestID(r.Context()), "error", err)
	failure.WriteHTTP(w, err)
}

func (h *Handler) healthz(w http.ResponseWriter, r *http.Request) error {
	if err := h.o.Healthy(); err != nil {
		return failure.Wrap(err, failure.Unavailable, "The service is not healthy")
	}
	httpx.WriteJSON(w, r, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}
