//go:build bench

// Command bench measures the whole system as it runs at a site and prints each figure beside its target: cold starts
// through sudo, many users at once, what idle instances cost, what the gateway adds, uploads, downloads, copies, deletions
// and searches beside what plain tools need, a directory of a million entries, and jobs: a look at a large cluster, states
// of a real Slurm at Core, key strokes in a terminal beside ssh, logs. `make bench` runs it.
//
// It starts the real programs with the simulated Core. As root it makes a service account, a sudo rule and several
// hundred users, in a private copy of /etc where that is possible, and removes them at the end, also when it is
// interrupted; what a killed run left behind is removed by the next one. As an ordinary user it skips the parts that
// need accounts, and names them.
//
// Everything that is compared is measured in the same run, in turns where that matters: ratios are worth more than
// absolute figures on a machine that does other work as well.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == loadRole {
		if err := loadMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == floodRole {
		if err := runFlood(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	withPrivateEtc()
	keepOutside()
	// The signals stay caught until the end, so that a second Ctrl-C does not interrupt the cleaning up. SIGPIPE is
	// among them because `make bench | head` must clean up as well.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	*report
	quick bool
	only  *regexp.Regexp // of the parts to measure
	root  string         // of the source tree
	bin   string         // directory with the programs to measure
	tests string         // directory with compiled test binaries
}

// amount is full, or small in a quick run.
func (b *bench) amount(full, small int) int {
	if b.quick {
		return small
	}
	return full
}

// span is full, or small in a quick run.
func (b *bench) span(full, small time.Duration) time.Duration {
	if b.quick {
		return small
	}
	return full
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	jsonFile := flags.String("json", "", "also write the figures to this file")
	quick := flags.Bool("quick", os.Getenv("BENCH_QUICK") == "1", "a smoke test of three minutes; the figures mean little")
	bin := flags.String("bin", "bin", "directory with ucloud and ucloud-user")
	only := flags.String("only", "", "measure only the parts whose name matches this regular expression")
	strict := flags.Bool("strict", false, "fail if a target is not met")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	b := &bench{report: newReport(out), quick: *quick}
	if b.only, err = regexp.Compile(*only); err != nil {
		return err
	}
	if b.root, err = filepath.Abs("."); err != nil {
		return err
	}
	if b.bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	for _, needed := range []string{filepath.Join(b.root, "go.mod"), filepath.Join(b.bin, "ucloud"), filepath.Join(b.bin, "ucloud-user")} {
		if _, err := os.Stat(needed); err != nil {
			return fmt.Errorf("%w: run this in the source tree, after `make build`", err)
		}
	}
	b.header(*quick)
	if why := os.Getenv(privateEnv); why != "" && why != "yes" {
		b.progress("no private /etc, so accounts are made in the real one: %s", why)
	}

	err = b.measure(ctx)
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	missed := b.summary()
	if *jsonFile != "" {
		err = errors.Join(err, b.writeJSON(*jsonFile))
	}
	if err == nil && *strict && missed > 0 {
		err = fmt.Errorf("%d targets are not met", missed)
	}
	return err
}

// measure runs all parts; one that fails does not stop the others. What it made is gone when it returns.
func (b *bench) measure(ctx context.Context) (err error) {
	tmp, err := os.MkdirTemp("", "imt-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	b.tests = tmp
	// First, so that the compiler does not run beside what is measured.
	b.progress("compiling the benchmarks of the packages")
	errs := []error{b.compileTests(ctx)}
	part := func(name string, f func() error) {
		if ctx.Err() != nil || !b.only.MatchString(name) {
			return
		}
		if err := f(); err != nil && ctx.Err() == nil {
			b.printf("\nfailed: %s: %v\n", name, err)
			errs = append(errs, fmt.Errorf("%s failed", name))
		}
	}
	part("single operations", func() error { return b.micro(ctx) })
	part("cluster", func() error { return b.cluster(ctx) })
	for _, p := range b.jobParts() {
		if os.Geteuid() != 0 && b.only.MatchString(p.name) {
			b.skip(p.name, fmt.Sprintf("needs root, to make accounts; this is uid %d", os.Getuid()))
			continue
		}
		part(p.name, func() error { return p.run(ctx) })
	}
	if !b.needsWorld() {
		return errors.Join(append(errs, ctx.Err())...)
	}

	w, err := newWorld(ctx, b)
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, p := range b.worldParts() {
		if p.accounts && w.site == nil {
			b.skip(p.name, fmt.Sprintf("needs root, to make accounts; this is uid %d", os.Getuid()))
			continue
		}
		part(p.name, func() error { return p.run(ctx, w) })
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// worldPart is a part that is measured in a world.
type worldPart struct {
	name     string
	accounts bool // it needs several
	run      func(context.Context, *world) error
}

// worldParts are all of them, in the order in which they run.
func (b *bench) worldParts() []worldPart {
	parts := []worldPart{
		{"cold start of an instance through sudo", true, b.coldStart},
		{"100 users in the same moment", true, b.burst},
		{"memory and CPU of idle instances", true, b.idle},
		{"latency added by the gateway", false, b.latency},
		{"flood of strangers", false, b.flood},
	}
	for _, p := range b.storageParts() {
		parts = append(parts, worldPart{p.name, false, p.run})
	}
	return append(parts, worldPart{"large directory", false, b.directory})
}

// needsWorld tells whether any part is wanted that needs a world, which takes a while to make.
func (b *bench) needsWorld() bool {
	return slices.ContainsFunc(b.worldParts(), func(p worldPart) bool { return b.only.MatchString(p.name) })
}
