package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

func TestCall(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	for _, want := range []string{"", "hello", "<&> \u2028 ü\x00", strings.Repeat("x", 900_000)} {
		got, err := Invoke(t.Context(), c, echoCall, text{want})
		if err != nil || got.Text != want {
			t.Fatalf("got %d bytes, %v, want %d", len(got.Text), err, len(want))
		}
	}
	if c.Peer().UID() != ident.UID(os.Geteuid()) || c.Peer().PID() != int32(os.Getpid()) {
		t.Errorf("the server is %+v", c.Peer())
	}
}

func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{RequestsPerSecond: 100_000}).dial(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for j := range 20 {
				want := fmt.Sprint(i, j)
				if got, err := Invoke(t.Context(), c, echoCall, text{want}); err != nil || got.Text != want {
					t.Errorf("got %q, %v, want %q", got.Text, err, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestFailureCrossesWithoutItsCause(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	_, err := Invoke(t.Context(), ts.dial(t), failCall, text{"detail"})
	e, ok := errors.AsType[*failure.Error](err)
	if !ok || e.Kind != failure.Conflict || e.Why != "It exists already" || e.Code != "EXISTS" {
		t.Fatalf("got %#v", err)
	}
	if strings.Contains(err.Error(), "private") {
		t.Fatalf("the cause got out: %v", err)
	}
	if !strings.Contains(ts.log.String(), "private detail") {
		t.Error("the cause is not in the log")
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	c := ts.dial(t)
	_, err := Invoke(t.Context(), c, panicCall, text{})
	if !failure.Is(err, failure.Internal) || strings.Contains(err.Error(), "a bug") {
		t.Fatalf("got %v", err)
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
		t.Fatalf("the connection is gone: %v", err)
	}
	if log := ts.log.String(); !strings.Contains(log, "a bug") || !strings.Contains(log, "call_test.go") && !strings.Contains(log, "harness_test.go") {
		t.Errorf("no panic with stack in the log: %s", log)
	}
}

//attack:actor local user
//attack:does Calls over the socket what only operators may call.
//attack:control Each call on the socket declares who may make it, and the kernel says who asks.
//attack:remove internal/ipc/access.go: a == AccessOperator && (g.Operator || g.Root), => a == AccessOperator,
//attack:actor local user
//attack:does Calls over the socket what only the gateway may call, such as the one that gives the keys of all routes.
//attack:control Calls for the service account are refused to all others, operators included.
//attack:remove internal/ipc/access.go: a == AccessService && g.Service, => a == AccessService,
func TestAccess(t *testing.T) {
	t.Parallel()
	grants := map[string]Grant{
		"nobody": {}, "mapped": {Mapped: true}, "viewer": {Viewer: true}, "operator": {Operator: true},
		"service": {Service: true}, "root": {Root: true},
	}
	allowed := map[Access]string{
		AccessAnyone: "nobody mapped viewer operator service root", AccessMapped: "mapped",
		AccessViewer: "viewer operator root", AccessOperator: "operator root",
		AccessService: "service", AccessRoot: "root",
	}
	var mu sync.Mutex
	var grant Grant
	ts := start(t, ServerOptions{RequestsPerSecond: 10_000, Authorize: func(context.Context, Peer) (Grant, error) {
		mu.Lock()
		defer mu.Unlock()
		return grant, nil
	}}, func(ts *testServer) {
		for access := range allowed {
			Handle(ts.Server, Call[text, Grant]{Name: "access." + access.String(), Access: access},
				func(_ context.Context, r *Request, _ text) (Grant, error) { return r.Grant, nil })
		}
	})
	c := ts.dial(t) // one connection: the grant is that of the call, not that of the connection
	for who, g := range grants {
		g.User = ident.UCloudUser(who)
		mu.Lock()
		grant = g
		mu.Unlock()
		for access, names := range allowed {
			got, err := Invoke(t.Context(), c, Call[text, Grant]{Name: "access." + access.String()}, text{})
			if want := strings.Contains(" "+names+" ", " "+who+" "); (err == nil) != want {
				t.Errorf("%s at %s: got %v, want ok = %v", who, access, err, want)
			} else if want && got != g {
				t.Errorf("%s at %s: the handler saw %+v", who, access, got)
			} else if !want && !failure.Is(err, failure.Forbidden) {
				t.Errorf("%s at %s: got %v", who, access, err)
			}
		}
	}
	for access := range Access(255) {
		if !access.valid() && access.allow(Grant{Mapped: true, Viewer: true, Operator: true, Root: true, Service: true}) == nil {
			t.Errorf("the class %s lets everybody in", access)
		}
	}
}

func TestAuthorizerError(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{Authorize: func(context.Context, Peer) (Grant, error) {
		return Grant{Root: true}, failure.New(failure.Unavailable, "The database is away")
	}})
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); !failure.Is(err, failure.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(ts.log.String(), "database") {
		t.Error("it is not in the log")
	}
}

func TestServeRefusesToStart(t *testing.T) {
	t.Parallel()
	handler := func(context.Context, *Request, text) (text, error) { return text{}, nil }
	for _, tc := range []struct {
		name     string
		register func(*Server)
		noAuth   bool
		want     string // empty: it starts
	}{
		{"good", func(s *Server) { Handle(s, echoCall, handler) }, false, ""},
		{"no access class", func(s *Server) { Handle(s, Call[text, text]{Name: "a.b"}, handler) }, false, "a.b"},
		{"no access class of a stream", func(s *Server) {
			HandleStream(s, Stream[text, text]{Name: "a.c"}, func(context.Context, *Request, text, func(text, ...*os.File) error) error { return nil })
		}, false, "a.c"},
		{"unknown access class", func(s *Server) { Handle(s, Call[text, text]{Name: "a.b", Access: AccessRoot + 1}, handler) }, false, "a.b"},
		{"same name twice", func(s *Server) {
			Handle(s, echoCall, handler)
			Handle(s, Call[text, count]{Name: echoCall.Name, Access: AccessRoot}, func(context.Context, *Request, text) (count, error) { return count{}, nil })
		}, false, "twice"},
		{"no name", func(s *Server) { Handle(s, Call[text, text]{Access: AccessAnyone}, handler) }, false, "not a name"},
		{"too many descriptors", func(s *Server) { Handle(s, Call[text, text]{Name: "a.b", Access: AccessAnyone, Files: 5}, handler) }, false, "descriptors"},
		{"no authorizer", func(*Server) {}, true, "authorizer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := ServerOptions{Authorize: grantAll}
			if tc.noAuth {
				o.Authorize = nil
			}
			s := NewServer(o)
			tc.register(s)
			path := shortDir(t) + "/s.sock"
			l, err := Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err = s.Serve(ctx, l)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if conn, err := net.Dial("unix", path); err == nil {
				conn.Close()
				t.Fatal("the listener is still open")
			}
		})
	}
}

func TestUnknownCalls(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	if _, err := Invoke(t.Context(), c, Call[text, text]{Name: "no.such"}, text{}); !failure.Is(err, failure.NotFound) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := Invoke(t.Context(), c, Call[count, count]{Name: countItems.Name}, count{}); !failure.Is(err, failure.NotFound) {
		t.Errorf("a stream as a call: %v", err)
	}
	r, err := Open(t.Context(), c, Stream[text, text]{Name: echoCall.Name}, text{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the error stays
		if _, _, err := r.Next(t.Context()); !failure.Is(err, failure.NotFound) {
			t.Errorf("a call as a stream: %v", err)
		}
	}
	if _, err := Invoke(t.Context(), c, Call[text, text]{Name: strings.Repeat("n", 1000)}, text{}); err == nil {
		t.Error("a long name went through")
	}
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	// A newer peer may say more than we know.
	got, err := Invoke(t.Context(), c, Call[map[string]any, text]{Name: echoCall.Name}, map[string]any{"Text": "a", "New": []int{1}})
	if err != nil || got.Text != "a" {
		t.Errorf("unknown field: got %+v, %v", got, err)
	}
	for name, doc := range map[string]any{"wrong type": map[string]any{"Text": 1}, "not an object": []int{1}} {
		if _, err := Invoke(t.Context(), c, Call[any, text]{Name: echoCall.Name}, doc); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Invoke(t.Context(), c, Call[json.RawMessage, text]{Name: echoCall.Name}, json.RawMessage("{")); err == nil {
		t.Error("broken JSON went out")
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{strings.Repeat("x", maxRequest)}); !failure.Is(err, failure.TooLarge) {
		t.Errorf("long request: got %v", err)
	}
	if _, err := Invoke(t.Context(), c, hugeCall, count{maxReply}); !failure.Is(err, failure.Internal) {
		t.Errorf("long answer: got %v", err)
	}
	if got, err := Invoke(t.Context(), c, hugeCall, count{maxReply - 100}); err != nil || len(got.Text) != maxReply-100 {
		t.Errorf("longest answer: got %d bytes, %v", len(got.Text), err)
	}
	if _, err := Invoke(t.Context(), c, Call[text, int]{Name: echoCall.Name}, text{}); err == nil {
		t.Error("an answer of another type was decoded")
	}
}

func TestCancelledCall(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	c := ts.dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-ts.blocked
		cancel()
	}()
	if _, err := Invoke(ctx, c, blockCall, text{"a"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	receive(t, "the end of the handler", ts.released)
	if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
		t.Fatalf("the connection is gone: %v", err)
	}
	if _, err := Invoke(ctx, c, blockCall, text{"b"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("with an ended context: got %v", err)
	}
	select {
	case s := <-ts.blocked:
		t.Fatalf("call %s was made with an ended context", s)
	default:
	}
}

func TestDisconnectCancelsHandlers(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		Handle(ts.Server, Call[text, text]{Name: "test.closed", Access: AccessAnyone}, func(_ context.Context, r *Request, _ text) (text, error) {
			go func() {
				<-r.Closed()
				close(closed)
			}()
			return text{}, nil
		})
	})
	c := ts.dial(t)
	if _, err := Invoke(t.Context(), c, Call[text, text]{Name: "test.closed"}, text{}); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := Invoke(context.Background(), c, blockCall, text{"a"})
		errs <- err
	}()
	r, err := Open(t.Context(), c, holdStream, text{"b"})
	if err != nil {
		t.Fatal(err)
	}
	receive(t, "the first call", ts.blocked)
	receive(t, "the second call", ts.blocked)
	select {
	case <-closed:
		t.Fatal("Closed although the connection is open")
	case <-c.Done():
		t.Fatal("Done although the connection is open")
	default:
	}
	c.Close()
	receive(t, "the end of a handler", ts.released)
	receive(t, "the end of a handler", ts.released)
	receive(t, "Closed", closed)
	receive(t, "Done", c.Done())
	if err := receive(t, "the end of the call", errs); !failure.Is(err, failure.Unavailable) || !errors.Is(err, ErrDisconnected) {
		t.Errorf("call: got %v", err)
	}
	for {
		_, _, err := r.Next(t.Context())
		if err == nil {
			continue // the item that had come before
		}
		if !failure.Is(err, failure.Unavailable) || !errors.Is(err, ErrDisconnected) || errors.Is(err, io.EOF) {
			t.Errorf("stream: got %v", err)
		}
		break
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{}); !errors.Is(err, ErrDisconnected) || !failure.Is(err, failure.Unavailable) {
		t.Errorf("after Close: got %v", err)
	}
	if _, err := Open(t.Context(), c, countItems, count{}); !errors.Is(err, ErrDisconnected) {
		t.Errorf("after Close: got %v", err)
	}
}

func TestServerStops(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	idle, c := ts.dial(t), ts.dial(t)
	errs := make(chan error, 1)
	go func() {
		_, err := Invoke(context.Background(), c, blockCall, text{"a"})
		errs <- err
	}()
	receive(t, "the call", ts.blocked)
	ts.stop()
	// The handler had the chance to answer.
	if err := receive(t, "the answer", errs); !failure.Is(err, failure.Unavailable) || errors.Is(err, ErrDisconnected) {
		t.Errorf("got %v", err)
	}
	receive(t, "the end of the connection", c.Done())
	receive(t, "the end of the idle connection", idle.Done())
	if c, err := Dial(t.Context(), ts.path, DialOptions{}); !failure.Is(err, failure.Unavailable) {
		t.Errorf("after the end: got %v, %v", c, err)
	}
}

// TestBrokenListener: Serve must not spin or hide it.
func TestBrokenListener(t *testing.T) {
	t.Parallel()
	s := NewServer(ServerOptions{Authorize: grantAll})
	l, err := Listen(shortDir(t) + "/s.sock")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestRegisterAfterServe(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); err != nil { // Serve runs
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a call was added to a running server")
		}
	}()
	Handle(ts.Server, Call[text, text]{Name: "late", Access: AccessAnyone}, func(context.Context, *Request, text) (text, error) { return text{}, nil })
}

func TestStream(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	for _, n := range []int{0, 1, window - 1, window, window + 1, 1000} {
		r, err := Open(t.Context(), c, countItems, count{n})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if item, files, err := r.Next(t.Context()); err != nil || item.N != i || files != nil {
				t.Fatalf("item %d of %d: got %+v, %v, %v", i, n, item, files, err)
			}
		}
		for range 2 {
			if _, _, err := r.Next(t.Context()); err != io.EOF {
				t.Fatalf("after %d items: %v", n, err)
			}
		}
		r.Close()
		r.Close()
	}
}

// TestSlowReceiver: a stream that nobody reads blocks its sender, and nothing else on the connection.
func TestSlowReceiver(t *testing.T) {
	t.Parallel()
	sent := make(chan int, 1000)
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		HandleStream(ts.Server, Stream[text, count]{Name: "test.push", Access: AccessAnyone},
			func(_ context.Context, _ *Request, _ text, send func(count, ...*os.File) error) error {
				var wg sync.WaitGroup
				for g := range 4 { // senders may be several
					wg.Go(func() {
						for i := range 50 {
							if err := send(count{g*50 + i}); err != nil {
								t.Error(err)
							}
							sent <- i
						}
					})
				}
				wg.Wait()
				return failure.New(failure.Conflict, "Enough")
			})
	})
	c := ts.dial(t)
	r, err := Open(t.Context(), c, Stream[text, count]{Name: "test.push"}, text{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the window fills", func() bool { return len(sent) == window })
	for range 20 {
		if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(sent); n != window {
		t.Fatalf("%d items went out unread", n)
	}
	seen := map[int]bool{}
	for {
		item, _, err := r.Next(t.Context())
		if err != nil {
			if !failure.Is(err, failure.Conflict) || failure.Why(err) != "Enough" {
				t.Fatalf("got %v", err)
			}
			break
		}
		seen[item.N] = true
	}
	if len(seen) != 200 {
		t.Fatalf("%d of 200 items came", len(seen))
	}
}

func TestReceiverClose(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{})
	c := ts.dial(t)
	r, err := Open(t.Context(), c, holdStream, text{"a"})
	if err != nil {
		t.Fatal(err)
	}
	if item, _, err := r.Next(t.Context()); err != nil || item.Text != "hello" {
		t.Fatalf("got %+v, %v", item, err)
	}
	// The context is that of one Next.
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, _, err := r.Next(context.Background())
		waiting <- err
	}()
	r.Close()
	if err := receive(t, "the end of Next", waiting); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	receive(t, "the end of the handler", ts.released)
	if _, _, err := r.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
		t.Fatalf("the connection is gone: %v", err)
	}
}

func TestItemOfAnotherType(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).dial(t)
	r, err := Open(t.Context(), c, Stream[count, []string]{Name: countItems.Name}, count{100})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := r.Next(t.Context()); err == nil || errors.Is(err, io.EOF) {
			t.Fatalf("got %v", err)
		}
	}
	if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
		t.Fatalf("the connection is gone: %v", err)
	}
}

func TestPIDFD(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		Handle(ts.Server, Call[text, text]{Name: "test.pidfd", Access: AccessAnyone}, func(_ context.Context, r *Request, _ text) (text, error) {
			f, err := r.PIDFD()
			if err != nil {
				return text{}, err
			}
			defer f.Close()
			info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
			return text{string(info)}, err
		})
	})
	got, err := Invoke(t.Context(), ts.dial(t), Call[text, text]{Name: "test.pidfd"}, text{})
	if err != nil || !strings.Contains(got.Text, fmt.Sprintf("Pid:\t%d\n", os.Getpid())) {
		t.Fatalf("got %q, %v", got.Text, err)
	}
}

// TestServerBreaksTheRules: the client trusts the server, but a bug in it must end in an error and not in a mix-up.
func TestServerBreaksTheRules(t *testing.T) {
	t.Parallel()
	frame := func(typ frameType, id uint32, doc any) []byte {
		b, err := encodeFrame(header{typ: typ, id: id}, "", doc, maxReply)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	flood := []byte{}
	for range window + 1 {
		flood = append(flood, frame(frameItem, 1, count{})...)
	}
	tooLong := head(maxReply+1, 1, 18, 0, 0, 1)
	for _, tc := range []struct {
		name string
		b    []byte
	}{
		{"more items than the window", flood},
		{"result of a stream", frame(frameResult, 1, count{})},
		{"too long", tooLong[:]},
		{"a client's frame", call(1, "a", text{}, 0)},
		{"half a frame", frame(frameItem, 1, count{})[:15]},
		{"failure that is none", frame(frameFailure, 1, []int{})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := shortDir(t) + "/s.sock"
			l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := Dial(t.Context(), path, DialOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			r, err := Open(t.Context(), c, countItems, count{1})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := server.Write(tc.b); err != nil {
				t.Fatal(err)
			}
			if tc.name == "half a frame" || tc.name == "failure that is none" {
				server.Close()
			} else {
				defer server.Close()
			}
			receive(t, "the end of the connection", c.Done())
			for range window + 2 {
				if _, _, err = r.Next(t.Context()); err != nil {
					break
				}
			}
			if err == nil || errors.Is(err, io.EOF) {
				t.Fatalf("the stream ends with %v", err)
			}
		})
	}
}
