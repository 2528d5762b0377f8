package scan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func lockThread() { runtime.LockOSThread() }

// setfsuid changes whose rights count for files, for this thread alone (setfsuid(2)).
func setfsuid(uid int) error {
	if err := unix.Setfsuid(uid); err != nil {
		return err
	}
	if now, _ := unix.SetfsuidRetUid(-1); now != uid {
		return fmt.Errorf("the thread still acts as %d", now)
	}
	return nil
}

// TestRate: so many entries per second, and the state saved on time.
func TestRate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const n = 3000
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var saves []State
		end, err := Run(t.Context(), dir, State{}, Options{Rate: 100, SaveEvery: 10 * time.Second, Save: func(_ context.Context, s State) error {
			saves = append(saves, s)
			return nil
		}})
		if err != nil || end.Totals.Files != n {
			t.Errorf("%+v, %v", end, err)
		}
		if took := time.Since(start); took < 28*time.Second || took > 32*time.Second {
			t.Errorf("%d entries at 100/s took %v", n, took)
		}
		if len(saves) < 2 || len(saves) > 3 || saves[0].Totals.Files < 900 || saves[0].Totals.Files > 1200 || saves[0].Done {
			t.Errorf("%d saves, %+v", len(saves), saves)
		}
	})
}

// TestEnd: a scan ends within a pause, and what it returns can be gone on with.
func TestEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		state, err := Run(ctx, dir, State{}, Options{Rate: 100})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second || state.Totals.Files < 200 || state.Totals.Files > 500 {
			t.Errorf("%+v, %v after %v", state.Totals, err, time.Since(start))
		}
		end, err := Run(t.Context(), dir, state, Options{Rate: 100})
		if err != nil || end.Totals.Files != 1000 {
			t.Errorf("%+v, %v", end.Totals, err)
		}
		broken := errors.New("no")
		if _, err := Run(t.Context(), dir, State{}, Options{Rate: 100, SaveEvery: time.Second, Save: func(context.Context, State) error { return broken }}); !errors.Is(err, broken) {
			t.Error(err)
		}
	})
}
