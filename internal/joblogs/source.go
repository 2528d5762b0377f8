package joblogs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/textstream"
)

const (
	// pieceBytes is how much is read, and sent, at a time.
	pieceBytes = 64 << 10
	// turnPieces is how many pieces of one file are sent before another one has its turn.
	turnPieces = 8
	// minShare is how much of a file is shown at least, however many there are.
	minShare = 8 << 10
	// maxRanks bounds the files that a follower knows of; no job has as many nodes.
	maxRanks = 10_000
	// lineLook is how far a start in the middle of a file may move to begin with a line.
	lineLook = 4 << 10
)

// source is one file of the log.
type source struct {
	name   string
	rank   int
	stderr bool

	dev, ino uint64 // 0: not seen yet
	off      int64
	text     textstream.Decoder
}

// sourceOf tells whether a name in the folder is a part of the log.
func sourceOf(name string, ranks int) *source {
	switch name {
	case "stdout.txt":
		return &source{name: name}
	case "stderr.txt":
		return &source{name: name, stderr: true}
	}
	mid, ok := strings.CutPrefix(name, "std-")
	if !ok {
		return nil
	}
	digits, out := strings.CutSuffix(mid, ".out")
	stderr := false
	if !out {
		if digits, stderr = strings.CutSuffix(mid, ".err"); !stderr {
			return nil
		}
	}
	rank, err := strconv.Atoi(digits)
	if err != nil || rank < 0 || rank >= min(ranks, maxRanks) || strconv.Itoa(rank) != digits {
		return nil
	}
	return &source{name: name, rank: rank, stderr: stderr}
}

// folder is the open folder of a job.
type folder struct {
	fd      int
	sources map[string]*source
	order   []*source // as they were found
}

// openFolder opens the folder. Links on the way to it are the operator's; the folder itself is none.
func openFolder(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the job's folder: %w", err)
	}
	return &folder{fd: fd, sources: map[string]*source{}}, nil
}

func (f *folder) close() { unix.Close(f.fd) } //nolint:errcheck // nothing was written

// gone tells whether the folder has been removed.
func (f *folder) gone() bool {
	var st unix.Stat_t
	return unix.Fstat(f.fd, &st) != nil || st.Nlink == 0
}

// local are file systems on which inotify sees every change (numbers from statfs(2) and the Linux sources).
func (f *folder) local() bool {
	const zfs, f2fs, bcachefs = 0x2FC12FC1, 0xF2F52010, 0xCA451A4E
	var st unix.Statfs_t
	if unix.Fstatfs(f.fd, &st) != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, zfs, f2fs, bcachefs:
		return true
	}
	return false
}

// find looks for files that were not known.
func (f *folder) find(ranks int) error {
	fd, err := unix.Openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list the job's folder: %w", err)
	}
	dir := os.NewFile(uintptr(fd), "job folder")
	defer dir.Close() //nolint:errcheck // nothing was written
	for {
		names, err := dir.Readdirnames(512) // a job may leave any number of files here
		for _, name := range names {
			f.add(name, ranks)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the job's folder: %w", err)
		}
	}
}

func (f *folder) add(name string, ranks int) *source {
	if s := f.sources[name]; s != nil {
		return s
	}
	s := sourceOf(name, ranks)
	if s != nil {
		f.sources[name] = s
		f.order = append(f.order, s)
	}
	return s
}

// sink takes the text of a source as a JSON string; what it returns ends the reading.
type sink func(s *source, quoted []byte) error

// skips say how far back a reading begins.
type skips struct {
	first int64 // of a file that is seen for the first time: this much of its end
	lag   int64 // if a file has more than this that was not sent, only its end is
}

// scratch is memory of a follower.
type scratch struct {
	buf    [pieceBytes]byte
	quoted []byte
}

// read sends what is new in a source, for one turn; more: there was more.
func (f *folder) read(s *source, skip skips, m *scratch, send sink) (more bool, err error) {
	buf := m.buf[:]
	var st unix.Stat_t
	if err := unix.Fstatat(f.fd, s.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, nil // not there, any more or yet, or not ours to read
	}
	s.settle(&st)
	if st.Size <= s.off {
		return false, nil
	}
	fd, err := unix.Openat(f.fd, s.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil //nolint:nilerr // not there any more, or not for us
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, nil //nolint:nilerr // it was replaced meanwhile, by something that we do not read
	}
	s.settle(&st)
	if err := s.skip(fd, st.Size, skip, buf, send); err != nil {
		return false, err
	}
	for range turnPieces {
		n, err := pread(fd, buf, s.off)
		if n == 0 || err != nil {
			return false, nil //nolint:nilerr // what cannot be read now is tried again when it changes
		}
		s.off += int64(n)
		m.quoted = s.text.AppendQuoted(m.quoted[:0], buf[:n])
		if err := send(s, m.quoted); err != nil {
			return false, err
		}
	}
	return true, nil
}

func pread(fd int, buf []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, off)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// settle notices another file under the name, and one that became shorter: both are read from their start.
func (s *source) settle(st *unix.Stat_t) {
	if s.dev == st.Dev && s.ino == st.Ino && st.Size >= s.off {
		return
	}
	s.dev, s.ino, s.off = st.Dev, st.Ino, 0
	s.text.Reset()
}

// skip moves forward when there is more than is to be shown, and says so.
func (s *source) skip(fd int, size int64, skip skips, buf []byte, send sink) error {
	limit := skip.lag
	if s.off == 0 {
		limit = skip.first
	}
	if size-s.off <= limit {
		return nil
	}
	from := size - min(limit, skip.first)
	// It begins with a line, if there is one near.
	if n, _ := pread(fd, buf[:min(lineLook, len(buf))], from); n > 0 {
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			from += int64(i) + 1
		} else {
			for i := 0; i < min(n, 3) && buf[i]&0xc0 == 0x80; i++ { // the rest of a UTF-8 sequence
				from++
			}
		}
	}
	note := fmt.Sprintf("[%s of the log are left out here. The file %s in the folder of the job has all of it.]\n", sizeText(from-s.off), s.name)
	if s.off > 0 {
		note = "\n" + note
	}
	s.off = from
	s.text.Reset()
	return send(s, textstream.AppendString(nil, note))
}

// sizeText is a size for people.
func sizeText(n int64) string {
	const unit = 1 << 10
	if n < unit {
		return fmt.Sprintf("%d bytes", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < 4; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}

// rest sends what a source still holds back, as the job has ended.
func (s *source) rest(send sink) error {
	if s.text.Held() == 0 {
		return nil
	}
	return send(s, s.text.AppendRest(nil))
}
