package instance

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// logWriter writes log lines to standard error, which is a pipe to the server. It drops a line when the pipe is full
// or broken: a server that is away or busy must not stop the instance.
type logWriter struct {
	fd      int
	mu      sync.Mutex // keeps lines whole; held over a write that does not block
	dropped atomic.Uint64
}

// newLogWriter makes fd 2 non-blocking if it is a pipe. A terminal is left alone, it is shared with others.
func newLogWriter() *logWriter {
	var st unix.Stat_t
	if unix.Fstat(2, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
		unix.SetNonblock(2, true) //nolint:errcheck // lines would block then, nothing worse
	}
	return &logWriter{fd: 2}
}

// Write never fails: a logger has nobody to tell.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		n, err := unix.Write(w.fd, rest)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			w.dropped.Add(1)
			break
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// redirect makes f the standard output and error of this process and of its children.
func (w *logWriter) redirect(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var inner error
	err = rc.Control(func(fd uintptr) {
		unix.SetNonblock(int(fd), true) //nolint:errcheck // as in newLogWriter
		for _, std := range []int{1, 2} {
			if inner = unix.Dup3(int(fd), std, 0); inner != nil {
				return
			}
		}
	})
	if err == nil {
		err = inner
	}
	return err
}
