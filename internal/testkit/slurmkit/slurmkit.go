// Package slurmkit gives tests the real Slurm of scripts/slurm. The cluster is shared: the first test that needs it
// starts it, tests of all packages use it at the same time, and it goes on running after them (make test stops it).
//
// What tests may rely on: nodes n1, n2 and n3; partitions normal, gpu, short and down; QoS normal and, if an account
// was given it, high. What they may not do: stop daemons other than in [Cluster.Outage], change accounts other than
// through [Cluster.Sacctmgr] or with the programs in [Cluster.Binaries], or look at what is not theirs.
package slurmkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/testkit"
)

// Name is the name of the cluster.
const Name = "devcluster"

// patience is how long the kit waits for Slurm. A scheduler with a busy machine below it takes its time, and a test
// that passes does not wait.
const patience = 2 * time.Minute

// Cluster is the running Slurm, held by one test: nobody stops a daemon of it meanwhile.
type Cluster struct {
	state string
	share *share
}

var (
	startOnce sync.Once
	startErr  error
	counter   atomic.Int64
)

// Require skips the test where Slurm cannot be had, or fails it where CI=true.
func Require(t testing.TB) {
	t.Helper()
	testkit.Require(t, testkit.Root, testkit.Component("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr"))
}

// Start gives the test the cluster, and starts it if it does not run. It belongs to the test until the test ends.
func Start(t testing.TB) *Cluster {
	t.Helper()
	Require(t)
	c := &Cluster{state: stateDir(), share: shared}
	if err := os.MkdirAll(c.state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.share.take(c.state); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.share.give)
	startOnce.Do(func() { startErr = start() })
	if startErr != nil {
		t.Fatal(startErr)
	}
	return c
}

func stateDir() string {
	if dir := os.Getenv("SLURM_DEV_STATE"); dir != "" {
		return dir
	}
	return "/var/lib/slurm-dev"
}

// start runs scripts/slurm/start, which leaves alone what runs already.
func start() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		script := filepath.Join(dir, "scripts/slurm/start")
		if _, err := os.Stat(script); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, script)
			// Files, not pipes: the daemons would keep a pipe open.
			out, err := os.CreateTemp("", "slurm-start")
			if err != nil {
				return err
			}
			defer os.Remove(out.Name()) //nolint:errcheck // a temporary file
			defer out.Close()           //nolint:errcheck // as above
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Run(); err != nil {
				text, _ := os.ReadFile(out.Name())
				return fmt.Errorf("start Slurm: %w: %s", err, text)
			}
			return nil
		}
		if dir == "/" {
			return errors.New("there is no scripts/slurm/start above the working directory")
		}
	}
}

// Binaries is a directory with the commands of Slurm for the option of that name: the programs under test use those,
// so that their changes of accounts come one after the other with those of all other tests. slurmdbd mixes up
// associations otherwise.
func (c *Cluster) Binaries(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the programs under test run as others
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sshare", "srun"} {
		path, err := testkit.Program(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	wrapper := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in\n*' -i '*) exec flock %s /usr/bin/sacctmgr \"$@\" ;;\n*) exec /usr/bin/sacctmgr \"$@\" ;;\nesac\n", c.accountsLock())
	if err := os.WriteFile(filepath.Join(dir, "sacctmgr"), []byte(wrapper), 0o755); err != nil { //nolint:gosec // others run it
		t.Fatal(err)
	}
	return dir
}

func (c *Cluster) accountsLock() string { return filepath.Join(c.state, "sacctmgr.lock") }

// Output runs a command of Slurm as root and gives what it prints.
func (c *Cluster) Output(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Dir = "/"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// Run is Output for a test that cannot go on without it.
func (c *Cluster) Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := c.Output(program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sacctmgr changes accounts, one change at a time on this machine.
func (c *Cluster) sacctmgr(args ...string) (string, error) {
	return c.Output("flock", append([]string{c.accountsLock(), "sacctmgr", "-i", "-n", "-P"}, args...)...)
}

// Sacctmgr changes accounts (sacctmgr -i), one change at a time on this machine.
func (c *Cluster) Sacctmgr(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.sacctmgr(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// run tells this run of tests from others, also from one with the same process id that was killed and left things behind.
var run = sync.OnceValue(func() string {
	return strconv.FormatInt(int64(os.Getpid()), 36) + strconv.FormatInt(time.Now().UnixMilli()%(36*36*36*36*36), 36)
})

// UniqueName is a name that no other test uses; it can be the name of an account.
func UniqueName(prefix string) string {
	return fmt.Sprintf("imt%s%sx%d", prefix, run(), counter.Add(1))
}

// AccountName is the name of an account that does not exist yet. Whatever has the name when the test ends is removed,
// with its jobs.
func (c *Cluster) AccountName(t testing.TB) string {
	t.Helper()
	name := UniqueName("a")
	t.Cleanup(func() {
		if err := c.remove(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// Account makes an account of Slurm with these local users, and removes it when the test ends.
func (c *Cluster) Account(t testing.TB, users ...string) string {
	t.Helper()
	name := c.AccountName(t)
	c.Sacctmgr(t, "add", "account", name, "cluster="+Name)
	for _, u := range users {
		c.AddUser(t, name, u)
	}
	return name
}

// AddUser lets a local user submit jobs for an account, and waits until slurmctld knows.
func (c *Cluster) AddUser(t testing.TB, account, name string) {
	t.Helper()
	c.Sacctmgr(t, "add", "user", name, "account="+account, "cluster="+Name)
	c.WaitAssociation(t, account, name)
}

// WaitAssociation waits until slurmctld knows that a user may use an account; slurmdbd tells it a moment later.
func (c *Cluster) WaitAssociation(t testing.TB, account, name string) {
	t.Helper()
	c.until(t, fmt.Sprintf("association of %s with %s", name, account), func() bool {
		out, err := c.Output("scontrol", "-o", "show", "assoc_mgr", "flags=assoc", "accounts="+account, "users="+name)
		return err == nil && strings.Contains(out, " UserName="+name+"(")
	})
}

// remove ends the jobs of an account and removes it with its associations.
func (c *Cluster) remove(account string) error {
	deadline := time.Now().Add(patience)
	for {
		err := c.tryRemove(account)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (c *Cluster) tryRemove(account string) error {
	if _, err := c.Output("scancel", "--account="+account); err != nil {
		return err
	}
	out, err := c.Output("squeue", "-a", "-h", "-o", "%i", "--account="+account)
	if err != nil && !strings.Contains(err.Error(), "Invalid account") {
		return err
	}
	if strings.TrimSpace(out) != "" {
		// Ones that hang in their end, for example on a node that was stopped.
		_, _ = c.Output("scancel", "-s", "KILL", "--account="+account)
		return fmt.Errorf("jobs of %s still run: %s", account, strings.Fields(out))
	}
	known, err := c.Output("sacctmgr", "-n", "-P", "list", "assoc", "account="+account, "format=user")
	if err != nil {
		return err
	}
	if known == "" {
		return nil
	}
	// A user who has no other account is removed as a whole; one who has must get another default first.
	for _, u := range slices.Compact(strings.Split(strings.TrimSpace(known), "\n")) {
		if u == "" {
			continue
		}
		if _, err := c.sacctmgr("delete", "user", "where", "name="+u, "account="+account); err != nil {
			others, listErr := c.Output("sacctmgr", "-n", "-P", "list", "assoc", "user="+u, "format=account")
			if listErr != nil {
				return listErr
			}
			for other := range strings.FieldsSeq(others) {
				if other != account {
					_, _ = c.sacctmgr("modify", "user", "where", "name="+u, "set", "defaultaccount="+other)
					break
				}
			}
			return err
		}
	}
	_, err = c.sacctmgr("delete", "account", "where", "name="+account)
	return err
}

// Credential lets a command run as a local user, with that user's groups.
func Credential(t testing.TB, name string) (*syscall.Credential, *user.User) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	cred := &syscall.Credential{Uid: number(u.Uid), Gid: number(u.Gid)}
	groups, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		cred.Groups = append(cred.Groups, number(g))
	}
	return cred, u
}

// Submit submits a batch script that is given as text, as a local user, with more arguments of sbatch. The output goes
// to nowhere unless the arguments say otherwise. It gives the id of the job.
func (c *Cluster) Submit(t testing.TB, name, script string, args ...string) string {
	t.Helper()
	id, err := c.TrySubmit(t, name, script, args...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var plainID = regexp.MustCompile(`^[1-9][0-9]*$`)

// TrySubmit is Submit for a test that expects a refusal.
func (c *Cluster) TrySubmit(t testing.TB, name, script string, args ...string) (string, error) {
	t.Helper()
	cred, u := Credential(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sbatch", append([]string{"--parsable", "--output=/dev/null", "--chdir=/"}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + u.HomeDir, "USER=" + name}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Stdin = strings.NewReader("#!/bin/bash\n" + script + "\n")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("sbatch: %w: %s", err, stderr.String())
	}
	id, _, _ := strings.Cut(strings.TrimSpace(string(out)), ";")
	if !plainID.MatchString(id) {
		return "", fmt.Errorf("sbatch answers %q", out)
	}
	return id, nil
}

// until waits for Slurm; see patience.
func (c *Cluster) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 20 * time.Millisecond; !cond(); pause = min(2*pause, 200*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		time.Sleep(pause)
	}
}

// State is the state of a job (or of a task of an array, "12_3") as slurmctld has it, "" if it has none.
func (c *Cluster) State(id string) string {
	out, err := c.Output("scontrol", "-o", "show", "job", id)
	if err != nil {
		return ""
	}
	for field := range strings.FieldsSeq(out) {
		if v, ok := strings.CutPrefix(field, "JobState="); ok {
			return v
		}
	}
	return ""
}

// WaitState waits until slurmctld has the job in one of the states, and tells in which.
func (c *Cluster) WaitState(t testing.TB, id string, states ...string) string {
	t.Helper()
	var state string
	deadline := time.Now().Add(patience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if state = c.State(id); slices.Contains(states, state) {
			return state
		}
		if time.Now().After(deadline) {
			out, _ := c.Output("scontrol", "-o", "show", "job", id)
			t.Fatalf("job %s is %q, not one of %v, after %v: %s", id, state, states, patience, out)
		}
		time.Sleep(pause)
	}
}

// StartNow lets a job start soon that waits for a begin time in the future, as every job does that was requeued or
// released. It returns when the job runs, or has completed. Soon is three seconds: nodes refuse a job that comes back
// in the same moment in which it was taken from them ("credential revoked").
func (c *Cluster) StartNow(t testing.TB, id string) {
	t.Helper()
	c.until(t, "start of job "+id, func() bool {
		switch c.State(id) {
		case "RUNNING", "COMPLETED":
			return true
		case "PENDING":
			begin, err := c.Output("squeue", "-a", "-h", "-j", id, "-o", "%S")
			if err != nil {
				return false
			}
			at, err := time.ParseInLocation("2006-01-02T15:04:05", strings.TrimSpace(begin), time.UTC)
			if err == nil && time.Until(at) > 5*time.Second {
				_, _ = c.Output("scontrol", "update", "JobId="+id, "StartTime=now+3") // fails between two states
			}
		}
		return false
	})
}
