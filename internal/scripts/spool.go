package scripts

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

// spoolName is how request files are called. Nothing else in the directory is touched.
var spoolName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{32}\.json$`) })

// openSpool makes the directory for request files if it is missing, makes sure that it is ours alone, and removes what
// calls have left that a crash cut short. Requests hold personal data.
func openSpool(path string) (spool *os.Root, removed int, err error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, 0, fmt.Errorf("make the directory for requests of scripts: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, 0, fmt.Errorf("open the directory for requests of scripts: %w", err)
	}
	defer func() {
		if err != nil {
			root.Close() //nolint:errcheck // only read
		}
	}()
	dir, err := root.Open(".")
	if err != nil {
		return nil, 0, fmt.Errorf("open the directory for requests of scripts: %w", err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, 0, fmt.Errorf("check the directory for requests of scripts: %w", err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		return nil, 0, fmt.Errorf("%s has owner %d and mode %04o; it must be ours with mode 0700", path, st.Uid, st.Mode&0o7777)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, 0, fmt.Errorf("list old requests of scripts: %w", err)
	}
	for _, name := range names {
		if !spoolName().MatchString(name) {
			continue
		}
		if err := root.Remove(name); err != nil {
			return nil, 0, fmt.Errorf("remove an old request of a script: %w", err)
		}
		removed++
	}
	return root, removed, nil
}

// writeRequest writes a request file and opens it again for reading: descriptor 0 of the program.
func writeRequest(root *os.Root, name string, data []byte) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the request file: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("write the request file: %w", err), root.Remove(name))
	}
	f, err = root.Open(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the request file: %w", err), root.Remove(name))
	}
	return f, nil
}

// secretFile holds a secret in memory that nobody can change any more, readable from the beginning.
func secretFile(name, value string) (*os.File, error) {
	fd, err := unix.MemfdCreate("ucloud-secret", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file for the secret %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "secret")
	_, err = f.WriteString(value)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the secret %s: %w", name, err), f.Close())
	}
	return f, nil
}
