package terminal

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/accounts"
)

// listed are the holders that there are.
func (w *world) listed() []found {
	w.t.Helper()
	all, err := w.svc.holders.list(context.Background())
	must(w.t, err)
	return all
}

// leave ends a browser as a broken connection does, and waits until the holder has noticed.
func (w *world) leave(b *browser) {
	w.t.Helper()
	b.ws.CloseNow() //nolint:errcheck // as networks do
	w.allLeft()
}

func (w *world) allLeft() {
	w.t.Helper()
	testkit.Eventually(w.t, "the holders to notice", func() bool {
		for _, f := range w.listed() {
			if f.Attached {
				return false
			}
		}
		return true
	})
}

func (w *world) folder() string {
	w.t.Helper()
	ses, err := w.svc.OpenFolder(w.t.Context(), "/7")
	must(w.t, err)
	return ses.SessionIdentifier
}

// TestTakeOver: who comes back finds the shell, with what it has said meanwhile; who comes while it is in use does not.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	pid := b.pid()
	second := w.open(w.openJob())
	if other := second.pid(); other == pid {
		t.Fatal("a live terminal was taken over")
	}
	second.input("exit\r")
	second.end()
	elsewhere := w.open(w.folder())
	if other := elsewhere.pid(); other == pid {
		t.Fatal("the shell of a job was given to a folder")
	}
	b.input("x=re'member'; echo be'fore'; (sleep 0.3; echo mean'while') &\r")
	b.until("before")
	w.leave2(b, elsewhere)
	testkit.Eventually(t, "a folder's shell beside the job's", func() bool { return len(w.listed()) == 2 })
	back := w.open(w.openJob())
	back.until("meanwhile")
	if out := back.out.String(); !strings.Contains(out, "before") {
		t.Errorf("replay %q", out)
	}
	if again := back.pid(); again != pid {
		t.Errorf("shell %s, not %s", again, pid)
	}
	back.input("echo $x; stty size\r")
	back.until("remember")
	back.until("30 90")
}

func (w *world) leave2(a, b *browser) {
	w.t.Helper()
	a.ws.CloseNow() //nolint:errcheck // as networks do
	b.ws.CloseNow() //nolint:errcheck // as networks do
	w.allLeft()
}

// TestReplayIsBounded: who comes back after much output gets the last of it, from the start of a line.
func TestReplayIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.input("(sleep 0.2; seq 100000; echo al'l') &\r")
	b.until("&")
	w.leave(b)
	rounds := 0
	testkit.Eventually(t, "the output", func() bool {
		rounds++
		b = w.open(w.openJob())
		b.input(fmt.Sprintf("echo rou'nd'%d.\r", rounds))
		b.until(fmt.Sprintf("round%d.", rounds))
		found := strings.Contains(b.out.String(), "99999\r\n100000\r\nall")
		if !found {
			w.leave(b)
		}
		return found
	})
	if out := b.out.String(); len(out) > scrollback+1000 || len(out) < scrollback/2 {
		t.Errorf("%d bytes", len(out))
	}
	w.leave(b)
	b = w.open(w.openJob())
	b.until(fmt.Sprintf("round%d.", rounds))
	line, _, _ := strings.Cut(b.out.String(), "\r\n")
	if n, err := strconv.Atoi(line); err != nil || n < 10_000 {
		t.Errorf("the replay begins with %q", line)
	}
}

// TestSurvivesInstance: a new instance finds the shells of the old one.
func TestSurvivesInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	pid := b.pid()
	w.svc.Interrupt() // for an upgrade: the socket ends, and a new one may come
	b.end()
	w.allLeft()
	b = w.open(w.openJob())
	if again := b.pid(); again != pid {
		t.Errorf("shell %s, not %s", again, pid)
	}
	w.svc.Close()
	b.end()
	w.allLeft()
	w.start()
	b = w.open(w.openJob())
	if again := b.pid(); again != pid {
		t.Errorf("shell %s, not %s", again, pid)
	}
}

// TestNotKept: without a time for it, a shell ends with its connection.
func TestNotKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *Settings) { s.Detach = 0 })
	b := w.open(w.openJob())
	pid := b.pid()
	b.ws.CloseNow() //nolint:errcheck // as networks do
	testkit.Eventually(t, "the shell to end", func() bool { return !alive(pid) })
}

func alive(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && syscall.Kill(n, 0) == nil
}

// TestLimits: idle, detached and total time, and the number.
func TestLimits(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Settings){
		"idle":     func(s *Settings) { s.Idle = 300 * time.Millisecond },
		"total":    func(s *Settings) { s.Total = 300 * time.Millisecond },
		"detached": func(s *Settings) { s.Detach = 300 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, change)
			if name == "detached" {
				b := w.open(w.openJob())
				pid := b.pid()
				b.ws.CloseNow() //nolint:errcheck // as networks do
				testkit.Eventually(t, "the shell to end", func() bool { return !alive(pid) })
				return
			}
			b := w.dial()
			b.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":80,"rows":24}`, w.openJob()))
			_, err := b.read()
			for err == nil {
				_, err = b.read()
			}
			// On a slow machine it may be over before anybody is attached.
			if code := websocket.CloseStatus(err); code != websocket.StatusNormalClosure && code != websocket.StatusPolicyViolation {
				t.Errorf("closed with %v", err)
			}
			testkit.Eventually(t, "the holder to end", func() bool { return len(w.listed()) == 0 })
		})
	}
	t.Run("number", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(s *Settings) { s.Max = 2 })
		first, second := w.open(w.openJob()), w.open(w.openJob())
		third := w.dial()
		third.send(fmt.Sprintf(`{"type":"initialize","sessionIdentifier":%q,"cols":80,"rows":24}`, w.openJob()))
		if code := third.end(); code != websocket.StatusPolicyViolation {
			t.Errorf("one more than there may be: %v", code)
		}
		pid := first.pid()
		w.t.Log(second.pid())
		first.ws.CloseNow() //nolint:errcheck // as networks do
		testkit.Eventually(t, "the holder to notice", func() bool {
			n := 0
			for _, f := range w.listed() {
				if f.Attached {
					n++
				}
			}
			return n == 1
		})
		w.open(w.folder()) // the one that nobody uses makes room
		testkit.Eventually(t, "the shell to end", func() bool { return !alive(pid) })
	})
}

// TestStubborn: a shell and a program that ignore the end of their terminal are ended all the same.
func TestStubborn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(s *Settings) { s.Detach = 0 })
	b := w.open(w.openJob())
	b.input("trap '' HUP TERM; PS1=; echo chil'd'=$(bash -c 'trap \"\" HUP; echo $$; exec sleep 1000 >/dev/null' & ). \r")
	pid := b.pid()
	b.input("bash -c 'trap \"\" HUP; echo fo\"re\"=$$.; exec sleep 1000'\r")
	b.until("fore=")
	b.until(".\r\n")
	_, rest, _ := strings.Cut(b.out.String(), "fore=")
	child, _, _ := strings.Cut(rest, ".")
	if !alive(pid) || !alive(child) {
		t.Fatalf("shell %s, child %s", pid, child)
	}
	b.ws.CloseNow() //nolint:errcheck // as networks do
	testkit.Eventually(t, "the shell and its program to end", func() bool { return !alive(pid) && !alive(child) })
}

// TestFlowControl: output that nobody takes stops the program, and input goes on.
func TestFlowControl(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	pid := b.pid()
	b.input("yes 0123456789012345678901234567890123456789 | tee >(dd bs=1M of=/dev/null 2>/dev/null)\r")
	// Nothing is read; the holder's memory is what it was.
	holder := parent(t, pid)
	last := int64(-1)
	testkit.Eventually(t, "the output to stop", func() bool {
		time.Sleep(100 * time.Millisecond) // between two looks
		n := written(t, holder)
		still := n == last && n > 0
		last = n
		return still
	})
	if rss := resident(t, holder); rss > 64<<20 {
		t.Errorf("the holder has %d bytes", rss)
	}
	b.input("\x03")
	b.out.Reset()
	b.input("echo sto'pped'\r")
	b.until("stopped")
}

// parent is the parent process: a shell's is its holder.
func parent(t *testing.T, pid string) string {
	t.Helper()
	return field(t, pid, "PPid:")
}

func field(t *testing.T, pid, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	must(t, err)
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return f[1]
		}
	}
	t.Fatalf("no %s of process %s", name, pid)
	return ""
}

func resident(t *testing.T, pid string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(field(t, pid, "VmRSS:"), 10, 64)
	must(t, err)
	return n << 10
}

// written is how much a process has written so far.
func written(t *testing.T, pid string) int64 {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "io"))
	must(t, err)
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			must(t, err)
			return n
		}
	}
	return 0
}

// TestDeadShell: a shell that reads nothing does not keep the socket from being read.
func TestDeadShell(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.input("stty raw -echo; echo dea'f'; kill -STOP $$\r")
	b.until("deaf")
	pid := w.listed()
	_ = pid
	big := strings.Repeat("x", 256<<10)
	var last string
	for range 12 {
		last = b.input(big)
	}
	b.when("the acknowledgement", func() bool { return b.acks[last] == 1 })
	ack := b.send(`{"type":"resize","cols":100,"rows":20}`)
	b.when("the acknowledgement", func() bool { return b.acks[ack] == 1 })
}

// TestHolderRefusesOthers: the socket of a holder has a name that everybody can see.
//
//attack:actor local user
//attack:does Connects to the process that holds another user's shell.
//attack:control The holder asks the kernel who connects.
//attack:remove internal/terminal/holder.go: if uid, err := peerUID(c); err != nil || uid != h.own { => if uid, err := peerUID(c); err != nil || uid == 1<<31 {
func TestHolderRefusesOthers(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	accounts.Require(t)
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.pid()
	w.leave(b)
	all := w.listed()
	if len(all) != 1 {
		t.Fatalf("%d holders", len(all))
	}
	site := accounts.New(t, "term")
	other := site.User(t)
	self := copyOfSelf(t)
	stranger := func(mode, socket string) *exec.Cmd {
		cmd := other.Command(self)
		cmd.Env = []string{strangerEnv + "=" + mode + " " + socket}
		return cmd
	}
	out, err := stranger("ask", all[0].socket).CombinedOutput()
	must(t, err)
	if string(out) != "connected, nothing" {
		t.Errorf("another account is answered %q", out)
	}
	if _, err := w.svc.holders.ask(t.Context(), all[0].socket); err != nil {
		t.Errorf("its own account: %v", err)
	}
	// A socket with the right name and the wrong owner.
	fake := w.svc.holders.prefix() + "FAKE"
	cmd := stranger("fake", fake)
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait()         //nolint:errcheck // it is killed
	defer cmd.Process.Kill() //nolint:errcheck // it may have ended
	if _, err := pipe.Read(make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if all := w.listed(); len(all) != 1 || all[0].socket == fake {
		t.Errorf("somebody else's socket is taken for a holder: %+v", all)
	}
}

// strangerEnv makes the test binary a program of another account.
const strangerEnv = "TERMINAL_TEST_STRANGER"

// stranger asks a holder, or plays one.
func stranger(order string) {
	mode, socket, _ := strings.Cut(order, " ")
	if mode == "ask" {
		c, err := net.Dial("unix", socket)
		if err != nil {
			fmt.Print(err)
			return
		}
		fmt.Print("connected, ")
		c.Write(appendFrame(nil, kindQuery, nil)) //nolint:errcheck // it may be closed
		answer, _ := io.ReadAll(io.LimitReader(c, 1))
		if len(answer) == 0 {
			fmt.Print("nothing")
		}
		return
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Print(err)
		return
	}
	fmt.Println("listens")
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Write(appendFrame(nil, kindState, []byte(`{"key":"job/512/0"}`))) //nolint:errcheck // it may be closed
	}
}

// copyOfSelf is the test binary where every account can run it.
func copyOfSelf(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	dir, err := os.MkdirTemp("", "imt-term-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	file := filepath.Join(dir, "stranger")
	must(t, os.WriteFile(file, data, 0o755))
	return file
}

// TestHolderProtocol: what is not a frame ends the connection and nothing else.
func TestHolderProtocol(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	b := w.open(w.openJob())
	b.pid()
	name := w.listed()[0].socket
	for _, p := range []string{"x\x00\x00\x00\x00", "a\x00\x00\x00\x01x", "?\xff\xff\xff\xff", "i\x00\x00\x00\x01x", "a\x00\x00\x00\x04\x00\x50\x00\x18"} {
		c, err := net.Dial("unix", name)
		must(t, err)
		_, err = c.Write([]byte(p))
		must(t, err)
		c.SetReadDeadline(time.Now().Add(60 * time.Second)) //nolint:errcheck // a socket has deadlines
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		for err == nil {
			if buf[0] != kindBusy {
				t.Errorf("%q is answered with %q", p, buf[:n])
			}
			n, err = c.Read(buf)
		}
		if os.IsTimeout(err) {
			t.Errorf("%q leaves the connection open", p)
		}
		c.Close()
	}
	b.input("echo al'ive'\r")
	b.until("alive")
}

// TestSizeIsToldAgain: a program that relays the shell and misses a change of the size hears of it later.
func TestSizeIsToldAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	name, err := w.svc.holders.start(t.Context(), order{
		Key: "relay", Relay: true, Path: "/bin/bash", Cols: 80, Rows: 24, Env: os.Environ(),
		Args: []string{"bash", "-c", "trap '' WINCH; echo deaf; read -r; trap 'stty size' WINCH; while :; do sleep 0.1; done"},
	}, nil)
	must(t, err)
	c, err := w.svc.holders.attach(t.Context(), name, size{80, 24})
	must(t, err)
	defer c.Close() //nolint:errcheck // it ends the shell
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	var out strings.Builder
	until := func(text string) {
		buf := make([]byte, maxFrame)
		for !strings.Contains(out.String(), text) {
			_, p, err := readFrame(c, buf)
			if err != nil {
				t.Fatalf("waiting for %q: %v, output %q", text, err, out.String())
			}
			out.Write(p)
		}
	}
	until("deaf")
	_, err = c.Write(appendFrame(appendFrame(nil, kindResize, size{111, 33}.append(nil)), kindInput, []byte("\n")))
	must(t, err)
	until("33 111")
}
