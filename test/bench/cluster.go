//go:build bench

package main

import (
	"context"
	"errors"
)

// cluster measures one look at a cluster with 100,000 jobs, with programs that print as fast as the pipe takes it in the
// place of Slurm's (package testkit/slurmfake).
func (b *bench) cluster(ctx context.Context) error {
	b.begin("A cluster with 100,000 jobs")
	results, err := b.runTest(ctx, "slurm", "^BenchmarkRound$", "10x")
	if err != nil {
		return err
	}
	r, ok := results["Round"]
	if !ok {
		return errors.New("slurm has no benchmark Round")
	}
	b.add("one listing of all jobs", r["ns/op"]/1e9, "s", atMost(0.3))
	b.add("memory of the process at its peak", r["peak-MiB"], "MiB", atMost(64))
	return nil
}
