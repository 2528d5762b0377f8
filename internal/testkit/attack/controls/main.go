// Program controls removes the control of each attack that tests name (package attack), runs the test, and demands that
// it fails. `make controls` runs it; see CONTRIBUTING.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"ucloud-im/internal/testkit/attack"
)

func main() {
	only := flag.String("only", "", "only attacks whose id or actor matches this regular expression")
	shard := flag.String("shard", "1/1", "i/n: the i-th of n parts")
	timeout := flag.Duration("timeout", 4*time.Minute, "of one test")
	baseline := flag.Bool("baseline", true, "run each test with its control first, and demand that it passes")
	list := flag.Bool("list", false, "only print the attacks' ids")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, *only, *shard, *list, attack.Runner{Timeout: *timeout, Baseline: *baseline})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context, only, shard string, list bool, runner attack.Runner) (bool, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return false, err
	}
	attacks, err := attack.Load(root)
	if err != nil {
		return false, err
	}
	want, err := regexp.Compile(only)
	if err != nil {
		return false, err
	}
	var part, parts int
	if _, err := fmt.Sscanf(shard, "%d/%d", &part, &parts); err != nil || part < 1 || parts < part {
		return false, fmt.Errorf("a shard is i/n, with i from 1 to n, not %q", shard)
	}
	// Polite to whoever else works on the machine.
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10); err != nil {
		return false, err
	}
	runner.Root = root
	counts := map[attack.Verdict]int{}
	tried := 0
	for i, a := range attacks {
		if i%parts != part-1 || !want.MatchString(a.ID()) && !want.MatchString(a.Actor) {
			continue
		}
		tried++
		if list {
			fmt.Println(a.ID())
			continue
		}
		res, err := runner.Try(ctx, a)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			return false, err
		}
		counts[res.Verdict]++
		fmt.Printf("%-18s %6.1fs  %s\n", res.Verdict, res.Took.Seconds(), a.ID())
		if res.Verdict != attack.Noticed {
			fmt.Printf("  %s:%d: %s\n%s\n", a.File, a.Line, a.Control, indent(res.Detail))
		}
	}
	if list {
		return true, nil
	}
	fmt.Printf("%d attacks, %d noticed", tried, counts[attack.Noticed])
	for _, v := range []attack.Verdict{attack.Missed, attack.Broken, attack.Unfit, attack.Hung, attack.Skipped} {
		if counts[v] > 0 {
			fmt.Printf(", %d %s", counts[v], v)
		}
	}
	fmt.Println()
	return tried > 0 && counts[attack.Noticed] == tried, nil
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}
