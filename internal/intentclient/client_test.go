package intentclient

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/intentkit"
)

const ada = ident.UCloudUser("AdaLovelace#4821")

// fake is a server.
type fake struct {
	mu    sync.Mutex // guards the fields below
	set   ipcapi.IntentKeySet
	err   error
	away  time.Duration
	reads int
	seen  []ipcapi.IntentCounts
	slow  func() // called while keys are read, before they are given
}

func (f *fake) Keys(context.Context) (ipcapi.IntentKeySet, error) {
	f.mu.Lock()
	f.reads++
	set, err, slow := f.set, f.err, f.slow
	f.slow = nil
	f.mu.Unlock()
	if slow != nil {
		slow()
	}
	return set, err
}

func (f *fake) Seen(_ context.Context, c ipcapi.IntentCounts) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.seen = append(f.seen, c)
	return nil
}

func (f *fake) Away() time.Duration { f.mu.Lock(); defer f.mu.Unlock(); return f.away }

// handed is what was handed in.
func (f *fake) handed() []ipcapi.IntentCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

func (f *fake) readings() int { f.mu.Lock(); defer f.mu.Unlock(); return f.reads }

// armed tells whether a timer runs.
func (c *Client) armed() bool {
	c.tally.mu.Lock()
	defer c.tally.mu.Unlock()
	return c.tally.timer != nil
}

func (f *fake) change(do func()) { f.mu.Lock(); defer f.mu.Unlock(); do() }

func keySet(signers ...*intentkit.Signer) (set ipcapi.IntentKeySet) {
	for _, s := range signers {
		set.Keys = append(set.Keys, ipcapi.IntentKey{ID: s.ID, PublicKey: s.Key.DER()})
	}
	return set
}

func newClient(f *fake, s ipcapi.IntentSettings) *Client {
	return New(Options{Provider: "hpc-example", User: ada, Server: f, Log: slog.New(slog.DiscardHandler), Settings: s})
}

var rule = intent.Rule{Calls: []string{"files.browse"}}

func request(signed string) intent.Request {
	return intent.Request{Rule: rule, Intent: signed, Body: []byte("{}"), Target: "POST files/browse"}
}

func sign(s *intentkit.Signer, call string) string {
	return s.Form1(intentkit.Claims{Call: call, Username: string(ada)})
}

func (c *Client) check(signed string) error {
	return c.Check(context.Background(), slog.New(slog.DiscardHandler), request(signed))
}

var require = ipcapi.IntentSettings{Mode: intent.ModeRequire}

// TestMode: which of a policy's modes counts for a rule.
func TestMode(t *testing.T) {
	t.Parallel()
	c := newClient(&fake{}, ipcapi.IntentSettings{
		Mode: intent.ModeLog, Calls: map[string]string{"jobs.create": intent.ModeRequire, "files.browse": intent.ModeOff}, Exempt: []string{"files.copy"},
	})
	for call, want := range map[string]string{
		"jobs.create": intent.ModeRequire, "files.browse": intent.ModeOff, "files.copy": intent.ModeOff, "files.move": intent.ModeLog,
	} {
		if got := c.Mode(intent.Rule{Calls: []string{call}}); got != want {
			t.Errorf("%s: %s, want %s", call, got, want)
		}
	}
	c.SetSettings(ipcapi.IntentSettings{Mode: "stricter than anything"})
	if got := c.Mode(rule); got != intent.ModeRequire {
		t.Errorf("a mode that is not known: %s", got)
	}
}

// TestKeysAreReadOnce: not for each request, and once more for a signature that does not verify.
func TestKeysAreReadOnce(t *testing.T) {
	t.Parallel()
	known, stranger := intentkit.NewRSA(t, "k1", 2048), intentkit.NewRSA(t, "k2", 2048)
	f := &fake{set: keySet(known)}
	c := newClient(f, require)
	for range 5 {
		if err := c.check(sign(known, "files.browse")); err != nil {
			t.Fatal(err)
		}
	}
	if f.readings() != 1 {
		t.Errorf("keys were read %d times", f.readings())
	}
	for range 50 {
		if err := c.check(sign(stranger, "files.browse")); !failure.Is(err, failure.BadIntent) {
			t.Fatal(err)
		}
	}
	if f.readings() > 10 {
		t.Errorf("a stranger had the keys read %d times", f.readings())
	}
}

// TestDropWhileReading: keys that were on their way when they changed do not count.
//
//attack:actor compromised core
//attack:does Uses a revoked key at the very moment at which keys are read.
//attack:control Keys that have changed while they were read are read again.
//attack:remove internal/intentclient/keys.go: if k.generation != generation { => if false && k.generation != generation {
func TestDropWhileReading(t *testing.T) {
	t.Parallel()
	stolen := intentkit.NewRSA(t, "k1", 2048)
	f := &fake{set: keySet(stolen)}
	c := newClient(f, require)
	f.slow = func() {
		f.change(func() { f.set = keySet() })
		c.KeysChanged()
	}
	if err := c.check(sign(stolen, "files.browse")); !failure.Is(err, failure.BadIntent) {
		t.Errorf("a revoked key: %v", err)
	}
}

// TestUnavailableIsNotWrong: whatever the server says when keys cannot be read, no browser is told that its key is wrong.
//
//attack:actor internet
//attack:does Brings the database of the provider down, so that the browsers of all users throw their keys away.
//attack:control Trouble of our own is answered with 503, whatever kind of error it is.
//attack:remove internal/intentclient/client.go: return failure.Wrap(fmt.Errorf("check intent: %w", err), failure.Unavailable, => return failure.Wrap(fmt.Errorf("check intent: %w", err), failure.BadIntent,
//attack:remove internal/intent/verify.go: return keys, failure.Wrap(err, failure.Unavailable, "Signatures cannot be checked at the moment. Try again") => return keys, failure.Wrap(err, failure.KindOf(err), "x")
func TestUnavailableIsNotWrong(t *testing.T) {
	t.Parallel()
	known := intentkit.NewRSA(t, "k1", 2048)
	for _, cause := range []error{
		errors.New("broken pipe"), failure.New(failure.BadIntent, "x"), failure.New(failure.Forbidden, "x"), failure.New(failure.Internal, "x"),
		context.DeadlineExceeded,
	} {
		c := newClient(&fake{err: cause}, require)
		if err := c.check(sign(known, "files.browse")); !failure.Is(err, failure.Unavailable) {
			t.Errorf("%v: %v", cause, err)
		}
		c.SetSettings(ipcapi.IntentSettings{Mode: intent.ModeLog})
		if err := c.check(sign(known, "files.browse")); err != nil {
			t.Errorf("%v, under log: %v", cause, err)
		}
	}
}

// TestTooLargeIsNotRepeated: Core repeats what is answered 503, and a request does not become smaller by that.
func TestTooLargeIsNotRepeated(t *testing.T) {
	t.Parallel()
	known := intentkit.NewRSA(t, "k1", 2048)
	c := newClient(&fake{set: keySet(known)}, require)
	r := request(sign(known, "files.browse"))
	r.Rule.Owners = []string{"resolvedCollection"}
	r.Body = []byte(`{"x":[` + strings.Repeat("0,", 1<<18) + `0]}`)
	if err := c.Check(t.Context(), slog.New(slog.DiscardHandler), r); !failure.Is(err, failure.TooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestStaleKeys: keys that were read count for a while without the server.
//
//attack:actor compromised core
//attack:does Keeps the server busy, so that an instance never hears that a key was revoked.
//attack:control Without the server keys count for five minutes.
//attack:remove internal/intentclient/keys.go: if k.server.Away() > staleFor { => if false {
func TestStaleKeys(t *testing.T) {
	t.Parallel()
	known, stranger := intentkit.NewRSA(t, "k1", 2048), intentkit.NewRSA(t, "k2", 2048)
	f := &fake{set: keySet(known)}
	c := newClient(f, require)
	if err := c.check(sign(known, "files.browse")); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.away, f.err = time.Minute, failure.New(failure.Unavailable, "away") })
	if err := c.check(sign(known, "files.browse")); err != nil {
		t.Errorf("away for a minute: %v", err)
	}
	if err := c.check(sign(stranger, "files.browse")); !failure.Is(err, failure.Unavailable) { // it may be a new device
		t.Errorf("a stranger while the server is away: %v", err)
	}
	f.change(func() { f.away = staleFor + time.Second })
	if err := c.check(sign(known, "files.browse")); !failure.Is(err, failure.Unavailable) {
		t.Errorf("away for too long: %v", err)
	}
}

// TestSettingsKeepWhatWasUsed: a reload does not make used intents fresh.
//
//attack:actor compromised core
//attack:does Uses an intent again for something else after the configuration was reloaded.
//attack:control What was used is remembered over changes of the settings.
//attack:remove internal/intentclient/client.go: ms := func(n int64) => c.verifier = c.newVerifier()\n\tms := func(n int64)
func TestSettingsKeepWhatWasUsed(t *testing.T) {
	t.Parallel()
	known := intentkit.NewRSA(t, "k1", 2048)
	c := newClient(&fake{set: keySet(known)}, require)
	move := intent.Rule{Calls: []string{"files.move"}}
	signed := sign(known, "files.move")
	use := func(body string) error {
		return c.Check(t.Context(), slog.New(slog.DiscardHandler), intent.Request{Rule: move, Intent: signed, Body: []byte(body), Target: "POST files/move"})
	}
	if err := use("{}"); err != nil {
		t.Fatal(err)
	}
	c.SetSettings(ipcapi.IntentSettings{Mode: intent.ModeRequire, MaxAgeMs: 50_000, SkewMs: 70_000})
	if err := use(`{"items":[]}`); !failure.Is(err, failure.Conflict) {
		t.Errorf("used for something else: %v", err)
	}
	if err := use("{}"); err != nil {
		t.Errorf("repeated by Core: %v", err)
	}
	c.SetSettings(ipcapi.IntentSettings{Mode: intent.ModeRequire, MaxAgeMs: 20_000})
	if err := c.check(sign(known, "files.browse")); !failure.Is(err, failure.Forbidden) {
		t.Errorf("an intent that lives for longer than is allowed now: %v", err)
	}
}

// TestNothingTicks: numbers are handed in once, and an instance without requests does not wake up.
func TestNothingTicks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		c := newClient(f, ipcapi.IntentSettings{Mode: intent.ModeLog})
		for range 3 {
			_ = c.check("")
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if len(f.handed()) != 0 {
			t.Error("handed in at once")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if seen := f.handed(); len(seen) != 1 || len(seen[0].Counts) != 1 || seen[0].Counts[0].Count != 3 || seen[0].Counts[0].Verdict != string(intent.Missing) {
			t.Fatalf("handed in %+v", seen)
		}
		if c.armed() {
			t.Error("something is armed")
		}
		// The server is away: the numbers are kept, and nothing tries again by itself.
		f.change(func() { f.err = errors.New("away") })
		_ = c.check("")
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if c.armed() {
			t.Error("something is armed while the server is away")
		}
		f.change(func() { f.err = nil })
		c.Close(t.Context())
		if seen := f.handed(); len(seen) != 2 || seen[1].Counts[0].Count != 1 {
			t.Errorf("left over: %+v", seen)
		}
		_ = c.check("") // a request that is still under way
		if c.armed() {
			t.Error("something is armed after the end")
		}
	})
}

// TestRecordHoldsNoIntent: the log tells about a refusal, and nobody can use what it says.
//
//attack:actor local user
//attack:does Reads intents in the log of an instance and uses them while they live.
//attack:control Logs have the reason and the fingerprint of the key, and never the intent.
//attack:remove internal/intentclient/client.go: "key", c.keys.fingerprint(verdict.KeyID), "detail", verdict.Detail()) => "key", c.keys.fingerprint(verdict.KeyID), "detail", r.Intent)
func TestRecordHoldsNoIntent(t *testing.T) {
	t.Parallel()
	known := intentkit.NewRSA(t, "k1", 2048)
	var out bytes.Buffer
	c := newClient(&fake{set: keySet(known)}, require)
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, signed := range []string{sign(known, "files.move"), sign(known, "files.browse") + "x", "eyJ.eyJ.eyJ"} {
		if err := c.Check(t.Context(), log.With("user", ada), request(signed)); err == nil {
			t.Fatal("passes")
		}
	}
	text := out.String()
	for _, want := range []string{"reason=call", "reason=malformed", "key=" + known.Key.Fingerprint(), "user=" + string(ada), "audit=intent"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "eyJ") {
		t.Errorf("an intent is in\n%s", text)
	}
}
