package integration

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/signingkeys"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

const ucloudOrigin = "https://ucloud.example.org"

// newKeyWorld is newWorld with the upload of keys in front of the tickets.
func newKeyWorld(t *testing.T) (*world, *signingkeys.Service) {
	t.Helper()
	var keys *signingkeys.Service
	w := newWorld(t, func(o *Options) {
		var st *store.Store
		st, o.Users = usersWithKeys(t, &keys)
		tickets, err := ticket.NewMethod(ticket.Options{Store: st, Users: o.Users, Log: o.Log, PageURL: "https://im.example.org" + PagePath(provider), SelfService: true})
		if err != nil {
			t.Fatal(err)
		}
		method := &signingkeys.Method{
			Keys: keys, Next: tickets, URL: "https://im.example.org" + UploadPath(provider), Wanted: func(ident.UCloudUser) bool { return true },
		}
		o.Method, o.Keys, o.Tickets = method, method, tickets
	})
	w.users, w.method = w.h.o.Users, w.h.o.Tickets.(*ticket.Method)
	return w, keys
}

// usersWithKeys is a user map over a database of its own in which keys become usable.
func usersWithKeys(t *testing.T, keys **signingkeys.Service) (*store.Store, *usermap.Service) {
	t.Helper()
	inner := newWorld(t)
	var err error
	*keys, err = signingkeys.New(signingkeys.Options{Store: inner.store, Tokens: onetime.New(inner.store, onetime.Options{}), Log: inner.h.log})
	if err != nil {
		t.Fatal(err)
	}
	users, err := usermap.New(t.Context(), usermap.Options{
		Store: inner.store, Core: core{}, Policy: policy{}, Log: inner.h.log,
		ActivateKey: func(tx *store.Tx, user ident.UCloudUser, key string, a usermap.Account, proof string) error {
			return (*keys).Activate(tx, user, key, a.UID, proof)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return inner.store, users
}

// session presses "Connect" and gives the path that Core passes on.
func (w *world) session(t *testing.T) string {
	t.Helper()
	rec := w.call("POST", base+"/integration/connect", `{"username":"`+string(alice)+`"}`)
	var resp providerapi.ConnectResponse
	if err := json.Unmarshal(rec.Body.Bytes(), &resp); err != nil || rec.Code != http.StatusOK {
		t.Fatalf("connect: %d %s", rec.Code, rec.Body)
	}
	path, ok := strings.CutPrefix(resp.RedirectTo, "https://im.example.org")
	if !ok || !strings.HasPrefix(path, base+"/integration/redirect?session=") {
		t.Fatalf("redirect to %q", resp.RedirectTo)
	}
	return path
}

// browser makes a request without Core's token.
func (w *world) browser(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	return w.call(method, path, body, append([]string{"Authorization", ""}, headers...)...)
}

func browserKey(t *testing.T) (key signkey.Key, body string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = signkey.FromPublic(public); err != nil {
		t.Fatal(err)
	}
	// Browsers may end lines as contract 01 section 7.2 shows.
	raw, err := json.Marshal(providerapi.KeyUpload{PublicKey: strings.ReplaceAll(key.PEM(), "\n", "\r\n")})
	if err != nil {
		t.Fatal(err)
	}
	return key, string(raw)
}

var fromUCloud = []string{"Origin", ucloudOrigin, "Content-Type", "application/json", "Accept", "application/json"}

// TestKeyUpload is the exchange of contract 01 section 7.2, to the end.
func TestKeyUpload(t *testing.T) {
	t.Parallel()
	w, keys := newKeyWorld(t)
	path := w.session(t)

	rec := w.browser("OPTIONS", path, "", "Origin", ucloudOrigin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": ucloudOrigin, "Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "content-type",
		"Access-Control-Max-Age": "600", "Access-Control-Allow-Credentials": "", "Vary": "Origin",
	} {
		if got := rec.Header().Get(name); got != want {
			t.Errorf("preflight: %s is %q, want %q", name, got, want)
		}
	}
	if rec.Code != http.StatusNoContent || rec.Body.Len() != 0 {
		t.Errorf("preflight: %d %s", rec.Code, rec.Body)
	}

	key, body := browserKey(t)
	rec = w.browser("POST", path, body, fromUCloud...)
	var resp providerapi.ConnectResponse
	if err := json.Unmarshal(rec.Body.Bytes(), &resp); err != nil || rec.Code != http.StatusOK {
		t.Fatalf("upload: %d %s", rec.Code, rec.Body)
	}
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": ucloudOrigin, "Access-Control-Allow-Credentials": "", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
		"Vary": "Origin",
	} {
		if got := rec.Header().Get(name); got != want {
			t.Errorf("upload: %s is %q, want %q", name, got, want)
		}
	}

	// The page of the ticket shows the key, and what to run.
	u, err := url.Parse(resp.RedirectTo)
	if err != nil || u.Path != base+"/integration/instructions" {
		t.Fatalf("the browser goes to %q", resp.RedirectTo)
	}
	page := w.browser("GET", u.RequestURI(), "")
	if page.Code != http.StatusOK || strings.Count(page.Body.String(), htmlText(key.Fingerprint())) != 1 {
		t.Errorf("the page of the ticket: %d %s", page.Code, page.Body)
	}
	tk, err := ticket.Parse(u.Query().Get("ticket"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.method.Complete(t.Context(), ticket.Completion{Ticket: tk, User: alice, Local: "alice", KeyFingerprint: key.Fingerprint()}); err != nil {
		t.Fatal(err)
	}
	if got, err := keys.Keys(t.Context(), alice, 2001); err != nil || len(got) != 1 || got[0].Fingerprint != key.Fingerprint() {
		t.Errorf("keys %v, %v", got, err)
	}
	// Neither the session nor the key may stand in the log.
	_, secret, _ := strings.Cut(path, "session=")
	if strings.Contains(w.log.String(), secret) {
		t.Error("the session is in the log")
	}
}

// htmlText is how html/template writes a text.
func htmlText(s string) string { return strings.ReplaceAll(s, "+", "&#43;") }

// TestKeysComeFromUCloudOnly: scripts of other pages can neither send a key nor read an answer.
//
//attack:actor internet
//attack:does Has a page of its own send a key, and read where the browser goes next, with a session that it has found.
//attack:control Keys are accepted from UCloud's own origin only, which stands in the configuration.
//attack:remove internal/integration/keys.go: len(o) != 1 || o[0] != h.ucloud { => len(o) > 99 {
//attack:actor internet
//attack:does Relies on the provider to echo any origin that asks, and to allow credentials.
//attack:control The origin in the answer is never that of the request.
//attack:remove internal/integration/keys.go: len(o) != 1 || o[0] != h.ucloud { => len(o) > 99 {
//attack:remove internal/integration/keys.go: "Access-Control-Allow-Origin", h.ucloud) => "Access-Control-Allow-Origin", r.Header.Get("Origin"))
func TestKeysComeFromUCloudOnly(t *testing.T) {
	t.Parallel()
	w, keys := newKeyWorld(t)
	path := w.session(t)
	_, body := browserKey(t)
	for _, origin := range []string{
		"", "null", "*", "https://evil.example.org", "http://ucloud.example.org", "https://ucloud.example.org:8443", "https://ucloud.example.org.evil.org",
		"https://UCLOUD.example.org", "https://ucloud.example.org/", "https://im.example.org", ucloudOrigin + ", https://evil.example.org",
	} {
		for _, method := range []string{"POST", "OPTIONS"} {
			headers := []string{"Content-Type", "application/json"}
			if origin != "" {
				headers = append(headers, "Origin", origin)
			}
			rec := w.browser(method, path, body, headers...)
			if rec.Code != http.StatusForbidden {
				t.Errorf("%s from %q: %d %s", method, origin, rec.Code, rec.Body)
			}
			for name := range rec.Header() {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("%s from %q is answered with %s: %s", method, origin, name, rec.Header().Get(name))
				}
			}
			if rec.Header().Get("Vary") != "Origin" {
				t.Errorf("%s from %q: Vary is %q", method, origin, rec.Header().Get("Vary"))
			}
		}
	}
	rec := w.browser("POST", path, body, append([]string{"Origin", "https://evil.example.org"}, fromUCloud...)...)
	if rec.Code != http.StatusForbidden {
		t.Errorf("two origins: %d", rec.Code)
	}
	if got, err := keys.Of(t.Context(), alice); err != nil || len(got) != 0 {
		t.Errorf("keys %v, %v", got, err)
	}
	// Nothing of this has used the session.
	if rec := w.browser("POST", path, body, fromUCloud...); rec.Code != http.StatusOK {
		t.Errorf("the right page: %d %s", rec.Code, rec.Body)
	}
}

// TestKeyRequests: what is not as a browser sends it.
//
//attack:actor internet
//attack:does Sends a key by a plain form of any page, which needs no permission of ours, or a body without end.
//attack:control Keys come as JSON of at most 16 KiB.
//attack:remove internal/integration/keys.go: err != nil || kind != "application/json" { => err != nil && kind == "-" {
func TestKeyRequests(t *testing.T) {
	t.Parallel()
	w, _ := newKeyWorld(t)
	path := w.session(t)
	_, body := browserKey(t)
	for _, tc := range []struct {
		name, kind, body string
		path             string
		want             int
	}{
		{"no type", "", body, path, 400},
		{"a form", "text/plain", body, path, 400},
		{"another form", "application/x-www-form-urlencoded", body, path, 400},
		{"large", "application/json", `{"publicKey":"` + strings.Repeat("x", maxKeyBody) + `"}`, path, 413},
		{"no JSON", "application/json", "-----BEGIN", path, 400},
		{"no key", "application/json", "{}", path, 400},
		{"a private key", "application/json", `{"publicKey":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"}`, path, 400},
		{"two sessions", "application/json", body, path + "&session=x", 404},
		{"no session", "application/json", body, base + "/integration/redirect", 404},
		{"another session", "application/json", body, base + "/integration/redirect?session=" + strings.Repeat("A", 43), 404},
		{"as it should be", "application/json; charset=utf-8", body, path, 200},
	} {
		rec := w.browser("POST", tc.path, tc.body, "Origin", ucloudOrigin, "Content-Type", tc.kind)
		if rec.Code != tc.want {
			t.Errorf("%s: %d %s, want %d", tc.name, rec.Code, rec.Body, tc.want)
		}
		if rec.Code != http.StatusOK && why(t, rec) == "" {
			t.Errorf("%s: no reason is given", tc.name)
		}
		if rec.Header().Get("Access-Control-Allow-Origin") != ucloudOrigin {
			t.Errorf("%s: the page of UCloud cannot read why", tc.name)
		}
	}
}

// TestBrowserWithoutKey goes straight to the address, as today's client does while it has no key.
func TestBrowserWithoutKey(t *testing.T) {
	t.Parallel()
	w, keys := newKeyWorld(t)
	path := w.session(t)
	if rec := w.browser("HEAD", path, ""); rec.Code != http.StatusNotFound {
		t.Errorf("HEAD: %d", rec.Code)
	}
	rec := w.browser("GET", path, "")
	to := rec.Header().Get("Location")
	if rec.Code != http.StatusSeeOther || !strings.HasPrefix(to, "https://im.example.org"+PagePath(provider)+"?ticket=") {
		t.Fatalf("%d to %q", rec.Code, to)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"} {
		if got := rec.Header().Get(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	// Somebody else's key for this session comes too late, and one that came first is found out.
	_, body := browserKey(t)
	if rec := w.browser("POST", path, body, fromUCloud...); rec.Code != http.StatusNotFound {
		t.Errorf("a key afterwards: %d %s", rec.Code, rec.Body)
	}
	path = w.session(t)
	if rec := w.browser("POST", path, body, fromUCloud...); rec.Code != http.StatusOK {
		t.Fatalf("upload: %d", rec.Code)
	}
	rec = w.browser("GET", path, "")
	if rec.Code != http.StatusConflict || !strings.Contains(rec.Body.String(), "Somebody else has used this link") || rec.Header().Get("Location") != "" {
		t.Errorf("a browser after a key: %d %s", rec.Code, rec.Body)
	}
	if rec.Header().Get("Content-Security-Policy") == "" {
		t.Error("the page has no policy")
	}
	if rec := w.browser("GET", base+"/integration/redirect?session=x", ""); rec.Code != http.StatusNotFound || !strings.Contains(rec.Body.String(), "press “Connect”") && !strings.Contains(rec.Body.String(), "Connect") {
		t.Errorf("an unknown session: %d %s", rec.Code, rec.Body)
	}
	if got, err := keys.Of(t.Context(), alice); err != nil || len(got) != 0 {
		t.Errorf("keys %v, %v", got, err)
	}
}

// TestNoKeysNoUpload: where keys are not known, the address is not either.
func TestNoKeysNoUpload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, method := range []string{"GET", "POST", "OPTIONS"} {
		if rec := w.browser(method, base+"/integration/redirect?session=x", "", fromUCloud...); rec.Code != http.StatusNotFound {
			t.Errorf("%s: %d", method, rec.Code)
		}
	}
}
