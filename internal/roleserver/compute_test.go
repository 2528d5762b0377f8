package roleserver

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/products"
	"ucloud-im/internal/providerapi"
)

const machines = `  slurm:
    accountManagement:
      accounting: { type: "Off" }
      accountMapper: { type: Pattern, users: "u_#{localUsername}", projects: "p_#{localGroupName}" }
    machines:
      cpu:
        partition: normal
        payment: { type: Resource, unit: Cpu, interval: Hourly }
        cpu: [4, 8]
        memory: [16, 32]
        nameSuffix: CpuV2
      gpu:
        partition: gpu
        qos: high
        hiddenInGrants: true
        payment: { type: Resource, unit: Gpu }
        groups:
          a100: { cpu: [16], memory: [128], gpu: [2], gpuModel: A100 }
          none: { cpu: [1], memory: [2], gpu: [0], nameSuffix: Cpu, description: Small }
      big:
        partition: big
        payment: { type: Money, currency: DKK, interval: Daily }
        freeToUse: true
        cpu: [4]
        memory: [4000]
        price: [12.5]
`

func TestComputeProducts(t *testing.T) {
	t.Parallel()
	whole := providerapi.Fraction{Numerator: 1, Denominator: 1}
	want := []products.Compute{
		{
			Category: "cpu", Payment: products.Payment{Unit: "Core", Interval: products.Hourly}, Machines: []products.Machine{
				{Name: "cpu-4-vcpu", CPU: 4, MemoryGB: 16, Price: 4, Fraction: whole},
				{Name: "cpu-8-vcpu", CPU: 8, MemoryGB: 32, Price: 8, Fraction: whole},
			},
		},
		{
			Category: "gpu", Hidden: true, Payment: products.Payment{Unit: "GPU", Interval: products.Minutely}, Machines: []products.Machine{
				{Name: "a100-2", CPU: 16, MemoryGB: 128, GPU: 2, GPUModel: "A100", Price: 2, Fraction: whole},
				{Name: "none-1", Description: "Small", CPU: 1, MemoryGB: 2, Fraction: whole},
			},
		},
		{
			Category: "big", FreeToUse: true, Payment: products.Payment{Currency: "DKK", Interval: products.Daily},
			Machines: []products.Machine{{Name: "big-4", CPU: 4, MemoryGB: 4000, Price: 12_500_000, Fraction: whole}},
		},
	}
	got := computeProducts(loadText(t, base+managed+machines))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := computeProducts(loadText(t, base+managed)); got != nil {
		t.Errorf("without Slurm: %+v", got)
	}
}

// The category of a job that was submitted without us is the one that its use is charged to.
func TestCategoryOfOutsideJobs(t *testing.T) {
	t.Parallel()
	cfg := loadText(t, base+managed+`  slurm:
    accountManagement:
      accounting: { type: "Off" }
      accountMapper: { type: Pattern, users: "u_#{localUsername}", projects: "p_#{localGroupName}" }
    machines:
      any: { partition: normal, payment: { type: Resource, unit: Cpu }, cpu: [4], memory: [16] }
      fast: { partition: normal, qos: fast, payment: { type: Resource, unit: Cpu }, cpu: [4], memory: [16] }
`)
	for _, tc := range []struct{ partition, qos, category string }{
		{"normal", "fast", "fast"}, {"normal", "slow", "any"}, {"normal", "", "any"}, {"gpu", "fast", ""},
	} {
		all, ok := jobsOf(cfg).Category(tc.partition, tc.qos)
		if ok != (tc.category != "") || ok && all[0].Category != tc.category {
			t.Errorf("%+v: %+v", tc, all)
		}
	}
}
