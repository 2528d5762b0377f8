package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var errNotDelegated = errors.New("the cgroup of this process was not delegated to its account")

// FindCgroup finds the cgroup that was delegated to this process, for [Options.Cgroup] and [Options.CgroupLimits].
//
// Limits need controllers, and a group with controllers for its children must hold no processes itself: the service manager
// could not start the server again in it while instances live on. So there are limits only where it starts the server in a
// group named server below the delegated one (DelegateSubgroup=server, systemd 254).
func FindCgroup() (path string, limits bool, err error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", false, fmt.Errorf("find the cgroup: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, fmt.Errorf("find the cgroup: %w", err)
	}
	own, ok := ownCgroup(string(self), string(mounts))
	if !ok {
		return "", false, errors.New("find the cgroup: there is no cgroup v2")
	}
	if filepath.Base(own) == serverGroup && delegated(filepath.Dir(own)) {
		return filepath.Dir(own), true, nil
	}
	if delegated(own) {
		return own, false, nil
	}
	return "", false, errNotDelegated
}

// delegated tells whether this account may make groups below a group and move processes between them.
func delegated(dir string) bool {
	return unix.Access(dir, unix.W_OK) == nil && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil
}

// ownCgroup gives the directory of a process's cgroup from what proc(5) says about its cgroups and mounts.
func ownCgroup(self, mounts string) (dir string, ok bool) {
	inside := ""
	for line := range strings.Lines(self) {
		if path, v2 := strings.CutPrefix(strings.TrimRight(line, "\n"), "0::"); v2 {
			inside = path
		}
	}
	if !filepath.IsAbs(inside) || strings.Contains(inside, "/..") { // outside of the namespace
		return "", false
	}
	for line := range strings.Lines(mounts) {
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !found || len(fields) < 6 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if below, err := filepath.Rel(fields[3], inside); err == nil && filepath.IsLocal(below) {
			return filepath.Join(fields[4], below), true
		}
	}
	return "", false
}
