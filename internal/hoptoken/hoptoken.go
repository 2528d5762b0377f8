// Package hoptoken makes and checks the token that accompanies a request from the gateway to an instance in place of
// Core's own token (design D2, contract 02 point 9.23).
//
// Trust: the key is random and belongs to one route. It is known to the server that made it, to the gateway, and to
// the one instance, whose process the end user owns. So the user can read the key and forge tokens, but only for the
// own instance, which obeys that user anyway. A token for one route is worthless on every other one, because no two
// routes share a key and because it names uid and user.
//
// What an attacker can do: any local user can connect to an instance's port and send requests. Without the key none of
// them passes [Verifier.Verify] (TestVerifyRefuses). A token that was observed can be replayed for [Life], but only
// for the same method and path at the same instance; it travels over loopback only.
//
// # Form
//
// The token is the base64url text of: version (1 byte, 1), caller class (1), uid (4, big-endian), arrival in Unix
// milliseconds (8), length of the user (2) and the user, length of the request id (1) and the id, HMAC-SHA256 (32).
// The MAC covers all that stands before it, then method and path, each after its length in 4 bytes. Method and path do
// not travel in the token: the verifier has those of the request.
package hoptoken

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Header carries the token. It is an internal header: the gateway removes it from everything that comes from outside.
const Header = "X-Ucloud-Hop"

// HeaderNotRead is set to "1" by an instance, together with status 503, when it is ending and has not read the request:
// the gateway then sends the request to the next instance, or answers 503.
const HeaderNotRead = "X-Ucloud-Not-Read"

const (
	// Life is how long a token is valid after the request's arrival at the gateway.
	Life = 10 * time.Second
	// CoreLife is the same for requests of [ClassCore]: Core gives up after 5 s, and may have rolled back what it
	// asked for. A request that waited longer in a backlog must not happen behind the user's back.
	CoreLife = 5 * time.Second
	// maxAhead is how far in the future an arrival may lie. Gateway and instance share the machine's clock, but a
	// clock may be set back between the two.
	maxAhead = 2 * time.Second

	version      = 1
	fixedSize    = 1 + 1 + 4 + 8 + 2 + 1 + sha256.Size
	maxRequestID = 64
	maxSize      = fixedSize + ident.MaxUserLength + maxRequestID
)

// Key is the secret of one route.
type Key [32]byte

// NewKey makes a random key.
func NewKey() Key {
	var k Key
	rand.Read(k[:]) //nolint:errcheck // never fails, crypto/rand documents it
	return k
}

// String hides the key, so that it does not get into logs.
func (Key) String() string { return "[redacted]" }

// GoString hides the key.
func (Key) GoString() string { return "[redacted]" }

// Class says who called the gateway.
type Class uint8

// The caller classes. The zero value is invalid.
const (
	// ClassCore: the gateway has verified Core's token. The user comes from Core's header, or from the hint on
	// WebSockets.
	ClassCore Class = iota + 1
	// ClassBrowser: no token of Core. The user is a routing hint and proves nothing; the end point needs a one-time
	// token of its own.
	ClassBrowser
)

// Claims are what a token says.
type Claims struct {
	UID       ident.UID        // audience: the uid of the instance
	User      ident.UCloudUser // audience: the user whom the instance serves
	Method    string
	Path      string    // cleaned, as it is forwarded, without the query
	RequestID string    // printable ASCII, at most 64 bytes
	Arrival   time.Time // at the gateway; milliseconds
	Class     Class
}

// The reasons of refusal, each in the chain of a [failure.Error].
var (
	// ErrMalformed: there is no token, or none that the gateway could have made. Unauthenticated.
	ErrMalformed = errors.New("malformed hop token")
	// ErrMAC: not made with this route's key for this method and path. Unavailable rather than Unauthenticated: it
	// is also what a gateway with an outdated route table causes, nothing of the request has been done, and a
	// status of 401 would log the user out of UCloud.
	ErrMAC = errors.New("hop token is not for this route and request")
	// ErrAudience: made with the key, but for another uid or user. Forbidden (contract 01 section 5 point 3).
	ErrAudience = errors.New("hop token names another user")
	// ErrExpired: too old, or from the future. Unavailable.
	ErrExpired = errors.New("hop token has expired")
)

// Mint makes the token for a request. A user or request id beyond the limits gives an empty text, which no verifier
// accepts.
func Mint(k Key, c Claims) string {
	if len(c.User) > ident.MaxUserLength || len(c.RequestID) > maxRequestID {
		return ""
	}
	// Room for the longest token, so that nothing but the result is allocated here.
	var room [maxSize]byte
	b := append(room[:0], version, byte(c.Class))
	b = binary.BigEndian.AppendUint32(b, uint32(c.UID))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Arrival.UnixMilli()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.User)))
	b = append(b, c.User...)
	b = append(b, byte(len(c.RequestID)))
	b = append(b, c.RequestID...)
	b = appendMAC(b, k, b, c.Method, c.Path)
	return base64.RawURLEncoding.EncodeToString(b)
}

// appendMAC appends the MAC over body, method and path to b. The lengths make the concatenation unambiguous.
func appendMAC(b []byte, k Key, body []byte, method, path string) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write(body) //nolint:errcheck // hash.Hash documents that it never fails
	var room [512]byte
	rest := binary.BigEndian.AppendUint32(room[:0], uint32(len(method)))
	rest = append(rest, method...)
	rest = binary.BigEndian.AppendUint32(rest, uint32(len(path)))
	rest = append(rest, path...)
	m.Write(rest) //nolint:errcheck // as above
	return m.Sum(b)
}

// Verifier checks tokens at one instance.
type Verifier struct {
	Key  Key
	UID  ident.UID
	User ident.UCloudUser
	Now  func() time.Time // nil means time.Now
}

// Verify checks that the token was made with the route's key for this method, path, uid and user, and is not too old.
// What the claims say is proven only if the error is nil. The caller still decides which [Class] an end point accepts.
func (v Verifier) Verify(token, method, path string) (Claims, error) {
	if n := base64.RawURLEncoding.DecodedLen(len(token)); n < fixedSize || n > maxSize {
		return Claims{}, refuse(ErrMalformed, "it has %d characters", len(token))
	}
	var room [maxSize]byte
	n, err := base64.RawURLEncoding.Strict().Decode(room[:], []byte(token))
	if err != nil || strings.ContainsAny(token, "\r\n") { // the decoder skips line breaks
		return Claims{}, refuse(ErrMalformed, "it is not base64")
	}
	raw := room[:n]
	c, body, mac, err := decode(raw)
	if err != nil {
		return Claims{}, err
	}
	var want [sha256.Size]byte
	// First the MAC, in constant time. Nothing that decode found counts before.
	if !hmac.Equal(appendMAC(want[:0], v.Key, body, method, path), mac) {
		return Claims{}, refuse(ErrMAC, "the code does not match")
	}
	if c.UID != v.UID || c.User != v.User {
		return Claims{}, refuse(ErrAudience, "uid %d", c.UID)
	}
	c.Method, c.Path = method, path
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	life := Life
	if c.Class == ClassCore {
		life = CoreLife
	}
	if age := now().Sub(c.Arrival); age > life || age < -maxAhead {
		return Claims{}, refuse(ErrExpired, "it is %s old", age.Round(time.Millisecond))
	}
	return c, nil
}

// decode takes a token apart. It checks the form only.
func decode(raw []byte) (c Claims, body, mac []byte, err error) {
	malformed := func(why string) (Claims, []byte, []byte, error) {
		return Claims{}, nil, nil, refuse(ErrMalformed, "%s", why)
	}
	if len(raw) < fixedSize {
		return malformed("it is too short")
	}
	body, mac = raw[:len(raw)-sha256.Size], raw[len(raw)-sha256.Size:]
	if body[0] != version {
		return malformed("unknown version")
	}
	c.Class = Class(body[1])
	if c.Class != ClassCore && c.Class != ClassBrowser {
		return malformed("unknown caller class")
	}
	c.UID = ident.UID(binary.BigEndian.Uint32(body[2:]))
	c.Arrival = time.UnixMilli(int64(binary.BigEndian.Uint64(body[6:])))
	rest := body[14:]
	userLen := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if userLen > ident.MaxUserLength || len(rest) < userLen+1 {
		return malformed("bad length of the user")
	}
	c.User, rest = ident.UCloudUser(rest[:userLen]), rest[userLen:]
	idLen := int(rest[0])
	rest = rest[1:]
	if idLen > maxRequestID || len(rest) != idLen {
		return malformed("bad length of the request id")
	}
	for _, b := range rest { // it will stand in logs and headers
		if b <= ' ' || b > '~' {
			return malformed("the request id is not printable")
		}
	}
	c.RequestID = string(rest)
	return c, body, mac, nil
}

// refuse makes the error for a reason. The details are for the log.
func refuse(reason error, format string, args ...any) error {
	cause := fmt.Errorf("%w: %s", reason, fmt.Sprintf(format, args...))
	switch {
	case errors.Is(reason, ErrMalformed):
		return failure.Wrap(cause, failure.Unauthenticated, "The request did not come through the gateway")
	case errors.Is(reason, ErrAudience):
		return failure.Wrap(cause, failure.Forbidden, "The request is for another user")
	case errors.Is(reason, ErrExpired):
		return failure.Wrap(cause, failure.Unavailable, "The request has waited too long")
	}
	return failure.Wrap(cause, failure.Unavailable, "The request came over an outdated route")
}
