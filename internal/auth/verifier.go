package auth

import (
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"ucloud-im/internal/failure"
)

// What Core's service tokens say (contract 01 section 3).
const (
	DefaultIssuer = "cloud.sdu.dk"
	coreSubject   = "_UCloud"
	coreRole      = "SERVICE"
	coreAudience  = "all:write"
)

const (
	defaultLeeway      = 60 * time.Second
	defaultMaxLifetime = 15 * time.Minute
	defaultCache       = 1024
	// maxToken is far above Core's tokens of about 700 bytes.
	maxToken = 8 << 10
)

var (
	// ErrNoToken tells that a request carries no Authorization header at all, as opposed to a bad one.
	ErrNoToken = errors.New("no Authorization header")
	// ErrNotCore tells that a token is genuine, but not Core's: the provider's own, for example.
	ErrNotCore = errors.New("the token was not made for Core's own requests")
)

// Principal is a caller whose token has been verified. Only this package makes one; the zero value is nobody.
type Principal struct {
	subject string
	expires time.Time
}

// Subject is the verified subject, "_UCloud" for Core.
func (p Principal) Subject() string { return p.subject }

// IsCore tells whether the caller is UCloud/Core. It is false for the zero value.
func (p Principal) IsCore() bool { return p.subject == coreSubject }

// ExpiresAt is when the token expires, without leeway.
func (p Principal) ExpiresAt() time.Time { return p.expires }

// Options configure a [Verifier].
type Options struct {
	Issuer      string           // "" means [DefaultIssuer]
	Leeway      time.Duration    // how far clocks may differ; 0 means 60 s
	MaxLifetime time.Duration    // longest exp - iat that is accepted; 0 means 15 minutes
	CacheSize   int              // how many verified tokens are remembered; 0 means 1024
	Now         func() time.Time // nil means time.Now
}

// Verifier checks tokens. It may be used by any number of goroutines. Core reuses a token for minutes, so that nearly
// all checks are a hash and a look into a table.
type Verifier struct {
	o      Options
	parser *jwt.Parser
	state  atomic.Pointer[state]
}

// state is swapped as a whole, so that with a key all tokens go that were verified with it.
type state struct {
	keys jwt.VerificationKeySet

	mu     sync.RWMutex
	proven map[[sha256.Size]byte]Principal // by hash of the token; at most Options.CacheSize
}

// NewVerifier makes a verifier for tokens signed with any of the keys.
func NewVerifier(keys []*rsa.PublicKey, o Options) (*Verifier, error) {
	if o.Issuer == "" {
		o.Issuer = DefaultIssuer
	}
	if o.Leeway == 0 {
		o.Leeway = defaultLeeway
	}
	if o.MaxLifetime == 0 {
		o.MaxLifetime = defaultMaxLifetime
	}
	if o.CacheSize == 0 {
		o.CacheSize = defaultCache
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	v := &Verifier{o: o, parser: jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}),
		jwt.WithIssuer(o.Issuer),
		jwt.WithAudience(coreAudience),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(o.Leeway),
		jwt.WithTimeFunc(o.Now),
		jwt.WithStrictDecoding(),
	)}
	if err := v.SetKeys(keys); err != nil {
		return nil, err
	}
	return v, nil
}

// SetKeys replaces the keys, at any time. During a rotation pass the old and the new one (contract 01 section 2).
// Tokens of a key that is not among them are refused from then on. On error the keys stay as they are.
func (v *Verifier) SetKeys(keys []*rsa.PublicKey) error {
	if len(keys) == 0 {
		return errors.New("set keys: there is none")
	}
	s := &state{proven: map[[sha256.Size]byte]Principal{}}
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
		s.keys.Keys = append(s.keys.Keys, k)
	}
	v.state.Store(s)
	return nil
}

// VerifyCore checks that a request comes from Core, by all rules of contract 01 section 3. Errors are Unauthenticated;
// [ErrNoToken] is in the chain if there is no token at all, [ErrNotCore] if it is genuine but somebody else's.
func (v *Verifier) VerifyCore(h http.Header) (Principal, error) {
	token, err := bearer(h)
	if err != nil {
		return Principal{}, unauthenticated(err)
	}
	s := v.state.Load()
	var room [2 << 10]byte // usual tokens are shorter: nothing is allocated for the look into the table
	hash := sha256.Sum256(append(room[:0], token...))
	s.mu.RLock()
	p, known := s.proven[hash]
	s.mu.RUnlock()
	now := v.o.Now()
	if known {
		if !now.Before(p.expires.Add(v.o.Leeway)) {
			return Principal{}, unauthenticated(jwt.ErrTokenExpired)
		}
		return p, nil
	}
	p, err = v.verify(s, token)
	if err != nil {
		return Principal{}, unauthenticated(err)
	}
	v.remember(s, hash, p, now)
	return p, nil
}

func unauthenticated(err error) error {
	return failure.Wrap(fmt.Errorf("verify token of Core: %w", err), failure.Unauthenticated,
		"The request is not authenticated")
}

// bearer takes the token out of the one Authorization header. The scheme's case does not matter (RFC 9110 section
// 11.1); anything else about the form does.
func bearer(h http.Header) (string, error) {
	values := h["Authorization"]
	switch {
	case len(values) == 0:
		return "", ErrNoToken
	case len(values) > 1:
		// Which of two a proxy or library looks at is anybody's guess.
		return "", fmt.Errorf("%d Authorization headers", len(values))
	case len(values[0]) > maxToken:
		return "", fmt.Errorf("an Authorization header of %d bytes", len(values[0]))
	}
	scheme, token, found := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", errors.New("the Authorization header holds no bearer token")
	}
	return token, nil
}

// isToken68 tells whether s has only characters of a compact JWS. A comma would be a second challenge or credential.
func isToken68(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// claims are the parts of the payload that count.
type claims struct {
	jwt.RegisteredClaims
	Role string `json:"role"`
}

// verify checks the signature, then what was signed. Algorithm and keys are ours: "alg" in the token must name the one
// algorithm there is, and "kid", "jwk", "jku", "x5c" and "x5u" are not looked at.
func (v *Verifier) verify(s *state, token string) (Principal, error) {
	if !isToken68(token) {
		return Principal{}, errors.New("the Authorization header holds no bearer token")
	}
	var c claims
	parsed, err := v.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.keys, nil })
	if err != nil {
		return Principal{}, err
	}
	// RFC 7515 section 4.1.11: extensions that are marked critical and not understood make a token invalid.
	if _, critical := parsed.Header["crit"]; critical {
		return Principal{}, errors.New("the token has critical extensions")
	}
	if c.IssuedAt == nil {
		return Principal{}, errors.New("the token does not say when it was made")
	}
	life := c.ExpiresAt.Sub(c.IssuedAt.Time)
	if life <= 0 || life > v.o.MaxLifetime {
		return Principal{}, fmt.Errorf("the token lives for %s, at most %s are accepted", life, v.o.MaxLifetime)
	}
	// Core signs the provider's own tokens (sub "#P_...", role "PROVIDER") with the same key.
	if c.Subject != coreSubject || c.Role != coreRole {
		return Principal{}, fmt.Errorf("%w: subject %q, role %q", ErrNotCore, c.Subject, c.Role)
	}
	return Principal{subject: c.Subject, expires: c.ExpiresAt.Time}, nil
}

// remember keeps a verified token until it expires. Only genuine tokens get here, so an attacker cannot fill the
// table; the bound is for a Core that makes a new one for every request.
func (v *Verifier) remember(s *state, hash [sha256.Size]byte, p Principal, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.proven) >= v.o.CacheSize {
		for k, old := range s.proven {
			if !now.Before(old.expires.Add(v.o.Leeway)) {
				delete(s.proven, k)
			}
		}
		for k := range s.proven { // any victim will do: it is verified again when it comes back
			if len(s.proven) < v.o.CacheSize {
				break
			}
			delete(s.proven, k)
		}
	}
	s.proven[hash] = p
}
