package testkit

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// childVariable tells a child of [KillChild] its part.
const childVariable = "IMT_KILL_CHILD"

// Child is for TestMain: in a process that [KillChild] has started it gives its part.
func Child() (part string, ok bool) { return os.LookupEnv(childVariable) }

// AtMark tells [KillChild] that the child is where it is to be killed, and waits for that.
func AtMark(mark string) {
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		panic(err)
	}
	time.Sleep(time.Hour)
}

// KillChild runs the test binary once more, with a part that [Child] gives there, and kills it as soon as the file mark is
// there. A child that ends by itself is a failure.
func KillChild(t testing.TB, part, mark string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+part)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it has been killed, or has said why it ends
		close(ended)
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	Eventually(t, "the child is at "+mark, func() bool {
		select {
		case <-ended:
			t.Fatal("the child has ended by itself")
		default:
		}
		_, err := os.Stat(mark)
		return err == nil
	})
}
