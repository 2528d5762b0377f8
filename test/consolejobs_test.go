//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/coder/websocket"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/devcore/console"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// jobsPeer stands for a provider of compute: it accepts jobs, sends logs as it is told to, and has a shell that says
// what it was sent.
type jobsPeer struct {
	t      *testing.T
	mu     sync.Mutex
	specs  []providerapi.JobSpecification
	asked  []string    // calls by operation
	log    chan string // pieces of standard output
	shells int
	drop   chan struct{} // ends a shell's connection
}

func (u *jobsPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/ucloud/")
	switch {
	case path == "jobs.provider.rec/websocket":
		u.follow(w, r)
		return
	case path == "rec/websocket":
		u.shell(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	operation := strings.TrimPrefix(path, "rec/")
	u.mu.Lock()
	defer u.mu.Unlock()
	if r.Method == http.MethodPost {
		u.asked = append(u.asked, operation)
	}
	switch operation {
	case "jobs/retrieveProducts":
		io.WriteString(w, `{"responses":[{"product":{"id":"c-1","category":"c","provider":"rec"},"docker":{},"virtualMachine":{},"native":{"enabled":true,"web":true,"vnc":true,"logs":true,"terminal":true},"queueStatus":null}]}`)
	case "jobs":
		var req providerapi.BulkRequest[providerapi.Job]
		if err := json.Unmarshal(body, &req); err != nil || len(req.Items) != 1 {
			u.t.Errorf("%s: %v", body, err)
			return
		}
		u.specs = append(u.specs, req.Items[0].Specification)
		fmt.Fprintf(w, `{"responses":[{"id":"a/%d"}]}`, len(u.specs))
	case "jobs/interactiveSession":
		if strings.Contains(string(body), `"SHELL"`) {
			fmt.Fprintf(w, `{"responses":[{"type":"shell","jobId":"4","rank":0,"domainOverride":"","sessionIdentifier":"s %d"}]}`, len(u.asked))
		} else {
			io.WriteString(w, `{"responses":[{"type":"web","jobId":"4","rank":0,"domainOverride":"","redirectClientTo":"http://app-4.example.invalid/ucloud/rec/authorize-app?token=x"}]}`)
		}
	default:
		io.WriteString(w, `{"responses":[{}]}`)
	}
}

func (u *jobsPeer) follow(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		u.t.Error(err)
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	if _, _, err := conn.Read(r.Context()); err != nil {
		return
	}
	ctx := conn.CloseRead(r.Context())
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-u.log:
			data, _ := json.Marshal(providerapi.Reply[providerapi.LogChunk]{Type: "message", StreamID: "ignored", Payload: providerapi.LogChunk{StreamID: "x", Stdout: &text}})
			if err := conn.Write(ctx, websocket.MessageText, data); err != nil {
				return
			}
		}
	}
}

// shell repeats what it is sent, in capitals.
func (u *jobsPeer) shell(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		u.t.Error(err)
		return
	}
	defer conn.CloseNow()
	u.mu.Lock()
	u.shells++
	u.mu.Unlock()
	if got := r.URL.Query().Get("usernameHint"); got != "cmVjdXNlcg==" {
		u.t.Errorf("hint %q", got)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with the connection
		select {
		case <-u.drop:
			conn.CloseNow()
		case <-ctx.Done():
		}
	}()
	first := ""
	say := func(stream string, m providerapi.ShellResponse) {
		data, _ := json.Marshal(providerapi.Reply[providerapi.ShellResponse]{Type: "message", StreamID: stream, Payload: m})
		_ = conn.Write(ctx, websocket.MessageText, data)
	}
	for {
		_, data, err := conn.Read(ctx)
		if err != nil {
			return
		}
		var f providerapi.Frame
		var req providerapi.ShellRequest
		if err := json.Unmarshal(data, &f); err != nil {
			u.t.Error(err)
			return
		}
		if err := json.Unmarshal(f.Payload, &req); err != nil || f.Call != "jobs.compute.rec.shell.open" {
			u.t.Errorf("%s: %v", data, err)
			return
		}
		switch {
		case req.Type == "initialize" && req.SessionIdentifier == r.URL.Query().Get("session") && req.Cols > 20 && req.Rows > 5:
			first = f.StreamID
			say(first, providerapi.ShellResponse{Type: "initialize"})
			say(first, providerapi.ShellResponse{Type: "data", Data: "\x1b[1;32mwelcome\x1b[0m $ "})
		case req.Type == "input":
			say(f.StreamID, providerapi.ShellResponse{Type: "ack"})
			say(first, providerapi.ShellResponse{Type: "data", Data: strings.ToUpper(strings.ReplaceAll(req.Data, "\r", "\r\n"))})
		case req.Type == "resize":
			say(f.StreamID, providerapi.ShellResponse{Type: "ack"})
		default:
			u.t.Errorf("unexpected %s", data)
			return
		}
	}
}

// screen is what the terminal of the page shows.
func (p *page) screen() string {
	return eval[string](p, `[...document.querySelectorAll("#terminal .xterm-rows > div")].map((row) => row.textContent.trimEnd()).join("\n")`)
}

// keys presses keys as a person does: one event with its text, so that a page that handles the key prevents the character.
func (p *page) keys(text string) {
	p.t.Helper()
	for _, r := range text {
		events := kb.Encode(r)
		down, up := *events[0], *events[len(events)-1]
		down.Text = string(r)
		for _, e := range []input.DispatchKeyEventParams{down, up} {
			if _, err := chromedp.Call(p.ctx, input.DispatchKeyEvent, e); err != nil {
				p.t.Fatalf("press %q: %v", r, err)
			}
		}
	}
}

// until waits for something on the page.
func (p *page) until(what string, cond func() bool) {
	p.t.Helper()
	if !settles(cond) {
		p.shot("failed")
		p.t.Fatalf("%s did not come; the console says %q, the job is %q, the terminal shows %q", what, p.text("#message"), p.text("#job-section"), p.screen())
	}
}

// TestConsoleJobs: the form sends what was typed, the page of the job follows it, and the terminal is one.
func TestConsoleJobs(t *testing.T) {
	testkit.Require(t, testkit.Component("chromium"))
	u := &jobsPeer{t: t, log: make(chan string), drop: make(chan struct{})}
	provider := httptest.NewServer(u)
	t.Cleanup(provider.Close)
	core, err := devcore.New(devcore.Options{Provider: "rec", ProviderURL: provider.URL, ConsoleKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(core.Handler(console.Files()))
	t.Cleanup(server.Close)
	core.AddUser("recuser")
	core.AddProject("p-1", "Reef", "recuser")
	if err := core.AddApplication(shellApp(providerapi.ApplicationWeb)); err != nil {
		t.Fatal(err)
	}
	control := func(path, body string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+core.ProviderToken())
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, res.StatusCode)
		}
	}
	control("/api/products/v2", `{"items":[{"type":"compute","category":{"name":"c","provider":"rec","productType":"COMPUTE","accountingUnit":{"name":"Core","namePlural":"Core","floatingPoint":false,"displayFrequencySuffix":true},"accountingFrequency":"PERIODIC_MINUTE"},"name":"c-1","description":"","productType":"COMPUTE","price":1,"cpu":1,"memoryInGigs":4}]}`)
	if err := core.Allocate(ident.Owner{User: "recuser"}, "c", 1000); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { core.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	testkit.Eventually(t, "the first poll", func() bool { return core.Polls() > 0 })
	w := &world{t: t, core: core, coreURL: server.URL, gateURL: provider.URL}
	p := openBrowser(t, w)
	command := "echo 'a b' > \"$HOME\"\n# " + injection
	p.do("fill the form", chromedp.Navigate(server.URL+"/#key=secret"), chromedp.WaitReady("#jobs-section:not([hidden])"),
		chromedp.Click("#job-new"), chromedp.WaitReady("#job-form:not([hidden])"), chromedp.SendKeys("#job-name", "Job "+injection),
		chromedp.SetValue("#job-replicas", "2"), chromedp.SetValue("#job-project", "p-1"), chromedp.SetValue("#job-fields textarea", command))
	p.shot("form")
	p.do("submit", chromedp.Click("#job-submit"), chromedp.WaitReady("#job-section:not([hidden])"))
	p.until("the state", func() bool { return p.text("#job-state") == "waiting" })
	jobs := core.Jobs()
	if len(jobs) != 1 || jobs[0].Owner.Workspace().Project != "p-1" {
		t.Fatalf("jobs %+v", jobs)
	}
	var sent string
	if err := json.Unmarshal(jobs[0].Specification.Parameters["command"].Value, &sent); err != nil || sent != command || jobs[0].Specification.Replicas != 2 ||
		jobs[0].Specification.TimeAllocation.Minutes != 10 {
		t.Errorf("sent %q, %+v", sent, jobs[0].Specification)
	}
	update := func(u string) {
		t.Helper()
		control("/api/jobs/control/update", `{"items":[{"id":"`+jobs[0].ID+`","update":`+u+`}]}`)
	}
	update(`{"state":"RUNNING","status":"Started on c1"}`)
	update(`{"status":"Target: {\"rank\":0,\"type\":\"WEB\",\"target\":\"Dashboard\",\"port\":8787,\"defaultName\":null}"}`)
	p.until("running", func() bool {
		return p.text("#job-state") == "running" && strings.Contains(p.text("#job-updates"), "Started on c1") && strings.Contains(p.text("#job-buttons"), "Dashboard")
	})
	u.log <- "Step 1 " + injection + "\n"
	p.until("the first line", func() bool { return strings.Contains(p.text("#job-logs"), "Step 1 "+injection) })
	u.log <- "Step 2\n"
	p.until("the second line", func() bool { return strings.Contains(p.text("#job-logs"), "Step 2") })
	if n := eval[int](p, `document.querySelectorAll("#columns img").length + (window.hacked || 0)`); n != 0 {
		t.Error("text became markup")
	}
	if got := p.text("#job-buttons"); !strings.Contains(got, "Terminal on node 2") || !strings.Contains(got, "Open interface") {
		t.Errorf("buttons %q", got)
	}
	p.press("#job-buttons button:nth-of-type(1)")
	p.until("the prompt", func() bool { return strings.Contains(p.screen(), "welcome $") })
	p.keys("hello\r") // the terminal has the focus
	p.until("the answer", func() bool { return strings.Contains(p.screen(), "welcome $ HELLO") })
	if colour := eval[string](p, `getComputedStyle([...document.querySelectorAll("#terminal .xterm-rows span")].find((s) => s.textContent.includes("welcome"))).color`); colour == "" ||
		colour == eval[string](p, `getComputedStyle(document.querySelector("#terminal .xterm-rows")).color`) {
		t.Errorf("the prompt has the colour %q of other text", colour)
	}
	p.shot("terminal")
	u.drop <- struct{}{}
	p.until("word of the end", func() bool { return strings.Contains(p.text("#terminal-status"), "ended") })
	p.press("#terminal-status button")
	p.until("the second session", func() bool { return strings.Count(p.screen(), "welcome $") == 2 })
	p.press("#terminal-close")
	p.do("the interface", chromedp.Click("#job-buttons button:nth-of-type(3)"), chromedp.WaitReady("#job-links a"))
	if href := eval[string](p, `document.querySelector("#job-links a").href`); href != "http://app-4.example.invalid/ucloud/rec/authorize-app?token=x" {
		t.Errorf("the link is %q", href)
	}
	p.press("#job-end")
	testkit.Eventually(t, "the end to be asked for", func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.asked[len(u.asked)-1] == "jobs/terminate"
	})
	update(`{"state":"SUCCESS","status":"Cancelled"}`)
	p.until("the end", func() bool { return p.text("#job-state") == "done" && p.text("#job-buttons") == "" })
	p.until("the list", func() bool { return strings.Contains(p.text("#jobs"), "done") })
	p.shot("end")
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.shells != 2 {
		t.Errorf("%d shells", u.shells)
	}
	if v := core.Violations(); len(v) > 0 {
		t.Errorf("violations %v", v)
	}
}
