package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSpoolOnlyWithScripts: a provider without extension scripts needs no directory for their requests.
func TestSpoolOnlyWithScripts(t *testing.T) {
	t.Parallel()
	const text = `version: 1
provider: { id: birch, hosts: { ucloud: https://cloud.example.org, self: https://birch.example.net } }
scripts: { spool: /srv/requests }
services:
  type: Slurm
  unmanaged: true
  identityManagement: { type: Manual, manual: { tickets: { contact: help@example.org } } }
  fileSystems:
    disk:
      payment: { type: Resource, unit: TB }
      driveLocators:
        work: { entity: Project, LOCATOR }
`
	for locator, want := range map[string]bool{`pattern: "/work/#{ucloudProjectId}"`: false, `script: /opt/find, allowedRoots: [/work]`: true} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(strings.Replace(text, "LOCATOR", locator, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		w := &world{socket: "/nonexistent"}
		code, out, errs := w.run(t, nil, "--config-dir", dir, "setup", "directories", "--print")
		if code != ExitOK || strings.Contains(out, "-m 0700 /srv/requests") != want {
			t.Errorf("%s: %d\n%s%s", locator, code, out, errs)
		}
	}
}
