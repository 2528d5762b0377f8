package joblogs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watcher is the process's one inotify instance: a user may have 128 of them (inotify(7)). It exists while somebody is
// subscribed.
type watcher struct {
	mu   sync.Mutex // guards the fields below
	file *os.File   // nil while nobody is subscribed
	subs map[int]map[*subscription]struct{}
	done chan struct{} // closed when the reader of file has ended
}

// maxChanged is how many names a subscription notes before it says that everything may have changed.
const maxChanged = 1024

// subscription is the interest in one directory.
type subscription struct {
	wake chan struct{} // has an element when there is something to take

	mu      sync.Mutex // guards the fields below
	changed map[string]struct{}
	all     bool

	wd int
}

// take gives the names of what has changed since the last call; all: everything may have.
func (s *subscription) take() (changed map[string]struct{}, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed, all = s.changed, s.all
	s.changed, s.all = nil, false
	return changed, all
}

func (s *subscription) note(name string) {
	s.mu.Lock()
	switch {
	case name == "" || len(s.changed) >= maxChanged:
		s.all = true
	case s.changed == nil:
		s.changed = map[string]struct{}{name: {}}
	default:
		s.changed[name] = struct{}{}
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// events are what changes a log: writing, and names that come to be. IN_ATTRIB tells of a truncation, too.
const events = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB

// subscribe watches the directory behind a descriptor.
func (w *watcher) subscribe(dir int) (*subscription, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("inotify: %w", err)
		}
		w.file, w.subs, w.done = os.NewFile(uintptr(fd), "inotify"), map[int]map[*subscription]struct{}{}, make(chan struct{})
		go w.read(w.file, w.done)
	}
	var wd int
	err := w.controlLocked(func(fd int) (err error) {
		wd, err = unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", dir), events|unix.IN_ONLYDIR|unix.IN_EXCL_UNLINK)
		return err
	})
	if err != nil {
		w.closeUnusedLocked()
		return nil, fmt.Errorf("watch a folder: %w", err)
	}
	s := &subscription{wake: make(chan struct{}, 1), wd: wd}
	if w.subs[wd] == nil { // two folders with one inode have one watch
		w.subs[wd] = map[*subscription]struct{}{}
	}
	w.subs[wd][s] = struct{}{}
	return s, nil
}

func (w *watcher) controlLocked(do func(fd int) error) error {
	rc, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// end gives a subscription back.
func (w *watcher) end(s *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.subs[s.wd]
	if _, ok := all[s]; !ok {
		return
	}
	delete(all, s)
	if len(all) == 0 {
		delete(w.subs, s.wd)
		_ = w.controlLocked(func(fd int) error { // it may be gone with its directory
			_, err := unix.InotifyRmWatch(fd, uint32(s.wd))
			return err
		})
	}
	w.closeUnusedLocked()
}

// closeUnusedLocked ends the reader when nobody is subscribed, and waits for it.
func (w *watcher) closeUnusedLocked() {
	if len(w.subs) > 0 {
		return
	}
	w.file.Close() //nolint:errcheck // it wakes the reader
	w.file = nil
	done := w.done
	w.mu.Unlock()
	<-done
	w.mu.Lock()
}

// calm is between two looks at the events: a program that writes byte by byte makes one event for each, and the kernel
// merges those that wait.
const calm = 20 * time.Millisecond

// read tells the subscribers, until the file is closed.
func (w *watcher) read(f *os.File, done chan struct{}) {
	defer close(done)
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.tell(f, -1, "")
			}
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd, mask, name, size := parseEvent(p)
			if size > len(p) {
				break
			}
			p = p[size:]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				wd = -1
			}
			w.tell(f, wd, name)
		}
		time.Sleep(calm)
	}
}

// tell notes a change in a directory; wd < 0: anywhere.
func (w *watcher) tell(f *os.File, wd int, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != f {
		return
	}
	if wd >= 0 {
		for s := range w.subs[wd] {
			s.note(name)
		}
		return
	}
	for _, subs := range w.subs {
		for s := range subs {
			s.note("")
		}
	}
}

// parseEvent reads struct inotify_event (inotify(7)).
func parseEvent(p []byte) (wd int, mask uint32, name string, size int) {
	word := func(off int) uint32 {
		return uint32(p[off]) | uint32(p[off+1])<<8 | uint32(p[off+2])<<16 | uint32(p[off+3])<<24
	}
	size = unix.SizeofInotifyEvent + int(word(12))
	if size <= len(p) {
		name = strings.TrimRight(string(p[unix.SizeofInotifyEvent:size]), "\x00")
	}
	return int(int32(word(0))), word(4), name, size
}
