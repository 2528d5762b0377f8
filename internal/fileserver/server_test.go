package fileserver

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ucloud-im/internal/files"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/tasks"
)

const (
	testProvider = "hpc-example"
	testUser     = ident.UCloudUser("AdaLovelace#4821")
	testUID      = ident.UID(61021)
)

// instance is a handler with what a gateway needs to call it.
type instance struct {
	http.Handler
	key hoptoken.Key
	log *bytes.Buffer
}

func newInstance(t *testing.T, change func(*Options)) *instance {
	t.Helper()
	in := &instance{key: hoptoken.NewKey(), log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(in.log, nil))
	svc := files.New(files.Options{Provider: testProvider, Log: log, Timeout: time.Minute, Tasks: noTasks{}})
	t.Cleanup(func() {
		if err := svc.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	o := Options{
		Provider: testProvider, Files: svc, Log: log,
		Start: ipcapi.Start{Provider: testProvider, User: testUser, UID: testUID, HopKey: in.key[:]},
	}
	if change != nil {
		change(&o)
	}
	in.Handler = New(o)
	return in
}

// noTasks takes tasks and does nothing with them.
type noTasks struct{}

func (noTasks) Register(string, tasks.Runner)                     {}
func (noTasks) Submit(context.Context, tasks.Spec) (int64, error) { return 1, nil }

// call sends a request as the gateway would. change may spoil it.
func (in *instance) call(method, path string, body any, change func(*http.Request, *hoptoken.Claims)) *httptest.ResponseRecorder {
	text, ok := body.(string)
	if !ok {
		raw, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		text = string(raw)
	}
	r := httptest.NewRequest(method, path, strings.NewReader(text))
	r.Header.Set(ident.HeaderUser, testUser.HeaderValue())
	claims := hoptoken.Claims{
		UID: testUID, User: testUser, Method: method, Path: r.URL.Path, RequestID: "0123456789abcdef",
		Arrival: time.Now(), Class: hoptoken.ClassCore,
	}
	if change != nil {
		change(r, &claims)
	}
	if r.Header.Get(hoptoken.Header) == "" {
		r.Header.Set(hoptoken.Header, hoptoken.Mint(in.key, claims))
	}
	rec := httptest.NewRecorder()
	in.ServeHTTP(rec, r)
	return rec
}

func testDrive(base string) providerapi.Drive {
	return providerapi.Drive{
		ID: "5123", ProviderGeneratedID: testProvider + "-x\n" + base,
		Permissions: &providerapi.Permissions{Myself: providerapi.List[providerapi.Permission]{"READ", "EDIT"}},
		Specification: providerapi.DriveSpecification{
			Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: testProvider},
		},
	}
}

// TestEveryRouteIsGuarded spoils a request in every way there is, for every route.
//
//attack:actor local user
//attack:does Connects to the port of another user's instance and sends a request as Core would, without a hop token.
//attack:control Instances serve only requests with a hop token made for their route.
//attack:remove internal/fileserver/guard.go: claims, err := g.verifier.Verify(tokens[0], r.Method, r.URL.Path) => claims, err := hoptoken.Claims{Class: hoptoken.ClassCore}, error(nil)
//attack:actor internet
//attack:does Calls, as a browser without Core's token, what only Core may call.
//attack:control Each route of an instance says which class of caller it accepts.
//attack:remove internal/fileserver/guard.go: if claims.Class != route.Class { => if false {
//attack:actor compromised core
//attack:does Sends a request that names one user to the instance of another.
//attack:control The user header must name the user whom the instance serves.
//attack:remove internal/fileserver/guard.go: if user != g.verifier.User { => if user == "" {
func TestEveryRouteIsGuarded(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	must(t, os.WriteFile(filepath.Join(base, "kept"), nil, 0o600))
	other := hoptoken.NewKey()
	bodies := map[string]any{
		"POST files/browse":                      providerapi.FilesBrowse{ResolvedCollection: testDrive(base), Browse: providerapi.BrowseParams{Flags: providerapi.FileFlags{Path: ptr("/5123")}}},
		"POST files/retrieve":                    providerapi.FilesRetrieve{ResolvedCollection: testDrive(base), Retrieve: providerapi.RetrieveParams{ID: "/5123"}},
		"POST files/move":                        providerapi.BulkRequest[providerapi.MoveFile]{Items: []providerapi.MoveFile{{OldID: "/5123/kept", NewID: "/5123/kept", ResolvedOldCollection: testDrive(base), ResolvedNewCollection: testDrive(base)}}},
		"POST files/copy":                        providerapi.BulkRequest[providerapi.MoveFile]{Items: []providerapi.MoveFile{{OldID: "/5123/kept", NewID: "/5123/new", ResolvedOldCollection: testDrive(base), ResolvedNewCollection: testDrive(base)}}},
		"POST files/trash":                       providerapi.BulkRequest[providerapi.FileInDrive]{Items: []providerapi.FileInDrive{{ID: "/5123/old", ResolvedCollection: testDrive(base)}}},
		"POST files/emptyTrash":                  providerapi.BulkRequest[providerapi.FileInDrive]{Items: []providerapi.FileInDrive{{ID: "/5123/Trash", ResolvedCollection: testDrive(base)}}},
		"POST files/folder":                      providerapi.BulkRequest[providerapi.CreateFolder]{Items: []providerapi.CreateFolder{{ID: "/5123/made", ResolvedCollection: testDrive(base), ConflictPolicy: "MERGE_RENAME"}}},
		"POST files/collections":                 providerapi.BulkRequest[providerapi.Drive]{},
		"DELETE files/collections":               providerapi.BulkRequest[providerapi.Drive]{},
		"POST files/collections/rename":          providerapi.BulkRequest[providerapi.RenameDrive]{},
		"POST files/collections/updateAcl":       providerapi.BulkRequest[providerapi.UpdateDriveACL]{},
		"POST files/collections/onUpdatedLabels": providerapi.BulkRequest[providerapi.Drive]{Items: []providerapi.Drive{testDrive(base)}},
		"POST files/collections/verify":          providerapi.BulkRequest[providerapi.Drive]{},
		"POST shares":                            "{}", // refused
		"DELETE shares":                          "{}",
		"GET files":                              "", // a search; without an upgrade there is nothing here
		"DELETE files": providerapi.BulkRequest[providerapi.DeleteFile]{Items: []providerapi.DeleteFile{{
			ID: "/5123/old", Permissions: testDrive(base).Permissions, Specification: providerapi.FileSpecification{Collection: "5123"},
		}}},
	}
	refused := map[string]bool{"POST shares": true, "DELETE shares": true}
	for _, r := range notOffered() {
		bodies[r.Method+" "+r.Path], refused[r.Method+" "+r.Path] = "{}", r.Method != http.MethodGet
	}
	must(t, os.Mkdir(filepath.Join(base, "Trash"), 0o700))
	in := newInstance(t, nil)
	if n := len(in.Handler.(*guard).routes); n != len(bodies) {
		t.Fatalf("%d routes, %d are tested", n, len(bodies))
	}
	in.call("POST", "/ucloud/"+testProvider+"/files/browse", bodies["POST files/browse"], nil) // makes the drive known
	for route, body := range bodies {
		method, path, _ := strings.Cut(route, " ")
		url := "/ucloud/" + testProvider + "/" + path
		for name, tc := range map[string]struct {
			want   int
			change func(*http.Request, *hoptoken.Claims)
		}{
			"no token":         {401, func(r *http.Request, _ *hoptoken.Claims) { r.Header.Set(hoptoken.Header, " ") }},
			"Core's own token": {401, func(r *http.Request, _ *hoptoken.Claims) { r.Header.Set(hoptoken.Header, "eyJhbGciOiJSUzI1NiJ9.e30.x") }},
			"two tokens": {401, func(r *http.Request, c *hoptoken.Claims) {
				r.Header[hoptoken.Header] = []string{hoptoken.Mint(in.key, *c), hoptoken.Mint(in.key, *c)}
			}},
			"key of another route": {503, func(r *http.Request, c *hoptoken.Claims) { r.Header.Set(hoptoken.Header, hoptoken.Mint(other, *c)) }},
			"other path":           {503, func(_ *http.Request, c *hoptoken.Claims) { c.Path = "/ucloud/x" }},
			"other uid":            {403, func(_ *http.Request, c *hoptoken.Claims) { c.UID++ }},
			"other user":           {403, func(_ *http.Request, c *hoptoken.Claims) { c.User = "GraceHopper#1907" }},
			"browser":              {403, func(_ *http.Request, c *hoptoken.Claims) { c.Class = hoptoken.ClassBrowser }},
			"too old":              {503, func(_ *http.Request, c *hoptoken.Claims) { c.Arrival = time.Now().Add(-6 * time.Second) }},
			"header of another user": {403, func(r *http.Request, _ *hoptoken.Claims) {
				r.Header.Set(ident.HeaderUser, ident.UCloudUser("GraceHopper#1907").HeaderValue())
			}},
			"unreadable header": {400, func(r *http.Request, _ *hoptoken.Claims) { r.Header.Set(ident.HeaderUser, "@@@") }},
			"two headers":       {403, func(r *http.Request, _ *hoptoken.Claims) { r.Header.Add(ident.HeaderUser, testUser.HeaderValue()) }},
			"no header":         {403, func(r *http.Request, _ *hoptoken.Claims) { r.Header.Del(ident.HeaderUser) }},
			"as it should be":   {200, nil},
		} {
			if tc.want == 200 && route == "GET files" {
				tc.want = 404
			}
			if tc.want == 200 && refused[route] {
				tc.want = 400
			}
			must(t, os.WriteFile(filepath.Join(base, "old"), nil, 0o600))
			read := &countingReader{}
			rec := in.call(method, url, body, func(r *http.Request, c *hoptoken.Claims) {
				read.Reader = r.Body
				r.Body = io.NopCloser(read)
				if tc.change != nil {
					tc.change(r, c)
				}
			})
			if rec.Code != tc.want {
				t.Errorf("%s, %s: %d %s", route, name, rec.Code, rec.Body)
			}
			if tc.want != 200 {
				if read.n > 0 {
					t.Errorf("%s, %s: %d bytes of the body were read", route, name, read.n)
				}
				apischema.Provider(t).Error(t, rec.Body.Bytes())
			}
			if _, err := os.Stat(filepath.Join(base, "made")); err == nil != (tc.want == 200 && path == "files/folder") {
				t.Errorf("%s, %s: a folder was made: %v", route, name, err)
			}
			if _, err := os.Stat(filepath.Join(base, "old")); err != nil != (tc.want == 200 && (path == "files/trash" || route == "DELETE files")) {
				t.Errorf("%s, %s: a file was removed: %v", route, name, err)
			}
			_ = os.Remove(filepath.Join(base, "made"))
		}
		if rec := in.call(http.MethodGet, url, body, nil); rec.Code != 404 && method != http.MethodGet {
			t.Errorf("GET %s: %d", path, rec.Code)
		}
	}
	if !strings.Contains(in.log.String(), "request refused") || strings.Contains(in.log.String(), "eyJ") {
		t.Errorf("log:\n%s", in.log)
	}
}

type countingReader struct {
	io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

func ptr[T any](v T) *T { return &v }

//attack:actor internet
//attack:does Uses a new call whose author forgot to say who may make it.
//attack:control A route without a class of callers ends the program at its start.
//attack:remove internal/fileserver/guard.go: if !known || r.MaxBody <= 0 || r.Serve == nil || r.Method == "" || !wellFormed(r.Path) { => if known && r.MaxBody < 0 {
func TestRoutesMustBeComplete(t *testing.T) {
	t.Parallel()
	good := Route{
		Method: "POST", Path: "x", Class: hoptoken.ClassBrowser, MaxBody: 1, Intent: intent.Rule{Exempt: "has a token"},
		Serve: func(http.ResponseWriter, *Call) error { return nil },
	}
	for name, change := range map[string]func(*Options){
		"no class":      func(o *Options) { r := good; r.Class = 0; o.Routes = []Route{r} },
		"unknown class": func(o *Options) { r := good; r.Class = 77; o.Routes = []Route{r} },
		"no body limit": func(o *Options) { r := good; r.MaxBody = 0; o.Routes = []Route{r} },
		"no handler":    func(o *Options) { r := good; r.Serve = nil; o.Routes = []Route{r} },
		"no rule":       func(o *Options) { r := good; r.Intent = intent.Rule{}; o.Routes = []Route{r} },
		"intents of browsers": func(o *Options) {
			r := good
			r.Intent = intent.Rule{Calls: []string{"x.y"}}
			o.Routes = []Route{r}
		},
		"twice":   func(o *Options) { o.Routes = []Route{good, good} },
		"taken":   func(o *Options) { r := good; r.Path = "files/browse"; o.Routes = []Route{r} },
		"slash":   func(o *Options) { r := good; r.Path = "/x"; o.Routes = []Route{r} },
		"no key":  func(o *Options) { o.Start.HopKey = nil },
		"no user": func(o *Options) { o.Start.User = "" },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: New did not refuse", name)
				}
			}()
			newInstance(t, change)
		}()
	}
	in := newInstance(t, func(o *Options) { o.Routes = []Route{good} })
	if rec := in.call("POST", "/ucloud/"+testProvider+"/x", "", func(r *http.Request, c *hoptoken.Claims) {
		c.Class = hoptoken.ClassBrowser
		r.Header.Del(ident.HeaderUser)
	}); rec.Code != 200 {
		t.Errorf("a browser route: %d %s", rec.Code, rec.Body)
	}
	if rec := in.call("POST", "/ucloud/"+testProvider+"/x", "", nil); rec.Code != 403 {
		t.Errorf("Core on a browser route: %d", rec.Code)
	}
}

func TestUnknownPaths(t *testing.T) {
	t.Parallel()
	in := newInstance(t, nil)
	for _, path := range []string{"/", "/ucloud/other/files/browse", "/ucloud/" + testProvider + "/files", "/ucloud/" + testProvider, "/files/browse"} {
		if rec := in.call("POST", path, "{}", nil); rec.Code != 404 {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
	if rec := in.call("POST", "/ucloud/"+testProvider+"/files/browse/", "{}", nil); rec.Code != 400 {
		t.Errorf("trailing slash: %d %s", rec.Code, rec.Body)
	}
}

// example is a file of the contract's golden examples.
type example struct {
	OperationID, Method, Path string
	Headers                   map[string]string
	Request, Response         json.RawMessage
	Status                    int
}

// TestExamples replays the golden examples against real directories and compares the answers, except for what the
// directory cannot have: owners and times.
func TestExamples(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "climate_model")
	must(t, os.MkdirAll(filepath.Join(base, "runs", "7"), 0o770))
	must(t, os.Chmod(filepath.Join(base, "runs", "7"), 0o770))
	must(t, os.WriteFile(filepath.Join(base, "runs", "README.md"), make([]byte, 1834), 0o660))
	must(t, os.Chmod(filepath.Join(base, "runs", "README.md"), 0o660))
	must(t, os.WriteFile(filepath.Join(base, "runs", "7", "out.log"), []byte("log"), 0o660))
	home := t.TempDir()
	in := newInstance(t, nil)
	for _, name := range []string{"files.browse", "files.retrieve", "files.retrieve--not-found", "files.createFolder", "files.copy", "files.move", "files.trash", "files.emptyTrash"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("..", "providerapi", "testdata", "examples", "provider", name+".json"))
			must(t, err)
			var ex example
			must(t, json.Unmarshal(text, &ex))
			body := strings.NewReplacer("/data/projects/climate_model", base, "/home/alovelace", home).Replace(string(ex.Request))
			rec := in.call(ex.Method, ex.Path, body, func(r *http.Request, _ *hoptoken.Claims) {
				if got := ex.Headers["ucloud-username"]; got != r.Header.Get(ident.HeaderUser) {
					t.Errorf("user header %q", got)
				}
			})
			if rec.Code != ex.Status {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			if got := rec.Header().Get("Content-Type"); got != "application/json; charset=utf-8" {
				t.Errorf("content type %q", got)
			}
			if ex.Status == 200 {
				apischema.Provider(t).Response(t, ex.OperationID, rec.Body.Bytes())
			} else {
				apischema.Provider(t).Error(t, rec.Body.Bytes())
			}
			var got, want any
			must(t, json.Unmarshal(rec.Body.Bytes(), &got))
			must(t, json.Unmarshal(ex.Response, &want))
			if name != "files.browse" && name != "files.retrieve" && ex.Status == 200 {
				// One {} per item; the example leaves the content out, which Core ignores.
				want = map[string]any{"responses": []any{map[string]any{}}}
			}
			if d := cmp.Diff(neutral(want), neutral(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	if st, err := os.Stat(filepath.Join(base, "Trash", "8")); err != nil || !st.IsDir() {
		t.Errorf("the folder is not in the trash: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(home, "out.log")); err != nil || string(text) != "log" {
		t.Errorf("the file was not moved: %v", err)
	}
}

// neutral replaces what depends on the machine by its type.
func neutral(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			switch k {
			case "createdAt", "modifiedAt", "accessedAt", "unixOwner", "unixGroup", "unixMode", "why":
				v[k] = fmt.Sprintf("%T", e)
			default:
				v[k] = neutral(e)
			}
		}
	case []any:
		for i := range v {
			v[i] = neutral(v[i])
		}
	}
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestAnswersMatchTheSchema lists a directory with all kinds of names and entries, compressed and page by page.
func TestAnswersMatchTheSchema(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for _, n := range []string{"a", "Ä", "\xff", "\U0010FE80", "a\nb", `"`, `\`, "<&>", "\u2028", "\x01", "日本語"} {
		must(t, os.WriteFile(filepath.Join(base, n), []byte("x"), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(base, "Trash"), 0o700))
	must(t, os.Symlink("/", filepath.Join(base, "out")))
	in := newInstance(t, nil)
	seen := map[string]bool{}
	var next *string
	for {
		req := providerapi.FilesBrowse{ResolvedCollection: testDrive(base), Browse: providerapi.BrowseParams{
			Flags: providerapi.FileFlags{Path: ptr("/5123"), IncludeSizes: ptr(true)}, ItemsPerPage: 5, Next: next,
		}}
		rec := in.call("POST", "/ucloud/"+testProvider+"/files/browse", req, func(r *http.Request, _ *hoptoken.Claims) {
			r.Header.Set("Accept-Encoding", "gzip")
		})
		body := rec.Body.Bytes()
		if rec.Header().Get("Content-Encoding") == "gzip" {
			zr, err := gzip.NewReader(bytes.NewReader(body))
			must(t, err)
			body, err = io.ReadAll(zr)
			must(t, err)
		}
		if rec.Code != 200 {
			t.Fatalf("%d %s", rec.Code, body)
		}
		apischema.Provider(t).Response(t, "files.browse", body)
		var page providerapi.Page[providerapi.File]
		must(t, json.Unmarshal(body, &page))
		for _, f := range page.Items {
			seen[f.ID] = true
			// Every id is accepted back.
			rec := in.call("POST", "/ucloud/"+testProvider+"/files/retrieve", providerapi.FilesRetrieve{
				ResolvedCollection: testDrive(base), Retrieve: providerapi.RetrieveParams{ID: f.ID},
			}, nil)
			if rec.Code != 200 {
				t.Errorf("%q: %d %s", f.ID, rec.Code, rec.Body)
			}
			apischema.Provider(t).Response(t, "files.retrieve", rec.Body.Bytes())
		}
		if next = page.Next; next == nil {
			break
		}
	}
	if len(seen) != 13 {
		t.Errorf("%d entries: %v", len(seen), seen)
	}
}

// TestCoreSpellings: the wire has a capital letter in one place, nulls for lists, and members that mean nothing here.
func TestCoreSpellings(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	in := newInstance(t, nil)
	drive, err := json.Marshal(testDrive(base))
	must(t, err)
	for _, body := range []string{
		`{"resolvedCollection":%s,"Browse":{"flags":{"path":"/5123"}}}`,
		`{"resolvedCollection":%s,"browse":{"flags":{"path":"/5123","filterLabels":null,"future":[1]},"itemsPerPage":0,"next":null}}`,
		`{"RESOLVEDCOLLECTION":%s,"BROWSE":{"Flags":{"Path":"/5123"}},"type":"x"}`,
	} {
		rec := in.call("POST", "/ucloud/"+testProvider+"/files/browse", fmt.Sprintf(body, drive), nil)
		if got := rec.Body.String(); rec.Code != 200 || got != `{"items":[],"itemsPerPage":50,"next":null}` {
			t.Errorf("%d %s", rec.Code, got)
		}
	}
	for _, body := range []string{"", "{}", `{"items":null}`, `{"items":[]}`} {
		if rec := in.call("POST", "/ucloud/"+testProvider+"/files/folder", body, nil); rec.Code != 200 || strings.TrimSpace(rec.Body.String()) != "{}" {
			t.Errorf("folder %q: %d %s", body, rec.Code, rec.Body)
		}
	}
	for _, body := range []string{"x", `{"items":{}}`, `{"items":[{"id":5}]}`} {
		if rec := in.call("POST", "/ucloud/"+testProvider+"/files/folder", body, nil); rec.Code != 400 {
			t.Errorf("folder %q: %d %s", body, rec.Code, rec.Body)
		}
	}
	if rec := in.call("POST", "/ucloud/"+testProvider+"/files/browse", strings.Repeat(" ", oneBody+1), nil); rec.Code != 413 {
		t.Errorf("large body: %d", rec.Code)
	}
}

// TestEncodingEqualsPackageJSON compares the encoder with encoding/json for anything that a file can be.
func TestEncodingEqualsPackageJSON(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{`"`, `\`, "\x7f", "\x00", "\u2028", "\ufffd", "\xff", "a\xffb"}))
	optional := func(t *rapid.T, name string) *int64 {
		if rapid.Bool().Draw(t, name+"?") {
			return ptr(rapid.Int64().Draw(t, name))
		}
		return nil
	}
	rapid.Check(t, func(t *rapid.T) {
		var page providerapi.Page[providerapi.File]
		page.ItemsPerPage = rapid.Int().Draw(t, "n")
		if rapid.Bool().Draw(t, "next") {
			page.Next = ptr(text.Draw(t, "next"))
		}
		for range rapid.IntRange(0, 3).Draw(t, "items") {
			f := providerapi.File{ID: text.Draw(t, "id"), CreatedAt: providerapi.Millis(rapid.Int64().Draw(t, "created"))}
			f.Status = providerapi.FileStatus{
				Type: providerapi.TypeDirectory, Icon: rapid.SampledFrom([]string{"", providerapi.IconTrash}).Draw(t, "icon"),
				SizeInBytes: optional(t, "size"), SizeIncludingChildrenInBytes: optional(t, "all"),
				ModifiedAt: providerapi.Millis(rapid.Int64().Draw(t, "modified")), AccessedAt: providerapi.Millis(rapid.Int64().Draw(t, "accessed")),
				UnixMode: rapid.IntRange(0, 0o777).Draw(t, "mode"), UnixOwner: ident.UID(rapid.Uint32().Draw(t, "uid")),
				UnixGroup: ident.GID(rapid.Uint32().Draw(t, "gid")),
			}
			if n := optional(t, "count"); n != nil {
				f.Status.FileCount, f.Status.DirectoryCount = ptr(uint64(*n)), ptr(uint64(*n)/2)
			}
			page.Items = append(page.Items, f)
		}
		raw := appendPage(nil, &page)
		if !json.Valid(raw) {
			t.Fatalf("not JSON: %q", raw)
		}
		var got, want any
		reference, err := json.Marshal(page)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(reference, &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
	})
}

func BenchmarkBrowsePage(b *testing.B) {
	page := providerapi.Page[providerapi.File]{ItemsPerPage: 250}
	for i := range 250 {
		page.Items = append(page.Items, providerapi.File{ID: fmt.Sprintf("/5123/runs/file-%06d.txt", i), Status: providerapi.FileStatus{Type: "FILE", SizeInBytes: ptr(int64(i))}})
	}
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			appendPage(make([]byte, 0, 512+400*len(page.Items)), &page)
		}
	})
	b.Run("package json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := json.Marshal(page); err != nil {
				b.Fatal(err)
			}
		}
	})
}
