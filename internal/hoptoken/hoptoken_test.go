package hoptoken

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

var arrival = time.UnixMilli(1767225600123)

func sample() Claims {
	return Claims{
		UID: 4294967294, User: "Zoë van Dyk#1", Method: "POST", Path: "/ucloud/slurm/files/browse",
		RequestID: "0123456789abcdef", Arrival: arrival, Class: ClassCore,
	}
}

func verifier(k Key, after time.Duration) Verifier {
	return Verifier{Key: k, UID: 4294967294, User: "Zoë van Dyk#1", Now: func() time.Time { return arrival.Add(after) }}
}

func TestMintVerify(t *testing.T) {
	t.Parallel()
	k := NewKey()
	for _, class := range []Class{ClassCore, ClassBrowser} {
		want := sample()
		want.Class = class
		got, err := verifier(k, time.Second).Verify(Mint(k, want), want.Method, want.Path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("claims changed (-want +got):\n%s", diff)
		}
	}
}

func TestLongestClaimsFit(t *testing.T) {
	t.Parallel()
	k := NewKey()
	c := sample()
	c.User = ident.UCloudUser(strings.Repeat("u", ident.MaxUserLength))
	c.RequestID = strings.Repeat("r", maxRequestID)
	c.Path = "/" + strings.Repeat("p", 100_000)
	v := verifier(k, 0)
	v.User = c.User
	if _, err := v.Verify(Mint(k, c), c.Method, c.Path); err != nil {
		t.Fatal(err)
	}
	for _, tooLong := range []func(*Claims){
		func(c *Claims) { c.User += "u" },
		func(c *Claims) { c.RequestID += "r" },
	} {
		bad := c
		tooLong(&bad)
		if token := Mint(k, bad); token != "" {
			t.Errorf("claims beyond the limits gave a token of %d characters", len(token))
		}
	}
}

//attack:actor local user
//attack:does Sends an instance a request with a hop token that was made with another route's key, or by guessing.
//attack:control The code of a hop token is an HMAC under the key of that route alone.
//attack:remove internal/hoptoken/hoptoken.go: if !hmac.Equal(appendMAC(want[:0], v.Key, body, method, path), mac) { => if false && !hmac.Equal(appendMAC(want[:0], v.Key, body, method, path), mac) {
//attack:actor compromised instance
//attack:does Presents a token that names another uid or another user of UCloud.
//attack:control An instance serves only tokens that name its own uid and user.
//attack:remove internal/hoptoken/hoptoken.go: if c.UID != v.UID || c.User != v.User { => if false {
//attack:actor local user
//attack:does Replays a hop token for another method or path of the same instance.
//attack:control Method and path are part of what the code covers.
//attack:remove internal/hoptoken/hoptoken.go: rest = append(rest, path...) => _ = path
//attack:actor local user
//attack:does Replays an old hop token.
//attack:control A hop token is valid for seconds after the request arrived at the gateway.
//attack:remove internal/hoptoken/hoptoken.go: age > life || age < -maxAhead => age == life+1
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	k := NewKey()
	good := sample()
	for _, tc := range []struct {
		name     string
		claims   func(*Claims)
		verifier func(*Verifier)
		token    func(string) string
		method   string
		path     string
		after    time.Duration
		want     error
		wantKind failure.Kind
	}{
		{name: "no token", token: func(string) string { return "" }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "not base64", token: func(s string) string { return "!" + s[1:] }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "padded", token: func(s string) string { return s + "=" }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "line break inside", token: func(s string) string { return s[:8] + "\n" + s[8:] }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "loose bits at the end", token: loosen, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "truncated", token: func(s string) string { return s[:len(s)-4] }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "oversized", token: func(s string) string { return strings.Repeat("A", 10_000) }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "unknown class", claims: func(c *Claims) { c.Class = 3 }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "zero class", claims: func(c *Claims) { c.Class = 0 }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "request id breaks a log line", claims: func(c *Claims) { c.RequestID = "a\nb" }, want: ErrMalformed, wantKind: failure.Unauthenticated},
		{name: "key of another route", verifier: func(v *Verifier) { v.Key = NewKey() }, want: ErrMAC, wantKind: failure.Unavailable},
		{name: "zero key", verifier: func(v *Verifier) { v.Key = Key{} }, want: ErrMAC, wantKind: failure.Unavailable},
		{name: "other method", method: "GET", want: ErrMAC, wantKind: failure.Unavailable},
		{name: "other path", path: "/ucloud/slurm/files/delete", want: ErrMAC, wantKind: failure.Unavailable},
		{name: "path and method moved", method: "POST/", path: "ucloud/slurm/files/browse", want: ErrMAC, wantKind: failure.Unavailable},
		{name: "other uid", verifier: func(v *Verifier) { v.UID = 1 }, want: ErrAudience, wantKind: failure.Forbidden},
		{name: "other user", verifier: func(v *Verifier) { v.User = "Alice#1" }, want: ErrAudience, wantKind: failure.Forbidden},
		{name: "user in another case", verifier: func(v *Verifier) { v.User = "zoë van Dyk#1" }, want: ErrAudience, wantKind: failure.Forbidden},
		{name: "core request too old", after: CoreLife + time.Millisecond, want: ErrExpired, wantKind: failure.Unavailable},
		{name: "browser request too old", claims: func(c *Claims) { c.Class = ClassBrowser }, after: Life + time.Millisecond, want: ErrExpired, wantKind: failure.Unavailable},
		{name: "from the future", after: -maxAhead - time.Millisecond, want: ErrExpired, wantKind: failure.Unavailable},
		{name: "from the far future", claims: func(c *Claims) { c.Arrival = time.UnixMilli(1<<63 - 1) }, want: ErrExpired, wantKind: failure.Unavailable},
		{name: "from the far past", claims: func(c *Claims) { c.Arrival = time.UnixMilli(-1 << 63) }, want: ErrExpired, wantKind: failure.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, v := good, verifier(k, tc.after)
			if tc.claims != nil {
				tc.claims(&c)
			}
			if tc.verifier != nil {
				tc.verifier(&v)
			}
			token := Mint(k, c)
			if tc.token != nil {
				token = tc.token(token)
			}
			method, path := c.Method, c.Path
			if tc.method != "" {
				method = tc.method
			}
			if tc.path != "" {
				path = tc.path
			}
			got, err := v.Verify(token, method, path)
			if !errors.Is(err, tc.want) || !failure.Is(err, tc.wantKind) {
				t.Fatalf("got %v of kind %v, want %v of kind %v", err, failure.KindOf(err), tc.want, tc.wantKind)
			}
			if got != (Claims{}) {
				t.Fatalf("claims came with the error: %+v", got)
			}
		})
	}
}

// loosen changes the unused low bits of the last character, so that a lenient decoder sees the same bytes.
func loosen(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last^1])
}

func TestLifeAtTheEdge(t *testing.T) {
	t.Parallel()
	k := NewKey()
	for _, tc := range []struct {
		class Class
		after time.Duration
	}{
		{ClassCore, CoreLife}, {ClassBrowser, Life}, {ClassCore, -maxAhead},
	} {
		c := sample()
		c.Class = tc.class
		if _, err := verifier(k, tc.after).Verify(Mint(k, c), c.Method, c.Path); err != nil {
			t.Errorf("class %d after %s: %v", tc.class, tc.after, err)
		}
	}
}

// TestEachBitCounts flips every bit of a token: none may go unnoticed.
func TestEachBitCounts(t *testing.T) {
	t.Parallel()
	k := NewKey()
	c := sample()
	raw, err := base64.RawURLEncoding.DecodeString(Mint(k, c))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(raw) * 8 {
		raw[i/8] ^= 1 << (i % 8)
		if _, err := verifier(k, 0).Verify(base64.RawURLEncoding.EncodeToString(raw), c.Method, c.Path); err == nil {
			t.Errorf("bit %d does not matter", i)
		}
		raw[i/8] ^= 1 << (i % 8)
	}
}

//attack:actor local user
//attack:does Reads keys of routes in logs.
//attack:control Keys print as nothing, whatever prints them.
//attack:remove internal/hoptoken/hoptoken.go: func (Key) String() string { => func (Key) text() string {
func TestKeyIsNotPrinted(t *testing.T) {
	t.Parallel()
	k := Key([]byte("0123456789abcdef0123456789abcdef"))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if s := fmt.Sprintf(format, k); !strings.Contains(s, "[redacted]") {
			t.Errorf("%s gives %s", format, s)
		}
	}
	if s := fmt.Sprintf("%+v", Verifier{Key: k}); strings.Contains(s, "48 49") {
		t.Errorf("a verifier gives %s", s)
	}
}

func FuzzVerify(f *testing.F) {
	k := Key([]byte("0123456789abcdef0123456789abcdef"))
	f.Add(Mint(k, sample()), "POST", "/ucloud/slurm/files/browse")
	c := sample()
	c.User, c.RequestID = "", ""
	f.Add(Mint(k, c), "", "")
	f.Add("AQEAAAAA", "GET", "/")
	f.Fuzz(func(t *testing.T, token, method, path string) {
		got, err := verifier(k, 0).Verify(token, method, path)
		if err != nil {
			return
		}
		// What passes is exactly what minting the same claims gives: there are no two tokens for one request.
		if again := Mint(k, got); again != token {
			t.Fatalf("%q passes as %+v, whose token is %q", token, got, again)
		}
	})
}

// FuzzDecode reaches the parser behind the base64 layer.
func FuzzDecode(f *testing.F) {
	raw, err := base64.RawURLEncoding.DecodeString(Mint(NewKey(), sample()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{1, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, body, mac, err := decode(raw)
		if err == nil && len(body)+len(mac) != len(raw) {
			t.Fatalf("%d + %d bytes of %d for %+v", len(body), len(mac), len(raw), c)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	k, c := NewKey(), sample()
	b.ReportAllocs()
	for b.Loop() {
		Mint(k, c)
	}
}

func BenchmarkVerify(b *testing.B) {
	k, c := NewKey(), sample()
	token, v := Mint(k, c), verifier(k, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(token, c.Method, c.Path); err != nil {
			b.Fatal(err)
		}
	}
}
