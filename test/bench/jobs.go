//go:build bench

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// figuresPackage is the test binary of the package test with what it measures. It makes a world of its own: jobs of a real
// Slurm need accounts that Slurm's daemons know, and those of this program may be in a private /etc.
const figuresPackage = "figures"

// jobPart is a part that needs no world.
type jobPart struct {
	name string
	run  func(context.Context) error
}

func (b *bench) jobParts() []jobPart {
	return []jobPart{
		{"latency of states of jobs", b.states},
		{"keystroke", b.keystroke},
		{"logs", b.logs},
	}
}

// measured runs one of the tests that measure, outside of a private /etc, and gives the figures by name and unit. An
// interrupt waits for its end, a minute or two: a test that is killed leaves its accounts behind.
func (b *bench) measured(ctx context.Context, test string, names ...string) (map[string]map[string]float64, error) {
	args := append(outside(filepath.Join(b.root, "test")), b.testBinary(figuresPackage), "-test.run=^"+test+"$", "-test.timeout=10m")
	defer context.AfterFunc(ctx, func() { b.progress("waiting for %s, which removes its accounts", test) })()
	cmd := command(context.WithoutCancel(ctx), args[0], args[1:]...)
	cmd.Env = os.Environ()
	if b.quick {
		cmd.Env = append(cmd.Env, "BENCH_QUICK=1")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", test, err, out[:min(len(out), 4000)])
	}
	results, err := parseBenchmarks(out)
	for _, name := range names {
		if _, ok := results[name]; !ok && err == nil {
			err = fmt.Errorf("%s gives no %s: %s", test, name, out[:min(len(out), 4000)])
		}
	}
	return results, err
}

// states measures how long it takes until Core knows that a job was suspended or goes on, in a real Slurm.
func (b *bench) states(ctx context.Context) error {
	b.begin("From a change of state in a real Slurm to the update at Core")
	names, texts := []string{"Latency/Second"}, []string{"jobs looked at every second"}
	if !b.quick {
		names, texts = append(names, "Latency/Default"), append(texts, "by default, every 15 s")
	}
	results, err := b.measured(ctx, "TestFigureLatency", names...)
	if err != nil {
		return err
	}
	for i, name := range names {
		for _, q := range []string{"p50", "p99", "max"} {
			b.add(texts[i]+", "+q, results[name][q+"-ms"]/1000, "s", nil)
		}
	}
	return nil
}

// keystroke measures the echo of a key in a terminal through the gateway and in plain ssh to this machine, in turns.
func (b *bench) keystroke(ctx context.Context) error {
	b.begin("A key in a terminal and its echo by cat, through gateway and instance, and over ssh to this machine")
	results, err := b.measured(ctx, "TestFigureKeystroke", "Keystroke/Gateway", "Keystroke/SSH")
	if err != nil {
		return err
	}
	ours, plain := results["Keystroke/Gateway"], results["Keystroke/SSH"]
	for _, q := range []string{"p50", "p99"} {
		b.add("gateway, "+q, ours[q+"-ms"], "ms", nil)
		b.add("ssh, "+q, plain[q+"-ms"], "ms", nil)
		b.add("gateway / ssh, "+q, ours[q+"-ms"]/plain[q+"-ms"], "x", nil)
	}
	return nil
}

// logs measures how fast the log of a job comes to Core.
func (b *bench) logs(ctx context.Context) error {
	b.begin("The log of a job of a real Slurm through instance and gateway to Core")
	results, err := b.measured(ctx, "TestFigureLogs", "Logs/Live", "Logs/Finished")
	if err != nil {
		return err
	}
	b.add("while the job writes it", results["Logs/Live"]["MiB/s"], "MiB/s", nil)
	b.add("after its end, from the beginning", results["Logs/Finished"]["MiB/s"], "MiB/s", nil)
	return nil
}
