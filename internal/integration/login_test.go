package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/idp"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
	"ucloud-im/internal/usermap/oidc"
)

const selfPublic = "https://im.example.org"

// findAlice is the program of the site: everybody is alice.
type findAlice struct{}

func (findAlice) Call(_ context.Context, _ scripts.Call, reply any) error {
	return json.Unmarshal([]byte(`{"uid":2001}`), reply)
}

// lockedBuffer is a log that may be read while others write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// loginWorld is a provider where people log in.
type loginWorld struct {
	*world
	idp  *idp.Provider
	logs *lockedBuffer
}

// newLoginWorld starts one. Its identity provider may be away.
func newLoginWorld(t *testing.T, away bool) *loginWorld {
	t.Helper()
	w := &loginWorld{world: newWorld(t), idp: idp.New(t, idp.User{Name: "alice", Password: "rabbit", Subject: "sub-alice"}), logs: &lockedBuffer{}}
	w.idp.Down(away)
	log := slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	pages, err := consent.New(consent.Options{
		Store: w.store, Users: w.users, Tokens: onetime.New(w.store, onetime.Options{}), Log: log, Method: oidc.MethodName,
		PageURL: selfPublic + LoginPath(provider),
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := oidc.New(oidc.Options{
		Consent: pages, Log: log, Existing: w.users.Mapping, Patience: testkit.Patience,
		Account: func(ctx context.Context, uid ident.UID) (usermap.Account, error) {
			return w.users.Check(ctx, uid.String())
		},
	}, oidc.Settings{
		Issuer: w.idp.Issuer, ClientID: w.idp.ClientID, ClientSecret: observability.Secret(w.idp.ClientSecret), RedirectURI: selfPublic + CallbackPath,
		HTTP: w.idp.Client(), Map: findAlice{},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if w.h, err = New(verifier{}, Options{
		Provider: provider, UCloudPublic: "https://ucloud.example.org", Users: w.users, Method: m, Logins: m, SelfPublic: selfPublic,
		Launcher: w.launcher, Products: products{}, Page: PageOptions{Title: "Example HPC"}, Log: log,
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// person is a browser: it keeps the cookie.
type person struct {
	w      *loginWorld
	cookie string
}

// do makes a request as a browser does when somebody follows a link.
func (p *person) do(t *testing.T, method, target, body string, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, strings.TrimPrefix(target, selfPublic), strings.NewReader(body))
	if p.cookie != "" {
		r.AddCookie(&http.Cookie{Name: loginCookie, Value: p.cookie}) //nolint:gosec // of a request
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	p.w.h.ServeHTTP(rec, r)
	res := rec.Result()
	for _, c := range res.Cookies() {
		if c.Name == loginCookie {
			p.cookie = c.Value
		}
	}
	return res
}

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// link is what UCloud is given when the user presses "Connect".
func (w *loginWorld) link(t *testing.T, user ident.UCloudUser) string {
	t.Helper()
	rec := w.call("POST", "/ucloud/"+provider+"/integration/connect", `{"username":"`+string(user)+`"}`)
	var res struct{ RedirectTo string }
	if err := json.Unmarshal(rec.Body.Bytes(), &res); err != nil || !strings.HasPrefix(res.RedirectTo, selfPublic+LoginPath(provider)+"?session=") {
		t.Fatalf("connect: %d %s", rec.Code, rec.Body)
	}
	return res.RedirectTo
}

// login goes from the link to the question.
func (p *person) login(t *testing.T, link string) string {
	t.Helper()
	res := p.do(t, "GET", link, "")
	if res.StatusCode != http.StatusSeeOther {
		t.Fatalf("first page: %d %s", res.StatusCode, text(t, res))
	}
	res = p.do(t, "GET", p.w.idp.Login(t, res.Header.Get("Location"), "alice"), "")
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != ConsentPath(provider) {
		t.Fatalf("callback: %d %s", res.StatusCode, text(t, res))
	}
	res = p.do(t, "GET", ConsentPath(provider), "")
	return text(t, res)
}

var formSecret = regexp.MustCompile(`name="form" value="([^"]+)"`)

func answerOf(t *testing.T, page, answer string) string {
	t.Helper()
	m := formSecret.FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("the page has no form:\n%s", page)
	}
	return url.Values{"form": {m[1]}, "answer": {answer}}.Encode()
}

func TestLoginPages(t *testing.T) {
	t.Parallel()
	w := newLoginWorld(t, false)
	p := &person{w: w}
	link := w.link(t, "Ada#1815")
	res := p.do(t, "GET", link, "", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
	set := res.Header.Get("Set-Cookie")
	for _, part := range []string{loginCookie + "=", "; Path=/", "; HttpOnly", "; Secure", "; SameSite=Lax", "; Max-Age="} {
		if !strings.Contains(set, part) {
			t.Errorf("the cookie %q lacks %q", set, part)
		}
	}
	if strings.Contains(set, "Domain") || res.Header.Get("Referrer-Policy") != "no-referrer" || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("first page: %v", res.Header)
	}
	if again := p.do(t, "GET", link, ""); again.StatusCode != http.StatusNotFound {
		t.Errorf("the link opens twice: %d", again.StatusCode)
	}
	back := w.idp.Login(t, res.Header.Get("Location"), "alice")
	if res := p.do(t, "GET", back, ""); res.Header.Get("Location") != ConsentPath(provider) || res.Header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("callback: %d %v", res.StatusCode, res.Header)
	}
	res = p.do(t, "GET", ConsentPath(provider), "")
	page := text(t, res)
	parse(t, "ask", page)
	csp := res.Header.Get("Content-Security-Policy")
	if res.Header.Get("Referrer-Policy") != "same-origin" || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Frame-Options") != "DENY" ||
		!strings.Contains(csp, "frame-ancestors 'none'") || !strings.HasSuffix(csp, "form-action 'self'") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("the page that asks: %v", res.Header)
	}
	for _, want := range []string{"Ada#1815", "alice", `method="post"`, "Example HPC", `value="cancel"`} {
		if !strings.Contains(page, want) {
			t.Errorf("the page that asks lacks %q", want)
		}
	}
	if strings.Contains(page, "<script") {
		t.Error("the page has a script")
	}
	// A reload of the callback shows the same page.
	if res := p.do(t, "GET", back, ""); res.Header.Get("Location") != ConsentPath(provider) {
		t.Errorf("callback again: %d", res.StatusCode)
	}
	if res := p.do(t, "POST", ConsentPath(provider), answerOf(t, page, "connect"), "Origin", selfPublic, "Sec-Fetch-Site", "same-origin"); res.StatusCode != http.StatusSeeOther {
		t.Fatalf("the answer: %d %s", res.StatusCode, text(t, res))
	}
	page = text(t, p.do(t, "GET", ConsentPath(provider), ""))
	parse(t, "connecting", page)
	if !strings.Contains(page, "http-equiv=\"refresh\"") || !strings.Contains(page, "is being connected to the local account") || !strings.Contains(page, "https://ucloud.example.org") {
		t.Errorf("afterwards:\n%s", page)
	}
	if m, err := w.users.Mapping(t.Context(), "Ada#1815"); err != nil || m.UID != 2001 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, secret := range []string{p.cookie, values(t, back).Get("code"), values(t, back).Get("state"), values(t, link).Get("session"), w.idp.ClientSecret} {
		if secret == "" || strings.Contains(w.logs.String(), secret) {
			t.Errorf("the secret %q is logged", secret)
		}
	}
}

func values(t *testing.T, address string) url.Values {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

// TestLinkSentToVictim: Mallory presses "Connect" and sends the link to Alice, who logs in.
//
//attack:actor malicious identity
//attack:does Sends the link of the own UCloud user to a victim, who logs in at the identity provider as every day.
//attack:control A login connects nothing: the victim is asked, and the page names the attacker's UCloud user.
//attack:remove internal/integration/login.go: c := content{User: string(v.User), => c := content{User: "your user",
func TestLinkSentToVictim(t *testing.T) {
	t.Parallel()
	w := newLoginWorld(t, false)
	victim := &person{w: w}
	page := victim.login(t, w.link(t, "Mallory#6660"))
	if !strings.Contains(page, "Connect <bdi>Mallory#6660</bdi> with <bdi>alice</bdi>") || !strings.Contains(page, "Then cancel:") {
		t.Errorf("the victim sees:\n%s", page)
	}
	if _, err := w.users.Mapping(t.Context(), "Mallory#6660"); err == nil {
		t.Fatal("connected without consent")
	}
	// Mallory cannot answer for her: neither without her cookie nor from another site.
	body := answerOf(t, page, "connect")
	mallory := &person{w: w}
	if res := mallory.do(t, "POST", ConsentPath(provider), body); res.StatusCode != http.StatusNotFound {
		t.Errorf("an answer without the cookie: %d", res.StatusCode)
	}
	if res := victim.do(t, "POST", ConsentPath(provider), answerOf(t, page, "cancel"), "Origin", selfPublic); res.StatusCode != http.StatusSeeOther {
		t.Errorf("cancel: %d", res.StatusCode)
	}
	page = text(t, victim.do(t, "GET", ConsentPath(provider), ""))
	parse(t, "cancelled", page)
	if !strings.Contains(page, "Nothing was connected") {
		t.Errorf("after that:\n%s", page)
	}
	if _, err := w.users.Mapping(t.Context(), "Mallory#6660"); err == nil {
		t.Error("connected although cancelled")
	}
}

// TestLoginFromOtherPages makes requests that other pages could have the browser make.
//
//attack:actor internet
//attack:does Sends the consent form from another site, or from a page whose origin is hidden.
//attack:control The form is taken from the provider's own page only.
//attack:remove internal/integration/login.go: if origins := r.Header.Values("Origin"); len(origins) > 1 || len(origins) == 1 && origins[0] != h.origin { => if false {
//attack:run origin
//attack:actor internet
//attack:does Loads the pages of a login in a frame, as an image or by a script.
//attack:control The pages of a login are for navigation only.
//attack:remove internal/integration/login.go: if mode != "" && mode != "navigate" || dest != "" && dest != "document" { => if _, _ = mode, dest; false {
//attack:run fetched
//attack:actor internet
//attack:does Frames the page that asks for consent (clickjacking).
//attack:control The page must not be framed.
//attack:remove internal/integration/page.go: frame-ancestors 'none'; => ;
//attack:run framed
func TestLoginFromOtherPages(t *testing.T) {
	t.Parallel()
	w := newLoginWorld(t, false)
	p := &person{w: w}
	page := p.login(t, w.link(t, "Ada#1815"))
	body := answerOf(t, page, "connect")
	t.Run("origin", func(t *testing.T) {
		for _, headers := range [][]string{
			{"Origin", "https://evil.example.org"},
			{"Origin", "null"},
			{"Origin", "https://im.example.org.evil.example"},
			{"Origin", "http://im.example.org"},
			{"Origin", "https://ucloud.example.org"},
		} {
			if res := p.do(t, "POST", ConsentPath(provider), body, headers...); res.StatusCode != http.StatusForbidden {
				t.Errorf("%v: %d", headers, res.StatusCode)
			}
		}
	})
	if res := p.do(t, "POST", ConsentPath(provider), body, "Sec-Fetch-Site", "same-site"); res.StatusCode != http.StatusForbidden {
		t.Errorf("from a sibling host: %d", res.StatusCode)
	}
	t.Run("fetched", func(t *testing.T) {
		for _, headers := range [][]string{{"Sec-Fetch-Mode", "no-cors"}, {"Sec-Fetch-Mode", "cors"}, {"Sec-Fetch-Dest", "iframe"}, {"Sec-Fetch-Dest", "image"}} {
			link := w.link(t, "Ada#1815")
			for target, method := range map[string]string{link: "GET", CallbackPath + "?state=x&code=y": "GET", ConsentPath(provider): "POST"} {
				if res := p.do(t, method, target, "", headers...); res.StatusCode != http.StatusForbidden {
					t.Errorf("%s %v: %d", target, headers, res.StatusCode)
				}
			}
			stranger := &person{w: w}
			if res := stranger.do(t, "HEAD", link, ""); res.StatusCode != http.StatusNotFound || stranger.cookie != "" {
				t.Errorf("HEAD: %d", res.StatusCode)
			}
			if res := stranger.do(t, "GET", link, ""); res.StatusCode != http.StatusSeeOther {
				t.Errorf("the link was used up: %d", res.StatusCode)
			}
		}
	})
	t.Run("framed", func(t *testing.T) {
		if csp := p.do(t, "GET", ConsentPath(provider), "").Header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s", csp)
		}
	})
	for name, body := range map[string]string{
		"no answer": "form=x", "two answers": body + "&answer=cancel", "another answer": strings.Replace(body, "connect", "yes", 1), "no form": "answer=connect",
		"broken": "%", "long": body + "&x=" + strings.Repeat("x", maxForm),
	} {
		if res := p.do(t, "POST", ConsentPath(provider), body, "Origin", selfPublic); res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
	if _, err := w.users.Mapping(t.Context(), "Ada#1815"); err == nil {
		t.Error("connected")
	}
	// Two cookies of this name: which one counts cannot be told.
	two := httptest.NewRequest("GET", ConsentPath(provider), nil)
	two.Header.Set("Cookie", loginCookie+"="+p.cookie+"; "+loginCookie+"=x")
	rec := httptest.NewRecorder()
	w.h.ServeHTTP(rec, two)
	if rec.Code != http.StatusNotFound {
		t.Errorf("two cookies: %d", rec.Code)
	}
}

// TestIssuerAway shows a page that tries again.
func TestIssuerAway(t *testing.T) {
	t.Parallel()
	w := newLoginWorld(t, true)
	p := &person{w: w}
	link := w.link(t, "Ada#1815")
	res := p.do(t, "GET", link, "")
	page := text(t, res)
	parse(t, "away", page)
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(page, "cannot be reached") || !strings.Contains(page, "http-equiv=\"refresh\"") || p.cookie != "" {
		t.Errorf("%d\n%s", res.StatusCode, page)
	}
	w.idp.Down(false)
	testkit.Eventually(t, "the page to find the issuer", func() bool { return p.do(t, "GET", link, "").StatusCode == http.StatusSeeOther })
}

// TestNoLogins: where nobody logs in there are no such pages.
func TestNoLogins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, r := range [][2]string{{"GET", LoginPath(provider) + "?session=x"}, {"GET", CallbackPath + "?code=x&state=y"}, {"GET", ConsentPath(provider)}, {"POST", ConsentPath(provider)}} {
		if rec := w.call(r[0], r[1], ""); rec.Code != http.StatusNotFound {
			t.Errorf("%s: %d", r, rec.Code)
		}
	}
}
