package gateway

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestDrainOfHTTP2: a client of HTTP/2, as Core is over TLS, moves to the next process without a failed request.
func TestDrainOfHTTP2(t *testing.T) {
	t.Parallel()
	old, next := newFixture(t), newFixture(t)
	l := listen(t, "tcp", "127.0.0.1:0").(*net.TCPListener)
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	same, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	cert := testTLS(t)
	s, err := old.NewServer(ServerOptions{Listeners: []net.Listener{l}, TLS: cert.TLSConfig(0)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(); err != nil {
			t.Error(err)
		}
	})

	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr}
	token := bearer()
	stop := make(chan struct{})
	var done atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, _ := http.NewRequest("POST", "https://"+l.Addr().String()+"/ucloud/birch/files/move", nil)
				req.Host = "birch.example.net"
				req.Header.Set("Authorization", token)
				req.Header.Set("Ucloud-Username", alice.HeaderValue())
				res, err := client.Do(req)
				if err != nil {
					t.Errorf("after %d requests: %v", done.Load(), err)
					return
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode != 200 || res.ProtoMajor != 2 {
					t.Errorf("got %d by %s", res.StatusCode, res.Proto)
				}
				done.Add(1)
			}
		})
	}
	eventually(t, "requests at the old process", func() bool { return len(old.alice.seen()) > 50 })
	next.serve(ServerOptions{Listeners: []net.Listener{same}, TLS: cert.TLSConfig(0)})
	s.Drain(t.Context(), Drain{Grace: 20 * time.Second, Requests: 5 * time.Second})
	n := len(next.alice.seen())
	eventually(t, "requests at the new process", func() bool { return len(next.alice.seen()) > n+50 })
	close(stop)
	wg.Wait()
}

// TestDrainWaitsForRequests, and cuts them off only when their time is over.
func TestDrainWaitsForRequests(t *testing.T) {
	t.Parallel()
	for _, patient := range []bool{true, false} {
		f := newFixture(t)
		started, release := make(chan struct{}), make(chan struct{})
		f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
			close(started)
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
		s, err := f.NewServer(ServerOptions{Listeners: []net.Listener{listen(t, "tcp", "127.0.0.1:0")}})
		if err != nil {
			t.Fatal(err)
		}
		f.address = s.o.Listeners[0].Addr().String()
		var wg sync.WaitGroup
		wg.Go(func() { s.Run() })
		wg.Go(func() {
			req, _ := http.NewRequest("GET", "http://"+f.address+"/ucloud/birch/files", nil)
			req.Host = "birch.example.net"
			req.Header.Set("Authorization", bearer())
			req.Header.Set("Ucloud-Username", alice.HeaderValue())
			res, err := f.client.Do(req)
			if err == nil {
				res.Body.Close()
			}
			if patient && (err != nil || res.StatusCode != 200 || !res.Close) {
				t.Errorf("request was cut off: %v, %v", res, err)
			}
			if !patient && err == nil && res.StatusCode == 200 {
				t.Error("request was not cut off")
			}
		})
		<-started
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if patient {
			time.AfterFunc(200*time.Millisecond, func() { close(release) })
			s.Drain(ctx, Drain{Requests: 30 * time.Second})
		} else {
			s.Drain(ctx, Drain{Requests: 100 * time.Millisecond})
		}
		if ctx.Err() != nil {
			t.Error("Drain took the whole time")
		}
		cancel()
		if _, err := net.Dial("tcp", f.address); err == nil {
			t.Error("still listening")
		}
		wg.Wait()
	}
}
