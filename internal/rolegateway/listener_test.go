package rolegateway

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"ucloud-im/internal/sockdiag"
)

func testCheck(t *testing.T) func(int) error {
	t.Helper()
	kernel, err := sockdiag.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close() })
	return listenerCheck(kernel)
}

// TestListenerOfAnotherUser is the attack itself: another account listens on a port.
func TestListenerOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to run a process as another user")
		}
		t.Skip("needs root, to run a process as another user")
	}
	port := freePort(t)
	cmd := exec.Command(selfExe)
	cmd.Env = []string{envListen + "=127.0.0.1:" + strconv.Itoa(port)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	eventually(t, "the other user listens", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	if err := testCheck(t)(port); err == nil {
		t.Error("the listener of another user was accepted")
	}
}
