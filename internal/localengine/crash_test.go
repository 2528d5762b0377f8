package localengine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"ucloud-im/internal/providerapi"
)

// crashStep names the step at which a child of the test kills itself.
const crashStep = "LOCALENGINE_CRASH"

// crash is the child: it submits a job and dies.
func crash() {
	e := New(Options{Dir: os.Getenv("DIR"), Log: slog.New(slog.DiscardHandler), step: func(name string) {
		if name == os.Getenv(crashStep) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}})
	folder := os.Getenv("FOLDER")
	_, err := e.Submit(context.Background(), Spec{Job: "1", Folder: folder, Script: []byte(os.Getenv("SCRIPT")), Output: "out", Error: "err"})
	panic(errors.Join(errors.New("it was to die"), err))
}

// TestKilledBetweenSteps: wherever the instance dies, the job has started once and is known, or has not started and is
// forgotten.
func TestKilledBetweenSteps(t *testing.T) {
	t.Parallel()
	for step, runs := range map[string]bool{"begin": false, "recorded": false, "started": true} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, t.TempDir())
			script := "echo x >>" + filepath.Join(b.folder, "runs") + "; sleep 1000"
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), crashStep+"="+step, "DIR="+b.o.Dir, "FOLDER="+b.folder, "SCRIPT="+script)
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child ended by %v", err)
			}
			b.open()
			if got := len(b.Jobs()); got != map[bool]int{true: 1}[runs] {
				t.Fatalf("%d jobs are known", got)
			}
			if !runs {
				if left, err := os.ReadDir(b.o.Dir); len(left) > 0 {
					t.Errorf("%v is left, %v", left, err)
				}
				// Nothing of the first try stands in the way of a second.
				b.submit(Spec{Job: "1", Folder: b.folder, Script: []byte(script), Output: "out", Error: "err"})
			}
			b.awaitFile("runs")
			for _, j := range b.Jobs() {
				if err := b.Cancel(j.ID); err != nil {
					t.Fatal(err)
				}
			}
			b.await("1", providerapi.JobSuccess)
			if b.file("runs") != "x\n" {
				t.Errorf("it has run: %q", b.file("runs"))
			}
		})
	}
}

// TestClaim: an instance that looks for jobs while the supervisor of one is only just starting decides once and for all.
func TestClaim(t *testing.T) {
	t.Parallel()
	for range 20 {
		b := newBench(t, t.TempDir())
		s := b.spec("1", "echo x >>runs; sleep 1000")
		s.ID = "abc"
		j := &job{dir: filepath.Join(b.o.Dir, "abc"), spec: s}
		if err := j.write(); err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() { started <- b.start(j) }()
		other := newBench(t, b.o.Dir)
		err := <-started
		known := other.Jobs()
		if (err == nil) != (len(known) == 1) {
			t.Fatalf("started: %v, found by the other: %v", err, known)
		}
		if err != nil {
			if b.file("runs") != "" {
				t.Fatal("it runs although it was given up")
			}
			continue
		}
		if err := other.Cancel("abc"); err != nil {
			t.Fatal(err)
		}
		// The other engine is not the parent here, so the end of the child is ours to take note of.
		if err := j.child.Wait(); err == nil {
			t.Error("the supervisor has ended by itself")
		}
		other.await("1", providerapi.JobSuccess)
	}
}
