package downloads

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkDownload fetches one large file, and a folder as zip, and compares with a plain copy of the same bytes in the
// same run. The client runs on the same machine.
func BenchmarkDownload(b *testing.B) {
	const size = 256 << 20
	w := newWorld(b, nil)
	path := filepath.Join(w.dir, "d", "file")
	os.MkdirAll(filepath.Dir(path), 0o777)
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 256<<10)
	for name, at := range map[string]string{"file": "/d/file", "zip": "/d"} {
		b.Run(name, func(b *testing.B) {
			link := w.link(at)
			var plain, ours time.Duration
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				began := time.Now()
				in, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				out, err := os.Create(filepath.Join(w.dir, "copy"))
				if err != nil {
					b.Fatal(err)
				}
				io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf)
				in.Close()
				out.Close()
				plain += time.Since(began)
				b.StartTimer()
				began = time.Now()
				res, err := http.Get(link)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, buf)
				res.Body.Close()
				if err != nil || n < size {
					b.Fatal(n, err)
				}
				ours += time.Since(began)
			}
			b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-plain-copy")
			b.ReportMetric(float64(b.N)*size/1e6/plain.Seconds(), "plain-MB/s")
		})
	}
}
