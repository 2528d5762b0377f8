// Package sandbox takes a process's rights to files away with Landlock (landlock(7)), which needs no privilege.
//
// # What it promises
//
// After [Enter] the process, and whatever it starts, can open files below the paths of its rules only, run programs below
// those marked so only, and trace no process outside. It gains no privileges by setuid programs any more (no_new_privs),
// which is why the server cannot use this: it needs sudo (docs/decisions/0015-landlock.md).
//
// It does not restrict: descriptors that are open already, connections, what stat(2) tells, and Unix sockets by path.
// TestInside proves the first part with a real kernel, in a process of its own.
//
// # Threads
//
// Landlock restricts one thread. A Go program has several before its first line runs, so the process restricts one and
// replaces itself from it: the new image, with the same process id and descriptors, has the restriction for all its
// threads. A variable in the environment tells it not to do so again. That is a hint and not a proof, so the new image
// looks whether it is restricted ([Inside]).
package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access is what a rule allows, for files and everything below directories.
type Access uint8

// The accesses.
const (
	Read    Access = 1 << iota // read files, list directories
	Write                      // create, write, rename and remove files, and sockets
	Execute                    // read and run files
)

// String is for logs: "rwx".
func (a Access) String() string {
	b := []byte("---")
	for i, c := range "rwx" {
		if a&(1<<i) != 0 {
			b[i] = byte(c)
		}
	}
	return string(b)
}

// Rule allows access to a file, or to everything below a directory. A path that does not exist allows nothing.
type Rule struct {
	Path   string
	Access Access
}

// ErrUnavailable is a kernel without Landlock, or one in which it is turned off.
var ErrUnavailable = errors.New("the kernel has no Landlock")

// envMark holds the id of the process that has entered: a child has another one.
const envMark = "UCLOUD_SANDBOX_PID"

// call is a system call; tests replace it.
type call func(trap, a1, a2, a3 uintptr) (uintptr, syscall.Errno)

func system(trap, a1, a2, a3 uintptr) (uintptr, syscall.Errno) {
	r, _, errno := syscall.Syscall(trap, a1, a2, a3)
	return r, errno
}

// ABI is the version of the interface that the kernel has, from 1; else the error is [ErrUnavailable].
func ABI() (int, error) { return abi(system) }

func abi(sys call) (int, error) {
	v, errno := sys(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, errno)
	}
	return int(v), nil //nolint:gosec // small
}

// handled are all rights to files that a version of the interface knows: those that no rule allows are taken away.
func handled(version int) uint64 {
	all := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM)<<1 - 1 // version 1 has the first thirteen
	if version >= 2 {
		all |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		all |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 5 {
		all |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return all
}

// onFiles are the rights that a rule for something other than a directory can have.
const onFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
	unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// rights are the kernel's for an access.
func rights(a Access, version int, dir bool) uint64 {
	var r uint64
	if a&Read != 0 {
		r |= unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	if a&Write != 0 {
		r |= unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
			unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if a&Execute != 0 {
		r |= unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE
	}
	if !dir {
		r &= onFiles
	}
	return r & handled(version)
}

// Resolve follows links, drops what does not exist, and puts the rules of one path together. Rules for the root of the file
// system would allow everything and are an error.
func Resolve(rules []Rule) ([]Rule, error) {
	byPath := map[string]Access{}
	for _, r := range rules {
		if !filepath.IsAbs(r.Path) {
			return nil, fmt.Errorf("sandbox: %q is not an absolute path", r.Path)
		}
		p, err := filepath.EvalSymlinks(r.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			continue
		case err != nil:
			return nil, fmt.Errorf("sandbox: %w", err)
		case p == "/":
			return nil, fmt.Errorf("sandbox: a rule for %s would allow everything", r.Path)
		}
		byPath[p] |= r.Access
	}
	out := make([]Rule, 0, len(byPath))
	for p, a := range byPath {
		out = append(out, Rule{p, a})
	}
	slices.SortFunc(out, func(a, b Rule) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// restrictThread takes the rights of the calling thread, which must be locked, away.
func restrictThread(rules []Rule, sys call) error {
	version, err := abi(sys)
	if err != nil {
		return err
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: handled(version)}
	// Only the first member: what later versions have added is not used, and earlier ones do not know it.
	fd, errno := sys(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("sandbox: make a rule set: %w", errno)
	}
	ruleset := int(fd) //nolint:gosec // a descriptor
	defer unix.Close(ruleset)
	for _, r := range rules {
		if err := addRule(ruleset, r, version, sys); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("sandbox: no_new_privs: %w", err)
	}
	if _, errno := sys(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("sandbox: restrict: %w", errno)
	}
	return nil
}

func addRule(ruleset int, r Rule, version int, sys call) error {
	at, err := unix.Open(r.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sandbox: open %s: %w", r.Path, err)
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return fmt.Errorf("sandbox: look at %s: %w", r.Path, err)
	}
	attr := unix.LandlockPathBeneathAttr{
		Allowed_access: rights(r.Access, version, st.Mode&unix.S_IFMT == unix.S_IFDIR), Parent_fd: int32(at), //nolint:gosec // a descriptor
	}
	if _, errno := sys(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr))); errno != 0 { //nolint:gosec // a descriptor
		return fmt.Errorf("sandbox: rule for %s: %w", r.Path, errno)
	}
	return nil
}

// Entered tells whether this process has replaced itself already.
func Entered() bool { return os.Getenv(envMark) == strconv.Itoa(os.Getpid()) }

// Enter restricts the process to the rules and begins it anew: it does not return unless that fails, and then the process
// is as it was. The program must be below a rule with Execute. Descriptors without FD_CLOEXEC stay open.
func Enter(rules []Rule, program string, args []string) error {
	rules, err := Resolve(rules)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with this goroutine should it be restricted for nothing.
		runtime.LockOSThread()
		err := restrictThread(rules, system)
		if errors.Is(err, unix.E2BIG) && Inside() == nil {
			err = nil // sixteen ancestors have restricted themselves: their rules have to do
		}
		if err == nil {
			env := append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, envMark+"=") }), envMark+"="+strconv.Itoa(os.Getpid()))
			err = fmt.Errorf("sandbox: begin anew: %w", syscall.Exec(program, args, env))
		}
		failed <- err
	}()
	return <-failed
}

// ErrOutside is a process that is not restricted.
var ErrOutside = errors.New("the process is not restricted")

// Inside looks whether the process is restricted: it tries what no rule can allow.
func Inside() error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		return ErrOutside
	case errors.Is(err, unix.EACCES):
		return nil
	}
	return fmt.Errorf("sandbox: look around: %w", err)
}
