package jobrunner

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/scripts"
)

type noLog struct{}

func (noLog) RecordScript(context.Context, scripts.Entry) {}

// The program is told about the job, may change what is not locked, and may say no.
func TestSubmitHook(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const told = `grep -q '"jobId":"512"' "$1" && grep -q '"account":"acc"' "$1" && grep -q '"mem":"1000"' "$1" && grep -q '"scriptPath":"/x/job.sbatch"' "$1" || exit 1; `
	for name, tc := range map[string]struct {
		script string
		ignore bool
		want   []string
		kind   failure.Kind
		why    string
	}{
		"nothing":       {script: told},
		"a directive":   {script: told + `echo '{"directives":{"reservation":"course","nice":"5"}}'`, want: []string{"--nice=5", "--reservation=course"}},
		"a flag":        {script: `echo '{"directives":{"requeue":"","nice":"5"}}'`, want: []string{"--nice=5", "--requeue"}},
		"locked":        {script: `echo '{"directives":{"account":"root","hint":"x","comment":"y","export":"ALL","quiet":""}}'`},
		"line break":    {script: `echo '{"directives":{"reservation":"a\nb"}}'`, kind: failure.Internal, why: "cannot be used"},
		"no":            {script: `echo '{"userMessage":"Not on Mondays"}'; exit 77`, kind: failure.Forbidden, why: "Not on Mondays"},
		"no, ignored":   {script: `exit 77`, ignore: true, kind: failure.Forbidden, why: "does not permit"},
		"fails":         {script: `echo secret >&2; exit 1`, kind: failure.Internal, why: "was not submitted"},
		"fails, fine":   {script: `exit 1`, ignore: true},
		"talks rubbish": {script: `echo rubbish`, kind: failure.Internal, why: "was not submitted"},
	} {
		path := filepath.Join(dir, strings.Map(func(r rune) rune {
			if r == ' ' || r == ',' {
				return '-'
			}
			return r
		}, name))
		if err := os.WriteFile(path, []byte("#!/bin/bash\n"+tc.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		spool := filepath.Join(dir, "spool")
		if err := os.MkdirAll(spool, 0o700); err != nil {
			t.Fatal(err)
		}
		r, err := scripts.New(scripts.Options{Provider: provider, Spool: spool, Record: noLog{}, Temporary: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Open(); err != nil {
			t.Fatal(err)
		}
		h, err := r.Hook(scripts.HookOptions{Name: scripts.HookJobSubmit, Path: path})
		if err != nil {
			t.Fatal(err)
		}
		args, err := SubmitHook(h, tc.ignore, func() []string { return []string{"hint"} })(context.Background(), HookCall{
			Job: newJob("512"), Grant: ipcapi.JobGrant{Account: "acc"}, Path: "/x/job.sbatch", Nodes: 1,
			Script: &jobrender.Script{Text: []byte("#!/bin/bash\n#SBATCH --mem 1000\n\necho\n#SBATCH --mem 7\n")},
		})
		if diff := cmp.Diff(tc.want, args); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if (err != nil) != (tc.why != "") || err != nil && (failure.KindOf(err) != tc.kind || !strings.Contains(failure.Why(err), tc.why) || strings.Contains(failure.Why(err), "secret")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
