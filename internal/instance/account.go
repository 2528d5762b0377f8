package instance

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
	"time"
)

// accountProgram is the set-group-id helper of pam_unix(8), which tells a user about their own shadow record. The
// names differ by distribution.
var accountPrograms = []string{"/usr/sbin/unix_chkpwd", "/sbin/unix_chkpwd"}

// Its exit codes are those of PAM (pam(3), _pam_types.h).
const (
	pamAcctExpired    = 13 // the account is closed
	pamAuthtokExpired = 27 // the password has been out of date for so long that the account is closed
)

// checkAccount tells why the own account may not be used, "" if nothing speaks against it or nothing can be found out.
// Accounts from a directory have no shadow record here; the directory's own tools decide about those.
func checkAccount(ctx context.Context, name string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, program := range accountPrograms {
		cmd := exec.CommandContext(ctx, program, name, "chkexpiry")
		cmd.Env = []string{"LC_ALL=C"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		err := cmd.Run() // standard input is /dev/null, which the helper insists on
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			if err == nil {
				return ""
			}
			continue // not installed here
		}
		switch exit.ExitCode() {
		case pamAcctExpired:
			return "the account has expired"
		case pamAuthtokExpired:
			return "the account is inactive because its password has expired"
		}
		return ""
	}
	return ""
}
