package config

import (
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
)

// Config is one loaded configuration. It is never changed after [Load] gave it out (CFG-9): a reload loads another one.
// Maps and slices must not be written to by those who read them.
type Config struct {
	Version       int           `key:"version" default:"1" doc:"Version of the file's form."`
	Provider      Provider      `key:"provider" need:"yes" doc:"Who we are and where UCloud/Core is."`
	Gateway       Gateway       `key:"gateway" doc:"The ingress."`
	Internal      Internal      `key:"internal" doc:"How gateway, server and instances reach each other."`
	Metrics       Metrics       `key:"metrics" doc:"Prometheus endpoint."`
	Health        Health        `key:"health" doc:"Health endpoints."`
	Profiler      Profiler      `key:"profiler" doc:"Profiles for developers."`
	IPC           IPC           `key:"ipc" doc:"The socket for instances, gateway and command line."`
	Logs          Logs          `key:"logs" doc:"Logs."`
	Audit         Audit         `key:"audit" doc:"Records of who did what."`
	UserInstances UserInstances `key:"userInstances" doc:"Who gets an instance and what it may use."`
	Terminal      Terminal      `key:"terminal" doc:"Web terminal."`
	Database      Database      `key:"database" doc:"State of the server."`
	Retention     Retention     `key:"retention" doc:"When records are removed."`
	Files         Files         `key:"files" doc:"File calls."`
	Tasks         Tasks         `key:"tasks" doc:"Background work."`
	Transfers     Transfers     `key:"transfers" doc:"Copies between providers."`
	Scripts       Scripts       `key:"scripts" doc:"Defaults of extension scripts."`
	Hooks         Hooks         `key:"hooks" doc:"Scripts that belong to no service."`
	CLI           CLI           `key:"cli" doc:"Rights on the command line."`
	Development   Development   `key:"development" doc:"What must never run in production."`
	Services      Services      `key:"services" need:"yes" doc:"What the provider offers."`

	// StateDirectory is where server and, unless gateway.stateDirectory is given, gateway keep their state.
	StateDirectory Path `key:"stateDirectory" flags:"added" reload:"restart" default:"/var/lib/ucloud" doc:"State of the service: SQLite database, instance registry, last route table. Mode 0700."`

	Server  *ServerFile  // server.yml; nil for roles that do not read it
	Secrets *SecretsFile // secrets.yml; nil if there is none or the role does not read it

	Dir      string   // absolute path of the configuration directory
	Role     Role     // for whom it was loaded
	Warnings Problems // what is doubtful; printed by the role, never a reason to stop

	meta *metadata
}

// metadata says where values come from. It holds no secret: fmt walks into everything when a verb does not fit.
type metadata struct {
	places  map[place]position
	sources []*source
}

// IPCSocket is the path of the socket for instances, gateway and command line.
func (c *Config) IPCSocket() string { return filepath.Join(string(c.IPC.Directory), "ucloud.sock") }

// PrivateDirectory is the directory for sockets of the service account alone.
func (c *Config) PrivateDirectory() string { return filepath.Join(string(c.IPC.Directory), "private") }

// InstanceLogDirectory is where the server writes the logs of instances, one file for each uid.
func (c *Config) InstanceLogDirectory() string {
	return filepath.Join(string(c.Logs.Directory), "users")
}

// Managed tells whether users, groups and quotas are made by this module.
func (c *Config) Managed() bool { return !c.Services.Unmanaged }

// StartParallel is how many instances may start at the same time.
func (c *Config) StartParallel() int {
	if n := c.UserInstances.StartParallel; n > 0 {
		return n
	}
	// One and a half per core: a start waits for the kernel and for sudo about a third of its time.
	return max(runtime.NumCPU()*3/2, 1)
}

// Categories are the names of all product categories, storage first, in file order.
func (c *Config) Categories() []string {
	var out []string
	for name := range c.Services.FileSystems.All() {
		out = append(out, name)
	}
	if c.Services.Slurm != nil {
		for name := range c.Services.Slurm.Machines.All() {
			out = append(out, name)
		}
	}
	return out
}

// IsPrimaryCandidate tells whether the locator can serve the kind of owner; an unmanaged one without an entity serves
// both kinds.
func (l *DriveLocator) IsPrimaryCandidate(entity string) bool {
	if l.Entity != "" {
		return l.Entity == entity
	}
	foreign := locatorProject
	if entity == EntityProject {
		foreign = locatorUser
	}
	return !slices.ContainsFunc(l.Pattern.Variables(), func(v string) bool { return slices.Contains(foreign, v) })
}

// NewProblem makes a problem that points at the place of keyPath in config.yml, for checks that other packages do
// (Slurm, UCloud/Core, database). If the key is not in the file, it points at the nearest map around it.
func (c *Config) NewProblem(sev Severity, rule, keyPath, message, remedy string) Problem {
	return c.problem("config", sev, rule, keyPath, message, remedy)
}

func (c *Config) problem(doc string, sev Severity, rule, keyPath, message, remedy string) Problem {
	p := Problem{Severity: sev, Rule: rule, KeyPath: keyPath, Message: message, Remedy: remedy, File: doc + ".yml"}
	if pos := nearest(c.meta.places, doc, keyPath); pos.src != nil {
		p.File, p.Line, p.Column, p.Excerpt = pos.src.name, pos.line, pos.column, pos.src.excerpt(pos)
	} else if s := c.source(doc); s != nil {
		p.File, p.Line, p.Column = s.name, 1, 1
	}
	return p
}

func (c *Config) source(doc string) *source {
	for _, s := range c.meta.sources {
		if s.doc == doc {
			return s
		}
	}
	return nil
}

// isSet tells whether a key stands in a file, as opposed to having its default.
func (c *Config) isSet(doc, keyPath string) bool {
	_, ok := c.meta.places[place{doc, keyPath}]
	return ok
}

// SourceFiles are the absolute paths of the YAML files that were read.
func (c *Config) SourceFiles() []string {
	var out []string
	for _, s := range c.meta.sources {
		out = append(out, s.path)
	}
	return out
}

var configType = reflect.TypeFor[Config]()
