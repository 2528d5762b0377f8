package fileserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"ucloud-im/internal/files"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// searchServer is an instance behind a real socket that knows one drive.
func searchServer(t *testing.T, base string, settings files.Settings) (*instance, *files.Service, *httptest.Server) {
	t.Helper()
	var svc *files.Service
	in := newInstance(t, func(o *Options) {
		svc = files.New(files.Options{
			Provider: testProvider, Log: o.Log, Settings: settings,
			FindDrive: func(_ context.Context, id ident.DriveID) (providerapi.Drive, error) {
				d := testDrive(base)
				d.ID = id
				return d, nil
			},
		})
		o.Files = svc
	})
	srv := httptest.NewServer(in)
	t.Cleanup(func() {
		srv.Close()
		if err := svc.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return in, svc, srv
}

// dial connects as Core does, through the gateway: the user is in the query and in the token.
func (in *instance) dial(t *testing.T, srv *httptest.Server, change func(*hoptoken.Claims)) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	path := "/ucloud/" + testProvider + "/files"
	claims := hoptoken.Claims{
		UID: testUID, User: testUser, Method: "GET", Path: path, RequestID: "0123456789abcdef", Arrival: time.Now(), Class: hoptoken.ClassCore,
	}
	if change != nil {
		change(&claims)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ws, res, err := websocket.Dial(ctx, srv.URL+path+"?usernameHint="+url.QueryEscape(testUser.HeaderValue()), &websocket.DialOptions{
		HTTPHeader: http.Header{hoptoken.Header: {hoptoken.Mint(in.key, claims)}},
	})
	if err == nil {
		ws.SetReadLimit(1 << 20)
		t.Cleanup(func() { ws.CloseNow() })
	}
	return ws, res, err
}

const searchTemplate = `{"call":"files.provider.hpc-example.streamingSearch","streamId":"ignored","payload":{"query":%q,` +
	`"owner":{"createdBy":"AdaLovelace#4821","project":null},"flags":{"includeOthers":false,"includeUpdates":false,"includeSupport":false,` +
	`"includeProduct":false,"filterLabels":null,"filterCreatedBy":null,"filterCreatedAfter":null,"sortBy":null,"sortDirection":null,` +
	`"includePermissions":null,"includeTimestamps":true,"includeSizes":null,"includeUnixInfo":null,"includeMetadata":null,` +
	`"filterByFileExtension":null,"path":null,"filterHiddenFiles":null},"category":{"name":"storage","provider":"hpc-example"},` +
	`"currentFolder":%q},"bearer":"","project":null}`

// run reads to the end of a connection and gives its messages, and how it was closed.
func run(t *testing.T, ws *websocket.Conn) (messages []string, code websocket.StatusCode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		kind, data, err := ws.Read(ctx)
		if err != nil {
			return messages, websocket.CloseStatus(err)
		}
		if kind != websocket.MessageText {
			t.Errorf("a message of kind %v", kind)
		}
		messages = append(messages, string(data))
	}
}

func tree(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(base, "data", "sub"), 0o700))
	for _, name := range []string{"data/report.txt", "data/sub/old REPORT", "data/sub/bad\xffreport", "data/x"} {
		must(t, os.WriteFile(filepath.Join(base, name), []byte("content"), 0o600))
	}
	return base
}

// TestSearchOverTheSocket: the exchange of recordings 07 section 17 and contract 13 section 3.1.
func TestSearchOverTheSocket(t *testing.T) {
	t.Parallel()
	in, _, srv := searchServer(t, tree(t), files.Settings{})
	ws, res, err := in.dial(t, srv, nil)
	must(t, err)
	if got := res.Header.Get("ucloud-no-bearer"); got != "true" || res.StatusCode != 101 {
		t.Errorf("%d, ucloud-no-bearer %q", res.StatusCode, got)
	}
	must(t, ws.Write(t.Context(), websocket.MessageText, fmt.Appendf(nil, searchTemplate, "Report", "/5123/data")))
	messages, code := run(t, ws)
	if code != websocket.StatusNormalClosure || len(messages) < 2 {
		t.Fatalf("closed with %d after %q", code, messages)
	}
	if got, want := messages[len(messages)-1], `{"type":"message","streamId":"ignored","payload":{"type":"end_of_results","batch":[]}}`; got != want {
		t.Errorf("the last message is %s", got)
	}
	var ids []string
	for _, text := range messages[:len(messages)-1] {
		var m providerapi.SearchMessage
		must(t, json.Unmarshal([]byte(text), &m))
		if m.Type != "message" || m.StreamID != "ignored" || m.Payload.Type != "result" || len(m.Payload.Batch) == 0 {
			t.Errorf("a message %s", text)
		}
		for _, f := range m.Payload.Batch {
			ids = append(ids, f.ID)
			if f.Status.Type != "FILE" || *f.Status.SizeInBytes != 7 || f.Status.ModifiedAt <= 0 {
				t.Errorf("described as %+v", f)
			}
		}
		// As our own encoder writes it, so package json does.
		var got, want any
		raw, err := json.Marshal(m)
		must(t, err)
		must(t, json.Unmarshal([]byte(text), &got))
		must(t, json.Unmarshal(raw, &want))
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s differs from %s", text, raw)
		}
	}
	slices.Sort(ids)
	if want := []string{"/5123/data/report.txt", "/5123/data/sub/bad\U0010feffreport", "/5123/data/sub/old REPORT"}; !slices.Equal(ids, want) {
		t.Errorf("found %q, want %q", ids, want)
	}
}

// TestSearchOfNothing: a folder that does not exist is a search that finds nothing.
func TestSearchOfNothing(t *testing.T) {
	t.Parallel()
	in, _, srv := searchServer(t, tree(t), files.Settings{})
	ws, _, err := in.dial(t, srv, nil)
	must(t, err)
	must(t, ws.Write(t.Context(), websocket.MessageText, fmt.Appendf(nil, searchTemplate, "x", "/5123/gone")))
	messages, code := run(t, ws)
	if code != websocket.StatusNormalClosure || len(messages) != 1 || !strings.Contains(messages[0], "end_of_results") {
		t.Errorf("%d %q", code, messages)
	}
}

// TestSearchIsRefused: what is not a request ends the connection, without an end of results.
func TestSearchIsRefused(t *testing.T) {
	t.Parallel()
	in, _, srv := searchServer(t, tree(t), files.Settings{})
	good := fmt.Sprintf(searchTemplate, "x", "/5123")
	for name, tc := range map[string]struct {
		kind websocket.MessageType
		text string
		want websocket.StatusCode
	}{
		"another call":        {websocket.MessageText, strings.Replace(good, "streamingSearch", "search", 1), websocket.StatusPolicyViolation},
		"end user's call":     {websocket.MessageText, strings.Replace(good, "files.provider.hpc-example.", "files.", 1), websocket.StatusPolicyViolation},
		"another provider's":  {websocket.MessageText, strings.Replace(good, "files.provider.hpc-example", "files.provider.other", 1), websocket.StatusPolicyViolation},
		"call in other case":  {websocket.MessageText, strings.Replace(good, "streamingSearch", "StreamingSearch", 1), websocket.StatusPolicyViolation},
		"no folder":           {websocket.MessageText, strings.Replace(good, `"/5123"`, `null`, 1), websocket.StatusPolicyViolation},
		"empty query":         {websocket.MessageText, fmt.Sprintf(searchTemplate, "", "/5123"), websocket.StatusPolicyViolation},
		"folder climbs":       {websocket.MessageText, fmt.Sprintf(searchTemplate, "x", "/5123/../7"), websocket.StatusPolicyViolation},
		"query of wrong type": {websocket.MessageText, strings.Replace(good, `"x"`, `7`, 1), websocket.StatusPolicyViolation},
		"no payload":          {websocket.MessageText, `{"call":"files.provider.hpc-example.streamingSearch"}`, websocket.StatusPolicyViolation},
		"not JSON":            {websocket.MessageText, "find x", websocket.StatusPolicyViolation},
		"array":               {websocket.MessageText, "[" + good + "]", websocket.StatusPolicyViolation},
		"empty":               {websocket.MessageText, "", websocket.StatusPolicyViolation},
		"binary":              {websocket.MessageBinary, good, websocket.StatusUnsupportedData},
		"too large":           {websocket.MessageText, fmt.Sprintf(searchTemplate, strings.Repeat("x", searchBody), "/5123"), websocket.StatusMessageTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ws, _, err := in.dial(t, srv, nil)
			must(t, err)
			must(t, ws.Write(t.Context(), tc.kind, []byte(tc.text)))
			if messages, code := run(t, ws); code != tc.want || len(messages) > 0 {
				t.Errorf("closed with %d after %q", code, messages)
			}
		})
	}
}

// TestSearchNeedsCore: the upgrade is refused before anything is read.
func TestSearchNeedsCore(t *testing.T) {
	t.Parallel()
	in, _, srv := searchServer(t, tree(t), files.Settings{})
	for name, change := range map[string]func(*hoptoken.Claims){
		"browser":    func(c *hoptoken.Claims) { c.Class = hoptoken.ClassBrowser },
		"other user": func(c *hoptoken.Claims) { c.User = "GraceHopper#1907" },
		"other path": func(c *hoptoken.Claims) { c.Path = "/ucloud/hpc-example/upload" },
		"old":        func(c *hoptoken.Claims) { c.Arrival = time.Now().Add(-time.Minute) },
	} {
		if _, res, err := in.dial(t, srv, change); err == nil || res == nil || res.StatusCode < 400 {
			t.Errorf("%s: upgraded: %v", name, res)
		}
	}
}

// TestSearchEndsWithItsConnection: Core closes while results are coming, in all ways there are.
func TestSearchEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	ignore := goleak.IgnoreCurrent()
	base := t.TempDir()
	for i := range 2000 {
		must(t, os.WriteFile(filepath.Join(base, fmt.Sprintf("hit %d", i)), nil, 0o600))
	}
	in, svc, srv := searchServer(t, base, files.Settings{})
	request := fmt.Appendf(nil, searchTemplate, "hit", "/5123")
	for name, end := range map[string]func(ws *websocket.Conn){
		"close":          func(ws *websocket.Conn) { ws.Close(websocket.StatusNormalClosure, "") },
		"cut":            func(ws *websocket.Conn) { ws.CloseNow() },
		"second request": func(ws *websocket.Conn) { _ = ws.Write(t.Context(), websocket.MessageText, request) },
	} {
		ws, _, err := in.dial(t, srv, nil)
		must(t, err)
		must(t, ws.Write(t.Context(), websocket.MessageText, request))
		if _, _, err := ws.Read(t.Context()); err != nil {
			t.Errorf("%s: no result: %v", name, err)
		}
		end(ws)
		if name == "second request" {
			if messages, code := run(t, ws); code == websocket.StatusNormalClosure && len(messages) < 8 {
				t.Errorf("%s: %d after %d messages", name, code, len(messages))
			}
		}
		ws.CloseNow()
	}
	srv.Close()
	must(t, svc.Close(context.Background()))
	if err := goleak.Find(ignore, goleak.IgnoreTopFunction("testing.(*T).Parallel"), goleak.IgnoreTopFunction("testing.tRunner.func1")); err != nil && strings.Contains(err.Error(), "files.(*search)") {
		t.Error(err)
	}
}

// TestSearchOfAPatientCore: nobody reads for a while; a ping of the other side is answered meanwhile.
func TestSearchOfAPatientCore(t *testing.T) {
	t.Parallel()
	in, _, srv := searchServer(t, tree(t), files.Settings{})
	ws, _, err := in.dial(t, srv, nil)
	must(t, err)
	ctx := ws.CloseRead(t.Context()) // answers to pings are read
	must(t, ws.Ping(ctx))
	must(t, ws.Ping(ctx))
	// A connection without a request ends by itself; that takes searchPatience, so only the close is tried here.
	if err := ws.Close(websocket.StatusNormalClosure, ""); err != nil && !errors.Is(err, context.Canceled) && websocket.CloseStatus(err) < 0 {
		t.Logf("closed: %v", err)
	}
}

// FuzzSearchRequest: any first message is a request or is refused.
func FuzzSearchRequest(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(searchTemplate, "report", "/5123/data")))
	f.Add([]byte(`{"call":"files.provider.hpc-example.streamingSearch","payload":null}`))
	f.Add([]byte(`{"call":"files.provider.hpc-example.streamingSearch","payload":{"query":"\ud800","currentFolder":"/","flags":null,"owner":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, req, err := parseSearch(testProvider, data)
		if err != nil {
			return
		}
		if req.CurrentFolder == nil || *req.CurrentFolder == "" || req.Query == "" {
			t.Fatalf("accepted %q", data)
		}
		if raw := appendAnswer(nil, m.StreamID, providerapi.SearchEnd, nil); !json.Valid(raw) {
			t.Fatalf("answer %q", raw)
		}
	})
}
