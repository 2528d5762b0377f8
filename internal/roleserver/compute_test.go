package roleserver

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/config"
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

// TestUnsupportedPrograms: what programs that run as users cannot be given is refused at its place.
func TestUnsupportedPrograms(t *testing.T) {
	t.Parallel()
	const programs = `    hooks: { onJobSubmit: { path: /opt/submit, args: [-x], timeout: 5s, protocol: 2, environment: { A: b }, onFailure: ignore } }
    templates: { allowScripts: [ /opt/one, { path: /opt/two } ] }
`
	if got := Unsupported(loadText(t, base+managed+machines+programs)); len(got) != 0 {
		t.Errorf("a supported configuration: %v", got.Err())
	}
	for _, tc := range []struct{ from, to, key string }{
		{"path: /opt/submit", "path: /opt/submit, runAs: root", "hooks.onJobSubmit.runAs"},
		{"path: /opt/submit", "path: /opt/submit, passSecrets: [x]", "hooks.onJobSubmit.passSecrets"},
		{"path: /opt/submit", "path: /opt/submit, concurrency: 2", "hooks.onJobSubmit.concurrency"},
		{"path: /opt/two", "path: /opt/two, runAs: root", "templates.allowScripts[1].runAs"},
		{"path: /opt/two", "path: /opt/two, passSecrets: [x]", "templates.allowScripts[1].passSecrets"},
		{"path: /opt/two", "path: /opt/two, concurrency: 2", "templates.allowScripts[1].concurrency"},
		{"path: /opt/two", "path: /opt/two, args: [x]", "templates.allowScripts[1].args"},
		{"path: /opt/two", "path: /opt/two, timeout: 9s", "templates.allowScripts[1].timeout"},
		{"path: /opt/two", "path: /opt/two, protocol: 2", "templates.allowScripts[1].protocol"},
		{"path: /opt/two", "path: /opt/two, environment: { A: b }", "templates.allowScripts[1].environment"},
		{"path: /opt/two", "path: /opt/two, onFailure: ignore", "templates.allowScripts[1].onFailure"},
	} {
		got := Unsupported(loadText(t, base+managed+machines+strings.Replace(programs, tc.from, tc.to, 1)))
		if len(got) != 1 || got[0].KeyPath != "services.slurm."+tc.key || got[0].Severity != config.Error || got[0].Line == 0 {
			t.Errorf("%s: %v", tc.key, got)
		}
	}
	scripted := strings.Replace(machines, `type: "Off"`, `type: Scripted, scripted: { onQuotaUpdated: /opt/q, onProjectUpdated: /opt/p, onUsageReporting: { path: /opt/u, allowDecrease: true } }`, 1)
	if got := Unsupported(loadText(t, base+managed+scripted)); len(got) != 1 || !strings.HasSuffix(got[0].KeyPath, "onUsageReporting.allowDecrease") {
		t.Errorf("allowDecrease: %v", got)
	}
}
