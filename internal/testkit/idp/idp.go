// Package idp is an OpenID provider for tests, over TLS: discovery, a login form, the authorization code flow with PKCE, token,
// userinfo and keys. It can lie in each of its answers, and be away. [NewIndependent] is one that somebody else has written.
package idp

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// User is somebody who can log in.
type User struct {
	Name, Password, Subject string
	Claims                  map[string]any // more of the ID token
}

// Lies change the answers of a provider. Nil: the truth.
type Lies struct {
	Discovery func(doc map[string]any)
	Claims    func(claims map[string]any)        // of the ID token, before it is signed
	IDToken   func(claims []byte) string         // instead of signing
	Token     func(answer map[string]any)        // of the token endpoint
	UserInfo  func(answer map[string]any)        //
	Callback  func(q url.Values)                 // of the redirect back to the client
	Raw       func(path string) http.HandlerFunc // instead of everything; nil for the truth
	SkipPKCE  bool                               // codes are redeemed whatever the verifier is
	Headers   func(path string, hd http.Header)  // of requests, to look at
	Forms     func(path string, form url.Values) // of requests, to look at
}

// Provider is a running OpenID provider.
type Provider struct {
	Issuer       string
	ClientID     string
	ClientSecret string

	srv *httptest.Server

	mu       sync.Mutex
	users    map[string]User
	lies     Lies
	keys     []jose.JSONWebKey // private; the last one signs
	codes    map[string]grant
	tokens   map[string]User // access tokens
	requests map[string]int
	down     bool
}

// grant is what a code stands for.
type grant struct {
	user                          User
	redirectURI, nonce, challenge string
	issued                        time.Time
}

// New starts a provider with one client.
func New(t testing.TB, users ...User) *Provider {
	t.Helper()
	p := &Provider{
		ClientID: "ucloud", ClientSecret: "cl13nt-s3cr3t-" + text(), users: map[string]User{}, codes: map[string]grant{}, tokens: map[string]User{},
		requests: map[string]int{},
	}
	for _, u := range users {
		p.users[u.Name] = u
	}
	key, err := firstKey()
	if err != nil {
		t.Fatal(err)
	}
	p.Use(named(key))
	p.srv = httptest.NewTLSServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.srv.Close)
	p.Issuer = p.srv.URL
	return p
}

// Authority is the certificate that vouches for the provider, PEM.
func (p *Provider) Authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.srv.Certificate().Raw})
}

// SPKI is the public key of the provider's certificate, for browsers that are told whom to trust.
func (p *Provider) SPKI() []byte { return p.srv.Certificate().RawSubjectPublicKeyInfo }

// Client is an HTTP client that trusts the provider, and does not follow redirects.
func (p *Provider) Client() *http.Client {
	c := *p.srv.Client()
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// Lie has the provider lie from now on.
func (p *Provider) Lie(l Lies) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lies = l
}

// Down has the provider answer 503 to everything, or not any more.
func (p *Provider) Down(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

// firstKey is the key of all providers until they rotate it: making one takes long.
var firstKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func named(key *rsa.PrivateKey) jose.JSONWebKey {
	return jose.JSONWebKey{Key: key, KeyID: text(), Algorithm: string(jose.RS256), Use: "sig"}
}

// Rotate replaces the key of the provider by a new one with another name.
func (p *Provider) Rotate(t testing.TB) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.Use(named(key))
}

// Use replaces the keys of the provider. The last one signs.
func (p *Provider) Use(keys ...jose.JSONWebKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// Key is the private key that signs.
func (p *Provider) Key() jose.JSONWebKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[len(p.keys)-1]
}

// Requests is how many requests there were for a path.
func (p *Provider) Requests(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests[path]
}

func text() string {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (p *Provider) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests[r.URL.Path]++
	lies, down := p.lies, p.down
	p.mu.Unlock()
	_ = r.ParseForm()
	if lies.Headers != nil {
		lies.Headers(r.URL.Path, r.Header)
	}
	if lies.Forms != nil {
		lies.Forms(r.URL.Path, r.Form)
	}
	if down {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	if lies.Raw != nil {
		if h := lies.Raw(r.URL.Path); h != nil {
			h(w, r)
			return
		}
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		p.discovery(w, lies)
	case "/jwks":
		p.jwks(w)
	case "/authorize":
		p.authorize(w, r)
	case "/login":
		p.login(w, r, lies)
	case "/token":
		p.token(w, r, lies)
	case "/userinfo":
		p.userinfo(w, r, lies)
	default:
		http.NotFound(w, r)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (p *Provider) discovery(w http.ResponseWriter, lies Lies) {
	doc := map[string]any{
		"issuer": p.Issuer, "authorization_endpoint": p.Issuer + "/authorize", "token_endpoint": p.Issuer + "/token",
		"jwks_uri": p.Issuer + "/jwks", "userinfo_endpoint": p.Issuer + "/userinfo",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "ES256", "PS256", "EdDSA"}, "code_challenge_methods_supported": []string{"S256"},
		"token_endpoint_auth_methods_supported":          []string{"client_secret_basic", "client_secret_post"},
		"authorization_response_iss_parameter_supported": true,
	}
	if lies.Discovery != nil {
		lies.Discovery(doc)
	}
	writeJSON(w, http.StatusOK, doc)
}

func (p *Provider) jwks(w http.ResponseWriter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := jose.JSONWebKeySet{}
	for _, k := range p.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	writeJSON(w, http.StatusOK, set)
}

// loginForm repeats the request, so that the form needs no state.
const loginForm = `<!DOCTYPE html><html lang="en"><head><title>Log in</title></head><body><h1>Log in</h1><p id="problem">%s</p>
<form method="post" action="/login?%s"><input id="name" name="name"><input id="password" name="password" type="password"><button id="log-in">Log in</button></form></body></html>`

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("client_id") != p.ClientID || q.Get("response_type") != "code" || !strings.Contains(" "+q.Get("scope")+" ", " openid ") ||
		!strings.HasSuffix(q.Get("redirect_uri"), "/ucloud-oidc") {
		http.Error(w, "not a request of my client", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, loginForm, "", html.EscapeString(r.URL.RawQuery))
}

func (p *Provider) login(w http.ResponseWriter, r *http.Request, lies Lies) {
	p.mu.Lock()
	user, ok := p.users[r.PostForm.Get("name")]
	p.mu.Unlock()
	q := r.URL.Query()
	if !ok || user.Password != r.PostForm.Get("password") {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, loginForm, "Wrong name or password", html.EscapeString(r.URL.RawQuery))
		return
	}
	code := text()
	p.mu.Lock()
	p.codes[code] = grant{user: user, redirectURI: q.Get("redirect_uri"), nonce: q.Get("nonce"), challenge: q.Get("code_challenge"), issued: time.Now()}
	p.mu.Unlock()
	back := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.Issuer}}
	if lies.Callback != nil {
		lies.Callback(back)
	}
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+back.Encode(), http.StatusSeeOther)
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request, lies Lies) {
	refuse := func(code string) { writeJSON(w, http.StatusBadRequest, map[string]string{"error": code}) }
	id, secret, basic := r.BasicAuth()
	if basic {
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	} else {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if id != p.ClientID || secret != p.ClientSecret {
		refuse("invalid_client")
		return
	}
	code := r.PostForm.Get("code")
	p.mu.Lock()
	g, ok := p.codes[code]
	delete(p.codes, code)
	p.mu.Unlock()
	sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
	pkce := lies.SkipPKCE || g.challenge == base64.RawURLEncoding.EncodeToString(sum[:])
	if !ok || r.PostForm.Get("grant_type") != "authorization_code" || g.redirectURI != r.PostForm.Get("redirect_uri") || time.Since(g.issued) > time.Minute || !pkce {
		refuse("invalid_grant")
		return
	}
	access := text()
	p.mu.Lock()
	p.tokens[access] = g.user
	p.mu.Unlock()
	hash := sha256.Sum256([]byte(access))
	claims := map[string]any{
		"iss": p.Issuer, "sub": g.user.Subject, "aud": p.ClientID, "exp": time.Now().Add(5 * time.Minute).Unix(), "iat": time.Now().Unix(),
		"nonce": g.nonce, "at_hash": base64.RawURLEncoding.EncodeToString(hash[:16]),
	}
	maps.Copy(claims, g.user.Claims)
	if lies.Claims != nil {
		lies.Claims(claims)
	}
	raw, err := json.Marshal(claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var token string
	if lies.IDToken != nil {
		token = lies.IDToken(raw)
	} else if token, err = Sign(p.Key(), raw); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": token}
	if lies.Token != nil {
		lies.Token(answer)
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, http.StatusOK, answer)
}

// Sign makes a token with the algorithm of the key.
func Sign(key jose.JSONWebKey, claims []byte) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	signed, err := s.Sign(claims)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request, lies Lies) {
	p.mu.Lock()
	user, ok := p.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	p.mu.Unlock()
	if !ok {
		http.Error(w, "no token", http.StatusUnauthorized)
		return
	}
	answer := map[string]any{"sub": user.Subject}
	maps.Copy(answer, user.Claims)
	if lies.UserInfo != nil {
		lies.UserInfo(answer)
	}
	writeJSON(w, http.StatusOK, answer)
}

// Login does what a person does at the provider: it opens the address, fills in the form and gives the address to which
// the provider sends the browser back.
func (p *Provider) Login(t testing.TB, address, name string) string {
	t.Helper()
	p.mu.Lock()
	password := p.users[name].Password
	p.mu.Unlock()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.Client().Get(address)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("the identity provider answers %d: %s", res.StatusCode, page)
	}
	res, err = p.Client().PostForm(p.Issuer+"/login?"+u.RawQuery, url.Values{"name": {name}, "password": {password}})
	if err != nil {
		t.Fatal(err)
	}
	page, _ = io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusSeeOther {
		t.Fatalf("the login of %s: %d %s", name, res.StatusCode, page)
	}
	return res.Header.Get("Location")
}
