package drives

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Beneath opens a directory below d. rel consists of names joined with '/'. Unlike [Local.OpenDir] it follows links only
// as long as they stay below d itself, whatever the policy of the drive: rel may come from a stranger, who was given d
// and nothing else (contract 11, containment of listings). A link that leaves gives [ErrOutside].
func (d *Dir) Beneath(rel string) (*Dir, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	var (
		fd  int
		err error
	)
	if d.root.set.openat2 {
		fd, err = openat2(d.fd, rel, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	} else {
		fd, err = openWalk(d.fd, rel, flags)
	}
	if errors.Is(err, unix.EXDEV) {
		err = ErrOutside
	}
	if err != nil {
		return nil, err
	}
	return &Dir{root: d.root, path: d.path.Join(rel), fd: fd}, nil
}

// MakeBeneath is [Dir.Beneath], making what is missing. A directory that somebody else makes at the same time is as good
// as one of our own.
func (d *Dir) MakeBeneath(rel string, mode uint32) (*Dir, error) {
	sub, err := d.Beneath(rel)
	if !errors.Is(err, unix.ENOENT) {
		return sub, err
	}
	parent, name := d, rel
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		if parent, err = d.MakeBeneath(rel[:i], mode); err != nil {
			return nil, err
		}
		defer parent.Close()
		name = rel[i+1:]
	}
	switch err := parent.Mkdir(name, mode); {
	case errors.Is(err, unix.EEXIST):
		return d.Beneath(rel) // made meanwhile, or a dangling link, which stays an error
	case err != nil:
		return nil, err
	}
	return parent.OpenChild(name)
}

// Changeable asks the kernel whether the user may make and remove entries; access lists count.
func (d *Dir) Changeable() error {
	return unix.Faccessat(d.fd, ".", unix.W_OK|unix.X_OK, 0)
}

// Sync flushes the entries of the directory to the disk. Where that is not possible, because the user may not read the
// directory or the file system knows no such call, nothing is done: the file system orders its changes by itself.
func (d *Dir) Sync() error {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	})
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil
	case err != nil:
		return fmt.Errorf("open directory to flush it: %w", err)
	}
	defer unix.Close(fd)
	err = fsync(fd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

// OpenFile opens a regular file for reading. A link is refused, whatever the policy, as is everything that could block
// ([ErrNotRegular]).
func (d *Dir) OpenFile(name string) (*os.File, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	// Opening without reading and looking first costs two calls more; opening a device can have effects.
	probe, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(probe)
	var st unix.Stat_t
	if err := unix.Fstat(probe, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrNotRegular
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(fmt.Sprintf("/proc/self/fd/%d", probe), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// The form of the names of drafts: "." + the target's name + draftMark + 16 hexadecimal digits.
const (
	draftMark   = ".ucloud-upload-"
	draftDigits = 16
)

// draftName is the name of a draft for a target. A long target is cut between two characters.
func draftName(target, digits string) string {
	for len(target) > MaxName-1-len(draftMark)-draftDigits {
		_, size := utf8.DecodeLastRuneInString(target)
		target = target[:len(target)-size]
	}
	return "." + target + draftMark + digits
}

// IsDraft tells whether a name is one that drafts have. Such files are removed when they are old; nobody else should
// use such names.
func IsDraft(name string) bool {
	i := len(name) - draftDigits - len(draftMark)
	if i < 1 || name[0] != '.' || name[i:i+len(draftMark)] != draftMark {
		return false
	}
	return strings.Trim(name[i+len(draftMark):], "0123456789abcdef") == ""
}

// Draft is a new file that is being written under a hidden name beside its target. It gets the target's name when it is
// complete, or goes away. The methods may be called from one goroutine at a time.
type Draft struct {
	dir     *Dir
	fd      int
	name    string
	unnamed bool // it has no name yet
	temps   *Temps
	gone    bool // renamed or removed
}

// NewDraft makes an empty draft in the directory. The directory must stay open until the draft is closed. The name is
// new: an existing file or link is never opened (O_EXCL). The umask applies.
func (d *Dir) NewDraft(target string, mode uint32) (*Draft, error) {
	if err := CheckName(target); err != nil {
		return nil, err
	}
	for {
		f, err := d.openDraft(draftName(target, draftDigitsOf()), unix.O_CREAT|unix.O_EXCL, mode)
		if !errors.Is(err, unix.EEXIST) {
			return f, err
		}
	}
}

// ErrDraftBusy is a kept draft that somebody else has open.
var ErrDraftBusy = errors.New("the draft is in use")

// KeptDraft opens or makes a draft that outlives the process: the same digits find it again. Digits are 16 hexadecimal
// digits that only the owner can know. It is locked (flock(2)) where the file system can do that, also against a process
// that is about to be replaced by this one; [ErrDraftBusy] means that another has the lock.
func (d *Dir) KeptDraft(target, digits string, mode uint32) (*Draft, error) {
	if err := CheckName(target); err != nil {
		return nil, err
	}
	if len(digits) != draftDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: digits of a draft", ErrName)
	}
	for range 10 {
		f, err := d.openDraft(draftName(target, digits), unix.O_CREAT|unix.O_NONBLOCK, mode)
		if err != nil {
			return nil, err
		}
		same, err := f.lock()
		if err == nil && same {
			return f, nil
		}
		f.Close() //nolint:errcheck // nothing was written
		if err != nil {
			return nil, err
		}
	}
	return nil, ErrDraftBusy
}

// lock locks a draft that was opened by its name. It reports false if the name has gone to something else meanwhile.
func (f *Draft) lock() (same bool, err error) {
	for {
		err = unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EWOULDBLOCK {
		return false, ErrDraftBusy
	}
	// Any other error is a file system without locks: then one process at a time has to be enough.
	var st, named unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return false, ErrNotRegular
	}
	err = unix.Fstatat(f.dir.fd, f.name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && (named.Ino != st.Ino || named.Dev != st.Dev) {
		return false, nil
	}
	if err == nil && st.Nlink != 1 {
		err = ErrNotRegular
	}
	return err == nil, err
}

func (d *Dir) openDraft(name string, flags int, mode uint32) (*Draft, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, mode)
	})
	if err != nil {
		return nil, err
	}
	return &Draft{dir: d, fd: fd, name: name}, nil
}

// Name is the hidden name; "" for one of [Temps].
func (f *Draft) Name() string { return f.name }

// WriteAt writes all of p, or gives an error.
func (f *Draft) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(f.fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err == nil && m == 0 {
			err = unix.EIO
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// StartWriting asks the kernel to begin writing a range to the disk, so that less is left for [Draft.Sync]. It is a hint.
func (f *Draft) StartWriting(off, n int64) {
	_ = unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// Size is the length so far.
func (f *Draft) Size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size, err
}

// Truncate cuts the draft.
func (f *Draft) Truncate(size int64) error {
	for {
		if err := unix.Ftruncate(f.fd, size); err != unix.EINTR {
			return err
		}
	}
}

// Inode is the file's number; the final name will have the same.
func (f *Draft) Inode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Ino, err
}

// SetTimes sets the times of last access and modification.
func (f *Draft) SetTimes(t time.Time) error {
	spec, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	// A nil path means the descriptor itself (utimensat(2)).
	return utimens(f.fd, [2]unix.Timespec{spec, spec})
}

// SetMode sets permission bits, without regard to the umask.
func (f *Draft) SetMode(mode uint32) error { return unix.Fchmod(f.fd, mode&0o777) }

// Sync flushes content and attributes to the disk.
func (f *Draft) Sync() error { return fsync(f.fd) }

func fsync(fd int) error {
	for {
		if err := unix.Fsync(fd); err != unix.EINTR {
			return err
		}
	}
}

// Replace gives the draft its final name. An existing file of that name goes away in the same moment; a directory is an
// error.
func (f *Draft) Replace(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if f.unnamed {
		if err := f.nameFor(name); err != nil {
			return err
		}
	}
	if err := unix.Renameat(f.dir.fd, f.name, f.dir.fd, name); err != nil {
		return err
	}
	f.gone = true
	return nil
}

// Publish gives the draft its final name if nothing has that name; otherwise the error is EEXIST and nothing has
// changed. The kernel decides, so of two that want the name one gets it.
func (f *Draft) Publish(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if f.unnamed {
		if err := f.link(name); err != nil {
			return err
		}
		f.gone = true
		return nil
	}
	if err := renameNew(f.dir.fd, f.name, name, publishSteps); err != nil {
		return err
	}
	f.gone = true
	return nil
}

// publishStep is one way to rename without replacing. It reports false if the file system does not know it.
type publishStep func(dir int, from, to string) (known bool, err error)

var publishSteps = []publishStep{publishByRename, publishByLink, publishByReservation}

func renameNew(dir int, from, to string, steps []publishStep) error {
	for _, step := range steps {
		if known, err := step(dir, from, to); known {
			return err
		}
	}
	return unix.ENOTSUP
}

func publishByRename(dir int, from, to string) (bool, error) {
	err := unix.Renameat2(dir, from, dir, to, unix.RENAME_NOREPLACE)
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTSUP), err
}

// publishByLink is for file systems without RENAME_NOREPLACE, such as NFS.
func publishByLink(dir int, from, to string) (bool, error) {
	err := unix.Linkat(dir, from, dir, to, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EMLINK) {
		return false, err
	}
	if err != nil {
		return true, err
	}
	return true, unix.Unlinkat(dir, from, 0)
}

// publishByReservation is for file systems without links as well, such as FAT: an empty file takes the name and is
// replaced at once.
func publishByReservation(dir int, from, to string) (bool, error) {
	fd, err := unix.Openat(dir, to, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return true, err
	}
	unix.Close(fd)
	if err := unix.Renameat(dir, from, dir, to); err != nil {
		unix.Unlinkat(dir, to, 0) //nolint:errcheck // the first error counts
		return true, err
	}
	return true, nil
}

// Close closes the descriptor. Some file systems report only now that the space is used up.
func (f *Draft) Close() error {
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}

func utimens(fd int, ts [2]unix.Timespec) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// Discard removes a draft that has not got its final name, and closes it.
func (f *Draft) Discard() {
	f.Close() //nolint:errcheck // the content is not wanted
	if !f.gone && !f.unnamed {
		f.gone = true
		unix.Unlinkat(f.dir.fd, f.name, 0) //nolint:errcheck // the janitor finds what is left
	}
}

// RemoveOldDraft removes the entry if it is a draft of this account whose last change is older than before. The change
// of the inode counts, not the modification time, which a draft gets from its source shortly before it is complete.
func (d *Dir) RemoveOldDraft(name string, before time.Time) (removed bool, err error) {
	if !IsDraft(name) {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || !time.Unix(st.Ctim.Unix()).Before(before) {
		return false, nil
	}
	if err := unix.Unlinkat(d.fd, name, 0); err != nil {
		return false, err
	}
	return true, nil
}

// Target describes what has the name in the directory, for deciding about a new file: links are not followed, and times
// are exact. The error is ENOENT if nothing has it.
func (d *Dir) Target(name string) (Target, error) {
	if err := CheckName(name); err != nil {
		return Target{}, err
	}
	var st unix.Stat_t
	for {
		err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Target{}, err
		}
		break
	}
	return Target{
		Regular: st.Mode&unix.S_IFMT == unix.S_IFREG, Directory: st.Mode&unix.S_IFMT == unix.S_IFDIR,
		Mode: st.Mode & 0o777, Size: st.Size, Modified: time.Unix(st.Mtim.Unix()), Inode: st.Ino,
	}, nil
}

// Target is what a new file may collide with. Neither Regular nor Directory: a link or something special.
type Target struct {
	Regular   bool
	Directory bool
	Mode      uint32 // permission bits
	Size      int64
	Modified  time.Time
	Inode     uint64
}

// MaxNumbered is the highest number for [Numbered] (contract 10 section 8).
const MaxNumbered = 9999

// Numbered is the n-th alternative for a name that is taken: name(n).ext, where the extension follows the last dot unless
// that is the first character. It is at most [MaxName] bytes long: the stem is cut between two characters, and the
// extension too if it is nearly everything. For 0 it is the name itself.
func Numbered(name string, n int) string {
	if n == 0 {
		return name
	}
	stem, ext := name, ""
	if dot := strings.LastIndexByte(name, '.'); dot > 0 {
		stem, ext = name[:dot], name[dot:]
	}
	number := fmt.Sprintf("(%d)", n)
	if len(number)+len(ext) >= MaxName {
		stem, ext = name, ""
	}
	for len(stem)+len(number)+len(ext) > MaxName {
		_, size := utf8.DecodeLastRuneInString(stem)
		stem = stem[:len(stem)-size]
	}
	return stem + number + ext
}
