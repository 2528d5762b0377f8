package launcher_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// TestSelfMode runs everything as one ordinary user, without sudo.
func TestSelfMode(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u, other := site.User(t), site.User(t)
	w := newRunning(t, func(c *serverConfig) {
		c.Self, c.As, c.Sudo, c.Stop = true, &u, "/nonexistent/sudo", 500*time.Millisecond
	}, u, other)
	w.wake(u)
	a := w.about(u)
	if a.UID != int(u.UID) || a.Dir != u.Home {
		t.Fatalf("%+v", a)
	}
	// Without sudo nobody else cleans the environment, which holds the server's configuration here.
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", a.PID))
	if err != nil || len(environ) != 0 {
		t.Errorf("it was started with %q, %v", environ, err)
	}
	if r := w.tryWake(other); r.Kind != failure.Forbidden || !strings.Contains(r.Why, "development") {
		t.Errorf("another user: %+v", r)
	}
	if got := w.as(other, "talk", fmt.Sprint(w.wake(u).Port)); got != "nothing" {
		t.Errorf("another user gets %q", got)
	}
	w.server.kill(t)
	w.startServer()
	w.eventually("it is adopted", func() bool { return w.counters().Adopted == 1 })
	if got := w.about(u).PID; got != a.PID {
		t.Errorf("pid %d, want %d", got, a.PID)
	}
	sendSignal(t, a.PID, "STOP")
	var ok bool
	w.call(w.server, "Stop", userOf(u), &ok)
	if alive(a.PID) {
		t.Error("the hung instance lives")
	}
}

// delegatedCgroup makes a cgroup v2 directory that belongs to the service account, as systemd does with Delegate=yes.
func delegatedCgroup(t *testing.T, service accounts.Account) string {
	t.Helper()
	var path string
	testkit.Require(t, testkit.Requirement{Name: "a writable cgroup v2 hierarchy", Missing: func() error {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var st unix.Statfs_t
			if unix.Statfs(mount, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
			dir := filepath.Join(mount, fmt.Sprintf("imt-ln-%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			path = dir
			return nil
		}
		return errors.New("not mounted")
	}})
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(path, f), int(service.UID), int(service.GID)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		eventually(t, "the cgroup can be removed", func() bool {
			groups, _ := filepath.Glob(path + "/*/*/cgroup.procs")
			above, _ := filepath.Glob(path + "/*/cgroup.procs")
			groups = append(groups, above...)
			for _, g := range groups {
				os.Remove(filepath.Dir(g)) //nolint:errcheck // retried
			}
			return os.Remove(path) == nil
		})
	})
	return path
}

// TestCgroup ends a hung instance that sudo would not let us end any more, and its children.
func TestCgroup(t *testing.T) {
	t.Parallel()
	site := theSite(t)
	u := site.User(t)
	path := delegatedCgroup(t, site.Service)
	w := newWorld(t, func(c *serverConfig) { c.Cgroup, c.Stop = path, 500*time.Millisecond }, u)
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // a test
	w.cgroup = dir
	w.startServer()
	w.cgroup = nil
	w.startGateway()
	w.wake(u)
	pid := w.about(u).PID
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(own), fmt.Sprintf("/%s/instances/u%s\n", filepath.Base(path), u.UID)) {
		t.Fatalf("%s %v\n%s", own, err, w.server.log)
	}
	sendSignal(t, pid, "STOP")
	accounts.Admin(t, "gpasswd", "-d", u.Name, site.Group)
	eventually(t, "it is ended", func() bool { return !alive(pid) })
	if c := w.counters(); c.Unkillable != 0 {
		t.Errorf("%+v", c)
	}
}
