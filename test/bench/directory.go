//go:build bench

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// directory measures a directory of a million entries: in the package files, which is what the targets are about, and
// all the way through gateway and instance. Both are compared with loops that do the least possible, in the same run.
func (b *bench) directory(ctx context.Context, w *world) (err error) {
	home := w.people[0].account.Home
	dir := filepath.Join(home, "ucloud-bench") // the name that the benchmarks of the package use
	// Removing a million files takes a while: say so, and do it whatever happens.
	defer func() {
		b.progress("removing the large directory")
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	entries := 1_000_000
	if b.quick {
		b.skip("a directory of 1,000,000 entries in the package files", "quick run")
		entries = 20_000
		err = fill(ctx, dir, entries)
	} else {
		err = b.millionOfPackage(ctx, home)
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	b.begin("Directory of %d entries through gateway and instance, pages of 250", entries)
	raw, err := best(3, dir, rawPass)
	if err != nil {
		return err
	}
	bare, err := best(2, dir, bareLoop)
	if err != nil {
		return err
	}
	return b.millionThroughGateway(ctx, w, entries, ms(raw), ms(bare))
}

// millionOfPackage runs the benchmarks of internal/files, which make the directory and leave it for us.
func (b *bench) millionOfPackage(ctx context.Context, home string) error {
	b.progress("making a directory of 1,000,000 entries and listing it in several ways")
	place := "FILES_BENCH_DIR=" + home
	// The sorted listing takes the best of its rounds.
	results, err := b.runTest(ctx, "files", "^BenchmarkMillionSorted$", "3x", place)
	if err != nil {
		return err
	}
	others, err := b.runTest(ctx, "files", "^BenchmarkMillion(DirectoryOrder|BySize|Memory)$", "1x", place)
	if err != nil {
		return err
	}
	maps.Copy(results, others)
	b.begin("Directory of 1,000,000 entries in the package files, pages of 250")
	var missing []error
	for _, f := range []struct {
		benchmark, key, name, unit string
		target                     *target
	}{
		{"MillionSorted", "raw-pass-ms", "bare getdents pass", "ms", nil},
		{"MillionSorted", "bare-loop-ms", "bare getdents and statx loop", "ms", nil},
		{"MillionDirectoryOrder", "page-p50-ms", "in directory order with metadata, page, p50", "ms", atMost(10)},
		{"MillionDirectoryOrder", "page-max-ms", "in directory order with metadata, slowest page", "ms", nil},
		{"MillionDirectoryOrder", "whole/bare", "in directory order with metadata, whole / bare loop", "x", atMost(1.25)},
		{"MillionSorted", "first-page-ms", "sorted by path, first page", "ms", nil},
		{"MillionSorted", "first/raw", "sorted by path, first page / bare getdents pass", "x", atMost(1.5)},
		{"MillionSorted", "later-p50-ms", "sorted by path, later pages, p50", "ms", atMost(10)},
		{"MillionSorted", "later-p99-ms", "sorted by path, later pages, p99", "ms", atMost(10)},
		{"MillionSorted", "later-max-ms", "sorted by path, later pages, slowest", "ms", nil},
		{"MillionSorted", "whole/bare", "sorted by path, whole with metadata / bare loop", "x", atMost(1.25)},
		{"MillionSorted", "whole/bare-by-1000", "the same in pages of 1,000", "x", nil},
		{"MillionBySize", "first/bare", "sorted by size, first page / bare loop", "x", nil},
		{"MillionBySize", "later-max-ms", "sorted by size, later pages, slowest", "ms", nil},
		{"MillionMemory", "before-MiB", "memory of a process that lists all, before", "MiB", nil},
		{"MillionMemory", "peak-MiB", "memory of a process that lists all, at the peak", "MiB", atMost(32)},
		{"MillionMemory", "after-idle-MiB", "memory of a process that lists all, when idle again", "MiB", nil},
	} {
		if v, ok := results[f.benchmark][f.key]; ok {
			b.add(f.name, v, f.unit, f.target)
		} else {
			missing = append(missing, fmt.Errorf("benchmark %s does not report %s", f.benchmark, f.key))
		}
	}
	return errors.Join(missing...)
}

// millionThroughGateway pages through the directory as Core would. The targets do not cover HTTP and JSON for a million
// files, so the figures stand without verdicts, but for the memory of the instance.
func (b *bench) millionThroughGateway(ctx context.Context, w *world, entries int, raw, bare float64) error {
	p := w.people[0]
	c, err := dial(w.gate)
	if err != nil {
		return err
	}
	defer c.close()
	home, err := w.homeRequest(p)
	if err != nil {
		return err
	}
	if err := c.expectOK(home); err != nil {
		return err
	}
	pid, err := w.pidOf(ctx, p.name)
	if err != nil {
		return err
	}
	// The peak starts anew here (proc(5), clear_refs); an ordinary user may not, and the instance did little before.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	before := kibibytes(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	var pages []time.Duration
	seen := 0
	var next *string
	start := time.Now()
	for more := true; more; more = next != nil {
		req, err := request(w.gate, browsePath, p.name, p.browseOf("/ucloud-bench", 250, next), "Authorization: Bearer "+w.core.ServiceToken())
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := c.expectOK(req); err != nil {
			return fmt.Errorf("page %d: %w", len(pages)+1, err)
		}
		pages = append(pages, time.Since(begun))
		// No full decoding: it would cost more than what is measured.
		seen += strings.Count(string(c.body), `"unixMode":`)
		if next, err = nextOf(c.body); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	whole := time.Since(start)
	if seen != entries {
		return fmt.Errorf("the listing has %d of %d entries", seen, entries)
	}
	b.add("bare getdents pass", raw, "ms", nil)
	b.add("bare getdents and statx loop", bare, "ms", nil)
	b.add("sorted by path, first page", ms(pages[0]), "ms", nil)
	b.add("sorted by path, first page / bare getdents pass", ms(pages[0])/raw, "x", nil)
	b.add("sorted by path, later pages, p50", quantile(pages[1:], 0.5), "ms", nil)
	b.add("sorted by path, later pages, p99", quantile(pages[1:], 0.99), "ms", nil)
	b.add("sorted by path, later pages, slowest", ms(slices.Max(pages[1:])), "ms", nil)
	b.add("sorted by path, whole with metadata", ms(whole), "ms", nil)
	b.add("sorted by path, whole with metadata / bare loop", ms(whole)/bare, "x", nil)
	b.add("memory of the instance before", float64(before)/1024, "MiB", nil)
	b.add("memory of the instance at the peak", float64(kibibytes(fmt.Sprintf("/proc/%d/status", pid), "VmHWM"))/1024, "MiB", atMost(32))
	return nil
}

// nextOf finds the token of the next page at the end of a page; nil at the end of the listing.
func nextOf(page []byte) (*string, error) {
	text := string(page)
	i := strings.LastIndex(text, `"next":`)
	if i < 0 {
		return nil, fmt.Errorf("a page without next: %.200s", text)
	}
	var next *string
	err := json.NewDecoder(strings.NewReader(text[i+len(`"next":`):])).Decode(&next)
	return next, err
}

// fill makes a directory of empty files.
func fill(ctx context.Context, dir string, entries int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range entries {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("Result-%07d.dat", (i*7919)%entries)), nil, 0o644); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// rawPass is one pass of getdents64 over a directory: the least that knows all names.
func rawPass(path string) (time.Duration, error) { return walk(path, nil) }

// bareLoop is getdents64 and a statx of every entry, in one thread: the least that knows all metadata.
func bareLoop(path string) (time.Duration, error) {
	var st unix.Statx_t
	return walk(path, func(dir int, name string) error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	})
}

// best is the shortest of n runs: the comparison is with what the machine can do, not with what else it does.
func best(n int, path string, loop func(string) (time.Duration, error)) (shortest time.Duration, err error) {
	for i := range n {
		took, err := loop(path)
		if err != nil {
			return 0, err
		}
		if i == 0 || took < shortest {
			shortest = took
		}
	}
	return shortest, nil
}

func walk(path string, each func(dir int, name string) error) (time.Duration, error) {
	start := time.Now()
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(dir, buf)
		if err != nil || n == 0 {
			return time.Since(start), err
		}
		if each == nil {
			continue
		}
		for rest := buf[:n]; len(rest) > 0; { // struct linux_dirent64, getdents(2)
			size := int(rest[16]) | int(rest[17])<<8
			if err := each(dir, unix.ByteSliceToString(rest[19:size])); err != nil {
				return 0, err
			}
			rest = rest[size:]
		}
	}
}
