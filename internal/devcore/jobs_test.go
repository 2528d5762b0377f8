package devcore

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// timeless drops what differs from run to run.
func timeless(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"createdAt", "modifiedAt", "timestamp", "startedAt", "expiresAt"} {
			delete(v, k)
		}
		for k := range v {
			v[k] = timeless(v[k])
		}
	case []any:
		for i := range v {
			v[i] = timeless(v[i])
		}
	}
	return v
}

// convert decodes a part of a recording.
func convert[T any](t *testing.T, v any) (out T) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// recordedCompute makes the simulator know the products, the application and the drive of recording 09.
func recordedCompute(t *testing.T, c *Core, r *recorded) {
	t.Helper()
	create := r.decode(t, readRecording(t, "09-jobs.md")["Submit a job"]["Core"].body).(map[string]any)["items"].([]any)[0].(map[string]any)
	status := create["status"].(map[string]any)
	product := convert[providerapi.Product](t, status["resolvedProduct"])
	support := convert[jobSupport](t, status["resolvedSupport"])
	second := product
	second.Name, second.CPU, second.MemoryInGigs, second.Price = "rec-cpu-2", 2, 2, 2
	c.AddUser("recuser")
	c.AddUser("other")
	c.AddProject("<user-project>", "Project", "recuser")
	c.categories["rec-cpu"] = &category{doc: product.Category, products: map[string]providerapi.Product{"rec-cpu-1": product, "rec-cpu-2": second}}
	c.learnJobs([]providerapi.JobSupport{support.Support, {Product: second.Reference(), Native: support.Support.Native, QueueStatus: support.Support.QueueStatus}})
	if err := c.AddApplication(convert[providerapi.Application](t, status["resolvedApplication"])); err != nil {
		t.Fatal(err)
	}
	c.drives["4"] = &providerapi.Drive{
		ID: "4", Owner: providerapi.ResourceOwner{CreatedBy: "recuser"}, Permissions: &providerapi.Permissions{Others: []providerapi.ACLEntry{}},
	}
	c.nextID = 10
}

// TestReplayJobs makes the recorded calls about jobs one after the other and compares with the recording what the provider
// gets and what each caller gets.
func TestReplayJobs(t *testing.T) {
	t.Parallel()
	const name = "09-jobs.md"
	text, err := os.ReadFile("../providerapi/testdata/recordings/" + name)
	if err != nil {
		t.Fatal(err)
	}
	sections := readRecording(t, name)
	r := &recorded{first: map[string]any{}}
	var (
		mu     sync.Mutex
		got    []exchange
		answer exchange
	)
	c, cs := newCore(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if id, ok := apischema.Provider(t).Find(req.Method, req.URL.Path); !ok {
			t.Errorf("%s %s is no call of Core", req.Method, req.URL.Path)
		} else {
			apischema.Provider(t).Request(t, id, body)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, exchange{method: req.Method, target: req.URL.Path, body: string(body)})
		if answer.status == "402" {
			w.WriteHeader(http.StatusPaymentRequired)
		}
		text := answer.answer
		if len(got) == 1 { // of two calls in a section the recording is read to the second
			text = strings.ReplaceAll(text, "slurm-14", "slurm-13")
		}
		io.WriteString(w, text)
	}))
	c.opt.Provider = "recprov"
	recordedCompute(t, c, r)
	done := 0
	for _, m := range sectionTitle.FindAllStringSubmatch(string(text), -1) {
		title := m[1]
		s := sections[title]
		if strings.Contains(title, "does not exist in this Core version") || strings.Contains(title, "(legacy)") {
			continue
		}
		done++
		mu.Lock()
		got, answer = nil, s["Core"]
		mu.Unlock()
		caller, token := s["end user"], c.Login("recuser")
		if caller.method == "" {
			caller, token = s["provider"], c.ProviderToken()
		}
		req, err := http.NewRequest(caller.method, cs.URL+caller.target, strings.NewReader(caller.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if strings.Contains(title, "in a project") {
			req.Header.Set("Project", "<user-project>")
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if want := caller.status; res.Status[:3] != want {
			t.Fatalf("%s: %s %s, recorded %s", title, res.Status, body, want)
		}
		if token == c.ProviderToken() {
			if id, ok := apischema.Core(t).Find(caller.method, caller.target); ok && res.StatusCode == http.StatusOK {
				apischema.Core(t).Response(t, id, body)
			}
		}
		recordedBody, ours := timeless(r.decode(t, caller.answer)), timeless(r.decode(t, strings.ReplaceAll(string(body), c.opt.ProviderURL, "http://127.0.0.1:18890")))
		if diff := cmp.Diff(plain(recordedBody), plain(ours)); diff != "" {
			t.Errorf("%s: answer (-recorded +ours):\n%s", title, diff)
		}
		if core := s["Core"]; core.method != "" && len(got) > 0 {
			last := got[len(got)-1] // of several calls the recording is read up to the last
			if last.method != core.method || last.target != core.target {
				t.Errorf("%s: the provider got %s %s, recorded %s %s", title, last.method, last.target, core.method, core.target)
			}
			if diff := cmp.Diff(plain(timeless(r.decode(t, core.body))), plain(timeless(r.decode(t, last.body)))); diff != "" {
				t.Errorf("%s: to the provider (-recorded +ours):\n%s", title, diff)
			}
		} else if (core.method != "") != (len(got) > 0) {
			t.Errorf("%s: %d calls of the provider", title, len(got))
		}
	}
	if done < 35 {
		t.Errorf("only %d sections were replayed", done)
	}
	if v := c.Violations(); len(v) > 0 {
		t.Errorf("violations %+v", v)
	}
}

// compute is a simulator with the products of the recording and a provider that accepts everything, or what h says.
func compute(t *testing.T, h http.HandlerFunc) (*Core, *httptest.Server) {
	t.Helper()
	n := 0
	if h == nil {
		h = func(w http.ResponseWriter, _ *http.Request) {
			n++
			io.WriteString(w, `{"responses":[{"id":"a/`+itoa(n)+`"}]}`)
		}
	}
	c, cs := newCore(t, h)
	c.opt.Provider = "recprov"
	recordedCompute(t, c, &recorded{first: map[string]any{}})
	return c, cs
}

func specification(command string) providerapi.JobSpecification {
	return providerapi.JobSpecification{
		Application: providerapi.ApplicationReference{Name: "lab-batch", Version: "1"}, Name: "n", Replicas: 1,
		Product:        providerapi.ProductReference{ID: "rec-cpu-1", Category: "rec-cpu", Provider: "recprov"},
		Parameters:     map[string]providerapi.AppParameterValue{"command": {Type: providerapi.ValueText, Value: json.RawMessage(`"` + command + `"`)}},
		TimeAllocation: &providerapi.SimpleDuration{Minutes: 90},
	}
}

// TestUpdates: what updates do to a job, and what is held against the provider.
func TestUpdates(t *testing.T) {
	t.Parallel()
	c, cs := compute(t, nil)
	id, err := c.Submit(t.Context(), "recuser", "", specification("x"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(want int, updates ...string) string {
		t.Helper()
		status, body, err := post(t, cs.URL+"/api/jobs/control/update", c.ProviderToken(), `{"items":[`+strings.Join(updates, ",")+`]}`)
		if err != nil || status != want {
			t.Fatalf("%d %s %v", status, body, err)
		}
		return body
	}
	update := func(id, u string) string { return `{"id":"` + id + `","update":` + u + `}` }
	job := func() providerapi.Job {
		t.Helper()
		j, ok := c.Job(id)
		if !ok {
			t.Fatal("no job")
		}
		return j
	}
	// One unknown id: nothing is done.
	if body := send(404, update(id, `{"state":"RUNNING"}`), update("999", `{"status":"x"}`)); !strings.Contains(body, "Not found or permission denied (999)") {
		t.Error(body)
	}
	if j := job(); j.Status.State != providerapi.JobInQueue || len(j.Updates) > 0 {
		t.Errorf("%+v", j)
	}
	send(200, update(id, `{"state":"SUSPENDED","expectedState":"RUNNING"}`))
	send(200, update(id, `{"state":"RUNNING","expectedDifferentState":true}`), update(id, `{"state":"RUNNING","expectedDifferentState":true,"status":"again"}`))
	if j := job(); j.Status.State != providerapi.JobRunning || len(j.Updates) != 1 || *j.Status.ExpiresAt-*j.Status.StartedAt != 90*60000 {
		t.Errorf("%+v", j)
	}
	send(200, update(id, `{"newTimeAllocation":7230000}`))
	if j := job(); j.Specification.TimeAllocation.Duration() != 2*time.Hour || len(c.Violations()) != 1 {
		t.Errorf("%+v, violations %v", j.Specification.TimeAllocation, c.Violations())
	}
	send(200, update(id, `{"state":"FAILURE"}`))
	send(200, update(id, `{"state":"RUNNING","status":"late"}`))
	send(200, update(id, `{"state":"SUCCESS"}`))
	if j := job(); j.Status.State != providerapi.JobFailure || len(j.Updates) != 3 || len(c.Violations()) != 2 {
		t.Errorf("%+v, violations %v", j, c.Violations())
	}
	c.SetJobFaults(JobFaults{Update: func([]providerapi.JobUpdateItem) int { return 503 }})
	send(503, update(id, `{"status":"x"}`))
}

// TestGiveUp: a submission that is not answered in time, or whose answer is lost, leaves no record; the provider had the job.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	c, _ := compute(t, func(w http.ResponseWriter, _ *http.Request) {
		<-hold
		io.WriteString(w, `{"responses":[{"id":"a/1"}]}`)
	})
	for _, f := range []JobFaults{{GiveUpAfter: 20 * time.Millisecond}, {DropAnswer: true}} {
		c.SetJobFaults(f)
		if f.DropAnswer {
			close(hold)
		}
		if _, err := c.Submit(t.Context(), "recuser", "", specification("x")); err == nil {
			t.Error("submitted")
		}
	}
	if len(c.Jobs()) != 0 || len(c.SentJobs()) != 2 {
		t.Errorf("jobs %v, sent %v", c.Jobs(), c.SentJobs())
	}
}

// TestJobChecks: what Core refuses by itself.
func TestJobChecks(t *testing.T) {
	t.Parallel()
	c, cs := compute(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s reached the provider", r.URL) })
	c.jobs.jobs["11"] = &fullJob{ID: "11", Owner: providerapi.ResourceOwner{CreatedBy: "recuser"}, Permissions: &providerapi.Permissions{}}
	for _, tc := range []struct {
		name, path, body string
		want             int
		change           func(*providerapi.JobSpecification)
	}{
		{name: "no nodes", want: 400, change: func(s *providerapi.JobSpecification) { s.Replicas = 0 }},
		{name: "wrong type", want: 400, change: func(s *providerapi.JobSpecification) {
			s.Parameters["command"] = providerapi.AppParameterValue{Type: providerapi.ValueInteger, Value: json.RawMessage("1")}
		}},
		{name: "unknown application", want: 400, change: func(s *providerapi.JobSpecification) { s.Application.Name = "x" }},
		{name: "foreign drive", want: 403, change: func(s *providerapi.JobSpecification) {
			s.Resources = append(s.Resources, providerapi.AppParameterValue{Type: providerapi.ValueFile, Path: "/99/x"})
		}},
		{name: "stranger terminates", path: "/api/jobs/terminate", body: `{"items":[{"id":"11"}]}`, want: 403},
		{name: "stranger opens a shell", path: "/api/jobs/interactiveSession", body: `{"items":[{"id":"11","rank":0,"sessionType":"SHELL"}]}`, want: 403},
		{name: "terminal in a foreign drive", path: "/api/jobs/openTerminalInFolder", body: `{"items":[{"folder":"/4"}]}`, want: 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			who := ident.UCloudUser("other")
			if tc.change != nil {
				spec := specification("x")
				tc.change(&spec)
				data, _ := json.Marshal(map[string]any{"items": []any{spec}})
				who, tc.path, tc.body = "recuser", "/api/jobs", string(data)
			}
			if status, body, err := post(t, cs.URL+tc.path, c.Login(who), tc.body); err != nil || status != tc.want {
				t.Errorf("%d %s %v", status, body, err)
			}
		})
	}
}

// TestFollow replays recording 10: pieces of logs and changes of the job, and the end of the session with that of the
// provider's connection.
func TestFollow(t *testing.T) {
	t.Parallel()
	proceed := make(chan struct{})
	c, cs := compute(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/websocket") {
			io.WriteString(w, `{"responses":[{"id":"a/1"}]}`)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(1 << 20)
		_, data, err := conn.Read(r.Context())
		var f providerapi.Frame
		var init providerapi.FollowRequest
		if err == nil {
			err = json.Unmarshal(data, &f)
		}
		if err == nil {
			err = json.Unmarshal(f.Payload, &init)
		}
		if err != nil || r.URL.RawQuery != "usernameHint=cmVjdXNlcg==" || f.Call != "jobs.provider.recprov.follow" || f.StreamID != "ignored" || init.Type != "init" || init.Job == nil {
			t.Errorf("%s %s %v", r.URL, data, err)
		}
		for _, m := range []string{
			`{"type":"message","streamId":"ignored","payload":{"streamId":"s","rank":0,"stdout":"line one\n","stderr":null,"channel":null}}`,
			`{"ping":"pong"}`,
			`{"type":"message","streamId":"other","payload":{"rank":1,"stdout":null,"stderr":"err\n","channel":null}}`,
		} {
			if err := conn.Write(r.Context(), websocket.MessageText, []byte(m)); err != nil {
				t.Error(err)
			}
		}
		<-proceed
		conn.Close(websocket.StatusNormalClosure, "")
	})
	id, err := c.Submit(t.Context(), "recuser", "", specification("x"))
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(cs.URL, "http")+"/api/jobs", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	conn.Write(t.Context(), websocket.MessageText, []byte(`{"call":"jobs.follow","streamId":"0","bearer":"`+c.Login("recuser")+`","payload":{"id":"`+id+`"}}`))
	read := func() (m followUpdate, err error) {
		_, data, err := conn.Read(t.Context())
		if err != nil {
			return m, err
		}
		var frame struct {
			Payload followUpdate `json:"payload"`
		}
		return frame.Payload, json.Unmarshal(data, &frame)
	}
	must := func() followUpdate {
		t.Helper()
		m, err := read()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := must(); m.InitialJob == nil || m.InitialJob.ID != id {
		t.Errorf("%+v", m)
	}
	if m := must(); len(m.Log) != 1 || *m.Log[0].Stdout != "line one\n" {
		t.Errorf("%+v", m)
	}
	if m := must(); len(m.Log) != 1 || m.Log[0].Stdout != nil {
		t.Errorf("%+v", m)
	}
	if m := must(); len(m.Log) != 1 || m.Log[0].Rank != 1 || *m.Log[0].Stderr != "err\n" {
		t.Errorf("%+v", m)
	}
	if v := c.Violations(); len(v) != 1 || !strings.Contains(v[0].Reason, "another stream") {
		t.Errorf("violations %v", v)
	}
	post(t, cs.URL+"/api/jobs/control/update", c.ProviderToken(), `{"items":[{"id":"`+id+`","update":{"state":"RUNNING","status":"Running now"}}]}`)
	if m := must(); m.NewStatus == nil || m.NewStatus.State != providerapi.JobRunning || len(m.Updates) != 1 {
		t.Errorf("%+v", m)
	}
	close(proceed)
	if _, err := read(); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("the end is %v", err)
	}
}
