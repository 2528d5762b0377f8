package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// badFile is a file that must not be used because of what it is: kind, owner or mode.
type badFile struct{ message, remedy string }

func (e *badFile) Error() string { return e.message }

// readChecked reads a regular file of bounded size. It is opened once, without following a symlink in the last place,
// and everything is asked of the open descriptor, so what was checked is what is read (SEC-1). O_NONBLOCK keeps a FIFO
// from blocking the start.
func readChecked(path string, limit int64, verify func(*os.File) error) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, &badFile{path + " is a symlink", "put the file itself there"}
		}
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &badFile{path + " is not a regular file", "put a regular file there"}
	}
	if verify != nil {
		if err := verify(f); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &badFile{fmt.Sprintf("%s is larger than %s", path, Size(limit)), "this cannot be the right file"}
	}
	return data, nil
}

// secretFile is the rule for files with secrets (SEC-1): owner root or the service account, mode 0600, 0400 or 0640, the
// last one only with the group of the service account.
func (l *loader) secretFile(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return &badFile{f.Name() + ": owner unknown", ""}
	}
	service := l.service()
	mode := st.Mode().Perm() | st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	switch {
	case int(sys.Uid) != 0 && int(sys.Uid) != service.UID:
		return &badFile{
			fmt.Sprintf("%s belongs to uid %d, who is neither root nor the service account", f.Name(), sys.Uid),
			"chown root " + f.Name(),
		}
	case mode == 0o600 || mode == 0o400:
		return nil
	case mode == 0o640 && int(sys.Gid) == service.GID:
		return nil
	case mode == 0o640:
		return &badFile{
			fmt.Sprintf("%s can be read by group %d, which is not the group of the service account", f.Name(), sys.Gid),
			fmt.Sprintf("chgrp %d %s, or chmod 600", service.GID, f.Name()),
		}
	}
	return &badFile{fmt.Sprintf("%s has mode %04o", f.Name(), mode.Perm()), "chmod 600 " + f.Name()}
}

// service is the account whose rights count.
func (l *loader) service() Account {
	if l.options.Service != nil {
		return *l.options.Service
	}
	a := Account{UID: os.Geteuid(), GID: os.Getegid()}
	a.Groups, _ = os.Getgroups() // an error leaves the primary group, which is what most accounts have
	return a
}

// shortError says what is wrong without the system call.
func shortError(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}

func remedyOf(err error) string {
	if b, ok := errors.AsType[*badFile](err); ok {
		return b.remedy
	}
	if errors.Is(err, fs.ErrPermission) {
		return "run this as root or as the service account"
	}
	return ""
}
