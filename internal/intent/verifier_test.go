package intent_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/testkit/intentkit"
)

const (
	alice    = "Alice#1234"
	provider = "hpc-example"
	project  = "5b0f7c1e-3a52-4d0e-9a5b-0c9f3f6f2a11"
)

// device gives key pairs that all tests share: making an RSA key takes long.
var device = sync.OnceValue(func() *intentkit.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return intentkit.FromPrivate("k1", key)
})

var otherDevice = sync.OnceValue(func() *intentkit.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return intentkit.FromPrivate("k2", key)
})

// world is a verifier with its clock and keys.
type world struct {
	*intent.Verifier
	now   time.Time
	keys  []intent.Key // what a first look gives
	fresh []intent.Key // what the server knows
	reads int          // of fresh keys
	drive func(id string) (intent.Drive, bool, error)
	fail  error
	deaf  error // of fresh looks
}

func newWorld(t *testing.T, keys ...intent.Key) *world {
	t.Helper()
	w := &world{now: time.Unix(1767225600, 0), keys: keys, fresh: keys}
	w.Verifier = intent.New(intent.Options{
		Provider: provider, User: alice,
		Keys: func(_ context.Context, fresh bool) ([]intent.Key, error) {
			if fresh {
				w.reads++
				return w.fresh, errors.Join(w.fail, w.deaf)
			}
			return w.keys, w.fail
		},
		Drive: func(_ context.Context, id string) (intent.Drive, bool, error) {
			if w.drive == nil {
				return intent.Drive{}, false, nil
			}
			return w.drive(id)
		},
		Now: func() time.Time { return w.now },
	})
	return w
}

// honest is what Alice's browser means by removing a file.
func (w *world) honest() intentkit.Claims {
	return intentkit.Claims{Call: "files.delete", Username: alice, At: w.now}
}

var deleteFiles = intent.Rule{Calls: []string{"files.delete"}}

func deletion(token string) intent.Request {
	return intent.Request{
		Rule: deleteFiles, Intent: token, Target: "DELETE /ucloud/hpc-example/files", Body: []byte(`{"items":[{"id":"/1/a"}]}`),
	}
}

func (w *world) check(t *testing.T, r intent.Request) intent.Verdict {
	t.Helper()
	v, err := w.Check(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) want(t *testing.T, r intent.Request, want intent.Reason) intent.Verdict {
	t.Helper()
	v := w.check(t, r)
	if v.Reason != want {
		t.Errorf("got %q (%s), want %q", v.Reason, v.Detail(), want)
	}
	if (v.Err() == nil) != v.OK() {
		t.Errorf("verdict %q has the error %v", v.Reason, v.Err())
	}
	return v
}

func TestForm1IsAccepted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, otherDevice().Public(), device().Public())
	v := w.want(t, deletion(device().Form1(w.honest())), intent.OK)
	if v.KeyID != "k1" || v.Form != intent.Form1 || v.Call != "files.delete" || v.Err() != nil {
		t.Errorf("verdict %+v", v)
	}
	// As the web client writes it: members in its order, exp half a minute later.
	raw := device().Sign(`{"typ":"JWT","alg":"RS256"}`,
		`{"iat":1767225601,"exp":1767225631,"call":"files.delete","username":"Alice#1234","project":null}`)
	w.want(t, deletion(raw), intent.OK)
	w.want(t, intent.Request{Rule: intent.Rule{Exempt: "has a token of its own"}}, intent.Exempt)
}

// TestStatuses: which status each refusal has. 482 makes today's client throw its keys away.
func TestStatuses(t *testing.T) {
	t.Parallel()
	for reason, status := range map[intent.Reason]int{
		intent.Missing: 482, intent.Malformed: 482, intent.NoKey: 482, intent.Signature: 482, intent.WrongCall: 482,
		intent.WrongUser: 482, intent.Project: 482, intent.Provider: 482, intent.Payload: 482,
		intent.Unsignable: 403, intent.Workspaces: 403, intent.WrongDrive: 403, intent.Expired: 403, intent.Future: 403, intent.Life: 403,
		intent.Replayed: 409, intent.Busy: 429,
	} {
		err := intent.Verdict{Reason: reason}.Err()
		if got := failure.KindOf(err).Status(); got != status {
			t.Errorf("%s: %d, want %d", reason, got, status)
		}
		if status == 482 && failure.Why(err) != "Invalid signature" {
			t.Errorf("%s tells more than it should: %s", reason, failure.Why(err))
		}
	}
}

// TestMissing: what today's client cannot sign is no reason to throw its key away.
func TestMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, device().Public())
	r := deletion("")
	w.want(t, r, intent.Missing)
	r.Rule.Unsigned = true
	w.want(t, r, intent.Unsignable)
	h := http.Header{}
	if intent.Header(h) != "" {
		t.Error("no header is an intent")
	}
	good := device().Form1(w.honest())
	h.Add(intent.HeaderSignedIntent, good)
	if intent.Header(h) != good {
		t.Error("the header is not given as it is")
	}
	h.Add(intent.HeaderSignedIntent, good)
	w.want(t, deletion(intent.Header(h)), intent.Malformed)
}

// TestTroubleOfOurOwn: keys that cannot be read are never answered with 482 (contract 01 section 7.4).
func TestTroubleOfOurOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fail = errors.New("the server is away")
	_, err := w.Check(t.Context(), deletion(device().Form1(w.honest())))
	if !failure.Is(err, failure.Unavailable) {
		t.Errorf("got %v", err)
	}
	w.fail = nil
	r := deletion(device().Form1(w.honest()))
	r.Target = ""
	if _, err := w.Check(t.Context(), r); err == nil || failure.Is(err, failure.BadIntent) {
		t.Errorf("a request that goes nowhere: %v", err)
	}
	r = deletion("x")
	r.Rule = intent.Rule{}
	if _, err := w.Check(t.Context(), r); err == nil || failure.Is(err, failure.BadIntent) {
		t.Errorf("a route without a rule: %v", err)
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	p := intent.NewPolicy(intent.ModeLog, map[string]string{"jobs.create": intent.ModeRequire, "files.browse": intent.ModeOff},
		[]string{"files.trash"})
	for _, tc := range []struct {
		rule intent.Rule
		want string
	}{
		{intent.Rule{Calls: []string{"files.move"}}, intent.ModeLog},
		{intent.Rule{Calls: []string{"jobs.create"}}, intent.ModeRequire},
		{intent.Rule{Calls: []string{"files.browse"}}, intent.ModeOff},
		{intent.Rule{Calls: []string{"files.browse", "jobs.create"}}, intent.ModeRequire},
		{intent.Rule{Calls: []string{"jobs.create", "files.trash"}}, intent.ModeOff},
		{intent.Rule{Exempt: "why"}, intent.ModeOff},
	} {
		if got := p.Mode(tc.rule); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.rule, got, tc.want)
		}
	}
	for _, tc := range []struct {
		policy        intent.Policy
		off, requires bool
	}{
		{intent.Policy{}, true, false},
		{intent.NewPolicy("off", map[string]string{"a": "off"}, nil), true, false},
		{intent.NewPolicy("off", map[string]string{"a": "log"}, nil), false, false},
		{intent.NewPolicy("log", map[string]string{"a": "off"}, nil), false, false},
		{p, false, true},
		{intent.NewPolicy("require", nil, nil), false, true},
		{intent.NewPolicy("log", map[string]string{"a": "stricter than ever"}, nil), false, true},
	} {
		if tc.policy.Off() != tc.off || tc.policy.Requires() != tc.requires {
			t.Errorf("%+v: off %v, requires %v", tc.policy, tc.policy.Off(), tc.policy.Requires())
		}
	}
	if !p.Names(intent.Rule{Calls: []string{"a", "jobs.create"}}) || p.Names(intent.Rule{Calls: []string{"files.trash"}}) {
		t.Error("Names is wrong")
	}
	if got := intent.NewPolicy("stricter than ever", nil, nil).Mode(deleteFiles); got != intent.ModeRequire {
		t.Errorf("an unknown mode counts as %s", got)
	}
	if intent.Stricter("log", "require") != "require" || intent.Stricter("log", "off") != "log" {
		t.Error("Stricter is wrong")
	}
}
