package applications

import (
	"encoding/json"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

const gromacs = `application: v2
name: native-gromacs
version: "2021.5"
title: GROMACS
description: |
  Molecular dynamics
documentation: https://gromacs.example
license: LGPL
software:
  type: Native
  load:
    - { name: gromacs, version: "2021" }
features: { multiNode: true, links: false, ipAddresses: false, folders: true, jobLinking: false, jobAuditLog: false }
parameters:
  dir:   { type: Directory, title: Input, description: Input folder, optional: false }
  steps: { type: Integer, title: Steps, description: "", optional: true, defaultValue: 9007199254740993, min: 1, max: 100000, step: 1 }
  mode:  { type: Enumeration, title: Mode, description: "", optional: true, defaultValue: fast, options: [ { title: Fast, value: fast }, { title: Exact, value: exact } ] }
  v:     { type: Boolean, defaultValue: true }
  wf:
    type: Workflow
    title: Workflow
    description: Batch script
    optional: false
    job: |
      {{ srun() }} gmx_mpi mdrun -nsteps {{ steps }}
    readme: "…"
environment: { COUNT: "{{ steps }}", X: y }
sbatch: { ntasks-per-node: "4" }
invocation: ""
vnc: { enabled: true, port: 5901, password: x }
ssh: { mode: Optional }
inference: { mode: None }
modules: { mountPath: /opt/easybuild, optional: [ubuntu-24.04] }
ucx: { executable: { manifestUrl: x, publicKey: y, binaryName: z } }
extensions: [".tpr"]
`

func TestParse(t *testing.T) {
	t.Parallel()
	d, err := Parse([]byte(gromacs))
	if err != nil {
		t.Fatal(err)
	}
	a := d.Application
	inv := a.Invocation
	if a.Metadata.Title != "GROMACS" || *a.Metadata.Website != "https://gromacs.example" || inv.ApplicationType != providerapi.ApplicationVNC || *inv.VNC.Password != "x" || inv.SSH.Mode != "OPTIONAL" {
		t.Errorf("got %+v", a)
	}
	var names []string
	for _, p := range inv.Parameters {
		names = append(names, p.Name+":"+p.Type)
	}
	if got := strings.Join(names, " "); got != "dir:input_directory steps:integer mode:enumeration v:boolean wf:workflow" {
		t.Errorf("got %s", got)
	}
	if p := inv.Parameters[1]; string(p.DefaultValue) != "9007199254740993" || p.Min != nil || !p.Optional {
		t.Errorf("got %+v", p)
	}
	if p := inv.Parameters[2]; string(p.DefaultValue) != `"fast"` || p.Options[0].Name != "Fast" {
		t.Errorf("got %+v", p)
	}
	if p := inv.Parameters[3]; p.TrueValue != "true" || string(p.DefaultValue) != "true" || p.Optional || p.Title != "v" {
		t.Errorf("got %+v", p)
	}
	if inv.Environment["COUNT"].Type != "jinja" || inv.Environment["X"].Type != "word" || inv.Sbatch["ntasks-per-node"].Word != "4" || !strings.Contains(d.Workflows["wf"], "srun()") {
		t.Errorf("got %+v", inv)
	}
	tool := inv.Tool.Tool.Description
	if tool.Backend != "NATIVE" || tool.LoadInstructions.Applications[0].Version != "2021" || tool.DefaultTimeAllocation.Hours != 1 {
		t.Errorf("got %+v", tool)
	}
	if web, err := Parse([]byte(strings.Replace(gromacs, "invocation: \"\"", "invocation: \"\"\nweb: { enabled: false }", 1))); err != nil || web.Application.Invocation.ApplicationType != providerapi.ApplicationWeb || web.Application.Invocation.Web.Port != 80 {
		t.Errorf("got %v", err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ old, replacement, why string }{
		{"application: v2", "application: v1", "must be v2"},
		{"name: native-gromacs", "name: \"a\\nb\"", "one short line"},
		{"type: Native", "type: Other", "type must be"},
		{"type: Directory", "type: Other", "unknown type"},
		{"defaultValue: fast", "defaultValue: slow", "none of its options"},
		{"defaultValue: 9007199254740993", "defaultValue: 1.5", "whole number"},
		{"defaultValue: true", "defaultValue: maybe", "true or false"},
		{"{{ srun() }}", "{{ srun( }}", "the workflow"},
		{`invocation: ""`, `invocation: "{% include 'x' %}"`, "there is no statement"},
		{`invocation: ""`, `invocation: "{- other -}"`, "does not exist"},
		{"COUNT:", "\"A B\":", "environment variable"},
		{"license: LGPL", "licence: LGPL", `"licence" is not known`},
		{"mode: Optional", "mode: Sometimes", "mode of ssh"},
		{"port: 5901", "port: 99999", "between"},
		{"software:", "soft:", "software is missing"},
	} {
		_, err := Parse([]byte(strings.Replace(gromacs, tc.old, tc.replacement, 1)))
		if !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), tc.why) || !strings.HasPrefix(failure.Why(err), "Line ") {
			t.Errorf("%s: got %v", tc.replacement, err)
		}
	}
	if _, err := Parse(nil); err == nil {
		t.Error("an empty document was accepted")
	}
}

func TestBuiltin(t *testing.T) {
	t.Parallel()
	all, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range all {
		names = append(names, d.Application.Metadata.Name+":"+d.Application.Invocation.ApplicationType)
		if _, err := json.Marshal(d.Application); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(names, " "); got != "batch-script:BATCH interactive-shell:BATCH jupyterlab:WEB remote-desktop:VNC" {
		t.Errorf("got %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(gromacs))
	f.Add([]byte("application: v2\nname: x\nversion: 1\nsoftware: {type: Native}\nparameters: {a: {type: Text, defaultValue: [1]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err != nil && !failure.Is(err, failure.Invalid) {
			t.Error(err)
		}
		if err == nil {
			if _, err := json.Marshal(d.Application); err != nil {
				t.Error(err)
			}
		}
	})
}
