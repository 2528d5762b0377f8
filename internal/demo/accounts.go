package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/launcher"
)

// created is the record of what the demo made as root, newest last.
type created struct {
	Users  []string `json:"users"`
	Groups []string `json:"groups"`
	Files  []string `json:"files"`

	SlurmAccounts []string `json:"slurmAccounts,omitempty"`
}

const (
	recordFile  = "/var/lib/ucloud-demo/created.json"
	sudoersFile = "/etc/sudoers.d/ucloud-demo"
)

func readRecord() (created, error) {
	var c created
	data, err := os.ReadFile(recordFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}

func (c *created) save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(recordFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(recordFile, append(data, '\n'), 0o600)
}

// run executes a system program and puts its complaint into the error.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// createAccounts makes groups, accounts and the sudo rule, and tells say about each.
func (l *layout) createAccounts(say func(format string, args ...any)) error {
	record, err := readRecord()
	if err != nil {
		return fmt.Errorf("read %s: %w", recordFile, err)
	}
	group := func(name string) error {
		if _, err := user.LookupGroup(name); err == nil {
			return nil
		}
		if err := run("groupadd", "--", name); err != nil {
			return err
		}
		say("created the group %s", name)
		record.Groups = append(record.Groups, name)
		return record.save()
	}
	account := func(name string, args ...string) error {
		if _, err := user.Lookup(name); err == nil {
			return nil
		}
		if err := run("useradd", append(args, "--", name)...); err != nil {
			return err
		}
		say("created the account %s", name)
		record.Users = append(record.Users, name)
		return record.save()
	}
	if err := errors.Join(group(UsersGroup), group(projectGroup)); err != nil {
		return err
	}
	if err := account(ServiceAccount, "--system", "--user-group", "--no-create-home", "--home-dir", l.state, "--shell", "/usr/sbin/nologin"); err != nil {
		return err
	}
	for _, p := range append(slices.Clone(l.people), l.tourist) {
		if err := account(p.local, "--create-home", "--user-group", "--shell", "/bin/bash", "--groups", UsersGroup+","+projectGroup); err != nil {
			return err
		}
		// Debian's useradd leaves homes readable for others; the demo shows that they are not.
		if err := os.Chmod("/home/"+p.local, 0o700); err != nil {
			return err
		}
	}
	service, err := user.Lookup(ServiceAccount)
	if err != nil {
		return err
	}
	l.uid, _ = strconv.Atoi(service.Uid)
	l.gid, _ = strconv.Atoi(service.Gid)

	block, err := launcher.SudoersBlock(launcher.SudoersOptions{
		ServiceAccount: ServiceAccount, Group: UsersGroup, Program: filepath.Join(l.programs, "ucloud-user"), Alias: "UCLOUD_DEMO",
	})
	if err != nil {
		return err
	}
	if !slices.Contains(record.Files, sudoersFile) {
		record.Files = append(record.Files, sudoersFile)
		if err := record.save(); err != nil {
			return err
		}
		say("added the sudo rule %s", sudoersFile)
	}
	return installSudoers(block)
}

// installSudoers checks the rule before it can take effect: sudo ignores a broken file only partly.
func installSudoers(block string) error {
	tmp, err := os.CreateTemp("/etc/sudoers.d", ".ucloud-demo-*.tmp") // names with a dot are not read by sudo
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.WriteString(block); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(0o440), tmp.Close(), run("visudo", "-c", "-q", "-f", tmp.Name())); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), sudoersFile)
}

// Clean removes what the demo created, and nothing that was there before it.
func Clean(o Options) error {
	l, err := plan()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }
	var problems []error
	if l.root {
		record, err := readRecord()
		if err != nil {
			return fmt.Errorf("read %s: %w", recordFile, err)
		}
		for _, account := range record.SlurmAccounts {
			if err := removeSlurm(account); err != nil {
				say("the Slurm account %s stays, because Slurm does not answer: %v", account, err)
			} else {
				say("removed the Slurm account %s", account)
			}
		}
		for _, file := range record.Files {
			problems = append(problems, os.RemoveAll(file))
			say("removed %s", file)
		}
		for _, name := range record.Users {
			// Instances of the demo may still run; userdel refuses accounts in use.
			_ = run("pkill", "-KILL", "-u", name)
			if name == ServiceAccount {
				problems = append(problems, ignoreAbsent(run("userdel", "--", name), name))
			} else {
				problems = append(problems, ignoreAbsent(run("userdel", "--remove", "--", name), name))
			}
			say("removed the account %s", name)
		}
		for _, name := range record.Groups {
			if _, err := user.LookupGroup(name); err == nil {
				problems = append(problems, run("groupdel", "--", name))
				say("removed the group %s", name)
			}
		}
	}
	for _, dir := range []string{l.run, l.programs, l.projects, l.base} {
		if dir != "" {
			problems = append(problems, os.RemoveAll(dir))
		}
	}
	say("removed %s", l.base)
	return errors.Join(problems...)
}

// ignoreAbsent drops the error when the account is gone, which is what was wanted. userdel --remove also complains
// about a missing mail spool.
func ignoreAbsent(err error, name string) error {
	if _, lookup := user.Lookup(name); lookup != nil {
		return nil
	}
	return err
}
