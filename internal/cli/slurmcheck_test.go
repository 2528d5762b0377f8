package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/config"
	"ucloud-im/internal/testkit/accounts"
	"ucloud-im/internal/testkit/slurmkit"
)

// TestConfigCheckAsksSlurm: config check compares machines with the real Slurm, unless it may look at nothing but files.
func TestConfigCheckAsksSlurm(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	s := accounts.New(t, "cls")
	program, err := s.Install("ucloud-user", "/bin/true", accounts.Direct)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeConfig(t, s, program)
	file := filepath.Join(dir, "config.yml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), `pattern: "/home/#{localUsername}" } }`, `pattern: "/home/#{localUsername}" }, work: { entity: Project, pattern: "/work/#{localGroupName}" } }`, 1))
	for name, content := range map[string]string{
		"server.yml": "version: 1\nrefreshToken: { file: " + dir + "/token }\n", "token": "a-token-of-the-provider\n", "ucloud_key.pub": "key\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, name), int(s.Service.UID), int(s.Service.GID)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(partition, binaries string, args ...string) map[string]string {
		t.Helper()
		slurm := "  slurm:\n    binaries: " + binaries + "\n    machines:\n      cpu:\n        partition: " + partition +
			"\n        payment: { type: Resource, unit: Cpu }\n        cpu: [4]\n        memory: [16]\n"
		if err := os.WriteFile(file, append(text[:len(text):len(text)], slurm...), 0o644); err != nil {
			t.Fatal(err)
		}
		w := &world{socket: dir + "/run/ucloud.sock"}
		_, out, errs := w.run(t, nil, append([]string{"config", "check", dir, "--json", "--service-account", s.Service.Name}, args...)...)
		var answer struct {
			Item checkReport `json:"item"`
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("%v: %s%s", err, out, errs)
		}
		found := map[string]string{}
		for _, p := range answer.Item.Problems {
			if strings.Contains(p.Key, "slurm") {
				found[p.Key] += p.Severity + " " + p.Message
			} else if p.Severity == "error" {
				t.Logf("%+v", p)
			}
		}
		return found
	}
	const key = "services.slurm.machines.cpu.partition"
	binaries := c.Binaries(t)
	if found := check("nowhere", binaries); !strings.Contains(found[key], `error cluster devcluster has no partition "nowhere"`) {
		t.Errorf("%v", found)
	}
	if found := check("normal", binaries); found[key] != "" || !strings.Contains(found["services.slurm"], "no operator of Slurm") {
		t.Errorf("%v", found)
	}
	if found := check("nowhere", binaries, "--static"); len(found) != 0 {
		t.Errorf("static: %v", found)
	}
	empty := t.TempDir()
	if err := os.Chmod(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if found := check("nowhere", empty); len(found) != 1 || !strings.HasPrefix(found["services.slurm"], "warn Slurm does not answer") {
		t.Errorf("no Slurm: %v", found)
	}
}

// TestConfigCheckSaysWhatIsNotSupported: what config check accepts on this machine, the server accepts too.
func TestConfigCheckSaysWhatIsNotSupported(t *testing.T) {
	t.Parallel()
	accounts.Require(t)
	s := accounts.New(t, "cnu")
	program, err := s.Install("ucloud-user", "/bin/true", accounts.Direct)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeConfig(t, s, program)
	for _, d := range []string{"state", "run", "log"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o700), os.Chown(filepath.Join(dir, d), int(s.Service.UID), int(s.Service.GID))); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"server.yml", "ucloud_key.pub"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("version: 1\nrefreshToken: "+strings.Repeat("a", 64)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, file), int(s.Service.UID), int(s.Service.GID)); err != nil {
			t.Fatal(err)
		}
	}
	hooks := Hooks{Unsupported: func(c *config.Config) config.Problems {
		return config.Problems{c.NewProblem(config.Error, "X-03", "userInstances.launcher", "the stars are not right", "wait")}
	}}
	for _, tc := range []struct {
		args  []string
		asked bool
	}{{nil, true}, {[]string{"--role", "server"}, true}, {[]string{"--static"}, false}, {[]string{"--role", "gateway"}, false}} {
		var out, errs strings.Builder
		args := append([]string{"config", "check", dir, "--service-account", s.Service.Name}, tc.args...)
		code := Run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errs, hooks)
		if asked := strings.Contains(out.String(), "stars"); asked != tc.asked || asked != (code == ExitConfig) {
			t.Errorf("%v: exit code %d\n%s%s", tc.args, code, out.String(), errs.String())
		}
	}
}
