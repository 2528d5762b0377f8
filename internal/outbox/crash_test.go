package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

// crashEnv names the database for a copy of the test binary that delivers and is killed.
const crashEnv = "OUTBOX_CRASH_DB"

// crashChild delivers to a file and kills itself after the delivery in whose number crashAt occurs, at one of three
// places: before the effect, between effect and commit, after the commit.
func crashChild(path string) {
	at, _ := strconv.Atoi(os.Getenv(crashEnv + "_AT"))
	place := os.Getenv(crashEnv + "_PLACE")
	die := func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	fatal := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	s, err := store.Open(context.Background(), store.Options{Path: path, Exclusive: true})
	fatal(err)
	out, err := os.OpenFile(path+".delivered", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	fatal(err)
	b := New(s, Options{Parallel: 1})
	n := 0
	deliver := func(_ context.Context, e store.OutboxEntry) (Result, error) {
		n++
		if n == at && place == "before" {
			die()
		}
		_, err := fmt.Fprintf(out, "%s %s %v\n", e.Key, e.Payload, e.State)
		fatal(err)
		if n == at && place == "between" {
			die()
		}
		return Result{Complete: func(tx *store.Tx) error {
			tx.AfterCommit(func() {
				if n == at {
					die()
				}
			})
			return nil
		}}, nil
	}
	b.Register("plain", deliver)
	b.RegisterGuarded("guarded", deliver, Suspect(RetryAfter(errors.New("cut"), 0)))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			var left []store.OutboxEntry
			// What is parked waits for the test, which plays the operator.
			fatal(s.View(ctx, func(tx *store.Tx) (err error) {
				left, err = tx.OutboxHeads(time.Now().Add(time.Hour), 1)
				return err
			}))
			if len(left) == 0 {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	fatal(b.Run(ctx))
	fatal(s.Close())
}

// The process is killed in every place of every delivery, and started again until everything is delivered.
func TestNothingIsLostByKill(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"plain", "guarded"} {
		for _, place := range []string{"before", "between", "after"} {
			t.Run(kind+" "+place, func(t *testing.T) {
				t.Parallel()
				o := storetest.SQLiteOptions(t)
				s := storetest.Open(t, o)
				if err := s.Update(t.Context(), func(tx *store.Tx) error {
					for i := range 4 {
						if _, err := tx.Enqueue(kind, "key"+strconv.Itoa(i%2), []byte(strconv.Itoa(i)), time.Now()); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				killed := 0
				for run := 1; ; run++ {
					if run > 20 {
						t.Fatal("does not come to an end")
					}
					at := 1 + run%2
					if run > 8 && place == "before" { // would never get anywhere
						at = 0
					}
					exe, err := os.Executable()
					if err != nil {
						t.Fatal(err)
					}
					cmd := exec.Command(exe)
					cmd.Env = append(os.Environ(), crashEnv+"="+o.Path, crashEnv+"_AT="+strconv.Itoa(at), crashEnv+"_PLACE="+place)
					var stderr bytes.Buffer
					cmd.Stderr = &stderr
					err = cmd.Run()
					if err != nil {
						if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
							t.Fatalf("%v: %s", err, &stderr)
						}
						killed++
					}
					left := releaseParked(t, s)
					if err == nil && left == 0 {
						break
					}
				}
				if killed == 0 {
					t.Error("nothing was killed")
				}
				checkDelivered(t, o.Path+".delivered", kind, place)
				if findings, err := s.Check(t.Context()); err != nil || len(findings) > 0 {
					t.Errorf("check: %v, %v", findings, err)
				}
			})
		}
	}
}

// releaseParked lets go what waits for an operator, and tells how many entries are left.
func releaseParked(t *testing.T, s *store.Store) (left int) {
	t.Helper()
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		all, err := tx.OutboxAll()
		left = len(all)
		for _, e := range all {
			if e.NextAt.IsZero() {
				err = errors.Join(err, tx.OutboxRelease(e.ID, time.Now()))
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return left
}

// checkDelivered looks at what "Core" received: everything, in order within a key, and a repetition only where the
// process was killed before it could note the success. A guarded entry is repeated by itself only as suspect.
func checkDelivered(t *testing.T, file, kind, place string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	last := map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		key, payload, state := f[0], f[1], f[2]
		if payload < last[key] {
			t.Errorf("%s: %s after %s", key, payload, last[key])
		}
		if seen[payload] > 0 && place != "between" {
			t.Errorf("%s was delivered twice", payload)
		}
		// The first repetition is the automatic one; later ones were released by the operator.
		if seen[payload] == 1 && kind == "guarded" && state != string(store.OutboxSuspect) {
			t.Errorf("%s was repeated blindly", payload)
		}
		seen[payload]++
		last[key] = payload
	}
	if len(seen) != 4 {
		t.Errorf("delivered %v", seen)
	}
}

// A guarded attempt that was cut short takes the outcome that its kind has chosen; without the guard it is repeated at
// once.
func TestGuardRemembersACutAttempt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cut    error
		state  store.OutboxState // after the next start
		wait   time.Duration     // until the repetition, -1: parked
		before store.OutboxState
	}{
		"repeat later":           {RetryAfter(errAway, 30*time.Second), store.OutboxQueued, 30 * time.Second, store.OutboxQueued},
		"once more":              {Suspect(RetryAfter(errAway, 20*time.Second)), store.OutboxSuspect, 20 * time.Second, store.OutboxQueued},
		"once more was enough":   {Suspect(RetryAfter(errAway, 20*time.Second)), store.OutboxSuspect, -1, store.OutboxSuspect},
		"never by itself":        {Suspect(errAway), store.OutboxSuspect, -1, store.OutboxQueued},
		"no longer guarded kind": {nil, store.OutboxSuspect, -1, store.OutboxQueued},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, r *rig) {
				id := r.enqueue("k", "a", "1")
				if err := r.store.Update(t.Context(), func(tx *store.Tx) error {
					if tc.before == store.OutboxSuspect {
						if err := tx.OutboxRetry(id, time.Now(), "", store.OutboxSuspect); err != nil {
							return err
						}
					}
					return tx.OutboxBegin(id)
				}); err != nil {
					t.Fatal(err)
				}
				deliver := func(_ context.Context, e store.OutboxEntry) (Result, error) { r.note(e); return Result{}, nil }
				if tc.cut == nil {
					r.box.Register("k", deliver)
				} else {
					r.box.RegisterGuarded("k", deliver, tc.cut)
				}
				start := time.Now()
				stop := r.run()
				time.Sleep(time.Second)
				left := r.entries()
				if len(left) != 1 || left[0].State != tc.state || left[0].Begun || left[0].LastError != errCut.Error() {
					t.Errorf("%+v", left)
				}
				time.Sleep(time.Hour)
				stop()
				got := r.offsets(start)
				switch {
				case tc.wait < 0:
					if len(got) != 0 {
						t.Errorf("repeated at %v", got)
					}
				case len(got) != 1 || got[0] != tc.wait:
					t.Errorf("repeated at %v, want %v", got, tc.wait)
				}
			})
		})
	}
}

// Random entries, answers and restarts: nothing is lost, the order within a key is kept, and what Core acknowledged in
// a process that lived on is not sent again.
func TestPropertyRandomFailures(t *testing.T) {
	t.Parallel()
	type plan struct {
		keys     []int // of the entries, in order
		failures []int // of each entry before it succeeds
		stops    []int // restart after that many milliseconds
	}
	rapid.Check(t, func(rt *rapid.T) {
		p := plan{
			keys:  rapid.SliceOfN(rapid.IntRange(0, 3), 1, 12).Draw(rt, "keys"),
			stops: rapid.SliceOfN(rapid.IntRange(0, 20_000), 0, 3).Draw(rt, "stops"),
		}
		p.failures = rapid.SliceOfN(rapid.IntRange(0, 3), len(p.keys), len(p.keys)).Draw(rt, "failures")
		var problem string
		bubble(t, func(t *testing.T, r *rig) {
			left := append([]int(nil), p.failures...)
			var order [4][]int // acknowledged entries by key
			register := func(b *Outbox) {
				b.Register("k", func(ctx context.Context, e store.OutboxEntry) (Result, error) {
					i, err := strconv.Atoi(string(e.Payload))
					if err != nil {
						return Result{}, err
					}
					select { // Core takes its time
					case <-ctx.Done():
						return Result{}, ctx.Err()
					case <-time.After(time.Duration(i) * 100 * time.Millisecond):
					}
					r.mu.Lock()
					defer r.mu.Unlock()
					if left[i]--; left[i] >= 0 {
						return Result{}, errAway
					}
					order[p.keys[i]] = append(order[p.keys[i]], i)
					return Result{}, nil
				})
			}
			register(r.box)
			var want [4][]int
			for i, k := range p.keys {
				r.enqueue("k", strconv.Itoa(k), strconv.Itoa(i))
				want[k] = append(want[k], i)
			}
			for _, ms := range p.stops {
				stop := r.run()
				time.Sleep(time.Duration(ms) * time.Millisecond)
				stop()
				next := newRig(t, r.store)
				r.box = next.box
				register(r.box)
			}
			stop := r.run()
			time.Sleep(24 * time.Hour)
			stop()
			if rest := r.entries(); len(rest) != 0 || fmt.Sprint(order) != fmt.Sprint(want) {
				problem = fmt.Sprintf("acknowledged %v, want %v, left %v", order, want, rest)
			}
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// A database that cannot be written while an outcome is due: the key waits, nothing is delivered twice.
func TestOutcomeWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLite(t))
	broken := errors.New("no")
	fails := 3
	n := 0
	r.box.RegisterGuarded("k", func(_ context.Context, e store.OutboxEntry) (Result, error) {
		n++
		return Result{Complete: func(*store.Tx) error {
			if fails--; fails >= 0 {
				return broken
			}
			return nil
		}}, nil
	}, Suspect(errAway))
	r.box.o.Backoff = Backoff{Initial: time.Millisecond, Max: time.Millisecond}
	r.enqueue("k", "a", "")
	stop := r.run()
	testkit.Eventually(t, "the entry is gone", func() bool { return len(r.entries()) == 0 })
	stop()
	if n != 1 {
		t.Errorf("delivered %d times", n)
	}
}
