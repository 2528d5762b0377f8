package uploads

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/quotafs"
	"ucloud-im/internal/uploads/client"
)

// disk is a store of sessions that survives the process: one file for each session.
type disk struct{ dir string }

func (d disk) path(token string) string { return filepath.Join(d.dir, token) }

func (d disk) Create(_ context.Context, _ string, items []ipcapi.SessionItem) (tokens []string, err error) {
	for _, it := range items {
		token := "t" + strconv.FormatUint(rand.Uint64(), 36)
		if err := d.put(token, ipcapi.Session{Object: it.Object, Data: it.Data}); err != nil {
			return nil, err
		}
		tokens = append(tokens, token)
	}
	return tokens, nil
}

func (d disk) put(token string, s ipcapi.Session) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	part := fmt.Sprintf("%s.%d", d.path(token), rand.Uint64())
	if err := os.WriteFile(part, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(part, d.path(token))
}

func (d disk) Consume(_ context.Context, purpose, token string) (s ipcapi.Session, err error) {
	raw, err := os.ReadFile(d.path(filepath.Base(token)))
	if err != nil || purpose != ipcapi.PurposeUpload {
		return s, failure.New(failure.NotFound, "no such session")
	}
	return s, json.Unmarshal(raw, &s)
}

func (d disk) Touch(ctx context.Context, n ipcapi.SessionNote) error {
	s, err := d.Consume(ctx, n.Purpose, n.Token)
	if err != nil {
		return err
	}
	switch {
	case n.Will != nil:
		part := fmt.Sprintf("%s.%d", d.path(n.Token), rand.Uint64())
		if err := os.WriteFile(part, n.Will, 0o600); err != nil {
			return err
		}
		return os.Rename(part, d.path(n.Token)+".will")
	case n.NoWill:
		return os.Remove(d.path(n.Token) + ".will")
	case n.Note == nil:
		return nil
	}
	s.Note = n.Note
	return d.put(n.Token, s)
}

func (d disk) wills(context.Context) (wills [][]byte, err error) {
	files, err := filepath.Glob(d.path("*.will"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil {
			err = os.Remove(f)
		}
		if err != nil {
			return nil, err
		}
		wills = append(wills, raw)
	}
	return wills, err
}

func (d disk) Close(_ context.Context, _, token string) error { return os.Remove(d.path(token)) }

// playServer is another process: it serves uploads until it is killed, and prints its address.
func playServer(state string) {
	syscall.Umask(0o007)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	if spec := os.Getenv("UPLOADS_TEST_FAIL"); spec != "" {
		var call, errno uint32
		if _, err := fmt.Sscanf(spec, "%d:%d", &call, &errno); err != nil {
			panic(err)
		}
		failCall(call, errno)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	now := time.Now
	if later := os.Getenv("UPLOADS_TEST_LATER"); later != "" {
		d, err := time.ParseDuration(later)
		if err != nil {
			panic(err)
		}
		now = func() time.Time { return time.Now().Add(d) }
	}
	svc := New(Options{
		Now: now, Provider: testProvider, User: testUser, Sessions: disk{state}, Log: log, SpillDir: state,
		Settings: Settings{NoSync: os.Getenv("UPLOADS_TEST_SYNC") == "", PublicURL: "http://" + l.Addr().String()},
		Failed:   func(_ context.Context, r Report) error { fmt.Println("report", r.Title()); return nil },
		Wills:    disk{state}.wills, WillAfter: 50 * time.Millisecond,
	})
	tb := &fakeTB{}
	srv := httptest.Server{Listener: l, Config: &http.Server{Handler: gateway(tb, svc, log)}}
	fmt.Println("address", l.Addr())
	svc.TakeWills()
	srv.Start()
	_, _ = io.Copy(io.Discard, os.Stdin) // the parent holds it
}

// failCall makes the kernel answer a system call with an error from now on (seccomp(2)).
func failCall(call, errno uint32) {
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: call},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | errno},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog))); e != 0 {
		panic(e)
	}
}

// fakeTB is enough of a test for the helpers, in a process that is none.
type fakeTB struct{ testing.TB }

func (*fakeTB) Cleanup(func()) {}

// player is such a process.
type player struct {
	tb   testing.TB
	cmd  *exec.Cmd
	addr string
	in   io.Closer
	out  chan string
	once sync.Once // for kill
}

func play(tb testing.TB, state string, uid uint32, env ...string) *player {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(env, "UPLOADS_TEST_DIR="+state, "GORACE=halt_on_error=1")
	cmd.Stderr = os.Stderr
	if uid != 0 {
		// The test binary lies in a directory that only root may enter.
		self, err := os.Open(exe)
		if err != nil {
			tb.Fatal(err)
		}
		defer self.Close()
		cmd.ExtraFiles = []*os.File{self}
		cmd.Path = "/proc/self/fd/3"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &player{tb: tb, cmd: cmd, in: in, out: make(chan string, 100)}
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(p.out)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.out <- s.Text()
		}
	})
	tb.Cleanup(func() {
		p.kill()
		reader.Wait()
	})
	p.addr = strings.TrimPrefix(p.line("address "), "address ")
	return p
}

// line waits for a line that begins so.
func (p *player) line(prefix string) string {
	p.tb.Helper()
	timeout := time.After(patience)
	for {
		select {
		case l, ok := <-p.out:
			if !ok {
				p.tb.Fatal("the process has ended")
			}
			if strings.HasPrefix(l, prefix) {
				return l
			}
		case <-timeout:
			p.tb.Fatalf("no line %q", prefix)
		}
	}
}

// kill ends the process. A timer and the test may do so at the same moment; both return when it has ended.
func (p *player) kill() {
	p.once.Do(func() {
		p.in.Close()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
}

// record makes a session for such a process.
func (d disk) session(tb testing.TB, dir, path, kind string, policy providerapi.ConflictPolicy) string {
	tb.Helper()
	drive := testDrive(dir)
	data, err := json.Marshal(record{Version: 1, Drive: "5123", DrivePG: drive.ProviderGeneratedID, Provider: testProvider, Path: "/5123" + path, Kind: kind, Policy: policy, Protocol: protocolV2})
	if err != nil {
		tb.Fatal(err)
	}
	tokens, err := d.Create(context.Background(), "", []ipcapi.SessionItem{{Object: path, Data: data}})
	if err != nil {
		tb.Fatal(err)
	}
	return tokens[0]
}

func (p *player) endpoint(token string) string {
	return "ws://" + p.addr + "/ucloud/" + testProvider + "/upload?token=" + token
}

var _ browserlink.Store = disk{}

// TestKill kills the process at random moments of uploads, and goes on until everything is there.
func TestKill(t *testing.T) {
	t.Parallel()
	kills := rounds(60, 6)
	dir, state := t.TempDir(), disk{t.TempDir()}
	folderToken := state.session(t, dir, "/in", folder, rename)
	sizes := map[string]int64{}
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range 400 {
		size := rng.Int64N(3000)
		if i%20 == 0 {
			size = 1_000_000 + rng.Int64N(6_000_000)
		}
		sizes[fmt.Sprintf("d%d/f%d", i%9, i)] = size
	}
	files := func(change bool) iter.Seq2[*uploadclient.File, error] {
		return func(yield func(*uploadclient.File, error) bool) {
			for name, size := range sizes {
				f := sourceOf(name, size)
				if change {
					f.Modified = f.Modified.Add(time.Hour)
				}
				if !yield(f, nil) {
					return
				}
			}
		}
	}
	passes := 0
	for done := 0; done < kills; {
		p := play(t, state.dir, 0)
		c, err := uploadclient.Dial(t.Context(), p.endpoint(folderToken), uploadclient.Options{Parallel: 3})
		if err != nil {
			t.Fatal(err)
		}
		end := time.AfterFunc(time.Duration(rng.IntN(60))*time.Millisecond, p.kill)
		_, err = c.Send(t.Context(), files(passes%2 == 1))
		if !end.Stop() || err != nil {
			done++
		}
		if err == nil {
			passes++ // all there: the next pass replaces everything
		} else if !errors.Is(err, uploadclient.ErrClosed) && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "send:") {
			t.Fatal(err)
		}
		c.Abort()
		p.kill()
		for name, content := range tree(t, dir) {
			if content == "/" || strings.Contains(name, ".ucloud-upload-") {
				continue
			}
			if want := sizes[strings.TrimPrefix(name, "in/")]; int64(len(content)) != want {
				t.Fatalf("after %d kills %s has %d bytes, want %d", done, name, len(content), want)
			}
		}
	}
	t.Logf("%d complete passes", passes)
	p := play(t, state.dir, 0)
	res := send(t, UploadSession{Endpoint: p.endpoint(folderToken)}, uploadclient.Options{}, files(passes%2 == 1))
	if res.Completed != int64(len(sizes)) {
		t.Errorf("%+v", res)
	}
	again := send(t, UploadSession{Endpoint: p.endpoint(folderToken)}, uploadclient.Options{}, files(passes%2 == 1))
	if again.Skipped != int64(len(sizes)) {
		t.Errorf("sent again: %+v", again)
	}
	got := tree(t, filepath.Join(dir, "in"))
	for name, want := range sizes {
		if content, ok := got[name]; !ok || int64(len(content)) != want {
			t.Errorf("%s has %d bytes, want %d", name, len(content), want)
		}
	}
}

// TestKillSingleFile: however often the process is killed around the end of a file, its session makes one file of it.
func TestKillSingleFile(t *testing.T) {
	t.Parallel()
	dir, state := t.TempDir(), disk{t.TempDir()}
	for round := range rounds(40, 4) {
		name := fmt.Sprint("f", round)
		write(t, filepath.Join(dir, name), "in the way")
		token := state.session(t, dir, "/"+name, kindFile, rename)
		for try := 0; ; try++ {
			p := play(t, state.dir, 0)
			c, err := uploadclient.Dial(t.Context(), p.endpoint(token), uploadclient.Options{})
			if err != nil {
				t.Fatal(err)
			}
			f := sourceOf("", 100_000)
			open := f.Open
			f.Open = func() (io.ReadCloser, error) {
				if try < 2 {
					time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, p.kill)
				}
				return open()
			}
			_, err = c.Send(t.Context(), seqOf(f))
			c.Abort()
			p.kill()
			if err == nil && try >= 1 { // once more, as if the last answer had been lost
				break
			}
		}
		got := 0
		for other, content := range tree(t, dir) {
			if strings.HasPrefix(other, name+"(") {
				got++
				if len(content) != 100_000 {
					t.Errorf("%s has %d bytes", other, len(content))
				}
			}
		}
		if got != 1 {
			t.Fatalf("%d copies of %s", got, name)
		}
	}
}

// TestBrokenStorage lets the kernel report errors that a healthy disk does not have, at every step of a file.
func TestBrokenStorage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		call  uint32
		errno unix.Errno
		why   string
		fatal bool
	}{
		{"write", unix.SYS_PWRITE64, unix.EIO, "The storage reported an error", true},
		{"write", unix.SYS_PWRITE64, unix.EDQUOT, "The storage quota is used up", true},
		{"write", unix.SYS_PWRITE64, unix.EFBIG, "The file is too large for the storage", false},
		{"flush", unix.SYS_FSYNC, unix.EIO, "The storage reported an error", true},
		{"flush", unix.SYS_FSYNC, unix.EDQUOT, "The storage quota is used up", true},
		{"times", unix.SYS_UTIMENSAT, unix.EIO, "The storage reported an error", true},
		{"name", unix.SYS_RENAMEAT, unix.EDQUOT, "The storage quota is used up", true},
		{"name", unix.SYS_RENAMEAT, unix.EBUSY, "The file is in use", false},
		{"folder", unix.SYS_MKDIRAT, unix.EDQUOT, "The storage quota is used up", true},
		{"folder", unix.SYS_MKDIRAT, unix.EMLINK, "The folder holds too many folders", false},
	} {
		for _, size := range []int{1000, 200_000} {
			t.Run(fmt.Sprint(tc.name, " ", tc.errno, " ", size), func(t *testing.T) {
				t.Parallel()
				dir, state := t.TempDir(), disk{t.TempDir()}
				path := "old"
				if tc.call == unix.SYS_MKDIRAT {
					path = "new/x"
				}
				write(t, filepath.Join(dir, "old"), "old")
				token := state.session(t, dir, "", folder, rename)
				p := play(t, state.dir, 0, fmt.Sprintf("UPLOADS_TEST_FAIL=%d:%d", tc.call, uint32(tc.errno)), "UPLOADS_TEST_SYNC=1")
				c := (&world{tb: t}).dial(UploadSession{Endpoint: p.endpoint(token)})
				c.binary(listing(listed{0, int64(size), someTime, path}))
				if op, _, ok := c.next(); ok && op == opOK {
					c.binary(chunk(0, strings.Repeat("x", size)))
				}
				if tc.fatal {
					c.expectClose(websocket.StatusInternalError)
					if !strings.Contains(c.err.Error(), tc.why) {
						t.Errorf("the client is told %v", c.err)
					}
					if c.done != 0 {
						t.Error("it was acknowledged")
					}
				} else {
					c.expect(num(opCompleted, 1))
					c.Close(websocket.StatusNormalClosure, "")
				}
				if got := p.line("report "); !strings.HasSuffix(got, "1 file failed: "+tc.why) {
					t.Errorf("%q", got)
				}
				if got := tree(t, dir); len(got) != 1 || got["old"] != "old" {
					t.Errorf("%d entries", len(got))
				}
			})
		}
	}
}

const someUID = 61_234 // of nobody

// TestQuota: a real quota, which counts for everybody but root.
func TestQuota(t *testing.T) {
	t.Parallel()
	dir := quotafs.Mount(t, 1<<20)
	state := disk{stateDir(t)}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "d"), 0o777); err != nil {
		t.Fatal(err)
	}
	token := state.session(t, dir, "/d", folder, rename)
	open(t, state)
	p := play(t, state.dir, someUID)
	c := (&world{tb: t}).dial(UploadSession{Endpoint: p.endpoint(token)})
	c.binary(listing(listed{0, 10, someTime, "fine"}))
	c.expect(num(opOK, 0))
	c.binary(chunk(0, "0123456789"))
	c.expect(num(opCompleted, 1))
	c.binary(listing(listed{1, 4 << 20, someTime, "big"}))
	c.expect(num(opOK, 1))
	for range 4 {
		c.binary(chunk(1, strings.Repeat("x", 1<<20)))
	}
	c.expectClose(websocket.StatusInternalError)
	if !strings.Contains(c.err.Error(), "The storage quota is used up") {
		t.Errorf("the client is told %v", c.err)
	}
	if got := p.line("report "); got != "report Upload of d: 1 file failed: The storage quota is used up" {
		t.Errorf("%q", got)
	}
	if got := tree(t, dir); len(got) != 2 || got["d/fine"] != "0123456789" {
		t.Errorf("%d entries", len(got))
	}
}

// stateDir is a directory that another account may use.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	passable(t, dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// passable lets everybody enter a directory of the test.
func passable(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
}

// open lets another account use what has been stored.
func open(t *testing.T, d disk) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(d.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Chmod(f, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPermissions: folders of others, as an account that is not root; and modes by the umask and the setgid bit.
func TestPermissions(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	dir, state := stateDir(t), disk{stateDir(t)}
	for name, mode := range map[string]os.FileMode{"closed": 0o755, "open": 0o777 | os.ModeSetgid, "noread": 0o733} {
		if err := os.Mkdir(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "open"), 0, 61_235); err != nil {
		t.Fatal(err)
	}
	token := state.session(t, dir, "", folder, rename)
	open(t, state)
	p := play(t, state.dir, someUID)
	c := (&world{tb: t}).dial(UploadSession{Endpoint: p.endpoint(token)})
	c.binary(listing(listed{0, 1, someTime, "closed/a"}, listed{1, 1, someTime, "open/sub/b"}, listed{2, 1, someTime, "noread/c"}, listed{3, 100_000, someTime, "closed/sub/d"}))
	c.expect(num(opSkip, 0), num(opOK, 1), num(opOK, 2), num(opSkip, 3))
	c.binary(chunk(1, "b"))
	c.binary(chunk(2, "c"))
	c.expect(num(opCompleted, 4))
	c.Close(websocket.StatusNormalClosure, "")
	if got := p.line("report "); !strings.HasSuffix(got, "2 files failed: You do not have permission") {
		t.Errorf("%q", got)
	}
	for name, want := range map[string]struct {
		mode os.FileMode
		gid  uint32
	}{"open/sub": {0o770 | os.ModeDir | os.ModeSetgid, 61_235}, "open/sub/b": {0o660, 61_235}, "noread/c": {0o660, someUID}} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != want.mode || st.Uid != someUID || st.Gid != want.gid {
			t.Errorf("%s: %v %d:%d", name, info.Mode(), st.Uid, st.Gid)
		}
	}
}
