package auth

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
)

var now = time.Unix(1767225600, 0)

// doc is a JSON object of a token. Tokens are put together by hand here, so that the library under the code is not
// also the one that judges it.
type doc map[string]any

func (d doc) with(k string, v any) doc {
	c := doc{}
	for key, value := range d {
		c[key] = value
	}
	if v == nil {
		delete(c, k)
	} else {
		c[k] = v
	}
	return c
}

func goodHeader() doc { return doc{"alg": "RS256", "typ": "JWT"} }

func goodClaims() doc {
	return doc{
		"principalType": "service", "role": "SERVICE", "iss": "cloud.sdu.dk", "sub": "_UCloud",
		"aud": []string{"all:write"}, "iat": now.Unix(), "exp": now.Unix() + 600,
	}
}

func signingInput(header, claims any) string {
	h, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
}

func sign(key *rsa.PrivateKey, hash crypto.Hash, header, claims any) string {
	input := signingInput(header, claims)
	sum := hash.New()
	sum.Write([]byte(input))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, hash, sum.Sum(nil))
	if err != nil {
		panic(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func rs256(header, claims doc) string { return sign(coreKey(), crypto.SHA256, header, claims) }

// hs256 is the classic confusion: an HMAC whose key is the text of the public key.
func hs256(secret []byte) string {
	input := signingInput(goodHeader().with("alg", "HS256"), goodClaims())
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func jwk(key *rsa.PrivateKey) doc {
	return doc{
		"kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
		"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
	}
}

func newVerifier(tb testing.TB, o Options, keys ...*rsa.PublicKey) *Verifier {
	tb.Helper()
	if len(keys) == 0 {
		keys = []*rsa.PublicKey{&coreKey().PublicKey}
	}
	if o.Now == nil {
		o.Now = func() time.Time { return now }
	}
	v, err := NewVerifier(keys, o)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func authorization(values ...string) http.Header { return http.Header{"Authorization": values} }

func TestVerifyCore(t *testing.T) {
	t.Parallel()
	good := rs256(goodHeader(), goodClaims())
	for _, tc := range []struct{ name, value string }{
		{"as Core sends it", "Bearer " + good},
		{"scheme in lower case", "bearer " + good},
		{"two blanks", "Bearer  " + good},
		{"audience as a text", "Bearer " + rs256(goodHeader(), goodClaims().with("aud", "all:write"))},
		{"further audience", "Bearer " + rs256(goodHeader(), goodClaims().with("aud", []string{"x", "all:write"}))},
		{"no typ", "Bearer " + rs256(goodHeader().with("typ", nil), goodClaims())},
		{"kid is ignored", "Bearer " + rs256(goodHeader().with("kid", "../../dev/null"), goodClaims())},
		{"clock of Core is ahead", "Bearer " + rs256(goodHeader(), goodClaims().with("iat", now.Unix()+59).with("exp", now.Unix()+659))},
		{"expired within the leeway", "Bearer " + rs256(goodHeader(), goodClaims().with("iat", now.Unix()-659).with("exp", now.Unix()-59))},
		{"longest life", "Bearer " + rs256(goodHeader(), goodClaims().with("exp", now.Unix()+900))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, Options{})
			for range 2 { // the second time from the cache
				p, err := v.VerifyCore(authorization(tc.value))
				if err != nil {
					t.Fatal(err)
				}
				if !p.IsCore() || p.Subject() != "_UCloud" || p.ExpiresAt().IsZero() {
					t.Fatalf("got %+v", p)
				}
			}
		})
	}
}

// TestVerifyCoreRefuses is the attack table.
//
//attack:actor internet
//attack:does Sends a token with another algorithm, such as none or HS256 with the public key as its secret.
//attack:control Core's tokens are accepted with RS256 alone.
//attack:remove internal/auth/verifier.go: jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}), =>
//attack:actor internet
//attack:does Replays an old token of Core.
//attack:control Tokens of Core end, and must say when.
//attack:remove internal/auth/verifier.go: jwt.WithExpirationRequired(), => jwt.WithTimeFunc(func() time.Time { return time.Unix(0, 0) }),
//attack:remove internal/auth/verifier.go: jwt.WithIssuedAt(),\n =>
//attack:remove internal/auth/verifier.go: \t\tjwt.WithTimeFunc(o.Now),\n =>
//attack:actor internet
//attack:does Uses a token that Core gave to a user of UCloud.
//attack:control Only tokens for Core's own requests are accepted.
//attack:remove internal/auth/verifier.go: if c.Subject != coreSubject || c.Role != coreRole { => if c.Subject == "" {
//attack:actor internet
//attack:does Sends a token that would live for years.
//attack:control The life of a token is bounded whatever it says.
//attack:remove internal/auth/verifier.go: if life <= 0 || life > v.o.MaxLifetime { => if life <= 0 {
//attack:actor internet
//attack:does Signs a token with a key of its own.
//attack:control Tokens must be signed with a key of Core that the operator has installed.
//attack:remove internal/auth/verifier.go: parsed, err := v.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.keys, nil }) => parsed, _, err := v.parser.ParseUnverified(token, &c)
func TestVerifyCoreRefuses(t *testing.T) {
	t.Parallel()
	good := rs256(goodHeader(), goodClaims())
	parts := strings.Split(good, ".")
	der := pkixDER(&coreKey().PublicKey)
	none := signingInput(goodHeader().with("alg", "none"), goodClaims()) + "."
	attacker := otherKey()
	with := func(k string, v any) string { return "Bearer " + rs256(goodHeader(), goodClaims().with(k, v)) }
	forged := func(header doc) string { return "Bearer " + sign(attacker, crypto.SHA256, header, goodClaims()) }
	for _, tc := range []struct {
		name   string
		header http.Header
		want   error // nil: any
	}{
		{"no header", http.Header{}, ErrNoToken},
		{"empty header", authorization(""), nil},
		{"two headers", authorization("Bearer "+good, "Bearer "+good), nil},
		{"good header and a bad one", authorization("Basic eDp5", "Bearer "+good), nil},
		{"scheme only", authorization("Bearer"), nil},
		{"empty bearer", authorization("Bearer "), nil},
		{"other scheme", authorization("Basic " + good), nil},
		{"no scheme", authorization(good), nil},
		{"two tokens in one header", authorization("Bearer " + good + ", Bearer " + good), nil},
		{"something after the token", authorization("Bearer " + good + " x"), nil},
		{"line break inside the token", authorization("Bearer " + good[:50] + "\n" + good[50:]), nil},
		{"padding in the token", authorization("Bearer " + parts[0] + "=." + parts[1] + "." + parts[2]), nil},
		{"tab between", authorization("Bearer\t" + good), nil},

		{"none", authorization("Bearer " + none), nil},
		{"None", authorization("Bearer " + signingInput(goodHeader().with("alg", "None"), goodClaims()) + "."), nil},
		{"none with the signature of a good token", authorization("Bearer " + none + parts[2]), nil},
		{"no alg", authorization("Bearer " + rs256(goodHeader().with("alg", nil), goodClaims())), nil},
		{"alg is a number", authorization("Bearer " + rs256(goodHeader().with("alg", 256), goodClaims())), nil},
		{"HS256 with the DER of the public key", authorization("Bearer " + hs256(der)), nil},
		{"HS256 with the PEM of the public key", authorization("Bearer " + hs256([]byte(block("PUBLIC KEY", der)))), nil},
		{"HS256 with the base64 of the public key", authorization("Bearer " + hs256([]byte(base64.StdEncoding.EncodeToString(der)))), nil},
		{"HS256 with nothing", authorization("Bearer " + hs256(nil)), nil},
		{"RS512 with the right key", authorization("Bearer " + sign(coreKey(), crypto.SHA512, goodHeader().with("alg", "RS512"), goodClaims())), nil},
		{"PS256 claimed", authorization("Bearer " + rs256(goodHeader().with("alg", "PS256"), goodClaims())), nil},

		{"another key", authorization(forged(goodHeader())), nil},
		{"embedded jwk", authorization(forged(goodHeader().with("jwk", jwk(attacker)))), nil},
		{"embedded jwk with kid", authorization(forged(goodHeader().with("jwk", jwk(attacker)).with("kid", "1"))), nil},
		{"x5c", authorization(forged(goodHeader().with("x5c", []string{base64.StdEncoding.EncodeToString(certificate(attacker))}))), nil},
		{"jku", authorization(forged(goodHeader().with("jku", "http://127.0.0.1:1/jwks"))), nil},
		{"kid of a file", authorization(forged(goodHeader().with("kid", "/dev/null"))), nil},
		{"critical extension", authorization("Bearer " + rs256(goodHeader().with("crit", []string{"b64"}).with("b64", false), goodClaims())), nil},

		{"provider's own token", authorization("Bearer " + rs256(goodHeader(), goodClaims().
			with("sub", "#P_slurm").with("role", "PROVIDER").with("principalType", "provider"))), ErrNotCore},
		{"provider's own subject", authorization(with("sub", "#P_slurm")), ErrNotCore},
		{"subject in another case", authorization(with("sub", "_ucloud")), ErrNotCore},
		{"no subject", authorization(with("sub", nil)), ErrNotCore},
		{"wrong role", authorization(with("role", "PROVIDER")), ErrNotCore},
		{"role in lower case", authorization(with("role", "service")), ErrNotCore},
		{"no role", authorization(with("role", nil)), ErrNotCore},
		{"role of another type", authorization(with("role", []string{"SERVICE"})), nil},
		{"wrong issuer", authorization(with("iss", "cloud.example.org")), nil},
		{"no issuer", authorization(with("iss", nil)), nil},
		{"wrong audience", authorization(with("aud", []string{"all:read"})), nil},
		{"empty audience", authorization(with("aud", []string{})), nil},
		{"no audience", authorization(with("aud", nil)), nil},

		{"expired", authorization("Bearer " + rs256(goodHeader(), goodClaims().with("iat", now.Unix()-661).with("exp", now.Unix()-61))), nil},
		{"no exp", authorization(with("exp", nil)), nil},
		{"exp is a word", authorization(with("exp", "never")), nil},
		{"exp is huge", authorization(with("exp", 1e300)), nil},
		{"no iat", authorization(with("iat", nil)), nil},
		{"iat in the future", authorization("Bearer " + rs256(goodHeader(), goodClaims().with("iat", now.Unix()+61).with("exp", now.Unix()+661))), nil},
		{"iat after exp", authorization("Bearer " + rs256(goodHeader(), goodClaims().with("iat", now.Unix()+30).with("exp", now.Unix()+20))), nil},
		{"long life", authorization(with("exp", now.Unix()+901)), nil},
		{"old iat, long life", authorization(with("iat", 0)), nil},
		{"not yet valid", authorization(with("nbf", now.Unix()+61)), nil},

		{"claims changed", authorization("Bearer " + parts[0] + "." + strings.Split(rs256(goodHeader(), goodClaims().with("exp", now.Unix()+700)), ".")[1] + "." + parts[2]), nil},
		{"signature cut off", authorization("Bearer " + parts[0] + "." + parts[1] + "."), nil},
		{"no signature part", authorization("Bearer " + parts[0] + "." + parts[1]), nil},
		{"truncated", authorization("Bearer " + good[:len(good)-2]), nil},
		{"four parts", authorization("Bearer " + good + ".x"), nil},
		{"loose bits in the signature", authorization("Bearer " + loosen(good)), nil},
		{"not JSON", authorization("Bearer " + sign(coreKey(), crypto.SHA256, "x", "y")), nil},
		{"claims are null", authorization("Bearer " + sign(coreKey(), crypto.SHA256, goodHeader(), nil)), nil},
		{"oversized", authorization(with("padding", strings.Repeat("x", maxToken))), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, Options{})
			p, err := v.VerifyCore(tc.header)
			if !failure.Is(err, failure.Unauthenticated) {
				t.Fatalf("got %+v, %v", p, err)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if errors.Is(err, ErrNoToken) != (len(tc.header) == 0) {
				t.Fatalf("got %v: only the lack of a header is the lack of a token", err)
			}
			if p.IsCore() {
				t.Fatal("a principal came with the error")
			}
			if strings.Contains(failure.Why(err), "subject") || strings.Contains(err.Error(), parts[2]) {
				t.Fatalf("the error tells too much: %v", err)
			}
		})
	}
}

// loosen changes the unused low bits of the last character, so that a lenient decoder sees the same signature.
func loosen(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func TestOnlyCoreKeysAreAccepted(t *testing.T) {
	t.Parallel()
	weak := newWeakKey()
	for _, keys := range [][]*rsa.PublicKey{nil, {weak}, {&coreKey().PublicKey, weak}, {{N: coreKey().N, E: 3}}} {
		if _, err := NewVerifier(keys, Options{}); err == nil {
			t.Errorf("%d keys were accepted", len(keys))
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	oldToken := authorization("Bearer " + sign(coreKey(), crypto.SHA256, goodHeader(), goodClaims()))
	newToken := authorization("Bearer " + sign(nextKey(), crypto.SHA256, goodHeader(), goodClaims()))
	v := newVerifier(t, Options{})
	check := func(step string, h http.Header, want bool) {
		t.Helper()
		if _, err := v.VerifyCore(h); (err == nil) != want {
			t.Fatalf("%s: got %v, want ok = %v", step, err, want)
		}
	}
	check("old key alone, old token", oldToken, true)
	check("old key alone, new token", newToken, false)
	if err := v.SetKeys([]*rsa.PublicKey{&coreKey().PublicKey, &nextKey().PublicKey}); err != nil {
		t.Fatal(err)
	}
	check("both, old token", oldToken, true)
	check("both, new token", newToken, true)
	if err := v.SetKeys(nil); err == nil {
		t.Fatal("no keys were accepted")
	}
	check("after a refused change", oldToken, true)
	if err := v.SetKeys([]*rsa.PublicKey{&nextKey().PublicKey}); err != nil {
		t.Fatal(err)
	}
	check("new key alone, new token", newToken, true)
	// This one was verified and remembered a moment ago.
	check("new key alone, old token", oldToken, false)
}

func TestCacheExpires(t *testing.T) {
	t.Parallel()
	clock := now
	v := newVerifier(t, Options{Now: func() time.Time { return clock }})
	h := authorization("Bearer " + rs256(goodHeader(), goodClaims()))
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {659 * time.Second, true}, {660 * time.Second, false}, {0, true}} {
		clock = now.Add(step.after)
		if _, err := v.VerifyCore(h); (err == nil) != step.want {
			t.Fatalf("after %s: got %v, want ok = %v", step.after, err, step.want)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	clock := now
	v := newVerifier(t, Options{CacheSize: 3, Now: func() time.Time { return clock }})
	for i := range 10 {
		if _, err := v.VerifyCore(authorization("Bearer " + rs256(goodHeader(), goodClaims().with("n", i)))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.state.Load().proven); n != 3 {
		t.Fatalf("%d tokens are remembered", n)
	}
	// Bad tokens are never remembered.
	for range 3 {
		v.VerifyCore(authorization("Bearer " + rs256(goodHeader(), goodClaims().with("sub", "x"))))
	}
	// Expired ones make room for a new one.
	clock = now.Add(time.Hour)
	fresh := goodClaims().with("iat", clock.Unix()).with("exp", clock.Unix()+600)
	if _, err := v.VerifyCore(authorization("Bearer " + rs256(goodHeader(), fresh))); err != nil {
		t.Fatal(err)
	}
	if n := len(v.state.Load().proven); n != 1 {
		t.Fatalf("%d tokens are remembered, of which one is not expired", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, Options{CacheSize: 2})
	var tokens []http.Header
	for i := range 4 {
		tokens = append(tokens, authorization("Bearer "+rs256(goodHeader(), goodClaims().with("n", i))))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				if _, err := v.VerifyCore(tokens[(i+n)%len(tokens)]); err != nil {
					t.Error(err)
				}
				if n%25 == 0 {
					if err := v.SetKeys([]*rsa.PublicKey{&coreKey().PublicKey}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestZeroPrincipalIsNobody(t *testing.T) {
	t.Parallel()
	if (Principal{}).IsCore() {
		t.Fatal("the zero value is Core")
	}
}

func FuzzVerifyCore(f *testing.F) {
	good := rs256(goodHeader(), goodClaims())
	f.Add("Bearer " + good)
	f.Add("bearer  " + good)
	f.Add("Bearer " + signingInput(goodHeader().with("alg", "none"), goodClaims()) + ".")
	f.Add("Bearer bnVsbA.bnVsbA.bnVsbA")
	f.Add("Bearer e30.e30.")
	v := newVerifier(f, Options{})
	f.Fuzz(func(t *testing.T, value string) {
		p, err := v.VerifyCore(authorization(value))
		if err == nil && !strings.HasSuffix(value, good) {
			t.Fatalf("%q passes as %+v", value, p)
		}
		if err != nil && !failure.Is(err, failure.Unauthenticated) {
			t.Fatalf("got %v", err)
		}
	})
}

func BenchmarkVerifyCoreCached(b *testing.B) {
	v := newVerifier(b, Options{})
	h := authorization("Bearer " + rs256(goodHeader(), goodClaims()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.VerifyCore(h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyCoreUncached(b *testing.B) {
	v := newVerifier(b, Options{})
	token := rs256(goodHeader(), goodClaims())
	s := v.state.Load()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.verify(s, token); err != nil {
			b.Fatal(err)
		}
	}
}
