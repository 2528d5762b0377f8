package scan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fast is a scan without pauses.
var fast = Options{Rate: 1 << 40}

func mustRun(t *testing.T, dir string, state State) State {
	t.Helper()
	end, err := Run(t.Context(), dir, state, fast)
	if err != nil || !end.Done {
		t.Fatalf("%+v, %v", end, err)
	}
	return end
}

// du is the other opinion: bytes that are allocated, on one file system.
func du(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-sx", "--block-size=1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func entries(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n - 1
}

// tree makes some files in a directory: names of all kinds, holes, links of both kinds, empty directories.
func tree(t *testing.T, dir string, r *rand.Rand, depth int) {
	t.Helper()
	for i := range 3 + r.IntN(5) {
		name := filepath.Join(dir, []string{"f", "'\n", "\xff\xfe", strings.Repeat("n", 250), " "}[i%5]+strconv.Itoa(i))
		if err := os.WriteFile(name, make([]byte, r.IntN(20_000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := os.Truncate(name, 1<<30); err != nil { // a hole
				t.Fatal(err)
			}
			if err := os.Link(name, name+"-second-name"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/", name+"-link"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if depth == 0 {
		return
	}
	for i := range 3 {
		sub := filepath.Join(dir, fmt.Sprint("d", i))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			tree(t, sub, r, depth-1)
		}
	}
}

func TestSameAsDu(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree(t, dir, rand.New(rand.NewPCG(1, 2)), 4)
	end := mustRun(t, dir, State{})
	if want := du(t, dir); end.Totals.Bytes != want || end.Totals.Files != entries(t, dir) || end.Totals.Unreadable+end.Totals.Lost != 0 {
		t.Errorf("%+v, du says %d, %d entries", end.Totals, want, entries(t, dir))
	}
	if again := mustRun(t, dir, end); again.Totals != end.Totals {
		t.Errorf("a scan that is done goes on: %+v", again)
	}
}

// TestInterruptedAnywhere: a scan that is cut off after any number of entries, and goes on in another process, finds the
// same as one that is not.
func TestInterruptedAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree(t, dir, rand.New(rand.NewPCG(3, 4)), 3)
	whole := mustRun(t, dir, State{}).Totals
	enough := errors.New("enough")
	for _, portion := range []int{1, 2, 7, 100} {
		var state State
		for rounds := 0; !state.Done; rounds++ {
			raw, err := state.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if state, err = Decode(raw); err != nil {
				t.Fatal(err)
			}
			s := &scanner{dir: dir, o: fast, totals: state.Totals, resting: time.Now()}
			if err := s.enter(state.Frames); err != nil {
				t.Fatal(err)
			}
			before := s.totals.Files
			for len(s.stack) > 0 && s.totals.Files < before+int64(portion) {
				if err := s.step(t.Context()); err != nil && !errors.Is(err, enough) {
					t.Fatal(err)
				}
			}
			state = s.state()
			state.Done = len(s.stack) == 0
			s.closeAll()
			if rounds > 100_000 {
				t.Fatal("it does not end")
			}
		}
		if state.Totals != whole {
			t.Errorf("in portions of %d: %+v, in one go %+v", portion, state.Totals, whole)
		}
	}
}

// TestDeepTree has more levels than are kept open, and more than a path can name.
func TestDeepTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const levels = 1500
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range levels {
		for _, name := range []string{"a", "sub", "z"} {
			if err := unix.Mkdirat(fd, name, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		next, err := unix.Openat(fd, "sub", unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	t.Cleanup(func() { _ = exec.Command("rm", "-rf", dir).Run() }) // os.RemoveAll would do, and take long
	before := countFDs(t)
	most := 0
	s := &scanner{dir: dir, o: fast, resting: time.Now()}
	if err := s.enter(nil); err != nil {
		t.Fatal(err)
	}
	for len(s.stack) > 0 {
		if err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.totals.Files%500 == 0 {
			most = max(most, countFDs(t)-before)
		}
	}
	if s.totals.Files != 3*levels || s.totals.Lost+s.totals.Unreadable != 0 {
		t.Errorf("%+v", s.totals)
	}
	if most > window+50 { // other tests have some open
		t.Errorf("%d descriptors", most)
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestOtherFileSystems are not part of a drive.
func TestOtherFileSystems(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	dir := t.TempDir()
	mount := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	testkit.Mount(t, "tmpfs", mount, "tmpfs", 0, "size=1m")
	if err := os.WriteFile(filepath.Join(mount, "x"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if end := mustRun(t, dir, State{}); end.Totals.Files != 0 || end.Totals.Bytes >= 100_000 {
		t.Errorf("%+v", end.Totals)
	}
}

func TestUnreadableDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 { // root reads everything, so the test runs itself as somebody else
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, "b"), 0o755); err != nil {
			t.Fatal(err)
		}
		end := runAs(t, dir)
		if end.Totals.Unreadable != 3 || end.Totals.Files != 4 {
			t.Errorf("%+v", end.Totals)
		}
		return
	}
	if err := os.Chmod(filepath.Join(dir, "b"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "b"), 0o700) }) // so that it can be removed
	if end := mustRun(t, dir, State{}); end.Totals.Unreadable != 1 || end.Totals.Files != 3 {
		t.Errorf("%+v", end.Totals)
	}
}

// runAs scans with the file system rights of nobody in particular.
func runAs(t *testing.T, dir string) (end State) {
	t.Helper()
	done := make(chan error)
	go func() { // the thread ends with the goroutine, because it stays locked
		lockThread()
		if err := setfsuid(3_900_000_031); err != nil {
			done <- err
			return
		}
		var err error
		end, err = Run(context.Background(), dir, State{}, fast)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return end
}

// TestSwapsStayInside: directories are exchanged for links and for one another while scans run. Nothing outside is ever
// counted.
func TestSwapsStayInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "huge"), make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range 20 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint("d", i), "x", "y"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 9))
			spare := filepath.Join(dir, fmt.Sprint("link", w))
			_ = os.Symlink(outside, spare)
			for {
				select {
				case <-stop:
					return
				default:
				}
				at := filepath.Join(dir, fmt.Sprint("d", r.IntN(20)))
				if r.IntN(2) == 0 {
					at = filepath.Join(at, "x")
				}
				_ = unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, spare, unix.RENAME_EXCHANGE)
			}
		})
	}
	for range 300 {
		end, err := Run(t.Context(), dir, State{}, fast)
		if err != nil {
			t.Fatal(err)
		}
		if end.Totals.Bytes > 16<<20 {
			t.Fatalf("%+v: something outside was counted", end.Totals)
		}
	}
	close(stop)
	wg.Wait()
}

// TestResumeAfterChanges: what a scan was in is gone, or is another directory.
func TestResumeAfterChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a/b/c", "z"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	frame := func(name string) Frame {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return Frame{Name: []byte(filepath.Base(name)), Dev: st.Dev, Ino: st.Ino}
	}
	top := frame(".")
	top.Name = nil
	whole := State{Frames: []Frame{top, frame("a"), frame("a/b")}, Totals: Totals{Files: 2}}
	if end := mustRun(t, dir, whole); end.Totals.Files < 3 || end.Totals.Lost != 0 {
		t.Errorf("unchanged: %+v", end.Totals)
	}
	wrong := whole
	wrong.Frames = append([]Frame{}, whole.Frames...)
	wrong.Frames[2].Ino++
	if end := mustRun(t, dir, wrong); end.Totals.Lost != 1 {
		t.Errorf("another directory: %+v", end.Totals)
	}
	wrong = whole
	wrong.Frames = append([]Frame{}, whole.Frames...)
	wrong.Frames[0].Ino++
	if end := mustRun(t, dir, wrong); end.Totals.Files != 4 || end.Totals.Lost != 0 {
		t.Errorf("another top: %+v", end.Totals)
	}
	if _, err := Run(t.Context(), filepath.Join(dir, "missing"), State{}, fast); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestDecodeRefusesNonsense(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"x", `{"totals":{"bytes":-1}}`, `{"frames":[{"name":"YQ=="}]}`, `{"frames":[{"name":""},{"name":"Li4="}]}`,
		`{"frames":[{"name":""},{"name":"YS9i"}]}`, `{"frames":[{"name":""},{"name":""}]}`, `{"done":true,"frames":[{"name":""}]}`,
	} {
		if s, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s became %+v", bad, s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"totals":{"bytes":1},"frames":[{"name":"","dev":1,"ino":2,"cursor":-3},{"name":"YQ=="}]}`))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(data)
		if err != nil {
			return
		}
		for i, fr := range s.Frames {
			if i > 0 && !usableName(string(fr.Name)) {
				t.Fatalf("%q", fr.Name)
			}
		}
		raw, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(raw); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
	})
}
