package roleserver

import (
	"ucloud-im/internal/config"
	"ucloud-im/internal/products"
	"ucloud-im/internal/providerapi"
)

// computeProducts are the machines of the configuration as products.
func computeProducts(cfg *config.Config) []products.Compute {
	slurm := cfg.Services.Slurm
	if slurm == nil {
		return nil
	}
	var all []products.Compute
	for category, m := range slurm.Machines.All() {
		c := products.Compute{
			Category: category, Hidden: m.HiddenInGrants, FreeToUse: m.FreeToUse,
			Payment: products.Payment{
				Unit: computeUnit(m.Payment.Unit), Interval: products.Interval(m.Payment.Interval), Currency: m.Payment.Currency,
			},
		}
		for group, g := range m.SliceGroups(category).All() {
			for i, name := range g.ProductNames(category, group) {
				c.Machines = append(c.Machines, slice(m, g, i, name))
			}
		}
		all = append(all, c)
	}
	return all
}

// computeUnit is how Core calls what is counted (contract 30 section 1, "Price").
func computeUnit(unit string) string {
	return map[string]string{config.UnitCPU: "Core", config.UnitGPU: "GPU", config.UnitMemory: "GB"}[unit]
}

// slice is the product of element i of a group's lists. Its price is what one interval costs: the number of units that the
// machine has, or the amount of money.
func slice(m *config.Machine, g *config.MachineGroup, i int, name string) products.Machine {
	p := products.Machine{
		Name: name, Description: g.Description, CPU: g.CPU[i], CPUModel: g.CPUModel, MemoryGB: g.Memory[i], MemoryModel: g.MemoryModel,
		Fraction: providerapi.Fraction{Numerator: g.Fraction.Numerator, Denominator: g.Fraction.Denominator},
	}
	if i < len(g.GPU) && g.GPU[i] > 0 {
		p.GPU, p.GPUModel = g.GPU[i], g.GPUModel
	}
	switch {
	case m.Payment.Type == config.PaymentMoney:
		p.Price = g.Price[i].Millionths()
	case m.Payment.Unit == config.UnitGPU:
		p.Price = int64(p.GPU)
	case m.Payment.Unit == config.UnitMemory:
		p.Price = int64(p.MemoryGB)
	default:
		p.Price = int64(p.CPU)
	}
	return p
}
