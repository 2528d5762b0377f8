//go:build bench

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// micros are the benchmarks of packages that are shown, with the figures that experiments before the first line of code
// gave for the same operation: the design counts on them.
var micros = []struct {
	pkg, pattern string
	shown        []micro
}{
	{"hoptoken", "^Benchmark(Mint|Verify)$", []micro{
		{"Mint", "mint a hop token", atMost(4)}, {"Verify", "verify a hop token", atMost(4)},
	}},
	{"auth", "^BenchmarkVerifyCore(Cached|Uncached)$", []micro{
		{"VerifyCoreCached", "verify Core's token, seen before", nil}, {"VerifyCoreUncached", "verify Core's token, RS256", nil},
	}},
	{"gateway", "^BenchmarkBuckets$", []micro{
		{"Buckets/one_address", "count a request of an address", atMost(1)}, {"Buckets/new_addresses", "the same, each of another one, in a full table", nil},
	}},
	{"intent", "^Benchmark(Check(RS256|Ed25519|Repeated)|Off|DigestOfJob)$", []micro{
		{"Off", "signed intents, switched off", atMost(2)},
		{"CheckRS256", "verify an intent, RSA of 2048 bits", nil},
		{"CheckEd25519", "verify an intent of form 2, Ed25519, with its payload", nil},
		{"CheckRepeated", "verify an intent, seen before", nil},
		{"DigestOfJob", "digest of the payload of a submission", nil},
	}},
	{"sockdiag", "^Benchmark(Lookup|ProcNetTCP)$", []micro{
		{"Lookup", "whose is this connection, sock_diag", nil}, {"ProcNetTCP", "the same through /proc/net/tcp", nil},
	}},
	{"store", "^Benchmark(Update|MappingByUID)$/^sqlite$", []micro{
		{"Update/sqlite", "one durable change in SQLite", nil}, {"MappingByUID/sqlite", "whose is this uid, SQLite", nil},
	}},
	{"files", "^BenchmarkBrowseThousand$", []micro{
		{"BrowseThousand", "a page of 50 out of 1,000 entries, without HTTP", nil},
	}},
	{"terminal", "^BenchmarkEcho(Plain)?$", []micro{
		{"Echo", "a key stroke in a terminal and its echo, without the gateway", nil}, {"EchoPlain", "the same in a pseudo-terminal alone", nil},
	}},
	{"joblogs", "^BenchmarkFollow$", []micro{{"Follow", "16 MiB of a log to Core", nil}}},
}

// micro is one line. The targets are in microseconds.
type micro struct {
	name, text string
	target     *target
}

// compileTests builds the test binaries of all packages whose benchmarks are called.
func (b *bench) compileTests(ctx context.Context) error {
	var errs []error
	var packages []string
	if b.only.MatchString("cluster") {
		packages = append(packages, "slurm", "jobs")
	}
	if b.only.MatchString("single operations") {
		for _, m := range micros {
			packages = append(packages, m.pkg)
		}
	}
	if slices.ContainsFunc(b.jobParts(), func(p jobPart) bool { return b.only.MatchString(p.name) }) {
		packages = append(packages, figuresPackage)
	}
	for _, pkg := range packages {
		args := []string{"test", "-c", "-o", b.testBinary(pkg), "./internal/" + pkg}
		if pkg == figuresPackage {
			args = []string{"test", "-c", "-tags", "e2e,bench", "-o", b.testBinary(pkg), "./test"}
		}
		cmd := command(ctx, "go", args...)
		cmd.Dir = b.root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("compile the benchmarks of %s: %w: %s", pkg, err, out))
		}
	}
	return errors.Join(errs...)
}

func (b *bench) testBinary(pkg string) string { return filepath.Join(b.tests, pkg+".test") }

// micro measures single operations.
func (b *bench) micro(ctx context.Context) error {
	b.begin("Single operations")
	var errs []error
	for _, m := range micros {
		results, err := b.runTest(ctx, m.pkg, m.pattern, b.span(500*time.Millisecond, 20*time.Millisecond).String())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, s := range m.shown {
			if r, ok := results[s.name]; ok {
				b.add(s.text, r["ns/op"]/1000, "us", s.target)
			} else {
				errs = append(errs, fmt.Errorf("%s has no benchmark %s", m.pkg, s.name))
			}
		}
	}
	return errors.Join(errs...)
}

// runTest runs benchmarks of a package and gives their figures by name and unit.
func (b *bench) runTest(ctx context.Context, pkg, pattern, benchTime string, env ...string) (map[string]map[string]float64, error) {
	cmd := command(ctx, b.testBinary(pkg), "-test.run=^$", "-test.bench="+pattern, "-test.benchtime="+benchTime, "-test.timeout=10m")
	cmd.Dir = filepath.Join(b.root, "internal", pkg) // as go test does
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("benchmarks of %s: %w: %s", pkg, err, out)
	}
	return parseBenchmarks(out)
}

// command makes a command whose process group ends with the context: test binaries start programs of their own.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// parseBenchmarks reads lines such as "BenchmarkUpdate/sqlite-2  1000  123 ns/op  4.5 other-unit".
func parseBenchmarks(out []byte) (map[string]map[string]float64, error) {
	results := map[string]map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		name, ok := strings.CutPrefix(lines.Text(), "Benchmark")
		f := strings.Fields(name)
		if !ok || len(f) < 4 {
			continue
		}
		name = f[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 { // the number of processors
			name = name[:i]
		}
		results[name] = map[string]float64{}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("benchmark line %q: %w", lines.Text(), err)
			}
			results[name][f[i+1]] = v
		}
	}
	return results, lines.Err()
}
