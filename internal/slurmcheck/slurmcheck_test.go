package slurmcheck

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/slurm"
	"ucloud-im/internal/testkit/slurmkit"
)

func good() Site {
	return Site{
		Automatic: true, Operator: "root",
		Categories: []Category{
			{
				Key: "m.cpu", Partition: "normal", QoS: "normal", Unit: UnitCPU, MaxTime: 4 * time.Hour, MaxNodes: 3,
				Groups: []Group{{Key: "m.cpu", Constraint: "epyc", Slices: []Slice{{1, 4, 0}, {64, 256, 0}}}},
			},
			{
				Key: "m.gpu", Partition: "gpu", Unit: UnitGPU,
				Groups: []Group{{Key: "m.gpu.groups.a100", Constraint: "[a100|epyc*2]", GPUType: "a100", Slices: []Slice{{16, 64, 2}}}, {Key: "m.gpu.groups.any", Slices: []Slice{{1, 1, 1}}}},
			},
		},
	}
}

// texts are findings, one a line.
func texts(fs []Finding) []string {
	var out []string
	for _, f := range fs {
		severity := "warn"
		if f.Error {
			severity = "error"
		}
		out = append(out, severity+" "+f.Rule+" "+f.Key+": "+f.Message)
	}
	return out
}

// expect compares findings with words that each of them has, in any order.
func expect(t *testing.T, fs []Finding, want ...string) {
	t.Helper()
	got := texts(fs)
	for _, w := range want {
		if i := slices.IndexFunc(got, func(g string) bool { return strings.Contains(g, w) }); i >= 0 {
			got = slices.Delete(got, i, i+1)
		} else {
			t.Errorf("nobody says %q", w)
		}
	}
	for _, g := range got {
		t.Errorf("unexpected: %s", g)
	}
}

// TestRealCluster: a site that agrees with the real Slurm, and the same with one thing changed at a time.
func TestRealCluster(t *testing.T) {
	t.Parallel()
	c := slurmkit.Start(t)
	client := slurm.New(slurm.Options{Binaries: c.Binaries(t), Timeout: 2 * time.Minute})
	expect(t, Check(t.Context(), client, good()))
	for name, tc := range map[string]struct {
		change func(s *Site)
		want   []string
	}{
		"partition": {func(s *Site) { s.Categories[0].Partition = "norm" }, []string{"error X-09 m.cpu.partition: cluster devcluster has no partition \"norm\""}},
		"qos":       {func(s *Site) { s.Categories[0].QoS = "gold" }, []string{"error X-09 m.cpu.qos: Slurm has no QoS \"gold\""}},
		"cores":     {func(s *Site) { s.Categories[0].Groups[0].Slices[1].CPU = 65 }, []string{"error X-09 m.cpu.cpu: slice 2 (65 cores"}},
		"memory":    {func(s *Site) { s.Categories[0].Groups[0].Slices[0].MemoryGB = 257 }, []string{"error X-09 m.cpu.cpu: slice 1"}},
		"gpus":      {func(s *Site) { s.Categories[1].Groups[0].Slices[0].GPU = 3 }, []string{"error X-09 m.gpu.groups.a100.cpu: slice 1"}},
		"no gpus": {func(s *Site) {
			s.Categories[0].Groups[0] = Group{Key: "k", Constraint: "big", Slices: []Slice{{1, 1, 1}}}
		}, []string{"error X-09 k.cpu: slice 1"}},
		"gpu type":   {func(s *Site) { s.Categories[1].Groups[0].GPUType = "h100" }, []string{"error X-09 m.gpu.groups.a100.gpuType"}},
		"constraint": {func(s *Site) { s.Categories[0].Groups[0].Constraint = "epyc&zen5" }, []string{"error X-09 m.cpu.constraint: no node of partition \"normal\" has the feature \"zen5\""}},
		"time":       {func(s *Site) { s.Categories[0].MaxTime = 5 * time.Hour }, []string{"warn X-09 m.cpu.maxTime: partition \"normal\" allows jobs of at most 4h"}},
		"nodes":      {func(s *Site) { s.Categories[0].MaxNodes = 4 }, []string{"warn X-09 m.cpu.maxNodes: partition \"normal\" has 3 nodes"}},
		"unit":       {func(s *Site) { s.Categories[0].Unit = UnitGPU }, []string{"warn X-10 m.cpu.payment.unit: partition \"normal\" counts CPU too", "warn X-10 m.cpu.payment.unit: partition \"normal\" does not count gres/gpu"}},
		"down":       {func(s *Site) { s.Categories[0].Partition, s.Categories[0].Unit = "down", "" }, []string{"warn X-09 m.cpu.partition: partition \"down\" is DOWN"}},
		"operator":   {func(s *Site) { s.Operator = "nobody" }, []string{"warn X-10 services.slurm: nobody is no operator"}},
	} {
		t.Run(name, func(t *testing.T) { expect(t, Check(t.Context(), client, with(tc.change)), tc.want...) })
	}
}

// with is the good site with a change.
func with(change func(s *Site)) Site {
	s := good()
	change(&s)
	return s
}

// fakeCluster answers what a test wants.
type fakeCluster struct {
	settings                         map[string]string
	partitions                       []slurm.Partition
	qos                              []slurm.QoS
	configErr, partErr, qosErr, aErr error
}

func (f fakeCluster) Configuration(context.Context) (map[string]string, error) {
	return f.settings, f.configErr
}

func (f fakeCluster) Partitions(context.Context) ([]slurm.Partition, error) {
	return f.partitions, f.partErr
}

func (f fakeCluster) QoS(context.Context) ([]slurm.QoS, error) { return f.qos, f.qosErr }

func (f fakeCluster) AdminLevel(context.Context, string) (string, error) { return "Operator", f.aErr }

func fake() fakeCluster {
	return fakeCluster{
		settings: map[string]string{
			"ClusterName": "alder", "AccountingStorageType": "accounting_storage/slurmdbd", "AccountingStoreFlags": "job_comment",
			"AccountingStorageEnforce": "associations,limits,qos,safe", "PriorityType": "priority/multifactor", "PriorityDecayHalfLife": "00:00:00",
			"PriorityUsageResetPeriod": "NONE", "SlurmUser": "slurm(64030)",
		},
		partitions: []slurm.Partition{{Name: "p", State: "UP", Unlimited: true, AllowQoS: []string{"high"}}},
		qos:        []slurm.QoS{{Name: "high"}, {Name: "normal"}},
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	down := failure.Wrap(errors.New("secret detail"), failure.Unavailable, "Slurm does not answer")
	for name, tc := range map[string]struct {
		change func(f *fakeCluster)
		site   Site
		want   []string
	}{
		"all is well":     {func(*fakeCluster) {}, Site{Automatic: true, Operator: "ucloud"}, nil},
		"down":            {func(f *fakeCluster) { f.configErr = down }, good(), []string{"warn X-10 services.slurm: Slurm does not answer, so that nothing was compared"}},
		"partitions":      {func(f *fakeCluster) { f.partErr = down }, good(), []string{"warn X-09 services.slurm.machines: cluster alder does not tell its partitions"}},
		"qos":             {func(f *fakeCluster) { f.qosErr = down }, Site{}, []string{"cluster alder does not tell its QoS"}},
		"admin level":     {func(f *fakeCluster) { f.aErr = down }, Site{Operator: "ucloud"}, []string{"whether ucloud is an operator"}},
		"slurm itself":    {func(f *fakeCluster) { f.aErr = down }, Site{Operator: "slurm"}, nil},
		"enforce":         {func(f *fakeCluster) { f.settings["AccountingStorageEnforce"] = "associations,qos" }, Site{Automatic: true}, []string{"does not enforce limits", "does not enforce safe"}},
		"enforce all":     {func(f *fakeCluster) { f.settings["AccountingStorageEnforce"] = "all" }, Site{Automatic: true}, nil},
		"not ours":        {func(f *fakeCluster) { f.settings["AccountingStorageEnforce"] = "none" }, Site{}, nil},
		"decay":           {func(f *fakeCluster) { f.settings["PriorityDecayHalfLife"] = "7-00:00:00" }, Site{Automatic: true}, []string{"PriorityDecayHalfLife is 7-00:00:00"}},
		"reset":           {func(f *fakeCluster) { f.settings["PriorityUsageResetPeriod"] = "MONTHLY" }, Site{Automatic: true}, []string{"PriorityUsageResetPeriod is MONTHLY"}},
		"no counting":     {func(f *fakeCluster) { f.settings["PriorityType"] = "priority/basic" }, Site{Automatic: true}, []string{"does not count the usage"}},
		"no slurmdbd":     {func(f *fakeCluster) { f.settings["AccountingStorageType"] = "accounting_storage/none" }, Site{Automatic: true}, []string{"keeps no accounting"}},
		"no comments":     {func(f *fakeCluster) { delete(f.settings, "AccountingStoreFlags") }, Site{}, []string{"does not keep the comments"}},
		"qos not allowed": {func(*fakeCluster) {}, Site{Categories: []Category{{Key: "m", Partition: "p", QoS: "normal"}}}, []string{"error X-09 m.qos: partition \"p\" does not allow the QoS \"normal\""}},
		"qos allowed":     {func(*fakeCluster) {}, Site{Categories: []Category{{Key: "m", Partition: "p", QoS: "high"}}}, nil},
		"no weights":      {func(*fakeCluster) {}, Site{Categories: []Category{{Key: "m", Partition: "p", Unit: UnitMemory}}}, []string{"has no TRESBillingWeights"}},
		"memory":          {func(f *fakeCluster) { f.partitions[0].BillingWeights = map[string]string{"Mem": "1.0G"} }, Site{Categories: []Category{{Key: "m", Partition: "p", Unit: UnitMemory}}}, nil},
		"memory in MB":    {func(f *fakeCluster) { f.partitions[0].BillingWeights = map[string]string{"Mem": "1.0", "CPU": "0"} }, Site{Categories: []Category{{Key: "m", Partition: "p", Unit: UnitMemory}}}, []string{"counts Mem with the weight 1.0"}},
		"half a core":     {func(f *fakeCluster) { f.partitions[0].BillingWeights = map[string]string{"CPU": "0.5"} }, Site{Categories: []Category{{Key: "m", Partition: "p", Unit: UnitCPU}}}, []string{"counts CPU with the weight 0.5"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fake()
			tc.change(&f)
			found := Check(t.Context(), f, tc.site)
			expect(t, found, tc.want...)
			for _, line := range texts(found) {
				if strings.Contains(line, "secret") {
					t.Error(line)
				}
			}
		})
	}
}
