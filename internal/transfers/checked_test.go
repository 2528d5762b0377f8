package transfers

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/ipcapi"
)

// TestResume: a large file goes on where it was, over cuts at random bytes: with each at most the window of 4 MiB, the
// size of a chunk of the protocol, is sent again.
func TestResume(t *testing.T) {
	t.Parallel()
	const window = 4 << 20
	size := 40 << 20
	if raceEnabled {
		size = 16 << 20
	}
	a, b := newSite(t, "a", nil), newSite(t, "b", nil)
	plant(t, a.dir, map[string]string{"file": content(3, size)})
	rng := newRand(7)
	j := steps(t, a, b, "/file", "/copy")
	b.listener.cutOften(func() int64 {
		if b.listener.cuts >= 6 {
			return 0
		}
		return 100_000 + rng.Int64N(8<<20)
	})
	if err := again(t.Context(), a.transfer, j); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(grown(t, a.dir)["file"], grown(t, b.dir)["copy"]); d != "" {
		t.Error(d)
	}
	noDebris(t, b.dir)
	cuts, total := int64(b.listener.count()), b.listener.total
	const overhead = 1 << 20 // handshakes, frames, listings
	if cuts < 1 || total > int64(size)+cuts*window+overhead {
		t.Errorf("%d bytes for a file of %d with %d cuts", total, size, cuts)
	}
	t.Logf("%d cuts, %.1f MiB sent again", cuts, float64(total-int64(size))/(1<<20))
}

// TestDamaged: bytes that change on the way, which TLS would notice, never get a name. With the plain protocol they do,
// which shows that the test bends what it should.
func TestDamaged(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{protocolChecked, protocolBuiltIn} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			a, b := newSite(t, "a", nil), newSite(t, "b", nil)
			tree := map[string]string{"large": content(1, 3<<20)}
			for i := range 30 {
				tree[fmt.Sprintf("small/%d", i)] = content(uint64(i), 20_000)
			}
			plant(t, a.dir+"/data", tree)
			j := steps(t, a, b, "/data", "/in", protocol)
			reads, bent := 0, 0
			b.listener.mu.Lock()
			b.listener.bend = func(p []byte) { // in the middle of what must be data
				if len(p) < 3000 {
					return
				}
				if reads++; reads%20 == 7 && bent < 4 {
					p[len(p)/2] ^= 0x40
					bent++
				}
			}
			b.listener.mu.Unlock()
			err := again(t.Context(), a.transfer, j)
			b.listener.mu.Lock()
			defer b.listener.mu.Unlock()
			if bent == 0 {
				t.Fatal("nothing was bent")
			}
			same := cmp.Diff(grown(t, a.dir+"/data"), grown(t, b.dir+"/in")) == ""
			if protocol == protocolBuiltIn {
				if same {
					t.Log("what was bent was not data")
				}
				return
			}
			if err != nil || !same {
				t.Errorf("%d bytes were bent: %v, %s", bent, err, cmp.Diff(grown(t, a.dir+"/data"), grown(t, b.dir+"/in")))
			}
			if o, text := b.board.outcome(); o != ipcapi.TaskSucceeded || strings.Contains(text, "not stored") {
				t.Errorf("the destination says %q, %q", o, text)
			}
			noDebris(t, b.dir)
		})
	}
}
