package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/testkit"
)

// patience is for things that happen soon on an idle machine.
const patience = 60 * time.Second

// TestMain lets the test binary play another process, see process_test.go.
func TestMain(m *testing.M) {
	if role := os.Getenv("IPC_TEST_ROLE"); role != "" {
		if err := playRole(role, os.Getenv("IPC_TEST_SOCKET")); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// The calls of the tests.
type (
	text  struct{ Text string }
	count struct{ N int }
	whoIs struct {
		UID    ident.UID
		GID    ident.GID
		PID    int32
		Groups bool // member of testGroup
	}
)

var (
	echoCall   = Call[text, text]{Name: "test.echo", Access: AccessAnyone}
	whoCall    = Call[text, whoIs]{Name: "test.who", Access: AccessAnyone}
	blockCall  = Call[text, text]{Name: "test.block", Access: AccessAnyone}
	failCall   = Call[text, text]{Name: "test.fail", Access: AccessAnyone}
	panicCall  = Call[text, text]{Name: "test.panic", Access: AccessAnyone}
	hugeCall   = Call[count, text]{Name: "test.huge", Access: AccessAnyone}
	filesCall  = Call[text, text]{Name: "test.files", Access: AccessAnyone, Files: 2}
	countItems = Stream[count, count]{Name: "test.count", Access: AccessAnyone}
	holdStream = Stream[text, text]{Name: "test.hold", Access: AccessAnyone}
)

// testServer is a running server with the calls above.
type testServer struct {
	*Server
	path string
	log  *logBuffer
	stop func() // ends Serve and waits
	// blocked and released count what the handlers of blockCall and holdStream saw.
	blocked, released chan string
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// shortDir is a directory whose path leaves room in a socket address, open to all users.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "imt-ipc")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func grantAll(context.Context, Peer) (Grant, error) { return Grant{}, nil }

// start runs a server with the test calls, further ones from register, until the test ends.
func start(tb testing.TB, o ServerOptions, register ...func(*testServer)) *testServer {
	tb.Helper()
	ts := &testServer{log: &logBuffer{}, blocked: make(chan string, 10_000), released: make(chan string, 10_000)}
	if o.Authorize == nil {
		o.Authorize = grantAll
	}
	o.Log = slog.New(slog.NewTextHandler(ts.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ts.Server = NewServer(o)
	Handle(ts.Server, echoCall, func(_ context.Context, _ *Request, req text) (text, error) { return req, nil })
	Handle(ts.Server, whoCall, func(_ context.Context, r *Request, _ text) (whoIs, error) {
		return whoIs{r.Peer.UID(), r.Peer.GID(), r.Peer.PID(), r.Peer.InGroup(testGroup)}, nil
	})
	Handle(ts.Server, blockCall, func(ctx context.Context, r *Request, req text) (text, error) {
		ts.blocked <- req.Text
		<-ctx.Done()
		ts.released <- req.Text
		return text{"late"}, ctx.Err()
	})
	Handle(ts.Server, failCall, func(_ context.Context, _ *Request, req text) (text, error) {
		return text{}, &failure.Error{Kind: failure.Conflict, Why: "It exists already", Code: "EXISTS", Cause: errors.New("private " + req.Text)}
	})
	Handle(ts.Server, panicCall, func(context.Context, *Request, text) (text, error) { panic("a bug") })
	Handle(ts.Server, hugeCall, func(_ context.Context, _ *Request, req count) (text, error) {
		return text{strings.Repeat("x", req.N)}, nil
	})
	Handle(ts.Server, filesCall, func(_ context.Context, r *Request, _ text) (text, error) {
		defer closeAll(r.Files)
		var all []byte
		for _, f := range r.Files {
			flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				return text{}, failure.New(failure.Internal, "no close-on-exec")
			}
			b, err := io.ReadAll(f)
			if err != nil {
				return text{}, err
			}
			all = append(all, b...)
		}
		return text{string(all)}, nil
	})
	HandleStream(ts.Server, countItems, func(_ context.Context, _ *Request, req count, send func(count, ...*os.File) error) error {
		for i := range req.N {
			if err := send(count{i}); err != nil {
				return err
			}
		}
		return nil
	})
	HandleStream(ts.Server, holdStream, func(ctx context.Context, r *Request, req text, send func(text, ...*os.File) error) error {
		if err := send(text{"hello"}); err != nil {
			return err
		}
		ts.blocked <- req.Text
		<-ctx.Done()
		ts.released <- req.Text
		return ctx.Err()
	})
	for _, f := range register {
		f(ts)
	}
	ts.path = filepath.Join(shortDir(tb), "s.sock")
	l, err := Listen(ts.path)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- ts.Serve(ctx, l) }()
	ts.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				tb.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			tb.Error("Serve does not return")
		}
	})
	tb.Cleanup(ts.stop)
	return ts
}

func (ts *testServer) dial(tb testing.TB) *Client {
	tb.Helper()
	c, err := Dial(tb.Context(), ts.path, DialOptions{Timeout: patience})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// rawConn is a client that can break the rules.
type rawConn struct {
	*net.UnixConn
	tb testing.TB
	r  frameReader
}

func (ts *testServer) raw(tb testing.TB) *rawConn {
	tb.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: ts.path})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &rawConn{conn, tb, frameReader{src: conn, dir: direction{fromServer: true, limit: maxReply}}}
}

// send writes bytes, with descriptors attached to the first of them.
func (c *rawConn) send(b []byte, fds ...int) {
	c.tb.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		c.tb.Fatal(err)
	}
}

// frame reads a frame.
func (c *rawConn) frame() (header, []byte, error) {
	h, err := c.r.header(func() {})
	if err != nil {
		return header{}, nil, err
	}
	payload, err := c.r.payload(h)
	return h, payload, err
}

// mustDrop waits for the server to end the connection, reading what it still says.
func (c *rawConn) mustDrop() {
	c.tb.Helper()
	for {
		_, _, err := c.frame()
		if err == nil {
			continue
		}
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			c.tb.Fatal("the server keeps the connection")
		}
		return
	}
}

// call encodes a call frame that declares files descriptors.
func call(id uint32, name string, req any, files int) []byte {
	b, err := encodeFrame(header{typ: frameCall, id: id, files: files}, name, req, maxReply)
	if err != nil {
		panic(err)
	}
	return b
}

// mustFail reads a failure frame of the kind.
func (c *rawConn) mustFail(id uint32, want failure.Kind) {
	c.tb.Helper()
	h, payload, err := c.frame()
	if err != nil || h.typ != frameFailure || h.id != id {
		c.tb.Fatalf("got frame %+v, %v", h, err)
	}
	var f wireFailure
	if err := json.Unmarshal(payload, &f); err != nil || failure.KindOfStatus(f.Kind) != want {
		c.tb.Fatalf("got %s, want kind %v", payload, want)
	}
}

func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	testkit.Eventually(tb, what, cond)
}

func receive[T any](tb testing.TB, what string, ch <-chan T) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("%s does not happen", what)
		panic("unreachable")
	}
}

func openFDs(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}
