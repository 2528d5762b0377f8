package transfers

import (
	"fmt"
	"testing"
)

// BenchmarkTransfer sends a large file, and many small ones, between two services over loopback sockets, without TLS and
// without flushing. The passes that find everything there are part of it.
func BenchmarkTransfer(b *testing.B) {
	for _, protocol := range offered {
		b.Run(protocol+"/large", func(b *testing.B) {
			const size = 256 << 20
			from, to := newSite(b, "a", nil), newSite(b, "b", nil)
			plant(b, from.dir, map[string]string{"file": content(1, size)})
			b.SetBytes(size)
			n := 0
			for b.Loop() {
				if err := from.transfer.runSend(b.Context(), steps(b, from, to, "/file", fmt.Sprintf("/copy%d", n), protocol)); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
		b.Run(protocol+"/small", func(b *testing.B) {
			const count = 5000
			from, to := newSite(b, "a", nil), newSite(b, "b", nil)
			tree := map[string]string{}
			for i := range count {
				tree[fmt.Sprintf("%d/%d", i%50, i)] = content(uint64(i), 1000)
			}
			plant(b, from.dir+"/data", tree)
			n := 0
			for b.Loop() {
				if err := from.transfer.runSend(b.Context(), steps(b, from, to, "/data", fmt.Sprintf("/in%d", n), protocol)); err != nil {
					b.Fatal(err)
				}
				n++
			}
			b.ReportMetric(float64(count*n)/b.Elapsed().Seconds(), "files/s")
		})
	}
}
