package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// needRoot skips a test that has to give files to other accounts. In CI that is a failure, so that it is never skipped
// unseen.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const why = "needs root: files of other owners"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// site is a complete installation below a directory whose parents nobody else can write to.
type site struct {
	dir     string
	options Options
}

const siteConfig = `version: 1
provider:
  id: demo
  hosts: { ucloud: "https://core.example.org", self: "https://im.example.org" }
stateDirectory: DIR/state
ipc: { directory: DIR/run }
logs: { destination: file, directory: DIR/log }
scripts: { spool: DIR/spool }
userInstances: { deniedUsers: [root, svc], sudo: DIR/bin/sudo, executable: DIR/bin/ucloud-user }
gateway: { listen: ["127.0.0.1:8889"] }
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    manual:
      tickets: { contact: help@example.org }
      onTicketCreated: DIR/bin/ticket
  fileSystems:
    disk:
      payment: { type: Resource, unit: GB }
      driveLocators: { home: { pattern: "/home/#{localUsername}" } }
`

// serviceID is a uid and gid that no account has.
const serviceID = 61234

func newSite(t *testing.T, more string) *site {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp(home, "imt-config-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	s := &site{dir: base, options: Options{
		Role: RoleServer, Environment: true, Getenv: noEnv,
		Service: &Account{Name: "svc", UID: os.Geteuid(), GID: os.Getegid()},
		Group:   func(name string) (Group, bool, error) { return Group{GID: 777}, name == "ucloud_users", nil },
	}}
	if os.Geteuid() == 0 {
		s.options.Service = &Account{Name: "svc", UID: serviceID, GID: serviceID}
	}
	for _, d := range []string{"state", "run", "log", "spool", "bin"} {
		if err := os.Mkdir(s.path(d), map[bool]os.FileMode{true: 0o755, false: 0o700}[d == "run" || d == "bin"]); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"sudo", "ucloud-user", "ticket"} {
		write(t, s.path("bin/"+f), "#!/bin/sh\n", 0o755)
	}
	write(t, s.path("ucloud_key.pub"), "key\n", 0o644)
	write(t, s.path("config.yml"), strings.ReplaceAll(siteConfig+more, "DIR", base), 0o640)
	write(t, s.path("server.yml"), "version: 1\nrefreshToken: { file: "+s.path("token")+" }\n", 0o600)
	write(t, s.path("token"), "the-refresh-token\n", 0o600)
	return s
}

func (s *site) path(rel string) string { return filepath.Join(s.dir, rel) }

// expect loads the site and compares the problems, given as "rule key: part of the message".
func (s *site) expect(t *testing.T, want ...string) *Config {
	t.Helper()
	c, problems := Load(s.dir, s.options)
	for i, p := range problems {
		text := p.Rule + " " + p.KeyPath + ": " + p.Message
		if i >= len(want) {
			t.Errorf("unexpected: %s", text)
			continue
		}
		head, part, _ := strings.Cut(want[i], ": ")
		if !strings.HasPrefix(text, head+": ") || !strings.Contains(text, part) {
			t.Errorf("got  %s\nwant %s", text, want[i])
		}
	}
	if len(problems) < len(want) {
		t.Errorf("missing: %q", want[len(problems):])
	}
	return c
}

func TestEnvironmentInOrder(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	for _, role := range []Role{RoleServer, RoleGateway, RoleCheck} {
		s.options.Role = role
		c := s.expect(t)
		if c == nil {
			t.Fatal("refused")
		}
		if c.Server != nil && c.Server.RefreshToken.Value().Reveal() != "the-refresh-token" {
			t.Errorf("token = %q", c.Server.RefreshToken.Value().Reveal())
		}
	}
}

// SEC-1: who else could read or write a file with secrets.
func TestSecretFileModes(t *testing.T) {
	t.Parallel()
	for mode, ok := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o640: false, 0o644: false, 0o660: false, 0o666: false, 0o604: false, 0o700: false, 0o444: false, 0o602: false,
	} {
		for _, file := range []string{"server.yml", "token", "secrets.yml"} {
			s := newSite(t, "")
			write(t, s.path("secrets.yml"), "version: 1\n", 0o600)
			if err := os.Chmod(s.path(file), mode); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() != 0 && mode == 0o640 {
				continue // the group is that of the service account here
			}
			c, problems := Load(s.dir, s.options)
			if (c != nil) != ok {
				t.Errorf("%s with mode %04o: accepted %v", file, mode, c != nil)
			}
			if !ok && (len(problems) == 0 || problems[0].Rule != "SEC-1") {
				t.Errorf("%s with mode %04o: %v", file, mode, problems)
			}
		}
	}
}

// A file that others can read does not hide what else is wrong, in it and elsewhere.
func TestSecretFileModesHideNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "development: { nonsense: 1 }\n")
	write(t, s.path("server.yml"), "version: 1\nrefreshToken: { file: "+s.path("token")+" }\nnonsense: 1\n", 0o644)
	if err := os.Chmod(s.path("token"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.path("bin/sudo"), 0o777); err != nil {
		t.Fatal(err)
	}
	s.expect(t,
		"X-11 userInstances.sudo: others may write to it",
		"CFG-2 development.nonsense: unknown key",
		"SEC-1 : server.yml has mode 0644",
		"SEC-1 refreshToken: token has mode 0644",
		"CFG-2 nonsense: unknown key",
	)
}

func TestSecretFileOwners(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, tc := range []struct {
		uid, gid int
		mode     os.FileMode
		ok       bool
	}{
		{0, 0, 0o600, true},
		{serviceID, serviceID, 0o600, true},
		{serviceID, 0, 0o400, true},
		{0, serviceID, 0o640, true},
		{serviceID, serviceID, 0o640, true},
		{0, 1, 0o640, false},
		{serviceID + 1, serviceID, 0o600, false},
		{serviceID + 1, serviceID, 0o640, false},
	} {
		for _, file := range []string{"server.yml", "token"} {
			s := newSite(t, "")
			if err := os.Chown(s.path(file), tc.uid, tc.gid); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.path(file), tc.mode); err != nil {
				t.Fatal(err)
			}
			if c, problems := Load(s.dir, s.options); (c != nil) != tc.ok {
				t.Errorf("%s %d:%d %04o: accepted %v, %v", file, tc.uid, tc.gid, tc.mode, c != nil, problems)
			}
		}
	}
}

// A file with secrets is a regular file and no link; a FIFO does not block the start.
func TestSecretFileKinds(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(path string) error{
		"symlink": func(p string) error {
			if err := os.Rename(p, p+".real"); err != nil {
				return err
			}
			return os.Symlink(p+".real", p)
		},
		"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
		"fifo":      func(p string) error { return errors.Join(os.Remove(p), mkfifo(p)) },
	} {
		for _, file := range []string{"server.yml", "token"} {
			s := newSite(t, "")
			if err := make(s.path(file)); err != nil {
				t.Fatal(err)
			}
			c, problems := Load(s.dir, s.options)
			if c != nil || problems[0].Rule != "SEC-1" {
				t.Errorf("%s as %s: %v", file, name, problems)
			}
		}
	}
}

func TestSecretSources(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	creds := s.path("creds")
	write(t, filepath.Join(creds, "token"), "from-systemd\n", 0o440) // what systemd.exec(5) makes
	env := map[string]string{"CREDENTIALS_DIRECTORY": creds, "TOKEN": "from-env"}
	s.options.Getenv = func(k string) string { return env[k] }
	for ref, want := range map[string]string{
		"{ credential: token }": "from-systemd", "{ env: TOKEN }": "from-env", "in plain text": "in plain text",
		"{ file: token }": "the-refresh-token", `"p#w: {x} '"`: "p#w: {x} '", "12345678": "12345678",
	} {
		write(t, s.path("server.yml"), "version: 1\nrefreshToken: "+ref+"\n", 0o600)
		if c := s.expect(t); c == nil || c.Server.RefreshToken.Value().Reveal() != want {
			t.Errorf("%s: not %q", ref, want)
		}
	}
	for ref, want := range map[string]string{
		"{ credential: other }":    "no such file",
		"{ credential: ../token }": "not the name of a credential",
		"{ env: OTHER }":           "is empty or not set",
		"{ file: /nowhere/x }":     "no such file",
		`""`:                       "the secret is empty",
		"{}":                       "the secret has no source",
	} {
		write(t, s.path("server.yml"), "version: 1\nrefreshToken: "+ref+"\n", 0o600)
		_, problems := Load(s.dir, s.options)
		if len(problems) == 0 || !strings.Contains(problems[0].Message, want) {
			t.Errorf("%s: %v", ref, problems)
		}
	}
}

func TestOwnFilesAndKeys(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(s *site) error
		want []string
	}{
		{"config writable", func(s *site) error { return os.Chmod(s.path("config.yml"), 0o666) }, []string{"SEC-1 : others may write"}},
		{"directory writable", func(s *site) error { return os.Chmod(s.dir, 0o777) }, []string{
			"SEC-1 : others may write", "X-11 userInstances.sudo: others may write", "X-11 userInstances.executable: others may write", "X-11 services.identityManagement.manual.onTicketCreated: others may write",
		}},
		{"no key", func(s *site) error { return os.Remove(s.path("ucloud_key.pub")) }, []string{"CFG-5 provider.core.certificates: neither"}},
		{"second name", func(s *site) error { return os.Rename(s.path("ucloud_key.pub"), s.path("ucloud_crt.pem")) }, nil},
		{"key writable", func(s *site) error { return os.Chmod(s.path("ucloud_key.pub"), 0o666) }, []string{"SEC-1 provider.core.certificates[0]: others may write"}},
		{"key empty", func(s *site) error { return os.WriteFile(s.path("ucloud_key.pub"), []byte(" \n"), 0o644) }, []string{"CFG-5 provider.core.certificates[0]: is empty"}},
		{"key large", func(s *site) error { return os.WriteFile(s.path("ucloud_key.pub"), make([]byte, 1<<20), 0o644) }, []string{"CFG-5 provider.core.certificates[0]: larger than"}},
		{"key unreadable", func(s *site) error {
			s.options.ParseKeys = func([]byte) error { return errors.New("too short") }
			return nil
		}, []string{"CFG-5 provider.core.certificates[0]: too short"}},
		{"state open", func(s *site) error { return os.Chmod(s.path("state"), 0o755) }, []string{"CFG-5 stateDirectory: mode 0755"}},
		{"run writable", func(s *site) error { return os.Chmod(s.path("run"), 0o777) }, []string{"CFG-5 ipc.directory: others may write"}},
		{"log open", func(s *site) error { return os.Chmod(s.path("log"), 0o755) }, []string{"CFG-5 logs.directory: mode 0755"}},
		{"spool is a file", func(s *site) error {
			return errors.Join(os.Remove(s.path("spool")), os.WriteFile(s.path("spool"), nil, 0o600))
		}, []string{"CFG-5 scripts.spool: not a directory"}},
		{"nothing there yet", func(s *site) error {
			return errors.Join(os.Remove(s.path("state")), os.Remove(s.path("run")), os.Remove(s.path("log")), os.Remove(s.path("spool")))
		}, nil},
		{"no home", func(s *site) error {
			text, err := os.ReadFile(s.path("config.yml"))
			return errors.Join(err, os.WriteFile(s.path("config.yml"), []byte(strings.Replace(string(text), `"/home/#{`, `"/not-mounted/#{`, 1)), 0o640))
		}, []string{"X-13 services.fileSystems.disk.driveLocators.home: no such file"}},
		{"no server.yml", func(s *site) error { return os.Remove(s.path("server.yml")) }, []string{"CFG-1 : there is no server.yml"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			if err := tc.do(s); err != nil {
				t.Fatal(err)
			}
			s.expect(t, tc.want...)
		})
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.options.Service.Groups = []int{777}
	s.expect(t, "SEC-5 userInstances.group: member of")
	s.options.Service.Groups = nil
	s.options.Group = func(string) (Group, bool, error) { return Group{GID: 1, Members: []string{"svc"}}, true, nil }
	s.expect(t, "SEC-5 userInstances.group: member of")
	s.options.Group = func(string) (Group, bool, error) { return Group{}, false, nil }
	s.expect(t, "X-04 userInstances.group: there is no group")
	s.options.Group = func(string) (Group, bool, error) { return Group{}, false, errors.New("timeout") }
	s.expect(t, "X-04 userInstances.group: timeout")
	s.options.Group = nil
	s.expect(t, "X-04 userInstances.group: there is no group") // ucloud_users is not in /etc/group of a test machine
	if os.Geteuid() == 0 {
		s.options.Service = nil
		s.options.Group = func(string) (Group, bool, error) { return Group{GID: 1 << 30}, true, nil }
		s.expect(t, "SEC-5 : refuses to run as root")
	}
}

func TestPrograms(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		do   func(s *site) error
		want string
	}{
		{"missing", func(s *site) error { return os.Remove(s.path("bin/ticket")) }, "no such file"},
		{"not executable", func(s *site) error { return os.Chmod(s.path("bin/ticket"), 0o644) }, "cannot be executed"},
		{"group writable", func(s *site) error { return os.Chmod(s.path("bin/ticket"), 0o775) }, "others may write"},
		{"directory", func(s *site) error {
			return errors.Join(os.Remove(s.path("bin/ticket")), os.Mkdir(s.path("bin/ticket"), 0o755))
		}, "not a regular file"},
		{"link", func(s *site) error {
			return errors.Join(os.Rename(s.path("bin/ticket"), s.path("bin/real")), os.Symlink("real", s.path("bin/ticket")))
		}, ""},
		{"link into a writable directory", func(s *site) error {
			return errors.Join(os.Remove(s.path("bin/ticket")), os.Mkdir(s.path("open"), 0o777), os.Chmod(s.path("open"), 0o777),
				os.WriteFile(s.path("open/x"), nil, 0o755), os.Symlink(s.path("open/x"), s.path("bin/ticket")))
		}, "open has mode 0777"},
		{"link through a writable directory", func(s *site) error {
			return errors.Join(os.Remove(s.path("bin/ticket")), os.Mkdir(s.path("open"), 0o777), os.Chmod(s.path("open"), 0o777),
				os.Symlink(s.path("bin/sudo"), s.path("open/x")), os.Symlink(s.path("open/x"), s.path("bin/ticket")))
		}, "open has mode 0777"},
		{"loop", func(s *site) error {
			return errors.Join(os.Remove(s.path("bin/ticket")), os.Symlink("ticket", s.path("bin/ticket")))
		}, "too many symlinks"},
		{"sticky parent", func(s *site) error { return os.Chmod(s.path("bin"), 0o777|os.ModeSticky) }, "bin has mode 1777"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			if err := tc.do(s); err != nil {
				t.Fatal(err)
			}
			_, problems := Load(s.dir, s.options)
			found := false
			for _, p := range problems {
				found = found || p.KeyPath == "services.identityManagement.manual.onTicketCreated" && p.Rule == "X-11" && strings.Contains(p.Message, tc.want)
			}
			if tc.want == "" && len(problems) > 0 || tc.want != "" && !found {
				t.Errorf("%v", problems)
			}
		})
	}
}

func TestProgramOfAnotherUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := newSite(t, "")
	if err := os.Chown(s.path("bin/ucloud-user"), serviceID+1, 0); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "X-11 userInstances.executable: neither root nor the service account")
}

// A test installation may live below /tmp, whose sticky bit keeps others from exchanging our files.
func TestStickyParentInDevelopment(t *testing.T) {
	t.Parallel()
	s := newSite(t, "development: { enabled: true }\n")
	if err := os.Chmod(s.path("bin"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s.expect(t)
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	for _, tc := range []struct {
		name  string
		names []string
		life  time.Duration
		other bool // another key
		role  Role
		want  []string
	}{
		{"good", []string{"im.example.org"}, 90 * day, false, RoleGateway, nil},
		{"wildcard", []string{"*.example.org"}, 90 * day, false, RoleGateway, nil},
		{"other name", []string{"example.com"}, 90 * day, false, RoleGateway, []string{"X-01 gateway.tls.certificate: does not cover im.example.org"}},
		{"soon over", []string{"im.example.org"}, 20 * day, false, RoleGateway, []string{"X-01 gateway.tls.certificate: ends on"}},
		{"over", []string{"im.example.org"}, -day, false, RoleGateway, []string{"X-01 gateway.tls.certificate: ended on"}},
		{"other key", []string{"im.example.org"}, 90 * day, true, RoleGateway, []string{"X-01 gateway.tls: cannot be used together"}},
		{"other key, seen by the server", []string{"im.example.org"}, 90 * day, true, RoleServer, nil},
		{"other name, seen by the server", []string{"example.com"}, 90 * day, false, RoleServer, []string{"X-01 gateway.tls.certificate: does not cover im.example.org"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			text := strings.Replace(siteConfig, "gateway: {", "gateway: { tls: { certificate: DIR/cert.pem, key: DIR/key.pem },", 1)
			write(t, s.path("config.yml"), strings.ReplaceAll(text, "DIR", s.dir), 0o640)
			cert, key := certificate(t, tc.names, tc.life)
			if tc.other {
				_, key = certificate(t, tc.names, tc.life)
			}
			write(t, s.path("cert.pem"), cert, 0o644)
			write(t, s.path("key.pem"), key, 0o600)
			s.options.Role = tc.role
			s.expect(t, tc.want...)
		})
	}
}

func certificate(t *testing.T, names []string, life time.Duration) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: time.Now().Add(-100 * 24 * time.Hour), NotAfter: time.Now().Add(life),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// Without environment rules nothing but the YAML files is looked at, so no secret is read.
func TestStaticReadsNothingElse(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.options.Environment = false
	s.options.Getenv = func(string) string { t.Error("the environment was read"); return "" }
	for _, f := range []string{"token", "ucloud_key.pub", "bin/ticket"} {
		if err := os.Remove(s.path(f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.path("server.yml"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c := s.expect(t); c == nil || c.Server.RefreshToken.Value() != "" || !c.Server.RefreshToken.IsSet() {
		t.Error("the secret was read, or the configuration refused")
	}
}

func TestLogLevelVariable(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	for value, want := range map[string]slog.Level{"debug": slog.LevelDebug, "error": slog.LevelError, "": slog.LevelInfo} {
		s.options.Getenv = func(string) string { return value }
		if c := s.expect(t); c.Logs.SlogLevel() != want || c.Logs.ComponentLevel("jobs") != want {
			t.Errorf("%q: %v", value, c.Logs.SlogLevel())
		}
	}
	s.options.Getenv = func(string) string { return "loud" }
	s.expect(t, "CFG-5 logs.level: unknown value \"loud\"")
}

// Loading leaves everything as it was.
func TestNoSideEffects(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	list := func() string {
		var b strings.Builder
		err := filepath.WalkDir(s.dir, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err != nil {
				return err
			}
			b.WriteString(p + " " + st.Mode().String() + " " + st.ModTime().String() + "\n")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	before := list()
	s.options.Role = RoleCheck
	s.expect(t)
	if after := list(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
