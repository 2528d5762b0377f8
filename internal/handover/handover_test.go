package handover

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain also is the successor that the tests start: what it does stands in its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "successor-") {
		successor(os.Args[1], os.Args[2:])
		return
	}
	goleak.VerifyTestMain(m)
}

func successor(what string, addresses []string) {
	switch what {
	case "successor-exit":
		os.Exit(3)
	case "successor-sleep":
		time.Sleep(time.Hour)
	}
	s, err := Inherit()
	if err != nil {
		os.Exit(4)
	}
	var ls []net.Listener
	for _, a := range addresses {
		l := s.take(a)
		if l == nil {
			os.Exit(5)
		}
		ls = append(ls, l)
	}
	s.CloseRest()
	if os.Getenv(envCount) != "" || s.Ready() != nil {
		os.Exit(6)
	}
	for _, l := range ls { // one connection each, then end
		c, err := l.Accept()
		if err != nil {
			os.Exit(7)
		}
		io.WriteString(c, strconv.Itoa(os.Getpid()))
		c.Close()
	}
}

func self(t *testing.T) string {
	t.Helper()
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSuccessorServesTheSameSockets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var s Sockets
	tcp, err := s.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.sock")
	sock, err := s.Listen(ctx, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", st, err)
	}
	// A connection that nobody has accepted yet must reach the successor.
	early, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	run, err := Start(ctx, Successor{
		Path: self(t), Args: []string{"successor-serve", tcp.Addr().String(), "unix:" + path}, Listeners: []net.Listener{sock, tcp},
	})
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
	sock.Close()
	late, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatalf("after the old listener was closed: %v", err)
	}
	defer late.Close()
	for _, c := range []net.Conn{late, early} {
		b, err := io.ReadAll(c)
		if err != nil || string(b) != strconv.Itoa(run.PID) {
			t.Errorf("got %q, %v; want %d", b, err, run.PID)
		}
	}
	if err := <-run.Exited; err != nil {
		t.Errorf("successor: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("closing the listener removed the path that the successor uses")
	}
}

func TestSuccessorThatFailsIsReported(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ what, want string }{
		{"successor-exit", "exit status 3"}, {"successor-sleep", "not ready after"}, {"successor-serve", "exit status 5"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			timeout := 20 * time.Second
			if tc.what == "successor-sleep" {
				timeout = 300 * time.Millisecond
			}
			_, err := Start(t.Context(), Successor{Path: self(t), Args: []string{tc.what, "127.0.0.1:1"}, Timeout: timeout})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %q", err, tc.want)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, Successor{Path: self(t), Args: []string{"successor-sleep"}}); err == nil {
		t.Fatal("a cancelled start succeeded")
	}
}

func TestInheritance(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		env   map[string]string
		count int
		pipe  bool
		ok    bool
	}{
		{"nothing", nil, 0, false, true},
		{"systemd", map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 2, false, true},
		{"systemd, meant for the parent", map[string]string{"LISTEN_PID": "6", "LISTEN_FDS": "2"}, 0, false, true},
		{"ours", map[string]string{"UCLOUD_HANDOVER_FDS": "0"}, 0, true, true},
		{"ours wins", map[string]string{"UCLOUD_HANDOVER_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDS": "2"}, 1, true, true},
		{"nonsense", map[string]string{"UCLOUD_HANDOVER_FDS": "x"}, 0, false, false},
		{"negative", map[string]string{"UCLOUD_HANDOVER_FDS": "-1"}, 0, false, false},
		{"too many", map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "65"}, 0, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			count, pipe, err := inheritance(func(k string) string { return tc.env[k] }, 7)
			if count != tc.count || pipe != tc.pipe || (err == nil) != tc.ok {
				t.Fatalf("got %d, %v, %v", count, pipe, err)
			}
		})
	}
}

func TestListenerOfRefusesOtherDescriptors(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := listenerOf(int(f.Fd())); err == nil {
		t.Error("a file was taken for a socket")
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	uf, err := u.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer uf.Close()
	if _, err := listenerOf(int(uf.Fd())); err == nil {
		t.Error("a socket that does not listen was accepted")
	}
}

func TestListenUnix(t *testing.T) {
	t.Parallel()
	var s Sockets
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := s.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen(t.Context(), "unix:"+path); err == nil {
		t.Error("a live socket was replaced")
	}
	first.Close()
	second, err := s.Listen(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatalf("a stale socket was not replaced: %v", err)
	}
	second.Close()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen(t.Context(), "unix:"+file); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

func TestSameAddress(t *testing.T) {
	t.Parallel()
	tcp := func(s string) net.Addr { a, _ := net.ResolveTCPAddr("tcp", s); return a }
	for _, tc := range []struct {
		have net.Addr
		want string
		same bool
	}{
		{tcp("127.0.0.1:80"), "127.0.0.1:80", true},
		{tcp("[::]:80"), "0.0.0.0:80", true},
		{tcp("0.0.0.0:80"), "0.0.0.0:81", false},
		{tcp("127.0.0.1:80"), "0.0.0.0:80", false},
		{tcp("127.0.0.1:0"), "127.0.0.1:0", false},
		{&net.UnixAddr{Name: "/a"}, "unix:/a", true},
		{&net.UnixAddr{Name: "/a"}, "/a", false},
		{&net.UDPAddr{Port: 80}, "0.0.0.0:80", false},
	} {
		if got := sameAddress(tc.have, tc.want); got != tc.same {
			t.Errorf("%v and %s: %v", tc.have, tc.want, got)
		}
	}
}

func TestNotifier(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n := &Notifier{address: path}
	for want, send := range map[string]func() error{
		"READY=1": n.Ready, "STOPPING=1": n.Stopping, "MAINPID=12": func() error { return n.MainPID(12) },
		"STATUS=a b": func() error { return n.Status("a\nb") }, "RELOADING=1\nMONOTONIC_USEC=": n.Reloading,
	} {
		if err := send(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 256)
		k, err := c.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:k]), want) {
			t.Errorf("got %q, %v; want %q", b[:k], err, want)
		}
	}
	if err := (*Notifier)(nil).Ready(); err != nil {
		t.Error(err)
	}
	if err := (&Notifier{address: path + "x"}).Ready(); err == nil {
		t.Error("no error without a manager")
	}
}

func TestSuccessorEnv(t *testing.T) {
	t.Parallel()
	got := successorEnv([]string{"LISTEN_FDS=1", "LISTEN_PID=1", "PATH=/bin", "UCLOUD_HANDOVER_FDS=3", "NOTIFY_SOCKET=/x"})
	if !slices.Equal(got, []string{"PATH=/bin", "NOTIFY_SOCKET=/x"}) {
		t.Errorf("got %q", got)
	}
}
