package scan

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
)

// TestQuotaIsAboutTheDirectory: the number of a quota is used only if it can be that of the drive.
func TestQuotaIsAboutTheDirectory(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	dir := t.TempDir()
	mine, foreign, shared, other := filepath.Join(dir, "mine"), filepath.Join(dir, "foreign"), filepath.Join(dir, "shared"), filepath.Join(dir, "other")
	for _, d := range []string{mine, foreign, shared, other} {
		if err := os.Mkdir(d, 0o770); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(foreign, 4711, 4711), os.Chmod(foreign, 0o770|os.ModeSetgid), os.Chmod(shared, 0o770|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	gid := ident.GID(os.Getegid())
	good := quotaBlock{Space: 5 << 20, Inodes: 7, Valid: 63}
	for name, tc := range map[string]struct {
		job   ipcapi.UsageJob
		block quotaBlock
		err   error
		kind  uint32
		ok    bool
	}{
		"user":                    {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser}, block: good, kind: userQuota, ok: true},
		"another file system":     {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser, Others: []string{"/proc", "/missing"}}, block: good, kind: userQuota, ok: true},
		"more on the file system": {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser, Others: []string{"/proc", other}}, block: good},
		"somebody else's":         {job: ipcapi.UsageJob{Path: foreign, Quota: ipcapi.QuotaUser}, block: good},
		"group":                   {job: ipcapi.UsageJob{Path: shared, Quota: ipcapi.QuotaGroup, GID: gid}, block: good, kind: groupQuota, ok: true},
		"not handed on":           {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaGroup, GID: gid}, block: good},
		"another group":           {job: ipcapi.UsageJob{Path: shared, Quota: ipcapi.QuotaGroup, GID: gid + 1}, block: good},
		"not in the group":        {job: ipcapi.UsageJob{Path: foreign, Quota: ipcapi.QuotaGroup, GID: 4711}, block: good},
		"nobody asked":            {job: ipcapi.UsageJob{Path: mine}, block: good},
		"unknown":                 {job: ipcapi.UsageJob{Path: mine, Quota: "project"}, block: good},
		"missing":                 {job: ipcapi.UsageJob{Path: mine + "x", Quota: ipcapi.QuotaUser}, block: good},
		"no quota there":          {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser}, err: unix.ESRCH},
		"limits only":             {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser}, block: quotaBlock{Space: 1, Valid: 1 | 4}},
		"impossible":              {job: ipcapi.UsageJob{Path: mine, Quota: ipcapi.QuotaUser}, block: quotaBlock{Space: 1 << 63, Valid: 63}},
	} {
		got, err := ofQuota(tc.job, func(_ int, kind, id uint32) (quotaBlock, error) {
			if kind != tc.kind || (kind == userQuota && id != uint32(os.Geteuid())) || (kind == groupQuota && id != uint32(gid)) {
				if tc.ok {
					t.Errorf("%s: asked for kind %d, id %d", name, kind, id)
				}
			}
			return tc.block, tc.err
		})
		if (err == nil) != tc.ok || (tc.ok && got != Totals{Bytes: 5 << 20, Files: 7}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestQuotaOfTheKernel asks a real file system. Without one the call must fail and never give a number.
func TestQuotaOfTheKernel(t *testing.T) {
	t.Parallel()
	fd, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if b, err := getQuota(fd, userQuota, 4_000_000_000); err == nil && b.Space != 0 {
		t.Errorf("an account that does not exist has %+v", b)
	}
	testkit.Require(t, testkit.Root)
	base := t.TempDir()
	image, mount := filepath.Join(base, "image"), filepath.Join(base, "fs")
	run := func(name string, args ...string) error {
		path, err := testkit.Program(name)
		if err != nil {
			return err
		}
		out, err := exec.Command(path, args...).CombinedOutput()
		if err != nil {
			return errors.New(name + ": " + strings.TrimSpace(string(out)))
		}
		return nil
	}
	err = errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20), os.Mkdir(mount, 0o755))
	if err == nil {
		err = run("mkfs.ext4", "-q", "-O", "quota", image)
	}
	if err == nil {
		err = run("mount", "-o", "loop,usrquota,grpquota", image, mount)
	}
	if err != nil {
		t.Skipf("no file system with quotas can be mounted here, which is a matter of the kernel: %v", err)
	}
	defer unix.Unmount(mount, unix.MNT_DETACH) //nolint:errcheck // cleaning up
	home := filepath.Join(mount, "home")
	if err := errors.Join(os.Mkdir(home, 0o700), os.WriteFile(filepath.Join(home, "x"), make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := ofQuota(ipcapi.UsageJob{Path: home, Quota: ipcapi.QuotaUser}, getQuota)
	if err != nil || got.Bytes < 1<<20 || got.Files < 2 {
		t.Errorf("%+v, %v", got, err)
	}
}
