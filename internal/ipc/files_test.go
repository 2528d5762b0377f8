package ipc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
)

// filledPipe is a pipe that holds s and then ends.
func filledPipe(tb testing.TB, s string) *os.File {
	tb.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	if _, err := io.WriteString(w, s); err != nil {
		tb.Fatal(err)
	}
	w.Close()
	return r
}

func TestFilesFromClient(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	got, err := Invoke(t.Context(), c, filesCall, text{}, filledPipe(t, "one "), filledPipe(t, "two"))
	if err != nil || got.Text != "one two" {
		t.Fatalf("got %q, %v", got.Text, err)
	}
	// They stay the caller's.
	f := filledPipe(t, "x")
	if _, err := Invoke(t.Context(), c, filesCall, text{}, f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatalf("the file was closed by the call: %v", err)
	}
	for name, files := range map[string][]*os.File{"closed": {f}, "nil": {nil}} {
		if _, err := Invoke(t.Context(), c, filesCall, text{}, files...); err == nil {
			t.Errorf("a %s file was sent", name)
		}
	}
	five := make([]*os.File, 5)
	for i := range five {
		five[i] = filledPipe(t, "x")
	}
	if _, err := Invoke(t.Context(), c, filesCall, text{}, five...); err == nil {
		t.Error("five files were sent")
	}
	if _, err := Invoke(t.Context(), c, filesCall, text{}, five[:3]...); !failure.Is(err, failure.Invalid) {
		t.Errorf("more files than the call takes: %v", err)
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{}, five[0]); !failure.Is(err, failure.Invalid) {
		t.Errorf("a file for a call that takes none: %v", err)
	}
	if _, err := Invoke(t.Context(), c, filesCall, text{}); err != nil {
		t.Errorf("no file where some are allowed: %v", err)
	}
}

// TestListenerIsHandedOver is what all this is for (design D1).
func TestListenerIsHandedOver(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := Stream[text, text]{Name: "test.listener", Access: AccessAnyone}
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		HandleStream(ts.Server, s, func(_ context.Context, _ *Request, _ text, send func(text, ...*os.File) error) error {
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				return err
			}
			defer f.Close()
			if err := send(text{"a"}, f); err != nil {
				return err
			}
			if err := send(text{"b"}); err != nil {
				return err
			}
			five := []*os.File{f, f, f, f, f}
			if err := send(text{"c"}, five...); err == nil {
				return errors.New("five descriptors went out")
			}
			return send(text{"d"}, five[:4]...)
		})
	})
	r, err := Open(t.Context(), ts.dial(t), s, text{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		text  string
		files int
	}{{"a", 1}, {"b", 0}, {"d", 4}} {
		item, files, err := r.Next(t.Context())
		if err != nil || item.Text != want.text || len(files) != want.files {
			t.Fatalf("got %+v with %d files, %v, want %+v", item, len(files), err, want)
		}
		for _, f := range files {
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("no close-on-exec: %v", err)
			}
			got, err := net.FileListener(f)
			if err != nil || got.Addr().String() != l.Addr().String() {
				t.Errorf("got %v, %v", got, err)
			} else {
				got.Close()
			}
			f.Close()
		}
	}
}

// TestDescriptorTricks breaks the rules of descriptors in all ways. Afterwards none may be left behind. It is not
// parallel, because it counts the descriptors of the process.
//
//attack:actor local user
//attack:does Sends descriptors that nobody has asked for, or whose closing hangs.
//attack:control Only sockets, pipes and pidfds are taken over the socket, and only by calls that declare it.
//attack:remove internal/ipc/files.go: if !quickToClose(fd) {\n\t\t\treturn errFileKind\n\t\t} => _ = fd
func TestDescriptorTricks(t *testing.T) {
	ts := start(t, ServerOptions{MaxConnsPerUID: 100})
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	regular, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	fds := func(n int) []int {
		all := make([]int, n)
		for i := range all {
			all[i] = sock
		}
		return all
	}
	files := func(n int) []byte { return call(1, filesCall.Name, text{}, n) }
	cancel := head(0, 1, 3, 0, 0, 7)
	for _, tc := range []struct {
		name string
		act  func(c *rawConn)
	}{
		{"undeclared", func(c *rawConn) { c.send(files(0), sock); c.mustDrop() }},
		{"declared, not sent", func(c *rawConn) { c.send(files(1)); c.mustDrop() }},
		{"more than declared", func(c *rawConn) { c.send(files(1), sock, sock); c.mustDrop() }},
		{"fewer than declared", func(c *rawConn) { c.send(files(2), sock); c.mustDrop() }},
		{"five", func(c *rawConn) { c.send(files(4), fds(5)...); c.mustDrop() }},
		{"as many as the kernel carries", func(c *rawConn) { c.send(files(2), fds(253)...); c.mustDrop() }},
		{"with a cancel frame", func(c *rawConn) { c.send(cancel[:], sock); c.mustDrop() }},
		{"inside the payload", func(c *rawConn) {
			b := files(0)
			c.send(b[:20])
			c.send(b[20:], sock)
			c.mustDrop()
		}},
		{"a byte at a time", func(c *rawConn) {
			for _, b := range files(4)[:8] {
				if _, _, err := c.WriteMsgUnix([]byte{b}, unix.UnixRights(sock), nil); err != nil {
					break // the server was quicker
				}
			}
			c.mustDrop()
		}},
		{"on the last byte of the header", func(c *rawConn) { // unusual, but it is one descriptor with this frame
			b := files(1)
			c.send(b[:headerSize-1])
			c.send(b[headerSize-1:headerSize], sock)
			c.send(b[headerSize:])
			c.mustFail(1, failure.Internal) // reading from that socket fails
		}},
		{"incomplete header, then gone", func(c *rawConn) { c.send(files(2)[:5], sock, sock); c.Close() }},
		{"incomplete payload, then gone", func(c *rawConn) { c.send(files(2)[:20], sock, sock); c.Close() }},
		{"unknown call", func(c *rawConn) {
			c.send(call(1, "no.such", text{}, 1), sock)
			c.mustFail(1, failure.NotFound)
		}},
		{"call that takes none", func(c *rawConn) {
			c.send(call(1, echoCall.Name, text{}, 1), sock)
			c.mustFail(1, failure.Invalid)
		}},
		{"undecodable request", func(c *rawConn) {
			c.send(call(1, filesCall.Name, count{}, 2), sock, sock)
			c.mustFail(1, failure.Internal)
			c.send(call(1, filesCall.Name, []int{}, 2), sock, sock)
			c.mustFail(1, failure.Invalid)
		}},
		{"regular file", func(c *rawConn) {
			c.send(call(1, filesCall.Name, text{}, 2), sock, int(regular.Fd()))
			c.mustFail(1, failure.Invalid)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := openFDs(t)
			c := ts.raw(t)
			tc.act(c)
			c.Close()
			eventually(t, "all descriptors are closed", func() bool { return openFDs(t) <= before })
		})
	}
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); err != nil {
		t.Fatal(err)
	}
}

func TestRefusedCallsCloseFiles(t *testing.T) {
	before := openFDs(t)
	ts := start(t, ServerOptions{RequestsPerSecond: 5, MaxRequestBytes: 1000}, func(ts *testServer) {
		Handle(ts.Server, Call[text, text]{Name: "test.rootfiles", Access: AccessRoot, Files: 2},
			func(context.Context, *Request, text) (text, error) { return text{}, nil })
	})
	c := ts.dial(t)
	kinds := map[failure.Kind]int{}
	for range 10 {
		f := filledPipe(t, "x")
		_, err := Invoke(t.Context(), c, Call[text, text]{Name: "test.rootfiles"}, text{}, f, f)
		kinds[failure.KindOf(err)]++
		f.Close()
	}
	if kinds[failure.Forbidden] == 0 || kinds[failure.TooMany] == 0 {
		t.Fatalf("got %v", kinds)
	}
	c.Close()
	ts.stop()
	eventually(t, "all descriptors are closed", func() bool { return openFDs(t) <= before })
}

// TestAbandonedItemsCloseFiles: what arrives for a closed receiver, or is never fetched, must not stay open.
func TestAbandonedItemsCloseFiles(t *testing.T) {
	before := openFDs(t)
	s := Stream[text, text]{Name: "test.many", Access: AccessAnyone}
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		HandleStream(ts.Server, s, func(_ context.Context, _ *Request, _ text, send func(text, ...*os.File) error) error {
			f := filledPipe(t, "x")
			defer f.Close()
			for {
				if err := send(text{}, f, f); err != nil {
					return err
				}
			}
		})
	})
	c := ts.dial(t)
	for range 3 {
		r, err := Open(t.Context(), c, s, text{})
		if err != nil {
			t.Fatal(err)
		}
		_, files, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		closeAll(files)
		r.Close()
	}
	c.Close()
	ts.stop()
	eventually(t, "all descriptors are closed", func() bool { return openFDs(t) <= before })
}

// TestHangingClose: descriptors whose close never returns cost their sender the service, and nobody else.
func TestHangingClose(t *testing.T) {
	t.Parallel()
	regular, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	release := make(chan struct{})
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		ts.closeFD = func(fd int) error { // a close that waits for a FUSE daemon
			<-release
			return unix.Close(fd)
		}
	})
	c := ts.dial(t)
	for range maxHanging + 1 {
		if _, err := Invoke(t.Context(), c, filesCall, text{}, regular); !failure.Is(err, failure.Invalid) {
			t.Fatalf("got %v", err)
		}
	}
	eventually(t, "another connection is refused", func() bool {
		c := ts.dial(t)
		defer c.Close()
		_, err := Invoke(t.Context(), c, echoCall, text{})
		return errors.Is(err, ErrDisconnected)
	})
	if !strings.Contains(ts.log.String(), "hang in close") {
		t.Error("it is not in the log")
	}
	close(release)
	eventually(t, "connections are accepted again", func() bool {
		c := ts.dial(t)
		defer c.Close()
		_, err := Invoke(t.Context(), c, echoCall, text{})
		return err == nil
	})
}

// TestLingerIsSwitchedOff: the last close of a TCP socket with unsent data and SO_LINGER waits, for hours if the sender
// likes. One test per control: quickToClose must have switched it off.
func TestLingerIsSwitchedOff(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	conn.Write(make([]byte, 32<<20)) // nobody reads: data stays unsent
	conn.(*net.TCPConn).SetLinger(3600)
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	ts := start(t, ServerOptions{})
	c := ts.dial(t)
	done := make(chan error, 1)
	go func() {
		// The call takes no files, so that the server closes it.
		_, err := Invoke(context.Background(), c, echoCall, text{}, f)
		done <- err
	}()
	if err := receive(t, "the refusal", done); !failure.Is(err, failure.Invalid) {
		t.Fatalf("got %v", err)
	}
	// The refusal may be here before the server has come to the descriptor.
	eventually(t, "SO_LINGER is off", func() bool {
		value, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_LINGER)
		if err != nil {
			t.Fatal(err)
		}
		return value == 0
	})
	f.Close()
}

func TestQuickToClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(path string, flags int) int {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	fifo := filepath.Join(dir, "pipe:[1]")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	memfd, err := unix.MemfdCreate("pipe:[1]", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memfd)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	for _, tc := range []struct {
		name string
		fd   int
		want bool
	}{
		{"pipe", int(filledPipe(t, "").Fd()), true},
		{"socket", sock, true},
		{"pidfd", pidfd, true},
		{"named pipe", open(fifo, unix.O_RDWR), false},
		{"directory", open(dir, unix.O_RDONLY), false},
		{"O_PATH", open("/", unix.O_PATH), false},
		{"device", open("/dev/null", unix.O_RDWR), false},
		{"memfd", memfd, false},
		{"epoll", epoll, false},
		{"closed", 1 << 20, false},
	} {
		if got := quickToClose(tc.fd); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}
