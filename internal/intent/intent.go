package intent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

// Key is a public key of the user: active, not revoked.
type Key struct {
	ID      string
	Public  crypto.PublicKey // an *rsa.PublicKey or ed25519.PublicKey that package signkey accepts
	Expires time.Time        // zero: never
}

// Request is what an intent is checked against.
type Request struct {
	Rule   Rule
	Intent string // as [Header] gives it, or the field signedIntent of a frame; empty: there is none
	// Body is the body of the request, or the payload of the frame.
	Body []byte
	// Target is what the request goes to: method and path. A frame's is its call, in FrameCall.
	Target    string
	FrameCall string
}

// The forms of intents.
const (
	Form1 = "1" // what browsers send today
	Form2 = "2" // with provider, nonce and a digest of the payload
)

// Reason says what is wrong with an intent, or [OK]. The texts are counted, reported and shown to operators.
type Reason string

// The reasons, with the status of each.
const (
	OK         Reason = "ok"
	Exempt     Reason = "exempt"     // the rule asks for none
	Missing    Reason = "missing"    // 482
	Unsignable Reason = "unsignable" // 403: missing, and today's client could not have signed
	Malformed  Reason = "malformed"  // 482: not in one of the two forms
	NoKey      Reason = "nokey"      // 482: the user has no key that counts
	Signature  Reason = "signature"  // 482: no key of the user verifies it
	WrongCall  Reason = "call"       // 482
	WrongUser  Reason = "user"       // 482
	Project    Reason = "project"    // 482: signed for another workspace
	Workspaces Reason = "workspaces" // 403: the request touches several workspaces, and was signed for one
	Provider   Reason = "provider"   // 482
	Payload    Reason = "payload"    // 482: the digest is of another payload
	WrongDrive Reason = "drive"      // 403: Core describes a drive differently from what the provider knows
	Expired    Reason = "expired"    // 403: true when the client's clock is wrong
	Future     Reason = "future"     // 403
	Life       Reason = "life"       // 403: valid for longer than is allowed
	Replayed   Reason = "replayed"   // 409: was used for another request, or too often for this one
	Busy       Reason = "busy"       // 429: more intents at a time than are remembered
)

// kind tells how a refusal for this reason is answered. Only what a new key pair mends, or what no honest client can
// have sent, is answered with 482: it makes today's client throw away its keys for all providers (contract 01 section
// 7.4). See docs/decisions/0013-signed-intents.md.
func (r Reason) kind() failure.Kind {
	switch r {
	case Unsignable, Workspaces, WrongDrive, Expired, Future, Life:
		return failure.Forbidden
	case Replayed:
		return failure.Conflict
	case Busy:
		return failure.TooMany
	}
	return failure.BadIntent
}

func (r Reason) sentence() string {
	switch r {
	case Unsignable:
		return "This provider needs a signature for this action, which your browser cannot make"
	case Workspaces:
		return "This action touches several workspaces, but was signed for one"
	case WrongDrive:
		return "UCloud describes this drive differently from what is known here"
	case Expired, Future, Life:
		return "The signature of the request is not valid at this time. Is the clock of your device right?"
	case Replayed:
		return "The signature of the request has been used for another request. Try again"
	case Busy:
		return "Too many signed requests at a time. Try again in a minute"
	}
	return "Invalid signature" // no detail (contract 01 section 7.4)
}

// Verdict is what was found about a request.
type Verdict struct {
	Reason Reason
	KeyID  string // of the key that verified the signature; empty if none did
	Form   string // "" when the intent cannot be read
	Call   string // the name that was signed, or else the first that the rule accepts
	detail string // for the log; nothing secret
}

// OK tells whether the request may be served under [ModeRequire].
func (v Verdict) OK() bool { return v.Reason == OK || v.Reason == Exempt }

// Err is how a refusal is answered; nil if there is nothing to refuse.
func (v Verdict) Err() error {
	if v.OK() {
		return nil
	}
	kind := v.Reason.kind()
	return failure.Wrap(fmt.Errorf("signed intent of %s: %s (%s)", v.Call, v.Reason, v.detail), kind, "%s", v.Reason.sentence())
}

// Detail is for the log.
func (v Verdict) Detail() string { return v.detail }

// Header gives the intent of an HTTP request. Several headers give a text that is not an intent, as is right.
func Header(h http.Header) string { return strings.Join(h.Values(HeaderSignedIntent), ", ") }

// The defaults of [Options].
const (
	// DefaultLeeway is how far the clock of a user's device may be off.
	DefaultLeeway = time.Minute
	// DefaultMaxAge bounds the life that a client may give an intent. Today's gives 30 s.
	DefaultMaxAge = time.Minute
)

// Options configure a [Verifier].
type Options struct {
	Provider string           // the id of this provider, which form 2 names
	User     ident.UCloudUser // the user whom the instance serves
	// Keys gives the keys of the user that count now. fresh demands those that the server knows at this moment. It may
	// be called from several goroutines.
	Keys func(ctx context.Context, fresh bool) ([]Key, error)
	// Drive gives what the provider itself knows of a drive; found is false if that is nothing. An error means that it
	// cannot be known now. nil: Core is believed.
	Drive func(ctx context.Context, id string) (d Drive, found bool, err error)
	Now   func() time.Time // nil means time.Now
	// Limits gives the longest life of an intent and by how much clocks may be off, which may change. nil or 0:
	// [DefaultMaxAge] and [DefaultLeeway].
	Limits func() (maxAge, leeway time.Duration)
}

// Verifier checks the intents of one user. It is safe for concurrent use, and starts no goroutine.
type Verifier struct {
	opts  Options
	seen  memory
	fresh limiter
}

// New makes a verifier. Incomplete options are a bug and panic.
func New(o Options) *Verifier {
	if o.Provider == "" || o.User == "" || o.Keys == nil {
		panic("intent: provider, user or keys are not set")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Verifier{opts: o}
}

func (v *Verifier) limits() (maxAge, leeway time.Duration) {
	if v.opts.Limits != nil {
		maxAge, leeway = v.opts.Limits()
	}
	if maxAge <= 0 {
		maxAge = DefaultMaxAge
	}
	if leeway <= 0 {
		leeway = DefaultLeeway
	}
	return maxAge, leeway
}

// errNoTarget: without a target, an intent would be good for any call.
var errNoTarget = errors.New("intent: the request does not say what it goes to")

// Check verifies the intent of a request. The verdict is about the request; the error, which is never of kind
// [failure.BadIntent], is about ourselves: the keys cannot be read.
//
// Nothing that an intent says counts before its signature has been verified (TestUnsignedClaimsDoNotCount).
func (v *Verifier) Check(ctx context.Context, r Request) (Verdict, error) {
	if r.Rule.Exempt != "" {
		return Verdict{Reason: Exempt}, nil
	}
	if err := r.Rule.Check(); err != nil {
		return Verdict{}, err
	}
	if r.Target == "" && r.FrameCall == "" {
		return Verdict{}, errNoTarget
	}
	out := Verdict{Call: r.Rule.Calls[0]}
	refuse := func(why Reason, detail string) (Verdict, error) {
		out.Reason, out.detail = why, detail
		return out, nil
	}
	if r.Intent == "" {
		if r.Rule.Unsigned {
			return refuse(Unsignable, "there is none")
		}
		return refuse(Missing, "there is none")
	}
	t, err := parse(r.Intent)
	if err != nil {
		return refuse(Malformed, err.Error())
	}
	out.Form = t.form
	now := v.opts.Now()
	digest := t.digest()
	keyID, why, err := v.verify(ctx, t, digest, now)
	if err != nil {
		return Verdict{}, err
	}
	if why != OK {
		return refuse(why, "no key verifies it")
	}
	// From here on the claims are the user's.
	out.KeyID, out.Call = keyID, t.claims.Call
	why, detail, err := v.judge(ctx, t, r, now)
	if err != nil {
		return Verdict{}, err
	}
	if why != OK {
		return refuse(why, detail)
	}
	// Last, so that a request which is refused uses nothing up.
	_, leeway := v.limits()
	u := usage{
		request: requestDigest(r), reads: readOnly(t.claims.Call) && t.form == Form1, keyID: keyID, exp: t.claims.Exp,
	}
	switch why := v.seen.use(digest, u, now, leeway); why {
	case OK:
	case Replayed:
		return refuse(why, "it was used for another request, or too often")
	case Expired:
		return refuse(why, "what was used at its time is forgotten")
	default:
		return refuse(why, "too many are remembered")
	}
	out.Reason = OK
	return out, nil
}

// judge compares verified claims with the request.
func (v *Verifier) judge(ctx context.Context, t *token, r Request, now time.Time) (why Reason, detail string, err error) {
	c := t.claims
	maxAge, leeway := v.limits()
	refuse := func(why Reason, format string, args ...any) (Reason, string, error) {
		return why, fmt.Sprintf(format, args...), nil
	}
	switch {
	case c.Exp.Sub(c.Iat) > maxAge:
		return refuse(Life, "it is valid for %s", c.Exp.Sub(c.Iat))
	case c.Iat.After(now.Add(leeway)):
		return refuse(Future, "it will be made in %s", c.Iat.Sub(now).Round(time.Second))
	case !c.Exp.After(now.Add(-leeway)):
		return refuse(Expired, "it expired %s ago", now.Sub(c.Exp).Round(time.Second))
	case t.form == Form2 && c.Aud != v.opts.Provider:
		return refuse(Provider, "signed for %.60q", c.Aud)
	case !r.Rule.accepts(c.Call):
		return refuse(WrongCall, "signed %.60q, accepted %.200s", c.Call, r.Rule)
	case c.Username != string(v.opts.User):
		return refuse(WrongUser, "signed by %.60q", c.Username)
	case t.form == Form1 && len(r.Rule.Owners) == 0 && len(r.Rule.Drives) == 0:
		return OK, "", nil
	}
	tree, err := readTree(r.Body, wanted(r.Rule.Owners))
	switch {
	case errors.Is(err, errTooLarge):
		return "", "", failure.Wrap(err, failure.TooLarge, "The request is too large to be checked")
	case err != nil:
		return refuse(Payload, "%v", err)
	}
	if t.form == Form2 {
		digest, err := providerDigest(c.Call, tree)
		if err != nil {
			return refuse(Payload, "%v", err)
		}
		if digest != c.Bdy {
			return refuse(Payload, "signed %s, it is %s", c.Bdy, digest)
		}
	}
	if why, detail = checkOwners(r.Rule.Owners, tree, c.workspace()); why != OK || v.opts.Drive == nil {
		return why, detail, nil
	}
	return v.checkDrives(ctx, r.Rule, c, tree)
}

// accepts tells whether the name of a call satisfies the rule. A name that ends in ".*" stands for all below it.
func (r Rule) accepts(call string) bool {
	for _, name := range r.Calls {
		if name == call {
			return true
		}
		if prefix, ok := strings.CutSuffix(name, "*"); ok && strings.HasSuffix(prefix, ".") && strings.HasPrefix(call, prefix) && len(call) > len(prefix) {
			return true
		}
	}
	return false
}
