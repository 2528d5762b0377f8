package launcher

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// SudoersOptions are the names that occur in the sudo rule.
type SudoersOptions struct {
	ServiceAccount string // login name of the account the server runs as
	Group          string // userInstances.group
	Program        string // absolute path of ucloud-user
	Alias          string // name of the command alias; "" means UCLOUD_USER
	// PAM keeps the PAM session of sudo, for sites that need pam_limits, pam_systemd, Kerberos or AFS tokens in
	// instances. sudo then stays as the parent, and instances detach themselves from it.
	PAM bool
}

var (
	sudoName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,255}$`)
	sudoAlias   = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	sudoProgram = regexp.MustCompile(`^/[A-Za-z0-9_./+-]+$`)
)

// SudoersBlock gives the text for a file in /etc/sudoers.d (design D3). What each part does:
//
//   - the "" after the program allows no argument at all, not even an empty one;
//   - (%group, !root) limits the targets; without !root a root that is a member of the group could be a target;
//   - env_reset with !setenv, !env_keep, !env_check leaves only what sudo itself sets;
//   - !pam_session, !pam_setcred and !use_pty make sudo replace itself by the program instead of staying as its parent;
//   - !requiretty, !log_input, !log_output undo global settings that would stop or slow every launch;
//   - closefrom and umask are defence in depth.
//
// Settings for one command win over global ones (sudoers(5)). The text must pass visudo -c; a test does that.
func SudoersBlock(o SudoersOptions) (string, error) {
	if o.Alias == "" {
		o.Alias = "UCLOUD_USER"
	}
	switch {
	case !sudoName.MatchString(o.ServiceAccount):
		return "", fmt.Errorf("service account %q cannot stand in a sudo rule", o.ServiceAccount)
	case o.ServiceAccount == "root" || o.ServiceAccount == "ALL":
		return "", fmt.Errorf("service account must not be %s", o.ServiceAccount)
	case !sudoName.MatchString(o.Group):
		return "", fmt.Errorf("group %q cannot stand in a sudo rule", o.Group)
	case len(o.Program) > 1024 || !sudoProgram.MatchString(o.Program) || path.Clean(o.Program) != o.Program:
		return "", fmt.Errorf("program %q must be a plain absolute path", o.Program)
	case !sudoAlias.MatchString(o.Alias) || o.Alias == "ALL":
		return "", errors.New("the alias must consist of capital letters")
	}
	flags := []string{"!use_pty", "!pam_session", "!pam_setcred", "!requiretty", "!log_input", "!log_output"}
	if o.PAM {
		flags = []string{"!use_pty", "!requiretty", "!log_input", "!log_output"}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Cmnd_Alias %s = %s \"\"\n", o.Alias, o.Program)
	fmt.Fprintf(&b, "Defaults!%s %s, \\\n", o.Alias, strings.Join(flags, ", "))
	b.WriteString("    env_reset, !setenv, !env_keep, !env_check, closefrom=3, umask=0077, umask_override, " +
		"secure_path=\"/usr/bin:/bin\"\n")
	fmt.Fprintf(&b, "%s ALL=(%%%s, !root) NOPASSWD: NOSETENV: NOLOG_INPUT: NOLOG_OUTPUT: %s\n",
		o.ServiceAccount, o.Group, o.Alias)
	return b.String(), nil
}
