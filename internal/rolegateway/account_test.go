package rolegateway

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// serviceUID is the account that the tests run the gateway as when they are run by root, whom the role refuses. Nothing
// needs a name for it.
const serviceUID = 54322

// asService runs the test again as an unprivileged account if this process is root's. It reports true when that was
// done and the caller must return.
func asService(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	dir, err := os.MkdirTemp("", "imt-rgw-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, serviceUID, serviceUID); err != nil {
		t.Fatal(err)
	}
	// The binary lies in a directory of root's; this name works for everybody.
	cmd := exec.CommandContext(t.Context(), selfExe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, "CI=" + os.Getenv("CI"), "HOME=" + filepath.Join(dir, "none")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUID, Gid: serviceUID}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as uid %d: %v\n%s", serviceUID, err, out)
	} else if testing.Verbose() {
		fmt.Printf("%s", out)
	}
	return true
}

// selfExe is the test binary for every account.
const selfExe = "/proc/self/exe"
