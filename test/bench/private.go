//go:build bench

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// privateEnv tells the program that it has a private /etc already: why not, if it could not have one.
const privateEnv = "BENCH_PRIVATE_ETC"

// outsideEnv is the descriptor of the mount namespace in which the program was started.
const outsideEnv = "BENCH_OUTSIDE"

// withPrivateEtc starts the program again with a copy of /etc that only it and its children see. Then the hundreds of
// accounts never exist for the rest of the machine, nothing is left of them even after kill -9, and other programs that
// change accounts do not make our server look at all of its instances while it is watched.
//
// It comes back if that has been done before, or if it is not possible: some containers forbid it. Everything works with
// the real /etc as well.
func withPrivateEtc() {
	if os.Geteuid() != 0 || os.Getenv(privateEnv) != "" {
		return
	}
	// Namespaces belong to threads. The one that executes the program anew becomes its first, and the others end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	why := "yes"
	outside, nsErr := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY, 0) // stays open in the new program
	self, err := os.Executable()
	if err == nil {
		err = errors.Join(nsErr, copyEtc())
	}
	if err != nil {
		why = err.Error()
	}
	if self == "" {
		return
	}
	err = unix.Exec(self, os.Args, append(os.Environ(), privateEnv+"="+why, outsideEnv+"="+strconv.Itoa(outside)))
	fmt.Fprintln(os.Stderr, "bench: start again:", err)
	os.Exit(1)
}

// outside gives the program and first arguments that run a command with the real /etc, in a directory: accounts that other
// programs of the machine are to know must be there.
func outside(dir string) []string {
	run := []string{"env", "--chdir=" + dir}
	if fd := os.Getenv(outsideEnv); fd != "" {
		run = append([]string{"nsenter", fmt.Sprintf("--mount=/proc/%d/fd/%s", os.Getpid(), fd), "--"}, run...)
	}
	return run
}

// keepOutside keeps the descriptor of [outside] from programs that are started.
func keepOutside() {
	if fd, err := strconv.Atoi(os.Getenv(outsideEnv)); err == nil {
		unix.CloseOnExec(fd)
	}
}

// copyEtc makes a mount namespace in which a copy of /etc in memory stands in place of the real one.
func copyEtc() (err error) {
	dir, err := os.MkdirTemp("", "imt-bench-etc-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Nothing that is mounted from here on may appear outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bench-etc", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	if out, err := exec.Command("cp", "-a", "/etc/.", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy /etc: %w: %s", err, out)
	}
	if err := unix.Mount(dir, "/etc", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on /etc: %w", err)
	}
	return nil
}
