//go:build bench

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// floodRole is the argument that makes this program a crowd of strangers.
const floodRole = "flood"

// floodJob is what the crowd is told.
type floodJob struct {
	Gateway   string
	Addresses int     // each stranger has an address of its own, 127.0.1.x
	Rate      float64 // requests per second of all, whether the last ones were answered or not; 0: as many as they can
	Span      time.Duration
	Request   []byte
}

// floodResult is what became of it.
type floodResult struct {
	Refused     int64 // requests that were answered, with 4xx
	Other       int64 // answered otherwise
	Connections int64 // closed before an answer
	Seconds     float64
}

// refused is how much was turned away in a second.
func (r *floodResult) refused() float64 { return float64(r.Refused+r.Connections) / r.Seconds }

// runFlood sends requests from each address, over one connection as long as it is open, and over the next one then.
func runFlood() error {
	var job floodJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	var sum floodResult
	var mu sync.Mutex
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), job.Span)
	defer cancel()
	var wg sync.WaitGroup
	for i := range job.Addresses {
		s := stranger{job: &job, number: i}
		wg.Go(func() {
			s.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			sum.Refused, sum.Other, sum.Connections = sum.Refused+s.Refused, sum.Other+s.Other, sum.Connections+s.Connections
		})
	}
	wg.Wait()
	sum.Seconds = time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(sum)
}

// stranger is one address.
type stranger struct {
	job    *floodJob
	number int
	floodResult
}

func (s *stranger) run(ctx context.Context) {
	next, every := time.Now(), time.Duration(0)
	if s.job.Rate > 0 {
		every = time.Duration(float64(time.Second) * float64(s.job.Addresses) / s.job.Rate)
		next = next.Add(every * time.Duration(s.number) / time.Duration(s.job.Addresses)) // not all at once
	}
	// What cannot be sent in time is not made up for: the figure is what was refused.
	turn := func() bool {
		now := time.Now()
		if next = next.Add(every); now.Sub(next) > floodLag {
			next = now
		}
		if wait := next.Sub(now); wait > 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
		}
		return ctx.Err() == nil
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+s.number))}}
	for turn() {
		nc, err := d.DialContext(ctx, "tcp", s.job.Gateway)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { nc.Close() })
			err = s.use(ctx, newConn(nc), turn)
			stop()
			nc.Close()
		}
		if err != nil && ctx.Err() == nil {
			s.Connections++
		}
	}
}

// use sends the first request, and others when it is their turn, until the connection ends. A connection that was closed
// after a refusal is no error: no request was lost.
func (s *stranger) use(ctx context.Context, c *conn, turn func() bool) error {
	for first := true; first || turn(); first = false {
		status, err := c.do(s.job.Request)
		switch {
		case err != nil && !first:
			// The gateway has closed it meanwhile, so this request goes over the next connection, at the next turn.
			return nil
		case err != nil:
			return err
		case status >= 400 && status < 500:
			s.Refused++
		default:
			s.Other++
		}
		if c.closes {
			return nil
		}
	}
	return ctx.Err()
}

const (
	// floodLag is how far behind its time a stranger may be before it leaves requests out.
	floodLag = 50 * time.Millisecond
	// floodAddresses is how many strangers there are: enough for most of their requests to be looked at, and not to be
	// refused unseen because their address has sent too many.
	floodAddresses = 64
	// pause is between the requests of the honest user, who does not want to know how much the machine can do.
	pause = time.Millisecond
)

// floodRates are the steps, in requests per second. The search ends when two attempts at one were too much.
var floodRates = []float64{250, 500, 1000, 2000, 4000, 8000, 16000}

// flood looks for the largest number of requests per second that are refused while what Core's requests for a user take
// stays within twice of what they take without, in the median and at the 99th percentile. The rate is given from outside:
// strangers that wait for answers would send as much as the machine can make and answer, and the figure would be about the
// machine. The crowd runs at the lowest priority and on one core: it stands for other machines, and should not cost this
// one more than what the gateway does for it. What it took is shown.
func (b *bench) flood(ctx context.Context, w *world) error {
	req, err := w.homeRequest(w.people[0])
	if err != nil {
		return err
	}
	if err := once(w.gate, req); err != nil { // so that the instance runs, and the gateway has seen Core
		return err
	}
	b.begin("Flood of strangers: %d addresses, and the requests of Core for one user meanwhile", floodAddresses)
	head := "Host: " + w.gate + "\r\n"
	for _, kind := range []struct{ name, request string }{
		{"no token", "GET /ucloud/" + provider + "/files/browse HTTP/1.1\r\n" + head + "\r\n"},
		{"bad tokens", "GET /ucloud/" + provider + "/files/browse HTTP/1.1\r\n" + head + "Authorization: Bearer " + forged + "\r\n\r\n"},
		{"unknown links", "GET /ucloud/" + provider + "/download?usernameHint=QWRhIzE4MTU&token=x HTTP/1.1\r\n" + head + "\r\n"},
	} {
		if err := b.floodKind(ctx, w, kind.name, req, kind.request); err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return nil
}

func (b *bench) floodKind(ctx context.Context, w *world, name string, req []byte, request string) error {
	step := func(rate float64) (floodStep, error) { return b.floodStep(ctx, w, req, request, rate) }
	var best floodStep
	// try gives a rate a second chance: anything else on the machine makes a worst percent worse.
	try := func(rate float64) (bool, error) {
		for range b.amount(2, 1) {
			s, err := step(rate)
			if err != nil {
				return false, err
			}
			b.progress("%s, %.0f/s: %.0f/s refused, p50 %.2f x, p99 %.2f x, crowd %.2f cores, gateway %.2f", name, rate, s.rate, s.p50(), s.p99(), s.crowd, s.gateway)
			if s.within(2) {
				if s.rate > best.rate {
					best = s
				}
				return true, nil
			}
		}
		return false, nil
	}
	for i, rate := range floodRates[:b.amount(len(floodRates), 2)] {
		ok, err := try(rate)
		if err != nil {
			return err
		}
		if !ok {
			if i > 0 && !b.quick { // half way
				if _, err := try(rate / 1.4); err != nil {
					return err
				}
			}
			break
		}
		if best.rate < rate*0.7 { // the crowd cannot send more
			break
		}
	}
	b.add(name+": refused while p50 and p99 stay within twice", best.rate, "1/s", &target{Bound: floodRates[0] * 0.8, AtLeast: true})
	if best.rate > 0 {
		best.show(b, name+", at that rate")
	}
	full, err := step(0)
	if err != nil {
		return err
	}
	b.add(name+": refused when the crowd sends all it can", full.rate, "1/s", nil)
	full.show(b, name+", all it can")
	if n := best.other + full.other; n > 0 {
		b.add(name+": requests NOT refused", float64(n), "", atMost(0))
	}
	return nil
}

// floodStep is what one rate has shown.
type floodStep struct {
	quiet, loaded  []time.Duration
	rate           float64 // refused in a second,
	closed         float64 // of them without an answer
	other          int64
	crowd, gateway float64 // cores
}

func (s *floodStep) p50() float64 { return quantile(s.loaded, 0.5) / quantile(s.quiet, 0.5) }
func (s *floodStep) p99() float64 { return quantile(s.loaded, 0.99) / quantile(s.quiet, 0.99) }

func (s *floodStep) within(ratio float64) bool { return s.p50() <= ratio && s.p99() <= ratio }

func (s *floodStep) show(b *bench, name string) {
	b.add(name+": of them connections closed without an answer", s.closed, "1/s", nil)
	b.add(name+": honest user, p50, without", quantile(s.quiet, 0.5), "ms", nil)
	b.add(name+": honest user, p50, ratio", s.p50(), "x", nil)
	b.add(name+": honest user, p99, without", quantile(s.quiet, 0.99), "ms", nil)
	b.add(name+": honest user, p99, ratio", s.p99(), "x", nil)
	b.add(name+": CPU of the crowd", s.crowd, "cores", nil)
	b.add(name+": CPU of the gateway, honest user included", s.gateway, "cores", nil)
}

// floodStep measures the honest user alone, and then with strangers.
func (b *bench) floodStep(ctx context.Context, w *world, req []byte, request string, rate float64) (s floodStep, err error) {
	if s.quiet, err = honest(w.gate, req, b.span(time.Second, time.Second)); err != nil {
		return s, err
	}
	const before, after = 400 * time.Millisecond, 200 * time.Millisecond // the programs start and end
	span := b.span(1800*time.Millisecond, time.Second)
	whole := before + span + after
	crowd, wait, err := w.startFlood(ctx, floodJob{Gateway: w.gate, Addresses: floodAddresses, Rate: rate, Span: whole, Request: []byte(request)})
	if err != nil {
		return s, err
	}
	time.Sleep(before)
	pid := w.gateway.pid()
	from, err := usageOf(pid)
	if err == nil {
		s.loaded, err = honest(w.gate, req, span)
	}
	to, errTo := usageOf(pid)
	used, errWait := wait()
	if err := errors.Join(err, errTo, errWait); err != nil {
		return s, err
	}
	s.rate, s.closed, s.other = crowd.refused(), float64(crowd.Connections)/crowd.Seconds, crowd.Other
	s.crowd, s.gateway = used.Seconds()/whole.Seconds(), to.minus(from).ran.Seconds()/span.Seconds()
	return s, nil
}

// forged looks like Core's token, so that its signature is looked at: RS256, and 256 bytes of signature.
var forged = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJyb2xlIjoiU0VSVklDRSIsImlzcyI6ImNsb3VkLnNkdS5kayIsInN1YiI6Il9VQ2xvdWQiLCJleHAiOjQwMDAwMDAwMDB9." +
	string(bytes.Repeat([]byte("A"), 342))

// honest sends one request after another for a while, with pauses, and gives how long each took.
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
		time.Sleep(pause)
	}
	return took, nil
}

// startFlood starts the crowd. The result is there when wait has returned, with the time that it has used a processor.
func (w *world) startFlood(ctx context.Context, job floodJob) (result *floodResult, wait func() (time.Duration, error), err error) {
	input, err := json.Marshal(job)
	if err != nil {
		return nil, nil, err
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "/usr/bin/nice", "-n", "19", w.self, floodRole)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "GOMAXPROCS=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errOut
	cmd.SysProcAttr = w.asService()
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	result = new(floodResult)
	return result, func() (time.Duration, error) {
		if err := cmd.Wait(); err != nil {
			return 0, fmt.Errorf("flood: %w: %s", err, errOut.String())
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), json.Unmarshal(out.Bytes(), result)
	}, nil
}
