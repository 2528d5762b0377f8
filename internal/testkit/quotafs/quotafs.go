// Package quotafs mounts small file systems with a real quota, for tests of what happens when it is used up.
package quotafs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

// Mount gives a directory that everybody may write to and in which no account but root can store more than limit bytes:
// the kernel answers with EDQUOT. It is gone after the test.
//
// The test is skipped, by name, also with CI=true, where the kernel offers no file system with a quota: whether it does
// is a matter of how it was built, and nothing that could be installed.
func Mount(t testing.TB, limit int64) string {
	t.Helper()
	testkit.Require(t, testkit.Root)
	base := t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil { // other accounts must get there
		t.Fatal(err)
	}
	var tried []error
	for _, fs := range []struct {
		name  string
		mount func(base string, limit int64) (dir string, err error)
	}{{"tmpfs", tmpfs}, {"btrfs", btrfs}} {
		dir, err := fs.mount(base, limit)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", fs.name, err))
			continue
		}
		t.Cleanup(func() { unmount(t, filepath.Join(base, "fs")) })
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Skipf("no file system with a quota can be mounted here: %v", errors.Join(tried...))
	return ""
}

func unmount(t testing.TB, dir string) {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// mountPoint is where the file system goes.
func mountPoint(base string) (string, error) {
	dir := filepath.Join(base, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir, nil
}

// tmpfs has quotas since Linux 6.6, where the kernel was built with them.
func tmpfs(base string, limit int64) (string, error) {
	dir, err := mountPoint(base)
	if err != nil {
		return "", err
	}
	options := fmt.Sprintf("size=%d,mode=777,usrquota,usrquota_block_hardlimit=%d", 4*limit+(16<<20), limit)
	return dir, unix.Mount("tmpfs", dir, "tmpfs", 0, options)
}

// btrfs limits a subvolume, and has code of its own for that.
func btrfs(base string, limit int64) (_ string, err error) {
	image := filepath.Join(base, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, 4*limit+(256<<20)); err != nil { // sparse
		return "", err
	}
	dir, err := mountPoint(base)
	if err != nil {
		return "", err
	}
	if err := run("mkfs.btrfs", "-q", image); err != nil {
		return "", err
	}
	if err := run("mount", "-o", "loop", image, dir); err != nil {
		return "", err
	}
	sub := filepath.Join(dir, "limited")
	for _, args := range [][]string{
		{"quota", "enable", dir},
		{"subvolume", "create", sub},
		{"qgroup", "limit", strconv.FormatInt(limit, 10), sub},
	} {
		if err := run("btrfs", args...); err != nil {
			return "", errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
		}
	}
	return sub, nil
}

func run(name string, args ...string) error {
	path, err := testkit.Program(name)
	if err != nil {
		return err
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
