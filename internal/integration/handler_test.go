package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/store"
)

// calls are all calls of Core, with a body that is right.
var calls = []struct{ method, path, body string }{
	{"GET", "/integration/retrieveManifest", ""},
	{"POST", "/integration/connect", `{"username":"Alice#1234"}`},
	{"POST", "/integration/unlinked", `{"username":"Alice#1234"}`},
	{"POST", "/integration/init", `{"username":"Alice#1234"}`},
	{"GET", "/files/collections/retrieveProducts", ""},
	{"GET", "/jobs/retrieveProducts", ""},
	{"GET", "/ingresses/retrieveProducts", ""},
	{"GET", "/networkips/retrieveProducts", ""},
	{"GET", "/licenses/retrieveProducts", ""},
	{"GET", "/private-networks/retrieveProducts", ""},
	{"GET", "/provider/branding/retrieveInfo", ""},
}

func TestCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range calls {
		t.Run(c.path, func(t *testing.T) {
			rec := w.call(c.method, base+c.path, c.body)
			if rec.Code != http.StatusOK {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			checkBody(t, c.method, base+c.path, rec)
			if c.body != "" {
				id, _ := apischema.Provider(t).Find(c.method, base+c.path)
				apischema.Provider(t).Request(t, id, []byte(c.body))
			}
			if ct := rec.Header().Get("Content-Type"); ct != "application/json; charset=utf-8" {
				t.Errorf("content type %q", ct)
			}
		})
	}
	if got := w.call("GET", base+"/integration/retrieveManifest", "").Body.String(); got != `{"enabled":true,"expireAfterMs":null}` {
		t.Errorf("manifest %s", got)
	}
	if got := w.call("GET", base+"/ingresses/retrieveProducts", "").Body.String(); got != `{}` {
		t.Errorf("nothing offered is %s", got)
	}
}

//attack:actor internet
//attack:does Calls the server as Core would, without a token.
//attack:control Each call of Core to the server demands Core's token.
//attack:remove internal/integration/handler.go: if c != callerPublic { => if c == 255 {
func TestEveryRouteDemandsCore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range calls {
		for name, auth := range map[string]string{"no token": "", "another token": "Bearer user"} {
			rec := w.call(c.method, base+c.path, c.body, "Authorization", "", "Authorization", auth)
			if rec.Code != http.StatusUnauthorized {
				t.Errorf("%s with %s: %d %s", c.path, name, rec.Code, rec.Body)
			}
			checkBody(t, c.method, base+c.path, rec)
		}
	}
	if len(w.launcher.woken) != 0 {
		t.Errorf("somebody was launched: %q", w.launcher.woken)
	}
}

func TestEveryRouteHasAClass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := w.h.guard(0, w.h.manifest); err == nil {
		t.Fatal("a route without a class of caller was accepted")
	}
}

func TestUserHeader(t *testing.T) {
	t.Parallel()
	header := func(u ident.UCloudUser) []string { return []string{"ucloud-username", u.HeaderValue()} }
	for _, c := range calls {
		about := c.body != ""
		for _, tc := range []struct {
			name    string
			headers []string
			want    int // for a call about a user
		}{
			{"same user", header(alice), 200},
			{"other user", header("Bob#1"), 403},
			{"unreadable", []string{"ucloud-username", "!!"}, 400},
			{"empty", []string{"ucloud-username", "QQ"}, 400},
			{"twice", append(header(alice), header(alice)...), 400},
		} {
			w := newWorld(t)
			rec := w.call(c.method, base+c.path, c.body, tc.headers...)
			want := tc.want
			switch {
			case !about:
				want = 403 // never as the system
			case c.path == "/integration/unlinked" && want == 400:
				want = 200 // ends nothing, but must not be an error
			}
			if rec.Code != want {
				t.Errorf("%s, %s: %d %s", c.path, tc.name, rec.Code, rec.Body)
			}
			if tc.want != 200 && len(w.launcher.woken) != 0 {
				t.Errorf("%s, %s: launched %q", c.path, tc.name, w.launcher.woken)
			}
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ method, path string }{
		{"GET", "/"},
		{"GET", base},
		{"GET", base + "/integration"},
		{"GET", base + "/integration/"},
		{"GET", base + "/integration/retrieveManifest/"},
		{"GET", base + "/integration/retrieveManifestX"},
		{"GET", "//ucloud/" + provider + "/integration/retrieveManifest"},
		{"GET", base + "/integration/./retrieveManifest"},
		{"GET", base + "/files/../integration/retrieveManifest"},
		{"GET", base + "/integration%2FretrieveManifest"},
		{"POST", base + "/integration/retrieveManifest"},
		{"GET", base + "/integration/init"},
		{"PUT", base + "/integration/connect"},
		{"OPTIONS", base + "/integration/connect"},
		{"POST", "/ucloud/other/integration/init"},
		{"POST", base + "/files/browse"},
	} {
		rec := w.call(c.method, c.path, "{}")
		if rec.Code != http.StatusNotFound {
			t.Errorf("%s %s: %d %s", c.method, c.path, rec.Code, rec.Header())
			continue
		}
		if c.method != "HEAD" {
			why(t, rec)
		}
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tc := range []struct {
		name, path, body string
		want             int
	}{
		{"no body where none is needed", "/integration/unlinked", "", 200},
		{"unknown member", "/integration/connect", `{"username":"Alice#1234","more":[1]}`, 200},
		{"capital name", "/integration/init", `{"Username":"Alice#1234"}`, 200},
		{"no user", "/integration/connect", `{}`, 400},
		{"empty body", "/integration/init", ``, 400},
		{"control character", "/integration/connect", `{"username":"a\nb"}`, 400},
		{"wrong type", "/integration/connect", `{"username":1}`, 400},
		{"not JSON", "/integration/init", `username=Alice`, 400},
		{"huge", "/integration/init", `{"username":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
		{"huge", "/integration/unlinked", `{"username":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
	} {
		rec := w.call("POST", base+tc.path, tc.body)
		if rec.Code != tc.want {
			t.Errorf("%s, %s: %d %s", tc.path, tc.name, rec.Code, rec.Body)
		}
		checkBody(t, "POST", base+tc.path, rec)
	}
	// A body on a call without one is ignored (contract 00 section 3).
	if rec := w.call("GET", base+"/jobs/retrieveProducts", "{not json"); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestInit(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		wake    func(context.Context) error
		want    int
		wantWhy string
	}{
		{"ready", nil, 200, ""},
		{"not connected", func(context.Context) error { return failure.New(failure.NoInstance, "Connect first") }, 400, "Connect first"},
		{"policy", func(context.Context) error { return failure.New(failure.Forbidden, "bob is not a member") }, 400, "bob is not a member"},
		{"busy", func(context.Context) error { return failure.New(failure.Unavailable, "Too many instances") }, 400, "Too many instances"},
		{"slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 400, "still being started"},
		{"bug", func(context.Context) error { return errors.New("secret detail") }, 500, "internal error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *Options) { o.InitWait = 20 * time.Millisecond })
			w.launcher.wake = tc.wake
			rec := w.call("POST", base+"/integration/init", `{"username":"Alice#1234"}`, "Ucloud-Username", alice.HeaderValue())
			if rec.Code != tc.want {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			checkBody(t, "POST", base+"/integration/init", rec)
			if tc.want != 200 && !strings.Contains(why(t, rec), tc.wantWhy) {
				t.Errorf("why: %s", why(t, rec))
			}
			if strings.Contains(rec.Body.String(), "secret") {
				t.Errorf("the cause got out: %s", rec.Body)
			}
		})
	}
}

func TestMaintenance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.complete(t, first(w.begin(t, alice)), alice)
	w.deliver(t)
	w.maintenance = Maintenance{Enabled: true, Allow: []ident.UCloudUser{"Op#1"}, Message: "Back at noon"}
	for _, c := range calls {
		want := 200 // polled calls and unlinked are always answered
		if c.path == "/integration/connect" || c.path == "/integration/init" {
			want = 404
		}
		rec := w.call(c.method, base+c.path, c.body)
		if rec.Code != want {
			t.Errorf("%s: %d %s", c.path, rec.Code, rec.Body)
		}
		if want == 404 && why(t, rec) != "Back at noon" {
			t.Errorf("%s: why %q", c.path, why(t, rec))
		}
	}
	if _, ok := w.users.Account(alice); ok {
		t.Error("unlinked did nothing during maintenance")
	}
	if rec := w.call("POST", base+"/integration/init", `{"username":"Op#1"}`); rec.Code != 200 {
		t.Errorf("a listed user: %d %s", rec.Code, rec.Body)
	}
	// The list has no effect when maintenance is off.
	w.maintenance.Enabled = false
	if rec := w.call("POST", base+"/integration/init", `{"username":"Alice#1234"}`); rec.Code != 200 {
		t.Errorf("maintenance is off: %d %s", rec.Code, rec.Body)
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestConnectNotesTheUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.begin(t, alice)
	err := w.store.View(t.Context(), func(tx *store.Tx) error {
		seen, err := tx.UserSeen(alice)
		if err == nil && !seen {
			err = errors.New("not noted")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnlinkedEndsTheMapping(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.complete(t, first(w.begin(t, alice)), alice)
	w.deliver(t)
	if _, ok := w.users.Account(alice); !ok {
		t.Fatal("not connected")
	}
	for _, user := range []string{"Alice#1234", "Alice#1234", "Nobody#0001", "a\\nb", ""} {
		rec := w.call("POST", base+"/integration/unlinked", `{"username":"`+user+`"}`)
		if rec.Code != 200 || rec.Body.String() != "{}" {
			t.Errorf("%q: %d %s", user, rec.Code, rec.Body)
		}
	}
	if _, ok := w.users.Account(alice); ok {
		t.Fatal("still connected")
	}
}

func TestNoMethodNoConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *Options) { o.Method, o.Tickets = nil, nil })
	if rec := w.call("POST", base+"/integration/connect", `{"username":"Alice#1234"}`); rec.Code != 400 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := w.call("GET", base+"/integration/instructions?ticket=x", ""); rec.Code != 404 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestHealthz(t *testing.T) {
	t.Parallel()
	var broken error
	w := newWorld(t, func(o *Options) { o.Healthy = func() error { return broken } })
	if rec := w.call("GET", "/healthz", "", "Authorization", ""); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	broken = errors.New("database")
	if rec := w.call("GET", "/healthz", "", "Authorization", ""); rec.Code != 503 || strings.Contains(rec.Body.String(), "database") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestRecordings replays what a running Core was seen to send (recordings 05 and 08).
func TestRecordings(t *testing.T) {
	t.Parallel()
	replayed := 0
	request := regexp.MustCompile("(?s)\\*\\*Core → provider\\*\\* `([A-Z]+) (/ucloud/recprov/integration/[a-z]+)`[^\n]*\n\n```\n(.*?)```")
	raw, err := os.ReadFile(filepath.Join("..", "providerapi", "testdata", "recordings", "05-connect.md"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	for _, m := range request.FindAllStringSubmatch(string(raw), -1) {
		head, body, _ := strings.Cut(m[3], "\n\n")
		if strings.Contains(head, "Content-Type") {
			t.Fatal("the recording does not show what this test is about: Core sends no content type")
		}
		rec := w.call(m[1], m[2], strings.TrimSpace(body))
		if rec.Code != 200 {
			t.Errorf("%s %s %s: %d %s", m[1], m[2], body, rec.Code, rec.Body)
		}
		checkBody(t, m[1], m[2], rec)
		replayed++
	}
	if replayed < 4 {
		t.Errorf("only %d requests were found in the recording", replayed)
	}

	// 08: init comes with the user's header, and its line in the tables is always the same.
	rec := w.call("POST", base+"/integration/init", fmt.Sprintf(`{"username":%q}`, recuser), "Ucloud-Username", recuser.HeaderValue())
	if rec.Code != 200 || rec.Body.String() != "{}" {
		t.Errorf("init: %d %s", rec.Code, rec.Body)
	}
}

//attack:actor local user
//attack:does Reads tickets in the log.
//attack:control Addresses are logged without their queries.
//attack:remove internal/integration/handler.go: h.log.Log(r.Context(), level, "call refused", "method", r.Method, "path", r.URL.Path, => h.log.Log(r.Context(), level, "call refused", "method", r.Method, "path", r.URL.RequestURI(),
func TestTicketsAreNotLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk, page := w.begin(t, alice)
	w.call("GET", page, "", "Authorization", "")
	w.call("POST", page, "", "Authorization", "")
	w.complete(t, tk, alice)
	w.call("GET", page+"x", "", "Authorization", "")
	if w.log.Len() == 0 {
		t.Fatal("nothing was logged: the test proves nothing")
	}
	if plain := strings.ReplaceAll(tk.String(), "-", ""); strings.Contains(w.log.String(), tk.String()) || strings.Contains(w.log.String(), plain) {
		t.Fatalf("the ticket is in the log:\n%s", w.log)
	}
}
