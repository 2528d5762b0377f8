package cli

import (
	"context"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/slurmcheck"
)

// slurmProblems compares the machines of the configuration with Slurm, if there are any (contract 40 ). account
// is the service account, empty if it is not known.
func slurmProblems(ctx context.Context, c *config.Config, account string) config.Problems {
	s := c.Services.Slurm
	if s == nil || s.Machines.Len() == 0 || c.Development.FakeSlurm {
		return nil
	}
	site := slurmcheck.Site{Operator: account}
	if s.Accounts != nil {
		site.Automatic = s.Accounts.Accounting.Type == "Automatic"
	}
	for category, m := range s.Machines.All() {
		at := "services.slurm.machines." + category
		out := slurmcheck.Category{
			Key: at, Partition: m.Partition, QoS: m.QoS, Unit: m.Payment.Unit, MaxTime: time.Duration(m.MaxTime), MaxNodes: m.MaxNodes,
		}
		for name, g := range m.SliceGroups(category).All() {
			group := slurmcheck.Group{Key: at, Constraint: g.Constraint, GPUType: g.GPUType}
			if m.Groups.Len() > 0 {
				group.Key += ".groups." + name
			}
			for i := range g.CPU {
				slice := slurmcheck.Slice{CPU: g.CPU[i], MemoryGB: g.Memory[i]}
				if i < len(g.GPU) {
					slice.GPU = g.GPU[i]
				}
				group.Slices = append(group.Slices, slice)
			}
			out.Groups = append(out.Groups, group)
		}
		site.Categories = append(site.Categories, out)
	}
	client := slurm.New(slurm.Options{Binaries: s.Binaries.String(), Timeout: time.Duration(s.CommandTimeout)})
	var problems config.Problems
	for _, f := range slurmcheck.Check(ctx, client, site) {
		severity := config.Warning
		if f.Error {
			severity = config.Error
		}
		problems = append(problems, c.NewProblem(severity, f.Rule, f.Key, f.Message, f.Remedy))
	}
	return problems
}
