//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/sandbox"
	"ucloud-im/internal/testkit"
)

// TestGatewaySandbox: the gateway gives its rights to files up, and can do all that it is there for nevertheless: take a
// configuration that was replaced by another file, and be replaced itself, more than once.
//
//attack:actor internet
//attack:does Takes the gateway over by a bug and uses the service account's rights to files.
//attack:control The program enters its sandbox before it opens anything, and tells what it has achieved.
//attack:remove internal/rolegateway/sandbox.go: if mode == "off" || !p.o.Sandbox { => if mode != "" {
func TestGatewaySandbox(t *testing.T) {
	testkit.Require(t, testkit.Requirement{Name: "a kernel with Landlock", Missing: func() error { _, err := sandbox.ABI(); return err }})
	w := newWorld(t, settings{})
	ada := w.addPerson("Ada#1815")
	w.connect(ada)
	inSandbox := func(pid int) bool { // of the gateway with this id; 0: of any
		out, err := w.cli("gateway", "dump")
		if err != nil {
			return false
		}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) > 1 && fields[0] == "gateway" && (pid == 0 || fields[1] == strconv.Itoa(pid)) && strings.Contains(line, "sandbox: Landlock") {
				return true
			}
		}
		return false
	}
	gateways := func() (ids []string) {
		out, _ := exec.Command("pgrep", "-u", w.site.Service.UID.String(), "-f", "gateway").Output()
		return strings.Fields(string(out))
	}
	browse := func(when string) {
		t.Helper()
		if _, err := w.browse(ada, ada.home()); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	browse("first")
	if !inSandbox(w.gateway.pid()) {
		out, _ := w.cli("gateway", "dump")
		t.Fatalf("no sandbox: %s", out)
	}
	status, err := os.ReadFile(filepath.Join("/proc", gateways()[0], "status"))
	if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("%v: %s", err, status)
	}
	if out, err := w.cli("status", "--json"); err != nil || !strings.Contains(out, "Landlock") {
		t.Errorf("status: %v: %s", err, out)
	}

	// Editors and installers replace files by renaming.
	config := filepath.Join(w.base, "config", "config.yml")
	text, err := os.ReadFile(config)
	w.must(err)
	text = []byte(strings.Replace(string(text), "\ngateway:\n", "\ngateway:\n  limits: { maxConnectionsPerIp: 12345 }\n", 1))
	w.must(os.WriteFile(config+".new", text, 0o600))
	w.must(os.Chown(config+".new", int(w.site.Service.UID), int(w.site.Service.GID)))
	w.must(os.Rename(config+".new", config))
	reloaded := strings.Count(w.gateway.out.String(), "configuration reloaded")
	w.gateway.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the configuration to be read again", func() bool { return strings.Count(w.gateway.out.String(), "configuration reloaded") > reloaded })
	browse("after a reload")

	w.gateway.mu.Lock()
	w.gateway.replaced = true
	w.gateway.mu.Unlock()
	t.Cleanup(func() { // the last one is nobody's child here
		for _, id := range gateways() {
			_ = exec.Command("kill", "-TERM", id).Run()
		}
	})
	for range 2 {
		old := gateways()
		w.installUcloud(w.ucloud)
		w.must(exec.Command("kill", "-USR2", old[0]).Run())
		testkit.Eventually(t, "the old gateway to end", func() bool {
			now := gateways()
			return len(now) == 1 && now[0] != old[0]
		})
		testkit.Eventually(t, "the new gateway to be in its sandbox", func() bool { return inSandbox(0) })
		browse("after an upgrade")
	}
}
