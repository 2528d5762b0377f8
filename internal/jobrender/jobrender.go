// Package jobrender makes the batch script of a job: from what Core sends (the job with its whole application), what the site has
// configured and what the server has granted (contract 22 section 4, contract 24).
//
// Everything a user can type reaches the script through package shell, or, in directives, through package jobscript. A job whose
// script cannot be made is refused with a sentence that names the parameter or the line; there is no script that fails later.
//
// The package runs in instances, with the user's rights. It starts nothing at its initialisation and keeps nothing between calls.
package jobrender

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobscript"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/shell"
	"ucloud-im/internal/software"
)

// Engines of jobs.
const (
	EngineSlurm = "slurm"
	EngineLocal = "local"
)

// Site is what the site has configured for job scripts. It is plain data: instances get it as JSON in their start-up document.
type Site struct {
	Provider     string        `json:"provider"`
	SystemLoad   string        `json:"systemLoad,omitempty"`   // template text
	SystemUnload string        `json:"systemUnload,omitempty"` // template text
	Srun         software.Srun `json:"srun"`                   // without a command: the application's, or "srun"
	// Extra are directives for all jobs, name to template; applications may change those that are not in Locked.
	Extra  map[string]string `json:"extra,omitempty"`
	Locked []string          `json:"locked,omitempty"`
	// FakeResources makes every job ask for one CPU and little memory.
	FakeResources bool                          `json:"fakeResources,omitempty"`
	Software      []software.Application        `json:"software,omitempty"`
	Modules       []providerapi.SupportedModule `json:"modules,omitempty"`
	// RenderWords renders word parts of environment and sbatch that look like templates as such (contract 24 section 8).
	RenderWords bool `json:"renderWords,omitempty"`
	// AllowScripts are the only programs that templates can start.
	AllowScripts []string `json:"allowScripts,omitempty"`
	JobEngine    string   `json:"jobEngine,omitempty"`
	// MaxTime bounds a time limit that an application sets by itself. 0 is no bound but Slurm's.
	MaxTime time.Duration `json:"maxTime,omitempty"`
}

// Machine is the slice that the user has chosen (contract 22 section 2).
type Machine struct {
	Name        string `json:"name"`
	Category    string `json:"category"`
	CPU         int    `json:"cpu"`
	CPUModel    string `json:"cpuModel,omitempty"`
	MemoryGB    int    `json:"memoryGb"`
	MemoryModel string `json:"memoryModel,omitempty"`
	GPU         int    `json:"gpu,omitempty"`
	GPUModel    string `json:"gpuModel,omitempty"`
	GPUType     string `json:"gpuType,omitempty"`
}

// Grant is what this job may have.
type Grant struct {
	Account    string
	Partition  string
	QoS        string
	Constraint string
	Comment    string
	Machine    Machine
	Exclusive  bool
	Nodes      int
	Time       time.Duration
	// Folder is the local path of the job's folder, where everything is written.
	Folder string
	// Port is the port for the web interface or desktop; 0 for other jobs.
	Port int
	// Run starts a program of Site.AllowScripts as the user: it gets the path of a file with the request as its argument, and what it
	// prints is the answer. Run bounds its time and output; its errors have a sentence for the user. Nil refuses script().
	Run func(ctx context.Context, program string, request []byte) (answer []byte, err error)
	// Password is the path of a file that only the user can read, with the password of the remote desktop. The script gets the path,
	// never the password.
	Password string
}

// Paths gives the local path of a UCloud path, checked with the user's own rights.
type Paths func(ctx context.Context, ucloudPath string) (local string, err error)

// Target is an interface of the job that a template has declared (contract 21 section 5.1).
type Target struct {
	Rank   int
	Type   string // WEB or VNC
	Target string
	Port   int
}

// Script is a rendered job.
type Script struct {
	Text []byte // job.sbatch
	// Template and Parameters are for users and support: job_template.j2 and job_template_params.yml. Nil if there is no template.
	Template, Parameters []byte
	Targets              []Target
	TimeLimit            time.Duration // what the script asks for
	Warnings             []string      // sentences for the user
}

// Names of the files in a job's folder.
const (
	ScriptFile     = "job.sbatch"
	TemplateFile   = "job_template.j2"
	ParametersFile = "job_template_params.yml"
	PortFile       = "allocated-port.txt"
	PasswordFile   = ".vnc-password"
	StdoutFile     = "stdout.txt"
	StderrFile     = "stderr.txt"
)

// defaultTime is the time limit where neither job nor tool has one.
const defaultTime = time.Hour

// renderer is the state of one call of Render.
type renderer struct {
	job    *providerapi.Job
	app    *providerapi.Application
	site   Site
	grant  Grant
	script jobscript.Script
	out    *Script
	params *parameters
	// loadedSrun is that of the first software that was loaded and has one.
	loadedSrun *software.Srun
}

// Render makes the script of a job. Errors are of kind Invalid unless paths or ctx failed.
func Render(ctx context.Context, job *providerapi.Job, site Site, grant Grant, paths Paths) (*Script, error) {
	app := job.Status.ResolvedApplication
	if app == nil {
		return nil, failure.New(failure.Invalid, "The job has no application")
	}
	if app.Metadata.Name == "unknown" {
		return nil, failure.New(failure.Invalid, "Jobs that were submitted outside UCloud cannot be run again from here")
	}
	if err := checkMounts(job); err != nil {
		return nil, err
	}
	r := &renderer{job: job, app: app, site: site, grant: grant, out: &Script{}}
	var err error
	if r.params, err = resolve(ctx, job, paths); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, templateTime)
	defer cancel()
	// What comes later wins: the provider's directives, the application's, those of its template.
	for _, step := range []func(context.Context) error{r.directives, r.extra, r.exports, r.overrides, r.body, r.environment, r.finish} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}

// directives sets the provider's own ones (contract 22 section 4.1).
func (r *renderer) directives(ctx context.Context) error {
	g, m, d := r.grant, r.grant.Machine, &r.script.Directives
	if g.Time <= 0 {
		g.Time = defaultTime
	}
	cpu, memory := max(1, m.CPU), strconv.Itoa(m.MemoryGB*1000)
	if r.site.FakeResources {
		cpu, memory = 1, "50"
	}
	set := map[string]string{
		"account": g.Account, "partition": g.Partition, "qos": g.QoS, "constraint": g.Constraint, "comment": g.Comment,
		"chdir": g.Folder, "output": outputFile(g.Folder, StdoutFile), "error": outputFile(g.Folder, StderrFile), "job-name": r.job.ID,
		"cpus-per-task": strconv.Itoa(cpu), "mem": memory, "nodes": strconv.Itoa(max(1, g.Nodes)), "time": jobscript.FormatTime(g.Time),
	}
	if memory == "0" {
		delete(set, "mem") // --mem=0 asks for all of a node
	}
	if m.GPU > 0 && !r.site.FakeResources {
		set["gpus-per-task"] = strconv.Itoa(m.GPU)
		if m.GPUType != "" {
			set["gpus-per-task"] = m.GPUType + ":" + set["gpus-per-task"]
		}
		// Slurm refuses GPUs by task where it does not know the number of tasks.
		set["ntasks-per-node"] = "1"
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if set[name] == "" {
			continue
		}
		if err := d.Set(name, set[name]); err != nil {
			return err
		}
	}
	if g.Exclusive {
		if err := d.Flag("exclusive"); err != nil {
			return err
		}
	}
	return d.Flag("parsable")
}

// extra sets the directives that the site has for all jobs. Their values are templates.
func (r *renderer) extra(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(r.site.Extra)) {
		value, err := r.piece(ctx, "the provider's sbatch option "+name, r.site.Extra[name])
		if err != nil {
			return err
		}
		if value = strings.TrimSpace(value); value == "" && r.site.Extra[name] != "" {
			continue // a template that came to nothing
		}
		if err := r.override(name, value); err != nil {
			return err
		}
	}
	r.script.Directives.Lock(r.site.Locked...)
	return nil
}

// outputFile names a file in the job's folder for --output. Slurm puts the folder in front of a relative name and then replaces
// patterns such as %j in all of it, so a folder with a % has to be written out, with the % doubled. A backslash anywhere turns the
// patterns off, and is itself written double.
func outputFile(folder, name string) string {
	switch {
	case strings.Contains(folder, `\`):
		return strings.ReplaceAll(folder, `\`, `\\`) + "/" + name
	case strings.Contains(folder, "%"):
		return strings.ReplaceAll(folder, "%", "%%") + "/" + name
	}
	return name
}

// finish takes the parts together.
func (r *renderer) finish(context.Context) error {
	limit, _ := r.script.Directives.Get("time")
	t, err := jobscript.ParseTime(limit)
	if err != nil {
		return err
	}
	if r.site.MaxTime > 0 && t > r.site.MaxTime {
		return failure.New(failure.Invalid, "The application asks for a time limit of %s; at most %s are possible", limit, jobscript.FormatTime(r.site.MaxTime))
	}
	r.out.TimeLimit = t
	r.out.Text, err = r.script.Text()
	return err
}

// exports are the variables that describe the job (contract 22 section 4.2). They are those of templates, under another name.
func (r *renderer) exports(context.Context) error {
	r.script.Exports = map[string]string{}
	for name, value := range r.description() {
		if value != nil {
			r.script.Exports["UCLOUD_"+upperSnake(name)] = fmt.Sprint(value)
		}
	}
	g := r.grant
	if g.Port > 0 {
		r.script.Exports["UCLOUD_PORT"] = strconv.Itoa(g.Port)
		// A new file each time: others may have put a link in its place while the job waited, or a job that is requeued has left one.
		file := shell.Quote(path.Join(g.Folder, PortFile))
		r.script.Code = append(r.script.Code, "rm -f -- "+file, fmt.Sprintf("(set -C; echo %d > %s)", g.Port, file))
	}
	if err := shell.CheckLine("The path of the job's folder", g.Folder); err != nil {
		return err
	}
	if g.Password != "" {
		r.script.Exports["UCLOUD_VNC_PASSWORD_FILE"] = g.Password
	}
	if err := r.checkModules(); err != nil {
		return err
	}
	var load []string
	if tool := r.app.Invocation.Tool.Tool; tool != nil && len(tool.Description.RequiredModules) > 0 {
		r.script.Code = append(r.script.Code, "", "module purge")
		load = slices.Clone(tool.Description.RequiredModules)
	}
	if !r.isTemplate() {
		load = append(load, r.modules()...) // in templates systemLoad does it
	}
	for _, m := range load {
		if err := shell.CheckLine("A module that the application requires", m); err != nil {
			return err
		}
		r.script.Code = append(r.script.Code, "module load "+shell.Quote(m))
	}
	return nil
}

// description is what templates and variables say about the job, by the name below ucloud in templates. Nil values are undefined.
func (r *renderer) description() map[string]any {
	g, m := r.grant, r.grant.Machine
	d := map[string]any{
		"jobId": r.job.ID, "nodes": max(1, g.Nodes), "partition": g.Partition,
		"machine.name": m.Name, "machine.category": m.Category, "machine.cpu": m.CPU, "machine.cpuModel": m.CPUModel,
		"machine.memoryInGigs": m.MemoryGB, "machine.memoryModel": m.MemoryModel, "machine.gpu": m.GPU, "machine.gpuModel": m.GPUModel,
		"application.name": r.app.Metadata.Name, "application.version": r.app.Metadata.Version,
	}
	if g.QoS != "" {
		d["qos"] = g.QoS
	}
	if g.Port > 0 {
		d["webPort"], d["vncPort"] = g.Port, g.Port
	}
	if g.Password != "" {
		d["vncPasswordFile"] = g.Password
	}
	return d
}

// upperSnake writes machine.memoryInGigs as MACHINE_MEMORY_IN_GIGS.
func upperSnake(name string) string {
	var b strings.Builder
	for _, c := range name {
		switch {
		case c == '.':
			b.WriteByte('_')
		case 'A' <= c && c <= 'Z':
			b.WriteByte('_')
			b.WriteRune(c)
		default:
			b.WriteString(strings.ToUpper(string(c)))
		}
	}
	return b.String()
}

func (r *renderer) warn(format string, args ...any) {
	const most = 20
	if len(r.out.Warnings) < most {
		r.out.Warnings = append(r.out.Warnings, fmt.Sprintf(format, args...))
	}
}

// checkMounts refuses explicit mount paths that no provider offers (contract 20 section 2.1).
func checkMounts(job *providerapi.Job) error {
	source := map[string]string{} // by mount path
	check := func(v providerapi.AppParameterValue) error {
		if v.Type != providerapi.ValueFile || v.MountPath == "" {
			return nil
		}
		mount := path.Clean(v.MountPath)
		if !path.IsAbs(mount) {
			return failure.New(failure.Invalid, "The mount path %q is not absolute", v.MountPath)
		}
		for _, reserved := range []string{"/etc/ucloud", "/opt/ucloud", "/work"} {
			if mount == reserved || reserved == "/work" && strings.HasPrefix(mount, "/work/") {
				return failure.New(failure.Invalid, "The mount path %q is reserved", v.MountPath)
			}
		}
		file := path.Clean(v.Path)
		if other, taken := source[mount]; taken && other != file {
			return failure.New(failure.Invalid, "Two folders have the mount path %q", v.MountPath)
		}
		source[mount] = file
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(job.Specification.Parameters)) {
		if err := check(job.Specification.Parameters[name]); err != nil {
			return err
		}
	}
	for _, v := range job.Specification.Resources {
		if err := check(v); err != nil {
			return err
		}
	}
	return nil
}
