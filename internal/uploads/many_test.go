package uploads

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/uploads/client"
)

// TestManySmallFiles: the memory of the process, client and server together, is the same after many files as after a few.
// BenchmarkManySmallFiles does the same with 100,000.
func TestManySmallFiles(t *testing.T) { // not in parallel: others would be measured too
	manySmallFiles(t, rounds(10_000, 2_000))
}

// BenchmarkManySmallFiles uploads 100,000 files in one session.
func BenchmarkManySmallFiles(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		took, grown := manySmallFiles(b, n)
		b.ReportMetric(n/took.Seconds(), "files/s")
		b.ReportMetric(float64(grown)/(1<<20), "MiB-grown")
	}
}

func manySmallFiles(t testing.TB, n int) (took time.Duration, grown int64) {
	w := newWorld(t, t.TempDir(), nil)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	early, most := int64(0), int64(0)
	content := pattern(7, 100)
	var read atomic.Int64
	began := time.Now()
	res := send(t, w.session("/in", folder, rename), uploadclient.Options{Ahead: 2000}, func(yield func(*uploadclient.File, error) bool) {
		for i := range n {
			if i == n/10 {
				early = heap()
			} else if i > n/10 && i%(n/10) == 0 {
				most = max(most, heap())
			}
			if !yield(fileOf(fmt.Sprintf("d%d/f%d", i/500, i), content, &read), nil) {
				return
			}
		}
	})
	took = time.Since(began)
	if res.Completed != int64(n) || res.Sent != int64(n) {
		t.Errorf("%+v", res)
	}
	if grown = most - early; grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes, from %d", grown, early)
	}
	w.settle()
	got := tree(t, w.dir)
	if want := n + (n+499)/500 + 1; len(got) != want {
		t.Errorf("%d entries, want %d", len(got), want)
	}
	for name, c := range got {
		if c != "/" && c != string(content) {
			t.Fatalf("%s has other content", name)
		}
	}
	return took, grown
}
