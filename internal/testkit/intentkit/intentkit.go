// Package intentkit signs intents as users' browsers do (contract 01 section 7, docs/protocol-intents.md), and as no
// browser would: tests of what must be refused make their tokens with it.
package intentkit

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"

	"ucloud-im/internal/intent"
	"ucloud-im/internal/signkey"
)

// Life is what today's web client gives an intent.
const Life = 30 * time.Second

// Signer is the key pair of a browser.
type Signer struct {
	ID  string // of the key
	Key signkey.Key
	key crypto.Signer
}

// NewRSA makes a key pair as today's web client does. The key is not checked: bits may be too few.
func NewRSA(t testing.TB, id string, bits int) *Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(id, key)
}

// NewEd25519 makes a key pair of the kind that only form 2 has.
func NewEd25519(t testing.TB, id string) *Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newSigner(id, key)
}

func newSigner(id string, key crypto.Signer) *Signer {
	s := &Signer{ID: id, key: key}
	s.Key, _ = signkey.FromPublic(key.Public()) //nolint:errcheck // a weak key has none, and is wanted by tests
	return s
}

// FromPrivate is for keys that were made elsewhere.
func FromPrivate(id string, key crypto.Signer) *Signer { return newSigner(id, key) }

// Public is what an instance knows of the key.
func (s *Signer) Public() intent.Key { return intent.Key{ID: s.ID, Public: s.key.Public()} }

// PEM is the text that the browser uploads.
func (s *Signer) PEM() string { return s.Key.PEM() }

// Algorithm is RS256 or EdDSA.
func (s *Signer) Algorithm() string {
	if _, ok := s.key.(ed25519.PrivateKey); ok {
		return signkey.EdDSA
	}
	return signkey.RS256
}

// Claims are what a user intends.
type Claims struct {
	Call     string
	Username string
	Project  string        // "" is the user's own workspace
	At       time.Time     // the client's clock; zero: now
	Life     time.Duration // zero: [Life]
}

func (c Claims) members() map[string]any {
	at, life := c.At, c.Life
	if at.IsZero() {
		at = time.Now()
	}
	if life == 0 {
		life = Life
	}
	m := map[string]any{
		"iat": at.Unix(), "exp": at.Unix() + int64(life/time.Second), "call": c.Call, "username": c.Username, "project": nil,
	}
	if c.Project != "" {
		m["project"] = c.Project
	}
	return m
}

// Form1 makes an intent as today's web client does.
func (s *Signer) Form1(c Claims) string {
	return s.Sign(map[string]any{"typ": "JWT", "alg": s.Algorithm()}, c.members())
}

// Form2 makes an intent of the form with a digest of the payload. body is what the browser sends to Core: its JSON body,
// or its query as a JSON object.
func (s *Signer) Form2(c Claims, provider string, body []byte) string {
	return s.Sign(map[string]any{"typ": "ucloud-intent+jwt", "alg": s.Algorithm()}, c.Form2(provider, body))
}

// Form2 gives the payload of the second form. A body that is not JSON gives a digest that fits nothing.
func (c Claims) Form2(provider string, body []byte) map[string]any {
	digest, err := intent.Digest(c.Call, body)
	if err != nil {
		digest = base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
	}
	m := c.members()
	m["aud"], m["jti"], m["bdy"] = provider, Nonce(), digest
	return m
}

// Form1 gives the payload of the first form.
func (c Claims) Form1() map[string]any { return c.members() }

// Nonce makes the claim jti of the second form.
func Nonce() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Sign makes a token of any header and payload. Texts and []byte are taken as they are, other values become JSON.
func (s *Signer) Sign(header, payload any) string {
	input := Part(header) + "." + Part(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(s.signature(input))
}

func (s *Signer) signature(input string) []byte {
	sum := sha256.Sum256([]byte(input))
	message, opts := sum[:], crypto.SignerOpts(crypto.SHA256)
	if s.Algorithm() == signkey.EdDSA {
		message, opts = []byte(input), crypto.Hash(0)
	}
	sig, err := s.key.Sign(rand.Reader, message, opts)
	if err != nil {
		panic(err) // test code, with keys of its own
	}
	return sig
}

// HS256 makes the token of an attacker who knows only the public key, and hopes that it is taken for a shared secret.
func HS256(secret []byte, header, payload any) string {
	input := Part(header) + "." + Part(payload)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input)) //nolint:errcheck // hash.Hash documents that it never fails
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Part encodes one part of a token.
func Part(v any) string {
	var raw []byte
	switch v := v.(type) {
	case string:
		raw = []byte(v)
	case []byte:
		raw = v
	default:
		var err error
		if raw, err = json.Marshal(v); err != nil {
			panic(err) // test code
		}
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}
