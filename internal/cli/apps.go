package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ucloud-im/internal/applications"
	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/jobsite"
	"ucloud-im/internal/providerapi"
)

// appRow is a line of apps list: an application that comes with the module, or software that the site has configured.
type appRow struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Kind    string `json:"kind"` // "built-in" or "software"
	Type    string `json:"type"` // BATCH, WEB or VNC
	Title   string `json:"title"`
}

var appsTable = table[appRow]{
	noun: "apps",
	key:  func(r appRow) string { return r.Name },
	columns: []column[appRow]{
		{name: "name", get: func(r appRow) string { return r.Name }, less: func(a, b appRow) int { return cmp.Compare(a.Name, b.Name) }},
		{name: "version", get: func(r appRow) string { return r.Version }},
		{name: "kind", get: func(r appRow) string { return r.Kind }},
		{name: "type", get: func(r appRow) string { return r.Type }},
		{name: "title", get: func(r appRow) string { return r.Title }},
	},
}

func (a *app) appsCommand() *cobra.Command {
	return noun("apps", "applications, and the scripts of their jobs", a.appsListCommand(), a.appsRenderCommand())
}

// appsConfig loads the configuration of this host. Without one, where nobody asked for any, there is none and no error.
func (a *app) appsConfig() (*config.Config, error) {
	if _, err := os.Stat(filepath.Join(a.dir(), "config.yml")); errors.Is(err, fs.ErrNotExist) && !a.dirGiven() {
		return nil, nil //nolint:nilnil // there is none
	}
	cfg, problems := config.Load(a.dir(), config.Options{Role: config.RoleCLI, Getenv: a.getenv})
	if err := problems.Err(); err != nil {
		if e := problems.WriteText(a.stderr, a.coloured(a.stderr)); e != nil {
			return nil, e
		}
		return nil, silent(ExitConfig)
	}
	return cfg, nil
}

// appsSite is what job scripts need of the configuration. Problems with files of software are printed, not fatal.
func (a *app) appsSite(cfg *config.Config) jobrender.Site {
	if cfg == nil {
		return jobrender.Site{Provider: "example", RenderWords: true}
	}
	site, problems := jobsite.Of(cfg)
	for _, p := range problems {
		a.note("%s", p.String())
	}
	return site
}

func (a *app) appsListCommand() *cobra.Command {
	var flags *listFlags
	c := a.verb("list", "list built-in applications and the site's software", 0, 0, func(context.Context, *cobra.Command, []string) error {
		if err := appsTable.check(flags); err != nil {
			return err
		}
		cfg, err := a.appsConfig()
		if err != nil {
			return err
		}
		documents, err := applications.Builtin()
		if err != nil {
			return err
		}
		rows := []appRow{}
		for _, d := range documents {
			m := d.Application.Metadata
			rows = append(rows, appRow{m.Name, m.Version, "built-in", d.Application.Invocation.ApplicationType, m.Title})
		}
		for _, s := range a.appsSite(cfg).Software {
			for _, v := range s.Configurations {
				rows = append(rows, appRow{Name: s.Name, Version: strings.Join(v.Versions, ", "), Kind: "software"})
			}
		}
		return appsTable.print(a, flags, rows)
	})
	flags = addListFlags(c)
	return c
}

// renderReport is the JSON of apps render.
type renderReport struct {
	Application providerapi.ApplicationReference `json:"application"`
	Script      string                           `json:"script"`
	Template    string                           `json:"template,omitempty"`
	TimeLimit   string                           `json:"timeLimit"`
	Targets     []jobrender.Target               `json:"targets"`
	Warnings    []string                         `json:"warnings"`
}

// renderFlags are those of apps render.
type renderFlags struct {
	parameters                          []string
	machine, account, partition, folder string
	nodes                               int
	limit                               time.Duration
	port                                int
}

func (a *app) appsRenderCommand() *cobra.Command {
	var f renderFlags
	c := a.verb("render APPLICATION", "print the script that a job would get", 1, 1, func(ctx context.Context, _ *cobra.Command, args []string) error {
		cfg, err := a.appsConfig()
		if err != nil {
			return err
		}
		job, err := a.renderedJob(args[0], f.parameters)
		if err != nil {
			return err
		}
		grant, err := f.grant(cfg, job)
		if err != nil {
			return err
		}
		// What UCloud calls /<drive>/... is known to the server and to users' instances; paths stay as they were given.
		paths := func(_ context.Context, p string) (string, error) { return p, nil }
		script, err := jobrender.Render(ctx, job, a.appsSite(cfg), grant, paths)
		if err != nil {
			return exitf(ExitFailed, "INVALID", "%s", failure.Why(err))
		}
		for _, w := range script.Warnings {
			a.note("%s", w)
		}
		report := renderReport{
			Application: job.Status.ResolvedApplication.Metadata.Reference(), Script: string(script.Text), Template: string(script.Template),
			TimeLimit: script.TimeLimit.String(), Targets: script.Targets, Warnings: script.Warnings,
		}
		return item(a, "apps", "render", report.Application.Name, report, func() error {
			_, err := a.stdout.Write(script.Text)
			return err
		})
	})
	c.Long = "Prints the batch script that a job would get, from the configuration of this host alone; nothing is submitted.\n\n" +
		"APPLICATION is the name of a built-in application, a file (.yml) with an application document, a file (.json) with a job as UCloud sends " +
		"it, or - for such a job on standard input. Paths of UCloud are not translated."
	fl := c.Flags()
	fl.StringArrayVarP(&f.parameters, "parameter", "p", nil, "value of a parameter, name=value; may be repeated; name=@file reads a file")
	fl.StringVar(&f.machine, "machine", "", "product of the machine (default the job's, else the first that is configured)")
	fl.StringVar(&f.account, "account", "ACCOUNT", "Slurm account")
	fl.StringVar(&f.partition, "partition", "", "partition (default that of the machine)")
	fl.StringVar(&f.folder, "folder", "/home/user/ucloud-jobs/JOB", "folder of the job")
	fl.IntVar(&f.nodes, "nodes", 0, "number of nodes (default the job's, else 1)")
	fl.DurationVar(&f.limit, "time", 0, "time limit (default the job's, else the application's)")
	fl.IntVar(&f.port, "port", 20000, "port of web interfaces and desktops")
	return c
}

// renderedJob makes the job of what the command line names.
func (a *app) renderedJob(what string, parameters []string) (*providerapi.Job, error) {
	switch ext := strings.ToLower(filepath.Ext(what)); {
	case what == "-" || ext == ".json":
		in := io.NopCloser(a.stdin)
		if what != "-" {
			file, err := os.Open(what)
			if err != nil {
				return nil, exitf(ExitNoMatch, "NOT_FOUND", "%v", err)
			}
			in = file
		}
		defer in.Close() //nolint:errcheck // only read
		const largest = 4 << 20
		var job providerapi.Job
		if err := json.NewDecoder(io.LimitReader(in, largest)).Decode(&job); err != nil {
			return nil, usagef("%s is not the JSON of a job: %v", clean(what), err)
		}
		if job.Status.ResolvedApplication == nil {
			return nil, usagef("the job has no status.resolvedApplication")
		}
		return &job, setParameters(&job, nil, parameters)
	case ext == ".yml" || ext == ".yaml":
		data, err := os.ReadFile(what)
		if err != nil {
			return nil, exitf(ExitNoMatch, "NOT_FOUND", "%v", err)
		}
		d, err := applications.Parse(data)
		if err != nil {
			return nil, usagef("%s: %s", clean(what), failure.Why(err))
		}
		return jobOf(d, parameters)
	}
	documents, err := applications.Builtin()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range documents {
		if d.Application.Metadata.Name == what {
			return jobOf(d, parameters)
		}
		names = append(names, d.Application.Metadata.Name)
	}
	return nil, withHint(exitf(ExitNoMatch, "NOT_FOUND", "there is no application %q", clean(what)), "there are: %s", strings.Join(names, ", "))
}

// jobOf is a job of an application. Workflows have the text that the document gives them.
func jobOf(d *applications.Document, parameters []string) (*providerapi.Job, error) {
	job := &providerapi.Job{ID: "JOB"}
	job.Status.ResolvedApplication = &d.Application
	job.Specification.Application = d.Application.Metadata.Reference()
	return job, setParameters(job, d.Workflows, parameters)
}

// setParameters gives a job the values of the command line, in the type that the application declares.
func setParameters(job *providerapi.Job, workflows map[string]string, parameters []string) error {
	all := job.Specification.Parameters
	if all == nil {
		all = map[string]providerapi.AppParameterValue{}
		job.Specification.Parameters = all
	}
	workflow := func(text string) providerapi.AppParameterValue {
		return providerapi.AppParameterValue{Type: providerapi.ValueWorkflow, Specification: &providerapi.WorkflowSpecification{Language: "JINJA2", Job: &text}}
	}
	for name, text := range workflows {
		all[name] = workflow(text)
	}
	for _, p := range parameters {
		name, value, ok := strings.Cut(p, "=")
		if !ok {
			return usagef("--parameter must be name=value, not %q", clean(p))
		}
		if file, ok := strings.CutPrefix(value, "@"); ok {
			data, err := os.ReadFile(file)
			if err != nil {
				return usagef("--parameter %s: %v", clean(name), err)
			}
			value = string(data)
		}
		v, err := parameterValue(job.Status.ResolvedApplication, name, value)
		if err != nil {
			return err
		}
		if v.Type == providerapi.ValueWorkflow {
			v = workflow(value)
		}
		all[name] = v
	}
	return nil
}

// parameterValue is a value in the type that its parameter declares.
func parameterValue(app *providerapi.Application, name, value string) (providerapi.AppParameterValue, error) {
	if name == jobrender.ModulesParameter {
		return providerapi.AppParameterValue{Type: providerapi.ValueModules, Modules: strings.Split(value, ",")}, nil
	}
	i := slices.IndexFunc(app.Invocation.Parameters, func(p providerapi.ApplicationParameter) bool { return p.Name == name })
	if i < 0 {
		var names []string
		for _, p := range app.Invocation.Parameters {
			names = append(names, p.Name)
		}
		return providerapi.AppParameterValue{}, withHint(usagef("the application has no parameter %q", clean(name)), "there are: %s", strings.Join(names, ", "))
	}
	switch kind := app.Invocation.Parameters[i].Type; kind {
	case providerapi.ParameterInputFile, providerapi.ParameterInputDirectory:
		return providerapi.AppParameterValue{Type: providerapi.ValueFile, Path: value}, nil
	case providerapi.ParameterInteger, providerapi.ParameterFloatingPoint, providerapi.ParameterBoolean:
		if !json.Valid([]byte(value)) {
			return providerapi.AppParameterValue{}, usagef("the value of %s is not a %s", clean(name), strings.ReplaceAll(kind, "_", " "))
		}
		return providerapi.AppParameterValue{Type: kind, Value: json.RawMessage(value)}, nil
	case providerapi.ParameterWorkflow:
		return providerapi.AppParameterValue{Type: providerapi.ValueWorkflow}, nil
	}
	b, err := json.Marshal(value)
	return providerapi.AppParameterValue{Type: providerapi.ValueText, Value: b}, err
}

// grant is what the job would get.
func (f *renderFlags) grant(cfg *config.Config, job *providerapi.Job) (jobrender.Grant, error) {
	s := jobsite.Slice{Partition: "PARTITION", Machine: jobrender.Machine{Name: "MACHINE", Category: "CATEGORY", CPU: 1, MemoryGB: 4}}
	name := f.machine
	if name == "" {
		name = job.Specification.Product.ID
	}
	var all []jobsite.Slice
	if cfg != nil {
		all = jobsite.Slices(cfg)
	}
	i := slices.IndexFunc(all, func(s jobsite.Slice) bool { return name == "" || s.Machine.Name == name })
	switch {
	case i >= 0:
		s = all[i]
	case f.machine != "" || name != "" && len(all) > 0:
		return jobrender.Grant{}, exitf(ExitNoMatch, "NOT_FOUND", "there is no machine %q in the configuration", clean(name))
	}
	app := job.Status.ResolvedApplication
	g := jobrender.Grant{
		Account: f.account, Partition: s.Partition, QoS: s.QoS, Constraint: s.Constraint, Exclusive: s.Exclusive, Machine: s.Machine,
		Comment: "ucloud:" + job.ID, Nodes: max(1, job.Specification.Replicas), Folder: f.folder, Time: f.limit,
	}
	if f.partition != "" {
		g.Partition = f.partition
	}
	if f.nodes > 0 {
		g.Nodes = f.nodes
	}
	if g.Time == 0 && job.Specification.TimeAllocation != nil {
		g.Time = job.Specification.TimeAllocation.Duration()
	} else if t := app.Invocation.Tool.Tool; g.Time == 0 && t != nil {
		g.Time = t.Description.DefaultTimeAllocation.Duration()
	}
	if app.Invocation.ApplicationType != providerapi.ApplicationBatch {
		g.Port = f.port
	}
	if app.Invocation.ApplicationType == providerapi.ApplicationVNC {
		g.Password = filepath.Join(f.folder, jobrender.PasswordFile)
	}
	return g, nil
}
