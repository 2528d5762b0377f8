package joblogs

import (
	"strings"
	"testing"

	"ucloud-im/internal/providerapi"
)

// BenchmarkFollow sends 16 MiB of a log to Core, as frames over a WebSocket.
func BenchmarkFollow(b *testing.B) {
	w := newWorld(b)
	w.svc.SetReplay(64 << 20)
	text := strings.Repeat("Step 1234567: energy -1.234567890123e+05, temperature 300.12\n", 16<<20/61)
	w.write("stdout.txt", text)
	w.jobs.set(w.record(providerapi.JobSuccess))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		c := w.follow()
		n := 0
		c.until("the end", func() bool {
			n += len(c.text["0 out"])
			clear(c.text)
			return c.ended == 1
		})
		if n != len(text) {
			b.Fatalf("%d bytes of %d", n, len(text))
		}
		c.ws.CloseNow() //nolint:errcheck // it has ended
	}
}
