package computeusage

import (
	"cmp"
	"slices"
)

// Category is a machine category.
type Category struct {
	Name      string
	Partition string
	QoS       string // empty: any
	Period    int64  // minutes of one unit: 1, 60 or 1440
	FreeToUse bool   // nothing is reported
	Unit      string // Cpu, Gpu or Memory
	// Slices have prices in a category that counts money, in millionths for a period; nil: it counts units.
	Slices []Slice
}

// Slice is a machine of a category that counts money.
type Slice struct {
	CPU, GPU, MemoryGB, Price int64
}

// Units of categories.
const (
	UnitCPU    = "Cpu"
	UnitGPU    = "Gpu"
	UnitMemory = "Memory"
)

// match finds the category of a partition and QoS. One that names the QoS is preferred to one that takes any.
func match(all []Category, r *Run) (found *Category) {
	for i, c := range all {
		if c.Partition != r.Partition || (c.QoS != "" && c.QoS != r.QoS) {
			continue
		}
		if found == nil || (found.QoS == "" && c.QoS != "") {
			found = &all[i]
		}
	}
	return found
}

// rate is what a run uses of a category while it runs: units, or millionths of the currency for a period.
func rate(c *Category, r *Run) int64 {
	if c.Slices != nil {
		return price(c.Slices, r)
	}
	if r.Billing >= 0 {
		return r.Billing
	}
	switch c.Unit {
	case UnitGPU:
		return r.GPU
	case UnitMemory:
		return r.MemoryMB / 1024
	}
	return r.CPU
}

// price is that of the cheapest slices that hold what the run has on a node, times its nodes. A node that is larger than
// every slice is several of the largest.
func price(all []Slice, r *Run) int64 {
	nodes := max(r.Nodes, 1)
	up := func(a, b int64) int64 { return (a + b - 1) / b }
	cpu, gpu, mem := up(r.CPU, nodes), up(r.GPU, nodes), up(up(r.MemoryMB, nodes), 1024)
	var best int64 = -1
	for _, s := range all {
		if s.CPU >= cpu && s.GPU >= gpu && s.MemoryGB >= mem && (best < 0 || s.Price < best) {
			best = s.Price
		}
	}
	if best >= 0 {
		return best * nodes
	}
	if len(all) == 0 {
		return 0
	}
	large := slices.MaxFunc(all, func(a, b Slice) int {
		return cmp.Or(cmp.Compare(a.GPU, b.GPU), cmp.Compare(a.CPU, b.CPU), cmp.Compare(a.MemoryGB, b.MemoryGB))
	})
	n := max(up(cpu, max(large.CPU, 1)), up(mem, max(large.MemoryGB, 1)), 1)
	if large.GPU > 0 {
		n = max(n, up(gpu, large.GPU))
	}
	return large.Price * n * nodes
}
