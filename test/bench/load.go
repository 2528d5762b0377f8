//go:build bench

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// loadRole is the argument that makes this program the load generator.
const loadRole = "load"

// loadMain reads a job and writes the result.
func loadMain(in io.Reader, out io.Writer) error {
	var job loadJob
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return err
	}
	result, err := job.run(context.Background())
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

// source makes the requests of one variant.
type source struct {
	address string
	make    func() ([]byte, error)
	fresh   time.Duration // how long a request may be sent again; hop tokens expire
	pids    []int         // of the proxy
}

func (j *loadJob) run(ctx context.Context) (*loadResult, error) {
	route, err := j.route(ctx)
	if err != nil {
		return nil, err
	}
	hop := func() ([]byte, error) {
		token := hoptoken.Mint(hoptoken.Key(route.Key), hoptoken.Claims{
			UID: route.UID, User: route.User, Method: "POST", Path: j.Path, RequestID: "bench", Arrival: time.Now(), Class: hoptoken.ClassCore,
		})
		return request(j.Gateway, j.Path, j.User, j.Body, hoptoken.Header+": "+token)
	}
	instance := "127.0.0.1:" + strconv.Itoa(route.Port)
	sources := map[string]*source{
		direct: {address: instance, make: hop, fresh: time.Second},
		viaGateway: {address: j.Gateway, pids: []int{j.PID}, fresh: time.Hour, make: func() ([]byte, error) {
			return request(j.Gateway, j.Path, j.User, j.Body, "Authorization: Bearer "+j.Bearer)
		}},
	}
	order := []string{direct, viaGateway}
	result := &loadResult{Variants: map[string]*variantResult{}}
	if address, pids, stop, err := startNginx(j.Dir, instance); err != nil {
		result.NoNginx = err.Error()
	} else {
		defer stop()
		sources[viaNginx] = &source{address: address, make: hop, fresh: time.Second, pids: pids}
		order = append(order, viaNginx)
	}
	if result.Bytes, err = j.answerSize(sources[direct]); err != nil {
		return nil, err
	}
	for _, name := range order {
		result.Variants[name] = &variantResult{}
		if _, err := sources[name].load(many, 100, 0); err != nil { // warm up
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for range j.Rounds {
		for _, name := range order {
			v := result.Variants[name]
			times, cpu, err := sources[name].measured(1, j.PerRound, 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			v.One = append(v.One, times...)
			v.RoundP50 = append(v.RoundP50, quantile(times, 0.5))
			v.CPUOne += cpu / float64(j.Rounds)
		}
	}
	for range j.ManyRounds {
		for _, name := range order {
			v := result.Variants[name]
			start := time.Now()
			times, cpu, err := sources[name].measured(many, 1<<30, j.ManySpan)
			if err != nil {
				return nil, fmt.Errorf("%s with %d clients: %w", name, many, err)
			}
			v.Many = append(v.Many, times...)
			v.ManyPerSec = append(v.ManyPerSec, float64(len(times))/time.Since(start).Seconds())
			v.CPUMany += cpu / float64(j.ManyRounds)
		}
	}
	return result, nil
}

// measured is load, with the CPU time in microseconds that the proxy has used for each request.
func (s *source) measured(clients, n int, span time.Duration) ([]time.Duration, float64, error) {
	before, err := usageOf(s.pids...)
	if err != nil {
		return nil, 0, err
	}
	times, err := s.load(clients, n, span)
	if err != nil {
		return nil, 0, err
	}
	after, err := usageOf(s.pids...)
	return times, float64(after.minus(before).ran.Microseconds()) / float64(len(times)), err
}

// route asks the server for the route of the user, as a gateway does. The service account may.
func (j *loadJob) route(ctx context.Context) (*ipcapi.Route, error) {
	own := ident.UID(os.Getuid())
	client, err := ipc.Dial(ctx, j.Socket, ipc.DialOptions{ServerUID: func(uid ident.UID) bool { return uid == own }})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	routes, err := ipc.Open(ctx, client, ipcapi.GatewayRoutes, ipcapi.GatewayHello{Protocol: ipcapi.Protocol, Build: "bench", PID: os.Getpid()})
	if err != nil {
		return nil, err
	}
	defer routes.Close()
	update, _, err := routes.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the routes: %w", err)
	}
	if _, err := ipc.Invoke(ctx, client, ipcapi.GatewayAck, ipcapi.RouteAck{Seq: update.Seq}); err != nil {
		return nil, err
	}
	for _, r := range update.Put {
		if r.User == j.User {
			return &r, nil
		}
	}
	return nil, fmt.Errorf("no route for %s", j.User)
}

func (j *loadJob) answerSize(s *source) (int, error) {
	c, err := dial(s.address)
	if err != nil {
		return 0, err
	}
	defer c.close()
	req, err := s.make()
	if err != nil {
		return 0, err
	}
	if err := c.expectOK(req); err != nil {
		return 0, err
	}
	return len(c.body), nil
}

// load sends requests one after the other on each of some connections: n on each, or until the time is over if it is
// set. It gives the time of each request.
func (s *source) load(clients, n int, span time.Duration) ([]time.Duration, error) {
	times, errs := make([][]time.Duration, clients), make([]error, clients)
	end := time.Now().Add(span)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			times[i], errs[i] = s.client(n, func(now time.Time) bool { return span > 0 && now.After(end) })
		})
	}
	wg.Wait()
	var all []time.Duration
	for _, t := range times {
		all = append(all, t...)
	}
	return all, errors.Join(errs...)
}

func (s *source) client(n int, over func(time.Time) bool) ([]time.Duration, error) {
	c, err := dial(s.address)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var times []time.Duration
	var req []byte
	var made time.Time
	for range n {
		start := time.Now()
		if over(start) {
			break
		}
		if start.Sub(made) > s.fresh {
			if req, err = s.make(); err != nil {
				return nil, err
			}
			made = start
			start = time.Now()
		}
		if err := c.expectOK(req); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

// startNginx runs nginx as a plain proxy with kept connections, the way an operator would set it up for an API.
func startNginx(dir, upstream string) (address string, pids []int, stop func(), err error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		return "", nil, nil, errors.New("nginx is not installed")
	}
	port, err := freePort()
	if err != nil {
		return "", nil, nil, err
	}
	address = "127.0.0.1:" + strconv.Itoa(port)
	conf := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
  access_log %[1]s/access.log; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  keepalive_requests 100000000; client_max_body_size 0;
  upstream up { server %[3]s; keepalive 64; keepalive_requests 100000000; }
  server {
    listen %[2]s;
    location / {
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffering off; proxy_request_buffering off;
    }
  }
}`, dir, address, upstream)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return "", nil, nil, err
	}
	cmd := exec.Command(program, "-c", file, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	if err := cmd.Start(); err != nil {
		return "", nil, nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt) // nginx ends its workers
		_ = cmd.Wait()
	}
	for range 200 {
		c, err := net.Dial("tcp", address)
		workers := childrenOf(cmd.Process.Pid)
		if err == nil && c.Close() == nil && len(workers) > 0 {
			return address, workers, stop, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	return "", nil, nil, fmt.Errorf("nginx does not answer: %.500s", log)
}
