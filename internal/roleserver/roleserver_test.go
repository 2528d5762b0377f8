package roleserver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/usage"
	"ucloud-im/internal/usage/gift"
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

type noRecord struct{}

func (noRecord) RecordScript(context.Context, scripts.Entry) {}

// planner is a server that can do nothing but read services.fileSystems.
func planner(t *testing.T) *server {
	t.Helper()
	s := &server{}
	var err error
	if s.runner, err = scripts.New(scripts.Options{Provider: "birch", Spool: filepath.Join(t.TempDir(), "spool"), Record: noRecord{}}); err != nil {
		t.Fatal(err)
	}
	return s
}

const managed = `scripts: { timeout: 7s, concurrency: 3 }
services:
  type: Slurm
  identityManagement: { type: Manual, manual: { tickets: { contact: help@example.org } } }
  fileSystems:
    disk:
      management:
        type: Scripted
        usage: { interval: 5m, parallel: 8, timeout: 2m }
        scripted:
          onQuotaUpdated: { path: /opt/quota, args: [--fast], environment: { SITE: north }, timeout: 1m, retry: { initial: 1s, max: 1m } }
          onUsageReporting: { path: /opt/usage, batch: true }
      payment: { type: Resource, unit: GiB }
      driveLocators:
        home: { entity: User, pattern: "/home/#{localUsername}", freeQuota: 1 }
        work: { entity: Project, script: /opt/find, allowedRoots: [/work], title: "#{ucloudProjectTitle}" }
    tape:
      management: { type: Posix }
      payment: { type: Resource, unit: TB }
      driveLocators:
        archive: { entity: Project, pattern: "/tape/#{localGroupName}" }
`

// TestManagedPlan: how the configuration becomes hooks, quotas and measuring.
func TestManagedPlan(t *testing.T) {
	t.Parallel()
	cfg := loadText(t, base+managed)
	if got := Unsupported(cfg); len(got) != 0 {
		t.Errorf("a supported configuration: %v", got.Err())
	}
	p, err := planner(t).storagePlan(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.quotas) != 1 || p.quotas[0].Name != "disk" || p.quotas[0].UnitBytes != 1<<30 || p.quotas[0].Removed != nil || p.quotas[0].Updated.Path() != "/opt/quota" {
		t.Errorf("%+v", p.quotas)
	}
	if r := p.quotas[0].Updated.Retry(); r.Initial != time.Second || r.Max != time.Minute {
		t.Errorf("%+v", r)
	}
	disk, tape := p.usage[0], p.usage[1]
	if m, ok := disk.Measure.(usage.Scripted); !ok || !m.Many || disk.Interval != 5*time.Minute || disk.Parallel != 8 || disk.Timeout != 2*time.Minute || disk.Scan {
		t.Errorf("%+v", disk)
	}
	if _, ok := tape.Measure.(usage.StatFS); !ok || !tape.Scan || tape.UnitBytes != 1e12 {
		t.Errorf("%+v", tape)
	}
	home, work, archive := p.locators[0].Locators[0], p.locators[0].Locators[1], p.locators[1].Locators[0]
	if home.Ready == nil || home.Script != nil || home.Owned != nil || home.Mode != 0o700 || strings.Join(home.Needs, " ") != "localUsername localPrimaryGroup" {
		t.Errorf("%+v", home)
	}
	if work.Ready == nil || work.Script == nil || work.Pattern != nil || work.Mode != 0o2770 || strings.Join(work.Needs, " ") != "localGroupName ucloudProjectTitle" {
		t.Errorf("%+v", work)
	}
	if archive.Ready != nil || archive.Owned == nil {
		t.Errorf("%+v", archive)
	}
	if len(p.gifts) != 1 || p.gifts[0] != (gift.Category{Name: "disk", Units: 1}) {
		t.Errorf("%+v", p.gifts)
	}
	if len(p.hooks) != 3 {
		t.Errorf("%d hooks", len(p.hooks))
	}
}

func TestDriveCategories(t *testing.T) {
	t.Parallel()
	plan, err := planner(t).storagePlan(loadText(t, base+unmanaged))
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.quotas) != 0 || len(plan.hooks) != 0 || len(plan.usage) != 1 || plan.usage[0].Measure != nil {
		t.Errorf("an unmanaged provider measures and sets quotas: %+v", plan)
	}
	categories := plan.locators
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
	if got := Unsupported(loadText(t, base+unmanaged)); len(got) != 0 {
		t.Errorf("a supported configuration: %v", got.Err())
	}
	text := managed
	for _, r := range [][2]string{
		{"path: /opt/quota", "path: /opt/quota, runAs: root"},
		{"path: /opt/usage", "path: /opt/usage, passSecrets: [token]"},
		{"unit: GiB", "unit: GiB, interval: Daily"},
		{"type: Posix", "type: Lustre"},
	} {
		text = strings.Replace(text, r[0], r[1], 1)
	}
	got := Unsupported(loadText(t, base+text+"userInstances: { launcher: systemd }\n"))
	if len(got) != 5 {
		t.Fatalf("%d: %v", len(got), got.Err())
	}
	got = append(got, Unsupported(loadText(t, base+strings.Replace(managed, "type: Resource, unit: TB", "type: Money, price: 1, currency: EUR", 1)))...)
	if len(got) != 6 {
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
