package usage

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
)

// Methods of measuring, as they are stored.
const (
	MethodStatFS = "statfs"
	MethodScript = "script"
	MethodScan   = "scan"
	MethodQuota  = "quota"
)

// Measurement is what a drive holds.
type Measurement struct {
	Bytes, Files int64
	At           time.Time // zero: now
	Method       string
}

// Measurer measures drives.
type Measurer interface {
	// Batch is how many drives one call takes.
	Batch() int
	// Measure gives what it could measure, by ProviderGeneratedID. A drive that is missing was not measured, and the error
	// says why. [ErrNeedsScan] tells that it takes a scan.
	Measure(ctx context.Context, drives []store.Drive) (map[string]Measurement, error)
}

// ErrNeedsScan tells that only a look at every file can tell what a drive holds.
var ErrNeedsScan = errors.New("only a scan can measure this directory")

// StatFS asks the file system what is in use. That is right for a drive which is a file system, fileset or directory
// quota of its own, where statfs(2) tells about the drive alone. Always assumes that all drives are; otherwise those that
// are not are left to scans.
type StatFS struct{ Always bool }

// Batch implements [Measurer].
func (StatFS) Batch() int { return 1 }

// Measure implements [Measurer]. A file server that hangs keeps a goroutine for as long as it hangs.
func (m StatFS) Measure(ctx context.Context, drives []store.Drive) (map[string]Measurement, error) {
	type outcome struct {
		m   Measurement
		err error
	}
	done := make(chan outcome, 1)
	path := drives[0].Path
	go func() {
		got, err := m.statfs(path)
		done <- outcome{got, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, o.err
		}
		return map[string]Measurement{drives[0].ProviderGeneratedID: o.m}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the file system of %s does not answer: %w", path, context.Cause(ctx))
	}
}

func (m StatFS) statfs(path string) (Measurement, error) {
	own, err := statfs(path)
	if err != nil {
		return Measurement{}, err
	}
	if !m.Always {
		above, err := statfs(filepath.Dir(path))
		if err != nil {
			return Measurement{}, err
		}
		if own.Fsid == above.Fsid && own.Type == above.Type && own.Blocks == above.Blocks {
			return Measurement{}, ErrNeedsScan // it tells about the whole file system
		}
	}
	size := own.Frsize
	if size <= 0 {
		size = own.Bsize
	}
	if own.Blocks < own.Bfree || own.Files < own.Ffree && own.Files > 0 {
		return Measurement{}, fmt.Errorf("the file system of %s has more free than there is", path)
	}
	hi, used := bits.Mul64(own.Blocks-own.Bfree, uint64(max(size, 0)))
	if hi != 0 || used>>63 != 0 {
		return Measurement{}, fmt.Errorf("the usage of %s does not fit into 63 bits", path)
	}
	out := Measurement{Bytes: int64(used), Method: MethodStatFS}
	if own.Files > 0 {
		out.Files = int64(own.Files - own.Ffree) //nolint:gosec // inodes are far below 2^63
	}
	return out, nil
}

// statfs looks at a directory without needing any right to it but to those above, and without following a link in its
// last place.
func statfs(path string) (st unix.Statfs_t, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	for {
		err = unix.Fstatfs(fd, &st)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return st, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st, nil
}

// Scripted asks the site's hook onUsageReporting.
type Scripted struct {
	Hook  *scripts.Hook
	Many  bool                                                       // the hook takes many drives in one call
	Owner func(ctx context.Context, d store.Drive) scripts.Workspace // nil: the name alone
}

// Batch implements [Measurer].
func (s Scripted) Batch() int {
	if s.Many {
		return scripts.MaxUsageBatch
	}
	return 1
}

// Measure implements [Measurer].
func (s Scripted) Measure(ctx context.Context, drives []store.Drive) (map[string]Measurement, error) {
	requests := make([]scripts.UsageRequest, len(drives))
	for i, d := range drives {
		requests[i] = scripts.UsageRequest{LocatorName: d.Locator, CategoryName: d.Category, FilePath: d.Path, Owner: scripts.WorkspaceOf(d.Owner)}
		if s.Owner != nil {
			requests[i].Owner = s.Owner(ctx, d)
		}
	}
	out := map[string]Measurement{}
	if !s.Many {
		var reply scripts.UsageReply
		err := s.Hook.Call(ctx, scripts.Call{
			Key: "drive/" + drives[0].ProviderGeneratedID, Owner: drives[0].Owner, Request: requests[0], Reason: "schedule",
		}, &reply)
		if err != nil {
			return nil, err
		}
		out[drives[0].ProviderGeneratedID] = measured(reply)
		return out, nil
	}
	var reply scripts.UsageBatchReply
	err := s.Hook.Call(ctx, scripts.Call{
		Key: "category/" + drives[0].Category, Request: scripts.UsageBatchRequest{Drives: requests}, Reason: "schedule",
	}, &reply)
	if err != nil {
		return nil, err
	}
	byPath := map[string]Measurement{}
	for _, r := range reply.Drives {
		byPath[r.FilePath] = measured(r.UsageReply)
	}
	for _, d := range drives {
		if m, ok := byPath[d.Path]; ok {
			out[d.ProviderGeneratedID] = m
		}
	}
	if len(out) < len(drives) {
		err = errors.New("the reply of the script does not hold the drive")
	}
	return out, err
}

// measured takes a reply that was checked.
func measured(r scripts.UsageReply) Measurement {
	m := Measurement{Bytes: *r.UsageInBytes, Method: MethodScript}
	if r.UsageInFiles != nil {
		m.Files = *r.UsageInFiles
	}
	if r.MeasuredAt != nil && r.MeasuredAt.Before(time.Now()) && r.MeasuredAt.After(time.Unix(0, 0)) {
		m.At = *r.MeasuredAt
	}
	return m
}
