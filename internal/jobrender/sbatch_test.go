package jobrender

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit/slurmkit"
)

// unprivileged is an account that every system has.
const unprivileged = "nobody"

// submit gives a script to the real sbatch, with nothing on the command line but its path and args.
func submit(t *testing.T, dir string, script []byte, args ...string) (string, error) {
	t.Helper()
	path := filepath.Join(dir, ScriptFile)
	if err := os.WriteFile(path, script, 0o644); err != nil { //nolint:gosec // another account reads it
		t.Fatal(err)
	}
	cred, _ := slurmkit.Credential(t, unprivileged)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sbatch", append(args, path)...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, "/", &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// jobFolder is a folder that the unprivileged account can write to, with a name that bash, sbatch and a terminal would stumble over.
func jobFolder(t *testing.T, name string) string {
	t.Helper()
	base, err := os.MkdirTemp("", "jobrender")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{base, dir} {
		if err := os.Chmod(d, 0o777); err != nil { //nolint:gosec // another account writes there
			t.Fatal(err)
		}
	}
	return dir
}

// TestSbatch: through a real sbatch and a real job, what a program receives is what was typed; no directive comes from a value; and
// the values of directives arrive as they were.
func TestSbatch(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	account := c.Account(t, unprivileged)
	type submitted struct {
		id   string
		dir  string
		want []string
	}
	var all []submitted
	render := func(job *providerapi.Job, dir string) *Script {
		g := grant(dir)
		g.Account, g.Nodes, g.Time, g.Machine = account, 1, time.Minute, Machine{CPU: 1}
		s, err := Render(t.Context(), job, Site{FakeResources: true}, g, plainPaths)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// All values in few jobs, since a job costs a second.
	folders := map[bool]string{true: `it's $(touch pwned) \ "x" #%j æ`, false: `it's %j 100%`}
	for _, template := range []bool{false, true} {
		var words []part
		var want []string
		job := newJob()
		text := "printf '%s\\0'"
		for i, value := range corpus {
			value = strings.ToValidUTF8(value, "\ufffd")
			name := fmt.Sprintf("p%d", i)
			declare(job, decl{Type: "text", Name: name})
			job.Specification.Parameters[name] = val{Type: "text", Value: jsonText(t, value)}
			words = append(words, part{Type: "var", VariableNames: []string{name}})
			text += " {{ " + name + " }}"
			want = append(want, value)
		}
		inv := &job.Status.ResolvedApplication.Invocation
		inv.Invocation = append([]part{{Type: "word", Word: "printf"}, {Type: "word", Word: `%s\0`}}, words...)
		inv.Environment = map[string]part{"A": {Type: "word", Word: "\n#SBATCH --comment=injected\n#SBATCH --time=9\n"}}
		if template {
			inv.Invocation = []part{{Type: "jinja", Template: "#SBATCH --comment=injected\n#SBATCH --begin=now+1hour\n" + text + "\n"}}
		}
		job.Status.ResolvedApplication.Metadata.Name = "\n#SBATCH --comment=injected\n"
		dir := jobFolder(t, folders[template])
		id, err := submit(t, dir, render(job, dir).Text)
		if err != nil {
			t.Fatalf("%v: %s", err, id)
		}
		all = append(all, submitted{id, dir, want})
	}
	// Values of directives: the name of the job is one that Slurm shows as it is.
	for _, name := range []string{`a'b"c\d`, "# not a comment", "$(touch pwned) `x`", `\'--account=x`, "æøå %j", "--hold", " x"} {
		job := newJob(part{Type: "word", Word: "true"})
		job.Status.ResolvedApplication.Invocation.Invocation = []part{{Type: "jinja", Template: "true {{ sbatch('hold') }}{{ sbatch('job-name', name) }}"}}
		declare(job, decl{Type: "text", Name: "name"})
		job.Specification.Parameters["name"] = val{Type: "text", Value: jsonText(t, name)}
		dir := jobFolder(t, "x y")
		id, err := submit(t, dir, render(job, dir).Text)
		if err != nil {
			t.Fatalf("%q: %v: %s", name, err, id)
		}
		shown := c.Run(t, "scontrol", "show", "job", id)
		for _, want := range []string{"JobName=" + strings.TrimSpace(name) + "\n", " Account=" + account + " ", "Comment=ucloud:alder:512", "Partition=normal", "WorkDir=" + dir + "\n"} {
			if !strings.Contains(shown, want) {
				t.Errorf("%q: lacks %q:\n%s", name, want, shown)
			}
		}
		c.Run(t, "scancel", id)
	}
	for _, s := range all {
		shown := c.Run(t, "scontrol", "show", "job", s.id)
		if strings.Contains(shown, "injected") || !strings.Contains(shown, "TimeLimit=00:01:00") || !strings.Contains(shown, "Comment=ucloud:alder:512") {
			t.Errorf("got\n%s", shown)
		}
		if state := c.WaitState(t, s.id, "COMPLETED", "FAILED"); state != "COMPLETED" {
			t.Errorf("job %s has %s:\n%s", s.id, state, shown)
			continue
		}
		out, err := os.ReadFile(filepath.Join(s.dir, StdoutFile))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); len(got) != len(s.want) {
			t.Errorf("%d arguments, want %d: %q", len(got), len(s.want), got)
		} else {
			for i := range got {
				if got[i] != s.want[i] {
					t.Errorf("got %q, want %q", got[i], s.want[i])
				}
			}
		}
		if _, err := os.Stat(filepath.Join(s.dir, "pwned")); err == nil {
			t.Error("a value was executed")
		}
	}
}

// TestSbatchOptions: what an application or the site asks for is understood by the real sbatch.
func TestSbatchOptions(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	account := c.Account(t, unprivileged)
	job := newJob(part{Type: "jinja", Template: "true {{ sbatch('hold') }}{{ sbatch('array', '0-1') }}"})
	dir := jobFolder(t, "x y")
	g := grant(dir)
	g.Account, g.Partition, g.Nodes, g.Exclusive, g.Machine = account, "gpu", 1, true, Machine{CPU: 1, MemoryGB: 1, GPU: 1}
	s, err := Render(t.Context(), job, Site{}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := submit(t, dir, s.Text)
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, id, s.Text)
	}
	defer c.Run(t, "scancel", id)
	shown := c.Run(t, "scontrol", "show", "job", id)
	for _, want := range []string{"gres:gpu:1", "OverSubscribe=NO", "mem=1000M", "ArrayTaskId=0-1", "TimeLimit=04:00:00"} {
		if !strings.Contains(shown, want) {
			t.Errorf("lacks %q:\n%s", want, shown)
		}
	}
}

// TestSbatchSrun: a program that srun starts has what the script exports, although sbatch is told to export nothing, as it is when
// users submit.
func TestSbatchSrun(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	account := c.Account(t, unprivileged)
	job := newJob(part{Type: "jinja", Template: `export OWN=mine
echo "batch [${SLURM_EXPORT_ENV-}]"
{{ srun() }}--ntasks=1 bash -c 'echo "srun [$UCLOUD_JOB_ID] [$OWN]"'`})
	dir := jobFolder(t, "x y")
	g := grant(dir)
	g.Account, g.Nodes, g.Time, g.Machine = account, 1, time.Minute, Machine{CPU: 1}
	s, err := Render(t.Context(), job, Site{FakeResources: true}, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := submit(t, dir, s.Text, "--export=NONE")
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, id, s.Text)
	}
	state := c.WaitState(t, id, "COMPLETED", "FAILED")
	out, err := os.ReadFile(filepath.Join(dir, StdoutFile))
	if want := "batch []\nsrun [512] [mine]\n"; err != nil || state != "COMPLETED" || string(out) != want {
		errs, _ := os.ReadFile(filepath.Join(dir, StderrFile))
		t.Errorf("%s: got %q, want %q (%v)\n%s", state, out, want, err, errs)
	}
}
