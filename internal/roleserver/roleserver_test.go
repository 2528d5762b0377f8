package roleserver

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/config"
	"ucloud-im/internal/driveplan"
)

const base = `version: 1
provider:
  id: birch
  hosts:
    ucloud: https://cloud.example.org
    self: https://birch.example.net
`

const unmanaged = `services:
  type: Slurm
  unmanaged: true
  identityManagement: { type: Manual, manual: { tickets: { contact: help@example.org } } }
  fileSystems:
    disk:
      payment: { type: Resource, unit: TB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}", title: "Home of #{ucloudUsername}", freeQuota: 1 }
        old: { entity: User, pattern: "/old/#{uid}", freeQuota: 0, hidden: true }
        work: { entity: Project, pattern: "/work/#{ucloudProjectId}", readOnly: true }
`

func loadText(t *testing.T, text string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.yml"), []byte("version: 1\nrefreshToken: "+strings.Repeat("a", 64)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(dir, config.Options{Role: config.RoleServer})
	if cfg == nil {
		t.Fatalf("the test's configuration is wrong: %v", problems.Err())
	}
	return cfg
}

func TestDriveCategories(t *testing.T) {
	t.Parallel()
	categories := driveCategories(loadText(t, base+unmanaged))
	if len(categories) != 1 || len(categories[0].Locators) != 2 {
		t.Fatalf("%+v", categories)
	}
	home, work := categories[0].Locators[0], categories[0].Locators[1]
	if home.Name != "home" || home.Entity != driveplan.EntityUser || home.ReadOnly || strings.Join(home.Needs, " ") != "localUsername ucloudUsername" {
		t.Errorf("home: %+v", home)
	}
	if !work.ReadOnly || work.Entity != driveplan.EntityProject || len(work.AllowedRoots) != 1 || work.AllowedRoots[0] != "/work" {
		t.Errorf("work: %+v", work)
	}
	path, err := home.Pattern(driveplan.Vars{"localUsername": "ada"})
	title, titleErr := home.Title(driveplan.Vars{"ucloudUsername": "Ada#1815"})
	if path != "/home/ada" || err != nil || title != "Home of Ada#1815" || titleErr != nil {
		t.Errorf("%q %v, %q %v", path, err, title, titleErr)
	}
	if path, err := home.Pattern(driveplan.Vars{"localUsername": "../root"}); err == nil {
		t.Errorf("a path was made of it: %q", path)
	}
}

// TestUnsupported: what the configuration may say and this version does not do is refused, with its place.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	if got := unsupported(loadText(t, base+unmanaged)); len(got) != 0 {
		t.Errorf("a supported configuration: %v", got.Err())
	}
	text := base + strings.Replace(unmanaged, `pattern: "/work/#{ucloudProjectId}"`, `script: /opt/find, allowedRoots: [/work]`, 1) +
		"userInstances: { launcher: systemd }\n"
	got := unsupported(loadText(t, text))
	if len(got) != 2 {
		t.Fatalf("%v", got.Err())
	}
	for _, p := range got {
		if p.Severity != config.Error || p.Line == 0 || p.Remedy == "" {
			t.Errorf("%+v", p)
		}
	}
}

// TestMetricsAreGuarded: whom metrics.auth and metrics.allowedCidrs keep out.
func TestMetricsAreGuarded(t *testing.T) {
	t.Parallel()
	const token = "metrics-token-of-the-test"
	h := guardMetrics(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }),
		[]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, token)
	for _, tc := range []struct {
		name, from, bearer string
		want               int
	}{
		{"inside, with the token", "10.1.2.3:4", token, 200},
		{"inside, without", "10.1.2.3:4", "", 401},
		{"inside, another", "10.1.2.3:4", token + "x", 401},
		{"outside, with the token", "10.2.2.3:4", token, 403},
		{"mapped address", "[::ffff:10.1.2.3]:4", token, 200},
		{"loopback, with the token", "127.0.0.1:4", token, 200},
		{"loopback, without", "127.0.0.1:4", "", 401},
	} {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.RemoteAddr = tc.from
		if tc.bearer != "" {
			r.Header.Set("Authorization", "Bearer "+tc.bearer)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, rec.Code, tc.want)
		}
	}
}
