package scan

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/ipcapi"
)

// Where a file system keeps quotas, it knows at any time what an account or a group has on it. That is what a drive holds
// if the account or the group has nothing elsewhere on the file system. The kernel answers questions about oneself
// and one's groups without any privilege (quotactl(2)).

// Kinds of quotas, USRQUOTA and GRPQUOTA of linux/quota.h.
const userQuota, groupQuota uint32 = 0, 1

// errNoQuota tells that the quota says nothing about the directory.
var errNoQuota = errors.New("no quota tells what the directory holds")

// ofQuota measures a directory by the quota that the server has named, if that is right for it.
func ofQuota(job ipcapi.UsageJob, ask func(fd int, kind uint32, id uint32) (quotaBlock, error)) (Totals, error) {
	if job.Quota == "" {
		return Totals{}, errNoQuota
	}
	fd, err := retryFd(func() (int, error) {
		return unix.Open(job.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return Totals{}, fmt.Errorf("open %s: %w", job.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Totals{}, fmt.Errorf("look at %s: %w", job.Path, err)
	}
	kind, id := userQuota, st.Uid
	switch job.Quota {
	case ipcapi.QuotaUser:
		if int(st.Uid) != os.Geteuid() || sharedDevice(st.Dev, job.Others) {
			return Totals{}, errNoQuota
		}
	case ipcapi.QuotaGroup:
		// Without the bit that hands the group on, files in the directory may have any group.
		if st.Mode&unix.S_ISGID == 0 || st.Gid != uint32(job.GID) || !ourGroup(st.Gid) {
			return Totals{}, errNoQuota
		}
		kind, id = groupQuota, st.Gid
	default:
		return Totals{}, errNoQuota
	}
	b, err := ask(fd, kind, id)
	if err != nil {
		return Totals{}, fmt.Errorf("%w: %w", errNoQuota, err)
	}
	const needed = 2 | 8 // QIF_SPACE and QIF_INODES of linux/quota.h
	if b.Valid&needed != needed || b.Space>>63 != 0 || b.Inodes>>63 != 0 {
		return Totals{}, errNoQuota
	}
	return Totals{Bytes: int64(b.Space), Files: int64(b.Inodes)}, nil //nolint:gosec // checked
}

// sharedDevice tells whether one of the directories lies on the file system. Of one that cannot be looked at it is
// assumed.
func sharedDevice(dev uint64, others []string) bool {
	return slices.ContainsFunc(others, func(path string) bool {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if errors.Is(err, unix.ENOENT) {
			return false
		}
		return err != nil || st.Dev == dev
	})
}

func ourGroup(gid uint32) bool {
	groups, err := os.Getgroups()
	return err == nil && (slices.Contains(groups, int(gid)) || os.Getegid() == int(gid))
}

// quotaBlock is struct if_dqblk of linux/quota.h.
type quotaBlock struct {
	HardSpace, SoftSpace, Space    uint64 // limits in KiB, use in bytes
	HardInodes, SoftInodes, Inodes uint64
	SpaceTime, InodeTime           uint64
	Valid                          uint32
	_                              uint32
}

// getQuota is quotactl_fd(2) with Q_GETQUOTA, there since Linux 5.14. An error tells that the file system has none.
func getQuota(fd int, kind, id uint32) (b quotaBlock, err error) {
	const qGetQuota = 0x800007
	for {
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(qGetQuota<<8|kind), uintptr(id), uintptr(unsafe.Pointer(&b)), 0, 0) //nolint:gosec // a system call
		if errno == 0 {
			return b, nil
		}
		if errno != unix.EINTR {
			return b, os.NewSyscallError("quotactl_fd", errno)
		}
	}
}

func retryFd(f func() (int, error)) (fd int, err error) {
	err = retry(func() error { fd, err = f(); return err })
	return fd, err
}
