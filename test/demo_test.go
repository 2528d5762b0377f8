//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// demoRun is a running demo, as somebody who reads its output sees it.
type demoRun struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   *ring
	url   string // of the console, without the key
	key   string
	token string
}

var consoleURL = regexp.MustCompile(`(http://127\.0\.0\.1:\d+)/#key=([0-9a-f]+)`)

func startDemo(t *testing.T, dir string, credential *syscall.Credential, flags ...string) *demoRun {
	t.Helper()
	d := &demoRun{t: t, out: &ring{}}
	port := freePort(t)
	flags = append([]string{"demo", "--core-port", fmt.Sprint(freePort(t)), "--gateway-port", fmt.Sprint(port)}, flags...)
	d.cmd = exec.Command(filepath.Join(dir, "ucloud-dev"), flags...)
	d.cmd.Dir = "/"
	d.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.cmd.Process.Kill() })
	defer func() {
		if t.Failed() {
			t.Logf("output of the demo:\n%s", d.out.String())
		}
	}()
	testkit.Eventually(t, "the demo to be ready", func() bool { return strings.Contains(d.out.String(), "Ctrl-C stops everything") })
	m := consoleURL.FindStringSubmatch(d.out.String())
	if m == nil {
		t.Fatalf("no URL in\n%s", d.out.String())
	}
	d.url, d.key = m[1], m[2]
	return d
}

func (d *demoRun) call(method, path string, body, answer any) {
	d.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		d.t.Fatal(err)
	}
	req, err := http.NewRequest(method, d.url+path, bytes.NewReader(data))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+d.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		d.t.Fatalf("%s: %d %s", path, res.StatusCode, text)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		d.t.Fatal(err)
	}
}

// story does what the demo prints: connect, approve with the printed command, browse, make a folder.
func (d *demoRun) story(ucloudName, localName string) {
	d.t.Helper()
	var login struct {
		AccessToken string `json:"accessToken"`
	}
	d.call(http.MethodPost, "/auth/loginServer", map[string]string{"username": ucloudName, "password": d.key}, &login)
	d.token = login.AccessToken
	var connect providerapi.ConnectResponse
	d.call(http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": "demo"}, &connect)
	res, err := http.Get(connect.RedirectTo)
	if err != nil {
		d.t.Fatal(err)
	}
	page, _ := io.ReadAll(res.Body)
	res.Body.Close()
	ticket := ticketPattern.FindString(string(page))
	printed := regexp.MustCompile(`(?m)^ +(/\S+ --socket \S+ connect) TICKET ` + localName).FindStringSubmatch(d.out.String())
	if printed == nil {
		d.t.Fatalf("no command for %s in\n%s", localName, d.out.String())
	}
	args := append(strings.Fields(printed[1]), ticket, localName, "--yes")
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v %s", args, err, out)
	}
	var drives providerapi.Page[providerapi.Drive]
	testkit.Eventually(d.t, "the home drive", func() bool {
		d.call(http.MethodGet, "/api/files/collections/browse?itemsPerPage=50", nil, &drives)
		for _, drive := range drives.Items {
			if drive.Specification.Title == "Home" {
				return true
			}
		}
		return false
	})
	for _, drive := range drives.Items {
		if drive.Specification.Title != "Home" {
			continue
		}
		folder := "/" + string(drive.ID) + "/made by the demo"
		var done providerapi.BulkResponse[providerapi.Empty]
		d.call(http.MethodPost, "/api/files/folder", map[string]any{"items": []any{map[string]any{"id": folder, "conflictPolicy": "RENAME"}}}, &done)
	}
	u, err := user.Lookup(localName)
	if err != nil {
		d.t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(u.HomeDir, "made by the demo"))
	if err != nil || fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid) != u.Uid {
		d.t.Errorf("the folder: %+v, %v", info, err)
	}
}

// toured waits for the tour, and demands that each of its steps succeeded.
func (d *demoRun) toured() {
	d.t.Helper()
	testkit.Eventually(d.t, "the tour", func() bool {
		out := d.out.String()
		return strings.Contains(out, "stays for you to look at") || strings.Contains(out, "ended early")
	})
	out := d.out.String()
	for _, want := range []string{
		"upload    201 files", "download  big.bin, 32 MiB, and it is the same", "zip       the folder as an archive of 201 files",
		"copy      a task", "201 files copied", "search    “report” below the folder: 4 results", "trash     the copy", "stays for you to look at",
	} {
		if !strings.Contains(out, want) {
			d.t.Fatalf("the tour does not say %q:\n%s", want, out)
		}
	}
}

// end presses Ctrl-C.
func (d *demoRun) end() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGINT)
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			d.t.Errorf("the demo ended with %v:\n%s", err, d.out.String())
		}
	case <-time.After(testkit.Patience):
		d.t.Fatalf("the demo does not end:\n%s", d.out.String())
	}
}

func demoPrograms(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imt-demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // others must be able to run them
		t.Fatal(err)
	}
	for _, name := range []string{"ucloud", "ucloud-user", "ucloud-dev"} {
		if err := accounts.Build("ucloud-im/cmd/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestDemoAsRoot: two users with real accounts, and everything is gone afterwards.
func TestDemoAsRoot(t *testing.T) {
	accounts.Require(t)
	dir := demoPrograms(t)
	// What an earlier demo has left is its own to remove; what is there after that is somebody else's.
	if out, err := exec.Command(filepath.Join(dir, "ucloud-dev"), "demo-clean").CombinedOutput(); err != nil {
		t.Fatalf("demo-clean: %v %s", err, out)
	}
	for _, name := range []string{"ucloud-demo", "demo-ada", "demo-grace", "demo-mary"} {
		if _, err := user.Lookup(name); err == nil {
			t.Fatalf("the account %s exists and was not made by a demo", name)
		}
	}
	d := startDemo(t, dir, nil)
	defer exec.Command(filepath.Join(dir, "ucloud-dev"), "demo-clean").Run()
	d.toured()
	info, err := os.Stat("/home/demo-mary/tour/notes/3/note 13.txt")
	if mary, lookup := user.Lookup("demo-mary"); err != nil || lookup != nil || fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid) != mary.Uid {
		t.Errorf("what the tour has left: %v, %v", info, err)
	}
	d.story("Ada#1815", "demo-ada")
	d.story("Grace#1906", "demo-grace")
	d.end()
	if out, err := exec.Command("pgrep", "-f", "/usr/libexec/ucloud-demo/").Output(); err == nil {
		t.Errorf("processes are left behind: %s", out)
	}
	out, err := exec.Command(filepath.Join(dir, "ucloud-dev"), "demo-clean").CombinedOutput()
	if err != nil {
		t.Errorf("demo-clean: %v %s", err, out)
	}
	for _, name := range []string{"ucloud-demo", "demo-ada", "demo-grace", "demo-mary"} {
		if _, err := user.Lookup(name); err == nil {
			t.Errorf("the account %s is still there", name)
		}
	}
	for _, path := range []string{"/etc/sudoers.d/ucloud-demo", "/var/lib/ucloud-demo", "/run/ucloud-demo", "/usr/libexec/ucloud-demo"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// TestDemoSigned: the demo with signed intents required, and with a Core in wrong hands. The tour is signed; what somebody makes
// of it is refused.
func TestDemoSigned(t *testing.T) {
	accounts.Require(t)
	dir := demoPrograms(t)
	dev := filepath.Join(dir, "ucloud-dev")
	defer exec.Command(dev, "demo-clean").Run()
	d := startDemo(t, dir, nil, "--signed-intents", "require", "--taken-over")
	d.toured()
	if out := d.out.String(); !strings.Contains(out, "signed with the key SHA256:") || !strings.Contains(out, "This Core is in wrong hands") {
		t.Errorf("it does not say what is different:\n%s", out)
	}
	console := consoleURL.FindString(d.out.String())
	out, err := exec.Command(dev, "captured", "--console", console).CombinedOutput()
	m := regexp.MustCompile(`(?m)^([0-9]+) .* Mary#1834 +POST /ucloud/demo/files/copy +yes$`).FindStringSubmatch(string(out))
	if err != nil || m == nil {
		t.Fatalf("captured: %v\n%s", err, out)
	}
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"482\n", []string{"--replay", m[1], "--body", `{"items":[{"oldId":"/1/a","newId":"/1/pwned"}]}`}},
		{"482\n", []string{"--replay", m[1], "--no-intent"}},
		{"482\n", []string{"--replay", m[1], "--intent", "x.y.z", "--path", "/ucloud/demo/files/trash"}},
		{"482\n", []string{"--user", "Mary#1834", "--method", "POST", "--path", "/ucloud/demo/files/folder", "--body", `{"items":[]}`}},
	} {
		out, err := exec.Command(dev, append([]string{"forge", "--console", console}, tc.args...)...).CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), tc.want) {
			t.Errorf("forge %q: %v %s, want %s", tc.args, err, out, tc.want)
		}
	}
	d.end()
	if out, err := exec.Command(dev, "demo-clean").CombinedOutput(); err != nil {
		t.Errorf("demo-clean: %v %s", err, out)
	}
}

// TestDemoAsUser: an ordinary user gets a demo with one user.
func TestDemoAsUser(t *testing.T) {
	accounts.Require(t) // to become another user
	site := accounts.New(t, "demo")
	u := site.User(t)
	dir := demoPrograms(t)
	d := startDemo(t, dir, u.Credential(site.GID))
	if !strings.Contains(d.out.String(), "not root") {
		t.Errorf("it does not say what is different:\n%s", d.out.String())
	}
	d.story("Ada#1815", u.Name)
	d.toured() // begins once the one user there is has connected
	if left, err := os.ReadDir(u.Home); err != nil || len(left) != 1 {
		t.Errorf("the tour of an ordinary user is to stay out of the home directory: %v, %v", left, err)
	}
	// Jobs are processes here.
	var submitted providerapi.BulkResponse[providerapi.FindByID]
	d.call(http.MethodPost, "/api/jobs", map[string]any{"items": []any{map[string]any{
		"application": map[string]string{"name": "demo-batch", "version": "1"}, "product": map[string]string{"id": "demo-cpu-1", "category": "demo-cpu", "provider": "demo"},
		"replicas": 1, "timeAllocation": map[string]int{"hours": 0, "minutes": 5, "seconds": 0},
		"parameters": map[string]any{"commands": map[string]string{"type": "text", "value": "echo \"$(id -un) was here\" > witness"}},
	}}}, &submitted)
	var job providerapi.Job
	testkit.Eventually(t, "the job to end", func() bool {
		d.call(http.MethodGet, "/api/jobs/retrieve?includeUpdates=true&id="+submitted.Responses[0].ID, nil, &job)
		return job.Status.State.Final()
	})
	if witness, err := os.ReadFile(filepath.Join(u.Home, "ucloud-jobs", job.ID, "witness")); job.Status.State != providerapi.JobSuccess || string(witness) != u.Name+" was here\n" {
		t.Errorf("the job is %s, and has written %q, %v", job.Status.State, witness, err)
	}
	d.end()
	clean := exec.Command(filepath.Join(dir, "ucloud-dev"), "demo-clean")
	clean.SysProcAttr = &syscall.SysProcAttr{Credential: u.Credential(site.GID)}
	if out, err := clean.CombinedOutput(); err != nil {
		t.Errorf("demo-clean: %v %s", err, out)
	}
	if left, _ := filepath.Glob("/tmp/ucloud-demo-" + u.UID.String()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
