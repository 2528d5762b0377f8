package transfers

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/uploads"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 99)) }

// Environment of the processes that play a side: what they play, and where their state is.
const playEnv, playDir = "TRANSFERS_TEST_PLAY", "TRANSFERS_TEST_DIR"

// onDisk keeps sessions over the life of a process.
type onDisk struct {
	*memory
	file string
}

func (d onDisk) load() {
	raw, err := os.ReadFile(d.file)
	if err == nil {
		err = json.Unmarshal(raw, &d.sessions)
	}
	if err != nil && !os.IsNotExist(err) {
		panic(err)
	}
	for token := range d.sessions {
		d.purposes[token], _, _ = strings.Cut(token, "-")
	}
	d.n = 1000 * len(d.sessions)
}

func (d onDisk) store() {
	d.mu.Lock()
	defer d.mu.Unlock()
	raw, err := json.Marshal(d.sessions)
	if err == nil {
		err = os.WriteFile(d.file+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(d.file+".new", d.file)
	}
	if err != nil {
		panic(err)
	}
}

func (d onDisk) Close(ctx context.Context, purpose, token string) error {
	err := d.memory.Close(ctx, purpose, token)
	d.store()
	return err
}

// play is another process: a source that works on its task, or a destination that serves on a socket of its parent.
func play(what string) {
	syscall.Umask(0o007)
	dir := os.Getenv(playDir)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	sessions := onDisk{newMemory(), dir + "/sessions.json"}
	sessions.load()
	b := &board{byKey: map[string]bool{}, ended: map[string]bool{}}
	s := New(Options{Provider: what, User: testUser, Sessions: sessions, Tasks: b, Update: b.update, Log: log, Settings: testSettings()})
	s.retryPause = 5 * time.Millisecond
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the parent holds it
		os.Exit(0)
	}()
	if what == "source" {
		playSource(s, dir)
		return
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	o := uploads.Options{
		Provider: what, User: testUser, Sessions: sessions, Log: log, SpillDir: dir,
		Settings: uploads.Settings{NoSync: true, PublicURL: "http://" + l.Addr().String()},
	}
	s.Hook(&o)
	u := uploads.New(o)
	s.Attach(u)
	fmt.Println("ready")
	panic(http.Serve(l, gateway(fakeTB{}, what, s, u, log)))
}

func playSource(s *Service, dir string) {
	params, err := os.ReadFile(dir + "/params.json")
	if err != nil {
		panic(err)
	}
	saved, _ := os.ReadFile(dir + "/saved.json")
	j := &fakeJob{params: params, saved: saved, keep: func(raw json.RawMessage) {
		if err := os.WriteFile(dir+"/saved.json.new", raw, 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(dir+"/saved.json.new", dir+"/saved.json"); err != nil {
			panic(err)
		}
	}}
	fmt.Println("ready")
	for {
		err := s.runSend(context.Background(), j)
		switch {
		case err == nil:
			fmt.Println("done", j.summary)
			return
		case !isTransient(err):
			fmt.Println("failed", failure.Why(err))
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// fakeTB is enough of a test for the helpers, in a process that is none.
type fakeTB struct{ testing.TB }

func (fakeTB) Cleanup(func()) {}

// player is such a process.
type player struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Scanner
}

// start starts a process and waits until it is ready.
func start(tb testing.TB, what, dir string, uid uint32, files ...*os.File) *player {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{playEnv + "=" + what, playDir + "=" + dir, "GORACE=halt_on_error=1", "TMPDIR=" + dir}
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, files
	if uid != 0 {
		// The test binary lies in a directory that only root may enter.
		self, err := os.Open(exe)
		if err != nil {
			tb.Fatal(err)
		}
		defer self.Close()
		cmd.ExtraFiles = append(files, self)
		cmd.Path = fmt.Sprintf("/proc/self/fd/%d", 3+len(files))
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
	p := &player{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	tb.Cleanup(p.kill)
	if line := p.line(); line != "ready" {
		tb.Fatalf("the process says %q", line)
	}
	return p
}

// line is the next line that the process writes, "" when it has ended.
func (p *player) line() string {
	if p.out.Scan() {
		return p.out.Text()
	}
	return ""
}

func (p *player) kill() {
	p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// TestKills kills either process at random moments until everything is there.
func TestKills(t *testing.T) {
	t.Parallel()
	kills := 20
	if testing.Short() || raceEnabled {
		kills = 6
	}
	dir := t.TempDir()
	for _, d := range []string{"from", "to", "source", "destination"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	tree := map[string]string{}
	for i := range 1500 {
		size := i * 7 % 3000
		if i%100 == 0 {
			size = 400_000
		}
		tree[fmt.Sprintf("%d/%d/%d", i%9, i%5, i)] = content(uint64(i), size)
	}
	plant(t, dir+"/from/data", tree)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	rng := newRand(2)
	killed := 0
	for round := 0; killed < kills; round++ {
		target := fmt.Sprintf("in%d", round)
		prepare(t, dir, l.Addr().String(), target, round%2 == 0)
		destination := start(t, "destination", dir+"/destination", 0, socket)
		source := start(t, "source", dir+"/source", 0)
		ended := make(chan string, 1)
		go func() { ended <- source.line() }()
		for over := false; !over; {
			wait := time.After(time.Duration(5+rng.IntN(120)) * time.Millisecond)
			if killed >= kills {
				wait = nil // to the end
			}
			select {
			case line := <-ended:
				if !strings.HasPrefix(line, "done") {
					t.Fatalf("the source ended: %q", line)
				}
				over = true
			case <-wait:
				if killed++; rng.IntN(2) == 0 {
					destination.kill()
					destination = start(t, "destination", dir+"/destination", 0, socket)
					continue
				}
				source.kill()
				if line := <-ended; line != "" { // it was just done
					over = true
					continue
				}
				source = start(t, "source", dir+"/source", 0)
				go func() { ended <- source.line() }()
			}
		}
		source.kill()
		destination.kill()
		got := grown(t, dir+"/to/"+target)
		debris := 0
		for name := range got {
			if strings.Contains(name, ".ucloud-upload-") {
				debris++ // of killed processes; the janitor removes it when it is a day old
				delete(got, name)
			}
		}
		if d := cmp.Diff(grown(t, dir+"/from/data"), got); d != "" {
			t.Fatalf("after %d kills: %s", killed, d)
		}
		t.Logf("%d kills, %d hidden files", killed, debris)
	}
}

// prepare makes a session of the destination and a task of the source.
func prepare(tb testing.TB, dir, addr, target string, checked bool) {
	tb.Helper()
	b := &site{tb: tb, name: "destination", dir: dir + "/to", sessions: newMemory(), board: &board{byKey: map[string]bool{}, ended: map[string]bool{}}}
	log := slog.New(slog.DiscardHandler)
	set := uploads.Settings{NoSync: true, PublicURL: "http://" + addr}
	u := uploads.New(uploads.Options{Provider: b.name, User: testUser, Sessions: b.sessions, Log: log, Settings: set})
	defer u.Close(context.Background())
	d := b.drive()
	session, err := u.CreateTransfer(tb.Context(), &d, "/5123/"+target, refOf(make([]byte, 16), "source"), checked)
	if err != nil {
		tb.Fatal(err)
	}
	disk := onDisk{b.sessions, dir + "/destination/sessions.json"}
	disk.store()
	a := &site{name: "source", dir: dir + "/from"}
	from := a.drive()
	params, err := json.Marshal(sendParams{
		Drive: from.ID, Base: from.ProviderGeneratedID, Path: "/5123/data", Peer: "destination", Protocol: map[bool]string{true: protocolChecked, false: protocolBuiltIn}[checked], Endpoint: session.Endpoint,
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(dir+"/source/params.json", params, 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Remove(dir + "/source/saved.json"); err != nil && !errors.Is(err, os.ErrNotExist) {
		tb.Fatal(err)
	}
}

// TestUnreadable: what cannot be read fails the task and is named, and the rest is there. The source runs as a user who
// may not read everything.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	const nobody = 65534
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"from", "to", "source", "destination"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	plant(t, dir+"/from/data", map[string]string{"fine": "fine", "secret": "x", "locked/x": "x", "sub/fine": "fine too"})
	for _, name := range []string{"secret", "locked"} {
		if err := os.Chmod(dir+"/from/data/"+name, 0); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	prepare(t, dir, l.Addr().String(), "in", false)
	start(t, "destination", dir+"/destination", 0, socket)
	line := start(t, "source", dir+"/source", nobody).line()
	if !strings.HasPrefix(line, "failed 2 of 3 files not transferred: You do not have permission (") {
		t.Errorf("the source ended: %q", line)
	}
	if got := grown(t, dir+"/to/in"); len(got) != 2 {
		t.Errorf("%v", got)
	}
	raw, err := os.ReadFile(dir + "/destination/sessions.json")
	if err != nil || strings.Contains(string(raw), ipcapi.PurposeTransfer+"-") {
		t.Errorf("the session is left: %s, %v", raw, err)
	}
}
