package jobrender

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// update tells whether golden files are to be written; package testkit defines the flag.
func update() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

// tb is what tests and property tests have in common.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// jsonOf is a raw document.
func jsonOf(t tb, v any) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// grant is a grant with everything in it. The folder exists.
func grant(folder string) Grant {
	return Grant{
		Account: "hpc_proj_cpu", Partition: "normal", QoS: "normal", Comment: "ucloud:alder:512", Nodes: 2, Time: 4 * time.Hour, Folder: folder,
		Machine: Machine{Name: "CPU-64", Category: "CPU", CPU: 64, CPUModel: "AMD EPYC 7742", MemoryGB: 256, MemoryModel: "DDR4-3200"},
	}
}

// newJob is a job of a small application; change it as needed.
func newJob(parts ...providerapi.InvocationParameter) *providerapi.Job {
	return &providerapi.Job{
		ID: "512",
		Specification: providerapi.JobSpecification{
			Name: "'; touch pwned #", Replicas: 2, Parameters: map[string]providerapi.AppParameterValue{},
		},
		Status: providerapi.JobStatus{ResolvedApplication: &providerapi.Application{
			Metadata:   providerapi.ApplicationMetadata{Name: "example", Version: "1.0", Title: "$(touch pwned)"},
			Invocation: providerapi.ApplicationInvocation{ApplicationType: providerapi.ApplicationBatch, Invocation: parts},
		}},
	}
}

func declare(job *providerapi.Job, p ...providerapi.ApplicationParameter) {
	job.Status.ResolvedApplication.Invocation.Parameters = append(job.Status.ResolvedApplication.Invocation.Parameters, p...)
}

// scratch translates /881/x to /scratch/proj/x.
func scratch(_ context.Context, p string) (string, error) {
	rest, ok := strings.CutPrefix(p, "/881/")
	if !ok {
		return "", failure.New(failure.NotFound, "There is no such folder")
	}
	return "/scratch/proj/" + rest, nil
}

// golden compares with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if update() {
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // a test's file
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s: got\n%s", name, got)
	}
}

// run runs a script with a real bash in dir, without a login's files, and gives its output.
func run(t tb, dir string, script []byte) string {
	t.Helper()
	path := filepath.Join(dir, "script")
	if err := os.WriteFile(path, script, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "--noprofile", "--norc", path)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash: %v\n%s", err, script)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Fatalf("a value was executed\n%s", script)
	}
	return string(out)
}
