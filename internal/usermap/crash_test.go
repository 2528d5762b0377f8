package usermap

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
)

func TestFaultsOfCore(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		call string
		f    fault
	}{
		{"clear not sent", "clear", notSent},
		{"clear lost", "clear", lostBefore},
		{"clear lost after", "clear", lostAfter},
		{"clear refused", "clear", refused},
		{"approve not sent", "approve", notSent},
		{"approve lost", "approve", lostBefore},
		{"approve lost after", "approve", lostAfter},
		{"approve lost, slow", "approve", lostSlow},
		{"approve refused", "approve", refused},
		{"approve answered by a proxy", "approve", proxied},
	} {
		for _, times := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s %d times", tc.name, times), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				left := times
				w.core.fault = func(call string) fault {
					if call != tc.call || left == 0 {
						return noFault
					}
					left--
					return tc.f
				}
				w.link(t, alice, "alice")
				w.deliver(t)
				w.deliverFor(t, 10*time.Minute)
				if w.state(t, alice) != store.MappingActive || !w.core.isConnected(alice) {
					t.Fatalf("state %s, connected %v, calls %q", w.state(t, alice), w.core.isConnected(alice), w.core.calls)
				}
			})
		}
	}
}

func TestNoAnswerWaitsAndGrows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.core.fault = func(call string) fault {
		if call == "approve" {
			return lostSlow
		}
		return noFault
	}
	w.link(t, alice, "alice")
	var at []time.Time
	w.core.observe = func(call string) {
		if call == "approve" {
			at = append(at, w.clock.Now())
		}
	}
	w.deliver(t)
	w.deliverFor(t, 10*time.Minute)
	for i := 1; i < len(at); i++ {
		if gap := at[i].Sub(at[i-1]); gap < noAnswerWait {
			t.Errorf("attempt %d came %v after the one before", i, gap)
		}
	}
	if len(at) < 3 || len(at) > 6 {
		t.Errorf("%d attempts in ten minutes", len(at))
	}
}

// crash is what a killed process does: nothing any more.
type crash struct{ at int }

// TestCrashes kills the process at every single point at which it reads the clock (which it does inside each
// transaction), and before and after each call to Core, and checks after each that a new process brings the same end.
func TestCrashes(t *testing.T) {
	t.Parallel()
	for name, scenario := range map[string]struct {
		run  func(t *testing.T, w *world)
		want store.MappingState
	}{
		"connect":           {func(t *testing.T, w *world) { w.link(t, alice, "alice"); w.deliver(t) }, store.MappingActive},
		"connect, slow":     {func(t *testing.T, w *world) { w.link(t, alice, "alice"); w.deliverFor(t, 3*time.Second) }, store.MappingActive},
		"connect and leave": {connectAndLeave, "none"},
		"connect, change":   {connectAndChange, store.MappingActive},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			points := 0
			for n := 1; ; n++ {
				if !crashAt(t, n, name == "connect, slow", scenario.run, scenario.want) {
					break
				}
				points = n
			}
			if points < 4 {
				t.Errorf("only %d points were tried", points)
			}
			t.Logf("%d points", points)
		})
	}
}

func connectAndLeave(t *testing.T, w *world) {
	w.link(t, alice, "alice")
	w.deliver(t)
	if err := w.s.Remove(t.Context(), alice, nil, false, "test", false); err != nil {
		t.Fatal(err)
	}
	w.deliver(t)
}

func connectAndChange(t *testing.T, w *world) {
	w.link(t, alice, "alice")
	w.deliver(t)
	if err := w.change(t, alice, 2001, "carol"); err != nil {
		t.Fatal(err)
	}
	w.deliver(t)
}

// crashAt runs the scenario, kills the process at the n-th point and starts anew. false: there is no n-th point.
func crashAt(t *testing.T, n int, slow bool, run func(*testing.T, *world), want store.MappingState) (crashed bool) {
	t.Helper()
	w := newWorld(t)
	count := 0
	point := func() {
		if count++; count == n {
			panic(crash{n})
		}
	}
	w.now = func() time.Time { point(); return w.clock.Now() }
	w.restart(t)
	w.core.fault = func(call string) fault {
		point() // the call was not sent
		if slow && call == "approve" {
			return lostSlow
		}
		return noFault
	}
	func() {
		defer func() {
			switch p := recover().(type) {
			case nil:
			case crash:
				crashed = true
			default:
				panic(p)
			}
		}()
		run(t, w)
	}()

	// A new process, one second later. The operator repeats a command that had no answer.
	w.core.fault, w.now = nil, nil
	w.clock.Add(time.Second)
	w.restart(t)
	w.recover(t)
	if err := w.s.Repair(t.Context()); err != nil {
		t.Fatalf("point %d: %v", n, err)
	}
	w.deliver(t)
	w.deliverFor(t, 2*time.Minute)
	switch state := w.state(t, alice); {
	case state == want:
	case want == store.MappingActive && state == "none":
		w.link(t, alice, "alice") // died before the commit: nothing had happened
		w.deliver(t)
	case want == "none" && state == store.MappingActive:
		connectAndLeaveRest(t, w)
	default:
		if want == "none" {
			w.link(t, alice, "alice")
			w.deliver(t)
			connectAndLeaveRest(t, w)
			break
		}
		t.Errorf("point %d: state %s", n, state)
	}
	if got := w.state(t, alice); got != want {
		t.Errorf("point %d: state %s at the end, want %s; calls %q", n, got, want, w.core.calls)
	}
	if connected := w.core.isConnected(alice); connected != (want == store.MappingActive) {
		t.Errorf("point %d: Core shows connected = %v; calls %q", n, connected, w.core.calls)
	}
	if want == store.MappingActive && len(w.replays(t)) != 1 {
		t.Errorf("point %d: no replay is queued", n)
	}
	w.core.check(t)
	return crashed
}

func connectAndLeaveRest(t *testing.T, w *world) {
	t.Helper()
	if err := w.s.Remove(t.Context(), alice, nil, false, "test", false); err != nil {
		t.Fatal(err)
	}
	w.deliver(t)
}

// TestCrashAfterCoreAnswered is the one point the clock does not reach: Core has approved and nobody noted it.
func TestCrashAfterCoreAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	func() {
		defer func() { _ = recover() }()
		w.s.o.Core = dyingCore{w.core}
		w.deliver(t)
	}()
	if !w.core.isConnected(alice) || w.state(t, alice) != store.MappingPending {
		t.Fatal("the crash did not happen where it should")
	}
	w.restart(t)
	w.recover(t)
	if err := w.s.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := w.deliver(t); n != 0 {
		t.Fatalf("the pair was repeated at once (%d attempts)", n)
	}
	w.deliverFor(t, 29*time.Second)
	if len(w.core.calls) != 2 {
		t.Fatalf("the pair was repeated too early: %q", w.core.calls)
	}
	w.deliverFor(t, 2*time.Second)
	if w.state(t, alice) != store.MappingActive {
		t.Fatalf("state %s", w.state(t, alice))
	}
}

type dyingCore struct{ *strictCore }

func (d dyingCore) ApproveConnection(ctx context.Context, u ident.UCloudUser) error {
	_ = d.strictCore.ApproveConnection(ctx, u)
	panic(crash{})
}

func TestRepairQueuesLostDeliveries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.link(t, alice, "alice")
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		all, err := tx.OutboxAll()
		if err != nil {
			return err
		}
		return tx.OutboxDrop(all[0].ID)
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is one
		if err := w.s.Repair(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.deliverFor(t, time.Minute)
	if w.state(t, alice) != store.MappingActive || len(w.core.calls) != 2 {
		t.Fatalf("state %s, calls %q", w.state(t, alice), w.core.calls)
	}
}

func TestUnreadableDeliveryIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range []string{"{", `{"at":1}`, "null"} {
		if _, err := w.s.deliverApprove(t.Context(), store.OutboxEntry{Kind: KindApprove, Payload: []byte(p)}); err == nil {
			t.Errorf("%q was taken as delivered", p)
		}
	}
	if len(w.core.calls) != 0 {
		t.Errorf("calls %q", w.core.calls)
	}
}
