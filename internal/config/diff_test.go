package config

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	t.Parallel()
	base := `version: 1
provider:
  id: demo
  hosts: { ucloud: "https://core.example.org", self: "https://im.example.org" }
gateway: { listen: ["127.0.0.1:8889"] }
services:
  type: Slurm
  unmanaged: true
  identityManagement:
    manual:
      tickets: { contact: help@example.org }
  fileSystems:
    disk:
      payment: { type: Resource, unit: GB }
      driveLocators: { home: { pattern: "/home/#{localUsername}" }, work: { pattern: "/projects/#{localGroupName}" } }
  slurm:
    machines:
      cpu: { partition: main, payment: { type: Resource, unit: Cpu }, cpu: [1, 2], memory: [4, 8] }
`
	dir := t.TempDir() // one for all: relative paths are part of the comparison
	load := func(replace ...string) *Config {
		t.Helper()
		write(t, filepath.Join(dir, "config.yml"), strings.NewReplacer(replace...).Replace(base), 0o600)
		c, problems := Load(dir, Options{Role: RoleGateway, Getenv: noEnv})
		if c == nil {
			t.Fatal(problems.Err())
		}
		return c
	}
	old := load()
	if a, r, f := Diff(old, load()); len(a)+len(r)+len(f) > 0 {
		t.Errorf("equal configurations differ: %v %v %v", a, r, f)
	}
	for _, tc := range []struct {
		name    string
		replace []string
		apply   string
		restart string
		refused string
	}{
		{"log level", []string{"version: 1", "version: 1\nlogs: { level: debug }"}, "logs.level: info -> debug", "", ""},
		{"timeout", []string{"listen:", "hold: { timeout: 1s }, listen:"}, "gateway.hold.timeout: 4s -> 1s", "", ""},
		{"list", []string{"listen:", "trustedProxies: [10.0.0.0/8], listen:"}, "gateway.trustedProxies[0]:  -> 10.0.0.0/8", "", ""},
		{"listener", []string{"8889", "8890"}, "", "gateway.listen[0]: 127.0.0.1:8889 -> 127.0.0.1:8890", ""},
		{"second listener", []string{`8889"`, `8889", "127.0.0.1:8890"`}, "", "gateway.listen[1]:  -> 127.0.0.1:8890", ""},
		{"id", []string{"id: demo", "id: other"}, "", "provider.id: demo -> other", ""},
		{"ipc", []string{"version: 1", "version: 1\nipc: { directory: /run/x }"}, "", "ipc.directory: /run/ucloud -> /run/x", ""},
		{"locator", []string{"/home/", "/users/"}, "services.fileSystems.disk.driveLocators.home.pattern: /home/#{localUsername} -> /users/#{localUsername}", "", ""},
		{"new machine", []string{"memory: [4, 8] }", "memory: [4, 8] }\n      big: { partition: big, payment: { type: Resource, unit: Cpu }, cpu: [9], memory: [9] }"}, "services.slurm.machines.big.partition:  -> big", "", ""},
		{"renamed product", []string{"    disk:", "    disk2:"}, "services.fileSystems.disk2", "", "services.fileSystems.disk: the product \"disk\" was removed"},
		{"unit", []string{"unit: GB", "unit: TB"}, "payment.unit: GB -> TB", "", "services.fileSystems.disk.payment: the unit"},
		{"interval", []string{"unit: Cpu }", "unit: Cpu, interval: Hourly }"}, "interval", "", "services.slurm.machines.cpu.payment.interval: the interval"},
		{"free", []string{"{ partition: main", "{ freeToUse: true, partition: main"}, "freeToUse", "", "services.slurm.machines.cpu.freeToUse: freeToUse"},
		{"slice", []string{"cpu: [1, 2]", "cpu: [1, 3]"}, "cpu[1]: 2 -> 3", "", "services.slurm.machines.cpu: the machine \"cpu-2\""},
		{"program", []string{"selfService", "x", "contact: help@example.org }", "contact: help@example.org }\n      onTicketCreated: { path: /opt/x, timeout: 5s }"}, "onTicketCreated:  -> /opt/x timeout=5s", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			apply, restart, refused := Diff(old, load(tc.replace...))
			var a, r, f []string
			for _, c := range apply {
				a = append(a, c.KeyPath+": "+c.Old+" -> "+c.New)
			}
			for _, c := range restart {
				r = append(r, c.KeyPath+": "+c.Old+" -> "+c.New)
			}
			for _, p := range refused {
				f = append(f, p.KeyPath+": "+p.Message)
			}
			for _, part := range []struct{ name, want, got string }{
				{"apply", tc.apply, strings.Join(a, "\n")}, {"restart", tc.restart, strings.Join(r, "\n")}, {"refused", tc.refused, strings.Join(f, "\n")},
			} {
				if !strings.Contains(part.got, part.want) || part.want == "" && part.got != "" {
					t.Errorf("%s: got %q, want %q", part.name, part.got, part.want)
				}
			}
		})
	}
}

// SEC-6: a secret file that was rewritten in place is a change, though the reference to it is the same.
func TestDiffSeesRewrittenSecret(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	old := s.expect(t)
	write(t, s.path("token"), "another-token\n", 0o600)
	apply, restart, refused := Diff(old, s.expect(t))
	if len(apply) != 1 || apply[0] != (Change{"server:refreshToken", "[redacted]", "[redacted]"}) || len(restart)+len(refused) > 0 {
		t.Errorf("%v %v %v", apply, restart, refused)
	}
}
