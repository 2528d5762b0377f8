package integration

import (
	"context"
	"mime"
	"net/http"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/httpx"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/providerapi"
)

// maxKeyBody bounds the body of an upload. The largest key that is accepted has 1.4 kB.
const maxKeyBody = 16 << 10

// preflightAge is how long a browser may remember the answer to a preflight, in seconds. An upload is made once.
const preflightAge = "600"

// Keys takes in the signing keys of browsers ([signingkeys.Method]). Errors are sentences for the user.
type Keys interface {
	// Receive takes a key in PEM and gives the address where the browser goes next.
	Receive(ctx context.Context, session, key string) (redirectURL string, err error)
	// Skip is Receive for a browser without a key.
	Skip(ctx context.Context, session string) (redirectURL string, err error)
}

// UploadPath is the path of the upload of signing keys below the gateway's public address.
func UploadPath(provider string) string { return "/ucloud/" + provider + "/integration/redirect" }

// fromUCloud lets scripts of UCloud's own pages read the answer, and no others: exactly one origin, which stands in the
// configuration and not in the request (contract 01 sections 7.2 and 8.11). Requests of other origins, and those that do
// not say, are refused. No cookies or other credentials are ever accepted, so none are allowed.
func (h *Handler) fromUCloud(w http.ResponseWriter, r *http.Request) error {
	hd := w.Header()
	hd.Add("Vary", "Origin")
	if o := r.Header.Values("Origin"); len(o) != 1 || o[0] != h.ucloud {
		return failure.New(failure.Forbidden, "Keys are accepted from the pages of UCloud only")
	}
	hd.Set("Access-Control-Allow-Origin", h.ucloud)
	return nil
}

// privately sets what every answer about a session needs: its address is a secret.
func privately(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

// session is the session in the address; more than one is none.
func session(r *http.Request) string {
	if v := r.URL.Query()["session"]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// keyPreflight answers the question of a browser whether a script may send a key. It says nothing about the session.
func (h *Handler) keyPreflight(w http.ResponseWriter, r *http.Request) error {
	privately(w.Header())
	if err := h.fromUCloud(w, r); err != nil {
		return err
	}
	w.Header().Set("Access-Control-Allow-Methods", http.MethodPost)
	w.Header().Set("Access-Control-Allow-Headers", "content-type")
	w.Header().Set("Access-Control-Max-Age", preflightAge)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// keyUpload takes the key of a browser and tells it where to go (contract 01 section 7.2, step 3).
func (h *Handler) keyUpload(w http.ResponseWriter, r *http.Request) error {
	privately(w.Header())
	if err := h.fromUCloud(w, r); err != nil {
		return err
	}
	// A form of any page can send everything but this without the question before.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return failure.New(failure.Invalid, "The content type must be application/json")
	}
	var body providerapi.KeyUpload
	if err := httpx.DecodeJSON(w, r, maxKeyBody, &body); err != nil {
		return err
	}
	to, err := h.o.Keys.Receive(r.Context(), session(r), body.PublicKey)
	if err != nil {
		return err
	}
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.ConnectResponse{RedirectTo: to})
	return nil
}

// keySkip sends a browser on that comes without a key: a client that does not know of keys goes straight to the address.
func (h *Handler) keySkip(w http.ResponseWriter, r *http.Request) error {
	privately(w.Header())
	if r.Method != http.MethodGet {
		return failure.New(failure.NotFound, "There is no such call") // looking at a link must not use it
	}
	to, err := h.o.Keys.Skip(r.Context(), session(r))
	switch kind := failure.KindOf(err); {
	case err == nil:
	case kind == failure.NotFound || kind == failure.Conflict || kind == failure.TooMany || kind == failure.Invalid:
		return h.page.write(w, r, kind.Status(), "stopped", content{Heading: "Please start again", Message: failure.Why(err)})
	default:
		h.log.Error("connect a browser without a signing key", "request", observability.RequestID(r.Context()), "error", err)
		return h.page.write(w, r, http.StatusServiceUnavailable, "failed", content{Heading: "Please try again"})
	}
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}
