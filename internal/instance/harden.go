package instance

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/nodump"
)

// DefaultSocket is where the server is when standard input does not say.
const DefaultSocket = "/run/ucloud/ucloud.sock"

// Harden is the first thing a process does: it checks who it is, makes itself unreadable for the user's other
// programs and closes what it has inherited.
func Harden() error {
	if err := assertIdentity(); err != nil {
		return err
	}
	// The user's other processes must not read the key of the route out of this one.
	if err := nodump.Apply(); err != nil {
		return err
	}
	return closeInherited()
}

// assertIdentity refuses to run as root, with ids that differ, or with any capability.
func assertIdentity() error {
	ruid, euid, suid := unix.Getresuid()
	rgid, egid, sgid := unix.Getresgid()
	if ruid != euid || ruid != suid || rgid != egid || rgid != sgid {
		return errors.New("refusing to run with mixed user or group ids")
	}
	if ruid == 0 {
		return errors.New("refusing to run as root")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range caps { // the ambient set is a subset of these
		if c.Effective|c.Permitted|c.Inheritable != 0 {
			return errors.New("refusing to run with capabilities")
		}
	}
	return nil
}

// closeInherited closes descriptors from 3 upward, but the Go runtime's own. It reads the list with bare system calls:
// the os package would open the runtime's poller in between.
func closeInherited() error {
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	defer unix.Close(dir) //nolint:errcheck // nothing was written
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return fmt.Errorf("list descriptors: %w", err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd < 3 || fd == dir {
			continue
		}
		target := make([]byte, 64)
		n, err := unix.Readlinkat(dir, name, target)
		if err == nil && (string(target[:n]) == "anon_inode:[eventpoll]" || string(target[:n]) == "anon_inode:[eventfd]") {
			unix.CloseOnExec(fd)
			continue
		}
		unix.Close(fd) //nolint:errcheck // not ours
	}
	return nil
}

// readSocketPath reads the one line on standard input. An empty input gives the default.
func readSocketPath(in *os.File, patience time.Duration) (string, error) {
	// Bare polling: standard input may be anything, also something without deadlines.
	ready := make(chan struct{})
	timer := time.AfterFunc(patience, func() { close(ready) })
	defer timer.Stop()
	type result struct {
		line string
		err  error
	}
	ch := make(chan result, 1)
	go func() { // ends with the process if nobody ever writes or closes; the process ends in that case
		line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
		ch <- result{line, err}
	}()
	var r result
	select {
	case r = <-ch:
	case <-ready:
		return "", errors.New("nothing arrived on standard input")
	}
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return "", fmt.Errorf("read standard input: %w", r.err)
	}
	return parseSocketPath(r.line)
}

func parseSocketPath(line string) (string, error) {
	path := strings.TrimSuffix(line, "\n")
	if path == "" {
		return DefaultSocket, nil
	}
	if !filepath.IsAbs(path) || len(path) > 107 || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }) {
		return "", errors.New("standard input does not hold the absolute path of a socket")
	}
	return path, nil
}

// serverUID is the only account whose server we talk to: the one that ran sudo. Without sudo it is our own, which is
// the development mode. A user who starts the program by hand reaches nothing but a server of their own.
func serverUID() (ident.UID, error) {
	v, ok := os.LookupEnv("SUDO_UID")
	if !ok {
		return ident.UID(os.Getuid()), nil
	}
	return ident.ParseUID(v)
}

// adoptEnvironment replaces what sudo has left by an environment for the user's own programs, and moves to the home
// directory.
func adoptEnvironment(s ipcapi.Start) {
	os.Clearenv()
	shell := s.Shell
	if shell == "" {
		shell = "/bin/sh" // passwd(5)
	}
	for k, v := range map[string]string{
		"HOME": s.Home, "USER": s.LocalName, "LOGNAME": s.LocalName, "SHELL": shell,
		"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
	} {
		os.Setenv(k, v) //nolint:errcheck // fails for NUL bytes only, which NSS records cannot hold
	}
	if os.Chdir(s.Home) != nil {
		os.Chdir("/") //nolint:errcheck // the root directory is always there
	}
	syscall.Umask(s.Umask)
}

// applyLimits sets what a process can limit for itself and its children. The number of tasks is not among it:
// RLIMIT_NPROC counts all of the user's processes on the machine, and would stop the instance because of what the user
// does elsewhere; the server limits tasks through a cgroup where it has one.
func applyLimits(s ipcapi.Start) error {
	if s.OpenFiles > 0 {
		var cur unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &cur); err != nil {
			return fmt.Errorf("read limit of open files: %w", err)
		}
		want := unix.Rlimit{Cur: min(uint64(s.OpenFiles), cur.Max), Max: cur.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
			return fmt.Errorf("limit open files: %w", err)
		}
	}
	// RLIMIT_AS would count the Go runtime's address space reservations; RLIMIT_DATA counts what is really writable.
	if s.MemoryBytes >= minDataLimit {
		var cur unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_DATA, &cur); err != nil {
			return fmt.Errorf("read memory limit: %w", err)
		}
		want := unix.Rlimit{Cur: min(uint64(s.MemoryBytes), cur.Max), Max: cur.Max}
		if err := unix.Setrlimit(unix.RLIMIT_DATA, &want); err != nil {
			return fmt.Errorf("limit memory: %w", err)
		}
	}
	return nil
}

// minDataLimit is the smallest hard memory limit that makes sense: the runtime maps its heap in pieces of 64 MiB.
const minDataLimit = 256 << 20
