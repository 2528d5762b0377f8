package roleuser

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/intentkit"
)

const (
	provider = "hpc-example"
	ada      = ident.UCloudUser("AdaLovelace#4821")
	adaUID   = ident.UID(61021)
	follow   = "/ucloud/jobs.provider." + provider + "/websocket"
)

// world is an instance without a process of its own, and the server that knows its keys.
type world struct {
	t       *testing.T
	start   ipcapi.Start
	log     safeBuffer
	client  *ipc.Client
	parts   parts
	handler http.Handler
	srv     *httptest.Server
	key     hoptoken.Key
	signer  *intentkit.Signer

	mu     sync.Mutex // guards the fields below
	keys   []*intentkit.Signer
	broken bool // the server cannot read keys
	drives map[ident.DriveID]ident.ProjectID
	away   time.Duration
	seen   []ipcapi.IntentCount
}

// safeBuffer takes the logs of several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// world is a [host].
func (w *world) Start() ipcapi.Start { w.mu.Lock(); defer w.mu.Unlock(); return w.start }
func (w *world) Log() *slog.Logger   { return slog.New(slog.NewTextHandler(&w.log, nil)) }
func (w *world) Busy() func()        { return func() {} }

func (w *world) Away() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away
}

func (w *world) Server() (*ipc.Client, error) {
	if w.Away() > 0 {
		return nil, failure.New(failure.Unavailable, "away")
	}
	return w.client, nil
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func newWorld(t *testing.T, policy ipcapi.IntentSettings, jobs bool) *world {
	t.Helper()
	home := t.TempDir()
	w := &world{t: t, key: hoptoken.NewKey(), signer: intentkit.NewRSA(t, "k1", 2048)}
	w.keys = []*intentkit.Signer{w.signer}
	w.start = ipcapi.Start{
		Provider: provider, User: ada, UID: adaUID, LocalName: "ada", Home: home, Shell: "/bin/sh", HopKey: w.key[:], Intents: policy,
		Files: ipcapi.FilesSettings{FollowSymlinks: "drive", MaxBrowseEntries: 100},
		Links: ipcapi.LinkSettings{PublicURL: "https://im.example.org", Origins: []string{"https://core.example.org"}},
	}
	if jobs {
		w.start.Jobs = ipcapi.JobSettings{Enabled: true, Engine: ipcapi.EngineLocal, Render: json.RawMessage("{}")}
	}
	server := ipc.NewServer(ipc.ServerOptions{RequestsPerSecond: 1 << 20, Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
		return ipc.Grant{User: ada, Mapped: true}, nil
	}})
	ipc.Handle(server, ipcapi.IntentKeys, func(context.Context, *ipc.Request, ipcapi.Empty) (ipcapi.IntentKeySet, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.broken {
			return ipcapi.IntentKeySet{}, failure.New(failure.Internal, "the database is broken")
		}
		set := ipcapi.IntentKeySet{}
		for _, k := range w.keys {
			set.Keys = append(set.Keys, ipcapi.IntentKey{ID: k.ID, PublicKey: k.Key.DER()})
		}
		return set, nil
	})
	ipc.Handle(server, ipcapi.DriveFind, func(_ context.Context, _ *ipc.Request, q ipcapi.DriveRef) (d ipcapi.FoundDrive, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		p, ok := w.drives[q.ID]
		if !ok {
			return d, failure.New(failure.NotFound, "This drive does not exist")
		}
		return ipcapi.FoundDrive{ID: q.ID, Owner: ident.Owner{Project: p}, ProviderGeneratedID: "x\n/nowhere", Product: "s", Category: "s"}, nil
	})
	ipc.Handle(server, ipcapi.IntentSeen, func(_ context.Context, _ *ipc.Request, c ipcapi.IntentCounts) (ipcapi.Empty, error) {
		w.set(func() { w.seen = append(w.seen, c.Counts...) })
		return ipcapi.Empty{}, nil
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := ipc.Listen(socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ctx, l) })
	w.client, err = ipc.Dial(t.Context(), socket, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	must(t, err)
	w.handler, err = w.parts.build(w)
	must(t, err)
	w.srv = httptest.NewServer(w.handler)
	t.Cleanup(func() {
		w.srv.Close()
		end, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		w.parts.giveBack(end)
		w.parts.close()
		w.client.Close() //nolint:errcheck // a test
		cancel()
		serving.Wait()
	})
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call sends a request as the gateway would.
func (w *world) call(method, path, body, signed string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set(ident.HeaderUser, ada.HeaderValue())
	if signed != "" {
		r.Header.Set(intent.HeaderSignedIntent, signed)
	}
	r.Header.Set(hoptoken.Header, hoptoken.Mint(w.key, hoptoken.Claims{
		UID: adaUID, User: ada, Method: method, Path: r.URL.Path, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassCore,
	}))
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	return rec
}

func (w *world) sign(call, project string) string {
	return w.signer.Form1(intentkit.Claims{Call: call, Username: string(ada), Project: project})
}

// declared is a line of the table.
type declared struct {
	method, path string
	calls        []string
	kind         string
}

func table(t *testing.T) map[string]declared {
	t.Helper()
	raw, err := os.ReadFile("testdata/intents.txt")
	must(t, err)
	out := map[string]declared{}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if len(f) != 4 {
			t.Fatalf("a line of %d words: %s", len(f), line)
		}
		d := declared{method: f[0], path: f[1], kind: f[3]}
		if f[2] != "-" {
			d.calls = strings.Split(f[2], ",")
		}
		out[f[0]+" "+f[1]] = d
	}
	return out
}

// TestEveryRouteDeclaresItsIntent compares what all routes of an instance declare with the table of the contract.
//
//attack:actor compromised core
//attack:does Has a signature for one call of a user and makes another call with it.
//attack:control Each call names the signatures that it takes, and they are compared with the table of the protocol.
//attack:remove internal/jobrunner/routes.go: signed("jobs.terminate", "items[]") => signed("jobs.*", "items[]")
func TestEveryRouteDeclaresItsIntent(t *testing.T) {
	t.Parallel()
	want := table(t)
	for _, jobs := range []bool{true, false} {
		found := 0
		for _, r := range fileserver.Routes(newWorld(t, ipcapi.IntentSettings{}, jobs).handler) {
			key := r.Method + " " + r.Path
			d, ok := want[key]
			if !ok {
				t.Errorf("%s is not in the table", key)
				continue
			}
			found++
			kind := "signed"
			switch {
			case r.Intent.Exempt == fileserver.NothingOffered:
				kind = "nothing"
			case r.Intent.Exempt != "":
				kind = "exempt"
			case r.Intent.Optional:
				kind = "optional"
			case r.Intent.Unsigned:
				kind = "unsigned"
			}
			if !slices.Equal(r.Intent.Calls, d.calls) || kind != d.kind {
				t.Errorf("%s: declares %v, %s; want %v, %s", key, r.Intent.Calls, kind, d.calls, d.kind)
			}
			if r.Class == hoptoken.ClassCore && kind == "exempt" {
				t.Errorf("%s is Core's and needs no intent", key)
			}
			if r.Intent.Frame != (r.Method == http.MethodGet && r.Class == hoptoken.ClassCore && kind != "nothing") {
				t.Errorf("%s: an intent in a frame: %v", key, r.Intent.Frame)
			}
		}
		if jobs && found != len(want) {
			t.Errorf("%d routes are in the table, %d are there", len(want), found)
		}
	}
}

// TestNamesAreThoseOfTheRoutes: the configuration can name what routes ask for, and nothing else.
func TestNamesAreThoseOfTheRoutes(t *testing.T) {
	t.Parallel()
	var names []string
	for _, r := range fileserver.Routes(newWorld(t, ipcapi.IntentSettings{}, true).handler) {
		names = append(names, r.Intent.Calls...)
	}
	slices.Sort(names)
	if names = slices.Compact(names); !slices.Equal(names, intent.Names()) {
		t.Errorf("declared %q, known %q", names, intent.Names())
	}
}

// example is a request of the contract, with the project that it is about.
type example struct{ body, project string }

func examples(t *testing.T) map[string]example {
	t.Helper()
	out := map[string]example{}
	files, err := filepath.Glob("../providerapi/testdata/examples/provider/*.json")
	must(t, err)
	for _, name := range files {
		raw, err := os.ReadFile(name)
		must(t, err)
		var doc struct {
			Method, Path string
			Request      json.RawMessage
		}
		must(t, json.Unmarshal(raw, &doc))
		e := example{body: string(doc.Request)}
		if _, after, ok := strings.Cut(e.body, `"project": "`); ok {
			e.project, _, _ = strings.Cut(after, `"`)
		}
		if strings.Contains(e.body, "resolvedOldCollection") { // from one workspace to another, which is refused
			e.body = regexp.MustCompile(`"project": (null|"[^"]*")`).ReplaceAllString(e.body, fmt.Sprintf(`"project": %q`, e.project))
		}
		key := doc.Method + " " + strings.TrimPrefix(doc.Path, "/ucloud/"+provider+"/")
		if _, ok := out[key]; !ok {
			out[key] = e
		}
	}
	return out
}

// TestRequireRefuses: each call of Core with each kind of wrong intent, and with the right one.
//
//attack:actor compromised core
//attack:does Makes calls in the name of a user who has signed nothing, or something else.
//attack:control With the policy require an instance serves only what its user has signed for this call.
//attack:remove internal/fileserver/guard.go: err = g.checkIntent(w, c) => err = nil
//attack:actor compromised core
//attack:does Makes calls in the name of a user, hoping that what does not verify is served all the same.
//attack:control What does not verify is refused, and not only counted.
//attack:remove internal/intentclient/client.go: return verdict.Err() => return nil
func TestRequireRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{Mode: intent.ModeRequire}, true)
	bodies := examples(t)
	stranger := intentkit.NewRSA(t, "k9", 2048)
	tried := 0
	var all sync.WaitGroup // some ask the server for seconds, and there is only the half of one
	for key, d := range table(t) {
		if d.kind == "exempt" || d.kind == "nothing" || d.method == http.MethodGet {
			continue
		}
		tried++
		e, ok := bodies[key]
		if !ok {
			e = example{body: `{"items":[]}`}
		}
		path := "/ucloud/" + provider + "/" + d.path
		call := strings.Replace(d.calls[0], ".*", ".create", 1)
		for name, tc := range map[string]struct {
			signed string
			want   int
		}{
			"none":        {"", 482},
			"garbage":     {"x.y.z", 482},
			"other call":  {w.sign("jobs.browse", e.project), 482},
			"other user":  {w.signer.Form1(intentkit.Claims{Call: call, Username: "Eve#1", Project: e.project}), 482},
			"unknown key": {stranger.Form1(intentkit.Claims{Call: call, Username: string(ada), Project: e.project}), 482},
			"expired":     {w.signer.Form1(intentkit.Claims{Call: call, Username: string(ada), Project: e.project, At: time.Now().Add(-time.Hour)}), 403},
		} {
			if name == "none" && d.kind == "unsigned" {
				tc.want = 403
			}
			if rec := w.call(d.method, path, e.body, tc.signed); rec.Code != tc.want {
				t.Errorf("%s, %s: %d %s", key, name, rec.Code, rec.Body)
			}
		}
		all.Go(func() {
			if rec := w.call(d.method, path, e.body, w.sign(call, e.project)); rec.Code == 482 || strings.Contains(rec.Body.String(), "igned") {
				t.Errorf("%s, as it should be: %d %s", key, rec.Code, rec.Body)
			}
		})
	}
	all.Wait()
	if tried < 30 {
		t.Errorf("only %d calls were tried", tried)
	}
	if log := w.log.String(); !strings.Contains(log, "audit=intent") || !strings.Contains(log, "reason=signature") || strings.Contains(log, "eyJ") {
		t.Errorf("the log has no record, or has an intent:\n%.4000s", log)
	}
	if !strings.Contains(w.log.String(), "key="+w.signer.Key.Fingerprint()) {
		t.Error("the log does not name the key of a wrong call")
	}
}

// TestNamedDrivesAreBound: calls that name a drive by its id alone are bound to its workspace, also where Core says nothing.
//
//attack:actor compromised core
//attack:does Removes files or renames a drive in a project with what the user has signed for another workspace.
//attack:control The routes that have no document of a drive say where they name it.
//attack:remove internal/fileserver/server.go: remove.Intent.Drives = []string{"items[].specification.collection"} => remove.Intent.Drives = nil
//attack:remove internal/fileserver/collections.go: intent.Rule{Calls: []string{"files.collections.rename"}, Drives: []string{"items[].id"}} => intent.Rule{Calls: []string{"files.collections.rename"}}
//attack:remove internal/jobrunner/routes.go: Unsigned: true, Drives: []string{"items[].folder"}} => Unsigned: true}
func TestNamedDrivesAreBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{Mode: intent.ModeRequire}, false)
	w.set(func() { w.drives = map[ident.DriveID]ident.ProjectID{"5123": "p1"} })
	for _, tc := range []struct{ method, path, call, body string }{
		{"DELETE", "files", "files.delete", `{"items":[{"id":"/5123/a","specification":{"collection":"5123"}}]}`},
		{"POST", "files/collections/rename", "files.collections.rename", `{"items":[{"id":"5123","newTitle":"x"}]}`},
		{"POST", "jobs/openTerminalInFolder", "jobs.openTerminalInFolder", `{"items":[{"folder":"/5123/a"}]}`},
	} {
		path := "/ucloud/" + provider + "/" + tc.path
		for _, workspace := range []string{"", "p2"} {
			if rec := w.call(tc.method, path, tc.body, w.sign(tc.call, workspace)); rec.Code != 482 {
				t.Errorf("%s, signed for %q: %d %s", tc.call, workspace, rec.Code, rec.Body)
			}
		}
		if rec := w.call(tc.method, path, tc.body, w.sign(tc.call, "p1")); rec.Code == 482 || strings.Contains(rec.Body.String(), "igned") {
			t.Errorf("%s, signed for its workspace: %d %s", tc.call, rec.Code, rec.Body)
		}
	}
}

// frame sends a first frame, and then one that is never valid, and tells how the socket is closed.
func (w *world) frame(path, call, payload, signed string, header ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	token := hoptoken.Mint(w.key, hoptoken.Claims{
		UID: adaUID, User: ada, Method: "GET", Path: path, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassCore,
	})
	ws, _, err := websocket.Dial(ctx, w.srv.URL+path+"?usernameHint="+url.QueryEscape(ada.HeaderValue()), &websocket.DialOptions{
		HTTPHeader: http.Header{hoptoken.Header: {token}, http.CanonicalHeaderKey(intent.HeaderSignedIntent): header},
	})
	must(w.t, err)
	defer ws.CloseNow() //nolint:errcheck // a test
	field := ""
	if signed != "" {
		field = fmt.Sprintf(`,"signedIntent":%q`, signed)
	}
	must(w.t, ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `{"call":%q,"streamId":"ignored","payload":%s,"bearer":"","project":null%s}`, call, payload, field)))
	_ = ws.Write(ctx, websocket.MessageText, []byte(`{}`)) // it may be closed already
	for {
		if _, _, err := ws.Read(ctx); err != nil {
			return err.Error()
		}
	}
}

// TestFirstFrames: sockets are refused by their first frame.
//
//attack:actor compromised core
//attack:does Searches in the files of a user who has signed nothing.
//attack:control The first frame of a search carries an intent, which is checked before anything is looked at.
//attack:remove internal/fileserver/search.go: err = c.CheckFrame(c.Context(), m.Call, m.SignedIntent, m.Payload) => err = nil
//attack:actor compromised core
//attack:does Follows the log of a user's job with a signature of somebody else.
//attack:control An intent in the first frame of a log is checked, and the operator can require one.
//attack:remove internal/joblogs/http.go: if err := c.CheckFrame(ctx, req.Call, req.SignedIntent, req.Payload); err != nil { => if err := error(nil); err != nil {
func TestFirstFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{Mode: intent.ModeRequire}, true)
	const (
		refused = "Invalid signature"
		none    = "cannot make"
	)
	search := `{"query":"x","owner":{"createdBy":"AdaLovelace#4821","project":"p1"},"flags":{},"category":{"name":"s","provider":"hpc-example"},"currentFolder":"/5123"}`
	logs := `{"type":"init","job":{"id":"90817","owner":{"createdBy":"AdaLovelace#4821","project":"p1"}}}`
	try := func(path, call, payload, signed, why string) {
		t.Helper()
		got := w.frame(path, call, payload, signed)
		if (why == "") != (!strings.Contains(got, refused) && !strings.Contains(got, none)) || !strings.Contains(got, why) {
			t.Errorf("%s: closed with %q, want %q", call, got, why)
		}
	}
	files := func(signed, why string) {
		t.Helper()
		try("/ucloud/"+provider+"/files", "files.provider."+provider+".streamingSearch", search, signed, why)
	}
	jobs := func(signed, why string) {
		t.Helper()
		try(follow, "jobs.provider."+provider+".follow", logs, signed, why)
	}
	files("", refused)
	files("x", refused)
	files(w.sign("files.browse", "p1"), refused)
	files(w.sign("files.search", "p2"), refused)
	files(w.sign("files.search", "p1"), "")
	files(w.sign("files.streamingSearch", "p1"), "")
	// Only the frame counts, and not what came with the request for the socket.
	if got := w.frame("/ucloud/"+provider+"/files", "files.provider."+provider+".streamingSearch", search, "", w.sign("files.search", "p1")); !strings.Contains(got, refused) {
		t.Errorf("an intent in the header only: closed with %q", got)
	}
	if got := w.frame("/ucloud/"+provider+"/files", "files.provider."+provider+".streamingSearch", search, w.sign("files.search", "p1"), "x.y.z"); strings.Contains(got, refused) {
		t.Errorf("something else in the header: closed with %q", got)
	}
	jobs("", "") // none is required
	jobs("x", refused)
	jobs(w.sign("files.browse", "p1"), refused)
	jobs(w.sign("jobs.follow", "p2"), refused)
	jobs(w.sign("jobs.follow", "p1"), "")
	w.set(func() { w.start.Intents.Calls = map[string]string{"jobs.follow": intent.ModeRequire} })
	w.parts.configure(w)
	jobs("", none)
	jobs(w.sign("jobs.follow", "p1"), "")
}

const browse = `{"resolvedCollection":{"id":"5123","owner":{"createdBy":"AdaLovelace#4821","project":null}},"Browse":{"flags":{"path":"/5123"}}}`

func (w *world) browse(signed string) int {
	return w.call("POST", "/ucloud/"+provider+"/files/browse", browse, signed).Code
}

// TestLogPasses: under log everything passes, and the server learns what would not.
func TestLogPasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{}, false)
	plain := w.browse("") // without a policy
	if plain == 482 || plain == 503 {
		t.Fatalf("without a policy: %d", plain)
	}
	w.set(func() { w.start.Intents.Mode = intent.ModeLog })
	w.parts.configure(w)
	good := w.sign("files.browse", "")
	for _, signed := range []string{"", "", "x", good, good, w.sign("files.copy", "")} {
		if code := w.browse(signed); code != plain {
			t.Errorf("%.8q: %d instead of %d", signed, code, plain)
		}
	}
	w.set(func() { w.broken = true })
	w.parts.intents.KeysChanged()
	if code := w.browse(w.sign("files.browse", "")); code != plain {
		t.Errorf("without keys: %d instead of %d", code, plain)
	}
	w.parts.intents.Close(t.Context())
	got := map[string]int64{}
	w.set(func() {
		for _, c := range w.seen {
			if c.Mode != intent.ModeLog || c.Call != "files.browse" || c.User != "" {
				t.Errorf("counted %+v", c)
			}
			got[c.Verdict+" "+c.Form] += c.Count
		}
	})
	if want := map[string]int64{"missing ": 2, "malformed ": 1, "ok 1": 2, "call 1": 1, "unavailable ": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// TestRevokedKeyIsRefused: as soon as the server says that keys have changed.
//
//attack:actor compromised core
//attack:does Uses signatures of a stolen key that its owner has just revoked.
//attack:control Keys that were read are dropped as soon as the server says that they have changed.
//attack:remove internal/intentclient/keys.go: k.keys, k.known = nil, false => _ = k.keys
func TestRevokedKeyIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{Mode: intent.ModeRequire}, false)
	if code := w.browse(w.sign("files.browse", "")); code == 482 || code == 503 {
		t.Fatalf("with a key: %d", code)
	}
	w.set(func() { w.keys = nil })
	w.parts.intents.KeysChanged()
	if code := w.browse(w.sign("files.browse", "")); code != 482 {
		t.Errorf("with a revoked key: %d", code)
	}
	// Another device, of which nobody has told the instance yet.
	next := intentkit.NewRSA(t, "k2", 2048)
	w.set(func() { w.keys = []*intentkit.Signer{next} })
	if code := w.browse(next.Form1(intentkit.Claims{Call: "files.browse", Username: string(ada)})); code == 482 {
		t.Errorf("with the key of another device: %d", code)
	}
}

// TestServerAway: trouble of our own is 503, which Core repeats, and never 482, which makes browsers drop their keys.
func TestServerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ipcapi.IntentSettings{Mode: intent.ModeRequire}, false)
	sign := func() string { return w.sign("files.browse", "") }
	w.set(func() { w.away = time.Second })
	if code := w.browse(sign()); code != 503 {
		t.Errorf("no key was ever read: %d", code)
	}
	w.set(func() { w.away, w.broken = 0, true })
	if code := w.browse(sign()); code != 503 {
		t.Errorf("the database is broken: %d", code)
	}
	w.set(func() { w.broken = false })
	if code := w.browse(sign()); code == 482 || code == 503 {
		t.Errorf("all is well: %d", code)
	}
	w.set(func() { w.away = time.Minute })
	if code := w.browse(sign()); code == 482 || code == 503 {
		t.Errorf("away for a minute: %d", code)
	}
	w.set(func() { w.away = 6 * time.Minute })
	if code := w.browse(sign()); code != 503 {
		t.Errorf("away for too long: %d", code)
	}
	w.set(func() { w.away = time.Minute })
	w.parts.intents.KeysChanged()
	if code := w.browse(sign()); code != 503 {
		t.Errorf("away after keys have changed: %d", code)
	}
}
