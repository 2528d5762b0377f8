package demo

import (
	"context"
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"ucloud-im/internal/devcore"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// machines is the category of the demo's machines.
const machines = "demo-cpu"

// slurmAccount is the Slurm account of the demo's users, where there is a Slurm.
const slurmAccount = "ucloud-demo"

const slurmTimeout = 20 * time.Second

// command runs a program of Slurm and gives what it prints.
func command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), slurmTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// findSlurm decides how jobs are run: with the Slurm that runs on this machine, or as processes of the users. Users of the
// demo may use Slurm only through an account, which root can make.
func (l *layout) findSlurm(say func(string, ...any)) {
	if _, err := exec.LookPath("squeue"); err != nil {
		return
	}
	if _, err := command("squeue", "--noheader"); err != nil {
		return
	}
	if !l.root {
		say("Slurm runs on this machine, and only root can give the demo an account there: jobs run without it.")
		return
	}
	partition := ""
	out, err := command("sinfo", "--noheader", "--format=%P")
	for name := range strings.FieldsSeq(out) {
		if p, ok := strings.CutSuffix(name, "*"); ok || partition == "" {
			partition = p
		}
	}
	if err == nil && partition == "" {
		err = fmt.Errorf("it has no partition")
	}
	if err == nil {
		err = l.slurmUsers()
	}
	if err != nil {
		say("Slurm cannot be used, jobs run without it: %v", err)
		return
	}
	l.partition = partition
}

// slurmUsers makes the account with its users. What is there already stays as it is.
func (l *layout) slurmUsers() error {
	out, err := command("sacctmgr", "--noheader", "--parsable2", "list", "account", "format=account", "where", "account="+slurmAccount)
	if err != nil {
		return err
	}
	record, err := readRecord()
	if err != nil {
		return err
	}
	if out == "" {
		record.SlurmAccounts = append(record.SlurmAccounts, slurmAccount)
		if err := record.save(); err != nil {
			return err
		}
		if _, err := command("sacctmgr", "--immediate", "add", "account", slurmAccount, "description=demo"); err != nil {
			return err
		}
	}
	for _, p := range append([]person{l.tourist}, l.people...) {
		out, err := command("sacctmgr", "--noheader", "--parsable2", "list", "association", "format=user", "where", "account="+slurmAccount, "user="+p.local)
		if err == nil && out == "" {
			_, err = command("sacctmgr", "--immediate", "add", "user", p.local, "account="+slurmAccount)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeSlurm ends the demo's jobs and removes its account.
func removeSlurm(account string) error {
	if _, err := command("scancel", "--account="+account); err != nil {
		return err
	}
	if _, err := command("sacctmgr", "--immediate", "delete", "user", "where", "account="+account); err != nil {
		return err
	}
	_, err := command("sacctmgr", "--immediate", "delete", "account", "where", "name="+account)
	return err
}

// offered are applications of the demo's own, which need nothing that a machine may lack but Python.
func offered() []providerapi.Application {
	app := func(name, title, description, kind string, parameters []providerapi.ApplicationParameter, invocation ...providerapi.InvocationParameter) providerapi.Application {
		ref := providerapi.ApplicationReference{Name: name, Version: "1"}
		return providerapi.Application{
			Metadata: providerapi.ApplicationMetadata{Name: ref.Name, Version: ref.Version, Authors: []string{"demo"}, Title: title, Description: description, Public: true},
			Invocation: providerapi.ApplicationInvocation{
				ApplicationType: kind, Parameters: parameters, Invocation: invocation, OutputFileGlobs: []string{"*"},
				Tool: providerapi.ToolReference{Name: ref.Name, Version: ref.Version, Tool: &providerapi.Tool{Owner: "_ucloud", Description: providerapi.ToolDescription{
					Info: ref, DefaultNumberOfNodes: 1, DefaultTimeAllocation: providerapi.SimpleDuration{Minutes: 30}, Title: title, Backend: providerapi.BackendNative,
					LoadInstructions: &providerapi.LoadInstructions{Type: "Native"},
				}}},
			},
		}
	}
	word := func(s string) providerapi.InvocationParameter {
		return providerapi.InvocationParameter{Type: providerapi.PartWord, Word: s}
	}
	variable := func(s string) providerapi.InvocationParameter {
		return providerapi.InvocationParameter{Type: providerapi.PartVariable, VariableNames: []string{s}}
	}
	web := app("demo-page", "A web page", "Serves the files of the job's folder as a web page, until it is ended.", providerapi.ApplicationWeb, nil,
		word("bash"), word("-c"), word(`echo "<h1>A job on $(hostname)</h1>" > index.html; exec python3 -m http.server "$UCLOUD_PORT"`))
	web.Invocation.Web = &providerapi.ApplicationWebSettings{Port: 8080}
	return []providerapi.Application{
		app(tourApplication, "Batch script", "Runs commands of bash.", providerapi.ApplicationBatch,
			[]providerapi.ApplicationParameter{{Type: providerapi.ParameterTextArea, Name: "commands", Title: "Commands", Description: "What bash is to do."}},
			word("bash"), word("-c"), variable("commands")),
		web,
	}
}

// tourApplication is the application of the job of the tour.
const tourApplication = "demo-batch"

// job submits a job and waits for its end.
func (t *tour) job(ctx context.Context, _, _ string) (string, error) {
	list := t.sim.Machines()
	if len(list) == 0 {
		return "", fmt.Errorf("the provider offers no machine")
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	spec := map[string]any{
		"application": providerapi.ApplicationReference{Name: tourApplication, Version: "1"}, "product": list[0].Reference(), "name": "Tour", "replicas": 1,
		"parameters":     map[string]any{"commands": map[string]any{"type": providerapi.ValueText, "value": "echo \"Hello from $(hostname), I am $(id -un)\""}},
		"timeAllocation": providerapi.SimpleDuration{Minutes: 5},
	}
	if err := t.call(ctx, "POST", "/api/jobs", map[string]any{"items": []any{spec}}, &res); err != nil {
		return "", err
	}
	id := res.Responses[0].ID
	var j providerapi.Job
	err := wait(ctx, "the job", func() (bool, error) {
		err := t.call(ctx, "GET", "/api/jobs/retrieve?includeUpdates=true&id="+id, nil, &j)
		return j.Status.State.Final(), err
	})
	if err != nil {
		return "", err
	}
	if j.Status.State != providerapi.JobSuccess {
		return "", fmt.Errorf("it became %s", j.Status.State)
	}
	account, err := user.Lookup(t.who.local)
	if err != nil {
		return "", err
	}
	folder := filepath.Join(account.HomeDir, "ucloud-jobs", id)
	return fmt.Sprintf("job %s on %s has ended; script and output are in %s", id, list[0].Name, folder), nil
}

// allocateMachines gives the users machines.
func (l *layout) allocateMachines(core *devcore.Core, names []ident.UCloudUser) error {
	for _, name := range names {
		if err := core.Allocate(ident.Owner{User: name}, machines, 100_000); err != nil {
			return err
		}
	}
	return nil
}
