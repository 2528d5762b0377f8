package devcore

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// intentProvider notes which intents come with which call.
type intentProvider struct {
	t    *testing.T
	busy int // answers with 449 that browse has left

	mu   sync.Mutex
	seen []string
}

func (p *intentProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/ucloud/rec/")
	if path == "files" {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			p.t.Error(err)
			return
		}
		defer conn.CloseNow()
		_, data, err := conn.Read(r.Context())
		if err != nil {
			p.t.Error(err)
			return
		}
		var first struct {
			SignedIntent *string
		}
		if err := json.Unmarshal(data, &first); err != nil {
			p.t.Error(err)
		}
		p.note("socket", first.SignedIntent)
		_ = conn.Write(r.Context(), websocket.MessageText, []byte(`{"type":"message","streamId":"ignored","payload":{"type":"end_of_results","batch":[]}}`))
		_ = conn.Close(websocket.StatusNormalClosure, "")
		return
	}
	body, _ := io.ReadAll(r.Body)
	intents := r.Header.Values("Ucloud-Signed-Intent")
	text := strings.Join(intents, ",")
	if len(intents) == 0 {
		p.note(path, nil)
	} else {
		p.note(path, &text)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if path == "files/browse" && p.busy > 0 {
		p.busy--
		w.WriteHeader(449)
		return
	}
	if path == "echo" {
		io.WriteString(w, r.Method+" "+r.URL.RawQuery+" "+r.Header.Get(ident.HeaderUser)+" "+r.Header.Get("X-More")+" "+string(body))
		return
	}
	io.WriteString(w, `{"items":[]}`)
}

func (p *intentProvider) note(what string, intent *string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := "-"
	if intent != nil {
		text = *intent
	}
	p.seen = append(p.seen, what+" "+text)
}

func (p *intentProvider) taken() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.seen
	p.seen = nil
	return out
}

func signingCore(t *testing.T, p *intentProvider, o Options) (*Core, *httptest.Server) {
	t.Helper()
	ps := httptest.NewServer(p)
	t.Cleanup(ps.Close)
	o.Provider, o.ProviderURL, o.RetryPause = "rec", ps.URL, time.Millisecond
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	cs := httptest.NewServer(c.Handler(nil))
	t.Cleanup(cs.Close)
	c.AddUser("Ada#1815")
	c.mu.Lock()
	for _, id := range []ident.DriveID{"4", "5"} {
		c.drives[id] = &providerapi.Drive{
			ID: id, Owner: providerapi.ResourceOwner{CreatedBy: "Ada#1815"}, Permissions: &providerapi.Permissions{},
			Specification: providerapi.DriveSpecification{Product: providerapi.ProductReference{ID: "s", Category: "s", Provider: "rec"}},
		}
	}
	c.categories["s"] = &category{products: map[string]providerapi.Product{"s": {Name: "s"}}}
	support := providerapi.FSSupport{}
	support.Files.StreamingSearchSupported = true
	c.support.storage = map[string]providerapi.FSSupport{"s": support}
	c.mu.Unlock()
	return c, cs
}

// as makes an end user's call with intents.
func as(t *testing.T, c *Core, method, url, body string, intents ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Login("Ada#1815"))
	for _, i := range intents {
		req.Header.Add("UCloud-Signed-Intent", i)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(data)
}

// TestIntentsAreForwarded: as they come, with each repetition, in frames, and by a Core of the older kind only.
func TestIntentsAreForwarded(t *testing.T) {
	t.Parallel()
	for _, signing := range []bool{true, false} {
		p := &intentProvider{t: t, busy: 2}
		c, cs := signingCore(t, p, Options{Signing: signing})
		with := func(what, intent string) string {
			if !signing {
				intent = "-"
			}
			return what + " " + intent
		}
		if status, body := as(t, c, "GET", cs.URL+"/api/files/browse?path=/4", "", "a.b.c"); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		want := []string{
			with("files/browse", "a.b.c"), "integration/init -", with("files/browse", "a.b.c"), "integration/init -", with("files/browse", "a.b.c"),
		}
		if got := p.taken(); !slices.Equal(got, want) {
			t.Errorf("signing %v: repetitions %q, want %q", signing, got, want)
		}
		as(t, c, "POST", cs.URL+"/api/files/folder", `{"items":[{"id":"/4/a","conflictPolicy":"REJECT"},{"id":"/5/b","conflictPolicy":"REJECT"}]}`, "one", "two")
		as(t, c, "GET", cs.URL+"/api/files/browse?path=/4", "")
		if got, want := p.taken(), []string{with("files/folder", "one,two"), "files/browse -"}; !slices.Equal(got, want) {
			t.Errorf("signing %v: %q, want %q", signing, got, want)
		}
		for _, intent := range []string{"d.e.f", ""} {
			conn := dial(t, "ws"+strings.TrimPrefix(cs.URL, "http")+"/api/files",
				`{"call":"files.streamingSearch","streamId":"0","bearer":"`+c.Login("Ada#1815")+`","signedIntent":"`+intent+`","payload":{"query":"x","currentFolder":"/4"}}`)
			for next(t, conn) != "" {
				continue
			}
			want := with("socket", intent)
			if intent == "" {
				want = "socket -"
			}
			if got := p.taken(); !slices.Equal(got, []string{want}) {
				t.Errorf("signing %v: %q, want %q", signing, got, want)
			}
		}
	}
}

// TestBrowsersAreTold that the provider wants signed calls; who is connected may connect another browser then.
func TestBrowsersAreTold(t *testing.T) {
	t.Parallel()
	for _, signing := range []bool{true, false} {
		c, cs := signingCore(t, &intentProvider{t: t}, Options{Signing: signing})
		c.mu.Lock()
		c.wallets[walletKey{ident.Owner{User: "Ada#1815"}, "s"}] = &wallet{}
		c.users["Ada#1815"].connected = true
		c.mu.Unlock()
		_, body := as(t, c, "GET", cs.URL+"/api/providers/integration/browse", "")
		if got := strings.Contains(body, `"requiresMessageSigning":true`); got != signing {
			t.Errorf("signing %v: %s", signing, body)
		}
		if status, body := as(t, c, "POST", cs.URL+"/api/providers/integration/connect", `{"provider":"rec"}`); (status == 200) != signing {
			t.Errorf("signing %v: connecting once more: %d %s", signing, status, body)
		}
	}
}

// TestForge: a Core in wrong hands says what it likes and keeps what it has seen; another one does neither.
func TestForge(t *testing.T) {
	t.Parallel()
	p := &intentProvider{t: t}
	c, cs := signingCore(t, p, Options{Signing: true, TakeOver: true})
	as(t, c, "POST", cs.URL+"/api/files/folder", `{"items":[{"id":"/4/a","conflictPolicy":"REJECT"}]}`, "a.b.c")
	seen := c.Captured()
	if len(seen) != 1 || seen[0].Path != "/ucloud/rec/files/folder" || !slices.Equal(seen[0].Intents, []string{"a.b.c"}) || seen[0].User != "Ada#1815" {
		t.Fatalf("captured %+v", seen)
	}
	p.taken()
	out, err := c.Forge(t.Context(), Forgery{Replay: seen[0].ID, Path: "/ucloud/rec/echo?x=1", Body: `{"other":1}`, Header: http.Header{"x-more": {"m"}}})
	if want := "POST x=1 " + ident.UCloudUser("Ada#1815").HeaderValue() + ` m {"other":1}`; err != nil || out.Status != 200 || out.Body != want {
		t.Errorf("%+v, %v, want %s", out, err, want)
	}
	if _, err := c.Forge(t.Context(), Forgery{Replay: seen[0].ID, NoIntents: true}); err != nil {
		t.Error(err)
	}
	if _, err := c.Forge(t.Context(), Forgery{Replay: seen[0].ID, Intents: []string{"x", "y"}}); err != nil {
		t.Error(err)
	}
	if _, err := c.Forge(t.Context(), Forgery{Replay: 1000}); err == nil {
		t.Error("a call that was never made is replayed")
	}
	if got, want := p.taken(), []string{"echo a.b.c", "files/folder -", "files/folder x,y"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	socket, err := c.ForgeSocket(t.Context(), "Ada#1815", "/ucloud/rec/files", []string{`{"signedIntent":"s"}`}, nil)
	if err != nil || len(socket.Messages) != 1 || socket.Status != websocket.StatusNormalClosure || p.taken()[0] != "socket s" {
		t.Errorf("%+v, %v", socket, err)
	}
	status, body := as(t, c, "POST", cs.URL+"/api/dev/forge", `{"replay":1,"path":"/ucloud/rec/echo"}`)
	if status != 200 || !strings.Contains(body, `"status":200`) {
		t.Errorf("by the development call: %d %s", status, body)
	}
	honest, hs := signingCore(t, p, Options{Signing: true})
	as(t, honest, "GET", hs.URL+"/api/files/browse?path=/4", "", "a.b.c")
	if _, err := honest.Forge(t.Context(), Forgery{Method: "GET", Path: "/"}); !errors.Is(err, ErrNotTakenOver) || len(honest.Captured()) > 0 {
		t.Errorf("an honest Core forges: %v, or keeps %v", err, honest.Captured())
	}
	if status, _ := as(t, honest, "POST", hs.URL+"/api/dev/forge", `{}`); status != 404 {
		t.Errorf("an honest Core has the call: %d", status)
	}
}
