package jobrender

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/software"
)

// alder is a site with software.
func alder() Site {
	return Site{
		Provider: "alder", SystemLoad: "module purge\n",
		Software: []software.Application{{Name: "gromacs", Configurations: []software.Configuration{
			{Versions: []string{"2021.5", "2023.1-cuda"}, Load: "module load GROMACS/{{ appVersion }}\n", Unload: "module unload GROMACS/{{ appVersion }}", Readme: "Site notes"},
			{Versions: []string{"2024.1"}, Load: "module load GROMACS/{{ appVersion }}", Srun: &software.Srun{Command: "srun", Flags: []string{"--mpi=pmix"}}},
		}}, {Name: "openmpi", Configurations: []software.Configuration{{Versions: []string{"4.1.1", "4.1.5", "5.0"}, Load: "module load OpenMPI/{{ appVersion }}\n", Unload: "module unload OpenMPI\n"}}}},
		Modules: []providerapi.SupportedModule{{Name: "GCC/11.2.0"}, {Name: "it's {{ 1 / 0 }}"}},
	}
}

// gromacs is the job of contract 24 section 9.
func gromacs(t tb, workflow string) *providerapi.Job {
	job := newJob(part{Type: "jinja"})
	app := job.Status.ResolvedApplication
	app.Metadata.Name, app.Metadata.Version = "native-gromacs", "2021.5"
	app.Invocation.Tool.Tool = &providerapi.Tool{Description: providerapi.ToolDescription{
		Backend: providerapi.BackendNative, LoadInstructions: &providerapi.LoadInstructions{Type: "Native", Applications: []providerapi.ApplicationReference{{Name: "gromacs", Version: "2021"}}},
	}}
	declare(
		job,
		decl{Type: "input_directory", Name: "dir"}, decl{Type: "integer", Name: "steps", Optional: true, DefaultValue: []byte("1000")},
		decl{Type: "enumeration", Name: "mode", Optional: true, Options: []providerapi.EnumerationOption{{Name: "Fast", Value: "fast"}, {Name: "Exact", Value: "exact"}}},
		decl{Type: "workflow", Name: "wf"}, decl{Type: "text", Name: "note", Optional: true},
	)
	app.Invocation.Environment = map[string]part{"COUNT": {Type: "word", Word: "{{ steps }}"}, "NOTE": {Type: "jinja", Template: "{{ note }} at {{ dir }}"}}
	app.Invocation.Sbatch = map[string]part{"ntasks-per-node": {Type: "word", Word: "4"}, "mail-user": {Type: "jinja", Template: "{{ note }}"}}
	job.Specification.Parameters = map[string]val{
		"dir": {Type: "file", Path: "/881/in"}, "steps": {Type: "integer", Value: []byte("500")}, "mode": {Type: "text", Value: jsonOf(t, "Exact")},
		"wf": {Type: "workflow", Specification: &providerapi.WorkflowSpecification{ApplicationName: "native-gromacs", Language: "JINJA2", Job: &workflow}},
	}
	return job
}

const example = `{- systemLoad -}
{- applicationLoad -}
cd {{ dir }}
{{ srun() }} gmx_mpi mdrun -nsteps {{ steps }} {{ mode | option("--mode=") }}
`

func TestTemplateGolden(t *testing.T) {
	t.Parallel()
	site := alder()
	site.RenderWords = true
	site.Extra, site.Locked = map[string]string{"wckey": "{{ ucloud.application.name }}", "hint": "nomultithread"}, []string{"hint"}
	job := gromacs(t, example+`{{ sbatch("time", "01:00:00") }}{{ sbatch("hint", "compute_bound") }}{{ sbatch("mail-user", note) }}{{ sbatch("acc", "other") }}{{ sbatch("array", "0-3") }}
echo {{ ternary(steps > 100, "many", "few") }} {{ ucloud.machine.cpu }} {{ ucloud.jobId }} {{ cfg.nothing }} {{ ucloud.rank }} {{ note }} {{ _injected_modules }}
{{ dynamicInterface(1, "WEB", "Dash board", 8787) }}{{ dynamicInterface(9, "WEB", "x", 8787) }}
{- loadApplication("openmpi", "4") -}
{- unloadApplication("openmpi", "4") -}
{- applicationUnload -}
{- systemUnload -}
`)
	job.Specification.Parameters["_injected_modules"] = val{Type: "modules", Modules: []string{"GCC/11.2.0", "it's {{ 1 / 0 }}"}}
	s, err := Render(context.Background(), job, site, grant("/scratch/proj/ucloud-jobs/512"), scratch)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "template.sbatch", s.Text)
	golden(t, "template.j2", s.Template)
	golden(t, "template.yml", s.Parameters)
	if len(s.Targets) != 1 || s.Targets[0] != (Target{1, "WEB", "Dash board", 8787}) || s.TimeLimit != time.Hour || len(s.Warnings) != 3 {
		t.Errorf("got %+v", s)
	}
	again, err := Render(context.Background(), job, site, grant("/scratch/proj/ucloud-jobs/512"), scratch)
	if err != nil || string(again.Text) != string(s.Text) || string(again.Parameters) != string(s.Parameters) {
		t.Error("two renderings differ")
	}
}

// TestContractExample is contract 24 section 9.
func TestContractExample(t *testing.T) {
	t.Parallel()
	s, err := Render(context.Background(), gromacs(t, example), alder(), grant("/x"), func(context.Context, string) (string, error) { return "/scratch/projects/hpc_proj/in", nil })
	if err != nil {
		t.Fatal(err)
	}
	want := `module purge
module load GROMACS/'2021.5'
cd '/scratch/projects/hpc_proj/in'
srun  gmx_mpi mdrun -nsteps 500 '--mode=exact'
`
	_, body, _ := strings.Cut(string(s.Text), "\n\nmodule purge\n")
	var lines []string
	for l := range strings.Lines("module purge\n" + body) {
		if strings.TrimSpace(l) != "" {
			lines = append(lines, l)
		}
	}
	if got := strings.Join(lines, ""); got != want {
		t.Errorf("got\n%s", got)
	}
	if !strings.Contains(string(s.Text), "export COUNT='{{ steps }}'\n") || !strings.Contains(string(s.Text), "export NOTE=' at /scratch/projects/hpc_proj/in'\n") {
		t.Errorf("got\n%s", s.Text)
	}
}

func TestSrun(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		workflow string
		change   func(*Site)
		want     string
	}{
		{`[{{ srun() }}]`, nil, "[srun ]"},
		{`{- loadApplication("gromacs", "2024") -}[{{ srun() }}]`, nil, "[srun --mpi=pmix ]"},
		{`{- loadApplication("gromacs", "2024") -}[{{ srun() }}]`, func(s *Site) { s.Srun.Command = "srun" }, "[srun --mpi=pmix ]"},
		{`{- loadApplication("gromacs", "2024") -}[{{ srun() }}]`, func(s *Site) { s.Srun = software.Srun{Command: "mysrun", Flags: []string{"-a", "-b"}} }, "[mysrun -a -b ]"},
		{`[{{ srun() }}]`, func(s *Site) { s.JobEngine = EngineLocal }, "[]"},
		{`{- versionResolver("strict") -}{- loadApplication("openmpi", "4") -}`, nil, "OpenMPI/'4.1.5'"},
		{`{- versionResolver("4.1.1") -}{- loadApplication("openmpi", "5") -}`, nil, "OpenMPI/'4.1.1'"},
		{`{- versionResolver("openmpi", "loose-backward") -}{- loadApplication("openmpi", "4.9") -}{- loadApplication("gromacs", "2022") -}`, nil, "OpenMPI/'4.1.5'\nmodule load GROMACS/'2024.1'"},
		{`{% set appVersion = "mine" %}{- loadApplication("openmpi", "4") -}[{{ appVersion }}]`, nil, "['mine']"},
	} {
		site := alder()
		if tc.change != nil {
			tc.change(&site)
		}
		s, err := Render(context.Background(), gromacs(t, tc.workflow+"\ntrue"), site, grant("/x"), scratch)
		if err != nil || !strings.Contains(string(s.Text), tc.want) {
			t.Errorf("%s: got %v\n%s", tc.workflow, err, s.Text)
		}
	}
}

// TestTemplateRefused: what makes a submission with a template fail, and how that is told.
func TestTemplateRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ workflow, why string }{
		{"echo\n{{ steps | nofilter }}", `Line 2 of the workflow uses the filter "nofilter"`},
		{"{% include '/etc/passwd' %}", "there is no statement"},
		{`{- loadApplication("nothing", "1") -}`, "Line 1 of the workflow: The application needs nothing 1, which is not available here"},
		{"{- versionResolver(\"strict\") -}\n{- loadApplication(\"gromacs\", \"1\") -}", "Line 2 of the workflow: The application needs gromacs 1"},
		{`{- applicationLoad("x") -}`, "have no arguments"},
		{`{- loadApplication("x") -}`, "need a name and a version"},
		{`{- nothing -}`, "{- nothing -}, which does not exist"},
		{`{{ sbatch("job-name", "x\n#SBATCH --account=y") }}`, "line break"},
		{`{{ sbatch("job-name\n#SBATCH --account", "y") }}`, "cannot be an sbatch option"},
		{`{{ sbatch("-A", "y") }}`, "cannot be an sbatch option"},
		{`{{ sbatch("wrap", "y") }}`, "cannot be set"},
		{`true {{ sbatch("time", "soon") }}`, `"soon" is not a time limit`},
		{`{{ sbatch("time", [1]) }}`, "neither text nor a number"},
		{`{{ sbatch() }}`, "sbatch() needs"},
		{`{{ script("/bin/sh") }}`, "only programs that the provider has allowed"},
		{`{{ script(dir) }}`, "only programs that the provider has allowed"},
		{`{{ script("/opt/site/allowed") }}`, "cannot be used here"},
		{"  {# nothing #}\n", "empty script"},
		{"{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "to render"},
	} {
		site := alder()
		site.AllowScripts = []string{"/opt/site/allowed"}
		_, err := Render(context.Background(), gromacs(t, tc.workflow), site, grant("/x"), scratch)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), tc.why) {
			t.Errorf("%s: got %v", tc.workflow, err)
		}
	}
	job := gromacs(t, "true")
	job.Specification.Parameters["_injected_modules"] = val{Type: "modules", Modules: []string{"other"}}
	if _, err := Render(context.Background(), job, alder(), grant("/x"), scratch); failure.Why(err) != `There is no module "other" here` {
		t.Errorf("got %v", err)
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	site := alder()
	site.AllowScripts = []string{"/opt/site/allowed"}
	g := grant("/x")
	var request map[string]any
	answer := `{"output":"echo 'from the site' # {{ not rendered }}"}`
	g.Run = func(_ context.Context, program string, in []byte) ([]byte, error) {
		if program != "/opt/site/allowed" {
			t.Errorf("got %s", program)
		}
		return []byte(answer), json.Unmarshal(in, &request)
	}
	s, err := Render(context.Background(), gromacs(t, `{{ script("/opt/site/allowed") }}`), site, g, scratch)
	if err != nil || !strings.Contains(string(s.Text), "\necho 'from the site' # {{ not rendered }}\n") || request["dir"] != "/scratch/proj/in" {
		t.Errorf("got %v %v\n%s", err, request, s.Text)
	}
	for _, answer = range []string{"", "{}", "[]", `{"output":1}`, "{\"output\":\"\\u0000\"}"} {
		if _, err := Render(context.Background(), gromacs(t, `{{ script("/opt/site/allowed") }}`), site, g, scratch); err == nil {
			t.Errorf("%s was accepted", answer)
		}
	}
}

func TestDynamicParameters(t *testing.T) {
	t.Parallel()
	owner := providerapi.ResourceOwner{}
	app := gromacs(t, "").Status.ResolvedApplication
	names := func(list []providerapi.ApplicationParameter) string {
		var s []string
		for _, p := range list {
			s = append(s, p.Type+":"+p.Name)
		}
		return strings.Join(s, " ")
	}
	if got := names(DynamicParameters(owner, app, alder(), []string{"a", "b"})); got != "enumeration:_injected_slurmAccount readme:_readme_gromacs" {
		t.Errorf("got %s", got)
	}
	app.Invocation.Tool.Tool.Description.LoadInstructions.Applications[0].Name = "nothing"
	if got := names(DynamicParameters(owner, app, alder(), nil)); got != "readme:_readme_missing modules:_injected_modules" {
		t.Errorf("got %s", got)
	}
	app.Invocation.Tool.Tool = nil
	list := DynamicParameters(owner, app, alder(), nil)
	if got := names(list); got != "modules:_injected_modules" || string(list[0].DefaultValue) != "[]" || len(list[0].SupportedModules) != 2 {
		t.Errorf("got %s", got)
	}
	if list := DynamicParameters(owner, app, Site{}, nil); list == nil || len(list) != 0 {
		t.Errorf("got %v", list)
	}
}
