package files

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
)

// benchFiles is how many small files the benchmarks of copying and removing take. FILES_BENCH_FILES says another number.
func benchFiles(b *testing.B) int {
	n, err := strconv.Atoi(os.Getenv("FILES_BENCH_FILES"))
	if err != nil {
		return 20_000
	}
	b.Logf("%d files", n)
	return n
}

// plant makes a tree of small files, 100 in a folder, ten folders in one above.
func plant(b testing.TB, top string, n int) {
	b.Helper()
	content := bytes.Repeat([]byte("content "), 512)
	dir := ""
	for i := range n {
		if i%100 == 0 {
			dir = filepath.Join(top, fmt.Sprint(i/1000), fmt.Sprint(i/100))
			check(b, os.MkdirAll(dir, 0o750))
		}
		check(b, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), content[:i%len(content)], 0o640))
	}
}

// compare runs ours and the other program in turn and reports the ratio of the best times of both.
func compare(b *testing.B, prepare func(), ours, theirs func() error) {
	b.Helper()
	var mine, other time.Duration
	for range b.N {
		for round := range 2 {
			for turn := range 2 {
				prepare()
				what, best := ours, &mine
				if (turn+round)%2 == 1 {
					what, best = theirs, &other
				}
				begin := time.Now()
				check(b, what())
				if took := time.Since(begin); *best == 0 || took < *best {
					*best = took
				}
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(mine.Seconds(), "s")
	b.ReportMetric(other.Seconds(), "s-other")
	b.ReportMetric(mine.Seconds()/other.Seconds(), "ratio")
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func benchService(b *testing.B, base string) (*Service, *fakeTasks) {
	work := &fakeTasks{}
	s := newService(b, func(o *Options) { o.Tasks, o.Timeout = work, 10*time.Minute })
	work.s = s
	d := testDrive(base)
	must(s.drive(s.state.Load(), &d))(b)
	return s, work
}

func (f *fakeTasks) outcome(err error) error {
	if err == nil {
		err = f.failed
	}
	return err
}

// BenchmarkCopySmall copies many small files, against cp -a, both to the disk.
func BenchmarkCopySmall(b *testing.B) {
	base := b.TempDir()
	plant(b, filepath.Join(base, "tree"), benchFiles(b))
	s, work := benchService(b, base)
	to := filepath.Join(base, "copy")
	var most, before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	work.check = func(steps int) error {
		if steps%5000 == 0 {
			var now runtime.MemStats
			if runtime.ReadMemStats(&now); now.HeapInuse > most.HeapInuse {
				most = now
			}
		}
		return nil
	}
	compare(b, func() { check(b, os.RemoveAll(to)) },
		func() error { return work.outcome(copyOne(s, base, "tree", "copy", providerapi.ConflictReject)) },
		func() error {
			return command("sh", "-c", `cp -a "$1" "$2" && sync -f "$2"`, "sh", filepath.Join(base, "tree"), to)
		})
	b.ReportMetric((float64(most.HeapInuse)-float64(before.HeapInuse))/(1<<20), "MiB-grown")
}

// BenchmarkCopyLarge copies one large file, against cp -a, both to the disk.
func BenchmarkCopyLarge(b *testing.B) {
	base := b.TempDir()
	check(b, os.Mkdir(filepath.Join(base, "tree"), 0o750))
	check(b, os.WriteFile(filepath.Join(base, "tree", "large"), bytes.Repeat([]byte("content "), 32<<20), 0o640))
	s, work := benchService(b, base)
	to := filepath.Join(base, "copy")
	compare(b, func() { check(b, os.RemoveAll(to)) },
		func() error { return work.outcome(copyOne(s, base, "tree", "copy", providerapi.ConflictReject)) },
		func() error {
			return command("sh", "-c", `cp -a "$1" "$2" && sync -f "$2"`, "sh", filepath.Join(base, "tree"), to)
		})
}

// BenchmarkDeleteSmall removes many small files, against rm -rf.
func BenchmarkDeleteSmall(b *testing.B) {
	base := b.TempDir()
	n := benchFiles(b)
	s, work := benchService(b, base)
	top := filepath.Join(base, "tree")
	compare(b, func() { check(b, os.RemoveAll(top)); plant(b, top, n) },
		func() error { return work.outcome(deleteOne(s, "tree")) },
		func() error { return command("rm", "-rf", top) })
}

// BenchmarkDeleteDeep removes a tree of 10,000 levels, against rm -rf.
func BenchmarkDeleteDeep(b *testing.B) {
	base := b.TempDir()
	s, work := benchService(b, base)
	top := filepath.Join(base, "tree")
	compare(b, func() {
		check(b, os.RemoveAll(top))
		check(b, os.Mkdir(top, 0o750))
		fd, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
		check(b, err)
		for range 10_000 {
			check(b, unix.Mkdirat(fd, "d", 0o750))
			next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
			check(b, err)
			unix.Close(fd)
			fd = next
		}
		unix.Close(fd)
	}, func() error { return work.outcome(deleteOne(s, "tree")) },
		func() error { return command("rm", "-rf", top) })
}
