package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

const childEnv = "IMT_INSTANCE_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// child is what a test starts as somebody: it hardens itself and tells what came of it.
func child() {
	if err := Harden(); err != nil {
		fmt.Println("refused:", err)
		return
	}
	open := 0
	for fd := 3; fd < 200; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			open++
		}
	}
	// The runtime's poller must have survived.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { time.Sleep(10 * time.Millisecond); w.WriteString("x") }() //nolint:errcheck // seen below
	r.SetReadDeadline(time.Now().Add(20 * time.Second))                   //nolint:errcheck // seen below
	if _, err := r.Read(make([]byte, 1)); err != nil {
		fmt.Println(err)
		return
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_CORE, &core) //nolint:errcheck // seen below
	fmt.Println("open", open, "dumpable", dumpable, err, "core", core.Max)
}

func runChild(t *testing.T, attr *syscall.SysProcAttr) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = d[:strings.LastIndex(d, "/")] {
		os.Chmod(d, 0o755) //nolint:errcheck // the start fails then
	}
	path := dir + "/test"
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // a test
	cmd := exec.Command(path)
	cmd.Env = []string{childEnv + "=1"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{file, file, file}
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestHarden(t *testing.T) {
	t.Parallel()
	testkit.Require(t, testkit.Root)
	cred := func() *syscall.Credential { return &syscall.Credential{Uid: 54321, Gid: 54321} }
	for _, tc := range []struct {
		name string
		attr *syscall.SysProcAttr
		want string
	}{
		{"ordinary user", &syscall.SysProcAttr{Credential: cred()}, "open 0 dumpable 0 <nil> core 0"},
		{"root", &syscall.SysProcAttr{}, "refused: refusing to run as root"},
		{
			"with a capability", &syscall.SysProcAttr{Credential: cred(), AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE}},
			"refused: refusing to run with capabilities",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := runChild(t, tc.attr); got != tc.want {
				t.Fatalf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseSocketPath(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ line, want string }{
		{"", DefaultSocket},
		{"\n", DefaultSocket},
		{"/run/x/ucloud.sock\n", "/run/x/ucloud.sock"},
		{"/run/x/ucloud.sock", "/run/x/ucloud.sock"},
		{"relative.sock\n", ""},
		{"/a\x00b\n", ""},
		{"/" + strings.Repeat("x", 200) + "\n", ""},
	} {
		got, err := parseSocketPath(tc.line)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: %q, %v", tc.line, got, err)
		}
	}
}

func FuzzParseSocketPath(f *testing.F) {
	f.Add("/run/ucloud/ucloud.sock\n")
	f.Fuzz(func(t *testing.T, line string) {
		if p, err := parseSocketPath(line); err == nil && (!strings.HasPrefix(p, "/") || strings.ContainsAny(p, "\x00\n")) {
			t.Fatalf("%q -> %q", line, p)
		}
	})
}

func TestLogWriterNeverBlocks(t *testing.T) {
	t.Parallel()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	w := &logWriter{fd: p[1]}
	log := slog.New(slog.NewJSONHandler(w, nil))
	for range 10_000 { // far more than a pipe holds
		log.Info("line")
	}
	if w.dropped.Load() == 0 {
		t.Fatal("nothing was dropped")
	}
	unix.Close(p[0]) //nolint:errcheck // broken pipe from now on
	if n, err := w.Write([]byte("x")); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	unix.Close(p[1]) //nolint:errcheck // a test
}

// uids answers for connections by their order.
type uids struct {
	n    atomic.Int32
	list []ident.UID
	err  error
}

func (u *uids) PeerUID(*net.TCPConn) (ident.UID, error) {
	i := int(u.n.Add(1)) - 1
	if i < len(u.list) {
		return u.list[i], nil
	}
	return 0, u.err
}

func testServer(t *testing.T, peers peerLookup, h http.HandlerFunc) (*server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close() //nolint:errcheck // f is a duplicate
	s, err := newServer(f, 999, peers, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() { s.lis.Close(); s.close(); <-s.done; f.Close() }) //nolint:errcheck // a test
	return s, l.Addr().String()
}

type always ident.UID

func (a always) PeerUID(*net.TCPConn) (ident.UID, error) { return ident.UID(a), nil }

//attack:actor local user
//attack:does Connects to the port of another user's instance.
//attack:control An instance reads nothing from connections whose other end does not belong to the service account.
//attack:remove internal/instance/serve.go: if err == nil && uid == g.service { => if err == nil && uid != 1<<31 {
func TestOnlyTheServiceAccountIsServed(t *testing.T) {
	t.Parallel()
	peers := &uids{list: []ident.UID{999, 1000, 0, 998}, err: errors.New("cannot tell")}
	_, addr := testServer(t, peers, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })
	for i, want := range []bool{true, false, false, false, false} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			if !want && errors.Is(err, syscall.ECONNRESET) {
				continue
			}
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(c)
		c.Close() //nolint:errcheck // a test
		if got := strings.HasSuffix(string(answer), "secret"); got != want {
			t.Errorf("connection %d: served = %v, want %v", i, got, want)
		}
	}
}

// TestDrainFinishesWhatIsUnderWay also covers a request that comes over a connection that was open before.
func TestDrainFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	s, addr := testServer(t, always(999), func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if r.URL.Path == "/slow" {
			<-release
		}
		fmt.Fprint(w, "done")
	})
	slow, kept := dial(t, addr), dial(t, addr)
	kept.send("/fast")
	kept.expect(t, 200, false)
	slow.send("/slow")
	<-entered
	<-entered
	drained := make(chan struct{})
	go func() { s.drain(context.Background(), time.Minute); close(drained) }()
	testkit.Eventually(t, "the listener is closed", func() bool { return s.draining.Load() })
	kept.send("/fast") // the gateway has not heard of it yet
	kept.expect(t, 200, true)
	select {
	case <-drained:
		t.Fatal("drained while a request was under way")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	slow.expect(t, 200, false) // its head was decided before; the gateway closes the connection, or the quiet time does
	<-drained
}

// slowPeers answers when it is told to.
type slowPeers struct{ asked, answer chan struct{} }

func (p *slowPeers) PeerUID(*net.TCPConn) (ident.UID, error) {
	p.asked <- struct{}{}
	<-p.answer
	return 999, nil
}

// TestDrainSeesWhatHasJustBeenAccepted: the connection has left the listener's queue, and nobody else can answer it.
func TestDrainSeesWhatHasJustBeenAccepted(t *testing.T) {
	t.Parallel()
	peers := &slowPeers{asked: make(chan struct{}), answer: make(chan struct{})}
	s, addr := testServer(t, peers, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") })
	c := dial(t, addr)
	c.send("/")
	<-peers.asked
	drained := make(chan struct{})
	go func() { s.drain(context.Background(), time.Minute); close(drained) }()
	testkit.Eventually(t, "it drains", s.draining.Load)
	time.Sleep(50 * time.Millisecond) // enough for a drain that sees no connection to be over
	close(peers.answer)
	c.expect(t, 200, true)
	<-drained
}

// TestEndingGivesWorkBack: a draining instance does not wait for background work that has been given back.
func TestEndingGivesWorkBack(t *testing.T) {
	t.Parallel()
	for _, drain := range []bool{true, false} {
		s, _ := testServer(t, always(999), func(http.ResponseWriter, *http.Request) {})
		a := &Agent{srv: s, log: slog.New(slog.DiscardHandler)}
		done := a.Busy()
		called := 0
		a.o.Ending = func(ctx context.Context) {
			if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
				t.Error("there is no time for it, or too much")
			}
			called++
			done()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // as after a signal
		begin := time.Now()
		a.wind(ctx, ending{drain: drain}, time.Minute)
		if took := time.Since(begin); took > 30*time.Second || called != 1 {
			t.Errorf("drain %v: it took %v, called %d times", drain, took, called)
		}
	}
}

func TestStopRefusesAndCuts(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 1)
	s, addr := testServer(t, always(999), func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-r.Context().Done()
		}
	})
	slow, kept := dial(t, addr), dial(t, addr)
	kept.send("/fast")
	kept.expect(t, 200, false)
	slow.send("/slow")
	<-entered
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	testkit.Eventually(t, "it is stopping", s.stopping.Load)
	kept.send("/fast")
	kept.expect(t, 503, true)
	<-stopped
	if _, err := slow.r.ReadByte(); err == nil {
		t.Fatal("the request was allowed to finish")
	}
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })            //nolint:errcheck // a test
	c.SetDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // a test
	return &conn{c, bufio.NewReader(c)}
}

func (c *conn) send(path string) { fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) }

func (c *conn) expect(t *testing.T, status int, closing bool) {
	t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || resp.Close != closing {
		t.Fatalf("status %d, close %v; want %d, %v", resp.StatusCode, resp.Close, status, closing)
	}
}

// idleFixture is a server without a listener, for the idler alone.
func idleFixture() *server {
	s := &server{calm: make(chan struct{}), conns: map[net.Conn]struct{}{}, handler: http.NotFoundHandler()}
	s.wakeUp, s.rest = func() {}, func() {}
	s.lastEnd.Store(time.Now().UnixNano())
	return s
}

func TestIdler(t *testing.T) {
	percent := debug.SetGCPercent(100)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(math.MaxInt64) }()
	collecting := func() bool {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return p >= 0
	}
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		s := idleFixture()
		i := newIdler(s, 0, func() time.Duration { return time.Minute }, func() { asked.Add(1) })
		step := func(d time.Duration) { time.Sleep(d); synctest.Wait() }

		step(quietAfter - time.Second)
		if !collecting() {
			t.Fatal("the collector is off too early")
		}
		step(2 * time.Second)
		if collecting() {
			t.Fatal("the collector is still on")
		}
		s.begin() // work
		if !collecting() {
			t.Fatal("the collector is off during work")
		}
		step(time.Hour)
		if asked.Load() != 0 {
			t.Fatal("asked to end during work")
		}
		s.end()
		step(30 * time.Second)
		s.begin()
		s.end() // resets the idle time without touching the timer
		step(45 * time.Second)
		if asked.Load() != 0 {
			t.Fatal("asked to end too early")
		}
		step(16 * time.Second)
		if asked.Load() != 1 {
			t.Fatalf("asked %d times", asked.Load())
		}
		step(time.Hour)
		if asked.Load() != 1 {
			t.Fatal("asked again without an answer")
		}
		i.again() // the server wants it to stay
		step(61 * time.Second)
		if asked.Load() != 2 {
			t.Fatalf("asked %d times", asked.Load())
		}
		i.again()
		i.stop()
		step(time.Hour)
		if asked.Load() != 2 {
			t.Fatal("asked after the end")
		}
	})
}

// TestQuietGivesMemoryBack leaves garbage, which Go alone would keep for two minutes, and for ever once the collector is
// off.
func TestQuietGivesMemoryBack(t *testing.T) {
	percent := debug.SetGCPercent(-1)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(math.MaxInt64) }()
	held := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys - m.HeapReleased
	}
	garbage := make([]byte, 64<<20)
	runtime.KeepAlive(&garbage[0])
	before := held()
	(&idler{}).collectLocked(false)
	if after := held(); after+32<<20 > before {
		t.Fatalf("%d MiB are held, before it was quiet %d", after>>20, before>>20)
	}
}

func TestIdlerAsksWhenQuiet(t *testing.T) {
	percent := debug.SetGCPercent(100)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(math.MaxInt64) }()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		s := idleFixture()
		i := newIdler(s, 0, func() time.Duration { return 0 }, func() { asked.Add(1) })
		s.begin()
		i.askWhenQuiet()
		time.Sleep(time.Hour)
		synctest.Wait()
		if asked.Load() != 0 {
			t.Fatal("asked while busy")
		}
		s.end()
		if asked.Load() != 1 {
			t.Fatal("not asked when quiet")
		}
		i.askWhenQuiet()
		if asked.Load() != 2 {
			t.Fatal("not asked at once when quiet already")
		}
		time.Sleep(24 * time.Hour) // without a timeout it never asks by itself
		synctest.Wait()
		if asked.Load() != 2 {
			t.Fatal("asked without a reason")
		}
		i.stop()
	})
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	s := idleFixture()
	s.begin()
	m := s.measure()
	if m.Active != 1 || m.IdleSeconds != 0 || m.RSSBytes < 1<<20 || m.PSSBytes < 1<<20 {
		t.Fatalf("%+v", m)
	}
}

func TestBusyCountsOnce(t *testing.T) {
	t.Parallel()
	a := &Agent{srv: idleFixture()}
	done := a.Busy()
	if a.srv.active.Load() != 1 {
		t.Fatal("not counted")
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(done)
	}
	wg.Wait()
	if n := a.srv.active.Load(); n != 0 {
		t.Fatalf("%d are left", n)
	}
}
