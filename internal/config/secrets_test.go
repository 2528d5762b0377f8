package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

// SEC-4: whatever form of printing somebody comes up with, a secret is not in it.
func TestSecretsNeverAppear(t *testing.T) {
	t.Parallel()
	s := newSite(t, "metrics: { auth: { token: DIR/metrics-token } }\n")
	write(t, s.path("metrics-token"), "sesame-metrics\n", 0o600)
	write(t, s.path("token"), "sesame-file\n", 0o600)
	write(t, s.path("server.yml"), `version: 1
refreshToken: { file: `+s.path("token")+` }
database: { host: /run/postgresql, database: d, username: u, password: "sesame-plain", clientKey: { env: KEY }, clientCertificate: `+s.path("token")+` }
`, 0o600)
	write(t, s.path("secrets.yml"), "version: 1\nldap: { bindPassword: sesame-ldap }\ngpfs: { x: { username: u, password: sesame-gpfs } }\n", 0o600)
	s.options.Getenv = func(string) string { return "sesame-env" }

	// First with an error in every file, then in order.
	c, problems := Load(s.dir, s.options)
	if c != nil || len(problems) < 2 {
		t.Fatalf("the login of no product was accepted: %v", problems)
	}
	check := func(what, text string) {
		t.Helper()
		if strings.Contains(text, "sesame") {
			t.Errorf("%s shows a secret:\n%s", what, text)
		}
	}
	show := func(name string, v any) {
		t.Helper()
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			check(name+" with "+verb, fmt.Sprintf(verb, v))
		}
		b, err := json.Marshal(v)
		check(name+" as JSON", string(b)+fmt.Sprint(err))
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		check(name+" in a log", log.String())
	}
	show("problems", problems)
	show("error", problems.Err())
	check("the report", report(problems))

	write(t, s.path("secrets.yml"), "version: 1\nldap: { bindPassword: sesame-ldap }\n", 0o600)
	c, problems = Load(s.dir, s.options)
	if c == nil {
		t.Fatal(problems.Err())
	}
	for name, got := range map[string]string{
		"file": c.Server.RefreshToken.Value().Reveal(), "plain": c.Server.Database.Password.Value().Reveal(),
		"env": c.Server.Database.ClientKey.Value().Reveal(), "ldap": c.Secrets.LDAP.BindPassword.Value().Reveal(),
		"metrics": c.Metrics.Auth.Token.Value().Reveal(),
	} {
		if got != "sesame-"+name {
			t.Errorf("%s: %q, so the test would prove nothing", name, got)
		}
	}
	show("configuration", c)
	show("value", *c)
	show("server.yml", c.Server)
	show("server.yml value", *c.Server)
	show("database", *c.Server.Database)
	show("secret", c.Server.RefreshToken)
	show("pointer to a secret", &c.Server.RefreshToken)
	show("secrets.yml", *c.Secrets)
	show("ldap", *c.Secrets.LDAP)
	show("metrics", *c.Metrics.Auth)
	for _, o := range []PrintOptions{{}, {Effective: true}, {Origin: true}, {JSON: true}, {KeyPath: "server.database.password"}} {
		var b bytes.Buffer
		if err := c.Print(&b, o); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("print %+v", o), b.String())
	}
	other := *c
	other.Server = &ServerFile{Version: 1}
	apply, restart, refused := Diff(&other, c)
	show("diff", []any{apply, restart, refused})
	if len(apply)+len(restart) == 0 {
		t.Error("no difference, so the test would prove nothing")
	}
}

// Lines of files with secrets are cut before they are stored.
func TestKeyOnly(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"password: sesame":       "password: …",
		"  password:  sesame":    "  password: …",
		"database:":              "database:",
		"  - password: sesame":   "  - password: …",
		"sesame":                 "",
		"  sesame # x: y":        "",
		"se same: y":             "",
		"password:sesame":        "",
		"\"se: same\"":           "",
		"{ password: sesame }":   "",
		"":                       "",
		"# password: sesame":     "",
		"'sesame': x":            "",
		"? sesame":               "",
		"a: { password: sesame}": "a: …",
	} {
		if got := keyOnly(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
