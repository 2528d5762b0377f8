//go:build e2e

package e2e

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/testkit"
)

// signingPeer stands for a provider that wants signed calls. It takes keys as browsers give them and looks at every
// signature with the standard library alone.
type signingPeer struct {
	uploadPeer
	origin func() string // of Core

	mu     sync.Mutex
	keys   []string // PEM, as uploaded
	key    crypto.PublicKey
	claims []map[string]any
	refuse bool
}

func (s *signingPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	base := "http://" + r.Host + "/ucloud/rec/"
	switch operation := strings.TrimPrefix(r.URL.Path, "/ucloud/rec/"); operation {
	case "integration/connect":
		fmt.Fprintf(w, `{"redirectTo":%q}`, base+"integration/redirect?session=s")
	case "integration/redirect":
		s.takeKey(w, r, base+"proof")
	case "files/collections/retrieveProducts":
		io.WriteString(w, `{"responses":[{"product":{"id":"s","category":"s","provider":"rec"},"files":{"streamingSearchSupported":true,"trashSupported":true}}]}`)
	case "files":
		s.socket(w, r)
	case "files/browse", "files/folder", "files/upload", "files/trash", "jobs/openTerminalInFolder":
		if s.check(r.Header.Values("UCloud-Signed-Intent")) {
			s.uploadPeer.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(482)
	default:
		s.uploadPeer.ServeHTTP(w, r)
	}
}

func (s *signingPeer) takeKey(w http.ResponseWriter, r *http.Request, next string) {
	if origin := r.Header.Get("Origin"); origin != s.origin() {
		s.t.Errorf("a key from the origin %q", origin)
	}
	w.Header().Set("Access-Control-Allow-Origin", s.origin())
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Headers", "Content-Type")
		return
	}
	if r.Header.Get("Cookie") != "" || r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" || r.Header.Get("Content-Type") != "application/json" {
		s.t.Errorf("headers of the upload: %v", r.Header)
	}
	var req struct{ PublicKey string }
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		s.t.Error(err)
		return
	}
	block, rest := pem.Decode([]byte(req.PublicKey))
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
		s.t.Errorf("uploaded %q", req.PublicKey)
		return
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.key, s.refuse = append(s.keys, req.PublicKey), key, false
	fmt.Fprintf(w, `{"redirectTo":%q}`, next)
}

// fingerprint is that of the newest key.
func (s *signingPeer) fingerprint() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return ""
	}
	block, _ := pem.Decode([]byte(s.keys[len(s.keys)-1]))
	sum := sha256.Sum256(block.Bytes)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func (s *signingPeer) socket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer conn.CloseNow()
	_, data, err := conn.Read(r.Context())
	var first struct{ SignedIntent string }
	if err != nil || json.Unmarshal(data, &first) != nil {
		s.t.Errorf("first message %s, %v", data, err)
		return
	}
	end := `{"type":"message","streamId":"ignored","payload":{"type":"end_of_results","batch":[]}}`
	if !s.check([]string{first.SignedIntent}) {
		end = `{"type":"response","streamId":"ignored","status":482,"payload":{"why":"no"}}`
	}
	_ = conn.Write(r.Context(), websocket.MessageText, []byte(end))
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

// check verifies an intent and keeps its claims.
func (s *signingPeer) check(intents []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(intents) != 1 || intents[0] == "" || s.key == nil || s.refuse {
		return false
	}
	claims, err := readIntent(intents[0], s.key)
	if err != nil {
		s.t.Errorf("%q: %v", intents[0], err)
		return false
	}
	s.claims = append(s.claims, claims)
	return true
}

func (s *signingPeer) taken() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.claims
	s.claims = nil
	return out
}

// readIntent verifies the signature of a compact JWS and gives the payload, with the header's members as "header.typ".
func readIntent(text string, key crypto.PublicKey) (map[string]any, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, errors.New("not three parts")
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(p); err != nil {
			return nil, err
		}
	}
	signed := parts[0] + "." + parts[1]
	var header, claims map[string]any
	if err := errors.Join(json.Unmarshal(raw[0], &header), json.Unmarshal(raw[1], &claims)); err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256([]byte(signed))
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], raw[2]); err != nil || k.N.BitLen() != 2048 || k.E != 65537 || header["alg"] != "RS256" {
			return nil, fmt.Errorf("%v, %d bits, header %v", err, k.N.BitLen(), header)
		}
	case ed25519.PublicKey:
		if !ed25519.Verify(k, []byte(signed), raw[2]) || header["alg"] != "EdDSA" {
			return nil, fmt.Errorf("the signature is wrong, header %v", header)
		}
	default:
		return nil, fmt.Errorf("a key of type %T", key)
	}
	for name, v := range header {
		claims["header."+name] = v
	}
	return claims, nil
}

// TestConsoleSigns: the console's side of signing, to the letter of the contract: key, upload, intents in headers and frames,
// and what happens when they are refused. The private key cannot be read by the page.
func TestConsoleSigns(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	s := &signingPeer{uploadPeer: uploadPeer{t: t, listed: map[string]int64{}, got: map[string]int64{}, chunks: map[string][]int{}}}
	var core string
	s.origin = func() string { return core }
	p := peerCore(t, s, devcore.Options{Signing: true})
	core = p.w.coreURL
	p.do("open the console", chromedp.Navigate(core+"/#key=secret"), chromedp.WaitReady("#drives button"), chromedp.Click("#drives button"))
	p.says("Press Connect") // nothing is signed yet, so nothing was listed
	if text := p.text("#signing-state"); !strings.Contains(text, "none") {
		t.Errorf("without a key it says %q", text)
	}
	connect := func() {
		t.Helper()
		p.press("#connect")
		p.until("the link", func() bool { return eval[bool](p, `!document.getElementById("continue").hidden`) })
		if href := eval[string](p, `document.getElementById("continue").href`); href != p.w.gateURL+"/ucloud/rec/proof" {
			t.Errorf("the link goes to %s", href)
		}
	}
	connect()
	if shown, want := p.text("#fingerprint"), s.fingerprint(); shown != want || want == "" {
		t.Errorf("fingerprint %q, want %q", shown, want)
	}
	p.shot("key")

	s.taken()
	p.press("#drives button")
	p.listed("/4", "a.txt")
	claims := s.taken()
	now := float64(time.Now().Unix())
	if len(claims) != 1 {
		t.Fatalf("claims %v", claims)
	}
	c := claims[0]
	if iat, exp := c["iat"].(float64), c["exp"].(float64); exp-iat < 30 || exp-iat > 59 || iat < now-60 || iat > now+1 {
		t.Errorf("times %v", c)
	}
	delete(c, "iat")
	delete(c, "exp")
	if got := fmt.Sprint(c); got != `map[call:files.browse header.alg:RS256 header.typ:JWT project:<nil> username:recuser]` {
		t.Errorf("claims %s", got)
	}
	p.do("make a folder", chromedp.SendKeys("#folder", "results"), chromedp.Click("#folder-form button[type=submit]"))
	p.do("upload", chromedp.SetUploadFiles("#upload-files", []string{filepath.Join(folder(t, "up", map[string]int64{"f": 10}), "f")}))
	p.uploadState("done")
	p.do("search", chromedp.SendKeys("#query", "x"), chromedp.Click("#search-form button[type=submit]"))
	p.until("the search", func() bool { return strings.Contains(p.text("#results-status"), "nothing found") })
	var calls []string
	for _, c := range s.taken() {
		calls = append(calls, fmt.Sprint(c["call"]))
	}
	for _, want := range []string{"files.createFolder", "files.createUpload", "files.streamingSearch", "files.browse"} {
		if !slices.Contains(calls, want) {
			t.Errorf("no %s in %v", want, calls)
		}
	}

	// The key is there after a reload, and stays in the browser.
	p.openDrive()
	p.listed("/4", "a.txt")
	if len(s.keys) != 1 || p.text("#fingerprint") != s.fingerprint() {
		t.Errorf("%d keys, %q", len(s.keys), p.text("#fingerprint"))
	}
	eval[bool](p, `(import("./signing.js").then((m) => crypto.subtle.exportKey("pkcs8", m.key().privateKey)).then(
		() => { window.stolen = "yes"; }, (e) => { window.stolen = e.name + " " + Object.keys(localStorage).length; }), true)`)
	p.until("the browser to say whether the private key can be had", func() bool { return eval[bool](p, `!!window.stolen`) })
	if got := eval[string](p, `window.stolen`); got != "InvalidAccessError 0" {
		t.Errorf("the private key: %s", got)
	}

	// 482: the key is gone, and the way back is said.
	old := s.fingerprint()
	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	p.press("#refresh")
	p.says("Press Connect to make a key")
	p.until("the button", func() bool { return eval[bool](p, `!document.getElementById("connect").hidden`) })
	if text := p.text("#fingerprint"); text != "" {
		t.Errorf("the key is still there: %s", text)
	}
	connect()
	if s.fingerprint() == old {
		t.Error("the refused key came back")
	}
	p.press("#refresh")
	p.listed("/4", "a.txt")
	// The same in a socket.
	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	p.do("search", chromedp.Click("#search-form button[type=submit]"))
	p.until("the key to be gone", func() bool { return p.text("#fingerprint") == "" })

	// The second form, with a key of its own kind.
	p.do("choose the second form", chromedp.SetValue("#signing-form", "2"))
	connect()
	if text := p.text("#signing-state"); !strings.Contains(text, "EdDSA") {
		t.Errorf("the key is %q", text)
	}
	s.taken()
	p.do("make a folder", chromedp.SetValue("#folder", "more"), chromedp.Click("#folder-form button[type=submit]"))
	p.until("the folder", func() bool {
		claims = slices.DeleteFunc(append(claims, s.taken()...), func(c map[string]any) bool { return c["call"] != "files.createFolder" })
		return len(claims) > 0
	})
	want, err := intent.Digest("files.createFolder", []byte(`{"items":[{"id":"/4/more","conflictPolicy":"RENAME"}]}`))
	if c := claims[0]; err != nil || c["header.typ"] != "ucloud-intent+jwt" || c["aud"] != "rec" || len(fmt.Sprint(c["jti"])) < 22 || c["bdy"] != want {
		t.Errorf("claims %v, want the digest %s, %v", c, want, err)
	}
	p.digests()
}

// digests compares the digests of the page with those of the provider, for the requests of the recordings and some odd ones.
func (p *page) digests() {
	p.t.Helper()
	data, err := os.ReadFile("../internal/intent/testdata/recorded.json")
	p.w.must(err)
	var vectors []struct {
		Call string          `json:"call"`
		Sent json.RawMessage `json:"sent"`
	}
	p.w.must(json.Unmarshal(data, &vectors))
	for _, odd := range []string{
		`{"items":[{"id":"/4/\u00fc\ud83d\ude00\u0001\"\\\u2028","conflictPolicy":""},{},null,[[]],0,false]}`,
		`{"items":[{"z":1,"\ufb33":2,"\ud83d\ude00":3,"a":1e21,"b":-0.0,"c":1e-7,"d":4.50,"resolvedX":1,"labels":{"resolvedY":"z","n":null}}]}`,
	} {
		vectors = append(vectors, struct {
			Call string          `json:"call"`
			Sent json.RawMessage `json:"sent"`
		}{"files.createFolder", json.RawMessage(odd)})
	}
	list, err := json.Marshal(vectors)
	p.w.must(err)
	eval[bool](p, `(import("./signing.js").then((m) => Promise.all(`+string(list)+`.map((v) => m.digest(v.call, v.sent)))).then(
		(d) => { window.digests = d; }, (e) => { window.digests = [String(e)]; }), true)`)
	p.until("the digests", func() bool { return eval[bool](p, `!!window.digests`) })
	got := eval[[]string](p, `window.digests`)
	if len(got) != len(vectors) || len(got) < 20 {
		p.t.Fatalf("%d digests of %d: %v", len(got), len(vectors), got)
	}
	for i, v := range vectors {
		if want, err := intent.Digest(v.Call, v.Sent); err != nil || got[i] != want {
			p.t.Errorf("%s %s: %s, want %s, %v", v.Call, v.Sent, got[i], want, err)
		}
	}
}
