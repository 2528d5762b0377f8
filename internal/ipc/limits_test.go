package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
)

//attack:actor local user
//attack:does Announces a frame that is larger than any document may be.
//attack:control The length of a frame is checked before anything is read.
//attack:remove internal/ipc/frame.go: if uint64(length) > uint64(d.limit) { => if false {
func TestProtocolViolations(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{MaxConnsPerUID: 100})
	credit := func(id, n uint32) []byte {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], n)
		frame, err := encodeFrame(header{typ: frameCredit, id: id}, "", rawPayload(b[:]), 4)
		if err != nil {
			t.Fatal(err)
		}
		return frame
	}
	tooLong := head(1<<20+1, 1, 1, 0, 9, 7)
	huge := head(1<<32-1, 1, 1, 0, 9, 7)
	version := head(20, 9, 1, 0, 9, 7)
	open, err := encodeFrame(header{typ: frameOpen, id: 5}, holdStream.Name, text{"violation"}, maxRequest)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		before []byte // starts a handler, which is waited for
		b      []byte
	}{
		{"HTTP", nil, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"too long", nil, tooLong[:]},
		{"far too long", nil, huge[:]},
		{"unknown version", nil, version[:]},
		{"id in use", call(5, blockCall.Name, text{"violation"}, 0), call(5, echoCall.Name, text{}, 0)},
		{"credit for a call", call(5, blockCall.Name, text{"violation"}, 0), credit(5, 1)},
		{"too much credit", open, credit(5, 2)}, // one item is under way
		{"credit overflow", open, credit(5, 1<<32-1)},
		{"no credit", open, credit(5, 0)},
	} {
		t.Run(tc.name, func(t *testing.T) { // not parallel: they share the blocked channel
			c := ts.raw(t)
			if tc.before != nil {
				c.send(tc.before)
				receive(t, "the call", ts.blocked)
			}
			c.send(tc.b)
			c.mustDrop()
			if tc.before != nil {
				receive(t, "the end of the handler", ts.released)
			}
		})
	}
	// Not because the frame did not arrive in time.
	if log := ts.log.String(); !strings.Contains(log, "protocol violation") || !strings.Contains(log, "the limit is") {
		t.Errorf("the reasons are not in the log: %s", log)
	}
}

func TestLateControlFramesAreHarmless(t *testing.T) {
	t.Parallel()
	c := start(t, ServerOptions{}).raw(t)
	cancel := head(0, 1, 3, 0, 0, 77)
	c.send(cancel[:])
	frame, err := encodeFrame(header{typ: frameCredit, id: 78}, "", rawPayload{0, 0, 0, 1}, 4)
	if err != nil {
		t.Fatal(err)
	}
	c.send(frame)
	c.send(call(1, echoCall.Name, text{"a"}, 0))
	if h, _, err := c.frame(); err != nil || h.typ != frameResult || h.id != 1 {
		t.Fatalf("got %+v, %v", h, err)
	}
}

// TestConfiguredLimits: the limits of the options count, not the defaults.
func TestConfiguredLimits(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{MaxRequestBytes: 1000, MaxCallsPerConn: 2})
	c := ts.raw(t)
	for id := range uint32(2) {
		c.send(call(id+1, blockCall.Name, text{"a"}, 0))
		receive(t, "the call", ts.blocked)
	}
	c.send(call(3, echoCall.Name, text{}, 0))
	c.mustFail(3, failure.TooMany)
	cancel := head(0, 1, 3, 0, 0, 1)
	c.send(cancel[:])
	c.mustFail(1, failure.Internal) // the answer of the cancelled handler
	c.send(call(4, echoCall.Name, text{}, 0))
	if h, _, err := c.frame(); err != nil || h.typ != frameResult {
		t.Fatalf("got %+v, %v", h, err)
	}
	c.send(call(5, echoCall.Name, text{strings.Repeat("x", 1000)}, 0))
	c.mustDrop()
}

func TestConnectionsAreCounted(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{MaxConnsPerUID: 2})
	first, second := ts.dial(t), ts.dial(t)
	for _, c := range []*Client{first, second} {
		if _, err := Invoke(t.Context(), c, echoCall, text{}); err != nil {
			t.Fatal(err)
		}
	}
	third := ts.dial(t)
	receive(t, "the end of the third connection", third.Done())
	// A handler that does not end keeps the connection's place.
	go Invoke(context.Background(), first, blockCall, text{"a"}) //nolint:errcheck // it ends with the connection
	receive(t, "the call", ts.blocked)
	first.Close()
	receive(t, "the end of the handler", ts.released)
	eventually(t, "the place is free again", func() bool {
		c := ts.dial(t)
		defer c.Close()
		_, err := Invoke(t.Context(), c, echoCall, text{})
		return err == nil
	})
}

func TestUnreadableCredentials(t *testing.T) {
	t.Parallel()
	failing := make(chan bool, 1)
	ts := start(t, ServerOptions{}, func(ts *testServer) {
		real := ts.creds
		ts.creds = func(c *net.UnixConn) (Peer, error) {
			select {
			case <-failing:
				return Peer{}, errors.New("no credentials")
			default:
				return real(c)
			}
		}
	})
	failing <- true
	receive(t, "the end of the connection", ts.dial(t).Done())
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); err != nil {
		t.Fatalf("the service has ended with the connection: %v", err)
	}
}

//attack:actor local user
//attack:does Sends requests over the socket as fast as possible.
//attack:control Requests of one uid are limited in rate.
//attack:remove internal/ipc/quota.go: return a.requests == nil || a.requests.AllowN(now, 1+bytes/requestUnit) => return true
func TestRate(t *testing.T) {
	t.Parallel()
	self := ident.UID(os.Geteuid())
	for _, exempt := range []bool{false, true} {
		ts := start(t, ServerOptions{
			RequestsPerSecond: 20, MaxRequestBytes: 1000,
			ExemptUID: func(uid ident.UID) bool { return exempt && uid == self },
		})
		c := ts.dial(t)
		refused := 0
		for range 40 {
			_, err := Invoke(t.Context(), c, echoCall, text{})
			if failure.Is(err, failure.TooMany) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if exempt != (refused == 0) {
			t.Errorf("exempt = %v: %d of 40 refused", exempt, refused)
		}
		if !exempt {
			// It passes, and the connection is as good as before.
			eventually(t, "calls are accepted again", func() bool {
				_, err := Invoke(t.Context(), c, echoCall, text{})
				return err == nil
			})
		}
	}
}

func TestLargeRequestsCountMore(t *testing.T) {
	t.Parallel()
	q := NewServer(ServerOptions{}).quota
	now := time.Unix(1_000_000, 0)
	a := q.newAccount(1)
	n := 0
	for a.allowRequest(now, 1<<20) {
		n++
	}
	if n < 1 || n > 10 {
		t.Fatalf("%d requests of a MiB in a moment", n)
	}
	if NewServer(ServerOptions{RequestsPerSecond: 1}).quota.newAccount(1).allowRequest(now, 1<<20) != true {
		t.Fatal("the largest request is never affordable")
	}
	control := 0
	for a.allowControl(now) && control < 1_000_000 {
		control++
	}
	if control == 0 || control == 1_000_000 {
		t.Fatalf("%d control frames in a moment", control)
	}
}

// TestAccountsAreForgotten: uids that come and go leave nothing behind.
func TestAccountsAreForgotten(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	q := NewServer(ServerOptions{RequestsPerSecond: 10}).quota
	q.now = func() time.Time { return now }
	kept, err := q.admit(1)
	if err != nil {
		t.Fatal(err)
	}
	for uid := range ident.UID(10_000) {
		a, err := q.admit(1000 + uid)
		if err != nil {
			t.Fatal(err)
		}
		q.release(a)
		now = now.Add(100 * time.Millisecond)
	}
	if n := len(q.byUID); n > 2*sweepFloor {
		t.Fatalf("%d accounts are kept", n)
	}
	if q.byUID[1] != kept {
		t.Fatal("an account with a connection was forgotten")
	}
	// An empty bucket must not be filled by forgetting it.
	poor := q.newAccount(2)
	for poor.allowRequest(now, 0) {
	}
	if poor.idleAt(now) {
		t.Fatal("an account that owes is idle")
	}
	if !poor.idleAt(now.Add(time.Hour)) {
		t.Fatal("an account is never idle")
	}
}

//attack:actor local user
//attack:does Begins frames and never ends them.
//attack:control A frame that has begun must be complete in time.
//attack:remove internal/ipc/serverconn.go: deadline = time.Now().Add(c.s.o.FrameTimeout) => deadline = time.Time{}
func TestIncompleteFrame(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{FrameTimeout: 50 * time.Millisecond, MaxConnsPerUID: 100})
	frame := call(1, echoCall.Name, text{"hello"}, 0)
	for _, n := range []int{1, headerSize - 1, headerSize, len(frame) - 1} {
		c := ts.raw(t)
		c.send(frame[:n])
		c.mustDrop()
	}
	// A running call does not switch the deadline of a frame off.
	c := ts.raw(t)
	c.send(call(1, blockCall.Name, text{"a"}, 0))
	receive(t, "the call", ts.blocked)
	c.send(frame[:5])
	c.mustDrop()
	receive(t, "the end of the handler", ts.released)
}

func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{IdleTimeout: 100 * time.Millisecond})
	receive(t, "the end of an idle connection", ts.dial(t).Done())

	c := ts.dial(t)
	r, err := Open(t.Context(), c, holdStream, text{"a"})
	if err != nil {
		t.Fatal(err)
	}
	receive(t, "the stream", ts.blocked)
	select {
	case <-c.Done():
		t.Fatal("a connection with a stream was ended as idle")
	case <-time.After(400 * time.Millisecond):
	}
	r.Close()
	receive(t, "the end of the handler", ts.released)
	receive(t, "the end of the connection, now idle", c.Done())
}

// TestPeerThatDoesNotRead must lose its connection, and its handlers.
func TestPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	ts := start(t, ServerOptions{WriteTimeout: 100 * time.Millisecond})
	c := ts.raw(t)
	c.send(call(1, blockCall.Name, text{"a"}, 0))
	receive(t, "the call", ts.blocked)
	c.send(call(2, hugeCall.Name, count{10 << 20}, 0))
	receive(t, "the end of the handler", ts.released)
}

// TestAnswersThatNobodyReads are bounded: they wait in handlers, which count. Not parallel, it counts goroutines.
func TestAnswersThatNobodyReads(t *testing.T) {
	ts := start(t, ServerOptions{WriteTimeout: patience, MaxCallsPerConn: 4, RequestsPerSecond: 100_000})
	c := ts.raw(t)
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	before := runtime.NumGoroutine()
	for id := uint32(1); ; id++ {
		if _, err := c.Write(call(id, hugeCall.Name, count{1 << 20}, 0)); err != nil {
			break // the server does not read us any more
		}
		if id == 200_000 {
			t.Fatal("the server reads on and on")
		}
	}
	if n := runtime.NumGoroutine() - before; n > 20 {
		t.Fatalf("%d more goroutines", n)
	}
}

// TestIdleConnectionsAreCheap is not parallel, because it looks at the whole process.
func TestIdleConnectionsAreCheap(t *testing.T) {
	const n = 300
	ts := start(t, ServerOptions{MaxConnsPerUID: n + 10, RequestsPerSecond: 10_000})
	first := ts.dial(t)
	if _, err := Invoke(t.Context(), first, echoCall, text{}); err != nil {
		t.Fatal(err)
	}
	threads, heap := threadCount(t), heapInUse()
	for range n {
		c := ts.dial(t)
		r, err := Open(t.Context(), c, holdStream, text{"a"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		receive(t, "the stream", ts.blocked)
	}
	moreThreads, each := threadCount(t)-threads, (heapInUse()-heap)/n
	t.Logf("%d connections with a stream, both ends here: %d more threads, %d bytes each", n, moreThreads, each)
	if moreThreads > 20 {
		t.Errorf("%d connections cost %d threads", n, moreThreads)
	}
	if each > 64<<10 {
		t.Errorf("a connection costs %d bytes", each)
	}
}

func threadCount(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "\nThreads:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func heapInUse() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

// TestAcceptErrorsPass: a lack of descriptors is a matter of waiting. Not parallel, it changes a limit of the process.
func TestAcceptErrorsPass(t *testing.T) {
	ts := start(t, ServerOptions{})
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: ts.path}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server complains", func() bool { return strings.Contains(ts.log.String(), "cannot accept") })
	restore()
	if _, err := Invoke(t.Context(), ts.dial(t), echoCall, text{}); err != nil {
		t.Fatalf("the service has ended: %v", err)
	}
}
