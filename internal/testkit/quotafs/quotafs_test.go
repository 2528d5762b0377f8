package quotafs

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMount: an account that is not root can store what is allowed and no more.
func TestMount(t *testing.T) {
	dir := Mount(t, 1<<20)
	store := func(kib string) string {
		cmd := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(dir, "f"), "bs=1024", "count="+kib, "conv=fsync")
		cmd.Env = append(cmd.Environ(), "LC_ALL=C")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61_234, Gid: 61_234}}
		out, _ := cmd.CombinedOutput() // the text tells more than the status
		return string(out)
	}
	if out := store("100"); strings.Contains(out, "error") {
		t.Errorf("100 KiB: %s", out)
	}
	if out := store("4096"); !strings.Contains(out, "Disk quota exceeded") {
		t.Errorf("4 MiB: %s", out)
	}
}
