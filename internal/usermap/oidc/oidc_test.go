package oidc

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/idp"
	"ucloud-im/internal/usermap/consent"
)

func TestLogin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v, o := w.login(ada, "ada")
	if v.Stage != consent.StageAsk || v.User != ada || v.LocalName != "ada" {
		t.Fatalf("%+v", v)
	}
	u, err := url.Parse(o.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for name, want := range map[string]string{
		"client_id": "ucloud", "redirect_uri": callback, "response_type": "code", "scope": "openid profile email", "code_challenge_method": "S256",
	} {
		if q.Get(name) != want {
			t.Errorf("%s is %q", name, q.Get(name))
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge"} {
		if len(q.Get(name)) < 43 {
			t.Errorf("%s is %q", name, q.Get(name))
		}
	}
	asked := w.mapper.requests()
	if len(asked) != 1 {
		t.Fatalf("%d calls of the program", len(asked))
	}
	a := asked[0]
	var claims map[string]any
	if err := json.Unmarshal(a.Claims, &claims); err != nil || claims["sub"] != "sub-ada" || claims["email"] != "ada@example.org" {
		t.Errorf("claims %s, %v", a.Claims, err)
	}
	if a.Email != "ada@example.org" || !a.EmailVerified || a.Subject != "sub-ada" || a.Profile != "https://example.org/ada" ||
		a.UCloudUsername != ada || a.Issuer != w.idp.Issuer || a.ExistingUID != nil {
		t.Errorf("the program was asked %+v", a)
	}

	// Nothing is connected yet.
	if _, ok := w.mapping(ada); ok {
		t.Fatal("connected without consent")
	}
	if err := w.m.Decide(t.Context(), o.Cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	m, ok := w.mapping(ada)
	if !ok || m.UID != 2001 || m.Method != MethodName || m.State != store.MappingPending || m.ExpiresAt == nil ||
		time.Until(*m.ExpiresAt) < 6*24*time.Hour || time.Until(*m.ExpiresAt) > 7*24*time.Hour {
		t.Errorf("mapping %+v", m)
	}
	if v := w.view(o.Cookie); v.Stage != consent.StageConnecting || v.Form != "" {
		t.Errorf("%+v", v)
	}

	// The same person again, as after the connection has expired: the program is told of the account.
	v, o = w.login(ada, "ada")
	if v.Stage != consent.StageAsk {
		t.Fatalf("%+v", v)
	}
	if asked := w.mapper.requests(); len(asked) != 2 || asked[1].ExistingUID == nil || *asked[1].ExistingUID != 2001 {
		t.Errorf("asked %+v", asked)
	}
	if err := w.m.Decide(t.Context(), o.Cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	if v := w.view(o.Cookie); v.Stage != consent.StageConnecting {
		t.Errorf("%+v", v)
	}
}

// TestIndependentProvider logs in at a provider that others have written.
func TestIndependentProvider(t *testing.T) {
	t.Parallel()
	p := idp.NewIndependent(t, "cl13nt-s3cr3t", callback)
	w := newWorld(t, func(s *Settings) {
		s.Issuer, s.ClientID, s.ClientSecret = p.Issuer, p.ClientID, observabilitySecret(p.ClientSecret)
		client := *p.Client()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		s.HTTP = &client
	})
	o := w.open(ada)
	if err := w.returned(independentLogin(t, p, o.URL), o.Cookie); err != nil {
		t.Fatal(err)
	}
	if v := w.view(o.Cookie); v.Stage != consent.StageAsk || v.LocalName != "ada" {
		t.Errorf("%+v\n%s", v, w.log)
	}
	if a := w.mapper.requests(); len(a) != 1 || a[0].Subject != p.Subject || a[0].Email != "test-user@zitadel.ch" || !a[0].EmailVerified {
		t.Errorf("the program was asked %+v", a)
	}
}

// lie is one answer that must not be accepted.
type lie struct {
	lies idp.Lies
	log  string // why, as the log says
}

func claim(name string, value any) idp.Lies {
	return idp.Lies{Claims: func(c map[string]any) {
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
	}}
}

func raw(path string, h http.HandlerFunc) idp.Lies {
	return idp.Lies{Raw: func(p string) http.HandlerFunc {
		if p == path {
			return h
		}
		return nil
	}}
}

func segment(v string) string { return base64.RawURLEncoding.EncodeToString([]byte(v)) }

var otherKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// lies are all lies about one login. Each is told after the discovery.
func lies(t *testing.T, p *idp.Provider) map[string]lie {
	t.Helper()
	other, err := otherKey()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key jose.JSONWebKey, payload []byte) string {
		s, err := idp.Sign(key, payload)
		if err != nil {
			t.Error(err)
		}
		return s
	}
	now := time.Now()
	return map[string]lie{
		"issuer":             {claim("iss", "https://elsewhere.example"), "different provider"},
		"no issuer":          {claim("iss", nil), "different provider"},
		"audience":           {claim("aud", "another-client"), "expected audience"},
		"no audience":        {claim("aud", nil), "expected audience"},
		"azp":                {claim("azp", "another-client"), "azp is somebody else"},
		"azp empty":          {claim("azp", ""), "azp is somebody else"},
		"several audiences":  {claim("aud", []string{p.ClientID, "another-client"}), "azp does not say"},
		"nonce":              {claim("nonce", "another"), "nonce is not"},
		"no nonce":           {claim("nonce", nil), "nonce is not"},
		"expired":            {claim("exp", now.Add(-time.Second).Unix()), "expired"},
		"no expiry":          {claim("exp", nil), "expired"},
		"issued in future":   {claim("iat", now.Add(time.Hour).Unix()), "issued in the future"},
		"issued before":      {claim("iat", now.Add(-time.Hour).Unix()), "before the login began"},
		"no time of issue":   {claim("iat", nil), "before the login began"},
		"not yet valid":      {claim("nbf", now.Add(time.Hour).Unix()), "not before"},
		"at_hash":            {claim("at_hash", segment("another hash....")), "at_hash does not fit"},
		"no subject":         {claim("sub", nil), "sub is no subject"},
		"long subject":       {claim("sub", strings.Repeat("s", 256)), "sub is no subject"},
		"subject with lines": {claim("sub", "sub-ada\nx"), "sub is no subject"},
		"another key": {idp.Lies{IDToken: func(c []byte) string {
			return sign(jose.JSONWebKey{Key: other, KeyID: p.Key().KeyID, Algorithm: "RS256"}, c)
		}}, "has signed the token"},
		"unknown key": {idp.Lies{IDToken: func(c []byte) string {
			return sign(jose.JSONWebKey{Key: other, KeyID: "nobody", Algorithm: "RS256"}, c)
		}}, "key of the"},
		"none": {idp.Lies{IDToken: func(c []byte) string { return segment(`{"alg":"none"}`) + "." + segment(string(c)) + "." }}, "ID token"},
		"HS256 with the client secret": {idp.Lies{IDToken: func(c []byte) string {
			return sign(jose.JSONWebKey{Key: []byte(p.ClientSecret), KeyID: p.Key().KeyID, Algorithm: "HS256"}, c)
		}}, "signature algorithm"},
		"HS256 with the public key": {idp.Lies{IDToken: func(c []byte) string {
			key := p.Key()
			public, err := key.Public().MarshalJSON()
			if err != nil {
				t.Error(err)
			}
			return sign(jose.JSONWebKey{Key: public, KeyID: p.Key().KeyID, Algorithm: "HS256"}, c)
		}}, "signature algorithm"},
		"RS512":            {idp.Lies{IDToken: func(c []byte) string { k := p.Key(); k.Algorithm = "RS512"; return sign(k, c) }}, "signature algorithm"},
		"key in the token": {idp.Lies{IDToken: func(c []byte) string { return embedded(t, other, c) }}, "has signed the token"},
		"changed payload": {idp.Lies{IDToken: func(c []byte) string {
			parts := strings.Split(sign(p.Key(), []byte(`{"sub":"x"}`)), ".")
			return parts[0] + "." + segment(string(c)) + "." + parts[2]
		}}, "has signed the token"},
		"no ID token":              {idp.Lies{Token: func(a map[string]any) { delete(a, "id_token") }}, "no ID token"},
		"ID token no text":         {idp.Lies{Token: func(a map[string]any) { a["id_token"] = 5 }}, "no ID token"},
		"token type":               {idp.Lies{Token: func(a map[string]any) { a["token_type"] = "mac" }}, "of the type mac"},
		"claims no object":         {idp.Lies{IDToken: func([]byte) string { return sign(p.Key(), []byte(`[]`)) }}, "unmarshal claims"},
		"userinfo of another":      {idp.Lies{UserInfo: func(a map[string]any) { a["sub"] = "sub-eve" }}, "somebody else"},
		"userinfo without subject": {idp.Lies{UserInfo: func(a map[string]any) { delete(a, "sub") }}, "somebody else"},
		"userinfo away":            {raw("/userinfo", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }), "userinfo"},
		"userinfo endless":         {raw("/userinfo", endless), "too long"},
		"token endless":            {raw("/token", endless), "exchange the code"},
		"token redirects": {raw("/token", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}), "exchange the code"},
		"token refused": {raw("/token", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		}), "invalid_grant"},
		"keys endless":   {raw("/jwks", endless), "too long"},
		"keys redirect":  {raw("/jwks", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }), "status 302"},
		"keys no JSON":   {raw("/jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }), "no JSON"},
		"no keys":        {raw("/jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) }), "no key that can be used"},
		"iss of another": {idp.Lies{Callback: func(q url.Values) { q.Set("iss", "https://elsewhere.example") }}, "answer is of the issuer"},
		"iss left out":   {idp.Lies{Callback: func(q url.Values) { q.Del("iss") }}, "does not name its issuer"},
	}
}

func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"x":"`))
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	for range 1 << 10 { // 64 MiB: more than anybody should read
		if _, err := w.Write(chunk); err != nil || r.Context().Err() != nil {
			return
		}
	}
}

// embedded is a token that brings its own key.
func embedded(t *testing.T, key *rsa.PrivateKey, claims []byte) string {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Error(err)
		return ""
	}
	signed, err := s.Sign(claims)
	if err != nil {
		t.Error(err)
		return ""
	}
	text, _ := signed.CompactSerialize()
	return text
}

//
//attack:actor malicious identity
//attack:does Gives the provider an ID token for another client of the same issuer.
//attack:control An ID token is accepted for this client only, also if it is for several.
//attack:remove internal/usermap/oidc/verify.go: case len(t.Audience) > 1 && c.Azp == nil: => case false:
//attack:run several_audiences
//attack:actor malicious identity
//attack:does Presents an ID token that another client was given.
//attack:control The authorized party of an ID token must be our client.
//attack:remove internal/usermap/oidc/verify.go: case c.Azp != nil && *c.Azp != i.ClientID: => case false:
//attack:run azp
//attack:actor malicious identity
//attack:does Replays an ID token of another login of the same person.
//attack:control The nonce must be that of this login.
//attack:remove internal/usermap/oidc/verify.go: case !equal(t.Nonce, want.nonce): => case false:
//attack:run nonce
//attack:actor malicious identity
//attack:does Presents an ID token that was issued long before the login began.
//attack:control The time of issue must fit the login.
//attack:remove internal/usermap/oidc/verify.go: case t.IssuedAt.Before(want.since.Add(-skew)): => case false:
//attack:run issued_before
//attack:actor malicious identity
//attack:does Puts another access token beside a good ID token.
//attack:control The hash in the ID token must fit the access token.
//attack:remove internal/usermap/oidc/verify.go: if t.AccessTokenHash != "" { => if false {
//attack:run at_hash
//attack:actor malicious identity
//attack:does Gives userinfo of somebody else, whose e-mail address then decides about the account.
//attack:control Userinfo must be about the subject of the ID token.
//attack:remove internal/usermap/oidc/verify.go: if info.Subject != p.subject { => if false {
//attack:run userinfo_of_another
//attack:actor malicious identity
//attack:does Answers without end.
//attack:control Each answer of the identity provider is bounded.
//attack:remove internal/usermap/oidc/issuer.go: if b.left <= 0 { => if false {
//attack:remove internal/usermap/oidc/issuer.go: if int64(len(p)) > b.left { => if false {
//attack:run userinfo_endless
//attack:actor malicious identity
//attack:does Has another issuer's answer delivered in the name of this one (mix-up).
//attack:control The iss parameter of RFC 9207 must be that of the issuer.
//attack:remove internal/usermap/oidc/answer.go: case a.hasIss && a.iss != issuer: => case false:
//attack:run iss_of_another
//attack:actor malicious identity
//attack:does Leaves out the iss parameter that the issuer always sends.
//attack:control An issuer that announces the iss parameter must send it.
//attack:remove internal/usermap/oidc/answer.go: case !a.hasIss && announced: => case false:
//attack:run iss_left_out
func TestLies(t *testing.T) {
	t.Parallel()
	names := lies(t, idp.New(t))
	for name := range names {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l := lies(t, w.idp)[name]
			o := w.open(ada)
			w.idp.Lie(l.lies)
			if err := w.returned(w.query(o, "ada"), o.Cookie); err != nil {
				t.Fatal(err)
			}
			v := w.view(o.Cookie)
			if v.Stage != consent.StageFailed || v.Form != "" {
				t.Fatalf("%+v", v)
			}
			if len(w.mapper.requests()) != 0 {
				t.Error("the program was asked")
			}
			if !strings.Contains(w.log.String(), l.log) {
				t.Errorf("the log does not say %q:\n%s", l.log, w.log)
			}
			if strings.Contains(v.Message, l.log) {
				t.Errorf("the user is told %q", v.Message)
			}
			if err := w.m.Decide(t.Context(), o.Cookie, v.Form, true); err == nil {
				t.Error("a failed login was decided")
			}
			if _, ok := w.mapping(ada); ok {
				t.Error("connected")
			}
		})
	}
}

// TestDiscoveryLies has the discovery document lie.
//
//attack:actor malicious identity
//attack:does Names an endpoint without TLS in its discovery document.
//attack:control All endpoints of an issuer with TLS must have TLS.
//attack:remove internal/usermap/oidc/issuer.go: if !absolute(u) || secure && !strings.HasPrefix(u, "https://") { => if !absolute(u) || secure && false {
//attack:run token_endpoint_without_TLS
//attack:actor malicious identity
//attack:does Announces symmetric signatures only, so that whoever knows the client secret can make tokens.
//attack:control Only four asymmetric algorithms count.
//attack:remove internal/usermap/oidc/keys.go: return slices.DeleteFunc(slices.Clone(algorithms), func(a string) bool { return !slices.Contains(announced, a) }) => return announced
//attack:run HS256_only
func TestDiscoveryLies(t *testing.T) {
	t.Parallel()
	set := func(name string, value any) idp.Lies {
		return idp.Lies{Discovery: func(d map[string]any) { d[name] = value }}
	}
	for name, l := range map[string]lie{
		"issuer":                     {set("issuer", "https://elsewhere.example"), "elsewhere.example"},
		"token endpoint without TLS": {set("token_endpoint", "http://127.0.0.1:1/token"), "token_endpoint"},
		"keys without TLS":           {set("jwks_uri", "http://127.0.0.1:1/jwks"), "jwks_uri"},
		"relative endpoint":          {set("authorization_endpoint", "/authorize"), "authorization_endpoint"},
		"HS256 only":                 {set("id_token_signing_alg_values_supported", []string{"HS256", "none"}), "signs with none"},
		"no client secret":           {set("token_endpoint_auth_methods_supported", []string{"none"}), "takes no client secret"},
		"endless":                    {raw("/.well-known/openid-configuration", endless), "too long"},
		"redirect": {raw("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/jwks", http.StatusFound)
		}), "302"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			w := &world{t: t}
			p := idp.New(t, adaAtIdp)
			p.Lie(l.lies)
			w.idp, w.mapper = p, &mapper{}
			_, err := newIssuer(w.settings(), time.Now).ready(t.Context())
			if !failure.Is(err, failure.Unavailable) || !strings.Contains(err.Error(), l.log) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestNoPKCE refuses an issuer that would ignore the challenge.
//
//attack:actor malicious identity
//attack:does Downgrades PKCE: the issuer announces methods without S256 and so would redeem any code.
//attack:control An issuer that does not do PKCE with S256 is refused.
//attack:remove internal/usermap/oidc/issuer.go: if doc.PKCE != nil && !slices.Contains(doc.PKCE, "S256") { => if false {
func TestNoPKCE(t *testing.T) {
	t.Parallel()
	p := idp.New(t, adaAtIdp)
	p.Lie(idp.Lies{Discovery: func(d map[string]any) { d["code_challenge_methods_supported"] = []string{"plain"} }})
	w := &world{t: t, idp: p, mapper: &mapper{}}
	if _, err := newIssuer(w.settings(), time.Now).ready(t.Context()); !failure.Is(err, failure.Unavailable) || !strings.Contains(err.Error(), "PKCE") {
		t.Errorf("%v", err)
	}
}

// TestInjectedCode puts the code of one login into another.
//
//attack:actor internet
//attack:does Steals the code of a victim's login and injects it into a login of the own browser.
//attack:control The code is redeemed with the PKCE verifier of the login that comes back, which the identity provider compares.
//attack:remove internal/usermap/oidc/verify.go: oauth2.VerifierOption(want.verifier)) => oauth2.VerifierOption("victim"))
//attack:remove internal/usermap/oidc/method.go: oauth2.S256ChallengeOption(st.Verifier)) => oauth2.S256ChallengeOption("victim"))
func TestInjectedCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// The nonce would notice as well: the identity provider of this test does not know that.
	w.idp.Lie(idp.Lies{Claims: func(map[string]any) {}})
	victim, attacker := w.open(ada), w.open(mallory)
	stolen := values(t, w.query(victim, "ada"))
	own := values(t, w.query(attacker, "eve"))
	own.Set("code", stolen.Get("code"))
	if err := w.returned(own.Encode(), attacker.Cookie); err != nil {
		t.Fatal(err)
	}
	if v := w.view(attacker.Cookie); v.Stage != consent.StageFailed {
		t.Errorf("%+v", v)
	}
	if !strings.Contains(w.log.String(), "invalid_grant") {
		t.Errorf("the identity provider did not refuse the code:\n%s", w.log)
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	shift := time.Duration(0)
	i := newIssuer(w.settings(), func() time.Time { return now.Add(shift) })
	d, err := i.ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	verify := func() error {
		token, err := idp.Sign(w.idp.Key(), []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.keys.VerifySignature(t.Context(), token)
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	old := w.idp.Key()
	w.idp.Rotate(t)
	if err := verify(); err == nil {
		t.Error("the keys were read again at once")
	}
	shift = keysPause
	if err := verify(); err != nil {
		t.Errorf("a new key: %v", err)
	}
	token, err := idp.Sign(old, []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.keys.VerifySignature(t.Context(), token); err == nil {
		t.Error("the old key still counts")
	}
	// Other kinds of keys, beside ones that are of no use.
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for n, key := range []jose.JSONWebKey{{Key: ed, KeyID: "ed", Algorithm: "EdDSA"}, {Key: ec, KeyID: "ec", Algorithm: "ES256"}, {Key: old.Key, KeyID: "ps", Algorithm: "PS256"}} {
		shift += keysPause
		w.idp.Use(jose.JSONWebKey{Key: old.Key, KeyID: key.KeyID, Algorithm: "RS256", Use: "enc"}, key)
		if err := verify(); err != nil {
			t.Errorf("key %d: %v", n, err)
		}
	}
	// A key that was withdrawn stops counting without another one being named.
	withdrawn := w.idp.Key()
	w.idp.Rotate(t)
	shift += keysLife
	if token, err = idp.Sign(withdrawn, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.keys.VerifySignature(t.Context(), token); err == nil {
		t.Error("a withdrawn key still counts")
	}
}

// TestUnknownKeysAreRare names a new key in each token.
//
//attack:actor malicious identity
//attack:does Names an unknown key in every token, to have the keys read each time.
//attack:control Keys are read at most once in ten seconds.
//attack:remove internal/usermap/oidc/keys.go: if since := k.now().Sub(k.try); !k.try.IsZero() && since >= 0 && since < keysPause { => if false {
func TestUnknownKeysAreRare(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	d, err := newIssuer(w.settings(), func() time.Time { return now }).ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := w.idp.Requests("/jwks")
	for n := range 20 {
		key := w.idp.Key()
		key.KeyID = "unknown" + string(rune('a'+n))
		token, err := idp.Sign(key, []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.keys.VerifySignature(t.Context(), token); err == nil {
			t.Error("accepted")
		}
	}
	if n := w.idp.Requests("/jwks") - before; n != 1 {
		t.Errorf("the keys were read %d times", n)
	}
}

// TestWeakKeys offers keys that must not count.
//
//attack:actor malicious identity
//attack:does Publishes a short RSA key, which others can factor, or a symmetric one.
//attack:control Only public keys for signatures count, RSA from 2048 bits.
//attack:remove internal/usermap/oidc/keys.go: return !ok || r.N.BitLen() >= minRSA => return !ok || r.N.BitLen() > 0
func TestWeakKeys(t *testing.T) {
	t.Parallel()
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &short.PublicKey, KeyID: "short", Algorithm: "RS256"}, {Key: []byte("symmetric symmetric symmetric 12"), KeyID: "oct", Algorithm: "HS256"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := parseKeys(set); err == nil {
		t.Errorf("%d weak keys count", len(keys))
	}
}

func TestIssuerDownAtStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stop()
	w.idp.Down(true)
	w.start(w.settings())
	session := w.begin(ada)
	if _, err := w.m.Open(t.Context(), session); !failure.Is(err, failure.Unavailable) {
		t.Fatalf("while the issuer is away: %v", err)
	}
	if s := w.m.State(); s.Known || s.RedirectURI != callback {
		t.Errorf("%+v", s)
	}
	w.idp.Down(false)
	// The token of the page is still good, and reloads of the page find the issuer.
	testkit.Eventually(t, "the issuer to be found", func() bool {
		_, err := w.m.Open(t.Context(), session)
		if err != nil && !failure.Is(err, failure.Unavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if s := w.m.State(); !s.Known || s.Problem != nil {
		t.Errorf("%+v", s)
	}
}

// TestSecretIsNotShown has the token endpoint throw the client secret back.
//
//attack:actor malicious identity
//attack:does Quotes the client secret in an error, to have it logged.
//attack:control The client secret is removed from what the identity provider answers before that is logged.
//attack:remove internal/usermap/oidc/issuer.go: text := strings.ReplaceAll(err.Error(), secret, observability.Redacted) => text := err.Error()
func TestSecretIsNotShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := w.open(ada)
	w.idp.Lie(raw("/token", func(rw http.ResponseWriter, _ *http.Request) {
		http.Error(rw, "you said "+w.idp.ClientSecret, http.StatusBadRequest)
	}))
	if err := w.returned(w.query(o, "ada"), o.Cookie); err != nil {
		t.Fatal(err)
	}
	v := w.view(o.Cookie)
	if v.Stage != consent.StageFailed || !strings.Contains(w.log.String(), "you said") {
		t.Fatalf("%+v\n%s", v, w.log)
	}
	if strings.Contains(w.log.String(), w.idp.ClientSecret) || strings.Contains(v.Message, w.idp.ClientSecret) {
		t.Error("the client secret is shown")
	}
	for _, secret := range []string{o.Cookie, values(t, strings.SplitN(o.URL, "?", 2)[1]).Get("state")} {
		if strings.Contains(w.log.String(), secret) {
			t.Error("a secret of the login is logged")
		}
	}
}
