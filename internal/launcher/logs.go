package launcher

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"ucloud-im/internal/ident"
)

const (
	ringBytes    = 64 << 10 // of the last output of each user, kept in memory for diagnosis
	logRate      = 64 << 10 // bytes per second that one user may add to their log file
	logBurst     = 256 << 10
	logFileBytes = 8 << 20 // then the file is rotated
	logFilesKept = 3
)

// userLog receives what an instance writes to its standard error: the end of it stays in memory, and all of it, up to
// a rate, goes to users/<uid>.log below the log directory. The content comes from a process of the user and is
// untrusted: it is written as it is, and never interpreted.
type userLog struct {
	dir  *privateDir // nil: memory only
	name string
	log  *slog.Logger

	mu      sync.Mutex // guards the fields below; held over writes to the local log file
	ring    []byte
	pos     int
	full    bool
	total   uint64 // bytes that have ever arrived
	limit   *rate.Limiter
	dropped int
	failed  bool // the last write failed; said once
}

func newUserLog(dir *privateDir, uid ident.UID, log *slog.Logger) *userLog {
	return &userLog{dir: dir, name: uid.String() + ".log", log: log, limit: rate.NewLimiter(logRate, logBurst)}
}

// pump copies from an instance's standard error until all writers have closed it, or r is closed.
func (u *userLog) pump(r *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			u.add(buf[:n], time.Now())
		}
		if err != nil {
			return
		}
	}
}

func (u *userLog) add(p []byte, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remember(p)
	if u.dir == nil {
		return
	}
	if !u.limit.AllowN(now, len(p)) {
		u.dropped += len(p)
		return
	}
	if u.dropped > 0 {
		p = append([]byte("\n["+strconv.Itoa(u.dropped)+" bytes were dropped here, the limit is "+
			strconv.Itoa(logRate)+" per second]\n"), p...)
		u.dropped = 0
	}
	err := u.write(p)
	if err != nil && !u.failed {
		u.log.Error("user log cannot be written", "error", err)
	}
	u.failed = err != nil
}

// remember keeps the last [ringBytes] bytes. The buffer grows with need: most instances write next to nothing.
func (u *userLog) remember(p []byte) {
	u.total += uint64(len(p))
	if len(p) > ringBytes {
		p = p[len(p)-ringBytes:]
	}
	if !u.full {
		room := ringBytes - len(u.ring)
		n := min(room, len(p))
		u.ring = append(u.ring, p[:n]...)
		p = p[n:]
		u.full = len(u.ring) == ringBytes
	}
	for len(p) > 0 {
		n := copy(u.ring[u.pos:], p)
		p = p[n:]
		u.pos = (u.pos + n) % ringBytes
	}
}

// tail gives the last output, at most limit bytes.
func (u *userLog) tail(limit int) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]byte, 0, len(u.ring))
	all = append(all, u.ring[u.pos:]...)
	all = append(all, u.ring[:u.pos]...)
	return string(all[max(0, len(all)-limit):])
}

// mark is a place in the output, for since.
func (u *userLog) mark() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.total
}

// since gives what has arrived after the mark, at most the last limit bytes.
func (u *userLog) since(mark uint64, limit int) string {
	return u.tail(int(min(u.mark()-mark, uint64(limit))))
}

// write appends to the file. The file is opened each time: output is rare, and thousands of open files are not free.
func (u *userLog) write(p []byte) error {
	f, err := u.dir.open(u.name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // a log line; the write reports
	if _, err := f.Write(p); err != nil {
		return fmt.Errorf("append: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if info.Size() < logFileBytes {
		return nil
	}
	for i := logFilesKept - 1; i > 0; i-- {
		if err := u.dir.rename(u.name+"."+strconv.Itoa(i), u.name+"."+strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	return u.dir.rename(u.name, u.name+".1")
}
