package launcher

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
)

// cgroup is a cgroup v2 directory that was delegated to the service account (Delegate=yes under systemd). Each uid
// gets a group below it. Instances are born into it, and their children inherit it, so that cgroup.kill ends all of
// them although the server may not signal them. A nil cgroup does nothing.
type cgroup struct {
	root          *os.Root
	memory, tasks int64 // userInstances.limits; 0 for no limit
}

var errNoCgroup = errors.New("no cgroup")

func openCgroup(path string, memory, tasks int64) (*cgroup, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("cgroup %s: not cgroup v2", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	c := &cgroup{root: root, memory: memory, tasks: tasks}
	if err := c.settle(); err != nil {
		root.Close() //nolint:errcheck // nothing was written
		return nil, err
	}
	return c, nil
}

// settle moves this process into a group of its own below the delegated one, unless it is in one already: a group with
// controllers must not hold processes itself, and starting a process in a sibling group needs a common parent that is
// ours (cgroups(7), delegation).
func (c *cgroup) settle() error {
	const name = "server"
	if err := c.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	f, err := c.root.OpenFile(name+"/cgroup.procs", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer f.Close() //nolint:errcheck // the write reports
	if _, err := f.WriteString("0"); err != nil {
		return fmt.Errorf("cgroup: move the server into %s: %w", name, err)
	}
	return nil
}

func groupName(uid ident.UID) string { return "u" + strconv.FormatUint(uint64(uid), 10) }

// enter arranges that the process to be started is born in the group of uid. The caller calls leave afterwards.
// Failure is logged and not fatal: the group is a convenience.
func (c *cgroup) enter(attr *syscall.SysProcAttr, uid ident.UID, log *slog.Logger) (leave func()) {
	if c == nil {
		return func() {}
	}
	if err := c.root.Mkdir(groupName(uid), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		log.Warn("cgroup cannot be made", "uid", uid, "error", err)
		return func() {}
	}
	dir, err := c.root.Open(groupName(uid))
	if err != nil {
		log.Warn("cgroup cannot be opened", "uid", uid, "error", err)
		return func() {}
	}
	if c.memory > 0 {
		c.limit(uid, "memory.max", c.memory, log)
	}
	if c.tasks > 0 {
		c.limit(uid, "pids.max", c.tasks, log)
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	return func() { dir.Close() } //nolint:errcheck // nothing was written
}

// limit sets one limit. It has no effect where the controller is not enabled, which is for the site to decide.
func (c *cgroup) limit(uid ident.UID, file string, value int64, log *slog.Logger) {
	f, err := c.root.OpenFile(groupName(uid)+"/"+file, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(strconv.FormatInt(value, 10))
		f.Close() //nolint:errcheck // the write reports
	}
	if err != nil {
		log.Debug("cgroup limit is not set", "uid", uid, "limit", file, "error", err)
	}
}

// kill ends every process in the group of uid.
func (c *cgroup) kill(uid ident.UID) error {
	if c == nil {
		return errNoCgroup
	}
	f, err := c.root.OpenFile(groupName(uid)+"/cgroup.kill", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cgroup.kill: %w", err)
	}
	defer f.Close() //nolint:errcheck // the write reports
	if _, err := f.WriteString("1"); err != nil {
		return fmt.Errorf("cgroup.kill: %w", err)
	}
	return nil
}

// remove deletes the empty group of uid.
func (c *cgroup) remove(uid ident.UID) {
	if c != nil {
		c.root.Remove(groupName(uid)) //nolint:errcheck // fails while children of the instance live on in it
	}
}
