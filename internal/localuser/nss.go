package localuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// exitNotFound is getent's status for a key without a record (getent(1)).
const exitNotFound = 2

var errNoRecord = errors.New("no such record")

// tool runs one NSS program and returns its standard output, also if it ends with a status other than 0: getent prints
// the records it has found and then says that others are missing.
type tool func(ctx context.Context, program string, args ...string) (out []byte, exit int, err error)

// runTool starts the program in its own process group with an empty environment. The output is cut at limit bytes,
// which makes it malformed rather than silently shorter.
func runTool(timeout time.Duration, limit int) tool {
	return func(ctx context.Context, program string, args ...string) ([]byte, int, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second
		stdout := &limitedBuffer{limit: limit}
		stderr := &limitedBuffer{limit: 2048}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("%s %s: no answer within %v: %w", program, args[0], timeout, ctx.Err())
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
			if stdout.cut {
				stdout.b.Reset()
			}
			return stdout.b.Bytes(), exit.ExitCode(), fmt.Errorf("%s %s: exit status %d: %s", program, args[0], exit.ExitCode(),
				strings.TrimSpace(stderr.b.String()))
		}
		if err != nil {
			return nil, 0, fmt.Errorf("run %s: %w", program, err)
		}
		if stdout.cut {
			return nil, 0, fmt.Errorf("%s %s: more than %d bytes of output", program, args[0], limit)
		}
		return stdout.b.Bytes(), 0, nil
	}
}

// limitedBuffer keeps the first limit bytes and swallows the rest, so that the program is not stopped by a full pipe.
// The buffer is not embedded: its ReadFrom would go round Write.
type limitedBuffer struct {
	b     bytes.Buffer
	limit int
	cut   bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.b.Len(); room < len(p) {
		b.cut = true
		b.b.Write(p[:room])
		return len(p), nil
	}
	return b.b.Write(p)
}

// Stamp identifies the state of the local account files. Looking at it costs a few microseconds, and lets the cache
// drop what an administrator has just changed with usermod or gpasswd. Directories behind SSSD or LDAP do not show
// here; for them the cache's time to live counts.
type Stamp [5]fileStamp

type fileStamp struct {
	ino, size int64
	mtime     int64
}

func fileStampOf(path string) fileStamp {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return fileStamp{}
	}
	return fileStamp{ino: int64(st.Ino), size: st.Size, mtime: st.Mtim.Nano()}
}

func accountFiles() Stamp {
	return Stamp{
		fileStampOf("/etc/passwd"), fileStampOf("/etc/group"), fileStampOf("/etc/shadow"),
		fileStampOf("/etc/nsswitch.conf"), fileStampOf("/etc/gshadow"),
	}
}

// readable tells whether this process may read path. getent shows "not allowed" and "no such record" alike, so that
// this is the only way to know whether the shadow database can be asked.
func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
