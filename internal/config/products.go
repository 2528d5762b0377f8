package config

import (
	"fmt"
	"reflect"
)

var machineGroupType = reflect.TypeFor[MachineGroup]()

// ProductNames are the names of the group's slices at UCloud/Core, in order (contract 30, "Product names of a Slurm
// provider").
func (g *MachineGroup) ProductNames(category, group string) []string {
	out := make([]string, 0, len(g.CPU))
	for i := range g.CPU {
		gpu, memory := 0, 0
		if i < len(g.GPU) {
			gpu = g.GPU[i]
		}
		if i < len(g.Memory) {
			memory = g.Memory[i]
		}
		var name string
		switch g.Suffix() {
		case "Cpu":
			name = fmt.Sprintf("%s-%d", group, g.CPU[i])
		case "Gpu":
			name = fmt.Sprintf("%s-%d", group, gpu)
		case "Memory":
			name = fmt.Sprintf("%s-%d", group, memory)
		case "CpuV2":
			name = fmt.Sprintf("%s-%d-vcpu", category, g.CPU[i])
		case "MemoryV2":
			name = fmt.Sprintf("%s-%d-gb", category, memory)
		case "GpuV2":
			name = fmt.Sprintf("%s-%d-gpu", category, gpu)
			if !g.Fraction.IsWhole() {
				name = fmt.Sprintf("%s-%d-frac-%dg", category, gpu, g.Fraction.Numerator)
			}
		}
		out = append(out, name)
	}
	return out
}
