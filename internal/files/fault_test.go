package files

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
)

// faultEnv makes the test binary do one operation while the kernel answers a system call with an error.
const faultEnv = "FILES_FAULT_CHILD"

// fault is what the child does: some operations, of which the first meets the error in its middle, and the others always.
type fault struct {
	Ops       []faultOp
	Call      uint32 // that fails
	Arg, Mask uint32 // if Mask is set, only if an argument has some of these bits
	Errno     unix.Errno
	After     int // how often the first operation looks at whether to go on before it begins
}

type faultOp struct {
	Base, From, To string
	Policy         providerapi.ConflictPolicy
	Move           bool
}

type faultResult struct {
	Why  string // of the call or the task; empty: success
	Kind failure.Kind
}

func faultChild(text string) error {
	var f fault
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return err
	}
	var begin sync.Once
	work := &fakeTasks{check: func(steps int) error {
		if steps >= f.After {
			begin.Do(func() { failCall(f) })
		}
		return nil
	}}
	o := quietOptions()
	o.Tasks = work
	s := New(o)
	work.s = s
	var results []faultResult
	for i, op := range f.Ops {
		if i > 0 || f.After == 0 {
			begin.Do(func() { failCall(f) })
		}
		work.failed = nil
		call := s.Copy
		if op.Move {
			call = s.Move
		}
		err := call(context.Background(), []providerapi.MoveFile{moveItem(op.Base, op.From, op.To, op.Policy)})
		if err == nil {
			err = work.failed
		}
		var res faultResult
		if err != nil {
			res.Kind, res.Why = failure.KindOf(err), failure.Why(err)
		}
		results = append(results, res)
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// failCall makes the kernel answer a system call with an error from now on (seccomp(2)), in all threads.
func failCall(f fault) {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: f.Call},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16 + 8*f.Arg}, // seccomp_data.args, the low half
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: f.Mask},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(f.Errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if f.Mask == 0 {
		prog = append(prog[:2], prog[4:]...)
		prog[1].Jf = 1
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	program := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); e != 0 {
		panic(e)
	}
}

// child runs the test binary for one operation.
func child(t *testing.T, env, text string) []byte {
	t.Helper()
	cmd := exec.Command(must(os.Executable())(t))
	cmd.Env = append(os.Environ(), env+"="+text)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	return out
}

// TestBrokenStorage lets the kernel report errors that a healthy disk does not have, at every step of a copy and a move:
// the failure is told, nothing old is lost, and nothing half remains.
func TestBrokenStorage(t *testing.T) {
	t.Parallel()
	const (
		tree  = "tree" // with a small and a large file, a link and a folder
		small = "a.txt"
		large = "tree/large"
		link  = "tree/link"
	)
	for _, tc := range []struct {
		name  string
		call  uint32
		arg   uint32
		mask  uint32
		errno unix.Errno
		why   string
		from  []string
		moves bool // only then
	}{
		{"new file", unix.SYS_OPENAT, 2, unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY, unix.EDQUOT, "quota is used up", []string{tree, small}, false},
		{"new folder", unix.SYS_MKDIRAT, 0, 0, unix.EDQUOT, "quota is used up", []string{tree}, false},
		{"read", unix.SYS_PREAD64, 0, 0, unix.EIO, "reported an error", []string{tree, small}, false},
		{"write", unix.SYS_PWRITE64, 0, 0, unix.ENOSPC, "no space left", []string{tree, small}, false},
		{"write", unix.SYS_PWRITE64, 0, 0, unix.EIO, "reported an error", []string{tree, small}, false},
		{"write", unix.SYS_PWRITE64, 0, 0, unix.EFBIG, "too large", []string{tree, small}, false},
		{"copy", unix.SYS_COPY_FILE_RANGE, 0, 0, unix.EIO, "reported an error", []string{tree, large}, false},
		{"copy", unix.SYS_COPY_FILE_RANGE, 0, 0, unix.EDQUOT, "quota is used up", []string{tree, large}, false},
		{"mode", unix.SYS_FCHMOD, 0, 0, unix.EIO, "reported an error", []string{tree, small}, false},
		{"times", unix.SYS_UTIMENSAT, 0, 0, unix.EIO, "reported an error", []string{tree, small}, false},
		{"flush", unix.SYS_FSYNC, 0, 0, unix.EIO, "reported an error", []string{small, large}, false},
		{"flush all", unix.SYS_SYNCFS, 0, 0, unix.EIO, "reported an error", []string{tree}, false},
		{"name", unix.SYS_LINKAT, 0, 0, unix.EDQUOT, "quota is used up", []string{tree, small}, false},
		{"link", unix.SYS_SYMLINKAT, 0, 0, unix.ENOSPC, "no space left", []string{tree, link}, false},
		{"list", unix.SYS_GETDENTS64, 0, 0, unix.EIO, "reported an error", []string{tree}, false},
		{"look", unix.SYS_READLINKAT, 0, 0, unix.EIO, "reported an error", []string{tree, link}, false},
		{"remove", unix.SYS_UNLINKAT, 0, 0, unix.EIO, "reported an error", []string{tree, small, link}, true},
	} {
		t.Run(fmt.Sprint(tc.name, " ", tc.errno), func(t *testing.T) {
			t.Parallel()
			f := fault{Call: tc.call, Arg: tc.arg, Mask: tc.mask, Errno: tc.errno, After: 3}
			var before []map[string]string
			for i, from := range slices.Concat(tc.from[:1], tc.from) {
				for _, move := range []bool{false, true} {
					if tc.moves && !move || i == 0 && (from != tree || move != tc.moves) {
						continue
					}
					target := "far"
					if tc.call == unix.SYS_COPY_FILE_RANGE { // the kernel copies on one file system only
						if target = "dir"; move {
							continue
						}
					}
					op := faultOp{Base: brokenDrive(t, target), From: from, To: target + "/a.txt", Policy: "REPLACE", Move: move}
					if from == tree {
						op.To, op.Policy = target+"/new", "REJECT"
					}
					if from == small && tc.name == "name" {
						op.Policy = "RENAME" // otherwise it takes the place of the old one
					}
					f.Ops, before = append(f.Ops, op), append(before, walkDisk(t, op.Base))
				}
			}
			if f.Ops[0].From != tree {
				f.After = 0
			}
			var results []faultResult
			check(t, json.Unmarshal(child(t, faultEnv, string(must(json.Marshal(f))(t))), &results))
			for i, res := range results {
				mayBeLate := i == 0 && f.After > 0
				checkBroken(t, f.Ops[i], before[i], res, tc.why, mayBeLate)
			}
		})
	}
}

// brokenDrive makes a drive for one operation.
func brokenDrive(t *testing.T, target string) string {
	t.Helper()
	base, _ := furnishFar(t, "size=50m")
	check(t, os.MkdirAll(filepath.Join(base, "tree", "sub"), 0o770))
	check(t, os.WriteFile(filepath.Join(base, "tree", "large"), bytes.Repeat([]byte("x"), 1<<20), 0o640))
	for _, f := range []string{"small", "sub/f", "sub/g"} {
		check(t, os.WriteFile(filepath.Join(base, "tree", f), []byte(f), 0o640))
	}
	check(t, os.Symlink("small", filepath.Join(base, "tree", "link")))
	check(t, os.WriteFile(filepath.Join(base, target, "a.txt"), []byte("far a.txt"), 0o660))
	return base
}

// checkBroken looks at what an operation has told and left.
func checkBroken(t *testing.T, op faultOp, before map[string]string, res faultResult, why string, mayBeLate bool) {
	t.Helper()
	const removing = "All was copied"
	switch {
	case strings.Contains(res.Why, why):
		if res.Kind == failure.Internal {
			t.Errorf("%+v: it is an internal error: %q", op, res.Why)
		}
	case mayBeLate && (res.Why == "" || strings.HasPrefix(res.Why, removing)):
	default:
		t.Errorf("%+v: the user is told %q", op, res.Why)
	}
	now := walkDisk(t, op.Base)
	for p, text := range now {
		if _, old := before[p]; old {
			continue
		}
		// What is new must be whole.
		if want := before[op.From+strings.TrimPrefix(p, op.To)]; text != "dir" && text != want && text != "a.txt" {
			t.Errorf("%+v: %s has become %d bytes instead of %d", op, p, len(text), len(want))
		}
		delete(now, p)
	}
	if found := hidden(t, op.Base); len(found) > 0 {
		t.Errorf("%+v: left behind: %q", op, found)
	}
	if res.Why == "" || strings.HasPrefix(res.Why, removing) {
		return // moved, or copied with a part of the original left
	}
	if d := cmp.Diff(before, now); d != "" {
		t.Errorf("%+v: something old has changed:\n%s", op, d)
	}
}

// mountBtrfs makes a btrfs in a file and mounts it. It has what the usual test machine lacks: quotas and shared blocks.
func mountBtrfs(t *testing.T, dir string) {
	t.Helper()
	testkit.Require(t, testkit.Root, testkit.Component("mkfs.btrfs", "btrfs", "mount"))
	image := filepath.Join(t.TempDir(), "image")
	check(t, os.WriteFile(image, nil, 0o600))
	check(t, os.Truncate(image, 256<<20))
	for _, args := range [][]string{{"mkfs.btrfs", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no btrfs here: %v, %s", err, out)
		}
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// TestQuota: a real quota is told as one, for copies and moves; what was there stays, and no half file remains.
func TestQuota(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	far := filepath.Join(base, "far")
	check(t, os.Mkdir(far, 0o770))
	mountBtrfs(t, far)
	for _, args := range [][]string{
		{"quota", "enable", far}, {"subvolume", "create", far + "/limited"}, {"qgroup", "limit", "4M", far + "/limited"},
	} {
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
			t.Skipf("no quota here: %v, %s", err, out)
		}
	}
	check(t, os.WriteFile(filepath.Join(far, "limited", "old"), []byte("old"), 0o600))
	check(t, os.MkdirAll(filepath.Join(base, "big"), 0o770))
	for i := range 10 {
		random := make([]byte, 1<<20) // nothing that a file system could make smaller
		rand.Read(random)             //nolint:errcheck // never fails
		check(t, os.WriteFile(filepath.Join(base, "big", fmt.Sprint(i)), random, 0o600))
	}
	check(t, os.WriteFile(filepath.Join(base, "huge"), bytes.Repeat([]byte("x"), 10<<20), 0o600))
	before := walkDisk(t, base)
	s, work := newWorking(t, base)
	for _, op := range []func(string, string, providerapi.ConflictPolicy) error{
		func(from, to string, p providerapi.ConflictPolicy) error { return copyOne(s, base, from, to, p) },
		func(from, to string, p providerapi.ConflictPolicy) error {
			return moveOne(s, moveItem(base, from, to, p))
		},
	} {
		for _, c := range [][3]string{{"huge", "far/limited/old", "REPLACE"}, {"huge", "far/limited/new", "REJECT"}, {"big", "far/limited/big", "RENAME"}} {
			work.failed = nil
			err := op(c[0], c[1], providerapi.ConflictPolicy(c[2]))
			if err == nil {
				err = work.failed
			}
			if !failure.Is(err, failure.PaymentRequired) || !strings.Contains(strings.ToLower(failure.Why(err)), "the storage quota is used up") {
				t.Errorf("%v: %v", c, err)
			}
			for p, text := range walkDisk(t, filepath.Join(far, "limited")) {
				if text != "old" && text != "dir" && text != before["big/"+filepath.Base(p)] {
					t.Errorf("%s is not whole: %d bytes", p, len(text))
				}
			}
			check(t, os.RemoveAll(filepath.Join(far, "limited", "big")))
		}
	}
	if d := cmp.Diff(before, walkDisk(t, base)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestBlocksAreShared where the file system can: a copy takes no space.
func TestBlocksAreShared(t *testing.T) {
	t.Parallel()
	base, _ := furnish(t)
	far := filepath.Join(base, "far")
	check(t, os.Mkdir(far, 0o770))
	mountBtrfs(t, far)
	content := bytes.Repeat(must(os.ReadFile("fault_test.go"))(t), 3000)[:30<<20]
	check(t, os.WriteFile(filepath.Join(far, "a"), content, 0o600))
	s, work := newWorking(t, base)
	used := func() int64 {
		fd := must(unix.Open(far, unix.O_RDONLY|unix.O_DIRECTORY, 0))(t)
		defer unix.Close(fd)
		check(t, unix.Syncfs(fd))
		var st unix.Statfs_t
		check(t, unix.Statfs(far, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	before := used()
	check(t, copyOne(s, base, "far/a", "far/b", "REJECT"))
	if grown := used() - before; work.failed != nil || grown > 5<<20 {
		t.Errorf("the copy takes %d bytes, %v", grown, work.failed)
	}
	if !bytes.Equal(must(os.ReadFile(filepath.Join(far, "b")))(t), content) {
		t.Error("the copy is something else")
	}
}
