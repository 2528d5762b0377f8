package devcore

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// scriptedProvider answers files/browse with the given answers in turn, the last one for ever.
type scriptedProvider struct {
	t       *testing.T
	answers []answer

	mu   sync.Mutex
	seen []string
}

type answer struct {
	status int
	body   string
}

func (p *scriptedProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("Content-Type") != "" {
		p.t.Errorf("%s has a Content-Type; Core sends none", r.URL.Path)
	}
	if id, ok := apischema.Provider(p.t).Find(r.Method, r.URL.Path); !ok {
		p.t.Errorf("%s %s is no call of Core", r.Method, r.URL.Path)
	} else if err := apischema.Provider(p.t).CheckRequest(id, body); err != nil {
		p.t.Errorf("%s: %v\n%s", id, err, body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, strings.TrimPrefix(r.URL.Path, "/ucloud/rec/")+" "+r.Header.Get(ident.HeaderUser))
	if strings.HasSuffix(r.URL.Path, "/init") {
		io.WriteString(w, "{}")
		return
	}
	a := p.answers[0]
	if len(p.answers) > 1 {
		p.answers = p.answers[1:]
	}
	w.WriteHeader(a.status)
	io.WriteString(w, a.body)
}

func newCore(t *testing.T, provider http.Handler) (*Core, *httptest.Server) {
	t.Helper()
	ps := httptest.NewServer(provider)
	t.Cleanup(ps.Close)
	c, err := New(Options{Provider: "rec", ProviderURL: ps.URL, RetryPause: time.Millisecond, DeathDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	cs := httptest.NewServer(c.Handler(nil))
	t.Cleanup(cs.Close)
	return c, cs
}

func post(t *testing.T, url, token, body string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res.StatusCode, string(data), err
}

// TestRetries replays what recording 08 shows of Core's reaction to a provider's answers.
func TestRetries(t *testing.T) {
	t.Parallel()
	const browse, initCall = "files/browse cmVjdXNlcg==", "integration/init cmVjdXNlcg=="
	forEver := []string{browse}
	for range 5 {
		forEver = append(forEver, initCall, browse)
	}
	page := answer{200, `{"items":[],"itemsPerPage":50,"next":null}`}
	for _, tc := range []struct {
		name    string
		answers []answer
		want    []string
		status  int
		why     string
	}{
		{"449 once", []answer{{449, `{"why":"needs init"}`}, page}, []string{browse, initCall, browse}, 200, ""},
		{"449 for ever", []answer{{449, `{"why":"needs init"}`}}, forEver, 449, "needs init"},
		{"503 plain text once", []answer{{503, "no healthy upstream"}, page}, []string{browse, initCall, browse}, 200, ""},
		{"502 is not repeated", []answer{{502, `{"why":"bad gateway"}`}}, []string{browse}, 502, "bad gateway"},
		{"body's status differs", []answer{{400, `{"why":"differs","statusCode":499}`}}, []string{browse}, 400, "differs"},
		{"empty 200", []answer{{200, ""}}, []string{browse}, 502, ""},
		{"redirect", []answer{{302, ""}}, []string{browse}, 302, ""},
		{"null", []answer{{200, "null"}}, []string{browse}, 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := &scriptedProvider{t: t, answers: tc.answers}
			c, cs := newCore(t, p)
			c.AddUser("recuser")
			c.drives["4"] = &providerapi.Drive{
				ID: "4", Owner: providerapi.ResourceOwner{CreatedBy: "recuser"},
				Permissions: &providerapi.Permissions{Others: []providerapi.ACLEntry{}},
			}
			req, _ := http.NewRequest(http.MethodGet, cs.URL+"/api/files/browse?itemsPerPage=50&path=%2F4&sortBy=PATH", nil)
			req.Header.Set("Authorization", "Bearer "+c.Login("recuser"))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != tc.status || !strings.Contains(string(body), tc.why) {
				t.Errorf("the end user sees %d %s", res.StatusCode, body)
			}
			if fmt.Sprint(p.seen) != fmt.Sprint(tc.want) {
				t.Errorf("calls %q, want %q", p.seen, tc.want)
			}
		})
	}
}

// TestEventBytes compares with the hex of recording 11, messages 2 and 6.
func TestEventBytes(t *testing.T) {
	t.Parallel()
	got := appendWallet(appendUser(nil, 0, "recuser"), 0, 0,
		wallet{quota: 1000, updated: time.UnixMilli(1795447950507)}, false, false)
	if want := "0400000000000000077265637573657201000000000000000000000000000003e8000000000000000000000000000001a209098cab"; hex.EncodeToString(got) != want {
		t.Errorf("got %x", got)
	}
	got = appendWallet(nil, 1, 1, wallet{quota: 60000, updated: time.UnixMilli(1795447950546)}, true, false)
	if want := "010000000100000001000000000000ea60000000000000000000000002000001a209098cd2"; hex.EncodeToString(got) != want {
		t.Errorf("got %x", got)
	}
	if got = appendWallet(nil, 1, 1, wallet{}, true, true); len(got) != 45 {
		t.Errorf("with retired usage %d bytes", len(got))
	}
}

// TestWhatEndsCore: each of these is recorded as fatal and gets no answer.
func TestWhatEndsCore(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, path, body string }{
		{"approve twice", "/api/providers/integration/control/approveConnection", `{"username":"recuser"}`},
		{"approve a stranger", "/api/providers/integration/control/approveConnection", `{"username":"nobody"}`},
		{"drive of a stranger", "/api/files/collections/control/register", `{"items":[{"spec":{"title":"x","product":{"id":"s","category":"s","provider":"rec"}},"providerGeneratedId":"x","createdBy":"nobody"}]}`},
		{"drive in an undeclared product", "/api/files/collections/control/register", `{"items":[{"spec":{"title":"x","product":{"id":"t","category":"t","provider":"rec"}},"providerGeneratedId":"x","createdBy":"recuser"}]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, cs := newCore(t, http.NotFoundHandler())
			c.AddUser("recuser")
			c.users["recuser"].connected = true
			if status, body, err := post(t, cs.URL+tc.path, c.ProviderToken(), tc.body); err == nil {
				t.Errorf("answered %d %s", status, body)
			}
			v := c.Violations()
			if len(v) != 1 || !v[0].Fatal {
				t.Errorf("violations %+v", v)
			}
		})
	}
}

// TestControlBodies checks what the simulator answers against the description of the real Core.
func TestControlBodies(t *testing.T) {
	t.Parallel()
	c, cs := newCore(t, http.NotFoundHandler())
	c.AddUser("recuser")
	call := func(path, token, body string, want int) []byte {
		t.Helper()
		status, answer, err := post(t, cs.URL+path, token, body)
		if err != nil || status != want {
			t.Fatalf("%s: %d %s %v", path, status, answer, err)
		}
		if id, ok := apischema.Core(t).Find(http.MethodPost, path); ok && want == 200 {
			apischema.Core(t).Response(t, id, []byte(answer))
		} else if want != 200 {
			apischema.Core(t).Error(t, []byte(answer))
		}
		return []byte(answer)
	}
	res := call("/auth/providers/refresh", "", `{"items":[{"refreshToken":"`+c.RefreshToken()+`"}]}`, 200)
	var tokens providerapi.BulkResponse[providerapi.AccessToken]
	if err := json.Unmarshal(res, &tokens); err != nil || len(tokens.Responses) != 1 {
		t.Fatalf("%s: %v", res, err)
	}
	token := tokens.Responses[0].AccessToken
	call("/auth/providers/refresh", "", `{"items":[{"refreshToken":"nonsense"}]}`, 401)
	if empty := call("/auth/providers/refresh", "", `{"items":[]}`, 200); !bytes.Equal(bytes.TrimSpace(empty), []byte("{}")) {
		t.Errorf("no items: %s", empty)
	}
	product := `{"items":[{"type":"storage","category":{"name":"s","provider":"rec","productType":"STORAGE","accountingUnit":{"name":"GB","namePlural":"GB","floatingPoint":false,"displayFrequencySuffix":false},"accountingFrequency":"ONCE"},"name":"s","description":"","productType":"STORAGE","price":1}]}`
	call("/api/products/v2", token, product, 200)
	call("/api/products/v2", "garbage", product, 403)
	call("/api/products/v2", token, strings.ReplaceAll(product, `"rec"`, `"other"`), 403)
	drive := `{"items":[{"spec":{"title":"Home","product":{"id":"s","category":"s","provider":"rec"}},"providerGeneratedId":"h-1","createdBy":"recuser","project":null,"projectAllRead":false,"projectAllWrite":false}]}`
	call("/api/files/collections/control/register", token, drive, 200)
	call("/api/files/collections/control/register", token, drive, 409)
	call("/api/providers/integration/control/approveConnection", token, `{"username":"recuser"}`, 200)
	call("/api/providers/integration/control/clearConnection", token, `{"username":"recuser"}`, 200)
	if !bytes.Contains(call("/api/providers/resources/checkExistence", token, `{"items":[{"type":"file_collection","id":"4"},{"type":"job","id":"4"}]}`, 200), []byte("[true,false]")) {
		t.Error("existence")
	}
	if v := c.Violations(); len(v) != 0 {
		t.Errorf("violations %+v", v)
	}
}

// TestPolicy: the page may talk to Core and, for uploads and with keys, to the provider's gateway, and run nothing but its
// own files.
func TestPolicy(t *testing.T) {
	t.Parallel()
	testPolicy(t, Options{Provider: "rec", ProviderURL: "https://provider.example:8443"}, "connect-src 'self' wss://provider.example:8443;")
	testPolicy(t, Options{Provider: "rec", ProviderURL: "https://provider.example:8443", Signing: true},
		"connect-src 'self' wss://provider.example:8443 https://provider.example:8443;")
}

func testPolicy(t *testing.T, o Options, connect string) {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c.Handler(fstest.MapFS{"index.html": {Data: []byte("<p>x")}}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'self'", connect, "frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("%q lacks %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("policy %q", policy)
	}
}
