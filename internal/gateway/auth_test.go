package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// TestBadTokensAreRefusedEverywhere: a token that is present and wrong is 401 on each route, whatever else would do.
//
//attack:actor internet
//attack:does Sends a forged, expired or foreign token together with something that would do without one.
//attack:control A token that is present must be Core's and valid, on each route.
//attack:remove internal/gateway/gateway.go: if _, err := ex.g.o.VerifyCore(r.Header); err != nil { => if _, err := ex.g.o.VerifyCore(r.Header); err != nil && ex.target != targetServer {
func TestBadTokensAreRefusedEverywhere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	targets := []string{
		"/ucloud/birch/files/browse", "/ucloud/birch/integration/init", "/ucloud/birch/files/retrieveProducts",
		"/ucloud/birch/download?token=t&usernameHint=" + alice.HintValue(), "/ucloud-oidc", "/ucloud/birch/authorize-app",
	}
	for name, token := range map[string]string{
		"empty":          "",
		"only bearer":    "Bearer ",
		"garbage":        "Bearer x.y.z",
		"basic":          "Basic QWxpY2U6eA==",
		"provider token": "Bearer " + coreToken(func(c jwt.MapClaims) { c["sub"], c["role"] = "#P_birch", "PROVIDER" }),
		"expired": "Bearer " + coreToken(func(c jwt.MapClaims) {
			c["iat"], c["exp"] = time.Now().Add(-time.Hour).Unix(), time.Now().Add(-50*time.Minute).Unix()
		}),
		"user token": "Bearer " + coreToken(func(c jwt.MapClaims) { c["role"] = "USER" }),
	} {
		for _, target := range targets {
			res := f.do("POST", target, "{}", "Authorization", token, "UCloud-Username", alice.HeaderValue())
			checkFailure(t, name+" "+target, res, 401)
		}
	}
	if n := len(f.alice.seen()) + len(f.server.seen()); n > 0 {
		t.Errorf("%d requests got through", n)
	}
	if f.control.wakeCount() != 0 {
		t.Error("a request with a bad token has woken an instance")
	}
}

// checkFailure checks the status and the error document of an answer.
func checkFailure(t *testing.T, what string, res reply, status int) {
	t.Helper()
	var body failure.Body
	err := json.Unmarshal([]byte(res.body), &body)
	if res.StatusCode != status || err != nil || body.StatusCode != status || body.Why == "" || res.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("%s: got %d %q (%v), want %d", what, res.StatusCode, res.body, err, status)
	}
}

// TestWhoMayReachAnInstance is the matrix of caller, identity and end point, with and without a route.
//
//attack:actor internet
//attack:does Sends Core's call to an instance, naming the user and without a token.
//attack:control Without a token only the three end points of browsers are open.
//attack:remove internal/gateway/gateway.go: case id.header && !chunked: => case false && chunked:
//attack:run header_without_token_at_the_download
//attack:actor internet
//attack:does Names a user by the hint and calls what only Core may call.
//attack:control The end points of browsers are a complete list, with their methods.
//attack:remove internal/gateway/gateway.go: case !ex.target.forBrowsers() || !browserMethod(ex.target, r.Method, ex.socket): => case false:
//attack:run hint_without_token
//attack:actor internet
//attack:does Wakes instances of other users by naming them, until the machine is full.
//attack:control Only a one-time token that is open for exactly this user wakes an instance.
//attack:remove internal/gateway/gateway.go: if err == nil && !open { => if err == nil && !open && false {
//attack:run download,_unknown_token
func TestWhoMayReachAnInstance(t *testing.T) {
	t.Parallel()
	const none, core, browser = "", "core", "browser"
	hint := "usernameHint=" + alice.HintValue()
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version", "13"}
	for _, tc := range []struct {
		name           string
		method, target string
		token, header  bool
		upgrade        bool
		class          string // what the instance is told; none: it must not see the request
		status         int    // with a route
		away           int    // without a route
	}{
		{"core, header", "POST", "/ucloud/birch/files/browse", true, true, false, core, 200, 449},
		{"core, header and hint", "POST", "/ucloud/birch/files/browse?" + hint, true, true, false, core, 200, 449},
		{"core, hint, GET", "GET", "/ucloud/birch/files?" + hint, true, false, false, core, 200, 449},
		{"core, hint, WebSocket", "GET", "/ucloud/jobs.provider.birch/websocket?" + hint, true, false, true, core, 200, 449},
		{"core, hint, POST", "POST", "/ucloud/birch/files/browse?" + hint, true, false, false, none, 404, 404},
		{"core, no user", "POST", "/ucloud/birch/files/browse", true, false, false, none, 404, 404},
		{"header without token", "POST", "/ucloud/birch/files/browse", false, true, false, none, 401, 401},
		{"header without token at the download", "GET", "/ucloud/birch/download?token=open", false, true, false, none, 401, 401},
		{"hint without token", "GET", "/ucloud/birch/files?" + hint, false, false, false, none, 404, 404},
		{"hint without token, WebSocket", "GET", "/ucloud/jobs.provider.birch/websocket?" + hint, false, false, true, none, 404, 404},
		{"hint without token, POST", "POST", "/ucloud/birch/files/trash?" + hint, false, false, false, none, 404, 404},
		{"nobody", "GET", "/ucloud/birch/files", false, false, false, none, 404, 404},
		{"nobody at the download", "GET", "/ucloud/birch/download?token=open", false, false, false, none, 404, 404},
		{"download", "GET", "/ucloud/birch/download?token=open&" + hint, false, false, false, browser, 200, 449},
		{"download, HEAD", "HEAD", "/ucloud/birch/download?token=open&" + hint, false, false, false, browser, 200, 449},
		{"download, preflight", "OPTIONS", "/ucloud/birch/download?token=open&" + hint, false, false, false, browser, 200, 449},
		{"download, POST", "POST", "/ucloud/birch/download?token=open&" + hint, false, false, false, none, 404, 404},
		{"download, unknown token", "GET", "/ucloud/birch/download?token=unknown&" + hint, false, false, false, browser, 200, 404},
		{"download, no token", "GET", "/ucloud/birch/download?" + hint, false, false, false, browser, 200, 404},
		{"download, two tokens", "GET", "/ucloud/birch/download?token=open&token=unknown&" + hint, false, false, false, browser, 200, 404},
		{"below the download", "GET", "/ucloud/birch/download/x?token=open&" + hint, false, false, false, none, 404, 404},
		{"upload socket", "GET", "/ucloud/birch/upload?token=open&" + hint, false, false, true, browser, 200, 449},
		{"upload GET", "GET", "/ucloud/birch/upload?token=open&" + hint, false, false, false, none, 404, 404},
		{"chunked upload", "POST", "/ucloud/birch/upload?token=open&" + hint, false, false, false, browser, 200, 449},
		{"chunked upload, user in the header", "POST", "/ucloud/birch/upload?token=open", false, true, false, browser, 200, 449},
		{"upload socket, user in the header", "GET", "/ucloud/birch/upload?token=open", false, true, true, none, 401, 401},
		{"terminal", "GET", "/ucloud/birch/websocket?session=open&" + hint, false, false, true, browser, 200, 449},
		{"terminal without upgrade", "GET", "/ucloud/birch/websocket?session=open&" + hint, false, false, false, none, 404, 404},
		{"other provider", "POST", "/ucloud/oak/files/browse", true, true, false, none, 404, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.control.onToken(func(_ context.Context, user ident.UCloudUser, hash [32]byte) (bool, error) {
				return user == alice && hash == sha256.Sum256([]byte("open")), nil
			})
			var header []string
			if tc.token {
				header = append(header, "Authorization", bearer())
			}
			if tc.header {
				header = append(header, "UCloud-Username", alice.HeaderValue())
			}
			if tc.upgrade {
				header = append(header, upgrade...)
			}
			res := f.do(tc.method, tc.target, "", header...)
			if res.StatusCode != tc.status {
				t.Errorf("with a route: got %d %s", res.StatusCode, res.body)
			}
			got := f.alice.seen()
			if (len(got) == 1) != (tc.class != none) {
				t.Fatalf("the instance saw %+v", got)
			}
			if tc.class != none {
				v := hoptoken.Verifier{Key: f.key, UID: 20001, User: alice, Now: time.Now}
				path, _, _ := strings.Cut(tc.target, "?")
				claims, err := v.Verify(got[0].Header.Get(hoptoken.Header), tc.method, path)
				want := map[string]hoptoken.Class{core: hoptoken.ClassCore, browser: hoptoken.ClassBrowser}[tc.class]
				if err != nil || claims.Class != want {
					t.Errorf("hop token %+v, %v; want class %v", claims, err, want)
				}
				if has := got[0].Header.Get(ident.HeaderUser) != ""; has != (tc.class == core) {
					t.Errorf("class %s, user header present: %v", tc.class, has)
				}
			}

			f.routes.Apply(Update{Full: true})
			res = f.do(tc.method, tc.target, "", header...)
			if res.StatusCode != tc.away {
				t.Errorf("without a route: got %d %s", res.StatusCode, res.body)
			}
			if woken := f.control.wakeCount() > 0; woken != (tc.away == 449) {
				t.Errorf("without a route: an instance was asked for: %v", woken)
			}
		})
	}
}

// TestOtherUsersNeverReachAnInstance also shows what keeps strangers out.
//
//attack:actor internet
//attack:does Names one user in the header and another in the hint.
//attack:control Header and hint must agree.
//attack:remove internal/gateway/identity.go: if id.user != "" && id.user != u { => if false {
func TestOtherUsersNeverReachAnInstance(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := newBackend(t, "bob", listen(t, "tcp", "127.0.0.1:0"))
	f.route(bob, other, 2, 1)
	for range 20 {
		if res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); res.body != `{"by":"alice"}` {
			t.Fatalf("Alice got %s", res.body)
		}
		if res := f.core("POST", "/ucloud/birch/files/browse", "{}", bob); res.body != `{"by":"bob"}` {
			t.Fatalf("Bob got %s", res.body)
		}
		res := f.core("POST", "/ucloud/birch/files/browse?usernameHint="+bob.HintValue(), "{}", alice)
		checkFailure(t, "header and hint differ", res, 400)
	}
	// A name is compared byte by byte.
	for _, name := range []ident.UCloudUser{"alice#1234", "Alice#1234 ", "ALICE#1234", "Alice#12345"} {
		checkFailure(t, string(name), f.core("POST", "/ucloud/birch/files/browse", "{}", name), 449)
	}
}

// TestAnswersOfInstancesAreCleaned: an instance is its user's, and its answers come under the provider's name.
//
//attack:actor compromised instance
//attack:does Answers with headers that act on the provider's other pages in the browser of whoever asked.
//attack:control Such headers are removed from the answers of instances.
//attack:remove internal/gateway/forward.go: delete(res.Header, name) => _ = name
func TestAnswersOfInstancesAreCleaned(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		for _, name := range []string{"Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "X-Ucloud-Hop", "X-Request-Id"} {
			h.Set(name, "evil")
		}
		h.Set("Content-Security-Policy", "script-src *")
		h.Set("X-Cookie", r.Header.Get("Cookie")+r.Header.Get("Referer"))
	})
	res := f.do("GET", "/ucloud/birch/download?token=x&usernameHint="+alice.HintValue(), "", "Cookie", "session=secret", "Referer", "https://birch.example.net/?ticket=x")
	for name, values := range res.Header {
		if strings.Contains(strings.Join(values, " "), "evil") {
			t.Errorf("%s: %q got out", name, values)
		}
	}
	if v := res.Header.Get("X-Cookie"); v != "" {
		t.Errorf("the instance saw %q", v)
	}
	if v := res.Header.Values("Content-Security-Policy"); len(v) != 2 || v[1] != "sandbox" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("policies %q, %q", v, res.Header.Get("X-Content-Type-Options"))
	}
}
