package intent

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestMemoryIsBounded: what is remembered has a bound, and with the bound reached nothing passes unremembered.
//
//attack:actor compromised core
//attack:does Makes the instance forget a used intent by sending many others, and uses it again.
//attack:control Nothing is forgotten before it has expired; with no room left, intents are refused.
//attack:remove internal/intent/memory.go: if e == nil && len(m.entries) >= maxEntries { => if e == nil && len(m.entries) >= 1<<30 {
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Unix(1767225600, 0)
	until := now.Add(90 * time.Second)
	digest := func(n int) [32]byte { return sha256.Sum256(fmt.Append(nil, n)) }
	passed := 0
	for n := range 2 * maxEntries {
		switch why := m.use(digest(n), usage{request: digest(n)}, now, until); why {
		case OK:
			passed++
		case Busy:
		default:
			t.Fatalf("intent %d: %s", n, why)
		}
	}
	if passed != maxEntries || len(m.entries) != maxEntries {
		t.Errorf("%d passed, %d are remembered", passed, len(m.entries))
	}
	for _, n := range []int{0, 1, maxEntries - 1} {
		if why := m.use(digest(n), usage{request: digest(-1)}, now, until); why != Replayed {
			t.Errorf("intent %d for another request: %s", n, why)
		}
		if why := m.use(digest(n), usage{request: digest(n)}, until, until); why != OK {
			t.Errorf("intent %d for the same request: %s", n, why)
		}
	}
	// When they have expired there is room again, and the room is given back.
	later := until.Add(time.Second)
	if why := m.use(digest(-2), usage{request: digest(1)}, later, later.Add(time.Minute)); why != OK || len(m.entries) != 1 {
		t.Errorf("afterwards: %s, %d are remembered", why, len(m.entries))
	}
}

// TestOneOfManyAtOnce: of many different requests with the same intent at the same time, one passes.
func TestOneOfManyAtOnce(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Unix(1767225600, 0)
	var passed, refused sync.Map
	var group sync.WaitGroup
	for n := range 50 {
		group.Go(func() {
			if m.use([32]byte{1}, usage{request: [32]byte{byte(n)}}, now, now.Add(time.Minute)) == OK {
				passed.Store(n, true)
			} else {
				refused.Store(n, true)
			}
		})
	}
	group.Wait()
	count := func(m *sync.Map) (n int) {
		m.Range(func(any, any) bool { n++; return true })
		return n
	}
	if count(&passed) != 1 || count(&refused) != 49 {
		t.Errorf("%d passed, %d were refused", count(&passed), count(&refused))
	}
}
