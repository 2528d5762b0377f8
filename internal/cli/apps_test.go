package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// appsSiteFiles is a configuration with machines and software.
func appsSiteFiles(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("../config/testdata/examples/birch/config.yml")
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "  slurm:\n", "  slurm:\n    systemLoad: module purge\n", 1))
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"applications/gromacs.yml": "name: gromacs\nconfigurations:\n- { versions: ['2021.5'], load: 'module load GROMACS/{{ appVersion }}' }\n---\nname: broken\n",
		"app.yml": `application: v2
name: native-gromacs
version: 1
software: { type: Native, load: [{ name: gromacs, version: "2021" }] }
parameters:
  steps: { type: Integer }
  wf:
    type: Workflow
    job: "{- systemLoad -}\n{- applicationLoad -}\n{{ srun() }}gmx -nsteps {{ steps }}\n"
`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a test's directory
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestApps: list and render work without a server.
func TestApps(t *testing.T) {
	t.Parallel()
	dir := appsSiteFiles(t)
	w := &world{socket: "/nonexistent"}
	code, out, errs := w.run(t, nil, "--config-dir", dir, "apps", "list")
	if code != ExitOK || !strings.Contains(out, "jupyterlab") || !strings.Contains(out, "gromacs") || !strings.Contains(errs, "gromacs.yml: Line 5: ") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	code, out, errs = w.run(t, nil, "--config-dir", dir, "apps", "render", filepath.Join(dir, "app.yml"), "--parameter", "steps=500", "--machine", "birch-thin-32", "--time", "90m", "--account", "proj")
	if code != ExitOK {
		t.Fatalf("%d %s", code, errs)
	}
	for _, want := range []string{
		"#SBATCH --account=proj\n", "#SBATCH --cpus-per-task=32\n", "#SBATCH --partition=thin\n", "#SBATCH --time=01:30:00\n",
		"\nmodule purge\nmodule load GROMACS/'2021.5'\nsrun gmx -nsteps 500\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	job := `{"id":"7","specification":{"product":{"id":"birch-thin-8","category":"birch-thin","provider":"alder"},"replicas":3,"timeAllocation":{"hours":2},"parameters":{"a":{"type":"text","value":"it's"}}},
		"status":{"resolvedApplication":{"metadata":{"name":"x","version":"1"},"invocation":{"parameters":[{"type":"text","name":"a"}],"invocation":[{"type":"word","word":"echo"},{"type":"var","variableNames":["a"]}]}}}}`
	code, out, errs = w.run(t, strings.NewReader(job), "--config-dir", dir, "apps", "render", "-", "--json")
	var report struct {
		Item struct{ Script, TimeLimit string }
	}
	if code != ExitOK || json.Unmarshal([]byte(out), &report) != nil || !strings.Contains(report.Item.Script, `'echo' 'it'"'"'s'`) || !strings.Contains(report.Item.Script, "--nodes=3\n") || report.Item.TimeLimit != "2h0m0s" {
		t.Errorf("%d %s\n%s", code, out, errs)
	}
	for _, tc := range []struct {
		args string
		code int
		why  string
	}{
		{"render nothing", ExitNoMatch, `there is no application "nothing"`},
		{"render batch-script --parameter x", ExitUsage, "name=value"},
		{"render batch-script --parameter x=1", ExitUsage, `no parameter "x"`},
		{"render batch-script --machine X", ExitNoMatch, "no machine"},
		{"render " + filepath.Join(dir, "app.yml") + " -p steps=many", ExitUsage, "not a integer"},
		{"render " + filepath.Join(dir, "app.yml"), ExitFailed, `"steps" has no value`},
		{"render " + filepath.Join(dir, "none.json"), ExitNoMatch, "no such file"},
	} {
		code, _, errs := w.run(t, nil, append([]string{"--config-dir", dir, "apps"}, strings.Fields(tc.args)...)...)
		if code != tc.code || !strings.Contains(errs, tc.why) {
			t.Errorf("%s: %d %s", tc.args, code, errs)
		}
	}
}
