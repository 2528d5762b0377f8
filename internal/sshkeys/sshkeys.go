// Package sshkeys installs the SSH keys that a user has at UCloud into the user's authorized_keys (contract 23 section 4). It
// runs as the user.
//
// # Trust
//
// Core calls with the complete list of keys. Their texts come from the user and have been checked by nobody: a key is
// decoded and written anew, so that neither options nor further lines can come with it (TestKeys, FuzzParse). The file
// belongs to the user. Who else may write near it decides nothing: links are followed only if they are the user's own and
// stay in the home directory, and a folder that others may write to is refused (TestHostileFiles).
//
// # Properties, and the tests that prove them
//
//   - only the lines between our marks are ever changed (TestMerge, a property test);
//   - a reader sees the old file or the new one, with the mode that it had, or 0600 (TestInstall);
//   - a key that is removed at UCloud is removed here, as the list is complete (TestInstall).
package sshkeys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
)

const (
	// maxBody bounds a request in bytes.
	maxBody = 1 << 20
	// maxFile bounds the file in bytes.
	maxFile = 1 << 20
	// attempts are how often the file is merged anew because somebody else has changed it meanwhile.
	attempts = 5
)

// Settings say what is installed where.
type Settings struct {
	Install bool
	File    string // absolute path
	Policy  Policy
}

// Options configure a [Service]. All are required.
type Options struct {
	Provider string
	User     ident.UCloudUser
	Home     string
	Log      *slog.Logger
	Settings func() Settings
}

// Service installs keys.
type Service struct {
	o   Options
	log *slog.Logger
	mu  sync.Mutex // held while the file is changed
}

// New makes a Service.
func New(o Options) *Service { return &Service{o: o, log: o.Log.With("part", "sshkeys")} }

// Routes are the calls of the package.
func (s *Service) Routes() []fileserver.Route {
	return []fileserver.Route{{
		Method: http.MethodPost, Path: "ssh/keyUploaded", Class: hoptoken.ClassCore, MaxBody: maxBody, Serve: s.serve,
		// Core sends all keys of the user whatever was done to them.
		Intent: intent.Rule{Calls: []string{"ssh_keys.*"}, Unsigned: true},
	}}
}

// uploaded is the request: all keys of a user.
type uploaded struct {
	Username ident.UCloudUser                     `json:"username"`
	AllKeys  providerapi.List[providerapi.SSHKey] `json:"allKeys"`
}

func (s *Service) serve(w http.ResponseWriter, c *fileserver.Call) error {
	var req uploaded
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	if req.Username != s.o.User {
		return failure.New(failure.Forbidden, "The keys are another user's")
	}
	if err := s.Install(c.Context(), req.AllKeys); err != nil {
		return err
	}
	return c.Write(w, providerapi.Empty{})
}

// Install makes the keys those with which the user may log in through UCloud. Keys that are not allowed are left out.
func (s *Service) Install(_ context.Context, keys []providerapi.SSHKey) error {
	set := s.o.Settings()
	if !set.Install {
		return nil
	}
	var lines []string
	for _, k := range keys {
		if k.Owner != "" && k.Owner != s.o.User {
			s.log.Warn("a key of another user is left out", "key", k.ID)
			continue
		}
		plain, err := parse(k.Specification.Key, set.Policy)
		if err != nil {
			s.log.Info("a key is left out", "key", k.ID, "reason", err)
			continue
		}
		if len(lines) == maxKeys {
			s.log.Warn("there are more keys than are installed", "most", maxKeys)
			break
		}
		lines = append(lines, plain+" "+plainTitle(k.Specification.Title)+s.tail())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for range attempts {
		err := s.change(set.File, lines)
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			return failure.Wrap(err, failure.Invalid, "The keys cannot be installed: %s", why(err))
		}
		return nil
	}
	return failure.Wrap(errChanged, failure.Conflict, "The keys cannot be installed, because the file is being changed by something else")
}

var (
	errChanged = errors.New("the file has changed meanwhile")
	errUnsafe  = errors.New("a folder or file on the way to the keys is not safe")
)

func why(err error) string {
	switch {
	case errors.Is(err, errUnsafe):
		return "the folder or the file of the keys belongs to somebody else, can be changed by others, or is a link that leaves the home directory"
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOSPC):
		return "there is no space left"
	}
	return "the file cannot be written"
}

// change merges the lines into the file.
func (s *Service) change(path string, lines []string) error {
	dir, name, err := s.place(path, len(lines) > 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && len(lines) == 0 {
			return nil // there is nothing, and there is to be nothing
		}
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	fd := int(dir.Fd())
	old, before, err := read(fd, name)
	if err != nil {
		return err
	}
	merged := s.merge(old, lines)
	if len(merged) > maxFile {
		return errors.New("the file would be too long")
	}
	if slices.Equal(old, merged) {
		return nil
	}
	mode := uint32(0o600)
	if before != nil {
		mode = before.Mode & 0o777
	}
	draft := "." + name + ".ucloud-" + rand.Text()
	if err := write(fd, draft, mode, merged); err != nil {
		unix.Unlinkat(fd, draft, 0) //nolint:errcheck // it may not be there
		return err
	}
	_, now, err := read(fd, name)
	if err == nil && !same(before, now) {
		err = errChanged
	}
	if err == nil {
		err = unix.Renameat(fd, draft, fd, name)
	}
	if err != nil {
		unix.Unlinkat(fd, draft, 0) //nolint:errcheck // it may not be there
		return err
	}
	unix.Fsync(fd) //nolint:errcheck // not all file systems do that; the file itself is there
	return nil
}

func same(a, b *unix.Stat_t) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Dev == b.Dev && a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

// place opens the directory of the file. A link in the last two components must be the user's own and lead to somewhere in
// the home directory.
func (s *Service) place(path string, create bool) (*os.File, string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, "", fmt.Errorf("%q is not a clean absolute path", path)
	}
	parent, err := s.resolve(filepath.Dir(path))
	if err != nil {
		return nil, "", err
	}
	fd, err := unix.Open(parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && create {
		if err := unix.Mkdir(parent, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, "", fmt.Errorf("make the folder of the keys: %w", err)
		}
		fd, err = unix.Open(parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open the folder of the keys: %w", err)
	}
	dir := os.NewFile(uintptr(fd), parent)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Uid != uint32(os.Getuid()) || st.Mode&0o022 != 0) { //nolint:gosec // uids fit
		err = fmt.Errorf("%w: %s, owner %d, mode %o", errUnsafe, parent, st.Uid, st.Mode&0o777)
	}
	if err != nil {
		dir.Close() //nolint:errcheck // nothing was written
		return nil, "", err
	}
	target, err := s.resolve(filepath.Join(parent, filepath.Base(path)))
	if err == nil && filepath.Dir(target) != parent {
		dir.Close() //nolint:errcheck // nothing was written
		return s.place(target, false)
	}
	if err != nil {
		dir.Close() //nolint:errcheck // nothing was written
		return nil, "", err
	}
	return dir, filepath.Base(target), nil
}

// resolve gives where a path leads if its last component is a link that may be followed, and otherwise the path itself.
func (s *Service) resolve(path string) (string, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return path, nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return path, nil
	}
	home, err := filepath.EvalSymlinks(s.o.Home)
	if err != nil {
		return "", fmt.Errorf("find the home directory: %w", err)
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("follow a link: %w", err)
	}
	if st.Uid != uint32(os.Getuid()) || !strings.HasPrefix(target, strings.TrimSuffix(home, "/")+"/") { //nolint:gosec // uids fit
		return "", fmt.Errorf("%w: %s leads to %s", errUnsafe, path, target)
	}
	return target, nil
}

// read gives the content of the file; no file is an empty one.
func read(dir int, name string) ([]byte, *unix.Stat_t, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the file of the keys: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, fmt.Errorf("look at the file of the keys: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(os.Getuid()) || st.Nlink != 1 { //nolint:gosec // uids fit
		return nil, nil, fmt.Errorf("%w: owner %d, mode %o, %d names", errUnsafe, st.Uid, st.Mode, st.Nlink)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errors.New("the file of the keys is too long")
	}
	return data, &st, err
}

// write makes a new file.
func write(dir int, name string, mode uint32, data []byte) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("write the file of the keys: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	err = errors.Join(err, unix.Fchmod(fd, mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write the file of the keys: %w", err)
	}
	return nil
}
