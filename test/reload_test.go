//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// TestReload: a new configuration takes effect without a restart, a wrong one changes nothing and says why.
func TestReload(t *testing.T) {
	w := newWorld(t, settings{})
	ada, op := w.addPerson("Ada#1815"), w.addPerson("Op#1")
	w.running(ada, op)
	file := filepath.Join(w.base, "config/config.yml")
	original, err := os.ReadFile(file)
	w.must(err)
	write := func(text string) { t.Helper(); w.must(os.WriteFile(file, []byte(text), 0o600)) }

	write(strings.Replace(string(original), "  hosts:", "  maintenance: { enabled: true, allowList: [\"Op#1\"], message: Back at noon }\n  hosts:", 1))
	w.server.signal(syscall.SIGHUP)
	testkit.Eventually(t, "maintenance to begin", func() bool { return len(accounts.Processes(ada.account.UID)) == 0 })
	if _, err := w.browse(ada, ada.home()); err == nil || !strings.Contains(err.Error(), "Back at noon") {
		t.Errorf("browse during maintenance: %v", err)
	}
	if _, err := w.browse(op, op.home()); err != nil {
		t.Errorf("a user on the list: %v", err)
	}

	write(string(original))
	if out, err := w.cli("config", "reload"); err != nil {
		t.Errorf("reload: %v %s", err, out)
	}
	testkit.Eventually(t, "maintenance to end", func() bool { _, err := w.browse(ada, ada.home()); return err == nil })

	// Wrong in two places: both are reported, with line numbers, and nothing changes.
	write(strings.Replace(strings.Replace(string(original), "idleTimeout:", "idelTimeout:", 1), "enabled: true", "enabled: maybe", 1))
	_, err = w.cli("config", "reload")
	if err == nil || !strings.Contains(err.Error(), "idelTimeout") || !strings.Contains(err.Error(), "development.enabled") || !strings.Contains(err.Error(), "config.yml:") {
		t.Errorf("a wrong configuration: %v", err)
	}
	if _, err := w.browse(ada, ada.home()); err != nil {
		t.Error(err)
	}
	before := w.server.startCount()
	w.server.signal(syscall.SIGHUP)
	w.gateway.signal(syscall.SIGHUP)
	if _, err := w.browse(ada, ada.home()); err != nil || w.server.startCount() != before {
		t.Errorf("after a failed reload: %v, %d starts, before %d", err, w.server.startCount(), before)
	}
	write(string(original))
}
