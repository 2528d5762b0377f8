package ipc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors from a client are hostile objects. The danger is not what they refer to but that close(2) may block:
//
//   - a file on a FUSE file system is flushed by close, and the user's own FUSE daemon may never answer;
//   - close of a TCP socket waits for SO_LINGER if ours is the last reference and data is unsent.
//
// A blocked close holds an OS thread, and Go gives up at 10,000 threads. So nothing of a kind whose close can block is
// handed to handlers, lingering is switched off, and what must be closed all the same is closed on the side, counted
// for the sender's uid. (The kernel does not flush descriptors that it discards before they are installed, but we only
// know what one is after it has been installed.)

// errFileKind tells that a descriptor is not of a kind a client may send.
var errFileKind = errors.New("only sockets, pipes and pidfds may be sent")

// quickToClose tells whether closing fd cannot block. It asks nothing of the file system the file is on: fstat could
// block as well as close.
func quickToClose(fd int) bool {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
		// The sender can switch lingering on again through its duplicate, but as long as it holds one ours is not
		// the last reference.
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) == nil
	}
	// These texts come from the kernel's own pseudo file systems; the text for any other file begins with a slash.
	target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return err == nil && (strings.HasPrefix(target, "pipe:[") || target == "anon_inode:[pidfd]")
}

// checkFiles tells whether all descriptors are of a kind that may be given to a handler.
func checkFiles(fds []int) error {
	for _, fd := range fds {
		if !quickToClose(fd) {
			return errFileKind
		}
	}
	return nil
}

// discard closes descriptors that a client sent and nobody takes.
func (s *Server) discard(a *account, fds []int) {
	for _, fd := range fds {
		if quickToClose(fd) {
			s.closeFD(fd) //nolint:errcheck // nothing was written through it
			continue
		}
		s.quota.hang(a, +1)
		// Nobody waits for this goroutine, on purpose: it may never end, and must not keep the server from stopping.
		go func() {
			s.closeFD(fd) //nolint:errcheck // as above
			s.quota.hang(a, -1)
		}()
	}
}

// newFiles turns descriptors into files; the names are for error messages only.
func newFiles(fds []int) []*os.File {
	if len(fds) == 0 {
		return nil
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("received descriptor %d", i))
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() //nolint:errcheck // nothing was written through it
	}
}
