//go:build e2e

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/webclient"
)

// jwtPattern finds any token of Core: access tokens, and those with which Core calls.
var jwtPattern = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}`)

// canaries are secrets by their names.
type canaries struct {
	t       *testing.T
	secrets map[string]string
}

func (c *canaries) add(name, secret string) {
	c.t.Helper()
	if len(secret) < 8 {
		c.t.Errorf("%s is no secret: %q", name, secret)
		return
	}
	c.secrets[name] = secret
}

// addQuery adds a parameter of a link.
func (c *canaries) addQuery(name, link, parameter string) {
	c.t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		c.t.Errorf("%s: %v", name, err)
		return
	}
	c.add(name, u.Query().Get(parameter))
}

// look searches for the secrets.
func (c *canaries) look(where string, data []byte) {
	c.t.Helper()
	for name, secret := range c.secrets {
		if bytes.Contains(data, []byte(secret)) {
			c.t.Errorf("%s stands in %s", name, where)
		}
	}
	if m := jwtPattern.Find(data); m != nil {
		c.t.Errorf("a token of Core stands in %s: %.40s...", where, m)
	}
}

// witness collects arguments and environments of processes while the test runs.
type witness struct {
	mu   sync.Mutex
	seen map[string]string // text: where
}

func (s *witness) look(uids map[uint32]bool) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		var st syscall.Stat_t
		if syscall.Stat(proc, &st) != nil || !uids[st.Uid] && !sudo(proc) {
			continue
		}
		for _, name := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(filepath.Join(proc, name))
			if err != nil || len(data) == 0 {
				continue
			}
			s.mu.Lock()
			s.seen[string(data)] = name + " of a process of uid " + fmt.Sprint(st.Uid)
			s.mu.Unlock()
		}
	}
}

// sudo tells whether a process is about to become somebody else, or belongs to Slurm.
func sudo(proc string) bool {
	name, err := os.ReadFile(filepath.Join(proc, "comm"))
	return err == nil && (strings.HasPrefix(string(name), "sudo") || strings.HasPrefix(string(name), "slurmstepd"))
}

// TestCanaries lets the real programs work with secrets of every kind, and looks for these in all places where others, or
// somebody later, could read them.
//
//attack:actor local user
//attack:does Looks for tokens, keys and passwords in logs, arguments, environments, files and copies of the database.
//attack:control Secrets travel over descriptors and in bodies, print as nothing, and are stored as hashes.
//attack:remove internal/integration/handler.go: "call refused", "method", r.Method, "path", r.URL.Path, => "call refused", "method", r.Method, "path", r.URL.String(),
//attack:actor local user
//attack:does Makes gateway or server dump core, or attaches to one of them as another process of the service account.
//attack:control The programs are not dumpable and write no core files.
//attack:remove internal/nodump/nodump.go: unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) => unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
//attack:actor internet
//attack:does Learns the address of a page with a token from the Referer that a browser sends along.
//attack:control Pages with tokens in their address tell browsers to keep it to themselves.
//attack:remove internal/integration/page.go: h.Set("Referrer-Policy", "no-referrer") // the ticket is in the URL => h.Set("Referrer-Policy", "unsafe-url")
func TestCanaries(t *testing.T) {
	c := newCluster(t, computeSettings{slurm: webSection})
	secrets := &canaries{t: t, secrets: map[string]string{}}
	secrets.add("the refresh token", c.core.RefreshToken())

	watch := &witness{seen: map[string]string{}}
	uids := map[uint32]bool{uint32(c.site.Service.UID): true, uint32(c.ada.account.UID): true} //nolint:gosec // uids fit
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			watch.look(uids)
			select {
			case <-over:
				return
			case <-tick.C:
			}
		}
	}()
	c.work(secrets)
	c.guess(secrets)
	c.dumps()
	close(over)
	<-done

	files, _ := filepath.Glob(filepath.Join(c.base, "state/instances/*.json"))
	if len(files) == 0 {
		t.Error("no record of instances")
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		c.must(err)
		var record struct {
			HopKey []byte `json:"hopKey"`
		}
		c.must(json.Unmarshal(data, &record))
		secrets.add("a hop key", base64.StdEncoding.EncodeToString(record.HopKey))
		secrets.add("a hop key in hexadecimal", hex.EncodeToString(record.HopKey))
		secrets.add("a raw hop key", string(record.HopKey))
	}
	if want := 12; len(secrets.secrets) < want {
		t.Errorf("%d secrets, and there are %d at least", len(secrets.secrets), want)
	}

	if len(watch.seen) < 5 {
		t.Errorf("only %d arguments and environments were seen", len(watch.seen))
	}
	for text, where := range watch.seen {
		secrets.look(where, []byte(text))
	}
	for name, log := range map[string][]byte{"the server's log": c.server.out.all(), "the gateway's log": c.gateway.out.all()} {
		if len(log) == 0 {
			t.Errorf("%s is empty", name)
		}
		secrets.look(name, log)
	}
	c.disk(secrets)
}

// work uses everything that makes a secret.
func (c *cluster) work(secrets *canaries) {
	t := c.t
	// A ticket that is being looked at, and one that was used up by newCluster.
	grace := c.addPerson("Grace#1906")
	var res providerapi.ConnectResponse
	c.must(c.call(grace.name, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": provider}, &res))
	secrets.addQuery("a ticket", res.RedirectTo, "ticket")
	secrets.add("a ticket without hyphens", strings.ReplaceAll(secrets.secrets["a ticket"], "-", ""))
	c.quiet(http.DefaultClient, res.RedirectTo)

	d := c.desk(c.ada)
	session := d.uploadTo("canary.txt", "FILE", providerapi.ConflictRename)
	secrets.addQuery("the token of an upload", session.Endpoint, "token")
	var client webclient.Client
	content := webclient.File{Size: 7, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("content")), nil }}
	if _, err := client.Upload(t.Context(), session.Endpoint, []webclient.File{content}); err != nil {
		t.Errorf("upload: %v", err)
	}
	link := d.downloadFrom("canary.txt")
	secrets.addQuery("the token of a download", link, "token")
	if body := c.quiet(http.DefaultClient, link); body != "content" {
		t.Errorf("the download is %q", body)
	}
	id := d.terminal("")
	secrets.add("the identifier of a shell", id)
	screen, err := c.see(id, c.ada)
	c.must(err)
	screen.input("echo sh'ell'=$$.\r")
	screen.until("shell=")

	app := filepath.Join(c.base, "bin", "webapp")
	c.must(accounts.Build("ucloud-im/internal/testkit/webapp/cmd", app))
	c.must(os.Chmod(app, 0o755))
	web := c.submit(c.job(providerapi.ApplicationWeb, "Page", "exec "+app+" -listen 127.0.0.1:$UCLOUD_PORT -name canary"))
	vnc := c.submit(c.job(providerapi.ApplicationVNC, "Desktop", "sleep 600"))
	c.becomes(web, providerapi.JobRunning)
	c.becomes(vnc, providerapi.JobRunning)
	s := c.link(web, providerapi.SessionWeb)
	secrets.addQuery("the token of a web interface", s.RedirectClientTo, "token")
	browser := c.webBrowser(t)
	c.quiet(browser.Client, s.RedirectClientTo)
	u, err := url.Parse(s.RedirectClientTo)
	c.must(err)
	page := &url.URL{Scheme: "http", Host: u.Host, Path: "/"}
	testkit.Eventually(t, "the application", func() bool {
		status, body := browser.get(page.String())
		return status == 200 && strings.Contains(body, "canary")
	})
	for _, cookie := range browser.Jar.Cookies(page) {
		secrets.add("the cookie of a web interface", cookie.Value)
	}
	desktop := c.link(vnc, providerapi.SessionVNC)
	secrets.addQuery("the token of a desktop", desktop.URL, "token")
	secrets.add("the password of a desktop", desktop.Password)
	// It is for WebSockets, which no page's address leads to; using it here is for the logs.
	if res, err := http.Get(desktop.URL); err == nil {
		res.Body.Close()
	}
	c.must(c.terminate(web))
	c.must(c.terminate(vnc))
	c.becomes(web, providerapi.JobSuccess)
}

// quiet opens a link that holds a token, as a browser does: whatever the answer is, its address stays in the browser.
func (c *cluster) quiet(client *http.Client, link string) string {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodGet, link, nil)
	c.must(err)
	req.Header.Set("Accept", "text/html")
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := direct.Do(req)
	c.must(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	c.must(err)
	if got := res.Header.Get("Referrer-Policy"); got != "no-referrer" {
		c.t.Errorf("%s: status %d, Referrer-Policy %q", strings.SplitN(link, "?", 2)[0], res.StatusCode, got)
	}
	return string(body)
}

// guess presents secrets that are none, everywhere, and looks for them in the answers.
func (c *cluster) guess(secrets *canaries) {
	const guess = "cAnArYcAnArYcAnArYcAnArYcAnArYcAnArYcAnArY1"
	secrets.add("a guess", guess)
	for _, path := range []string{
		"/download?token=" + guess, "/upload?token=" + guess, "/websocket?session=" + guess, "/authorize-app?token=" + guess, "/vnc?token=" + guess,
		"/integration/instructions?ticket=" + guess, "/integration/connect?ticket=" + guess, "/files/browse?token=" + guess, "/" + "%00?token=" + guess,
	} {
		for name, value := range map[string]string{
			"X-Nothing": "", "Authorization": "Bearer " + guess, "Chunked-Upload-Token": guess, "UCloud-Signed-Intent": guess, "Cookie": "ucloud-compute-session-1-0=" + guess,
			"X-Ucloud-Hop": guess, "UCloud-Username": guess,
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				req, err := http.NewRequest(method, c.gateURL+"/ucloud/"+provider+path+"&usernameHint="+c.ada.name.HintValue(), strings.NewReader("{}"))
				c.must(err)
				if value != "" {
					req.Header.Set(name, value)
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					continue // refused without an answer
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				secrets.look(fmt.Sprintf("the answer of %s %s with %s", method, strings.SplitN(path, "?", 2)[0], name), body)
				for key, values := range res.Header {
					secrets.look("the header "+key+" of "+strings.SplitN(path, "?", 2)[0], []byte(strings.Join(values, "\n")))
				}
			}
		}
	}
}

// dumps checks that no process of ours can leave its memory behind, or show it to others of its account.
func (c *cluster) dumps() {
	pids := map[string]int{"server": c.server.pid(), "gateway": c.gateway.pid(), "instance": c.instances()[c.ada.name].PID}
	for name, pid := range pids {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		c.must(err)
		if !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
			c.t.Errorf("the %s may write core files:\n%s", name, limits)
		}
		// Files in /proc belong to root when the process is not dumpable (proc(5)).
		var st syscall.Stat_t
		c.must(syscall.Stat(fmt.Sprintf("/proc/%d/environ", pid), &st))
		if st.Uid != 0 {
			c.t.Errorf("the %s is dumpable: its environment belongs to uid %d", name, st.Uid)
		}
	}
}

// disk looks into everything that was written: the database and logs whoever may read them, other files where others may.
func (c *cluster) disk(secrets *canaries) {
	looked := 0
	walk := func(top string, all bool) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // gone meanwhile
			}
			info, err := d.Info()
			if err != nil || info.Size() > 16<<20 || !all && info.Mode().Perm()&0o004 == 0 {
				return nil //nolint:nilerr // likewise
			}
			data, err := os.ReadFile(path)
			if err == nil {
				looked++
				secrets.look(path, data)
			}
			return nil
		})
	}
	walk(filepath.Join(c.base, "log"), true)
	walk(filepath.Join(c.base, "spool"), true)
	walk(c.site.Dir, false)
	// Records of instances and the gateway's table hold the keys of routes, and nobody else reads them.
	states, _ := os.ReadDir(filepath.Join(c.base, "state"))
	for _, e := range states {
		if e.Name() != "instances" && e.Name() != "gateway" {
			walk(filepath.Join(c.base, "state", e.Name()), true)
		}
	}
	if looked < 5 {
		c.t.Errorf("only %d files were looked into", looked)
	}
	for _, private := range []string{"state", "config", "spool", "log", "run/private", "state/instances"} {
		info, err := os.Stat(filepath.Join(c.base, private))
		c.must(err)
		if info.Mode().Perm()&0o007 != 0 {
			c.t.Errorf("%s has mode %o", private, info.Mode().Perm())
		}
	}
}
