package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"ucloud-im/internal/ident"
)

// echo is an instance's WebSocket end point.
func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	c.SetReadLimit(64 << 20)
	for {
		kind, b, err := c.Read(context.Background())
		if err != nil {
			return
		}
		if c.Write(context.Background(), kind, b) != nil {
			return
		}
	}
}

func (f *fixture) dialSocket(t *testing.T, url string, client *http.Client, header http.Header) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	c, res, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Host: "birch.example.net", HTTPClient: client, HTTPHeader: header})
	if c != nil {
		c.SetReadLimit(64 << 20)
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, res, err
}

func (f *fixture) socketURL(address, scheme string) string {
	return scheme + "://" + address + "/ucloud/birch/upload?token=t&usernameHint=" + alice.HintValue()
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.alice.handle(echo)
	secure := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}
	t.Cleanup(tr.CloseIdleConnections)
	for name, url := range map[string]string{"plain": f.socketURL(f.address, "ws"), "TLS": f.socketURL(secure, "wss")} {
		t.Run(name, func(t *testing.T) {
			c, _, err := f.dialSocket(t, url, &http.Client{Transport: tr}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 1, 5000, 16_000_005} { // the last is a frame of the web client's upload
				want := bytes.Repeat([]byte{byte(size)}, size)
				if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
					t.Fatal(err)
				}
				_, got, err := c.Read(t.Context())
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
				}
			}
			if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the connections are forgotten", func() bool { return f.routes.lookup(alice).streams.len() == 0 })
	eventually(t, "log lines", func() bool { return strings.Count(f.log.String(), `"status":101`) == 2 })
	if !strings.Contains(f.log.String(), `"in":1600`) {
		t.Error("the log does not count the bytes of upgraded connections")
	}
}

// TestWebSocketOfCore is the upgrade of Core's log stream (recording 10).
func TestWebSocketOfCore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.alice.handle(echo)
	url := "ws://" + f.address + "/ucloud/jobs.provider.birch/websocket?usernameHint=" + alice.HintValue()
	c, _, err := f.dialSocket(t, url, nil, http.Header{"Authorization": {bearer()}})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(t.Context(), websocket.MessageText, []byte("{}"))
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "{}" {
		t.Fatalf("%q, %v", b, err)
	}
	// The route is removed: the user lost the mapping. The generation alone does not matter.
	r := f.routes.lookup(alice).route
	r.Generation++
	f.routes.Apply(Update{Put: []Route{r}})
	c.Write(t.Context(), websocket.MessageText, []byte("1"))
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "1" {
		t.Fatalf("after a new generation: %q, %v", b, err)
	}
	f.routes.Apply(Update{Remove: []ident.UCloudUser{alice}})
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Fatal("the connection has survived its route")
	}
}

func TestWebSocketLimits(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) {
		f.settings.Limits.MaxUpgrades, f.settings.Limits.MaxBrowserRequests = 3, 2
	})
	f.alice.handle(echo)
	for i, want := range []int{101, 101, 429} {
		_, res, _ := f.dialSocket(t, f.socketURL(f.address, "ws"), nil, nil)
		if res == nil || res.StatusCode != want {
			t.Fatalf("browser %d: %v", i, res)
		}
	}
	core := "ws://" + f.address + "/ucloud/birch/files?usernameHint=" + alice.HintValue()
	for i, want := range []int{101, 429} {
		_, res, _ := f.dialSocket(t, core, nil, http.Header{"Authorization": {bearer()}})
		if res == nil || res.StatusCode != want {
			t.Fatalf("core %d: %v", i, res)
		}
	}
}

// TestHalfClose: what one side still has to say after the other has finished arrives.
func TestHalfClose(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := newScript(t, func(_ int64, c net.Conn, br *bufio.Reader) {
		readRequest(br)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
		b, _ := io.ReadAll(br) // until the client's half-close
		fmt.Fprintf(c, "got %s", b)
	})
	f.routeTo(s.port(), 2, 1)
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The last bytes are sent before the answer has come.
	fmt.Fprintf(c, "GET /ucloud/birch/upload?token=t&usernameHint=%s HTTP/1.1\r\nHost: birch.example.net\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst ", alice.HintValue())
	br := bufio.NewReader(c)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%v, %v", res, err)
	}
	io.WriteString(c, "last")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(br); err != nil || string(b) != "earlygot first last" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestStreaming: bodies go through as they come, in both directions, without being collected.
func TestStreaming(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	lines := make(chan string)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		sc := bufio.NewScanner(r.Body)
		for sc.Scan() {
			fmt.Fprintf(w, "echo %s\n", sc.Text())
			http.NewResponseController(w).Flush()
		}
	})
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+f.address+"/ucloud/birch/upload?token=t&usernameHint="+alice.HintValue(), pr)
	req.Host = "birch.example.net"
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(lines)
		res, err := f.client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		sc := bufio.NewScanner(res.Body)
		for sc.Scan() {
			lines <- sc.Text()
		}
	})
	for _, word := range []string{"one", "two", "three"} {
		io.WriteString(pw, word+"\n")
		if got := <-lines; got != "echo "+word {
			t.Errorf("got %q", got)
		}
	}
	pw.Close()
	wg.Wait()
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const size = 20 << 20
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %v %x\n", n, err, h.Sum(nil))
		w.Write(bytes.Repeat([]byte("x"), size))
	})
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	want := fmt.Sprintf("%d %v %x\n", size, nil, sha256.Sum256(body))
	secure := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	h2 := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(h2.CloseIdleConnections)
	for name, via := range map[string]struct {
		client *http.Client
		base   string
	}{"HTTP/1.1": {f.client, "http://" + f.address}, "HTTP/2": {&http.Client{Transport: h2}, "https://" + secure}} {
		for _, known := range []bool{true, false} {
			var rd io.Reader = bytes.NewReader(body)
			if !known {
				rd = io.MultiReader(rd)
			}
			req, _ := http.NewRequest("POST", via.base+"/ucloud/birch/files/x", rd)
			req.Host = "birch.example.net"
			req.Header.Set("Authorization", bearer())
			req.Header.Set("Ucloud-Username", alice.HeaderValue())
			res, err := via.client.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || len(b) != len(want)+size || string(b[:len(want)]) != want {
				t.Errorf("%s, length known %v: got %d bytes, %v, %.100s", name, known, len(b), err, b)
			}
			if res.Proto[:6] != name[:6] {
				t.Errorf("%s: protocol %s", name, res.Proto)
			}
		}
	}
}

// TestEarlyAnswer: an instance may answer before it has read everything.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "quota", http.StatusPaymentRequired) })
	pr, pw := io.Pipe()
	defer pw.Close()
	req, _ := http.NewRequest("POST", "http://"+f.address+"/ucloud/birch/files/x", pr)
	req.Host, req.ContentLength = "birch.example.net", 1<<30
	req.Header.Set("Authorization", bearer())
	req.Header.Set("Ucloud-Username", alice.HeaderValue())
	res, err := f.client.Do(req) // without having sent a byte of the body
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); res.StatusCode != 402 || string(b) != "quota\n" {
		t.Errorf("got %d %q, %v", res.StatusCode, b, err)
	}
}

// TestClientThatLeaves: the instance notices.
func TestClientThatLeaves(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	started, gone := make(chan struct{}), make(chan struct{})
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(started)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+f.address+"/ucloud/birch/files/x", strings.NewReader("{}"))
	req.Host = "birch.example.net"
	req.Header.Set("Authorization", bearer())
	req.Header.Set("Ucloud-Username", alice.HeaderValue())
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, err := f.client.Do(req); err == nil {
			res.Body.Close()
			t.Error("answered")
		}
	})
	<-started
	cancel()
	wg.Wait()
	<-gone
	eventually(t, "log line", func() bool { return strings.Contains(f.log.String(), `"status":499`) })
}

// TestBrokenUpload: an upload that ends early must not look complete to the instance.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	result := make(chan error, 1)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		result <- err
	})
	for _, framing := range []string{"Content-Length: 1000000", "Transfer-Encoding: chunked"} {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /ucloud/birch/files/x HTTP/1.1\r\nHost: birch.example.net\r\nAuthorization: %s\r\nUcloud-Username: %s\r\n%s\r\n\r\n5\r\nhello\r\n", bearer(), alice.HeaderValue(), framing)
		time.Sleep(50 * time.Millisecond)
		c.Close()
		if err := <-result; err == nil {
			t.Errorf("%s: the instance took a part for the whole", framing)
		}
	}
}

// TestSlowClients: neither a slow head nor a stalled body nor an unread answer keeps a connection, and slow progress is
// no fault.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) {
		f.settings.Limits.HeaderTimeout = 300 * time.Millisecond
		f.settings.Limits.StallTimeout = 500 * time.Millisecond
	})
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if r.Method == "GET" {
			for range 10000 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
		fmt.Fprint(w, n)
	})
	head := "Host: birch.example.net\r\nAuthorization: " + bearer() + "\r\nUcloud-Username: " + alice.HeaderValue() + "\r\n"
	open := func(request string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, request)
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		return c
	}
	// A head that never ends.
	if _, err := io.ReadAll(open("GET /ucloud/birch/files HTTP/1.1\r\nX-A: ")); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("slow head: the connection stays")
	}
	// Bodies that stop, and bodies of one byte at a time.
	for _, size := range []int{1000, 100000} {
		c := open(fmt.Sprintf("POST /ucloud/birch/files/x HTTP/1.1\r\n%sContent-Length: %d\r\n\r\nabc", head, size))
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 400 {
			t.Errorf("stalled body of %d: %v, %v", size, res, err)
		}
		drip := open(fmt.Sprintf("POST /ucloud/birch/files/x HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n", head, size))
		ended := false
		for range 300 {
			if _, err := drip.Write([]byte("x")); err != nil {
				ended = true
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !ended {
			t.Errorf("dripping body of %d: the connection stays", size)
		}
	}
	// A slow upload that makes progress takes several times the limit.
	c := open(fmt.Sprintf("POST /ucloud/birch/files/x HTTP/1.1\r\n%sContent-Length: 100000\r\n\r\n", head))
	for range 20 {
		if _, err := c.Write(make([]byte, 5000)); err != nil {
			t.Fatalf("slow upload: %v", err)
		}
		time.Sleep(80 * time.Millisecond)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 200 {
		t.Errorf("slow upload: %v, %v", res, err)
	}
	// The same connection can be used again: no deadline was left behind.
	time.Sleep(600 * time.Millisecond)
	fmt.Fprintf(c, "POST /ucloud/birch/files/x HTTP/1.1\r\n%sContent-Length: 2\r\n\r\n{}", head)
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 200 {
		t.Errorf("second request: %v, %v", res, err)
	}
	// An answer that nobody reads.
	open("GET /ucloud/birch/files HTTP/1.1\r\n" + head + "\r\n")
	eventually(t, "the unread answer is given up", func() bool { return strings.Contains(f.log.String(), "cut off") })
}

// TestBrokenUploadOverHTTP2: a stream that stalls does not end its connection, as it does with HTTP/1.1.
func TestBrokenUploadOverHTTP2(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(f *fixture, _ *Options) { f.settings.Limits.StallTimeout = 500 * time.Millisecond })
	result := make(chan error, 1)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		result <- err
	})
	secure := f.serve(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}, TLS: testTLS(t).TLSConfig(0)})
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	pr, pw := io.Pipe()
	defer pw.Close()
	req, _ := http.NewRequest("POST", "https://"+secure+"/ucloud/birch/files/x", pr)
	req.Host = "birch.example.net"
	req.Header.Set("Authorization", bearer())
	req.Header.Set("Ucloud-Username", alice.HeaderValue())
	var wg sync.WaitGroup
	wg.Go(func() { pw.Write(make([]byte, 100_000)) })
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil || res.StatusCode != 400 {
		t.Errorf("got %v, %v", res, err)
	}
	if err == nil {
		res.Body.Close()
	}
	select {
	case err := <-result:
		if err == nil {
			t.Error("the instance took a part for the whole")
		}
	case <-time.After(20 * time.Second):
		t.Error("the instance was not told")
	}
	pr.Close()
	wg.Wait()
}
