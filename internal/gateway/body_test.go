package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRestOfABodyIsNoRequest: what a client sends of a body after the answer is not taken for its next request. A proxy in
// front that believed it would give somebody else's answer to the next client.
//
//attack:actor internet
//attack:does Hides a second request in the end of a body that is answered before it is read.
//attack:control A connection ends with an answer that comes before the end of its request's body.
//attack:remove internal/gateway/writer.go: case b.streamed || b.broken.Load(): => case false:
func TestRestOfABodyIsNoRequest(t *testing.T) {
	t.Parallel()
	const rest = 100 << 10
	inner := "GET /ucloud/birch/integration/x HTTP/1.1\r\nHost: birch.example.net\r\n\r\n"
	for _, length := range []int{rest + len(inner), 1 << 30} {
		f := newFixture(t)
		f.alice.handle(func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).EnableFullDuplex() //nolint:errcheck // else net/http would wait for the body
			http.Error(w, "quota", http.StatusPaymentRequired)
		})
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(c, "POST /ucloud/birch/files/x HTTP/1.1\r\nHost: birch.example.net\r\nAuthorization: %s\r\nUcloud-Username: %s\r\nContent-Length: %d\r\n\r\n",
			bearer(), alice.HeaderValue(), length)
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusPaymentRequired || !res.Close {
			t.Errorf("%d bytes: status %d, close %v, %v", length, res.StatusCode, res.Close, err)
		}
		io.WriteString(c, inner+strings.Repeat("x", rest)) //nolint:errcheck // it may be closed by now
		if res, err := http.ReadResponse(br, nil); err == nil {
			t.Errorf("%d bytes: the body was answered with %d", length, res.StatusCode)
		}
		if n := len(f.server.seen()); n > 0 {
			t.Errorf("%d bytes: the server has seen %d requests", length, n)
		}
	}
}

// TestBodyThatNeverComes: a request that is refused before its body is read gets an answer, and its connection ends.
//
//attack:actor internet
//attack:does Keeps connections by requests whose bodies never come.
//attack:control The rest of a body that nobody has read is waited for a moment only.
//attack:remove internal/gateway/writer.go: b.guard.rc.SetReadDeadline(time.Now().Add(endAfter)) => _ = endAfter
func TestBodyThatNeverComes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var wg sync.WaitGroup
	for _, header := range []string{"Content-Length: 100", "Content-Length: 100\r\nExpect: 100-continue", "Content-Length: 1000000", "Transfer-Encoding: chunked"} {
		wg.Go(func() {
			c, err := net.Dial("tcp", f.address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprintf(c, "POST /ucloud/birch/files/x HTTP/1.1\r\nHost: birch.example.net\r\nAuthorization: Bearer x\r\n%s\r\n\r\n", header)
			br := bufio.NewReader(c)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Errorf("%q: %v", header, err)
				return
			}
			if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusUnauthorized {
				t.Errorf("%q: %d %q, %v", header, res.StatusCode, b, err)
			}
			if _, err := br.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%q: the connection goes on: %v", header, err)
			}
		})
	}
	wg.Wait()
}

// TestUploadWhoseEndIsNoticedLate: the answer has come, and the goroutine that sent the last of the body waits for a
// processor, so that it is told to stop. The client's connection stays as good as it was.
func TestUploadWhoseEndIsNoticedLate(t *testing.T) {
	t.Parallel()
	l := listen(t, "tcp", "127.0.0.1:0")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &clientBody{body: r.Body, guard: &stallGuard{rc: http.NewResponseController(w), timeout: time.Minute}, bytes: new(traffic)}
		io.Copy(io.Discard, b) //nolint:errcheck // the next request shows it
		b.interrupt()
		select {
		case <-r.Context().Done():
			fmt.Fprint(w, "cancelled")
		case <-time.After(100 * time.Millisecond): // that nothing happens cannot be waited for otherwise
			fmt.Fprint(w, "good")
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	defer wg.Wait()
	defer srv.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	br := bufio.NewReader(c)
	for i := range 2 {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello") //nolint:errcheck // the answer says it
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != "good" {
			t.Errorf("request %d: %q, %v", i, b, err)
		}
	}
}
