//go:build bench

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/testkit/accounts"
)

// coldStart measures the first request of a user without an instance: through the gateway, server, sudo, the start of
// the instance, and back with a listing of 50 files.
func (b *bench) coldStart(ctx context.Context, w *world) error {
	rounds := b.amount(300, 20)
	b.begin("Cold start of an instance, %d times, one at a time", rounds)
	nothing, err := w.site.Install("true", "/bin/true", accounts.Direct)
	if err != nil {
		return err
	}
	people := w.people[:10]
	c, err := dial(w.gate)
	if err != nil {
		return err
	}
	defer c.close()
	var cold, warm, bare []time.Duration
	for i := range rounds {
		p := people[i%len(people)]
		req, err := w.homeRequest(p)
		if err != nil {
			return err
		}
		for _, times := range []*[]time.Duration{&cold, &warm} {
			start := time.Now()
			if err := c.expectOK(req); err != nil {
				return fmt.Errorf("first request of %s: %w", p.name, err)
			}
			*times = append(*times, time.Since(start))
		}
		if err := w.stop(ctx, p); err != nil {
			return err
		}
		// In turns, so that a busy moment hits both.
		cmd := w.site.Service.Command("/usr/bin/sudo", "-n", "-u", p.account.Name, "--", nothing)
		cmd.Env = []string{}
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("sudo: %w: %s", err, out)
		}
		bare = append(bare, time.Since(start))
	}
	p50, sudo := quantile(cold, 0.5), quantile(bare, 0.5)
	b.add("first request, p50", p50, "ms", atMost(25))
	b.add("first request, p99", quantile(cold, 0.99), "ms", atMost(100))
	b.add("first request, slowest", quantile(cold, 1), "ms", nil)
	b.add("second request, p50", quantile(warm, 0.5), "ms", nil)
	b.add("sudo -n -u USER true, p50", sudo, "ms", nil)
	b.add("sudo -n -u USER true, p99", quantile(bare, 0.99), "ms", nil)
	b.add("first request p50 / sudo true p50", p50/sudo, "x", nil)
	return nil
}

// stop ends instances as an operator would, and waits until their processes are gone.
func (w *world) stop(ctx context.Context, people ...*person) error {
	var req ipcapi.InstanceMutation
	for _, p := range people {
		req.Users = append(req.Users, p.name)
	}
	admin, err := w.admin(ctx)
	if err != nil {
		return err
	}
	defer admin.Close()
	report, err := ipc.Invoke(ctx, admin, ipcapi.InstanceStop, req)
	if err != nil {
		return fmt.Errorf("stop instances: %w", err)
	}
	for _, r := range report.Results {
		if r.Error != nil {
			return fmt.Errorf("stop the instance of %s: %s", r.Key, r.Error.Message)
		}
	}
	uids := w.uids(people)
	return eventually(ctx, "instances to end", w.server, func() bool { return len(processesOf(uids)) == 0 })
}

// burst wakes 100 users in the same moment.
func (b *bench) burst(ctx context.Context, w *world) error {
	rounds := b.amount(5, 1)
	people := w.people[:100]
	b.begin("%d users without an instance in the same moment, %d times", len(people), rounds)
	var lasts []float64
	var all []time.Duration
	for range rounds {
		took, err := w.wakeTogether(people)
		if err != nil {
			return err
		}
		lasts = append(lasts, ms(slices.Max(took)))
		all = append(all, took...)
		if err := w.stop(ctx, people...); err != nil {
			return err
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil { // let the server finish with the ended ones
			return err
		}
	}
	b.add("until the last is answered, median of the rounds", median(lasts), "ms", atMost(600))
	b.add("until the last is answered, best round", slices.Min(lasts), "ms", nil)
	b.add("until the last is answered, worst round", slices.Max(lasts), "ms", nil)
	b.add("until one is answered, p50", quantile(all, 0.5), "ms", nil)
	b.add("answers per second", float64(len(people))/median(lasts)*1000, "1/s", nil)
	return nil
}

// wakeTogether sends one request for each person over a connection that is there already, as Core's are.
func (w *world) wakeTogether(people []*person) ([]time.Duration, error) {
	took, errs := make([]time.Duration, len(people)), make([]error, len(people))
	conns, requests := make([]*conn, len(people)), make([][]byte, len(people))
	for i, p := range people {
		var err error
		if requests[i], err = w.homeRequest(p); err != nil {
			return nil, err
		}
		if conns[i], err = dial(w.gate); err != nil {
			return nil, err
		}
		defer conns[i].close()
	}
	var wg sync.WaitGroup
	start := time.Now()
	for i := range people {
		wg.Go(func() {
			errs[i] = conns[i].expectOK(requests[i])
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

// idleCost is what some idle instances cost for a while.
type idleCost struct {
	n             int
	memory        memory  // of all instances
	available     float64 // MiB each by MemAvailable
	instances     usage
	server, gate  usage
	watched       time.Duration
	gateMiB, srvM float64 // MiB of the gateway and of the server
}

// percent of one core.
func (c idleCost) percent(u usage) float64 { return 100 * u.ran.Seconds() / c.watched.Seconds() }

// idle measures 50 and then 500 instances that have served some requests and then nothing.
func (b *bench) idle(ctx context.Context, w *world) error {
	counts := []int{50, 500}
	if b.quick {
		counts = []int{20, 100}
	}
	b.begin("Idle instances")
	before := memInfo("MemAvailable")
	var costs []idleCost
	started := 0
	for _, n := range counts {
		b.progress("waking %d instances", n-started)
		if err := w.wakeAndWork(ctx, w.people[started:n]); err != nil {
			return err
		}
		started = n
		b.progress("watching %d instances for %v", n, b.span(time.Minute, 5*time.Second))
		cost, err := b.watch(ctx, w, w.people[:n], before)
		if err != nil {
			return err
		}
		m := cost.memory
		each := func(kib int) float64 { return float64(kib) / 1024 / float64(n) }
		b.add(fmt.Sprintf("%d instances: memory of each, private and its share", n), each(m.pss), "MiB", atMost(4))
		b.add(fmt.Sprintf("%d instances: of that private", n), each(m.private), "MiB", nil)
		b.add(fmt.Sprintf("%d instances: of that heap with stacks", n), each(m.heap), "MiB", nil)
		b.add(fmt.Sprintf("%d instances: of that variables", n), each(m.data), "MiB", nil)
		b.add(fmt.Sprintf("%d instances: of that the program, its share", n), each(m.program), "MiB", nil)
		b.add(fmt.Sprintf("%d instances: of that Go's runtime and the rest", n), each(m.pss-m.heap-m.data-m.program), "MiB", nil)
		b.add(fmt.Sprintf("%d instances: fall of MemAvailable for each", n), cost.available, "MiB", nil)
		b.add(fmt.Sprintf("%d instances: CPU of all", n), cost.percent(cost.instances), "% of core", nil)
		b.add(fmt.Sprintf("%d instances: CPU of server and gateway", n), cost.percent(cost.server)+cost.percent(cost.gate), "% of core", nil)
		b.add(fmt.Sprintf("%d instances: wake-ups of each in a minute", n),
			float64(cost.instances.sleeps)/float64(n)/cost.watched.Minutes(), "1/min", nil)
		costs = append(costs, cost)
	}
	last := costs[len(costs)-1]
	b.add("server, private and its share", last.srvM, "MiB", nil)
	b.add("gateway, private and its share", last.gateMiB, "MiB", nil)
	b.add("2,000 instances: CPU of the whole system, extrapolated", extrapolate(costs, 2000), "% of core", atMost(1))
	// What follows does not need them.
	return w.stop(ctx, w.people[:started]...)
}

// extrapolate gives the percentage for n instances. Instances cost in proportion to their number; what server and
// gateway cost grows with the number, or is the same for any: the two measurements tell, and noise may not make it less.
func extrapolate(costs []idleCost, n int) float64 {
	small, large := costs[0], costs[len(costs)-1]
	fixed := func(c idleCost) float64 { return c.percent(c.server) + c.percent(c.gate) }
	slope := max(0, (fixed(large)-fixed(small))/float64(large.n-small.n))
	return large.percent(large.instances)*float64(n)/float64(large.n) + fixed(large) + slope*float64(n-large.n)
}

// settle is how long instances are left alone before they are watched: they become quiet 10 s after the last request.
const settle = 15 * time.Second

func (b *bench) watch(ctx context.Context, w *world, people []*person, before int) (cost idleCost, err error) {
	if err := sleep(ctx, settle); err != nil {
		return cost, err
	}
	cost.n = len(people)
	cost.available = float64(before-memInfo("MemAvailable")) / 1024 / float64(cost.n)
	running := processesOf(w.uids(people))
	var pids []int
	for _, p := range people {
		// A sudo that stays would be counted with its instance; there is none with the shipped rule.
		if n := len(running[p.account.UID]); n != 1 {
			return cost, fmt.Errorf("%s has %d processes instead of an instance", p.account.Name, n)
		}
		pids = append(pids, running[p.account.UID]...)
	}
	if err := b.watchCPU(ctx, w, pids, &cost); err != nil {
		return cost, err
	}
	for _, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			return cost, err
		}
		cost.memory.plus(m)
	}
	for pid, into := range map[int]*float64{w.server.pid(): &cost.srvM, w.gateway.pid(): &cost.gateMiB} {
		m, err := memoryOf(pid)
		if err != nil {
			return cost, err
		}
		*into = float64(m.pss) / 1024
	}
	return cost, nil
}

// watchCPU measures the time used. A change of the account files is told, because the server then looks at all accounts,
// which is no idle time.
func (b *bench) watchCPU(ctx context.Context, w *world, pids []int, cost *idleCost) (err error) {
	groups := []struct {
		pids []int
		into *usage
	}{{pids, &cost.instances}, {[]int{w.server.pid()}, &cost.server}, {[]int{w.gateway.pid()}, &cost.gate}}
	accounts, start := accountState(), time.Now()
	for _, g := range groups {
		if *g.into, err = usageOf(g.pids...); err != nil {
			return err
		}
	}
	if err := sleep(ctx, b.span(time.Minute, 5*time.Second)); err != nil {
		return err
	}
	cost.watched = time.Since(start)
	for _, g := range groups {
		u, err := usageOf(g.pids...)
		if err != nil {
			return err
		}
		*g.into = u.minus(*g.into)
	}
	if accountState() != accounts {
		b.progress("somebody has changed accounts meanwhile: the CPU time is that of a server that looks at all of them")
	}
	return nil
}

// wakeAndWork gives each person an instance that has answered 100 requests: enough garbage for a collection. One that has
// done less looks smaller than it will be.
func (w *world) wakeAndWork(ctx context.Context, people []*person) error {
	c, err := dial(w.gate)
	if err != nil {
		return err
	}
	defer c.close()
	for _, p := range people {
		req, err := w.homeRequest(p)
		if err != nil {
			return err
		}
		for range 100 {
			if err := c.expectOK(req); err != nil {
				return fmt.Errorf("request of %s: %w", p.name, err)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// pidOf gives the process of a person's instance.
func (w *world) pidOf(ctx context.Context, who ident.UCloudUser) (int, error) {
	admin, err := w.admin(ctx)
	if err != nil {
		return 0, err
	}
	defer admin.Close()
	pages, err := ipc.Open(ctx, admin, ipcapi.InstanceList, ipcapi.Empty{})
	if err != nil {
		return 0, err
	}
	defer pages.Close()
	for {
		page, _, err := pages.Next(ctx)
		if err != nil {
			return 0, fmt.Errorf("find the instance of %s: %w", who, err)
		}
		for _, i := range page.Items {
			if i.User == who && i.PID != 0 {
				return int(i.PID), nil
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
