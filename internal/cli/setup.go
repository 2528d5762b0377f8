package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/config"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
)

// siteNames are the names that the generated pieces are about: from flags, else from the configuration, else the usual
// ones.
type siteNames struct {
	account, group, program string
	stateDir, ipcDir        string
	logDir                  string // empty: logs go elsewhere
	spool                   string // for requests of extension scripts; empty: there are none
}

func (a *app) siteNames() siteNames {
	n := siteNames{
		account: defaultServiceAccount, group: "ucloud_users", program: "/usr/libexec/ucloud/ucloud-user",
		stateDir: "/var/lib/ucloud", ipcDir: filepath.Dir(DefaultSocket),
	}
	c, problems := config.Load(a.dir(), config.Options{Role: config.RoleCLI, Getenv: a.getenv})
	if c == nil {
		if a.verbose || a.dirGiven() {
			a.note("the configuration in %s is not used: %v", a.dir(), problems.Err())
		}
		return n
	}
	n.group, n.program = string(c.UserInstances.Group), string(c.UserInstances.Executable)
	n.stateDir, n.ipcDir = string(c.StateDirectory), string(c.IPC.Directory)
	if usesScripts(c) {
		n.spool = string(c.Scripts.Spool)
	}
	if c.Logs.Destination == "file" {
		n.logDir = string(c.Logs.Directory)
	}
	return n
}

// usesScripts tells whether the configuration names an extension script that this version runs.
func usesScripts(c *config.Config) bool {
	for _, fs := range c.Services.FileSystems.All() {
		if fs.Management != nil && fs.Management.Type == config.ManagementScripted {
			return true
		}
		for _, l := range fs.DriveLocators.All() {
			if l.Script.IsSet() {
				return true
			}
		}
	}
	return false
}

func (a *app) setupCommand() *cobra.Command {
	return noun("setup", "generate and install system pieces",
		a.setupSudoersCommand(), a.setupDirectoriesCommand(), a.setupSystemdCommand())
}

// setupVerb makes a command with --print (the default) and --apply, which is for root.
func (a *app) setupVerb(use, short string, flags func(*cobra.Command), run func(ctx context.Context, apply bool) error) *cobra.Command {
	var doPrint, apply bool
	c := a.verb(use, short, 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		if doPrint && apply {
			return usagef("give either --print or --apply")
		}
		if apply && hostUID() != 0 && !a.dryRun {
			return exitf(ExitPermission, "PERMISSION", "only root can install system pieces")
		}
		return run(ctx, apply)
	})
	c.Flags().BoolVar(&doPrint, "print", false, "print only (the default)")
	c.Flags().BoolVar(&apply, "apply", false, "install it; root only")
	flags(c)
	return c
}

func (a *app) setupSudoersCommand() *cobra.Command {
	var account, group, program, file string
	var pam bool
	return a.setupVerb("sudoers", "the sudo rule that lets the service start user instances", func(c *cobra.Command) {
		c.Flags().StringVar(&account, "service-account", "", "account the service runs as (default ucloud)")
		c.Flags().StringVar(&group, "group", "", "group whose members may be started (default as configured)")
		c.Flags().StringVar(&program, "program", "", "path of ucloud-user (default as configured)")
		c.Flags().StringVar(&file, "file", "/etc/sudoers.d/ucloud", "where --apply writes it")
		c.Flags().BoolVar(&pam, "pam", false, "keep the PAM session, for sites that need limits or tickets from it")
	}, func(ctx context.Context, apply bool) error {
		n := a.siteNames()
		block, err := launcher.SudoersBlock(launcher.SudoersOptions{
			ServiceAccount: or(account, n.account), Group: or(group, n.group), Program: or(program, n.program), PAM: pam,
		})
		if err != nil {
			return usagef("%v", err)
		}
		text := "# Made by \"ucloud setup sudoers\". Checked by \"ucloud doctor\".\n" + block
		if !apply {
			_, err := fmt.Fprint(a.stdout, text)
			return err
		}
		return a.install(ctx, file, []byte(text), 0o440, func(path string) error {
			out, err := exec.CommandContext(ctx, "/usr/sbin/visudo", "-c", "-f", path).CombinedOutput()
			if err != nil {
				return fmt.Errorf("visudo does not accept the rule: %w: %s", err, bytes.TrimSpace(out))
			}
			return nil
		})
	})
}

// install writes a file so that it is there completely or not at all, after check has seen it. The temporary name begins
// with a dot, which sudo and systemd ignore.
func (a *app) install(_ context.Context, path string, data []byte, mode fs.FileMode, check func(path string) error) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		a.note("%s is up to date", path)
		return nil
	}
	if a.dryRun {
		a.note("%s would be written", path)
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing left to remove
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil && check != nil {
		err = check(tmp.Name())
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	a.note("%s is written", path)
	return nil
}

func or(value, fallback string) string {
	if value != "" {
		return value
	}
	return fallback
}

// wantedDir is a directory that the service needs (contract 40 section 13).
type wantedDir struct {
	path string
	mode fs.FileMode
}

func (n siteNames) directories() []wantedDir {
	dirs := []wantedDir{
		{n.stateDir, 0o700},
		{n.ipcDir, 0o755}, // everybody must reach the socket
		{filepath.Join(n.ipcDir, "private"), 0o700},
	}
	if n.spool != "" {
		dirs = append(dirs, wantedDir{n.spool, 0o700})
	}
	if n.logDir != "" {
		dirs = append(dirs, wantedDir{n.logDir, 0o750})
	}
	return dirs
}

func (a *app) setupDirectoriesCommand() *cobra.Command {
	var name string
	return a.setupVerb("directories", "directories of the service, with owner and mode", func(c *cobra.Command) {
		c.Flags().StringVar(&name, "service-account", "", "account the service runs as (default ucloud)")
	}, func(ctx context.Context, apply bool) error {
		n := a.siteNames()
		name := or(name, n.account)
		if !apply {
			for _, d := range n.directories() {
				if _, err := fmt.Fprintf(a.stdout, "install -d -o %s -g %s -m %04o %s\n", name, name, d.mode, d.path); err != nil {
					return err
				}
			}
			return nil
		}
		acc, err := account(ctx, name)
		if err != nil {
			return err
		}
		for _, d := range n.directories() {
			if a.dryRun {
				a.note("%s would get owner %s and mode %04o", d.path, acc.Name, d.mode)
				continue
			}
			if err := makeDir(d, acc); err != nil {
				return err
			}
			a.note("%s has owner %s and mode %04o", d.path, acc.Name, d.mode)
		}
		return nil
	})
}

// makeDir makes a directory, or puts owner and mode of an existing one right. It works on the open directory and follows
// no link in its place: the parent of one may belong to the service account, and we are root.
func makeDir(d wantedDir, acc localuser.Account) error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(d.path, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fd, err := unix.Open(d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s is not a directory of its own: %w", d.path, err)
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, int(acc.UID), int(acc.GID)); err != nil {
		return fmt.Errorf("give %s to %s: %w", d.path, acc.Name, err)
	}
	if err := unix.Fchmod(fd, uint32(d.mode)); err != nil {
		return fmt.Errorf("set the mode of %s: %w", d.path, err)
	}
	return nil
}

func (a *app) setupSystemdCommand() *cobra.Command {
	var dir string
	return a.setupVerb("systemd", "units of server and gateway", func(c *cobra.Command) {
		c.Flags().StringVar(&dir, "directory", "/etc/systemd/system", "where --apply writes them")
	}, func(ctx context.Context, apply bool) error {
		if len(a.hooks.Units) == 0 {
			return exitf(ExitFailed, unknownErrorCode, "this program was built without the units")
		}
		names := make([]string, 0, len(a.hooks.Units))
		for name := range a.hooks.Units {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if !apply {
				if _, err := fmt.Fprintf(a.stdout, "# %s\n%s\n", filepath.Join(dir, name), strings.TrimRight(a.hooks.Units[name], "\n")); err != nil {
					return err
				}
				continue
			}
			if err := a.install(ctx, filepath.Join(dir, name), []byte(a.hooks.Units[name]), 0o644, nil); err != nil {
				return err
			}
		}
		if apply {
			a.note("now run: systemctl daemon-reload")
		}
		return nil
	})
}
