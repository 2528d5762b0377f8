// Program fuzzlong runs each fuzz target for a given CPU time, and checks what the target needs of memory. `make
// fuzz-long` runs it; findings are written into testdata/fuzz of the package, where they become regression tests.
//
// CPU time is counted, not time on the wall: a busy machine makes the run longer, not shallower. A target has one worker.
//
// Memory: afterwards all inputs of the corpus that fuzzing has found run once more, without the engine. The peak of the
// resident set may exceed that of a run with the seeds alone by 10 times the largest input and a constant for the
// collector's slack.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	factor   = 10
	constant = 48 << 20
)

func main() {
	cpu := flag.Duration("cpu", time.Minute, "CPU time of each target")
	only := flag.String("only", "", "only targets whose name (package.Target) matches this regular expression")
	list := flag.Bool("list", false, "only print the targets")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, *cpu, *only, *list)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// target is one fuzz target.
type target struct {
	dir  string // of the package, from the root
	name string
}

func (t target) String() string { return strings.TrimPrefix(t.dir, "internal/") + "." + t.name }

var declaration = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)

// find gives all fuzz targets below a directory.
func find(root string) (all []target, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || !strings.HasSuffix(d.Name(), "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range declaration.FindAllSubmatch(src, -1) {
			all = append(all, target{filepath.Dir(path), string(m[1])})
		}
		return nil
	})
	return all, err
}

func run(ctx context.Context, cpu time.Duration, only string, list bool) (bool, error) {
	want, err := regexp.Compile(only)
	if err != nil {
		return false, err
	}
	all, err := find("internal")
	if err != nil {
		return false, err
	}
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 15); err != nil {
		return false, err
	}
	work, err := os.MkdirTemp("", "fuzz-long-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(work)
	binaries := map[string]string{}
	good, bad := 0, 0
	for _, t := range all {
		if !want.MatchString(t.String()) {
			continue
		}
		if list {
			fmt.Println(t)
			continue
		}
		binary := binaries[t.dir]
		if binary == "" {
			binary = filepath.Join(work, strings.ReplaceAll(t.dir, "/", "_"))
			build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-fuzz", ".", "-o", binary, "./"+t.dir)
			if out, err := build.CombinedOutput(); err != nil {
				return false, fmt.Errorf("build the tests of %s: %w\n%s", t.dir, err, out)
			}
			binaries[t.dir] = binary
		}
		r, err := fuzz(ctx, t, binary, filepath.Join(work, "cache"), cpu)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			return false, err
		}
		fmt.Println(r)
		if r.wrong == "" {
			good++
		} else {
			bad++
		}
	}
	if !list {
		fmt.Printf("%d targets, %d without a finding\n", good+bad, good)
	}
	return bad == 0, nil
}

// report is what came of one target.
type report struct {
	target      target
	cpu         time.Duration
	execs       string
	corpus      int
	largest     int64 // input of the corpus, bytes
	seeds, peak int64 // resident set, bytes
	wrong       string
}

func (r report) String() string {
	const mib = 1 << 20
	line := fmt.Sprintf("%-40s %5.0f s CPU  %11s runs  %5d inputs, up to %7d bytes  memory %4d MiB, seeds alone %4d MiB",
		r.target, r.cpu.Seconds(), r.execs, r.corpus, r.largest, r.peak/mib, r.seeds/mib)
	if r.wrong != "" {
		line += "\n  FINDING: " + r.wrong
	}
	return line
}

var execsOf = regexp.MustCompile(`execs: (\d+)`)

// fuzz runs a target until it has had its time.
func fuzz(ctx context.Context, t target, binary, cache string, cpu time.Duration) (report, error) {
	r := report{target: t, execs: "0"}
	dir := filepath.Join(cache, t.String())
	execs := 0
	for tries := 0; r.cpu < cpu && tries < 100; tries++ {
		out, usage, failed, err := once(ctx, t, binary, dir, max(time.Second, cpu-r.cpu).Round(time.Second).String())
		if err != nil {
			return r, err
		}
		r.cpu += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
		if all := execsOf.FindAllStringSubmatch(out, -1); len(all) > 0 {
			n := 0
			fmt.Sscan(all[len(all)-1][1], &n) //nolint:errcheck // digits
			execs += n
		}
		r.execs = fmt.Sprint(execs)
		if failed != "" {
			r.wrong = failed
			return r, nil
		}
	}
	return r, r.memory(ctx, binary, filepath.Join(dir, t.name))
}

// memory runs the corpus without the engine. It does so from a directory beside the package that looks like it, because
// a test finds its inputs in testdata.
func (r *report) memory(ctx context.Context, binary, corpus string) error {
	place, err := os.MkdirTemp(filepath.Dir(r.target.dir), ".fuzz-long-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(place)
	inputs := filepath.Join(place, "testdata", "fuzz", r.target.name)
	if err := os.MkdirAll(inputs, 0o755); err != nil {
		return err
	}
	for _, sub := range []string{".", "testdata"} {
		from, err := filepath.Abs(filepath.Join(r.target.dir, sub))
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(from)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if e.Name() == "testdata" || sub == "testdata" && e.Name() == "fuzz" {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(place, sub, e.Name())); err != nil {
				return err
			}
		}
	}
	if r.seeds, err = r.replay(ctx, binary, place); err != nil {
		return err
	}
	found, err := os.ReadDir(corpus)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range found {
		data, err := os.ReadFile(filepath.Join(corpus, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(inputs, e.Name()), data, 0o644); err != nil {
			return err
		}
		r.corpus++
		r.largest = max(r.largest, int64(len(data)))
	}
	if r.peak, err = r.replay(ctx, binary, place); err != nil {
		return err
	}
	if allowed := r.seeds + factor*r.largest + constant; r.peak > allowed {
		r.wrong = fmt.Sprintf("memory: %d bytes, at most %d are allowed", r.peak, allowed)
	}
	return nil
}

// replay runs the target as an ordinary test, and gives the peak of its resident set.
func (r *report) replay(ctx context.Context, binary, dir string) (int64, error) {
	cmd := exec.CommandContext(ctx, binary, "-test.run=^"+r.target.name+"$")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("replay %s: %w\n%s", r.target, err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, errors.New("the system does not tell what a process used")
	}
	return usage.Maxrss << 10, nil
}

// once runs a target for some time or number of inputs. failed is not empty if an input fails.
func once(ctx context.Context, t target, binary, cache, length string) (text string, usage *syscall.Rusage, failed string, err error) {
	cmd := exec.CommandContext(ctx, binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.fuzztime="+length,
		"-test.fuzzcachedir="+cache, "-test.parallel=1", "-test.fuzzminimizetime=1s", "-test.timeout=0")
	var out bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = t.dir, &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", nil, "", fmt.Errorf("run %s: %w", t, err)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return "", nil, "", errors.New("the system does not tell what a process used")
	}
	text = out.String()
	// The end of the time itself is sometimes reported as a failure, without an input that fails (scripts/fuzz).
	if err != nil && (strings.Contains(text, "Failing input written") || !strings.Contains(text, "context deadline exceeded")) {
		failed = text
	}
	return text, usage, failed, nil
}
