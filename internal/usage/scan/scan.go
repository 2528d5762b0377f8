package scan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options configure a scan.
type Options struct {
	// Rate is how many entries are looked at per second; 0 means [DefaultRate].
	Rate int
	// Save is told about the state every SaveEvery, between two entries. Its error ends the scan. Nil: nobody.
	Save      func(ctx context.Context, s State) error
	SaveEvery time.Duration // 0 means one minute
}

// DefaultRate is gentle: a metadata server does a hundred times as many.
const DefaultRate = 2000

const (
	window  = 32       // levels that are kept open; others are opened again on the way back
	bufSize = 16 << 10 // entries of a directory that are read at once
	burst   = 100      // entries between two looks at the clock
)

// Run scans the directory, from where state is, until the end or until ctx ends. The state that it returns is valid in
// both cases. The error is ctx's cause, that of Save, or tells that the directory itself cannot be read.
func Run(ctx context.Context, dir string, state State, o Options) (State, error) {
	if o.Rate <= 0 {
		o.Rate = DefaultRate
	}
	if o.SaveEvery <= 0 {
		o.SaveEvery = time.Minute
	}
	s := &scanner{dir: dir, o: o, totals: state.Totals, saved: time.Now(), resting: time.Now()}
	defer s.closeAll()
	if state.Done {
		return state, nil
	}
	if err := s.enter(state.Frames); err != nil {
		return state, err
	}
	for len(s.stack) > 0 {
		if err := s.step(ctx); err != nil {
			return s.state(), err
		}
	}
	end := s.state()
	end.Done = true
	return end, nil
}

// level is a directory that the scan is in.
type level struct {
	Frame
	fd   int    // -1: not open at the moment
	rest []byte // entries that were read and not yet looked at; from Cursor on
	eof  bool   // nothing follows rest
}

type scanner struct {
	dir    string
	o      Options
	totals Totals
	stack  []*level
	device uint64 // of the top; others are other file systems
	buf    []byte

	count   int       // entries since resting
	resting time.Time // when the pace was looked at last
	saved   time.Time
}

// state is valid between two steps.
func (s *scanner) state() State {
	out := State{Totals: s.totals}
	for _, l := range s.stack {
		out.Frames = append(out.Frames, l.Frame)
	}
	return out
}

// enter opens the top directory, and those below it that an earlier scan was in. What is not there any more, or is
// another directory by now, is left out.
func (s *scanner) enter(frames []Frame) error {
	fd, err := open(unix.AT_FDCWD, s.dir, 0) // the operator's path may hold links
	if err != nil {
		return fmt.Errorf("open %s: %w", s.dir, err)
	}
	top, err := newLevel(fd, "")
	if err != nil {
		return fmt.Errorf("look at %s: %w", s.dir, err)
	}
	s.device = top.Dev
	s.stack = []*level{top}
	if len(frames) == 0 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at %s: %w", s.dir, err)
		}
		s.totals.Bytes = add(s.totals.Bytes, st.Blocks*512)
		return nil
	}
	if frames[0].Dev != top.Dev || frames[0].Ino != top.Ino {
		s.totals = Totals{} // another directory: from the beginning
		return nil
	}
	top.Cursor = frames[0].Cursor
	for _, f := range frames[1:] {
		if !s.down(string(f.Name), &f) {
			s.totals.Lost++
			break
		}
		s.top().Cursor = f.Cursor
	}
	return nil
}

func (s *scanner) top() *level { return s.stack[len(s.stack)-1] }

// step looks at one entry, or leaves a directory.
func (s *scanner) step(ctx context.Context) error {
	if err := s.pace(ctx); err != nil {
		return err
	}
	l := s.top()
	if l.fd < 0 && !s.reopen() {
		return nil
	}
	name, kind, next, ok := l.next()
	if !ok {
		if l.eof {
			s.up()
			return nil
		}
		s.fill(l)
		return nil
	}
	// Counted or not, the entry is done with: what follows must not be able to bring the scan back to it.
	l.Cursor = next
	s.count++
	s.look(l, name, kind)
	return nil
}

// look counts an entry and enters it if it is a directory.
func (s *scanner) look(l *level, name string, kind byte) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(l.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return // gone meanwhile
	case err != nil:
		s.totals.Unreadable++
		return
	case st.Dev != s.device:
		return // another file system is mounted here
	}
	s.totals.Files++
	s.totals.Bytes = add(s.totals.Bytes, share(&st))
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || kind == unix.DT_LNK {
		return
	}
	if len(s.stack) >= maxDepth || !s.down(name, &Frame{Dev: st.Dev, Ino: st.Ino}) {
		s.totals.Unreadable++
	}
}

// share is the part of an inode's blocks that one of its names stands for.
func share(st *unix.Stat_t) int64 {
	size := max(st.Blocks, 0) * 512
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		size /= int64(st.Nlink) //nolint:gosec // far below 2^63
	}
	return size
}

// down enters an entry of the top directory if it still is the expected directory.
func (s *scanner) down(name string, want *Frame) bool {
	fd, err := open(s.top().fd, name, unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	l, err := newLevel(fd, name)
	if err != nil || l.Dev != want.Dev || l.Ino != want.Ino {
		unix.Close(fd)
		return false
	}
	s.stack = append(s.stack, l)
	if far := len(s.stack) - 1 - window; far > 0 { // the top stays open
		s.stack[far].close()
	}
	return true
}

// up leaves the top directory.
func (s *scanner) up() {
	s.top().close()
	s.stack = s.stack[:len(s.stack)-1]
}

// reopen opens the last directories of the stack again, on the way that the scan has come. If that way does not exist
// any more, what lies below where it ends is lost.
func (s *scanner) reopen() bool {
	first := max(1, len(s.stack)-window) // that stays open
	at := s.stack[0].fd
	passing := func() { // closes what is only passed through
		if at != s.stack[0].fd {
			unix.Close(at)
		}
	}
	for i, l := range s.stack[1:] {
		i++
		next, err := open(at, string(l.Name), unix.O_NOFOLLOW)
		if i <= first {
			passing()
		}
		if err == nil && !l.is(next) {
			unix.Close(next)
			err = unix.ESTALE
		}
		if err != nil {
			for len(s.stack) > i {
				s.totals.Lost++
				s.up()
			}
			return false
		}
		if i >= first {
			l.close()
			l.fd = next
		}
		at = next
	}
	return true
}

// is tells whether a descriptor is of the directory.
func (l *level) is(fd int) bool {
	other, err := newLevel(fd, "")
	return err == nil && other.Dev == l.Dev && other.Ino == l.Ino
}

// fill reads more entries. Reading begins at the cursor, wherever the descriptor stands.
func (s *scanner) fill(l *level) {
	if s.buf == nil {
		s.buf = make([]byte, bufSize)
	}
	var n int
	_, err := unix.Seek(l.fd, l.Cursor, 0)
	if err == nil {
		err = retry(func() (err error) { n, err = unix.Getdents(l.fd, s.buf); return err })
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: it was removed
		s.totals.Unreadable++
	}
	if err != nil || n == 0 {
		l.rest, l.eof = nil, true
		return
	}
	l.rest = append(l.rest[:0], s.buf[:n]...)
}

// next takes the next entry that was read (struct linux_dirent64, getdents(2)).
func (l *level) next() (name string, kind byte, next int64, ok bool) {
	const header = 19 // d_ino 0, d_off 8, d_reclen 16, d_type 18, d_name 19
	for len(l.rest) > header {
		rec := l.rest
		size := int(binary.NativeEndian.Uint16(rec[16:]))
		if size <= header || size > len(rec) {
			break // cannot happen; a broken record must not become an endless loop
		}
		l.rest = rec[size:]
		next = int64(binary.NativeEndian.Uint64(rec[8:])) //nolint:gosec // an opaque 64 bit value
		name, _, _ = strings.Cut(string(rec[header:size]), "\x00")
		if name != "." && name != ".." && name != "" {
			return name, rec[18], next, true
		}
		l.Cursor = next
	}
	l.rest = nil
	return "", 0, 0, false
}

// pace keeps to the rate, and has the state saved from time to time.
func (s *scanner) pace(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.count < burst {
		return nil
	}
	due := s.resting.Add(time.Duration(float64(s.count) / float64(s.o.Rate) * float64(time.Second)))
	s.count = 0
	if wait := time.Until(due); wait > 0 {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
	s.resting = time.Now()
	if s.o.Save == nil || time.Since(s.saved) < s.o.SaveEvery {
		return nil
	}
	if err := s.o.Save(ctx, s.state()); err != nil {
		return fmt.Errorf("save the state of a scan: %w", err)
	}
	s.saved = time.Now()
	return nil
}

func (s *scanner) closeAll() {
	for _, l := range s.stack {
		l.close()
	}
}

func newLevel(fd int, name string) (*level, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return &level{Frame: Frame{Name: []byte(name), Dev: st.Dev, Ino: st.Ino}, fd: fd}, nil
}

func (l *level) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd, l.rest, l.eof = -1, nil, false
}

func open(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC|flags, 0)
		if errors.Is(err, unix.EPERM) { // O_NOATIME is for owners only (open(2))
			fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
		}
		return err
	})
	return fd, err
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// add adds sizes; what does not fit becomes the largest number.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
