package oidc

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"ucloud-im/internal/testkit/idp"
)

// FuzzAnswer reads what browsers bring back.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"code=x&state=y", "code=x&state=y&iss=https%3A%2F%2Fidp.example.org", "error=access_denied&state=y&error_description=no", "state=y", "code=x",
		"code=x&code=y&state=z", "code=x&state=y&state=z", "code=&state=", "code=x&error=y&state=z", "%zz", "code=x;state=y", "state=%00&code=%ff",
		"code=" + strings.Repeat("c", maxParam+1) + "&state=y", strings.Repeat("a=b&", 5000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := parseAnswer(raw)
		if err != nil {
			if strings.Contains(err.Error(), raw) && len(raw) > 60 {
				t.Error("the error quotes the query")
			}
			return
		}
		if a.state == "" || (a.code == "") == (a.err == "") || len(a.state)+len(a.code)+len(a.err)+len(a.iss) > maxQuery || a.hasIss != (a.iss != "") {
			t.Errorf("%q gives %+v", raw, a)
		}
		if a.hasIss && a.iss != "https://idp.example.org" && a.checkIssuer("https://idp.example.org", false) == nil {
			t.Errorf("the issuer %q passes", a.iss)
		}
		if s := clip(a.iss); !utf8.ValidString(s) || len(s) > 600 {
			t.Errorf("logged as %q", s)
		}
	})
}

// FuzzKeys reads key sets.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{
		`{"keys":[]}`, `{}`, `[]`, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"sig"},{"kty":"new"}]}`,
		`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`, `{"keys":[{"kty":"RSA","n":"","e":""}]}`, `{"keys":null}`, `{"keys":[null]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseKeys(body)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Errorf("%d keys and %v", len(keys), err)
		}
		for _, k := range keys {
			if !k.IsPublic() || !usable(k) {
				t.Errorf("%q has the key %+v", body, k)
			}
		}
	})
}

// FuzzClaims signs anything: whatever the claims are, a login that was not begun is not completed.
func FuzzClaims(f *testing.F) {
	p := idp.New(f, adaAtIdp)
	w := &world{idp: p, mapper: &mapper{}}
	now := time.Now()
	i := newIssuer(w.settings(), func() time.Time { return now })
	d, err := i.ready(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	good := map[string]any{
		"iss": p.Issuer, "aud": p.ClientID, "sub": "sub-ada", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nonce": "the nonce",
		"email": "ada@example.org", "email_verified": true, "profile": "https://example.org/ada",
	}
	for _, change := range []map[string]any{
		{},
		{"aud": []string{p.ClientID, "x"}},
		{"aud": []string{p.ClientID, "x"}, "azp": p.ClientID},
		{"email_verified": "true"},
		{"email_verified": "yes"},
		{"email_verified": 1},
		{"exp": "soon"},
		{"iat": 1e30},
		{"sub": 5},
		{"nonce": nil},
		{"at_hash": "x"},
		{"azp": []int{}},
		{"iss": map[string]any{}},
		{"_claim_names": map[string]any{"email": "x"}},
		{"nbf": -1},
		{"profile": []string{"x"}},
	} {
		claims := map[string]any{}
		for k, v := range good {
			claims[k] = v
		}
		for k, v := range change {
			claims[k] = v
		}
		raw, err := json.Marshal(claims)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, claims []byte) {
		token, err := idp.Sign(p.Key(), claims)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.verify(t.Context(), d, token, "access", expected{nonce: "another nonce", since: now}); err == nil {
			t.Errorf("%s was accepted for another login", claims)
		}
		who, err := i.verify(t.Context(), d, token, "access", expected{nonce: "the nonce", since: now})
		if err != nil {
			return
		}
		var c map[string]any
		if err := json.Unmarshal(claims, &c); err != nil || c == nil {
			t.Fatalf("%q was accepted", claims)
		}
		if who.subject == "" || len(who.subject) > maxSubject || who.email != "" && !who.emailVerified || !json.Valid(who.claims) {
			t.Errorf("%s gives %+v", claims, who)
		}
	})
}
