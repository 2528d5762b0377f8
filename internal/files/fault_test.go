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
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// faultEnv makes the test binary do one operation while the kernel answers a system call with an error.
const faultEnv = "FILES_FAULT_CHILD"

// fault is what the child does.
type fault struct {
	Base, From, To string
	Policy         providerapi.ConflictPolicy
	Move           bool
	Call           uint32 // that fails
	Arg, Mask      uint32 // if Mask is set, only if an argument has these bits
	Errno          unix.Errno
	After          int // looks at whether to go on before it begins; 0: before the call
}

type faultResult struct {
	Why  string // of the call or the task; empty: success
	Kind failure.Kind
	Body string
}

func faultChild(text string) error {
	var f fault
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return err
	}
	work := &fakeTasks{check: func(steps int) error {
		if steps == f.After {
			failCall(f)
		}
		return nil
	}}
	o := quietOptions()
	o.Tasks = work
	s := New(o)
	work.s = s
	if f.After == 0 {
		failCall(f)
	}
	item := []providerapi.MoveFile{moveItem(f.Base, f.From, f.To, f.Policy)}
	op := s.Copy
	if f.Move {
		op = s.Move
	}
	err := op(context.Background(), item)
	if err == nil {
		err = work.failed
	}
	var res faultResult
	if err != nil {
		res.Kind, res.Why = failure.KindOf(err), failure.Why(err)
	}
	if len(work.jobs) > 0 {
		res.Body = work.jobs[0].last.Body
	}
	return json.NewEncoder(os.Stdout).Encode(res)
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
		for _, from := range tc.from {
			for _, after := range []int{0, 2, 6} {
				for _, move := range []bool{false, true} {
					if tc.moves && !move || after > 0 && from != tree {
						continue
					}
					t.Run(fmt.Sprint(tc.name, " ", tc.errno, " ", from, " ", after, " ", move), func(t *testing.T) {
						t.Parallel()
						base, _ := furnishFar(t, "size=50m")
						check(t, os.MkdirAll(filepath.Join(base, "tree", "sub"), 0o770))
						check(t, os.WriteFile(filepath.Join(base, "tree", "large"), bytes.Repeat([]byte("x"), 1<<20), 0o640))
						for _, f := range []string{"small", "sub/f", "sub/g"} {
							check(t, os.WriteFile(filepath.Join(base, "tree", f), []byte(f), 0o640))
						}
						check(t, os.Symlink("small", filepath.Join(base, "tree", "link")))
						target := "far"
						if tc.call == unix.SYS_COPY_FILE_RANGE { // the kernel copies on one file system only
							if move {
								t.Skip("content is never copied by the kernel from one file system to another")
							}
							target = "dir"
							check(t, os.WriteFile(filepath.Join(base, "dir", "a.txt"), []byte("far a.txt"), 0o660))
						}
						f := fault{
							Base: base, From: from, To: target + "/a.txt", Policy: "REPLACE", Move: move,
							Call: tc.call, Arg: tc.arg, Mask: tc.mask, Errno: tc.errno, After: after,
						}
						if from == tree {
							f.To, f.Policy = target+"/new", "REJECT"
						}
						if from == small && tc.name == "name" {
							f.Policy = "RENAME" // otherwise it takes the place of the old one
						}
						before := walkDisk(t, base)
						var res faultResult
						check(t, json.Unmarshal(child(t, faultEnv, string(must(json.Marshal(f))(t))), &res))
						if !strings.Contains(res.Why, tc.why) {
							// It may have come too late.
							if after == 0 || res.Why != "" && !strings.HasPrefix(res.Why, "All was copied") {
								t.Errorf("the user is told %q", res.Why)
							}
						} else if res.Kind == failure.Internal {
							t.Errorf("it is an internal error: %q", res.Why)
						}
						now := walkDisk(t, base)
						for p, text := range now {
							if _, old := before[p]; !old && text != "dir" {
								// What is new must be whole.
								if want := before[from+strings.TrimPrefix(p, f.To)]; text != want && text != "a.txt" {
									t.Errorf("%s has become %d bytes instead of %d", p, len(text), len(want))
								}
								delete(now, p)
							} else if !old {
								delete(now, p)
							}
						}
						if res.Why == "" || strings.HasPrefix(res.Why, "All was copied") {
							return // moved, or copied with a part of the original left
						}
						if d := cmp.Diff(before, now); d != "" {
							t.Errorf("something old has changed:\n%s", d)
						}
						if found := hidden(t, base); len(found) > 0 {
							t.Errorf("left behind: %q", found)
						}
					})
				}
			}
		}
	}
}

// mountBtrfs makes a btrfs in a file and mounts it. It has what the usual test machine lacks: quotas and shared blocks.
func mountBtrfs(t *testing.T, dir string) {
	t.Helper()
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
