package cli

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/sandbox"
	"ucloud-im/internal/testkit/accounts"
)

// site writes a configuration for real accounts and gives its directory.
func writeConfig(t *testing.T, s *accounts.Site, program string) string {
	t.Helper()
	dir := testSocketDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`version: 1
provider:
  id: demo
  hosts: { ucloud: "https://core.example.org", self: "https://im.example.org:8889" }
gateway: { trustedProxies: [127.0.0.1/32] }
stateDirectory: %[1]s/state
ipc: { directory: %[1]s/run }
logs: { destination: file, directory: %[1]s/log }
userInstances: { group: %[2]s, executable: %[3]s }
services:
  type: Slurm
  unmanaged: true
  identityManagement: { manual: { tickets: { contact: help@example.org } } }
  fileSystems:
    disk:
      payment: { type: Resource, unit: TiB }
      driveLocators: { home: { entity: User, pattern: "/home/#{localUsername}" } }
`, dir, s.Group, program)
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDoctorAndSetupWithRealAccounts sets a machine up with the commands and checks it with doctor, as root and as the
// service account: real accounts, a real sudo rule, real directories.
func TestDoctorAndSetupWithRealAccounts(t *testing.T) {
	s := accounts.New(t, "cli")
	user := s.User(t)
	program, err := s.Install("ucloud-user", "/bin/true", accounts.Direct)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeConfig(t, s, program)
	w := &world{socket: dir + "/run/ucloud.sock"}
	doctor := func(as *accounts.Account, args ...string) map[string]checkResult {
		t.Helper()
		args = append([]string{"--config-dir", dir, "doctor", "--json", "--service-account", s.Service.Name}, args...)
		var out string
		if as == nil {
			_, out, _ = w.run(t, nil, args...)
		} else {
			cmd := as.Command("/proc/self/exe", args...)
			cmd.Env = append(cmd.Env, "CLI_TEST_PROGRAM=1")
			raw, err := cmd.Output()
			if _, ok := err.(*exec.ExitError); err != nil && !ok {
				t.Fatal(err)
			}
			out = string(raw)
		}
		var doc itemEnvelope[doctorReport]
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		byID := map[string]checkResult{}
		for _, c := range doc.Item.Checks {
			byID[c.ID] = c
		}
		return byID
	}
	want := func(got map[string]checkResult, id, severity, text string) {
		t.Helper()
		if c := got[id]; c.Severity != severity || !strings.Contains(c.Summary+" "+strings.Join(c.Details, " "), text) {
			t.Errorf("%s: want %s with %q, got %+v", id, severity, text, c)
		}
	}

	// Before the set-up.
	want(doctor(nil, "--check", "system"), "system.directories", sevError, "is missing")
	if code, out, errs := w.run(t, nil, "--config-dir", dir, "setup", "directories", "--apply", "--service-account", s.Service.Name); code != ExitOK {
		t.Fatalf("set-up: %d %s%s", code, out, errs)
	}
	for name, mode := range map[string]fs.FileMode{"state": 0o700, "run": 0o755, "run/private": 0o700, "log": 0o750} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if owner := st.Sys().(*syscall.Stat_t).Uid; st.Mode().Perm() != mode || owner != uint32(s.Service.UID) {
			t.Errorf("%s has mode %v and owner %d", name, st.Mode(), owner)
		}
	}

	// Root and the service account see the same.
	for _, as := range []*accounts.Account{nil, &s.Service} {
		got := doctor(as, "--check", "system", "--check", "identity")
		want(got, "system.account", sevOK, s.Service.Name)
		want(got, "system.group", sevOK, "1 member")
		want(got, "system.sudo", sevOK, "as "+user.Name)
		want(got, "system.directories", sevOK, "")
		if version, err := sandbox.ABI(); err == nil {
			want(got, "system.sandbox", sevOK, fmt.Sprintf("Landlock, version %d", version))
		} else {
			want(got, "system.sandbox", sevWarning, "no Landlock")
		}
		want(got, "system.sandbox", got["system.sandbox"].Severity, "cgroup")
		want(doctor(as, "--check", "identity", "--user", user.Name), "identity", sevOK, "may have an instance")
		want(doctor(as, "--check", "identity", "--user", "root"), "identity", sevError, "")
	}
	want(doctor(&user, "--check", "system.sudo"), "system.sudo", sevSkipped, "")

	// Each thing that is wrong is found.
	if err := os.Chmod(filepath.Join(dir, "state"), 0o755); err != nil {
		t.Fatal(err)
	}
	want(doctor(nil, "--check", "system.directories"), "system.directories", sevError, "mode 0755")
	other := writeConfig(t, s, program+"-other") // sudo allows one program
	dir, other = other, dir
	want(doctor(nil, "--check", "system.sudo"), "system.sudo", sevError, "")
	dir = other
	accounts.Admin(t, "gpasswd", "-a", s.Service.Name, s.Group)
	want(doctor(nil, "--check", "system.group"), "system.group", sevError, "service account is a member")
	accounts.Admin(t, "gpasswd", "-d", s.Service.Name, s.Group)
	if ids := slices.Collect(maps.Keys(doctor(nil, "--skip", "system", "--skip", "service"))); slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(id, "system.") }) {
		t.Errorf("skipped checks were made: %q", ids)
	}

	// A directory that somebody has replaced by a link is not touched: set-up runs as root.
	victim := filepath.Join(dir, "victim")
	if err := os.Mkdir(victim, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "run/private")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "run/private")); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := w.run(t, nil, "--config-dir", dir, "setup", "directories", "--apply", "--service-account", s.Service.Name); code != ExitFailed || !strings.Contains(errs, "not a directory of its own") {
		t.Errorf("a link was followed: exit code %d, %s", code, errs)
	}
	st, err := os.Stat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o711 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the link's target has mode %v now", st.Mode())
	}
}
