package gateway

import (
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// TestForwardToInstance also shows what keeps strangers out.
//
//attack:actor compromised instance
//attack:does Keeps Core's token of a request, and acts as Core with it.
//attack:control Core's token ends at the gateway; instances get a hop token for one request.
//attack:remove internal/gateway/forward.go: delete(h, "Authorization") => _ = 0
func TestForwardToInstance(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	res := f.core("POST", "/ucloud/birch/files/browse?x=1", `{"Browse":{}}`, alice)
	if res.StatusCode != 200 || res.body != `{"by":"alice"}` {
		t.Fatalf("got %d %s\n%s", res.StatusCode, res.body, f.log)
	}
	got := f.alice.seen()
	if len(got) != 1 {
		t.Fatalf("instance saw %d requests", len(got))
	}
	r := got[0]
	if r.Method != "POST" || r.Target != "/ucloud/birch/files/browse?x=1" || r.Body != `{"Browse":{}}` || r.Host != "birch.example.net" {
		t.Errorf("instance saw %+v", r)
	}
	if _, ok := r.Header["Authorization"]; ok {
		t.Error("the instance has received Core's token")
	}
	v := hoptoken.Verifier{Key: f.key, UID: 20001, User: alice, Now: time.Now}
	claims, err := v.Verify(r.Header.Get(hoptoken.Header), "POST", "/ucloud/birch/files/browse")
	if err != nil || claims.Class != hoptoken.ClassCore {
		t.Errorf("hop token: %+v, %v", claims, err)
	}
	if id := r.Header.Get("X-Request-Id"); id == "" || id != claims.RequestID || id != res.Header.Get("X-Request-Id") {
		t.Errorf("request id %q, token %q, answer %q", id, claims.RequestID, res.Header.Get("X-Request-Id"))
	}
	if r.Header.Get(ident.HeaderUser) != alice.HeaderValue() {
		t.Errorf("user header %q", r.Header.Get(ident.HeaderUser))
	}
}

// TestKeyUploadReachesTheServer: browsers send signing keys without Core's token, with a preflight before.
func TestKeyUploadReachesTheServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const target, origin = "/ucloud/birch/integration/redirect?session=x", "https://ucloud.example.org"
	for method, body := range map[string]string{"GET": "", "OPTIONS": "", "POST": `{"publicKey":"x"}`} {
		if res := f.do(method, target, body, "Origin", origin, "Content-Type", "application/json"); res.StatusCode != 200 || res.body != `{"by":"server"}` {
			t.Errorf("%s: got %d %s", method, res.StatusCode, res.body)
		}
	}
	seen := f.server.seen()
	if len(seen) != 3 {
		t.Fatalf("the server has seen %d requests", len(seen))
	}
	for _, r := range seen {
		if r.Header.Get("Origin") != origin || r.Target != target {
			t.Errorf("the server saw %s with the origin %q", r.Target, r.Header.Get("Origin"))
		}
	}
}

func TestServerPathsGoToTheServerWhateverTheHeaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, target := range []string{
		"/ucloud/birch/integration/init", "/ucloud/birch/integration/retrieveManifest", "/ucloud/birch/integration/instructions?ticket=x",
		"/ucloud/birch/files/retrieveProducts", "/ucloud/birch/files/collections/retrieveProducts", "/ucloud/birch/private-networks/retrieveProducts",
		"/ucloud/birch/provider/branding/retrieveInfo", "/ucloud/birch/authorize-app?token=x", "/ucloud-oidc?code=x",
		"/ucloud//birch/./integration/init", "/ucloud/birch/files/../integration/init", "/ucloud/birch/integration/init/",
	} {
		for _, user := range []ident.UCloudUser{"", alice, bob} {
			var res reply
			if user == "" {
				res = f.do("GET", target, "")
			} else {
				res = f.core("GET", target, "", user)
			}
			if res.StatusCode != 200 || res.body != `{"by":"server"}` {
				t.Errorf("%s for %q: got %d %s", target, user, res.StatusCode, res.body)
			}
		}
	}
	for _, r := range f.server.seen() {
		if strings.Contains(r.Target, "..") || strings.Contains(r.Target, "//") {
			t.Errorf("server saw the path %q", r.Target)
		}
		if user := r.Header.Get(ident.HeaderUser); user != "" && r.Header.Get("Authorization") == "" {
			t.Error("the server has not received Core's token")
		}
	}
	if n := len(f.alice.seen()); n != 0 {
		t.Errorf("the instance has seen %d of them", n)
	}
}
