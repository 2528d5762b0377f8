// Package exeid identifies the code that a process runs by the file it was started from: device, inode, size and time
// of the last change. The server compares the identity an instance reports with that of the installed file, and
// replaces instances with old code when they are idle (design D5).
//
// It says nothing about trust: the instance is the user's own process and may report what it likes, which gains it a
// restart at most.
package exeid

import (
	"fmt"
	"os"
	"syscall"
)

// Self is the path under which a process finds its own executable, also after the file has been replaced. It is not
// argv[0], which whoever starts the process may choose.
const Self = "/proc/self/exe"

// Of gives the identity of the executable at path.
func Of(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("identify executable: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("identify executable %s: no inode", path)
	}
	return fmt.Sprintf("%x-%x-%x-%x", st.Dev, st.Ino, st.Size, st.Mtim.Nano()), nil
}
