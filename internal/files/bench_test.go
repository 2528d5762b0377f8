package files

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/providerapi"
)

// The benchmarks compare with what the kernel needs for the same directory in the same run: one pass of getdents64, and
// a bare loop of getdents64 and statx in one thread. Run them with
//
//	go test ./internal/files -run - -bench Million -benchtime 1x
//
// FILES_BENCH_DIR chooses the place of the directory, so that several file systems can be tried; there it is kept for
// the next run.
const (
	millionEntries = 1_000_000
	benchDirEnv    = "FILES_BENCH_DIR"
)

var million struct {
	sync.Once
	dir string
	err error
}

// millionDirectory makes a directory of a million empty files with names of 18 bytes, once for all benchmarks.
func millionDirectory(b *testing.B) string {
	b.Helper()
	million.Do(func() {
		if kept := os.Getenv(benchDirEnv); kept != "" {
			million.dir = filepath.Join(kept, "ucloud-bench")
			if _, err := os.Stat(filepath.Join(million.dir, fmt.Sprintf("Result-%07d.dat", millionEntries-7919))); err == nil {
				return
			}
			million.err = os.MkdirAll(million.dir, 0o700)
		} else {
			million.dir, million.err = os.MkdirTemp("", "ucloud-bench-")
		}
		if million.err != nil {
			return
		}
		var dir int
		if dir, million.err = unix.Open(million.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0); million.err != nil {
			return
		}
		defer unix.Close(dir)
		for i := range millionEntries {
			var fd int
			// The names come in no order, as if many jobs had written them.
			name := fmt.Sprintf("Result-%07d.dat", (i*7919)%millionEntries)
			if fd, million.err = unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY, 0o600); million.err != nil {
				return
			}
			unix.Close(fd)
		}
		time.Sleep(racySlack + 100*time.Millisecond)
	})
	if million.err != nil {
		b.Fatal(million.err)
	}
	return million.dir
}

func removeBenchDirectory() {
	if million.dir != "" && os.Getenv(benchDirEnv) == "" {
		os.RemoveAll(million.dir)
	}
}

// rawPass is one pass of getdents64.
func rawPass(b testing.TB, path string) time.Duration {
	b.Helper()
	start := time.Now()
	fd := must(unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0))(b)
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	for {
		if n := must(unix.Getdents(fd, buf))(b); n == 0 {
			return time.Since(start)
		}
	}
}

// bareLoop is getdents64 and statx of every entry, in one thread.
func bareLoop(b testing.TB, path string) time.Duration {
	b.Helper()
	start := time.Now()
	fd := must(unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0))(b)
	defer unix.Close(fd)
	buf := make([]byte, 32<<10)
	var st unix.Statx_t
	for {
		n := must(unix.Getdents(fd, buf))(b)
		if n == 0 {
			return time.Since(start)
		}
		for rest := buf[:n]; len(rest) > 0; {
			size := int(rest[16]) | int(rest[17])<<8
			name := unix.ByteSliceToString(rest[19:size])
			rest = rest[size:]
			check(b, unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st))
		}
	}
}

// best is the shortest of a few runs.
func best(n int, run func() time.Duration) time.Duration {
	shortest := run()
	for range n - 1 {
		shortest = min(shortest, run())
	}
	return shortest
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// listAll pages through the whole listing and gives the time of each page.
func listAll(s *Service, base string, size int, change func(*providerapi.BrowseParams)) (pages []time.Duration, entries int, err error) {
	req := browseRequest(base, "", change)
	req.Browse.ItemsPerPage = size
	for {
		start := time.Now()
		page, err := s.Browse(context.Background(), req)
		if err != nil {
			return nil, 0, err
		}
		pages = append(pages, time.Since(start))
		entries += len(page.Items)
		if page.Next == nil {
			return pages, entries, nil
		}
		req.Browse.Next = page.Next
	}
}

// BenchmarkMillionSorted measures a listing sorted by path, from the first page to the last. Each time is the best of all
// rounds, and the kernel's own times are taken in the same rounds, so that other work on the machine disturbs little.
func BenchmarkMillionSorted(b *testing.B) {
	dir := millionDirectory(b)
	rawPass(b, dir)
	const never = time.Duration(1<<63 - 1)
	raw, bare, first, median, late, slowest, whole, large := never, never, never, never, never, never, never, never
	for b.Loop() {
		raw = min(raw, rawPass(b, dir))
		bare = min(bare, bareLoop(b, dir))
		start := time.Now()
		pages, entries, err := listAll(newService(b, nil), dir, 250, nil)
		whole = min(whole, time.Since(start))
		check(b, err)
		if entries != millionEntries {
			b.Fatalf("got %d entries", entries)
		}
		first = min(first, pages[0])
		later := slices.Sorted(slices.Values(pages[1:]))
		median, late = min(median, later[len(later)/2]), min(late, later[len(later)*99/100])
		slowest = min(slowest, later[len(later)-1])

		start = time.Now()
		_, _, err = listAll(newService(b, nil), dir, 1000, nil)
		large = min(large, time.Since(start))
		check(b, err)
	}
	b.ReportMetric(ms(raw), "raw-pass-ms")
	b.ReportMetric(ms(bare), "bare-loop-ms")
	b.ReportMetric(ms(first), "first-page-ms")
	b.ReportMetric(float64(first)/float64(raw), "first/raw")
	b.ReportMetric(ms(median), "later-p50-ms")
	b.ReportMetric(ms(late), "later-p99-ms")
	b.ReportMetric(ms(slowest), "later-max-ms")
	b.ReportMetric(float64(whole)/float64(bare), "whole/bare")
	b.ReportMetric(float64(large)/float64(bare), "whole/bare-by-1000")
}

// BenchmarkMillionBySize measures the first pages of a listing sorted by size, which needs a look at every inode.
func BenchmarkMillionBySize(b *testing.B) {
	dir := millionDirectory(b)
	bare := best(2, func() time.Duration { return bareLoop(b, dir) })
	for b.Loop() {
		s := newService(b, func(o *Options) { o.ScanWait = time.Minute })
		pages := make([]time.Duration, 0, 100)
		req := browseRequest(dir, "", func(p *providerapi.BrowseParams) { p.SortBy = ptr(providerapi.SortBySize) })
		for range 100 {
			start := time.Now()
			page, err := s.Browse(context.Background(), req)
			check(b, err)
			pages = append(pages, time.Since(start))
			req.Browse.Next = page.Next
		}
		b.ReportMetric(ms(pages[0]), "first-page-ms")
		b.ReportMetric(float64(pages[0])/float64(bare), "first/bare")
		b.ReportMetric(ms(slices.Max(pages[1:])), "later-max-ms")
	}
}

// BenchmarkMillionDirectoryOrder measures pages in the order of the directory, as internal walks use them.
func BenchmarkMillionDirectoryOrder(b *testing.B) {
	path := millionDirectory(b)
	bare := best(2, func() time.Duration { return bareLoop(b, path) })
	d := testDrive(path)
	ref := must(drives.New(testProvider, drives.FollowDrive).Drive(&d))(b)
	for b.Loop() {
		root := must(ref.Open())(b)
		dir := must(must(root.At(must(ref.Path("/5012"))(b)))(b).OpenDir())(b)
		var pages []time.Duration
		var cursor drives.Cursor
		entries := 0
		start := time.Now()
		for more := true; more; {
			begin := time.Now()
			var err error
			cursor, more, err = dir.Page(cursor, 250, func(e drives.Entry) error {
				entries++
				_, err := dir.Stat(string(e.Name))
				return err
			})
			check(b, err)
			pages = append(pages, time.Since(begin))
		}
		whole := time.Since(start)
		if entries != millionEntries {
			b.Fatalf("got %d entries", entries)
		}
		slices.Sort(pages)
		b.ReportMetric(ms(pages[len(pages)/2]), "page-p50-ms")
		b.ReportMetric(ms(pages[len(pages)-1]), "page-max-ms")
		b.ReportMetric(float64(whole)/float64(bare), "whole/bare")
		dir.Close()
		root.Close()
	}
}

// BenchmarkMillionMemory measures the peak resident memory of a process that lists everything.
func BenchmarkMillionMemory(b *testing.B) {
	dir := millionDirectory(b)
	for b.Loop() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		check(b, err)
		var m childMemory
		check(b, json.Unmarshal(out, &m))
		b.ReportMetric(m.Before, "before-MiB")
		b.ReportMetric(m.Peak, "peak-MiB")
		b.ReportMetric(m.Idle, "after-idle-MiB")
	}
}

type childMemory struct{ Before, Peak, Idle float64 }

func listInChild(dir string) error {
	var m childMemory
	m.Before = statusMiB("VmRSS")
	s := New(Options{
		Provider: testProvider, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), IndexIdle: 100 * time.Millisecond,
		Timeout: time.Minute,
	})
	_, entries, err := listAll(s, dir, 250, nil)
	if err != nil {
		return err
	}
	if entries != millionEntries {
		return fmt.Errorf("got %d entries", entries)
	}
	m.Peak = statusMiB("VmHWM")
	time.Sleep(2500 * time.Millisecond)
	m.Idle = statusMiB("VmRSS")
	return json.NewEncoder(os.Stdout).Encode(m)
}

// statusMiB reads a number from /proc/self/status.
func statusMiB(key string) float64 {
	text, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(text), key+":")
	var kib float64
	_, _ = fmt.Sscan(rest, &kib)
	return kib / 1024
}

// BenchmarkBrowseThousand is the usual case: a page of 50 out of 1,000 entries.
func BenchmarkBrowseThousand(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		touch(b, dir, fmt.Sprintf("file-%04d.txt", i))
	}
	check(b, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	s := newService(b, nil)
	req := browseRequest(dir, "", nil)
	req.Browse.ItemsPerPage = 50
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Browse(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}
