//go:build bench

package main

import (
	"context"
	"errors"
	"fmt"
)

// cluster measures a look at a cluster with 100,000 jobs, with programs that print as fast as the pipe takes it in the place
// of Slurm's (package testkit/slurmfake): the listings alone, and the whole monitor while nobody and while 1,000 users watch.
func (b *bench) cluster(ctx context.Context) error {
	b.begin("A cluster with 100,000 jobs")
	results, err := b.runTest(ctx, "slurm", "^BenchmarkRound(Accounting)?$", fmt.Sprintf("%dx", b.amount(10, 2)))
	if err != nil {
		return err
	}
	for _, half := range []struct{ name, program string }{{"Round", "squeue"}, {"RoundAccounting", "sacct"}} {
		r, ok := results[half.name]
		if !ok {
			return fmt.Errorf("slurm has no benchmark %s", half.name)
		}
		b.add("one listing of all jobs by "+half.program, r["ns/op"]/1e9, "s", atMost(0.3))
		b.add("memory of the process at its peak", r["peak-MiB"], "MiB", atMost(64))
	}
	if results, err = b.runTest(ctx, "jobs", "^BenchmarkWatched$", fmt.Sprintf("%dx", b.amount(3, 1))); err != nil {
		return err
	}
	quiet, ok1 := results["Watched/0"]
	watched, ok2 := results["Watched/1000"]
	if !ok1 || !ok2 {
		return errors.New("jobs has no benchmark Watched")
	}
	for _, c := range []struct {
		who string
		r   map[string]float64
	}{{"nobody watches", quiet}, {"1,000 users watch", watched}} {
		b.add("a round of the monitor, squeue and sacct, "+c.who, c.r["round-s"], "s", nil)
		b.add("memory of the process at its peak, with a simulated Core", c.r["peak-MiB"], "MiB", nil)
		b.add("queries of Slurm in a round, "+c.who, c.r["queries/round"], "", atMost(2))
		b.add("queries of Slurm in a minute at an interval of 1 s, "+c.who, c.r["queries/min"], "1/min", atMost(120))
	}
	return nil
}
