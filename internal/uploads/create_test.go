package uploads

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
)

func TestChooseProtocol(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind    string
		offered []string
		want    string // "" is a refusal
	}{
		{kindFile, nil, protocolV2},
		{kindFolder, []string{}, protocolV2},
		{kindFile, []string{"CHUNKED", "WEBSOCKET"}, protocolV2},
		{kindFile, []string{"CHUNKED", "WEBSOCKET_V2"}, protocolV2},
		{kindFolder, []string{"WEBSOCKET_V2", "WEBSOCKET_V1"}, protocolV2},
		{kindFile, []string{"WEBSOCKET_V1", "CHUNKED"}, protocolV1},
		{kindFile, []string{"NEW", "CHUNKED", "WEBSOCKET_V1"}, protocolChunked},
		{kindFile, []string{"NEW"}, ""},
		{kindFolder, []string{"WEBSOCKET_V1", "CHUNKED"}, ""},
	} {
		got, err := chooseProtocol(tc.kind, tc.offered)
		if got != tc.want || (tc.want == "") != failure.Is(err, failure.Invalid) {
			t.Errorf("%s %v: %q, %v", tc.kind, tc.offered, got, err)
		}
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	write(t, filepath.Join(w.dir, "d/file"), "x")
	if err := os.Symlink("/", filepath.Join(w.dir, "out")); err != nil {
		t.Fatal(err)
	}
	readOnly := testDrive(w.dir)
	readOnly.Permissions.Myself = providerapi.List[providerapi.Permission]{"READ"}
	foreign := testDrive(w.dir)
	foreign.Specification.Product.Provider = "other"
	for _, tc := range []struct {
		name   string
		item   CreateUpload
		status int
	}{
		{"new file", w.item("/d/new", kindFile, rename), 200},
		{"no type", w.item("/d/new", "", rename), 200},
		{"no policy", w.item("/d/new", kindFile, ""), 200},
		{"existing file", w.item("/d/file", kindFile, rename), 200},
		{"existing file, replace", w.item("/d/file", kindFile, replace), 200},
		{"existing file, reject", w.item("/d/file", kindFile, reject), 409},
		{"folder in the way", w.item("/d", kindFile, replace), 409},
		{"folder in the way, rename", w.item("/d", kindFile, rename), 200},
		{"no parent", w.item("/no/new", kindFile, rename), 404},
		{"parent is a file", w.item("/d/file/new", kindFile, rename), 404},
		{"parent leaves the drive", w.item("/out/new", kindFile, rename), 403},
		{"drive as file", w.item("", kindFile, rename), 400},
		{"drive as folder", w.item("", folder, rename), 200},
		{"existing folder", w.item("/d", folder, rename), 200},
		{"new folder", w.item("/d/photos", folder, rename), 200},
		{"new folder without parent", w.item("/no/photos", folder, rename), 404},
		{"file in the place of the folder", w.item("/d/file", folder, rename), 409},
		{"unknown type", w.item("/d/new", "LINK", rename), 400},
		{"unknown policy", w.item("/d/new", kindFile, "OVERWRITE"), 400},
		{"unknown protocol", w.item("/d/new", kindFile, rename, "FTP"), 400},
		{"climbs", CreateUpload{ID: "/5123/../6/x", ResolvedCollection: testDrive(w.dir)}, 400},
		{"other drive", CreateUpload{ID: "/6/x", ResolvedCollection: testDrive(w.dir)}, 400},
		{"long name", w.item("/"+strings.Repeat("n", 256), kindFile, rename), 400},
		{"name of a draft", w.item("/.x.ucloud-upload-0123456789abcdef", kindFile, rename), 400},
		{"may only read", CreateUpload{ID: "/5123/d/new", ConflictPolicy: rename, ResolvedCollection: readOnly}, 403},
		{"other provider", CreateUpload{ID: "/5123/d/new", ConflictPolicy: rename, ResolvedCollection: foreign}, 400},
	} {
		status, body := w.post("files/upload", providerapi.BulkRequest[CreateUpload]{Items: []CreateUpload{tc.item}})
		if status != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, status, body, tc.status)
		}
	}
	w.store.fail(failure.New(failure.PaymentRequired, "locked"))
	if status, _ := w.post("files/upload", providerapi.BulkRequest[CreateUpload]{Items: []CreateUpload{w.item("/d/new", kindFile, rename)}}); status != 402 {
		t.Errorf("locked workspace: %d", status)
	}
}

// TestCreateAnswers: one answer for each item, in order, to the byte of the contract.
func TestCreateAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	items := []CreateUpload{
		w.item("/a", kindFile, rename, "CHUNKED", "WEBSOCKET"), w.item("/b", kindFile, replace, "CHUNKED"), w.item("/c", folder, merge),
	}
	status, body := w.post("files/upload", map[string]any{"type": "bulk", "items": items, "more": 1})
	if status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	var raw map[string][]map[string]string
	if err := json.Unmarshal([]byte(body), &raw); err != nil || len(raw) != 1 || len(raw["responses"]) != 3 {
		t.Fatalf("%v: %s", err, body)
	}
	base := strings.TrimPrefix(w.http.URL, "http") + "/ucloud/hpc-example/upload?token="
	for i, want := range []struct{ scheme, protocol, object string }{
		{"ws", protocolV2, "/5123/a"}, {"http", protocolChunked, "/5123/b"}, {"ws", protocolV2, "/5123/c"},
	} {
		got := raw["responses"][i]
		token := url.QueryEscape(got["token"])
		if len(got) != 3 || got["protocol"] != want.protocol || got["endpoint"] != want.scheme+base+token+"&usernameHint=QWRhTG92ZWxhY2UjNDgyMQ%3D%3D" {
			t.Errorf("answer %d: %v", i, got)
		}
		if it := w.store.items[i]; it.Object != want.object || it.Drive != "5123" || it.Owner.User != testUser || it.Category != "storage" || len(it.Data) > ipcapi.MaxSessionData {
			t.Errorf("stored %d: %+v", i, it)
		}
	}
	items = append(items, w.item("/no/x", kindFile, rename), w.item("/no/y", kindFile, rename))
	if status, body := w.post("files/upload", providerapi.BulkRequest[CreateUpload]{Items: items}); status != 404 || !strings.Contains(body, "2 of 5") || len(w.store.items) != 3 {
		t.Errorf("with failures: %d %s, %d sessions", status, body, len(w.store.items))
	}
}

// TestRefusedBeforeUpgrade: a wrong token never gets a socket (contract 11 section 2).
func TestRefusedBeforeUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), func(o *Options) { o.SessionConns = 2 })
	s := w.session("/x", folder, rename)
	base := strings.Split(s.Endpoint, "?")[0]
	try := func(endpoint string, header http.Header) int {
		ws, res, err := websocket.Dial(t.Context(), endpoint, &websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			ws.CloseNow()
			return 101
		}
		if res == nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}
	for _, query := range []string{"", "?token=", "?token=other", "?token=" + s.Token + "&token=other"} {
		if got := try(base+query, nil); got != 404 {
			t.Errorf("%q: %d", query, got)
		}
	}
	for origin, want := range map[string]int{
		testOrigin: 101, w.http.URL: 101, "https://evil.example": 403, "null": 403, "http://ucloud.example.org": 403, testOrigin + ".evil.example": 403,
	} {
		if got := try(s.Endpoint, http.Header{"Origin": {origin}}); got != want {
			t.Errorf("from %s: %d, want %d", origin, got, want)
		}
	}
	w.settle()
	if got := try(s.Endpoint, http.Header{"Authorization": {"x"}}); got != 403 {
		t.Errorf("as Core: %d", got)
	}
	res, err := http.Get(strings.Replace(s.Endpoint, "ws", "http", 1))
	if err != nil || res.StatusCode != 400 {
		t.Errorf("without upgrade: %v, %v", res, err)
	}
	res.Body.Close()
	w.store.fail(failure.New(failure.Unavailable, "away"))
	if got := try(s.Endpoint, nil); got != 503 {
		t.Errorf("without the server: %d", got)
	}
	w.store.fail(failure.New(failure.Forbidden, "not a member"))
	if got := try(s.Endpoint, nil); got != 403 {
		t.Errorf("without the right: %d", got)
	}
	w.store.fail(nil)
	a, b := w.dial(s), w.dial(s)
	if got := try(s.Endpoint, nil); got != 429 {
		t.Errorf("too many connections: %d", got)
	}
	a.CloseNow()
	b.CloseNow()
	w.settle()
	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	if got := try(s.Endpoint, nil); got != 404 {
		t.Errorf("without the drive: %d", got)
	}
}

// TestSettingsOfCORS is the table of contract 11 section 6 for uploads in chunks.
func TestSettingsOfCORS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir(), nil)
	s := w.session("/x", kindFile, rename, "CHUNKED")
	for origin, want := range map[string]int{testOrigin: 204, w.http.URL: 204, "": 204, "https://evil.example": 403, "null": 403} {
		req, _ := http.NewRequest(http.MethodOptions, s.Endpoint, nil)
		if origin != "" {
			req.Header.Set("Origin", origin)
			req.Header.Set("Access-Control-Request-Method", "POST")
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("from %q: %d", origin, res.StatusCode)
		}
		headers := map[string]string{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": "", "Access-Control-Allow-Headers": "", "Access-Control-Max-Age": "", "Access-Control-Allow-Credentials": ""}
		if want == 204 && origin != "" {
			headers["Access-Control-Allow-Origin"] = origin
			headers["Access-Control-Allow-Methods"] = "POST, OPTIONS"
			headers["Access-Control-Allow-Headers"] = "Content-Type, Chunked-Upload-Token, Chunked-Upload-Offset, Chunked-Upload-Total-Size, UCloud-Username"
			headers["Access-Control-Max-Age"] = "600"
		}
		for name, value := range headers {
			if got := res.Header.Get(name); got != value {
				t.Errorf("from %q: %s is %q, want %q", origin, name, got, value)
			}
		}
	}
}
