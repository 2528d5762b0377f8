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
//attack:remove internal/intent/memory.go: if len(m.entries) >= maxEntries { => if len(m.entries) >= 1<<30 {
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Unix(1767225600, 0)
	const leeway = time.Minute
	exp := now.Add(30 * time.Second)
	until := exp.Add(leeway)
	digest := func(n int) [32]byte { return sha256.Sum256(fmt.Append(nil, n)) }
	passed := 0
	for n := range 2 * maxEntries {
		switch why := m.use(digest(n), usage{request: digest(n), exp: exp}, now, leeway); why {
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
		if why := m.use(digest(n), usage{request: digest(-1), exp: exp}, now, leeway); why != Replayed {
			t.Errorf("intent %d for another request: %s", n, why)
		}
		if why := m.use(digest(n), usage{request: digest(n), exp: exp}, until, leeway); why != OK {
			t.Errorf("intent %d for the same request: %s", n, why)
		}
	}
	// When they have expired there is room again, and the room is given back.
	later := until.Add(time.Second)
	if why := m.use(digest(-2), usage{request: digest(1), exp: later.Add(time.Minute)}, later, leeway); why != OK || len(m.entries) != 1 {
		t.Errorf("afterwards: %s, %d are remembered", why, len(m.entries))
	}
}

// TestForgottenIsNotFresh: what was used and forgotten stays used when clocks or limits make it valid again.
//
//attack:actor compromised core
//attack:does Waits until a used intent is forgotten, and uses it again when an operator has allowed for clocks that are off by more.
//attack:control What ends no later than anything that was forgotten counts as expired.
//attack:remove internal/intent/memory.go: if !u.exp.After(m.forgotten) { => if false {
func TestForgottenIsNotFresh(t *testing.T) {
	t.Parallel()
	var m memory
	now := time.Unix(1767225600, 0)
	used := usage{request: [32]byte{1}, exp: now.Add(30 * time.Second)}
	use := func(n byte, u usage, at time.Time, leeway time.Duration) Reason {
		return m.use([32]byte{n}, u, at, leeway)
	}
	if why := use(1, used, now, time.Minute); why != OK {
		t.Fatal(why)
	}
	later := used.exp.Add(time.Minute + time.Second)
	if why := use(2, usage{exp: later}, later, time.Minute); why != OK || len(m.entries) != 1 {
		t.Fatalf("%s, %d are remembered", why, len(m.entries))
	}
	used.request = [32]byte{2}
	if why := use(1, used, later, 5*time.Minute); why != Expired {
		t.Errorf("with a larger leeway: %s", why)
	}
	if why := use(1, used, now, time.Minute); why != Expired {
		t.Errorf("with the clock set back: %s", why)
	}
	if why := use(3, usage{exp: used.exp.Add(time.Second)}, later, 5*time.Minute); why != OK {
		t.Errorf("an intent that ends later: %s", why)
	}
	// With a larger leeway what is remembered stays so.
	m = memory{}
	use(1, used, now, time.Minute)
	if why := use(1, usage{request: [32]byte{3}, exp: used.exp}, later, 5*time.Minute); why != Replayed {
		t.Errorf("used and remembered: %s", why)
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
			if m.use([32]byte{1}, usage{request: [32]byte{byte(n)}, exp: now}, now, time.Minute) == OK {
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
