package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

// What a child of the tests does: see child.
const (
	envDir   = "SANDBOX_TEST_DIR"
	envDepth = "SANDBOX_TEST_DEPTH"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// libraries are what a test program needs that is not static, as it is with the race detector.
var libraries = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"}

// child enters the sandbox, tries everything, and starts itself again as often as it is told.
func child(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if !Entered() {
		rules := []Rule{
			{filepath.Join(dir, "read"), Read},
			{filepath.Join(dir, "state"), Read | Write},
			{os.DevNull, Read | Write},
			{"/proc", Read},
			{filepath.Dir(self), Execute},
			{filepath.Join(dir, "missing"), Write},
		}
		for _, l := range libraries {
			rules = append(rules, Rule{l, Read | Execute})
		}
		return Enter(rules, self, os.Args)
	}
	var errs []error
	must := func(what string, err, want error) {
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			errs = append(errs, fmt.Errorf("%s: %v, want %v", what, err, want))
		}
	}
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	read := func(name string) error { _, err := os.ReadFile(name); return err }
	denied := fs.ErrPermission

	must("inside", Inside(), nil)
	must("read what is allowed", read(at("read/config")), nil)
	must("read the state", read(at("state/table")), nil)
	must("read something else", read(at("secret")), denied)
	must("through a link that is allowed to be read", read(at("read/link")), denied)
	must("through a descriptor of the parent", read("/proc/self/cwd/secret"), denied)
	_, err = os.ReadDir(dir)
	must("list", err, denied)
	must("write to the configuration", os.WriteFile(at("read/config"), nil, 0o600), denied)
	must("a new file in it", os.WriteFile(at("read/new"), nil, 0o600), denied)
	must("a new file elsewhere", os.WriteFile(at("pwned"), nil, 0o600), denied)
	must("remove the configuration", os.Remove(at("read/config")), denied)
	must("write the state", os.WriteFile(at("state/new"), []byte("x"), 0o600), nil)
	must("replace the state", os.Rename(at("state/new"), at("state/table")), nil)
	must("a link in the state", os.Symlink("/etc", at("state/etc")), denied)
	must("a directory in the state", os.Mkdir(at("state/dir"), 0o700), denied)
	must("move out of the state", os.Rename(at("state/table"), at("pwned")), denied)
	must("no new privileges", noNewPrivileges(), nil)
	must("run another program", exec.Command(at("bin/sh")).Run(), denied)
	must("run the state", os.WriteFile(at("state/program"), []byte("#!/bin/true\n"), 0o700), nil)
	must("run the state", exec.Command(at("state/program")).Run(), denied)
	// What replaces a file is allowed as well: rules are about the directory.
	depth, err := strconv.Atoi(os.Getenv(envDepth))
	if err != nil {
		return err
	}
	if depth > 0 && errs == nil {
		next := exec.Command(self, os.Args[1:]...)
		next.Env = append(os.Environ(), envDepth+"="+strconv.Itoa(depth-1))
		if out, err := next.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("successor: %w: %s", err, out))
		}
	}
	return errors.Join(errs...)
}

func noNewPrivileges() error {
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || v != 1 {
		return fmt.Errorf("no_new_privs is %d, %w", v, err)
	}
	return nil
}

// landlock is the requirement of a kernel that has it.
var landlock = testkit.Requirement{Name: "a kernel with Landlock", Missing: func() error { _, err := ABI(); return err }}

// runPlainly runs the test in a program that is built as ours are.
func runPlainly(t *testing.T) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "plain.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test without the race detector: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program, "-test.run", "^"+t.Name()+"$", "-test.v").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestInside: a process in its sandbox, and its successors down to more than the kernel counts, can do what the rules say
// and nothing else.
//
//attack:actor internet
//attack:does Has taken the gateway over by a bug, and reads other files, writes to the configuration, or starts a program.
//attack:control The gateway has given its rights to files up (Landlock).
//attack:remove internal/sandbox/sandbox.go: if _, errno := sys(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 { => if errno := syscall.Errno(0); errno != 0 {
func TestInside(t *testing.T) {
	t.Parallel()
	testkit.Require(t, landlock)
	if raceDetector {
		// With the race detector a program is linked against the C library and does not begin anew as ours do.
		runPlainly(t)
		return
	}
	dir := t.TempDir()
	for _, d := range []string{"read", "state", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"read/config", "state/table", "secret"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/sh"), sh, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../secret", filepath.Join(dir, "read/link")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), envDir+"="+dir, envDepth+"=20")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRights(t *testing.T) {
	t.Parallel()
	const file, dir = false, true
	for _, tc := range []struct {
		access  Access
		version int
		dir     bool
		want    uint64
	}{
		{Read, 1, dir, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR},
		{Read, 7, file, unix.LANDLOCK_ACCESS_FS_READ_FILE},
		{Execute, 7, dir, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{Write, 2, file, unix.LANDLOCK_ACCESS_FS_WRITE_FILE}, // no right to truncate in version 2
		{Write, 3, file, unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{Write, 3, dir, unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE},
		{0, 7, dir, 0},
	} {
		if got := rights(tc.access, tc.version, tc.dir); got != tc.want {
			t.Errorf("%s, version %d, directory %t: %#x, want %#x", tc.access, tc.version, tc.dir, got, tc.want)
		}
	}
	for version, want := range map[int]uint64{1: 0x1fff, 2: 0x3fff, 3: 0x7fff, 4: 0x7fff, 5: 0xffff, 99: 0xffff} {
		if got := handled(version); got != want {
			t.Errorf("version %d: %#x, want %#x", version, got, want)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	os.Mkdir(filepath.Join(dir, "a"), 0o700)
	os.Symlink("a", filepath.Join(dir, "b"))
	os.Symlink("/", filepath.Join(dir, "root"))
	got, err := Resolve([]Rule{{filepath.Join(dir, "b"), Read}, {filepath.Join(dir, "a"), Execute}, {filepath.Join(dir, "no"), Write}})
	if want := []Rule{{filepath.Join(dir, "a"), Read | Execute}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, path := range []string{"/", "a", filepath.Join(dir, "root"), filepath.Join(dir, "a/../root/.")} {
		if _, err := Resolve([]Rule{{path, Read}}); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
}

// TestOldKernels: without Landlock that is what is said, and every other failure is one.
func TestOldKernels(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{unix.ENOSYS, unix.EOPNOTSUPP} {
		none := func(uintptr, uintptr, uintptr, uintptr) (uintptr, syscall.Errno) { return ^uintptr(0), errno }
		if err := restrictThread(nil, none); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	// A version from before directories could be ioctl'ed: the rule set must not ask for more than it knows.
	var asked uint64
	old := func(trap, a1, a2, a3 uintptr) (uintptr, syscall.Errno) {
		if a3 == unix.LANDLOCK_CREATE_RULESET_VERSION {
			return 1, 0
		}
		if trap == unix.SYS_LANDLOCK_CREATE_RULESET {
			asked = uint64(a2)
		}
		return 0, unix.EINVAL
	}
	if err := restrictThread(nil, old); errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.EINVAL) || asked != 8 {
		t.Errorf("%v, a rule set of %d bytes", err, asked)
	}
	if err := Inside(); !errors.Is(err, ErrOutside) {
		t.Errorf("the test is %v", err)
	}
	if strings.Contains(Access(Read|Execute).String(), "w") {
		t.Error(Access(Read | Execute))
	}
}
