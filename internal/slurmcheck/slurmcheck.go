// Package slurmcheck compares what the configuration says about machines with what Slurm has (contract 40 rules X-09 and
// `ucloud config check` shows what it finds. It only asks; what does not answer is one doubt and no error, since a
// configuration may be checked while the cluster is down.
package slurmcheck

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/slurm"
)

// Cluster is what is asked; [*slurm.Client] is one.
type Cluster interface {
	Partitions(ctx context.Context) ([]slurm.Partition, error)
	QoS(ctx context.Context) ([]slurm.QoS, error)
	Configuration(ctx context.Context) (map[string]string, error)
	AdminLevel(ctx context.Context, user string) (string, error)
}

// The units of [Category.Unit].
const (
	UnitCPU    = "Cpu"
	UnitGPU    = "Gpu"
	UnitMemory = "Memory"
)

// Site is what the configuration says.
type Site struct {
	Categories []Category
	Automatic  bool   // this module keeps the accounts and reads usage from Slurm
	Operator   string // account that has to be an operator of Slurm; empty: nothing needs one
}

// Category is a compute category.
type Category struct {
	Key       string // where it stands in the configuration
	Partition string
	QoS       string
	Unit      string // what is paid for; empty: an amount of money
	MaxTime   time.Duration
	MaxNodes  int
	Groups    []Group
}

// Group is a group of slices.
type Group struct {
	Key        string
	Constraint string
	GPUType    string
	Slices     []Slice
}

// Slice is a machine type.
type Slice struct {
	CPU, MemoryGB, GPU int
}

// Finding is something that does not agree.
type Finding struct {
	Error   bool // jobs cannot work; otherwise it is a doubt
	Rule    string
	Key     string
	Message string
	Remedy  string
}

type checker struct {
	findings []Finding
}

func (c *checker) errorf(rule, key, remedy, format string, args ...any) {
	c.findings = append(c.findings, Finding{Error: true, Rule: rule, Key: key, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) warnf(rule, key, remedy, format string, args ...any) {
	c.findings = append(c.findings, Finding{Rule: rule, Key: key, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

const key = "services.slurm"

// Check compares.
func Check(ctx context.Context, cluster Cluster, site Site) []Finding {
	c := &checker{}
	settings, err := cluster.Configuration(ctx)
	if err != nil {
		c.warnf("X-10", key, "see that this machine is a client of the cluster, and that slurmctld runs", "Slurm does not answer, so that nothing was compared with it: %s", failure.Why(err))
		return c.findings
	}
	name := settings["ClusterName"]
	c.settings(settings, site)
	partitions, err := cluster.Partitions(ctx)
	if err != nil {
		c.warnf("X-09", key+".machines", "", "cluster %s does not tell its partitions, so that machines were not compared with them: %s", name, failure.Why(err))
		return c.findings
	}
	qos, err := cluster.QoS(ctx)
	if err != nil {
		c.warnf("X-09", key+".machines", "see that slurmdbd runs", "cluster %s does not tell its QoS, so that they were not compared: %s", name, failure.Why(err))
	}
	byName := map[string]slurm.Partition{}
	for _, p := range partitions {
		byName[p.Name] = p
	}
	for _, m := range site.Categories {
		p, ok := byName[m.Partition]
		if !ok {
			c.errorf("X-09", m.Key+".partition", "use one of: "+strings.Join(slices.Sorted(maps.Keys(byName)), ", "), "cluster %s has no partition %q", name, m.Partition)
			continue
		}
		if qos != nil {
			c.qos(m, p, qos)
		}
		c.partition(m, p)
		for _, g := range m.Groups {
			c.group(g, p)
		}
	}
	if site.Operator != "" {
		c.operator(ctx, cluster, site.Operator, settings["SlurmUser"])
	}
	return c.findings
}

// settings checks what makes usage and limits right (contract 22 section 7.1).
func (c *checker) settings(settings map[string]string, site Site) {
	if settings["AccountingStorageType"] != "accounting_storage/slurmdbd" {
		c.warnf("X-10", key, "set AccountingStorageType=accounting_storage/slurmdbd in slurm.conf", "Slurm keeps no accounting in slurmdbd: jobs that have ended are not seen")
		return
	}
	if !slices.Contains(strings.Split(settings["AccountingStoreFlags"], ","), "job_comment") {
		c.warnf("X-10", key, "add job_comment to AccountingStoreFlags in slurm.conf", "slurmdbd does not keep the comments of jobs: one that ends while this module is away may not be recognised")
	}
	if !site.Automatic {
		return
	}
	enforced := strings.Split(settings["AccountingStorageEnforce"], ",")
	for _, want := range []string{"associations", "limits", "qos", "safe"} {
		if !slices.Contains(enforced, want) && !slices.Contains(enforced, "all") {
			c.warnf("X-10", key+".accountManagement.accounting", "set AccountingStorageEnforce=associations,limits,qos,safe in slurm.conf", "Slurm does not enforce %s, so that workspaces may use more than they have", want)
		}
	}
	if settings["PriorityType"] != "priority/multifactor" {
		c.warnf("X-10", key+".accountManagement.accounting", "set PriorityType=priority/multifactor in slurm.conf", "Slurm does not count the usage of accounts")
	}
	if v := settings["PriorityDecayHalfLife"]; v != "" && strings.Trim(v, "0:-") != "" {
		c.warnf("X-10", key+".accountManagement.accounting", "set PriorityDecayHalfLife=0 in slurm.conf", "Slurm forgets usage (PriorityDecayHalfLife is %s), so that workspaces get more than they have", v)
	}
	if v := settings["PriorityUsageResetPeriod"]; v != "" && v != "NONE" {
		c.warnf("X-10", key+".accountManagement.accounting", "set PriorityUsageResetPeriod=NONE in slurm.conf", "Slurm resets usage (PriorityUsageResetPeriod is %s)", v)
	}
}

func (c *checker) qos(m Category, p slurm.Partition, all []slurm.QoS) {
	if m.QoS == "" {
		return
	}
	same := func(name string) bool { return strings.EqualFold(name, m.QoS) }
	switch {
	case !slices.ContainsFunc(all, func(q slurm.QoS) bool { return same(q.Name) }):
		c.errorf("X-09", m.Key+".qos", "make it with sacctmgr, or use another one", "Slurm has no QoS %q", m.QoS)
	case p.AllowQoS != nil && !slices.ContainsFunc(p.AllowQoS, same), slices.ContainsFunc(p.DenyQoS, same):
		c.errorf("X-09", m.Key+".qos", "add it to AllowQos of the partition, or use another one", "partition %q does not allow the QoS %q", p.Name, m.QoS)
	}
}

func (c *checker) partition(m Category, p slurm.Partition) {
	if p.State != "UP" {
		c.warnf("X-09", m.Key+".partition", "", "partition %q is %s: jobs wait", p.Name, p.State)
	}
	if !p.Unlimited && p.MaxTime > 0 && m.MaxTime > p.MaxTime {
		c.warnf("X-09", m.Key+".maxTime", "set at most that", "partition %q allows jobs of at most %v", p.Name, p.MaxTime)
	}
	switch {
	case p.MaxNodes > 0 && m.MaxNodes > p.MaxNodes:
		c.warnf("X-09", m.Key+".maxNodes", "set at most that", "partition %q allows at most %d nodes for a job", p.Name, p.MaxNodes)
	case len(p.Nodes) > 0 && m.MaxNodes > len(p.Nodes):
		c.warnf("X-09", m.Key+".maxNodes", "set at most that", "partition %q has %d nodes", p.Name, len(p.Nodes))
	}
	c.billing(m, p)
}

// weightOf are the names of TRESBillingWeights for a unit, in small letters.
var weightOf = map[string]string{UnitCPU: "cpu", UnitGPU: "gres/gpu", UnitMemory: "mem"}

// billing checks that Slurm counts what is paid for, and that alone (contract 22 section 7.1).
func (c *checker) billing(m Category, p slurm.Partition) {
	unit := weightOf[m.Unit]
	if unit == "" {
		return
	}
	want := map[string]string{"cpu": "CPU=1.0", "gres/gpu": "GRES/gpu=1.0", "mem": "Mem=1.0G"}[unit]
	remedy := "set TRESBillingWeights=\"" + want + "\" for the partition"
	at := m.Key + ".payment.unit"
	if p.BillingWeights == nil {
		if unit != "cpu" { // what Slurm counts without weights
			c.warnf("X-10", at, remedy, "partition %q has no TRESBillingWeights: Slurm counts processors, not %s", p.Name, unit)
		}
		return
	}
	found := false
	for name, text := range p.BillingWeights {
		weight := weightValue(text, strings.EqualFold(name, "mem"))
		switch {
		case strings.EqualFold(name, unit):
			found = true
			if weight != 1 {
				c.warnf("X-10", at, remedy, "partition %q counts %s with the weight %s", p.Name, name, text)
			}
		case weight != 0:
			c.warnf("X-10", at, remedy, "partition %q counts %s too (TRESBillingWeights)", p.Name, name)
		}
	}
	if !found {
		c.warnf("X-10", at, remedy, "partition %q does not count %s (TRESBillingWeights)", p.Name, unit)
	}
}

// weightValue is a weight; that of memory is for a gigabyte, and without a unit Slurm means a megabyte.
func weightValue(text string, memory bool) float64 {
	scale := 1.0
	if memory {
		scale = 1024
		switch {
		case strings.HasSuffix(text, "G"):
			scale = 1
		case strings.HasSuffix(text, "T"):
			scale = 1.0 / 1024
		}
	}
	f, err := strconv.ParseFloat(strings.TrimRight(text, "KMGTP"), 64)
	if err != nil {
		return -1
	}
	return f * scale
}

// group checks that each slice fits at least one node of the partition.
func (c *checker) group(g Group, p slurm.Partition) {
	if len(p.Nodes) == 0 {
		return // nodes that come and go
	}
	words := constraintWords(g.Constraint)
	for _, word := range words {
		if !slices.ContainsFunc(p.Nodes, func(n slurm.Node) bool { return slices.Contains(n.Features, word) }) {
			c.errorf("X-09", g.Key+".constraint", "use a feature of its nodes", "no node of partition %q has the feature %q", p.Name, word)
			return
		}
	}
	gres := "gpu"
	if g.GPUType != "" {
		gres = "gpu:" + g.GPUType
		if !slices.ContainsFunc(p.Nodes, func(n slurm.Node) bool { return n.GRES[gres] > 0 }) {
			c.errorf("X-09", g.Key+".gpuType", "use a type of its nodes, or none", "no node of partition %q has GPUs of the type %q", p.Name, g.GPUType)
			return
		}
	}
	for i, s := range g.Slices {
		fits := func(n slurm.Node) bool {
			// One word is a feature that the node must have; what is more may also offer a choice.
			if len(words) == 1 && words[0] == g.Constraint && !slices.Contains(n.Features, words[0]) {
				return false
			}
			return s.CPU <= n.CPUs && int64(s.MemoryGB)*1000<<20 <= n.Memory && int64(s.GPU) <= n.GRES[gres]
		}
		if !slices.ContainsFunc(p.Nodes, fits) {
			c.errorf("X-09", g.Key+".cpu", "make it smaller, or use another partition", "slice %d (%d cores, %d GB, %d GPUs) fits no node of partition %q", i+1, s.CPU, s.MemoryGB, s.GPU, p.Name)
		}
	}
}

// constraintWords are the features in a constraint, which may combine them: "a100&epyc", "[a|b]", "a*2".
func constraintWords(s string) []string {
	var words []string
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("&|[](){} ", r) }) {
		if w, _, _ = strings.Cut(w, "*"); w != "" {
			words = append(words, w)
		}
	}
	return words
}

func (c *checker) operator(ctx context.Context, cluster Cluster, account, slurmUser string) {
	if name, _, _ := strings.Cut(slurmUser, "("); account == name || account == "root" {
		return
	}
	level, err := cluster.AdminLevel(ctx, account)
	switch {
	case err != nil:
		c.warnf("X-10", key, "see that slurmdbd runs", "whether %s is an operator of Slurm is not known: %s", account, failure.Why(err))
	case level != "Operator" && level != "Administrator":
		c.warnf("X-10", key, "sacctmgr modify user "+account+" set adminlevel=Operator (sacctmgr create user first, if it is new)", "%s is no operator of Slurm, as changes of accounts and of other people's jobs need", account)
	}
}
