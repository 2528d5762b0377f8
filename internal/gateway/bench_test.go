package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/ident"
)

// BenchmarkLatency measures what the gateway adds to a request of Core for 1 KiB of JSON over keep-alive connections,
// beside nginx as a plain proxy in the same run. All variants are measured in turns, so that a busy moment hits each of
// them. It reports p50 and p99 in microseconds; "added" is the difference to the direct request.
//
// Design targets: p50 added at most 200 us, and at most twice what nginx adds.
func BenchmarkLatency(b *testing.B) {
	body := []byte(`{"items":["` + strings.Repeat("x", 1000) + `"]}`)
	f := newFixture(b)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Write(body)
	})
	accessTo(b, f)
	variants := []struct{ name, address string }{
		{"direct", f.alice.l.Addr().String()},
		{"gateway", f.address},
	}
	if address := startNginx(b, f.alice.port()); address != "" {
		variants = append(variants, struct{ name, address string }{"nginx", address})
	}
	request := fmt.Sprintf("POST /ucloud/birch/files/browse HTTP/1.1\r\nHost: birch.example.net\r\nUser-Agent: bench\r\nContent-Length: 14\r\n"+
		"Authorization: %s\r\nUcloud-Username: %s\r\nAccept-Encoding: gzip\r\n\r\n{\"Browse\":{}}\r", bearer(), alice.HeaderValue())
	for _, clients := range []int{1, 32} {
		b.Run("c="+strconv.Itoa(clients), func(b *testing.B) {
			times := make(map[string][]time.Duration)
			spent := make(map[string]time.Duration)
			for _, v := range variants { // warm up
				load(b, v.address, request, clients, 50)
			}
			b.ResetTimer()
			for range b.N {
				for _, v := range variants {
					start := time.Now()
					times[v.name] = append(times[v.name], load(b, v.address, request, clients, 100)...)
					spent[v.name] += time.Since(start)
				}
			}
			b.StopTimer()
			direct := quantile(times["direct"], .5)
			for _, v := range variants {
				p50, p99 := quantile(times[v.name], .5), quantile(times[v.name], .99)
				b.ReportMetric(p50, v.name+"-p50-us")
				b.ReportMetric(p99, v.name+"-p99-us")
				b.ReportMetric(float64(len(times[v.name]))/spent[v.name].Seconds(), v.name+"-req/s")
				if v.name != "direct" {
					b.ReportMetric(p50-direct, v.name+"-added-us")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// accessTo lets the access log go to a file, as in production.
func accessTo(b testing.TB, f *fixture) {
	file, err := os.Create(filepath.Join(b.TempDir(), "access.log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	f.access = slog.New(slog.NewJSONHandler(file, nil))
}

// load sends n requests on each of some connections, one at a time on each, and gives the time of each.
func load(b testing.TB, address, request string, clients, n int) []time.Duration {
	out := make([][]time.Duration, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c, err := net.Dial("tcp", address)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			br := bufio.NewReader(c)
			for range n {
				start := time.Now()
				io.WriteString(c, request)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
				out[i] = append(out[i], time.Since(start))
				if res.StatusCode != 200 {
					b.Errorf("status %d", res.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
	return slices.Concat(out...)
}

func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return float64(d[int(q*float64(len(d)-1))].Nanoseconds()) / 1000
}

// startNginx runs nginx as a proxy in front of a port and gives its address; "" if there is no nginx.
func startNginx(b testing.TB, upstream int) string {
	program, err := exec.LookPath("nginx")
	if err != nil {
		b.Log("nginx is not installed: no comparison")
		return ""
	}
	dir := b.TempDir()
	port := freePort(b)
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
  access_log %[1]s/access.log; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 1000000; client_max_body_size 0;
  upstream up { server 127.0.0.1:%[3]d; keepalive 64; keepalive_requests 1000000; }
  server { listen 127.0.0.1:%[2]d; location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering off; proxy_request_buffering off; } }
}`, dir, port, upstream)
	name := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(name, []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-c", name, "-p", dir)
	if err := cmd.Start(); err != nil {
		cancel()
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	eventually(b, "nginx", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return address
}

// BenchmarkThroughput is one stream of 256 MiB, down and up, in MiB/s, beside the same without a proxy and through nginx.
func BenchmarkThroughput(b *testing.B) {
	const size = 256 << 20
	f := newFixture(b)
	chunk := make([]byte, 1<<20)
	f.alice.handle(func(w http.ResponseWriter, r *http.Request) {
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 256<<10))
		if r.Method == "GET" {
			w.Header().Set("Content-Length", strconv.Itoa(size))
			for range size / len(chunk) {
				w.Write(chunk)
			}
		}
	})
	variants := []struct{ name, address string }{{"direct", f.alice.l.Addr().String()}, {"gateway", f.address}}
	if address := startNginx(b, f.alice.port()); address != "" {
		variants = append(variants, struct{ name, address string }{"nginx", address})
	}
	token := bearer()
	for _, direction := range []string{"down", "up"} {
		b.Run(direction, func(b *testing.B) {
			best := make(map[string]float64)
			for range b.N {
				for _, v := range variants {
					req, _ := http.NewRequest("GET", "http://"+v.address+"/ucloud/birch/files/x", nil)
					if direction == "up" {
						req, _ = http.NewRequest("POST", "http://"+v.address+"/ucloud/birch/files/x", io.LimitReader(zeros{}, size))
						req.ContentLength = size
					}
					req.Host = "birch.example.net"
					req.Header.Set("Authorization", token)
					req.Header.Set("Ucloud-Username", alice.HeaderValue())
					start := time.Now()
					res, err := f.client.Do(req)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, chunk[:256<<10]); err != nil || res.StatusCode != 200 {
						b.Fatalf("%s: %d, %v", v.name, res.StatusCode, err)
					}
					res.Body.Close()
					best[v.name] = max(best[v.name], size/float64(1<<20)/time.Since(start).Seconds())
				}
			}
			for _, v := range variants {
				b.ReportMetric(best[v.name], v.name+"-MiB/s")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// BenchmarkCoreRequest is what the gateway and net/http do for one request of Core for 1 KiB of JSON, access log and
// metrics included. Client and instance are sockets that neither parse nor allocate, so that -benchmem and profiles show
// the gateway alone; where the machine is busy, the allocations can be compared when the times cannot.
func BenchmarkCoreRequest(b *testing.B) {
	const question = `{"Browse":{}}`
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\n" +
		"Content-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
	instance := listen(b, "tcp", "127.0.0.1:0")
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := instance.Accept()
		if err == nil {
			answerTo(c, []byte(question), answer)
		}
	})
	b.Cleanup(wg.Wait)
	b.Cleanup(func() { instance.Close() })
	f := newFixture(b)
	f.routes.Apply(Update{Put: []Route{{User: bob, UID: 20002, Port: instance.Addr().(*net.TCPAddr).Port, Key: f.key, ID: 7, Generation: 1}}})
	b.Cleanup(func() { f.routes.Apply(Update{Full: true}) }) // ends the connection to the instance
	accessTo(b, f)
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	// The headers that Core sends.
	request := []byte("POST /ucloud/birch/files/browse HTTP/1.1\r\nHost: birch.example.net\r\nAuthorization: " + bearer() +
		"\r\nUcloud-Username: " + bob.HeaderValue() + "\r\nContent-Type: application/json; charset=utf-8\r\nAccept: application/json\r\n" +
		"User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\nContent-Length: " + strconv.Itoa(len(question)) + "\r\n\r\n" + question)
	c.SetDeadline(time.Now().Add(5 * time.Minute)) // a refusal does not end as the answer does
	buf := make([]byte, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(buf[:n], answer[len(answer)-1000:]); {
			more, err := c.Read(buf[n:])
			if err != nil {
				b.Fatalf("%v after %q", err, buf[:n])
			}
			n += more
		}
	}
}

// answerTo answers whatever ends in question.
func answerTo(c net.Conn, question, answer []byte) {
	defer c.Close()
	buf := make([]byte, 8<<10)
	for n := 0; ; {
		more, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += more; bytes.HasSuffix(buf[:n], question) {
			n = 0
			c.Write(answer)
		}
	}
}

// BenchmarkHandler is the cost of one request in the gateway's own code, without client sockets.
func BenchmarkHandler(b *testing.B) {
	f := newFixture(b)
	accessTo(b, f)
	b.Run("clean", func(b *testing.B) {
		for b.Loop() {
			if _, err := cleanPath("/ucloud/birch/files/browse"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apply-2000", func(b *testing.B) {
		t := NewTable(slog.New(slog.DiscardHandler))
		u := Update{Full: true}
		for i := range 2000 {
			u.Put = append(u.Put, Route{User: ident.UCloudUser("user#" + strconv.Itoa(i)), Port: 42000 + i, ID: uint64(i)})
		}
		t.Apply(u)
		id := uint64(5000)
		for b.Loop() {
			id++
			t.Apply(Update{Put: []Route{{User: "user#7", Port: 42007, ID: id}}})
		}
	})
}
