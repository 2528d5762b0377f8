package fileserver

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/intentclient"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/intentkit"
)

// policy is a policy of tests.
type policy struct {
	mode  string
	err   error
	asked []intent.Request
}

func (p *policy) Mode(intent.Rule) string { return p.mode }

func (p *policy) Check(_ context.Context, _ *slog.Logger, r intent.Request) error {
	p.asked = append(p.asked, r)
	return p.err
}

// probe is an instance with a call that gives back what it reads.
func probe(t *testing.T, p Intents, rule intent.Rule, read *[]byte, serve func(*Call)) *instance {
	t.Helper()
	return newInstance(t, func(o *Options) {
		o.Intents = p
		o.Routes = []Route{{
			Method: http.MethodPost, Path: "probe", Class: hoptoken.ClassCore, MaxBody: 64, Intent: rule,
			Serve: func(w http.ResponseWriter, c *Call) (err error) {
				if serve != nil {
					serve(c)
				}
				*read, err = io.ReadAll(http.MaxBytesReader(w, c.Body, 64))
				return err
			},
		}}
	})
}

var probeRule = intent.Rule{Calls: []string{"files.browse"}}

const probePath = "/ucloud/" + testProvider + "/probe"

// TestOffDoesNotRead: without a policy the body goes to the handler as it comes, and nothing is parsed or asked. The same
// holds for calls that need no intent, whatever the policy.
func TestOffDoesNotRead(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mode string
		rule intent.Rule
	}{
		"off":    {intent.ModeOff, probeRule},
		"exempt": {intent.ModeRequire, intent.Rule{Exempt: "for a test"}},
		"frame":  {intent.ModeRequire, intent.Rule{Calls: []string{"jobs.follow"}, Frame: true}},
	} {
		p := &policy{mode: tc.mode, err: failure.New(failure.BadIntent, "no")}
		var got []byte
		body := &countingReader{Reader: strings.NewReader("a body")}
		in := probe(t, p, tc.rule, &got, func(*Call) {
			if body.n != 0 {
				t.Errorf("%s: %d bytes were read before the handler", name, body.n)
			}
		})
		rec := in.call("POST", probePath, "", func(r *http.Request, _ *hoptoken.Claims) {
			r.Header.Set(intent.HeaderSignedIntent, "x")
			r.Body, r.ContentLength = io.NopCloser(body), 6
		})
		if rec.Code != 200 || string(got) != "a body" || len(p.asked) != 0 {
			t.Errorf("%s: %d, read %q, asked %v", name, rec.Code, got, p.asked)
		}
	}
}

// TestCheckedBeforeServed: what is checked is what is served.
//
//attack:actor compromised core
//attack:does Sends a body that is larger than the intent's check may read, so that the rest is served unchecked.
//attack:control A body beyond the bound of its call is refused before the intent is looked at.
//attack:remove internal/httpx/httpx.go: if _, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil { => if _, err := buf.ReadFrom(io.LimitReader(r.Body, limit)); err != nil {
//attack:actor compromised core
//attack:does Sends two intents, one that verifies and one for something else, hoping that two readers take different ones.
//attack:control Several headers together are no intent.
//attack:remove internal/fileserver/intents.go: Intent: intent.Header(c.Header) => Intent: c.Header.Get(intent.HeaderSignedIntent)
func TestCheckedBeforeServed(t *testing.T) {
	t.Parallel()
	var got []byte
	served := 0
	p := &policy{mode: intent.ModeRequire}
	in := probe(t, p, probeRule, &got, func(*Call) { served++ })
	with := func(values ...string) func(*http.Request, *hoptoken.Claims) {
		return func(r *http.Request, _ *hoptoken.Claims) {
			r.Header[http.CanonicalHeaderKey(intent.HeaderSignedIntent)] = values
		}
	}
	rec := in.call("POST", probePath, "the body", with("signed"))
	if rec.Code != 200 || string(got) != "the body" || served != 1 {
		t.Errorf("%d %s: read %q", rec.Code, rec.Body, got)
	}
	if a := p.asked[0]; a.Intent != "signed" || string(a.Body) != "the body" || a.Target != "POST probe" || a.Rule.Calls[0] != "files.browse" {
		t.Errorf("asked %+v", a)
	}
	in.call("POST", probePath, "", with("signed", "another"))
	if a := p.asked[1]; a.Intent == "signed" || a.Intent == "another" {
		t.Errorf("one of two intents was taken: %q", a.Intent)
	}
	served = 0
	if rec := in.call("POST", probePath, strings.Repeat("x", 65), with("signed")); rec.Code != 413 || served != 0 {
		t.Errorf("a large body: %d, served %d times", rec.Code, served)
	}
	p.err = failure.New(failure.BadIntent, "Invalid signature")
	if rec := in.call("POST", probePath, "the body", with("signed")); rec.Code != 482 || served != 0 {
		t.Errorf("refused: %d, served %d times", rec.Code, served)
	}
	if strings.Contains(in.log.String(), "signed\"") {
		t.Errorf("the log has an intent:\n%s", in.log)
	}
}

// TestUnsignedIsNotRead: what is refused for want of an intent costs no memory, and what passes is streamed.
//
//attack:actor compromised core
//attack:does Fills the memory of instances with large requests that nobody has signed.
//attack:control The body of a request without an intent is not read before it is refused.
//attack:remove internal/fileserver/intents.go: if r.Intent != "" { => if r.Intent != "-" {
func TestUnsignedIsNotRead(t *testing.T) {
	t.Parallel()
	for _, verdict := range []error{failure.New(failure.BadIntent, "Invalid signature"), nil} {
		p := &policy{mode: intent.ModeRequire, err: verdict}
		var got []byte
		body := &countingReader{Reader: strings.NewReader("a body")}
		before := -1
		in := probe(t, p, probeRule, &got, func(*Call) { before = body.n })
		rec := in.call("POST", probePath, "", func(r *http.Request, _ *hoptoken.Claims) {
			r.Body, r.ContentLength = io.NopCloser(body), 6
		})
		if len(p.asked) != 1 || p.asked[0].Intent != "" || len(p.asked[0].Body) != 0 {
			t.Fatalf("asked %+v", p.asked)
		}
		if verdict != nil && (rec.Code != 482 || body.n != 0 || before != -1) {
			t.Errorf("refused: %d, %d bytes were read", rec.Code, body.n)
		}
		if verdict == nil && (rec.Code != 200 || before != 0 || string(got) != "a body") {
			t.Errorf("passed: %d, %d bytes were read before the handler, which got %q", rec.Code, before, got)
		}
	}
}

// keys is a server for the benchmark.
type keys struct{ set ipcapi.IntentKeySet }

func (k keys) Keys(context.Context) (ipcapi.IntentKeySet, error) { return k.set, nil }
func (keys) Seen(context.Context, ipcapi.IntentCounts) error     { return nil }
func (keys) Away() time.Duration                                 { return 0 }

// BenchmarkGuard is what one call costs with each policy, from hop token to answer; the call itself does nothing.
func BenchmarkGuard(b *testing.B) {
	signer := intentkit.NewRSA(b, "k1", 2048)
	set := keys{ipcapi.IntentKeySet{Keys: []ipcapi.IntentKey{{ID: "k1", PublicKey: signer.Key.DER()}}}}
	body := `{"resolvedCollection":{"id":"5123","owner":{"createdBy":"AdaLovelace#4821","project":null}},"Browse":{"flags":{"path":"/5123"}},"x":"` +
		strings.Repeat("x", 3<<10) + `"}`
	// As many intents as are needed, each of them new: an instance remembers those that it has verified.
	var intents []string
	for i := range 4000 {
		intents = append(intents, signer.Form1(intentkit.Claims{
			Call: "files.browse", Username: string(testUser), Life: time.Duration(30+i) * time.Second,
		}))
	}
	for _, mode := range []string{intent.ModeOff, intent.ModeLog, intent.ModeRequire} {
		b.Run(mode, func(b *testing.B) {
			key := hoptoken.NewKey()
			start := ipcapi.Start{Provider: testProvider, User: testUser, UID: testUID, HopKey: key[:]}
			client := func() Intents {
				return intentclient.New(intentclient.Options{
					Provider: testProvider, User: testUser, Server: set, Log: slog.New(slog.DiscardHandler),
					Settings: ipcapi.IntentSettings{Mode: mode, MaxAgeMs: 24 * time.Hour.Milliseconds()},
				})
			}
			g := newGuard(Options{Provider: testProvider, Start: start, Files: &files.Service{}, Log: slog.New(slog.DiscardHandler), Intents: client()}, []Route{{
				Method: http.MethodPost, Path: "probe", Class: hoptoken.ClassCore, MaxBody: oneBody, Intent: intent.Rule{Calls: []string{"files.browse"}, Owners: []string{"resolvedCollection"}},
				Serve: func(_ http.ResponseWriter, c *Call) error {
					_, err := io.Copy(io.Discard, c.Body)
					return err
				},
			}})
			n := 0
			for b.Loop() {
				b.StopTimer()
				if n%len(intents) == 0 {
					g.intents = client()
				}
				r := httptest.NewRequest(http.MethodPost, probePath, strings.NewReader(body))
				r.Header.Set(ident.HeaderUser, testUser.HeaderValue())
				r.Header.Set(intent.HeaderSignedIntent, intents[n%len(intents)])
				r.Header.Set(hoptoken.Header, hoptoken.Mint(key, hoptoken.Claims{
					UID: testUID, User: testUser, Method: http.MethodPost, Path: probePath, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassCore,
				}))
				rec := httptest.NewRecorder()
				n++
				b.StartTimer()
				g.ServeHTTP(rec, r)
				if rec.Code != 200 {
					b.Fatalf("%d %s", rec.Code, rec.Body)
				}
			}
		})
	}
}
