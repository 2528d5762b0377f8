package jobrender

import (
	"context"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

type (
	part = providerapi.InvocationParameter
	decl = providerapi.ApplicationParameter
	val  = providerapi.AppParameterValue
)

func TestWordsGolden(t *testing.T) {
	t.Parallel()
	job := newJob(
		part{Type: "word", Word: "example"},
		part{Type: "var", VariableNames: []string{"input"}, PrefixGlobal: " --in "},
		part{Type: "bool_flag", VariableName: "v", Flag: "--verbose"},
		part{Type: "bool_flag", VariableName: "off", Flag: "--off"},
		part{Type: "env", Variable: "HOME"},
		part{Type: "var", VariableNames: []string{"a", "missing", "b"}, PrefixGlobal: "[", SuffixGlobal: "]", PrefixVariable: "--x=", IsPrefixVariablePartOfArg: true, SuffixVariable: ";", IsSuffixVariablePartOfArg: true},
		part{Type: "var", VariableNames: []string{"a", "b"}, PrefixVariable: "-p", SuffixVariable: "-s"},
		part{Type: "var", VariableNames: []string{"missing"}, PrefixGlobal: "never"},
		part{Type: "var", VariableNames: []string{"mode", "modeByName", "big", "float", "v", "off", "words", "withDefault"}},
	)
	declare(
		job,
		decl{Type: "input_file", Name: "input"}, decl{Type: "boolean", Name: "v"}, decl{Type: "boolean", Name: "off", DefaultValue: jsonOf(t, false), FalseValue: "no"},
		decl{Type: "text", Name: "a"}, decl{Type: "text", Name: "b"}, decl{Type: "text", Name: "missing", Optional: true},
		decl{Type: "enumeration", Name: "mode", Options: []providerapi.EnumerationOption{{Name: "Fast", Value: "fast"}}},
		decl{Type: "enumeration", Name: "modeByName", Options: []providerapi.EnumerationOption{{Name: "Fast", Value: "fast"}}},
		decl{Type: "integer", Name: "big"}, decl{Type: "floating_point", Name: "float"}, decl{Type: "boolean", Name: "words", TrueValue: "yes please"},
		decl{Type: "integer", Name: "withDefault", DefaultValue: []byte(`{"type":"integer","value":1e6}`)},
	)
	job.Specification.Parameters = map[string]val{
		"input": {Type: "file", Path: "/881/a b.txt"}, "v": {Type: "boolean", Value: []byte("true")},
		"a": {Type: "text", Value: jsonOf(t, "it's")}, "b": {Type: "text", Value: jsonOf(t, "$(touch pwned)")},
		"mode": {Type: "text", Value: jsonOf(t, "fast")}, "modeByName": {Type: "text", Value: jsonOf(t, "Fast")},
		"big": {Type: "integer", Value: []byte("9007199254740993123")}, "float": {Type: "floating_point", Value: []byte("1e-3")}, "words": {Type: "boolean", Value: []byte("true")},
		"undeclared": {Type: "text", Value: jsonOf(t, "x")}, "missing": {Type: "integer", Value: []byte("1")}, "ucMetricSampleRate": {Type: "text", Value: jsonOf(t, "0ms")},
	}
	inv := &job.Status.ResolvedApplication.Invocation
	inv.Environment = map[string]part{
		"COUNT": {Type: "var", VariableNames: []string{"big"}}, "NAME": {Type: "word", Word: "it's $HOME"}, "PLACE": {Type: "env", Variable: "HOME"}, "BOTH": {Type: "var", VariableNames: []string{"a", "b"}, PrefixVariable: "--x"},
		"UCLOUD_JOB_ID": {Type: "word", Word: "forged"}, "EMPTY": {Type: "bool_flag", VariableName: "off", Flag: "x"},
	}
	inv.Sbatch = map[string]part{"ntasks-per-node": {Type: "word", Word: "4"}, "account": {Type: "word", Word: "other"}, "mail-user": {Type: "var", VariableNames: []string{"a"}}}
	inv.Tool.Tool = &providerapi.Tool{Description: providerapi.ToolDescription{RequiredModules: []string{"GCC/11.2.0"}}}
	g := grant("/scratch/proj/ucloud-jobs/512")
	g.Constraint, g.Exclusive, g.Port = "a100&ib", true, 23817
	s, err := Render(context.Background(), job, Site{}, g, scratch)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "words.sbatch", s.Text)
	if len(s.Warnings) != 2 || s.TimeLimit != g.Time || s.Template != nil {
		t.Errorf("got %+v", s)
	}
}

func TestGPU(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		gpuType, sbatch, value string
		want, not              string
	}{
		{"", "", "", "#SBATCH --gpus-per-task=2\n#SBATCH --job-name=512\n", "gpus-per-node"},
		{"a100", "", "", "--gpus-per-task=a100:2\n", "--exclusive"},
		{"", "ntasks", "8", "--ntasks=8\n", "ntasks-per-node"},
		{"", "gpus-per-node", "1", "--gpus-per-node=1\n", "gpus-per-task"},
		{"", "gpus-per-task", "0", "--gpus-per-task=2\n", "task=0"},
	} {
		job := newJob(part{Type: "word", Word: "x"})
		if tc.sbatch != "" {
			job.Status.ResolvedApplication.Invocation.Sbatch = map[string]part{tc.sbatch: {Type: "word", Word: tc.value}}
		}
		g := grant("/x")
		g.Machine.GPU, g.Machine.GPUType = 2, tc.gpuType
		s, err := Render(context.Background(), job, Site{}, g, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(s.Text); !strings.Contains(text, tc.want) || strings.Contains(text, tc.not) {
			t.Errorf("%+v: got\n%s", tc, text)
		}
	}
	g := grant("/x")
	g.Machine.GPU = 2
	s, err := Render(context.Background(), newJob(part{Type: "word", Word: "x"}), Site{FakeResources: true}, g, nil)
	if err != nil || !strings.Contains(string(s.Text), "--mem=50\n") || !strings.Contains(string(s.Text), "--cpus-per-task=1\n") || strings.Contains(string(s.Text), "gpus") {
		t.Errorf("got %v\n%s", err, s.Text)
	}
}

// TestRefused: what makes a submission fail, with a sentence that names the reason.
func TestRefused(t *testing.T) {
	t.Parallel()
	word := part{Type: "word", Word: "x"}
	for _, tc := range []struct {
		name   string
		change func(job *providerapi.Job, g *Grant, s *Site)
		why    string
	}{
		{"no application", func(j *providerapi.Job, _ *Grant, _ *Site) { j.Status.ResolvedApplication = nil }, "no application"},
		{"unknown", func(j *providerapi.Job, _ *Grant, _ *Site) { j.Status.ResolvedApplication.Metadata.Name = "unknown" }, "outside UCloud"},
		{"missing value", func(j *providerapi.Job, _ *Grant, _ *Site) { declare(j, decl{Type: "text", Name: "p"}) }, `"p" has no value`},
		{"wrong type is missing", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "text", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "integer", Value: []byte("1")}
		}, `"p" has no value`},
		{"not a number", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "integer", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "integer", Value: []byte(`"$(touch pwned)"`)}
		}, `"p" is not a number`},
		{"fraction", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "integer", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "integer", Value: []byte(`1.5`)}
		}, `"p" is not a number`},
		{"NUL", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "text", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "text", Value: []byte(`"a\u0000b"`)}
		}, `"p" contains a NUL`},
		{"path", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "input_file", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "file", Path: "/882/x"}
		}, `"p" cannot be used: There is no such folder`},
		{"license", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "license_server", Name: "p"})
			j.Specification.Parameters["p"] = val{Type: "license_server", ID: "1"}
		}, "licenses cannot be used"},
		{"parameter name", func(j *providerapi.Job, _ *Grant, _ *Site) {
			declare(j, decl{Type: "text", Name: "a\nb", Optional: true})
		}, "line break"},
		{"environment name", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Status.ResolvedApplication.Invocation.Environment = map[string]part{"A;touch pwned;B": word}
		}, "environment variable"},
		{"environment reference", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Status.ResolvedApplication.Invocation.Invocation = []part{{Type: "env", Variable: "X\"; touch pwned #"}}
		}, "not a valid name"},
		{"directive", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Status.ResolvedApplication.Invocation.Sbatch = map[string]part{"job-name": {Type: "word", Word: "x\n#SBATCH --account=y"}}
		}, "line break"},
		{"directive name", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Status.ResolvedApplication.Invocation.Sbatch = map[string]part{"x\n#SBATCH --account": word}
		}, "cannot be an sbatch option"},
		{"account", func(_ *providerapi.Job, g *Grant, _ *Site) { g.Account = "a\nb" }, "line break"},
		{"folder", func(_ *providerapi.Job, g *Grant, _ *Site) { g.Folder = "/a\nb" }, "line break"},
		{"time", func(j *providerapi.Job, _ *Grant, s *Site) {
			s.MaxTime = 3600e9
			j.Status.ResolvedApplication.Invocation.Sbatch = map[string]part{"time": {Type: "word", Word: "2:00:00"}}
		}, "at most"},
		{"part type", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Status.ResolvedApplication.Invocation.Invocation = []part{{Type: "x"}}
		}, "unknown type"},
		{"mount", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Specification.Resources = []val{{Type: "file", Path: "/881/a", MountPath: "/work/x/../y"}}
		}, "reserved"},
		{"relative mount", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Specification.Resources = []val{{Type: "file", Path: "/881/a", MountPath: "x"}}
		}, "not absolute"},
		{"mounts", func(j *providerapi.Job, _ *Grant, _ *Site) {
			j.Specification.Resources = []val{{Type: "file", Path: "/881/a", MountPath: "/x"}, {Type: "file", Path: "/881/a/", MountPath: "/x/"}, {Type: "file", Path: "/881/b", MountPath: "/x"}}
		}, "Two folders"},
	} {
		job, g, s := newJob(word), grant("/x"), Site{}
		tc.change(job, &g, &s)
		_, err := Render(context.Background(), job, s, g, scratch)
		if err == nil || !strings.Contains(failure.Why(err), tc.why) || !failure.Is(err, failure.Invalid) && tc.name != "path" {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}
