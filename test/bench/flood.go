//go:build bench

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// floodRole is the argument that makes this program a crowd of strangers.
const floodRole = "flood"

// floodJob is what the crowd is told.
type floodJob struct {
	Gateway   string
	Addresses int // each stranger has an address of its own, 127.0.1.x
	Span      time.Duration
	Request   []byte
}

// floodResult is what became of it.
type floodResult struct {
	Refused     int64 // requests that were answered, with 4xx
	Other       int64 // answered otherwise
	Connections int64 // closed before an answer
}

// runFlood sends requests from each address as fast as the gateway lets it: over one connection as long as it is open, and
// over the next one then.
func runFlood() error {
	var job floodJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	var refused, other, connections atomic.Int64
	ctx, cancel := context.WithTimeout(context.Background(), job.Span)
	defer cancel()
	var wg sync.WaitGroup
	for i := range job.Addresses {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i))}}
		wg.Go(func() {
			for ctx.Err() == nil {
				nc, err := d.DialContext(ctx, "tcp", job.Gateway)
				if err != nil {
					connections.Add(1)
					continue
				}
				c := newConn(nc)
				for ctx.Err() == nil {
					status, err := c.do(job.Request)
					if err != nil {
						connections.Add(1)
						break
					}
					if status >= 400 && status < 500 {
						refused.Add(1)
					} else {
						other.Add(1)
					}
				}
				c.close()
			}
		})
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(floodResult{refused.Load(), other.Load(), connections.Load()})
}

// flood measures what Core's requests for a user take while strangers send as much as they can, beside what they take
// without them, in turns. The crowd runs at the lowest priority: it stands for other machines, and should not cost this
// one more than what the gateway does for it.
func (b *bench) flood(ctx context.Context, w *world) error {
	req, err := w.homeRequest(w.people[0])
	if err != nil {
		return err
	}
	if err := once(w.gate, req); err != nil { // so that the instance runs, and the gateway has seen Core
		return err
	}
	b.begin("Flood of strangers: 16 addresses, and the requests of Core for one user meanwhile")
	head := "Host: " + w.gate + "\r\n"
	for _, kind := range []struct{ name, request string }{
		{"no token", "GET /ucloud/" + provider + "/files/browse HTTP/1.1\r\n" + head + "\r\n"},
		{"bad tokens", "GET /ucloud/" + provider + "/files/browse HTTP/1.1\r\n" + head + "Authorization: Bearer " + forged + "\r\n\r\n"},
		{"unknown links", "GET /ucloud/" + provider + "/download?usernameHint=QWRhIzE4MTU&token=x HTTP/1.1\r\n" + head + "\r\n"},
	} {
		var quiet, loaded []time.Duration
		var sum floodResult
		rounds, span := b.amount(4, 1), b.span(3*time.Second, time.Second)
		for range rounds {
			part, err := honest(w.gate, req, span)
			if err != nil {
				return err
			}
			quiet = append(quiet, part...)
			crowd, wait, err := w.startFlood(ctx, floodJob{Gateway: w.gate, Addresses: 16, Span: span + 2*time.Second, Request: []byte(kind.request)})
			if err != nil {
				return err
			}
			time.Sleep(time.Second) // the first burst
			part, err = honest(w.gate, req, span)
			if err != nil {
				return fmt.Errorf("the honest user: %w", err)
			}
			loaded = append(loaded, part...)
			if err := wait(); err != nil {
				return err
			}
			sum.Refused, sum.Other, sum.Connections = sum.Refused+crowd.Refused, sum.Other+crowd.Other, sum.Connections+crowd.Connections
		}
		seconds := float64(rounds) * (span + 2*time.Second).Seconds()
		b.add(kind.name+": requests refused", float64(sum.Refused)/seconds, "1/s", nil)
		b.add(kind.name+": connections refused", float64(sum.Connections)/seconds, "1/s", nil)
		if sum.Other > 0 {
			b.add(kind.name+": requests NOT refused", float64(sum.Other), "", atMost(0))
		}
		for _, q := range []struct {
			name string
			of   float64
		}{{"p50", 0.5}, {"p99", 0.99}} {
			before, during := quantile(quiet, q.of), quantile(loaded, q.of)
			b.add(kind.name+": honest user, "+q.name+", without", before, "ms", nil)
			b.add(kind.name+": honest user, "+q.name+", during the flood", during, "ms", nil)
			b.add(kind.name+": honest user, "+q.name+", ratio", during/before, "x", atMost(2))
		}
	}
	return nil
}

// forged looks like Core's token, so that its signature is looked at: RS256, and 256 bytes of signature.
var forged = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJyb2xlIjoiU0VSVklDRSIsImlzcyI6ImNsb3VkLnNkdS5kayIsInN1YiI6Il9VQ2xvdWQiLCJleHAiOjQwMDAwMDAwMDB9." +
	string(bytes.Repeat([]byte("A"), 342))

// honest sends one request after another for a while, and gives how long each took.
func honest(address string, req []byte, span time.Duration) (took []time.Duration, err error) {
	c, err := dial(address)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for end := time.Now().Add(span); time.Now().Before(end); {
		start := time.Now()
		if err := c.expectOK(req); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// startFlood starts the crowd. The result is there when wait has returned.
func (w *world) startFlood(ctx context.Context, job floodJob) (result *floodResult, wait func() error, err error) {
	input, err := json.Marshal(job)
	if err != nil {
		return nil, nil, err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "/usr/bin/nice", "-n", "19", w.self, floodRole)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errOut
	cmd.SysProcAttr = w.asService()
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	result = new(floodResult)
	return result, func() error {
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("flood: %w: %s", err, errOut.String())
		}
		return json.Unmarshal(out.Bytes(), result)
	}, nil
}
