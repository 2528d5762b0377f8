package instance

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/instance/exeid"
)

// detachedEnv marks the second process of a detached start. It is no secret and grants nothing.
const detachedEnv = "UCLOUD_USER_DETACHED"

// detach runs the program again in a session of its own. This process ends then, and with it the sudo that waits for
// it; the new one is the instance. It uses /proc/self/exe, since argv[0] is whatever the caller of sudo wrote.
func detach(socket string, server ident.UID) error {
	in, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer in.Close() //nolint:errcheck // the child has its own
	_, err = w.WriteString(socket + "\n")
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	cmd := exec.Command(exeid.Self)
	cmd.Env = []string{"SUDO_UID=" + server.String(), detachedEnv + "=1"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return cmd.Process.Release()
}

// execute sends SIGKILL through a pidfd that the server has opened: it may not do so itself. The pidfd cannot mean
// another process than the hung one, and the kernel lets us signal our own user's processes only.
func execute(pidfd *os.File) error {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("kill hung process: %w", err)
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return fmt.Errorf("kill hung process: %w", err)
	}
	if inner != nil && inner != unix.ESRCH {
		return fmt.Errorf("kill hung process: %w", inner)
	}
	return nil
}
