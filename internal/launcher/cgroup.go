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

// Limits bound what processes may use; 0 is no limit.
type Limits struct {
	Memory int64 // bytes
	CPU    int   // 100 is one core
	Tasks  int64 // processes and threads
}

// cgroup is a cgroup v2 directory that was delegated to the service account (Delegate=yes under systemd). Below it are
//
//	server/           this process
//	instances/        with the limits of all together
//	instances/u1000/  of one uid, with its limits
//
// Instances are born into their group, and their children inherit it, so that limits hold for all of them, and
// cgroup.kill ends all of them although the server may not signal them. A nil cgroup does nothing.
type cgroup struct {
	root   *os.Root
	limits func() (each, total Limits)
	enable bool // controllers may be switched on
}

const (
	serverGroup    = "server"
	instancesGroup = "instances"
)

// controllers are those that limits need, with what they are good for.
var controllers = map[string]string{"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"}

var errNoCgroup = errors.New("no cgroup")

func openCgroup(path string, enable bool, limits func() (each, total Limits), log *slog.Logger) (*cgroup, error) {
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
	c := &cgroup{root: root, limits: limits, enable: enable}
	if err := c.prepare(log); err != nil {
		root.Close() //nolint:errcheck // nothing was written
		return nil, err
	}
	return c, nil
}

// prepare makes the groups that are always there, and switches on the controllers.
func (c *cgroup) prepare(log *slog.Logger) error {
	if err := c.settle(); err != nil {
		return err
	}
	if err := c.root.Mkdir(instancesGroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	if !c.enable {
		log.Info("limits of instances are those of each process", "reason", "the cgroup of the service may hold processes itself")
		return nil
	}
	for name := range controllers {
		for _, group := range []string{"", instancesGroup + "/"} {
			if err := c.write(group+"cgroup.subtree_control", "+"+name); err != nil {
				log.Warn("a limit of instances has no effect", "controller", name, "error", err)
				break
			}
		}
	}
	c.limitTotal(log)
	return nil
}

// limitTotal sets the limits of all instances together, at the start and when a reload may have changed them.
func (c *cgroup) limitTotal(log *slog.Logger) {
	if c != nil {
		_, total := c.limits()
		c.limit(instancesGroup, total, log)
	}
}

// write writes a file of a group.
func (c *cgroup) write(file, text string) error {
	f, err := c.root.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// settle moves this process into a group of its own below the delegated one, unless it is in one already: a group with
// controllers must not hold processes itself, and starting a process in a sibling group needs a common parent that is
// ours (cgroups(7), delegation).
func (c *cgroup) settle() error {
	const name = serverGroup
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

func groupName(uid ident.UID) string {
	return instancesGroup + "/u" + strconv.FormatUint(uint64(uid), 10)
}

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
	each, _ := c.limits()
	c.limit(groupName(uid), each, log)
	attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	return func() { dir.Close() } //nolint:errcheck // nothing was written
}

// limit sets the limits of a group.
func (c *cgroup) limit(group string, l Limits, log *slog.Logger) {
	if !c.enable {
		return
	}
	for name, file := range controllers {
		if err := c.write(group+"/"+file, l.text(name)); err != nil {
			log.Debug("cgroup limit is not set", "group", group, "limit", file, "error", err)
		}
	}
}

// text is a limit as the controller wants it.
func (l Limits) text(controller string) string {
	value := int64(0)
	switch controller {
	case "cpu":
		if l.CPU > 0 {
			return fmt.Sprintf("%d 100000", int64(l.CPU)*1000) // microseconds of each tenth of a second
		}
	case "memory":
		value = l.Memory
	case "pids":
		value = l.Tasks
	}
	if value <= 0 {
		return "max"
	}
	return strconv.FormatInt(value, 10)
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
