package launcher

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/testkit"
)

var visudo = testkit.Requirement{Name: "visudo", Missing: func() error { _, err := exec.LookPath("visudo"); return err }}

func TestSudoersBlockIsAccepted(t *testing.T) {
	t.Parallel()
	testkit.Require(t, visudo)
	for name, o := range map[string]SudoersOptions{
		"usual": {ServiceAccount: "ucloud", Group: "ucloud_users", Program: "/usr/libexec/ucloud/ucloud-user"},
		"pam":   {ServiceAccount: "ucloud", Group: "ucloud_users", Program: "/usr/libexec/ucloud/ucloud-user", PAM: true},
		"names": {ServiceAccount: "_svc-1", Group: "hpc.users", Program: "/opt/u+1/ucloud-user", Alias: "OTHER_1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := SudoersBlock(o)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "rule")
			if err := os.WriteFile(file, []byte(text), 0o440); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("visudo", "-c", "-f", file).CombinedOutput()
			if err != nil || strings.Contains(string(out), "rror") || strings.Contains(string(out), "arning") {
				t.Fatalf("%v: %s\n%s", err, out, text)
			}
		})
	}
}

// TestSudoersBlockRefuses what could mean more than a name, such as ALL or a list.
//
//attack:actor local user
//attack:does Gets a word into the sudo rule that lets the service account do more.
//attack:control Words in the sudo rule have a narrow alphabet.
//attack:remove internal/launcher/sudoers.go: case !sudoName.MatchString(o.Group): => case false:
func TestSudoersBlockRefuses(t *testing.T) {
	t.Parallel()
	good := SudoersOptions{ServiceAccount: "ucloud", Group: "ucloud_users", Program: "/usr/libexec/ucloud/ucloud-user"}
	for name, change := range map[string]func(*SudoersOptions){
		"root as service":     func(o *SudoersOptions) { o.ServiceAccount = "root" },
		"everybody":           func(o *SudoersOptions) { o.ServiceAccount = "ALL" },
		"list of accounts":    func(o *SudoersOptions) { o.ServiceAccount = "a,b" },
		"group as account":    func(o *SudoersOptions) { o.ServiceAccount = "%wheel" },
		"new line":            func(o *SudoersOptions) { o.Group = "g) NOPASSWD: ALL\nx ALL=(ALL" },
		"empty group":         func(o *SudoersOptions) { o.Group = "" },
		"relative program":    func(o *SudoersOptions) { o.Program = "ucloud-user" },
		"program with blanks": func(o *SudoersOptions) { o.Program = "/bin/sh -c x" },
		"program with dots":   func(o *SudoersOptions) { o.Program = "/usr/../bin/sh" },
		"wildcard":            func(o *SudoersOptions) { o.Program = "/usr/bin/*" },
		"second program":      func(o *SudoersOptions) { o.Program = "/bin/a,/bin/b" },
		"alias":               func(o *SudoersOptions) { o.Alias = "x=ALL" },
	} {
		o := good
		change(&o)
		if text, err := SudoersBlock(o); err == nil {
			t.Errorf("%s: accepted\n%s", name, text)
		}
	}
}
