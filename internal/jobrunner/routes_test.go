package jobrunner

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/files"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// instance is a bench behind HTTP.
type instance struct {
	*bench
	engine *fakeEngine
	h      http.Handler
	key    hoptoken.Key
}

func newInstance(t *testing.T, change func(*bench)) *instance {
	t.Helper()
	i := &instance{engine: &fakeEngine{}, key: hoptoken.NewKey()}
	i.bench = newBench(t, func(b *bench) {
		b.o.Engine = i.engine
		if change != nil {
			change(b)
		}
	})
	log := slog.New(slog.DiscardHandler)
	svc := files.New(files.Options{Provider: provider, Log: log, Timeout: time.Minute})
	t.Cleanup(func() { _ = svc.Close(context.Background()) })
	i.h = fileserver.New(fileserver.Options{
		Provider: provider, Files: svc, Log: log, Routes: i.Routes(),
		Start: ipcapi.Start{Provider: provider, User: user, UID: 61021, HopKey: i.key[:]},
	})
	return i
}

// do makes a call. change, if not nil, changes what the gateway vouches for.
func (i *instance) do(path, body string, change func(*hoptoken.Claims)) *httptest.ResponseRecorder {
	path = "/ucloud/" + provider + "/" + path
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set(ident.HeaderUser, user.HeaderValue())
	claims := hoptoken.Claims{
		UID: 61021, User: user, Method: http.MethodPost, Path: path, RequestID: "0123456789abcdef", Arrival: time.Now(),
		Class: hoptoken.ClassCore,
	}
	if change != nil {
		change(&claims)
	}
	r.Header.Set(hoptoken.Header, hoptoken.Mint(i.key, claims))
	rec := httptest.NewRecorder()
	i.h.ServeHTTP(rec, r)
	return rec
}

// running puts a job into the server's hands.
func (i *instance) running(id string) {
	i.server.mu.Lock()
	defer i.server.mu.Unlock()
	i.server.records[id] = ipcapi.JobRecord{
		ID: id, Own: true, State: providerapi.JobRunning, EngineID: "417733", Replicas: 2, Nodes: []string{"n1", "n2"},
	}
}

func (i *instance) change(id string, do func(*ipcapi.JobRecord)) {
	i.server.mu.Lock()
	defer i.server.mu.Unlock()
	r := i.server.records[id]
	do(&r)
	i.server.records[id] = r
}

// TestGolden plays the examples of the contract.
func TestGolden(t *testing.T) {
	t.Parallel()
	doc := apischema.Provider(t)
	const id = "90817"
	shell := func(_ context.Context, c SessionCall) (providerapi.OpenSession, error) {
		name := c.Record.ID
		if c.Folder != "" {
			name = c.Folder
		}
		return providerapi.OpenSession{
			Type: "shell", JobID: name, Rank: c.Rank, DomainOverride: "wss://hpc.example.org", SessionIdentifier: "f3b1c8d2a4907e65f3b1c8d2a4907e65",
		}, nil
	}
	inst := newInstance(t, func(b *bench) {
		b.server.grant.Account = "ada_cpu"
		b.server.choices = ipcapi.JobChoiceReply{Accounts: []string{"a", "b"}}
		b.o.OpenFolder = shell
		b.o.Openers = map[providerapi.SessionType]Opener{
			providerapi.SessionShell: shell,
			providerapi.SessionWeb: func(_ context.Context, c SessionCall) (providerapi.OpenSession, error) {
				return providerapi.OpenSession{
					Type: "web", JobID: c.Record.ID, Rank: c.Rank,
					RedirectClientTo: "https://app-90817-0.hpc.example.org/ucloud/hpc-example/authorize-app?token=f3b1c8d2a4907e65f3b1c8d2a4907e65",
				}, nil
			},
		}
		b.o.Openers[providerapi.SessionVNC] = func(_ context.Context, c SessionCall) (providerapi.OpenSession, error) {
			return providerapi.OpenSession{Type: "vnc", JobID: c.Record.ID, URL: "https://x", Password: "p"}, nil
		}
		for _, dir := range []string{"runs/7"} {
			if err := os.MkdirAll(filepath.Join(b.drive, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(b.drive, "runs/7/topol.tpr"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	inst.engine.submit = func(context.Context, Submission) (string, error) { return "417733", nil }
	paths, err := filepath.Glob("../providerapi/testdata/examples/provider/jobs.*.json")
	if err != nil || len(paths) < 14 {
		t.Fatalf("%d examples, %v", len(paths), err)
	}
	// The operations that a Slurm cluster may support here, or answers otherwise than in the example.
	shapeOnly := map[string]bool{"jobs.suspend": true, "jobs.unsuspend": true, "jobs.requestDynamicParameters": true, "jobs.interactiveSession--vnc": true}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var ex struct {
			OperationID, Method, Path string
			Request, Response         json.RawMessage
			Status                    int
		}
		if err := json.Unmarshal(raw, &ex); err != nil {
			t.Fatal(err)
		}
		if ex.Method != http.MethodPost { // retrieveProducts is the server's
			continue
		}
		if name == "jobs.suspend" {
			inst.engine.err = failure.New(failure.Invalid, "operators alone")
		}
		if inst.running(id); name == "jobs.create" {
			inst.server.mu.Lock()
			delete(inst.server.records, id)
			inst.server.mu.Unlock()
		}
		rec := inst.do(strings.TrimPrefix(ex.Path, "/ucloud/"+provider+"/"), string(ex.Request), nil)
		inst.engine.err = nil
		if rec.Code != ex.Status && name != "jobs.unsuspend" {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
			continue
		}
		if rec.Code != http.StatusOK {
			doc.Error(t, rec.Body.Bytes())
			continue
		}
		if name != "jobs.unsuspend" {
			doc.Response(t, ex.OperationID, rec.Body.Bytes())
		}
		if shapeOnly[name] {
			continue
		}
		var got, want any
		if err := errors.Join(json.Unmarshal(rec.Body.Bytes(), &got), json.Unmarshal(ex.Response, &want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-example +ours):\n%s", name, diff)
		}
	}
	if got := inst.server.count("extend 90817 7200000"); got != 1 {
		t.Errorf("extended %d times: %v", got, inst.server.calls)
	}
	if !inst.engine.did("cancel 417733") || inst.server.count("ending 90817") != 1 {
		t.Errorf("not ended: %v, %v", inst.engine.calls, inst.server.calls)
	}
}

// Only Core may call, for this user.
func TestGuarded(t *testing.T) {
	t.Parallel()
	inst := newInstance(t, nil)
	inst.running("7")
	for name, change := range map[string]func(*hoptoken.Claims){
		"browser":      func(c *hoptoken.Claims) { c.Class = hoptoken.ClassBrowser },
		"another user": func(c *hoptoken.Claims) { c.User = "Bob#1" },
	} {
		for _, r := range inst.Routes() {
			if rec := inst.do(r.Path, `{"items":[{"id":"7"}]}`, change); rec.Code < 400 {
				t.Errorf("%s, %s: %d", name, r.Path, rec.Code)
			}
		}
	}
	if len(inst.server.calls)+len(inst.engine.calls) > 0 {
		t.Errorf("something was done: %v, %v", inst.server.calls, inst.engine.calls)
	}
}

func TestCreateBodies(t *testing.T) {
	t.Parallel()
	inst := newInstance(t, nil)
	for body, want := range map[string]int{
		`{}`: 200, `{"items":[]}`: 200, `{"items":[{},{}]}`: 400, `{"items":[{}]}`: 400, `[`: 400,
		`{"x":"` + strings.Repeat("x", oneBody) + `"}`: 413,
	} {
		if rec := inst.do("jobs", body, nil); rec.Code != want {
			t.Errorf("%.40s: %d %s", body, rec.Code, rec.Body)
		}
	}
	if len(inst.engine.calls) > 0 {
		t.Error(inst.engine.calls)
	}
}

func TestTerminate(t *testing.T) {
	t.Parallel()
	inst := newInstance(t, nil)
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		inst.running(id)
		inst.change(id, func(r *ipcapi.JobRecord) { r.EngineID = "e" + id })
	}
	inst.change("2", func(r *ipcapi.JobRecord) { r.State = providerapi.JobSuccess })
	inst.change("3", func(r *ipcapi.JobRecord) { r.Own = false })
	inst.change("4", func(r *ipcapi.JobRecord) { r.EngineID = "" })
	for body, want := range map[string]int{
		// What the body says about the job does not count.
		`{"items":[{"id":"1","providerGeneratedId":"acc/e5/1"}]}`: 200,
		`{"items":[{"id":"2"}]}`:                                  200, // has ended
		`{"items":[{"id":"404"}]}`:                                200, // is not known
		`{"items":[{"id":"../x"}]}`:                               200,
		`{"items":[{"id":"3"}]}`:                                  403,
		`{"items":[{"id":"4"}]}`:                                  200, // is being submitted
		`{"items":[{"id":"3"},{"id":"1"}]}`:                       403, // the others are ended all the same
		`{}`:                                                      200,
	} {
		if rec := inst.do("jobs/terminate", body, nil); rec.Code != want {
			t.Errorf("%s: %d %s", body, rec.Code, rec.Body)
		}
	}
	for call, want := range map[string]bool{"cancel e1": true, "cancel e2": false, "cancel e3": false, "cancel e5": false, "cancel ": false} {
		if inst.engine.did(call) != want {
			t.Errorf("%q: %v", call, !want)
		}
	}
	for call, want := range map[string]int{"ending 1": 2, "ending 2": 0, "ending 3": 0, "ending 4": 1} {
		if got := inst.server.count(call); got != want {
			t.Errorf("%s: %d times", call, got)
		}
	}
	// An administrator of the project has the server end the job: Slurm would refuse the user.
	inst.server.manages = true
	if rec := inst.do("jobs/terminate", `{"items":[{"id":"3"}]}`, nil); rec.Code != 200 || inst.engine.did("cancel e3") || inst.server.count("ending 3") != 1 {
		t.Errorf("%d, %v", rec.Code, inst.server.calls)
	}
	// The reason is known before the job can be seen to end.
	inst.server.err["ending"] = failure.New(failure.Unavailable, "away")
	if rec := inst.do("jobs/terminate", `{"items":[{"id":"5"}]}`, nil); rec.Code != 503 || inst.engine.did("cancel e5") {
		t.Errorf("%d, %v", rec.Code, inst.engine.calls)
	}
	delete(inst.server.err, "ending")
	inst.engine.err = errors.New("scancel: secret")
	if rec := inst.do("jobs/terminate", `{"items":[{"id":"5"}]}`, nil); rec.Code != 500 || strings.Contains(rec.Body.String(), "secret") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestExtendAndSuspend(t *testing.T) {
	t.Parallel()
	inst := newInstance(t, nil)
	for _, id := range []string{"1", "2", "3"} {
		inst.running(id)
	}
	inst.change("2", func(r *ipcapi.JobRecord) { r.State = providerapi.JobExpired })
	inst.change("3", func(r *ipcapi.JobRecord) { r.Own = false })
	for _, tc := range []struct {
		path, body string
		want       int
	}{
		{"jobs/extend", `{"items":[{"job":{"id":"1"},"requestedTime":{"hours":1,"minutes":30}}]}`, 200},
		{"jobs/extend", `{"items":[{"job":{"id":"1"},"requestedTime":{}}]}`, 400},
		{"jobs/extend", `{"items":[{"job":{"id":"1"},"requestedTime":{"hours":-5}}]}`, 400},
		{"jobs/extend", `{"items":[{"job":{"id":"2"},"requestedTime":{"hours":1}}]}`, 400},
		{"jobs/extend", `{"items":[{"job":{"id":"4"},"requestedTime":{"hours":1}}]}`, 400}, // there is none
		{"jobs/suspend", `{"items":[{"job":{"id":"1"}}]}`, 200},
		{"jobs/unsuspend", `{"items":[{"job":{"id":"1"}}]}`, 200},
		{"jobs/suspend", `{"items":[{"job":{"id":"2"}}]}`, 400},
		{"jobs/suspend", `{"items":[{"job":{"id":"3"}}]}`, 403},
		{"jobs/unsuspend", `{"items":[{"job":{"id":"4"}}]}`, 400}, // likewise
		{"jobs/attachResource", `{"job":{"id":"1"},"resource":{}}`, 400},
		{"jobs/detachResource", `{"job":{"id":"1"},"resource":{}}`, 400},
	} {
		if rec := inst.do(tc.path, tc.body, nil); rec.Code != tc.want {
			t.Errorf("%s %s: %d %s", tc.path, tc.body, rec.Code, rec.Body)
		}
	}
	if diff := cmp.Diff([]string{"suspend 417733", "resume 417733"}, inst.engine.calls); diff != "" {
		t.Error(diff)
	}
	if inst.server.count("extend 1 5400000") != 1 || inst.server.count("changed 1") != 2 {
		t.Error(inst.server.calls)
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	var calls []SessionCall
	open := func(_ context.Context, c SessionCall) (providerapi.OpenSession, error) {
		calls = append(calls, c)
		return providerapi.OpenSession{Type: "web", JobID: c.Record.ID, Rank: c.Rank, RedirectClientTo: "https://app"}, nil
	}
	inst := newInstance(t, func(b *bench) {
		b.o.Openers = map[providerapi.SessionType]Opener{providerapi.SessionWeb: open, providerapi.SessionShell: open}
		b.o.OpenFolder = open
		if err := os.WriteFile(filepath.Join(b.drive, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(b.drive, "dir"), 0o700); err != nil {
			t.Fatal(err)
		}
	})
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		inst.running(id)
	}
	inst.change("2", func(r *ipcapi.JobRecord) { r.State = providerapi.JobSuccess })
	inst.change("3", func(r *ipcapi.JobRecord) { r.Own = false })
	inst.change("4", func(r *ipcapi.JobRecord) { r.State = providerapi.JobInQueue })
	inst.change("5", func(r *ipcapi.JobRecord) { r.Replicas, r.Nodes = 1, nil })
	item := func(id, rank, kind string) string {
		return `{"job":{"id":"` + id + `"},"rank":` + rank + `,"sessionType":"` + kind + `","target":null}`
	}
	for name, tc := range map[string]struct {
		body string
		want int
	}{
		"ok":             {item("1", "1", "WEB"), 200},
		"rank too large": {item("1", "2", "WEB"), 400},
		"rank negative":  {item("1", "-1", "WEB"), 400},
		"rank absurd":    {item("1", "99999999999999999999", "WEB"), 400},
		"no nodes yet":   {item("5", "1", "WEB"), 400},
		"no opener":      {item("1", "0", "VNC"), 400},
		"no such kind":   {item("1", "0", "SSH"), 400},
		"ended":          {item("2", "0", "WEB"), 400},
		"another's":      {item("3", "0", "WEB"), 200}, // a member of the job's workspace
		"another's node": {item("3", "0", "SHELL"), 403},
		"waiting":        {item("4", "0", "WEB"), 400},
		"unknown":        {item("9", "0", "WEB"), 404},
		"all fail":       {item("9", "0", "WEB") + "," + item("1", "7", "WEB"), 404},
	} {
		calls = nil
		rec := inst.do("jobs/interactiveSession", `{"items":[`+tc.body+`]}`, nil)
		if rec.Code != tc.want || (len(calls) > 0) != (tc.want == 200) {
			t.Errorf("%s: %d %s, %d calls", name, rec.Code, rec.Body, len(calls))
		}
	}
	// One that fails does not hide the others, and each has its answer in its place.
	rec := inst.do("jobs/interactiveSession", `{"items":[`+item("1", "5", "WEB")+","+item("1", "1", "WEB")+","+item("1", "0", "VNC")+`]}`, nil)
	apischema.Provider(t).Response(t, "jobs.interactiveSession", rec.Body.Bytes())
	var got providerapi.BulkResponse[providerapi.OpenSession]
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := []providerapi.OpenSession{
		{Type: "web", JobID: "1", Rank: 5, RedirectClientTo: "about:blank"}, {Type: "web", JobID: "1", Rank: 1, RedirectClientTo: "https://app"}, {Type: "vnc", JobID: "1", URL: "about:blank", Password: "-"},
	}
	if diff := cmp.Diff(want, got.Responses); diff != "" {
		t.Error(diff)
	}

	for folder, want := range map[string]int{"/5123/dir": 200, "/5123": 200, "/5123/file": 400, "/5123/no": 400, "/9/dir": 400, "/5123/../9": 400, "": 400} {
		calls = nil
		rec := inst.do("jobs/openTerminalInFolder", `{"items":[{"folder":"`+folder+`"}]}`, nil)
		if rec.Code != want {
			t.Errorf("%q: %d %s", folder, rec.Code, rec.Body)
		}
		if want == 200 && (len(calls) != 1 || calls[0].Folder != folder || calls[0].LocalFolder != filepath.Join(inst.drive, strings.TrimPrefix(folder, "/5123"))) {
			t.Errorf("%q: %+v", folder, calls)
		}
	}
}

// The choice among accounts is offered where there is one, and only in workspaces that the server knows the user in.
func TestDynamicParameters(t *testing.T) {
	t.Parallel()
	inst := newInstance(t, func(b *bench) { b.server.choices = ipcapi.JobChoiceReply{Accounts: []string{"mine"}} })
	mine := `{"owner":{"createdBy":"` + string(user) + `","project":null},"application":{}}`
	theirs := `{"owner":{"createdBy":"Bob#1","project":null},"application":{}}`
	for body, want := range map[string]bool{mine: true, theirs: false} {
		rec := inst.do("jobs/requestDynamicParameters", body, nil)
		apischema.Provider(t).Response(t, "jobs.requestDynamicParameters", rec.Body.Bytes())
		if rec.Code != 200 || strings.Contains(rec.Body.String(), "mine") != want {
			t.Errorf("%s: %d %s", body, rec.Code, rec.Body)
		}
	}
	inst.server.err["choices"] = failure.New(failure.Unavailable, "away")
	if rec := inst.do("jobs/requestDynamicParameters", mine, nil); rec.Code != 200 {
		t.Errorf("without the server: %d", rec.Code)
	}
}
