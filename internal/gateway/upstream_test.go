package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
)

// script is an upstream that does exactly what a test says with each connection.
type script struct {
	l     net.Listener
	conns atomic.Int64
}

func newScript(t testing.TB, f func(n int64, c net.Conn, br *bufio.Reader)) *script {
	t.Helper()
	return scriptOn(t, listen(t, "tcp", "127.0.0.1:0"), f)
}

func scriptOn(t testing.TB, l net.Listener, f func(n int64, c net.Conn, br *bufio.Reader)) *script {
	s := &script{l: l}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			n := s.conns.Add(1)
			wg.Go(func() {
				defer c.Close()
				f(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		s.l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *script) port() int { return s.l.Addr().(*net.TCPAddr).Port }

// routeTo sends Alice's requests to a port.
func (f *fixture) routeTo(port int, id, generation uint64) Route {
	r := Route{User: alice, UID: 20001, Port: port, Key: f.key, ID: id, Generation: generation}
	f.routes.Apply(Update{Put: []Route{r}})
	return r
}

// readRequest reads one request with its body.
func readRequest(br *bufio.Reader) (*http.Request, error) {
	r, err := http.ReadRequest(br)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return r, err
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

// TestStatusOfFailures: 503 only when the instance cannot have read a byte, else 502 (contract 02 point 9.22).
func TestStatusOfFailures(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		answer string // "": close at once, "-": close after reading the request
		status int
	}{
		{"good", okAnswer, 200},
		{"closes before an answer", "-", 502},
		{"half a status line", "HTTP/1.1 20", 502},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-", 502},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", 502},
		{"head without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead) + "\r\n", 502},
		{"endless interim answers", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n", 10000) + okAnswer, 502},
		{"interim answer", "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + okAnswer, 200},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}", 502},
		{"its own 503", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 503},
		{"upgrade nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
				if _, err := readRequest(br); err == nil && tc.answer != "-" {
					io.WriteString(c, tc.answer)
				}
			})
			for i, body := range []string{"{}", strings.Repeat("x", maxSmallBody+1)} { // small and streamed
				r := f.routeTo(s.port(), 2, uint64(i)) // the script closes its connection after each answer
				// There is somebody to send it to again, which must not happen.
				f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &r, "", nil })
				res := f.core("POST", "/ucloud/birch/files/move", body, alice)
				if res.StatusCode != tc.status {
					t.Errorf("%d bytes: got %d %s", len(body), res.StatusCode, res.body)
				}
				if tc.status == 502 {
					checkFailure(t, tc.name, res, 502)
				}
			}
			if n := s.conns.Load(); n > 2 {
				t.Errorf("a request was sent %d times", n)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Timeout = 300 * time.Millisecond })
	stale := f.routeTo(freePort(t), 2, 1)
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &stale, "", nil })
	checkFailure(t, "the route stays", f.core("POST", "/ucloud/birch/files/browse", "{}", alice), 503)

	// The server knows better: the request is sent to the new instance.
	f.settings.Hold.Timeout = 20 * time.Second // however busy the machine is
	f.Reconfigure(f.settings)
	good := stale
	good.Port, good.ID = f.alice.port(), 3
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &good, "", nil })
	for _, body := range []string{"{}", strings.Repeat("x", maxSmallBody+1)} {
		f.routeTo(stale.Port, 2, 1)
		if res := f.core("POST", "/ucloud/birch/files/browse", body, alice); res.StatusCode != 200 {
			t.Errorf("got %d %s", res.StatusCode, res.body)
		}
	}
}

// TestForeignListenerGetsNothing: a local user has taken the port of a dead instance (design D1).
//
//attack:actor local user
//attack:does Listens at the port of an instance that has died, and waits for the user's requests.
//attack:control The gateway asks the kernel whose listener it is before it sends a byte.
//attack:remove internal/gateway/routes.go: if err := t.check(r.Port); err != nil { => if err := t.check(r.Port); err != nil && false {
func TestForeignListenerGetsNothing(t *testing.T) {
	t.Parallel()
	received := make(chan string, 10)
	s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
		b, _ := br.ReadByte()
		if b != 0 {
			received <- string(b)
		}
	})
	f := newFixture(t, func(f *fixture, o *Options) {
		f.settings.Hold.Timeout = 300 * time.Millisecond
		o.CheckListener = func(port int) error {
			if port == s.port() {
				return errors.New("port belongs to uid 4711")
			}
			return nil
		}
	})
	f.routeTo(s.port(), 2, 1)
	checkFailure(t, "foreign", f.core("POST", "/ucloud/birch/files/browse", "{}", alice), 503)
	if s.conns.Load() == 0 {
		t.Fatal("the test did not connect")
	}
	select {
	case b := <-received:
		t.Errorf("the foreign listener received %q", b)
	default:
	}
}

// TestDraining: an instance that has not read the request says so, and the request goes to the next one.
func TestDraining(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Hold.Timeout = 500 * time.Millisecond })
	draining := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
		readRequest(br)
		io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\n"+hoptoken.HeaderNotRead+": 1\r\nContent-Length: 0\r\n\r\n")
	})
	old := f.routeTo(draining.port(), 2, 1)
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &old, "", nil })
	res := f.core("POST", "/ucloud/birch/files/move", "{}", alice)
	checkFailure(t, "still draining", res, 503)
	if res.Header.Get(hoptoken.HeaderNotRead) != "" {
		t.Error("the internal header got out")
	}
	next := old
	next.Port, next.Generation = f.alice.port(), 2
	f.control.onWake(func(context.Context, ident.UCloudUser) (*Route, string, error) { return &next, "", nil })
	if res := f.core("POST", "/ucloud/birch/files/move", `{"a":1}`, alice); res.StatusCode != 200 {
		t.Fatalf("got %d %s", res.StatusCode, res.body)
	}
	if got := f.alice.seen(); len(got) != 1 || got[0].Body != `{"a":1}` {
		t.Errorf("the next instance saw %+v", got)
	}
}

// TestConnectionsAreReused, also after bodies, HEAD and answers without a body, and not when it would be wrong.
func TestConnectionsAreReused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
		for {
			r, err := readRequest(br)
			if err != nil {
				return
			}
			switch {
			case r.Method == "HEAD":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n")
			case strings.HasSuffix(r.URL.Path, "/none"):
				io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
			case strings.HasSuffix(r.URL.Path, "/chunked"):
				io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
			case strings.HasSuffix(r.URL.Path, "/extra"):
				io.WriteString(c, okAnswer+"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			case strings.HasSuffix(r.URL.Path, "/close"):
				io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
			default:
				io.WriteString(c, okAnswer)
			}
		}
	})
	f.routeTo(s.port(), 2, 1)
	large := strings.Repeat("x", maxSmallBody+1)
	for _, tc := range []struct {
		method, path, body string
		conns              int64
	}{
		{"POST", "/a", "{}", 1},
		{"GET", "/a", "", 1},
		{"HEAD", "/a", "", 1},
		{"POST", "/none", "{}", 1},
		{"GET", "/chunked", "", 1},
		{"POST", "/a", large, 1},
		{"DELETE", "/a", "{}", 1},
		{"GET", "/close", "", 1},
		{"GET", "/a", "", 2},
		// An answer that nobody asked for must not become the answer to the next request.
		{"GET", "/extra", "", 2},
		{"GET", "/a", "", 3},
	} {
		res := f.core(tc.method, "/ucloud/birch/files"+tc.path, tc.body, alice)
		if res.StatusCode >= 300 || strings.Contains(res.body, "evil") {
			t.Fatalf("%s %s: %d %q", tc.method, tc.path, res.StatusCode, res.body)
		}
		if n := s.conns.Load(); n != tc.conns {
			t.Fatalf("%s %s: %d connections, want %d", tc.method, tc.path, n, tc.conns)
		}
	}
}

// TestDeadConnectionsAreNotUsed: an instance that has died closed its connections.
func TestDeadConnectionsAreNotUsed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	closed := make(chan struct{}, 10)
	s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
		readRequest(br)
		io.WriteString(c, okAnswer)
		time.Sleep(10 * time.Millisecond) // so that the connection gets into the pool first
		c.Close()
		closed <- struct{}{}
	})
	f.routeTo(s.port(), 2, 1)
	for range 5 {
		if res := f.core("POST", "/ucloud/birch/files/move", "{}", alice); res.StatusCode != 200 {
			t.Fatalf("got %d %s", res.StatusCode, res.body)
		}
		<-closed
	}
}

// TestApplyIsABarrier: when Apply has returned, nothing is written any more to a connection of an older generation, under
// load, and the idle ones are closed.
func TestApplyIsABarrier(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var current atomic.Uint64 // the newest generation that was confirmed
	var late, served atomic.Int64
	handler := func(generation uint64) *backend {
		b := newBackend(t, fmt.Sprint(generation), listen(t, "tcp", "127.0.0.1:0"))
		b.handle(func(w http.ResponseWriter, r *http.Request) {
			// The request was written before this handler runs, so it may be as old as the confirmation; only a request that
			// the client began after the confirmation counts.
			if began := r.Header.Get("X-Began"); began > fmt.Sprintf("%08d", generation) {
				late.Add(1)
			}
			served.Add(1)
			io.WriteString(w, "{}")
		})
		return b
	}
	const generations = 30
	backends := make([]*backend, generations+1)
	for i := range backends {
		backends[i] = handler(uint64(i))
	}
	f.routeTo(backends[0].port(), 2, 0)
	token := bearer()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res := f.do("POST", "/ucloud/birch/files/move", "{}", "Authorization", token, "Ucloud-Username", alice.HeaderValue(), "X-Began", fmt.Sprintf("%08d", current.Load()))
				if res.StatusCode != 200 {
					t.Errorf("got %d %s", res.StatusCode, res.body)
					return
				}
			}
		})
	}
	for g := 1; g <= generations; g++ {
		before := served.Load()
		eventually(t, "requests", func() bool { return served.Load() > before+20 || t.Failed() })
		old := f.routes.lookup(alice)
		f.routeTo(backends[g].port(), 2, uint64(g))
		current.Store(uint64(g))
		if err := old.begin(nil); !errors.Is(err, errStale) {
			t.Fatalf("generation %d may still be written to: %v", g-1, err)
		}
		// An instance that is told to drain may wait until all its connections are closed.
		eventually(t, "connections of the old generation closed", func() bool { return openConns(backends[g-1]) == 0 })
	}
	close(stop)
	wg.Wait()
	if n := late.Load(); n > 0 {
		t.Errorf("%d requests were sent to an old generation after it had been confirmed", n)
	}
}

// openConns counts established connections to a backend by asking the kernel.
func openConns(b *backend) int {
	data := readProcTCP()
	needle := fmt.Sprintf(":%04X", b.port())
	n := 0
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasSuffix(f[1], needle) && f[3] == "01" {
			n++
		}
	}
	return n
}

// TestRetireDoesNotWaitForEver: an instance that does not read cannot hold up the table.
func TestRetireDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) { time.Sleep(100 * time.Millisecond) })
	f.routeTo(s.port(), 2, 1)
	in := f.routes.lookup(alice)
	c, _, err := in.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := in.begin(c); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.routes.Apply(Update{Remove: []ident.UCloudUser{alice}})
	}()
	// The writer notices that its connection is closed, as a blocked write would.
	eventually(t, "the connection is closed", func() bool {
		_, err := c.Conn.Write([]byte("x"))
		return errors.Is(err, net.ErrClosed)
	})
	select {
	case <-done:
		t.Error("Apply did not wait for the writer")
	default:
	}
	in.finish(c)
	<-done
}

// TestServerRestartLosesNothing: requests for IM/Server wait for it and are repeated when its connection breaks.
func TestServerRestartLosesNothing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var dial func(ctx context.Context) (net.Conn, error)
	f := newFixture(t, func(f *fixture, o *Options) {
		o.DialServer = func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			d := dial
			mu.Unlock()
			return d(ctx)
		}
	})
	to := func(address string) func(ctx context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	}
	set := func(d func(ctx context.Context) (net.Conn, error)) {
		mu.Lock()
		defer mu.Unlock()
		dial = d
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	var bodies []string
	s := scriptOn(t, l, func(n int64, c net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		bodies = append(bodies, string(b))
		mu.Unlock()
		if n < 4 { // reads, and dies before it answers
			return
		}
		io.WriteString(c, okAnswer)
	})
	refuse := atomic.Int64{}
	set(func(ctx context.Context) (net.Conn, error) {
		if refuse.Add(1) < 4 {
			return nil, errTest
		}
		return to(l.Addr().String())(ctx)
	})
	res := f.core("POST", "/ucloud/birch/integration/init", `{"username":"Alice#1234"}`, alice)
	if res.StatusCode != 200 {
		t.Fatalf("got %d %s", res.StatusCode, res.body)
	}
	if s.conns.Load() != 4 || len(bodies) != 4 || bodies[3] != `{"username":"Alice#1234"}` {
		t.Errorf("%d connections, bodies %q", s.conns.Load(), bodies)
	}
}

func TestServerThatStaysAway(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, o *Options) {
		f.settings.Hold.Timeout = 200 * time.Millisecond
		o.DialServer = func(context.Context) (net.Conn, error) { return nil, errTest }
	})
	res := f.do("GET", "/ucloud/birch/integration/retrieveManifest", "")
	checkFailure(t, "away", res, 503)
	if res.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if strings.Contains(res.body, errTest.Error()) {
		t.Error("the cause got out")
	}
	// Users whose instances run are still served.
	if res := f.core("POST", "/ucloud/birch/files/browse", "{}", alice); res.StatusCode != 200 {
		t.Errorf("got %d", res.StatusCode)
	}
}

func TestServerBodyLimit(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.MaxServerBody = 1000 })
	checkFailure(t, "too large", f.do("POST", "/ucloud/birch/integration/connect", strings.Repeat("x", 1001)), 413)
	if res := f.do("POST", "/ucloud/birch/integration/connect", strings.Repeat("x", 1000)); res.StatusCode != 200 {
		t.Errorf("got %d", res.StatusCode)
	}
	// The same without a length.
	req, _ := http.NewRequest("POST", "http://"+f.address+"/ucloud/birch/integration/connect", io.MultiReader(strings.NewReader(strings.Repeat("x", 1001))))
	req.Host = "birch.example.net"
	res, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("chunked: got %d", res.StatusCode)
	}
}
