package launcher_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/testkit/accounts"
)

// Benchmarks of the figures in design.md, "Numbers to design for". They need root and run for about a minute each:
//
//	go test ./internal/launcher -run '^$' -bench . -benchtime 1x
//
// IMT_BENCH_INSTANCES and IMT_BENCH_SECONDS change the number of idle instances (50) and how long they are watched (30).

func fromEnv(name string, def int) int {
	n, _ := strconv.Atoi(os.Getenv(name)) // 0 if it is not set
	return cmp.Or(n, def)
}

func percentile(d []time.Duration, p float64) float64 {
	slices.Sort(d)
	return float64(d[int(float64(len(d)-1)*p)].Microseconds()) / 1000
}

// benchUsers are shared: making a hundred accounts takes a while.
var benchUsers struct {
	sync.Mutex
	list []accounts.Account
}

func usersFor(b *testing.B, n int) []accounts.Account {
	b.Helper()
	site := theSite(b)
	benchUsers.Lock()
	defer benchUsers.Unlock()
	for len(benchUsers.list) < n {
		benchUsers.list = append(benchUsers.list, site.User(b))
	}
	return benchUsers.list[:n]
}

// BenchmarkColdStart measures from the wake to the first answered request, one user at a time, and compares it with
// what sudo needs for a program that does nothing.
func BenchmarkColdStart(b *testing.B) {
	site := theSite(b)
	truth, err := site.Install("true", "/bin/true", accounts.Direct)
	if err != nil {
		b.Fatal(err)
	}
	for _, mode := range []string{"direct", "stock rule"} {
		b.Run(mode, func(b *testing.B) {
			users := usersFor(b, 10)
			w := newRunning(b, func(c *serverConfig) { c.Program = filepath.Join(site.Dir, sudoModes[mode]) }, users...)
			const rounds = 200
			var cold, bare []time.Duration
			for b.Loop() {
				for i := range rounds {
					u := users[i%len(users)]
					begun := time.Now()
					w.mustGet(u, "/work")
					cold = append(cold, time.Since(begun))
					var ok bool
					w.call(w.server, "Stop", userOf(u), &ok)

					cmd := site.Service.Command("/usr/bin/sudo", "-n", "-u", "#"+u.UID.String(), "--", truth)
					cmd.Env = []string{}
					begun = time.Now()
					if err := cmd.Run(); err != nil {
						b.Fatal(err)
					}
					bare = append(bare, time.Since(begun))
				}
			}
			b.ReportMetric(percentile(cold, 0.5), "ms-p50")
			b.ReportMetric(percentile(cold, 0.99), "ms-p99")
			b.ReportMetric(percentile(bare, 0.5), "ms-sudo-true-p50")
			b.ReportMetric(percentile(cold, 0.5)/percentile(bare, 0.5), "x-sudo-true")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkBurst wakes 100 users in the same moment and measures until the last one has been answered.
func BenchmarkBurst(b *testing.B) {
	users := usersFor(b, 100)
	w := newRunning(b, nil, users...)
	var all []time.Duration
	var last time.Duration
	for b.Loop() {
		var wg sync.WaitGroup
		took := make([]time.Duration, len(users))
		begun := time.Now()
		for i, u := range users {
			wg.Go(func() {
				w.mustGet(u, "/work")
				took[i] = time.Since(begun)
			})
		}
		wg.Wait()
		all = append(all, took...)
		last = max(last, slices.Max(took))
		for _, u := range users {
			var ok bool
			w.call(w.server, "Stop", userOf(u), &ok)
		}
	}
	b.ReportMetric(percentile(all, 0.5), "ms-p50")
	b.ReportMetric(float64(last.Milliseconds()), "ms-last")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle measures what instances cost that do nothing: memory as private pages plus their share of common ones,
// and processor time of the instances and of the server.
func BenchmarkIdle(b *testing.B) {
	n := fromEnv("IMT_BENCH_INSTANCES", 50)
	watch := time.Duration(fromEnv("IMT_BENCH_SECONDS", 30)) * time.Second
	users := usersFor(b, n)
	w := newRunning(b, nil, users...)
	for b.Loop() {
		pids := make([]int, n)
		before := available(b)
		for i, u := range users {
			for range 20 {
				w.mustGet(u, "/work")
			}
			pids[i] = int(w.about(u).PID)
		}
		time.Sleep(12 * time.Second) // until they have become quiet
		after := available(b)
		used, server := cpuTicks(b, pids...), cpuTicks(b, w.server.cmd.Process.Pid)
		time.Sleep(watch)
		used, server = cpuTicks(b, pids...)-used, cpuTicks(b, w.server.cmd.Process.Pid)-server
		var pss, private int
		for _, pid := range pids {
			p, q := rollup(b, pid)
			pss, private = pss+p, private+q
		}
		b.ReportMetric(float64(pss)/float64(n)/1024, "MiB-pss-each")
		b.ReportMetric(float64(private)/float64(n)/1024, "MiB-private-each")
		b.ReportMetric(float64(before-after)/float64(n)/1024, "MiB-available-each")
		// A tick is 10 ms.
		b.ReportMetric(float64(used)/watch.Seconds(), "%cpu-all-instances")
		b.ReportMetric(float64(server)/watch.Seconds(), "%cpu-server")
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.server.cmd.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(threads)), "server-threads")
	}
	b.ReportMetric(0, "ns/op")
}

// available is MemAvailable in KiB.
func available(b *testing.B) int {
	b.Helper()
	out, err := exec.Command("awk", "/^MemAvailable/ {print $2}", "/proc/meminfo").Output()
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// cpuTicks is the user and system time of processes.
func cpuTicks(b *testing.B, pids ...int) int {
	b.Helper()
	sum := 0
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(raw[strings.LastIndex(string(raw), ")")+1:]))
		for _, field := range f[11:13] {
			n, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// rollup gives the proportional and the private memory of a process in KiB.
func rollup(b *testing.B, pid int) (pss, private int) {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "Pss:":
			pss = n
		case "Private_Clean:", "Private_Dirty:":
			private += n
		}
	}
	return pss, private
}
