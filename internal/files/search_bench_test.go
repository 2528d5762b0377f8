package files

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/providerapi"
)

// BenchmarkSearchTree searches a tree and has find(1) do the same in the same run, turn by turn. The metric to look at is
// x-find: the time of a search as a multiple of the time of find. Run it with
//
//	go test ./internal/files -run - -bench SearchTree -benchtime 5x
//
// FILES_BENCH_DIR chooses the file system.
func BenchmarkSearchTree(b *testing.B) {
	find, err := exec.LookPath("find")
	if err != nil {
		b.Skip("there is no find")
	}
	for _, shape := range []struct {
		name           string
		folders, files int
	}{{"folders", 4000, 25}, {"files", 20, 10_000}, {"one folder", 1, 200_000}} {
		b.Run(shape.name, func(b *testing.B) {
			base, err := os.MkdirTemp(os.Getenv(benchDirEnv), "ucloud-search-")
			check(b, err)
			defer os.RemoveAll(base)
			hits := searchTree(b, base, shape.folders, shape.files)
			s := searchIn(b, base, func(o *Options) { o.Settings.SearchMaxResults = 1 << 30 })
			var ours, theirs time.Duration
			var peak uint64
			for b.Loop() {
				begin := time.Now()
				found := 0
				check(b, s.Search(context.Background(), searchFor("NeedLe", "/5012", nil), func(f []providerapi.File) error {
					found += len(f)
					return nil
				}))
				ours += time.Since(begin)
				if found != hits {
					b.Fatalf("%d of %d found", found, hits)
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapSys)
				begin = time.Now()
				out, err := exec.Command(find, base, "-iname", "*needle*").Output()
				check(b, err)
				theirs += time.Since(begin)
				if n := strings.Count(string(out), "\n"); n != hits {
					b.Fatalf("find finds %d of %d", n, hits)
				}
			}
			b.ReportMetric(float64(ours)/float64(theirs), "x-find")
			b.ReportMetric(float64(theirs.Milliseconds())/float64(b.N), "find-ms")
			b.ReportMetric(float64(peak)/(1<<20), "heap-MiB")
		})
	}
}

// searchTree makes folders with files, some of which contain "needle" in their names.
func searchTree(b testing.TB, base string, folders, files int) (hits int) {
	b.Helper()
	for i := range folders {
		dir := filepath.Join(base, fmt.Sprintf("level %d", i%10), fmt.Sprintf("folder %d", i))
		check(b, os.MkdirAll(dir, 0o700))
		fd := must(unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0))(b)
		for j := range files {
			name := fmt.Sprintf("Result-%07d.dat", j)
			if (i*files+j)%500 == 0 {
				name = fmt.Sprintf("A NEEDLE %d", j)
				hits++
			}
			check(b, unix.Mknodat(fd, name, unix.S_IFREG|0o600, 0))
		}
		unix.Close(fd)
	}
	return hits
}
