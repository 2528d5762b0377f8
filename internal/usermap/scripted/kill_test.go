package scripted_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"ucloud-im/internal/scripts"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap/consent"
)

// childEnv holds the directory of a copy of the test binary that plays the service until it is killed.
const childEnv = "SCRIPTED_TEST_CHILD"

// childMain presses "Connect" and looks for the account. It ends only when it is killed.
func childMain() {
	w, err := open(context.Background(), os.Getenv(childEnv), somePolicy{})
	if err == nil {
		_, err = w.users.Begin(context.Background(), w.method, nina)
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(3)
	}
	fmt.Println("begun")
	_ = w.method.Run(context.Background())
}

// A service that is killed in the middle of a look begins it again, with whatever "Connect" it had answered.
func TestKilledWhileLooking(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"begun", "in the script", "after the script"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir := newDir(t)
			writeScript(t, dir, `d=$(dirname "$0"); echo x >> "$d/calls"; while [ -e "$d/wait" ]; do touch "$d/running"; sleep 0.02; done; echo '{"uid":2001}'`)
			if point == "in the script" {
				touch(t, dir+"/wait")
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), childEnv+"="+dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			line, err := bufio.NewReader(out).ReadString('\n')
			if line != "begun\n" {
				t.Fatalf("the child says %q, %v", line, err)
			}
			switch point {
			case "in the script":
				testkit.Eventually(t, "the script runs", func() bool { return exists(dir + "/running") })
			case "after the script":
				testkit.Eventually(t, "the script has run", func() bool { return exists(dir + "/calls") })
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			_ = os.Remove(dir + "/wait")

			w, err := open(t.Context(), dir, somePolicy{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.store.Close() })
			t.Cleanup(func() { _ = w.runner.Close() })
			w.run(t)
			cookie := w.connect(t, nina)
			if v := w.page(t, cookie); v.Stage != consent.StageAsk || v.LocalName != "nholm" {
				t.Fatalf("page %+v", v)
			}
		})
	}
}

// A browser that waits across a restart is asked all the same.
func TestRestartWhileBrowserWaits(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	writeScript(t, dir, `d=$(dirname "$0"); touch "$d/running"; while [ ! -e "$d/go" ]; do sleep 0.02; done; echo '{"uid":2001}'`)
	w, err := open(t.Context(), dir, somePolicy{})
	if err != nil {
		t.Fatal(err)
	}
	w.run(t)
	cookie := w.connect(t, nina)
	testkit.Eventually(t, "the script runs", func() bool { return exists(dir + "/running") })
	w.stop() // ends the script, which is not the script's failure
	if err := errors.Join(w.runner.Close(), w.store.Close()); err != nil {
		t.Fatal(err)
	}
	touch(t, dir+"/go")
	if w, err = open(t.Context(), dir, somePolicy{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	t.Cleanup(func() { _ = w.runner.Close() })
	w.run(t)
	v := w.page(t, cookie)
	if v.Stage != consent.StageAsk {
		t.Fatalf("page %+v", v)
	}
	if err := w.method.Decide(t.Context(), cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	if err := w.users.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.mapping(t, nina); got != "nholm 2001 pending scripted" {
		t.Errorf("mapping %s", got)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) setHookTimeout(t *testing.T, d time.Duration) {
	t.Helper()
	h, err := w.runner.Hook(scripts.HookOptions{Name: scripts.HookUserConnected, Path: w.dir + "/connect", Timeout: d})
	if err != nil {
		t.Fatal(err)
	}
	w.hook.Store(h)
}
