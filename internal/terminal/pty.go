package terminal

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// startOnTerminal starts the program in a session of its own with a new pseudo-terminal as its controlling one, and gives
// the other side of that (pty(7)). It can be read with deadlines.
func startOnTerminal(cmd *exec.Cmd, z size) (*os.File, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	ours := os.NewFile(uintptr(fd), "/dev/ptmx") // the runtime waits for it, since it does not block
	theirs, err := peer(fd)
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: z.cols, Row: z.rows})
	}
	if err != nil {
		ours.Close() //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("prepare a pseudo-terminal: %w", err)
	}
	defer theirs.Close() //nolint:errcheck // the program has its own
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // Ctty 0 is its standard input
	if err := cmd.Start(); err != nil {
		ours.Close() //nolint:errcheck // nothing was written
		return nil, err
	}
	return ours, nil
}

// peer unlocks and opens the side of the program.
func peer(fd int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
}

// setSize sets the size of a terminal; its programs are told.
func setSize(tty *os.File, z size) error {
	return control(tty, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: z.cols, Row: z.rows})
	})
}

// foregroundOf is the process group that a terminal belongs to now; 0: none.
func foregroundOf(tty *os.File) (group int) {
	_ = control(tty, func(fd int) (err error) { // 0 says it
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	return group
}

func control(f *os.File, do func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
