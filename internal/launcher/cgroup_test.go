package launcher

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fakeCgroup is a directory with the files that the kernel would make. What it cannot show is that the kernel obeys.
func fakeCgroup(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, group := range []string{"", "server", "instances", "instances/u1000"} {
		for _, file := range []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "cpu.max", "memory.max", "pids.max"} {
			path := filepath.Join(dir, group, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// TestCgroupLimits: each instance and all together are limited, where the controllers may be switched on and nowhere else.
//
//attack:actor compromised instance
//attack:does Takes all memory, processor time and process numbers of the login node.
//attack:control Each instance, with all that it starts, has limits in a cgroup of its own.
//attack:remove internal/launcher/cgroup.go: c.limit(groupName(uid), each, log) => _ = each
//attack:actor local user
//attack:does Lets many accounts take what one alone may not.
//attack:control All instances together have limits, too.
//attack:remove internal/launcher/cgroup.go: c.limit(instancesGroup, total, log) => _ = total
func TestCgroupLimits(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	each, total := Limits{Memory: 1 << 30, CPU: 150, Tasks: 256}, Limits{Memory: 8 << 30, CPU: 400}
	for _, enable := range []bool{true, false} {
		dir := fakeCgroup(t)
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close() //nolint:errcheck // a test
		c := &cgroup{root: root, enable: enable, limits: func() (Limits, Limits) { return each, total }}
		if err := c.prepare(log); err != nil {
			t.Fatal(err)
		}
		var attr syscall.SysProcAttr
		leave := c.enter(&attr, 1000, log)
		if !attr.UseCgroupFD {
			t.Error("the process is not born in the group")
		}
		leave()
		for file, want := range map[string]string{
			"server/cgroup.procs": "0", "instances/u1000/memory.max": "1073741824", "instances/u1000/cpu.max": "150000 100000",
			"instances/u1000/pids.max": "256", "instances/memory.max": "8589934592", "instances/cpu.max": "400000 100000", "instances/pids.max": "max",
		} {
			if !enable && !strings.HasSuffix(file, "cgroup.procs") {
				want = ""
			}
			got, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || string(got) != want {
				t.Errorf("with controllers %v: %s holds %q, %v, want %q", enable, file, got, err, want)
			}
		}
		each.Tasks, total.Tasks = 100, 1000
		leave = c.enter(&attr, 1000, log)
		leave()
		if got, _ := os.ReadFile(filepath.Join(dir, "instances/pids.max")); enable && string(got) != "max" {
			t.Errorf("the start of an instance writes the limit of all: %q", got)
		}
		c.limitTotal(log) // a reload
		for file, want := range map[string]string{"instances/pids.max": "1000", "instances/u1000/pids.max": "100"} {
			if got, _ := os.ReadFile(filepath.Join(dir, file)); enable && string(got) != want {
				t.Errorf("after a reload %s holds %q", file, got)
			}
		}
		each.Tasks, total.Tasks = 256, 0
		for _, group := range []string{"", "instances"} {
			got, _ := os.ReadFile(filepath.Join(dir, group, "cgroup.subtree_control"))
			if (len(got) > 0) != enable {
				t.Errorf("with controllers %v: subtree_control of %q holds %q", enable, group, got)
			}
		}
	}
}

// TestOwnCgroup reads what proc(5) describes.
func TestOwnCgroup(t *testing.T) {
	t.Parallel()
	const unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
	const hybrid = "30 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n31 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	const container = "40 23 0:26 /machine/c1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	for name, tc := range map[string]struct{ self, mounts, want string }{
		"systemd":      {"0::/system.slice/ucloud-server.service/server\n", unified, "/sys/fs/cgroup/system.slice/ucloud-server.service/server"},
		"hybrid":       {"4:memory:/x\n0::/y\n", hybrid, "/sys/fs/cgroup/unified/y"},
		"container":    {"0::/machine/c1/z\n", container, "/sys/fs/cgroup/z"},
		"outside":      {"0::/../other\n", unified, ""},
		"not mounted":  {"0::/other\n", container, ""},
		"version 1":    {"4:memory:/x\n", hybrid, ""},
		"no mount":     {"0::/y\n", "", ""},
		"broken mount": {"0::/y\n", "a - cgroup2 b\n", ""},
	} {
		if got, ok := ownCgroup(tc.self, tc.mounts); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, ok, tc.want)
		}
	}
}
