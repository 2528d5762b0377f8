// Package nodump keeps the memory of a process to itself.
package nodump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Apply forbids core files, and makes the process not dumpable: other processes of the account may not attach to it or
// read its memory and environment (prctl(2), PR_SET_DUMPABLE; ptrace(2)). /proc/self stays usable for the process itself.
// Programs that it starts are dumpable again; the limit they inherit.
func Apply() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
