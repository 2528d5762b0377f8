// Package jobsite takes from the configuration, and from the files that it names, what job scripts need. The server does so for the
// start-up documents of instances, and "ucloud apps" for itself.
package jobsite

import (
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/software"
	"ucloud-im/internal/software/softwarefile"
)

// Of gives the site. What is wrong with files of software costs that software only; problems are for logs and operators. A
// configuration without Slurm gives a site without anything.
func Of(cfg *config.Config) (jobrender.Site, []softwarefile.Problem) {
	site := jobrender.Site{Provider: string(cfg.Provider.ID), JobEngine: jobrender.EngineSlurm}
	if cfg.Development.FakeSlurm {
		site.JobEngine = jobrender.EngineLocal
	}
	s := cfg.Services.Slurm
	if s == nil {
		return site, nil
	}
	site.SystemLoad, site.SystemUnload = s.SystemLoad, s.SystemUnload
	site.Srun = software.Srun{Command: s.Srun.Command, Flags: s.Srun.Flags}
	site.Extra = map[string]string{}
	for name, value := range s.Sbatch.Extra.All() {
		site.Extra[name] = *value
	}
	site.Locked = s.Sbatch.Locked
	site.FakeResources = s.FakeResourceAllocation
	site.RenderWords = s.Templates.RenderWords
	for _, e := range s.Templates.AllowScripts {
		site.AllowScripts = append(site.AllowScripts, e.Path.String())
	}
	var problems []softwarefile.Problem
	site.Software, problems = softwarefile.Load(s.Applications.String())
	if file := s.ModulesFile.String(); file != "" {
		var err error
		if site.Modules, err = softwarefile.LoadModules(file); err != nil {
			problems = append(problems, softwarefile.Problem{File: file, Message: failure.Why(err)})
		}
	}
	return site, problems
}

// Slice is a machine with what a job on it gets by the configuration alone.
type Slice struct {
	Machine    jobrender.Machine
	Partition  string
	QoS        string
	Constraint string
	Exclusive  bool
	MaxTime    time.Duration // 0 if only Slurm knows
}

// Slices are all machines of the configuration, in its order.
func Slices(cfg *config.Config) []Slice {
	if cfg.Services.Slurm == nil {
		return nil
	}
	var all []Slice
	for category, m := range cfg.Services.Slurm.Machines.All() {
		for group, g := range m.SliceGroups(category).All() {
			for i, name := range g.ProductNames(category, group) {
				s := Slice{
					Partition: m.Partition, QoS: m.QoS, Constraint: g.Constraint, Exclusive: g.Exclusive, MaxTime: time.Duration(m.MaxTime),
					Machine: jobrender.Machine{
						Name: name, Category: category, CPU: g.CPU[i], CPUModel: g.CPUModel, MemoryGB: g.Memory[i], MemoryModel: g.MemoryModel,
					},
				}
				if i < len(g.GPU) && g.GPU[i] > 0 {
					s.Machine.GPU, s.Machine.GPUModel, s.Machine.GPUType = g.GPU[i], g.GPUModel, g.GPUType
				}
				all = append(all, s)
			}
		}
	}
	return all
}
