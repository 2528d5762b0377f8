package slurm

import (
	"context"
	"fmt"
	"strings"
)

// NodeAddress is where a node is reached: its NodeAddr, which is its name where the configuration has nothing else
// (slurm.conf(5)).
func (c *Client) NodeAddress(ctx context.Context, node string) (string, error) {
	if !validHost(node) {
		return "", fmt.Errorf("%q is no name of a node", node)
	}
	out, err := c.output(ctx, command{program: "scontrol", args: []string{"--oneliner", "show", "node", node}})
	if err != nil {
		return "", fmt.Errorf("scontrol show node: %w", err)
	}
	for field := range strings.FieldsSeq(out) {
		if address, ok := strings.CutPrefix(field, "NodeAddr="); ok && address != "" {
			return address, nil
		}
	}
	return "", fmt.Errorf("scontrol show node %s: no address: %w", node, ErrIncomplete)
}
