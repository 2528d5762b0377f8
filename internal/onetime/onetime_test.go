package onetime

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	upload = Spec{Purpose: "upload", User: "Alice#1", Object: "/7/a", Limits: UploadLimits, Data: []byte("how")}
	shell  = Spec{Purpose: "shell", User: "Alice#1", Object: "job 4711", Limits: TerminalLimits}
)

func issue(t *testing.T, tokens *Tokens, s Spec) string {
	t.Helper()
	text, err := tokens.Issue(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTextIsRandom(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	var ones [256]int
	const n = 200
	seen := map[string]bool{}
	for range n {
		text := issue(t, tokens, upload)
		raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil || len(raw) != 32 || len(text) != textLength {
			t.Fatalf("%d characters, %d bytes, %v", len(text), len(raw), err)
		}
		if seen[text] {
			t.Fatal("a token occurred twice")
		}
		seen[text] = true
		for i, b := range raw {
			for j := range 8 {
				ones[8*i+j] += bits.OnesCount8(b >> j & 1)
			}
		}
	}
	// A bit that carries a time or a counter would be (nearly) constant. For a random bit the chance to leave this
	// range is below 1e-12.
	for i, c := range ones {
		if c < n/4 || c > n*3/4 {
			t.Errorf("bit %d is set in %d of %d tokens", i, c, n)
		}
	}
}

//attack:actor local user
//attack:does Opens links from a copy of the database.
//attack:control Only the hash of a one-time token is stored.
//attack:remove internal/onetime/onetime.go: User: s.User, Object: s.Object, Data: s.Data, => User: s.User, Object: s.Object + text, Data: s.Data,
func TestTextIsNotStored(t *testing.T) {
	t.Parallel()
	o := storetest.SQLiteOptions(t)
	text := issue(t, New(storetest.Open(t, o), Options{}), upload)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(o.Path + "*")
	if err != nil {
		t.Fatal(err)
	}
	hash, found := Hash(text), false
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found = found || bytes.Contains(data, hash[:])
		for _, secret := range [][]byte{[]byte(text), raw} {
			for i := 0; i+16 <= len(secret); i += 8 { // nor a good part of it
				if bytes.Contains(data, secret[i:i+16]) {
					t.Errorf("%s holds the token", f)
				}
			}
		}
	}
	if !found { // else the test looks in the wrong place
		t.Error("the hash is not in the database either")
	}
}

//attack:actor internet
//attack:does Uses a link for another purpose than it was made for, such as a download link for a terminal.
//attack:control A one-time token opens only the purpose it was issued for.
//attack:remove internal/onetime/onetime.go: case rec.Purpose != e.Purpose: => case false:
//attack:actor compromised instance
//attack:does Uses the link of another user.
//attack:control A one-time token opens only what belongs to its user.
//attack:remove internal/onetime/onetime.go: case e.User != "" && rec.User != e.User: => case false:
//attack:actor internet
//attack:does Uses a link to one object, such as a job, for another.
//attack:control A one-time token opens only its object.
//attack:remove internal/onetime/onetime.go: case e.Object != "" && rec.Object != e.Object: => case false:
func TestBinding(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		tokens := New(s, Options{})
		text := issue(t, tokens, shell)
		for name, e := range map[string]Expect{
			"other purpose":         {Purpose: "upload", User: shell.User, Object: shell.Object},
			"other user":            {Purpose: shell.Purpose, User: "Bob#2", Object: shell.Object},
			"other user, no object": {Purpose: shell.Purpose, User: "Bob#2"},
			"other object":          {Purpose: shell.Purpose, User: shell.User, Object: "job 1"},
			"user in other case":    {Purpose: shell.Purpose, User: "alice#1"},
		} {
			if _, err := tokens.Consume(t.Context(), text, e); !failure.Is(err, failure.NotFound) {
				t.Errorf("%s: consume: %v", name, err)
			}
			if _, err := tokens.Peek(t.Context(), text, e); !failure.Is(err, failure.NotFound) {
				t.Errorf("%s: peek: %v", name, err)
			}
		}
		for name, e := range map[string]Expect{
			"nothing":      {},
			"only purpose": {Purpose: shell.Purpose},
			"no purpose":   {User: shell.User, Object: shell.Object, Unbound: true},
		} {
			if _, err := tokens.Consume(t.Context(), text, e); err == nil {
				t.Errorf("expecting %s is accepted", name)
			}
		}
		right := Expect{Purpose: shell.Purpose, User: shell.User, Object: shell.Object}
		if g, err := tokens.Peek(t.Context(), text, right); err != nil || g.UsesLeft != 1 {
			t.Errorf("the refused uses used something up: %+v, %v", g, err)
		}
		g, err := tokens.Consume(t.Context(), text, right)
		if err != nil || g.User != shell.User || g.Object != shell.Object || g.UsesLeft != 0 || !g.FirstUsed {
			t.Errorf("right use: %+v, %v", g, err)
		}
		if _, err := tokens.Consume(t.Context(), text, right); !failure.Is(err, failure.NotFound) {
			t.Errorf("second use: %v", err)
		}
	})
}

func TestUnboundGivesTheBinding(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	g, err := tokens.Consume(t.Context(), issue(t, tokens, upload), Expect{Purpose: "upload", Unbound: true})
	if err != nil || g.User != upload.User || g.Object != upload.Object || string(g.Data) != "how" {
		t.Errorf("%+v, %v", g, err)
	}
}

// Each limit alone ends a token; the last moment before still counts.
//
//attack:actor internet
//attack:does Uses a link from a history or log after its time.
//attack:control One-time tokens end by their total life, first use and idle time.
//attack:remove internal/onetime/onetime.go: case !t.o.Now().Before(rec.EndsAt()): => case false:
func TestLimits(t *testing.T) {
	t.Parallel()
	type use struct {
		after time.Duration // from the issue
		ok    bool
	}
	const h, ms = time.Hour, time.Millisecond
	for name, tc := range map[string]struct {
		limits Limits
		uses   []use
	}{
		"terminal, in time":        {TerminalLimits, []use{{time.Minute - ms, true}, {time.Minute - ms, false}}},
		"terminal, late":           {TerminalLimits, []use{{time.Minute, false}}},
		"web, late":                {WebLimits, []use{{2 * time.Minute, false}}},
		"download, first use late": {DownloadLimits, []use{{h, false}}},
		"download, many uses":      {DownloadLimits, []use{{h - ms, true}, {2 * h, true}, {48*h - ms, true}, {48 * h, false}}},
		"upload, idle":             {UploadLimits, []use{{24 * h, false}}},
		"upload, kept alive":       {UploadLimits, []use{{23 * h, true}, {46 * h, true}, {70*h - ms, true}, {94 * h, false}}},
		"upload, total":            {UploadLimits, []use{{23 * h, true}, {46 * h, true}, {69 * h, true}, {92 * h, true}, {115 * h, true}, {138 * h, true}, {161 * h, true}, {168 * h, false}}},
		"two uses":                 {Limits{Total: h, Uses: 2}, []use{{0, true}, {0, true}, {0, false}}},
		// uses in quick succession are not each written, but the idle time must not run from the first of them
		"idle is kept to a tenth": {Limits{Total: 100 * h, Idle: 10 * time.Second, Uses: Unlimited}, []use{
			{0, true}, {900 * ms, true}, {9 * time.Second, true}, {18 * time.Second, true}, {28 * time.Second, false},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.UTC)
			now := start
			tokens := New(storetest.SQLite(t), Options{Now: func() time.Time { return now }})
			s := upload
			s.Limits = tc.limits
			text := issue(t, tokens, s)
			now = now.Truncate(ms) // limits are in whole milliseconds
			start = now
			e := Expect{Purpose: s.Purpose, User: s.User}
			for _, u := range tc.uses {
				now = start.Add(u.after)
				open, err := tokens.Open(t.Context(), Hash(text), s.User, s.Purpose)
				if err != nil || open != u.ok {
					t.Errorf("after %v: open = %v, %v", u.after, open, err)
				}
				_, err = tokens.Peek(t.Context(), text, e)
				if (err == nil) != u.ok {
					t.Errorf("after %v: peek: %v", u.after, err)
				}
				_, err = tokens.Consume(t.Context(), text, e)
				if (err == nil) != u.ok || err != nil && !failure.Is(err, failure.NotFound) {
					t.Errorf("after %v: consume: %v", u.after, err)
				}
			}
		})
	}
}

//attack:actor internet
//attack:does Uses a link a second time, at the same moment as its owner.
//attack:control The last use of a token removes it, in one transaction.
//attack:remove internal/onetime/onetime.go: err = tx.DeleteToken(rec.Hash) => err = nil
func TestLastUseOnce(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		tokens := New(s, Options{})
		for range 5 {
			text := issue(t, tokens, shell)
			var ok atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					_, err := tokens.Consume(t.Context(), text, Expect{Purpose: shell.Purpose, User: shell.User})
					if err == nil {
						ok.Add(1)
					} else if !failure.Is(err, failure.NotFound) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if ok.Load() != 1 {
				t.Errorf("%d of 8 succeeded", ok.Load())
			}
		}
	})
}

func TestOpen(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	text := issue(t, tokens, upload)
	for _, tc := range []struct {
		name     string
		hash     [32]byte
		user     ident.UCloudUser
		purposes []string
		want     bool
	}{
		{"right", Hash(text), "Alice#1", []string{"shell", "upload"}, true},
		{"other user", Hash(text), "Bob#2", []string{"upload"}, false},
		{"no user", Hash(text), "", []string{"upload"}, false},
		{"other purpose", Hash(text), "Alice#1", []string{"shell"}, false},
		{"no purpose", Hash(text), "Alice#1", nil, false},
		{"other token", Hash(text + "x"), "Alice#1", []string{"upload"}, false},
	} {
		got, err := tokens.Open(t.Context(), tc.hash, tc.user, tc.purposes...)
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
	}
}

func TestErrorsDoNotShowTheToken(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	text := issue(t, tokens, shell)
	gone := New(storetest.SQLite(t), Options{})
	closed := storetest.Open(t, storetest.SQLiteOptions(t))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	broken := New(closed, Options{})
	for _, tk := range []*Tokens{tokens, gone, broken} {
		for _, in := range []string{text, text + "x", text[1:]} {
			for _, e := range []Expect{{Purpose: "x", User: "y"}, {Purpose: shell.Purpose, User: "y"}, {}} {
				for _, f := range []func() error{
					func() error { _, err := tk.Consume(t.Context(), in, e); return err },
					func() error { _, err := tk.Peek(t.Context(), in, e); return err },
				} {
					err := f()
					if err == nil {
						t.Error("no error")
					} else if strings.Contains(fmt.Sprintf("%+v %#v %s", err, err, failure.Why(err)), text[5:20]) {
						t.Errorf("the error shows the token: %v", err)
					}
				}
			}
		}
	}
}

// All refusals look alike from outside.
//
//attack:actor internet
//attack:does Learns from the answers to guessed links which of them exist.
//attack:control All refusals of a one-time token are one answer.
//attack:remove internal/onetime/onetime.go: return refused("the token is of another user") => return failure.New(failure.NotFound, "The token is of another user")
func TestRefusalsAreAlike(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	text := issue(t, tokens, shell)
	want := failure.Why(refused("x"))
	for _, e := range []Expect{{Purpose: "upload", User: shell.User}, {Purpose: shell.Purpose, User: "x"}} {
		for _, in := range []string{text, strings.Repeat("A", textLength), "", strings.Repeat("\xff", textLength), strings.Repeat("x", 1<<20)} {
			if _, err := tokens.Consume(t.Context(), in, e); failure.Why(err) != want || failure.KindOf(err) != failure.NotFound {
				t.Errorf("%v", err)
			}
		}
	}
}

//attack:actor internet
//attack:does Fills the database with links.
//attack:control A user has a bounded number of one-time tokens for each purpose.
//attack:remove internal/onetime/onetime.go: if n >= t.o.MaxPerUser { => if n < 0 {
func TestBound(t *testing.T) {
	t.Parallel()
	now := time.Now()
	tokens := New(storetest.SQLite(t), Options{MaxPerUser: 3, Now: func() time.Time { return now }})
	for range 3 {
		issue(t, tokens, shell)
	}
	if _, err := tokens.Issue(t.Context(), shell); !failure.Is(err, failure.TooMany) {
		t.Errorf("a fourth token: %v", err)
	}
	issue(t, tokens, upload) // another purpose
	bob := shell
	bob.User = "Bob#2"
	issue(t, tokens, bob)
	now = now.Add(time.Minute) // ended ones do not count, even before they are purged
	issue(t, tokens, shell)
}

func TestSpecsThatAreRefused(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	for name, change := range map[string]func(*Spec){
		"no purpose":   func(s *Spec) { s.Purpose = "" },
		"no user":      func(s *Spec) { s.User = "" },
		"no end":       func(s *Spec) { s.Limits.Total = 0 },
		"no use":       func(s *Spec) { s.Limits.Uses = 0 },
		"negative use": func(s *Spec) { s.Limits.Uses = -2 },
	} {
		s := shell
		change(&s)
		if text, err := tokens.Issue(t.Context(), s); err == nil || text != "" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	other := shell
	other.Object = "job 2"
	bob := shell
	bob.User, bob.Object = "Bob#2", "job 3"
	a, b, c, d := issue(t, tokens, shell), issue(t, tokens, other), issue(t, tokens, upload), issue(t, tokens, bob)
	open := func(text string, s Spec) bool {
		ok, err := tokens.Open(t.Context(), Hash(text), s.User, s.Purpose)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
	if err := tokens.Revoke(t.Context(), shell.Purpose, shell.Object); err != nil {
		t.Fatal(err)
	}
	if open(a, shell) || !open(b, other) || !open(c, upload) || !open(d, bob) {
		t.Error("revoking by object ended the wrong tokens")
	}
	if err := tokens.RevokeUser(t.Context(), shell.User); err != nil {
		t.Fatal(err)
	}
	if open(b, other) || open(c, upload) || !open(d, bob) {
		t.Error("revoking by user ended the wrong tokens")
	}
}

// What has ended is removed by the timer alone, also when a token that ends earlier is issued later.
func TestPurge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tokens := New(storetest.SQLite(t), Options{})
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { done <- tokens.Run(ctx) }()
		synctest.Wait()
		issue(t, tokens, upload)
		time.Sleep(time.Second)
		issue(t, tokens, shell)
		count := func() (n int) {
			if err := tokens.store.View(t.Context(), func(tx *store.Tx) (err error) {
				n = 0
				for _, s := range []Spec{upload, shell} { // the past as now: counts ended ones too
					m, err := tx.CountTokens(s.User, s.Purpose, time.Time{})
					if err != nil {
						return err
					}
					n += m
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			return n
		}
		if n := count(); n != 2 {
			t.Errorf("%d tokens", n)
		}
		time.Sleep(2 * time.Minute)
		if n := count(); n != 1 {
			t.Errorf("%d tokens after the end of one", n)
		}
		at, ok, err := tokens.NextExpiry(t.Context())
		if err != nil || !ok || time.Until(at) < 23*time.Hour {
			t.Errorf("next expiry %v, %v, %v", at, ok, err)
		}
		time.Sleep(25 * time.Hour)
		if n := count(); n != 0 {
			t.Errorf("%d tokens", n)
		}
		if _, ok, err := tokens.NextExpiry(t.Context()); ok || err != nil {
			t.Errorf("next expiry of nothing: %v, %v", ok, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestConsumeHash: a part of ours may use up a token by its hash, with the same rules.
func TestConsumeHash(t *testing.T) {
	t.Parallel()
	s := storetest.SQLite(t)
	tokens := New(s, Options{})
	hash := Hash(issue(t, tokens, shell))
	use := func(e Expect) (g Grant, err error) {
		err = s.Update(t.Context(), func(tx *store.Tx) error {
			g, err = tokens.ConsumeHashTx(tx, hash, e)
			return err
		})
		return g, err
	}
	for _, e := range []Expect{{Purpose: "upload", Unbound: true}, {Purpose: "shell", Object: "job 4712"}, {Purpose: "shell"}} {
		if _, err := use(e); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
	if g, err := use(Expect{Purpose: "shell", Unbound: true}); err != nil || g.User != shell.User || g.Object != shell.Object {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := use(Expect{Purpose: "shell", Unbound: true}); !failure.Is(err, failure.NotFound) {
		t.Errorf("the second use: %v", err)
	}
}

// TestPurposes: what is in no table cannot be issued, nor for longer than the table says; and the table is in the documents.
//
//attack:actor compromised instance
//attack:does Asks for a link that lives for ever, or of a kind that nobody has thought of.
//attack:control All purposes of links stand in one table with their longest lives and uses.
//attack:remove internal/onetime/purpose.go: case l.Total > p.Most: => case false:
//attack:actor local user
//attack:does Uses the link to a shell again, which stands in the history of a browser.
//attack:control Links to shells, interfaces of jobs and logins have one use, whoever issues them.
//attack:remove internal/onetime/purpose.go: case p.Usual.Uses != Unlimited && (l.Uses == Unlimited || l.Uses > p.Usual.Uses): => case false:
func TestPurposes(t *testing.T) {
	t.Parallel()
	tokens := New(storetest.SQLite(t), Options{})
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Purposes() {
		s := Spec{Purpose: p.Name, User: "Alice#1", Object: "x"}
		text := issue(t, tokens, s)
		g, err := tokens.Peek(t.Context(), text, Expect{Purpose: p.Name, User: "Alice#1"})
		if err != nil || g.UsesLeft != p.Usual.Uses {
			t.Errorf("%s: %+v, %v", p.Name, g, err)
		}
		s.Limits = p.Usual
		s.Limits.Total = p.Most + time.Millisecond
		if _, err := tokens.Issue(t.Context(), s); err == nil {
			t.Errorf("%s can live for too long", p.Name)
		}
		s.Limits = p.Usual
		s.Limits.Uses = Unlimited
		if _, err := tokens.Issue(t.Context(), s); (err == nil) != (p.Usual.Uses == Unlimited) {
			t.Errorf("%s without a bound on uses: %v", p.Name, err)
		}
		if !strings.Contains(string(page), "| `"+p.Name+"` | "+p.For+" |") {
			t.Errorf("docs/security.md does not say what %s is", p.Name)
		}
	}
	if _, err := tokens.Issue(t.Context(), Spec{Purpose: "anything", User: "Alice#1", Limits: UploadLimits}); err == nil {
		t.Error("a token for anything was issued")
	}
}
