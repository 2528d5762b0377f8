package integration

import (
	"context"
	_ "embed" // the templates of the pages of logins
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/usermap/consent"
)

//go:embed login.html
var loginHTML string

// Logins lead browsers through a proof of identity: package usermap/oidc by a login at an identity provider, package
// usermap/assigned by what the provider itself knows.
type Logins interface {
	Open(ctx context.Context, session string) (consent.Opened, error)
	Return(ctx context.Context, query, cookie string) error
	View(ctx context.Context, cookie string) (consent.View, error)
	Decide(ctx context.Context, cookie, form string, agree bool) error
}

const (
	// CallbackPath is where the identity provider sends browsers back to, below the gateway's public address (contract 03
	// section 3.2).
	CallbackPath = "/ucloud-oidc"
	// loginCookie binds a login to a browser. Browsers take a name with this prefix only from this very host, over HTTPS
	// and for all paths (RFC 6265bis section 4.1.3.2), so nobody else can plant one.
	loginCookie = "__Host-ucloud-login"
	// maxForm bounds the form of consent.
	maxForm = 4 << 10

	refreshChecking = 2
	refreshAway     = 10
)

// LoginPath is the path of the first page of a login.
func LoginPath(provider string) string { return "/ucloud/" + provider + "/integration/login" }

// ConsentPath is the path of the page that shows how far a login is, and asks.
func ConsentPath(provider string) string { return "/ucloud/" + provider + "/integration/consent" }

// cookieOf is the value of the login's cookie, "" if there is none, or more than one.
func cookieOf(r *http.Request) string {
	found := r.CookiesNamed(loginCookie)
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

// navigates refuses requests that a page makes behind the user's back: as an image, a frame or by a script. Browsers that
// do not say what a request is for are let through; their cookies are bound to the same site all the same.
func navigates(r *http.Request) error {
	if r.Method == http.MethodHead {
		return failure.New(failure.NotFound, "There is no such call")
	}
	mode, dest := r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest")
	if mode != "" && mode != "navigate" || dest != "" && dest != "document" {
		return failure.New(failure.Forbidden, "This page is for people only")
	}
	return nil
}

// loginOpen is the first page: it binds the browser and sends it on to the identity provider. Core has obtained its
// address, so whoever opens it first is not known; consent is what protects the rest.
func (h *Handler) loginOpen(w http.ResponseWriter, r *http.Request) error {
	if err := h.loginRequest(r); err != nil {
		return err
	}
	to, err := h.o.Logins.Open(r.Context(), r.URL.Query().Get("session"))
	if err != nil {
		return h.loginTrouble(w, r, err)
	}
	http.SetCookie(w, &http.Cookie{
		Name: loginCookie, Value: to.Cookie, Path: "/", MaxAge: int(consent.CookieLife / time.Second), Secure: true, HttpOnly: true,
		SameSite: http.SameSiteLaxMode, // the identity provider sends the browser back with a link
	})
	h.goTo(w, to.URL)
	return nil
}

// loginReturn is where the browser comes back to. Code and state leave the address bar at once.
func (h *Handler) loginReturn(w http.ResponseWriter, r *http.Request) error {
	if err := h.loginRequest(r); err != nil {
		return err
	}
	if err := h.o.Logins.Return(r.Context(), r.URL.RawQuery, cookieOf(r)); err != nil {
		return h.loginTrouble(w, r, err)
	}
	h.goTo(w, ConsentPath(h.o.Provider))
	return nil
}

// consentPage shows how far the login of this browser is, and asks when it has come that far.
func (h *Handler) consentPage(w http.ResponseWriter, r *http.Request) error {
	if err := h.loginRequest(r); err != nil {
		return err
	}
	v, err := h.o.Logins.View(r.Context(), cookieOf(r))
	if err != nil {
		return h.loginTrouble(w, r, err)
	}
	c := content{User: string(v.User), LocalName: v.LocalName, Message: strings.TrimSuffix(v.Message, "."), Assigned: v.Assigned}
	switch v.Stage {
	case consent.StageChecking:
		c.Heading, c.Refresh = "Looking up your account …", refreshChecking
		return h.page.write(w, r, http.StatusOK, "checking", c)
	case consent.StageAsk:
		c.Heading, c.Form, c.Fingerprint, c.Action = "Connect UCloud with "+h.page.o.Title+"?", v.Form, v.Fingerprint, ConsentPath(h.o.Provider)
		return h.page.write(w, r, http.StatusOK, "ask", c)
	case consent.StageConnecting:
		c.Heading, c.Refresh = "Connecting …", refreshConnecting
		return h.page.write(w, r, http.StatusOK, "connecting", c)
	case consent.StageConnected:
		c.Heading = "Connected"
		return h.page.write(w, r, http.StatusOK, "connected", c)
	case consent.StageCancelled:
		c.Heading = "Cancelled"
		return h.page.write(w, r, http.StatusOK, "cancelled", c)
	}
	c.Heading = "Not connected"
	return h.page.write(w, r, http.StatusOK, "notconnected", c)
}

// consentDecide takes the answer of the person. What proves that it is theirs is the secret of the form, which only the
// page of this browser shows; the origin is looked at beside it, where the browser tells it.
func (h *Handler) consentDecide(w http.ResponseWriter, r *http.Request) error {
	if err := h.loginRequest(r); err != nil {
		return err
	}
	if err := h.fromOurPage(r); err != nil {
		return err
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return failure.Wrap(err, failure.TooLarge, "The form is too long")
		}
		return failure.Wrap(err, failure.Invalid, "The form cannot be read")
	}
	answer := r.PostForm["answer"]
	if len(answer) != 1 || answer[0] != "connect" && answer[0] != "cancel" {
		return failure.New(failure.Invalid, "The form has no answer")
	}
	if err := h.o.Logins.Decide(r.Context(), cookieOf(r), r.PostForm.Get("form"), answer[0] == "connect"); err != nil {
		return h.loginTrouble(w, r, err)
	}
	h.goTo(w, ConsentPath(h.o.Provider))
	return nil
}

// loginRequest is what all requests of a login have in common.
func (h *Handler) loginRequest(r *http.Request) error {
	if h.o.Logins == nil {
		return failure.New(failure.NotFound, "There is no such call")
	}
	return navigates(r)
}

// fromOurPage refuses a form that another site has sent (contract 03 section 7.1).
func (h *Handler) fromOurPage(r *http.Request) error {
	foreign := failure.New(failure.Forbidden, "The answer does not come from this provider's page")
	if origins := r.Header.Values("Origin"); len(origins) > 1 || len(origins) == 1 && origins[0] != h.origin {
		return foreign
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return foreign
	}
	return nil
}

// loginTrouble answers with a page for people.
func (h *Handler) loginTrouble(w http.ResponseWriter, r *http.Request, err error) error {
	level := slog.LevelWarn
	switch failure.KindOf(err) {
	case failure.NotFound, failure.Invalid, failure.Conflict:
		level = slog.LevelDebug // anybody can cause these
	}
	h.log.Log(r.Context(), level, "login page", "path", r.URL.Path, "request", observability.RequestID(r.Context()), "error", err)
	c := content{Heading: "Please try again", Message: strings.TrimSuffix(failure.Why(err), ".")}
	switch kind := failure.KindOf(err); kind {
	case failure.NotFound:
		c.Heading = "Login not found"
		return h.page.write(w, r, http.StatusNotFound, "nologin", c)
	case failure.Unavailable, failure.TooMany:
		if r.Method == http.MethodGet {
			c.Refresh = refreshAway
			return h.page.write(w, r, kind.Status(), "away", c)
		}
		return h.page.write(w, r, kind.Status(), "notconnected", c)
	case failure.Forbidden, failure.Invalid, failure.Conflict:
		c.Heading = "Not connected"
		return h.page.write(w, r, kind.Status(), "notconnected", c)
	}
	return h.page.write(w, r, http.StatusServiceUnavailable, "failed", c)
}

// goTo sends the browser on. The address it comes from may hold secrets, and is not told to anybody.
func (h *Handler) goTo(w http.ResponseWriter, to string) {
	hd := w.Header()
	hd.Set("Location", to)
	hd.Set("Cache-Control", "no-store")
	hd.Set("Referrer-Policy", "no-referrer")
	hd.Set("X-Robots-Tag", "noindex, nofollow")
	w.WriteHeader(http.StatusSeeOther)
}

// originOf is what browsers call the origin of a URL (RFC 6454 section 6.2).
func originOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	} else if u.Scheme == "http" {
		host = strings.TrimSuffix(host, ":80")
	}
	return u.Scheme + "://" + host
}
