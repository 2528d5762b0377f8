// Package accounts makes real local accounts, a real sudo rule and an installed program for tests of everything that
// crosses user ids. It changes the machine it runs on (/etc/passwd, /etc/sudoers.d, /opt), for as long as the test
// lasts, and is linked into tests only.
package accounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/testkit"
)

// Require skips the test, or fails it in CI, if accounts cannot be made here.
func Require(t testing.TB) {
	t.Helper()
	testkit.Require(t, testkit.Root, testkit.Requirement{Name: "account tools", Missing: missingTool})
}

func missingTool() error {
	for _, tool := range []string{"useradd", "userdel", "groupadd", "gpasswd", "sudo", "visudo", "getent"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	return nil
}

// Account is a local account made for a test.
type Account struct {
	Name string
	UID  ident.UID
	GID  ident.GID
	Home string
}

// Credential lets a command run as the account, with its primary group and the given supplementary ones.
func (a Account) Credential(groups ...ident.GID) *syscall.Credential {
	c := &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}
	for _, g := range groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// Command makes a command that runs as the account in a clean environment.
func (a Account) Command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + a.Home, "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.Credential()}
	return cmd
}

// Rule is the kind of sudo rule for a program.
type Rule int

// The kinds.
const (
	Direct Rule = iota // the shipped rule: sudo replaces itself by the program
	PAM                // the shipped rule with a PAM session: sudo stays as the parent
	Stock              // a plain rule under the distribution's defaults, use_pty and pam_session included
)

// Site is a service account, a group of users it may start programs for, and the programs.
type Site struct {
	Service Account
	Group   string
	GID     ident.GID
	Dir     string // root-owned; all its parents are too

	tag      string
	mu       sync.Mutex // guards the fields below
	users    []Account
	programs map[string]Rule
	next     int
}

// lockFile serialises the account tools among all test processes. Their own locks are not enough: gpasswd reads a
// group before it locks the file, and writes it back over what another tool has added meanwhile.
const lockFile = "/run/lock/imt-accounts"

func run(program string, args ...string) error {
	lock, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock the account files: %w", err)
	}
	defer lock.Close() //nolint:errcheck // releases the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the account files: %w", err)
	}
	var out []byte
	for range 50 { // others on this machine may use the tools too
		out, err = exec.Command(program, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "lock") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

// Setup makes a site. tag is a short word that tells which package made it. Close removes everything.
func Setup(tag string) (*Site, error) {
	tag = fmt.Sprintf("imt-%s%d", tag, os.Getpid())
	s := &Site{tag: tag, Group: tag + "g", Dir: "/opt/" + tag, programs: map[string]Rule{}}
	err := func() error {
		if err := run("groupadd", s.Group); err != nil {
			return err
		}
		g, err := user.LookupGroup(s.Group)
		if err != nil {
			return fmt.Errorf("look up group: %w", err)
		}
		gid, err := strconv.ParseUint(g.Gid, 10, 32)
		if err != nil {
			return fmt.Errorf("look up group: %w", err)
		}
		s.GID = ident.GID(gid)
		if err := os.MkdirAll(s.Dir+"/home", 0o755); err != nil {
			return err
		}
		if err := run("useradd", "-r", "-U", "-M", "-d", "/nonexistent", "-s", "/usr/sbin/nologin", tag+"s"); err != nil {
			return err
		}
		s.Service, err = lookup(tag + "s")
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// New makes a site for one test and removes it when the test is over.
func New(t testing.TB, tag string) *Site {
	t.Helper()
	Require(t)
	s, err := Setup(tag)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func lookup(name string) (Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Account{}, fmt.Errorf("look up account: %w", err)
	}
	uid, err := ident.ParseUID(u.Uid)
	if err != nil {
		return Account{}, err
	}
	gid, err := ident.ParseUID(u.Gid)
	if err != nil {
		return Account{}, err
	}
	return Account{Name: name, UID: uid, GID: ident.GID(gid), Home: u.HomeDir}, nil
}

// AddUser makes a user with a home directory (0700) who is a member of the group.
func (s *Site) AddUser() (Account, error) {
	s.mu.Lock()
	s.next++
	name := fmt.Sprintf("%su%d", s.tag, s.next)
	s.mu.Unlock()
	home := filepath.Join(s.Dir, "home", name)
	if err := run("useradd", "-U", "-M", "-d", home, "-s", "/bin/bash", "-G", s.Group, name); err != nil {
		return Account{}, err
	}
	a, err := lookup(name)
	if err != nil {
		return Account{}, err
	}
	s.mu.Lock()
	s.users = append(s.users, a)
	s.mu.Unlock()
	if err := os.Mkdir(home, 0o700); err != nil {
		return Account{}, err
	}
	return a, os.Chown(home, int(a.UID), int(a.GID))
}

// User is AddUser for tests.
func (s *Site) User(t testing.TB) Account {
	t.Helper()
	a, err := s.AddUser()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Admin runs one of the account tools, such as usermod or gpasswd.
func Admin(t testing.TB, program string, args ...string) {
	t.Helper()
	if err := run(program, args...); err != nil {
		t.Fatal(err)
	}
}

// Install copies the executable to a root-owned place and allows the service account to start it by a rule of the
// kind. Installing the same name again replaces the file by renaming, as a package manager does.
func (s *Site) Install(name, executable string, rule Rule) (string, error) {
	data, err := os.ReadFile(executable)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path+".new", data, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.programs[name] = rule
	return path, s.writeRulesLocked()
}

func (s *Site) writeRulesLocked() error {
	var b strings.Builder
	i := 0
	for name, rule := range s.programs {
		i++
		path := filepath.Join(s.Dir, name)
		if rule == Stock {
			fmt.Fprintf(&b, "%s ALL=(%%%s, !root) NOPASSWD: %s \"\"\n", s.Service.Name, s.Group, path)
			continue
		}
		block, err := launcher.SudoersBlock(launcher.SudoersOptions{
			ServiceAccount: s.Service.Name, Group: s.Group, Program: path, PAM: rule == PAM,
			Alias: strings.ToUpper(strings.NewReplacer("-", "_").Replace(s.tag)) + "_" + strconv.Itoa(i),
		})
		if err != nil {
			return err
		}
		b.WriteString(block)
	}
	// Checked before it is in force: a broken file there would stop sudo for everybody.
	tmp := filepath.Join(s.Dir, "rules")
	if err := os.WriteFile(tmp, []byte(b.String()), 0o440); err != nil {
		return err
	}
	defer os.Remove(tmp) //nolint:errcheck // the directory goes as well
	if out, err := exec.Command("visudo", "-c", "-f", tmp).CombinedOutput(); err != nil {
		return fmt.Errorf("visudo -c: %w: %s", err, out)
	}
	hidden := s.rules() + ".new" // names with a dot are ignored by sudo
	if err := os.WriteFile(hidden, []byte(b.String()), 0o440); err != nil {
		return err
	}
	return os.Rename(hidden, s.rules())
}

func (s *Site) rules() string { return "/etc/sudoers.d/" + s.tag }

// Close ends the processes of all accounts and removes everything that was made.
func (s *Site) Close() error {
	s.mu.Lock()
	users := s.users
	s.mu.Unlock()
	var errs []error
	os.Remove(s.rules()) //nolint:errcheck // may not exist
	for _, a := range append(users, s.Service) {
		if a.Name != "" {
			KillAll(a.UID)
		}
	}
	for _, a := range append(users, s.Service) {
		if u, err := user.LookupId(a.UID.String()); a.Name != "" && err == nil { // a test may have renamed it
			errs = append(errs, run("userdel", "-f", u.Username))
		}
		if _, err := user.LookupGroup(a.Name); a.Name != "" && err == nil { // userdel takes only a group of the same name along
			errs = append(errs, run("groupdel", a.Name))
		}
	}
	if s.GID != 0 {
		errs = append(errs, run("groupdel", s.Group))
	}
	return errors.Join(append(errs, os.RemoveAll(s.Dir))...)
}

// Processes gives the ids of the processes that run as uid, by real uid.
func Processes(uid ident.UID) []int {
	dirs, _ := os.ReadDir("/proc")
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		info, err := os.ReadFile("/proc/" + d.Name() + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			f := strings.Fields(line)
			if len(f) > 1 && f[0] == "State:" && f[1] == "Z" {
				break // a zombie is nobody any more
			}
			if len(f) > 1 && f[0] == "Uid:" {
				if f[1] == uid.String() {
					pids = append(pids, pid)
				}
				break
			}
		}
	}
	return pids
}

// KillAll ends all processes of a test account.
func KillAll(uid ident.UID) {
	if uid < 100 { // never a real service or root, whatever went wrong
		return
	}
	for range 20 {
		pids := Processes(uid)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // may be gone
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Build compiles a main package to a static executable, as it is shipped, and gives its path.
func Build(pkg, out string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, msg)
	}
	return nil
}
