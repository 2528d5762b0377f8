package config

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func noEnv(string) string { return "" }

// mustLoad loads a configuration without environment rules and fails the test on errors.
func mustLoad(t *testing.T, dir string, role Role) *Config {
	t.Helper()
	c, problems := Load(dir, Options{Role: role, Getenv: noEnv})
	if problems.HasErrors() {
		var b bytes.Buffer
		_ = problems.WriteText(&b, false)
		t.Fatalf("role %s:\n%s", role, b.String())
	}
	return c
}

// loadText loads config.yml from a text, with a server.yml that is always right.
func loadText(t *testing.T, text string) (*Config, Problems) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.yml"), text, 0o600)
	write(t, filepath.Join(dir, "server.yml"), "version: 1\nrefreshToken: { credential: t }\n", 0o600)
	return Load(dir, Options{Role: RoleCheck, Getenv: noEnv})
}

const minimal = `version: 1
provider:
  id: demo
  hosts:
    ucloud: https://core.example.org
    self: https://im.example.org:8889
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    manual:
      tickets: { contact: help@example.org }
  fileSystems:
    disk:
      payment: { type: Resource, unit: TiB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}" }
`

// The examples of contract 40 section 15 and ours load without errors for every role, on a machine that has none of what
// they name.
func TestExamples(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{
		"birch": "testdata/examples/birch", "cedar": "testdata/examples/cedar", "elm": "testdata/examples/elm",
		"example": "../../examples/config",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, role := range []Role{RoleServer, RoleGateway, RoleCLI, RoleCheck} {
				c := mustLoad(t, dir, role)
				if string(c.Provider.ID) != name {
					t.Errorf("provider.id = %q", c.Provider.ID)
				}
				if got := c.Server != nil; got != role.readsSecrets() {
					t.Errorf("role %s: server.yml read: %v", role, got)
				}
			}
			if name != "example" {
				return
			}
			if c := mustLoad(t, dir, RoleServer); len(c.Warnings) != 0 {
				t.Errorf("our own example gives warnings: %v", c.Warnings)
			}
		})
	}
}

func TestDefaultsAndAccessors(t *testing.T) {
	t.Parallel()
	c, problems := loadText(t, minimal)
	if c == nil {
		t.Fatal(problems.Err())
	}
	got := map[string]any{
		"hold":        c.Gateway.Hold.Timeout,
		"ports":       c.Internal.UserPorts,
		"header":      c.Gateway.Limits.MaxHeaderBytes,
		"socket":      c.IPCSocket(),
		"server":      c.Internal.ServerListen.String(),
		"profiler":    c.Profiler.Socket.String(),
		"state":       c.Gateway.StateDirectory.String(),
		"database":    c.Database.Path.String(),
		"health":      c.Health.Listen.String(),
		"listen":      c.Gateway.Listen[0].String(),
		"umask":       c.UserInstances.Umask.String(),
		"memory":      c.UserInstances.Limits.Memory.Bytes(),
		"launcher":    c.UserInstances.Launcher,
		"identity":    c.Services.Identity.Type,
		"self":        c.Services.Identity.Manual.SelfService,
		"lifetime":    c.Services.Identity.Manual.Tickets.Lifetime,
		"core public": c.Provider.Hosts.UCloudPublic.URL(),
		"self public": c.Provider.Hosts.SelfPublic.URL(),
		"key files":   filepath.Base(c.Provider.Core.KeyFiles()[0]),
		"managed":     c.Managed(),
		"redact":      strings.Join(c.Scripts.Redact, ","),
		"parallel":    c.StartParallel() > 0,
	}
	want := map[string]any{
		"hold": 4 * time.Second, "ports": PortRange{42000, 49999}, "header": Size(64 << 10),
		"socket": "/run/ucloud/ucloud.sock", "server": "unix:/run/ucloud/private/server.sock",
		"profiler": "/run/ucloud/private/pprof.sock", "state": "/var/lib/ucloud", "database": "/var/lib/ucloud/ucloud.db",
		"health": "127.0.0.1:7867", "listen": "0.0.0.0:8889", "umask": "0007", "memory": int64(1 << 30),
		"launcher": "sudo", "identity": "Manual", "self": true, "lifetime": 14 * 24 * time.Hour,
		"core public": "https://core.example.org", "self public": "https://im.example.org:8889",
		"key files": "ucloud_key.pub", "managed": false, "redact": "password,secret,token,claims", "parallel": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	fs, _ := c.Services.FileSystems.Get("disk")
	loc, _ := fs.DriveLocators.Get("home")
	if loc.Title.String() != "home" || loc.AllowedRoots[0] != "/home" || loc.Ownership.Mode != 0o700 || fs.Payment.UnitBytes() != 1<<40 {
		t.Errorf("locator defaults: %+v", loc)
	}
	if loc.IsPrimaryCandidate(EntityProject) || !loc.IsPrimaryCandidate(EntityUser) {
		t.Error("the locator of users serves the wrong owners")
	}
}

// A whole installation can live below one directory.
func TestEverythingCanBeMoved(t *testing.T) {
	t.Parallel()
	c, problems := loadText(t, minimal+`
stateDirectory: /tmp/x/state
ipc: { directory: /tmp/x/run }
logs: { directory: /tmp/x/log }
scripts: { spool: /tmp/x/spool }
userInstances: { sudo: /tmp/x/sudo, executable: /tmp/x/ucloud-user }
`)
	if c == nil {
		t.Fatal(problems.Err())
	}
	for _, got := range []string{
		c.IPCSocket(), c.Internal.ServerListen.Path, string(c.Profiler.Socket), string(c.Database.Path),
		string(c.Gateway.StateDirectory), c.InstanceLogDirectory(), string(c.Scripts.Spool), string(c.UserInstances.Sudo), c.PrivateDirectory(),
	} {
		if !strings.HasPrefix(got, "/tmp/x/") {
			t.Errorf("%s is elsewhere", got)
		}
	}
}

// The gateway never opens a file with secrets of the server, not even to find that it is broken.
func TestGatewayDoesNotReadSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.yml"), minimal, 0o600)
	write(t, filepath.Join(dir, "server.yml"), "not: [yaml", 0o000)
	write(t, filepath.Join(dir, "secrets.yml"), "not: [yaml", 0o000)
	c := mustLoad(t, dir, RoleGateway)
	for _, f := range c.SourceFiles() {
		if filepath.Base(f) != "config.yml" {
			t.Errorf("the gateway read %s", f)
		}
	}
}

func TestDirIsAbsolute(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "testdata/examples/elm", RoleCLI)
	if !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Provider.Core.KeyFiles()[0]) {
		t.Errorf("Dir = %q, key file %q", c.Dir, c.Provider.Core.KeyFiles()[0])
	}
	if _, problems := Load("", Options{Role: RoleCLI}); !problems.HasErrors() {
		t.Error("an empty directory name was accepted")
	}
}

func TestProblemsAsError(t *testing.T) {
	t.Parallel()
	_, problems := loadText(t, strings.Replace(minimal, "id: demo", "idd: demo", 1))
	err := problems.Err()
	if err == nil || !strings.Contains(err.Error(), "config.yml:2:1 provider.id") || !strings.Contains(err.Error(), "1 more") {
		t.Errorf("error = %v", err)
	}
	if back, ok := AsProblems(err); !ok || len(back) != len(problems) {
		t.Error("the list cannot be had back from the error")
	}
	var b bytes.Buffer
	if err := problems.WriteJSON(&b); err != nil || !strings.Contains(b.String(), `"keyPath": "provider.idd"`) || !strings.Contains(b.String(), `"accepted": false`) {
		t.Errorf("JSON: %v\n%s", err, b.String())
	}
	b.Reset()
	if err := problems.WriteText(&b, true); err != nil || !strings.Contains(b.String(), "\x1b[31;1merror\x1b[0m") {
		t.Errorf("no colour in:\n%s", b.String())
	}
	if (Problems{{Severity: Warning}}).Err() != nil {
		t.Error("a warning is an error")
	}
	b.Reset()
	if err := Problems(nil).WriteJSON(&b); err != nil || !strings.Contains(b.String(), `"problems": []`) {
		t.Errorf("empty JSON: %s", b.String())
	}
}

// Other packages can report problems of their own with the place in the file.
func TestNewProblem(t *testing.T) {
	t.Parallel()
	c, _ := loadText(t, minimal)
	p := c.NewProblem(Error, "X-18", "provider.hosts.ucloud", "m", "r")
	if p.File != "config.yml" || p.Line != 5 || p.Column != 13 || !strings.Contains(p.Excerpt, "^~~~") {
		t.Errorf("%+v", p)
	}
	if p := c.NewProblem(Error, "X-17", "database.type", "m", "r"); p.Line != 1 || p.Excerpt != "" {
		t.Errorf("a default points at %+v", p)
	}
}
