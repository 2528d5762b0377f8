// Package intentclient is the part of an instance that asks for signed intents (contract 01 section 7.4): it knows the
// policy and the user's keys, which are the server's, has package intent verify, and tells the server what it has seen.
//
// # Trust
//
// What is verified comes from Core, which is not trusted here. Policy and keys come from the server over the instance's
// own connection. The instance runs with its user's rights: a user who changes it can only let others act in their own
// name, and only spoil the numbers about themselves.
//
// # Keys
//
// They are read when the first intent is to be verified, and kept. The server says when they have changed, which drops
// them at once (TestRevokedKeyIsRefused). While the server is away those that were read count for a bounded time; after
// that, and when there are none, the answer is that the service is not available, never that the signature is wrong:
// today's clients throw their keys away then (TestServerAway).
//
// # Rest
//
// An idle instance must not wake up. Numbers are handed in some seconds after the first of them, and nothing is armed
// when there are none (TestNothingTicks).
package intentclient

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
)

// Server is what the package asks of the server; a role implements it over IPC.
type Server interface {
	// Keys are the user's keys that count now.
	Keys(ctx context.Context) (ipcapi.IntentKeySet, error)
	// Seen hands in numbers.
	Seen(ctx context.Context, counts ipcapi.IntentCounts) error
	// Away tells for how long the server has been away; 0: it is there.
	Away() time.Duration
}

// Options configure a [Client]. All are required, except Drive, Now and Hold.
type Options struct {
	Provider string
	User     ident.UCloudUser
	Server   Server
	Log      *slog.Logger
	Settings ipcapi.IntentSettings
	Drive    FindDrive        // nil: what Core says of drives is believed
	Now      func() time.Time // nil: time.Now
	Hold     time.Duration    // how long numbers are collected before they are handed in; 0 means 10 s
}

const (
	usualHold = 10 * time.Second
	// readTimeout bounds the reading of keys. Core gives up on a call after 5 s.
	readTimeout = 3 * time.Second
	// seenTimeout bounds the handing in of numbers.
	seenTimeout = 10 * time.Second
)

// Client implements fileserver.Intents. It is safe for concurrent use.
type Client struct {
	o      Options
	keys   keyring
	drives drivebook
	tally  tally
	rules  atomic.Pointer[rules]
	// verifier remembers what was used, and so outlives the rules (TestSettingsKeepWhatWasUsed).
	verifier *intent.Verifier
}

// rules are the settings in use.
type rules struct {
	policy         intent.Policy
	maxAge, leeway time.Duration
}

// New makes a Client.
func New(o Options) *Client {
	if o.Provider == "" || o.User == "" || o.Server == nil || o.Log == nil {
		panic("intentclient: the options are not complete")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Hold <= 0 {
		o.Hold = usualHold
	}
	c := &Client{o: o}
	c.keys.server, c.keys.now = o.Server, o.Now
	c.drives.find, c.drives.now = o.Drive, o.Now
	c.tally.server, c.tally.log, c.tally.hold, c.tally.now = o.Server, o.Log.With("part", "intents"), o.Hold, o.Now
	c.SetSettings(o.Settings)
	c.verifier = c.newVerifier()
	return c
}

func (c *Client) newVerifier() *intent.Verifier {
	o := intent.Options{Provider: c.o.Provider, User: c.o.User, Keys: c.keys.get, Now: c.o.Now}
	if c.o.Drive != nil {
		o.Drive = c.drives.get
	}
	o.Limits = func() (maxAge, leeway time.Duration) { r := c.rules.Load(); return r.maxAge, r.leeway }
	return intent.New(o)
}

// SetSettings changes the policy and the limits.
func (c *Client) SetSettings(s ipcapi.IntentSettings) {
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	c.rules.Store(&rules{policy: intent.NewPolicy(s.Mode, s.Calls, s.Exempt), maxAge: ms(s.MaxAgeMs), leeway: ms(s.SkewMs)})
}

// KeysChanged drops the keys that were read.
func (c *Client) KeysChanged() { c.keys.drop() }

// Close hands in the numbers that are left, and waits for it.
func (c *Client) Close(ctx context.Context) { c.tally.close(ctx) }

// Mode implements fileserver.Intents.
func (c *Client) Mode(r intent.Rule) string { return c.rules.Load().policy.Mode(r) }

// Requires tells whether there are calls that the user must sign.
func (c *Client) Requires() bool { return c.rules.Load().policy.Requires() }

// Check implements fileserver.Intents.
func (c *Client) Check(ctx context.Context, log *slog.Logger, r intent.Request) error {
	now := c.rules.Load()
	mode := now.policy.Mode(r.Rule)
	if mode == intent.ModeOff {
		return nil
	}
	seen := ipcapi.IntentCount{Call: r.Rule.Calls[0], Mode: mode}
	if r.Rule.Optional && r.Intent == "" && !now.policy.Names(r.Rule) {
		seen.Verdict = ipcapi.IntentOptional
		c.tally.add(seen)
		return nil
	}
	verdict, err := c.verifier.Check(ctx, r)
	if err != nil {
		seen.Verdict = ipcapi.IntentUnavailable
		c.tally.add(seen)
		if mode != intent.ModeRequire {
			log.Debug("signed intent not checked", "call", seen.Call, "error", err)
			return nil
		}
		log.Warn("signed intent cannot be checked", "call", seen.Call, "error", err)
		if failure.Is(err, failure.TooLarge) {
			return err // it will not be smaller when it is repeated
		}
		return unavailable(err)
	}
	seen.Verdict, seen.Form = string(verdict.Reason), verdict.Form
	c.tally.add(seen)
	if verdict.OK() {
		return nil
	}
	if mode != intent.ModeRequire {
		log.Debug("signed intent would be refused", "call", seen.Call, "reason", verdict.Reason, "detail", verdict.Detail())
		return nil
	}
	// The record of a refusal. The intent itself is not in it: whoever reads it could use it for its life.
	log.Warn("signed intent refused", "audit", "intent", "call", seen.Call, "reason", verdict.Reason, "form", verdict.Form,
		"key", c.keys.fingerprint(verdict.KeyID), "detail", verdict.Detail())
	return verdict.Err()
}

// unavailable makes sure that trouble of our own is never told as a wrong signature.
func unavailable(err error) error {
	if failure.Is(err, failure.Unavailable) {
		return err
	}
	return failure.Wrap(fmt.Errorf("check intent: %w", err), failure.Unavailable, "Signatures cannot be checked at the moment. Try again")
}

// keyring keeps the keys of the user.
type keyring struct {
	server Server
	now    func() time.Time

	reading sync.Mutex // one reader at a time; the others use what it brings

	mu         sync.Mutex // guards the fields below
	keys       []intent.Key
	prints     map[string]string // id to fingerprint
	known      bool              // keys are what the server has said
	generation uint64            // grows with each drop
	read       uint64            // grows with each reading
}
