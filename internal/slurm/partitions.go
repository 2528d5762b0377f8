package slurm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Partition is a partition with its nodes.
type Partition struct {
	Name           string
	State          string // UP, DOWN, DRAIN, INACTIVE
	Default        bool
	MaxTime        time.Duration
	Unlimited      bool     // no limit of time
	MaxNodes       int      // 0: no limit
	AllowQoS       []string // empty: all that DenyQoS does not name
	DenyQoS        []string
	AllowAccounts  []string          // empty: all
	BillingWeights map[string]string // TRESBillingWeights, by the name of the resource as it is written there
	Nodes          []Node
}

// Node is a compute node.
type Node struct {
	Name     string
	State    string // small letters, with the marks of sinfo (idle, mixed, drained, down*)
	CPUs     int
	Memory   int64            // bytes
	GRES     map[string]int64 // by name ("gpu") and by name and type ("gpu:a100")
	Features []string
}

// Partitions tells the partitions, hidden ones too, in Slurm's order.
func (c *Client) Partitions(ctx context.Context) ([]Partition, error) {
	out, err := c.output(ctx, command{program: "scontrol", args: []string{"--all", "--oneliner", "show", "partition"}})
	if err != nil {
		return nil, classify(err, "list its partitions")
	}
	partitions, err := parsePartitions(out)
	if err != nil {
		return nil, fmt.Errorf("scontrol show partition: %w", err)
	}
	nodes, err := c.output(ctx, command{program: "sinfo", args: []string{"--all", "--local", "--Node", "--format=" + nodeFormat}})
	if err != nil {
		return nil, classify(err, "list its nodes")
	}
	if err := addNodes(partitions, nodes); err != nil {
		return nil, fmt.Errorf("sinfo: %w", err)
	}
	return partitions, nil
}

// nodeFormat has the features last: they are the one field that may contain the separator ("a|b" in a request).
const nodeFormat = "%R|%N|%T|%c|%m|%G|%f"

const nodeHeader = "PARTITION|NODELIST|STATE|CPUS|MEMORY|GRES|AVAIL_FEATURES"

func parsePartitions(out string) ([]Partition, error) {
	if strings.TrimSpace(out) == "No partitions in the system" {
		return nil, nil
	}
	var all []Partition
	for line := range strings.SplitSeq(strings.TrimRight(out, "\n"), "\n") {
		values := map[string]string{}
		for field := range strings.FieldsSeq(line) {
			if name, value, ok := strings.Cut(field, "="); ok {
				if _, twice := values[name]; !twice { // TRES=cpu=... comes after
					values[name] = value
				}
			}
		}
		p := Partition{Name: values["PartitionName"], State: values["State"], Default: values["Default"] == "YES"}
		if p.Name == "" || p.State == "" {
			return nil, fmt.Errorf("%w: %q", ErrIncomplete, cut(line))
		}
		var err error
		if p.MaxTime, p.Unlimited, err = parseDuration(values["MaxTime"]); err != nil {
			return nil, err
		}
		if v := values["MaxNodes"]; v != "" && v != "UNLIMITED" {
			if p.MaxNodes, err = parseCount(v); err != nil {
				return nil, err
			}
		}
		p.AllowQoS, p.DenyQoS = nameList(values["AllowQos"]), nameList(values["DenyQos"])
		p.AllowAccounts = nameList(values["AllowAccounts"])
		for _, w := range nameList(values["TRESBillingWeights"]) {
			if name, weight, ok := strings.Cut(w, "="); ok {
				if p.BillingWeights == nil {
					p.BillingWeights = map[string]string{}
				}
				p.BillingWeights[name] = weight
			}
		}
		all = append(all, p)
	}
	return all, nil
}

func nameList(s string) []string {
	switch s {
	case "", "ALL", "(null)", "N/A":
		return nil
	}
	return strings.Split(s, ",")
}

// addNodes reads what sinfo says about nodes: a row for each pair of partition and node.
func addNodes(partitions []Partition, out string) error {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	if lines[0] != nodeHeader {
		return noHeader(nil)
	}
	index := map[string]int{}
	for i, p := range partitions {
		index[p.Name] = i
	}
	for _, line := range lines[1:] {
		f := strings.SplitN(line, "|", 7)
		if len(f) != 7 {
			return fmt.Errorf("%w: %q", ErrIncomplete, cut(line))
		}
		i, ok := index[f[0]]
		if !ok || f[1] == "" {
			continue // a partition that was made between the two commands, or one without nodes
		}
		n := Node{Name: f[1], State: f[2], GRES: parseGRES(f[5])}
		if f[6] != "(null)" && f[6] != "" {
			n.Features = strings.Split(f[6], ",")
		}
		var err error
		if n.CPUs, err = parseCount(strings.TrimSuffix(f[3], "+")); err != nil {
			return err
		}
		if n.Memory, err = parseAmount(strings.TrimSuffix(f[4], "+"), true); err != nil {
			return err
		}
		if !slices.ContainsFunc(partitions[i].Nodes, func(o Node) bool { return o.Name == n.Name }) {
			partitions[i].Nodes = append(partitions[i].Nodes, n)
		}
	}
	return nil
}

// parseGRES parses "gpu:a100:2(S:0-1),shard:8". What it does not understand it leaves out: sites invent resources.
func parseGRES(s string) map[string]int64 {
	out := map[string]int64{}
	depth, start := 0, 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) {
			switch s[i] {
			case '(':
				depth++
			case ')':
				depth--
			}
			if s[i] != ',' || depth != 0 {
				continue
			}
		}
		item, _, _ := strings.Cut(s[start:i], "(")
		start = i + 1
		parts := strings.Split(item, ":")
		if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
			continue
		}
		n, err := strconv.ParseInt(parts[len(parts)-1], 10, 64)
		if err != nil || n < 0 || n > maxCount {
			continue
		}
		out[parts[0]] += n
		if len(parts) == 3 {
			out[parts[0]+":"+parts[1]] += n
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
