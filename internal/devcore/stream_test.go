package devcore

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

func dial(t *testing.T, url, first string) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	if err := conn.Write(ctx, websocket.MessageText, []byte(first)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// next reads one message; "" means that the other side has closed normally.
func next(t *testing.T, conn *websocket.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, data, err := conn.Read(ctx)
	if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestSearchStream replays recording 07 section 17, with a query so long that it comes in several frames.
func TestSearchStream(t *testing.T) {
	t.Parallel()
	data := readRecording(t, "07-files.md")
	r := recorded{first: map[string]any{}}
	section := streamBlocks(t)
	stopped := make(chan struct{})
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet || req.URL.Path != "/ucloud/rec/files" || req.URL.RawQuery != "usernameHint=cmVjdXNlcg==" {
			t.Errorf("%s %s", req.Method, req.URL)
		}
		if !strings.HasPrefix(req.Header.Get("Authorization"), "Bearer ") || req.Header.Get("Ucloud-Username") != "" {
			t.Errorf("headers %v", req.Header)
		}
		conn, err := websocket.Accept(w, req, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		_, got, err := conn.Read(req.Context())
		if err != nil {
			t.Error(err)
			return
		}
		want := strings.ReplaceAll(section[1], ".recprov.", ".rec.")
		if strings.Contains(string(got), "endless") {
			conn.Write(req.Context(), websocket.MessageText, []byte(section[2]))
			_, _, err := conn.Read(req.Context())
			if err == nil {
				t.Error("a second message")
			}
			close(stopped)
			return
		}
		long := strings.Repeat("x", 10000)
		want = strings.ReplaceAll(want, `"query": "found"`, `"query": "`+long+`"`)
		if diff := cmp.Diff(plain(r.decode(t, want)), plain(r.decode(t, string(got)))); diff != "" {
			t.Errorf("to the provider (-recorded +ours):\n%s", diff)
		}
		for _, m := range section[2:4] {
			conn.Write(req.Context(), websocket.MessageText, []byte(m))
		}
		conn.Close(websocket.StatusNormalClosure, "")
	}))
	recordedDrives(t, c, r.decode(t, data["Browse a folder"]["Core"].body))
	open := func(who, query, folder string) *websocket.Conn {
		token := ""
		if who != "" {
			token = c.Login("recuser")
		}
		first := strings.ReplaceAll(section[0], "<jwt>", token)
		first = strings.ReplaceAll(first, `"query": "found"`, `"query": "`+query+`"`)
		return dial(t, cs.URL+"/api/files", strings.ReplaceAll(first, `"/4"`, `"`+folder+`"`))
	}
	conn := open("recuser", strings.Repeat("x", 10000), "/4")
	for _, want := range section[4:6] {
		if diff := cmp.Diff(plain(r.decode(t, want)), plain(r.decode(t, next(t, conn)))); diff != "" {
			t.Errorf("to the end user (-recorded +ours):\n%s", diff)
		}
	}
	if m := next(t, conn); m != "" {
		t.Errorf("after the end %s", m)
	}

	// The end user stops: the provider notices.
	conn = open("recuser", "endless", "/4")
	next(t, conn)
	conn.Close(websocket.StatusNormalClosure, "")
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the provider searches on")
	}

	for _, tc := range []struct {
		name, who, query, folder, want string
	}{
		{"nobody", "", "found", "/4", `"status":403`},
		{"somebody else's drive", "recuser", "found", "/99", `"status":403`},
		{"empty query", "recuser", "", "/4", `"status":400`},
	} {
		conn := open(tc.who, tc.query, tc.folder)
		if m := next(t, conn); !strings.Contains(m, tc.want) || !strings.Contains(m, `"type":"response"`) {
			t.Errorf("%s: %s", tc.name, m)
		}
		if m := next(t, conn); m != "" {
			t.Errorf("%s: then %s", tc.name, m)
		}
	}
	c.change(func(s *providerapi.FSSupport) { s.Files.StreamingSearchSupported = false })
	if m := next(t, open("recuser", "found", "/4")); !strings.Contains(m, `"status":404`) {
		t.Errorf("without the feature: %s", m)
	}
}

// streamBlocks are the messages of the recorded search: end user, to provider, two from the provider, two to the end user.
func streamBlocks(t *testing.T) []string {
	t.Helper()
	var out []string
	text := readSection(t, "07-files.md", "Streaming search over websocket")
	for _, b := range fenced.FindAllStringSubmatch(text, -1) {
		if json.Valid([]byte(b[1])) {
			out = append(out, b[1])
		}
	}
	if len(out) != 6 {
		t.Fatalf("%d messages in the recording", len(out))
	}
	return out
}

// TestSearchWithoutProvider: a stream that cannot be opened just ends, and is not tried again.
func TestSearchWithoutProvider(t *testing.T) {
	t.Parallel()
	data := readRecording(t, "07-files.md")
	r := recorded{first: map[string]any{}}
	tries := 0
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		tries++
		w.WriteHeader(449)
	}))
	recordedDrives(t, c, r.decode(t, data["Browse a folder"]["Core"].body))
	conn := dial(t, cs.URL+"/api/files", `{"call":"files.streamingSearch","streamId":"0","bearer":"`+c.Login("recuser")+`","payload":{"query":"x","currentFolder":"/4"}}`)
	if m := next(t, conn); m != "" || tries != 1 {
		t.Errorf("%d tries, message %q", tries, m)
	}
}

// TestTaskLife follows recording 13: what the provider posts is what the user sees, in lists and in the stream, and
// what the user asks for reaches the provider only if the task is the user's.
func TestTaskLife(t *testing.T) {
	t.Parallel()
	var asked []string
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var body providerapi.PauseOrCancelTask
		if err := json.NewDecoder(req.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		asked = append(asked, req.URL.Path+" "+req.Header.Get("Ucloud-Username")+" "+string(body.RequestedState))
		w.Write([]byte(`{"responses":[]}`))
	}))
	c.AddUser("recuser")
	c.AddUser("other")
	user, other := c.Login("recuser"), c.Login("other")
	provider := c.ProviderToken()
	call := func(token, path, body string, want int) string {
		t.Helper()
		status, answer, err := post(t, cs.URL+path, token, body)
		if err != nil || status != want {
			t.Fatalf("%s %s: %d %s %v", path, body, status, answer, err)
		}
		if id, ok := apischema.Core(t).Find(http.MethodPost, path); ok && token == provider && want == 200 {
			apischema.Core(t).Response(t, id, []byte(answer))
		}
		return answer
	}
	stream := dial(t, cs.URL+"/api/tasks", `{"call":"core2","streamId":"0","bearer":"`+user+`","project":null,"payload":{}}`)
	if m := next(t, stream); !strings.Contains(m, `"status":200`) {
		t.Fatalf("first answer %s", m)
	}
	if err := stream.Write(t.Context(), websocket.MessageText, []byte("go")); err != nil {
		t.Fatal(err)
	}
	batch := func() providerapi.Task {
		t.Helper()
		var m struct {
			Messages []struct {
				Type string
				Task providerapi.Task
			}
		}
		if err := json.Unmarshal([]byte(next(t, stream)), &m); err != nil || len(m.Messages) != 1 || m.Messages[0].Type != "TASK" {
			t.Fatalf("%+v %v", m, err)
		}
		return m.Messages[0].Task
	}
	create := `{"user":"recuser","title":"Copying files","body":"a → b","progress":"Starting","canPause":true,"canCancel":true,"icon":"copy"}`
	call(provider, "/api/tasks", create, 200)
	if got := batch(); got.TaskID != 1 || got.Status.State != providerapi.TaskInQueue {
		t.Errorf("created: %+v", got)
	}
	call(provider, "/api/tasks", strings.Replace(create, "recuser", "nobody-here", 1), 404)
	call(provider, "/api/tasks", strings.Replace(create, "Copying files", strings.Repeat("x", 1025), 1), 400)
	call(user, "/api/tasks", create, 403)

	call(provider, "/api/tasks/postStatus", `{"update":{"taskId":1,"modifiedAt":0,"newStatus":{"state":"RUNNING","progress":"2/2","progressPercentage":100}}}`, 200)
	if got := batch(); got.Status.State != providerapi.TaskRunning || got.Status.Title != nil {
		t.Errorf("a post replaces everything: %+v", got.Status)
	}
	call(provider, "/api/tasks/postStatus", `{"update":{"taskId":99999,"modifiedAt":0,"newStatus":{"state":"RUNNING"}}}`, 404)

	call(user, "/api/tasks/pauseOrCancel", `{"id":1,"requestedState":"SUSPENDED"}`, 200)
	call(other, "/api/tasks/pauseOrCancel", `{"id":1,"requestedState":"CANCELLED"}`, 404)
	call(user, "/api/tasks/pauseOrCancel", `{"id":2,"requestedState":"CANCELLED"}`, 404)
	if len(asked) != 1 || asked[0] != "/ucloud/rec/tasks/pauseOrCancel cmVjdXNlcg== SUSPENDED" {
		t.Errorf("the provider was asked %q", asked)
	}

	call(provider, "/api/tasks/markAsComplete", `{"id":1}`, 200)
	if got := batch(); got.Status.State != providerapi.TaskSuccess || got.Status.Progress == nil || *got.Status.Progress != "2/2" {
		t.Errorf("completed: %+v", got.Status)
	}
	get := func(token, path string) (int, string) {
		t.Helper()
		req, _ := http.NewRequest(http.MethodGet, cs.URL+path, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var page json.RawMessage
		if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(page)
	}
	if status, page := get(user, "/api/tasks/browse?itemsPerPage=10"); status != 200 || !strings.Contains(page, `"taskId":1`) {
		t.Errorf("%d %s", status, page)
	}
	if _, page := get(other, "/api/tasks/browse"); strings.Contains(page, "taskId") {
		t.Errorf("somebody else sees %s", page)
	}
	if status, _ := get(other, "/api/tasks/retrieve?id=1"); status != 404 {
		t.Errorf("somebody else retrieves it: %d", status)
	}
	// A task that has not changed for more than five minutes is not listed, but still there.
	c.mu.Lock()
	c.tasks[0].ModifiedAt -= providerapi.Millis(taskVisible.Milliseconds() + 1)
	c.mu.Unlock()
	if _, page := get(user, "/api/tasks/browse"); strings.Contains(page, "taskId") {
		t.Errorf("an old task is listed: %s", page)
	}
	if status, _ := get(user, "/api/tasks/retrieve?id=1"); status != 200 {
		t.Errorf("an old task cannot be retrieved: %d", status)
	}
}
