package handover

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Notifier tells the service manager about the state of this process (sd_notify(3)). The zero value, and a nil pointer,
// tell nobody. Errors are returned for the log only: no state of ours depends on them.
type Notifier struct{ address string }

// NewNotifier reads NOTIFY_SOCKET, which stays set for a successor.
func NewNotifier() *Notifier { return &Notifier{address: os.Getenv("NOTIFY_SOCKET")} }

// Ready says that the process serves.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Reloading says that the configuration is being read again; [Notifier.Ready] ends that state.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return n.send("RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10))
}

// Stopping says that the process is about to end.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// MainPID says that another process is the service from now on.
func (n *Notifier) MainPID(pid int) error { return n.send("MAINPID=" + strconv.Itoa(pid)) }

// Status shows a line in the service manager.
func (n *Notifier) Status(line string) error {
	return n.send("STATUS=" + strings.ReplaceAll(line, "\n", " "))
}

func (n *Notifier) send(state string) error {
	if n == nil || n.address == "" {
		return nil
	}
	name := n.address
	if name[0] == '@' { // abstract
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
