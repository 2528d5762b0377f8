//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/devcore/console"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

const (
	provider = "e2e"
	category = "e2e-storage"
)

// programs are built once per run of the tests.
var programs = sync.OnceValues(func() (map[string]string, error) {
	dir, err := os.MkdirTemp("", "imt-e2e-bin-")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range []string{"ucloud", "ucloud-user"} {
		out[name] = filepath.Join(dir, name)
		if err := accounts.Build("ucloud-im/cmd/"+name, out[name]); err != nil {
			return nil, err
		}
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built, err := programs(); err == nil {
		os.RemoveAll(filepath.Dir(built["ucloud"]))
	}
	os.Exit(code)
}

// world is one provider with its simulated Core.
type world struct {
	t        *testing.T
	site     *accounts.Site
	base     string // root-owned directory of everything
	ucloud   string // installed program
	user     string // installed ucloud-user
	core     *devcore.Core
	coreURL  string
	gateURL  string
	trust    http.RoundTripper // to the gateway; nil: the default
	server   *supervised
	gateway  *supervised
	tokens   map[ident.UCloudUser]string
	tokensMu sync.Mutex
	signers  map[ident.UCloudUser]*browserKey
}

type settings struct {
	extra     string // appended to config.yml
	server    string // appended to server.yml
	secrets   string // secrets.yml; empty: there is none
	rule      accounts.Rule
	idle      string // userInstances.idleTimeout
	database  string // text of the database section
	instances string // a line of the userInstances section
	firstID   int    // where Core's ids begin
	intents   string // mode of signed intents; not empty: Core forwards them, and can be taken over
	tls       bool   // the gateway ends TLS, with a certificate for 127.0.0.1 that only config/tls.pem vouches for

	services func(w *world) string // replaces the section services; nil: an unmanaged provider
}

// newWorld starts Core, server and gateway, and waits until Core knows the provider.
func newWorld(t *testing.T, set settings) *world {
	t.Helper()
	accounts.Require(t)
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, site: accounts.New(t, "e2e"), tokens: map[ident.UCloudUser]string{}, signers: map[ident.UCloudUser]*browserKey{}}
	if w.base, err = os.MkdirTemp("/var/lib", "imt-e2e-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(w.base) })
	w.must(os.Chmod(w.base, 0o755))
	for name, mode := range map[string]os.FileMode{"config": 0o750, "state": 0o700, "log": 0o750, "run": 0o755, "run/private": 0o700, "spool": 0o700} {
		dir := filepath.Join(w.base, name)
		w.must(os.MkdirAll(dir, mode))
		w.must(os.Chmod(dir, mode))
		w.must(os.Chown(dir, int(w.site.Service.UID), int(w.site.Service.GID)))
	}
	w.must(os.MkdirAll(filepath.Join(w.base, "bin"), 0o755))
	w.must(os.MkdirAll(filepath.Join(w.base, "projects"), 0o755))
	w.ucloud = filepath.Join(w.base, "bin", "ucloud")
	w.installUcloud(built["ucloud"])
	if w.user, err = w.site.Install("ucloud-user", built["ucloud-user"], set.rule); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	w.gateURL = fmt.Sprintf("http://127.0.0.1:%d", port)
	if set.tls {
		w.certificate(port)
	}
	w.startCore(set)
	w.configure(set, port)
	w.server = supervise(t, w, "server")
	w.gateway = supervise(t, w, "gateway")
	t.Cleanup(func() {
		for _, v := range w.core.Violations() {
			t.Errorf("the provider did what it must never do: %+v", v)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", w.server.tail())
			t.Logf("gateway log:\n%s", w.gateway.tail())
			logs, _ := filepath.Glob(filepath.Join(w.base, "log", "users", "*"))
			for _, file := range logs {
				data, _ := os.ReadFile(file)
				t.Logf("%s:\n%s", file, data[max(0, len(data)-16<<10):])
			}
		}
	})
	testkit.Eventually(t, "Core to know the provider", func() bool {
		return w.core.Declared(category) && w.core.EventSessions() > 0 && w.core.Polls() > 0
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// freePort finds a port outside of the range of instances, which the configuration demands.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// installUcloud replaces the program as a package manager does: by renaming.
func (w *world) installUcloud(from string) {
	w.t.Helper()
	data, err := os.ReadFile(from)
	w.must(err)
	w.must(os.WriteFile(w.ucloud+".new", data, 0o755))
	w.must(os.Chmod(w.ucloud+".new", 0o755))
	w.must(os.Rename(w.ucloud+".new", w.ucloud))
}

func (w *world) startCore(set settings) {
	w.t.Helper()
	core, err := devcore.New(devcore.Options{
		Provider: provider, FirstID: set.firstID, ProviderURL: w.gateURL, PollInterval: 500 * time.Millisecond, ConsoleKey: "secret", SameProviderTransfers: true,
		Log: slog.New(slog.DiscardHandler), RetryPause: 500 * time.Millisecond, Transport: w.trust,
		Signing: set.intents != "", TakeOver: set.intents != "",
	})
	w.must(err)
	w.core = core
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.coreURL = "http://" + l.Addr().String()
	srv := &http.Server{Handler: core.Handler(console.Files()), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() { core.Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		srv.Close()
		wg.Wait()
	})
}

func (w *world) configure(set settings, port int) {
	w.t.Helper()
	corePort := w.coreURL[strings.LastIndex(w.coreURL, ":")+1:]
	if set.idle == "" {
		set.idle = "30m"
	}
	if set.database == "" {
		set.database = "type: sqlite, path: " + filepath.Join(w.base, "state/ucloud.db")
	}
	scheme, gatewayTLS, intents := "http", "", ""
	if set.intents != "" {
		intents = "  core: { signedIntents: { mode: \"" + set.intents + "\" } }\n"
	}
	if set.tls {
		scheme = "https"
		gatewayTLS = fmt.Sprintf("  tls: { certificate: %[1]s/config/tls.pem, key: { file: %[1]s/config/tls.key } }\n", w.base)
	}
	config := fmt.Sprintf(`version: 1
provider:
  id: %[1]s
  hosts:
    ucloud: { address: 127.0.0.1, port: %[2]s, scheme: http }
    self: { address: 127.0.0.1, port: %[3]d, scheme: %[15]s }
%[17]sdevelopment: { enabled: true }
gateway:
  listen: ["127.0.0.1:%[3]d"]
%[16]smetrics: { listen: "127.0.0.1:%[4]d" }
stateDirectory: %[5]s/state
ipc: { directory: %[5]s/run }
logs: { destination: stdout, directory: %[5]s/log, level: debug }
database: { %[6]s }
scripts: { spool: %[5]s/spool }
userInstances:
  group: %[7]s
  executable: %[8]s
  deniedUsers: [root, %[9]s]
  idleTimeout: %[10]s
  %[14]s
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    type: Manual
    manual:
      tickets: { enabled: true, contact: help@example.invalid }
  fileSystems:
    %[11]s:
      payment: { type: Resource, unit: GB }
      driveLocators:
        home: { entity: User, pattern: "%[12]s", title: Home, freeQuota: 0 }
        work: { entity: Project, pattern: "%[5]s/projects/#{ucloudProjectId}", title: "Work" }
%[13]s`, provider, corePort, port, freePort(w.t), w.base, set.database, w.site.Group, w.user, w.site.Service.Name, set.idle,
		category, w.homePattern(), set.extra, set.instances, scheme, gatewayTLS, intents)
	if set.services != nil {
		config = config[:strings.Index(config, "\nservices:")] + set.services(w)
	}
	for name, content := range map[string]string{
		"secrets.yml": set.secrets,
		"config.yml":  config, "server.yml": "version: 1\nrefreshToken: " + w.core.RefreshToken() + "\n" + set.server,
		"ucloud_crt.pem": w.core.PublicKey(),
	} {
		if content == "" {
			continue
		}
		path := filepath.Join(w.base, "config", name)
		w.must(os.WriteFile(path, []byte(content), 0o600))
		w.must(os.Chown(path, int(w.site.Service.UID), int(w.site.Service.GID)))
	}
}

// homePattern is where the accounts' homes are: all below one directory.
func (w *world) homePattern() string { return w.site.Dir + "/home/#{localUsername}" }

func (w *world) socket() string { return filepath.Join(w.base, "run", "ucloud.sock") }

// cli runs the operator's command as root and gives its standard output.
func (w *world) cli(args ...string) (string, error) {
	cmd := exec.Command(w.ucloud, append([]string{"--socket", w.socket()}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("ucloud %s: %w: %s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), nil
}

// call makes an end user's call on Core, signed if the user's browser has a key.
func (w *world) call(who ident.UCloudUser, method, path string, body, answer any) error {
	return w.callSigned(who, w.signed(who, method, path, body), method, path, body, answer)
}

func (w *world) callSigned(who ident.UCloudUser, intent, method, path string, body, answer any) error {
	w.tokensMu.Lock()
	token := w.tokens[who]
	if token == "" {
		token = w.core.Login(who)
		w.tokens[who] = token
	}
	w.tokensMu.Unlock()
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, w.coreURL+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if intent != "" {
		req.Header.Set("UCloud-Signed-Intent", intent)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		e := &devcore.CallError{}
		_ = json.Unmarshal(data, e)
		e.StatusCode = res.StatusCode
		return e
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}

// person is a UCloud user with a local account.
type person struct {
	name    ident.UCloudUser
	account accounts.Account
	drive   ident.DriveID // home drive, once connected
	seen    int           // background tasks that the test has looked at
}

// addPerson makes the account and the UCloud user, with an allocation.
func (w *world) addPerson(name ident.UCloudUser) *person {
	w.t.Helper()
	p := &person{name: name, account: w.site.User(w.t)}
	w.core.AddUser(name)
	w.must(w.core.Allocate(ident.Owner{User: name}, category, 1000))
	return p
}

var ticketPattern = regexp.MustCompile(`\b[0-9A-Z]{4}(-[0-9A-Z]{4}){6}\b`)

// ticket presses Connect and reads the ticket from the provider's page.
func (w *world) ticket(p *person) string {
	w.t.Helper()
	var res providerapi.ConnectResponse
	w.must(w.call(p.name, http.MethodPost, "/api/providers/integration/connect", map[string]string{"provider": provider}, &res))
	page := w.get(res.RedirectTo)
	ticket := ticketPattern.FindString(page)
	if ticket == "" || !strings.Contains(page, strings.ReplaceAll(string(p.name), "#", "#")) {
		w.t.Fatalf("the page of %s shows no ticket:\n%s", p.name, page)
	}
	return ticket
}

func (w *world) get(rawURL string) string {
	w.t.Helper()
	if _, err := url.Parse(rawURL); err != nil {
		w.t.Fatalf("%q is no URL: %v", rawURL, err)
	}
	res, err := (&http.Client{Transport: w.trust}).Get(rawURL) //nolint:gosec // our own server
	w.must(err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	w.must(err)
	if res.StatusCode != http.StatusOK {
		w.t.Fatalf("GET %s: %d %s", rawURL, res.StatusCode, data)
	}
	return string(data)
}

// connect approves a connection as the operator and waits for the home drive.
func (w *world) connect(people ...*person) {
	w.t.Helper()
	for _, p := range people {
		if _, err := w.cli("connect", w.ticket(p), p.account.Name, "--yes"); err != nil {
			w.t.Fatal(err)
		}
		w.waitDrive(p)
	}
}

func (w *world) waitDrive(p *person) {
	w.t.Helper()
	testkit.Eventually(w.t, "the home drive of "+string(p.name), func() bool {
		for _, d := range w.drives(p) {
			if d.Specification.Title == "Home" {
				p.drive = d.ID
			}
		}
		return p.drive != ""
	})
}

func (w *world) drives(p *person) []providerapi.Drive {
	w.t.Helper()
	var page providerapi.Page[providerapi.Drive]
	w.must(w.call(p.name, http.MethodGet, "/api/files/collections/browse?itemsPerPage=250", nil, &page))
	return page.Items
}

// browse lists a directory through Core.
func (w *world) browse(p *person, path string) ([]providerapi.File, error) {
	q := url.Values{"path": {path}, "itemsPerPage": {"250"}, "includeUnixInfo": {"true"}, "includeSizes": {"true"}}
	var page providerapi.Page[providerapi.File]
	err := w.call(p.name, http.MethodGet, "/api/files/browse?"+q.Encode(), nil, &page)
	return page.Items, err
}

func (w *world) mkdir(p *person, path string, policy providerapi.ConflictPolicy) error {
	return w.call(p.name, http.MethodPost, "/api/files/folder",
		map[string]any{"items": []any{map[string]any{"id": path, "conflictPolicy": policy}}}, nil)
}

func (p *person) home() string { return "/" + string(p.drive) }

// status is the HTTP status of a failed call, 0 for others.
func status(err error) int {
	if e, ok := errors.AsType[*devcore.CallError](err); ok {
		return e.StatusCode
	}
	return 0
}
